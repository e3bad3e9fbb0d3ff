//! The configuration's text: a file and what the environment puts on top, as one table in which
//! every value still knows where it was written.
//!
//! The texts lie one behind the other in one buffer, so that a single range names a place in any
//! of them.
//!
//! ```text
//!   │ the file ...... │ TOWPATH__RELAY__REALM=a.test │ TOWPATH__RELAY__SHARDS=2 │
//! ```

use std::borrow::Cow;
use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

use super::error::{ConfigError, ConfigErrors, Excerpt, Problem, ReadError};
use super::shape::{KEYS, Kind};

/// Environment variables that start with this are overrides: `TOWPATH__RELAY__REALM`.
pub const ENVIRONMENT_PREFIX: &str = "TOWPATH__";

/// The longest file that is read.
pub const MAX_FILE_BYTES: u64 = 32 << 20;

/// The longest line that an error shows whole.
const MAX_EXCERPT_CHARS: usize = 200;

/// A line with one of these may hold a credential, wherever it stands.
const SECRET_FORMS: [&str; 2] = ["plain:", "key:"];

/// A range of the document's buffer.
pub(super) type Span = Range<usize>;

/// Where a text came from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Origin {
    /// A file.
    File(PathBuf),
    /// [`DEFAULT_FILE`](super::DEFAULT_FILE).
    Embedded,
    /// An environment variable.
    Variable(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Embedded => f.write_str("the embedded default"),
            Self::Variable(name) => write!(f, "environment variable {name}"),
        }
    }
}

/// The texts of a configuration, kept so that errors can show them.
#[derive(Clone)]
pub(super) struct Document {
    text: String,
    /// The file, then one segment for each override.
    segments: Vec<Segment>,
}

#[derive(Clone, Debug)]
struct Segment {
    origin: Origin,
    span: Span,
    /// Where the text after `NAME=` starts; the file's start for the file.
    value_start: usize,
    /// Whether its values are secrets, which errors do not show.
    secret: bool,
    /// Whether it could be read as text.
    utf8: bool,
}

/// Reads a file of at most [`MAX_FILE_BYTES`].
pub(super) fn read(path: &Path) -> Result<String, ReadError> {
    let failed = |source| ReadError::Io {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(ReadError::TooLong {
            path: path.to_owned(),
        });
    }
    String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let line = error.as_bytes()[..valid]
            .iter()
            .filter(|&&byte| byte == b'\n')
            .count()
            + 1;
        ReadError::NotUtf8 {
            path: path.to_owned(),
            line,
        }
    })
}

/// Shows no text, which holds credentials.
impl fmt::Debug for Document {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Document").finish_non_exhaustive()
    }
}

impl Document {
    pub(super) fn new(
        origin: Origin,
        mut text: String,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Self {
        let file = Segment {
            origin,
            span: 0..text.len(),
            value_start: 0,
            secret: false,
            utf8: true,
        };
        let mut segments = vec![file];
        for (name, value) in overrides(environment) {
            let start = text.len();
            let value_start = start + name.len() + 1;
            let shown = value
                .as_ref()
                .map_or_else(|raw| raw.to_string_lossy(), Cow::from);
            text.push_str(&format!("{name}={shown}"));
            segments.push(Segment {
                span: start..text.len(),
                value_start,
                secret: key_path(&name).starts_with("auth__"),
                utf8: value.is_ok(),
                origin: Origin::Variable(name),
            });
        }
        Self { text, segments }
    }

    /// The table of the file with the overrides on top.
    pub(super) fn table(&self) -> Result<Spanned<DeTable<'_>>, ConfigErrors> {
        let (file, overrides) = self
            .segments
            .split_first()
            .expect("the file is the first segment");
        let mut table = DeTable::parse(&self.text[file.span.clone()])
            .map_err(|error| ConfigErrors(vec![self.toml_error(&error)]))?;
        let errors: Vec<_> = overrides
            .iter()
            .filter_map(|segment| self.put(table.get_mut(), segment).err())
            .collect();
        if errors.is_empty() {
            Ok(table)
        } else {
            Err(ConfigErrors(errors))
        }
    }

    /// Puts one override into the table.
    fn put<'doc>(
        &'doc self,
        table: &mut DeTable<'doc>,
        segment: &Segment,
    ) -> Result<(), ConfigError> {
        let name_span = segment.span.start..segment.value_start - 1;
        let value_span = segment.value_start..segment.span.end;
        if !segment.utf8 {
            return Err(self.error(value_span, Problem::VariableNotUtf8));
        }
        let path = key_path(&self.text[name_span.clone()]);
        let known = path.split_once("__").and_then(|(section, key)| {
            KEYS.iter()
                .find(|known| known.section == section && known.key == key)
        });
        let Some(known) = known else {
            return Err(self.error(name_span, Problem::UnknownVariable));
        };
        let text = &self.text[value_span.clone()];
        let value = match known.kind {
            Kind::Text => Ok(text_value(text)),
            Kind::Toml => DeValue::parse(text),
            Kind::List => list_value(text),
        };
        let value = value.map_err(|error| {
            let span = error.span().unwrap_or(0..text.len());
            let place = value_span.start + span.start..value_span.start + span.end;
            self.toml_error_at(place, error.message())
        })?;
        let section = table
            .entry(Spanned::new(
                name_span.clone(),
                Cow::Borrowed(known.section),
            ))
            .or_insert_with(|| Spanned::new(name_span.clone(), DeValue::Table(DeTable::default())));
        // A section that the file gives another type is the shape's error to report.
        if let DeValue::Table(section) = section.get_mut() {
            let key = Spanned::new(name_span, Cow::Borrowed(known.key));
            section.remove(&key);
            section.insert(key, moved(value, value_span.start));
        }
        Ok(())
    }

    pub(super) fn toml_error(&self, error: &toml::de::Error) -> ConfigError {
        let end = self.segments[0].span.end;
        self.toml_error_at(error.span().unwrap_or(end..end), error.message())
    }

    fn toml_error_at(&self, span: Span, message: &str) -> ConfigError {
        let mut message = message.to_owned();
        if self.is_secret(span.start) {
            // The message may quote the value.
            message = match message.rsplit_once(", expected ") {
                Some((_, expected)) => format!("invalid value, expected {expected}"),
                None => "invalid value".to_owned(),
            };
        }
        self.error(span, Problem::Toml(message))
    }

    /// An error at a place, with the line it is on.
    pub(super) fn error(&self, span: Span, problem: Problem) -> ConfigError {
        ConfigError {
            problem,
            excerpt: Box::new(self.excerpt(span)),
        }
    }

    /// The line that `span` starts on.
    pub(super) fn excerpt(&self, span: Span) -> Excerpt {
        let segment = self.segment(span.start);
        let range = segment.span.clone();
        let start = span.start.min(range.end);
        let line_start = self.text[range.start..start]
            .rfind('\n')
            .map_or(range.start, |at| range.start + at + 1);
        let line_end = self.text[start..range.end]
            .find('\n')
            .map_or(range.end, |at| start + at);
        let column = self.text[line_start..start].chars().count();
        let width = self.text[start..span.end.clamp(start, line_end)]
            .chars()
            .count()
            .max(1);
        let line = &self.text[line_start..line_end];
        let secret =
            self.is_secret(span.start) || SECRET_FORMS.iter().any(|form| line.contains(form));
        let line = if secret {
            hidden(line)
        } else {
            printable(line)
        };
        Excerpt {
            origin: segment.origin.clone(),
            line_number: self.text[range.start..line_start].matches('\n').count() + 1,
            column: column + 1,
            width,
            line: line
                .trim_end()
                .chars()
                .take(MAX_EXCERPT_CHARS.max(column + width))
                .collect(),
        }
    }

    fn segment(&self, at: usize) -> &Segment {
        let index = self
            .segments
            .partition_point(|segment| segment.span.start <= at);
        &self.segments[index.max(1) - 1]
    }

    /// Whether a place is among credentials, whose values must not reach a log.
    fn is_secret(&self, at: usize) -> bool {
        let segment = self.segment(at);
        if segment.secret {
            return true;
        }
        let range = segment.span.clone();
        let at = at.min(range.end);
        let line_end = self.text[at..range.end]
            .find('\n')
            .map_or(range.end, |next| at + next);
        let header = self.text[range.start..line_end]
            .lines()
            .map(str::trim_start)
            .rfind(|line| is_header(line) || line.starts_with("auth"));
        header.is_some_and(|line| {
            line.trim_start_matches(['[', ' ', '\t', '"', '\''])
                .starts_with("auth")
        })
    }
}

/// `TOWPATH__RELAY__REALM` → `relay__realm`.
fn key_path(name: &str) -> String {
    name[ENVIRONMENT_PREFIX.len()..].to_ascii_lowercase()
}

/// The variables that are overrides, in the order of their names; values that are not UTF-8 stay
/// as they are.
fn overrides(
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> Vec<(String, Result<String, OsString>)> {
    let mut found: Vec<_> = environment
        .into_iter()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string())))
        .filter(|(name, _)| name.starts_with(ENVIRONMENT_PREFIX))
        .collect();
    found.sort();
    found
}

/// A text: as it stands, or as a quoted TOML string.
fn text_value(value: &str) -> Spanned<DeValue<'_>> {
    match DeValue::parse(value) {
        Ok(parsed) if parsed.get_ref().is_str() => parsed,
        _ => Spanned::new(0..value.len(), DeValue::String(Cow::Borrowed(value))),
    }
}

/// A list: a TOML array, or texts with commas between them.
fn list_value(value: &str) -> Result<Spanned<DeValue<'_>>, toml::de::Error> {
    let inside = value.trim_start().strip_prefix('[').map(str::trim_start);
    if inside.is_some_and(|inside| inside.starts_with(['"', '\'', '{', ']'])) {
        return DeValue::parse(value);
    }
    let mut list = DeArray::default();
    let mut start = 0;
    for item in value.split(',') {
        let text = item.trim();
        let at = start + (item.len() - item.trim_start().len());
        if !text.is_empty() {
            let place = at..at + text.len();
            list.push(Spanned::new(place, DeValue::String(Cow::Borrowed(text))));
        }
        start += item.len() + 1;
    }
    Ok(Spanned::new(0..value.len(), DeValue::Array(list)))
}

/// The value with every place moved by `by`.
fn moved(value: Spanned<DeValue<'_>>, by: usize) -> Spanned<DeValue<'_>> {
    let span = value.span();
    let value = match value.into_inner() {
        DeValue::Array(list) => {
            DeValue::Array(list.into_iter().map(|item| moved(item, by)).collect())
        }
        DeValue::Table(table) => DeValue::Table(
            table
                .into_iter()
                .map(|(key, value)| {
                    let span = key.span();
                    let key = key.into_inner();
                    (
                        Spanned::new(span.start + by..span.end + by, key),
                        moved(value, by),
                    )
                })
                .collect(),
        ),
        value @ (DeValue::String(_)
        | DeValue::Integer(_)
        | DeValue::Float(_)
        | DeValue::Boolean(_)
        | DeValue::Datetime(_)) => value,
    };
    Spanned::new(span.start + by..span.end + by, value)
}

/// The line with what a terminal would obey replaced, one character for one.
fn printable(line: &str) -> String {
    line.chars()
        .map(|char| {
            if char.is_control() && char != '\t' {
                char::REPLACEMENT_CHARACTER
            } else {
                char
            }
        })
        .collect()
}

/// Whether a line can be nothing but `[section]`; what only begins like one may be a damaged value.
fn is_header(line: &str) -> bool {
    let line = line.split('#').next().unwrap_or_default().trim();
    line.starts_with('[') && line.ends_with(']') && line.chars().all(is_bare)
}

/// Whether a character can be in a name without quotes or around one.
fn is_bare(char: char) -> bool {
    char.is_ascii_alphanumeric() || "_-. \t[]".contains(char)
}

/// The line with everything but a header or bare names in front of `=` replaced, one character for
/// one.
fn hidden(line: &str) -> String {
    let names = line.find('=').unwrap_or(line.len());
    let named = is_header(line) || (names < line.len() && line[..names].chars().all(is_bare));
    let (shown, values) = line.split_at(if named { names } else { 0 });
    let hide = |char: char| {
        if " \t=,\"'{}[]".contains(char) {
            char
        } else {
            '*'
        }
    };
    shown.chars().chain(values.chars().map(hide)).collect()
}
