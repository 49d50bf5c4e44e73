//! Where lines come from, as people write it.
#![forbid(unsafe_code)]

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::yaml;

use super::journalmatch::Matches;

/// One source of lines. What it prints as is its name: in the status, and for what is saved of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// A file that is followed through rotation.
    File(PathBuf),
    /// Those entries of a journal.
    Journal(Origin, Matches),
    /// What gives each line only once, to whoever reads it.
    Stream(Channel),
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Channel {
    /// A named pipe, fifo(7).
    Fifo(PathBuf),
}

/// The words that stand before a colon.
const KINDS: [&str; 1] = ["fifo"];

impl Place {
    /// The file of this place, where it is one.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Place::File(path) => Some(path),
            Place::Stream(_) | Place::Journal(..) => None,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::File(path) => path.display().fmt(f),
            Place::Journal(origin, matches) => write!(f, "{origin} ({matches})"),
            Place::Stream(Channel::Fifo(path)) => write!(f, "fifo:{}", path.display()),
        }
    }
}

impl FromStr for Place {
    type Err = String;

    /// A path, or a kind and a colon before what it is called. A file with a colon in its name has a slash before it.
    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, rest) = match text.split_once(':') {
            Some((kind, rest)) if !kind.contains('/') => (kind, rest),
            _ => return Ok(Place::File(text.into())),
        };
        match kind {
            "fifo" => absolute(kind, rest).map(|path| Place::Stream(Channel::Fifo(path))),
            _ => Err(yaml::unknown("kind of source", kind, &KINDS)),
        }
    }
}

fn absolute(kind: &str, path: &str) -> Result<PathBuf, String> {
    match path.starts_with('/') {
        true => Ok(path.into()),
        false => Err(format!("{kind}: wants a path from the root, as {kind}:/run/nftjail/log")),
    }
}

/// Which journal is meant.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// That of this machine.
    #[default]
    System,
    /// A namespace of it: `LogNamespace=` in systemd.exec(5).
    Namespace(String),
    /// The journal files of this folder, whichever machine wrote them.
    Directory(PathBuf),
}

impl Origin {
    /// How journalctl(1) is told.
    pub fn argument(&self) -> Option<String> {
        match self {
            Origin::System => None,
            Origin::Namespace(name) => Some(format!("--namespace={name}")),
            Origin::Directory(path) => Some(format!("--directory={}", path.display())),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::System => f.write_str("journal"),
            Origin::Namespace(name) => write!(f, "journal {name}"),
            Origin::Directory(path) => write!(f, "journal {}", path.display()),
        }
    }
}

impl FromStr for Origin {
    type Err = String;

    /// `system`, a folder from the root, or the name of a namespace.
    fn from_str(text: &str) -> Result<Self, String> {
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'@');
        match text {
            "system" => Ok(Origin::System),
            path if path.starts_with('/') => Ok(Origin::Directory(path.into())),
            name if !name.is_empty() && name.bytes().all(is_name) => Ok(Origin::Namespace(name.to_owned())),
            _ => Err(format!(
                "\"{text}\" is no journal: write system, a namespace, or a folder: /var/log/journal"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_prints_as_it_is_written() {
        for text in ["/var/log/auth.log", "./odd:name", "fifo:/run/nftjail/log"] {
            assert_eq!(text.parse::<Place>().unwrap().to_string(), text);
        }
        assert_eq!("./odd:name".parse::<Place>().unwrap().file(), Some(Path::new("./odd:name")));
    }

    #[test]
    fn a_place_that_cannot_be_is_told_with_what_to_write() {
        for (text, wanted) in [
            ("fifi:/run/x", "unknown kind of source \"fifi\": did you mean fifo?"),
            ("fifo:x", "fifo: wants a path from the root, as fifo:/run/nftjail/log"),
        ] {
            assert_eq!(text.parse::<Place>().unwrap_err(), wanted);
        }
    }
}
