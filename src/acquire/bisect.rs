//! Where in a file of lines to begin: behind its last line, or at the first line of a wanted time.
#![forbid(unsafe_code)]

use std::io;
use std::ops::{ControlFlow, Range};

use super::splitter::{LINE_BYTES_MAX, Splitter};

/// What a line says about its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Age {
    /// Written before the wanted time.
    Before,
    /// Written at the wanted time or later.
    Wanted,
    /// It does not say; it belongs to the dated line before it.
    Undated,
}

/// Fills the buffer from this offset on, or returns how much there was before the end of the file.
pub type ReadAt<'a> = dyn FnMut(&mut [u8], u64) -> io::Result<usize> + 'a;

/// Takes a line and where it begins and ends.
type Visit<'a> = dyn FnMut(&[u8], Range<u64>) -> ControlFlow<()> + 'a;

/// Where a bisection ends and reading from line to line begins.
const WINDOW_BYTES: u64 = 64 * 1024;
const CHUNK_BYTES: usize = 16 * 1024;
/// How far one probe looks for a dated line.
const REACH_BYTES: u64 = 1024 * 1024;

/// The offset behind the last newline of a file of `size` bytes. Of an overlong last line only so much is
/// passed over that the rest still counts as overlong.
pub fn end_of_lines(size: u64, read_at: &mut ReadAt) -> io::Result<u64> {
    let start = size.saturating_sub(LINE_BYTES_MAX as u64 + 2);
    let mut bytes = vec![0; (size - start) as usize];
    let count = read_at(&mut bytes, start)?;
    Ok(start + memchr::memrchr(b'\n', &bytes[..count]).map_or(0, |newline| newline as u64 + 1))
}

/// The offset of the first line of the wanted time, or the end of the lines where there is none.
///
/// Takes the lines for sorted by time, so that a file of 10 GB costs some two dozen reads. A file in which no
/// dated line is found has no line that is known to be wanted: the end of its lines is the answer. A stretch of
/// more than 1 MiB of undated lines within a file of dated ones counts as wanted where its time decides.
pub fn first_wanted(size: u64, read_at: &mut ReadAt, age: &mut dyn FnMut(&[u8]) -> Age) -> io::Result<u64> {
    let (mut low, mut high) = (0, size);
    let mut answer = None;
    let mut dated = false;
    // A line that begins before `high` can end behind it, and `low` with it.
    while high.saturating_sub(low) > WINDOW_BYTES {
        let middle = low + (high - low) / 2;
        let probe = probe(middle..high, read_at, age)?;
        dated |= probe.dated.is_some();
        match probe.dated {
            Some((Age::Before, line)) => low = line.end,
            Some((_, line)) => (high, answer) = (middle, Some(line.start)),
            None if probe.cut_short => (high, answer) = (middle, probe.first.or(answer)),
            None => high = middle,
        }
    }
    let mut found = None;
    scan(low..high, read_at, &mut |text, place| match age(text) {
        Age::Wanted => {
            found = Some(place.start);
            ControlFlow::Break(())
        }
        said => {
            dated |= said == Age::Before;
            ControlFlow::Continue(())
        }
    })?;
    match found.or(answer.filter(|_| dated)) {
        Some(offset) => Ok(offset),
        None => end_of_lines(size, read_at),
    }
}

struct Probe {
    /// Where the first whole line begins.
    first: Option<u64>,
    dated: Option<(Age, Range<u64>)>,
    cut_short: bool,
}

/// Looks for a dated line among those that begin in `range`, which may begin within a line.
fn probe(range: Range<u64>, read_at: &mut ReadAt, age: &mut dyn FnMut(&[u8]) -> Age) -> io::Result<Probe> {
    let mut probe = Probe { first: None, dated: None, cut_short: false };
    // One byte earlier, so that a line that begins just here is not taken for the rest of one.
    let start = range.start - 1;
    probe.cut_short = scan(start..range.end, read_at, &mut |text, place| {
        if place.start == start {
            return ControlFlow::Continue(());
        }
        probe.first.get_or_insert(place.start);
        match age(text) {
            Age::Undated => ControlFlow::Continue(()),
            said => {
                probe.dated = Some((said, place));
                ControlFlow::Break(())
            }
        }
    })?;
    Ok(probe)
}

/// Visits the lines that begin in `range`; whether it ended because they reach too far.
fn scan(range: Range<u64>, read_at: &mut ReadAt, visit: &mut Visit) -> io::Result<bool> {
    let mut splitter = Splitter::new(range.start);
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut found = false;
    while !found && splitter.delivered() < range.end {
        if splitter.read() - range.start >= REACH_BYTES {
            return Ok(true);
        }
        let count = read_at(&mut chunk, splitter.read())?;
        if count == 0 {
            break;
        }
        splitter.push(&chunk[..count], |text, place| {
            if !found && place.start < range.end {
                found = visit(text, place).is_break();
            }
        });
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Lines are `NUMBER` or `NUMBER text` where dated, anything else where not.
    fn since(wanted: u64) -> impl FnMut(&[u8]) -> Age {
        move |line| {
            let word = line.split(|byte| *byte == b' ').next().unwrap_or_default();
            match std::str::from_utf8(word).ok().and_then(|word| word.parse::<u64>().ok()) {
                Some(time) if time < wanted => Age::Before,
                Some(_) => Age::Wanted,
                None => Age::Undated,
            }
        }
    }

    fn of(content: &[u8]) -> impl FnMut(&mut [u8], u64) -> io::Result<usize> + '_ {
        |buffer, offset| {
            let rest = content.get(offset as usize..).unwrap_or_default();
            let count = rest.len().min(buffer.len());
            buffer[..count].copy_from_slice(&rest[..count]);
            Ok(count)
        }
    }

    #[test]
    fn ten_gigabytes_cost_two_dozen_reads() {
        // Line n is n in 99 digits: the file need not exist to be read.
        let size = 10_000_000_000;
        let mut reads = 0;
        let mut read_at = |buffer: &mut [u8], offset: u64| {
            reads += 1;
            let count = buffer.len().min((size - offset) as usize);
            for (i, byte) in buffer[..count].iter_mut().enumerate() {
                let at = offset + i as u64;
                let digit = 98_u32.checked_sub((at % 100) as u32);
                let power = |digit| 10_u64.checked_pow(digit).unwrap_or(u64::MAX);
                *byte = digit.map_or(b'\n', |digit| b'0' + (at / 100 / power(digit) % 10) as u8);
            }
            Ok(count)
        };
        for wanted in [0, 1, 12_345_678, 99_999_999, 100_000_000] {
            assert_eq!(first_wanted(size, &mut read_at, &mut since(wanted)).unwrap(), wanted * 100);
        }
        assert!(reads <= 5 * 24, "{reads} reads for five searches");
    }

    #[test]
    fn a_line_that_begins_where_a_probe_does_is_seen() {
        let text: String = (0..65_536).map(|n| format!("{n:07}\n")).collect();
        for wanted in (0..65_536).step_by(1_024) {
            let mut read_at = of(text.as_bytes());
            let found = first_wanted(text.len() as u64, &mut read_at, &mut since(wanted)).unwrap();
            assert_eq!(found, wanted * 8);
        }
    }

    #[test]
    fn a_long_line_may_reach_over_a_bound_of_the_search() {
        for length in (5_000..LINE_BYTES_MAX - 10).step_by(1_997) {
            // One dated line in eight, so that the only one that a probe finds can be the last.
            let word = |n: u64| if n.is_multiple_of(8) { n.to_string() } else { "-".to_owned() };
            let text: String = (0..80).map(|n| format!("{} {:x<length$}\n", word(n), "")).collect();
            for wanted in (0..80).step_by(8) {
                let mut read_at = of(text.as_bytes());
                let found = first_wanted(text.len() as u64, &mut read_at, &mut since(wanted)).unwrap();
                assert!(text[found as usize..].starts_with(&format!("{wanted} ")), "{length} {wanted}");
            }
        }
    }

    #[test]
    fn without_any_date_nothing_is_known_to_be_wanted() {
        for content in ["undated\n".repeat(40_000), "undated\n".repeat(3), String::new()] {
            let end = content.len() as u64;
            let text = content + "unfinished";
            let found = first_wanted(text.len() as u64, &mut of(text.as_bytes()), &mut since(1)).unwrap();
            assert_eq!(found, end);
        }
    }

    #[test]
    fn a_long_undated_stretch_is_wanted_rather_than_lost() {
        let undated = "undated\n".repeat(500_000);
        for (before, after) in [(70_000, 70_000), (3, 0)] {
            let text = "1\n".repeat(before) + &undated + &"1\n".repeat(after) + "2\n";
            let mut read_at = of(text.as_bytes());
            let found = first_wanted(text.len() as u64, &mut read_at, &mut since(2)).unwrap();
            assert!(found <= text.len() as u64 - 2, "the wanted line would be skipped");
            assert_eq!(text.as_bytes()[found as usize - 1], b'\n');
        }
    }

    #[test]
    fn the_end_of_lines_is_never_within_a_line_that_could_pass() {
        let long = "x".repeat(3 * LINE_BYTES_MAX);
        for (text, end) in [("", 0), ("a", 0), ("a\n", 2), ("a\nb", 2)] {
            assert_eq!(end_of_lines(text.len() as u64, &mut of(text.as_bytes())).unwrap(), end);
        }
        let start = end_of_lines(long.len() as u64, &mut of(long.as_bytes())).unwrap();
        let mut splitter = Splitter::new(start);
        splitter.push(&long.as_bytes()[start as usize..], |_, _| panic!("there is no line"));
        let mut lines = Vec::new();
        splitter.push(b"rest\ngood\n", |text, _| lines.push(text.to_vec()));
        assert_eq!(lines, [&b""[..], b"good"]);
        assert_eq!(splitter.overlong(), 1);
    }

    fn paddings() -> impl Strategy<Value = usize> {
        prop_oneof![9 => 0..9_000_usize, 1 => LINE_BYTES_MAX - 10..LINE_BYTES_MAX + 10]
    }

    proptest! {
        #[test]
        fn a_search_finds_what_reading_from_the_start_finds(
            lines in prop::collection::vec((0..3_u64, prop::bool::ANY, paddings()), 1..80),
            wanted in 0..90_u64,
        ) {
            let mut time = 0;
            let mut text = String::new();
            let mut expected = None;
            let mut dated = false;
            for (step, undated, padding) in lines {
                time += step;
                let line = if undated { "-".to_owned() } else { time.to_string() } + " " + &"x".repeat(padding);
                if !undated && line.len() <= LINE_BYTES_MAX {
                    dated = true;
                    if time >= wanted {
                        expected.get_or_insert(text.len() as u64);
                    }
                }
                text += &line;
                text.push('\n');
            }
            let found = first_wanted(text.len() as u64, &mut of(text.as_bytes()), &mut since(wanted)).unwrap();
            prop_assert_eq!(found, expected.filter(|_| dated).unwrap_or(text.len() as u64));
        }
    }
}
