//! The terminal of `towpath top`. It is given back as it was, also after a panic or a signal.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Text};
use ratatui::widgets::{Cell, Row as TableRow, Table, TableState};
use ratatui::{DefaultTerminal, Frame};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use towpath_server::limits::LimitsView;

use super::model::{Flow, Model, Row};
use crate::exit::Failure;
use crate::status::Scaled;
use crate::table::printable;

/// How long a key press or a signal may wait to be seen.
const PATIENCE: Duration = Duration::from_millis(100);
/// From this part of its limit on a rate is marked.
const NEARLY: f64 = 0.95;

/// Draws until somebody has seen enough.
pub(super) fn run(
    model: &mut Model,
    interval: Duration,
    colored: bool,
    mut look: impl FnMut() -> Result<LimitsView, String>,
) -> Result<(), Failure> {
    let failed = |error: io::Error| Failure::Runtime(format!("cannot use the terminal: {error}"));
    let stop = Arc::new(AtomicBool::new(false));
    end_on_signals(Arc::clone(&stop)).map_err(failed)?;
    // It gives the terminal back on a panic, too.
    let mut terminal = ratatui::try_init().map_err(failed)?;
    let mut screen = Screen::new(colored);
    let outcome = screen.follow(&mut terminal, model, interval, &stop, &mut look);
    ratatui::try_restore().map_err(failed)?;
    outcome.map_err(failed)
}

/// Has signals end the program. A terminal that is gone can hold the drawing thread for ever, so
/// that after a while nobody waits for it.
fn end_on_signals(stop: Arc<AtomicBool>) -> io::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            let Some(signal) = signals.forever().next() else {
                return;
            };
            stop.store(true, Ordering::Relaxed);
            std::thread::sleep(10 * PATIENCE);
            // Where the terminal is gone there is nothing to give back.
            let _ = ratatui::try_restore();
            std::process::exit(128 + signal);
        })?;
    Ok(())
}

struct Screen {
    colored: bool,
    paused: bool,
    /// Whether keys go to the filter.
    typing: bool,
    table: TableState,
    /// Why the last look failed.
    trouble: Option<String>,
}

#[derive(PartialEq, Eq)]
enum Step {
    On,
    End,
}

impl Screen {
    fn new(colored: bool) -> Self {
        Self {
            colored,
            paused: false,
            typing: false,
            table: TableState::default(),
            trouble: None,
        }
    }

    fn follow(
        &mut self,
        terminal: &mut DefaultTerminal,
        model: &mut Model,
        interval: Duration,
        stop: &AtomicBool,
        look: &mut dyn FnMut() -> Result<LimitsView, String>,
    ) -> io::Result<()> {
        // The first rates come soon.
        let mut due = Instant::now() + interval.min(Duration::from_millis(500));
        let mut stale = true;
        while !stop.load(Ordering::Relaxed) {
            if stale {
                terminal.draw(|frame| self.draw(frame, model))?;
                stale = false;
            }
            let left = due.saturating_duration_since(Instant::now());
            if event::poll(left.min(PATIENCE))? {
                if let Event::Key(key) = event::read()?
                    && key.kind == KeyEventKind::Press
                    && self.key(key, model) == Step::End
                {
                    break;
                }
                stale = true;
            }
            if Instant::now() >= due {
                due = Instant::now() + interval;
                if !self.paused {
                    match look() {
                        Ok(view) => {
                            model.add(view);
                            self.trouble = None;
                        }
                        Err(trouble) => self.trouble = Some(trouble),
                    }
                    stale = true;
                }
            }
        }
        Ok(())
    }

    fn key(&mut self, key: KeyEvent, model: &mut Model) -> Step {
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        match key.code {
            KeyCode::Char('c' | 'd') if control => return Step::End,
            KeyCode::Enter if self.typing => self.typing = false,
            KeyCode::Esc => {
                self.typing = false;
                model.filter.clear();
            }
            KeyCode::Backspace if self.typing => drop(model.filter.pop()),
            KeyCode::Char(char) if self.typing && !control => model.filter.push(char),
            KeyCode::Char('q') => return Step::End,
            KeyCode::Char('s') => model.sort = model.sort.next(),
            KeyCode::Char('r') => model.reversed = !model.reversed,
            KeyCode::Char('u') => model.unit = model.unit.next(),
            KeyCode::Char('p' | ' ') => self.paused = !self.paused,
            KeyCode::Char('/') => self.typing = true,
            KeyCode::Up | KeyCode::Char('k') => self.table.scroll_up_by(1),
            KeyCode::Down | KeyCode::Char('j') => self.table.scroll_down_by(1),
            KeyCode::PageUp => self.table.scroll_up_by(10),
            KeyCode::PageDown => self.table.scroll_down_by(10),
            KeyCode::Home => self.table.select_first(),
            KeyCode::End => self.table.select_last(),
            _ => {}
        }
        Step::On
    }

    fn draw(&mut self, frame: &mut Frame<'_>, model: &Model) {
        let [top, middle, bottom] = Layout::vertical([
            Constraint::Length(1),
            Constraint::Min(0),
            Constraint::Length(1),
        ])
        .areas(frame.area());
        let summary = match &self.trouble {
            Some(trouble) => Line::styled(
                printable(&trouble.replace('\n', " ")),
                self.style(Color::Red, Modifier::BOLD),
            ),
            None => Line::from(model.summary()),
        };
        frame.render_widget(summary, top);
        let rows = model.rows();
        if self.table.selected().is_some_and(|at| at >= rows.len()) {
            self.table.select_last();
        }
        let columns = columns(middle.width);
        let header = columns.iter().map(|column| {
            let sorted = column.sorted_by == Some(model.sort.name());
            let mark = match (sorted, model.reversed) {
                (false, _) => "",
                (true, false) => "▾",
                (true, true) => "▴",
            };
            column.cell(format!("{}{mark}", column.name))
        });
        let header = TableRow::new(header).style(Style::new().add_modifier(Modifier::REVERSED));
        let body = rows.iter().map(|row| {
            TableRow::new(columns.iter().map(|column| {
                let (text, style) = (column.text)(row, model, self);
                column.cell(text).style(style)
            }))
        });
        let widths = columns.iter().map(|column| column.width);
        let table = Table::new(body, widths)
            .header(header)
            .column_spacing(1)
            .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
        frame.render_stateful_widget(table, middle, &mut self.table);
        frame.render_widget(self.foot(model, bottom.width), bottom);
    }

    fn foot(&self, model: &Model, width: u16) -> Line<'static> {
        let dim = Style::new().add_modifier(Modifier::DIM);
        if self.typing {
            return Line::from(format!(
                "filter: {}▏  Enter done  Esc none",
                printable(&model.filter)
            ));
        }
        let (sort, unit) = (model.sort.name(), model.unit.name());
        let filter = match model.filter.as_str() {
            "" => "/ filter".to_owned(),
            filter => format!("/ filter: {}", printable(filter)),
        };
        let paused = if self.paused { "p PAUSED" } else { "p pause" };
        let long = format!(
            "q quit  s sort: {sort}  r reverse  u unit: {unit}  {filter}  {paused}  ↑↓ scroll"
        );
        let short = format!("q quit  s {sort}  u {unit}  {filter}");
        let fits = long.chars().count() <= usize::from(width);
        Line::styled(if fits { long } else { short }, dim)
    }

    /// A colour where there are colours, else something else that is seen.
    fn style(&self, color: Color, otherwise: Modifier) -> Style {
        if self.colored {
            Style::new().fg(color)
        } else {
            Style::new().add_modifier(otherwise)
        }
    }

    fn flow(&self, flow: &Flow, model: &Model) -> (String, Style) {
        let style = if flow.used() >= NEARLY {
            self.style(Color::Yellow, Modifier::BOLD)
        } else {
            Style::new()
        };
        (model.unit.show(flow), style)
    }
}

/// What a column says of a row.
type Say = fn(&Row, &Model, &Screen) -> (String, Style);

/// A column of the table.
struct Column {
    name: &'static str,
    width: Constraint,
    right: bool,
    /// The name of the order that this column shows.
    sorted_by: Option<&'static str>,
    /// The narrowest terminal that has it.
    from: u16,
    text: Say,
}

impl Column {
    fn cell(&self, text: String) -> Cell<'static> {
        let text = Text::from(text);
        Cell::from(if self.right {
            text.right_aligned()
        } else {
            text
        })
    }
}

/// The columns that there is room for.
fn columns(width: u16) -> Vec<Column> {
    let right = |name, length, sorted_by, from, text: Say| Column {
        name,
        width: Constraint::Length(length),
        right: true,
        sorted_by,
        from,
        text,
    };
    let all = [
        Column {
            name: "NAME",
            width: Constraint::Min(8),
            right: false,
            sorted_by: Some("name"),
            from: 0,
            text: |row, _, _| (printable(&row.name), Style::new()),
        },
        Column {
            name: "CLASS",
            width: Constraint::Length(11),
            right: false,
            sorted_by: None,
            from: 96,
            text: |row, _, _| (row.class.to_string(), Style::new()),
        },
        right("UP", 13, Some("up"), 0, |row, model, screen| {
            screen.flow(&row.up, model)
        }),
        right("UP LIMIT", 11, None, 64, |row, model, _| {
            (model.unit.limit(row.up.limit), Style::new())
        }),
        right("DOWN", 13, Some("down"), 0, |row, model, screen| {
            screen.flow(&row.down, model)
        }),
        right("DOWN LIMIT", 11, None, 64, |row, model, _| {
            (model.unit.limit(row.down.limit), Style::new())
        }),
        right("PKT/S", 9, None, 80, |row, _, _| {
            (
                Scaled(row.packets()).to_string().trim_end().to_owned(),
                Style::new(),
            )
        }),
        right("DROP/S", 8, Some("drops"), 48, |row, _, screen| {
            let drops = row.drops();
            let style = if drops > 0.0 {
                screen.style(Color::Red, Modifier::BOLD)
            } else {
                Style::new()
            };
            (Scaled(drops).to_string().trim_end().to_owned(), style)
        }),
        right("TOTAL", 10, Some("total"), 108, |row, _, _| {
            (format!("{}B", Scaled(row.total as f64)), Style::new())
        }),
    ];
    all.into_iter()
        .filter(|column| column.from <= width)
        .collect()
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;
    use crate::top::model::Unit;
    use crate::top::model::tests::model;

    fn drawn(width: u16, height: u16, screen: &mut Screen, model: &Model) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| screen.draw(frame, model)).unwrap();
        let buffer = terminal.backend().buffer();
        let line = |y| -> String { (0..width).map(|x| buffer[(x, y)].symbol()).collect() };
        (0..height)
            .map(|y| line(y).trim_end().to_owned() + "\n")
            .collect()
    }

    fn press(screen: &mut Screen, model: &mut Model, keys: &str) {
        for char in keys.chars() {
            let key = KeyEvent::new(KeyCode::Char(char), KeyModifiers::NONE);
            assert!(screen.key(key, model) == Step::On);
        }
    }

    #[test]
    fn a_narrow_terminal_shows_what_matters_and_a_wide_one_all() {
        let model = model();
        let narrow = drawn(44, 5, &mut Screen::new(false), &model);
        assert!(
            narrow.contains("alice") && narrow.contains("1.0 Mbit/s"),
            "{narrow}"
        );
        assert!(
            !narrow.contains("LIMIT") && !narrow.contains("CLASS"),
            "{narrow}"
        );
        let wide = drawn(120, 5, &mut Screen::new(true), &model);
        for text in [
            "CLASS",
            "UP LIMIT",
            "PKT/S",
            "DROP/S",
            "TOTAL",
            "interactive",
            "1Mbit",
        ] {
            assert!(wide.contains(text), "{text}\n{wide}");
        }
        for (width, height) in [(1, 1), (3, 2), (20, 3)] {
            drawn(width, height, &mut Screen::new(true), &model);
        }
    }

    #[test]
    fn keys_do_what_the_last_line_says() {
        let (mut screen, mut model) = (Screen::new(false), model());
        press(&mut screen, &mut model, "su");
        assert_eq!((model.sort.name(), model.unit), ("up", Unit::Bytes));
        press(&mut screen, &mut model, "/quits");
        assert_eq!(model.filter, "quits");
        let shown = drawn(60, 4, &mut screen, &model);
        assert!(shown.contains("filter: quits"), "{shown}");
        let escape = KeyEvent::new(KeyCode::Esc, KeyModifiers::NONE);
        assert!(screen.key(escape, &mut model) == Step::On);
        assert!(model.filter.is_empty() && !screen.typing);
        press(&mut screen, &mut model, "p");
        assert!(drawn(120, 4, &mut screen, &model).contains("PAUSED"));
        for end in [
            KeyEvent::new(KeyCode::Char('q'), KeyModifiers::NONE),
            KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL),
        ] {
            assert!(screen.key(end, &mut model) == Step::End);
        }
    }

    #[test]
    fn trouble_is_said_in_place_of_the_sums() {
        let mut screen = Screen::new(false);
        screen.trouble = Some("no towpath answers".to_owned());
        let shown = drawn(60, 5, &mut screen, &model());
        assert!(shown.starts_with("no towpath answers"), "{shown}");
        assert!(shown.contains("alice"), "the last look stays");
    }
}
