//! A reload applies everything at once, and loses no ban, no count and no packet on the way.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::UdpSocket;
use std::process::{Child, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use crate::scene::{Agent, SERVER, Scene, ask, ask_json};

const ATTACKER: &str = "203.0.113.66";
const OTHER: &str = "203.0.113.67";
const SSHD: &str = "jails: {sshd: {logpath: LOG, port: [22, 22/udp], maxretry: 3, bantime: 1h}}\n";

pub fn reload(scene: &Scene, config: &str) -> Output {
    let log = scene.path("auth.log").display().to_string();
    fs::write(scene.path("nftjail.yaml"), config.replace("LOG", &log)).unwrap();
    ask(scene, &["reload"])
}

fn reloaded(scene: &Scene, config: &str) {
    let output = reload(scene, config);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn failures_count_on_under_another_maxretry_and_findtime() {
    let scene = Scene::new();
    let _agent = Agent::start(&scene, SSHD);
    let jail = |terms: &str| format!("jails: {{sshd: {{logpath: LOG, port: 22, bantime: 1h, {terms}}}}}\n");
    let failing = |count: u64| {
        scene.wait_for("the lines", || ask_json(&scene, &["status"])["jails"][0]["failed_total"] == count);
    };
    scene.fail(ATTACKER, 2);
    scene.fail(OTHER, 2);
    failing(4);
    reloaded(&scene, &jail("maxretry: 5, findtime: 1d"));
    scene.fail(ATTACKER, 2);
    failing(6);
    assert_eq!(scene.elements("sshd_v4"), [], "four of five");
    reloaded(&scene, &jail("maxretry: 3, findtime: 1h"));
    assert_eq!(ask_json(&scene, &["status"])["jails"][0]["failing"], 2, "nobody is banned by a reload");
    scene.fail(OTHER, 1);
    scene.wait_for("the third failure", || scene.holds("sshd_v4", OTHER));
    assert!(!scene.holds("sshd_v4", ATTACKER));
    scene.fail(ATTACKER, 1);
    scene.wait_for("the fifth failure", || scene.holds("sshd_v4", ATTACKER));
    assert_eq!(ask_json(&scene, &["status"])["jails"][0]["failed_total"], 8);
}

/// The first line of a connection comes before a reload, and the one that blames somebody after it.
#[test]
fn a_connection_that_spans_a_reload_is_still_one() {
    let scene = Scene::new();
    let jail = "jails: {sshd: {logpath: LOG, port: 22, maxretry: 1, bantime: 1h}}\n";
    let _agent = Agent::start(&scene, jail);
    let line = |text: &str| format!("Nov 21 10:00:00 web01 sshd[4242]: {text}");
    scene.log("auth.log", &line("Disconnecting: Too many authentication failures for root [preauth]"));
    scene.wait_for("the line", || ask_json(&scene, &["status"])["sources"][0]["lines"] == 1);
    reloaded(&scene, &jail.replace("1h", "2h"));
    scene.log("auth.log", &line(&format!("Connection closed by {ATTACKER} port 4242 [preauth]")));
    scene.wait_for("the ban", || scene.holds("sshd_v4", ATTACKER));
}

/// What the kernel tells whoever listens, line by line; it listens by now.
fn monitor(scene: &Scene) -> (Child, Receiver<String>) {
    let mut monitor = scene.on_server("nft");
    let mut monitor = monitor.arg("monitor").stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let (tell, told) = channel();
    let lines = BufReader::new(monitor.stdout.take().unwrap()).lines();
    thread::spawn(move || lines.map_while(Result::ok).for_each(|line| drop(tell.send(line))));
    let mut marks = 0;
    scene.wait_for("the monitor", || {
        marks += 1;
        mark(scene, &format!("mark{marks}"));
        told.try_iter().any(|line| line.contains("table ip mark"))
    });
    (monitor, told)
}

fn mark(scene: &Scene, name: &str) {
    assert!(scene.nft(&["add", "table", "ip", name]).status.success());
}

#[test]
fn everything_changes_in_one_transaction() {
    let scene = Scene::new();
    let two = "  web: {rule: sshd, logpath: LOG, port: 80}\n  mail: {rule: sshd, logpath: LOG, port: 25}\n";
    let _agent = Agent::start(&scene, &format!("jails:\n  sshd: {{logpath: LOG, port: 22}}\n{two}"));
    assert!(ask(&scene, &["ban", "sshd", ATTACKER, "--for", "1h"]).status.success());
    let (mut monitor, told) = monitor(&scene);
    mark(&scene, "before");
    let other = "defaults: {ignoreip: 192.0.2.0/24, block: reject}\njails:\n  sshd: {logpath: LOG, port: all, \
                 capacity: 7}\n  web: {rule: sshd, logpath: LOG, port: 8080}\n  ftp: {rule: sshd, logpath: LOG}\n";
    reloaded(&scene, other);
    mark(&scene, "after");
    let told: Vec<String> = told
        .iter()
        .skip_while(|line| !line.contains("table ip before"))
        .take_while(|line| !line.contains("table ip after"))
        .collect();
    monitor.kill().unwrap();
    monitor.wait().unwrap();
    let changes = told.iter().filter(|line| line.contains("inet nftjail")).count();
    assert!(changes > 10, "{told:#?}");
    let commits = told.iter().filter(|line| line.contains("new generation")).count();
    assert_eq!(commits, 2, "the first mark, and the reload: {told:#?}");
    assert!(scene.holds("sshd_v4", ATTACKER));
}

#[test]
fn a_banned_host_gets_no_packet_through_while_everything_changes() {
    let scene = Scene::new();
    let leak = "table inet leak {\n counter leaked { }\n chain input {\n type filter hook input priority 0;\n \
                udp dport 22 counter name leaked\n }\n}\n";
    fs::write(scene.path("leak.nft"), leak).unwrap();
    assert!(scene.nft(&["-f", scene.path("leak.nft").to_str().unwrap()]).status.success());
    let leaked = || {
        let listed = scene.nft(&["-j", "list", "counter", "inet", "leak", "leaked"]).stdout;
        let listed: serde_json::Value = serde_json::from_slice(&listed).unwrap();
        listed["nftables"][1]["counter"]["packets"].as_u64().unwrap()
    };
    let _agent = Agent::start(&scene, SSHD);
    let knock = || {
        let socket = UdpSocket::bind((ATTACKER, 0)).unwrap();
        // A reject may tell of an earlier one.
        let _ = socket.send_to(b"x", (SERVER, 22));
    };
    scene.as_attacker(ATTACKER, knock);
    assert_eq!(leaked(), 1, "the probe counts what arrives");
    scene.fail(ATTACKER, 3);
    scene.wait_for("the ban", || scene.holds("sshd_v4", ATTACKER));
    let left = scene.elements("sshd_v4")[0].1.unwrap();

    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            scene.as_attacker(ATTACKER, || {
                while !done.load(Ordering::Relaxed) {
                    knock()
                }
            })
        });
        let more = "  web: {rule: sshd, logpath: LOG, port: 80}\n";
        for (port, block, capacity, jails) in [
            ("all", "drop", 1_000, ""),
            ("22/udp", "reject", 1_000, more),
            ("[22, 22/udp]", "drop", 2_000, more),
            ("all", "reject", 3_000, ""),
            ("22/udp", "drop", 3_000, more),
        ] {
            let sshd = format!("{{logpath: LOG, port: {port}, block: {block}, capacity: {capacity}}}");
            reloaded(&scene, &format!("jails:\n  sshd: {sshd}\n{jails}"));
        }
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(leaked(), 1, "not one more came through");
    let dropped = ask_json(&scene, &["status", "sshd"])["jails"][0]["dropped"]["packets"].as_u64().unwrap();
    assert!(dropped > 5, "it did knock: {dropped}");
    let still = scene.elements("sshd_v4")[0].1.unwrap();
    assert!(still <= left, "and its time went on: {still} of {left}");
}
