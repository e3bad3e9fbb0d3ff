//! Times the operations of this name; see `towpath_bench::micro`.

use criterion::{Criterion, criterion_group, criterion_main};
use towpath_bench::micro;

fn parse(criterion: &mut Criterion) {
    for name in micro::NAMES.iter().filter(|name| name.starts_with("parse")) {
        let mut operation = micro::operation(name).expect("the name is known");
        criterion.bench_function(name, |bencher| bencher.iter(|| operation.run_once()));
    }
}

criterion_group!(group, parse);
criterion_main!(group);
