//! A throwaway network: a server's and an attacker's namespace with a cable between them, gone with the process.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use ipnet::IpNet;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rustix::thread::UnshareFlags;
use socket2::{Domain, Socket, Type};

use crate::model::plain;
use crate::netlink;

/// The addresses of the server in the laboratory, from the documentation ranges (RFC 5737, RFC 3849).
pub const SERVER_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub const SERVER_V6: &str = "2001:db8:ffff::1";

/// The laboratory as its server sees it: the calling thread, and processes it starts, are in the server's namespace.
pub struct Lab {
    attacker: Sender<Order>,
}

/// What the attacker's thread is told to do.
enum Order {
    PlugIn { done: Sender<io::Result<()>> },
    Knock { from: IpAddr, to: SocketAddr, answer: Sender<io::Result<bool>> },
}

impl Lab {
    /// Moves the calling thread into a new network namespace and lays a cable to a second one.
    ///
    /// Root needs nothing else. Anybody else first becomes root of a user namespace of its own, which some
    /// systems forbid; the process must have no other thread then (unshare(2)).
    pub fn enter() -> Result<Lab, String> {
        if rustix::process::geteuid().is_root() {
            unshare(UnshareFlags::NEWNET)
                .map_err(|error| format!("no network namespace can be made: {}", plain(&error)))?;
        } else {
            become_root_of_nothing().map_err(|error| {
                format!("no namespaces for plain users here ({}): run this as root", plain(&error))
            })?;
        }
        let (attacker, orders) = channel();
        let (ready, is_ready) = channel();
        thread::spawn(move || attack(&orders, &ready));
        let told = |error: io::Error| format!("the cable cannot be laid: {}", plain(&error));
        let namespace =
            is_ready.recv().map_err(|_| "the attacker's thread ended".to_owned())?.map_err(told)?;
        lay_cable(&namespace).map_err(told)?;
        let (done, is_done) = channel();
        let gone = |_| "the attacker's thread ended".to_owned();
        attacker.send(Order::PlugIn { done }).map_err(|_| gone(()))?;
        is_done.recv().map_err(|_| gone(()))?.map_err(told)?;
        Ok(Lab { attacker })
    }

    /// A server that takes connections on `port`, of both families, for as long as the process lives.
    pub fn listen(&self, port: u16) -> io::Result<()> {
        for addr in [IpAddr::from(SERVER_V4), server_v6()] {
            let listener = TcpListener::bind((addr, port))?;
            thread::spawn(move || listener.incoming().for_each(drop));
        }
        Ok(())
    }

    /// Opens a TCP connection to `port` from the attacker's side, as `from`. False where no packet came back.
    pub fn knock(&self, from: IpAddr, port: u16) -> io::Result<bool> {
        let to = SocketAddr::new(if from.is_ipv4() { SERVER_V4.into() } else { server_v6() }, port);
        let (answer, answered) = channel();
        self.attacker.send(Order::Knock { from, to, answer }).map_err(|_| io::ErrorKind::BrokenPipe)?;
        answered.recv().map_err(io::Error::other)?
    }
}

fn server_v6() -> IpAddr {
    SERVER_V6.parse().expect("an address")
}

#[expect(unsafe_code, reason = "rustix marks unshare so for UnshareFlags::FILES, which is never passed here")]
fn unshare(flags: UnshareFlags) -> io::Result<()> {
    // SAFETY: no flag given here unshares the table of file descriptors.
    unsafe { rustix::thread::unshare_unsafe(flags) }.map_err(Into::into)
}

fn become_root_of_nothing() -> io::Result<()> {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    unshare(UnshareFlags::NEWUSER | UnshareFlags::NEWNET)?;
    fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/gid_map", format!("0 {gid} 1"))
}

/// The attacker's thread: gets a namespace, hands it out, then does what it is told.
fn attack(orders: &Receiver<Order>, ready: &Sender<io::Result<fs::File>>) {
    let namespace = unshare(UnshareFlags::NEWNET).and_then(|()| fs::File::open("/proc/thread-self/ns/net"));
    let failed = namespace.is_err();
    if ready.send(namespace).is_err() || failed {
        return;
    }
    for order in orders {
        // Whoever asked is gone only when the process ends.
        match order {
            Order::PlugIn { done } => drop(done.send(plug_in())),
            Order::Knock { from, to, answer } => drop(answer.send(knock(from, to))),
        }
    }
}

fn plug_in() -> io::Result<()> {
    set_up(link_index("lo")?)?;
    set_up(link_index("lab1")?)
}

fn knock(from: IpAddr, to: SocketAddr) -> io::Result<bool> {
    let cable = link_index("lab1")?;
    ignore_existing(add_address(cable, from))?;
    ignore_existing(add_default_route(cable, from.is_ipv4()))?;
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    socket.bind(&SocketAddr::new(from, 0).into())?;
    match socket.connect_timeout(&to.into(), Duration::from_millis(900)) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::TimedOut => Ok(false),
        Err(error) => Err(error),
    }
}

fn ignore_existing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

/// A veth pair: `lab0` here with the server's addresses and a route to everywhere, `lab1` at the attacker's.
fn lay_cable(attacker: &fs::File) -> io::Result<()> {
    let mut peer = LinkMessage::default();
    peer.attributes.push(LinkAttribute::IfName("lab1".to_owned()));
    peer.attributes.push(LinkAttribute::NetNsFd(attacker.as_raw_fd()));
    let mut cable = LinkMessage::default();
    cable.attributes.push(LinkAttribute::IfName("lab0".to_owned()));
    cable.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
    ]));
    netlink::create(RouteNetlinkMessage::NewLink(cable))?;
    let cable = link_index("lab0")?;
    for link in [link_index("lo")?, cable] {
        set_up(link)?;
    }
    for addr in [IpAddr::from(SERVER_V4), server_v6()] {
        add_address(cable, addr)?;
        add_default_route(cable, addr.is_ipv4())?;
    }
    Ok(())
}

pub(crate) fn link_index(name: &str) -> io::Result<u32> {
    let named = |link: &LinkMessage| {
        link.attributes.iter().any(|attribute| matches!(attribute, LinkAttribute::IfName(is) if is == name))
    };
    let question = RouteNetlinkMessage::GetLink(LinkMessage::default());
    let found = netlink::dump(question, |answer| match answer {
        RouteNetlinkMessage::NewLink(link) if named(&link) => Some(link.header.index),
        _ => None,
    })?;
    found.first().copied().ok_or_else(|| io::Error::other(format!("there is no interface {name}")))
}

pub(crate) fn set_up(index: u32) -> io::Result<()> {
    let mut link = LinkMessage::default();
    link.header.index = index;
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    netlink::set(RouteNetlinkMessage::SetLink(link))
}

fn add_address(index: u32, addr: IpAddr) -> io::Result<()> {
    let mut message = AddressMessage::default();
    message.header.family = family(addr.is_ipv4());
    message.header.prefix_len = IpNet::from(addr).prefix_len();
    message.header.index = index;
    message.attributes.push(AddressAttribute::Address(addr));
    message.attributes.push(AddressAttribute::Local(addr));
    // Without duplicate address detection (RFC 4862) an IPv6 address can be used at once.
    message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
    netlink::create(RouteNetlinkMessage::NewAddress(message))
}

fn add_default_route(index: u32, is_v4: bool) -> io::Result<()> {
    let mut route = RouteMessage::default();
    route.header.address_family = family(is_v4);
    // RT_TABLE_MAIN of linux/rtnetlink.h.
    route.header.table = 254;
    route.header.protocol = RouteProtocol::Static;
    route.header.scope = if is_v4 { RouteScope::Link } else { RouteScope::Universe };
    route.header.kind = RouteType::Unicast;
    route.attributes.push(RouteAttribute::Oif(index));
    netlink::create(RouteNetlinkMessage::NewRoute(route))
}

fn family(is_v4: bool) -> AddressFamily {
    if is_v4 { AddressFamily::Inet } else { AddressFamily::Inet6 }
}
