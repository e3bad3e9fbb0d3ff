//! Plain tables for terminals and pipes.

use std::fmt::Write as _;

/// On which side of its column a text stands.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Left,
    Right,
}

/// Rows of texts below names, each column as wide as its widest text.
pub(crate) struct Table {
    columns: Vec<(&'static str, Side)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(columns: &[(&'static str, Side)]) -> Self {
        Self {
            columns: columns.to_vec(),
            rows: Vec::new(),
        }
    }

    pub(crate) fn row(&mut self, row: Vec<String>) {
        debug_assert_eq!(row.len(), self.columns.len(), "a text for each column");
        self.rows.push(row);
    }

    pub(crate) fn render(&self) -> String {
        let widths: Vec<usize> = self
            .columns
            .iter()
            .enumerate()
            .map(|(index, (name, _))| {
                let texts = self.rows.iter().map(|row| width(&row[index]));
                texts.max().unwrap_or(0).max(width(name))
            })
            .collect();
        let mut text = String::new();
        let names: Vec<_> = self.columns.iter().map(|(name, _)| *name).collect();
        self.line(&mut text, &widths, &names);
        for row in &self.rows {
            let row: Vec<_> = row.iter().map(String::as_str).collect();
            self.line(&mut text, &widths, &row);
        }
        text
    }

    fn line(&self, text: &mut String, widths: &[usize], row: &[&str]) {
        let mut line = String::new();
        for (index, value) in row.iter().enumerate() {
            let gap = if index == 0 { "" } else { "  " };
            let fill = " ".repeat(widths[index].saturating_sub(width(value)));
            let _ = match self.columns[index].1 {
                Side::Left => write!(line, "{gap}{value}{fill}"),
                Side::Right => write!(line, "{gap}{fill}{value}"),
            };
        }
        let _ = writeln!(text, "{}", line.trim_end());
    }
}

fn width(text: &str) -> usize {
    text.chars().count()
}

/// A name from elsewhere, without what a terminal would obey.
pub(crate) fn printable(name: &str) -> String {
    name.chars()
        .map(|char| match char.is_control() {
            true => char::REPLACEMENT_CHARACTER,
            false => char,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_text() {
        let mut table = Table::new(&[
            ("NAME", Side::Left),
            ("RATE", Side::Right),
            ("X", Side::Left),
        ]);
        table.row(vec!["é".into(), "64kbit".into(), String::new()]);
        table.row(vec!["alice".into(), "1bit".into(), "y".into()]);
        assert_eq!(
            table.render(),
            "NAME     RATE  X\né      64kbit\nalice    1bit  y\n"
        );
    }

    #[test]
    fn what_a_terminal_would_obey_is_not_printed() {
        assert_eq!(printable("a\u{1b}[31mb\n"), "a\u{fffd}[31mb\u{fffd}");
    }
}
