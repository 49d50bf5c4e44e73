//! What else the kernel's nftables hold around our table: whose chains are called where, and what they lead past us.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;

use super::attribute::{attributes, find, find_be32, find_text};
use super::wire::*;
use crate::model::Protocol;

/// Everything of everybody, of which only the places and a few kinds of rules are looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// Chains that the kernel calls; sorted by hook, then priority.
    pub chains: Vec<BaseChain>,
    pub flow_tables: Vec<FlowTable>,
    /// Ports whose packets rules send on to another address or port: published ports of containers.
    pub published: BTreeSet<(Option<Protocol>, u16)>,
    /// Chains with rules that hand packets to another interface (`fwd`, `dup`): family, table, name.
    pub forwarding: BTreeSet<(String, String, String)>,
}

/// A chain that the kernel calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseChain {
    pub family: String,
    pub table: String,
    pub name: String,
    pub hook: String,
    pub priority: i32,
    /// Packets that no rule decides are dropped.
    pub drops: bool,
    /// For hooks of interfaces: which.
    pub devices: Vec<String>,
}

/// Connections in it are passed on from interface to interface before any hook of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowTable {
    pub family: String,
    pub table: String,
    pub name: String,
    pub devices: Vec<String>,
}

// Numbers of include/uapi/linux/netfilter.h and netfilter/nf_tables.h.
const FAMILIES: [(u8, &str); 6] =
    [(1, "inet"), (2, "ip"), (3, "arp"), (5, "netdev"), (7, "bridge"), (10, "ip6")];
const HOOKS: [&str; 6] = ["prerouting", "input", "forward", "output", "postrouting", "ingress"];
const NF_DROP: u32 = 0;
const NFTA_HOOK_DEV: u16 = 3;
const NFTA_HOOK_DEVS: u16 = 4;
const NFTA_FLOWTABLE_NAME: u16 = 2;
const NFTA_FLOWTABLE_HOOK: u16 = 3;
const NFTA_FLOWTABLE_HOOK_DEVS: u16 = 3;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_CMP_DATA: u16 = 3;
const NFTA_META_KEY: u16 = 2;
const NFT_META_L4PROTO: u32 = 16;
const NFTA_PAYLOAD_BASE: u16 = 2;
const NFTA_PAYLOAD_OFFSET: u16 = 3;
const NFTA_PAYLOAD_LEN: u16 = 4;
const NFT_PAYLOAD_TRANSPORT: u32 = 2;
const NFTA_NAT_TYPE: u16 = 1;
const NFT_NAT_DNAT: u32 = 1;
/// Of the expressions `match` and `target`, by which iptables-nft carries its own.
const NFTA_XT_NAME: u16 = 1;
const NFTA_MATCH_INFO: u16 = 3;

fn family_name(family: u8) -> String {
    let known = FAMILIES.iter().find(|(number, _)| *number == family);
    known.map_or_else(|| format!("family {family}"), |(_, name)| (*name).to_owned())
}

fn hook_name(family: u8, number: u32) -> String {
    let name = match (family, number) {
        (3, 0) => "input",
        (3, 1) => "output",
        (5, 0) => "ingress",
        (5, 1) => "egress",
        _ => HOOKS.get(number as usize).copied().unwrap_or("unknown"),
    };
    name.to_owned()
}

/// A chain, where the kernel calls it.
pub(super) fn base_chain(family: u8, body: &[u8]) -> Option<BaseChain> {
    let hook = find(body, NFTA_CHAIN_HOOK)?;
    let mut devices = names(find(hook, NFTA_HOOK_DEVS).unwrap_or_default());
    devices.extend(find_text(hook, NFTA_HOOK_DEV).filter(|_| devices.is_empty()));
    Some(BaseChain {
        family: family_name(family),
        table: find_text(body, NFTA_TABLE_NAME)?,
        name: find_text(body, NFTA_CHAIN_NAME)?,
        hook: hook_name(family, find_be32(hook, NFTA_HOOK_HOOKNUM)?),
        priority: find_be32(hook, NFTA_HOOK_PRIORITY)? as i32,
        drops: find_be32(body, NFTA_CHAIN_POLICY) == Some(NF_DROP),
        devices,
    })
}

pub(super) fn flow_table(family: u8, body: &[u8]) -> Option<FlowTable> {
    let hook = find(body, NFTA_FLOWTABLE_HOOK).unwrap_or_default();
    Some(FlowTable {
        family: family_name(family),
        table: find_text(body, NFTA_TABLE_NAME)?,
        name: find_text(body, NFTA_FLOWTABLE_NAME)?,
        devices: names(find(hook, NFTA_FLOWTABLE_HOOK_DEVS).unwrap_or_default()),
    })
}

fn names(list: &[u8]) -> Vec<String> {
    attributes(list).map(|(_, name)| super::attribute::text(name)).collect()
}

impl Surroundings {
    /// Takes what matters of one rule.
    pub(super) fn take_rule(&mut self, family: u8, body: &[u8]) {
        let expressions = find(body, NFTA_RULE_EXPRESSIONS).unwrap_or_default();
        let (mut protocol, mut port, mut sends_on) = (None, None, false);
        let mut loaded = Loaded::Other;
        for (_, expression) in attributes(expressions) {
            let data = find(expression, NFTA_EXPR_DATA).unwrap_or_default();
            match find_text(expression, NFTA_EXPR_NAME).unwrap_or_default().as_str() {
                "meta" if find_be32(data, NFTA_META_KEY) == Some(NFT_META_L4PROTO) => {
                    loaded = Loaded::Protocol
                }
                "payload" if is_destination_port(data) => loaded = Loaded::Port,
                "cmp" => match (loaded, compared(data)) {
                    (Loaded::Protocol, Some([number])) => protocol = self::protocol(*number),
                    (Loaded::Port, Some([high, low])) => port = Some(u16::from_be_bytes([*high, *low])),
                    _ => {}
                },
                "match" => (protocol, port) = matched(data).unwrap_or((protocol, port)),
                "nat" => sends_on |= find_be32(data, NFTA_NAT_TYPE) == Some(NFT_NAT_DNAT),
                "redir" => sends_on = true,
                "target" => {
                    let name = find_text(data, NFTA_XT_NAME).unwrap_or_default();
                    sends_on |= matches!(name.as_str(), "DNAT" | "REDIRECT");
                }
                "fwd" | "dup" => {
                    let chain = find_text(body, NFTA_RULE_CHAIN).unwrap_or_default();
                    let table = find_text(body, NFTA_TABLE_NAME).unwrap_or_default();
                    self.forwarding.insert((family_name(family), table, chain));
                }
                _ => loaded = Loaded::Other,
            }
        }
        self.published.extend(port.filter(|_| sends_on).map(|port| (protocol, port)));
    }
}

/// What the rule compares next.
#[derive(Clone, Copy)]
enum Loaded {
    Protocol,
    Port,
    Other,
}

fn is_destination_port(payload: &[u8]) -> bool {
    let wanted =
        [(NFTA_PAYLOAD_BASE, NFT_PAYLOAD_TRANSPORT), (NFTA_PAYLOAD_OFFSET, 2), (NFTA_PAYLOAD_LEN, 2)];
    wanted.into_iter().all(|(kind, value)| find_be32(payload, kind) == Some(value))
}

fn compared(cmp: &[u8]) -> Option<&[u8]> {
    find(find(cmp, NFTA_CMP_DATA)?, NFTA_DATA_VALUE)
}

fn protocol(number: u8) -> Option<Protocol> {
    Protocol::ALL.into_iter().find(|protocol| *protocol as u8 == number)
}

/// The one destination port that iptables' own match for TCP or UDP wants (`struct xt_tcp`, `struct xt_udp`: first
/// and last source port, first and last destination port, in the byte order of this machine).
fn matched(data: &[u8]) -> Option<(Option<Protocol>, Option<u16>)> {
    let protocol = match find_text(data, NFTA_XT_NAME)?.as_str() {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        _ => return None,
    };
    let ports = find(data, NFTA_MATCH_INFO)?.get(4..8)?;
    let port = |at: usize| u16::from_ne_bytes([ports[at], ports[at + 1]]);
    Some((Some(protocol), Some(port(0)).filter(|first| *first == port(2))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nft::attribute::Writer;
    use proptest::prelude::*;

    fn read_all(body: &[u8]) {
        let _ = (base_chain(5, body), flow_table(1, body));
        Surroundings::default().take_rule(2, body);
    }

    /// A rule of iptables-nft: `-p tcp --dport 8080 -j DNAT`.
    fn published(first: u16, last: u16, target: &str) -> Vec<u8> {
        let mut writer = Writer::default();
        writer.nest(NFTA_RULE_EXPRESSIONS, |writer| {
            writer.nest(1, |writer| {
                writer.text(NFTA_EXPR_NAME, "match");
                writer.nest(NFTA_EXPR_DATA, |writer| {
                    writer.text(NFTA_XT_NAME, "tcp");
                    let ports = [0, u16::MAX, first, last].map(u16::to_ne_bytes).concat();
                    writer.bytes(NFTA_MATCH_INFO, &ports);
                });
            });
            writer.nest(1, |writer| {
                writer.text(NFTA_EXPR_NAME, "target");
                writer.nest(NFTA_EXPR_DATA, |writer| writer.text(NFTA_XT_NAME, target));
            });
        });
        writer.into_bytes()
    }

    #[test]
    fn a_flow_table_is_read_with_its_interfaces() {
        let mut writer = Writer::default();
        writer.text(NFTA_TABLE_NAME, "router");
        writer.text(NFTA_FLOWTABLE_NAME, "fast");
        writer.nest(NFTA_FLOWTABLE_HOOK, |writer| {
            writer.be32(NFTA_HOOK_HOOKNUM, 0);
            writer.be32(NFTA_HOOK_PRIORITY, 0);
            writer.nest(NFTA_FLOWTABLE_HOOK_DEVS, |writer| {
                writer.text(1, "eth0");
                writer.text(1, "eth1");
            });
        });
        let found = flow_table(1, &writer.into_bytes()).unwrap();
        assert_eq!(
            (found.family.as_str(), found.table.as_str(), found.name.as_str()),
            ("inet", "router", "fast")
        );
        assert_eq!(found.devices, ["eth0", "eth1"]);
    }

    #[test]
    fn the_ports_that_iptables_publishes_are_read() {
        let mut found = Surroundings::default();
        found.take_rule(2, &published(8080, 8080, "DNAT"));
        found.take_rule(2, &published(9000, 9000, "MASQUERADE"));
        found.take_rule(2, &published(7000, 7100, "DNAT"));
        assert_eq!(found.published, BTreeSet::from([(Some(Protocol::Tcp), 8080)]));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(
            noise in proptest::collection::vec(any::<u8>(), 0..200), at in 0usize..200, byte in any::<u8>(),
        ) {
            read_all(&noise);
            let mut body = published(1, 1, "DNAT");
            let length = body.len();
            body[at % length] = byte;
            read_all(&body);
        }
    }
}
