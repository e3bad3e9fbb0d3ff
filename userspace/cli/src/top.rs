//! `towpath top`: what users send and receive now, as it changes.

mod model;
mod screen;

use std::io::{self, IsTerminal as _};
use std::time::{Duration, Instant};

use clap::Args;
use towpath_server::limits::{LimitAccess, LimitsView};

use crate::exit::{self, Failure};
use crate::limits::Reach;
use crate::table::{Side, Table, printable};
use model::{Model, Row, Sort, Unit};

/// Users that are looked at: the last active ones.
const PEERS: usize = 10_000;

#[derive(Args)]
#[command(after_help = "\
Keys: s sort, r reverse, u unit, / filter, Esc no filter, p pause, arrows, PgUp and PgDn scroll,
q quit. Where no server runs, the pinned maps of the kernel path are read.

Examples:
  towpath top
  towpath top --sort drops --filter alice
  towpath top --once --interval 5")]
pub(crate) struct Arguments {
    /// Seconds between two looks
    #[arg(short, long, value_name = "SECONDS", default_value = "1", value_parser = interval)]
    interval: Duration,
    /// What comes first
    #[arg(short, long, value_enum, default_value = "rate")]
    sort: Sort,
    /// Only users with this in their name
    #[arg(short, long, value_name = "TEXT")]
    filter: Option<String>,
    /// What rates are shown in
    #[arg(short, long, value_enum, default_value = "bits")]
    unit: Unit,
    /// Look once, print a plain table and end
    #[arg(long)]
    once: bool,
    /// No colours; so does NO_COLOR
    #[arg(long)]
    no_color: bool,
    #[command(flatten)]
    reach: Reach,
}

/// The shortest and the longest time between two looks.
const INTERVALS: (f64, f64) = (0.1, 3600.0);

fn interval(text: &str) -> Result<Duration, String> {
    let (min, max) = INTERVALS;
    match text.parse::<f64>() {
        Ok(seconds) if (min..=max).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        Ok(_) | Err(_) => Err(format!(
            "{text:?} is no number of seconds from {min} to {max}"
        )),
    }
}

pub(crate) fn run(arguments: Arguments) -> Result<(), Failure> {
    let Arguments {
        interval,
        sort,
        filter,
        unit,
        once,
        no_color,
        reach,
    } = arguments;
    let mut source = Source::open(&reach)?;
    let mut model = Model::new(sort, unit, filter.unwrap_or_default());
    model.add(source.look()?);
    if once {
        std::thread::sleep(interval);
        model.add(source.look()?);
        return exit::print(plain(&model).as_bytes());
    }
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        return Err(Failure::Usage(
            "there is no terminal to draw on; --once prints a table".into(),
        ));
    }
    // https://no-color.org: when present and not an empty string.
    let colored = !no_color && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    screen::run(&mut model, interval, colored, || source.look_again())
}

/// Where samples come from: the server, or the maps while none runs.
struct Source<'a> {
    reach: &'a Reach,
    access: LimitAccess,
    opened: Instant,
}

/// How often a server is looked for while none runs.
const SEARCH_PERIOD: Duration = Duration::from_secs(1);

impl<'a> Source<'a> {
    fn open(reach: &'a Reach) -> Result<Self, Failure> {
        let access = reach.open()?;
        Ok(Self {
            reach,
            access,
            opened: Instant::now(),
        })
    }

    fn look(&self) -> Result<LimitsView, Failure> {
        self.access
            .view(PEERS)
            .map_err(|error| Failure::Runtime(error.to_string()))
    }

    /// Looks, by the other way where the one so far is gone.
    fn look_again(&mut self) -> Result<LimitsView, String> {
        let search = !self.access.is_running() && self.opened.elapsed() >= SEARCH_PERIOD;
        if !search && let Ok(view) = self.access.view(PEERS) {
            return Ok(view);
        }
        self.opened = Instant::now();
        self.access = self.reach.open().map_err(|failure| failure.text())?;
        self.access.view(PEERS).map_err(|error| error.to_string())
    }
}

fn plain(model: &Model) -> String {
    let mut table = Table::new(&[
        ("NAME", Side::Left),
        ("CLASS", Side::Left),
        ("UP", Side::Right),
        ("UP LIMIT", Side::Right),
        ("DOWN", Side::Right),
        ("DOWN LIMIT", Side::Right),
        ("PACKETS/S", Side::Right),
        ("DROPS/S", Side::Right),
    ]);
    for row in model.rows() {
        let Row {
            name,
            class,
            up,
            down,
            ..
        } = row;
        table.row(vec![
            printable(name),
            class.to_string(),
            model.unit.show(up),
            model.unit.limit(up.limit),
            model.unit.show(down),
            model.unit.limit(down.limit),
            format!("{:.0}", row.packets()),
            format!("{:.0}", row.drops()),
        ]);
    }
    format!("{}\n\n{}", model.summary(), table.render())
}
