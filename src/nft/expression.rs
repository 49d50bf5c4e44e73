//! The steps of a rule as the kernel runs them, written and read.
#![forbid(unsafe_code)]

use super::attribute::{Writer, find, find_be32, find_be64, find_text};
use super::wire::{NFT_OBJECT_COUNTER, NFTA_DATA_VALUE, NFTA_EXPR_DATA, NFTA_EXPR_NAME};

// Numbers of include/uapi/linux/netfilter/nf_tables.h.
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
const NFTA_DYNSET_SET_NAME: u16 = 1;
const NFTA_DYNSET_OP: u16 = 3;
const NFTA_DYNSET_SREG_KEY: u16 = 4;
const NFTA_DYNSET_SREG_DATA: u16 = 5;
const NFTA_DYNSET_TIMEOUT: u16 = 6;
const NFTA_DYNSET_EXPR: u16 = 7;
const NFTA_DYNSET_FLAGS: u16 = 9;
const NFTA_DYNSET_EXPRESSIONS: u16 = 10;
const NFTA_LIMIT_RATE: u16 = 1;
const NFTA_LIMIT_UNIT: u16 = 2;
const NFTA_LIMIT_BURST: u16 = 3;
const NFTA_LIMIT_TYPE: u16 = 4;
const NFTA_LIMIT_FLAGS: u16 = 5;
const NFTA_LOG_GROUP: u16 = 1;
const NFTA_LOG_PREFIX: u16 = 2;
const NFTA_LOG_SNAPLEN: u16 = 3;
const NFTA_LOG_QTHRESHOLD: u16 = 4;
const NFTA_LOG_LEVEL: u16 = 5;
const NFTA_LOG_FLAGS: u16 = 6;
const NFT_DYNSET_OP_UPDATE: u32 = 1;

/// The first 16-byte register, where a lookup takes its key from.
pub const NFT_REG_1: u32 = 1;

/// One step of a rule. Registers not named are `NFT_REG_1`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expression {
    Meta {
        key: u32,
    },
    Equal {
        value: Vec<u8>,
    },
    Payload {
        register: u32,
        base: u32,
        offset: u32,
        length: u32,
    },
    Mask {
        mask: Vec<u8>,
    },
    Lookup {
        set: String,
    },
    Counter {
        name: String,
    },
    Verdict {
        code: u32,
        chain: Option<String>,
    },
    Reject {
        kind: u32,
        code: u8,
    },
    /// Adds the key to the set, or begins its time there anew.
    Update {
        set: String,
        timeout_ms: u64,
    },
    /// So many packets a second, and so many at once.
    Limit {
        rate: u64,
        burst: u32,
    },
    /// The level of syslog(2), or the group that is told instead.
    Log {
        prefix: String,
        level: Option<u32>,
        group: Option<u16>,
    },
    Foreign(String),
}

impl Expression {
    pub fn name(&self) -> &str {
        match self {
            Expression::Meta { .. } => "meta",
            Expression::Equal { .. } => "cmp",
            Expression::Payload { .. } => "payload",
            Expression::Mask { .. } => "bitwise",
            Expression::Lookup { .. } => "lookup",
            Expression::Counter { .. } => "objref",
            Expression::Verdict { .. } => "immediate",
            Expression::Reject { .. } => "reject",
            Expression::Update { .. } => "dynset",
            Expression::Limit { .. } => "limit",
            Expression::Log { .. } => "log",
            Expression::Foreign(name) => name,
        }
    }

    pub fn write(&self, writer: &mut Writer) {
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
            _ => self.write_effect(writer),
        });
    }

    /// What the steps say that do more than look at a packet.
    fn write_effect(&self, writer: &mut Writer) {
        match self {
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
            Expression::Update { set, timeout_ms } => {
                writer.text(NFTA_DYNSET_SET_NAME, set);
                writer.be32(NFTA_DYNSET_OP, NFT_DYNSET_OP_UPDATE);
                writer.be32(NFTA_DYNSET_SREG_KEY, NFT_REG_1);
                writer.be64(NFTA_DYNSET_TIMEOUT, *timeout_ms);
            }
            Expression::Limit { rate, burst } => {
                writer.be64(NFTA_LIMIT_RATE, *rate);
                writer.be64(NFTA_LIMIT_UNIT, 1);
                writer.be32(NFTA_LIMIT_BURST, *burst);
                writer.be32(NFTA_LIMIT_TYPE, 0);
                writer.be32(NFTA_LIMIT_FLAGS, 0);
            }
            Expression::Log { prefix, level, group } => {
                writer.text(NFTA_LOG_PREFIX, prefix);
                if let Some(level) = level {
                    writer.be32(NFTA_LOG_LEVEL, *level);
                }
                if let Some(group) = group {
                    writer.bytes(NFTA_LOG_GROUP, &group.to_be_bytes());
                }
            }
            _ => {}
        }
    }

    pub fn read(bytes: &[u8]) -> Expression {
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
            _ => Expression::known_effect(name, data),
        }
    }

    /// The same for the steps that do more than look at a packet.
    fn known_effect(name: &str, data: &[u8]) -> Option<Expression> {
        let number = |kind| find_be32(data, kind);
        let is = |kind, value| (number(kind) == Some(value)).then_some(());
        match name {
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
            "dynset" => {
                is(NFTA_DYNSET_OP, NFT_DYNSET_OP_UPDATE)?;
                is(NFTA_DYNSET_SREG_KEY, NFT_REG_1)?;
                let more = [NFTA_DYNSET_SREG_DATA, NFTA_DYNSET_EXPR, NFTA_DYNSET_EXPRESSIONS];
                let plain = number(NFTA_DYNSET_FLAGS).unwrap_or(0) == 0
                    && more.iter().all(|kind| find(data, *kind).is_none());
                let timeout_ms = find_be64(data, NFTA_DYNSET_TIMEOUT)?;
                plain
                    .then_some(Expression::Update { set: find_text(data, NFTA_DYNSET_SET_NAME)?, timeout_ms })
            }
            "limit" => {
                is(NFTA_LIMIT_TYPE, 0)?;
                is(NFTA_LIMIT_FLAGS, 0)?;
                (find_be64(data, NFTA_LIMIT_UNIT)? == 1).then_some(())?;
                Some(Expression::Limit {
                    rate: find_be64(data, NFTA_LIMIT_RATE)?,
                    burst: number(NFTA_LIMIT_BURST)?,
                })
            }
            "log" => {
                let more = [NFTA_LOG_SNAPLEN, NFTA_LOG_FLAGS];
                let short =
                    find(data, NFTA_LOG_QTHRESHOLD).is_none_or(|value| value.iter().all(|byte| *byte == 0));
                let plain = short && more.iter().all(|kind| number(*kind).unwrap_or(0) == 0);
                let group = find(data, NFTA_LOG_GROUP)
                    .and_then(|value| Some(u16::from_be_bytes(*value.first_chunk()?)));
                let (prefix, level) = (find_text(data, NFTA_LOG_PREFIX)?, number(NFTA_LOG_LEVEL));
                plain.then_some(Expression::Log { prefix, level, group })
            }
            _ => None,
        }
    }
}
