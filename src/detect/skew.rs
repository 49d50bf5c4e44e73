//! A log whose writer has another clock, or another zone, than this host: told from the dates of its new lines.
#![forbid(unsafe_code)]

use std::fmt;
use std::time::Duration;

use jiff::tz::TimeZone;

use crate::model::{Span, Timestamp};

/// So many lines, seen no faster than one a second ...
const LINES: u32 = 20;
/// ... over so long must agree before anything is said.
const LONG: Duration = Duration::from_secs(60);
/// Lines agree that differ by so many seconds at most: some wait in a buffer before they are written.
const JITTER_S: i64 = 5;
/// A clock that is off by less does no harm.
const HARMLESS_S: i64 = 60;
const QUARTER_HOUR_S: i64 = 900;

/// How the dates of a log differ from the time at which its lines arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Skew {
    /// Negative where the dates are behind.
    pub ahead_s: i64,
    /// The zone in which the dates would be right, in seconds east of UTC; none where no zone explains it.
    pub zone_s: Option<i64>,
}

/// What can be said of `/var/log/x.log`, from behind its name.
impl fmt::Display for Skew {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let length = Span(Duration::from_secs(self.ahead_s.unsigned_abs()));
        let side = if self.ahead_s < 0 { "behind" } else { "ahead of" };
        write!(f, "is written {length} {side} this host's clock")?;
        let zone = self.zone_s.map(|zone| match (zone, zone.abs() / 3600, zone.abs() / 60 % 60) {
            (0, ..) => "UTC".to_owned(),
            (_, hours, minutes) => format!("{}{hours:02}:{minutes:02}", if zone < 0 { '-' } else { '+' }),
        });
        match zone {
            Some(zone) => write!(
                f,
                " (in {zone}?): its lines are treated as now; write \"tz: {zone}\" in its jails, so that old lines \
                 are judged right too"
            ),
            None => write!(
                f,
                ": its lines are treated as now; set the clock of whoever writes it, so that old lines are judged \
                 right too"
            ),
        }
    }
}

/// Compares the dates of new lines with the clock, one line a second at most.
#[derive(Debug, Default)]
pub struct Comparison {
    looked_at: Option<Timestamp>,
    /// How far ahead the first of the lines was that agree so far.
    ahead_s: i64,
    since: Timestamp,
    lines: u32,
    found: Option<Skew>,
}

impl Comparison {
    /// What the lines agree on; none while they do not, or where the clocks do.
    pub fn found(&self) -> Option<Skew> {
        self.found
    }

    /// Takes in a line that arrived just now; whether something new is found.
    pub fn note(&mut self, line: &[u8], now: Timestamp, zone: &TimeZone) -> bool {
        if self.looked_at.is_some_and(|last| now.since(last).max(last.since(now)) < Duration::from_secs(1)) {
            return false;
        }
        self.looked_at = Some(now);
        let Some(stamp) = super::stamp_of(line).filter(|stamp| stamp.names_day()) else { return false };
        let Some(written) = stamp.resolve(now, zone) else { return false };
        let ahead_s = (written.as_millis() - now.as_millis()).div_euclid(1000);
        if (ahead_s - self.ahead_s).abs() > JITTER_S || self.lines == 0 {
            (self.ahead_s, self.since, self.lines) = (ahead_s, now, 0);
        }
        self.lines = self.lines.saturating_add(1);
        if self.lines < LINES || now.since(self.since) < LONG {
            return false;
        }
        let named = if stamp.names_zone() { None } else { Some(zone) };
        let found = (self.ahead_s.abs() > HARMLESS_S).then(|| skew(self.ahead_s, now, named));
        let is_known = |known: Skew, found: Skew| (known.ahead_s - found.ahead_s).abs() <= 2 * JITTER_S;
        if self.found.zip(found).is_some_and(|(known, found)| is_known(known, found)) {
            return false;
        }
        self.found = found;
        found.is_some()
    }
}

/// `zone` is the one in which the dates were read, where they name none.
fn skew(ahead_s: i64, now: Timestamp, zone: Option<&TimeZone>) -> Skew {
    let rounded = (ahead_s + QUARTER_HOUR_S / 2).div_euclid(QUARTER_HOUR_S) * QUARTER_HOUR_S;
    let now = jiff::Timestamp::from_millisecond(now.as_millis()).unwrap_or_default();
    let zone_s = zone
        .filter(|_| (ahead_s - rounded).abs() <= 2 * JITTER_S)
        .map(|zone| i64::from(zone.to_offset(now).seconds()) + rounded)
        // The zones there are (IANA): from UTC-12 to UTC+14.
        .filter(|zone_s| (-12 * 3600..=14 * 3600).contains(zone_s));
    Skew { ahead_s: if zone_s.is_some() { rounded } else { ahead_s }, zone_s }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_795_255_200_000);

    /// Feeds so many lines, one each `every` seconds, whose clock is `ahead` seconds ahead of UTC; how often
    /// something new was found, and what stands at the end.
    fn compare(zone: &TimeZone, form: &str, ahead: &[i64], lines: usize, every: u64) -> (u32, Option<Skew>) {
        let mut comparison = Comparison::default();
        let (mut now, mut news) = (NOW, 0);
        for ahead in ahead.iter().cycle().take(lines) {
            let clock = jiff::Timestamp::from_millisecond(now.as_millis() + ahead * 1000).unwrap();
            let line = clock.strftime(form).to_string();
            news += u32::from(comparison.note(line.as_bytes(), now, zone));
            now = now.plus(Duration::from_secs(every));
        }
        (news, comparison.found())
    }

    const SYSLOG: &str = "%b %e %H:%M:%S h sshd[1]: x";

    #[test]
    fn a_log_in_another_zone_is_told_once_with_the_zone_to_write() {
        let berlin = TimeZone::get("Europe/Berlin").unwrap();
        let (news, found) = compare(&berlin, SYSLOG, &[0, -2, -1], 100, 4);
        let told = format!("/var/log/x.log {}", found.unwrap());
        let wanted = "/var/log/x.log is written 1h behind this host's clock (in UTC?): its lines are treated as now; \
                      write \"tz: UTC\" in its jails, so that old lines are judged right too";
        assert_eq!((news, told.as_str()), (1, wanted));
        for (ahead, zone) in [(7200, "+02:00"), (19_800, "+05:30"), (-12_600, "-03:30"), (50_400, "+14:00")] {
            let (_, found) = compare(&TimeZone::UTC, SYSLOG, &[ahead], 30, 4);
            assert!(found.unwrap().to_string().contains(&format!("tz: {zone}\"")), "{found:?}");
        }
    }

    #[test]
    fn a_clock_that_is_wrong_is_told_where_no_zone_explains_it() {
        for (form, ahead, words) in [
            (SYSLOG, -187, "is written 3m7s behind this host's clock: its lines"),
            (SYSLOG, 400, "is written 6m40s ahead of this host's clock: its lines"),
            (SYSLOG, -86_400 * 3, "is written 3d behind this host's clock: its lines"),
            ("%Y-%m-%dT%H:%M:%SZ h sshd[1]: x", 3600, "is written 1h ahead of this host's clock: its lines"),
            ("{\"log\":\"x\\n\",\"stream\":\"stdout\",\"time\":\"%Y-%m-%dT%H:%M:%SZ\"}", -3600, "1h behind"),
        ] {
            let (_, found) = compare(&TimeZone::UTC, form, &[ahead], 30, 4);
            let told = found.expect(form).to_string();
            assert!(told.contains(words) && told.contains("set the clock"), "{told}");
        }
    }

    #[test]
    fn nothing_is_said_of_few_hasty_odd_or_harmless_lines() {
        for (ahead, lines, every) in [
            (&[3600][..], 19, 60),
            (&[3600], 30, 2),
            (&[3600], 1_000_000, 0),
            (&[3600, 0], 100, 4),
            (&[-30, -200, -90, -10], 100, 4),
            (&[50], 100, 4),
        ] {
            let (_, found) = compare(&TimeZone::UTC, SYSLOG, ahead, lines, every);
            assert_eq!(found, None, "{ahead:?} {lines} {every}");
        }
        for form in ["no date", "%H:%M:%S x", "Feb 30 10:00:00 h sshd[1]: x"] {
            assert_eq!(compare(&TimeZone::UTC, form, &[3600], 100, 4).1, None, "{form}");
        }
    }

    #[test]
    fn what_is_known_is_not_said_again_because_a_line_was_odd() {
        let aheads: Vec<i64> = [&[400; 30][..], &[0], &[403; 30], &[0], &[1000; 30]].concat();
        let (news, found) = compare(&TimeZone::UTC, SYSLOG, &aheads, aheads.len(), 4);
        assert_eq!((news, found.map(|found| found.ahead_s)), (2, Some(1000)));
    }

    #[test]
    fn what_was_put_right_is_not_said_any_more() {
        let aheads: Vec<i64> = [[3600; 40], [0; 40]].concat();
        assert_eq!(compare(&TimeZone::UTC, SYSLOG, &aheads, 80, 4), (1, None));
    }
}
