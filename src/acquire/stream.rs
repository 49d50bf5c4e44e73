//! Lines that nobody keeps: read from a descriptor the moment they come, and gone when they were read.
//!
//! The buffer of the kernel is the only queue. While it is full a writer waits, or the kernel drops and counts.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::model::{Timestamp, plain};

use super::fifo::Fifo;
use super::place::Channel;
use super::splitter::Splitter;
use super::tail::Reading;
use super::{Line, Notice, Progress, What};

/// A source that cannot be read twice. Its lines are about now.
pub struct Stream {
    name: PathBuf,
    kind: Box<dyn Kind>,
    /// What keeps it from being read.
    trouble: Option<String>,
}

/// What the kinds of streams differ in.
pub(super) trait Kind {
    /// Hands on the lines that wait, true where the budget ended before they did.
    ///
    /// # Errors
    /// What keeps it from being read, in words; it is tried again when something happens at [`Kind::path`] or it is
    /// the time that [`Kind::poll_timeout`] says.
    fn read(&mut self, reading: &mut Reading) -> Result<bool, String>;

    /// What becomes readable when there is something to read; at most [`Stream::DESCRIPTORS_MAX`].
    fn descriptors(&self) -> Vec<BorrowedFd<'_>>;

    /// The name to watch, where it has one.
    fn path(&self) -> Option<&Path> {
        None
    }

    /// When to read again though nothing happened.
    fn poll_timeout(&self) -> Option<Timestamp> {
        None
    }
}

const READ_BYTES_MAX: usize = 64 * 1024;

impl Stream {
    pub(super) const DESCRIPTORS_MAX: usize = 3;

    /// A stream that the first read opens, and what to call it.
    pub fn of(channel: &Channel, name: String) -> Stream {
        let kind: Box<dyn Kind> = match channel {
            Channel::Fifo(path) => Box::new(Fifo::new(path)),
        };
        Stream { name: name.into(), kind, trouble: None }
    }

    /// Hands lines to `sink` until there are no more or about `budget_bytes` (at least 1) were read; never waits.
    pub fn read(&mut self, now: Timestamp, budget_bytes: usize, sink: &mut dyn FnMut(Line<'_>)) -> Progress {
        let mut reading = Reading {
            now,
            left: budget_bytes.max(1),
            fresh: true,
            sink,
            buffer: vec![0; READ_BYTES_MAX],
            progress: Progress::default(),
            notices: Vec::new(),
        };
        let trouble = match self.kind.read(&mut reading) {
            Ok(more) => {
                reading.progress.more = more;
                None
            }
            Err(trouble) => Some(trouble),
        };
        let Reading { mut progress, mut notices, .. } = reading;
        if trouble != self.trouble {
            notices.push(trouble.clone().map_or(What::Appeared, What::Unreadable));
            self.trouble = trouble;
        }
        progress.notices = notices.into_iter().map(|what| Notice { path: self.name.clone(), what }).collect();
        progress
    }

    /// What keeps it from being read now.
    pub fn trouble(&self) -> Option<Notice> {
        self.trouble.clone().map(|why| Notice { path: self.name.clone(), what: What::Unreadable(why) })
    }

    /// The name to watch, where it has one: read again when something happens to it.
    pub fn path(&self) -> Option<&Path> {
        self.kind.path()
    }

    /// When to read again though nothing happened.
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        self.kind.poll_timeout()
    }

    /// What becomes readable when there is something to read.
    pub fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        self.kind.descriptors()
    }
}

/// How a descriptor was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Left {
    /// Nothing waits in it.
    Empty,
    /// The budget was used up before that.
    More,
    /// Nothing comes any more.
    Ended,
}

/// Cuts what comes from a descriptor that does not block into lines.
pub(super) fn take(fd: impl AsFd, splitter: &mut Splitter, reading: &mut Reading) -> io::Result<Left> {
    while reading.left > 0 {
        let wanted = reading.buffer.len().min(reading.left);
        match rustix::io::read(&fd, &mut reading.buffer[..wanted]) {
            Ok(0) => return Ok(Left::Ended),
            Ok(count) => reading.deliver(splitter, count),
            Err(Errno::AGAIN) => return Ok(Left::Empty),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Left::More)
}

/// Why a name of the filesystem is not to be trusted: who can write to it can have anybody banned.
pub(super) fn distrusted(path: &Path, found: &std::fs::Metadata) -> Option<String> {
    let harm = "could have anybody banned";
    let ours = rustix::process::geteuid().as_raw();
    if found.uid() != 0 && found.uid() != ours {
        return Some(format!("it belongs to user {}, who {harm}: chown it to root", found.uid()));
    }
    if found.mode() & 0o002 != 0 {
        return Some(format!("everybody may write to it, and {harm}: take that away (chmod o-w)"));
    }
    let dir = path.parent().unwrap_or(Path::new("/"));
    match std::fs::metadata(dir) {
        Ok(dir) if dir.mode() & 0o002 == 0 => None,
        Ok(_) => Some(format!(
            "everybody may write to {}, put another in its place, and {harm}: move it elsewhere",
            dir.display()
        )),
        Err(error) => Some(plain(&error)),
    }
}
