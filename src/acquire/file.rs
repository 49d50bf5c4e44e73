//! Follows one path through rotation, truncation, deletion and whatever else is put in its place.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::model::{Timestamp, plain};

use super::bisect::{Age, end_of_lines, first_wanted};
use super::identity::{HEAD_BYTES_MAX, Head, Identity, Position, Positions};
use super::open::{Refused, open};
use super::tail::{Read, Reading, Tail, fill_at, glimpse, written};
use super::{Line, Notice, OpenFile, Progress, What, is_missing};

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
/// let go when all of it was read and another rotation follows, or nothing was written to it for [`QUIET`], or for
/// [`QUIET_WITHOUT_NAME`] where it has no name left. A last line without a newline is never delivered.
///
/// Files that came and were rotated away between two looks, or while we did not run, are found beside it by their
/// names ([`is_rotated`]) and the time when they were made; and so is the copy that `copytruncate` makes, for what
/// was not read of a file when it was truncated. A time is as fine as the tick of the kernel's clock, some
/// milliseconds, so that it only says where to look: what a file is, its beginning says.
///
/// Some losses cannot be helped: what was written between the copying and the truncating, what was not read when it
/// was deleted or compressed while we did not run, and a file that came and was deleted between two looks.
#[derive(Debug)]
pub struct Follower {
    pub(super) path: PathBuf,
    /// The file that has the name.
    pub(super) current: Option<Tail>,
    /// Files that had it, oldest first.
    pub(super) old: VecDeque<Tail>,
    /// Positions in files that are not open: saved ones at first, later what was let go while nothing took the name.
    pub(super) closed: Vec<Position>,
    /// What is known of files that were read before; its open positions are `closed` and those of the tails.
    pub(super) before: Positions,
    pub(super) others: Inodes,
    /// The inodes that were open here when that was told: they are none of the others'.
    pub(super) own: Vec<u64>,
    /// What is beside the name is to be looked at again: it changed too fast, or more is wanted of it.
    pub(super) unsettled: bool,
    /// When the current file had been written to when it was last seen to have the name; [`Positions::since`] once
    /// it is known not to have been truncated by then.
    seen: Option<i64>,
    /// Where to begin, until the first file is opened or none is found.
    start: Option<Start>,
    /// What keeps the name from being read.
    trouble: Option<What>,
    caught_up: bool,
    notices: Vec<What>,
}

/// The inodes that are or were read under other names, where a file may come from there. Of those that are not open
/// any more, how they began, since others can have their numbers now.
pub(super) type Inodes = Arc<BTreeMap<u64, Option<Head>>>;

/// How long nothing is written to a rotated file before it is let go.
pub const QUIET: Duration = Duration::from_secs(5 * 60);

/// Likewise of a file that was deleted: it takes up room that somebody wants back.
pub const QUIET_WITHOUT_NAME: Duration = Duration::from_secs(10);

/// How many rotated files with unread lines are kept before they are read rather than the next one looked for.
pub(super) const OLD_FILES_MAX: usize = 64;
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
            own: Vec::new(),
            unsettled: false,
            seen: None,
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
        let Reading { mut progress, notices, .. } = reading;
        // The current file was found beside the name: something else may have that.
        progress.more |= self.current.is_none() && self.trouble.is_none();
        if self.current.is_some() {
            progress.more |= self.unsettled;
            if !self.unsettled {
                let passed = self.closed.drain(..);
                passed.for_each(|position| self.before.pass(position.identity.head));
            }
        }
        if !progress.more {
            self.before.settle(self.seen);
        }
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
        self.old.back().filter(|tail| tail.drained).map(|tail| tail.active.plus(patience(tail)))
    }

    /// What keeps the path from being read now; tried again at each read.
    pub fn trouble(&self) -> Option<Notice> {
        self.trouble.clone().map(|what| Notice { path: self.path.clone(), what })
    }

    /// Absolute, but with its symbolic links.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How each of the open files begins, by inode.
    pub(super) fn beginnings(&self) -> impl Iterator<Item = (u64, Head)> {
        let tails = self.old.iter().chain(&self.current);
        tails.map(|tail| (tail.identity.inode, tail.identity.head))
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

    /// Where to go on in a file that had another name, when it takes this one or is found beside it.
    pub(super) fn expect(&mut self, position: Position) {
        self.closed.push(position);
        self.unsettled = true;
    }

    /// What is read under other names from now on.
    pub(super) fn know_others(&mut self, others: &Inodes) {
        self.others = others.clone();
        self.own = self.beginnings().map(|(inode, _)| inode).collect();
    }

    /// Whether all was read, and nothing has the name.
    pub(super) fn is_over(&self) -> bool {
        self.current.is_none() && self.old.is_empty() && self.trouble == Some(What::Missing)
    }

    /// Reads the old files and then the current one, through truncations. The last error stands for all.
    fn read_tails(&mut self, reading: &mut Reading) -> io::Result<()> {
        let mut result = Ok(());
        // Files of procfs(5) never agree with their size, and must not hold us here.
        let mut patience = self.old.len() + 1;
        let mut index = 0;
        self.set_limits();
        loop {
            // Until it is known how the current file begins, nothing tells whether it was filled, copied and emptied.
            if index == self.old.len() && self.current.as_mut().is_some_and(Tail::learn) {
                self.open_missed(Some(index), reading.now);
                self.set_limits();
                index = 0;
            }
            let several = !self.old.is_empty();
            let Some(tail) = self.old.iter_mut().chain(&mut self.current).nth(index) else { break };
            match tail.read(reading) {
                Ok(Read::ToTheEnd) => {
                    reading.progress.more |= several && !tail.drained;
                    index += 1;
                }
                Ok(Read::OutOfBudget) => {
                    reading.progress.more = true;
                    break;
                }
                Ok(Read::Truncated(position)) => {
                    let size = tail.size();
                    self.closed.push(position);
                    self.open_missed(Some(index), reading.now);
                    self.closed.retain(|closed| self.unsettled || *closed != position);
                    self.before.pass(position.identity.head);
                    if patience == 0 {
                        reading.progress.more |= size > 0 || !self.old.is_empty();
                        break;
                    }
                    patience -= 1;
                    reading.notices.push(What::Truncated);
                    // What was found may be older than what was read already.
                    self.set_limits();
                    index = 0;
                }
                Err(error) => {
                    result = Err(error);
                    index += 1;
                }
            }
        }
        result
    }

    /// What is written to an old file while it is read must not come after what is written to the next one later: each
    /// is read as far as it reaches now, and the rest when the older ones were read to their new end. The youngest is
    /// asked first, so that what it has now is no younger than what the older ones have then.
    fn set_limits(&mut self) {
        let several = !self.old.is_empty();
        for tail in self.old.iter_mut().chain(&mut self.current).rev() {
            tail.limit = if several { tail.size() } else { u64::MAX };
        }
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
            // What was empty when it was last seen may have been filled, copied and emptied since.
            let is_unknown = self.current.as_ref().is_some_and(|tail| tail.identity.head.is_empty());
            self.unsettled |= is_unknown && self.seen.is_some_and(|seen| seen < written(&found));
            self.seen = Some(written(&found));
            if self.unsettled {
                self.open_missed(Some(self.old.len()), now);
            }
            return;
        }
        match open(&self.path) {
            Ok(file) => self.take(file, &found, now),
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

    /// Makes an opened file the current one, which had the name when it was `found`.
    fn take(&mut self, file: File, found: &Metadata, now: Timestamp) {
        match self.adopt(file, now) {
            Ok(None) => {}
            Ok(Some(tail)) => {
                let rotated = self.current.is_some() || self.trouble.is_none() && self.seen.is_some();
                self.retire(now);
                self.current = Some(tail);
                self.open_missed(None, now);
                self.seen = Some(written(found));
                self.before.since.get_or_insert(written(found));
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
        // Of a file that had several names in turn, the one under which it was read furthest knows best.
        let known = self.closed.iter().filter_map(|position| position.found_in(&found));
        let known = known.max_by_key(|position| position.offset);
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
            let quiet = now.since(tail.active) >= patience(&tail);
            if !(tail.drained && (newer > 0 || quiet)) {
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

/// How long nothing is written to a rotated file before it is let go.
fn patience(tail: &Tail) -> Duration {
    if tail.unlinked { QUIET_WITHOUT_NAME } else { QUIET }
}
