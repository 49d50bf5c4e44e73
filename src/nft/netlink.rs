//! The kernel's firewall through one netlink socket; blocks, and touches nothing but that socket.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::io;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send, sockopt};

use super::attribute::Writer;
use super::reply::{self, Mark, Reply, replies};
use super::surroundings::{self, Surroundings};
use super::table::{Element, Key, KeyType, NETS, TABLE, Table};
use super::transaction::Transaction;
use super::wire::*;
use super::{Firewall, Refusal};
use crate::model::{Dropped, JailName};

/// Room for a transaction of two million bans; the kernel allocates only what is sent.
const SEND_BUFFER_BYTES: usize = 128 << 20;
/// Room for the refusals of a large transaction: one small message for each operation.
const RECEIVE_BUFFER_BYTES: usize = 8 << 20;
/// The kernel fills answers to a dump up to 32 KiB (netlink_recvmsg in net/netlink/af_netlink.c).
const ANSWER_BYTES: usize = 64 << 10;
/// How often a reading starts over because others change the ruleset meanwhile.
const READINGS_MAX: usize = 8;

/// The firewall of the network namespace that the opening thread was in.
pub struct Netlink {
    socket: Socket,
    sequence: u32,
    answer: Vec<u8>,
}

/// Why one question was not answered.
enum Unanswered {
    /// The ruleset changed meanwhile.
    Interrupted,
    Refused(Errno),
    Lost,
}

impl Netlink {
    /// Opens the socket, and asks the kernel one thing, so that a lacking capability or module shows here.
    pub fn open() -> Result<Netlink, Refusal> {
        let mut socket = Socket::new(NETLINK_NETFILTER).map_err(not_opened)?;
        socket.bind(&SocketAddr::new(0, 0)).map_err(not_opened)?;
        // What is refused is named by its element, and not sent back whole.
        socket.set_ext_ack(true).map_err(not_opened)?;
        socket.set_cap_ack(true).map_err(not_opened)?;
        let mut netlink = Netlink { socket, sequence: 1, answer: vec![0; ANSWER_BYTES] };
        netlink.generation().map_err(|unanswered| match unanswered {
            Unanswered::Refused(Errno::INVAL | Errno::OPNOTSUPP) => Refusal::NoNfTables,
            other => not_read("asking for the ruleset's generation", other),
        })?;
        netlink.widen();
        Ok(netlink)
    }

    /// The port that the kernel knows our writing by.
    pub fn port(&self) -> io::Result<u32> {
        let mut addr = SocketAddr::new(0, 0);
        self.socket.get_address(&mut addr)?;
        Ok(addr.port_number())
    }

    /// Whether this kernel lets a table have an owner that it outlives: Linux 6.9 does.
    pub fn can_own(&mut self) -> bool {
        let batch = Batch::owning(&format!("{TABLE}_probe"), self.sequence);
        self.sequence = batch.next_sequence();
        self.send(&batch.bytes).is_ok() && matches!(self.first_refusal(&batch), Ok(None))
    }

    /// Where the limits may not be lifted, the kernel's usual ones do for 2,500 bans at once.
    fn widen(&self) {
        if sockopt::set_socket_send_buffer_size_force(&self.socket, SEND_BUFFER_BYTES).is_err() {
            let _ = sockopt::set_socket_send_buffer_size(&self.socket, SEND_BUFFER_BYTES);
        }
        if sockopt::set_socket_recv_buffer_size_force(&self.socket, RECEIVE_BUFFER_BYTES).is_err() {
            let _ = sockopt::set_socket_recv_buffer_size(&self.socket, RECEIVE_BUFFER_BYTES);
        }
    }

    fn generation(&mut self) -> Result<u32, Unanswered> {
        let mut generation = None;
        self.ask(NFT_MSG_GETGEN, false, |_| {}, |body| generation = reply::generation(body))?;
        generation.ok_or(Unanswered::Lost)
    }

    /// Sends one request about the family of our table and hands each object of the answer to `take`.
    fn ask(
        &mut self,
        kind: u16,
        dump: bool,
        body: impl FnOnce(&mut Writer),
        mut take: impl FnMut(&[u8]),
    ) -> Result<(), Unanswered> {
        self.ask_in(NFPROTO_INET, kind, dump, body, |family, body| {
            // The generation is of no family.
            if family == NFPROTO_INET || family == NFPROTO_UNSPEC {
                take(body);
            }
        })
    }

    /// As [`Netlink::ask`], for any family, or for all.
    fn ask_in(
        &mut self,
        family: u8,
        kind: u16,
        dump: bool,
        body: impl FnOnce(&mut Writer),
        mut take: impl FnMut(u8, &[u8]),
    ) -> Result<(), Unanswered> {
        let asked = self.sequence;
        self.sequence = self.sequence.wrapping_add(1);
        self.send(&request((family, kind), dump, asked, body)).map_err(Unanswered::Refused)?;
        let mut disturbed = false;
        loop {
            let Some(length) = self.receive()? else { return Err(Unanswered::Lost) };
            for reply in replies(&self.answer[..length]).filter(|reply| reply.sequence() == asked) {
                match reply {
                    Reply::Error { errno: 0, .. } => {}
                    Reply::Error { errno, .. } => return Err(refused(errno)),
                    Reply::Done { errno: 0, .. } if disturbed => return Err(Unanswered::Interrupted),
                    Reply::Done { errno: 0, .. } => return Ok(()),
                    Reply::Done { errno, .. } => return Err(refused(errno)),
                    Reply::Object { family, body, interrupted, .. } => {
                        disturbed |= interrupted;
                        take(family, body);
                        if !dump {
                            return Ok(());
                        }
                    }
                }
            }
        }
    }

    /// One sendto(2) for all bytes: a transaction that came in two would be dropped without a word.
    fn send(&self, bytes: &[u8]) -> Result<(), Errno> {
        let sent = rustix::io::retry_on_intr(|| send(&self.socket, bytes, SendFlags::empty()))?;
        if sent == bytes.len() { Ok(()) } else { Err(Errno::MSGSIZE) }
    }

    /// The next answer; none where there is no more. The kernel queues answers before sendto(2) returns, and
    /// the next part of a dump before recv(2) returns, so there is nothing to wait for.
    fn receive(&mut self) -> Result<Option<usize>, Unanswered> {
        let flags = RecvFlags::DONTWAIT | RecvFlags::TRUNC;
        match rustix::io::retry_on_intr(|| recv(&self.socket, &mut self.answer[..], flags)) {
            Ok((kept, whole)) if kept == whole => Ok(Some(kept)),
            Ok(_) | Err(Errno::NOBUFS) => Err(Unanswered::Lost),
            Err(Errno::AGAIN) => Ok(None),
            Err(errno) => Err(Unanswered::Refused(errno)),
        }
    }

    /// All refusals of a batch that was just sent; the first counts.
    fn first_refusal(&mut self, batch: &Batch) -> Result<Option<(u32, Errno, Option<u32>)>, Unanswered> {
        let mut first: Option<(u32, Errno, Option<u32>)> = None;
        let mut lost = false;
        loop {
            let length = match self.receive() {
                Ok(Some(length)) => length,
                Ok(None) if lost && first.is_none() => return Err(Unanswered::Lost),
                Ok(None) => return Ok(first),
                Err(Unanswered::Lost) => {
                    lost = true;
                    continue;
                }
                Err(other) => return Err(other),
            };
            for reply in replies(&self.answer[..length]) {
                if let Reply::Error { sequence, errno, offset } = reply
                    && errno != 0
                    && batch.holds(sequence)
                    && first.is_none()
                {
                    first = Some((sequence, Errno::from_raw_os_error(errno), offset));
                }
            }
        }
    }

    fn explain(
        &mut self,
        transaction: &Transaction,
        batch: &Batch,
        (sequence, errno, offset): (u32, Errno, Option<u32>),
    ) -> Refusal {
        let Some(operation) = batch.operation(sequence) else {
            return not_read("committing a transaction", Unanswered::Refused(errno));
        };
        let element = offset.and_then(|offset| batch.element(operation, offset));
        let what = &transaction.operations()[operation];
        let doing = what.doing();
        match (errno, what.elements()) {
            (Errno::PERM, _) => Refusal::NotPermitted,
            (Errno::NFILE, Some((set, _))) => {
                let (set, size) = (set.to_owned(), self.size(transaction, set));
                Refusal::Full { operation, element, set, size }
            }
            // Of two intervals that end alike the second is taken, and then not found.
            (Errno::EXIST, Some((set, _)))
            | (Errno::NOENT, Some((set, [Element { key: Key::Range(..), .. }])))
                if element.is_some() =>
            {
                Refusal::Overlaps { operation, element, set: set.to_owned() }
            }
            (Errno::NOENT, _) => Refusal::Missing { operation, element, doing },
            _ => Refusal::Failed { operation: Some(operation), element, doing, errno },
        }
    }

    /// The bound of a set: as the transaction would have it, else as the kernel has it.
    fn size(&mut self, transaction: &Transaction, name: &str) -> u32 {
        if let Some(size) = transaction.size_of(name) {
            return size;
        }
        let mut size = None;
        let body = |writer: &mut Writer| {
            writer.text(NFTA_SET_TABLE, TABLE);
            writer.text(NFTA_SET_NAME, name);
        };
        let _ =
            self.ask(NFT_MSG_GETSET, false, body, |body| size = reply::set(body).and_then(|set| set.size));
        size.unwrap_or(0)
    }

    /// Reads until nobody changed anything meanwhile.
    fn steadily<T>(
        &mut self,
        doing: &str,
        mut read: impl FnMut(&mut Self) -> Result<T, Unanswered>,
    ) -> Result<T, Refusal> {
        for _ in 0..READINGS_MAX {
            let before = self.generation().map_err(|unanswered| not_read(doing, unanswered))?;
            match read(self) {
                Ok(value) => {
                    if self.generation().map_err(|unanswered| not_read(doing, unanswered))? == before {
                        return Ok(value);
                    }
                }
                Err(Unanswered::Interrupted) => {}
                // A set that we were about to read is gone: the next reading will not see it.
                Err(Unanswered::Refused(Errno::NOENT)) => {}
                Err(other) => return Err(not_read(doing, other)),
            }
        }
        Err(Refusal::Restless)
    }

    fn read_table(&mut self, elements: bool) -> Result<Option<Table>, Unanswered> {
        let mut found = None;
        let name = |writer: &mut Writer| writer.text(NFTA_TABLE_NAME, TABLE);
        match self.ask(NFT_MSG_GETTABLE, false, name, |body| found = reply::table(body)) {
            Err(Unanswered::Refused(Errno::NOENT)) => return Ok(None),
            other => other?,
        }
        let mut table: Table = found.unwrap_or_default();
        self.ask(NFT_MSG_GETCHAIN, true, |_| {}, |body| table.chains.extend(reply::chain(body)))?;
        self.ask(NFT_MSG_GETRULE, true, name, |body| {
            let Some((chain, rule)) = reply::rule(body) else { return };
            if let Some(chain) = table.chains.iter_mut().find(|known| known.name == chain) {
                chain.rules.push(rule);
            }
        })?;
        self.ask(NFT_MSG_GETSET, true, name, |body| {
            table.sets.extend(reply::set(body));
            table.counts.extend(reply::set_count(body));
        })?;
        self.ask(NFT_MSG_GETOBJ, true, name, |body| match reply::object(body) {
            Some(Ok(counter)) => table.counters.push(counter),
            Some(Err(foreign)) => table.foreign.push(foreign),
            None => {}
        })?;
        self.ask(NFT_MSG_GETFLOWTABLE, true, name, |body| table.foreign.extend(reply::flow_table(body)))?;
        for set in table.sets.iter_mut().filter(|set| set.key != KeyType::Foreign) {
            if elements || !set.timeout || set.interval {
                set.elements = reply::elements(set.interval, self.marks(&set.name)?);
            }
        }
        Ok(Some(table))
    }

    /// What else there is: chains, flow tables and rules of everybody.
    pub fn surroundings(&mut self) -> Result<Surroundings, Refusal> {
        self.steadily("reading the ruleset", |netlink| {
            let mut found = Surroundings::default();
            let Surroundings { chains, flow_tables, .. } = &mut found;
            netlink.ask_in(
                NFPROTO_UNSPEC,
                NFT_MSG_GETCHAIN,
                true,
                |_| {},
                |family, body| {
                    chains.extend(surroundings::base_chain(family, body));
                },
            )?;
            netlink.ask_in(
                NFPROTO_UNSPEC,
                NFT_MSG_GETFLOWTABLE,
                true,
                |_| {},
                |family, body| {
                    flow_tables.extend(surroundings::flow_table(family, body));
                },
            )?;
            netlink.ask_in(
                NFPROTO_UNSPEC,
                NFT_MSG_GETRULE,
                true,
                |_| {},
                |family, body| {
                    found.take_rule(family, body);
                },
            )?;
            found.chains.sort_by(|one, other| (&one.hook, one.priority).cmp(&(&other.hook, other.priority)));
            Ok(found)
        })
    }

    fn marks(&mut self, set: &str) -> Result<Vec<Mark>, Unanswered> {
        let mut marks = Vec::new();
        let body = |writer: &mut Writer| {
            writer.text(NFTA_SET_ELEM_LIST_TABLE, TABLE);
            writer.text(NFTA_SET_ELEM_LIST_SET, set);
        };
        self.ask(NFT_MSG_GETSETELEM, true, body, |body| marks.extend(reply::marks(body)))?;
        Ok(marks)
    }

    /// One element; none where it or its set is not there.
    fn find(&mut self, set: &str, key: Key) -> Result<Option<Element>, Unanswered> {
        let mut marks = Vec::new();
        let interval = matches!(key, Key::Range(..));
        let asked = match interval {
            // Asked for one address, the kernel would name whatever interval holds it.
            true => self.marks(set).map(|all| marks = all),
            false => {
                let body = |writer: &mut Writer| one_element(writer, set, key);
                self.ask(NFT_MSG_GETSETELEM, false, body, |body| marks = reply::marks(body))
            }
        };
        match asked {
            Err(Unanswered::Refused(Errno::NOENT)) => return Ok(None),
            other => other?,
        }
        Ok(reply::elements(interval, marks).into_iter().find(|element| element.key == key))
    }
}

impl Firewall for Netlink {
    fn commit(&mut self, transaction: &Transaction) -> Result<(), Refusal> {
        if transaction.is_empty() {
            return Ok(());
        }
        let doing = "committing a transaction";
        let before = self.generation().map_err(|unanswered| not_read(doing, unanswered))?;
        let batch = Batch::new(transaction, self.sequence);
        self.sequence = batch.next_sequence();
        self.send(&batch.bytes).map_err(|errno| not_read(doing, Unanswered::Refused(errno)))?;
        if let Some(refusal) = self.first_refusal(&batch).map_err(|unanswered| not_read(doing, unanswered))? {
            return Err(self.explain(transaction, &batch, refusal));
        }
        // The kernel drops a malformed batch without a word; only a committed one moves the generation.
        match self.generation().map_err(|unanswered| not_read(doing, unanswered))? {
            after if after == before => Err(Refusal::Lost),
            _ => Ok(()),
        }
    }

    fn table(&mut self, elements: bool) -> Result<Option<Table>, Refusal> {
        self.steadily(&format!("reading table inet {TABLE}"), |netlink| netlink.read_table(elements))
    }

    fn dropped(&mut self) -> Result<BTreeMap<JailName, Dropped>, Refusal> {
        self.steadily("reading the counters", |netlink| {
            let mut dropped = BTreeMap::new();
            let body = |writer: &mut Writer| writer.text(NFTA_OBJ_TABLE, TABLE);
            netlink.ask(NFT_MSG_GETOBJ, true, body, |body| {
                if let Some(Ok(counter)) = reply::object(body)
                    && let Some(jail) = counter.jail()
                {
                    dropped.insert(jail, counter.dropped);
                }
            })?;
            Ok(dropped)
        })
    }

    fn element(&mut self, set: &str, key: Key) -> Result<Option<Element>, Refusal> {
        self.steadily(&format!("looking up {key} in set {set}"), |netlink| netlink.find(set, key))
    }

    fn elements(&mut self, set: &str) -> Result<Vec<Element>, Refusal> {
        self.steadily(&format!("reading set {set}"), |netlink| match netlink.marks(set) {
            Err(Unanswered::Refused(Errno::NOENT)) => Ok(Vec::new()),
            // An interval's elements are of networks, whose sets' names end so.
            marks => Ok(reply::elements(set.ends_with(NETS), marks?)),
        })
    }
}

fn not_opened(error: io::Error) -> Refusal {
    match Errno::from_io_error(&error).unwrap_or(Errno::IO) {
        Errno::PROTONOSUPPORT => Refusal::NoNfTables,
        errno => not_read("opening a netlink socket", Unanswered::Refused(errno)),
    }
}

fn refused(errno: i32) -> Unanswered {
    match Errno::from_raw_os_error(errno) {
        Errno::INTR => Unanswered::Interrupted,
        errno => Unanswered::Refused(errno),
    }
}

fn not_read(doing: &str, unanswered: Unanswered) -> Refusal {
    match unanswered {
        Unanswered::Interrupted => Refusal::Restless,
        Unanswered::Lost | Unanswered::Refused(Errno::NOBUFS) => Refusal::Lost,
        Unanswered::Refused(Errno::PERM) => Refusal::NotPermitted,
        Unanswered::Refused(errno) => {
            Refusal::Failed { operation: None, element: None, doing: doing.to_owned(), errno }
        }
    }
}
