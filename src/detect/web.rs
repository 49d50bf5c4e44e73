//! What web servers write before a request or a message, and which part of it a client chose.
#![forbid(unsafe_code)]

use super::address;
use super::date::Stamp;
use super::header::{Client, Header, split_word, trim};

/// `[VHOST ]CLIENT IDENT USER [DATE] "REQUEST"`, or lighttpd's `CLIENT HOST USER [DATE] "REQUEST"`. The client
/// chooses the user's name, the request, and lighttpd's HOST.
pub(super) fn clf(line: &[u8]) -> Option<Header<'_>> {
    let quote = request_at(line)?;
    let before = without_vhost(&line[..quote])?;
    let bracket = before.iter().rposition(|&b| b == b'[')?;
    let (stamp, _) = Stamp::find(&before[bracket + 1..])?;
    // Exactly one blank parts the words: a user may be nothing but blanks, and is a word all the same.
    let mut words = before[..bracket].strip_suffix(b" ")?.splitn(3, |&b| b == b' ');
    let (first, second, rest) = (words.next()?, words.next()?, words.next()?);
    // Both a virtual host's name and lighttpd's HOST may be an address. Only behind a virtual host are there
    // two more words, `-` for IDENT and the user.
    let behind_vhost = rest.strip_prefix(b"- ").filter(|_| address::parse(second).is_some());
    let (client, user) = match behind_vhost {
        Some(user) => (second, user),
        None => (first, rest),
    };
    Some(Header {
        stamp: Some(stamp),
        client: Some(Client::Plain(client)),
        user: if matches!(user, b"-" | b"\"\"") { b"" } else { user.trim_ascii() },
        message: &line[quote..],
        ..Header::default()
    })
}

/// What stands before the `] ` that ends the date; some put the virtual host's name, one word, behind it.
fn without_vhost(before: &[u8]) -> Option<&[u8]> {
    let end = before.windows(2).rposition(|pair| pair == b"] ")?;
    let vhost = before[end + 2..].strip_suffix(b" ").unwrap_or(&before[end + 2..]);
    let is_word = !vhost.iter().any(|byte| matches!(byte, b' ' | b'[' | b']'));
    is_word.then_some(&before[..end])
}

/// Where the request's quote is: it is the first that the server itself wrote. Apache writes a quote in the
/// user's name behind a backslash and an empty name as `""`; nginx and lighttpd write no quote there.
fn request_at(line: &[u8]) -> Option<usize> {
    let is_own = |&at: &usize| line[at] == b'"' && (at == 0 || line[at - 1] != b'\\');
    let mut quotes = (0..line.len()).filter(is_own);
    let first = quotes.next()?;
    if line[first..].starts_with(b"\"\" [") { quotes.nth(1) } else { Some(first) }
}

/// `2026/11/21 10:00:00 [error] 1234#1234: *5 MESSAGE` (ngx_log.c).
pub(super) fn nginx_error(line: &[u8]) -> Option<Header<'_>> {
    let (stamp, rest) = Stamp::find(line)?;
    let (level, rest) = split_word(trim(rest));
    let (process, rest) = split_word(trim(rest));
    let process = process.strip_suffix(b":")?;
    let hash = process.iter().position(|&b| b == b'#')?;
    let is_level = level.starts_with(b"[") && level.ends_with(b"]");
    if !is_level || !process[..hash].iter().all(u8::is_ascii_digit) {
        return None;
    }
    let rest = trim(rest);
    let (connection, after) = split_word(rest);
    let message = if connection.starts_with(b"*") { trim(after) } else { rest };
    Some(Header { stamp: Some(stamp), pid: &process[..hash], message, ..Header::default() })
}

/// `[DATE] [core:error] [pid 1:tid 2] (13)Error: [client 192.0.2.1:5] MESSAGE` (server/core.c); 2.2 wrote
/// neither module nor process nor port. Through syslog there is no date.
pub(super) fn apache_error(line: &[u8]) -> Option<Header<'_>> {
    let dated = bracketed(line).and_then(|(inner, rest)| Some((Stamp::find(inner)?.0, rest)));
    let (stamp, rest) = match dated {
        Some((stamp, rest)) => (Some(stamp), rest),
        None => (None, line),
    };
    let (level, mut rest) = bracketed(rest)?;
    if !level.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b':' | b'_' | b'-')) {
        return None;
    }
    let mut modern = level.contains(&b':');
    let module = level.iter().position(|&b| b == b':').map_or(&b""[..], |colon| &level[..colon]);
    let mut header = Header { stamp, module, ..Header::default() };
    if let Some((inner, after)) = bracketed(rest)
        && let Some(pid) = inner.strip_prefix(b"pid ")
    {
        header.pid = &pid[..pid.iter().take_while(|b| b.is_ascii_digit()).count()];
        (modern, rest) = (true, after);
    }
    let rest = without_errno(rest);
    header.message = rest;
    if let Some((client, after)) = client_in_brackets(rest) {
        header.client = Some(if modern { Client::WithPort(client) } else { Client::PerhapsWithPort(client) });
        header.message = after;
    }
    Some(header)
}

/// `[client ADDRESS] REST`, where the address itself may stand in brackets, with a port behind them.
fn client_in_brackets(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let inner = text.strip_prefix(b"[client ")?;
    let own = if inner.starts_with(b"[") { 1 + inner.iter().position(|&b| b == b']')? } else { 0 };
    let end = own + inner[own..].iter().position(|&b| b == b']')?;
    Some((&inner[..end], trim(&inner[end + 1..])))
}

/// `[INNER] REST`.
fn bracketed(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let inner = text.strip_prefix(b"[")?;
    let end = inner.iter().position(|&b| b == b']')?;
    Some((&inner[..end], trim(&inner[end + 1..])))
}

/// `(13)Permission denied: ` is the system's own text; a bracket follows where there is a client.
fn without_errno(text: &[u8]) -> &[u8] {
    let after_errno = || {
        let inner = text.strip_prefix(b"(")?;
        let close = inner.iter().position(|&b| b == b')')?;
        let number = inner[..close].iter().all(|b| b.is_ascii_digit() || *b == b'-');
        let colon = close + inner[close..].windows(2).position(|pair| pair == b": ")?;
        let rest = trim(&inner[colon + 1..]);
        (number && rest.starts_with(b"[client ")).then_some(rest)
    };
    after_errno().unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use crate::detect::header::{Format, Header, read, read_entry};

    fn text(bytes: &[u8]) -> &str {
        std::str::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_web_servers_header_names_the_client() {
        let request = r#""GET / HTTP/1.1" 404 153"#;
        for (before, client, user) in [
            ("192.0.2.1 - - [21/Nov/2026:10:00:00 +0000] ", "192.0.2.1", ""),
            ("2001:db8::1 - bob [21/Nov/2026:10:00:00 +0000] ", "2001:db8::1", "bob"),
            ("www:80 192.0.2.1 - - [21/Nov/2026:10:00:00 +0000] ", "192.0.2.1", ""),
            ("192.0.2.1 - bob [21/Nov/2026:10:00:00 +0000] www.example.org ", "192.0.2.1", "bob"),
            ("203.0.113.9 192.0.2.1 - - [21/Nov/2026:10:00:00 +0000] ", "192.0.2.1", ""),
            ("192.0.2.1 203.0.113.9 - [21/Nov/2026:10:00:00 +0000] ", "192.0.2.1", ""),
            ("192.0.2.1 203.0.113.9 bob [21/Nov/2026:10:00:00 +0000] ", "192.0.2.1", "bob"),
            ("192.0.2.1 [2001:db8::9]:80 - [21/Nov/2026:10:00:00 +0000] ", "192.0.2.1", ""),
            ("www 192.0.2.1 -   [21/Nov/2026:10:00:00 +0000] ", "192.0.2.1", ""),
            ("192.0.2.1 - - 203.0.113.9 - - [21/Nov/2026:10:00:00 +0000] ", "192.0.2.1", "- 203.0.113.9 - -"),
            (r#"192.0.2.1 - "" [21/Nov/2026:10:00:00 +0000] "#, "192.0.2.1", ""),
            (r#"192.0.2.1 - a\"b [21/Nov/2026:10:00:00 +0000] "#, "192.0.2.1", r#"a\"b"#),
            (r#"192.0.2.1 - a\\ [21/Nov/2026:10:00:00 +0000] "#, "192.0.2.1", r"a\\"),
            (
                r#"192.0.2.1 - [21/Nov/2020:10:00:00 +0000] \"GET / HTTP/1.1\" 404 [21/Nov/2026:10:00:00 +0000] "#,
                "192.0.2.1",
                r#"[21/Nov/2020:10:00:00 +0000] \"GET / HTTP/1.1\" 404"#,
            ),
            (
                r#"www 192.0.2.1 - \"\" [21/Nov/2020:10:00:00 +0000] \"x\" [21/Nov/2026:10:00:00 +0000] "#,
                "192.0.2.1",
                r#"\"\" [21/Nov/2020:10:00:00 +0000] \"x\""#,
            ),
            (
                "192.0.2.1 - a 203.0.113.9 [21/Nov/2020:10:00:00 +0000] [21/Nov/2026:10:00:00 +0000] ",
                "192.0.2.1",
                "a 203.0.113.9 [21/Nov/2020:10:00:00 +0000]",
            ),
            ("Nov 21 10:00:00 web01 nginx: 192.0.2.1 - - [21/Nov/2026:10:00:00 +0000] ", "192.0.2.1", ""),
            ("web01 nginx[1]: web01 nginx: 192.0.2.1 - - [21/Nov/2026:10:00:00 +0000] ", "192.0.2.1", ""),
            ("web01 lighttpd: 192.0.2.1 x: - [21/Nov/2026:10:00:00 +0000] ", "192.0.2.1", ""),
        ] {
            let line = format!("{before}{request}");
            let header = read(Format::Clf, line.as_bytes()).expect(before);
            assert_eq!(header.client.unwrap().addr(), Some(client.parse().unwrap()), "{before}");
            assert_eq!((text(header.user), text(header.message)), (user, request), "{before}");
        }
        for line in [
            r#""203.0.113.9 203.0.113.9 - -" 192.0.2.1 - - [21/Nov/2026:10:00:00 +0000] "GET /" 404"#,
            r#"2026/11/21 10:00:00 [error] 1#1: *1 "x" 203.0.113.9 - - [21/Nov/2026:10:00:00] "GET /" 404"#,
            r#"203.0.113.9 192.0.2.1 [21/Nov/2026:10:00:00 +0000] "GET / HTTP/1.1" 404"#,
            r#"192.0.2.1 - - "GET /?[21/Nov/2026:10:00:00] "GET / HTTP/1.1" 404"#,
        ] {
            assert_eq!(read(Format::Clf, line.as_bytes()), None, "{line}");
        }
    }

    #[test]
    fn error_logs_are_read_up_to_their_message() {
        for line in [
            "2026/11/21 10:00:00 [error] 12#12: *5 Hello",
            "2026/11/21 10:00:00 [error] 12#12: Hello",
            "Nov 21 10:00:00 web01 nginx: 2026/11/21 10:00:00 [error] 12#12: *5 Hello",
            "Nov 21 10:00:00 web01 nginx[12]: web01 nginx: 2026/11/21 10:00:00 [error] 12#12: *5 Hello",
            "Nov 21 10:00:00 web01 web01 nginx: 2026/11/21 10:00:00 [error] 12#12: *5 Hello",
            "web01 nginx[12]: web01 nginx: 2026/11/21 10:00:00 [error] 12#12: *5 Hello",
        ] {
            assert_eq!(text(read(Format::NginxError, line.as_bytes()).expect(line).message), "Hello");
        }
        let entry = Header {
            program: b"myapp",
            message: b"web01 nginx: 2026/11/21 10:00:00 [error] 1#1: x",
            ..Header::default()
        };
        let header = read_entry(Format::NginxError, &entry).unwrap();
        assert_eq!((text(header.program), text(header.message)), ("myapp", "x"));
        for (line, client) in [
            ("[Sat Nov 21 10:00:00.1 2026] [a:error] [pid 1:tid 2] [client 192.0.2.1:80] Hello", "192.0.2.1"),
            ("[Sat Nov 21 10:00:00 2026] [a:error] [pid 1] [client 2001:db8::1:80] Hello", "2001:db8::1"),
            ("[Sat Nov 21 10:00:00 2026] [a:error] [pid 1] (2)No: [client 192.0.2.1:80] Hello", "192.0.2.1"),
            ("[Sat Nov 21 10:00:00 2026] [error] [client 2001:db8::1] Hello", "2001:db8::1"),
            ("[Sat Nov 21 10:00:00 2026] [error] [client 192.0.2.1:5555] Hello", "192.0.2.1"),
            ("[Sat Nov 21 10:00:00 2026] [error] [client [2001:db8::1]:5555] Hello", "2001:db8::1"),
            ("[Sat Nov 21 10:00:00 2026] [a:error] [pid 1] [client [2001:db8::1]:80] Hello", "2001:db8::1"),
            ("Nov 21 10:00:00 web01 httpd[1]: [error] [client 192.0.2.1] Hello", "192.0.2.1"),
        ] {
            let header = read(Format::ApacheError, line.as_bytes()).expect(line);
            assert_eq!(header.client.unwrap().addr(), Some(client.parse().unwrap()), "{line}");
            assert_eq!(text(header.message), "Hello", "{line}");
        }
    }
}
