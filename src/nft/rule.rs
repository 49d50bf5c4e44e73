//! The rules that we write, as the kernel's expressions, and back.
#![forbid(unsafe_code)]

use std::time::Duration;

use super::attribute::{self, Writer};
use super::expression::{Expression, NFT_REG_1};
use super::table::{Answer, Family, LOG_BURST, Rule};
use crate::model::{Log, Protocol};

// Numbers of include/uapi/linux/netfilter/nf_tables.h.
const NFTA_LIST_ELEM: u16 = 1;
const NFT_META_NFPROTO: u32 = 15;
const NFT_META_L4PROTO: u32 = 16;
const NFT_PAYLOAD_NETWORK: u32 = 1;
const NFT_PAYLOAD_TRANSPORT: u32 = 2;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
const NF_DROP: u32 = 0;
const NF_ACCEPT: u32 = 1;
const NFT_JUMP: u32 = -3i32 as u32;
const NFT_GOTO: u32 = -4i32 as u32;
const NFT_REJECT_ICMP_UNREACH: u32 = 0;
const NFT_REJECT_TCP_RST: u32 = 1;
// Numbers of RFC 792 and RFC 4443.
const ICMP_PORT_UNREACH: u8 = 3;
const ICMPV6_PORT_UNREACH: u8 = 4;
/// The second 4-byte slot of [`NFT_REG_1`], where the second part of a concatenation belongs.
const NFT_REG32_01: u32 = 9;
/// LOG_INFO of syslog(2).
const LOG_INFO: u32 = 6;

/// The first 64 bits of an IPv6 address: what one ban covers.
const MASK_64: [u8; 16] = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0];

/// Writes the list of a rule's expressions.
pub fn write(writer: &mut Writer, kind: u16, rule: &Rule) {
    writer.nest(kind, |writer| {
        for expression in expressions(rule) {
            writer.nest(NFTA_LIST_ELEM, |writer| expression.write(writer));
        }
    });
}

/// Reads the list of a rule's expressions; what none of our rules has makes it foreign.
pub fn read(list: &[u8]) -> Rule {
    let found: Vec<Expression> =
        attribute::attributes(list).map(|(_, value)| Expression::read(value)).collect();
    let candidate = recognize(&found);
    match candidate {
        Some(rule) if expressions(&rule) == found => rule,
        _ => Rule::Foreign(found.iter().map(Expression::name).collect::<Vec<_>>().join(", ")),
    }
}

fn expressions(rule: &Rule) -> Vec<Expression> {
    let lookup = |set: &String| Expression::Lookup { set: set.clone() };
    let jump = |chain: &String| Expression::Verdict { code: NFT_JUMP, chain: Some(chain.clone()) };
    match rule {
        Rule::Accept { family, set } => {
            let accept = Expression::Verdict { code: NF_ACCEPT, chain: None };
            [source(*family), vec![lookup(set), accept]].concat()
        }
        Rule::JumpPorts { ports, chain } => vec![
            Expression::Meta { key: NFT_META_L4PROTO },
            Expression::Payload { register: NFT_REG32_01, base: NFT_PAYLOAD_TRANSPORT, offset: 2, length: 2 },
            lookup(ports),
            jump(chain),
        ],
        Rule::Jump { chain } => vec![jump(chain)],
        Rule::Drop { family, set, counter, answer } => {
            let mut steps = source(*family);
            steps.push(lookup(set));
            if *answer == Answer::Reset {
                steps.push(Expression::Meta { key: NFT_META_L4PROTO });
                steps.push(Expression::Equal { value: vec![Protocol::Tcp as u8] });
            }
            steps.push(Expression::Counter { name: counter.clone() });
            steps.push(end(*answer, *family));
            steps
        }
        Rule::Goto { from, chain } => {
            let mut steps = match from {
                Some((family, set)) => [source(*family), vec![lookup(set)]].concat(),
                None => Vec::new(),
            };
            steps.push(Expression::Verdict { code: NFT_GOTO, chain: Some(chain.clone()) });
            steps
        }
        Rule::Update { family, set, timeout } => {
            let timeout_ms = timeout.as_millis() as u64;
            [source(*family), vec![Expression::Update { set: set.clone(), timeout_ms }]].concat()
        }
        Rule::Log { prefix, to } => log(prefix, *to),
        Rule::End { family, counter, answer } => {
            let mut steps = match (answer, family) {
                (Answer::Nothing, _) => Vec::new(),
                (Answer::Reset, _) => is(NFT_META_L4PROTO, Protocol::Tcp as u8),
                (Answer::Unreachable, Family::Ipv4) => is(NFT_META_NFPROTO, NFPROTO_IPV4),
                (Answer::Unreachable, _) => is(NFT_META_NFPROTO, NFPROTO_IPV6),
            };
            steps.push(Expression::Counter { name: counter.clone() });
            steps.push(end(*answer, *family));
            steps
        }
        Rule::Foreign(name) => vec![Expression::Foreign(name.clone())],
    }
}

/// The source address of packets of this family, and of no others.
fn source(family: Family) -> Vec<Expression> {
    match family {
        Family::Ipv4 => vec![
            Expression::Meta { key: NFT_META_NFPROTO },
            Expression::Equal { value: vec![NFPROTO_IPV4] },
            Expression::Payload { register: NFT_REG_1, base: NFT_PAYLOAD_NETWORK, offset: 12, length: 4 },
        ],
        Family::Ipv6 | Family::Ipv6By64 => {
            let mut steps = vec![
                Expression::Meta { key: NFT_META_NFPROTO },
                Expression::Equal { value: vec![NFPROTO_IPV6] },
                Expression::Payload { register: NFT_REG_1, base: NFT_PAYLOAD_NETWORK, offset: 8, length: 16 },
            ];
            if family == Family::Ipv6By64 {
                steps.push(Expression::Mask { mask: MASK_64.to_vec() });
            }
            steps
        }
    }
}

fn is(key: u32, value: u8) -> Vec<Expression> {
    vec![Expression::Meta { key }, Expression::Equal { value: vec![value] }]
}

/// What is over the limit ends the rule: nothing but the telling may depend on it.
fn log(prefix: &str, to: Log) -> Vec<Expression> {
    let (level, group) = match to {
        Log::Nflog(group) => (None, Some(group)),
        Log::Nothing | Log::Kernel => (Some(LOG_INFO), None),
    };
    let limit = group.is_none().then_some(Expression::Limit { rate: 1, burst: LOG_BURST });
    let log = Expression::Log { prefix: prefix.to_owned(), level, group };
    limit.into_iter().chain([log]).collect()
}

/// How a dropped packet ends: a reject drops too. The family's own ICMP is named, although `icmpx` would do for both:
/// nft 1.0.6 prints `icmpx port-unreachable` as a mere `reject`, and reads that back as the family's own.
fn end(answer: Answer, family: Family) -> Expression {
    match (answer, family) {
        (Answer::Nothing, _) => Expression::Verdict { code: NF_DROP, chain: None },
        (Answer::Reset, _) => Expression::Reject { kind: NFT_REJECT_TCP_RST, code: 0 },
        (Answer::Unreachable, Family::Ipv4) => {
            Expression::Reject { kind: NFT_REJECT_ICMP_UNREACH, code: ICMP_PORT_UNREACH }
        }
        (Answer::Unreachable, Family::Ipv6 | Family::Ipv6By64) => {
            Expression::Reject { kind: NFT_REJECT_ICMP_UNREACH, code: ICMPV6_PORT_UNREACH }
        }
    }
}

/// The rule of ours that these expressions could be, by the names in it.
fn recognize(found: &[Expression]) -> Option<Rule> {
    let family = match (found.get(1), found.get(3)) {
        (Some(Expression::Equal { value }), Some(Expression::Mask { .. })) if value == &[NFPROTO_IPV6] => {
            Family::Ipv6By64
        }
        (Some(Expression::Equal { value }), _) if value == &[NFPROTO_IPV6] => Family::Ipv6,
        _ => Family::Ipv4,
    };
    let drop = |set: &String, counter: &String, answer| {
        Some(Rule::Drop { family, set: set.clone(), counter: counter.clone(), answer })
    };
    match found {
        [Expression::Verdict { code: NFT_GOTO, chain: Some(chain) }] => {
            Some(Rule::Goto { from: None, chain: chain.clone() })
        }
        [.., Expression::Lookup { set }, Expression::Verdict { code: NFT_GOTO, chain: Some(chain) }] => {
            Some(Rule::Goto { from: Some((family, set.clone())), chain: chain.clone() })
        }
        [.., Expression::Update { set, timeout_ms }] => {
            let timeout = Duration::from_millis(*timeout_ms);
            Some(Rule::Update { family, set: set.clone(), timeout })
        }
        [.., Expression::Log { prefix, group, .. }] => {
            Some(Rule::Log { prefix: prefix.clone(), to: group.map_or(Log::Kernel, Log::Nflog) })
        }
        [Expression::Verdict { chain: Some(chain), .. }] => Some(Rule::Jump { chain: chain.clone() }),
        [_, _, Expression::Lookup { set }, Expression::Verdict { chain: Some(chain), .. }] => {
            Some(Rule::JumpPorts { ports: set.clone(), chain: chain.clone() })
        }
        [.., Expression::Lookup { set }, Expression::Counter { name }, end] => {
            let answer = match end {
                Expression::Verdict { .. } => Answer::Nothing,
                _ => Answer::Unreachable,
            };
            drop(set, name, answer)
        }
        [.., Expression::Lookup { set }, _, _, Expression::Counter { name }, _] => {
            drop(set, name, Answer::Reset)
        }
        [.., Expression::Lookup { set }, Expression::Verdict { .. }] => {
            Some(Rule::Accept { family, set: set.clone() })
        }
        [.., Expression::Counter { name }, end] => {
            let (family, answer) = match (end, found.get(1)) {
                (Expression::Verdict { .. }, _) => (Family::Ipv4, Answer::Nothing),
                (Expression::Reject { kind: NFT_REJECT_TCP_RST, .. }, _) => (Family::Ipv4, Answer::Reset),
                _ => (family, Answer::Unreachable),
            };
            Some(Rule::End { family, counter: name.clone(), answer })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nft::attribute::find;
    use proptest::prelude::*;

    fn written(rule: &Rule) -> Vec<u8> {
        let mut writer = Writer::default();
        write(&mut writer, 4, rule);
        find(&writer.into_bytes(), 4).unwrap().to_vec()
    }

    fn ours() -> Vec<Rule> {
        let (set, counter, chain) = (|| "a_v4".to_owned(), || "a_dropped".to_owned(), || "jail_a".to_owned());
        let mut rules = vec![
            Rule::Accept { family: Family::Ipv4, set: set() },
            Rule::Accept { family: Family::Ipv6, set: set() },
            Rule::JumpPorts { ports: set(), chain: chain() },
            Rule::Jump { chain: chain() },
        ];
        for answer in [Answer::Nothing, Answer::Reset, Answer::Unreachable] {
            for family in [Family::Ipv4, Family::Ipv6, Family::Ipv6By64] {
                rules.push(Rule::Drop { family, set: set(), counter: counter(), answer });
            }
        }
        for (family, answer) in [
            (Family::Ipv4, Answer::Nothing),
            (Family::Ipv4, Answer::Reset),
            (Family::Ipv4, Answer::Unreachable),
            (Family::Ipv6, Answer::Unreachable),
        ] {
            rules.push(Rule::End { family, counter: counter(), answer });
        }
        for family in [Family::Ipv4, Family::Ipv6, Family::Ipv6By64] {
            rules.push(Rule::Goto { from: Some((family, set())), chain: chain() });
            rules.push(Rule::Update { family, set: set(), timeout: Duration::from_secs(600) });
        }
        rules.push(Rule::Goto { from: None, chain: chain() });
        for to in [Log::Kernel, Log::Nflog(0), Log::Nflog(u16::MAX)] {
            rules.push(Rule::Log { prefix: "nftjail a dropped: ".to_owned(), to });
        }
        rules
    }

    #[test]
    fn our_rules_are_read_as_written() {
        for rule in ours() {
            assert_eq!(read(&written(&rule)), rule);
        }
    }

    #[test]
    fn a_rule_with_a_step_less_or_more_is_not_taken_for_ours() {
        for rule in ours() {
            let bytes = written(&rule);
            let steps: Vec<&[u8]> = attribute::attributes(&bytes).map(|(_, step)| step).collect();
            for at in 0..steps.len() {
                let (mut less, mut more) = (steps.clone(), steps.clone());
                less.remove(at);
                more.insert(at, steps[at]);
                for other in [less, more] {
                    let mut writer = Writer::default();
                    other.iter().for_each(|step| writer.bytes(NFTA_LIST_ELEM, step));
                    assert_ne!(read(&writer.into_bytes()), rule);
                }
            }
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(
            which in any::<usize>(),
            noise in proptest::collection::vec(any::<u8>(), 0..64),
            at in 0usize..500,
        ) {
            let mut bytes = written(&ours()[which % ours().len()]);
            let at = at.min(bytes.len());
            bytes.truncate(at);
            bytes.extend(noise);
            let _ = read(&bytes);
        }
    }
}
