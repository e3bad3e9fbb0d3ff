//! The nodes' part of the terminal's rows and of the documentation's page.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::{figures_rows, figures_table, plain};
use crate::node::contender::Contender;
use crate::node::end::Memory;
use crate::node::memory;
use crate::node::results::{CellResults, NodeResults, Ratios};
use crate::node::round::Round;
use crate::node::tally::Cell;
use crate::svg;

const PAGE: &str = include_str!("../../node-method.md");

/// Ends a run: writes its results, prints its figures, and fails where something is missing.
pub fn conclude(results: &NodeResults, directory: &Path, allow_skip: bool) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("creating {}", directory.display()))?;
    results.write(&directory.join("node.json"))?;
    let picture = directory.join("node.svg");
    fs::write(&picture, svg::nodes(results))
        .with_context(|| format!("writing {}", picture.display()))?;
    print!("{}", figures_table(&results.figures()));
    ensure!(
        results.skipped.is_empty() || allow_skip,
        "{} measurements are missing (--allow-skip accepts that)",
        results.skipped.len()
    );
    Ok(())
}

/// Rows of one cell for the terminal.
pub fn cell_rows(results: &CellResults) -> String {
    let mut text = format!("{}\n", results.cell);
    for (name, rounds) in &results.contenders {
        let disturbed = rounds.iter().filter(|round| round.is_disturbed()).count();
        let columns = columns(results.cell);
        let values = columns.iter().map(|column| {
            let value = plain(results.summary(name, column.of), column.decimals);
            format!("{} {value}", column.name)
        });
        let values: Vec<String> = values.collect();
        let _ = writeln!(
            text,
            "  {name:14} {}; disturbed {disturbed}/{}",
            values.join(", "),
            rounds.len()
        );
    }
    if let (Some(own), Some(other), Some(measure)) =
        (results.best(true), results.best(false), results.measure())
    {
        let ratios = ratio(results.best_to_best(measure.of));
        let _ = writeln!(text, "  {own} to {other}: {} {ratios}", measure.name);
    }
    text
}

/// Rows of the memory for the terminal.
pub fn memory_rows(results: &NodeResults) -> String {
    let mut text = "memory of both ends, bytes per idle connection\n".to_owned();
    for name in results.memory.keys() {
        for connections in memory::STEPS {
            let each = |of| whole(results.bytes_each(name, connections, of));
            let _ = writeln!(
                text,
                "  {name:14} {connections:6} connections: heap {}, RSS {}, PSS {}",
                each(heap),
                each(|memory| memory.rss_bytes),
                each(|memory| memory.pss_bytes),
            );
        }
    }
    text
}

/// Appends the nodes to the page.
pub fn page(text: &mut String, results: &NodeResults) {
    let setting = &results.setting;
    let _ = write!(
        text,
        "\n{}\n\n### Results\n\n{} ({} CPUs), Linux {}, commit {}, {} rounds per figure, {} minutes{}.\n\n",
        PAGE.trim_end(),
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
    for (name, what) in &setting.servers {
        let _ = writeln!(text, "- `{name}`: {what}");
    }
    text.push_str("\n![nodes beside quinn](../bench/results/node.svg)\n");
    for cell in &results.cells {
        cell_page(text, cell);
    }
    memory_page(text, results);
    figures_rows(text, &results.figures());
    if !results.skipped.is_empty() {
        text.push_str("\n### Not measured\n\n");
        for skipped in &results.skipped {
            let _ = writeln!(text, "- {skipped}");
        }
    }
}

struct Column {
    name: &'static str,
    of: fn(&Round) -> f64,
    decimals: usize,
}

/// What is shown of a cell.
fn columns(cell: Cell) -> Vec<Column> {
    let column = |name, of, decimals| Column { name, of, decimals };
    match cell {
        Cell::Bulk { .. } => vec![
            column(
                "MB per CPU-s",
                |round| round.bytes_per_cpu_second() / 1e6,
                1,
            ),
            column("MB/s", |round| round.bytes_per_second() / 1e6, 1),
            column("client CPU s/s", client_share, 2),
            column("server CPU s/s", server_share, 2),
        ],
        Cell::RoundTrips => vec![
            column("p50 µs", |round| round.delays.p50_ns as f64 / 1e3, 1),
            column("p99 µs", |round| round.delays.p99_ns as f64 / 1e3, 1),
            column("p99.9 µs", |round| round.delays.p999_ns as f64 / 1e3, 1),
            column("per CPU-s", Round::operations_per_cpu_second, 0),
            column("per second", Round::operations_per_second, 0),
        ],
        Cell::Handshakes { .. } => vec![
            column("per CPU-s", Round::operations_per_cpu_second, 1),
            column("per second", Round::operations_per_second, 1),
            column("p50 µs", |round| round.delays.p50_ns as f64 / 1e3, 0),
            column("p99 µs", |round| round.delays.p99_ns as f64 / 1e3, 0),
            column("client CPU s/s", client_share, 2),
            column("server CPU s/s", server_share, 2),
        ],
        Cell::Idle => Vec::new(),
    }
}

fn client_share(round: &Round) -> f64 {
    round.client_ns as f64 / 1e9 / round.seconds
}

fn server_share(round: &Round) -> f64 {
    round.server_ns as f64 / 1e9 / round.seconds
}

fn heap(memory: &Memory) -> u64 {
    memory.heap_bytes
}

fn cell_page(text: &mut String, results: &CellResults) {
    let columns = columns(results.cell);
    let _ = write!(text, "\n### {}\n\n| contender |", results.cell);
    for column in &columns {
        let _ = write!(text, " {} |", column.name);
    }
    let _ = write!(text, " × `quinn` (least–most) | × `quinn-multi` |\n|---|");
    text.push_str(&"---|".repeat(columns.len() + 2));
    text.push('\n');
    for name in results.contenders.keys() {
        let _ = write!(text, "| `{name}` |");
        for column in &columns {
            let value = plain(results.summary(name, column.of), column.decimals);
            let _ = write!(text, " {value} |");
        }
        for other in [Contender::Quinn, Contender::QuinnMulti].map(|other| other.to_string()) {
            let ratios = results
                .measure()
                .filter(|_| other != *name)
                .and_then(|measure| results.ratios(name, &other, measure.of));
            let _ = write!(text, " {} |", ratio(ratios));
        }
        text.push('\n');
    }
}

fn memory_page(text: &mut String, results: &NodeResults) {
    if results.memory.is_empty() {
        return;
    }
    text.push_str(
        "\n### Memory of idle connections\n\nBytes per connection, both ends together, less what is held without any.\n\n\
         | contender | connections | heap | RSS | PSS | heap × least of quinn |\n|---|---|---|---|---|---|\n",
    );
    for name in results.memory.keys() {
        for connections in memory::STEPS {
            let each = |of| results.bytes_each(name, connections, of);
            let least = results.least_bytes_each(false, connections, heap);
            let to_quinn = each(heap).zip(least).map(|(own, other)| own / other);
            let _ = writeln!(
                text,
                "| `{name}` | {connections} | {} | {} | {} | {} |",
                whole(each(heap)),
                whole(each(|memory| memory.rss_bytes)),
                whole(each(|memory| memory.pss_bytes)),
                to_quinn.map_or("–".to_owned(), |ratio| format!("{ratio:.2}")),
            );
        }
    }
}

fn whole(value: Option<f64>) -> String {
    value.map_or("–".to_owned(), |value| format!("{value:.0}"))
}

fn ratio(ratios: Option<Ratios>) -> String {
    ratios.map_or("–".to_owned(), |ratios| {
        let Ratios {
            median,
            least,
            most,
        } = ratios;
        format!("{median:.2} ({least:.2}–{most:.2})")
    })
}
