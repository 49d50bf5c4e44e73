//! Follows one path through rotation, truncation, deletion and whatever else is put in its place.

use std::collections::VecDeque;
use std::fmt;
use std::fs::{self, File, FileType, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::OFlags;

use crate::model::{Timestamp, plain};

use super::bisect::{Age, end_of_lines, first_wanted};
use super::identity::{HEAD_BYTES_MAX, Identity, Position};
use super::tail::{Reading, Tail, fill_at, glimpse};
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
/// Three losses cannot be helped: what was not read of a file when it was truncated (`copytruncate`), what was
/// not read of a file when it was deleted while we did not run, and a file that came and went between two looks.
#[derive(Debug)]
pub struct Follower {
    path: PathBuf,
    /// The file that has the name.
    current: Option<Tail>,
    /// Files that had it, oldest first.
    old: VecDeque<Tail>,
    /// Positions in files that are not open: saved ones at first, later what was let go while nothing took the name.
    closed: Vec<Position>,
    /// Where to begin, until the first file is opened or none is found.
    start: Option<Start>,
    /// What keeps the name from being read.
    trouble: Option<What>,
    caught_up: bool,
    notices: Vec<What>,
}

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
    pub fn open(path: &Path, saved: Option<Vec<Position>>, start: Start, now: Timestamp) -> io::Result<Self> {
        let mut follower = Follower {
            path: std::path::absolute(path)?,
            current: None,
            old: VecDeque::new(),
            start: saved.is_none().then_some(start),
            closed: saved.unwrap_or_default(),
            trouble: None,
            caught_up: false,
            notices: Vec::new(),
        };
        follower.look(now);
        follower.reopen_old(now);
        Ok(follower)
    }

    /// Hands lines to `sink` until there are no more or about `budget_bytes` (at least 1) were read.
    pub fn read(&mut self, now: Timestamp, budget_bytes: usize, sink: &mut dyn FnMut(Line<'_>)) -> Progress {
        let trouble_before = self.trouble.clone();
        self.look(now);
        if self.current.is_some() {
            self.closed.clear();
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
        for tail in self.old.iter_mut().chain(&mut self.current) {
            match tail.read(&mut reading) {
                Ok(true) => {}
                Ok(false) => {
                    reading.progress.more = true;
                    break;
                }
                Err(error) => {
                    let trouble = What::Unreadable(plain(&error));
                    if trouble_before.as_ref() != Some(&trouble) {
                        reading.notices.push(trouble.clone());
                    }
                    self.trouble = Some(trouble);
                }
            }
        }
        let Reading { mut progress, notices, .. } = reading;
        let known = self.current.is_some() || self.trouble == Some(What::Missing);
        self.caught_up |= known && !progress.more;
        self.let_go(now);
        progress.notices = notices.into_iter().map(|what| Notice { path: self.path.clone(), what }).collect();
        progress
    }

    /// What to save so that another process goes on where this one is: a position in each file that lines may
    /// still be read from, oldest first. None while no file was opened and where to begin is still open.
    pub fn positions(&self) -> Option<Vec<Position>> {
        let open = self.old.iter().chain(&self.current).map(Tail::position);
        self.start.is_none().then(|| self.closed.iter().copied().chain(open).collect())
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

    /// Finds out what has the name now.
    fn look(&mut self, now: Timestamp) {
        if self.old.len() >= OLD_FILES_MAX {
            return;
        }
        let found = match fs::metadata(&self.path) {
            Ok(found) => found,
            Err(error) => return self.handle_absence(&error, now),
        };
        let is_current = |tail: &Tail| tail.identity.is_inode(found.dev(), found.ino());
        if self.current.as_ref().is_some_and(is_current) {
            self.trouble = None;
        } else if !found.is_file() {
            // Not even opened: to open a FIFO or a device can have effects.
            self.retire(now);
            self.report(What::NotAFile(kind(found.file_type())));
        } else {
            match open(&self.path) {
                Ok(file) => self.take(file, now),
                Err(error) => {
                    self.retire(now);
                    self.handle_absence(&error, now);
                }
            }
        }
    }

    fn handle_absence(&mut self, error: &io::Error, now: Timestamp) {
        if is_missing(error) {
            self.retire(now);
            // Whatever appears is new, and all of it is wanted.
            self.start = None;
            self.report(What::Missing);
        } else {
            self.report(What::Unreadable(plain(error)));
        }
    }

    /// Makes an opened file the current one.
    fn take(&mut self, file: File, now: Timestamp) {
        match self.adopt(file, now) {
            Ok(None) => {}
            Ok(Some(tail)) => {
                let rotated = self.current.is_some();
                self.retire(now);
                self.current = Some(tail);
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

    /// Opens the files of saved positions that lost the name while we did not run.
    fn reopen_old(&mut self, now: Timestamp) {
        for position in std::mem::take(&mut self.closed) {
            if let Some(tail) = self.find_beside(position, now) {
                self.old.push_back(tail);
            } else if self.current.is_some() {
                self.notices.push(What::Lost);
            } else {
                self.closed.push(position);
            }
        }
    }

    /// The file of this position, if it is in the directory of the path or of a symbolic link's target.
    fn find_beside(&self, position: Position, now: Timestamp) -> Option<Tail> {
        ways(&self.path).iter().filter_map(|way| way.first()).find_map(|(dir, name)| {
            fs::read_dir(dir).ok()?.flatten().find_map(|entry| {
                // Without a fingerprint a reused inode number could be anybody's file, unless the name tells.
                let of_us = entry.file_name().as_bytes().starts_with(name.as_bytes());
                let found = entry.metadata().ok()?;
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

/// Opens a regular file for reading without waiting for anything.
fn open(path: &Path) -> io::Result<File> {
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path)?;
    // Something else may have taken the name since it was looked at.
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other("it is not a file")),
    }
}

/// What has a name that should be something else's.
pub(super) fn kind(kind: FileType) -> &'static str {
    if kind.is_file() {
        "a file"
    } else if kind.is_symlink() {
        "a symbolic link"
    } else if kind.is_dir() {
        "a directory"
    } else if kind.is_fifo() {
        "a FIFO"
    } else if kind.is_socket() {
        "a socket"
    } else {
        "a device"
    }
}
