//! Where lines come from, as people write it.
#![forbid(unsafe_code)]

use std::convert::Infallible;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// One source of lines. What it prints as is its name: in the status, and for what is saved of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// A file that is followed through rotation.
    File(PathBuf),
}

impl Place {
    /// The file of this place, where it is one.
    pub fn file(&self) -> Option<&Path> {
        let Place::File(path) = self;
        Some(path)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Place::File(path) = self;
        path.display().fmt(f)
    }
}

impl FromStr for Place {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Place::File(text.into()))
    }
}
