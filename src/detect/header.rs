//! What stands before a service's own words: when, which host, which program, and for web servers which client.
#![forbid(unsafe_code)]

use serde::Deserialize;

use super::address;
use super::date::Stamp;
use super::repeat;
use super::web::{apache_error, clf, nginx_error};

/// How lines are wrapped; patterns see only [`Header::message`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// RFC 3164, RFC 5424 or ISO 8601 syslog, or a journal entry printed as `HOST PROGRAM[PID]: MESSAGE`.
    Syslog,
    /// The kernel's log, by itself or in syslog; the seconds since boot are left out.
    Kernel,
    /// An access log: `[VHOST ]CLIENT IDENT USER [DATE] "REQUEST" …`, or `CLIENT HOST USER …`. Gives the
    /// client's address and the user; the message begins with `"REQUEST"`.
    Clf,
    /// nginx's error log; the message begins after level, process and connection number.
    NginxError,
    /// apache's error log, 2.2 and 2.4; gives the client's address, the message begins after it.
    ApacheError,
    /// One JSON object per line; the rule's `fields` say what is where.
    Json,
    /// Any leading date, in brackets or behind a level or not; the message begins after it.
    Date,
    /// Nothing: the whole line is the message.
    None,
}

impl Format {
    /// Whether the header itself names the client, so that patterns need not.
    pub fn names_the_client(self) -> bool {
        matches!(self, Format::Clf | Format::ApacheError | Format::Json)
    }
}

/// A line taken apart; everything is a slice of it, and empty where the line does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header<'a> {
    pub stamp: Option<Stamp<'a>>,
    pub host: &'a [u8],
    pub program: &'a [u8],
    /// The part of the program that speaks, as apache's error log names it.
    pub module: &'a [u8],
    pub pid: &'a [u8],
    /// What the header says is the client; not yet proven to be an address.
    pub client: Option<Client<'a>>,
    pub user: &'a [u8],
    pub message: &'a [u8],
    /// How many times it came, where a syslog daemon says so; otherwise 0.
    pub times: u32,
}

/// A client as a header writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client<'a> {
    /// An address and nothing else.
    Plain(&'a [u8]),
    /// The last colon begins the port, even behind IPv6 without brackets.
    WithPort(&'a [u8]),
    /// An address, or `ADDRESS:PORT` with IPv6 in brackets.
    PerhapsWithPort(&'a [u8]),
}

impl Client<'_> {
    pub fn addr(&self) -> Option<std::net::IpAddr> {
        match self {
            Client::Plain(text) => address::parse(text),
            Client::WithPort(text) => address::parse_before_port(text),
            Client::PerhapsWithPort(text) => address::parse_with_port(text),
        }
    }
}

/// Reads the header of `line`; none where it is not of this format. JSON is read elsewhere.
pub fn read(format: Format, line: &[u8]) -> Option<Header<'_>> {
    match format {
        Format::Syslog => syslog(line),
        Format::Kernel => kernel(line),
        Format::Clf => wrapped(line, clf).or_else(|| clf(line)),
        Format::NginxError => nginx_error(line).or_else(|| wrapped(line, nginx_error)),
        Format::ApacheError => apache_error(line).or_else(|| wrapped(line, apache_error)),
        Format::Date => dated(line),
        Format::None => Some(Header { message: line, ..Header::default() }),
        Format::Json => None,
    }
}

/// Reads a journal entry, whose host, program and process are known; none where it is not of this format.
pub fn read_entry<'a>(format: Format, entry: &Header<'a>) -> Option<Header<'a>> {
    let message = entry.message;
    let own = match format {
        Format::Syslog | Format::None => *entry,
        Format::Kernel if entry.program != b"kernel" => return None,
        Format::Kernel => Header { message: without_uptime(message).unwrap_or(message), ..*entry },
        Format::Clf => inner(message, clf)?,
        Format::NginxError => inner(message, nginx_error)?,
        Format::ApacheError => inner(message, apache_error)?,
        Format::Date => dated(message)?,
        Format::Json => return None,
    };
    Some(Header { stamp: entry.stamp, host: entry.host, program: entry.program, pid: entry.pid, ..own })
}

/// A web server's line that came through syslog or the journal.
fn wrapped<'a>(line: &'a [u8], read: fn(&'a [u8]) -> Option<Header<'a>>) -> Option<Header<'a>> {
    let outer = syslog(line)?;
    let own = inner(outer.message, read)?;
    let Header { stamp, host, program, pid, times, .. } = outer;
    Some(Header { stamp, host, program, pid, times, ..own })
}

/// nginx writes `HOST TAG:` itself unless told `nohostname`, and what receives it from the socket of this machine
/// writes both again. Whose line it is the outer ones say.
fn inner<'a>(message: &'a [u8], read: fn(&'a [u8]) -> Option<Header<'a>>) -> Option<Header<'a>> {
    let plain = read(message);
    let is_clear = |header: &Header| header.client.is_none_or(|client| client.addr().is_some());
    plain.filter(is_clear).or_else(|| read(tagged(message)?.message)).or(plain)
}

fn syslog(line: &[u8]) -> Option<Header<'_>> {
    let header = one_syslog(line)?;
    match header.stamp.and_then(|_| repeat::repeated(header.message)) {
        Some((times, message)) => Some(Header { message, times, ..header }),
        None => Some(header),
    }
}

fn one_syslog(line: &[u8]) -> Option<Header<'_>> {
    let line = match priority(line) {
        Some([b'1', b' ', rest @ ..]) => return rfc5424(rest),
        Some(rest) => rest,
        None => line,
    };
    if let Some((stamp, rest)) = bracketed_stamp(line) {
        return Some(Header { stamp: Some(stamp), ..tagged(rest)? });
    }
    match stamp_at_start(line) {
        Some((stamp, rest @ [b' ', ..])) => Some(Header { stamp: Some(stamp), ..tagged(trim(rest))? }),
        Some(_) => None,
        None => tagged(line),
    }
}

/// The date that a syslog daemon put before a line, and what follows it.
pub(super) fn syslog_stamp(line: &[u8]) -> Option<(Stamp<'_>, &[u8])> {
    stamp_at_start(priority(line).unwrap_or(line))
}

fn stamp_at_start(line: &[u8]) -> Option<(Stamp<'_>, &[u8])> {
    // multilog puts a TAI64N date before what a program says.
    if line.starts_with(b"@") { Stamp::find(line) } else { Stamp::find_syslog(line) }
}

/// `[DATE] REST`, as NSD begins the lines of its own file.
fn bracketed_stamp(line: &[u8]) -> Option<(Stamp<'_>, &[u8])> {
    let (stamp, rest) = Stamp::find(line.strip_prefix(b"[")?)?;
    Some((stamp, trim(rest.strip_prefix(b"]")?)))
}

/// What follows `<PRI>`, the priority number of RFC 3164 and RFC 5424.
fn priority(line: &[u8]) -> Option<&[u8]> {
    let rest = line.strip_prefix(b"<")?;
    let digits = rest.iter().take_while(|b| b.is_ascii_digit()).count();
    (1..=3).contains(&digits).then(|| rest[digits..].strip_prefix(b">"))?
}

/// `HOST TAG: MESSAGE`, `TAG: MESSAGE`, busybox's `HOST FACILITY.LEVEL TAG: MESSAGE`, FreeBSD's
/// `<FACILITY.LEVEL> HOST TAG: MESSAGE`, and `HOST HOST TAG: MESSAGE` where rsyslog and a service both wrote the
/// host. No host begins with `@`, but a TAI64N date does.
fn tagged(text: &[u8]) -> Option<Header<'_>> {
    let mut rest = text;
    let mut host: &[u8] = b"";
    for position in 0..3 {
        let (word, after) = split_word(rest);
        if let Some((program, pid)) = tag(word) {
            let message = without_message_id(trim(after));
            return Some(Header { host, program, pid, message, ..Header::default() });
        }
        match position {
            0 if word.starts_with(b"@") => return None,
            0 if word.starts_with(b"<") && is_level(word) => (),
            0 => host = word,
            1 if is_level(word) || word == host => (),
            1 if host.is_empty() => host = word,
            _ => return None,
        }
        rest = trim(after);
    }
    None
}

/// `NAME:`, `NAME[PID]:` or `[NAME]:`.
fn tag(word: &[u8]) -> Option<(&[u8], &[u8])> {
    let word = word.strip_suffix(b":")?;
    if let Some(name) = word.strip_prefix(b"[") {
        return Some((name.strip_suffix(b"]").filter(|name| is_name(name))?, b""));
    }
    let Some(inner) = word.strip_suffix(b"]") else { return is_name(word).then_some((word, b"")) };
    let open = inner.iter().rposition(|&b| b == b'[')?;
    let (name, pid) = (&inner[..open], &inner[open + 1..]);
    (is_name(name) && !pid.is_empty()).then_some((name, pid))
}

/// Whatever a plugin names in parentheses, as in `wordpress(blog.example.com:8080)`, belongs to the name.
fn is_name(name: &[u8]) -> bool {
    let open = name.iter().position(|&b| b == b'(').filter(|_| name.ends_with(b")"));
    let name = &name[..open.unwrap_or(name.len())];
    !name.is_empty() && !name.iter().any(|b| matches!(b, b'[' | b']' | b':' | b'"'))
}

/// `auth.info` as busybox's syslogd writes it, or FreeBSD's `<auth.info>`.
pub(super) fn is_level(word: &[u8]) -> bool {
    let word = word.strip_prefix(b"<").and_then(|inner| inner.strip_suffix(b">")).unwrap_or(word);
    let dot = word.iter().position(|&b| b == b'.');
    dot.is_some_and(|dot| dot > 0 && dot + 1 < word.len())
        && word.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'.')
}

/// Solaris puts `[ID NUMBER FACILITY.LEVEL]` before the message.
fn without_message_id(message: &[u8]) -> &[u8] {
    let after_id = || {
        let inner = message.strip_prefix(b"[ID ")?;
        let end = inner.iter().position(|&b| b == b']')?;
        let (number, level) = split_word(&inner[..end]);
        (number.iter().all(u8::is_ascii_digit) && is_level(trim(level))).then(|| trim(&inner[end + 1..]))
    };
    after_id().unwrap_or(message)
}

/// RFC 5424, section 6, from behind the version.
fn rfc5424(rest: &[u8]) -> Option<Header<'_>> {
    let (stamp, rest) = match rest {
        [b'-', b' ', rest @ ..] => (None, rest),
        _ => {
            let (stamp, rest) = Stamp::find_syslog(rest)?;
            (Some(stamp), rest.strip_prefix(b" ")?)
        }
    };
    let mut words = [&b""[..]; 4];
    let mut rest = rest;
    for word in &mut words {
        let (found, after) = split_word(rest);
        *word = if found == b"-" { b"" } else { found };
        rest = after.strip_prefix(b" ")?;
    }
    let [host, program, pid, _] = words;
    let message = trim(structured_data(rest)?);
    let message = message.strip_prefix("\u{feff}".as_bytes()).unwrap_or(message);
    Some(Header { stamp, host, program, pid, message, ..Header::default() })
}

/// What follows the structured data: `-`, or elements in brackets whose values may quote anything.
fn structured_data(text: &[u8]) -> Option<&[u8]> {
    if let Some(rest) = text.strip_prefix(b"-") {
        return (rest.is_empty() || rest[0] == b' ').then_some(rest);
    }
    let mut rest = text;
    while let Some(element) = rest.strip_prefix(b"[") {
        let (mut quoted, mut escaped, mut end) = (false, false, None);
        for (i, &byte) in element.iter().enumerate() {
            match byte {
                _ if escaped => escaped = false,
                b'\\' if quoted => escaped = true,
                b'"' => quoted = !quoted,
                b']' if !quoted => {
                    end = Some(i);
                    break;
                }
                _ => (),
            }
        }
        rest = &element[end? + 1..];
    }
    (rest.len() < text.len() && (rest.is_empty() || rest[0] == b' ')).then_some(rest)
}

fn kernel(line: &[u8]) -> Option<Header<'_>> {
    match syslog(line) {
        Some(header) if header.program == b"kernel" => {
            let message = without_uptime(header.message).unwrap_or(header.message);
            Some(Header { message, ..header })
        }
        Some(header) if header.stamp.is_some() => None,
        _ => Some(Header { program: b"kernel", message: without_uptime(line)?, ..Header::default() }),
    }
}

/// What follows `[ 1234.567890]`, the seconds since boot.
fn without_uptime(message: &[u8]) -> Option<&[u8]> {
    let inner = trim(message.strip_prefix(b"[")?);
    let end = inner.iter().position(|&b| b == b']')?;
    let is_number = end > 0 && inner[..end].iter().all(|b| b.is_ascii_digit() || *b == b'.');
    is_number.then(|| trim(&inner[end + 1..]))
}

fn dated(line: &[u8]) -> Option<Header<'_>> {
    let behind_prefix = || date_at_start(without_prefix(line)?);
    date_at_start(line).or_else(behind_prefix).or_else(|| audited(line))
}

/// `DATE MESSAGE`, the date in brackets or not.
fn date_at_start(line: &[u8]) -> Option<Header<'_>> {
    if let Some((stamp, rest)) = Stamp::find(line).filter(|_| line.starts_with(b"<")) {
        return Some(Header { stamp: Some(stamp), message: trim(rest), ..Header::default() });
    }
    let open = line.iter().take(2).take_while(|b| matches!(b, b'[' | b'<' | b'(' | b' ')).count();
    let (stamp, rest) = Stamp::find(&line[open..])?;
    let close =
        rest.iter().take(2).take_while(|b| matches!(b, b']' | b'>' | b')' | b':' | b',' | b';')).count();
    Some(Header { stamp: Some(stamp), message: trim(&rest[close..]), ..Header::default() })
}

/// What some services write before the date: mumble's level as in `<W>2026-11-21`, a word in capitals
/// (tinyproxy's level, the `L` of Half-Life), or the call's UUID (freeswitch).
fn without_prefix(line: &[u8]) -> Option<&[u8]> {
    if let [b'<', b'A'..=b'Z', b'>', rest @ ..] = line {
        return Some(rest);
    }
    let (word, rest) = split_word(line);
    let is_uuid = word.len() == 36 && word.iter().all(|b| b.is_ascii_hexdigit() || *b == b'-');
    let is_level = !word.is_empty() && word.iter().all(u8::is_ascii_uppercase);
    (is_uuid || is_level).then(|| trim(rest))
}

/// `type=TYPE msg=audit(EPOCH:NUMBER): …`, perhaps with `node=NAME` before it, as auditd writes. The type is a
/// part of the message, so all of the line is.
fn audited(line: &[u8]) -> Option<Header<'_>> {
    let (first, rest) = split_word(line);
    let (kind, rest) = if first.starts_with(b"node=") { split_word(trim(rest)) } else { (first, rest) };
    let date = rest.strip_prefix(b" msg=audit(").filter(|_| kind.starts_with(b"type="))?;
    let (stamp, _) = Stamp::find(date)?;
    Some(Header { stamp: Some(stamp), message: line, ..Header::default() })
}

pub(super) fn split_word(text: &[u8]) -> (&[u8], &[u8]) {
    text.split_at(text.iter().position(|&b| b == b' ').unwrap_or(text.len()))
}

pub(super) fn trim(text: &[u8]) -> &[u8] {
    &text[text.iter().take_while(|b| matches!(b, b' ' | b'\t')).count()..]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(bytes: &[u8]) -> &str {
        std::str::from_utf8(bytes).unwrap()
    }

    #[test]
    fn every_syslog_daemon_is_understood() {
        for (line, host, pid) in [
            ("Nov 21 10:00:00 web01 sshd[4242]: Hello", "web01", "4242"),
            ("Nov  1 10:00:00 web01 sshd[4242]: Hello", "web01", "4242"),
            ("Nov 1 10:00:00 web01 sshd[4242]: Hello", "web01", "4242"),
            ("<38>Nov 21 10:00:00 web01 sshd[4242]: Hello", "web01", "4242"),
            ("2026-11-21T10:00:00.123456+00:00 web01 sshd[4242]: Hello", "web01", "4242"),
            ("2026-11-21 10:00:00 web01 sshd[4242]:  Hello", "web01", "4242"),
            ("web01 sshd[4242]: Hello", "web01", "4242"),
            ("Nov 21 10:00:00 sshd[4242]: Hello", "", "4242"),
            ("Nov 21 10:00:00 [sshd]: Hello", "", ""),
            ("Nov 21 10:00:00 web01 sshd: Hello", "web01", ""),
            ("Nov 21 10:00:00 web01 sshd[4242]: [ID 800047 auth.info] Hello", "web01", "4242"),
            ("Nov 21 10:00:00 web01 auth.info sshd[4242]: Hello", "web01", "4242"),
            ("Nov 21 10:00:00 web01 <auth.info> sshd[4242]: Hello", "web01", "4242"),
            ("Nov 21 10:00:00 <auth.info> web01 sshd[4242]: Hello", "web01", "4242"),
            ("@400000006a203f3d0a8c5f2c sshd: Hello", "", ""),
            ("Nov 21 10:00:00 web01 web01 sshd[4242]: Hello", "web01", "4242"),
            ("[1795255200] sshd[4242]: Hello", "", "4242"),
            ("[2026-11-21 10:00:00.123] sshd[4242]: Hello", "", "4242"),
            ("<38>1 2026-11-21T10:00:00Z web01 sshd 4242 - - Hello", "web01", "4242"),
            ("<38>1 - web01 sshd 4242 - -  Hello", "web01", "4242"),
            (
                r#"<38>1 2026-11-21T10:00:00Z web01 sshd 4242 ID1 [a b="]\"x"][c d="e"] Hello"#,
                "web01",
                "4242",
            ),
            ("<38>1 2026-11-21T10:00:00Z web01 sshd 4242 - - \u{feff}Hello", "web01", "4242"),
        ] {
            let header = read(Format::Syslog, line.as_bytes()).expect(line);
            assert_eq!(
                (text(header.host), text(header.program), text(header.pid), text(header.message)),
                (host, "sshd", pid, "Hello"),
                "{line}"
            );
        }
    }

    #[test]
    fn what_another_program_quotes_is_its_own_message() {
        for (line, program) in [
            ("Nov 21 10:00:00 web01 myapp[77]: GET /?q=sshd[1]: Failed", "myapp"),
            ("Nov 21 10:00:00 web01 sudo: bob : COMMAND=/bin/echo sshd[1]: Failed", "sudo"),
            ("Nov 21 10:00:00 web01 wp(blog.example.com:8080)[9]: sshd: Failed", "wp(blog.example.com:8080)"),
            ("Nov 21 10:00:00 web01 wp([2001:db8::1]:80): sshd: Failed", "wp([2001:db8::1]:80)"),
            (r#"<38>1 2026-11-21T10:00:00Z web01 myapp 7 - [x y="] sshd 1 - - Failed"] z"#, "myapp"),
        ] {
            assert_eq!(text(read(Format::Syslog, line.as_bytes()).expect(line).program), program, "{line}");
        }
        for line in [
            "Failed password for root from 203.0.113.9 port 22 ssh2",
            "Nov 21 10:00:00 web01 last message repeated 2 times",
            "Nov 21 10:00:00 web01 mail01 sshd[1]: x",
            "Nov 21 10:00:00web01 sshd[1]: x",
            "[1795255200 web01] sshd[1]: x",
            r#"<38>1 2026-11-21T10:00:00Z web01 sshd 4242 - [a b="c] Hello"#,
            "",
        ] {
            assert_eq!(read(Format::Syslog, line.as_bytes()), None, "{line}");
        }
    }

    #[test]
    fn what_rsyslog_repeats_is_the_message_of_its_program() {
        let read = |format, line: &'static str| {
            let header = read(format, line.as_bytes()).expect(line);
            (text(header.program), text(header.message), header.times)
        };
        let line = "Nov 21 10:00:00 web01 sshd[42]: message repeated 3 times: [ Failed password]";
        assert_eq!(read(Format::Syslog, line), ("sshd", "Failed password", 3));
        let line = "Nov 21 10:00:00 web01 kernel: message repeated 3 times: [ [  123.456789] DROP]";
        assert_eq!(read(Format::Kernel, line), ("kernel", "DROP", 3));
        let line = "Nov 21 10:00:00 web01 nginx: message repeated 3 times: [ 192.0.2.1 - - [21/Nov/2026:10:00:00 +0000] \
                    \"GET /\" 404 1]";
        assert_eq!(read(Format::Clf, line), ("nginx", "\"GET /\" 404 1", 3));
        // A daemon writes the date as well.
        let line = "web01 sshd[42]: message repeated 3 times: [ Failed password]";
        assert_eq!(read(Format::Syslog, line).2, 0);
    }

    #[test]
    fn the_kernel_speaks_with_or_without_syslog() {
        for line in [
            "Nov 21 10:00:00 web01 kernel: [  123.456789] DROP IN=eth0",
            "Nov 21 10:00:00 web01 kernel: DROP IN=eth0",
            "[  123.456789] DROP IN=eth0",
        ] {
            assert_eq!(text(read(Format::Kernel, line.as_bytes()).expect(line).message), "DROP IN=eth0");
        }
        assert_eq!(read(Format::Kernel, b"Nov 21 10:00:00 web01 x[1]: kernel: DROP"), None);
    }

    #[test]
    fn a_leading_date_may_stand_in_brackets_or_behind_a_word() {
        for line in [
            "[2026-11-21 10:00:00] Hello",
            "2026-11-21 10:00:00,123 Hello",
            "<11/21/2026:10:00:00> Hello",
            "<11/21/26@10:00:00> Hello",
            "[20261121-10:00:00] Hello",
            "L 11/21/2026 - 10:00:00: Hello",
            "<W>2026-11-21 10:00:00.123 Hello",
            "NOTICE    Nov 21 10:00:00.123 Hello",
            "0b1e6e4c-9a3f-4c53-8d0e-1f2a3b4c5d6e 2026-11-21 10:00:00.123456 Hello",
        ] {
            assert_eq!(text(read(Format::Date, line.as_bytes()).expect(line).message), "Hello");
        }
        for line in
            ["type=USER_ERR msg=audit(1795255200.000:1): x", "node=a type=B msg=audit(1795255200.000:1): x"]
        {
            let header = read(Format::Date, line.as_bytes()).expect(line);
            assert_eq!((header.stamp.unwrap().text(), text(header.message)), (&b"1795255200.000"[..], line));
        }
        for line in [
            "Hello 2026-11-21 10:00:00",
            "msg=audit(1795255200.000:1): x",
            "node=type=B msg=audit(1795255200:1)",
        ] {
            assert_eq!(read(Format::Date, line.as_bytes()), None, "{line}");
        }
    }

    proptest! {
        #[test]
        fn any_line_has_a_header_or_not(
            start in prop_oneof![
                Just(""), Just("<38>1 "), Just("Nov 21 10:00:00 "), Just("web01 sshd["), Just("[Sat Nov 21 "),
                Just("192.0.2.1 - - ["), Just("2026/11/21 10:00:00 [error] "), Just("<1>1 - a b c d [")
            ],
            rest in proptest::collection::vec(any::<u8>(), 0..80),
        ) {
            let line = [start.as_bytes(), &rest].concat();
            for format in [
                Format::Syslog, Format::Kernel, Format::Clf, Format::NginxError, Format::ApacheError,
                Format::Date, Format::None,
            ] {
                if let Some(header) = read(format, &line) {
                    let _ = header.client.map(|client| client.addr());
                }
            }
        }
    }
}
