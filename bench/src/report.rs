//! Results as text: rows on the terminal while a run goes on, the page for the documentation, files.

pub mod kernel;
pub mod node;

use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::load::Round;
use crate::results::{
    self, Carried, Figure, IDLE_ALLOCATIONS, Latency, Results, Scale, Target, Throughput,
};
use crate::statistics::{self, Summary};
use crate::svg;
use crate::timings::{Micro, Timing};

/// Ends a run of the relays: writes its results, prints its figures, and fails where something is missing.
pub fn conclude_relay(results: &Results, directory: &Path, allow_skip: bool) -> Result<()> {
    conclude(
        results,
        directory,
        "relay",
        &results::figures(results),
        allow_skip,
    )
}

/// The same for a run of the kernel path.
pub fn conclude_kernel(results: &Results, directory: &Path, allow_skip: bool) -> Result<()> {
    let figures = results::kernel_figures(results);
    conclude(results, directory, "kernel", &figures, allow_skip)
}

fn conclude(
    results: &Results,
    directory: &Path,
    name: &str,
    figures: &[Figure],
    allow_skip: bool,
) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("creating {}", directory.display()))?;
    results.write(&directory.join(name).with_extension("json"))?;
    let picture = directory.join(name).with_extension("svg");
    fs::write(&picture, svg::throughput(results))
        .with_context(|| format!("writing {}", picture.display()))?;
    print!("{}", figures_table(figures));
    for skipped in &results.skipped {
        eprintln!("not measured: {skipped}");
    }
    ensure!(
        results.skipped.is_empty() || allow_skip,
        "{} measurements are missing (--allow-skip accepts that)",
        results.skipped.len()
    );
    Ok(())
}

fn kilo(summary: Option<Summary>) -> String {
    summary.map_or("–".to_owned(), |summary| {
        let Summary {
            median, low, high, ..
        } = summary;
        format!("{:.0} ({:.0}–{:.0})", median / 1e3, low / 1e3, high / 1e3)
    })
}

fn plain(summary: Option<Summary>, decimals: usize) -> String {
    summary.map_or("–".to_owned(), |summary| {
        format!("{:.*}", decimals, summary.median)
    })
}

fn median_of(rounds: &[Round], value: impl Fn(&Round) -> f64) -> Option<f64> {
    Some(statistics::summary(rounds.iter().map(value))?.median)
}

fn ratio_to(throughput: &Throughput, of: &Carried, to: &str) -> Option<Summary> {
    let to = throughput.servers.get(to)?;
    statistics::ratio(of.packets_per_cpu_second(), to.packets_per_cpu_second())
}

/// Rows of one cell for the terminal.
pub fn throughput_rows(throughput: &Throughput) -> String {
    let mut text = format!("{}\n", throughput.cell);
    for (name, carried) in &throughput.servers {
        let rate = carried.highest.rate_pps / 1e3;
        let limited = if carried.highest.generator_limited {
            " (generator's limit)"
        } else {
            ""
        };
        let per_cpu = statistics::summary(carried.packets_per_cpu_second());
        let to = |other| plain(ratio_to(throughput, carried, other), 2);
        let value = |of: fn(&Round) -> f64| median_of(&carried.rounds, of).unwrap_or(f64::NAN);
        let (server_ns, loss) = (value(Round::server_ns_per_packet), value(Round::loss));
        let (busy, p99) = (value(|round| round.spent.busy), value(|round| round.p99_us));
        let disturbed = carried.disturbed_rounds();
        let overload_p99 = median_of(&carried.overload, |round| round.p99_us).unwrap_or(f64::NAN);
        let share = plain(carried.overload_share(), 2);
        let _ = writeln!(
            text,
            "  {name:10} highest {rate:6.0} kpps{limited} ({} steps down), {} kpps/CPU-s, own threads {server_ns:.0} ns, \
             {} x coturn, {} x forwarder, loss {:.3} %, p99 {p99:.0} us, busy {busy:.2}, at twice: {share} \
             of it, p99 {overload_p99:.0} us, disturbed {disturbed}/{}",
            carried.steps_down,
            kilo(per_cpu),
            to("coturn"),
            to("forwarder"),
            loss * 100.0,
            carried.rounds.len(),
        );
    }
    text
}

/// Rows of one latency cell for the terminal.
pub fn latency_rows(latency: &Latency) -> String {
    let mut text = format!(
        "latency, {}, {:.0} packets/s\n",
        latency.cell, latency.rate_pps
    );
    for (name, rounds) in &latency.servers {
        let value =
            |of: fn(&results::Delays) -> f64| plain(statistics::summary(rounds.iter().map(of)), 1);
        let _ = writeln!(
            text,
            "  {name:10} p50 {} p90 {} p99 {} p99.9 {} us, sender late {} %",
            value(|delays| delays.p50),
            value(|delays| delays.p90),
            value(|delays| delays.p99),
            value(|delays| delays.p999),
            value(|delays| delays.late * 100.0),
        );
    }
    text
}

/// Rows of the allocations for the terminal.
pub fn allocation_rows(results: &Results) -> String {
    let mut text = "allocations\n".to_owned();
    for (name, rounds) in &results.allocations {
        let value = |of: fn(&results::AllocationRound) -> f64| {
            plain(statistics::summary(rounds.iter().map(of)), 1)
        };
        let again: u64 = rounds.iter().map(|round| round.retransmissions).sum();
        let _ = writeln!(
            text,
            "  {name:10} {} us CPU each, channel {} us, end {} us, {} a second, sent again {again}",
            value(|round| round.make_us),
            value(|round| round.bind_us),
            value(|round| round.end_us),
            value(|round| round.made_per_second),
        );
    }
    text
}

/// Rows of the memory of one server for the terminal.
pub fn scale_rows(name: &str, scale: &Scale) -> String {
    let mut text = format!("memory, {name} ({})\n", scale.kernel_source);
    for point in &scale.points {
        let _ = writeln!(
            text,
            "  {:6} allocations: process {:9} B, kernel {:9} B, {:.1} us CPU each",
            point.allocations, point.process_bytes, point.kernel_bytes, point.make_us
        );
    }
    if let Some((process, kernel)) = scale.bytes_each(0, IDLE_ALLOCATIONS) {
        let _ = writeln!(text, "  each: process {process:.0} B, kernel {kernel:.0} B");
    }
    if let Some(growth) = scale.packet_cost_growth() {
        let _ = writeln!(
            text,
            "  packet cost with many to that with few: {growth:.3}"
        );
    }
    text
}

/// Figures with a target, and whether they hold.
fn figures_table(figures: &[Figure]) -> String {
    let mut text = String::new();
    for figure in figures {
        let (sign, bound) = match figure.target {
            Target::AtLeast(bound) => ("≥", bound),
            Target::AtMost(bound) => ("≤", bound),
        };
        let verdict = if figure.is_met() { "met   " } else { "MISSED" };
        let _ = writeln!(
            text,
            "{verdict} {:8.2} {sign} {bound:6.2}  {}",
            figure.value, figure.name
        );
    }
    text
}

/// The page for the documentation. `method` is the hand-written part before the tables.
pub fn page(results: &Results, method: &str) -> String {
    let mut text = method.trim_end().to_owned();
    let setting = &results.setting;
    let _ = write!(
        text,
        "\n\n## Results\n\n{} ({} CPUs), Linux {}, commit {}, {} rounds per figure, {} minutes{}.\n\n",
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
    throughput_page(&mut text, results);
    latency_page(&mut text, results);
    allocation_page(&mut text, results);
    figures_page(&mut text, results);
    if !results.skipped.is_empty() {
        text.push_str("\n### Not measured\n\n");
        for skipped in &results.skipped {
            let _ = writeln!(text, "- {skipped}");
        }
    }
    text
}

fn throughput_page(text: &mut String, results: &Results) {
    if results.throughput.is_empty() {
        return;
    }
    text.push_str(
        "\n### Throughput\n\n![kpps per CPU second](../bench/results/relay.svg)\n\n\
         | traffic | server | highest kpps | kpps per CPU-s (quartiles) | × coturn | × forwarder | loss % \
         | p99 ms | at twice: share | p99 ms | steal % | lost in sockets, rings |\n\
         |---|---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    for throughput in &results.throughput {
        for (name, carried) in &throughput.servers {
            let per_cpu = statistics::summary(carried.packets_per_cpu_second());
            let to = |other| plain(ratio_to(throughput, carried, other), 2);
            let value = |of: fn(&Round) -> f64| median_of(&carried.rounds, of).unwrap_or(f64::NAN);
            let overload = median_of(&carried.overload, |round| round.p99_us).unwrap_or(f64::NAN);
            let sockets: u64 = carried.rounds.iter().map(|round| round.drops.sockets).sum();
            let rings: u64 = carried
                .rounds
                .iter()
                .map(|round| round.drops.links_in + round.drops.links_out)
                .sum();
            let limited = if carried.highest.generator_limited {
                " *"
            } else {
                ""
            };
            let _ = writeln!(
                text,
                "| {} | {name} | {:.0}{limited} | {} | {} | {} | {:.3} | {:.2} | {} | {:.1} | {:.2} | {sockets}, {rings} |",
                throughput.cell,
                carried.highest.rate_pps / 1e3,
                kilo(per_cpu),
                to("coturn"),
                to("forwarder"),
                value(Round::loss) * 100.0,
                value(|round| round.p99_us) / 1e3,
                plain(carried.overload_share(), 2),
                overload / 1e3,
                value(|round| round.spent.steal) * 100.0,
            );
        }
    }
    text.push_str("\n\\* the generator's limit, not the server's.\n");
    repeated_cells(text, results);
}

/// Names the cells that were measured again.
fn repeated_cells(text: &mut String, results: &Results) {
    for Throughput { cell, again_at, .. } in &results.throughput {
        if let Some(commit) = again_at {
            let _ = writeln!(
                text,
                "\n{cell}: measured again at commit {commit}, as something else had disturbed most rounds."
            );
        }
    }
}

fn latency_page(text: &mut String, results: &Results) {
    if results.latency.is_empty() {
        return;
    }
    text.push_str(
        "\n### Latency\n\nMicroseconds from the scheduled time, medians of the rounds. A late sender counts as \
         delay: compare servers with like lateness.\n\n\
         | traffic | server | p50 | p90 | p99 | p99.9 | sender > 50 µs late, % |\n|---|---|---|---|---|---|---|\n",
    );
    for latency in &results.latency {
        for (name, rounds) in &latency.servers {
            let value = |of: fn(&results::Delays) -> f64| {
                plain(statistics::summary(rounds.iter().map(of)), 1)
            };
            let _ = writeln!(
                text,
                "| {} | {name} | {} | {} | {} | {} | {} |",
                latency.cell,
                value(|delays| delays.p50),
                value(|delays| delays.p90),
                value(|delays| delays.p99),
                value(|delays| delays.p999),
                value(|delays| delays.late * 100.0),
            );
        }
    }
}

fn allocation_page(text: &mut String, results: &Results) {
    if !results.allocations.is_empty() {
        text.push_str(
            "\n### Allocations\n\n| server | CPU µs each, 401 round included | channel and permission | end \
             | a second |\n|---|---|---|---|---|\n",
        );
    }
    for (name, rounds) in &results.allocations {
        let value = |of: fn(&results::AllocationRound) -> f64| {
            plain(statistics::summary(rounds.iter().map(of)), 1)
        };
        let _ = writeln!(
            text,
            "| {name} | {} | {} | {} | {} |",
            value(|round| round.make_us),
            value(|round| round.bind_us),
            value(|round| round.end_us),
            value(|round| round.made_per_second),
        );
    }
    if !results.scale.is_empty() {
        let _ = write!(
            text,
            "\n### Idle allocations\n\n| server | process B each (1 to {IDLE_ALLOCATIONS}) | kernel B each | process \
             B each (to 15,000) | kernel B each | packet cost, 15,000 to 16 |\n|---|---|---|---|---|---|\n",
        );
    }
    for (name, scale) in &results.scale {
        let each = |from, to| {
            scale
                .bytes_each(from, to)
                .map_or("– | –".to_owned(), |(process, kernel)| {
                    format!("{process:.0} | {kernel:.0}")
                })
        };
        let growth = scale
            .packet_cost_growth()
            .map_or("–".to_owned(), |growth| format!("{growth:.2}"));
        let many = scale.points.last().map_or(0, |point| point.allocations);
        let _ = writeln!(
            text,
            "| {name} | {} | {} | {growth} |",
            each(0, IDLE_ALLOCATIONS),
            each(IDLE_ALLOCATIONS, many)
        );
    }
}

/// Appends what the parts of the packet path cost by themselves.
pub fn micro_page(text: &mut String, micro: &Micro) {
    let setting = &micro.setting;
    let _ = write!(
        text,
        "\n## The parts by themselves\n\nFrom `cargo xtask bench micro`: {} ({} CPUs), Linux {}, commit {}. Times are medians \
         with their 95 % interval; instructions are counted by callgrind and hardly vary.\n\n\
         | operation | ns | instructions |\n|---|---|---|\n",
        setting.cpu, setting.cpus, setting.kernel, setting.commit,
    );
    for (name, count) in &micro.instructions {
        let time = micro.timings.get(name).map_or("–".to_owned(), nanoseconds);
        let _ = writeln!(text, "| {name} | {time} | {count:.0} |");
    }
    for (name, timing) in &micro.timings {
        if !micro.instructions.contains_key(name) {
            let _ = writeln!(text, "| {name} | {} | |", nanoseconds(timing));
        }
    }
}

fn nanoseconds(timing: &Timing) -> String {
    let Timing {
        median_ns,
        low_ns,
        high_ns,
    } = timing;
    format!("{median_ns:.1} ({low_ns:.1}–{high_ns:.1})")
}

fn figures_page(text: &mut String, results: &Results) {
    figures_rows(text, &results::figures(results));
}

fn figures_rows(text: &mut String, figures: &[Figure]) {
    if figures.is_empty() {
        return;
    }
    text.push_str("\n### Targets\n\n| figure | value | target | |\n|---|---|---|---|\n");
    for figure in figures {
        let (sign, bound) = match figure.target {
            Target::AtLeast(bound) => ("≥", bound),
            Target::AtMost(bound) => ("≤", bound),
        };
        let verdict = if figure.is_met() { "met" } else { "**missed**" };
        let _ = writeln!(
            text,
            "| {} | {:.2} | {sign} {bound} | {verdict} |",
            figure.name, figure.value
        );
    }
}
