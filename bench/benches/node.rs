//! Times the operations of this name; see `towpath_bench::micro`.

use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use towpath_bench::micro;

fn node(criterion: &mut Criterion) {
    for name in micro::NAMES.iter().filter(|name| name.starts_with("node")) {
        let mut operation = micro::operation(name).expect("the name is known");
        if *name != "node_datagram" {
            criterion.bench_function(name, |bencher| bencher.iter(|| operation.run_once()));
            continue;
        }
        criterion.bench_function(name, |bencher| {
            bencher.iter_custom(|times| {
                let mut spent = Duration::ZERO;
                for _ in 0..times {
                    operation.prepare();
                    let begin = Instant::now();
                    operation.run_once();
                    spent += begin.elapsed();
                }
                spent
            });
        });
    }
}

criterion_group!(group, node);
criterion_main!(group);
