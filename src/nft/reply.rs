//! The kernel's answers: refusals, and the objects of a dump as the values of `table`; no bytes make it panic.
#![forbid(unsafe_code)]

use std::net::IpAddr;
use std::time::Duration;

use super::attribute::{
    HEADER_BYTES, Message, attributes, be32, find, find_be32, find_be64, find_text, messages, ne32,
};
use super::rule;
use super::table::{Chain, Counter, Element, Key, KeyType, Place, Rule, Set, Standing, TABLE, Table};
use super::wire::*;
use crate::model::{Dropped, Hook, JailName};

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSGERR_ATTR_OFFS: u16 = 2;
const NFT_SET_ANONYMOUS: u32 = 1;

/// One message of an answer.
#[derive(Debug)]
pub enum Reply<'a> {
    /// `errno` is 0 for an acknowledgement. `offset` is where in the refused message the fault is.
    Error { sequence: u32, errno: i32, offset: Option<u32> },
    /// The dump is complete.
    Done { sequence: u32, errno: i32 },
    /// One object of a protocol family; `interrupted` says that the ruleset changed under the dump.
    Object { sequence: u32, family: u8, body: &'a [u8], interrupted: bool },
}

impl Reply<'_> {
    pub fn sequence(&self) -> u32 {
        match self {
            Reply::Error { sequence, .. } | Reply::Done { sequence, .. } | Reply::Object { sequence, .. } => {
                *sequence
            }
        }
    }
}

/// The answers in what one recv(2) brought.
pub fn replies(bytes: &[u8]) -> impl Iterator<Item = Reply<'_>> {
    messages(bytes).filter_map(|message| {
        let Message { kind, flags, sequence, payload } = message;
        let errno = ne32(payload).map_or(0, |code| (code as i32).saturating_neg());
        match kind {
            NLMSG_ERROR => Some(Reply::Error { sequence, errno, offset: offset(flags, payload) }),
            NLMSG_DONE => Some(Reply::Done { sequence, errno }),
            kind if kind >> 8 == NFNL_SUBSYS_NFTABLES => {
                let interrupted = flags & NLM_F_DUMP_INTR != 0;
                let family = *payload.first()?;
                Some(Reply::Object { sequence, family, body: message.body(), interrupted })
            }
            _ => None,
        }
    })
}

/// After the error number comes the refused message, only its header where capped, then the attributes.
fn offset(flags: u16, payload: &[u8]) -> Option<u32> {
    let refused = payload.get(4..)?;
    let length = if flags & NLM_F_CAPPED != 0 { HEADER_BYTES } else { ne32(refused)? as usize };
    let extra = refused.get(length.checked_next_multiple_of(4)?..)?;
    let offset = find(extra, NLMSGERR_ATTR_OFFS).filter(|_| flags & NLM_F_ACK_TLVS != 0)?;
    ne32(offset)
}

/// The generation of the ruleset: it moves with every commit in the network namespace.
pub fn generation(body: &[u8]) -> Option<u32> {
    find_be32(body, 1)
}

/// Who made a commit, as its last message says: the name of the process, and its number. The name is the process's
/// own choice, so that only what is printable is kept of it.
pub fn committer(body: &[u8]) -> String {
    let name = find_text(body, 3).unwrap_or_default();
    let name: String = name.chars().map(|c| if c.is_ascii_graphic() { c } else { '?' }).collect();
    match (name.as_str(), find_be32(body, 2)) {
        ("", _) | (_, None) => "somebody".to_owned(),
        (name, Some(pid)) => format!("{name} (process {pid})"),
    }
}

/// Our table without anything in it, where the object is our table.
pub fn table(body: &[u8]) -> Option<Table> {
    ours(body)?;
    // Without its owner a table keeps the other flag.
    let owned = find_be32(body, NFTA_TABLE_FLAGS).is_some_and(|flags| flags & NFT_TABLE_F_PERSIST != 0);
    let comment = find(body, NFTA_TABLE_USERDATA).and_then(|notes| read_note(notes, NOTE_TABLE_COMMENT));
    Some(Table { comment, owned, ..Table::default() })
}

pub fn chain(body: &[u8]) -> Option<Chain> {
    ours(body)?;
    let place = match find(body, NFTA_CHAIN_HOOK) {
        None => Place::Jumped,
        Some(found) => {
            let at = find_be32(found, NFTA_HOOK_HOOKNUM).zip(find_be32(found, NFTA_HOOK_PRIORITY));
            let filter = find_text(body, NFTA_CHAIN_TYPE).as_deref() == Some("filter");
            let accept = find_be32(body, NFTA_CHAIN_POLICY) == Some(NF_ACCEPT);
            let hook = Hook::ALL.into_iter().find(|hook| at == Some(hook_and_priority(*hook)));
            hook.filter(|_| filter && accept).map_or(Place::Foreign, Place::At)
        }
    };
    Some(Chain { name: find_text(body, NFTA_CHAIN_NAME)?, place, rules: Vec::new() })
}

/// A rule and the chain that it is in.
pub fn rule(body: &[u8]) -> Option<(String, Rule)> {
    ours(body)?;
    let expressions = find(body, NFTA_RULE_EXPRESSIONS).unwrap_or_default();
    Some((find_text(body, NFTA_RULE_CHAIN)?, rule::read(expressions)))
}

/// A set without its elements; none for the nameless sets inside rules.
pub fn set(body: &[u8]) -> Option<Set> {
    ours(body)?;
    let flags = find_be32(body, NFTA_SET_FLAGS).unwrap_or(0);
    if flags & NFT_SET_ANONYMOUS != 0 {
        return None;
    }
    let counter = find(body, NFTA_SET_EXPR).map(|found| find_text(found, NFTA_EXPR_NAME));
    let counts = counter.as_ref().is_some_and(|name| name.as_deref() == Some(COUNTER));
    let plain = counter.is_none() && find(body, NFTA_SET_EXPRESSIONS).is_none();
    let flags_known = flags & !(NFT_SET_INTERVAL | NFT_SET_TIMEOUT | NFT_SET_EVAL) == 0;
    let known = flags_known && (plain || counts);
    let key = match (known, find_be32(body, NFTA_SET_KEY_TYPE), find_be32(body, NFTA_SET_KEY_LEN)) {
        (true, Some(TYPE_IPV4), Some(4)) => KeyType::Ipv4,
        (true, Some(TYPE_IPV6), Some(16)) => KeyType::Ipv6,
        (true, Some(TYPE_PROTO_SERVICE), Some(8)) => KeyType::ProtoService,
        _ => KeyType::Foreign,
    };
    Some(Set {
        name: find_text(body, NFTA_SET_NAME)?,
        key,
        timeout: flags & NFT_SET_TIMEOUT != 0,
        interval: flags & NFT_SET_INTERVAL != 0,
        dynamic: flags & NFT_SET_EVAL != 0,
        counter: counts,
        size: find(body, NFTA_SET_DESC).and_then(|desc| find_be32(desc, NFTA_SET_DESC_SIZE)),
        comment: find(body, NFTA_SET_USERDATA).and_then(|notes| read_note(notes, NOTE_SET_COMMENT)),
        elements: Vec::new(),
    })
}

/// How many elements a set holds, where the kernel tells it: those that ended count until they are collected.
pub fn set_count(body: &[u8]) -> Option<(String, u32)> {
    ours(body)?;
    Some((find_text(body, NFTA_SET_NAME)?, find_be32(body, NFTA_SET_COUNT)?))
}

/// A counter, or the name and number of an object of another kind.
pub fn object(body: &[u8]) -> Option<Result<Counter, String>> {
    ours(body)?;
    let name = find_text(body, NFTA_OBJ_NAME)?;
    match find_be32(body, NFTA_OBJ_TYPE)? {
        NFT_OBJECT_COUNTER => {
            let dropped = counted(find(body, NFTA_OBJ_DATA).unwrap_or_default());
            Some(Ok(Counter { name, dropped }))
        }
        other => Some(Err(format!("object {name} of type {other}"))),
    }
}

fn counted(data: &[u8]) -> Dropped {
    let number = |kind| find_be64(data, kind).unwrap_or(0);
    Dropped { packets: number(NFTA_COUNTER_PACKETS), bytes: number(NFTA_COUNTER_BYTES) }
}

/// The name of a flow table in our table.
pub fn flow_table(body: &[u8]) -> Option<String> {
    ours(body)?;
    Some(format!("flowtable {}", find_text(body, 2)?))
}

/// Every object names its table by attribute 1.
fn ours(body: &[u8]) -> Option<()> {
    (find_text(body, NFTA_TABLE_NAME)? == TABLE).then_some(())
}

/// An element as the kernel holds it: an interval is a beginning and an end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    key: Key,
    end: bool,
    timeout: Option<Duration>,
    expires: Option<Duration>,
    dropped: Option<Dropped>,
}

impl Mark {
    fn element(self, key: Key) -> Element {
        let Mark { timeout, expires, dropped, .. } = self;
        Element { key, timeout, expires, dropped }
    }
}

/// The elements in one message of a dump; those of no known key are left out.
pub fn marks(body: &[u8]) -> Vec<Mark> {
    let list = match ours(body) {
        Some(()) => find(body, NFTA_SET_ELEM_LIST_ELEMENTS).unwrap_or_default(),
        None => &[],
    };
    attributes(list).filter_map(|(_, element)| mark(element)).collect()
}

/// The bans in one message about elements of a jail's set.
pub fn standing(body: &[u8], jail: &JailName) -> Vec<Standing> {
    let standing = |mark: Mark| {
        let key = mark.key;
        matches!(key, Key::Addr(_)).then(|| mark.element(key).standing(jail))?
    };
    marks(body).into_iter().filter_map(standing).collect()
}

fn mark(element: &[u8]) -> Option<Mark> {
    let key = match find(find(element, NFTA_SET_ELEM_KEY)?, NFTA_DATA_VALUE)? {
        [protocol, _, _, _, high, low, _, _] => Key::Service(*protocol, u16::from_be_bytes([*high, *low])),
        value if value.len() == 4 => Key::Addr(IpAddr::V4(be32(value)?.into())),
        value => Key::Addr(IpAddr::V6(u128::from_be_bytes(value.try_into().ok()?).into())),
    };
    let time = |kind| find_be64(element, kind).map(Duration::from_millis);
    let flags = find_be32(element, NFTA_SET_ELEM_FLAGS).unwrap_or(0);
    let timeout = time(NFTA_SET_ELEM_TIMEOUT);
    let expires = time(NFTA_SET_ELEM_EXPIRATION).filter(|_| timeout.is_some());
    let counter = find(element, NFTA_SET_ELEM_EXPR);
    let counter = counter.filter(|found| find_text(found, NFTA_EXPR_NAME).as_deref() == Some(COUNTER));
    let dropped = counter.map(|found| counted(find(found, NFTA_EXPR_DATA).unwrap_or_default()));
    Some(Mark { key, end: flags & NFT_SET_ELEM_INTERVAL_END != 0, timeout, expires, dropped })
}

/// All marks of one set as its elements; in an interval set a beginning pairs with the end that follows it.
pub fn elements(interval: bool, mut marks: Vec<Mark>) -> Vec<Element> {
    if !interval {
        return marks.into_iter().map(|mark| mark.clone().element(mark.key)).collect();
    }
    marks.sort_by_key(|mark| (mark.key, !mark.end));
    let mut elements = Vec::new();
    let mut marks = marks.into_iter().peekable();
    while let Some(mark) = marks.next() {
        let (Key::Addr(first), false) = (mark.key, mark.end) else { continue };
        let last = match marks.peek().map(|next| next.key) {
            Some(Key::Addr(next)) => before(next),
            _ => highest(first),
        };
        elements.push(mark.element(Key::Range(first, last)));
    }
    elements
}

fn before(addr: IpAddr) -> IpAddr {
    match addr {
        IpAddr::V4(v4) => IpAddr::V4(v4.to_bits().saturating_sub(1).into()),
        IpAddr::V6(v6) => IpAddr::V6(v6.to_bits().saturating_sub(1).into()),
    }
}

fn highest(addr: IpAddr) -> IpAddr {
    match addr {
        IpAddr::V4(_) => IpAddr::V4(u32::MAX.into()),
        IpAddr::V6(_) => IpAddr::V6(u128::MAX.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nft::attribute::{Head, Writer};
    use crate::nft::transaction::{Operation, Transaction};
    use proptest::prelude::*;

    fn interval_set() -> Set {
        let (name, key) = ("ignore_v4".to_owned(), KeyType::Ipv4);
        let (timeout, interval, dynamic, counter) = (false, true, false, false);
        let (size, comment, elements) = (None, None, Vec::new());
        Set { name, key, timeout, interval, dynamic, counter, size, comment, elements }
    }

    fn range(first: &str, last: &str) -> Element {
        Element::permanent(Key::Range(first.parse().unwrap(), last.parse().unwrap()))
    }

    /// What the kernel would send back: our own message, since dumps use the same attributes.
    fn sent(operation: Operation) -> Vec<u8> {
        let mut transaction = Transaction::default();
        transaction.push(operation);
        let batch = Batch::new(&transaction, 1);
        messages(&batch.bytes).nth(1).unwrap().body().to_vec()
    }

    fn read_all(body: &[u8]) {
        let _ = (generation(body), table(body), chain(body), rule(body), object(body), flow_table(body));
        let _ = (super::set(body), set_count(body), elements(true, marks(body)));
    }

    #[test]
    fn intervals_come_back_as_they_went_in_whatever_their_order() {
        let all = [
            vec![range("0.0.0.0", "255.255.255.255")],
            vec![range("0.0.0.0", "127.255.255.255"), range("128.0.0.0", "255.255.255.255")],
            vec![range("10.0.0.1", "10.0.0.1"), range("10.0.0.2", "10.0.0.3")],
            vec![range("127.0.0.0", "127.255.255.255"), range("255.255.255.255", "255.255.255.255")],
        ];
        for wanted in all {
            let body =
                sent(Operation::AddElements { set: "ignore_v4".into(), elements: wanted.clone().into() });
            let mut marks = marks(&body);
            marks.reverse();
            assert_eq!(elements(true, marks), wanted);
        }
    }

    #[test]
    fn a_set_is_read_as_written() {
        let set = Set {
            size: Some(5),
            timeout: true,
            interval: false,
            dynamic: true,
            counter: true,
            comment: Some("jail x".into()),
            ..interval_set()
        };
        assert_eq!(super::set(&sent(Operation::AddSet(set.clone()))), Some(set));
    }

    #[test]
    fn a_refusal_is_read_with_its_offset() {
        let mut bytes = (-23i32).to_ne_bytes().to_vec();
        bytes.extend([0; HEADER_BYTES]);
        let mut writer = Writer::default();
        writer.bytes(NLMSGERR_ATTR_OFFS, &77u32.to_ne_bytes());
        bytes.extend(writer.into_bytes());
        let mut whole = (bytes.len() as u32 + 16).to_ne_bytes().to_vec();
        whole.extend(NLMSG_ERROR.to_ne_bytes());
        whole.extend((NLM_F_CAPPED | NLM_F_ACK_TLVS).to_ne_bytes());
        whole.extend(5u32.to_ne_bytes());
        whole.extend([0; 4]);
        whole.extend(bytes);
        let read: Vec<_> = replies(&whole).collect();
        assert!(matches!(read[..], [Reply::Error { sequence: 5, errno: 23, offset: Some(77) }]), "{read:?}");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(noise in proptest::collection::vec(any::<u8>(), 0..300)) {
            replies(&noise).for_each(drop);
            read_all(&noise);
        }

        #[test]
        fn no_damage_to_what_we_know_makes_it_panic(at in 0usize..200, noise in any::<u8>(), cut in 0usize..200) {
            let element = Element::lasting(Key::Service(6, 22), Some(Duration::from_secs(1)), None);
            let mut bodies = vec![
                sent(Operation::AddSet(interval_set())),
                sent(Operation::AddTable { comment: "x".to_owned(), owned: false }),
                sent(Operation::AddRule { chain: "c".into(), rule: Rule::Jump { chain: "d".into() } }),
                sent(Operation::AddChain(Chain { name: "c".into(), place: Place::At(Hook::Input), rules: vec![] })),
                sent(Operation::AddElements { set: "s".into(), elements: vec![element; 3].into() }),
            ];
            for body in &mut bodies {
                let length = body.len();
                body[at % length] = noise;
                body.truncate(cut.max(1).min(length));
                read_all(body);
                let mut writer = Writer::default();
                let head = Head { kind: 0x0a00, flags: 0, sequence: 0, family: 1, resource: 0 };
                writer.message(head, |writer| writer.bytes(0, body));
                replies(&writer.into_bytes()).for_each(drop);
            }
        }
    }
}
