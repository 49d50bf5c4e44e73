//! Dates as services write them: found as a slice of the line, converted only when asked for.
#![forbid(unsafe_code)]

use std::time::Duration;

use jiff::civil::{Date, DateTime};
use jiff::tz::{AmbiguousOffset, Offset, TimeZone};

use crate::model::Timestamp;

/// The longest date that is looked for, in bytes, so that blanks or digits without end cost nothing.
const STAMP_BYTES_MAX: usize = 64;

/// The forms of a date, most wanted first. To know one more, add a row.
///
/// `%Y` year, `%y` its last two digits (20yy), `%m` month, `%n` month of one or two digits, `%b` its English
/// name, `%d` day, `%e` day of one or two digits, `%H` `%M` `%S` time, `%I` hour of one or two digits (12 h where
/// `%p` follows), `%p` AM or PM, `%f` a fraction if there is one, `%z` a zone if there is one, `%a` a weekday if
/// there is one, `%_` blanks, `%T` blanks or the letter, `%:` a colon or a blank, `%-` a hyphen or slash, `%.`
/// those or a dot, `%Z` the name of a zone, `%s` seconds since 1970, `%@` TAI64N. All else stands for itself.
pub(super) const FORMS: [&str; 30] = [
    "%a%b%_%e%_%I:%M:%S%f",
    "%Y-%m-%dT%H:%M:%S%f%z",
    "%Y-%m-%d%_%I:%M:%S%f%z",
    "%a%b%_%e%_%I:%M:%S%f%_%Y",
    "%a%b%_%e%_%Y%_%I:%M:%S%f",
    "%Y%.%m%.%d%T%I:%M:%S%f%z",
    "%d%-%b%-%Y%:%H:%M:%S%f%z",
    "%a%e%_%b%_%Y%_%H:%M:%S%f%z",
    "%d/%m/%Y%_%H:%M:%S%f",
    "%d-%m-%Y%_%H:%M:%S%f%z",
    "%d.%m.%Y%_%H:%M:%S%f",
    "%d%-%m%-%y%_%H:%M:%S%f",
    "%m/%d/%Y:%H:%M:%S%f",
    "%m/%d/%Y - %H:%M:%S%f",
    "%m-%d-%Y%_%H:%M:%S%f",
    "%b-%d-%y%_%H:%M:%S%f",
    "%b%_%e,%_%Y%_%I:%M:%S%_%p",
    "%Z%_%a%b%_%e%_%I:%M:%S%f%_%Y",
    "%Z%_%a%b%_%e%_%I:%M:%S%f",
    "%y%m%d%_%I:%M:%S",
    "<%m/%d/%y@%H:%M:%S>",
    "%y/%n/%e@%H:%M:%S",
    "%Y%m%d-%H%M%S%f%z",
    "%Y%m%d-%H:%M:%S%f%z",
    "%Y%m%d%T%H%M%S%f%z",
    "%Y%m%d%T%H:%M:%S%f%z",
    "%m-%d%_%H:%M:%S%f",
    "%s",
    "%@",
    "%H:%M:%S%f",
];

/// Of two forms that both fit, the one that reads on is right: a year may follow.
const TRADITIONAL: usize = 0;
const LONGER_TRADITIONAL: usize = 3;

/// A date as it stands in a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp<'a> {
    pub(super) text: &'a [u8],
    pub(super) form: usize,
}

impl<'a> Stamp<'a> {
    /// The date at the very start of `text`, and what follows it.
    pub fn find(text: &'a [u8]) -> Option<(Stamp<'a>, &'a [u8])> {
        let order = [LONGER_TRADITIONAL, TRADITIONAL].into_iter().chain(TRADITIONAL + 1..FORMS.len());
        Self::find_form(text, order)
    }

    /// Like [`Stamp::find`], for the two forms that syslog daemons write: RFC 3164 and ISO 8601. A year
    /// behind an RFC 3164 stamp is the host's name.
    pub fn find_syslog(text: &'a [u8]) -> Option<(Stamp<'a>, &'a [u8])> {
        Self::find_form(text, TRADITIONAL..=2)
    }

    fn find_form(text: &'a [u8], forms: impl IntoIterator<Item = usize>) -> Option<(Stamp<'a>, &'a [u8])> {
        let start = &text[..text.len().min(STAMP_BYTES_MAX)];
        for form in forms {
            if let Some((_, length)) = read(FORMS[form].as_bytes(), start)
                && !text.get(length).is_some_and(u8::is_ascii_alphanumeric)
            {
                return Some((Stamp { text: &text[..length], form }, &text[length..]));
            }
        }
        None
    }

    pub fn text(&self) -> &'a [u8] {
        self.text
    }

    /// Whether it says itself which clock it means.
    pub fn names_zone(&self) -> bool {
        self.fields().is_some_and(|fields| fields.offset.is_some() || fields.epoch_ms.is_some())
    }

    /// Whether it is more than a time of day.
    pub fn names_day(&self) -> bool {
        self.fields().is_some_and(|fields| fields.month != 0 || fields.epoch_ms.is_some())
    }

    /// The moment it names. Without a zone it is read in `zone`; without a year it is the latest such date
    /// that is not more than 24 hours after `now`; without a day likewise. A time that clocks show twice is the
    /// first of the two, one that they leap over is as much later. None where no calendar has it.
    pub fn resolve(&self, now: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        self.resolve_after(None, now, zone)
    }

    /// Like [`Stamp::resolve`], but of a time that clocks show twice it is the second where the first is well
    /// before `last`, which stood in an earlier line.
    fn resolve_after(&self, last: Option<Timestamp>, now: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let fields = self.fields()?;
        if let Some(epoch_ms) = fields.epoch_ms {
            return Some(Timestamp::from_millis(epoch_ms));
        }
        let on = |day| fields.on(day, zone, last.filter(|last| *last <= now));
        let latest = now.plus(Duration::from_secs(86_400));
        let today = zone.to_datetime(jiff::Timestamp::from_millisecond(now.as_millis()).ok()?).date();
        if fields.month == 0 {
            let days = [today.tomorrow(), Ok(today), today.yesterday()];
            let moments = days.into_iter().flatten().filter_map(on);
            return moments.into_iter().find(|&moment| moment <= now.plus(Duration::from_secs(60)));
        }
        if let Some(year) = fields.year {
            return on(Date::new(year, fields.month, fields.day).ok()?);
        }
        // Eight years back there was a 29 February for certain.
        (today.year() - 8..=today.year() + 1)
            .rev()
            .filter_map(|year| on(Date::new(year, fields.month, fields.day).ok()?))
            .find(|&moment| moment <= latest)
    }

    fn fields(&self) -> Option<Fields> {
        read(FORMS[self.form].as_bytes(), self.text).map(|(fields, _)| fields)
    }
}

/// Converts the stamps of a log and remembers the last one, since a busy log repeats its second.
#[derive(Debug, Default)]
pub struct Dates {
    last: Option<(Vec<u8>, usize, Timestamp, Timestamp)>,
}

impl Dates {
    /// Like [`Stamp::resolve`], but time does not go back when clocks are set back; the answer is kept while the
    /// text stays and `now` moves less than a minute.
    pub fn resolve(&mut self, stamp: &Stamp, now: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        if let Some((text, form, asked, moment)) = &self.last
            && text == stamp.text
            && *form == stamp.form
            && now.since(*asked).max(asked.since(now)) < Duration::from_secs(60)
        {
            return Some(*moment);
        }
        let last = self.last.as_ref().map(|(.., moment)| *moment);
        let moment = stamp.resolve_after(last, now, zone)?;
        self.last = Some((stamp.text.to_vec(), stamp.form, now, moment));
        Some(moment)
    }
}

/// Lines of one log are written out of order by so much at most: what is further back was written by a clock that
/// had been set back.
const DISORDER_MAX: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Fields {
    year: Option<i16>,
    month: i8,
    day: i8,
    hour: i8,
    minute: i8,
    second: i8,
    millis: i16,
    pub(super) offset: Option<i32>,
    epoch_ms: Option<i64>,
}

impl Fields {
    fn on(&self, day: Date, zone: &TimeZone, last: Option<Timestamp>) -> Option<Timestamp> {
        // A leap second is the last one before it, as in the kernel's clock.
        let second = self.second.min(59);
        let nanos = i32::from(self.millis) * 1_000_000;
        let time = jiff::civil::Time::new(self.hour, self.minute, second, nanos).ok()?;
        let moment = DateTime::from_parts(day, time);
        let millis = |timestamp: jiff::Timestamp| Timestamp::from_millis(timestamp.as_millisecond());
        if let Some(seconds) = self.offset {
            return Some(millis(Offset::from_seconds(seconds).ok()?.to_timestamp(moment).ok()?));
        }
        let ambiguous = zone.to_ambiguous_zoned(moment);
        let is_twice = matches!(ambiguous.offset(), AmbiguousOffset::Fold { .. });
        let first = millis(ambiguous.clone().compatible().ok()?.timestamp());
        match last {
            Some(last) if is_twice && first.plus(DISORDER_MAX) < last => {
                Some(millis(ambiguous.later().ok()?.timestamp()))
            }
            _ => Some(first),
        }
    }
}

const MONTHS: [&[u8; 3]; 12] =
    [b"jan", b"feb", b"mar", b"apr", b"may", b"jun", b"jul", b"aug", b"sep", b"oct", b"nov", b"dec"];
const WEEKDAYS: [&[u8; 3]; 7] = [b"mon", b"tue", b"wed", b"thu", b"fri", b"sat", b"sun"];
/// A local clock's names: such a date is read in the machine's own zone, which is where it was written.
const LOCAL_ZONES: [&[u8]; 18] = [
    b"CEST", b"CET", b"EEST", b"EET", b"WEST", b"WET", b"EST", b"EDT", b"CST", b"CDT", b"MST", b"MDT",
    b"PST", b"PDT", b"MSK", b"BST", b"IST", b"JST",
];

/// Reads `text` by `form`; the fields and how many bytes they took.
pub(super) fn read(form: &[u8], text: &[u8]) -> Option<(Fields, usize)> {
    let mut fields = Fields::default();
    let mut at = 0;
    let mut form = form.iter();
    while let Some(&byte) = form.next() {
        let rest = &text[at..];
        at += match byte {
            b'%' => fields.take(*form.next()?, rest)?,
            literal if rest.first() == Some(&literal) => 1,
            _ => return None,
        };
    }
    Some((fields, at))
}

impl Fields {
    pub(super) fn take(&mut self, what: u8, text: &[u8]) -> Option<usize> {
        let two = |low: i8, high: i8| {
            let value = number(text, 2)? as i8;
            (low..=high).contains(&value).then_some(value)
        };
        match what {
            // No log is older; another number of four digits may follow a date.
            b'Y' => self.year = Some(number(text, 4).filter(|year| (1990..2100).contains(year))? as i16),
            b'y' => self.year = Some(2000 + number(text, 2)? as i16),
            b'm' => self.month = two(1, 12)?,
            b'b' => self.month = 1 + name(&MONTHS, text)? as i8,
            b'd' => self.day = two(1, 31)?,
            b'H' => self.hour = two(0, 23)?,
            b'M' => self.minute = two(0, 59)?,
            b'S' => self.second = two(0, 60)?,
            _ => return self.take_varying(what, text),
        }
        Some(match what {
            b'Y' => 4,
            b'b' => 3,
            _ => 2,
        })
    }

    /// The fields whose length differs from line to line.
    fn take_varying(&mut self, what: u8, text: &[u8]) -> Option<usize> {
        let blanks = text.iter().take_while(|&&b| b == b' ').count();
        match what {
            b'_' => (blanks > 0).then_some(blanks),
            b'T' => {
                if text.first() == Some(&b'T') {
                    Some(1)
                } else {
                    (blanks > 0).then_some(blanks)
                }
            }
            b':' => matches!(text, [b':' | b' ', ..]).then_some(1),
            b'-' => matches!(text, [b'-' | b'/', ..]).then_some(1),
            b'.' => matches!(text, [b'-' | b'/' | b'.', ..]).then_some(1),
            b'e' | b'I' | b'n' => {
                let digits = text[blanks..].iter().take_while(|b| b.is_ascii_digit()).count();
                let value = (1..=2).contains(&digits).then(|| number(&text[blanks..], digits))?? as i8;
                let (field, range) = match what {
                    b'e' => (&mut self.day, 1..=31),
                    b'I' => (&mut self.hour, 0..=23),
                    _ => (&mut self.month, 1..=12),
                };
                *field = value;
                (range.contains(&value) && blanks <= 1).then_some(blanks + digits)
            }
            b'p' => {
                let afternoon = matches!(text, [b'P' | b'p', b'M' | b'm', ..]);
                let morning = matches!(text, [b'A' | b'a', b'M' | b'm', ..]);
                self.hour = self.hour % 12 + if afternoon { 12 } else { 0 };
                (morning || afternoon).then_some(2)
            }
            b'f' => Some(self.take_fraction(text)),
            b'z' => Some(self.take_zone(text)),
            b'Z' => Some(self.take_zone(text)).filter(|length| *length > 0),
            b'a' => Some(match name(&WEEKDAYS, text) {
                Some(_) if text.get(3) == Some(&b' ') => {
                    3 + text[3..].iter().take_while(|&&b| b == b' ').count()
                }
                Some(_) if text.get(3..5) == Some(b", ") => 5,
                _ => 0,
            }),
            b's' => self.take_epoch(text),
            b'@' => self.take_tai64n(text),
            _ => None,
        }
    }

    fn take_fraction(&mut self, text: &[u8]) -> usize {
        let [b'.' | b',', digits @ ..] = text else { return 0 };
        let length = digits.iter().take_while(|b| b.is_ascii_digit()).count();
        if length == 0 {
            return 0;
        }
        let millis = digits[..length].iter().chain(b"00").take(3);
        self.millis = millis.fold(0, |sum, digit| sum * 10 + i16::from(digit - b'0'));
        1 + length
    }

    fn take_zone(&mut self, text: &[u8]) -> usize {
        let blank = usize::from(text.first() == Some(&b' '));
        let zone = &text[blank..];
        let ends = |length: usize| !zone.get(length).is_some_and(u8::is_ascii_alphanumeric);
        for utc in [&b"UTC"[..], b"GMT", b"Z"] {
            if zone.starts_with(utc) && ends(utc.len()) {
                self.offset = Some(0);
                return blank + utc.len();
            }
        }
        if let Some(length) = local_zone(zone) {
            return blank + length;
        }
        let sign = match zone.first() {
            Some(b'+') => 1,
            Some(b'-') => -1,
            _ => return 0,
        };
        let colon = usize::from(zone.get(3) == Some(&b':'));
        let (Some(hours), minutes) =
            (number(&zone[1..], 2), zone.get(3 + colon..).and_then(|m| number(m, 2)))
        else {
            return 0;
        };
        let length = if minutes.is_some() { 5 + colon } else { 3 };
        if !ends(length) {
            return 0;
        }
        self.offset = Some(sign * (hours * 3600 + minutes.unwrap_or(0) * 60));
        blank + length
    }

    fn take_epoch(&mut self, text: &[u8]) -> Option<usize> {
        let length = text.iter().take_while(|b| b.is_ascii_digit()).count();
        if !(10..=19).contains(&length) {
            return None;
        }
        // Ten digits are seconds until the year 2286; three more are milliseconds, and so on.
        let digits = std::str::from_utf8(&text[..length]).ok()?.parse::<i64>().ok()?;
        self.epoch_ms = Some(match length {
            10 => digits * 1000,
            11..=13 => digits,
            14..=16 => digits / 1000,
            _ => digits / 1_000_000,
        });
        let fraction = self.take_fraction(&text[length..]);
        self.epoch_ms = self.epoch_ms.map(|ms| ms + i64::from(self.millis));
        Some(length + fraction)
    }

    /// `@` and 24 hex digits: 2^62 + seconds, then nanoseconds (cr.yp.to/libtai/tai64.html). Services that
    /// write it count leap seconds as their clock does: ten of difference at most.
    fn take_tai64n(&mut self, text: &[u8]) -> Option<usize> {
        let digits =
            text.strip_prefix(b"@")?.get(..24).filter(|text| text.iter().all(u8::is_ascii_hexdigit))?;
        let digits = std::str::from_utf8(digits).ok()?;
        let seconds = u64::from_str_radix(&digits[..16], 16).ok()?.checked_sub(1 << 62)?;
        let nanos = u32::from_str_radix(&digits[16..], 16).ok()?;
        self.epoch_ms =
            Some(i64::try_from(seconds).ok()?.checked_mul(1000)? + i64::from(nanos / 1_000_000) - 10_000);
        Some(25)
    }
}

fn number(text: &[u8], digits: usize) -> Option<i32> {
    let text = text.get(..digits)?;
    text.iter().try_fold(0, |sum, b| b.is_ascii_digit().then(|| sum * 10 + i32::from(b - b'0')))
}

fn name(names: &[&[u8; 3]], text: &[u8]) -> Option<usize> {
    let text = text.get(..3)?;
    names.iter().position(|name| name.eq_ignore_ascii_case(text))
}

fn local_zone(text: &[u8]) -> Option<usize> {
    let length = text.iter().take_while(|b| b.is_ascii_uppercase()).count();
    LOCAL_ZONES.contains(&&text[..length]).then_some(length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: &str = "2026-11-21T12:00:00Z";

    fn moment(text: &str) -> Timestamp {
        Timestamp::from_millis(text.parse::<jiff::Timestamp>().unwrap().as_millisecond())
    }

    fn resolved(text: &str) -> String {
        let (stamp, rest) = Stamp::find(text.as_bytes()).unwrap_or_else(|| panic!("no date in {text}"));
        assert!(rest.is_empty(), "{text}: left {:?}", String::from_utf8_lossy(rest));
        stamp.resolve(moment(NOW), &TimeZone::UTC).expect(text).to_string()
    }

    /// Every form, each naming 10:00 on 21 November 2026, UTC.
    const SAME: [&str; 77] = [
        "Nov 21 10:00:00",
        "Sat Nov 21 10:00:00",
        "nov 21 10:00:00.000",
        "2026-11-21T10:00:00Z",
        "2026-11-21T10:00:00",
        "2026-11-21T11:00:00.000000+01:00",
        "2026-11-21T11:00:00+01",
        "2026-11-21 10:00:00,000",
        "2026-11-21 05:00:00 -0500",
        "2026-11-21  10:00:00 UTC",
        "2026-11-21 10:00:00.000 CET",
        "2026/11/21 10:00:00",
        "2026/11/21T10:00:00.000Z",
        "2026.11.21 10:00:00",
        "2026.11.21  11:00:00,000 +0100",
        "2026.11.21T10:00:00 GMT",
        "Sat Nov 21 10:00:00.000000 2026",
        "Nov 21 10:00:00 2026",
        "Nov 21 2026 10:00:00",
        "Sat Nov 21 2026 10:00:00.000",
        "21/11/2026 10:00:00",
        "21-11-2026 10:00:00",
        "21-11-2026 13:00:00 +0300",
        "21.11.2026 10:00:00",
        "21/11/26 10:00:00",
        "21-11-26 10:00:00",
        "21/Nov/2026:10:00:00 +0000",
        "21/Nov/2026 10:00:00",
        "21-Nov-2026 10:00:00.000",
        "21-Nov-2026:11:00:00 +01:00",
        "21 Nov 2026 10:00:00.000",
        "Sat, 21 Nov 2026 10:00:00 GMT",
        "11/21/2026:10:00:00",
        "11/21/2026 - 10:00:00",
        "11-21-2026 10:00:00",
        "11-21-2026 10:00:00.000",
        "11-21 10:00:00.000",
        "1795255200",
        "1795255200.000",
        "1795255200.000000",
        "1795255200000",
        "1795255200000000",
        "10:00:00",
        "<11/21/26@10:00:00>",
        "26/11/21@10:00:00",
        "261121 10:00:00",
        "261121  10:00:00",
        "Nov 21, 2026 10:00:00 AM",
        "Nov-21-26 10:00:00",
        "20261121-100000",
        "20261121-10:00:00",
        "20261121T100000Z",
        "20261121T110000.000+0100",
        "20261121 10:00:00",
        "20261121 100000",
        "20261121T10:00:00,000",
        "CET Nov 21 10:00:00",
        "UTC Nov 21 10:00:00",
        "+0100 Nov 21 11:00:00",
        "GMT Sat Nov 21 10:00:00.000",
        "CET Sat Nov 21 10:00:00 2026",
        "UTC Nov 21 10:00:00 2026",
        "@400000006b016baa00000000",
        "@400000006B016BAA00000000",
        "Sat  Nov 21 10:00:00",
        "Nov  21  10:00:00",
        "2026-11-21T10:00:00.000000000Z",
        "2026-11-21T10:00:00-00:00",
        "2026-11-21T15:30:00+05:30",
        "2026-11-20T22:00:00-12:00",
        "2026-11-22T00:00:00+14:00",
        "SAT NOV 21 10:00:00 2026",
        "21/nov/2026:05:00:00 -0500",
        "2026/11/21 10:00:00 UTC",
        "1795255200.0",
        "1795255200000000000",
        "10:00:00.000",
    ];

    #[test]
    fn every_form_names_the_same_moment() {
        for text in SAME {
            assert_eq!(resolved(text), "2026-11-21T10:00:00.000Z", "{text}");
        }
    }

    #[test]
    fn what_stands_around_a_date_changes_nothing() {
        for text in SAME {
            let whole = |line: &str| {
                Stamp::find(line.as_bytes()).is_some_and(|(stamp, _)| stamp.text() == text.as_bytes())
            };
            for after in [" x", "] x", ">", ": 192.0.2.1", ", 1999", "\n", "\0", "\u{e9}", " Jan  1 00:00:00"]
            {
                assert!(whole(&format!("{text}{after}")), "{text}{after}");
            }
            for before in ["x", "x ", "1", "-", "[", "\0", "\u{e9}", "Jan  1 ", "2026"] {
                assert!(!whole(&format!("{before}{text}")), "{before}{text}");
                let found =
                    Stamp::find(format!("{before}{text}").as_bytes()).map(|(stamp, _)| stamp.text().len());
                assert!(found.is_none_or(|length| length <= before.len() + text.len()), "{before}{text}");
            }
            // What goes on is another word, and a part of the date at most.
            let found = Stamp::find(format!("{text}x").as_bytes()).map(|(stamp, _)| stamp.text().len());
            assert!(found.is_none_or(|length| length < text.len()), "{text}x");
        }
    }

    #[test]
    fn a_date_without_end_is_none() {
        let run = |text: &str| text.repeat(100_000);
        for text in [
            format!("Nov {} 21 10:00:00", run(" ")),
            format!("Sat{}Nov 21 10:00:00", run(" ")),
            format!("Nov 21 10:00:00.{}", run("0")),
            format!("2026-11-21{}10:00:00", run(" ")),
            format!("1795255200.{}", run("0")),
            run("1"),
            run("@4"),
            run(" "),
        ] {
            assert_eq!(Stamp::find(text.as_bytes()), None, "{}", &text[..30]);
        }
        // Nor do blanks behind it belong to it.
        let text = format!("Nov 21 10:00:00{}2026", run(" "));
        assert_eq!(Stamp::find(text.as_bytes()).unwrap().0.text(), b"Nov 21 10:00:00");
    }

    #[test]
    fn a_tai64n_date_is_hexadecimal() {
        for text in
            ["@+00000006b016baa00000000", "@40000000000000\u{e9}0000000\u{e9}0", "@400000006b016baa+0000000"]
        {
            assert_eq!(Stamp::find(text.as_bytes()), None, "{text}");
        }
        let cut = "@000000000000000\u{e9}00000000";
        assert_eq!(Stamp::find(cut.as_bytes()), None);
    }

    #[test]
    fn a_leap_second_is_the_last_one_before_it() {
        for text in ["2016-12-31T23:59:60Z", "2016-12-31 23:59:60", "2016-12-31T23:59:60.000Z"] {
            assert_eq!(resolved(text), "2016-12-31T23:59:59.000Z", "{text}");
        }
        assert_eq!(resolved("2017-01-01T00:59:60+01:00"), "2016-12-31T23:59:59.000Z");
        assert_eq!(Stamp::find(b"2016-12-31T23:59:61Z"), None);
        assert_eq!(Stamp::find(b"2016-12-31T24:00:00Z"), None);
    }

    #[test]
    fn a_time_that_clocks_leap_over_is_as_much_later() {
        let berlin = TimeZone::get("Europe/Berlin").unwrap();
        for (text, expected) in [
            ("2026-03-29 01:59:59", "2026-03-29T00:59:59.000Z"),
            ("2026-03-29 02:30:00", "2026-03-29T01:30:00.000Z"),
            ("2026-03-29 03:00:00", "2026-03-29T01:00:00.000Z"),
        ] {
            let (stamp, _) = Stamp::find(text.as_bytes()).unwrap();
            assert_eq!(stamp.resolve(moment(NOW), &berlin).unwrap().to_string(), expected, "{text}");
        }
    }

    #[test]
    fn where_clocks_are_set_back_lines_keep_their_order() {
        let berlin = TimeZone::get("Europe/Berlin").unwrap();
        let mut dates = Dates::default();
        for (text, expected) in [
            ("Oct 25 01:59:00", "2026-10-24T23:59:00.000Z"),
            ("Oct 25 02:00:00", "2026-10-25T00:00:00.000Z"),
            ("Oct 25 02:59:00", "2026-10-25T00:59:00.000Z"),
            // A second out of order is no other hour.
            ("Oct 25 02:58:59", "2026-10-25T00:58:59.000Z"),
            ("Oct 25 02:00:01", "2026-10-25T01:00:01.000Z"),
            ("Oct 25 02:30:00", "2026-10-25T01:30:00.000Z"),
            ("Oct 25 02:29:59", "2026-10-25T01:29:59.000Z"),
            ("Oct 25 03:00:00", "2026-10-25T02:00:00.000Z"),
        ] {
            let (stamp, _) = Stamp::find(text.as_bytes()).unwrap();
            let found = dates.resolve(&stamp, moment(NOW), &berlin).unwrap();
            assert_eq!(found.to_string(), expected, "{text}");
        }
        // By itself it is the first of the two.
        let (stamp, _) = Stamp::find(b"Oct 25 02:30:00").unwrap();
        assert_eq!(stamp.resolve(moment(NOW), &berlin).unwrap().to_string(), "2026-10-25T00:30:00.000Z");
    }

    #[test]
    fn a_stamp_says_what_it_names() {
        for (text, zone, day) in [
            ("2026-11-21T10:00:00Z", true, true),
            ("2026-11-21T10:00:00+01:00", true, true),
            ("1795255200", true, true),
            ("Nov 21 10:00:00", false, true),
            ("2026-11-21 10:00:00 CET", false, true),
            ("10:00:00", false, false),
        ] {
            let (stamp, _) = Stamp::find(text.as_bytes()).unwrap();
            assert_eq!((stamp.names_zone(), stamp.names_day()), (zone, day), "{text}");
        }
    }

    #[test]
    fn a_date_without_a_year_is_the_latest_that_is_not_far_ahead() {
        for (text, expected) in [
            ("Nov 22 11:59:59", "2026-11-22T11:59:59.000Z"),
            ("Nov 22 12:00:01", "2025-11-22T12:00:01.000Z"),
            ("Dec 31 23:59:59", "2025-12-31T23:59:59.000Z"),
            ("Jan  1 00:00:00", "2026-01-01T00:00:00.000Z"),
            ("Feb 29 00:00:00", "2024-02-29T00:00:00.000Z"),
            ("23:00:00", "2026-11-20T23:00:00.000Z"),
        ] {
            assert_eq!(resolved(text), expected, "{text}");
        }
        for (text, now, expected) in [
            ("Jan  1 00:00:30", "2026-12-31T23:59:50Z", "2027-01-01T00:00:30.000Z"),
            ("Dec 31 23:59:59", "2027-01-01T00:00:10Z", "2026-12-31T23:59:59.000Z"),
            ("Feb 29 10:00:00", "2027-03-01T00:00:00Z", "2024-02-29T10:00:00.000Z"),
            ("Feb 29 10:00:00", "2028-02-28T12:00:00Z", "2028-02-29T10:00:00.000Z"),
            ("23:59:59", "2027-01-01T00:00:10Z", "2026-12-31T23:59:59.000Z"),
            ("00:00:10", "2026-12-31T23:59:59Z", "2027-01-01T00:00:10.000Z"),
        ] {
            let (stamp, _) = Stamp::find(text.as_bytes()).unwrap();
            let found = stamp.resolve(moment(now), &TimeZone::UTC).unwrap();
            assert_eq!(found.to_string(), expected, "{text} read {now}");
        }
    }

    #[test]
    fn day_month_and_hour_may_have_one_digit() {
        for text in [
            "2026-02-03  1:02:03",
            "26/2/3@01:02:03",
            "26/02/03@01:02:03",
            "260203  1:02:03",
            "Feb 3  1:02:03",
            "Feb  3 1:02:03 2026",
        ] {
            assert_eq!(resolved(text), "2026-02-03T01:02:03.000Z", "{text}");
        }
    }

    #[test]
    fn a_date_without_a_zone_is_local() {
        let zone = TimeZone::get("Europe/Berlin").unwrap();
        let (stamp, _) = Stamp::find(b"Jul 21 10:00:00").unwrap();
        assert_eq!(stamp.resolve(moment(NOW), &zone).unwrap().to_string(), "2026-07-21T08:00:00.000Z");
    }

    #[test]
    fn what_no_calendar_has_is_no_date() {
        for text in
            ["Foo 21 10:00:00", "Nov 32 10:00:00", "Nov 21 25:00:00", "2026-13-01 00:00:00", "123456", ""]
        {
            assert_eq!(Stamp::find(text.as_bytes()), None, "{text}");
        }
        let (stamp, _) = Stamp::find(b"2026-02-30 00:00:00").unwrap();
        assert_eq!(stamp.resolve(moment(NOW), &TimeZone::UTC), None);
    }

    #[test]
    fn a_host_named_like_a_year_stays_a_host() {
        let (stamp, rest) = Stamp::find_syslog(b"Nov 21 10:00:00 2026 sshd[1]: x").unwrap();
        assert_eq!((stamp.text(), rest), (&b"Nov 21 10:00:00"[..], &b" 2026 sshd[1]: x"[..]));
    }

    #[test]
    fn a_number_behind_a_date_is_no_year_unless_it_can_be_one() {
        assert_eq!(Stamp::find(b"Nov 21 10:00:00 4242 x").unwrap().0.text(), b"Nov 21 10:00:00");
        assert_eq!(Stamp::find(b"Nov 21 10:00:00 2026 x").unwrap().0.text(), b"Nov 21 10:00:00 2026");
    }

    #[test]
    fn the_last_answer_is_kept_only_for_the_same_text() {
        let mut dates = Dates::default();
        for text in ["Nov 21 10:00:00", "Nov 21 10:00:00", "Nov 21 10:00:01"] {
            let (stamp, _) = Stamp::find(text.as_bytes()).unwrap();
            let now = moment(NOW);
            assert_eq!(dates.resolve(&stamp, now, &TimeZone::UTC), stamp.resolve(now, &TimeZone::UTC));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_date_or_not(text in proptest::collection::vec(any::<u8>(), 0..60)) {
            used(&text);
        }

        #[test]
        fn nearly_a_date_never_panics(text in "[A-Za-z0-9@:/., +-]{0,40}") {
            used(text.as_bytes());
        }

        #[test]
        fn a_damaged_date_never_panics(
            text in prop::sample::select(&SAME[..]),
            at in any::<prop::sample::Index>(),
            with in "\\PC{0,3}",
        ) {
            let at = at.index(text.len());
            used([&text.as_bytes()[..at], with.as_bytes(), &text.as_bytes()[at + 1..]].concat().as_slice());
        }
    }

    /// Whatever a date is, it is short, and it is asked everything.
    fn used(text: &[u8]) {
        let Some((stamp, rest)) = Stamp::find(text) else { return };
        assert!(stamp.text().len() <= STAMP_BYTES_MAX && stamp.text().len() + rest.len() == text.len());
        let berlin = TimeZone::get("Europe/Berlin").unwrap();
        let mut dates = Dates::default();
        for now in [moment(NOW), Timestamp::from_millis(0), Timestamp::from_millis(i64::MAX)] {
            let _ = (dates.resolve(&stamp, now, &berlin), stamp.resolve(now, &TimeZone::UTC));
            let _ = (stamp.names_zone(), stamp.names_day());
        }
    }
}
