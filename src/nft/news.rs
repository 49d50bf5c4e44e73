//! What others do to our table: the kernel tells of every commit, of what was in it, and of who made it.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use socket2::{SockFilter, SockRef};

use super::attribute::{Message, find_text, messages};
use super::reply;
use super::table::{KNOCKS, Set, Standing, TABLE};
use super::wire::*;
use crate::model::{JailName, Target};

/// NFNLGRP_NFTABLES of include/uapi/linux/netfilter/nfnetlink.h.
const GROUP: u32 = 7;
/// A commit is told in messages of some kilobytes each: what does not fit here is told as lost.
const RECEIVE_BUFFER_BYTES: usize = 4 << 20;
const MESSAGE_BYTES: usize = 64 << 10;

/// Hears what others than our own writing socket commit. Others' tables are not looked at.
pub struct News {
    socket: Socket,
    /// What the commit that is being told did so far.
    telling: Damage,
    buffer: Vec<u8>,
}

/// What somebody else's commits did to our table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Damage {
    /// Who did it, in words: `nft (process 123)`.
    pub by: String,
    /// Something other than bans was added or removed: the table, a chain, a rule, a set.
    pub structure: bool,
    /// Whose bans were removed, added or changed.
    pub touched: BTreeSet<(JailName, Target)>,
    /// Bans that were added, as the kernel holds them.
    pub added: Vec<Standing>,
    /// The kernel told more than we could hear: everything may be otherwise.
    pub missed: bool,
}

impl Damage {
    /// Whether there is any.
    pub fn is_some(&self) -> bool {
        self.structure || self.missed || !self.touched.is_empty()
    }

    /// Takes later damage in.
    pub fn absorb(&mut self, later: Damage) {
        self.structure |= later.structure;
        self.missed |= later.missed;
        self.touched.extend(later.touched);
        self.added.extend(later.added);
        self.by = later.by;
    }
}

impl News {
    /// `ours` is the netlink port whose own commits are no news.
    ///
    /// # Errors
    /// EPERM without CAP_NET_ADMIN.
    pub fn open(ours: u32) -> io::Result<News> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.set_non_blocking(true)?;
        // Before the socket hears anything: a large commit of our own would fill its buffer.
        SockRef::from(&socket).attach_filter(&not_from(ours))?;
        // Where the limit may not be lifted, the usual one does; what is lost is then told as lost.
        let _ = rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER_BYTES);
        socket.bind(&SocketAddr::new(0, 0))?;
        socket.add_membership(GROUP)?;
        Ok(News { socket, telling: Damage::default(), buffer: vec![0; MESSAGE_BYTES] })
    }

    /// What was told since the last call, of all commits together; never blocks.
    pub fn take(&mut self) -> Option<Damage> {
        let mut told = Damage::default();
        loop {
            let flags = RecvFlags::DONTWAIT | RecvFlags::TRUNC;
            match rustix::io::retry_on_intr(|| recv(&self.socket, &mut self.buffer[..], flags)) {
                Ok((kept, whole)) => {
                    self.telling.missed |= kept < whole;
                    let messages = messages(&self.buffer[..kept]);
                    messages.for_each(|message| hear(&message, &mut self.telling, &mut told));
                }
                Err(Errno::AGAIN) => return Some(told).filter(Damage::is_some),
                Err(_) => {
                    told.missed = true;
                    told.by = "somebody".to_owned();
                }
            }
        }
    }
}

impl AsFd for News {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Takes what the port did not send. All messages of one datagram are of one commit (nft_commit_notify in
/// net/netfilter/nf_tables_api.c), so that its first tells for all.
fn not_from(port: u32) -> [SockFilter; 4] {
    // BPF_LD | BPF_W | BPF_ABS, BPF_JMP | BPF_JEQ | BPF_K and BPF_RET | BPF_K of linux/filter.h.
    const LOAD: u16 = 0x20;
    const EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    /// Where `nlmsg_pid` is in `struct nlmsghdr`.
    const PORT_AT: u32 = 12;
    // The filter reads in network order what the kernel wrote in this machine's.
    let port = u32::from_be_bytes(port.to_ne_bytes());
    [
        SockFilter::new(LOAD, 0, 0, PORT_AT),
        SockFilter::new(EQUAL, 0, 1, port),
        SockFilter::new(RETURN, 0, 0, 0),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
    ]
}

/// Adds one message to what its commit did; the last message of a commit says who made it.
fn hear(message: &Message, telling: &mut Damage, told: &mut Damage) {
    if message.kind >> 8 != NFNL_SUBSYS_NFTABLES {
        return;
    }
    let (kind, body) = (message.kind & 0xff, message.body());
    if kind == NFT_MSG_NEWGEN {
        let commit = std::mem::take(telling);
        if commit.is_some() {
            told.absorb(Damage { by: reply::committer(body), ..commit });
        }
        return;
    }
    let inet = message.payload.first() == Some(&NFPROTO_INET);
    // Every object names its table by attribute 1.
    if !inet || find_text(body, NFTA_TABLE_NAME).as_deref() != Some(TABLE) {
        return;
    }
    match kind {
        NFT_MSG_NEWSETELEM | NFT_MSG_DELSETELEM => match ban_set(body) {
            Some(jail) => {
                let standing = reply::standing(body, &jail);
                telling.touched.extend(standing.iter().map(|ban| (jail.clone(), ban.target)));
                if kind == NFT_MSG_NEWSETELEM {
                    telling.added.extend(standing);
                }
            }
            None => telling.structure = true,
        },
        _ => telling.structure = true,
    }
}

/// The jail whose bans a set holds, or its banned hosts that tried again, by the set's name.
fn ban_set(body: &[u8]) -> Option<JailName> {
    let name = find_text(body, NFTA_SET_ELEM_LIST_SET)?;
    Set::jail_of(name.strip_suffix(KNOCKS).unwrap_or(&name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nft::attribute::{Head, Writer};
    use proptest::prelude::*;

    fn message(kind: u16, body: impl FnOnce(&mut Writer)) -> Vec<u8> {
        let kind = NFNL_SUBSYS_NFTABLES << 8 | kind;
        let mut writer = Writer::default();
        writer.message(Head { kind, flags: 0, sequence: 0, family: NFPROTO_INET, resource: 0 }, body);
        writer.into_bytes()
    }

    fn element(table: &str, set: &str, addr: [u8; 4]) -> Vec<u8> {
        message(NFT_MSG_DELSETELEM, |writer| {
            writer.text(NFTA_SET_ELEM_LIST_TABLE, table);
            writer.text(NFTA_SET_ELEM_LIST_SET, set);
            writer.nest(NFTA_SET_ELEM_LIST_ELEMENTS, |writer| {
                writer.nest(1, |writer| {
                    writer.nest(NFTA_SET_ELEM_KEY, |writer| writer.bytes(NFTA_DATA_VALUE, &addr));
                });
            });
        })
    }

    fn commit() -> Vec<u8> {
        message(NFT_MSG_NEWGEN, |writer| {
            writer.be32(1, 7);
            writer.be32(2, 123);
            writer.text(3, "nf\x1bt");
        })
    }

    fn told(parts: &[Vec<u8>]) -> Damage {
        let (mut telling, mut told) = Default::default();
        for part in parts {
            messages(part).for_each(|message| hear(&message, &mut telling, &mut told));
        }
        told
    }

    #[test]
    fn a_removed_ban_is_named_with_who_removed_it() {
        let told = |set| told(&[element("nftjail", set, [192, 0, 2, 7]), commit()]);
        let damage = told("sshd_v4");
        assert_eq!(damage, told("sshd_v4_knocks"));
        let touched = BTreeSet::from([("sshd".parse().unwrap(), "192.0.2.7".parse().unwrap())]);
        let by = "nf?t (process 123)".to_owned();
        assert_eq!(damage, Damage { by, touched, ..Damage::default() });
    }

    #[test]
    fn other_tables_are_no_news_and_other_sets_are_more_than_bans() {
        assert!(!told(&[element("firewalld", "sshd_v4", [192, 0, 2, 7]), commit()]).is_some());
        assert!(told(&[element("nftjail", "ignore_v4", [192, 0, 2, 7]), commit()]).structure);
        let chain = message(5, |writer| writer.text(NFTA_TABLE_NAME, "nftjail"));
        assert!(told(&[chain.clone(), commit()]).structure);
        assert!(!told(&[chain]).is_some(), "nothing is done before the commit is whole");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(noise in proptest::collection::vec(any::<u8>(), 0..200), kind in 0u16..30) {
            told(&[noise.clone(), message(kind, |writer| writer.bytes(1, &noise)), commit()]);
        }
    }
}
