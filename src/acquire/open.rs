//! Opening a log in a folder that others may write to, without being led to a file that is none of theirs.

use std::fs::{self, File, FileType, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;

use crate::model::plain;

use super::{LINKS_MAX, What, is_missing};

/// Why a path is not read.
#[derive(Debug)]
pub(super) enum Refused {
    /// Nothing has the name, or nothing had it for a moment.
    Missing,
    /// In words for people.
    Because(What),
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Self {
        if is_missing(&error) { Refused::Missing } else { Refused::Because(What::Unreadable(plain(&error))) }
    }
}

impl From<Errno> for Refused {
    fn from(error: Errno) -> Self {
        io::Error::from(error).into()
    }
}

/// Opens a regular file for reading, and nothing else: to open a FIFO or a device can have effects.
///
/// A symbolic link on the way is followed where it belongs to root, to us, or to the owner of the file that it leads
/// to, and a file with several names is read where the directory belongs to root, to us, or to the file's owner. So
/// nobody who may write to a directory of logs can have us read a file of others: the same thought as
/// fs.protected_symlinks and fs.protected_hardlinks of proc_sys_fs(5), but in every directory.
pub(super) fn open(path: &Path) -> Result<File, Refused> {
    let (real, links) = resolve(path)?;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    // What was resolved has no link in it, and must have none now: somebody may be changing it meanwhile.
    let place = match openat2(CWD, &real, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS) {
        Err(Errno::LOOP) => return Err(Refused::Missing),
        other => File::from(other?),
    };
    let found = place.metadata()?;
    if !found.is_file() {
        return Err(Refused::Because(What::NotAFile(kind(found.file_type()))));
    }
    let trusted = |uid: u32| uid == 0 || uid == found.uid() || uid == rustix::process::geteuid().as_raw();
    if let Some((link, uid)) = links.into_iter().find(|(_, uid)| !trusted(*uid)) {
        return Err(Refused::Because(What::Refused(format!(
            "the symbolic link {} belongs to user {uid} and leads to a file of user {}: give the link to root, or \
             name that file itself",
            link.display(),
            found.uid()
        ))));
    }
    let dir = real.parent().unwrap_or(Path::new("/"));
    if found.nlink() > 1 && !trusted(fs::metadata(dir)?.uid()) {
        return Err(Refused::Because(What::Refused(format!(
            "it is one of several names of a file of user {}, and others may put names into {}",
            found.uid(),
            dir.display()
        ))));
    }
    // By its descriptor: what was looked at is what is opened. Whoever holds a lease on the file must not hold us.
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let place = format!("/proc/self/fd/{}", place.as_raw_fd());
    Ok(OpenOptions::new().read(true).custom_flags(flags).open(place)?)
}

/// The path without symbolic links, and those that led there with their owners.
fn resolve(path: &Path) -> Result<(PathBuf, Vec<(PathBuf, u32)>), Refused> {
    let mut links = Vec::new();
    let mut real = PathBuf::from("/");
    let mut rest: Vec<PathBuf> = steps(path);
    while let Some(step) = rest.pop() {
        if step == Path::new("/") {
            real = step;
            continue;
        }
        if step == Path::new("..") {
            real.pop();
            continue;
        }
        let next = real.join(step);
        let found = fs::symlink_metadata(&next)?;
        if !found.is_symlink() {
            real = next;
            continue;
        }
        if links.len() == LINKS_MAX {
            return Err(Errno::LOOP.into());
        }
        rest.extend(steps(&fs::read_link(&next)?));
        links.push((next, found.uid()));
    }
    Ok((real, links))
}

/// What is to be walked, the first step last.
fn steps(path: &Path) -> Vec<PathBuf> {
    let walked = path.components().filter(|step| *step != Component::CurDir);
    walked.map(|step| PathBuf::from(step.as_os_str())).rev().collect()
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
