//! Where lines come from, as people write it.
#![forbid(unsafe_code)]

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::yaml;

use super::glob::{Glob, is_wild};

/// One source of lines. What it prints as is its name: in the status, and for what is saved of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// A file that is followed through rotation.
    File(PathBuf),
    /// All files that match a pattern, as they come and go.
    Glob(Glob),
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
            Place::Glob(_) | Place::Stream(_) => None,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::File(path) => path.display().fmt(f),
            Place::Glob(glob) => glob.fmt(f),
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
            _ if is_wild(text) => return Glob::parse(text).map(Place::Glob),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_prints_as_it_is_written() {
        for text in ["/var/log/auth.log", "/var/log/*/access.log", "./odd:name", "fifo:/run/nftjail/log"] {
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
