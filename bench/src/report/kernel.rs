//! The kernel path's part of the terminal's rows and of the documentation's page.

use std::fmt::Write;

use super::{figures_rows, kilo, median_of, plain, ratio_to, repeated_cells};
use crate::load::Round;
use crate::programs::Programs;
use crate::results::{self, Carried, MINIMAL, Results, USERSPACE};
use crate::statistics;

/// What the programs cost by themselves, for the terminal.
pub fn programs_rows(programs: &Programs) -> String {
    let mut text = "test runs, ns\n".to_owned();
    for (name, costs) in costs(programs) {
        let _ = writeln!(text, "  {name}: {}", nanoseconds(costs));
    }
    for (name, count) in &programs.instructions {
        let _ = writeln!(text, "  {name}: {count} instructions");
    }
    text
}

/// Appends the kernel path to the page.
pub fn page(text: &mut String, results: &Results) {
    let setting = &results.setting;
    let _ = write!(
        text,
        "\n## The kernel path\n\nFrom `cargo xtask bench kernel`: {} ({} CPUs), Linux {}, commit {}, {} rounds per figure, \
         {} minutes{}.\n\n",
        setting.cpu,
        setting.cpus,
        setting.kernel,
        setting.commit,
        setting.pairs,
        setting.seconds.div_ceil(60),
        if setting.quick {
            "; a quick run, not for comparison"
        } else {
            ""
        },
    );
    for (name, version) in &setting.servers {
        let _ = writeln!(text, "- `{name}`: {version}");
    }
    throughput(text, results);
    if let Some(programs) = &results.programs {
        programs_table(text, programs);
    }
    figures_rows(text, &results::kernel_figures(results));
    if !results.skipped.is_empty() {
        text.push_str("\n### Not measured of the kernel path\n\n");
        for skipped in &results.skipped {
            let _ = writeln!(text, "- {skipped}");
        }
    }
}

fn throughput(text: &mut String, results: &Results) {
    if results.throughput.is_empty() {
        return;
    }
    text.push_str(
        "\n![kpps per CPU second](../bench/results/kernel.svg)\n\n\
         | traffic | server | highest kpps | kpps per CPU-s (quartiles) | × coturn | × minimal | × userspace \
         | at 50 kpps: kpps per CPU-s | loss % | p99 ms | lost in sockets, rings |\n\
         |---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    for throughput in &results.throughput {
        for (name, carried) in &throughput.servers {
            let per_cpu = statistics::summary(carried.packets_per_cpu_second());
            let equal = carried.equal.iter().map(Round::packets_per_cpu_second);
            let to = |other| plain(ratio_to(throughput, carried, other), 2);
            let value = |of: fn(&Round) -> f64| median_of(&carried.rounds, of).unwrap_or(f64::NAN);
            let (sockets, rings) = lost(carried);
            let limited = if carried.highest.generator_limited {
                " *"
            } else {
                ""
            };
            let _ = writeln!(
                text,
                "| {} | {name} | {:.0}{limited} | {} | {} | {} | {} | {} | {:.3} | {:.2} | {sockets}, {rings} |",
                throughput.cell,
                carried.highest.rate_pps / 1e3,
                kilo(per_cpu),
                to("coturn"),
                to(MINIMAL),
                to(USERSPACE),
                kilo(statistics::summary(equal)),
                value(Round::loss) * 100.0,
                value(|round| round.p99_us) / 1e3,
            );
        }
    }
    text.push_str("\n\\* the generator's limit, not the server's.\n");
    repeated_cells(text, results);
}

fn lost(carried: &Carried) -> (u64, u64) {
    let sum = |of: fn(&Round) -> u64| carried.rounds.iter().map(of).sum();
    (
        sum(|round| round.drops.sockets),
        sum(|round| round.drops.links_in + round.drops.links_out),
    )
}

fn costs(programs: &Programs) -> [(&'static str, &Vec<f64>); 6] {
    [
        ("two routes", &programs.pair),
        ("two flows, the minimal program", &programs.minimal_pair),
        ("1,000 active routes and no others", &programs.active_alone),
        (
            "the same among 60,000 routes and 1,000,000 slots",
            &programs.active_among_many,
        ),
        ("all 60,000 routes at random", &programs.all),
        ("the look-ups of these alone", &programs.lookups_of_all),
    ]
}

fn nanoseconds(costs: &[f64]) -> String {
    statistics::summary(costs.iter().copied()).map_or("–".to_owned(), |summary| {
        format!(
            "{:.0} ({:.0}–{:.0})",
            summary.median, summary.low, summary.high
        )
    })
}

fn programs_table(text: &mut String, programs: &Programs) {
    text.push_str(
        "\nOne packet in test runs, metering and counting on, the kernel's own loop included:\n\n\
         | routes | ns per packet (quartiles) |\n|---|---|\n",
    );
    for (name, costs) in costs(programs) {
        let _ = writeln!(text, "| {name} | {} |", nanoseconds(costs));
    }
    text.push_str("\n| program | instructions, as the verifier left them |\n|---|---|\n");
    for (name, count) in &programs.instructions {
        let _ = writeln!(text, "| {name} | {count} |");
    }
    text.push_str("\n| map, 60,000 routes and 1,000,000 slots | MB |\n|---|---|\n");
    for (name, bytes) in &programs.map_bytes {
        let _ = writeln!(text, "| {name} | {:.1} |", *bytes as f64 / 1e6);
    }
}
