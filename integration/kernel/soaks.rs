//! Long runs that print what they measured, opt-in: `cargo test --release --test kernel -- --ignored --nocapture soaks`.
//! `ROUNDS` in the environment shortens them.

#![expect(clippy::disallowed_methods, reason = "it measures time")]

use std::collections::BTreeMap;
use std::fs;
use std::net::UdpSocket;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::scene::{Agent, SERVER, Scene, ask};

const ATTACKER: &str = "203.0.113.66";
const PORT: u16 = 9999;
/// So long without a packet means that the door is shut again.
const QUIET: Duration = Duration::from_millis(20);

fn rounds(otherwise: usize) -> usize {
    std::env::var("ROUNDS").map_or(otherwise, |rounds| rounds.parse().expect("a number"))
}

/// What came through the door while a banned host floods it.
#[derive(Default)]
struct Leak {
    stop: AtomicBool,
    sent: AtomicU64,
    /// How many packets came, and when the first and the last did.
    came: Mutex<(u64, Option<(Instant, Instant)>)>,
}

impl Leak {
    fn send(&self) {
        let socket = UdpSocket::bind((ATTACKER, 0)).unwrap();
        while !self.stop.load(Ordering::Relaxed) {
            // Where the queue is full the next one goes.
            if socket.send_to(b"knock", (SERVER, PORT)).is_ok() {
                self.sent.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn receive(&self) {
        let socket = UdpSocket::bind((SERVER, PORT)).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
        let mut buffer = [0; 16];
        while !self.stop.load(Ordering::Relaxed) {
            if socket.recv(&mut buffer).is_ok() {
                let now = Instant::now();
                let mut came = self.came.lock().unwrap();
                came.0 += 1;
                came.1 = Some((came.1.map_or(now, |(first, _)| first), now));
            }
        }
    }

    /// What came since the last call, and over how long; waits until nothing comes any more.
    fn take(&self) -> (u64, Duration) {
        loop {
            thread::sleep(QUIET);
            let mut came = self.came.lock().unwrap();
            match came.1 {
                Some((_, last)) if last.elapsed() < QUIET => {}
                Some((first, last)) => {
                    let leaked = (came.0, last - first);
                    *came = (0, None);
                    return leaked;
                }
                None => return (0, Duration::ZERO),
            }
        }
    }
}

/// Runs `act` while a banned host sends as fast as it can.
fn under_flood(scene: &Scene, act: impl FnOnce(&Leak)) -> u64 {
    let leak = Leak::default();
    thread::scope(|scope| {
        scope.spawn(|| scene.as_server(|| leak.receive()));
        scope.spawn(|| scene.as_attacker(ATTACKER, || leak.send()));
        scene.wait_for("the flood", || leak.sent.load(Ordering::Relaxed) > 1_000);
        leak.take();
        act(&leak);
        leak.stop.store(true, Ordering::Relaxed);
    });
    leak.sent.load(Ordering::Relaxed)
}

fn banned(more: &str) -> (Scene, Agent) {
    let scene = Scene::new();
    let agent =
        Agent::start(&scene, &format!("{more}jails: {{sshd: {{logpath: LOG, port: all, bantime: 1d}}}}\n"));
    assert!(ask(&scene, &["ban", "sshd", ATTACKER]).status.success());
    (scene, agent)
}

fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted[(sorted.len() * percent / 100).min(sorted.len() - 1)]
}

#[test]
#[ignore = "takes minutes"]
fn how_long_the_door_stands_open_when_somebody_damages_our_table() {
    let (scene, _agent) = banned("");
    let scripts = BTreeMap::from([
        ("flush ruleset", "flush ruleset\n".to_owned()),
        ("delete table", "delete table inet nftjail\n".to_owned()),
        ("flush a chain", "flush chain inet nftjail prerouting\n".to_owned()),
        ("delete a set", "flush chain inet nftjail jail_sshd\ndelete set inet nftjail sshd_v4\n".to_owned()),
        ("delete a ban", format!("delete element inet nftjail sshd_v4 {{ {ATTACKER} }}\n")),
        ("an accept before all", "insert rule inet nftjail prerouting accept\n".to_owned()),
    ]);
    let each = rounds(1_000) / scripts.len();
    let mut open: BTreeMap<&str, Vec<(Duration, u64)>> = BTreeMap::new();
    let sent = under_flood(&scene, |leak| {
        for round in 0..each {
            for (name, script) in &scripts {
                let file = scene.path("damage.nft");
                fs::write(&file, script).unwrap();
                scene.wait_for("something to damage", || {
                    scene.nft(&["-f", file.to_str().unwrap()]).status.success()
                });
                let (packets, time) = leak.take();
                open.entry(name).or_default().push((time, packets));
                assert!(time < Duration::from_secs(1), "{name} in round {round}: open for {time:?}");
            }
        }
    });
    println!("{sent} packets sent; {each} times each, open for:");
    for (name, mut leaks) in open {
        leaks.sort();
        let times: Vec<Duration> = leaks.iter().map(|(time, _)| *time).collect();
        let mut packets: Vec<u64> = leaks.iter().map(|(_, packets)| *packets).collect();
        packets.sort();
        println!(
            "  {name}: median {:?}, p99 {:?}; packets let through: median {}, worst {}",
            percentile(&times, 50),
            percentile(&times, 99),
            packets[packets.len() / 2],
            packets[packets.len() - 1],
        );
    }
}

#[test]
#[ignore = "takes minutes"]
fn a_reload_lets_no_packet_through() {
    let (scene, _agent) = banned("");
    let configs =
        ["port: all", "port: [22, 9999/udp]", "port: 9999/udp, block: reject", "port: all, capacity: 1000"];
    let rounds = rounds(1_000);
    let sent = under_flood(&scene, |leak| {
        for round in 0..rounds {
            let jail = format!(
                "jails: {{sshd: {{logpath: LOG, bantime: 1d, {}}}}}\n",
                configs[round % configs.len()]
            );
            let jail = jail.replace("LOG", &scene.path("auth.log").display().to_string());
            fs::write(scene.path("nftjail.yaml"), jail).unwrap();
            assert!(ask(&scene, &["reload"]).status.success());
        }
        assert_eq!(leak.take().0, 0);
    });
    println!("{rounds} reloads while {sent} packets were sent: none came through");
}
