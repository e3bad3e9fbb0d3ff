//! Throughput of one kind of traffic: the highest rate that each server carries, then rounds in turn at
//! these rates, then rounds at twice as much.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use indicatif::ProgressBar;

use crate::load::{Cell, Generator, Load, Round};
use crate::place::Place;
use crate::results::{Carried, Throughput};
use crate::search::{self, Highest};
use crate::server::Server;
use crate::sys;

/// A rate that every server carries, in packets per second.
pub const EQUAL_PPS: f64 = 50_000.0;
/// Clumps of packets leave this far apart.
pub const QUANTUM: Duration = Duration::from_micros(50);
/// A disturbed round is repeated this often before it is taken as it is.
const REPEATS: usize = 2;
/// A rate that more of its counted rounds did not carry is given up for a lower one.
const MISSES_ALLOWED: usize = 1;
const STEP_DOWN: f64 = 0.93;
const MAX_STEPS_DOWN: u32 = 6;
/// What a measurement takes beside the traffic: counters read, stragglers waited for.
const OVERHEAD: Duration = Duration::from_millis(60);
/// What searches and steps down come to on the average.
const USUAL_PROBES: u32 = 12;
const USUAL_EXTRA_ROUNDS: u32 = 3;

/// Where servers are measured.
pub struct Stage<'a> {
    /// The places of the servers, by their numbers.
    pub places: &'a [Place],
    /// What packets are sent by.
    pub generator: Generator,
    /// Says what is done just now.
    pub progress: &'a ProgressBar,
}

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Rounds counted.
    pub pairs: usize,
    /// Length of a probe of the search.
    pub probe: Duration,
    /// Length of a round.
    pub round: Duration,
    /// Rounds at twice the highest rate.
    pub overload_rounds: usize,
    /// Rounds at [`EQUAL_PPS`].
    pub equal_rounds: usize,
}

impl Pace {
    /// What one server and one cell usually take.
    pub fn usual_duration(&self) -> Duration {
        let counted = self.pairs + self.overload_rounds + self.equal_rounds;
        let rounds = counted as u32 + 1 + USUAL_EXTRA_ROUNDS;
        (self.probe + OVERHEAD) * USUAL_PROBES + (self.round + OVERHEAD) * rounds
    }
}

/// A server that failed, and how.
pub type Failure = (&'static str, anyhow::Error);

/// Takes a step with each server in turn. One that fails takes no further part.
pub fn each<T>(
    contenders: &mut Vec<(&mut Server, T)>,
    failures: &mut Vec<Failure>,
    mut step: impl FnMut(&mut Server, &mut T) -> Result<()>,
) -> Result<()> {
    contenders.retain_mut(|(server, state)| match step(server, state) {
        Ok(()) => true,
        Err(error) => {
            failures.push((server.name, error));
            false
        }
    });
    Ok(sys::check_interrupted()?)
}

/// The rates found so far: where a search begins.
#[derive(Default)]
pub struct Guesses {
    found: BTreeMap<&'static str, Vec<(Cell, f64)>>,
}

impl Guesses {
    /// The rate at a cell that differs in the payload alone, else at the last one.
    fn of(&self, server: &str, cell: Cell) -> Option<f64> {
        let found = self.found.get(server)?;
        let alike = |(other, _): &&(Cell, f64)| {
            Cell {
                payload_bytes: cell.payload_bytes,
                ..*other
            } == cell
        };
        let (_, rate_pps) = found.iter().find(alike).or(found.last())?;
        Some(*rate_pps)
    }

    fn note(&mut self, server: &'static str, cell: Cell, rate_pps: f64) {
        self.found.entry(server).or_default().push((cell, rate_pps));
    }
}

struct Contender {
    load: Load,
    tally: Tally,
    overload: Vec<Round>,
    equal: Vec<Round>,
}

/// Rounds at a rate that is believed to be the highest.
struct Tally {
    highest: Highest,
    steps_down: u32,
    rounds: Vec<Round>,
}

impl Tally {
    /// Counts a round. Only the last `pairs` are kept: those measured beside the last ones of the others.
    fn count(&mut self, round: Round, pairs: usize, may_step_down: bool) {
        self.rounds.push(round);
        if self.rounds.len() > pairs {
            self.rounds.remove(0);
        }
        let missed = self
            .rounds
            .iter()
            .filter(|round| !search::passes(round))
            .count();
        if missed > MISSES_ALLOWED && may_step_down && self.steps_down < MAX_STEPS_DOWN {
            self.highest.rate_pps *= STEP_DOWN;
            self.steps_down += 1;
            self.rounds.clear();
        }
    }
}

impl Pace {
    /// What one server may still take at a cell once patience is over.
    pub fn rest(&self) -> Duration {
        let rounds = self.pairs + self.overload_rounds + self.equal_rounds;
        (self.round + OVERHEAD) * rounds as u32
    }

    /// Steps of the progress bar for one server and one cell.
    pub fn steps(&self) -> usize {
        // The search, and the round that warms up.
        2 + self.pairs + self.overload_rounds + self.equal_rounds
    }
}

/// Measures all servers at one cell. Once `patience` is over, rounds are taken as they are: no rate is
/// stepped down from, and no disturbed round is repeated.
pub fn measure(
    stage: &Stage<'_>,
    pace: Pace,
    cell: Cell,
    servers: &mut [Server],
    guesses: &mut Guesses,
    patience: Instant,
) -> Result<(Throughput, Vec<Failure>)> {
    let mut failures = Vec::new();
    let mut contenders = Vec::new();
    for server in servers {
        stage.say(format!("{cell}: searching {}", server.name));
        let name = server.name;
        match stage.find_highest(server, cell, guesses.of(name, cell), pace.probe) {
            Ok(contender) => contenders.push((server, contender)),
            Err(error) => failures.push((name, error)),
        }
        stage.progress.inc(1);
        sys::check_interrupted()?;
    }
    let mut turn = 0;
    while contenders
        .iter()
        .any(|(_, contender)| contender.tally.rounds.len() < pace.pairs)
    {
        let may_step_down = Instant::now() < patience;
        each(&mut contenders, &mut failures, |server, contender| {
            stage.say(format!("{cell}: round {turn}, {}", server.name));
            let rate_pps = contender.tally.highest.rate_pps;
            let load = &mut contender.load;
            let round = stage.round(server, load, rate_pps, pace.round, patience)?;
            // The first round warms up.
            if turn > 0 {
                contender.tally.count(round, pace.pairs, may_step_down);
            }
            if turn > pace.pairs {
                stage.progress.inc_length(1);
            }
            stage.progress.inc(1);
            Ok(())
        })?;
        turn += 1;
    }
    for _ in 0..pace.overload_rounds {
        each(&mut contenders, &mut failures, |server, contender| {
            stage.say(format!("{cell}: overload, {}", server.name));
            let rate_pps = contender.tally.highest.rate_pps * 2.0;
            let load = &mut contender.load;
            let round = stage.round(server, load, rate_pps, pace.round, patience)?;
            contender.overload.push(round);
            stage.progress.inc(1);
            Ok(())
        })?;
    }
    for _ in 0..pace.equal_rounds {
        each(&mut contenders, &mut failures, |server, contender| {
            stage.say(format!("{cell}: equal rate, {}", server.name));
            let load = &mut contender.load;
            let round = stage.round(server, load, EQUAL_PPS, pace.round, patience)?;
            contender.equal.push(round);
            stage.progress.inc(1);
            Ok(())
        })?;
    }
    let mut by_name = BTreeMap::new();
    for (server, contender) in contenders {
        guesses.note(server.name, cell, contender.tally.highest.rate_pps);
        let carried = Carried {
            highest: contender.tally.highest,
            steps_down: contender.tally.steps_down,
            rounds: contender.tally.rounds,
            overload: contender.overload,
            equal: contender.equal,
        };
        by_name.insert(server.name.to_owned(), carried);
    }
    let servers = by_name;
    let again_at = None;
    Ok((
        Throughput {
            cell,
            servers,
            again_at,
        },
        failures,
    ))
}

impl Stage<'_> {
    fn say(&self, what: String) {
        self.progress.set_message(what);
    }

    fn find_highest(
        &self,
        server: &mut Server,
        cell: Cell,
        guess: Option<f64>,
        probe: Duration,
    ) -> Result<Contender> {
        let Place { rig, sinks } = &self.places[server.place];
        let mut load = Load::prepare(rig, server, cell, self.generator)?;
        let found = search::highest_rate(guess, |rate_pps| {
            let (round, _) = load.measure(rig, sinks, server, rate_pps, probe, QUANTUM)?;
            Ok(round)
        })?;
        Ok(Contender {
            load,
            tally: Tally {
                highest: found.context("no rate was carried")?,
                steps_down: 0,
                rounds: Vec::new(),
            },
            overload: Vec::new(),
            equal: Vec::new(),
        })
    }

    /// One round; a disturbed one is measured again.
    fn round(
        &self,
        server: &mut Server,
        load: &mut Load,
        rate_pps: f64,
        duration: Duration,
        patience: Instant,
    ) -> Result<Round> {
        let Place { rig, sinks } = &self.places[server.place];
        let mut repeats = 0;
        loop {
            let (round, _) = load.measure(rig, sinks, server, rate_pps, duration, QUANTUM)?;
            ensure!(
                round.received > 0,
                "nothing of {} packets arrived any more",
                round.sent
            );
            let over = repeats == REPEATS || Instant::now() >= patience;
            if over || !round.spent.is_disturbed() {
                return Ok(round);
            }
            repeats += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::Direction;

    fn cell(payload_bytes: usize, flows: usize) -> Cell {
        Cell {
            payload_bytes,
            direction: Direction::Both,
            flows,
            burst: 1,
        }
    }

    #[test]
    fn a_guess_comes_from_the_same_cell_of_another_payload_else_from_the_last_cell() {
        let mut guesses = Guesses::default();
        assert_eq!(guesses.of("coturn", cell(172, 16)), None);
        guesses.note("coturn", cell(172, 16), 1.0);
        guesses.note("coturn", cell(172, 256), 2.0);
        assert_eq!(guesses.of("coturn", cell(1200, 16)), Some(1.0));
        assert_eq!(guesses.of("coturn", cell(172, 1000)), Some(2.0));
        assert_eq!(guesses.of("epoll", cell(1200, 16)), None);
    }

    fn round(number: u64, lost: u64) -> Round {
        Round {
            sent: 1000 + number,
            received: 1000 + number - lost,
            ..Round::default()
        }
    }

    fn tally() -> Tally {
        Tally {
            highest: Highest {
                rate_pps: 100_000.0,
                generator_limited: false,
            },
            steps_down: 0,
            rounds: Vec::new(),
        }
    }

    #[test]
    fn a_rate_that_does_not_hold_is_stepped_down_from_and_its_rounds_do_not_count() {
        let mut tally = tally();
        for (number, lost) in [(0, 0), (1, 20), (2, 0)] {
            tally.count(round(number, lost), 7, true);
        }
        assert_eq!((tally.rounds.len(), tally.steps_down), (3, 0));
        tally.count(round(3, 20), 7, true);
        assert_eq!((tally.rounds.len(), tally.steps_down), (0, 1));
        assert_eq!(tally.highest.rate_pps, 100_000.0 * STEP_DOWN);
    }

    #[test]
    fn steps_down_end_with_the_patience_and_with_their_number() {
        let mut patient = tally();
        let mut hurried = tally();
        for number in 0..100 {
            patient.count(round(number, 500), 7, true);
            hurried.count(round(number, 500), 7, false);
        }
        assert_eq!(
            (patient.rounds.len(), patient.steps_down),
            (7, MAX_STEPS_DOWN)
        );
        assert_eq!((hurried.rounds.len(), hurried.steps_down), (7, 0));
    }

    #[test]
    fn the_rounds_kept_are_the_last_ones() {
        let mut tally = tally();
        (0..10).for_each(|number| tally.count(round(number, 0), 7, true));
        let kept: Vec<u64> = tally.rounds.iter().map(|round| round.sent).collect();
        assert_eq!(kept, (1003..1010).collect::<Vec<_>>());
    }
}
