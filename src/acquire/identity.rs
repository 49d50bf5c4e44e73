//! Is this still the same file? Its device, its inode and a fingerprint of its first bytes say so.
#![forbid(unsafe_code)]

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// How many bytes at the beginning of a file its fingerprint covers at most.
pub const HEAD_BYTES_MAX: usize = 256;

/// A fingerprint of the first bytes of a file: 64-bit FNV-1a, which stays the same from one release to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// How many bytes are covered, at most [`HEAD_BYTES_MAX`].
    len: u16,
    hash: u64,
}

const FNV_OFFSET_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;

impl Head {
    pub const EMPTY: Head = Head { len: 0, hash: FNV_OFFSET_BASIS };

    /// The fingerprint of a file that begins with these bytes, of which no more than [`HEAD_BYTES_MAX`] count.
    pub fn of(bytes: &[u8]) -> Self {
        Head::EMPTY.extended(0, bytes)
    }

    /// The fingerprint with what `bytes`, read at `offset`, add to it; the same where they leave a gap.
    pub fn extended(self, offset: u64, bytes: &[u8]) -> Self {
        let mut head = self;
        let known = u64::from(self.len).checked_sub(offset).and_then(|known| usize::try_from(known).ok());
        let new = known.and_then(|known| bytes.get(known..)).unwrap_or_default();
        for byte in new.iter().take(HEAD_BYTES_MAX.saturating_sub(usize::from(self.len))) {
            head.hash = (head.hash ^ u64::from(*byte)).wrapping_mul(FNV_PRIME);
            head.len += 1;
        }
        head
    }

    pub fn is_empty(self) -> bool {
        self.len == 0
    }

    /// Whether a file that begins with these bytes begins with the ones that this covers.
    pub fn begins(self, bytes: &[u8]) -> bool {
        bytes.get(..usize::from(self.len)).is_some_and(|known| Head::of(known) == self)
    }
}

/// What tells a file from others that have had, or will have, its name or its inode number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub dev: u64,
    pub inode: u64,
    /// Covers at least the bytes that were read, up to its limit.
    pub head: Head,
}

/// One line per file to remember over a restart: every line before `offset` was delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    pub identity: Identity,
    /// In bytes from the beginning of the file; the beginning of a line.
    pub offset: u64,
}

/// Everything to remember of one followed name over a restart.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Positions {
    /// A position in each file that lines may still be read from, oldest first.
    pub open: Vec<Position>,
    /// How the last files began that were read to their end, or truncated: what begins so is a copy of them.
    pub past: VecDeque<Head>,
    /// When the file that had the name had last been written to when it was last seen to have it, in nanoseconds
    /// since 1970. What a rotator made later may not have been read.
    pub since: Option<i64>,
}

/// So many past beginnings are remembered of the files of one name that a rotator may have made since it was last read,
/// and so many of those before.
pub const PAST_MAX: usize = 128;
const PAST_KEPT: usize = 16;

impl Positions {
    /// Whether nothing was ever read.
    pub fn is_empty(&self) -> bool {
        self.open.is_empty() && self.past.is_empty()
    }

    /// All that a rotator made before this time was read, or is known.
    pub fn settle(&mut self, since: Option<i64>) {
        if self.since < since {
            self.since = since;
            self.past.drain(..self.past.len().saturating_sub(PAST_KEPT));
        }
    }

    /// Remembers a beginning, and forgets the oldest where there are too many.
    pub fn pass(&mut self, head: Head) {
        if !head.is_empty() && !self.past.contains(&head) {
            self.past.push_back(head);
            while self.past.len() > PAST_MAX {
                self.past.pop_front();
            }
        }
    }
}

/// A file as it is found now: what fstat(2) and its first bytes say.
#[derive(Clone, Copy, Debug)]
pub struct Glimpse<'a> {
    pub dev: u64,
    pub inode: u64,
    pub size: u64,
    /// How many names the file has; none once it is deleted and only kept by those who have it open.
    pub links: u64,
    /// The first [`HEAD_BYTES_MAX`] bytes, or all of a shorter file.
    pub head: &'a [u8],
}

/// How a file that is found relates to one that was read up to some offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The same file, and it ends where we are.
    Same,
    /// The same file, and it goes on.
    Grown,
    /// The same inode, but what we read is not in it any more: it is to be read from its start.
    Truncated,
    /// Another file.
    Replaced,
}

impl Identity {
    /// The identity of a file of which nothing was read.
    pub fn of(glimpse: &Glimpse) -> Self {
        Identity { dev: glimpse.dev, inode: glimpse.inode, head: Head::of(glimpse.head) }
    }

    /// Whether this is the inode, whatever is in it.
    pub fn is_inode(&self, dev: u64, inode: u64) -> bool {
        (self.dev, self.inode) == (dev, inode)
    }

    /// Compares what was read up to `offset` with what is found.
    ///
    /// A file that is as long as before but begins differently was truncated and has regrown (logrotate's
    /// `copytruncate`), or has been given a reused inode number; both begin anew. A file that was truncated and
    /// regrew beyond `offset` with the same first [`HEAD_BYTES_MAX`] bytes cannot be told from one that grew;
    /// the time in its first line prevents that.
    pub fn compare(&self, offset: u64, found: &Glimpse) -> Verdict {
        if !self.is_inode(found.dev, found.inode) {
            return Verdict::Replaced;
        }
        if found.size < offset || !self.head.begins(found.head) {
            return Verdict::Truncated;
        }
        if found.size == offset { Verdict::Same } else { Verdict::Grown }
    }
}

impl Position {
    /// The position in a file that is found, where that is the file it was saved for.
    ///
    /// Device numbers can change when a machine boots, so that an equal inode number with an equal beginning is
    /// enough, where there is a beginning to compare.
    pub fn found_in(&self, found: &Glimpse) -> Option<Position> {
        let dev = if self.identity.head.is_empty() { self.identity.dev } else { found.dev };
        let identity = Identity { dev, ..self.identity };
        match identity.compare(self.offset, found) {
            Verdict::Same | Verdict::Grown => Some(Position { identity, ..*self }),
            Verdict::Truncated | Verdict::Replaced => None,
        }
    }

    /// The position in a copy of the file, such as logrotate's `copytruncate` makes: in what begins alike.
    pub fn copied_to(&self, found: &Glimpse) -> Option<Position> {
        let head = self.identity.head;
        let is_copy = self.identity.inode != found.inode && !head.is_empty() && head.begins(found.head);
        is_copy.then(|| Position { identity: Identity { head, ..Identity::of(found) }, ..*self })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn glimpse(inode: u64, content: &[u8]) -> Glimpse<'_> {
        let head = &content[..content.len().min(HEAD_BYTES_MAX)];
        Glimpse { dev: 1, inode, size: content.len() as u64, links: 1, head }
    }

    #[test]
    fn a_short_file_is_known_again_after_it_grew() {
        let identity = Identity::of(&glimpse(7, b"first\n"));
        let grown = [&b"first\n"[..], &[b'x'; 1_000]].concat();
        assert_eq!(identity.compare(6, &glimpse(7, b"first\n")), Verdict::Same);
        assert_eq!(identity.compare(6, &glimpse(7, &grown)), Verdict::Grown);
    }

    #[test]
    fn a_truncated_file_is_known_even_when_it_has_regrown() {
        let identity = Identity::of(&glimpse(7, b"first\n"));
        for content in [&b""[..], b"first", b"FIRST\n", b"other and longer\n"] {
            assert_eq!(identity.compare(6, &glimpse(7, content)), Verdict::Truncated);
        }
        assert_eq!(identity.compare(7, &glimpse(7, b"first\n")), Verdict::Truncated);
    }

    #[test]
    fn another_inode_is_another_file_whatever_it_holds() {
        let identity = Identity::of(&glimpse(7, b"first\n"));
        assert_eq!(identity.compare(6, &glimpse(8, b"first\n")), Verdict::Replaced);
    }

    #[test]
    fn a_saved_position_survives_new_device_numbers_but_only_with_a_known_beginning() {
        let of = |content| Position { identity: Identity::of(&glimpse(7, content)), offset: 0 };
        let elsewhere = Glimpse { dev: 2, ..glimpse(7, b"first\nsecond\n") };
        assert_eq!(of(b"first\n").found_in(&elsewhere).map(|position| position.identity.dev), Some(2));
        assert_eq!(of(b"FIRST\n").found_in(&elsewhere), None);
        assert_eq!(of(b"").found_in(&elsewhere), None);
        assert!(of(b"").found_in(&Glimpse { dev: 1, ..elsewhere }).is_some());
    }

    #[test]
    fn a_fingerprint_can_be_made_in_steps_that_overlap() {
        let content: Vec<u8> = (0..=255).cycle().take(300).collect();
        let whole = Head::of(&content);
        assert_eq!(whole, Head::of(&content[..HEAD_BYTES_MAX]));
        assert_ne!(whole, Head::of(&content[..HEAD_BYTES_MAX - 1]));
        let steps = Head::of(&content[..10]).extended(4, &content[4..9]).extended(8, &content[8..]);
        assert_eq!(steps, whole);
        assert_eq!(Head::of(&content[..10]).extended(11, &content[11..]), Head::of(&content[..10]));
    }

    #[test]
    fn positions_outlive_the_process_and_lies_in_them_are_harmless() {
        let position = Position { identity: Identity::of(&glimpse(u64::MAX, b"first\n")), offset: 6 };
        let text = serde_json::to_string(&position).unwrap();
        assert_eq!(serde_json::from_str::<Position>(&text).unwrap(), position);
        // FNV-1a of "first\n", computed elsewhere: a change would lose every saved position.
        assert!(text.contains("\"hash\":12179381361560176241"), "{text}");
        let lie = text.replace("\"len\":6", "\"len\":65535").replace("\"offset\":6", "\"offset\":0");
        let lie: Position = serde_json::from_str(&lie).unwrap();
        assert_eq!(lie.found_in(&glimpse(u64::MAX, b"first\n")), None);
        assert_eq!(lie.identity.head.extended(0, b"more"), lie.identity.head);
    }
}
