//! Packets that the firewall's rules tell of, each as a line: a group of NFLOG, read over netlink(7).

use std::os::fd::{AsFd, BorrowedFd};

use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkBuffer};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use rustix::io::Errno;
use rustix::net::netdevice::index_to_name;
use rustix::net::{AddressFamily, RecvFlags, SocketType, recv, sockopt};

use crate::model::plain;

use super::Line;
use super::packet;
use super::stream::Kind;
use super::tail::Reading;

// Numbers of include/uapi/linux/netfilter/nfnetlink.h and nfnetlink_log.h.
const NFNL_SUBSYS_ULOG: u16 = 4;
const NFULNL_MSG_PACKET: u16 = 0;
const NFULNL_MSG_CONFIG: u16 = 1;
const NFULA_CFG_CMD: u16 = 1;
const NFULA_CFG_MODE: u16 = 2;
const NFULA_CFG_TIMEOUT: u16 = 4;
const NFULA_CFG_FLAGS: u16 = 6;
const NFULNL_CFG_CMD_BIND: u8 = 1;
const NFULNL_COPY_PACKET: u8 = 2;
const NFULNL_CFG_F_SEQ: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const NETLINK_HEADER_BYTES: usize = 16;

/// So much of each packet is told: all headers, and nothing of what is said.
const PACKET_BYTES: u32 = 192;
/// The kernel gathers packets for so long, in hundredths of a second, unless there are a hundred before.
const GATHER: u32 = 10;
/// What the kernel may hold for us until we read it.
const BUFFER_BYTES: usize = 4 << 20;

pub(super) struct Nflog {
    group: u16,
    socket: Option<Socket>,
    /// The number that the next packet has, unless some are lost.
    next: Option<u32>,
    lost: u64,
}

impl Nflog {
    pub(super) fn new(group: u16) -> Nflog {
        Nflog { group, socket: None, next: None, lost: 0 }
    }

    fn open(&self) -> Result<Socket, String> {
        let told = |error: std::io::Error| plain(&error);
        let mut socket = Socket::new(NETLINK_NETFILTER).map_err(told)?;
        socket.bind(&SocketAddr::new(0, 0)).map_err(told)?;
        // Nobody but the kernel can send to a socket that is connected to it.
        socket.connect(&SocketAddr::new(0, 0)).map_err(told)?;
        // The first goes beyond net.core.rmem_max.
        if sockopt::set_socket_recv_buffer_size_force(&socket, BUFFER_BYTES).is_err() {
            let _ = sockopt::set_socket_recv_buffer_size(&socket, BUFFER_BYTES);
        }
        socket.send(&config(self.group), 0).map_err(told)?;
        let answer = socket.recv_from_full().map_err(told)?.0;
        match errno(&answer) {
            Some(0) => Ok(socket),
            // EPERM is also said without CAP_NET_ADMIN, but then the agent would not have started.
            Some(errno) if [Errno::PERM, Errno::BUSY].map(Errno::raw_os_error).contains(&errno) => {
                Err(format!("another program reads group {}", self.group))
            }
            Some(errno) => Err(plain(&std::io::Error::from_raw_os_error(errno))),
            None => Err("the kernel did not answer".to_owned()),
        }
    }
}

impl Kind for Nflog {
    fn read(&mut self, reading: &mut Reading) -> Result<bool, String> {
        if self.socket.is_none() {
            (self.socket, self.next) = (Some(self.open()?), None);
        }
        let Some(socket) = &self.socket else { return Ok(false) };
        let names = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None).ok();
        let name = |number: u32| index_to_name(names.as_ref()?, number).ok();
        while reading.left > 0 {
            let count = match recv(socket, &mut reading.buffer[..], RecvFlags::DONTWAIT) {
                Ok((count, _)) => count,
                Err(Errno::AGAIN) => return Ok(false),
                // What found the buffer full is counted by the numbers of those that did not.
                Err(Errno::INTR | Errno::NOBUFS) => continue,
                Err(error) => {
                    self.socket = None;
                    return Err(plain(&error.into()));
                }
            };
            reading.left = reading.left.saturating_sub(count);
            reading.progress.bytes += count as u64;
            for message in messages(&reading.buffer[..count]) {
                let Some(told) = packet::read(message, name) else { continue };
                if let Some(number) = told.number {
                    let missing = self.next.map_or(0, |next| number.wrapping_sub(next));
                    self.lost += u64::from(missing);
                    self.next = Some(number.wrapping_add(1));
                }
                reading.progress.lines += 1;
                (reading.sink)(Line { text: told.line.as_bytes(), fresh: reading.fresh, entry: None });
            }
        }
        Ok(true)
    }

    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        self.socket.iter().map(AsFd::as_fd).collect()
    }

    fn lost(&self) -> u64 {
        self.lost
    }
}

/// The message that has packets of a group sent to us.
fn config(group: u16) -> Vec<u8> {
    let mut mode = PACKET_BYTES.to_be_bytes().to_vec();
    mode.extend([NFULNL_COPY_PACKET, 0]);
    let mut body = vec![0, 0];
    body.extend(group.to_be_bytes());
    for (kind, value) in [
        (NFULA_CFG_CMD, &[NFULNL_CFG_CMD_BIND][..]),
        (NFULA_CFG_MODE, &mode),
        (NFULA_CFG_TIMEOUT, &GATHER.to_be_bytes()),
        (NFULA_CFG_FLAGS, &NFULNL_CFG_F_SEQ.to_be_bytes()),
    ] {
        body.extend((value.len() as u16 + 4).to_ne_bytes());
        body.extend(kind.to_ne_bytes());
        body.extend(value);
        body.resize(body.len().next_multiple_of(4), 0);
    }
    let mut bytes = vec![0; NETLINK_HEADER_BYTES];
    let mut header = NetlinkBuffer::new(&mut bytes);
    header.set_length((NETLINK_HEADER_BYTES + body.len()) as u32);
    header.set_message_type(NFNL_SUBSYS_ULOG << 8 | NFULNL_MSG_CONFIG);
    header.set_flags(NLM_F_REQUEST | NLM_F_ACK);
    bytes.extend(body);
    bytes
}

/// The error number of an answer, 0 where all is well.
fn errno(answer: &[u8]) -> Option<i32> {
    let answer = NetlinkBuffer::new_checked(answer).ok()?;
    let code = answer.payload().first_chunk().map(|code| i32::from_ne_bytes(*code))?;
    (answer.message_type() == NLMSG_ERROR).then(|| code.saturating_neg())
}

/// What each message about a packet says, up to the first malformed one.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let message = NetlinkBuffer::new_checked(bytes).ok()?;
        let length = message.length() as usize;
        let found = (message.message_type(), message.payload());
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(found)
    })
    .filter(|(kind, _)| *kind == NFNL_SUBSYS_ULOG << 8 | NFULNL_MSG_PACKET)
    .map(|(_, payload)| payload)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn messages_are_cut_where_they_end() {
        let mut bytes = config(5);
        assert_eq!((bytes.len() % 4, errno(&bytes), messages(&bytes).count()), (0, None, 0));
        NetlinkBuffer::new(&mut bytes).set_message_type(NFNL_SUBSYS_ULOG << 8);
        let twice = [bytes.clone(), bytes.clone()].concat();
        assert_eq!(messages(&twice).map(<[u8]>::len).collect::<Vec<_>>(), [bytes.len() - 16; 2]);
        assert_eq!(messages(&twice[..twice.len() - 1]).count(), 1);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(mut noise in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = (errno(&noise), messages(&noise).count());
            if noise.len() >= 16 {
                let mut header = NetlinkBuffer::new(&mut noise);
                header.set_length(20);
                header.set_message_type(NFNL_SUBSYS_ULOG << 8);
                messages(&noise).for_each(|message| drop(packet::read(message, |_| None)));
            }
        }
    }
}
