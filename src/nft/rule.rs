//! The rules that we write, as the kernel's expressions, and back.
#![forbid(unsafe_code)]

use super::attribute::{self, Writer, find, find_be32, find_text};
use super::table::{Answer, Family, Rule};
use crate::model::Protocol;

// Numbers of include/uapi/linux/netfilter/nf_tables.h.
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_DATA_VALUE: u16 = 1;
const NFTA_DATA_VERDICT: u16 = 2;
const NFTA_META_DREG: u16 = 1;
const NFTA_META_KEY: u16 = 2;
const NFTA_CMP_SREG: u16 = 1;
const NFTA_CMP_OP: u16 = 2;
const NFTA_CMP_DATA: u16 = 3;
const NFTA_PAYLOAD_DREG: u16 = 1;
const NFTA_PAYLOAD_BASE: u16 = 2;
const NFTA_PAYLOAD_OFFSET: u16 = 3;
const NFTA_PAYLOAD_LEN: u16 = 4;
const NFTA_BITWISE_SREG: u16 = 1;
const NFTA_BITWISE_DREG: u16 = 2;
const NFTA_BITWISE_LEN: u16 = 3;
const NFTA_BITWISE_MASK: u16 = 4;
const NFTA_BITWISE_XOR: u16 = 5;
const NFTA_BITWISE_OP: u16 = 6;
const NFTA_LOOKUP_SET: u16 = 1;
const NFTA_LOOKUP_SREG: u16 = 2;
const NFTA_LOOKUP_DREG: u16 = 3;
const NFTA_LOOKUP_FLAGS: u16 = 5;
const NFTA_OBJREF_IMM_TYPE: u16 = 1;
const NFTA_OBJREF_IMM_NAME: u16 = 2;
const NFTA_IMMEDIATE_DREG: u16 = 1;
const NFTA_IMMEDIATE_DATA: u16 = 2;
const NFTA_VERDICT_CODE: u16 = 1;
const NFTA_VERDICT_CHAIN: u16 = 2;
const NFTA_REJECT_TYPE: u16 = 1;
const NFTA_REJECT_ICMP_CODE: u16 = 2;

const NFT_META_NFPROTO: u32 = 15;
const NFT_META_L4PROTO: u32 = 16;
const NFT_PAYLOAD_NETWORK: u32 = 1;
const NFT_PAYLOAD_TRANSPORT: u32 = 2;
const NFT_OBJECT_COUNTER: u32 = 1;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
const NF_DROP: u32 = 0;
const NF_ACCEPT: u32 = 1;
const NFT_JUMP: u32 = -3i32 as u32;
const NFT_REJECT_ICMP_UNREACH: u32 = 0;
const NFT_REJECT_TCP_RST: u32 = 1;
// Numbers of RFC 792 and RFC 4443.
const ICMP_PORT_UNREACH: u8 = 3;
const ICMPV6_PORT_UNREACH: u8 = 4;
/// The first 16-byte register, where a lookup takes its key from.
const NFT_REG_1: u32 = 1;
/// The second 4-byte slot of that register, where the second part of a concatenation belongs.
const NFT_REG32_01: u32 = 9;

/// The first 64 bits of an IPv6 address: what one ban covers.
const MASK_64: [u8; 16] = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0];

/// One step of a rule. Registers not named are `NFT_REG_1`.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Expression {
    Meta { key: u32 },
    Equal { value: Vec<u8> },
    Payload { register: u32, base: u32, offset: u32, length: u32 },
    Mask { mask: Vec<u8> },
    Lookup { set: String },
    Counter { name: String },
    Verdict { code: u32, chain: Option<String> },
    Reject { kind: u32, code: u8 },
    Foreign(String),
}

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
    let source = |family: &Family| match family {
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
            if *family == Family::Ipv6By64 {
                steps.push(Expression::Mask { mask: MASK_64.to_vec() });
            }
            steps
        }
    };
    let lookup = |set: &String| Expression::Lookup { set: set.clone() };
    let jump = |chain: &String| Expression::Verdict { code: NFT_JUMP, chain: Some(chain.clone()) };
    match rule {
        Rule::Accept { family, set } => {
            let accept = Expression::Verdict { code: NF_ACCEPT, chain: None };
            [source(family), vec![lookup(set), accept]].concat()
        }
        Rule::JumpPorts { ports, chain } => vec![
            Expression::Meta { key: NFT_META_L4PROTO },
            Expression::Payload { register: NFT_REG32_01, base: NFT_PAYLOAD_TRANSPORT, offset: 2, length: 2 },
            lookup(ports),
            jump(chain),
        ],
        Rule::Jump { chain } => vec![jump(chain)],
        Rule::Drop { family, set, counter, answer } => {
            let mut steps = source(family);
            steps.push(lookup(set));
            if *answer == Answer::Reset {
                steps.push(Expression::Meta { key: NFT_META_L4PROTO });
                steps.push(Expression::Equal { value: vec![Protocol::Tcp as u8] });
            }
            steps.push(Expression::Counter { name: counter.clone() });
            steps.push(end(*answer, *family));
            steps
        }
        Rule::Foreign(name) => vec![Expression::Foreign(name.clone())],
    }
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
        _ => None,
    }
}

impl Expression {
    fn name(&self) -> &str {
        match self {
            Expression::Meta { .. } => "meta",
            Expression::Equal { .. } => "cmp",
            Expression::Payload { .. } => "payload",
            Expression::Mask { .. } => "bitwise",
            Expression::Lookup { .. } => "lookup",
            Expression::Counter { .. } => "objref",
            Expression::Verdict { .. } => "immediate",
            Expression::Reject { .. } => "reject",
            Expression::Foreign(name) => name,
        }
    }

    fn write(&self, writer: &mut Writer) {
        writer.text(NFTA_EXPR_NAME, self.name());
        writer.nest(NFTA_EXPR_DATA, |writer| match self {
            Expression::Meta { key } => {
                writer.be32(NFTA_META_KEY, *key);
                writer.be32(NFTA_META_DREG, NFT_REG_1);
            }
            Expression::Equal { value } => {
                writer.be32(NFTA_CMP_SREG, NFT_REG_1);
                writer.be32(NFTA_CMP_OP, 0);
                writer.nest(NFTA_CMP_DATA, |writer| writer.bytes(NFTA_DATA_VALUE, value));
            }
            Expression::Payload { register, base, offset, length } => {
                writer.be32(NFTA_PAYLOAD_DREG, *register);
                writer.be32(NFTA_PAYLOAD_BASE, *base);
                writer.be32(NFTA_PAYLOAD_OFFSET, *offset);
                writer.be32(NFTA_PAYLOAD_LEN, *length);
            }
            Expression::Mask { mask } => {
                writer.be32(NFTA_BITWISE_SREG, NFT_REG_1);
                writer.be32(NFTA_BITWISE_DREG, NFT_REG_1);
                writer.be32(NFTA_BITWISE_LEN, mask.len() as u32);
                writer.nest(NFTA_BITWISE_MASK, |writer| writer.bytes(NFTA_DATA_VALUE, mask));
                writer.nest(NFTA_BITWISE_XOR, |writer| {
                    writer.bytes(NFTA_DATA_VALUE, &vec![0; mask.len()]);
                });
            }
            Expression::Lookup { set } => {
                writer.text(NFTA_LOOKUP_SET, set);
                writer.be32(NFTA_LOOKUP_SREG, NFT_REG_1);
            }
            Expression::Counter { name } => {
                writer.be32(NFTA_OBJREF_IMM_TYPE, NFT_OBJECT_COUNTER);
                writer.text(NFTA_OBJREF_IMM_NAME, name);
            }
            Expression::Verdict { code, chain } => {
                writer.be32(NFTA_IMMEDIATE_DREG, 0);
                writer.nest(NFTA_IMMEDIATE_DATA, |writer| {
                    writer.nest(NFTA_DATA_VERDICT, |writer| {
                        writer.be32(NFTA_VERDICT_CODE, *code);
                        if let Some(chain) = chain {
                            writer.text(NFTA_VERDICT_CHAIN, chain);
                        }
                    });
                });
            }
            Expression::Reject { kind, code } => {
                writer.be32(NFTA_REJECT_TYPE, *kind);
                writer.bytes(NFTA_REJECT_ICMP_CODE, &[*code]);
            }
            Expression::Foreign(_) => {}
        });
    }

    fn read(bytes: &[u8]) -> Expression {
        let name = find_text(bytes, NFTA_EXPR_NAME).unwrap_or_default();
        let data = find(bytes, NFTA_EXPR_DATA).unwrap_or_default();
        Expression::known(&name, data).unwrap_or(Expression::Foreign(name))
    }

    /// None where it is not exactly one of ours: another register, operator or flag.
    fn known(name: &str, data: &[u8]) -> Option<Expression> {
        let number = |kind| find_be32(data, kind);
        let is = |kind, value| (number(kind) == Some(value)).then_some(());
        let value = |kind| Some(find(find(data, kind)?, NFTA_DATA_VALUE)?.to_vec());
        match name {
            "meta" => {
                is(NFTA_META_DREG, NFT_REG_1)?;
                Some(Expression::Meta { key: number(NFTA_META_KEY)? })
            }
            "cmp" => {
                is(NFTA_CMP_SREG, NFT_REG_1)?;
                is(NFTA_CMP_OP, 0)?;
                Some(Expression::Equal { value: value(NFTA_CMP_DATA)? })
            }
            "payload" => Some(Expression::Payload {
                register: number(NFTA_PAYLOAD_DREG)?,
                base: number(NFTA_PAYLOAD_BASE)?,
                offset: number(NFTA_PAYLOAD_OFFSET)?,
                length: number(NFTA_PAYLOAD_LEN)?,
            }),
            "bitwise" => {
                is(NFTA_BITWISE_SREG, NFT_REG_1)?;
                is(NFTA_BITWISE_DREG, NFT_REG_1)?;
                let plain = number(NFTA_BITWISE_OP).unwrap_or(0) == 0;
                let unflipped = value(NFTA_BITWISE_XOR)?.iter().all(|byte| *byte == 0);
                (plain && unflipped).then_some(Expression::Mask { mask: value(NFTA_BITWISE_MASK)? })
            }
            "lookup" => {
                is(NFTA_LOOKUP_SREG, NFT_REG_1)?;
                let plain = number(NFTA_LOOKUP_FLAGS).unwrap_or(0) == 0 && number(NFTA_LOOKUP_DREG).is_none();
                plain.then_some(Expression::Lookup { set: find_text(data, NFTA_LOOKUP_SET)? })
            }
            "objref" => {
                is(NFTA_OBJREF_IMM_TYPE, NFT_OBJECT_COUNTER)?;
                Some(Expression::Counter { name: find_text(data, NFTA_OBJREF_IMM_NAME)? })
            }
            "immediate" => {
                is(NFTA_IMMEDIATE_DREG, 0)?;
                let verdict = find(find(data, NFTA_IMMEDIATE_DATA)?, NFTA_DATA_VERDICT)?;
                let chain = find_text(verdict, NFTA_VERDICT_CHAIN);
                Some(Expression::Verdict { code: find_be32(verdict, NFTA_VERDICT_CODE)?, chain })
            }
            "reject" => {
                // The kernel tells no code for a reset.
                let code = find(data, NFTA_REJECT_ICMP_CODE).unwrap_or(&[0]);
                Some(Expression::Reject { kind: number(NFTA_REJECT_TYPE)?, code: *code.first()? })
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
