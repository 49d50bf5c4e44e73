//! One open file that is read line by line, through truncation, until it is let go.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::UNIX_EPOCH;

use crate::model::Timestamp;

use super::identity::{Glimpse, HEAD_BYTES_MAX, Head, Identity, Position, Verdict};
use super::splitter::Splitter;
use super::{Line, Progress, What};

/// A regular file, open for reading, and how far it was read.
#[derive(Debug)]
pub(super) struct Tail {
    pub(super) file: File,
    pub(super) identity: Identity,
    splitter: Splitter,
    /// When it was opened, lost its name, or was last found to have grown.
    pub(super) active: Timestamp,
    /// Whether the last look found nothing unread, or could not read.
    pub(super) drained: bool,
    /// Whether it had no name left when nothing was unread.
    pub(super) unlinked: bool,
    /// The offset up to which it is read for now.
    pub(super) limit: u64,
}

/// What came of reading one file.
pub(super) enum Read {
    ToTheEnd,
    /// The budget was used up first.
    OutOfBudget,
    /// It was truncated: this is where we were in what is gone. The next read begins at its start.
    Truncated(Position),
}

/// What one call of `read` hands from file to file.
pub(super) struct Reading<'a> {
    pub(super) now: Timestamp,
    pub(super) left: usize,
    pub(super) fresh: bool,
    pub(super) sink: &'a mut dyn FnMut(Line<'_>),
    pub(super) buffer: Vec<u8>,
    pub(super) progress: Progress,
    pub(super) notices: Vec<What>,
}

impl Tail {
    /// Reads on from `position`, which the caller has found to be one of this file.
    pub(super) fn new(file: File, position: Position, now: Timestamp) -> Self {
        Tail {
            file,
            identity: position.identity,
            splitter: Splitter::new(position.offset),
            active: now,
            drained: false,
            unlinked: false,
            limit: u64::MAX,
        }
    }

    pub(super) fn position(&self) -> Position {
        Position { identity: self.identity, offset: self.splitter.delivered() }
    }

    /// How many bytes were written and not read yet, as far as fstat(2) tells.
    pub(super) fn behind(&self) -> u64 {
        self.size().saturating_sub(self.splitter.read())
    }

    pub(super) fn size(&self) -> u64 {
        self.file.metadata().map_or(0, |found| found.len())
    }

    pub(super) fn is_inode(&self, (dev, inode): (u64, u64)) -> bool {
        self.identity.is_inode(dev, inode)
    }

    /// Finds out how the file begins, where that is not known yet. Whether it became known.
    pub(super) fn learn(&mut self) -> bool {
        let mut head = [0; HEAD_BYTES_MAX];
        let is_unknown = self.identity.head.is_empty();
        if is_unknown && let Ok(found) = glimpse(&self.file, &mut head) {
            self.identity.head = Head::of(found.head);
        }
        is_unknown && !self.identity.head.is_empty()
    }

    /// Whether it was truncated since it was read.
    pub(super) fn is_truncated(&self) -> bool {
        let mut head = [0; HEAD_BYTES_MAX];
        let verdict =
            glimpse(&self.file, &mut head).map(|found| self.identity.compare(self.splitter.read(), &found));
        verdict.is_ok_and(|verdict| verdict == Verdict::Truncated)
    }

    /// Whether a file with these first bytes is a copy of what was read of this one, or of what is in it now, though
    /// it may have grown since, or not be whole yet.
    pub(super) fn begins_like(&self, copy: &[u8]) -> bool {
        let known = self.identity.head;
        let mut head = [0; HEAD_BYTES_MAX];
        let now = glimpse(&self.file, &mut head).map(|found| found.head).unwrap_or_default();
        let common = now.len().min(copy.len());
        !known.is_empty() && known.begins(copy) || common > 0 && now[..common] == copy[..common]
    }

    /// Reads to the end, or until the budget is used up, or until it is found to be truncated.
    pub(super) fn read(&mut self, reading: &mut Reading) -> io::Result<Read> {
        let result = self.read_within_budget(reading);
        // What cannot be read must not be kept open for it.
        self.drained |= result.is_err();
        result
    }

    fn read_within_budget(&mut self, reading: &mut Reading) -> io::Result<Read> {
        self.drained = false;
        while reading.left > 0 {
            let offset = self.splitter.read();
            let allowed = usize::try_from(self.limit.saturating_sub(offset)).unwrap_or(usize::MAX);
            let wanted = reading.buffer.len().min(reading.left).min(allowed);
            let count = match self.file.read_at(&mut reading.buffer[..wanted], offset) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other?,
            };
            // The look comes after the bytes: if the file still begins as it did, then they were read from the
            // file we know and not from one that was truncated and has regrown meanwhile.
            let head = self.identity.head.extended(offset, &reading.buffer[..count]);
            let known = Identity { head, ..self.identity };
            let mut head_buffer = [0; HEAD_BYTES_MAX];
            let found = glimpse(&self.file, &mut head_buffer)?;
            let verdict = known.compare(offset + count as u64, &found);
            if let Verdict::Truncated | Verdict::Replaced = verdict {
                let before = self.position();
                self.identity.head = Head::EMPTY;
                self.splitter = Splitter::new(0);
                return Ok(Read::Truncated(before));
            }
            // Also what is not read yet: the more is known of its beginning, the fewer files begin alike.
            self.identity = Identity { head: Head::of(found.head), ..known };
            if count == 0 {
                self.drained = verdict == Verdict::Same;
                self.unlinked = self.drained && found.links == 0;
                return Ok(Read::ToTheEnd);
            }
            self.active = reading.now;
            reading.deliver(&mut self.splitter, count);
        }
        Ok(Read::OutOfBudget)
    }
}

impl Reading<'_> {
    /// Hands on the lines that the first `count` bytes of the buffer complete.
    pub(super) fn deliver(&mut self, splitter: &mut Splitter, count: usize) {
        let Reading { buffer, sink, fresh, progress, .. } = self;
        let overlong = splitter.overlong();
        splitter.push(&buffer[..count], |text, _| {
            progress.lines += 1;
            sink(Line { text, fresh: *fresh, entry: None });
        });
        progress.overlong += splitter.overlong() - overlong;
        progress.bytes += count as u64;
        self.left -= count;
    }
}

/// What fstat(2) and the first bytes say about an open file.
pub(super) fn glimpse<'a>(file: &File, head: &'a mut [u8; HEAD_BYTES_MAX]) -> io::Result<Glimpse<'a>> {
    let found = file.metadata()?;
    let count = fill_at(file, head, 0)?;
    Ok(Glimpse {
        dev: found.dev(),
        inode: found.ino(),
        size: found.size(),
        links: found.nlink(),
        head: &head[..count],
    })
}

/// When a file was made, in nanoseconds since 1970, where the filesystem knows it (statx(2), STATX_BTIME).
pub(super) fn born(found: &Metadata) -> Option<i64> {
    let since = found.created().ok()?.duration_since(UNIX_EPOCH).ok()?;
    i64::try_from(since.as_nanos()).ok()
}

/// When it was last written to, in nanoseconds since 1970.
pub(super) fn written(found: &Metadata) -> i64 {
    found.mtime().saturating_mul(1_000_000_000).saturating_add(found.mtime_nsec())
}

/// Reads until the buffer is full or the file ends: a network filesystem may give less than it has.
pub(super) fn fill_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut count = 0;
    while count < buffer.len() {
        match file.read_at(&mut buffer[count..], offset + count as u64) {
            Ok(0) => break,
            Ok(more) => count += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(count)
}
