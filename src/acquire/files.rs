//! Follows every file that matches a pattern: they come, go, and change their names among each other.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::model::Timestamp;

use super::file::{Follower, Inodes, Start};
use super::glob::{Glob, Way};
use super::identity::{Head, Position, Positions};
use super::rotated::{self, is_compressed};
use super::tail::written;
use super::{Line, Notice, OpenFile, Progress, What};

/// So many files of one pattern are followed: those that were written to last.
pub const FILES_MAX: usize = 1_000;
/// Of so many files it is remembered how they began.
const KNOWN_MAX: usize = 4 * FILES_MAX;
/// Of so many names that are not followed any more it is remembered how far their files were read.
const DEPARTED_MAX: usize = 1_000;

/// Says where to begin in a file that is there at the first look.
pub type StartOf = Box<dyn Fn() -> Start + Send>;

/// The files of one pattern, each with a follower.
///
/// What a rotator has put aside is not a log of its own, though it may match: a name that [`rotated::originals`] traces to
/// another that matches is left to the follower of that one, and compressed files are nobody's. A file is followed
/// under one name, even where it has several or links lead to it; when it is renamed among the names that match, its
/// position goes with it. Files that appear are read from their beginning.
///
/// A name that was followed once is a log's name: it is remembered with what was read of it, and what a rotator made
/// of it is none of its own, also while nothing has the name.
pub struct Files {
    glob: Glob,
    /// By a number that is never given again.
    followers: BTreeMap<u32, Follower>,
    last_number: u32,
    /// The names that were followed, those that went first first.
    departed: Vec<(PathBuf, Positions)>,
    /// Where to begin in the files of the first look, where nothing was saved.
    start: Option<StartOf>,
    ways: Vec<Way>,
    /// When one of the directories was last changed before the last look, in nanoseconds since 1970: what a rotator
    /// made since, of a name that is new, was not read.
    since: Option<i64>,
    too_many: bool,
    /// How the files began that were seen to be open at some look, by inode.
    known: BTreeMap<u64, Head>,
}

/// What to save of the files of a pattern.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct SavedFiles {
    files: BTreeMap<PathBuf, Positions>,
    #[serde(default)]
    gone: Vec<(PathBuf, Positions)>,
    since: Option<i64>,
}

/// What a look at the directories came to.
#[must_use]
#[derive(Debug, Default)]
pub struct Looked {
    /// Who is to be read.
    pub awake: Vec<u32>,
    /// Who is not followed any more.
    pub gone: Vec<u32>,
    pub notices: Vec<Notice>,
}

/// A name that matches, and the file that has it.
struct Candidate {
    is_link: bool,
    path: PathBuf,
    inode: (u64, u64),
    written: i64,
}

/// What to do with the names that were listed.
struct Chosen {
    followed: Vec<Candidate>,
    left: BTreeSet<PathBuf>,
    too_many: bool,
}

impl Files {
    /// Follows nothing yet but what was saved; [`Files::look`] finds the others.
    pub fn open(glob: &Glob, saved: Option<SavedFiles>, start: StartOf, now: Timestamp) -> Files {
        let start = saved.is_none().then_some(start);
        let SavedFiles { mut files, gone, since } = saved.unwrap_or_default();
        give_to_owners(&mut files);
        let saved = files.values().flat_map(|positions| &positions.open).map(|position| position.identity);
        let known: BTreeMap<u64, Head> = saved.map(|identity| (identity.inode, identity.head)).collect();
        let inodes: Inodes = Arc::new(known.iter().map(|(inode, head)| (*inode, Some(*head))).collect());
        let follower = |(path, positions): (PathBuf, _)| {
            Follower::open_at(&path, Some(positions), Start::Beginning, inodes.clone(), now)
        };
        let followers: BTreeMap<u32, Follower> = (1..).zip(files.into_iter().map(follower)).collect();
        let last_number = followers.len() as u32;
        Files {
            glob: glob.clone(),
            followers,
            last_number,
            departed: gone,
            start,
            ways: Vec::new(),
            since,
            too_many: false,
            known,
        }
    }

    /// Finds out which files match now.
    ///
    /// To be called before the followers are read when the directories have changed, so that a file that changed its
    /// name is known for what it is.
    pub fn look(&mut self, now: Timestamp) -> Looked {
        let found = self.glob.look();
        self.ways = found.ways;
        let listed: BTreeSet<PathBuf> = found.paths.into_iter().collect();
        let Chosen { followed, left, too_many } = self.choose(&listed);
        let mut looked = Looked::default();
        if (too_many || found.more) && !std::mem::replace(&mut self.too_many, too_many || found.more) {
            looked.notices.push(Notice { path: self.glob.path(), what: What::TooMany(FILES_MAX) });
        }
        for Candidate { path, inode, .. } in &followed {
            if self.is_followed(path) {
                continue;
            }
            let follower = if let Some(start) = &self.start {
                Follower::open_at(path, None, start(), Inodes::default(), now)
            } else {
                looked.notices.push(Notice { path: path.clone(), what: What::Appeared });
                Follower::expecting(path, self.come_back(path, inode.1))
            };
            self.last_number += 1;
            self.followers.insert(self.last_number, follower);
            looked.awake.push(self.last_number);
        }
        self.start = None;
        self.since = found.changed;
        self.hand_over(&followed, &mut looked);
        let is_left = |follower: &Follower| left.contains(follower.path());
        looked.gone = self.numbers(is_left).collect();
        looked.gone.iter().for_each(|number| looked.awake.extend(self.let_go(*number)));
        self.share_what_is_known();
        looked
    }

    /// Reads on in one file; see [`Follower::read`].
    pub fn read(
        &mut self,
        number: u32,
        now: Timestamp,
        budget_bytes: usize,
        sink: &mut dyn FnMut(Line<'_>),
    ) -> Progress {
        let follower = self.followers.get_mut(&number);
        follower.map_or_else(Progress::default, |follower| follower.read(now, budget_bytes, sink))
    }

    /// The follower of this number, unless all of its file was read and nothing has its name: then it is let go.
    pub fn keep(&mut self, number: u32) -> Option<&Follower> {
        if self.followers.get(&number)?.is_over() {
            self.let_go(number);
        }
        self.followers.get(&number)
    }

    /// Whoever is followed, by number.
    pub fn followers(&self) -> impl Iterator<Item = (u32, &Follower)> {
        self.followers.iter().map(|(number, follower)| (*number, follower))
    }

    /// What to save, so that another process goes on where this one is. None before the first look.
    pub fn positions(&self) -> Option<SavedFiles> {
        let position = |follower: &Follower| Some((follower.path().to_owned(), follower.positions()?));
        let files = self.followers.values().filter_map(position).collect();
        self.start.is_none().then(|| SavedFiles { files, gone: self.departed.clone(), since: self.since })
    }

    /// How it stands, in words that begin with `following` where a file is read.
    pub fn state(&self) -> String {
        let (well, troubled): (Vec<_>, Vec<_>) =
            self.followers.values().map(Follower::trouble).partition(Option::is_none);
        let mut told = match well.len() {
            0 => Vec::new(),
            1 => vec!["following 1 file".to_owned()],
            many if self.too_many => vec![format!("following {many} files of more that match")],
            many => vec![format!("following {many} files")],
        };
        let troubled = troubled.iter().flatten().filter(|notice| notice.what != What::Missing);
        told.extend(troubled.map(Notice::to_string));
        if told.is_empty() { "no file matches: waiting for one".to_owned() } else { told.join("; ") }
    }

    pub(super) fn glob(&self) -> &Glob {
        &self.glob
    }

    pub(super) fn ways(&self) -> &[Way] {
        &self.ways
    }

    /// Tells each follower what the others have read, so that it takes nothing of theirs for a file of its own.
    fn share_what_is_known(&mut self) {
        let open: BTreeMap<u64, Head> = self.followers.values().flat_map(Follower::beginnings).collect();
        if self.known.len() > KNOWN_MAX {
            self.known.clear();
        }
        self.known.extend(&open);
        let known = self
            .known
            .iter()
            .map(|(inode, head)| (*inode, Some(*head).filter(|_| !open.contains_key(inode))));
        let inodes: Inodes = Arc::new(known.collect());
        self.followers.values_mut().for_each(|follower| follower.know_others(&inodes));
    }

    fn is_followed(&self, path: &Path) -> bool {
        self.followers.values().any(|follower| follower.path() == path)
    }

    fn numbers(&self, which: impl Fn(&Follower) -> bool) -> impl Iterator<Item = u32> {
        self.followers.iter().filter(move |(_, follower)| which(follower)).map(|(number, _)| *number)
    }

    /// Which names to follow, which are not to be, and whether more deserve it than can be followed. A name that is
    /// gone since it was listed is neither: a rotator may be at work.
    fn choose(&self, listed: &BTreeSet<PathBuf>) -> Chosen {
        let followed = self.followers.values().map(Follower::path);
        let known: BTreeSet<&Path> = followed.chain(self.departed.iter().map(|(path, _)| &**path)).collect();
        let is_own = |path: &PathBuf| {
            let mut originals = originals(path);
            let rotated = originals.any(|original| listed.contains(&original) || known.contains(&*original));
            !rotated && !path.to_str().is_some_and(is_compressed)
        };
        let candidate = |path: &PathBuf| {
            let is_link = fs::symlink_metadata(path).ok()?.is_symlink();
            let found = fs::metadata(path).ok()?;
            let inode = (found.dev(), found.ino());
            found.is_file().then(|| Candidate {
                is_link,
                path: path.clone(),
                inode,
                written: written(&found),
            })
        };
        let (own, others): (Vec<&PathBuf>, Vec<&PathBuf>) = listed.iter().partition(|path| is_own(path));
        let mut left: BTreeSet<PathBuf> = others.into_iter().cloned().collect();
        let mut found: Vec<Candidate> = own.into_iter().filter_map(candidate).collect();
        left.extend(found.iter().map(|candidate| candidate.path.clone()));
        found.sort_by_key(|candidate| candidate.is_link);
        let mut seen = BTreeSet::new();
        found.retain(|candidate| seen.insert(candidate.inode));
        let too_many = found.len() > FILES_MAX;
        if too_many {
            found.sort_by_key(|candidate| Reverse(candidate.written));
            found.truncate(FILES_MAX);
        }
        found.iter().for_each(|candidate| _ = left.remove(&candidate.path));
        Chosen { followed: found, left, too_many }
    }

    /// What is known of a name that appears with this file.
    fn come_back(&mut self, path: &Path, inode: u64) -> Positions {
        let is_back = |position: &mut Position| position.identity.inode == inode;
        let departed = self.departed.iter_mut().filter(|(other, _)| other != path);
        let open: Vec<Position> =
            departed.flat_map(|(_, positions)| positions.open.extract_if(.., is_back)).collect();
        let index = self.departed.iter().position(|(other, _)| other == path);
        let known = index.map(|index| self.departed.remove(index).1);
        let mut known = known.unwrap_or(Positions { since: self.since, ..Positions::default() });
        known.open.extend(open);
        known
    }

    /// Gives the position in a file that changed its name to the follower of its new name.
    fn hand_over(&mut self, chosen: &[Candidate], looked: &mut Looked) {
        let owners: BTreeMap<(u64, u64), &Path> =
            chosen.iter().map(|candidate| (candidate.inode, candidate.path.as_path())).collect();
        let mut moved: Vec<(&Path, Position)> = Vec::new();
        for (number, follower) in &mut self.followers {
            let foreign = |(inode, _): OpenFile<'_>| {
                owners.get(&inode).filter(|owner| **owner != follower.path()).map(|owner| (inode, *owner))
            };
            let foreign: Vec<_> = follower.open_files().filter_map(foreign).collect();
            for (inode, owner) in foreign {
                moved.extend(follower.release(inode).map(|position| (owner, position)));
                looked.awake.push(*number);
            }
        }
        for (owner, position) in moved {
            if let Some((number, follower)) =
                self.followers.iter_mut().find(|(_, follower)| follower.path() == owner)
            {
                follower.expect(position);
                looked.awake.push(*number);
            }
        }
    }

    /// Follows this one no more. What a rotator made of another is read on by who follows that, whose number it is.
    fn let_go(&mut self, number: u32) -> Option<u32> {
        let follower = self.followers.remove(&number)?;
        let (path, positions) = (follower.path(), follower.positions()?);
        let is_original = |other: &Follower| originals(path).any(|original| original == other.path());
        if let Some((number, original)) = self.followers.iter_mut().find(|(_, other)| is_original(other)) {
            positions.open.into_iter().for_each(|position| original.expect(position));
            return Some(*number);
        }
        self.departed.push((path.to_owned(), positions));
        let too_many = self.departed.len().saturating_sub(DEPARTED_MAX);
        self.departed.drain(..too_many);
        None
    }
}

/// What the file of this name may have been called before a rotator named it so.
fn originals(path: &Path) -> impl Iterator<Item = PathBuf> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    rotated::originals(name).map(|original| path.with_file_name(original))
}

/// Gives the positions in files that changed their names among those that were saved to the names they have now.
fn give_to_owners(files: &mut BTreeMap<PathBuf, Positions>) {
    let owner = |path: &PathBuf| Some((fs::metadata(path).ok()?.ino(), path.clone()));
    let owners: Vec<(u64, PathBuf)> = files.keys().filter_map(owner).collect();
    for (inode, owner) in owners {
        let others = files.iter_mut().filter(|(path, _)| **path != owner);
        let is_it = |position: &mut Position| position.identity.inode == inode;
        let moved: Vec<Position> =
            others.flat_map(|(_, positions)| positions.open.extract_if(.., is_it)).collect();
        files.entry(owner).or_default().open.extend(moved);
    }
}
