//! One question to the kernel over netlink(7), and all of its answers: interfaces, addresses, routes, sockets.

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader,
    NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_sock_diag::{SockDiagDestroy, SockDiagMessage};
use netlink_sys::protocols::{NETLINK_ROUTE, NETLINK_SOCK_DIAG};
use netlink_sys::{Socket, SocketAddr};

/// What `keep` wants of everything of a kind that this network namespace has: a router has a million routes.
pub fn dump<T>(
    question: RouteNetlinkMessage,
    keep: impl FnMut(RouteNetlinkMessage) -> Option<T>,
) -> io::Result<Vec<T>> {
    ask(NETLINK_ROUTE, question, NLM_F_DUMP, keep)
}

/// Makes something, or changes what is there.
pub fn set(wish: RouteNetlinkMessage) -> io::Result<()> {
    ask(NETLINK_ROUTE, wish, NLM_F_ACK, |_| None::<()>).map(|_| ())
}

/// Makes something that must not be there yet.
pub fn create(wish: RouteNetlinkMessage) -> io::Result<()> {
    ask(NETLINK_ROUTE, wish, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, |_| None::<()>).map(|_| ())
}

/// What `keep` wants of the sockets of this network namespace; sock_diag(7).
pub fn sockets<T>(
    question: SockDiagMessage,
    keep: impl FnMut(SockDiagMessage) -> Option<T>,
) -> io::Result<Vec<T>> {
    ask(NETLINK_SOCK_DIAG, question, NLM_F_DUMP, keep)
}

/// Ends one socket: its program is told ECONNABORTED, its peer gets a reset.
///
/// # Errors
/// EOPNOTSUPP where the kernel was built without CONFIG_INET_DIAG_DESTROY, EPERM without CAP_NET_ADMIN, ENOENT where
/// the socket is gone by now.
pub fn destroy(socket: SockDiagMessage) -> io::Result<()> {
    ask(NETLINK_SOCK_DIAG, SockDiagDestroy::new(socket), NLM_F_ACK, |_| None::<()>).map(|_| ())
}

fn ask<M, T>(
    protocol: isize,
    question: M,
    flags: u16,
    mut keep: impl FnMut(M) -> Option<T>,
) -> io::Result<Vec<T>>
where
    M: NetlinkSerializable + NetlinkDeserializable,
    NetlinkPayload<M>: From<M>,
{
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    let mut request = NetlinkMessage::new(header, NetlinkPayload::from(question));
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    socket.send(&bytes, 0)?;

    let mut answers = Vec::new();
    loop {
        let (reply, _) = socket.recv_from_full()?;
        let mut rest = reply.as_slice();
        while !rest.is_empty() {
            let message = NetlinkMessage::<M>::deserialize(rest).map_err(io::Error::other)?;
            match message.payload {
                NetlinkPayload::Done(_) => return Ok(answers),
                NetlinkPayload::Error(error) if error.code.is_none() => return Ok(answers),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                NetlinkPayload::InnerMessage(answer) => answers.extend(keep(answer)),
                _ => {}
            }
            // nlmsg_len is followed by padding to four bytes (NLMSG_ALIGN).
            let step = (message.header.length as usize).next_multiple_of(4);
            rest = rest.get(step..).unwrap_or_default();
        }
    }
}
