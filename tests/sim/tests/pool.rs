//! Connection pools under anything that callers, peers and the time may do, beside a model that says
//! of every single action whether it had to come.
//!
//! `TOWPATH_SIM_SEEDS=100000` runs more seeds, `TOWPATH_SIM_SEED=7` runs one.

mod pool_model;

use std::time::Duration;

use pool_model::{Model, PEERS};
use towpath_proto::Timestamp;
use towpath_proto::pool::{Action, Permits, Pool, PoolConfig};
use towpath_sim::dice::Dice;
use towpath_sim::seeds;

/// Pools of one node, which share its permits.
const SHARDS: usize = 2;
const STEPS: usize = 250;
/// Rounds of `handle_timeout` after which a pool that nobody uses has to be empty.
const MAX_ROUNDS: usize = 10_000;

struct Run {
    pools: Vec<Pool<u32>>,
    models: Vec<Model>,
    permits: Permits,
    dice: Dice,
    now: Timestamp,
    counts: Counts,
}

#[derive(Default, Debug)]
struct Counts {
    actions: u64,
    closed: u64,
    answers: u64,
}

fn config(dice: &mut Dice) -> PoolConfig {
    let ms = Duration::from_millis;
    let mut config = PoolConfig {
        max_connections_per_peer: 1 + dice.below(3),
        max_total_connections: 1 + dice.below(12),
        references_per_connection: 1 + dice.below(4) as u32,
        keep_alive_interval: dice.duration(ms(500)..ms(5_000)),
        max_waiters: 1 + dice.below(12),
        observe: dice.one_in(2),
        ..PoolConfig::default()
    };
    config.idle_timeout = config.keep_alive_interval * 2 + dice.duration(ms(0)..ms(20_000));
    let retry = &mut config.retry;
    retry.max_attempts = 1 + dice.below(5) as u32;
    retry.attempt_timeout = dice.duration(ms(100)..ms(5_000));
    retry.base_delay = dice.duration(ms(1)..ms(1_000));
    retry.max_delay = retry.base_delay + dice.duration(ms(0)..ms(4_000));
    retry.jitter = *dice.pick(&[0.0, 0.5, 1.0]);
    retry.deadline = dice.duration(ms(100)..ms(20_000));
    config
}

impl Run {
    fn new(seed: u64) -> Self {
        let mut dice = Dice::new(seed).fork("pool", 0);
        let config = config(&mut dice);
        let permits = Permits::new(config.max_total_connections);
        let me = pool_model::peer(PEERS / 2);
        let pools = (0..SHARDS).map(|_| {
            Pool::new(me, config.clone(), permits.clone(), dice.array()).expect("it is right")
        });
        let pools = pools.collect();
        let models = (0..SHARDS).map(|_| Model::new(me, config.clone()));
        Self {
            pools,
            models: models.collect(),
            permits,
            now: Timestamp::from_nanos(dice.range(0..1 << 50)),
            dice,
            counts: Counts::default(),
        }
    }

    fn step(&mut self) {
        let shard = self.dice.below(SHARDS);
        let free = self.permits.limit() - self.permits.taken();
        let (pool, model) = (&mut self.pools[shard], &mut self.models[shard]);
        model.at(self.now, free);
        match self.dice.weighted(&[8, 3, 6, 3, 4, 1, 2, 3, 1, 1, 2, 8]) {
            0 => model.get(pool, &mut self.dice),
            1 => model.cancel(pool, &mut self.dice),
            2 => model.finish_dial(pool, &mut self.dice),
            3 => model.incoming(pool, &mut self.dice),
            4 => model.release(pool, &mut self.dice),
            5 => model.retain(pool, &mut self.dice),
            6 => model.set_busy(pool, &mut self.dice),
            7 => model.use_it(pool, &mut self.dice),
            8 => model.set_unhealthy(pool, &mut self.dice),
            9 => model.lose(pool, &mut self.dice),
            10 => model.refuse_dial(pool, &mut self.dice),
            _ => {
                let longest = *self.dice.pick(&[10, 1_000, 30_000]);
                let ms = Duration::from_millis;
                let end = self.now + self.dice.duration(ms(0)..ms(longest));
                self.pass(end);
                return;
            }
        }
        self.collect(shard);
    }

    /// Lets the time pass in all shards, doing what is due.
    fn pass(&mut self, end: Timestamp) {
        let due = |pools: &[Pool<u32>]| {
            let deadlines = pools.iter().map(Pool::poll_timeout).enumerate();
            deadlines
                .filter_map(|(shard, at)| Some((at?, shard)))
                .min()
                .filter(|(at, _)| *at <= end)
        };
        while let Some((at, shard)) = due(&self.pools) {
            self.now = self.now.max(at);
            let free = self.permits.limit() - self.permits.taken();
            let model = &mut self.models[shard];
            model.at(self.now, free);
            self.pools[shard].handle_timeout(self.now, |connection| model.heard(connection));
            self.collect(shard);
            self.models[shard].assert_nothing_overdue();
        }
        self.now = end;
    }

    fn collect(&mut self, shard: usize) {
        let (pool, model) = (&mut self.pools[shard], &mut self.models[shard]);
        while let Some(action) = pool.poll_action() {
            self.counts.actions += 1;
            self.counts.closed += u64::from(matches!(action, Action::Close { .. }));
            self.counts.answers += u64::from(matches!(action, Action::Answer { .. }));
            model.act(action);
        }
        while pool.poll_event().is_some() {}
        model.compare(pool);
        let held: usize = self.models.iter().map(Model::permits).sum();
        assert_eq!(self.permits.taken(), held, "dials and connections");
        assert!(held <= self.permits.limit());
    }

    /// Everybody goes: what remains ends by itself.
    fn end(&mut self) {
        for shard in 0..SHARDS {
            let free = self.permits.limit() - self.permits.taken();
            self.models[shard].at(self.now, free);
            if self.dice.one_in(4) {
                self.models[shard].shutdown(&mut self.pools[shard]);
                self.collect(shard);
            } else {
                for _ in 0..MAX_ROUNDS {
                    let (pool, model) = (&mut self.pools[shard], &mut self.models[shard]);
                    if !model.let_go(pool) {
                        break;
                    }
                    self.collect(shard);
                }
            }
        }
        self.pass(self.now + Duration::from_secs(120));
        for pool in &self.pools {
            assert!(pool.is_empty(), "something is left: {pool:?}");
            assert_eq!(pool.poll_timeout(), None);
        }
        assert_eq!(self.permits.taken(), 0);
    }
}

#[test]
fn pools_do_what_the_model_says_and_nothing_is_left_in_them() {
    let mut all = Counts::default();
    for seed in seeds::from_environment() {
        println!("seed {seed}");
        let mut run = Run::new(seed);
        for _ in 0..STEPS {
            run.step();
        }
        run.end();
        all.actions += run.counts.actions;
        all.closed += run.counts.closed;
        all.answers += run.counts.answers;
    }
    println!("{all:?}");
}
