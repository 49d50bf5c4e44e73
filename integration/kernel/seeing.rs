//! What is dropped is seen: counted for each ban, told to NFLOG or the kernel's log, and read back.

use std::fs;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nftjail::acquire::place::Channel;
use nftjail::acquire::stream::Stream;
use nftjail::host;
use nftjail::model::{Block, Dropped, Knock, Log};
use nftjail::nft::table::{Element, Key};
use nftjail::nft::transaction::{Operation, Transaction};
use nftjail::nft::{Firewall, plan};
use serde_json::Value;

use crate::netns::*;
use crate::scene::{Agent, SERVER, SERVER_V6, Scene, ask, ask_json};

const HOST: &str = "203.0.113.66";
const HOST_V6: &str = "2001:db8:66::9";
/// IPv4 and UDP headers, and what is said.
const BYTES: u64 = 20 + 8 + 5;

fn jail(keys: &str) -> String {
    format!("jails: {{sshd: {{logpath: LOG, port: all, bantime: 1h, {keys}}}}}\n")
}

/// Sends so many datagrams to the server, none of which is answered.
fn knock(scene: &Scene, from: &str, count: usize) {
    let to = if from.contains(':') { SERVER_V6 } else { SERVER };
    let socket = scene.as_attacker(from, || UdpSocket::bind((from, 0)).unwrap());
    for _ in 0..count {
        // What a reject says of the one before is told here.
        let _ = socket.send_to(b"knock", (to, 2222));
    }
}

fn ban_of(scene: &Scene, target: &str) -> Value {
    let bans = ask_json(scene, &["bans"]);
    let ban = bans.as_array().unwrap().iter().find(|ban| ban["target"] == target).cloned();
    ban.unwrap_or_else(|| panic!("{target} is not among {bans}"))
}

fn counted(scene: &Scene, target: &str) -> (u64, u64) {
    let dropped = &ban_of(scene, target)["dropped"];
    (dropped["packets"].as_u64().unwrap(), dropped["bytes"].as_u64().unwrap())
}

fn dropped_in_all(scene: &Scene) -> u64 {
    ask_json(scene, &["status"])["jails"][0]["dropped"]["packets"].as_u64().unwrap()
}

#[test]
fn each_ban_counts_its_own_packets_once_whatever_else_is_done_with_them() {
    for keys in [
        "counters: true",
        "counters: true, block: reject",
        "counters: true, block: reject, extend_on_knock: 1h, log: nflog:5",
        "counters: true, extend_on_knock: true, log: kernel",
    ] {
        let scene = Scene::new();
        let _agent = Agent::start(&scene, &jail(keys));
        assert!(ask(&scene, &["ban", "sshd", HOST, HOST_V6, "203.0.113.128/25"]).status.success());
        knock(&scene, HOST, 7);
        knock(&scene, HOST_V6, 2);
        knock(&scene, "203.0.113.200", 3);
        scene.wait_for("the packets", || dropped_in_all(&scene) >= 12);
        assert_eq!(dropped_in_all(&scene), 12, "{keys}");
        assert_eq!(counted(&scene, HOST), (7, 7 * BYTES), "{keys}");
        assert_eq!(counted(&scene, "2001:db8:66::/64").0, 2, "{keys}");
        assert_eq!(counted(&scene, "203.0.113.128/25").0, 3, "{keys}");
        let shown = String::from_utf8(ask(&scene, &["bans"]).stdout).unwrap();
        assert!(shown.contains("7 (231 B)"), "{shown}");
        let why = String::from_utf8(ask(&scene, &["why", HOST]).stdout).unwrap();
        assert!(why.contains("dropped packets of it: 7 (231 B)"), "{why}");
    }
}

#[test]
fn what_a_ban_counted_outlives_another_ban_a_reload_and_the_agent() {
    let scene = Scene::new();
    let agent = Agent::start(&scene, &jail("counters: true"));
    assert!(ask(&scene, &["ban", "sshd", HOST]).status.success());
    knock(&scene, HOST, 3);
    assert!(ask(&scene, &["ban", "sshd", HOST, "--for", "2h"]).status.success());
    assert_eq!(counted(&scene, HOST).0, 3);
    let reload = |keys: &str| {
        let config = jail(keys).replace("LOG", &scene.path("auth.log").display().to_string());
        fs::write(scene.path("nftjail.yaml"), config).unwrap();
        assert!(ask(&scene, &["reload"]).status.success());
    };
    reload("counters: true, extend_on_knock: 10m");
    knock(&scene, HOST, 2);
    agent.kill();
    knock(&scene, HOST, 2);
    let _agent = Agent::start_again(&scene);
    assert_eq!(counted(&scene, HOST).0, 7);
    reload("counters: false");
    assert!(scene.holds("sshd_v4", HOST));
    assert!(ban_of(&scene, HOST).get("dropped").is_none());
}

#[test]
fn what_is_told_to_nflog_is_read_back_counted_and_bans_whoever_goes_on() {
    let scene = Scene::new();
    let config = "jails:\n  sshd: {logpath: LOG, port: 22, maxretry: 3, bantime: 1h, log: nflog:5}\n  \
                  again: {rule: portscan, logpath: nflog:5, maxretry: 5, bantime: 1w, port: all}\n";
    let _agent = Agent::start(&scene, config);
    let following = || {
        ask_json(&scene, &["status"])["sources"]
            .as_array()
            .unwrap()
            .iter()
            .all(|source| source["name"] != "nflog:5" || source["state"] == "following")
    };
    scene.wait_for("the group", following);
    scene.fail(HOST, 3);
    scene.wait_for("the ban", || scene.holds("sshd_v4", HOST));
    let server: SocketAddr = (SERVER.parse::<std::net::Ipv4Addr>().unwrap(), 22).into();
    let mut tried = 0;
    scene.wait_for("the second ban", || {
        let _ = scene.as_attacker(HOST, || TcpStream::connect_timeout(&server, Duration::from_millis(50)));
        tried += 1;
        scene.holds("again_v4", HOST)
    });
    assert!(tried >= 5, "{tried}");
    let bans = ask_json(&scene, &["bans", "sshd"]);
    let (packets, bytes) = (&bans[0]["dropped"]["packets"], &bans[0]["dropped"]["bytes"]);
    assert!(packets.as_u64().unwrap() >= 5 && bytes.as_u64().unwrap() >= 5 * 40, "{bans}");
    assert!(scene.elements("sshd_v4")[0].1.is_some(), "the kernel itself counts nothing for it");
}

#[test]
fn a_group_that_another_program_reads_is_waited_for() {
    let scene = Scene::new();
    let mut other = Stream::of(&Channel::Nflog(5), "nflog:5".to_owned());
    let taken = scene.as_server(|| other.read(host::now(), 1, &mut |_| {}));
    assert!(other.trouble().is_none(), "{taken:?}");
    let _agent = Agent::start(&scene, "jails: {again: {rule: portscan, logpath: nflog:5}}\n");
    let state = || ask_json(&scene, &["status"])["sources"][0]["state"].as_str().unwrap().to_owned();
    assert_eq!(state(), "cannot read nflog:5: another program reads group 5");
    drop(other);
    scene.wait_for("the group", || state() == "following");
}

#[test]
fn packets_that_a_flood_loses_are_counted() {
    let scene = Scene::new();
    let mut stream = Stream::of(&Channel::Nflog(7), "nflog:7".to_owned());
    let mut lines = 0;
    let mut read = |stream: &mut Stream| {
        scene.as_server(|| while stream.read(host::now(), 1 << 20, &mut |_| lines += 1).more {});
        lines
    };
    read(&mut stream);
    let rules = "table inet t { chain c { type filter hook prerouting priority 0; udp dport 2222 counter log group 7 drop; }; }";
    fs::write(scene.path("rules"), rules).unwrap();
    assert!(scene.nft(&["-f", scene.path("rules").to_str().unwrap()]).status.success());
    let sent = 100_000;
    knock(&scene, HOST, sent);
    scene.wait_for("all of them", || {
        let counter = String::from_utf8(scene.nft(&["list", "table", "inet", "t"]).stdout).unwrap();
        counter.contains(&format!("packets {sent} "))
    });
    let most = read(&mut stream);
    assert!(most < sent, "the flood was larger than the buffer");
    // The next one that comes tells how many are missing before it.
    scene.wait_for("one more", || {
        knock(&scene, HOST, 1);
        read(&mut stream) > most
    });
    let counter = String::from_utf8(scene.nft(&["list", "table", "inet", "t"]).stdout).unwrap();
    let told = counter.split("packets ").nth(1).unwrap().split(' ').next().unwrap().parse::<u64>().unwrap();
    let known = read(&mut stream) as u64 + stream.lost();
    assert!(known <= told && known + 200 > told, "{known} of {told}: the last are still gathered");
}

/// Lets the kernel log for all network namespaces, as long as this value lives.
struct LogsForAll(String);

const FOR_ALL: &str = "/proc/sys/net/netfilter/nf_log_all_netns";

impl LogsForAll {
    fn new() -> LogsForAll {
        let before = fs::read_to_string(FOR_ALL).unwrap();
        fs::write(FOR_ALL, "1").unwrap();
        LogsForAll(before)
    }
}

impl Drop for LogsForAll {
    fn drop(&mut self) {
        fs::write(FOR_ALL, &self.0).unwrap();
    }
}

#[test]
fn the_kernels_own_log_tells_of_a_few_packets_and_is_not_filled() {
    if !Path::new(FOR_ALL).exists() {
        return;
    }
    let _log = LogsForAll::new();
    let scene = Scene::new();
    let name = format!("logged-{}", std::process::id());
    let config = format!("jails: {{{name}: {{rule: sshd, logpath: LOG, port: all, log: kernel}}}}\n");
    let _agent = Agent::start(&scene, &config);
    assert!(ask(&scene, &["ban", &name, HOST]).status.success());
    let began = host::awake();
    let told = || {
        let log = String::from_utf8_lossy(&Command::new("dmesg").output().unwrap().stdout).into_owned();
        log.lines().filter(|line| line.contains(&format!("nftjail {name} dropped: IN=cable0 OUT= "))).count()
    };
    knock(&scene, HOST, 1_000);
    scene.wait_for("a line", || told() > 0);
    assert_eq!(dropped_in_all(&scene), 1_000);
    let told = told() as u64;
    let seconds = (host::awake() - began).as_secs() + 1;
    assert!((10..=10 + seconds).contains(&told), "{told} lines in {seconds} seconds");
}

#[test]
fn what_extends_counts_and_tells_is_listed_as_it_is_programmed() {
    in_namespace(|| {
        let mut layout = layout();
        let second = Duration::from_secs(1);
        let knocks = [
            (Block::Drop, Some(600 * second), true, Log::Kernel),
            (Block::Reject, Some(second), false, Log::Nflog(5)),
            (Block::Reject, None, true, Log::Nothing),
        ];
        for (cell, (block, extends, counts, log)) in layout.cells.iter_mut().zip(knocks) {
            cell.block = block;
            cell.knock = Knock { extends, counts, log };
        }
        let mut netlink = installed(&layout);
        let bans = ["192.0.2.1", "2001:db8::1", "203.0.113.0/24", "2001:db8:1::/48"];
        let of = |name: &'static str| bans.map(move |addr| ban(name, addr, 600));
        apply(&mut netlink, &[of("sshd"), of("web"), of("recidive")].concat());
        let table = assert_prints_as_nft_does(&mut netlink);
        assert_eq!(table.standing().count(), 12);
        let counted = |set: &str| table.set(set).unwrap().elements[0].dropped;
        assert_eq!((counted("sshd_v6_nets"), counted("web_v4")), (Some(Dropped::default()), None));
        for cell in &layout.cells {
            assert_eq!(table.gap(&cell.jail, &cell.hooks), None);
        }
        let script = plan::install(&layout, None, &[]).to_string();
        run(&["nft", "delete", "table", "inet", "nftjail"]);
        feed(&["nft", "-f", "-"], &script).unwrap();
        let found = netlink.table(true).unwrap();
        assert_eq!(plan::install(&layout, found.as_ref(), &[]), Transaction::default());

        // What was counted outlives sets that are made anew, and goes where nobody counts any more.
        let counted = Dropped { packets: 5, bytes: 300 };
        let element = Element::lasting(Key::of(target("192.0.2.9")), None, None).counted(Some(counted));
        let mut transaction = Transaction::default();
        let elements = vec![element.clone()].into();
        transaction.push(Operation::AddElements { set: "sshd_v4".to_owned(), elements });
        netlink.commit(&transaction).unwrap();
        layout.cells[0].capacity = 7;
        install(&mut netlink, &layout, &[]);
        assert_eq!(netlink.element("sshd_v4", element.key), Ok(Some(element.clone())));
        layout.cells[0].knock.counts = false;
        install(&mut netlink, &layout, &[]);
        assert_eq!(netlink.element("sshd_v4", element.key), Ok(Some(element.counted(None))));
    });
}
