//! Lines in which a syslog daemon says that the line before them came again, so many times.
#![forbid(unsafe_code)]

use super::date::Stamp;
use super::header::{self, Format, Header, is_level, split_word, trim};

/// rsyslog keeps so many bytes of the message that it repeats, with the blank before it (tools/ratelimit.c). What
/// was cut there may read like another message.
const KEPT_BY_RSYSLOG: usize = 800;
/// syslog-ng quotes so many bytes (lib/logwriter.c).
const QUOTED_BY_SYSLOG_NG: usize = 20;

/// How many times, and what came, in rsyslog's `message repeated 3 times: [ MESSAGE]`.
pub(super) fn repeated(message: &[u8]) -> Option<(u32, &[u8])> {
    let rest = message.strip_prefix(b"message repeated ")?;
    let (times, rest) = split_word(rest);
    let message = rest.strip_prefix(b" times: [")?.strip_suffix(b"]")?;
    if message.len() >= KEPT_BY_RSYSLOG {
        return None;
    }
    Some((number(times)?, trim(message)))
}

/// A line that speaks of the one before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Again<'a> {
    pub times: u32,
    pub stamp: Stamp<'a>,
    host: &'a [u8],
    /// Whose line it was; none where the daemon speaks in its own name.
    program: Option<(&'a [u8], &'a [u8])>,
    /// How the message began.
    quoted: Option<&'a [u8]>,
}

impl<'a> Again<'a> {
    /// Reads it from a line with a date, in one of these words:
    ///
    /// * `HOST last message repeated 3 times`: syslogd of OpenBSD, NetBSD, Solaris and sysklogd
    /// * `HOST syslogd: last message repeated 3 times`: syslogd of FreeBSD (fprintlog_successive)
    /// * `HOST PROGRAM[PID]: last message repeated 3 times`: rsyslog before version 7; it may leave HOST out
    /// * `HOST PROGRAM: Last message 'MESSAGE' repeated 3 times, suppressed by syslog-ng on HOST`: syslog-ng
    ///
    /// Only whole messages are read, since a client may choose a part of any other.
    pub fn read(line: &'a [u8]) -> Option<Again<'a>> {
        let ends_so =
            line.ends_with(b" times") || before_last_word(line).ends_with(b"suppressed by syslog-ng on");
        if !ends_so {
            return None;
        }
        let Some(Header { stamp, host, program, pid, message, .. }) = header::read(Format::Syslog, line)
        else {
            return Again::untagged(line);
        };
        let (times, quoted) = match plainly(message) {
            Some(times) => (times, None),
            None => quoting(message).map(|(times, quoted)| (times, Some(quoted)))?,
        };
        let program = Some((program, pid)).filter(|_| program != b"syslogd");
        Some(Again { times, stamp: stamp?, host, program, quoted })
    }

    fn untagged(line: &'a [u8]) -> Option<Again<'a>> {
        let (stamp, mut rest) = header::syslog_stamp(line)?;
        let mut host = &b""[..];
        // The host, and before or behind it perhaps facility and level.
        for _ in 0..2 {
            let (word, after) = split_word(trim(rest));
            if plainly(trim(rest)).is_none() {
                match is_level(word) {
                    true => {}
                    false if host.is_empty() => host = word,
                    false => return None,
                }
                rest = after;
            }
        }
        Some(Again { times: plainly(trim(rest))?, stamp, host, program: None, quoted: None })
    }

    /// Whether it speaks of this line, which came just before it.
    pub fn is_of(&self, line: &[u8]) -> bool {
        let Some(before) = header::read(Format::Syslog, line).filter(|header| header.stamp.is_some()) else {
            return false;
        };
        let same_host = self.host == before.host || (self.host.is_empty() && self.program.is_some());
        same_host
            && match (self.program, self.quoted) {
                (None, _) => true,
                (Some(own), None) => own == (before.program, before.pid),
                // syslog-ng writes its own process number, or none.
                (Some((program, _)), Some(quoted)) => {
                    let message = before.message;
                    program == before.program && quoted == &message[..message.len().min(QUOTED_BY_SYSLOG_NG)]
                }
            }
    }
}

/// `last message repeated 3 times`, and nothing else.
fn plainly(message: &[u8]) -> Option<u32> {
    number(message.strip_prefix(b"last message repeated ")?.strip_suffix(b" times")?)
}

/// `Last message 'MESSAGE' repeated 3 times, suppressed by syslog-ng on HOST`.
fn quoting(message: &[u8]) -> Option<(u32, &[u8])> {
    let front = before_last_word(message).strip_suffix(b" times, suppressed by syslog-ng on")?;
    let times = number(&front[before_last_word(front).len() + 1..])?;
    let quoted = before_last_word(front).strip_prefix(b"Last message '")?.strip_suffix(b"' repeated")?;
    (quoted.len() <= QUOTED_BY_SYSLOG_NG).then_some((times, quoted))
}

fn before_last_word(text: &[u8]) -> &[u8] {
    memchr::memrchr(b' ', text).map_or(&[], |at| &text[..at])
}

fn number(text: &[u8]) -> Option<u32> {
    let is_number = (1..=9).contains(&text.len()) && text.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(text).ok().filter(|_| is_number)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: &str =
        "Nov 21 10:00:00 web01 sshd[42]: Failed password for root from 192.0.2.1 port 22 ssh2";

    /// How many times a line says that the one before came again.
    fn again(before: &str, line: &str) -> Option<u32> {
        Again::read(line.as_bytes()).filter(|again| again.is_of(before.as_bytes())).map(|again| again.times)
    }

    #[test]
    fn every_daemon_is_understood() {
        for line in [
            "Nov 21 10:00:09 web01 last message repeated 3 times",
            "<38>Nov 21 10:00:09 web01 last message repeated 3 times",
            "2026-11-21T10:00:09Z web01 last message repeated 3 times",
            "Nov 21 10:00:09 <auth.info> web01 last message repeated 3 times",
            "Nov 21 10:00:09 web01 auth.info last message repeated 3 times",
            "Nov 21 10:00:09 web01 syslogd: last message repeated 3 times",
            "<38>1 2026-11-21T10:00:09Z web01 syslogd - - - last message repeated 3 times",
            "Nov 21 10:00:09 web01 sshd[42]: last message repeated 3 times",
            "Nov 21 10:00:09  sshd[42]: last message repeated 3 times",
            "Nov 21 10:00:09 web01 sshd: Last message 'Failed password for ' repeated 3 times, suppressed by syslog-ng on web01.example.org",
            "Nov 21 10:00:09 web01 sshd[7]: Last message 'Failed password for ' repeated 3 times, suppressed by syslog-ng on web01",
        ] {
            assert_eq!(again(BEFORE, line), Some(3), "{line}");
        }
        assert_eq!(
            again("Nov 21 10:00:00 sshd[42]: x", "Nov 21 10:00:09 last message repeated 3 times"),
            Some(3)
        );
    }

    #[test]
    fn what_is_said_of_another_line_or_by_somebody_else_is_not_believed() {
        for line in [
            "Nov 21 10:00:09 web02 last message repeated 3 times",
            "Nov 21 10:00:09 last message repeated 3 times",
            "Nov 21 10:00:09 web01 sshd[43]: last message repeated 3 times",
            "Nov 21 10:00:09 web01 cron[42]: last message repeated 3 times",
            "Nov 21 10:00:09 web02 sshd[42]: last message repeated 3 times",
            "last message repeated 3 times",
            "web01 last message repeated 3 times",
            "Nov 21 10:00:09 x web01 last message repeated 3 times",
            "Nov 21 10:00:09 web01 auth.info x last message repeated 3 times",
            "Nov 21 10:00:09 web01 sshd[42]: Invalid user last message repeated 3 times",
            "Nov 21 10:00:09 web01 sshd[42]: Invalid user last message repeated 3 times from 192.0.2.1 port 22",
            "Nov 21 10:00:09 web01 sshd[42]: last message repeated 3 times x times",
            "Nov 21 10:00:09 web01 last message repeated -3 times",
            "Nov 21 10:00:09 web01 last message repeated 1234567890 times",
            "Nov 21 10:00:09 web01 sshd: Last message 'Accepted password fo' repeated 3 times, suppressed by syslog-ng on web01",
            "Nov 21 10:00:09 web01 sshd: Last message 'Failed' repeated 3 times, suppressed by syslog-ng on web01",
            "Nov 21 10:00:09 web01 sshd: Last message '' repeated 3 times, suppressed by syslog-ng on web01",
            "Nov 21 10:00:09 web01 cron: Last message 'Failed password for ' repeated 3 times, suppressed by syslog-ng on web01",
            "repeated 3 times, suppressed by syslog-ng on web01",
            " times",
            "",
        ] {
            assert_eq!(again(BEFORE, line), None, "{line}");
        }
        for before in ["no header", "sshd[42]: bad", ""] {
            assert_eq!(again(before, "Nov 21 10:00:09 last message repeated 3 times"), None, "{before}");
        }
    }

    #[test]
    fn rsyslog_repeats_the_message_itself_unless_it_had_to_cut_it() {
        assert_eq!(repeated(b"message repeated 3 times: [ bad]"), Some((3, &b"bad"[..])));
        assert_eq!(repeated(b"message repeated 3 times: [bad]"), Some((3, &b"bad"[..])));
        let kept = |length: usize| format!("message repeated 3 times: [{}]", "x".repeat(length));
        assert!(repeated(kept(799).as_bytes()).is_some());
        assert_eq!(repeated(kept(800).as_bytes()), None);
        for message in [
            "message repeated 3 times: [ bad",
            "message repeated x times: [ bad]",
            "message repeated  times: [ bad]",
            "Message repeated 3 times: [ bad]",
            "x message repeated 3 times: [ bad]",
            "message repeated 3 times",
        ] {
            assert_eq!(repeated(message.as_bytes()), None, "{message}");
        }
    }
}
