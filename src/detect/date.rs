//! Dates as services write them: found as a slice of the line, converted only when asked for.
#![forbid(unsafe_code)]

use std::time::Duration;

use jiff::civil::{Date, DateTime};
use jiff::tz::{Offset, TimeZone};

use crate::model::Timestamp;

/// The forms of a date, most wanted first. To know one more, add a row.
///
/// `%Y` year, `%y` its last two digits (20yy), `%m` month, `%n` month of one or two digits, `%b` its English
/// name, `%d` day, `%e` day of one or two digits, `%H` `%M` `%S` time, `%I` hour of one or two digits (12 h where
/// `%p` follows), `%p` AM or PM, `%f` a fraction if there is one, `%z` a zone if there is one, `%a` a weekday if
/// there is one, `%_` blanks, `%Z` the name of a zone, `%s` seconds since 1970, `%@` TAI64N. All else stands for
/// itself.
pub(super) const FORMS: [&str; 29] = [
    "%a%b%_%e%_%H:%M:%S%f",
    "%Y-%m-%dT%H:%M:%S%f%z",
    "%Y-%m-%d%_%I:%M:%S%f%z",
    "%a%b%_%e%_%H:%M:%S%f%_%Y",
    "%a%b%_%e%_%Y%_%H:%M:%S%f",
    "%Y/%m/%d%_%H:%M:%S%f%z",
    "%Y.%m.%d%_%H:%M:%S%f%z",
    "%d/%b/%Y:%H:%M:%S%f%z",
    "%d/%b/%Y%_%H:%M:%S%f%z",
    "%d-%b-%Y%_%H:%M:%S%f%z",
    "%a%e%_%b%_%Y%_%H:%M:%S%f%z",
    "%d/%m/%Y%_%H:%M:%S%f",
    "%d-%m-%Y%_%H:%M:%S%f%z",
    "%d.%m.%Y%_%H:%M:%S%f",
    "%m/%d/%Y:%H:%M:%S%f",
    "%m/%d/%Y - %H:%M:%S%f",
    "%m-%d-%Y%_%H:%M:%S%f",
    "%b-%d-%y%_%H:%M:%S%f",
    "%b%_%e,%_%Y%_%I:%M:%S%_%p",
    "%Z%_%b%_%e%_%H:%M:%S%f",
    "%Z%_%a%b%_%e%_%H:%M:%S%f%_%Y",
    "%y%m%d%_%I:%M:%S",
    "%y/%n/%e@%H:%M:%S",
    "%Y%m%d-%H%M%S%f",
    "%Y%m%d-%H:%M:%S%f",
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
        for form in forms {
            if let Some((_, length)) = read(FORMS[form].as_bytes(), text)
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

    /// The moment it names. Without a zone it is read in `zone`; without a year it is the latest such date
    /// that is not more than 24 hours after `now`; without a day likewise. None where no calendar has it.
    pub fn resolve(&self, now: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let (fields, _) = read(FORMS[self.form].as_bytes(), self.text)?;
        if let Some(epoch_ms) = fields.epoch_ms {
            return Some(Timestamp::from_millis(epoch_ms));
        }
        let latest = now.plus(Duration::from_secs(86_400));
        let today = zone.to_datetime(jiff::Timestamp::from_millisecond(now.as_millis()).ok()?).date();
        if fields.month == 0 {
            let days = [today.tomorrow(), Ok(today), today.yesterday()];
            let moments = days.into_iter().flatten().filter_map(|day| fields.on(day, zone));
            return moments.into_iter().find(|&moment| moment <= now.plus(Duration::from_secs(60)));
        }
        if let Some(year) = fields.year {
            return fields.on(Date::new(year, fields.month, fields.day).ok()?, zone);
        }
        // Eight years back there was a 29 February for certain.
        (today.year() - 8..=today.year() + 1)
            .rev()
            .filter_map(|year| fields.on(Date::new(year, fields.month, fields.day).ok()?, zone))
            .find(|&moment| moment <= latest)
    }
}

/// Converts stamps and remembers the last one, since a busy log repeats its second.
#[derive(Debug, Default)]
pub struct Dates {
    last: Option<(Vec<u8>, usize, Timestamp, Timestamp)>,
}

impl Dates {
    /// Like [`Stamp::resolve`]; the answer is kept while the text stays and `now` moves less than a minute.
    pub fn resolve(&mut self, stamp: &Stamp, now: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        if let Some((text, form, asked, moment)) = &self.last
            && text == stamp.text
            && *form == stamp.form
            && now.since(*asked).max(asked.since(now)) < Duration::from_secs(60)
        {
            return Some(*moment);
        }
        let moment = stamp.resolve(now, zone)?;
        self.last = Some((stamp.text.to_vec(), stamp.form, now, moment));
        Some(moment)
    }
}

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
    fn on(&self, day: Date, zone: &TimeZone) -> Option<Timestamp> {
        // A leap second is the last one before it, as in the kernel's clock.
        let second = self.second.min(59);
        let nanos = i32::from(self.millis) * 1_000_000;
        let time = jiff::civil::Time::new(self.hour, self.minute, second, nanos).ok()?;
        let moment = DateTime::from_parts(day, time);
        let timestamp = match self.offset {
            Some(seconds) => Offset::from_seconds(seconds).ok()?.to_timestamp(moment).ok()?,
            None => zone.to_ambiguous_zoned(moment).compatible().ok()?.timestamp(),
        };
        Some(Timestamp::from_millis(timestamp.as_millisecond()))
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
            b'Z' => local_zone(text),
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
        let digits = std::str::from_utf8(text.strip_prefix(b"@")?.get(..24)?).ok()?;
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

    #[test]
    fn every_form_names_the_same_moment() {
        for text in [
            "Nov 21 10:00:00",
            "Sat Nov 21 10:00:00",
            "nov 21 10:00:00.000",
            "2026-11-21T10:00:00Z",
            "2026-11-21T10:00:00",
            "2026-11-21T11:00:00.000000+01:00",
            "2026-11-21 10:00:00,000",
            "2026-11-21 05:00:00 -0500",
            "2026-11-21  10:00:00 UTC",
            "21-11-2026 13:00:00 +0300",
            "11/21/2026 - 10:00:00",
            "26/11/21@10:00:00",
            "20261121-10:00:00",
            "11-21 10:00:00.000",
            "2026-11-21 10:00:00.000 CET",
            "Sat Nov 21 10:00:00.000000 2026",
            "Nov 21 2026 10:00:00",
            "2026/11/21 10:00:00",
            "2026.11.21 10:00:00",
            "21/Nov/2026:10:00:00 +0000",
            "21/Nov/2026 10:00:00",
            "21-Nov-2026 10:00:00.000",
            "21 Nov 2026 10:00:00.000",
            "Sat, 21 Nov 2026 10:00:00 GMT",
            "21/11/2026 10:00:00",
            "21-11-2026 10:00:00",
            "21.11.2026 10:00:00",
            "11/21/2026:10:00:00",
            "11-21-2026 10:00:00",
            "Nov-21-26 10:00:00",
            "Nov 21, 2026 10:00:00 AM",
            "CET Nov 21 10:00:00",
            "CET Sat Nov 21 10:00:00 2026",
            "261121 10:00:00",
            "20261121-100000",
            "1795255200",
            "1795255200.000",
            "1795255200000",
            "1795255200000000",
            "@400000006b016baa00000000",
            "10:00:00",
        ] {
            assert_eq!(resolved(text), "2026-11-21T10:00:00.000Z", "{text}");
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
        let (stamp, _) = Stamp::find(b"Jan  1 00:00:30").unwrap();
        let year_ends = moment("2026-12-31T23:59:50Z");
        assert_eq!(stamp.resolve(year_ends, &TimeZone::UTC).unwrap().to_string(), "2027-01-01T00:00:30.000Z");
    }

    #[test]
    fn day_month_and_hour_may_have_one_digit() {
        for text in ["2026-02-03  1:02:03", "26/2/3@01:02:03", "26/02/03@01:02:03", "260203  1:02:03"] {
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
            if let Some((stamp, _)) = Stamp::find(&text) {
                let _ = stamp.resolve(moment(NOW), &TimeZone::UTC);
            }
        }

        #[test]
        fn nearly_a_date_never_panics(text in "[A-Za-z0-9@:/., +-]{0,40}") {
            if let Some((stamp, _)) = Stamp::find(text.as_bytes()) {
                let _ = stamp.resolve(moment(NOW), &TimeZone::UTC);
            }
        }
    }
}
