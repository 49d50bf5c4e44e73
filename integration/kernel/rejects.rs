//! What a banned host hears from a jail that says `block: reject`: a refusal at once, of every protocol.

use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use nftjail::model::{Block, Layout};
use nftjail::nft::Firewall;
use serde_json::Value;
use socket2::{Domain, Socket, Type};

use crate::netns::*;
use crate::scene::{Agent, SERVER, SERVER_V6, Scene, ask, ask_json};

const ATTACKER: &str = "203.0.113.66";
const ATTACKER_V6: &str = "2001:db8:66::1";
const REJECT: &str =
    "jails:\n  sshd: {logpath: LOG, port: [22, 22/udp], maxretry: 3, bantime: 1h, block: reject}\n";

/// Opens a connection; it fails by what the other side answers, or after minutes by `TimedOut`.
fn connect(from: &str, to: &str, port: u16) -> io::Result<TcpStream> {
    let to = SocketAddr::new(to.parse().unwrap(), port);
    let from: IpAddr = from.parse().unwrap();
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    socket.bind(&SocketAddr::new(from, 0).into())?;
    socket.connect(&to.into())?;
    Ok(socket.into())
}

/// Sends a datagram and returns why no answer came: `ConnectionRefused` is port unreachable (udp(7)).
fn send(from: &str, to: &str, port: u16) -> ErrorKind {
    let socket = UdpSocket::bind((from, 0)).unwrap();
    socket.connect((to, port)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    socket.send(b"x").unwrap();
    socket.recv(&mut [0; 8]).unwrap_err().kind()
}

#[test]
fn a_banned_host_is_refused_at_once_and_its_connection_is_reset() {
    let mut scene = Scene::new();
    scene.listen(22);
    scene.listen(80);
    let _agent = Agent::start(&scene, REJECT);
    for (attacker, server, set, held) in
        [(ATTACKER, SERVER, "sshd_v4", ATTACKER), (ATTACKER_V6, SERVER_V6, "sshd_v6", "2001:db8:66::")]
    {
        let mut session = scene.as_attacker(attacker, || connect(attacker, server, 22)).unwrap();
        scene.fail(attacker, 3);
        scene.wait_for("the ban", || scene.holds(set, held));

        let refused = scene.as_attacker(attacker, || connect(attacker, server, 22)).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{refused}");
        let unreachable = scene.as_attacker(attacker, || send(attacker, server, 22));
        assert_eq!(unreachable, ErrorKind::ConnectionRefused, "{attacker}");
        // Only a reset ends what is established: port unreachable would be put up with (RFC 5461).
        session.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        session.write_all(b"late\n").unwrap();
        let reset = session.read(&mut [0; 8]).unwrap_err();
        assert_eq!(reset.kind(), ErrorKind::ConnectionReset, "{reset}");
        assert!(scene.connects(attacker, 80), "the ban is for the ports of the jail");
    }
    assert!(scene.connects("203.0.113.67", 22), "another host still gets in");
    let status = ask_json(&scene, &["status", "sshd"]);
    assert_eq!(status["jails"][0]["block"], "reject");
    let dropped = &status["jails"][0]["dropped"]["packets"];
    assert_eq!(dropped, 6, "a connection, a datagram and a late segment of each family: it was the ban");
}

#[test]
fn a_reload_changes_how_bans_are_blocked_and_keeps_them() {
    let mut scene = Scene::new();
    scene.listen(22);
    let drop = REJECT.replace(", block: reject", "");
    let _agent = Agent::start(&scene, &drop);
    assert_eq!(ask_json(&scene, &["status", "sshd"])["jails"][0]["block"], "drop");
    scene.fail(ATTACKER, 3);
    scene.fail(ATTACKER_V6, 3);
    scene
        .wait_for("the bans", || scene.holds("sshd_v4", ATTACKER) && scene.holds("sshd_v6", "2001:db8:66::"));
    let begun = || -> Vec<i64> {
        let bans = ask_json(&scene, &["bans"]);
        let at = |ban: &Value| ban["at"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
        bans.as_array().unwrap().iter().map(|ban| at(ban).as_millisecond()).collect()
    };
    let bans = begun();
    assert_eq!(bans.len(), 2);
    assert!(!scene.connects(ATTACKER, 22));
    let dropped = || ask_json(&scene, &["status"])["jails"][0]["dropped"]["packets"].as_u64().unwrap();
    let before = dropped();
    assert!(before > 0);

    let reload = |config: &str| {
        let config = config.replace("LOG", &scene.path("auth.log").display().to_string());
        fs::write(scene.path("nftjail.yaml"), config).unwrap();
        let reloaded = ask(&scene, &["reload"]);
        assert!(reloaded.status.success(), "{}", String::from_utf8_lossy(&reloaded.stderr));
        // The kernel tells the time left to the jiffy; a ban made anew would begin after the second waited above.
        let moved: Vec<u64> = begun().iter().zip(&bans).map(|(now, then)| now.abs_diff(*then)).collect();
        assert!(moved.len() == 2 && moved.iter().all(|ms| *ms < 500), "{moved:?}");
        assert!(scene.holds("sshd_v4", ATTACKER) && scene.holds("sshd_v6", "2001:db8:66::"));
    };
    reload(REJECT);
    for (attacker, server) in [(ATTACKER, SERVER), (ATTACKER_V6, SERVER_V6)] {
        let refused = scene.as_attacker(attacker, || connect(attacker, server, 22)).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{refused}");
    }
    assert_eq!(dropped(), before + 2, "the counter goes on");
    reload(&drop);
    assert!(!scene.connects(ATTACKER, 22));
}

#[test]
fn another_block_replaces_the_rules_of_its_jail_and_no_other() {
    let rules = |chain: &str| run(&["nft", "-a", "list", "chain", "inet", "nftjail", chain]);
    in_namespace(|| {
        let mut netlink = installed(&layout());
        apply(&mut netlink, &[ban("sshd", "192.0.2.1", 600), ban("web", "2001:db8::", 0)]);
        let drops = run(&LIST);
        // The handles of rules say whether they are the same ones.
        let others = ["prerouting", "jail_web", "jail_recidive"].map(rules);
        let mut other = layout();
        other.cells[0].block = Block::Reject;
        install(&mut netlink, &other, &[]);
        let table = assert_prints_as_nft_does(&mut netlink);
        assert_eq!(table.standing().count(), 2);
        assert_about(left(&mut netlink, "sshd", "192.0.2.1"), 600);
        assert_eq!(["prerouting", "jail_web", "jail_recidive"].map(rules), others);
        let expected = "\tchain jail_sshd {
		ip saddr @sshd_v4 meta l4proto tcp counter name \"sshd_dropped\" reject with tcp reset
		ip saddr @sshd_v4 counter name \"sshd_dropped\" reject with icmp port-unreachable
		ip6 saddr & ffff:ffff:ffff:ffff:: == @sshd_v6 meta l4proto tcp counter name \"sshd_dropped\" reject with tcp reset
		ip6 saddr & ffff:ffff:ffff:ffff:: == @sshd_v6 counter name \"sshd_dropped\" reject with icmpv6 port-unreachable
		ip saddr @sshd_v4_nets meta l4proto tcp counter name \"sshd_dropped\" reject with tcp reset
		ip saddr @sshd_v4_nets counter name \"sshd_dropped\" reject with icmp port-unreachable
		ip6 saddr @sshd_v6_nets meta l4proto tcp counter name \"sshd_dropped\" reject with tcp reset
		ip6 saddr @sshd_v6_nets counter name \"sshd_dropped\" reject with icmpv6 port-unreachable
	}
";
        assert!(run(&LIST).contains(expected), "{}", run(&LIST));
        install(&mut netlink, &layout(), &[]);
        assert_eq!(masked(&run(&LIST)), masked(&drops));
    });
}

/// Over loopback an answer passes our own chain on its way back.
#[test]
fn our_own_chain_lets_the_refusal_through() {
    in_namespace(|| {
        run(&["ip", "link", "set", "lo", "up"]);
        let mut all = cell("all", &[], 10);
        all.block = Block::Reject;
        let mut netlink = installed(&Layout { cells: vec![all], ..Layout::default() });
        let _listener = TcpListener::bind("127.0.0.2:22").unwrap();
        let _taker = UdpSocket::bind("127.0.0.2:22").unwrap();
        let _session = connect("127.0.0.1", "127.0.0.2", 22).unwrap();
        apply(&mut netlink, &[ban("all", "127.0.0.1", 60)]);
        let refused = connect("127.0.0.1", "127.0.0.2", 22).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{refused}");
        assert_eq!(send("127.0.0.1", "127.0.0.2", 22), ErrorKind::ConnectionRefused);
        assert_eq!(netlink.dropped().unwrap()[&jail("all")].packets, 2);
    });
}
