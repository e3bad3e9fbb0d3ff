//! `towpath user add`: makes keys from a password, and writes them into a configuration.

use std::fs;
use std::io::{self, BufRead as _, IsTerminal as _, Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use nix::sys::termios::{self, LocalFlags, SetArg};
use toml_edit::{DocumentMut, Item, TableLike, value};
use towpath_proto::credentials::{MAX_PASSWORD_BYTES, check_username};
use towpath_server::config::{Config, Origin, REALM, UserSecret, credential};
use towpath_server::directories::replace_file;
use towpath_server::generated::random_password;

use crate::exit::{self, Failure};

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Make keys for a user: print the line for a configuration, or write it into one
    Add(Add),
}

#[derive(Args)]
#[command(after_help = "\
Asks for the password on the terminal; an empty one is made up and shown there.

Examples:
  towpath user add alice --realm example.org
  towpath user add alice --config towpath.toml
  pass show turn/alice | towpath user add alice --config towpath.toml --password-stdin")]
pub(crate) struct Add {
    /// The user's name
    name: String,
    /// The realm the keys are for [default: the configuration's, or \"towpath\"]
    #[arg(long)]
    realm: Option<String>,
    /// Write the line into this file, whose comments stay
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Read the password from the first line of standard input
    #[arg(long)]
    password_stdin: bool,
    /// Replace a user who is there already
    #[arg(long, requires = "config")]
    replace: bool,
}

pub(crate) fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Add(add) => run_add(add),
    }
}

fn run_add(add: Add) -> Result<(), Failure> {
    check_username(&add.name).map_err(|error| Failure::Usage(error.to_string()))?;
    let file = match &add.config {
        Some(path) => Some(ConfigFile::read(path)?),
        None => None,
    };
    let realm = match (&add.realm, &file) {
        (Some(realm), Some(file)) if *realm != file.realm => {
            return Err(Failure::Usage(format!(
                "--realm {realm:?} is not the realm of {}, {:?}",
                file.path.display(),
                file.realm
            )));
        }
        (Some(realm), _) => realm.clone(),
        (None, Some(file)) => file.realm.clone(),
        (None, None) => REALM.to_owned(),
    };
    let password = if add.password_stdin {
        password_from_stdin()?
    } else {
        password_from_terminal()?
    };
    let keys = credential(&add.name, &realm, &password)
        .map_err(|error| Failure::Usage(error.to_string()))?;
    let secret = UserSecret::Keys(keys).to_string();
    match file {
        Some(file) => {
            file.add(&add.name, &secret, add.replace)?;
            let path = add.config.as_deref().unwrap_or(Path::new(""));
            let text = format!(
                "{:?} of realm {realm:?} is in {}\n",
                add.name,
                path.display()
            );
            exit::print(text.as_bytes())
        }
        None => {
            let mut line = toml_edit::Table::new();
            line.insert(&add.name, value(secret));
            exit::print(format!("# [auth.users], realm {realm:?}\n{line}").as_bytes())
        }
    }
}

fn password_from_stdin() -> Result<String, Failure> {
    let mut line = String::new();
    // One byte more than may be there shows that it is too long; two are for the line's end.
    let limit = MAX_PASSWORD_BYTES as u64 + 3;
    io::stdin()
        .lock()
        .take(limit)
        .read_line(&mut line)
        .map_err(|error| Failure::Runtime(format!("cannot read the password: {error}")))?;
    let password = line.strip_suffix('\n').unwrap_or(&line);
    let password = password.strip_suffix('\r').unwrap_or(password);
    if password.is_empty() {
        return Err(Failure::Usage(
            "the first line of standard input is empty".into(),
        ));
    }
    Ok(password.to_owned())
}

/// Asks for a password on the terminal; makes one up and shows it there where none is given.
fn password_from_terminal() -> Result<String, Failure> {
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Err(Failure::Usage(
            "there is no terminal to ask for a password on; use --password-stdin".into(),
        ));
    }
    let failed = |error: io::Error| Failure::Runtime(format!("cannot ask for a password: {error}"));
    let password = ask_hidden("password (empty: one is made up): ").map_err(failed)?;
    if password.is_empty() {
        let password = random_password();
        writeln!(io::stderr(), "password: {password}").map_err(failed)?;
        return Ok(password);
    }
    if ask_hidden("again: ").map_err(failed)? != password {
        return Err(Failure::Usage("the passwords differ".into()));
    }
    Ok(password)
}

/// Reads a line from the terminal without showing it.
fn ask_hidden(prompt: &str) -> io::Result<String> {
    let stdin = io::stdin();
    let shown = termios::tcgetattr(&stdin)?;
    let mut hidden = shown.clone();
    hidden.local_flags.remove(LocalFlags::ECHO);
    write!(io::stderr(), "{prompt}")?;
    termios::tcsetattr(&stdin, SetArg::TCSANOW, &hidden)?;
    let mut line = String::new();
    let read = stdin
        .lock()
        .take(MAX_PASSWORD_BYTES as u64 + 3)
        .read_line(&mut line);
    termios::tcsetattr(&stdin, SetArg::TCSANOW, &shown)?;
    writeln!(io::stderr())?;
    read?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

/// A configuration to be changed.
struct ConfigFile {
    /// The file itself, where the path given is a link.
    path: PathBuf,
    mode: u32,
    text: String,
    realm: String,
}

impl ConfigFile {
    fn read(path: &Path) -> Result<Self, Failure> {
        // Overrides of this shell's environment say nothing about the server's.
        let config = Config::load(Some(path), []).map_err(Failure::Config)?;
        let failed =
            |error: io::Error| Failure::Runtime(format!("cannot read {}: {error}", path.display()));
        let path = path.canonicalize().map_err(failed)?;
        let text = fs::read_to_string(&path).map_err(failed)?;
        let mode = fs::metadata(&path).map_err(failed)?.mode() & 0o777;
        Ok(Self {
            path,
            mode,
            text,
            realm: config.relay.realm,
        })
    }

    fn add(&self, name: &str, secret: &str, replace: bool) -> Result<(), Failure> {
        let changed = with_user(&self.text, name, secret, replace)
            .map_err(|problem| Failure::Runtime(format!("{}: {problem}", self.path.display())))?;
        Config::from_text(Origin::File(self.path.clone()), changed.clone(), [])
            .map_err(|errors| Failure::Config(errors.into()))?;
        replace_file(&self.path, changed.as_bytes(), self.mode).map_err(|error| {
            Failure::Runtime(format!("cannot write {}: {error}", self.path.display()))
        })
    }
}

/// The text with one more user.
fn with_user(text: &str, name: &str, secret: &str, replace: bool) -> Result<String, String> {
    let mut document: DocumentMut = text.parse().map_err(|error| format!("{error}"))?;
    let auth = table(document.as_table_mut(), "auth")?;
    let users = table(auth, "users")?;
    if users.contains_key(name) && !replace {
        return Err(format!(
            "the user {name:?} is there already; --replace gives new keys"
        ));
    }
    users.insert(name, value(secret));
    Ok(document.to_string())
}

fn table<'a>(parent: &'a mut dyn TableLike, key: &str) -> Result<&'a mut dyn TableLike, String> {
    parent
        .entry(key)
        .or_insert_with(|| Item::Table(toml_edit::Table::new()))
        .as_table_like_mut()
        .ok_or_else(|| format!("{key} is no table"))
}

#[cfg(test)]
mod tests {
    use towpath_server::config::DEFAULT_FILE;

    use super::*;

    fn secret() -> String {
        UserSecret::Keys(credential("alice", "towpath", "secret").unwrap()).to_string()
    }

    #[test]
    fn a_user_is_added_to_the_default_file_and_every_comment_stays() {
        let changed = with_user(DEFAULT_FILE, "alice", &secret(), false).unwrap();
        let config = Config::from_text(Origin::Embedded, changed.clone(), []).unwrap();
        assert!(config.auth.users.contains_key("alice"));
        let comments = |text: &str| {
            text.lines()
                .filter(|line| line.starts_with('#'))
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        assert_eq!(comments(&changed), comments(DEFAULT_FILE));
        let again = with_user(&changed, "bob \"b\"", &secret(), false).unwrap();
        let config = Config::from_text(Origin::Embedded, again, []).unwrap();
        assert_eq!(config.auth.users.len(), 2);
    }

    #[test]
    fn a_user_is_added_wherever_users_are_written() {
        for text in [
            "",
            "[auth]\n",
            "[auth.users]\nbob = \"plain:x\"\n",
            "auth.users.bob = \"plain:x\"\n",
        ] {
            let changed = with_user(text, "alice", &secret(), false).unwrap();
            let config = Config::from_text(Origin::Embedded, changed, []).unwrap();
            assert!(config.auth.users.contains_key("alice"), "{text}");
        }
    }

    #[test]
    fn a_user_is_replaced_only_where_that_is_asked_for() {
        let text = with_user("", "alice", &secret(), false).unwrap();
        assert!(
            with_user(&text, "alice", "key:md5:00", false)
                .unwrap_err()
                .contains("alice")
        );
        assert!(
            with_user(&text, "alice", "key:md5:00", true)
                .unwrap()
                .contains("\"key:md5:00\"")
        );
    }
}
