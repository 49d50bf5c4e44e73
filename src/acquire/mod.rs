//! Bytes to lines: files are followed through rotation, and one inotify instance says which to look at again.
//!
//! A loop that follows files owns one [`Watch`] and one [`file::Follower`] per source. It reads each follower
//! once, then waits for the watch to become readable, asks [`Watch::wake`] who must look again, and reads those.
//! After every read it calls [`Watch::aim`], and reads again where that says [`Aimed::LookAgain`], because what
//! was written before the watch was set raised no event. Followers that [`Watch::needs_polling`] names are read
//! once a second; [`file::Follower::poll_timeout`] says when one has to be read though nothing happened.
//!
//! [`stream::Stream`]s are read the same way, and [`ready::Ready`] is to them what the watch is to files.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask};
use thiserror::Error;

use crate::model::{Entry, plain};

use self::glob::{Wanted, Way};
use files::Files;

pub mod archive;
mod beside;
pub mod bisect;
mod command;
mod datagram;
pub mod export;
mod fifo;
pub mod file;
pub mod files;
pub mod glob;
pub mod identity;
pub mod journal;
pub mod journalmatch;
mod nflog;
mod open;
mod packet;
pub mod place;
pub mod ready;
pub mod rotated;
pub mod splitter;
mod stdin;
pub mod stream;
mod tail;

/// What is read: the number of a source, and the number of a file among those of one pattern, which is 0 elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceId(pub u32, pub u32);

/// One line as it was found, without its newline and carriage return, or one entry of a journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// At most [`splitter::LINE_BYTES_MAX`] bytes, none where it was longer; any bytes, but a newline only in an entry.
    pub text: &'a [u8],
    /// Written after we had once read everything, so that it is about now; otherwise it is backlog.
    pub fresh: bool,
    /// The entry whose message it is.
    pub entry: Option<Entry<'a>>,
}

/// What one read came to.
#[must_use]
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Progress {
    pub lines: u64,
    pub bytes: u64,
    /// Lines that were emptied as longer than [`splitter::LINE_BYTES_MAX`].
    pub overlong: u64,
    /// Whether the budget ended before the lines did, so that there is more to read at once.
    pub more: bool,
    /// What changed since the last read, in that order, for the log.
    pub notices: Vec<Notice>,
}

/// What happened to a followed path, in words for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    pub path: PathBuf,
    pub what: What,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// There is a readable file now where there was none.
    Appeared,
    /// Another file took the name; the old one is read to its end.
    Rotated,
    /// The file was emptied; what was not read of it is lost.
    Truncated,
    /// There is nothing of that name; it is waited for.
    Missing,
    /// The file that was read before the restart is not there any more: lines may have been missed.
    Lost,
    /// The journal lost the entry that was read last, or cannot give what follows it.
    Gap,
    /// Something of this kind has the name; it is not opened, and a file is waited for.
    NotAFile(&'static str),
    /// More files match a pattern than this, which are followed.
    TooMany(usize),
    /// Somebody who may write to its directory had us read a file of others; it is not opened. In words.
    Refused(String),
    /// The system's words for why it cannot be read; tried again at the next event.
    Unreadable(String),
    /// The kernel dropped so many lines of a stream that were not read in time.
    Shed(u64),
    /// A line came over the network from somebody who is not of this host.
    Stranger(IpAddr),
    /// What a program wrote to its standard error.
    Says(String),
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        match &self.what {
            What::Appeared => write!(f, "{path} appeared: reading it"),
            What::Rotated => write!(f, "{path} was rotated: reading the new file after the rest of the old"),
            What::Truncated => write!(f, "{path} was truncated: reading it from its start"),
            What::Missing => write!(f, "{path} does not exist: waiting for it"),
            What::Lost => {
                write!(f, "{path} is not the file that was read before, which is gone: lines may be missing")
            }
            What::Gap => write!(f, "the {path} does not go on where it was left: entries may be missing"),
            What::NotAFile(kind) => write!(f, "cannot read {path}: it is {kind}, not a file"),
            What::TooMany(most) => {
                write!(f, "{path}: only the {most} files that were written to last are read: more match")
            }
            What::Refused(reason) => write!(f, "not reading {path}: {reason}"),
            What::Unreadable(reason) => write!(f, "cannot read {path}: {reason}"),
            What::Shed(1) => write!(f, "{path}: 1 line came faster than it could be read, and was lost"),
            What::Shed(lines) => {
                write!(f, "{path}: {lines} lines came faster than they could be read, and were lost")
            }
            What::Stranger(addr) => {
                write!(f, "{path}: refused lines from {addr}: only this host may write here")
            }
            What::Says(text) => write!(f, "{path} says: {text}"),
        }
    }
}

/// Why changes to a file cannot be waited for.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Blind {
    #[error("cannot watch {}: {reason}; looking at it once a second", path.display())]
    Refused { path: PathBuf, reason: String },
    #[error("{} is on a network or overlay filesystem, which need not tell of changes; looking at it once a second", path.display())]
    Remote { path: PathBuf },
}

/// What came of aiming the watch at a follower's files.
#[must_use]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Aimed {
    /// Nothing to do: everything was watched already, or the follower still needs polling.
    Unchanged,
    /// Something new is watched: what happened to it before is to be read now.
    LookAgain,
    /// From now on the follower needs polling; said once.
    Blind(Blind),
}

/// Who must look again.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Woken {
    pub sources: BTreeSet<SourceId>,
    /// Events were lost (IN_Q_OVERFLOW), so that all must look again; `sources` has them all.
    pub overflowed: bool,
}

/// One inotify(7) instance for all followers; readable when one of them must look again.
///
/// Watched are the open files themselves and, by name, every directory on the way to them, also through symbolic
/// links, so that a path can appear, vanish or be replaced at any level. Other names in those directories wake
/// nobody up.
#[derive(Debug)]
pub struct Watch {
    inotify: Inotify,
    aims: BTreeMap<SourceId, Aim>,
    spots: BTreeMap<i32, Spot>,
}

/// What is watched for one source.
#[derive(Debug, Default)]
struct Aim {
    spots: BTreeSet<i32>,
    /// Device and inode of the open files when it was aimed.
    files: Vec<(u64, u64)>,
    /// Something on the way to the file changed since.
    stale: bool,
    blind: bool,
}

/// One watched inode, and who cares for what in it.
#[derive(Debug)]
struct Spot {
    descriptor: WatchDescriptor,
    wanted: BTreeSet<(SourceId, Wanted)>,
}

/// A file that is read, by device and inode.
type OpenFile<'a> = ((u64, u64), BorrowedFd<'a>);

const EVENT_BUFFER_BYTES: usize = 4096;
/// How many symbolic links are followed on the way to a file: path_resolution(7) has the same limit.
const LINKS_MAX: usize = 40;

impl Watch {
    /// # Errors
    /// EMFILE: the user has too many inotify instances (fs.inotify.max_user_instances) or open files. Followers
    /// can then be polled instead.
    pub fn new() -> io::Result<Self> {
        Ok(Watch { inotify: Inotify::init()?, aims: BTreeMap::new(), spots: BTreeMap::new() })
    }

    /// Watches what this follower has open and waits for. To be called after each read: it costs nothing where
    /// nothing changed.
    pub fn aim(&mut self, id: SourceId, follower: &file::Follower) -> Aimed {
        let ways = || ways(follower.path()).into_iter().map(named).collect();
        self.aim_at(id, follower.path(), &follower.open_files().collect::<Vec<_>>(), ways)
    }

    /// Watches who has this name, and nothing of what is written to it.
    pub fn aim_at_name(&mut self, id: SourceId, path: &Path) -> Aimed {
        self.aim_at(id, path, &[], || ways(path).into_iter().map(named).collect())
    }

    /// Watches where names that match can come and go; the files that have them are aimed at one by one. To be called
    /// after each look.
    pub fn aim_at_names(&mut self, id: SourceId, files: &Files) -> Aimed {
        self.aim_at(id, &files.glob().path(), &[], || files.ways().to_vec())
    }

    fn aim_at(
        &mut self,
        id: SourceId,
        path: &Path,
        open: &[OpenFile<'_>],
        ways: impl FnOnce() -> Vec<Way>,
    ) -> Aimed {
        let files: Vec<_> = open.iter().map(|(inode, _)| *inode).collect();
        let last = self.aims.remove(&id).unwrap_or_default();
        if !last.spots.is_empty() && !last.stale && !last.blind && last.files == files {
            self.aims.insert(id, last);
            return Aimed::Unchanged;
        }
        for spot in &last.spots {
            if let Some(spot) = self.spots.get_mut(spot) {
                spot.wanted.retain(|(other, _)| *other != id);
            }
        }
        let mut spots = BTreeSet::new();
        let blind = self.add_all(id, path, open, &ways(), &mut spots).err();
        self.remove_unwanted(&last.spots);
        let news = match blind.clone() {
            Some(reason) if !last.blind => Aimed::Blind(reason),
            _ if spots.is_subset(&last.spots) => Aimed::Unchanged,
            _ => Aimed::LookAgain,
        };
        self.aims.insert(id, Aim { spots, files, stale: false, blind: blind.is_some() });
        news
    }

    /// Watches nothing more for this source.
    pub fn forget(&mut self, id: SourceId) {
        let Some(aim) = self.aims.remove(&id) else { return };
        for spot in &aim.spots {
            if let Some(spot) = self.spots.get_mut(spot) {
                spot.wanted.retain(|(other, _)| *other != id);
            }
        }
        self.remove_unwanted(&aim.spots);
    }

    /// Takes all events that wait; never blocks. To be called when the watch is readable.
    pub fn wake(&mut self) -> io::Result<Woken> {
        let mut woken = Woken::default();
        let mut buffer = [0; EVENT_BUFFER_BYTES];
        loop {
            let events = match self.inotify.read_events(&mut buffer) {
                Ok(events) => events,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(woken),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            for event in events {
                if event.mask.contains(EventMask::Q_OVERFLOW) {
                    woken.overflowed = true;
                    woken.sources.extend(self.aims.keys());
                    self.aims.values_mut().for_each(|aim| aim.stale = true);
                    continue;
                }
                let number = event.wd.get_watch_descriptor_id();
                self.handle_event(number, event.mask, event.name, &mut woken.sources);
            }
        }
    }

    /// Whether changes to this follower's files raise no events, so that it is to be read once a second.
    pub fn needs_polling(&self, id: SourceId) -> bool {
        self.aims.get(&id).is_none_or(|aim| aim.blind)
    }

    fn handle_event(
        &mut self,
        number: i32,
        mask: EventMask,
        name: Option<&OsStr>,
        woken: &mut BTreeSet<SourceId>,
    ) {
        let Some(spot) = self.spots.get(&number) else { return };
        // Every event of the file itself, but of a directory only those of the name on the way or of itself.
        let concerned =
            |wanted: &Wanted| *wanted == Wanted::Itself || name.is_none_or(|name| wanted.matches(name));
        for (id, wanted) in spot.wanted.iter().filter(|(_, wanted)| concerned(wanted)) {
            woken.insert(*id);
            if let Some(aim) = self.aims.get_mut(id) {
                aim.stale |= *wanted != Wanted::Itself || mask.contains(EventMask::IGNORED);
            }
        }
        // The kernel has removed this watch because its inode is gone.
        if mask.contains(EventMask::IGNORED) {
            self.spots.remove(&number);
        }
    }

    fn add_all(
        &mut self,
        id: SourceId,
        path: &Path,
        open: &[OpenFile<'_>],
        ways: &[Way],
        spots: &mut BTreeSet<i32>,
    ) -> Result<(), Blind> {
        let mask = WatchMask::MODIFY | WatchMask::ATTRIB | WatchMask::MOVE_SELF | WatchMask::DELETE_SELF;
        let refused = |path: &Path, error: &io::Error| Blind::Refused {
            path: path.to_owned(),
            reason: watch_reason(error),
        };
        for (_, fd) in open {
            // By descriptor, not by name: what is watched is what is read, whoever has the name by now.
            let number =
                self.add(Path::new(&format!("/proc/self/fd/{}", fd.as_raw_fd())), mask, (id, Wanted::Itself));
            spots.insert(number.map_err(|error| refused(path, &error))?);
        }
        let mask = WatchMask::ONLYDIR
            | WatchMask::CREATE
            | WatchMask::DELETE
            | WatchMask::MOVE
            | WatchMask::ATTRIB
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF;
        let mut remote = false;
        for way in ways {
            let mut nearest = true;
            for (dir, wanted) in way {
                match self.add(dir, mask, (id, wanted.clone())) {
                    Ok(number) => spots.insert(number),
                    Err(error) if is_missing(&error) => continue,
                    // A directory that may be passed through but not listed; nearer ones are watched.
                    Err(error) if !nearest && error.kind() == io::ErrorKind::PermissionDenied => continue,
                    Err(error) => return Err(refused(dir, &error)),
                };
                remote |= std::mem::take(&mut nearest) && is_remote(dir);
            }
        }
        if remote { Err(Blind::Remote { path: path.to_owned() }) } else { Ok(()) }
    }

    fn add(&mut self, path: &Path, mask: WatchMask, wanted: (SourceId, Wanted)) -> io::Result<i32> {
        let descriptor = self.inotify.watches().add(path, mask)?;
        let number = descriptor.get_watch_descriptor_id();
        let spot = self.spots.entry(number).or_insert(Spot { descriptor, wanted: BTreeSet::new() });
        spot.wanted.insert(wanted);
        Ok(number)
    }

    fn remove_unwanted(&mut self, candidates: &BTreeSet<i32>) {
        for number in candidates {
            if self.spots.get(number).is_some_and(|spot| spot.wanted.is_empty())
                && let Some(spot) = self.spots.remove(number)
            {
                // Refused only where the kernel has removed it itself by now.
                let _ = self.inotify.watches().remove(spot.descriptor);
            }
        }
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}

/// For the path and for each symbolic link it leads through: the directories above it, nearest first, each with
/// the name that is looked up in it.
fn ways(path: &Path) -> Vec<Vec<(PathBuf, OsString)>> {
    let mut ways = Vec::new();
    let mut path = path.to_owned();
    for _ in 0..=LINKS_MAX {
        let steps = path.ancestors();
        let steps = steps.map_while(|at| Some((at.parent()?.to_owned(), at.file_name()?.to_owned())));
        ways.push(steps.collect());
        let Ok(target) = fs::read_link(&path) else { break };
        path = path.parent().unwrap_or(Path::new("/")).join(target);
    }
    ways
}

fn named(way: Vec<(PathBuf, OsString)>) -> Way {
    way.into_iter().map(|(dir, name)| (dir, Wanted::Name(name))).collect()
}

/// Whether nothing has that name, be it that a directory on the way is missing or is not one.
fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// Whether files of this directory's filesystem can change and inotify(7) say nothing: others write to a network
/// filesystem, and what is written to a layer of an overlay is no event of the whole (Documentation/filesystems/
/// overlayfs.rst of the kernel). What is done here is an event all the same, so that they are watched as well.
fn is_remote(dir: &Path) -> bool {
    // statfs(2) and linux/magic.h: 9P, AFS, Ceph, CIFS, FUSE, NFS, SMB, SMB2, overlayfs.
    const REMOTE: [u32; 9] = [
        0x0102_1997,
        0x5346_414f,
        0x00c3_6400,
        0xff53_4d42,
        0x6573_5546,
        0x6969,
        0x517b,
        0xfe53_4d42,
        0x794c_7630,
    ];
    rustix::fs::statfs(dir).is_ok_and(|found| REMOTE.contains(&(found.f_type as u32)))
}

/// As [`plain`], but inotify_add_watch(2) says ENOSPC where no disk is full.
fn watch_reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::StorageFull => "the limit fs.inotify.max_user_watches is reached".to_owned(),
        _ => plain(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_the_systems_words_without_its_numbers() {
        let of = |errno: rustix::io::Errno| io::Error::from(errno);
        assert_eq!(plain(&of(rustix::io::Errno::ACCESS)), "permission denied");
        assert_eq!(plain(&of(rustix::io::Errno::IO)), "input/output error");
        let refused = Blind::Refused {
            path: "/var/log/auth.log".into(),
            reason: watch_reason(&of(rustix::io::Errno::NOSPC)),
        };
        let text = "cannot watch /var/log/auth.log: the limit fs.inotify.max_user_watches is reached; looking at it \
                    once a second";
        assert_eq!(refused.to_string(), text);
    }

    #[test]
    fn a_way_leads_up_to_the_root_and_through_links() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        std::os::unix::fs::symlink("../b/log", dir.join("link")).unwrap();
        let ways = ways(&dir.join("link"));
        assert_eq!(ways.len(), 2);
        assert_eq!(ways[0].first(), Some(&(dir.clone(), "link".into())));
        assert_eq!(ways[0].len(), dir.components().count());
        assert_eq!(ways[0].last().map(|(top, _)| top.as_path()), Some(Path::new("/")));
        assert_eq!(ways[1].first(), Some(&(dir.join("../b"), "log".into())));
    }
}
