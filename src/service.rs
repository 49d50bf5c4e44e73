//! Whether this host has the service that a jail is for: its log, its unit, or a port that somebody listens on.

use std::cell::OnceCell;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::acquire::place::Place;
use crate::model::{Ports, Protocol};

/// What shows that a service is here, read when the first jail asks.
#[derive(Default)]
pub struct Traces {
    listening: OnceCell<BTreeSet<(Protocol, u16)>>,
}

/// Files that a syslog daemon writes for all services, so that they tell of none.
const SHARED_LOGS: [&str; 10] = [
    "auth.log",
    "daemon.log",
    "kern.log",
    "mail",
    "mail.log",
    "maillog",
    "messages",
    "secure",
    "syslog",
    "user.log",
];

/// Where systemd finds units, those that go before the others first (systemd.unit(5)).
const UNIT_DIRS: [&str; 6] = [
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
    "/run/systemd/generator.late",
];

/// The state of a socket that takes connections, or datagrams from anybody (TCP_LISTEN and TCP_CLOSE of the kernel's
/// include/net/tcp_states.h; a datagram socket without a peer is in the latter).
const TABLES: [(&str, Protocol, &str); 4] = [
    ("/proc/net/tcp", Protocol::Tcp, "0A"),
    ("/proc/net/tcp6", Protocol::Tcp, "0A"),
    ("/proc/net/udp", Protocol::Udp, "07"),
    ("/proc/net/udp6", Protocol::Udp, "07"),
];

impl Traces {
    /// What shows that the service is here, or what was looked for in vain.
    pub fn of(&self, logs: &[Place], units: &[String], ports: &Ports) -> Result<String, String> {
        if let Some(log) = logs.iter().find(|log| is_there(log)) {
            return Ok(format!("{log} is there"));
        }
        if let Some(unit) = units.iter().find(|unit| is_unit(unit)) {
            return Ok(format!("{unit} is installed"));
        }
        if let Ports::Some(ports) = ports {
            let listening = self.listening.get_or_init(listening);
            if let Some(&(protocol, port)) = ports.iter().find(|port| listening.contains(port)) {
                return Ok(format!("somebody listens on {port}/{}", protocol.name()));
            }
        }
        let mut vain = Vec::new();
        vain.extend((!logs.is_empty()).then(|| "no log".to_owned()));
        vain.extend((!units.is_empty()).then(|| "no unit".to_owned()));
        vain.extend((*ports != Ports::All).then(|| format!("nothing listens on {ports}")));
        match vain.is_empty() {
            true => Err("it has neither log nor unit nor port of its own to know it by".to_owned()),
            false => Err(vain.join(", ")),
        }
    }
}

/// Of the logs that a rule knows, those that are its service's own.
pub fn own_logs(mut logs: Vec<Place>) -> Vec<Place> {
    let shared = |path: &Path| SHARED_LOGS.iter().any(|name| path == Path::new("/var/log").join(name));
    logs.retain(|log| !log.file().is_some_and(shared));
    logs
}

/// Whether there is a log in this place. Of a stream nobody knows before it speaks.
pub fn is_there(log: &Place) -> bool {
    match log {
        Place::File(path) => path.exists(),
        Place::Glob(glob) => glob.count() > 0,
        Place::Stream(_) | Place::Journal(..) => false,
    }
}

/// Whether systemd knows the unit. One that is masked is a link to /dev/null, which is no file.
fn is_unit(name: &str) -> bool {
    let path =
        UNIT_DIRS.iter().map(|dir| Path::new(dir).join(name)).find(|path| path.is_symlink() || path.exists());
    path.is_some_and(|path| path.is_file())
}

fn listening() -> BTreeSet<(Protocol, u16)> {
    // A kernel without IPv6 has no such tables.
    let read = |(path, protocol, state)| (fs::read_to_string(path).unwrap_or_default(), protocol, state);
    let tables = TABLES.into_iter().map(read);
    tables
        .flat_map(|(text, protocol, state)| {
            parse(&text, state).map(|port| (protocol, port)).collect::<Vec<_>>()
        })
        .collect()
}

/// The local ports of the sockets in this state, of a table as proc_pid_net(5) describes it.
fn parse(table: &str, state: &str) -> impl Iterator<Item = u16> {
    table.lines().skip(1).filter_map(move |line| {
        let mut words = line.split_whitespace().skip(1);
        let (local, is) = (words.next()?, words.nth(1)?);
        let port = u16::from_str_radix(local.rsplit(':').next()?, 16).ok()?;
        (is == state).then_some(port)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, UdpSocket};

    const TCP: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid\n   \
                       0: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0\n   \
                       1: 0100007F:1F90 0100007F:0016 01 00000000:00000000 00:00000000 00000000     0\n   \
                       2: 00000000000000000000000001000000:0CEA 00000000000000000000000000000000:0000 0A\nx\n 3: y z\n";

    #[test]
    fn ports_that_listen_are_read_from_the_table() {
        assert_eq!(parse(TCP, "0A").collect::<Vec<_>>(), [22, 3306]);
        assert_eq!(parse(TCP, "01").collect::<Vec<_>>(), [8080]);
        assert_eq!(parse("", "0A").count(), 0);
    }

    #[test]
    fn a_service_is_known_by_its_log_or_by_a_port_that_listens() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("vsftpd.log");
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = UdpSocket::bind("[::1]:0").or_else(|_| UdpSocket::bind("127.0.0.1:0")).unwrap();
        let tcp_port = (Protocol::Tcp, tcp.local_addr().unwrap().port());
        let udp_port = (Protocol::Udp, udp.local_addr().unwrap().port());
        let ask = |ports: &[(Protocol, u16)]| {
            let ports =
                if ports.is_empty() { Ports::All } else { Ports::Some(ports.iter().copied().collect()) };
            Traces::default().of(&[Place::File(log.clone())], &["no-such.service".to_owned()], &ports)
        };
        assert_eq!(
            ask(&[(Protocol::Sctp, 21)]),
            Err("no log, no unit, nothing listens on 21/sctp".to_owned())
        );
        assert_eq!(ask(&[]), Err("no log, no unit".to_owned()));
        assert_eq!(ask(&[tcp_port]), Ok(format!("somebody listens on {}/tcp", tcp_port.1)));
        assert_eq!(ask(&[udp_port]), Ok(format!("somebody listens on {}/udp", udp_port.1)));
        fs::write(&log, "").unwrap();
        assert_eq!(ask(&[tcp_port]), Ok(format!("{} is there", log.display())));
        let glob: Place = format!("{}/*.log", dir.path().display()).parse().unwrap();
        assert!(is_there(&glob), "a pattern that a file matches");
        fs::remove_file(&log).unwrap();
        assert!(!is_there(&glob), "and one that none does");
        let nothing = Traces::default().of(&[], &[], &Ports::All).unwrap_err();
        assert!(nothing.contains("neither log nor unit nor port"), "{nothing}");
    }

    #[test]
    fn what_syslog_writes_for_all_tells_of_nobody() {
        let places = |paths: &[&str]| paths.iter().map(|path| path.parse().unwrap()).collect::<Vec<Place>>();
        let own = ["/var/log/nginx/*error.log", "/srv/auth.log"];
        let shared = ["/var/log/auth.log", "/var/log/mail"];
        assert_eq!(own_logs(places(&[own, shared].concat())), places(&own));
    }
}
