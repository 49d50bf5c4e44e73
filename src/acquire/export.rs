//! The journal's export format (systemd.io/JOURNAL_EXPORT_FORMATS), taken apart as it comes.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::ops::Range;

use super::splitter::LINE_BYTES_MAX;
use crate::model::{Entry, Timestamp};

/// The longest field that is kept, in bytes; longer ones are missing from their entry.
pub const FIELD_BYTES_MAX: usize = LINE_BYTES_MAX;
/// The most that is kept of an entry, in bytes with the names; what follows is missing from it.
pub const ENTRY_BYTES_MAX: usize = 256 * 1024;
/// The most fields that are kept of an entry: as many as journald(8) takes.
const FIELDS_MAX: usize = 1024;
/// The journal refuses longer names.
const NAME_BYTES_MAX: usize = 64;
/// The field that every entry begins with.
const FIRST: &[u8] = b"__CURSOR";

/// What comes is not the export format. Nothing that follows can be trusted: an end that is found in the middle of
/// a text may be what its writer wants to be taken for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// The fields of one entry. A name may come several times.
#[derive(Debug, Default)]
pub struct Fields {
    bytes: Vec<u8>,
    places: Vec<(Range<usize>, Range<usize>)>,
    /// Fields that were too long or too many.
    pub dropped: u64,
}

impl Fields {
    /// The first value of a field.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.values(name).next()
    }

    pub fn values<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        let places =
            self.places.iter().filter(move |(known, _)| &self.bytes[known.clone()] == name.as_bytes());
        places.map(|(_, value)| &self.bytes[value.clone()])
    }

    /// What rules see of an entry that the journal took at this time; none where it has no message.
    pub fn entry(&self, at: Timestamp) -> Option<Entry<'_>> {
        let get = |name| self.get(name).unwrap_or_default();
        let program = self.get("SYSLOG_IDENTIFIER").or(self.get("_COMM")).unwrap_or_default();
        let contained = self.get("CONTAINER_NAME").is_some();
        let message = self.get("MESSAGE")?;
        Some(Entry { host: get("_HOSTNAME"), program, pid: get("_PID"), message, contained, at })
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.places.clear();
        self.dropped = 0;
    }

    /// Room for this many more bytes, or the field is counted as dropped.
    fn has_room(&mut self, bytes: usize) -> bool {
        let fits = bytes <= FIELD_BYTES_MAX
            && self.bytes.len() + NAME_BYTES_MAX + bytes <= ENTRY_BYTES_MAX
            && self.places.len() < FIELDS_MAX;
        self.dropped += u64::from(!fits);
        fits
    }

    fn add(&mut self, name: &[u8], value: &[u8]) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(name);
        self.bytes.extend_from_slice(value);
        let middle = start + name.len();
        self.places.push((start..middle, middle..self.bytes.len()));
    }
}

/// Knows which entries are pieces of a line that was too long for who wrote the journal: journald(8) at `LineMax=`,
/// container engines at some KiB. A client can have a line broken where it likes, so that a piece looks like a line.
#[derive(Debug, Default)]
pub struct Pieces {
    /// Whose lines go on in their next entry.
    open: BTreeSet<Vec<u8>>,
}

/// The most lines that are known to be unfinished.
const OPEN_MAX: usize = 4096;

impl Pieces {
    /// Whether this entry is a whole line or message. To be asked of every entry.
    pub fn is_whole(&mut self, entry: &Fields) -> bool {
        let get = |name| entry.get(name).unwrap_or_default();
        // systemd.journal-fields(7), and what dockerd and conmon write.
        let goes_on = matches!(get("_LINE_BREAK"), b"line-max" | b"pid-change")
            || get("CONTAINER_PARTIAL_MESSAGE") == b"true";
        let stream = ["_STREAM_ID", "CONTAINER_ID_FULL", "CONTAINER_NAME", "PRIORITY"].map(get).join(&b'\n');
        let is_rest = self.open.remove(&stream) || entry.get("CONTAINER_PARTIAL_LAST").is_some();
        if goes_on {
            if self.open.len() == OPEN_MAX {
                self.open.pop_first();
            }
            self.open.insert(stream);
        }
        !goes_on && !is_rest
    }
}

/// Takes a stream apart, holding no more than one entry and one line of it.
#[derive(Debug, Default)]
pub struct Export {
    state: State,
    /// The beginning of a line whose end has not come, or the binary value that is being read.
    held: Vec<u8>,
    entry: Fields,
    /// Entries that broke off, as journalctl(1) leaves those which it cannot read to their end.
    pub broken: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum State {
    /// In a line: `NAME=VALUE`, or `NAME` alone before a binary value, or nothing at the end of an entry.
    #[default]
    Line,
    /// In a line that is too long to be kept.
    LongLine,
    /// In the eight bytes that say how long the value of this field is.
    Length { name: Vec<u8> },
    /// In a binary value and the newline after it, of which so many bytes are to come.
    Value { name: Vec<u8>, left: u64, kept: bool },
}

impl Export {
    /// Takes the next bytes, and hands on each entry that they complete.
    pub fn feed(&mut self, mut bytes: &[u8], mut entry: impl FnMut(&Fields)) -> Result<(), Malformed> {
        while !bytes.is_empty() {
            let used = match &self.state {
                State::Line | State::LongLine => self.line(bytes, &mut entry)?,
                State::Length { .. } => self.length(bytes),
                State::Value { .. } => self.value(bytes)?,
            };
            bytes = &bytes[used..];
        }
        Ok(())
    }

    fn line(&mut self, bytes: &[u8], entry: &mut impl FnMut(&Fields)) -> Result<usize, Malformed> {
        let end = memchr::memchr(b'\n', bytes);
        let piece = &bytes[..end.unwrap_or(bytes.len())];
        if self.state == State::Line {
            self.held.extend_from_slice(piece);
            if self.held.len() > NAME_BYTES_MAX + 1 + FIELD_BYTES_MAX {
                if name_of(&self.held)? == FIRST || self.entry.places.is_empty() {
                    return Err(Malformed);
                }
                self.held.clear();
                self.entry.dropped += 1;
                self.state = State::LongLine;
            }
        }
        let Some(end) = end else { return Ok(piece.len()) };
        if self.state == State::LongLine {
            self.state = State::Line;
            return Ok(end + 1);
        }
        let line = std::mem::take(&mut self.held);
        let result = self.handle_line(&line, entry);
        self.held = line;
        self.held.clear();
        result.map(|()| end + 1)
    }

    fn handle_line(&mut self, line: &[u8], entry: &mut impl FnMut(&Fields)) -> Result<(), Malformed> {
        if line.is_empty() {
            // Blank lines between entries are allowed.
            if !self.entry.places.is_empty() {
                entry(&self.entry);
                self.entry.clear();
            }
            return Ok(());
        }
        let name = name_of(line)?;
        if name == FIRST && !self.entry.places.is_empty() {
            self.broken += 1;
            self.entry.clear();
        }
        if self.entry.places.is_empty() && name != FIRST {
            return Err(Malformed);
        }
        match line.get(name.len() + 1..) {
            None => self.state = State::Length { name: name.to_owned() },
            Some(value) if self.entry.has_room(value.len()) => self.entry.add(name, value),
            Some(_) => {}
        }
        Ok(())
    }

    fn length(&mut self, bytes: &[u8]) -> usize {
        let used = bytes.len().min(8 - self.held.len());
        self.held.extend_from_slice(&bytes[..used]);
        if let Ok(length) = <[u8; 8]>::try_from(self.held.as_slice()) {
            let length = u64::from_le_bytes(length);
            self.held.clear();
            let kept = self.entry.has_room(usize::try_from(length).unwrap_or(usize::MAX));
            let State::Length { name } = std::mem::take(&mut self.state) else { return used };
            self.state = State::Value { name, left: length.saturating_add(1), kept };
        }
        used
    }

    fn value(&mut self, bytes: &[u8]) -> Result<usize, Malformed> {
        let State::Value { left, kept, .. } = &mut self.state else { return Err(Malformed) };
        let used = usize::try_from(*left).map_or(bytes.len(), |left| left.min(bytes.len()));
        *left -= used as u64;
        let is_over = *left == 0;
        if *kept {
            self.held.extend_from_slice(&bytes[..used]);
        }
        if !is_over {
            return Ok(used);
        }
        let State::Value { name, kept, .. } = std::mem::take(&mut self.state) else { return Err(Malformed) };
        if bytes[used - 1] != b'\n' {
            return Err(Malformed);
        }
        if kept {
            self.entry.add(&name, &self.held[..self.held.len() - 1]);
        }
        self.held.clear();
        Ok(used)
    }
}

/// The name that a line begins with.
fn name_of(line: &[u8]) -> Result<&[u8], Malformed> {
    let is_name = |byte: &u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || *byte == b'_';
    let length = line.iter().take(NAME_BYTES_MAX + 1).take_while(|byte| is_name(byte)).count();
    let is_over = line.get(length).is_none_or(|byte| *byte == b'=');
    if (1..=NAME_BYTES_MAX).contains(&length) && is_over { Ok(&line[..length]) } else { Err(Malformed) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Read = Vec<Vec<(String, Vec<u8>)>>;

    fn read(chunks: &[&[u8]]) -> (Read, Export, bool) {
        let mut export = Export::default();
        let mut entries = Vec::new();
        for chunk in chunks {
            let ok = export.feed(chunk, |fields| {
                let field = |(name, value): &(Range<usize>, Range<usize>)| {
                    let name = String::from_utf8(fields.bytes[name.clone()].to_vec()).unwrap();
                    (name, fields.bytes[value.clone()].to_vec())
                };
                entries.push(fields.places.iter().map(field).collect());
            });
            if ok.is_err() {
                return (entries, export, false);
            }
        }
        (entries, export, true)
    }

    fn binary(name: &str, value: &[u8]) -> Vec<u8> {
        [name.as_bytes(), b"\n", &(value.len() as u64).to_le_bytes(), value, b"\n"].concat()
    }

    #[test]
    fn text_and_binary_fields_are_read_wherever_the_stream_is_cut() {
        let hostile = b"x\n\n__CURSOR=forged\n_UID=0\nMESSAGE=bad\n\n";
        let bytes = [
            b"\n__CURSOR=a\n_UID=7\n".as_slice(),
            &binary("MESSAGE", hostile),
            b"EMPTY=\nX=a=b\n\n__CURSOR=b\n\n",
        ]
        .concat();
        for cut in 0..=bytes.len() {
            let (entries, _, ok) = read(&[&bytes[..cut], &bytes[cut..]]);
            assert!(ok);
            assert_eq!(entries.len(), 2, "{cut}");
            assert_eq!(entries[0][1], ("_UID".to_owned(), b"7".to_vec()));
            assert_eq!(entries[0][2], ("MESSAGE".to_owned(), hostile.to_vec()));
            assert_eq!(entries[0][4], ("X".to_owned(), b"a=b".to_vec()));
        }
    }

    #[test]
    fn what_is_too_long_is_missing_and_what_follows_is_not() {
        let long = vec![b'x'; 3 * FIELD_BYTES_MAX];
        let text =
            [b"__CURSOR=a\nMESSAGE=".as_slice(), &long, b"\n", &binary("B", &long), b"C=c\n\n"].concat();
        let chunks: Vec<&[u8]> = text.chunks(1000).collect();
        let mut export = Export::default();
        let mut seen = 0;
        for chunk in chunks {
            export
                .feed(chunk, |fields| {
                    seen += 1;
                    assert_eq!((fields.get("MESSAGE"), fields.get("B")), (None, None));
                    assert_eq!((fields.get("C"), fields.dropped), (Some(&b"c"[..]), 2));
                })
                .unwrap();
            assert!(
                export.held.capacity() < 3 * FIELD_BYTES_MAX && export.entry.bytes.len() < ENTRY_BYTES_MAX
            );
        }
        assert_eq!(seen, 1);
        let fits = vec![b'y'; FIELD_BYTES_MAX];
        let (entries, ..) =
            read(&[&[b"__CURSOR=a\nA=".as_slice(), &fits, b"\n", &binary("B", &fits), b"\n"].concat()]);
        assert_eq!((&entries[0][1].1, &entries[0][2].1), (&fits, &fits));
        let many = [b"__CURSOR=a\n".as_slice(), &b"A=b\n".repeat(ENTRY_BYTES_MAX), b"\n"].concat();
        let (entries, ..) = read(&[&many]);
        assert_eq!(entries[0].len(), FIELDS_MAX);
    }

    #[test]
    fn an_entry_that_broke_off_lends_nothing_to_the_next() {
        let (entries, export, ok) =
            read(&[b"__CURSOR=a\n_UID=0\nSYSLOG_IDENTIFIER=sshd\n__CURSOR=b\n_UID=7\n\n"]);
        assert!(ok);
        assert_eq!(entries, [[("__CURSOR".to_owned(), b"b".to_vec()), ("_UID".to_owned(), b"7".to_vec())]]);
        assert_eq!(export.broken, 1);
    }

    #[test]
    fn what_is_no_export_is_refused_at_once() {
        let name = format!("__CURSOR=a\n{}=x\n", "A".repeat(65));
        let long = format!("__CURSOR=a\nlower{}", "x".repeat(2 * FIELD_BYTES_MAX));
        let unended = [b"__CURSOR=a\n".as_slice(), &binary("A", b"xy")[..12], b"x\n\n"].concat();
        for text in ["lower=a\n", "__CURSOR=a\n b=c\n", "_UID=0\n", "A\n", &name, &long] {
            assert!(!read(&[text.as_bytes()]).2, "{text}");
        }
        assert!(!read(&[&unended]).2);
    }

    #[test]
    fn the_pieces_of_a_line_are_no_lines() {
        let mut pieces = Pieces::default();
        let mut whole = Vec::new();
        let stdout =
            |stream: &str, rest: &str| format!("__CURSOR=c\n_STREAM_ID={stream}\nPRIORITY=6\n{rest}\n\n");
        let docker = |rest: &str| format!("__CURSOR=c\nCONTAINER_NAME=web\nPRIORITY=6\n{rest}\n\n");
        let text = [
            stdout("a", "N=1"),
            stdout("a", "_LINE_BREAK=line-max"),
            stdout("b", "N=2"),
            stdout("a", "_LINE_BREAK=line-max"),
            stdout("a", "N=rest"),
            stdout("a", "N=3"),
            stdout("a", "_LINE_BREAK=eof\nN=4"),
            docker("CONTAINER_PARTIAL_MESSAGE=true"),
            docker("N=rest"),
            docker("N=5"),
            docker("CONTAINER_PARTIAL_LAST=true\nN=rest"),
        ];
        let fed = Export::default().feed(text.concat().as_bytes(), |fields| {
            if pieces.is_whole(fields) {
                whole.push(String::from_utf8_lossy(fields.get("N").unwrap()).into_owned());
            }
        });
        fed.unwrap();
        assert_eq!(whole, ["1", "2", "3", "4", "5"]);
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_pieces_come_to_the_same(
            parts in proptest::collection::vec(prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..40),
                Just(b"__CURSOR=a\n".to_vec()),
                Just(b"A=b\n".to_vec()),
                Just(b"\n".to_vec()),
                proptest::collection::vec(any::<u8>(), 0..40).prop_map(|value| binary("M", &value)),
            ], 0..30),
            step in 1usize..60,
        ) {
            let bytes = parts.concat();
            let (whole, export, ok) = read(&[&bytes]);
            let chunks: Vec<&[u8]> = bytes.chunks(step).collect();
            let (pieces, cut, fine) = read(&chunks);
            prop_assert_eq!((&whole, ok), (&pieces, fine));
            if ok {
                prop_assert_eq!(export.state, cut.state);
            }
        }

        #[test]
        fn what_is_written_is_read_back(
            entries in proptest::collection::vec(
                proptest::collection::vec(("[A-Z_][A-Z0-9_]{0,20}", proptest::collection::vec(any::<u8>(), 0..50)), 0..9),
                0..9),
        ) {
            let mut bytes = Vec::new();
            let mut wanted: Read = Vec::new();
            for fields in entries {
                bytes.extend_from_slice(b"__CURSOR=a\n");
                let mut read = vec![("__CURSOR".to_owned(), b"a".to_vec())];
                for (name, value) in fields.into_iter().filter(|(name, _)| name != "__CURSOR") {
                    match value.contains(&b'\n') {
                        true => bytes.extend(binary(&name, &value)),
                        false => bytes.extend([name.as_bytes(), b"=", &value, b"\n"].concat()),
                    }
                    read.push((name, value));
                }
                bytes.push(b'\n');
                wanted.push(read);
            }
            prop_assert_eq!(read(&[&bytes]).0, wanted);
        }
    }
}
