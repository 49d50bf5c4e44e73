//! Follows one path through rotation, truncation, deletion and whatever else is put in its place.

use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::model::{Timestamp, plain};

use super::bisect::{Age, end_of_lines, first_wanted};
use super::identity::{HEAD_BYTES_MAX, Identity, Position, Positions};
use super::open::{Refused, open};
use super::rotated::{is_rotated, order};
use super::tail::{Read, Reading, Tail, born, fill_at, glimpse, written};
use super::{Line, Notice, OpenFile, Progress, What, is_missing, ways};

/// Says whether a line was written before the wanted time.
pub type AgeOf = Box<dyn FnMut(&[u8]) -> Age + Send>;

/// Where to begin in a file that is there when we first open its path and of which no position was saved. A file
/// that appears later is read from its beginning.
pub enum Start {
    Beginning,
    /// Behind its last whole line.
    End,
    /// At the first line that is [`Age::Wanted`]; see [`first_wanted`].
    Since(AgeOf),
}

impl fmt::Debug for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Start::Beginning => "Beginning",
            Start::End => "End",
            Start::Since(_) => "Since",
        })
    }
}

/// Reads the lines of whatever file has one name, each once and in order.
///
/// When the file is rotated away, the rest of the old one is read before the new one, and the old one stays open
/// for what is still written to it, because a daemon keeps its descriptor until it is told of the rotation. It is
/// let go when all of it was read and it has no name left, or another rotation follows, or nothing was written
/// to it for [`QUIET`]. A last line without a newline is never delivered.
///
/// Files that came and were rotated away between two looks, or while we did not run, are found beside it by their
/// names ([`is_rotated`]) and the time when they were made; and so is the copy that `copytruncate` makes, for what
/// was not read of a file when it was truncated.
///
/// Some losses cannot be helped: what was written between the copying and the truncating, what was not read when it
/// was deleted or compressed while we did not run, and a file that came and was deleted between two looks.
#[derive(Debug)]
pub struct Follower {
    path: PathBuf,
    /// The file that has the name.
    current: Option<Tail>,
    /// Files that had it, oldest first.
    old: VecDeque<Tail>,
    /// Positions in files that are not open: saved ones at first, later what was let go while nothing took the name.
    closed: Vec<Position>,
    /// What is known of files that were read before; its open positions are `closed` and those of the tails.
    before: Positions,
    others: Inodes,
    /// Where to begin, until the first file is opened or none is found.
    start: Option<Start>,
    /// What keeps the name from being read.
    trouble: Option<What>,
    caught_up: bool,
    notices: Vec<What>,
}

/// The inodes that are read under other names, where a file may come from there.
pub(super) type Inodes = Arc<BTreeSet<u64>>;

/// How long nothing is written to a rotated file before it is let go.
pub const QUIET: Duration = Duration::from_secs(5 * 60);

/// How many rotated files with unread lines are kept before they are read rather than the next one looked for.
const OLD_FILES_MAX: usize = 16;
const READ_BYTES_MAX: usize = 64 * 1024;

impl Follower {
    /// Follows a path, which need not exist; what keeps it from being read is told by the first read.
    ///
    /// With `saved`, from [`Follower::positions`] of an earlier process, it goes on exactly where that one was:
    /// also in files that were rotated meanwhile, where they can be found in the same directory. Without, it
    /// begins at `start`.
    ///
    /// # Errors
    /// Only for a path that is empty, or relative while there is no working directory.
    pub fn open(path: &Path, saved: Option<Positions>, start: Start, now: Timestamp) -> io::Result<Self> {
        Ok(Follower::open_at(&std::path::absolute(path)?, saved, start, Inodes::default(), now))
    }

    /// Likewise, for an absolute path.
    pub(super) fn open_at(
        path: &Path,
        saved: Option<Positions>,
        start: Start,
        others: Inodes,
        now: Timestamp,
    ) -> Self {
        let start = saved.is_none().then_some(start);
        let mut follower = Follower { start, others, ..Follower::expecting(path, saved.unwrap_or_default()) };
        follower.reopen_old(now);
        follower.look(now);
        if follower.current.is_some() {
            follower.notices.extend(follower.closed.iter().map(|_| What::Lost));
        }
        follower
    }

    /// Follows a path that was not looked at yet, from where its files were read to under this or other names.
    pub(super) fn expecting(path: &Path, mut before: Positions) -> Self {
        Follower {
            path: path.to_owned(),
            current: None,
            old: VecDeque::new(),
            closed: std::mem::take(&mut before.open),
            before,
            others: Inodes::default(),
            start: None,
            trouble: None,
            caught_up: false,
            notices: Vec::new(),
        }
    }

    /// Hands lines to `sink` until there are no more or about `budget_bytes` (at least 1) were read.
    pub fn read(&mut self, now: Timestamp, budget_bytes: usize, sink: &mut dyn FnMut(Line<'_>)) -> Progress {
        let trouble_before = self.trouble.clone();
        self.look(now);
        if self.current.is_some() {
            let passed = self.closed.drain(..);
            passed.for_each(|position| self.before.pass(position.identity.head));
        }
        let left = budget_bytes.max(1);
        let mut reading = Reading {
            now,
            left,
            fresh: self.caught_up,
            sink,
            buffer: vec![0; left.min(READ_BYTES_MAX)],
            progress: Progress::default(),
            notices: std::mem::take(&mut self.notices),
        };
        // Whatever the budget does not reach may have unread lines.
        self.old.iter_mut().for_each(|tail| tail.drained = false);
        if let Err(error) = self.read_tails(&mut reading) {
            let trouble = What::Unreadable(plain(&error));
            if trouble_before.as_ref() != Some(&trouble) {
                reading.notices.push(trouble.clone());
            }
            self.trouble = Some(trouble);
        }
        if let Some(tail) = &self.current {
            self.before.since = self.before.since.max(tail.written);
        }
        let Reading { mut progress, notices, .. } = reading;
        let known = self.current.is_some() || self.trouble == Some(What::Missing);
        self.caught_up |= known && !progress.more;
        self.let_go(now);
        progress.notices = notices.into_iter().map(|what| Notice { path: self.path.clone(), what }).collect();
        progress
    }

    /// What to save so that another process goes on where this one is. None while no file was opened and where to
    /// begin is still open.
    pub fn positions(&self) -> Option<Positions> {
        let open = self.old.iter().chain(&self.current).map(Tail::position);
        let open = self.closed.iter().copied().chain(open).collect();
        self.start.is_none().then(|| Positions { open, ..self.before.clone() })
    }

    /// How many bytes were written and not read yet.
    pub fn behind(&self) -> u64 {
        self.old.iter().chain(&self.current).map(Tail::behind).sum()
    }

    /// When to read again though nothing happened: an old file is to be let go.
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        self.old.back().filter(|tail| tail.drained).map(|tail| tail.active.plus(QUIET))
    }

    /// What keeps the path from being read now; tried again at each read.
    pub fn trouble(&self) -> Option<Notice> {
        self.trouble.clone().map(|what| Notice { path: self.path.clone(), what })
    }

    /// Absolute, but with its symbolic links.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The files that are open, by device and inode.
    pub(super) fn open_files(&self) -> impl Iterator<Item = OpenFile<'_>> {
        let tails = self.old.iter().chain(&self.current);
        tails.map(|tail| ((tail.identity.dev, tail.identity.inode), tail.file.as_fd()))
    }

    /// Lets go of an open file that has another name now, and says where it was read to.
    pub(super) fn release(&mut self, (dev, inode): (u64, u64)) -> Option<Position> {
        let is_it = |tail: &Tail| tail.identity.is_inode(dev, inode);
        let old = self.old.iter().position(is_it).and_then(|index| self.old.remove(index));
        old.or_else(|| self.current.take_if(|tail| is_it(tail))).map(|tail| tail.position())
    }

    /// Where to go on in a file that had another name, when it takes this one.
    pub(super) fn expect(&mut self, position: Position) {
        self.closed.push(position);
    }

    /// What is read under other names from now on.
    pub(super) fn know_others(&mut self, others: &Inodes) {
        self.others = others.clone();
    }

    /// Whether all was read, and nothing has the name.
    pub(super) fn is_over(&self) -> bool {
        self.current.is_none() && self.old.is_empty() && self.trouble == Some(What::Missing)
    }

    /// Reads the old files and then the current one, through truncations. The last error stands for all.
    fn read_tails(&mut self, reading: &mut Reading) -> io::Result<()> {
        let mut result = Ok(());
        // Files of procfs(5) never agree with their size: each may be found truncated once, and not hold us here.
        let mut patience = self.old.len() + 1;
        let mut index = 0;
        while let Some(tail) = self.old.iter_mut().chain(&mut self.current).nth(index) {
            match tail.read(reading) {
                Ok(Read::ToTheEnd) => index += 1,
                Ok(Read::OutOfBudget) => {
                    reading.progress.more = true;
                    break;
                }
                Ok(Read::Truncated(_)) if patience == 0 => index += 1,
                Ok(Read::Truncated(position)) => {
                    patience -= 1;
                    reading.notices.push(What::Truncated);
                    self.open_missed(&mut vec![position], index, reading.now);
                }
                Err(error) => {
                    result = Err(error);
                    index += 1;
                }
            }
        }
        result
    }

    /// Finds out what has the name now.
    fn look(&mut self, now: Timestamp) {
        if self.old.len() >= OLD_FILES_MAX {
            return;
        }
        let found = match fs::metadata(&self.path) {
            Ok(found) => found,
            Err(error) if is_missing(&error) => return self.handle_absence(now),
            Err(error) => return self.report(What::Unreadable(plain(&error))),
        };
        let is_current = |tail: &Tail| tail.identity.is_inode(found.dev(), found.ino());
        if self.current.as_ref().is_some_and(is_current) {
            self.trouble = None;
            return;
        }
        match open(&self.path) {
            Ok(file) => self.take(file, now),
            Err(Refused::Missing) => self.handle_absence(now),
            Err(Refused::Because(what)) => {
                self.retire(now);
                self.report(what);
            }
        }
    }

    fn handle_absence(&mut self, now: Timestamp) {
        self.retire(now);
        // Whatever appears is new, and all of it is wanted.
        self.start = None;
        if self.before.since.is_none() {
            let dir = self.path.parent().and_then(|dir| fs::metadata(dir).ok());
            self.before.since = dir.map(|dir| written(&dir));
        }
        self.report(What::Missing);
    }

    /// Makes an opened file the current one.
    fn take(&mut self, file: File, now: Timestamp) {
        match self.adopt(file, now) {
            Ok(None) => {}
            Ok(Some(tail)) => {
                let rotated = self.current.is_some();
                self.retire(now);
                let mut closed = std::mem::take(&mut self.closed);
                self.current = Some(tail);
                self.open_missed(&mut closed, self.old.len(), now);
                self.closed = closed;
                if rotated {
                    self.notices.push(What::Rotated);
                } else if self.trouble.is_some() {
                    self.notices.push(What::Appeared);
                }
                self.trouble = None;
            }
            Err(error) => self.report(What::Unreadable(plain(&error))),
        }
    }

    /// The file at the place where to go on; none where it cannot become the current one.
    fn adopt(&mut self, file: File, now: Timestamp) -> io::Result<Option<Tail>> {
        let mut head = [0; HEAD_BYTES_MAX];
        let found = glimpse(&file, &mut head)?;
        let is_found = |tail: &Tail| tail.identity.is_inode(found.dev, found.inode);
        if self.current.as_ref().is_some_and(is_found) {
            return Ok(None);
        }
        if let Some(index) = self.old.iter().position(is_found) {
            return Ok(self.old.remove(index));
        }
        let known = self.closed.iter().find_map(|position| position.found_in(&found));
        if let Some(position) = known {
            self.closed.retain(|other| other.identity.inode != found.inode);
            return Ok(Some(Tail::new(file, position, now)));
        }
        let read_at = &mut |buffer: &mut [u8], offset| fill_at(&file, buffer, offset);
        let offset = match &mut self.start {
            None | Some(Start::Beginning) => 0,
            Some(Start::End) => end_of_lines(found.size, read_at)?,
            Some(Start::Since(age)) => first_wanted(found.size, read_at, age)?,
        };
        self.start = None;
        let position = Position { identity: Identity::of(&found), offset };
        Ok(Some(Tail::new(file, position, now)))
    }

    /// Opens the files of saved positions; which of them has the name is found out later.
    fn reopen_old(&mut self, now: Timestamp) {
        for position in std::mem::take(&mut self.closed) {
            match self.find_beside(position, now) {
                // It was saved of two names that it had in turn.
                Some(tail) if self.old.iter().any(|old| old.identity.inode == tail.identity.inode) => {}
                Some(tail) => self.old.push_back(tail),
                None => self.closed.push(position),
            }
        }
    }

    /// Opens what a rotator put beside the name since it was last read: files that were never read, and copies of
    /// those `gone`, which are read on from there and leave `gone`. Each takes its place before the old files whose
    /// names say that they are younger, or else `at`.
    fn open_missed(&mut self, gone: &mut Vec<Position>, mut at: usize, now: Timestamp) {
        let Some(since) = self.before.since else { return };
        let is_old = |found: &Metadata| {
            self.old.iter().position(|tail| tail.identity.is_inode(found.dev(), found.ino()))
        };
        let mut beside = Vec::new();
        for (dir, name) in ways(&self.path).iter().filter_map(|way| way.first()) {
            let entries = fs::read_dir(dir).into_iter().flatten().flatten();
            let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
            let names = names.filter(|other| name.to_str().is_some_and(|name| is_rotated(other, name)));
            beside.extend(names.filter_map(|name| {
                let found = fs::symlink_metadata(dir.join(&name)).ok().filter(Metadata::is_file)?;
                let old = is_old(&found);
                // An inode that we know can hold what we do not: it was truncated before it was put aside.
                let known = gone.iter().any(|position| position.identity.inode == found.ino());
                let wanted = old.is_some() || known || born(&found).is_some_and(|born| born >= since);
                wanted.then(|| (order(&name), dir.join(name), old))
            }));
        }
        beside.sort();
        for (_, path, old) in beside.into_iter().rev().take(OLD_FILES_MAX) {
            if let Some(index) = old {
                at = at.min(index);
            } else if let Some(tail) = self.open_rotated(&path, gone, now) {
                self.old.insert(at, tail);
            }
        }
        gone.iter().for_each(|position| self.before.pass(position.identity.head));
    }

    /// The file, unless it or what it is a copy of was read.
    fn open_rotated(&mut self, path: &Path, gone: &mut Vec<Position>, now: Timestamp) -> Option<Tail> {
        let file = open(path).ok()?;
        let mut head = [0; HEAD_BYTES_MAX];
        let found = glimpse(&file, &mut head).ok()?;
        if let Some(index) = gone.iter().position(|position| position.copied_to(&found).is_some()) {
            let position = gone.remove(index);
            self.before.pass(position.identity.head);
            let position = position.copied_to(&found).filter(|position| position.offset < found.size)?;
            return Some(Tail::new(file, position, now));
        }
        let is_this = |tail: &Tail| tail.identity.is_inode(found.dev, found.inode);
        let begins_so = |tail: &Tail| !tail.identity.head.is_empty() && tail.identity.head.begins(found.head);
        let mut open = self.old.iter().chain(&self.current);
        let is_gone = |gone: &Position| !gone.identity.head.is_empty() && gone.found_in(&found).is_some();
        let is_ours = gone.iter().any(|position| position.identity.inode == found.inode);
        let known = gone.iter().any(is_gone)
            || !is_ours && self.others.contains(&found.inode)
            || open.any(|tail| is_this(tail) || begins_so(tail))
            || self.before.past.iter().any(|head| head.begins(found.head));
        (!known).then(|| Tail::new(file, Position { identity: Identity::of(&found), offset: 0 }, now))
    }

    /// The file of this position, if it is in the directory of the path or of a symbolic link's target.
    fn find_beside(&self, position: Position, now: Timestamp) -> Option<Tail> {
        ways(&self.path).iter().filter_map(|way| way.first()).find_map(|(dir, name)| {
            fs::read_dir(dir).ok()?.flatten().find_map(|entry| {
                let found = entry.metadata().ok()?;
                // Without a fingerprint a reused inode number could be anybody's file, unless name and age tell.
                let of_us = entry.file_name().as_bytes().starts_with(name.as_bytes())
                    && born(&found).zip(self.before.since).is_none_or(|(born, since)| born <= since);
                let is_candidate = found.is_file()
                    && found.ino() == position.identity.inode
                    && (of_us || !position.identity.head.is_empty());
                let file = is_candidate.then(|| open(&entry.path()).ok())??;
                let mut head = [0; HEAD_BYTES_MAX];
                let position = position.found_in(&glimpse(&file, &mut head).ok()?)?;
                Some(Tail::new(file, position, now))
            })
        })
    }

    fn retire(&mut self, now: Timestamp) {
        if let Some(mut tail) = self.current.take() {
            tail.active = now;
            self.old.push_back(tail);
        }
    }

    fn let_go(&mut self, now: Timestamp) {
        let mut newer = self.old.len();
        let mut kept = VecDeque::new();
        for tail in self.old.drain(..) {
            newer -= 1;
            let quiet = now.since(tail.active) >= QUIET;
            if !(tail.drained && (tail.unlinked || newer > 0 || quiet)) {
                kept.push_back(tail);
            } else if self.current.is_none() {
                // The name may be given back to it.
                self.closed.push(tail.position());
            } else {
                self.before.pass(tail.identity.head);
            }
        }
        self.old = kept;
    }

    fn report(&mut self, trouble: What) {
        if self.trouble.as_ref() != Some(&trouble) {
            self.notices.push(trouble.clone());
            self.trouble = Some(trouble);
        }
    }
}
