//! A line as its service would write it now: the date in it replaced, in the form it has.
#![forbid(unsafe_code)]

use jiff::civil::DateTime;
use jiff::tz::{Offset, TimeZone};

use super::date::{FORMS, Fields, Stamp, read};
use super::header::{self, Format};
use crate::model::Timestamp;

/// The formats whose header may hold a date, in the order in which they are tried.
pub const DATED: [Format; 5] =
    [Format::Syslog, Format::Clf, Format::NginxError, Format::ApacheError, Format::Date];

/// The line with its first date changed to `moment`; none where it bears no date.
pub fn restamped(line: &str, moment: Timestamp, zone: &TimeZone) -> Option<String> {
    let header = || DATED.into_iter().find_map(|format| header::read(format, line.as_bytes())?.stamp);
    let stamp = if line.starts_with('{') { in_json(line) } else { header() }?;
    // A stamp is a slice of its line.
    let start = stamp.text.as_ptr() as usize - line.as_ptr() as usize;
    let end = start + stamp.text.len();
    Some([line.get(..start)?, &written(&stamp, moment, zone)?, line.get(end..)?].concat())
}

/// The first value of a JSON object that is a date and nothing else.
fn in_json(line: &str) -> Option<Stamp<'_>> {
    let starts = line.char_indices().filter(|(_, c)| matches!(c, '"' | ':')).map(|(at, _)| at + 1);
    starts.into_iter().find_map(|start| {
        let text = line[start..].trim_start();
        let (stamp, rest) = Stamp::find(text.as_bytes())?;
        let before = line.as_bytes().get(start.checked_sub(2)?);
        let is_value = matches!(before, Some(b':' | b' ' | b'"'));
        (is_value && matches!(rest.first(), Some(b'"' | b',' | b'}' | b' '))).then_some(stamp)
    })
}

/// The moment in the form of the stamp, with its zone where it names one.
fn written(stamp: &Stamp, moment: Timestamp, zone: &TimeZone) -> Option<String> {
    let form = FORMS[stamp.form].as_bytes();
    let (fields, _) = read(form, stamp.text)?;
    let instant = jiff::Timestamp::from_millisecond(moment.as_millis()).ok()?;
    let local = match fields.offset {
        Some(seconds) => Offset::from_seconds(seconds).ok()?.to_datetime(instant),
        None => zone.to_datetime(instant),
    };
    let of_twelve = form.windows(2).any(|two| two == b"%p");
    let (mut walk, mut at, mut text) = (Fields::default(), 0, String::new());
    let mut form = form.iter();
    while let Some(&byte) = form.next() {
        if byte != b'%' {
            text.push(char::from(byte));
            at += 1;
            continue;
        }
        let what = *form.next()?;
        let length = walk.take(what, stamp.text.get(at..)?)?;
        let old = std::str::from_utf8(&stamp.text[at..at + length]).ok()?;
        at += length;
        if what == b'_' && form.as_slice().starts_with(b"%e") {
            form.nth(1);
            let digits = walk.take(b'e', stamp.text.get(at..)?)?;
            at += digits;
            text += &padded_day(length, digits, local.day());
            continue;
        }
        text += &match what {
            b's' => epoch(old, moment),
            b'@' => tai64n(moment),
            b'I' if of_twelve => like(old, (local.hour() + 11) % 12 + 1),
            what => field(what, old, local),
        };
    }
    Some(text)
}

fn field(what: u8, old: &str, local: DateTime) -> String {
    match what {
        b'Y' => format!("{:04}", local.year()),
        b'y' => format!("{:02}", local.year() % 100),
        b'm' => format!("{:02}", local.month()),
        b'b' => cased(old, &local.strftime("%b").to_string()),
        b'd' => format!("{:02}", local.day()),
        b'H' => format!("{:02}", local.hour()),
        b'M' => format!("{:02}", local.minute()),
        b'S' => format!("{:02}", local.second()),
        b'e' => like(old, local.day()),
        b'I' => like(old, local.hour()),
        b'n' => like(old, local.month()),
        b'p' => cased(old, if local.hour() < 12 { "AM" } else { "PM" }),
        b'f' if !old.is_empty() => fraction(old, local.subsec_nanosecond()),
        b'a' if old.len() >= 3 => cased(old, &local.strftime("%a").to_string()) + &old[3..],
        // Blanks and zones stay.
        _ => old.to_owned(),
    }
}

/// A day behind blanks: in three columns, as RFC 3164 has it, where it stood so.
fn padded_day(blanks: usize, digits: usize, day: i8) -> String {
    if blanks + digits == 3 { format!(" {day:>2}") } else { format!("{}{day}", " ".repeat(blanks)) }
}

fn cased(old: &str, new: &str) -> String {
    if old.starts_with(|c: char| c.is_ascii_lowercase()) { new.to_ascii_lowercase() } else { new.to_owned() }
}

/// A number of one or two digits, filled up as the old one is.
fn like(old: &str, value: i8) -> String {
    let width = old.len();
    if old.starts_with(' ') || width < 2 { format!("{value:>width$}") } else { format!("{value:02}") }
}

/// As many digits behind the same mark.
fn fraction(old: &str, nanos: i32) -> String {
    let digits: String =
        format!("{nanos:09}").chars().chain(std::iter::repeat('0')).take(old.len() - 1).collect();
    format!("{}{digits}", &old[..1])
}

/// Seconds since 1970, or a thousandth, millionth, billionth of them, by how many digits there were.
fn epoch(old: &str, moment: Timestamp) -> String {
    let (whole, rest) = old.split_at(old.find(['.', ',']).unwrap_or(old.len()));
    let ms = moment.as_millis();
    let rest = if rest.is_empty() { String::new() } else { fraction(rest, (ms % 1_000) as i32 * 1_000_000) };
    let whole = match whole.len() {
        10 => ms / 1_000,
        11..=13 => ms,
        14..=16 => ms * 1_000,
        _ => ms * 1_000_000,
    };
    format!("{whole}{rest}")
}

/// `@`, then 2^62 + seconds by TAI's count, then nanoseconds; see [`Fields`].
fn tai64n(moment: Timestamp) -> String {
    let ms = (moment.as_millis() + 10_000).max(0) as u64;
    format!("@{:016x}{:08x}", (1u64 << 62) + ms / 1_000, ms % 1_000 * 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moment(text: &str) -> Timestamp {
        Timestamp::from_millis(text.parse::<jiff::Timestamp>().unwrap().as_millisecond())
    }

    #[test]
    fn whatever_form_a_date_has_it_becomes_now() {
        let zone = TimeZone::get("Europe/Berlin").unwrap();
        for now in ["2027-01-03T04:05:06Z", "2027-12-31T23:59:58Z", "2027-07-11T12:30:00Z"].map(moment) {
            for text in [
                "Nov 21 10:00:00",
                "Nov  1 10:00:00",
                "sat nov 21 10:00:00.000",
                "2026-11-21T10:00:00Z",
                "2026-11-21T11:00:00.000000+01:00",
                "2026-11-21 10:00:00,000",
                "2026-11-21 05:00:00 -0500",
                "21-11-2026 13:00:00 +0300",
                "11/21/2026 - 10:00:00",
                "26/11/21@10:00:00",
                "20261121-10:00:00",
                "11-21 10:00:00.000",
                "Sat Nov 21 10:00:00.000000 2026",
                "Nov 21 2026 10:00:00",
                "2026.11.21 10:00:00",
                "21/Nov/2026:10:00:00 +0000",
                "Sat, 21 Nov 2026 10:00:00 GMT",
                "21.11.2026 10:00:00",
                "Nov-21-26 10:00:00",
                "Nov 21, 2026 10:00:00 AM",
                "CET Nov 21 10:00:00",
                "261121 10:00:00",
                "1795255200.000",
                "1795255200000000",
                "@400000006b016baa00000000",
                "10:00:00",
            ] {
                let (stamp, _) = Stamp::find(text.as_bytes()).unwrap();
                let new = written(&stamp, now, &zone).unwrap();
                let (again, rest) = Stamp::find(new.as_bytes()).unwrap_or_else(|| panic!("{text}: {new}"));
                assert!(rest.is_empty(), "{text}: {new}");
                assert_eq!(again.resolve(now, &zone), Some(now), "{text}: {new}");
            }
        }
    }

    #[test]
    fn only_the_date_of_a_line_changes() {
        let now = moment("2027-01-03T04:05:06Z");
        let new = |line: &str| restamped(line, now, &TimeZone::UTC);
        assert_eq!(
            new("Nov 21 10:00:00 web01 sshd[1]: Failed at Nov 21 10:00:00").as_deref(),
            Some("Jan  3 04:05:06 web01 sshd[1]: Failed at Nov 21 10:00:00")
        );
        assert_eq!(
            new(r#"192.0.2.1 - - [21/Nov/2026:10:00:00 +0000] "GET / HTTP/1.1" 401 1"#).as_deref(),
            Some(r#"192.0.2.1 - - [03/Jan/2027:04:05:06 +0000] "GET / HTTP/1.1" 401 1"#)
        );
        assert_eq!(
            new(r#"{"v":1,"time":"2026-11-21T10:00:00+00:00","ip":"192.0.2.1"}"#).as_deref(),
            Some(r#"{"v":1,"time":"2027-01-03T04:05:06+00:00","ip":"192.0.2.1"}"#)
        );
        assert_eq!(
            new(r#"{"ts": 1795255200.123, "ip": "192.0.2.1"}"#).as_deref(),
            Some(r#"{"ts": 1798949106.000, "ip": "192.0.2.1"}"#)
        );
        assert_eq!(new("sshd[1]: no date"), None);
    }
}
