//! What only this host can say: the time, its own addresses, and what its services are called.

use std::collections::BTreeMap;
use std::fs;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ipnet::IpNet;
use jiff::tz::{Offset, TimeZone};
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage, LinkXdp};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType, RouteVia};
use netlink_packet_route::tc::{TcAttribute, TcMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use rustix::time::{ClockId, clock_gettime};

use crate::model::{Protocol, Timestamp};
use crate::netlink;

static CLOCK_OFFSET_MS: AtomicI64 = AtomicI64::new(0);

/// Lets [`now`] run so many seconds off, so that an old log can be read as if it were written now.
pub fn set_clock_offset(seconds: i64) {
    CLOCK_OFFSET_MS.store(seconds.saturating_mul(1_000), Ordering::Relaxed);
}

/// The wall clock; the only place that reads it.
#[expect(clippy::disallowed_methods, reason = "this is the one place")]
pub fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_millis(since.as_millis() as i64 + CLOCK_OFFSET_MS.load(Ordering::Relaxed))
}

/// How long this machine is awake: for measuring, since nobody sets it.
pub fn awake() -> Duration {
    let time = clock_gettime(ClockId::Monotonic);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

/// A zone by its name in the zone database (IANA), or by its offset, as in `+02:00` or `-0330`. What it is not, told
/// with the names there are.
pub fn zone(text: &str) -> Result<TimeZone, Vec<String>> {
    if let Some(offset) = offset(text) {
        return Ok(TimeZone::fixed(offset));
    }
    let names = || jiff::tz::db().available().map(|name| name.as_str().to_owned());
    match text {
        "UTC" | "Z" => Ok(TimeZone::UTC),
        _ => TimeZone::get(text).map_err(|_| names().chain(["UTC".to_owned()]).collect()),
    }
}

fn offset(text: &str) -> Option<Offset> {
    let (sign, rest) = match text.split_at_checked(1)? {
        ("+", rest) => (1, rest),
        ("-", rest) => (-1, rest),
        _ => return None,
    };
    let digits = if rest.len() == 5 { rest.replacen(':', "", 1) } else { rest.to_owned() };
    let is_number = digits.len() == 4 && digits.bytes().all(|byte| byte.is_ascii_digit());
    let number: i32 = digits.parse().ok().filter(|_| is_number)?;
    let (hours, minutes) = (number / 100, number % 100);
    // The zones there are (IANA): from UTC-12 to UTC+14.
    let is_zone = hours <= 14 && minutes < 60;
    Offset::from_seconds(sign * (hours * 3600 + minutes * 60)).ok().filter(|_| is_zone)
}

/// This host's name (uname(2)), for those who have several.
pub fn name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// A number that nobody else knows, another one in each process.
pub fn secret() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// Tells when the addresses of this host or its default routes change (rtnetlink(7)).
pub struct AddressWatch(Socket);

/// RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR, RTMGRP_IPV4_ROUTE and RTMGRP_IPV6_ROUTE of linux/rtnetlink.h.
const GROUPS: u32 = 0x10 | 0x100 | 0x40 | 0x400;

impl AddressWatch {
    pub fn new() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.set_non_blocking(true)?;
        socket.bind(&SocketAddr::new(0, GROUPS))?;
        Ok(AddressWatch(socket))
    }

    /// Takes what has been told so far. False where it was about other routes, of which a router may change
    /// thousands; lost messages tell as much as read ones.
    pub fn take_news(&self) -> bool {
        let mut buffer = vec![0; 16 << 10];
        let mut news = false;
        loop {
            match self.0.recv(&mut buffer.as_mut_slice(), 0) {
                Ok(0) => return news,
                Ok(length) => news |= is_news(&buffer[..length]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return news,
                Err(_) => news = true,
            }
        }
    }
}

fn is_news(told: &[u8]) -> bool {
    let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(told).map(|message| message.payload);
    match message {
        Ok(NetlinkPayload::InnerMessage(
            RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route),
        )) => is_default(&route),
        _ => true,
    }
}

impl AsFd for AddressWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// An address that an interface of this network namespace has, and the network it is directly in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnAddress {
    pub addr: IpAddr,
    pub network: IpNet,
}

pub fn own_addresses() -> io::Result<Vec<OwnAddress>> {
    let question = RouteNetlinkMessage::GetAddress(AddressMessage::default());
    netlink::dump(question, |answer| match answer {
        RouteNetlinkMessage::NewAddress(address) => own_address(&address),
        _ => None,
    })
}

/// IFA_LOCAL is the interface's own address; where it is left out, IFA_ADDRESS is. The network is that of
/// IFA_ADDRESS, which on a point-to-point link is the peer's.
fn own_address(message: &AddressMessage) -> Option<OwnAddress> {
    let (mut local, mut address) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(addr) => local = Some(*addr),
            AddressAttribute::Address(addr) => address = Some(*addr),
            _ => {}
        }
    }
    let addr = local.or(address)?;
    let network = IpNet::new(address.unwrap_or(addr), message.header.prefix_len).ok()?.trunc();
    Some(OwnAddress { addr, network })
}

/// Where the default routes lead, of all routing tables.
pub fn gateways() -> io::Result<Vec<IpAddr>> {
    let mut gateways = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut question = RouteMessage::default();
        question.header.address_family = family;
        let routes = netlink::dump(RouteNetlinkMessage::GetRoute(question), |answer| match answer {
            RouteNetlinkMessage::NewRoute(route) if is_default(&route) => Some(hops(&route.attributes)),
            _ => None,
        })?;
        gateways.extend(routes.into_iter().flatten());
    }
    Ok(gateways)
}

fn is_default(route: &RouteMessage) -> bool {
    route.header.destination_prefix_length == 0 && route.header.kind == RouteType::Unicast
}

fn hops(attributes: &[RouteAttribute]) -> Vec<IpAddr> {
    let mut hops = Vec::new();
    for attribute in attributes {
        match attribute {
            RouteAttribute::Gateway(RouteAddress::Inet(v4)) | RouteAttribute::Via(RouteVia::Inet(v4)) => {
                hops.push(IpAddr::from(*v4));
            }
            RouteAttribute::Gateway(RouteAddress::Inet6(v6)) | RouteAttribute::Via(RouteVia::Inet6(v6)) => {
                hops.push(IpAddr::from(*v6));
            }
            RouteAttribute::MultiPath(paths) => {
                hops.extend(paths.iter().flat_map(|path| self::hops(&path.attributes)));
            }
            _ => {}
        }
    }
    hops
}

/// What matters of an interface to whoever wants to see all packets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    pub name: String,
    /// A bridge.
    pub is_bridge: bool,
    /// Its packets come and go on another interface, past the hooks of that: macvlan, ipvlan and their taps.
    pub has_own_stack: bool,
    /// The bridge or bond that it belongs to, where it is no virtual one.
    pub joins: Option<String>,
    /// An XDP program looks at its packets first.
    pub has_xdp: bool,
    /// Programs of traffic control may look at its packets first (`clsact`, `ingress`).
    pub has_tc: bool,
}

/// The interfaces of this network namespace.
pub fn links() -> io::Result<Vec<Link>> {
    let question = RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default());
    let is_early = |attribute: &TcAttribute| matches!(attribute, TcAttribute::Kind(kind) if kind == "clsact" || kind == "ingress");
    let early = netlink::dump(question, |answer| match answer {
        RouteNetlinkMessage::NewQueueDiscipline(tc) if tc.attributes.iter().any(is_early) => {
            u32::try_from(tc.header.index).ok()
        }
        _ => None,
    })?;
    let question = RouteNetlinkMessage::GetLink(LinkMessage::default());
    let read: Vec<(u32, Option<u32>, Link)> = netlink::dump(question, |answer| match answer {
        RouteNetlinkMessage::NewLink(message) => {
            let index = message.header.index;
            let (link, controller) = link(&message.attributes);
            Some((index, controller, Link { has_tc: early.contains(&index), ..link }))
        }
        _ => None,
    })?;
    let name = |wanted: u32| {
        let (.., link) = read.iter().find(|(index, ..)| *index == wanted)?;
        Some(link.name.clone())
    };
    let links =
        read.iter().map(|(_, controller, link)| Link { joins: controller.and_then(name), ..link.clone() });
    Ok(links.collect())
}

/// An interface, and the number of what it belongs to, where it is no virtual one.
fn link(attributes: &[LinkAttribute]) -> (Link, Option<u32>) {
    let (mut link, mut controller, mut is_virtual) = (Link::default(), None, false);
    for attribute in attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name.clone(),
            LinkAttribute::Controller(index) => controller = Some(*index),
            LinkAttribute::Xdp(xdp) => {
                link.has_xdp = xdp.iter().any(|xdp| matches!(xdp, LinkXdp::ProgId(_)));
            }
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    let LinkInfo::Kind(kind) = info else { continue };
                    is_virtual = true;
                    link.is_bridge = *kind == InfoKind::Bridge;
                    link.has_own_stack = matches!(
                        kind,
                        InfoKind::MacVlan | InfoKind::MacVtap | InfoKind::IpVlan | InfoKind::IpVtap
                    );
                }
            }
            _ => {}
        }
    }
    (link, controller.filter(|_| !is_virtual))
}

/// The name servers of resolv.conf(5); none where it cannot be read.
pub fn resolvers() -> Vec<IpAddr> {
    parse_resolvers(&fs::read_to_string("/etc/resolv.conf").unwrap_or_default())
}

fn parse_resolvers(text: &str) -> Vec<IpAddr> {
    let server = |line: &str| {
        let mut words = line.split_whitespace();
        let addr = words.next().filter(|word| *word == "nameserver").and(words.next())?;
        // A link-local address names its interface too: fe80::1%eth0.
        addr.split('%').next()?.parse().ok()
    };
    text.lines().filter_map(server).collect()
}

/// Port numbers by service name, as services(5) has them; what jails need most is known without the file.
pub struct Services(BTreeMap<String, Vec<(Protocol, u16)>>);

/// Assigned by IANA. Debian has /etc/services only where the package netbase is installed.
const WELL_KNOWN: &[(&str, Protocol, u16)] = &[
    ("ftp-data", Protocol::Tcp, 20),
    ("ftp", Protocol::Tcp, 21),
    ("ssh", Protocol::Tcp, 22),
    ("telnet", Protocol::Tcp, 23),
    ("smtp", Protocol::Tcp, 25),
    ("domain", Protocol::Tcp, 53),
    ("domain", Protocol::Udp, 53),
    ("http", Protocol::Tcp, 80),
    ("pop3", Protocol::Tcp, 110),
    ("imap", Protocol::Tcp, 143),
    ("imap2", Protocol::Tcp, 143),
    ("ldap", Protocol::Tcp, 389),
    ("https", Protocol::Tcp, 443),
    ("https", Protocol::Udp, 443),
    ("smtps", Protocol::Tcp, 465),
    ("submissions", Protocol::Tcp, 465),
    ("submission", Protocol::Tcp, 587),
    ("ldaps", Protocol::Tcp, 636),
    ("ftps-data", Protocol::Tcp, 989),
    ("ftps", Protocol::Tcp, 990),
    ("imaps", Protocol::Tcp, 993),
    ("pop3s", Protocol::Tcp, 995),
    ("openvpn", Protocol::Udp, 1194),
    ("mysql", Protocol::Tcp, 3306),
    ("sieve", Protocol::Tcp, 4190),
    ("sip", Protocol::Tcp, 5060),
    ("sip", Protocol::Udp, 5060),
    ("postgresql", Protocol::Tcp, 5432),
    ("http-alt", Protocol::Tcp, 8080),
];

impl Services {
    /// The well-known ones, then those of /etc/services where it can be read.
    pub fn of_this_host() -> Self {
        Services::parse(&fs::read_to_string("/etc/services").unwrap_or_default())
    }

    fn parse(text: &str) -> Self {
        let mut known: BTreeMap<String, Vec<(Protocol, u16)>> = BTreeMap::new();
        let mut learn = |name: &str, protocol, port| {
            let ports = known.entry(name.to_owned()).or_default();
            if !ports.contains(&(protocol, port)) {
                ports.push((protocol, port));
            }
        };
        for (name, protocol, port) in WELL_KNOWN {
            learn(name, *protocol, *port);
        }
        for line in text.lines() {
            let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
            let (Some(name), Some(place)) = (words.next(), words.next()) else { continue };
            let Some((port, protocol)) = place.split_once('/') else { continue };
            let protocol = Protocol::ALL.into_iter().find(|known| known.name() == protocol);
            if let (Ok(port), Some(protocol)) = (port.parse(), protocol) {
                for name in std::iter::once(name).chain(words) {
                    learn(name, protocol, port);
                }
            }
        }
        Services(known)
    }

    /// The ports of a service; empty where it is not known.
    pub fn ports(&self, name: &str) -> &[(Protocol, u16)] {
        self.0.get(name).map_or(&[], Vec::as_slice)
    }

    pub fn names(&self) -> Vec<&str> {
        self.0.keys().map(String::as_str).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_among_the_own_addresses() {
        // A namespace whose loopback is down has none at all; the call must still end.
        let own = own_addresses().unwrap();
        assert!(
            own.iter().all(|own| own.addr != IpAddr::from([127, 0, 0, 1]) || own.network.prefix_len() == 8)
        );
        assert!(gateways().is_ok());
    }

    #[test]
    fn resolvers_are_read_as_resolv_conf_5_writes_them() {
        let text = "search a\nnameserver 192.0.2.53\n#nameserver 192.0.2.54\nnameserver\tfe80::1%eth0\nnameserver x\n";
        let wanted = ["192.0.2.53", "fe80::1"].map(|addr| addr.parse::<IpAddr>().unwrap());
        assert_eq!(parse_resolvers(text), wanted);
    }

    #[test]
    fn services_are_read_as_services_5_writes_them() {
        let services = Services::parse("# c\nssh 22/tcp\nx 7/udp y # z 8/udp\nbad\nworse 1/foo\n");
        assert_eq!(services.ports("ssh"), [(Protocol::Tcp, 22)]);
        assert_eq!(services.ports("y"), [(Protocol::Udp, 7)]);
        assert_eq!(services.ports("z"), []);
        assert_eq!(services.ports("worse"), []);
        assert_eq!(services.ports("domain").len(), 2);
    }
}
