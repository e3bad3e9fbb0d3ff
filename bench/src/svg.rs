//! A picture of the throughput: bars of kpps per CPU second, one group for each kind of traffic.

use std::fmt::Write;

use crate::node::results::{CellResults, NodeResults};
use crate::results::{Results, Throughput};
use crate::statistics;

const LABEL_WIDTH: f64 = 250.0;
const PLOT_WIDTH: f64 = 560.0;
const VALUE_WIDTH: f64 = 70.0;
const BAR_HEIGHT: f64 = 11.0;
const GROUP_GAP: f64 = 12.0;
const HEADER_HEIGHT: f64 = 50.0;
const NODE_COLOURS: [(&str, &str); 4] = [
    ("towpath", "#1f6f8b"),
    ("towpath-thread", "#7fb7be"),
    ("quinn", "#d9a441"),
    ("quinn-multi", "#9a9a9a"),
];
const COLOURS: [(&str, &str); 7] = [
    ("coturn", "#9a9a9a"),
    ("forwarder", "#d9a441"),
    ("io_uring", "#1f6f8b"),
    ("epoll", "#7fb7be"),
    ("userspace", "#1f6f8b"),
    ("kernel", "#7a3b69"),
    ("minimal", "#d9a441"),
];

/// Draws all cells.
pub fn throughput(results: &Results) -> String {
    let width = LABEL_WIDTH + PLOT_WIDTH + VALUE_WIDTH;
    let group = |cell: &Throughput| cell.servers.len() as f64 * BAR_HEIGHT + GROUP_GAP;
    let height = HEADER_HEIGHT + results.throughput.iter().map(group).sum::<f64>();
    let values = results
        .throughput
        .iter()
        .flat_map(|cell| cell.servers.values());
    let medians = values
        .filter_map(|carried| Some(statistics::summary(carried.packets_per_cpu_second())?.median));
    let scale = PLOT_WIDTH / medians.fold(1.0, f64::max);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"sans-serif\" font-size=\"10\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>\n\
         <text x=\"8\" y=\"18\" font-size=\"13\">Thousand packets relayed per CPU second, kernel work \
         included</text>\n"
    );
    let measured = |name: &str| {
        let mut cells = results.throughput.iter();
        cells.any(|cell| cell.servers.contains_key(name))
    };
    let legend = COLOURS.iter().filter(|(name, _)| measured(name));
    for (number, (name, colour)) in legend.enumerate() {
        let x = 8.0 + number as f64 * 110.0;
        let _ = writeln!(
            svg,
            "<rect x=\"{x}\" y=\"27\" width=\"10\" height=\"10\" fill=\"{colour}\"/>\
             <text x=\"{}\" y=\"36\">{name}</text>",
            x + 14.0
        );
    }
    let mut top = HEADER_HEIGHT;
    for cell in &results.throughput {
        draw_group(&mut svg, cell, top, scale);
        top += group(cell);
    }
    svg.push_str("</svg>\n");
    svg
}

fn draw_group(svg: &mut String, cell: &Throughput, top: f64, scale: f64) {
    let middle = top + cell.servers.len() as f64 * BAR_HEIGHT / 2.0 + 3.0;
    let _ = writeln!(svg, "<text x=\"8\" y=\"{middle:.1}\">{}</text>", cell.cell);
    let drawn = COLOURS
        .iter()
        .filter_map(|(name, colour)| Some((cell.servers.get(*name)?, colour)));
    for (number, (carried, colour)) in drawn.enumerate() {
        let Some(summary) = statistics::summary(carried.packets_per_cpu_second()) else {
            continue;
        };
        let y = top + number as f64 * BAR_HEIGHT;
        let (length, low, high) = (
            summary.median * scale,
            summary.low * scale,
            summary.high * scale,
        );
        let (line, text_at) = (y + BAR_HEIGHT / 2.0 - 0.5, y + BAR_HEIGHT - 2.5);
        let _ = writeln!(
            svg,
            "<rect x=\"{LABEL_WIDTH}\" y=\"{y:.1}\" width=\"{length:.1}\" height=\"{}\" fill=\"{colour}\"/>\
             <line x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{line:.1}\" y2=\"{line:.1}\" stroke=\"#000000\"/>\
             <text x=\"{:.1}\" y=\"{text_at:.1}\">{:.0}</text>",
            BAR_HEIGHT - 1.0,
            LABEL_WIDTH + low,
            LABEL_WIDTH + high,
            LABEL_WIDTH + length.max(high) + 4.0,
            summary.median / 1e3,
        );
    }
}

/// Draws the cells of nodes, each on a scale of its own.
pub fn nodes(results: &NodeResults) -> String {
    let width = LABEL_WIDTH + PLOT_WIDTH + VALUE_WIDTH;
    let group = |cell: &CellResults| cell.contenders.len() as f64 * BAR_HEIGHT + GROUP_GAP;
    let height = HEADER_HEIGHT + results.cells.iter().map(group).sum::<f64>();
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"sans-serif\" font-size=\"10\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>\n\
         <text x=\"8\" y=\"18\" font-size=\"13\">Nodes of Towpath beside quinn, client and server together</text>\n"
    );
    for (number, (name, colour)) in NODE_COLOURS.iter().enumerate() {
        let x = 8.0 + number as f64 * 110.0;
        let _ = writeln!(
            svg,
            "<rect x=\"{x}\" y=\"27\" width=\"10\" height=\"10\" fill=\"{colour}\"/>\
             <text x=\"{}\" y=\"36\">{name}</text>",
            x + 14.0
        );
    }
    let mut top = HEADER_HEIGHT;
    for cell in &results.cells {
        draw_cell(&mut svg, cell, top);
        top += group(cell);
    }
    svg.push_str("</svg>\n");
    svg
}

fn draw_cell(svg: &mut String, cell: &CellResults, top: f64) {
    let Some(measure) = cell.measure() else {
        return;
    };
    let label_at = top + BAR_HEIGHT - 2.5;
    let _ = writeln!(
        svg,
        "<text x=\"8\" y=\"{label_at:.1}\">{}</text><text x=\"8\" y=\"{:.1}\" fill=\"#777777\">{}</text>",
        cell.cell,
        label_at + BAR_HEIGHT,
        measure.name,
    );
    let drawn: Vec<_> = NODE_COLOURS
        .iter()
        .filter_map(|(name, colour)| Some((cell.summary(name, measure.of)?.median, colour)))
        .collect();
    let longest = drawn
        .iter()
        .map(|(value, _)| *value)
        .fold(f64::MIN_POSITIVE, f64::max);
    for (number, (value, colour)) in drawn.into_iter().enumerate() {
        let y = top + number as f64 * BAR_HEIGHT;
        let length = value / longest * PLOT_WIDTH;
        let _ = writeln!(
            svg,
            "<rect x=\"{LABEL_WIDTH}\" y=\"{y:.1}\" width=\"{length:.1}\" height=\"{}\" fill=\"{colour}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\">{value:.0} {}</text>",
            BAR_HEIGHT - 1.0,
            LABEL_WIDTH + length + 4.0,
            y + BAR_HEIGHT - 2.5,
            measure.unit,
        );
    }
}
