//! Text to address, by the letter: what is not a literal IPv4 or IPv6 address is nobody's.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The longest text of an address: IPv4-mapped IPv6 in full (RFC 4291, section 2.2).
const ADDRESS_BYTES_MAX: usize = 45;

/// What `<HOST>` stands for. It is wider than an address is; [`parse`] decides what is one.
pub const HOST_REGEX: &str =
    r"(?P<host>[0-9]+(?:\.[0-9]+){3}|[0-9A-Fa-f:]*:(?:[0-9]+(?:\.[0-9]+){3}|[0-9A-Fa-f:]*))";

/// Reads a strict literal: dotted IPv4 with four decimal parts and no leading zeros, or IPv6 without a
/// zone. IPv4-mapped IPv6 counts as IPv4. Broadcast and multicast addresses are nobody's, so those are
/// refused; 0.0.0.0 is what a service writes that does not know its client, and no jail bans it. Names are
/// never looked up.
pub fn parse(text: &[u8]) -> Option<IpAddr> {
    if text.len() > ADDRESS_BYTES_MAX {
        return None;
    }
    let text = std::str::from_utf8(text).ok()?;
    let addr = match text.parse::<Ipv4Addr>() {
        Ok(v4) => IpAddr::V4(v4),
        Err(_) => IpAddr::V6(text.parse::<Ipv6Addr>().ok()?).to_canonical(),
    };
    let nobody = addr.is_multicast() || addr == IpAddr::V4(Ipv4Addr::BROADCAST);
    (!nobody).then_some(addr)
}

/// Like [`parse`], for fields that may also hold `ADDRESS:PORT`, with IPv6 in brackets as RFC 3986 asks.
pub fn parse_with_port(text: &[u8]) -> Option<IpAddr> {
    if let Some(inner) = text.strip_prefix(b"[") {
        let end = inner.iter().position(|&b| b == b']')?;
        return match &inner[end + 1..] {
            [] => parse(&inner[..end]),
            [b':', port @ ..] if is_port(port) => parse(&inner[..end]),
            _ => None,
        };
    }
    match text.iter().position(|&b| b == b':') {
        Some(colon) if is_port(&text[colon + 1..]) => parse(&text[..colon]),
        _ => parse(text),
    }
}

/// Reads `ADDRESS:PORT` where the last colon always begins the port, brackets or not: apache 2.4 writes
/// IPv6 so, and a short port would else read as a part of the address.
pub fn parse_before_port(text: &[u8]) -> Option<IpAddr> {
    match text.iter().rposition(|&b| b == b':') {
        Some(colon) if is_port(&text[colon + 1..]) => {
            let host = &text[..colon];
            parse(host.strip_prefix(b"[").and_then(|inner| inner.strip_suffix(b"]")).unwrap_or(host))
        }
        _ => parse(text),
    }
}

fn is_port(text: &[u8]) -> bool {
    (1..=5).contains(&text.len()) && text.iter().all(u8::is_ascii_digit)
}

/// Whether an address ends where `after` begins: `192.0.2.1.example.com` only starts like one.
pub fn ends_before(after: &[u8]) -> bool {
    match after {
        [b'.', next, ..] => !next.is_ascii_alphanumeric(),
        [next, ..] => !(next.is_ascii_alphanumeric() || *next == b'%'),
        [] => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_strict_literals_are_addresses() {
        for (text, addr) in [
            ("192.0.2.1", "192.0.2.1"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
            ("::FFFF:c000:201", "192.0.2.1"),
            ("2001:DB8::1", "2001:db8::1"),
            ("127.0.0.1", "127.0.0.1"),
        ] {
            assert_eq!(parse(text.as_bytes()), Some(addr.parse().unwrap()), "{text}");
        }
        for text in [
            "",
            "2",
            "1.2.3",
            "010.0.0.1",
            "192.030.0.6",
            "0x7f.0.0.1",
            "256.1.1.1",
            "1.2.3.4.5",
            "1.2.3.4/32",
            "fe80::1%eth0",
            "[::1]",
            "::1]:22",
            "example.com",
            "224.0.0.1",
            "ff02::1",
            "255.255.255.255",
            "１.2.3.4",
            "1.2.3.4 ",
            "1:2:3:4:5:6:7:8:9",
        ] {
            assert_eq!(parse(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn the_last_colon_of_a_peer_is_its_port() {
        let v6 = Some("2001:db8::66".parse().unwrap());
        assert_eq!(parse_before_port(b"2001:db8::66:8080"), v6);
        assert_eq!(parse_before_port(b"[2001:db8::66]:8080"), v6);
        assert_eq!(parse_with_port(b"[2001:db8::66]:8080"), v6);
        assert_eq!(parse_with_port(b"2001:db8::66"), v6);
        assert_eq!(parse_with_port(b"192.0.2.1:80"), Some("192.0.2.1".parse().unwrap()));
        assert_eq!(parse_with_port(b"192.0.2.1:80x"), None);
        assert_eq!(parse_with_port(b"[2001:db8::66]x"), None);
    }

    #[test]
    fn an_address_inside_a_name_does_not_end() {
        for (after, ends) in [
            ("", true),
            (" port", true),
            (":22", true),
            (". bye", true),
            (".", true),
            (".example.com", false),
        ] {
            assert_eq!(ends_before(after.as_bytes()), ends, "{after}");
        }
        assert!(!ends_before(b"%eth0") && !ends_before(b"x") && ends_before(b"-50122;"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_address_or_not(text in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = (parse(&text), parse_with_port(&text), parse_before_port(&text), ends_before(&text));
        }

        #[test]
        fn every_printed_peer_reads_back(bits: u128) {
            let v6 = std::net::Ipv6Addr::from_bits(bits);
            let expected = IpAddr::V6(v6).to_canonical();
            prop_assume!(!expected.is_multicast());
            prop_assert_eq!(parse(v6.to_string().as_bytes()), Some(expected));
            prop_assert_eq!(parse_before_port(format!("{v6}:22").as_bytes()), Some(expected));
        }
    }
}
