//! What only this host can say: the time, its own addresses, and what its services are called.

use std::collections::BTreeMap;
use std::fs;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use ipnet::IpNet;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

use crate::model::{Protocol, Timestamp};
use crate::rtnetlink;

/// An I/O error in plain words, without the "(os error 13)" that helps nobody.
pub fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    let mut letters = text.split(" (os error").next().unwrap_or_default().chars();
    letters.next().map(|first| first.to_ascii_lowercase()).into_iter().chain(letters).collect()
}

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

/// A number that nobody else knows, another one in each process.
pub fn secret() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// Tells when the addresses of this host change (rtnetlink(7)); it never wakes anybody otherwise.
pub struct AddressWatch(Socket);

/// RTMGRP_IPV4_IFADDR and RTMGRP_IPV6_IFADDR of linux/rtnetlink.h.
const ADDRESS_GROUPS: u32 = 0x10 | 0x100;

impl AddressWatch {
    pub fn new() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.set_non_blocking(true)?;
        socket.bind(&SocketAddr::new(0, ADDRESS_GROUPS))?;
        Ok(AddressWatch(socket))
    }

    /// Takes what has been told so far; lost messages tell as much as read ones.
    pub fn clear(&self) {
        let mut buffer = vec![0; 16 << 10];
        while let Ok(length) = self.0.recv(&mut buffer.as_mut_slice(), 0) {
            if length == 0 {
                break;
            }
        }
    }
}

impl AsFd for AddressWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Every address that an interface of this network namespace has, each as a network of one.
pub fn own_addresses() -> io::Result<Vec<IpNet>> {
    let answers = rtnetlink::dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()))?;
    let addresses = answers.iter().filter_map(|answer| match answer {
        RouteNetlinkMessage::NewAddress(address) => address_of(address),
        _ => None,
    });
    Ok(addresses.map(IpNet::from).collect())
}

/// The interface's own address: IFA_LOCAL where it is set, as on point-to-point links, else IFA_ADDRESS.
fn address_of(message: &AddressMessage) -> Option<IpAddr> {
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(addr) => Some(*addr),
        _ => None,
    });
    local.or_else(|| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(addr) => Some(*addr),
            _ => None,
        })
    })
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
        assert!(own.iter().all(|net| net.prefix_len() == net.max_prefix_len()));
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
