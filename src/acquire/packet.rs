//! A packet that NFLOG tells of, as the line that the kernel's own log would have for it.
//!
//! The line begins with `kernel: `, so that it is read as the kernel's, then come the prefix of the rule that told, and
//! fields as in net/netfilter/nf_log_syslog.c: `IN=eth0 OUT= MAC=… SRC=192.0.2.1 DST=198.51.100.1 LEN=60 TOS=0x00
//! PREC=0x00 TTL=64 ID=1 DF PROTO=TCP SPT=1024 DPT=22 WINDOW=64240 RES=0x00 SYN URGP=0`. Everything in it but prefix and
//! names of interfaces is a number.
#![forbid(unsafe_code)]

use std::fmt::Write;
use std::net::{Ipv4Addr, Ipv6Addr};

use netlink_packet_core::{NlaBuffer, NlasIterator};

// Numbers of include/uapi/linux/netfilter/nfnetlink_log.h.
const NFULA_PACKET_HDR: u16 = 1;
const NFULA_IFINDEX_INDEV: u16 = 4;
const NFULA_IFINDEX_OUTDEV: u16 = 5;
const NFULA_PAYLOAD: u16 = 9;
const NFULA_PREFIX: u16 = 10;
const NFULA_SEQ: u16 = 12;
const NFULA_HWHEADER: u16 = 16;
/// Bytes of `struct nfgenmsg`, which stands before the attributes.
const FAMILY_BYTES: usize = 4;

// Numbers of include/uapi/linux/if_ether.h.
const ETH_P_IP: u16 = 0x0800;
const ETH_P_IPV6: u16 = 0x86dd;
/// More of what stands before a packet than any link has.
const HARDWARE_BYTES_MAX: usize = 32;
/// More IPv6 headers before the transport's than anybody needs.
const EXTENSIONS_MAX: usize = 8;

/// What one message of NFLOG says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    pub line: String,
    /// The number of the packet among those of the group: where some are missing, they were lost.
    pub number: Option<u32>,
}

/// Reads the message that follows a netlink header. `name` knows the interfaces by their numbers.
pub fn read(message: &[u8], mut name: impl FnMut(u32) -> Option<String>) -> Option<Told> {
    let attributes = message.get(FAMILY_BYTES..)?;
    let find = |kind: u16| {
        NlasIterator::new(attributes).map_while(Result::ok).find(|found| found.kind() == kind).map(value)
    };
    let number = |kind| Some(u32::from_be_bytes(*find(kind)?.first_chunk()?));
    let prefix = String::from_utf8_lossy(find(NFULA_PREFIX).unwrap_or_default()).into_owned();
    let prefix: String = printable(prefix.trim_end_matches('\0'));
    let mut interface = |kind| match number(kind) {
        // One that is gone meanwhile has no name any more.
        Some(number) => {
            name(number).map_or_else(|| "?".to_owned(), |name| printable(&name).replace(' ', "?"))
        }
        None => String::new(),
    };
    let (from, to) = (interface(NFULA_IFINDEX_INDEV), interface(NFULA_IFINDEX_OUTDEV));
    let mut line = format!("kernel: {prefix}IN={from} OUT={to} ");
    let hardware = find(NFULA_HWHEADER).unwrap_or_default();
    if !from.is_empty() {
        let bytes: Vec<String> =
            hardware.iter().take(HARDWARE_BYTES_MAX).map(|byte| format!("{byte:02x}")).collect();
        say(&mut line, format_args!("MAC={} ", bytes.join(":")));
    }
    let protocol = find(NFULA_PACKET_HDR).and_then(|head| Some(u16::from_be_bytes(*head.first_chunk()?)));
    let packet = find(NFULA_PAYLOAD).unwrap_or_default();
    let whole = match protocol? {
        ETH_P_IP => ipv4(&mut line, packet),
        ETH_P_IPV6 => ipv6(&mut line, packet),
        other => {
            say(&mut line, format_args!("MACPROTO={other:04x} "));
            Some(())
        }
    };
    if whole.is_none() {
        line += "TRUNCATED ";
    }
    line.truncate(line.trim_end().len());
    Some(Told { line, number: number(NFULA_SEQ) })
}

fn value(attribute: NlaBuffer<&[u8]>) -> &[u8] {
    let length = usize::from(attribute.length());
    attribute.into_inner().get(4..length).unwrap_or_default()
}

fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' }).collect()
}

fn say(line: &mut String, what: std::fmt::Arguments<'_>) {
    line.write_fmt(what).expect("a text takes everything");
}

fn number(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// RFC 791. None where the packet ends within its header.
fn ipv4(line: &mut String, packet: &[u8]) -> Option<()> {
    let head: &[u8; 20] = packet.first_chunk()?;
    let addr = |at: usize| Ipv4Addr::new(head[at], head[at + 1], head[at + 2], head[at + 3]);
    let (service, length, id) = (head[1], number(head, 2)?, number(head, 4)?);
    say(line, format_args!("SRC={} DST={} LEN={length} ", addr(12), addr(16)));
    say(
        line,
        format_args!("TOS=0x{:02X} PREC=0x{:02X} TTL={} ID={id} ", service & 0x1e, service & 0xe0, head[8]),
    );
    let fragment = number(head, 6)?;
    for (bit, word) in [(0x8000, "CE "), (0x4000, "DF "), (0x2000, "MF ")] {
        *line += if fragment & bit != 0 { word } else { "" };
    }
    let offset = fragment & 0x1fff;
    if offset != 0 {
        say(line, format_args!("FRAG:{offset} "));
    }
    let start = usize::from(head[0] & 0x0f) * 4;
    let rest = packet.get(start.max(head.len())..)?;
    transport(line, head[9], rest, offset != 0)
}

/// RFC 8200. None where the packet ends within a header.
fn ipv6(line: &mut String, packet: &[u8]) -> Option<()> {
    let head: &[u8; 40] = packet.first_chunk()?;
    let addr = |at: usize| Some(Ipv6Addr::from(*head[at..].first_chunk::<16>()?));
    let first = u32::from_be_bytes(*head.first_chunk()?);
    let length = u32::from(number(head, 4)?) + 40;
    say(line, format_args!("SRC={} DST={} LEN={length} ", addr(8)?, addr(24)?));
    let (class, label) = (first >> 20 & 0xff, first & 0xf_ffff);
    say(line, format_args!("TC={class} HOPLIMIT={} FLOWLBL={label} ", head[7]));
    let (mut next, mut rest, mut fragment) = (head[6], &packet[40..], false);
    for _ in 0..EXTENSIONS_MAX {
        let length = match next {
            // Hop-by-hop options, routing, destination options: so many eights of bytes beyond the first.
            0 | 43 | 60 => (usize::from(*rest.get(1)?) + 1) * 8,
            44 => {
                let offset = number(rest, 2)? >> 3;
                say(line, format_args!("FRAG:{offset} "));
                fragment |= offset != 0;
                8
            }
            // The authentication header of RFC 4302 counts in fours.
            51 => (usize::from(*rest.get(1)?) + 2) * 4,
            _ => return transport(line, next, rest, fragment),
        };
        (next, rest) = (*rest.first()?, rest.get(length..)?);
    }
    None
}

/// A later fragment has no header of its own.
fn transport(line: &mut String, protocol: u8, bytes: &[u8], fragment: bool) -> Option<()> {
    let name = match protocol {
        6 => "TCP",
        17 => "UDP",
        1 => "ICMP",
        58 => "ICMPv6",
        other => {
            say(line, format_args!("PROTO={other} "));
            return Some(());
        }
    };
    say(line, format_args!("PROTO={name} "));
    if fragment {
        return Some(());
    }
    match protocol {
        6 => tcp(line, bytes),
        17 => {
            let (from, to, length) = (number(bytes, 0)?, number(bytes, 2)?, number(bytes, 4)?);
            say(line, format_args!("SPT={from} DPT={to} LEN={length} "));
            Some(())
        }
        _ => {
            say(line, format_args!("TYPE={} CODE={} ", bytes.first()?, bytes.get(1)?));
            Some(())
        }
    }
}

/// RFC 9293.
fn tcp(line: &mut String, bytes: &[u8]) -> Option<()> {
    say(line, format_args!("SPT={} DPT={} ", number(bytes, 0)?, number(bytes, 2)?));
    let (reserved, flags) = (*bytes.get(12)?, *bytes.get(13)?);
    let (window, urgent) = (number(bytes, 14)?, number(bytes, 18)?);
    say(line, format_args!("WINDOW={window} RES=0x{:02x} ", reserved << 2 & 0x3c));
    for (bit, word) in [
        (0x80, "CWR "),
        (0x40, "ECE "),
        (0x20, "URG "),
        (0x10, "ACK "),
        (0x08, "PSH "),
        (0x04, "RST "),
        (0x02, "SYN "),
        (0x01, "FIN "),
    ] {
        *line += if flags & bit != 0 { word } else { "" };
    }
    say(line, format_args!("URGP={urgent} "));
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = ((value.len() + 4) as u16).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn message(protocol: u16, packet: &[u8]) -> Vec<u8> {
        let [high, low] = protocol.to_be_bytes();
        let parts = [
            vec![2, 0, 0, 5],
            attribute(NFULA_PACKET_HDR, &[high, low, 0, 0]),
            attribute(NFULA_PREFIX, b"nftjail sshd dropped: \0"),
            attribute(NFULA_IFINDEX_INDEV, &7u32.to_be_bytes()),
            attribute(NFULA_HWHEADER, &[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0]),
            attribute(NFULA_SEQ, &3u32.to_be_bytes()),
            attribute(NFULA_PAYLOAD, packet),
        ];
        parts.concat()
    }

    fn name(number: u32) -> Option<String> {
        (number == 7).then(|| "eth 0\n".to_owned())
    }

    fn line(protocol: u16, packet: &[u8]) -> String {
        read(&message(protocol, packet), name).unwrap().line
    }

    const START: &str =
        "kernel: nftjail sshd dropped: IN=eth?0? OUT= MAC=02:00:00:00:00:01:02:00:00:00:00:02:08:00 ";

    fn tcp_packet() -> Vec<u8> {
        let mut packet =
            vec![0x45, 0x28, 0, 60, 0x10, 0xe1, 0x40, 0, 50, 6, 0, 0, 192, 0, 2, 10, 198, 51, 100, 1];
        packet.extend([0xb0, 0x43, 0x0d, 0x3d, 0, 0, 0, 1, 0, 0, 0, 0, 0xa0, 0xc2, 0xfa, 0xf0, 0, 0, 0, 0]);
        packet
    }

    fn udp_packet() -> Vec<u8> {
        let mut packet = vec![0x60, 0x01, 0x23, 0x45, 0, 24, 0, 54];
        packet.extend(
            ["2001:db8::10", "2001:db8::1"].map(|addr| addr.parse::<Ipv6Addr>().unwrap().octets()).concat(),
        );
        packet.extend([44, 0, 0, 0, 0, 0, 0, 0]);
        packet.extend([17, 0, 0, 1, 0, 0, 0, 9]);
        packet.extend([0x14, 0xe9, 0x07, 0x6c, 0, 8, 0, 0]);
        packet
    }

    #[test]
    fn a_packet_reads_as_the_kernels_own_log_has_it() {
        let wanted = "SRC=192.0.2.10 DST=198.51.100.1 LEN=60 TOS=0x08 PREC=0x20 TTL=50 ID=4321 DF PROTO=TCP SPT=45123 \
                      DPT=3389 WINDOW=64240 RES=0x00 CWR ECE SYN URGP=0";
        assert_eq!(line(ETH_P_IP, &tcp_packet()).strip_prefix(START), Some(wanted));
        let mut fragment = tcp_packet();
        fragment[6..8].copy_from_slice(&[0x20, 1]);
        assert!(line(ETH_P_IP, &fragment).ends_with(" ID=4321 MF FRAG:1 PROTO=TCP"));
        let wanted = "SRC=2001:db8::10 DST=2001:db8::1 LEN=64 TC=0 HOPLIMIT=54 FLOWLBL=74565 FRAG:0 PROTO=UDP SPT=5353 \
                      DPT=1900 LEN=8";
        assert_eq!(line(ETH_P_IPV6, &udp_packet()).strip_prefix(START), Some(wanted));
        assert!(line(0x0806, &[]).ends_with(" MACPROTO=0806"));
        assert_eq!(read(&message(ETH_P_IP, &[]), name).unwrap().number, Some(3));
    }

    #[test]
    fn a_packet_that_ends_too_early_says_no_more_than_it_has() {
        for (protocol, packet) in [(ETH_P_IP, tcp_packet()), (ETH_P_IPV6, udp_packet())] {
            // A checksum is not told.
            for length in 0..packet.len() - 2 {
                assert!(line(protocol, &packet[..length]).ends_with("TRUNCATED"), "{length}");
            }
        }
    }

    #[test]
    fn a_name_or_prefix_cannot_write_a_line_or_a_field_of_its_own() {
        let parts = [
            vec![2, 0, 0, 5],
            attribute(NFULA_PACKET_HDR, &[8, 0, 0, 0]),
            attribute(NFULA_PREFIX, "x\nkernel: é\0".as_bytes()),
            attribute(NFULA_IFINDEX_INDEV, &1u32.to_be_bytes()),
        ];
        let told = read(&parts.concat(), |_| Some("a SRC=203.0.113.9\n".to_owned())).unwrap();
        assert_eq!(told.line, "kernel: x?kernel: ?IN=a?SRC=203.0.113.9? OUT= MAC= TRUNCATED");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_or_say_much(noise in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = read(&noise, name);
            for protocol in [ETH_P_IP, ETH_P_IPV6] {
                prop_assert!(line(protocol, &noise).len() < 600);
            }
        }

        #[test]
        fn no_damage_to_a_packet_makes_it_panic(at in 0usize..400, noise in any::<u8>(), cut in 0usize..400) {
            for (protocol, packet) in [(ETH_P_IP, tcp_packet()), (ETH_P_IPV6, udp_packet())] {
                let mut message = message(protocol, &packet);
                let length = message.len();
                message[at % length] = noise;
                message.truncate(length - cut % length);
                let told = read(&message, name);
                prop_assert!(told.is_none_or(|told| !told.line.contains('\n')));
            }
        }
    }
}
