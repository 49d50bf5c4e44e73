//! The table as `nft list table` prints it, to the byte.
#![forbid(unsafe_code)]

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use super::table::{
    Answer, Chain, Counter, Element, Family, Key, KeyType, LOG_BURST, Place, Rule, Set, TABLE, Table,
    prefix_len,
};
use crate::model::{Dropped, Hook, Log, Protocol};

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "table inet {TABLE} {{")?;
        if let Some(comment) = &self.comment {
            writeln!(f, "\tcomment \"{comment}\"")?;
        }
        let mut blocks: Vec<String> =
            self.foreign.iter().map(|name| format!("\t# foreign: {name}\n")).collect();
        blocks.extend(self.counters.iter().map(Counter::to_string));
        blocks.extend(self.sets.iter().map(Set::to_string));
        blocks.extend(self.chains.iter().map(Chain::to_string));
        writeln!(f, "{}}}", blocks.join("\n"))
    }
}

impl fmt::Display for Counter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counter { name, dropped: Dropped { packets, bytes } } = self;
        writeln!(f, "\tcounter {name} {{\n\t\tpackets {packets} bytes {bytes}\n\t}}")
    }
}

impl fmt::Display for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.key == KeyType::Foreign {
            return writeln!(f, "\t# foreign: set {}", self.name);
        }
        writeln!(f, "\tset {} {{", self.name)?;
        for line in self.properties() {
            writeln!(f, "\t\t{line}")?;
        }
        if !self.elements.is_empty() {
            let mut elements: Vec<&Element> = self.elements.iter().collect();
            elements.sort_by_key(|element| element.key.listed());
            let per_line = if self.key == KeyType::Ipv4 { 2 } else { 1 };
            let lines: Vec<String> = elements.chunks(per_line).map(one_line).collect();
            writeln!(f, "\t\telements = {{ {} }}", lines.join(",\n\t\t\t     "))?;
        }
        writeln!(f, "\t}}")
    }
}

fn one_line(elements: &[&Element]) -> String {
    elements.iter().map(|element| element.to_string()).collect::<Vec<_>>().join(", ")
}

impl Set {
    /// The lines that define the set, as nft prints and reads them.
    pub fn properties(&self) -> Vec<String> {
        let mut lines = vec![format!("type {}", self.key)];
        lines.extend(self.size.map(|size| format!("size {size}")));
        let flags = [(self.interval, "interval"), (self.dynamic, "dynamic"), (self.timeout, "timeout")];
        let flags: Vec<&str> =
            flags.into_iter().filter(|(is_set, _)| *is_set).map(|(_, name)| name).collect();
        if !flags.is_empty() {
            lines.push(format!("flags {}", flags.join(",")));
        }
        lines.extend(self.counter.then(|| "counter".to_owned()));
        lines.extend(self.comment.as_ref().map(|comment| format!("comment \"{comment}\"")));
        lines
    }
}

impl fmt::Display for KeyType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            KeyType::Ipv4 => "ipv4_addr",
            KeyType::Ipv6 => "ipv6_addr",
            KeyType::ProtoService => "inet_proto . inet_service",
            KeyType::Foreign => "foreign",
        })
    }
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.key)?;
        if let Some(Dropped { packets, bytes }) = self.dropped {
            write!(f, " counter packets {packets} bytes {bytes}")?;
        }
        if let Some(timeout) = self.timeout {
            write!(f, " timeout {}", Time(timeout))?;
        }
        if let Some(expires) = self.expires {
            write!(f, " expires {}", Time(expires))?;
        }
        Ok(())
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Key::Addr(addr) => write!(f, "{}", Addr(addr)),
            Key::Range(first, last) if first == last => write!(f, "{}", Addr(first)),
            Key::Range(first, last) => match prefix_len(first, last) {
                Some(length) => write!(f, "{}/{length}", Addr(first)),
                None => write!(f, "{}-{}", Addr(first), Addr(last)),
            },
            Key::Service(protocol, port) => {
                match Protocol::ALL.into_iter().find(|known| *known as u8 == protocol) {
                    Some(known) => write!(f, "{} . {port}", known.name()),
                    None => write!(f, "{protocol} . {port}"),
                }
            }
        }
    }
}

impl Key {
    /// The order in which nft lists: addresses by value; concatenations by their bytes taken as one number
    /// of the machine's byte order.
    fn listed(self) -> (u128, u32) {
        match self {
            Key::Addr(addr) | Key::Range(addr, _) => (bits(addr), 0),
            Key::Service(protocol, port) => {
                let [high, low] = port.to_be_bytes();
                let bytes = if cfg!(target_endian = "little") {
                    [protocol, high, low, 0]
                } else {
                    [0, protocol, high, low]
                };
                (0, u32::from_ne_bytes(bytes))
            }
        }
    }
}

fn bits(addr: IpAddr) -> u128 {
    match addr {
        IpAddr::V4(v4) => v4.to_bits().into(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// An address as inet_ntop(3) of the GNU C library writes it, which nft uses: `::1.2.3.4` too is dotted.
struct Addr(IpAddr);

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            IpAddr::V6(v6) if is_compatible(v6) => {
                write!(f, "::{}", Ipv4Addr::from_bits(v6.to_bits() as u32))
            }
            addr => write!(f, "{addr}"),
        }
    }
}

fn is_compatible(v6: Ipv6Addr) -> bool {
    (1 << 16..1 << 32).contains(&v6.to_bits())
}

/// A length of time as nft writes it: days, hours, minutes, seconds, milliseconds, without those that are 0.
struct Time(Duration);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut left = self.0.as_millis();
        if left == 0 {
            return f.write_str("0s");
        }
        for (unit, ms) in [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)] {
            if left >= ms {
                write!(f, "{}{unit}", left / ms)?;
                left %= ms;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\tchain {} {{", self.name)?;
        match self.place {
            Place::Jumped => {}
            place => writeln!(f, "\t\t{place}")?,
        }
        for rule in &self.rules {
            writeln!(f, "\t\t{rule}")?;
        }
        writeln!(f, "\t}}")
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (hook, priority) = match self {
            Place::Jumped => return Ok(()),
            Place::Foreign => return f.write_str("# foreign: another hook"),
            Place::At(Hook::Prerouting) => ("prerouting", "raw"),
            Place::At(hook) => (hook.name(), "filter"),
        };
        write!(f, "type filter hook {hook} priority {priority} - 10; policy accept;")
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::Ipv4 => "ip saddr",
            Family::Ipv6 => "ip6 saddr",
            Family::Ipv6By64 => "ip6 saddr & ffff:ffff:ffff:ffff:: ==",
        })
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Rule::Accept { family, set } => write!(f, "{family} @{set} accept"),
            Rule::JumpPorts { ports, chain } => write!(f, "meta l4proto . th dport @{ports} jump {chain}"),
            Rule::Jump { chain } => write!(f, "jump {chain}"),
            Rule::Drop { family, set, counter, answer } => {
                let protocol = if *answer == Answer::Reset { " meta l4proto tcp" } else { "" };
                write!(f, "{family} @{set}{protocol} counter name \"{counter}\" {}", end(*answer, *family))
            }
            Rule::Goto { from: Some((family, set)), chain } => write!(f, "{family} @{set} goto {chain}"),
            Rule::Goto { from: None, chain } => write!(f, "goto {chain}"),
            Rule::Update { family, set, timeout } => {
                let source = family.to_string();
                let source = source.trim_end_matches(" ==");
                write!(f, "update @{set} {{ {source} timeout {} }}", Time(*timeout))
            }
            Rule::Log { prefix, to: Log::Nflog(group) } => write!(f, "log prefix \"{prefix}\" group {group}"),
            Rule::Log { prefix, .. } => {
                write!(f, "limit rate 1/second burst {LOG_BURST} packets log prefix \"{prefix}\" level info")
            }
            Rule::End { family, counter, answer } => {
                let whom = match (answer, family) {
                    (Answer::Nothing, _) => "",
                    (Answer::Reset, _) => "meta l4proto tcp ",
                    (Answer::Unreachable, Family::Ipv4) => "meta nfproto ipv4 ",
                    (Answer::Unreachable, _) => "meta nfproto ipv6 ",
                };
                write!(f, "{whom}counter name \"{counter}\" {}", end(*answer, *family))
            }
            Rule::Foreign(expressions) => write!(f, "# foreign: {expressions}"),
        }
    }
}

fn end(answer: Answer, family: Family) -> &'static str {
    match (answer, family) {
        (Answer::Nothing, _) => "drop",
        (Answer::Reset, _) => "reject with tcp reset",
        (Answer::Unreachable, Family::Ipv4) => "reject with icmp port-unreachable",
        (Answer::Unreachable, _) => "reject with icmpv6 port-unreachable",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(text: &str) -> Key {
        Key::Addr(text.parse().unwrap())
    }

    fn range(first: &str, last: &str) -> Key {
        Key::Range(first.parse().unwrap(), last.parse().unwrap())
    }

    #[test]
    fn intervals_print_as_networks_where_they_are_networks() {
        assert_eq!(range("127.0.0.0", "127.255.255.255").to_string(), "127.0.0.0/8");
        assert_eq!(range("0.0.0.0", "255.255.255.255").to_string(), "0.0.0.0/0");
        assert_eq!(range("10.0.0.1", "10.0.0.1").to_string(), "10.0.0.1");
        assert_eq!(range("10.0.0.1", "10.0.0.2").to_string(), "10.0.0.1-10.0.0.2");
        assert_eq!(range("255.255.255.254", "255.255.255.255").to_string(), "255.255.255.254/31");
        assert_eq!(range("ff00::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff").to_string(), "ff00::/8");
        assert_eq!(range("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff").to_string(), "::/0");
    }

    #[test]
    fn addresses_print_as_the_c_library_prints_them() {
        assert_eq!(addr("::102:304").to_string(), "::1.2.3.4");
        assert_eq!(addr("::5").to_string(), "::5");
        assert_eq!(addr("::ffff:1.2.3.4").to_string(), "::ffff:1.2.3.4");
    }

    #[test]
    fn times_print_as_nft_prints_them() {
        let time = |ms| Time(Duration::from_millis(ms)).to_string();
        assert_eq!(time(539_996), "8m59s996ms");
        assert_eq!(time(604_800_000), "7d");
        assert_eq!(time(0), "0s");
    }

    #[test]
    fn foreign_things_print_as_comments() {
        let chain =
            Chain { name: "x".into(), place: Place::Foreign, rules: vec![Rule::Foreign("log".into())] };
        let table = Table { chains: vec![chain], foreign: vec!["quota q".into()], ..Table::default() };
        let text = table.to_string();
        assert!(text.contains("\t# foreign: quota q\n") && text.contains("\t\t# foreign: log\n"), "{text}");
    }
}
