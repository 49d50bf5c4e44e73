//! Lines that nobody keeps: read from a descriptor the moment they come, and gone when they were read.
//!
//! The buffer of the kernel is the only queue. While it is full a writer waits, or the kernel drops and counts.

use std::fs::{self, File, FileType, Metadata};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::model::{Timestamp, plain};

use super::command::Command;
use super::datagram::Datagram;
use super::fifo::Fifo;
use super::nflog::Nflog;
use super::open::kind;
use super::place::Channel;
use super::splitter::Splitter;
use super::stdin::Stdin;
use super::tail::Reading;
use super::{Line, Notice, Progress, What};

/// A source that cannot be read twice. Its lines are about now.
pub struct Stream {
    name: PathBuf,
    kind: Box<dyn Kind + Send>,
    /// What keeps it from being read, and when it is tried again.
    trouble: Option<(String, Timestamp)>,
    /// When to see next whether lines were lost, how many were told of, and when to tell of more.
    count_at: Timestamp,
    told: u64,
    tell_at: Timestamp,
}

/// What the kinds of streams differ in.
pub(super) trait Kind {
    /// Hands on the lines that wait, true where the budget ended before they did.
    ///
    /// # Errors
    /// What keeps it from being read, in words.
    fn read(&mut self, reading: &mut Reading) -> Result<bool, String>;

    /// What becomes readable when there is something to read; at most [`Stream::DESCRIPTORS_MAX`].
    fn descriptors(&self) -> Vec<BorrowedFd<'_>>;

    /// What the first read will find, with no effect on anything: `ok`, or what will be done.
    fn outlook(&self) -> Result<&'static str, String> {
        Ok("ok")
    }

    /// The name to watch, where it has one.
    fn path(&self) -> Option<&Path> {
        None
    }

    /// When to read again though nothing happened.
    fn poll_timeout(&self) -> Option<Timestamp> {
        None
    }

    /// How many messages the kernel dropped because they were not read in time.
    fn lost(&self) -> u64 {
        0
    }

    /// Bytes that are written and not read yet, where that can be known.
    fn behind(&self) -> u64 {
        0
    }

    /// Whether it ended for good.
    fn has_ended(&self) -> bool {
        false
    }
}

const READ_BYTES_MAX: usize = 64 * 1024;
/// How often something is tried again that does not work, and how often lost lines are counted.
const AGAIN: Duration = Duration::from_secs(1);
/// How often lost lines are told of.
const TELL_EVERY: Duration = Duration::from_secs(60);

impl Stream {
    pub(super) const DESCRIPTORS_MAX: usize = 3;

    /// A stream that the first read opens, and what to call it.
    pub fn of(channel: &Channel, name: String) -> Stream {
        let kind: Box<dyn Kind + Send> = match channel {
            Channel::Fifo(path) => Box::new(Fifo::new(path)),
            Channel::Unix(path) => Box::new(Datagram::unix(path)),
            Channel::Udp(address) => Box::new(Datagram::udp(*address)),
            Channel::Nflog(group) => Box::new(Nflog::new(*group)),
            Channel::Stdin => Box::new(Stdin::new()),
            Channel::Command(argv) => Box::new(Command::new(argv)),
        };
        let start = Timestamp::from_millis(0);
        Stream { name: name.into(), kind, trouble: None, count_at: start, told: 0, tell_at: start }
    }

    /// Hands lines to `sink` until there are no more or about `budget_bytes` (at least 1) were read; never waits.
    pub fn read(&mut self, now: Timestamp, budget_bytes: usize, sink: &mut dyn FnMut(Line<'_>)) -> Progress {
        let mut reading = Reading::fresh(now, budget_bytes.max(1), sink);
        let trouble = match self.kind.read(&mut reading) {
            Ok(more) => {
                reading.progress.more = more;
                None
            }
            Err(trouble) => Some(trouble),
        };
        let Reading { mut progress, mut notices, .. } = reading;
        if trouble.as_ref() != self.trouble.as_ref().map(|(trouble, _)| trouble) {
            notices.push(trouble.clone().map_or(What::Appeared, What::Unreadable));
        }
        self.trouble = trouble.map(|trouble| (trouble, now.plus(AGAIN)));
        notices.extend(self.newly_lost(now).map(What::Shed));
        progress.notices = notices.into_iter().map(|what| Notice { path: self.name.clone(), what }).collect();
        progress
    }

    /// How many lines were lost since that was last told, where it is time to tell.
    fn newly_lost(&mut self, now: Timestamp) -> Option<u64> {
        if now < self.count_at || now < self.tell_at {
            return None;
        }
        self.count_at = now.plus(AGAIN);
        let lost = self.kind.lost();
        let news = lost.saturating_sub(std::mem::replace(&mut self.told, lost));
        if news == 0 {
            return None;
        }
        self.tell_at = now.plus(TELL_EVERY);
        Some(news)
    }

    /// What keeps it from being read now.
    pub fn trouble(&self) -> Option<Notice> {
        let (why, _) = self.trouble.clone()?;
        Some(Notice { path: self.name.clone(), what: What::Unreadable(why) })
    }

    /// What the first read will find, with no effect on anything: `ok`, or what will be done.
    pub fn outlook(&self) -> Result<&'static str, String> {
        self.kind.outlook()
    }

    /// The name to watch, where it has one: read again when something happens to it.
    pub fn path(&self) -> Option<&Path> {
        self.kind.path()
    }

    /// When to read again though nothing happened.
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        self.kind.poll_timeout().or(self.trouble.as_ref().map(|(_, again)| *again))
    }

    /// How many messages the kernel dropped because they were not read in time.
    pub fn lost(&self) -> u64 {
        self.kind.lost()
    }

    /// Bytes that are written and not read yet, where that can be known.
    pub fn behind(&self) -> u64 {
        self.kind.behind()
    }

    /// Whether it ended for good.
    pub fn has_ended(&self) -> bool {
        self.kind.has_ended()
    }

    /// What becomes readable when there is something to read.
    pub fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        self.kind.descriptors()
    }
}

impl<'a> Reading<'a> {
    /// Of a stream: whatever it gives is about now.
    pub(super) fn fresh(now: Timestamp, left: usize, sink: &'a mut dyn FnMut(Line<'_>)) -> Reading<'a> {
        let (progress, notices) = (Progress::default(), Vec::new());
        Reading { now, left, fresh: true, sink, buffer: vec![0; READ_BYTES_MAX], progress, notices }
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

/// Cuts what waits in a descriptor into lines.
pub(super) fn take(fd: impl AsFd, splitter: &mut Splitter, reading: &mut Reading) -> io::Result<Left> {
    while reading.left > 0 {
        // Also of one that would block: what others share with us is not ours to change.
        if !is_readable(&fd) {
            return Ok(Left::Empty);
        }
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

/// Whether a read would not wait: there is something, or nothing comes any more.
pub(super) fn is_readable(fd: &impl AsFd) -> bool {
    poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&Timespec::default())) == Ok(1)
}

/// Bytes that wait in a pipe.
pub(super) fn waiting(pipe: impl AsFd) -> u64 {
    rustix::io::ioctl_fionread(pipe).unwrap_or(0)
}

/// What has this name: none where nothing has it. The handle opens nothing, so that what is judged is what is
/// opened, and because to open a device can have effects.
///
/// # Errors
/// It is not a `wanted`, or others could write to it: who can have lines read can have anybody banned. In words.
pub(super) fn look(
    path: &Path,
    wanted: &str,
    is_wanted: fn(&FileType) -> bool,
) -> Result<Option<(File, Metadata)>, String> {
    let handle =
        match rustix::fs::open(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()) {
            Ok(handle) => File::from(handle),
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(plain(&error.into())),
        };
    let found = handle.metadata().map_err(|error| plain(&error))?;
    if !is_wanted(&found.file_type()) {
        return Err(format!("it is {}, not a {wanted}", kind(found.file_type())));
    }
    match distrusted(path, &found) {
        Some(why) => Err(why),
        None => Ok(Some((handle, found))),
    }
}

fn distrusted(path: &Path, found: &Metadata) -> Option<String> {
    let harm = "could have anybody banned";
    let ours = rustix::process::geteuid().as_raw();
    if found.uid() != 0 && found.uid() != ours {
        return Some(format!("it belongs to user {}, who {harm}: chown it to root", found.uid()));
    }
    if found.mode() & 0o002 != 0 {
        return Some(format!("everybody may write to it, and {harm}: take that away (chmod o-w)"));
    }
    let dir = path.parent().unwrap_or(Path::new("/"));
    match fs::metadata(dir) {
        Ok(dir) if dir.mode() & 0o002 == 0 => None,
        Ok(_) => Some(format!(
            "everybody may write to {}, put another in its place, and {harm}: move it elsewhere",
            dir.display()
        )),
        Err(error) => Some(plain(&error)),
    }
}
