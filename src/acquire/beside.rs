//! What became of a log while nobody looked: the files that a rotator put beside it, and the copies it made of it.

use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::model::Timestamp;

use super::file::{Follower, OLD_FILES_MAX};
use super::identity::{HEAD_BYTES_MAX, Head, Identity, Position};
use super::open::open;
use super::rotated::{is_rotated, order};
use super::tail::{Tail, born, glimpse, written};
use super::ways;

/// How often the files beside a name are listed while they change.
const SCANS_MAX: usize = 10;

impl Follower {
    /// Opens the files of saved positions; which of them has the name is found out later.
    pub(super) fn reopen_old(&mut self, now: Timestamp) {
        for position in std::mem::take(&mut self.closed) {
            match self.find_beside(position, now) {
                Some(tail) => {
                    let is_it = |old: &&mut Tail| old.identity.inode == tail.identity.inode;
                    match self.old.iter_mut().find(is_it) {
                        None => self.old.push_back(tail),
                        Some(old) if old.position().offset < position.offset => *old = tail,
                        Some(_) => {}
                    }
                }
                None => self.closed.push(position),
            }
        }
    }

    /// Opens what a rotator put beside the name since it was last read: files that were never read, and copies of
    /// those `gone`, which are read on from there and leave `gone`. Each takes its place before the old files whose
    /// names say that they are younger, and before the one that was found `truncated`, if one was.
    pub(super) fn open_missed(&mut self, gone: &mut Vec<Position>, truncated: Option<usize>, now: Timestamp) {
        if self.before.since.is_none() {
            return;
        }
        let younger = truncated.map_or(0, |index| self.old.len() - index);
        let places: Vec<_> = ways(&self.path).into_iter().filter_map(|way| way.into_iter().next()).collect();
        let changed = || -> Vec<_> {
            places.iter().map(|(dir, _)| fs::metadata(dir).ok().map(|dir| written(&dir))).collect()
        };
        // A rotator that is at work now gives names from file to file under our eyes.
        for _ in 0..SCANS_MAX {
            let before = changed();
            let (old, mut at) = (self.old.len(), self.old.len() - younger);
            for (_, path) in self.beside(&places, gone).into_iter().rev().take(OLD_FILES_MAX) {
                let inode = fs::symlink_metadata(&path).map(|found| (found.dev(), found.ino()));
                let is_it =
                    |tail: &Tail| inode.as_ref().is_ok_and(|(dev, ino)| tail.identity.is_inode(*dev, *ino));
                if let Some(index) = self.old.iter().position(is_it) {
                    at = at.min(index);
                } else if let Some(tail) = self.open_rotated(&path, gone, truncated.is_some(), now) {
                    self.old.insert(at, tail);
                }
            }
            if self.old.len() == old && changed() == before {
                break;
            }
        }
        gone.iter().for_each(|position| self.before.pass(position.identity.head));
    }

    /// The files beside the name that a rotator may have put there since it was last read, oldest first.
    fn beside(&self, places: &[(PathBuf, OsString)], gone: &[Position]) -> Vec<(impl Ord + use<>, PathBuf)> {
        let mut beside = Vec::new();
        for (dir, name) in places {
            let entries = fs::read_dir(dir).into_iter().flatten().flatten();
            let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
            let names = names.filter(|other| name.to_str().is_some_and(|name| is_rotated(other, name)));
            beside.extend(names.filter_map(|name| {
                let found = fs::symlink_metadata(dir.join(&name)).ok().filter(Metadata::is_file)?;
                let is_open = self.old.iter().any(|tail| tail.identity.is_inode(found.dev(), found.ino()));
                // An inode that we know can hold what we do not: it was truncated before it was put aside.
                let is_known = gone.iter().any(|position| position.identity.inode == found.ino());
                let is_young = self.before.since.zip(born(&found)).is_some_and(|(since, born)| born >= since);
                (is_open || is_known || is_young).then(|| (order(&name), dir.join(name)))
            }));
        }
        beside.sort();
        beside
    }

    /// The file, unless it or what it is a copy of was read.
    fn open_rotated(
        &mut self,
        path: &Path,
        gone: &mut Vec<Position>,
        truncated: bool,
        now: Timestamp,
    ) -> Option<Tail> {
        let file = open(path).ok()?;
        let mut head = [0; HEAD_BYTES_MAX];
        let found = glimpse(&file, &mut head).ok()?;
        if let Some(index) = gone.iter().position(|position| position.copied_to(&found).is_some()) {
            let position = gone.remove(index);
            self.before.pass(position.identity.head);
            let position = position.copied_to(&found).filter(|position| position.offset < found.size)?;
            return Some(Tail::new(file, position, now));
        }
        if truncated && found.size == 0 {
            // Somebody is about to copy into it what we have open.
            return None;
        }
        // Now, and not before the copy was looked at: it may be one of what came into a file since it was read.
        self.old.iter_mut().chain(&mut self.current).for_each(Tail::learn);
        let is_this = |tail: &Tail| tail.identity.is_inode(found.dev, found.inode);
        let begins_so = |tail: &Tail| !tail.identity.head.is_empty() && tail.identity.head.begins(found.head);
        let mut open = self.old.iter().chain(&self.current);
        let is_gone = |gone: &Position| !gone.identity.head.is_empty() && gone.found_in(&found).is_some();
        let is_read =
            |head: &Option<Head>| head.is_none_or(|head| !head.is_empty() && head.begins(found.head));
        let is_ours = gone.iter().any(|position| position.identity.inode == found.inode);
        let known = gone.iter().any(is_gone)
            || !is_ours && self.others.get(&found.inode).is_some_and(is_read)
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
}
