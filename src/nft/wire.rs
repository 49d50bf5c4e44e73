//! A transaction as the one buffer of netlink bytes that the kernel takes it in, and the requests that read back.
#![forbid(unsafe_code)]

use std::net::IpAddr;

use super::attribute::{FAMILY_BYTES, HEADER_BYTES, Head, Writer, find, messages, positions};
use super::rule;
use super::table::{Chain, Counter, Element, Key, KeyType, Place, Set, TABLE};
use super::transaction::{Operation, Transaction};
use crate::model::{Dropped, Hook};

// Numbers of include/uapi/linux/netlink.h, netfilter/nfnetlink.h and netfilter/nf_tables.h.
pub const NLM_F_REQUEST: u16 = 1;
pub const NLM_F_DUMP: u16 = 0x300;
pub const NFPROTO_UNSPEC: u8 = 0;
pub const NFPROTO_INET: u8 = 1;
pub const NFNL_SUBSYS_NFTABLES: u16 = 10;
pub const NFT_MSG_NEWTABLE: u16 = 0;
pub const NFT_MSG_GETTABLE: u16 = 1;
pub const NFT_MSG_NEWCHAIN: u16 = 3;
pub const NFT_MSG_GETCHAIN: u16 = 4;
pub const NFT_MSG_NEWRULE: u16 = 6;
pub const NFT_MSG_GETRULE: u16 = 7;
pub const NFT_MSG_NEWSET: u16 = 9;
pub const NFT_MSG_GETSET: u16 = 10;
pub const NFT_MSG_NEWSETELEM: u16 = 12;
pub const NFT_MSG_GETSETELEM: u16 = 13;
pub const NFT_MSG_DELSETELEM: u16 = 14;
pub const NFT_MSG_NEWGEN: u16 = 15;
pub const NFT_MSG_GETGEN: u16 = 16;
pub const NFT_MSG_NEWOBJ: u16 = 18;
pub const NFT_MSG_GETOBJ: u16 = 19;
pub const NFT_MSG_GETFLOWTABLE: u16 = 23;
pub const NFTA_TABLE_NAME: u16 = 1;
pub const NFTA_TABLE_FLAGS: u16 = 2;
pub const NFTA_TABLE_USERDATA: u16 = 6;
pub const NFTA_CHAIN_NAME: u16 = 3;
pub const NFTA_CHAIN_HOOK: u16 = 4;
pub const NFTA_CHAIN_POLICY: u16 = 5;
pub const NFTA_CHAIN_TYPE: u16 = 7;
pub const NFTA_HOOK_HOOKNUM: u16 = 1;
pub const NFTA_HOOK_PRIORITY: u16 = 2;
pub const NFTA_RULE_CHAIN: u16 = 2;
pub const NFTA_RULE_EXPRESSIONS: u16 = 4;
pub const NFTA_SET_TABLE: u16 = 1;
pub const NFTA_SET_NAME: u16 = 2;
pub const NFTA_SET_FLAGS: u16 = 3;
pub const NFTA_SET_KEY_TYPE: u16 = 4;
pub const NFTA_SET_KEY_LEN: u16 = 5;
pub const NFTA_SET_DESC: u16 = 9;
pub const NFTA_SET_DESC_SIZE: u16 = 1;
pub const NFTA_SET_USERDATA: u16 = 13;
pub const NFTA_SET_EXPR: u16 = 17;
pub const NFTA_SET_EXPRESSIONS: u16 = 18;
pub const NFTA_SET_COUNT: u16 = 20;
pub const NFTA_SET_ELEM_LIST_TABLE: u16 = 1;
pub const NFTA_SET_ELEM_LIST_SET: u16 = 2;
pub const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
pub const NFTA_SET_ELEM_KEY: u16 = 1;
pub const NFTA_SET_ELEM_FLAGS: u16 = 3;
pub const NFTA_SET_ELEM_TIMEOUT: u16 = 4;
pub const NFTA_SET_ELEM_EXPIRATION: u16 = 5;
pub const NFTA_SET_ELEM_EXPR: u16 = 7;
pub const NFTA_EXPR_NAME: u16 = 1;
pub const NFTA_EXPR_DATA: u16 = 2;
pub const NFTA_OBJ_TABLE: u16 = 1;
pub const NFTA_OBJ_NAME: u16 = 2;
pub const NFTA_OBJ_TYPE: u16 = 3;
pub const NFTA_OBJ_DATA: u16 = 4;
pub const NFTA_COUNTER_BYTES: u16 = 1;
pub const NFTA_COUNTER_PACKETS: u16 = 2;
pub const NFTA_DATA_VALUE: u16 = 1;
pub const NFT_TABLE_F_OWNER: u32 = 0x2;
pub const NFT_TABLE_F_PERSIST: u32 = 0x4;
pub const NFT_SET_INTERVAL: u32 = 0x4;
pub const NFT_SET_TIMEOUT: u32 = 0x10;
pub const NFT_SET_EVAL: u32 = 0x20;
pub const NFT_SET_ELEM_INTERVAL_END: u32 = 1;
pub const NFT_OBJECT_COUNTER: u32 = 1;
pub const NF_ACCEPT: u32 = 1;
/// The expression by which a set, or one element of it, counts.
pub const COUNTER: &str = "counter";
/// The numbers by which nft knows a set's key: its data types, six bits each (nft's datatype.h).
pub const TYPE_IPV4: u32 = 7;
pub const TYPE_IPV6: u32 = 8;
pub const TYPE_PROTO_SERVICE: u32 = 12 << 6 | 13;
/// Kinds of the notes that nft keeps beside a table and a set, invisible to the kernel.
pub const NOTE_TABLE_COMMENT: u8 = 0;
pub const NOTE_SET_BYTE_ORDER: u8 = 0;
pub const NOTE_SET_COMMENT: u8 = 7;

/// A hook by its number (include/uapi/linux/netfilter.h), and the priority that our chain has there: raw is -300,
/// filter 0 (include/uapi/linux/netfilter_ipv4.h).
pub fn hook_and_priority(hook: Hook) -> (u32, u32) {
    match hook {
        Hook::Prerouting => (0, -310i32 as u32),
        Hook::Input => (1, -10i32 as u32),
        Hook::Forward => (2, -10i32 as u32),
    }
}

const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;
const NFT_MSG_DELTABLE: u16 = 2;
const NFT_MSG_DELCHAIN: u16 = 5;
const NFT_MSG_DELRULE: u16 = 8;
const NFT_MSG_DELSET: u16 = 11;
const NFT_MSG_DELOBJ: u16 = 20;
const NFTA_SET_ID: u16 = 10;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;

/// A transaction as bytes: BATCH_BEGIN, a message for each operation, BATCH_END, numbered in sequence.
pub struct Batch {
    pub bytes: Vec<u8>,
    first_sequence: u32,
    starts: Vec<usize>,
}

impl Batch {
    /// Numbers the messages from `first_sequence` on; `next_sequence` says where the next may begin.
    pub fn new(transaction: &Transaction, first_sequence: u32) -> Batch {
        let mut writer = Writer::default();
        let mut sequence = first_sequence;
        let mut starts = Vec::new();
        writer.message(fence(NFNL_MSG_BATCH_BEGIN, sequence), |_| {});
        for (index, operation) in transaction.operations().iter().enumerate() {
            sequence = sequence.wrapping_add(1);
            starts.push(writer.position());
            // Sets are named by number too, so that rules of the same transaction may find them.
            let set_id = index as u32 + 1;
            let (kind, flags) = kind(operation);
            let head = head(kind, NLM_F_REQUEST | flags, sequence);
            writer.message(head, |writer| write(writer, operation, set_id));
        }
        sequence = sequence.wrapping_add(1);
        writer.message(fence(NFNL_MSG_BATCH_END, sequence), |_| {});
        Batch { bytes: writer.into_bytes(), first_sequence, starts }
    }

    /// Creates a table of that name as its owner and deletes it, which nobody sees.
    pub fn owning(table: &str, first_sequence: u32) -> Batch {
        let mut writer = Writer::default();
        let numbered = |step| first_sequence.wrapping_add(step);
        writer.message(fence(NFNL_MSG_BATCH_BEGIN, first_sequence), |_| {});
        let mut starts = Vec::new();
        for (step, kind, flags) in [(1, NFT_MSG_NEWTABLE, NLM_F_CREATE), (2, NFT_MSG_DELTABLE, 0)] {
            starts.push(writer.position());
            writer.message(head(kind, NLM_F_REQUEST | flags, numbered(step)), |writer| {
                writer.text(NFTA_TABLE_NAME, table);
                if kind == NFT_MSG_NEWTABLE {
                    writer.be32(NFTA_TABLE_FLAGS, NFT_TABLE_F_OWNER | NFT_TABLE_F_PERSIST);
                }
            });
        }
        writer.message(fence(NFNL_MSG_BATCH_END, numbered(3)), |_| {});
        Batch { bytes: writer.into_bytes(), first_sequence, starts }
    }

    pub fn next_sequence(&self) -> u32 {
        self.first_sequence.wrapping_add(self.starts.len() as u32 + 2)
    }

    /// Whether the sequence number belongs to this batch.
    pub fn holds(&self, sequence: u32) -> bool {
        sequence.wrapping_sub(self.first_sequence) < self.starts.len() as u32 + 2
    }

    /// The operation of a sequence number; none for the batch as a whole.
    pub fn operation(&self, sequence: u32) -> Option<usize> {
        let index = sequence.wrapping_sub(self.first_sequence).checked_sub(1)? as usize;
        (index < self.starts.len()).then_some(index)
    }

    /// The element of an operation that the kernel points at by its offset in the message
    /// (`NLMSGERR_ATTR_OFFS`). An interval is two elements to the kernel and one to us.
    pub fn element(&self, operation: usize, offset: u32) -> Option<usize> {
        let bytes = self.bytes.get(*self.starts.get(operation)?..)?;
        let message = messages(bytes).next()?;
        let inside = (offset as usize).checked_sub(HEADER_BYTES + FAMILY_BYTES)?;
        let (start, _, list) =
            positions(message.body()).find(|(_, kind, _)| *kind == NFTA_SET_ELEM_LIST_ELEMENTS)?;
        let inside = inside.checked_sub(start + 4)?;
        let begins = positions(list)
            .take_while(|(position, ..)| *position <= inside)
            .filter(|(.., element)| find(element, NFTA_SET_ELEM_FLAGS).is_none())
            .count();
        begins.checked_sub(1)
    }
}

/// A request for one thing, or a dump of all of that kind.
pub fn request(
    (family, kind): (u8, u16),
    dump: bool,
    sequence: u32,
    body: impl FnOnce(&mut Writer),
) -> Vec<u8> {
    let mut writer = Writer::default();
    let flags = if dump { NLM_F_REQUEST | NLM_F_DUMP } else { NLM_F_REQUEST };
    writer.message(Head { family, ..head(kind, flags, sequence) }, body);
    writer.into_bytes()
}

/// The body of a request for one element of a set.
pub fn one_element(writer: &mut Writer, set: &str, key: Key) {
    write_elements(writer, set, &[Element::permanent(key)], false);
}

fn head(kind: u16, flags: u16, sequence: u32) -> Head {
    Head { kind: NFNL_SUBSYS_NFTABLES << 8 | kind, flags, sequence, family: NFPROTO_INET, resource: 0 }
}

fn fence(kind: u16, sequence: u32) -> Head {
    Head { kind, flags: NLM_F_REQUEST, sequence, family: 0, resource: NFNL_SUBSYS_NFTABLES }
}

fn kind(operation: &Operation) -> (u16, u16) {
    match operation {
        Operation::AddTable { .. } => (NFT_MSG_NEWTABLE, NLM_F_CREATE),
        Operation::DeleteTable => (NFT_MSG_DELTABLE, 0),
        Operation::AddCounter(_) => (NFT_MSG_NEWOBJ, NLM_F_CREATE),
        Operation::DeleteCounter(_) => (NFT_MSG_DELOBJ, 0),
        Operation::AddSet(_) => (NFT_MSG_NEWSET, NLM_F_CREATE),
        Operation::DeleteSet(_) => (NFT_MSG_DELSET, 0),
        Operation::AddElements { .. } => (NFT_MSG_NEWSETELEM, NLM_F_CREATE),
        Operation::DeleteElements { .. } | Operation::FlushSet(_) => (NFT_MSG_DELSETELEM, 0),
        Operation::AddChain(_) => (NFT_MSG_NEWCHAIN, NLM_F_CREATE),
        Operation::FlushChain(_) => (NFT_MSG_DELRULE, 0),
        Operation::DeleteChain(_) => (NFT_MSG_DELCHAIN, 0),
        Operation::AddRule { .. } => (NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND),
    }
}

fn write(writer: &mut Writer, operation: &Operation, set_id: u32) {
    // Every kind of message names the table by attribute 1.
    match operation {
        Operation::AddElements { set, elements } => return write_elements(writer, set, elements, true),
        Operation::DeleteElements { set, elements } => return write_elements(writer, set, elements, false),
        _ => writer.text(NFTA_TABLE_NAME, TABLE),
    }
    match operation {
        Operation::AddTable { comment, owned } => {
            if *owned {
                writer.be32(NFTA_TABLE_FLAGS, NFT_TABLE_F_OWNER | NFT_TABLE_F_PERSIST);
            }
            writer.bytes(NFTA_TABLE_USERDATA, &note(NOTE_TABLE_COMMENT, comment));
        }
        Operation::AddCounter(counter) => write_counter(writer, counter),
        Operation::DeleteCounter(name) => {
            writer.text(NFTA_OBJ_NAME, name);
            writer.be32(NFTA_OBJ_TYPE, NFT_OBJECT_COUNTER);
        }
        Operation::AddSet(set) => write_set(writer, set, set_id),
        Operation::DeleteSet(name) => writer.text(NFTA_SET_NAME, name),
        Operation::FlushSet(name) => writer.text(NFTA_SET_ELEM_LIST_SET, name),
        Operation::AddChain(chain) => write_chain(writer, chain),
        Operation::FlushChain(name) => writer.text(NFTA_RULE_CHAIN, name),
        Operation::DeleteChain(name) => writer.text(NFTA_CHAIN_NAME, name),
        Operation::AddRule { chain, rule } => {
            writer.text(NFTA_RULE_CHAIN, chain);
            rule::write(writer, NFTA_RULE_EXPRESSIONS, rule);
        }
        Operation::DeleteTable | Operation::AddElements { .. } | Operation::DeleteElements { .. } => {}
    }
}

/// A text as nft keeps it in user data: kind, length with the NUL, text. The kernel takes 255 bytes at most.
fn note(kind: u8, text: &str) -> Vec<u8> {
    let mut end = text.len().min(128);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let mut bytes = vec![kind, end as u8 + 1];
    bytes.extend(&text.as_bytes()[..end]);
    bytes.push(0);
    bytes
}

fn write_counter(writer: &mut Writer, counter: &Counter) {
    writer.text(NFTA_OBJ_NAME, &counter.name);
    writer.be32(NFTA_OBJ_TYPE, NFT_OBJECT_COUNTER);
    write_counted(writer, NFTA_OBJ_DATA, counter.dropped);
}

fn write_counted(writer: &mut Writer, kind: u16, dropped: Dropped) {
    writer.nest(kind, |writer| {
        writer.be64(NFTA_COUNTER_BYTES, dropped.bytes);
        writer.be64(NFTA_COUNTER_PACKETS, dropped.packets);
    });
}

/// What makes a set, or an element, count, and from where on.
fn write_counting(writer: &mut Writer, kind: u16, dropped: Dropped) {
    writer.nest(kind, |writer| {
        writer.text(NFTA_EXPR_NAME, COUNTER);
        write_counted(writer, NFTA_EXPR_DATA, dropped);
    });
}

fn write_set(writer: &mut Writer, set: &Set, id: u32) {
    let (key_type, length, big_endian) = match set.key {
        KeyType::Ipv4 => (TYPE_IPV4, 4, 2u32),
        KeyType::Ipv6 => (TYPE_IPV6, 16, 2),
        KeyType::ProtoService | KeyType::Foreign => (TYPE_PROTO_SERVICE, 8, 0),
    };
    let interval = if set.interval { NFT_SET_INTERVAL } else { 0 };
    let timeout = if set.timeout { NFT_SET_TIMEOUT } else { 0 };
    let dynamic = if set.dynamic { NFT_SET_EVAL } else { 0 };
    writer.text(NFTA_SET_NAME, &set.name);
    writer.be32(NFTA_SET_FLAGS, interval | timeout | dynamic);
    writer.be32(NFTA_SET_KEY_TYPE, key_type);
    writer.be32(NFTA_SET_KEY_LEN, length);
    writer.be32(NFTA_SET_ID, id);
    if let Some(size) = set.size {
        writer.nest(NFTA_SET_DESC, |writer| writer.be32(NFTA_SET_DESC_SIZE, size));
    }
    let mut notes = vec![NOTE_SET_BYTE_ORDER, 4];
    notes.extend(big_endian.to_ne_bytes());
    if let Some(comment) = &set.comment {
        notes.extend(note(NOTE_SET_COMMENT, comment));
    }
    writer.bytes(NFTA_SET_USERDATA, &notes);
    if set.counter {
        write_counting(writer, NFTA_SET_EXPR, Dropped::default());
    }
}

fn write_chain(writer: &mut Writer, chain: &Chain) {
    writer.text(NFTA_CHAIN_NAME, &chain.name);
    if let Place::At(hook) = chain.place {
        let (number, priority) = hook_and_priority(hook);
        writer.text(NFTA_CHAIN_TYPE, "filter");
        writer.be32(NFTA_CHAIN_POLICY, NF_ACCEPT);
        writer.nest(NFTA_CHAIN_HOOK, |writer| {
            writer.be32(NFTA_HOOK_HOOKNUM, number);
            writer.be32(NFTA_HOOK_PRIORITY, priority);
        });
    }
}

fn write_elements(writer: &mut Writer, set: &str, elements: &[Element], times: bool) {
    writer.text(NFTA_SET_ELEM_LIST_TABLE, TABLE);
    writer.text(NFTA_SET_ELEM_LIST_SET, set);
    writer.nest(NFTA_SET_ELEM_LIST_ELEMENTS, |writer| {
        for element in elements {
            match element.key {
                Key::Addr(addr) => write_element(writer, &octets(addr), times.then_some(element), false),
                Key::Service(protocol, port) => {
                    let [high, low] = port.to_be_bytes();
                    let key = [protocol, 0, 0, 0, high, low, 0, 0];
                    write_element(writer, &key, times.then_some(element), false);
                }
                Key::Range(first, last) => {
                    write_element(writer, &octets(first), times.then_some(element), false);
                    if let Some(next) = after(last) {
                        write_element(writer, &octets(next), None, true);
                    }
                }
            }
        }
    });
}

/// List attributes have no kind of their own: nft and libnftnl number them 1.
fn write_element(writer: &mut Writer, key: &[u8], times: Option<&Element>, end: bool) {
    writer.nest(1, |writer| {
        if end {
            writer.be32(NFTA_SET_ELEM_FLAGS, NFT_SET_ELEM_INTERVAL_END);
        }
        if let Some(timeout) = times.and_then(|element| element.timeout) {
            writer.be64(NFTA_SET_ELEM_TIMEOUT, timeout.as_millis() as u64);
        }
        if let Some(expires) = times.and_then(|element| element.expires) {
            writer.be64(NFTA_SET_ELEM_EXPIRATION, expires.as_millis() as u64);
        }
        writer.nest(NFTA_SET_ELEM_KEY, |writer| writer.bytes(NFTA_DATA_VALUE, key));
        if let Some(dropped) = times.and_then(|element| element.dropped) {
            write_counting(writer, NFTA_SET_ELEM_EXPR, dropped);
        }
    });
}

fn octets(addr: IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// Where an interval that ends with this address is over; none where it is the last address of all: such an
/// interval stays open.
fn after(last: IpAddr) -> Option<IpAddr> {
    match last {
        IpAddr::V4(v4) => v4.to_bits().checked_add(1).map(|bits| IpAddr::V4(bits.into())),
        IpAddr::V6(v6) => v6.to_bits().checked_add(1).map(|bits| IpAddr::V6(bits.into())),
    }
}

/// The text of the first note of that kind in user data.
pub fn read_note(mut notes: &[u8], kind: u8) -> Option<String> {
    loop {
        let [found, length, rest @ ..] = notes else { return None };
        let value = rest.get(..usize::from(*length))?;
        if *found == kind {
            return Some(super::attribute::text(value));
        }
        notes = &rest[value.len()..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nft::attribute::attributes;
    use crate::nft::transaction::ELEMENTS_MAX;

    fn range(first: &str, last: &str) -> Element {
        Element::permanent(Key::Range(first.parse().unwrap(), last.parse().unwrap()))
    }

    fn batch(elements: Vec<Element>) -> Batch {
        let mut transaction = Transaction::default();
        transaction.push(Operation::AddTable { comment: "x".to_owned(), owned: true });
        transaction.push(Operation::AddElements { set: "s".to_owned(), elements: elements.into() });
        Batch::new(&transaction, u32::MAX - 1)
    }

    #[test]
    fn a_batch_is_fenced_and_numbered_even_where_numbers_wrap() {
        let batch = batch(vec![range("10.0.0.1", "10.0.0.1")]);
        let kinds: Vec<u16> = messages(&batch.bytes).map(|message| message.kind).collect();
        assert_eq!(kinds, [NFNL_MSG_BATCH_BEGIN, 0xa00, 0xa0c, NFNL_MSG_BATCH_END]);
        let sequences: Vec<u32> = messages(&batch.bytes).map(|message| message.sequence).collect();
        assert_eq!(sequences, [u32::MAX - 1, u32::MAX, 0, 1]);
        let operations: Vec<_> = sequences.iter().map(|sequence| batch.operation(*sequence)).collect();
        assert_eq!(operations, [None, Some(0), Some(1), None]);
        assert!(batch.holds(1) && !batch.holds(2) && batch.next_sequence() == 2);
    }

    #[test]
    fn an_offset_names_the_element_that_it_points_into() {
        let last = range("255.255.255.255", "255.255.255.255");
        let batch = batch(vec![range("10.0.0.1", "10.0.0.1"), range("10.0.0.4", "10.0.0.7"), last]);
        let message = messages(&batch.bytes).nth(2).unwrap();
        let (list_at, _, list) = positions(message.body()).nth(2).unwrap();
        let offsets: Vec<u32> =
            positions(list).map(|(at, ..)| (HEADER_BYTES + FAMILY_BYTES + list_at + 4 + at) as u32).collect();
        let named: Vec<_> = offsets.iter().map(|offset| batch.element(1, *offset)).collect();
        assert_eq!(named, [Some(0), Some(0), Some(1), Some(1), Some(2)], "the last interval has no end");
        assert_eq!(batch.element(1, 3), None);
        assert_eq!(batch.element(9, 60), None);
    }

    #[test]
    fn a_full_message_of_the_largest_elements_fits_its_nest() {
        let time = Some(std::time::Duration::from_secs(600));
        let element = Element::lasting(range("2001:db8::", "2001:db8::ff").key, time, time);
        let element = element.counted(Some(Dropped::default()));
        let batch = batch(vec![element; ELEMENTS_MAX]);
        let message = messages(&batch.bytes).nth(2).unwrap();
        let list = find(message.body(), NFTA_SET_ELEM_LIST_ELEMENTS).unwrap();
        assert_eq!(attributes(list).count(), 2 * ELEMENTS_MAX, "each has an end");
    }

    #[test]
    fn notes_are_read_as_written_and_never_past_their_end() {
        let notes = [note(3, "other"), note(7, "jail sshd")].concat();
        assert_eq!(read_note(&notes, 7).as_deref(), Some("jail sshd"));
        assert_eq!(read_note(&notes[..notes.len() - 2], 7), None);
        assert_eq!(note(0, &"ü".repeat(100)).len(), 2 + 128 + 1);
    }
}
