//! What became of a log while nobody looked: the files that a rotator put beside it, and the copies it made of it.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use crate::model::Timestamp;

use super::file::{Follower, OLD_FILES_MAX};
use super::identity::{HEAD_BYTES_MAX, Head, Identity, Position};
use super::open::open;
use super::rotated::{is_rotated, order};
use super::tail::{Tail, born, glimpse, written};
use super::ways;

/// How often the files beside a name are listed in one look while a rotator is at work.
const SCANS_MAX: usize = 10;

/// A file that is beside the name under another that a rotator gives.
struct Beside {
    path: PathBuf,
    inode: (u64, u64),
    /// When it was written to last, in nanoseconds since 1970.
    written: i64,
    /// It may hold what was never read, and not only as a copy.
    is_new: bool,
}

impl Follower {
    /// Opens the files of saved positions; which of them has the name is found out later.
    ///
    /// Without a fingerprint a reused inode number could be anybody's: those are left to [`Follower::open_missed`].
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

    /// Opens what a rotator put beside the name since it was last read: files that were never read, those that are
    /// `closed`, and copies of them. Each takes its place before the old files whose names say that they are younger,
    /// and before the one that was found `truncated`, if one was.
    ///
    /// A rotator that is at work now gives names from file to file under our eyes, so that a file may be seen under
    /// none: only two lists in a row that say the same are believed, and until there are such it is to be tried again.
    pub(super) fn open_missed(&mut self, truncated: Option<usize>, now: Timestamp) {
        self.unsettled = false;
        if self.before.since.is_none() && self.closed.is_empty() {
            return;
        }
        let known = self.old.len();
        let places: Vec<_> = ways(&self.path).into_iter().filter_map(|way| way.into_iter().next()).collect();
        let mut last = None;
        for _ in 0..SCANS_MAX {
            let beside = self.beside(&places, truncated.is_some());
            self.open_listed(&beside, now);
            let names: Vec<_> = beside.into_iter().map(|file| (file.path, file.inode)).collect();
            self.unsettled = last.as_ref() != Some(&names);
            last = Some(names);
            if !self.unsettled {
                break;
            }
        }
        let missed = self.old.split_off(known);
        self.put_in_order(missed, truncated.unwrap_or(known), &last.unwrap_or_default(), now);
    }

    fn open_listed(&mut self, beside: &[Beside], now: Timestamp) {
        // The copy of what was read last can have been begun before that was read.
        let since = self.before.since.unwrap_or(i64::MAX);
        let may_be_copy = |file: &&Beside| file.is_new || file.written >= since;
        for file in beside.iter().rev().filter(may_be_copy).take(OLD_FILES_MAX) {
            let is_open = self.old.iter().chain(&self.current).any(|tail| tail.is_inode(file.inode));
            let is_wanted = !is_open && (file.is_new || !self.closed.is_empty());
            if let Some(tail) = is_wanted.then(|| self.open_rotated(file, now)).flatten() {
                self.old.push_back(tail);
            }
        }
    }

    /// Puts missed files before those that are younger by the names in this list, and before the one at `end` of those
    /// that are open. So is the current one, where it is in the list: it has lost the name.
    fn put_in_order(
        &mut self,
        mut missed: VecDeque<Tail>,
        end: usize,
        list: &[(PathBuf, (u64, u64))],
        now: Timestamp,
    ) {
        let mut at = end;
        for (_, inode) in list.iter().rev() {
            let is_it = |tail: &Tail| tail.is_inode(*inode);
            if let Some(index) = self.old.iter().position(is_it) {
                at = at.min(index);
            } else if let Some(tail) = missed.iter().position(is_it).and_then(|index| missed.remove(index)) {
                self.old.insert(at, tail);
            } else if let Some(mut tail) = self.current.take_if(|tail| is_it(tail)) {
                tail.active = now;
                self.old.insert(at, tail);
            }
        }
        // What has lost its name again is older than what has one.
        missed.into_iter().for_each(|tail| self.old.insert(at, tail));
    }

    /// What a rotator put beside the name, oldest first.
    fn beside(&self, places: &[(PathBuf, OsString)], truncated: bool) -> Vec<Beside> {
        let mut beside = Vec::new();
        for (dir, name) in places {
            let entries = fs::read_dir(dir).into_iter().flatten().flatten();
            let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
            let names = names.filter(|other| name.to_str().is_some_and(|name| is_rotated(other, name)));
            beside.extend(names.filter_map(|name| {
                let path = dir.join(&name);
                let found = fs::symlink_metadata(&path).ok().filter(Metadata::is_file)?;
                // An inode that we know can hold what we do not: it was truncated before it was put aside.
                let is_known = self.closed.iter().any(|position| position.identity.inode == found.ino());
                let is_young = self.before.since.zip(born(&found)).is_some_and(|(since, born)| born >= since);
                // Somebody is about to copy into an empty one what we have open.
                let is_new = (is_known || is_young) && !(truncated && found.len() == 0);
                let inode = (found.dev(), found.ino());
                Some((order(&name), Beside { path, inode, written: written(&found), is_new }))
            }));
        }
        // With another name the current one need not have lost the first, which can be a link.
        if let Ok(found) = fs::metadata(&self.path) {
            beside.retain(|(_, file)| file.inode != (found.dev(), found.ino()));
        }
        beside.sort_by(|(a, _), (b, _)| a.cmp(b));
        beside.into_iter().map(|(_, file)| file).collect()
    }

    /// The file that was listed, unless it or what it is a copy of was read.
    fn open_rotated(&mut self, listed: &Beside, now: Timestamp) -> Option<Tail> {
        let file = open(&listed.path).ok()?;
        let mut head = [0; HEAD_BYTES_MAX];
        let found =
            glimpse(&file, &mut head).ok().filter(|found| (found.dev, found.inode) == listed.inode)?;
        let in_it = |position: &Position| match position.identity.head {
            Head::EMPTY => None,
            _ => position.found_in(&found).or_else(|| position.copied_to(&found)),
        };
        if let Some((index, position)) =
            self.closed.iter().enumerate().find_map(|(index, closed)| Some((index, in_it(closed)?)))
        {
            self.closed.remove(index);
            self.before.pass(position.identity.head);
            return (position.offset < found.size).then(|| Tail::new(file, position, now));
        }
        let is_read =
            |head: &Option<Head>| head.is_none_or(|head| !head.is_empty() && head.begins(found.head));
        let is_ours = self.own.contains(&found.inode);
        let known = !is_ours && self.others.get(&found.inode).is_some_and(is_read)
            || self.before.past.iter().any(|head| head.begins(found.head))
            || self.old.iter().chain(&self.current).any(|tail| tail.begins_like(found.head));
        // What was in the current file when it was truncated is older than others that are new: reading it tells.
        let is_next = listed.is_new && !known && !self.current.as_ref().is_some_and(Tail::is_truncated);
        is_next.then(|| Tail::new(file, Position { identity: Identity::of(&found), offset: 0 }, now))
    }

    /// The file of this position, if it is in the directory of the path or of a symbolic link's target.
    fn find_beside(&self, position: Position, now: Timestamp) -> Option<Tail> {
        if position.identity.head.is_empty() {
            return None;
        }
        ways(&self.path).iter().filter_map(|way| way.first()).find_map(|(dir, _)| {
            fs::read_dir(dir).ok()?.flatten().find_map(|entry| {
                let found = entry.metadata().ok()?;
                let is_candidate = found.is_file() && found.ino() == position.identity.inode;
                let file = is_candidate.then(|| open(&entry.path()).ok())??;
                let mut head = [0; HEAD_BYTES_MAX];
                let position = position.found_in(&glimpse(&file, &mut head).ok()?)?;
                Some(Tail::new(file, position, now))
            })
        })
    }
}
