//! Paths with wildcards: which files there are now, and where to watch for more.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use glob::{MatchOptions, Pattern};

use super::tail::written;

/// A path from the root in which `*`, `?` and `[a-z]` stand for parts of names, as in glob(7): never for a slash, nor
/// for a dot at the beginning. A name that has such characters in it also stands for itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Glob {
    text: String,
    steps: Vec<Wanted>,
}

/// Which events of a watched inode matter.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Wanted {
    /// Those of the inode itself.
    Itself,
    /// Those of this name in it.
    Name(OsString),
    /// Those of the names that match.
    Like(Pattern),
}

/// The directories on the way to a name, nearest first, each with what is looked up in it.
pub(super) type Way = Vec<(PathBuf, Wanted)>;

/// What matches a pattern now.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) paths: Vec<PathBuf>,
    pub(super) ways: Vec<Way>,
    /// There is more than was looked at.
    pub(super) more: bool,
    /// When one of the directories was changed last, in nanoseconds since 1970.
    pub(super) changed: Option<i64>,
}

/// So many names and directories of one pattern are looked at.
const NAMES_MAX: usize = 10_000;
const DIRS_MAX: usize = 1_000;

const OPTIONS: MatchOptions =
    MatchOptions { case_sensitive: true, require_literal_separator: true, require_literal_leading_dot: true };

impl Wanted {
    pub(super) fn matches(&self, name: &OsStr) -> bool {
        match self {
            Wanted::Itself => false,
            Wanted::Name(wanted) => wanted == name,
            Wanted::Like(pattern) => {
                let like = |name: &str| name == pattern.as_str() || pattern.matches_with(name, OPTIONS);
                name.to_str().is_some_and(like)
            }
        }
    }
}

/// Whether a path is a pattern.
pub fn is_wild(path: &str) -> bool {
    path.contains(['*', '?', '['])
}

impl Glob {
    /// # Errors
    /// What is wrong with the pattern, in words.
    pub fn parse(text: &str) -> Result<Glob, String> {
        let Some(path) = text.strip_prefix('/') else {
            return Err(format!("a path with wildcards must begin with a slash, and \"{text}\" does not"));
        };
        let step = |step: &str| match step {
            "**" => Err("\"**\" is not understood: write one * for each folder on the way".to_owned()),
            "." | ".." => Err(format!("\"{step}\" cannot stand in a path with wildcards")),
            name if !is_wild(name) => Ok(Wanted::Name(name.into())),
            name => Pattern::new(name).map(Wanted::Like).map_err(|error| {
                format!("\"{name}\" is not a pattern: {}; for a bracket itself write [[]", error.msg)
            }),
        };
        let steps = path.split('/').filter(|step| !step.is_empty()).map(step).collect::<Result<_, _>>()?;
        Ok(Glob { text: text.to_owned(), steps })
    }

    pub(super) fn path(&self) -> PathBuf {
        PathBuf::from(&self.text)
    }

    /// How many names match now.
    pub fn count(&self) -> usize {
        self.look().paths.len()
    }

    /// What matches now, in the order of names; what cannot be listed matches nothing.
    pub(super) fn look(&self) -> Found {
        let mut found = Found { paths: vec![PathBuf::from("/")], ..Found::default() };
        for (number, step) in (1..).zip(&self.steps) {
            let last = number == self.steps.len();
            let most = if last { NAMES_MAX } else { DIRS_MAX };
            let mut next = Vec::new();
            for dir in std::mem::take(&mut found.paths) {
                match step {
                    Wanted::Name(name) if !last => next.push(dir.join(name)),
                    _ => {
                        // Before it is listed: what comes later changes it later.
                        found.changed = found.changed.max(fs::metadata(&dir).ok().map(|dir| written(&dir)));
                        found.ways.push(way(&dir, step));
                        next.extend(matches(&dir, step).take(most + 1));
                    }
                }
                found.more |= next.len() > most;
                next.truncate(most);
            }
            found.paths = next;
        }
        found.paths.sort();
        found
    }
}

impl fmt::Display for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn matches(dir: &Path, step: &Wanted) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter(|entry| step.matches(&entry.file_name())).map(|entry| entry.path())
}

/// What is looked up in a directory, and the names of the directory itself and of all above it.
fn way(dir: &Path, wanted: &Wanted) -> Way {
    let above = dir
        .ancestors()
        .map_while(|at| Some((at.parent()?.to_owned(), Wanted::Name(at.file_name()?.to_owned()))));
    std::iter::once((dir.to_owned(), wanted.clone())).chain(above).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(glob: &str) -> Vec<String> {
        let found = Glob::parse(glob).unwrap().look();
        found.paths.iter().map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn a_pattern_finds_names_and_no_others() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().to_str().unwrap();
        for name in ["a.log", "b.log", "b.log.1", ".hidden.log", "[x].log", "x.log", "c"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        assert_eq!(found(&format!("{at}/*.log")), ["[x].log", "a.log", "b.log", "x.log"]);
        assert_eq!(found(&format!("{at}/?.log")), ["a.log", "b.log", "x.log"]);
        assert_eq!(found(&format!("{at}/[ab].log")), ["a.log", "b.log"]);
        assert_eq!(found(&format!("{at}/[x].log")), ["[x].log", "x.log"], "a name stands for itself");
        assert_eq!(found(&format!("{at}/nothing*")), [""; 0]);
    }

    #[test]
    fn folders_can_have_wildcards_too() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["one/logs", "two/logs", "three/other"] {
            fs::create_dir_all(dir.path().join(name)).unwrap();
        }
        fs::write(dir.path().join("one/logs/1.log"), "").unwrap();
        fs::write(dir.path().join("two/logs/2.log"), "").unwrap();
        let glob = Glob::parse(&format!("{}/*/logs/*.log", dir.path().display())).unwrap();
        let look = glob.look();
        assert_eq!(look.paths, [dir.path().join("one/logs/1.log"), dir.path().join("two/logs/2.log")]);
        // The folder of folders, and the logs of each, also where there are none yet.
        assert_eq!(look.ways.len(), 4);
        assert_eq!(found(&format!("{}/*/logs", dir.path().display())), ["logs", "logs"]);
    }

    #[test]
    fn what_is_not_understood_is_told() {
        for (text, wanted) in [
            ("var/*.log", "a path with wildcards must begin with a slash, and \"var/*.log\" does not"),
            ("/var/**/x.log", "\"**\" is not understood: write one * for each folder on the way"),
            ("/var/../*.log", "\"..\" cannot stand in a path with wildcards"),
        ] {
            assert_eq!(Glob::parse(text).unwrap_err(), wanted);
        }
        let told = Glob::parse("/var/log/a[.log").unwrap_err();
        assert!(told.starts_with("\"a[.log\" is not a pattern: ") && told.ends_with("write [[]"), "{told}");
    }
}
