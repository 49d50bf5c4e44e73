//! Banned hosts that try again stay banned in the kernel, with packets and without the agent, until they are silent.

use std::fs;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use nftjail::host;

use crate::scene::{Agent, SERVER, SERVER_V6, Scene, ask, ask_json};

const HOST: &str = "203.0.113.66";
const OTHER: &str = "203.0.113.67";
const HOST_V6: &str = "2001:db8:66::9";
const SILENCE: Duration = Duration::from_secs(3);

fn config(bantime: &str, silence: &str) -> String {
    format!(
        "jails: {{sshd: {{logpath: LOG, maxretry: 3, port: all, bantime: {bantime}, extend_on_knock: {silence}}}}}\n"
    )
}

/// Sends a packet to the server every now and then, as long as something else is done; says how long the longest pause
/// was, since nobody can be held who was kept from knocking.
fn knocking<T>(scene: &Scene, from: &str, act: impl FnOnce() -> T) -> (T, Duration) {
    let to = if from.contains(':') { SERVER_V6 } else { SERVER };
    let socket = scene.as_attacker(from, || UdpSocket::bind((from, 0)).unwrap());
    let (over, pause) = (AtomicBool::new(false), AtomicU64::new(0));
    let done = thread::scope(|scope| {
        scope.spawn(|| {
            let mut last = host::awake();
            while !over.load(Ordering::Relaxed) {
                // The server may say that nobody listens there.
                let _ = socket.send_to(b"knock", (to, 2222));
                let now = host::awake();
                pause.fetch_max((now - last).as_millis() as u64, Ordering::Relaxed);
                last = now;
                thread::sleep(Duration::from_millis(20));
            }
        });
        let _over = Over(&over);
        act()
    });
    (done, Duration::from_millis(pause.into_inner()))
}

/// Ends the knocking, also where what was done meanwhile ends in a panic.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn knock_once(scene: &Scene, from: &str) {
    let socket = scene.as_attacker(from, || UdpSocket::bind((from, 0)).unwrap());
    let _ = socket.send_to(b"knock", (SERVER, 2222));
}

fn is_banned(scene: &Scene, host: &str) -> bool {
    ask_json(scene, &["bans"]).as_array().unwrap().iter().any(|ban| ban["target"] == host)
}

/// Seconds until its ban ends, as it is listed.
fn ends_in(scene: &Scene, host: &str) -> i64 {
    let bans = ask_json(scene, &["bans"]);
    let ban = bans.as_array().unwrap().iter().find(|ban| ban["target"] == host).expect("it is banned");
    let ends: jiff::Timestamp = ban["ends"].as_str().unwrap().parse().unwrap();
    (ends.as_millisecond() - host::now().as_millis()) / 1_000
}

fn wait_beyond(scene: &Scene, time: Duration) {
    let end = host::awake() + time;
    scene.wait_for("the time", || host::awake() > end);
}

#[test]
fn who_keeps_knocking_stays_banned_beyond_the_ban_and_is_free_after_silence() {
    for (host, target, set) in [(HOST, HOST, "sshd_v4"), (HOST_V6, "2001:db8:66::/64", "sshd_v6")] {
        let mut scene = Scene::new();
        scene.listen(22);
        let _agent = Agent::start(&scene, &config("2s", "3s"));
        let ((), pause) = knocking(&scene, host, || {
            scene.fail(host, 3);
            scene.wait_for("the ban", || is_banned(&scene, target));
            // Longer than the ban and one silence together: only knocks explain it.
            wait_beyond(&scene, Duration::from_secs(2) + SILENCE + Duration::from_secs(1));
            assert!(is_banned(&scene, target), "it is listed");
            let why = String::from_utf8(ask(&scene, &["why", target]).stdout).unwrap();
            assert!(why.contains("is banned in sshd") && why.contains("the kernel holds it: ends "), "{why}");
            assert!(!scene.connects(host, 22));
        });
        if pause > SILENCE / 2 {
            // This machine was too busy to knock.
            continue;
        }
        assert!(scene.connects(OTHER, 22), "nobody else is held");
        assert_eq!(ask_json(&scene, &["status"])["jails"][0]["banned_total"], 1, "it is all one ban");
        // It is silent now: what was sent above was the last.
        scene.wait_for("the end", || !is_banned(&scene, target));
        assert!(scene.elements(set).is_empty() && scene.elements(&format!("{set}_knocks")).is_empty());
        assert!(scene.connects(host, 22));
        let told = fs::read_to_string(scene.path("agent.log")).unwrap();
        assert!(told.contains("still tries, and stays banned until"), "{told}");
        assert!(!told.contains("WARN") && !told.contains("ERROR"), "{told}");
    }
}

#[test]
fn a_long_ban_is_as_long_after_a_knock_as_before() {
    let scene = Scene::new();
    let _agent = Agent::start(&scene, &config("1h", "3s"));
    assert!(ask(&scene, &["ban", "sshd", HOST, "203.0.113.128/25"]).status.success());
    // Nobody of a banned network is held for himself.
    knock_once(&scene, "203.0.113.200");
    knock_once(&scene, HOST);
    scene.wait_for("the knock", || scene.holds("sshd_v4_knocks", HOST));
    assert_eq!(scene.elements("sshd_v4_knocks").len(), 1);
    scene.wait_for("its end", || scene.elements("sshd_v4_knocks").is_empty());
    let left = scene.elements("sshd_v4")[0].1.unwrap();
    assert!(left > 3_500, "{left} seconds are left");
    assert!(ends_in(&scene, HOST) > 3_500);
}

#[test]
fn a_full_set_of_knocks_lets_nobody_pass_and_nobody_stay() {
    let mut scene = Scene::new();
    scene.listen(22);
    let config = config("1h", "1h").replace("port: all", "port: all, capacity: 2");
    let _agent = Agent::start(&scene, &config);
    let others = "{ 192.0.2.1 timeout 1h, 192.0.2.2 timeout 1h }";
    assert!(scene.nft(&["add", "element", "inet", "nftjail", "sshd_v4_knocks", others]).status.success());
    scene.wait_for("what somebody added to be believed", || is_banned(&scene, "192.0.2.2"));
    assert!(ask(&scene, &["ban", "sshd", HOST, OTHER]).status.success());
    assert!(!scene.connects(HOST, 22) && !scene.connects(OTHER, 22));
    assert_eq!(scene.elements("sshd_v4_knocks").len(), 2);
    assert!(ask(&scene, &["unban", HOST]).status.success());
    assert!(scene.connects(HOST, 22) && !scene.connects(OTHER, 22));
    assert!(ask(&scene, &["unban", "192.0.2.1"]).status.success());
    assert!(!scene.holds("sshd_v4_knocks", "192.0.2.1"), "it can be unbanned from there alone");
}

#[test]
fn whoever_is_unbanned_or_ignored_is_free_even_as_he_knocks() {
    let mut scene = Scene::new();
    scene.listen(22);
    let _agent = Agent::start(&scene, &config("1h", "1h"));
    knocking(&scene, HOST, || {
        for free in [&["unban", HOST][..], &["unban", "--all"], &["ignore", "add", HOST]] {
            assert!(ask(&scene, &["ban", "sshd", HOST]).status.success());
            scene.wait_for("a knock", || scene.holds("sshd_v4_knocks", HOST));
            assert!(ask(&scene, free).status.success());
            scene.wait_for("freedom", || {
                scene.elements("sshd_v4").is_empty() && scene.elements("sshd_v4_knocks").is_empty()
            });
            assert!(!is_banned(&scene, HOST));
            assert!(scene.connects(HOST, 22), "{free:?}");
        }
    });
}

#[test]
fn what_is_held_outlives_flush_and_reload_and_the_agent() {
    let mut scene = Scene::new();
    scene.listen(22);
    let agent = Agent::start(&scene, &config("2s", "1m"));
    knocking(&scene, HOST, || {
        scene.fail(HOST, 3);
        scene.wait_for("the ban", || is_banned(&scene, HOST));
        scene.wait_for("it to be longer", || ends_in(&scene, HOST) > 30);
        assert!(scene.nft(&["flush", "ruleset"]).status.success());
        let there = |set: &str| scene.nft(&["list", "set", "inet", "nftjail", set]).status.success();
        scene.wait_for("the repair", || there("sshd_v4_knocks") && scene.holds("sshd_v4_knocks", HOST));
        assert!(is_banned(&scene, HOST) && !scene.connects(HOST, 22));

        let other = config("2s", "2m").replace("LOG", &scene.path("auth.log").display().to_string());
        fs::write(scene.path("nftjail.yaml"), other).unwrap();
        assert!(ask(&scene, &["reload"]).status.success());
        assert!(is_banned(&scene, HOST) && scene.holds("sshd_v4_knocks", HOST));

        // The ban itself is over while nobody looks; the kernel holds the host by itself.
        agent.kill();
        let element = ["delete", "element", "inet", "nftjail", "sshd_v4", "{", HOST, "}"];
        assert!(scene.nft(&element).status.success());
        assert!(!scene.connects(HOST, 22));
    });
    let _agent = Agent::start_again(&scene);
    assert!(is_banned(&scene, HOST), "the next agent knows of it");
    assert!(scene.holds("sshd_v4", HOST), "and has it banned in its own right");
    assert!(ask(&scene, &["unban", HOST]).status.success());
    assert!(scene.connects(HOST, 22));
}

#[test]
fn a_self_test_with_packets_leaves_nobody_held() {
    let scene = Scene::new();
    let _agent = Agent::start(&scene, &config("1h", "1h"));
    scene.log("auth.log", "");
    let tested = ask(&scene, &["selftest", "--packets"]);
    assert!(tested.status.success(), "{}", String::from_utf8_lossy(&tested.stdout));
    scene.wait_for("nobody", || scene.elements("sshd_v4_knocks").is_empty());
    assert!(ask_json(&scene, &["bans"]).as_array().unwrap().is_empty());
}
