//! Bytes to lines: a partial tail is held until its newline comes, and an overlong line is emptied and counted.
#![forbid(unsafe_code)]

use std::ops::Range;

/// The longest line that is delivered, in bytes, without its newline and carriage return. Container runtimes break
/// lines after 16 KiB, and Docker escapes what it writes.
pub const LINE_BYTES_MAX: usize = 64 * 1024;

/// Cuts one stream of bytes at its newlines and knows how far the lines reach.
///
/// The text of a line is passed on as it is: NUL, escape sequences and invalid UTF-8 are for the reader of the
/// line to judge. Only one carriage return before the newline is removed. A line longer than [`LINE_BYTES_MAX`]
/// comes as an empty one: its beginning alone would be a line that nobody wrote, and what follows must not pass for
/// what follows the line before. Whatever comes, no more than that one partial line is held.
#[derive(Debug)]
pub struct Splitter {
    /// The beginning of a line whose newline has not come; empty while an overlong line is skipped.
    held: Vec<u8>,
    skipping: bool,
    read: u64,
    delivered: u64,
    overlong: u64,
}

impl Splitter {
    /// A splitter for bytes that begin at this offset, in bytes, which must be the beginning of a line.
    pub fn new(offset: u64) -> Self {
        Splitter { held: Vec::new(), skipping: false, read: offset, delivered: offset, overlong: 0 }
    }

    /// Takes the next bytes and hands on each line that they complete, with the offsets where it begins and
    /// where the next one does.
    pub fn push(&mut self, bytes: &[u8], mut line: impl FnMut(&[u8], Range<u64>)) {
        let mut start = 0;
        for newline in memchr::memchr_iter(b'\n', bytes) {
            let place = self.delivered..self.read + newline as u64 + 1;
            self.delivered = place.end;
            self.finish(&bytes[start..newline], place, &mut line);
            start = newline + 1;
        }
        self.hold(&bytes[start..]);
        self.read += bytes.len() as u64;
    }

    /// The offset behind the last byte that was pushed: where to read next.
    pub fn read(&self) -> u64 {
        self.read
    }

    /// The offset behind the newline of the last line that was delivered: where to resume after a
    /// restart. A held tail is not counted, nor is an unfinished overlong line, whose rest would pass for a line.
    pub fn delivered(&self) -> u64 {
        self.delivered
    }

    /// How many lines were emptied as longer than [`LINE_BYTES_MAX`].
    pub fn overlong(&self) -> u64 {
        self.overlong
    }

    fn finish(&mut self, part: &[u8], place: Range<u64>, line: &mut impl FnMut(&[u8], Range<u64>)) {
        if self.held.is_empty() && !self.skipping {
            return self.emit(part, place, line);
        }
        self.hold(part);
        if std::mem::take(&mut self.skipping) {
            return line(b"", place);
        }
        let mut held = std::mem::take(&mut self.held);
        self.emit(&held, place, line);
        held.clear();
        self.held = held;
    }

    fn emit(&mut self, text: &[u8], place: Range<u64>, line: &mut impl FnMut(&[u8], Range<u64>)) {
        let mut text = text.strip_suffix(b"\r").unwrap_or(text);
        if text.len() > LINE_BYTES_MAX {
            self.overlong += 1;
            text = b"";
        }
        line(text, place);
    }

    fn hold(&mut self, part: &[u8]) {
        if self.skipping {
            return;
        }
        // One byte more than a line may have: it can be the carriage return.
        if self.held.len() + part.len() > LINE_BYTES_MAX + 1 {
            self.skipping = true;
            self.overlong += 1;
            self.held.clear();
        } else {
            self.held.extend_from_slice(part);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Placed = (Vec<u8>, Range<u64>);

    fn split(chunks: &[&[u8]]) -> (Vec<Placed>, Splitter) {
        let mut splitter = Splitter::new(0);
        let mut lines = Vec::new();
        for chunk in chunks {
            splitter.push(chunk, |text, place| lines.push((text.to_vec(), place)));
        }
        (lines, splitter)
    }

    #[test]
    fn a_partial_tail_waits_for_its_newline() {
        let (lines, splitter) = split(&[b"one\ntw", b"o", b"\nthr"]);
        assert_eq!(lines, [(b"one".to_vec(), 0..4), (b"two".to_vec(), 4..8)]);
        assert_eq!((splitter.delivered(), splitter.read()), (8, 11));
    }

    #[test]
    fn a_line_of_just_the_limit_passes_and_one_byte_more_does_not() {
        for (length, ending, passes) in [
            (LINE_BYTES_MAX, "\n", true),
            (LINE_BYTES_MAX, "\r\n", true),
            (LINE_BYTES_MAX + 1, "\n", false),
            (LINE_BYTES_MAX + 1, "\r\n", false),
        ] {
            let mut bytes = vec![b'x'; length];
            bytes.extend_from_slice(ending.as_bytes());
            let end = bytes.len() as u64 + 3;
            bytes.extend_from_slice(b"ok\n");
            for cut in [0, 1, LINE_BYTES_MAX - 1, LINE_BYTES_MAX, length, bytes.len() - 3] {
                let (lines, splitter) = split(&[&bytes[..cut], &bytes[cut..]]);
                assert_eq!(lines[0].0.len(), if passes { length } else { 0 }, "{length} {ending:?} {cut}");
                assert_eq!(lines.len(), 2);
                assert_eq!(lines.last(), Some(&(b"ok".to_vec(), end - 3..end)));
                assert_eq!(splitter.overlong(), u64::from(!passes));
            }
        }
    }

    #[test]
    fn a_hundred_mebibytes_without_a_newline_are_not_held() {
        let chunk = vec![0; 64 * 1024];
        let mut splitter = Splitter::new(0);
        for _ in 0..1_600 {
            splitter.push(&chunk, |_, _| panic!("there is no line"));
            assert!(splitter.held.capacity() <= 2 * LINE_BYTES_MAX);
        }
        assert_eq!((splitter.overlong(), splitter.delivered()), (1, 0));
        let mut lines = Vec::new();
        splitter.push(b"\ngood\n", |text, _| lines.push(text.to_vec()));
        assert_eq!(lines, [&b""[..], b"good"]);
    }

    proptest! {
        #[test]
        fn however_it_is_cut_the_lines_are_those_of_the_whole(
            pieces in prop::collection::vec(
                (prop::sample::select(&b"\n\r\0\x1b\xffab"[..]), prop::sample::select(&[1, 1, 1, 2, 32_768, 65_535][..])),
                0..40,
            ),
            cuts in prop::collection::vec(1..70_000_usize, 1..20),
        ) {
            let bytes: Vec<u8> = pieces.iter().flat_map(|(byte, count)| vec![*byte; *count]).collect();
            let mut expected = Vec::new();
            let mut overlong = 0;
            let mut end = 0;
            for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
                let start = end;
                end += piece.len() as u64;
                let Some(text) = piece.strip_suffix(b"\n") else { break };
                let text = text.strip_suffix(b"\r").unwrap_or(text);
                let passes = text.len() <= LINE_BYTES_MAX;
                overlong += u64::from(!passes);
                expected.push((if passes { text.to_vec() } else { Vec::new() }, start..end));
            }
            let tail_is_overlong =
                bytes.rsplit(|byte| *byte == b'\n').next().is_some_and(|tail| tail.len() > LINE_BYTES_MAX + 1);
            let mut chunks = Vec::new();
            let mut rest = &bytes[..];
            for cut in cuts.iter().cycle() {
                if rest.is_empty() { break }
                let (chunk, after) = rest.split_at(rest.len().min(*cut));
                chunks.push(chunk);
                rest = after;
            }
            let (lines, splitter) = split(&chunks);
            prop_assert_eq!(lines, expected);
            prop_assert_eq!(splitter.overlong(), overlong + u64::from(tail_is_overlong));
            prop_assert_eq!(splitter.read(), bytes.len() as u64);
        }
    }
}
