//! Very many addresses at once: a botnet of one try each is banned, friends are not, and memory stays bounded.

use std::fs;
use std::net::Ipv4Addr;
use std::time::Duration;

use nftjail::detect::{Clock, Library};
use nftjail::engine::{Engine, Listener, Outcome};
use nftjail::jail::Terms;
use nftjail::jail::allow::Allow;
use nftjail::model::{Bantime, Change, Event, Timestamp};
use rustix::time::{ClockId, clock_gettime};

const START: i64 = 1_795_255_200_000;
const DAY_MS: i64 = 86_400_000;
const FRIENDS: u32 = 5;

fn engine(user_addrs: Option<u32>) -> Engine {
    let rule = Library::shipped().compile("sshd", None).unwrap().into();
    let name: nftjail::model::JailName = "sshd".parse().unwrap();
    let terms = Terms {
        name: name.clone(),
        maxretry: 5,
        findtime: Duration::from_secs(600),
        distinct: false,
        user_addrs,
        friend_for: Some(Duration::from_secs(86_400)),
        bantime: Bantime::For(Duration::from_secs(600)),
        increment: None,
        ignoreip: Allow::default(),
        hears_bans: false,
        prefix: None,
        extend_on_knock: None,
    };
    Engine::new(vec![terms], vec![vec![Listener { jail: name, rule, zone: None }]], Allow::default(), 7)
}

/// What follows from a line of sshd at a moment; the kernel takes every ban at once.
fn line(engine: &mut Engine, at: Timestamp, pid: u32, text: &str) -> Outcome {
    let mut out = Outcome::default();
    let line = format!("Nov 21 10:00:00 web01 sshd[{pid}]: {text} port 4242 ssh2");
    engine.handle_timeout(at, &mut Outcome::default());
    engine.handle_line(0, line.as_bytes(), Clock::Arrived(at), at, &mut out);
    for change in &out.changes {
        engine.handle_taken(change, at, &mut Outcome::default());
    }
    out
}

fn stranger(n: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(0x0A00_0000 + n)
}

fn friend(n: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(0xC000_0200 + n % FRIENDS)
}

/// A day on which so many addresses try one password each, all as `admin`, at moments that a fixed seed chose, and
/// friends who are called so mistype theirs. Returns which of the tries were banned.
fn botnet_day(tries: u32) -> Vec<bool> {
    let mut engine = engine(Some(8));
    let mut seed = 7u64;
    let mut moments: Vec<i64> = (0..tries)
        .map(|_| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) as i64 % DAY_MS
        })
        .collect();
    moments.sort_unstable();
    for n in 0..FRIENDS {
        let text = format!("Accepted password for admin from {}", friend(n));
        assert_eq!(line(&mut engine, Timestamp::from_millis(START), n, &text), Outcome::default());
    }
    let mut banned = Vec::new();
    for (n, moment) in (0..).zip(moments) {
        let at = Timestamp::from_millis(START + moment);
        let text = format!("Failed password for invalid user admin from {}", stranger(n));
        let out = line(&mut engine, at, 10 + n, &text);
        let is_told = out.events.iter().any(|event| matches!(event, Event::Series { addrs: 8, .. }));
        assert_eq!(is_told, matches!(out.changes[..], [Change::Ban(_)]));
        banned.push(is_told);
        if n % (tries / 100) == 0 {
            let text = format!("Failed password for admin from {}", friend(n));
            assert_eq!(line(&mut engine, at, 10 + n, &text).changes, [], "a friend is not banned");
        }
    }
    banned
}

#[test]
fn a_botnet_with_one_try_each_is_banned_at_the_first_and_friends_are_not() {
    // One each nine seconds, and one each minute and a half: fewer than eight in ten minutes.
    for tries in [10_000, 1_000] {
        let banned = botnet_day(tries);
        let detected = banned.iter().position(|banned| *banned).unwrap();
        let after = &banned[detected..];
        let share = after.iter().filter(|banned| **banned).count() as f64 / after.len() as f64;
        assert!(detected < 20 && share >= 0.95, "{tries}: from {detected} on {share}");
    }
}

/// What this thread has worked, whatever else the machine does.
fn worked() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn resident_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// A measurement: a million addresses fail once each within an hour, each as a user of its own.
/// `cargo test --test integration -- --ignored --nocapture a_million_addresses`
#[test]
#[ignore = "a measurement, which takes a minute"]
fn a_million_addresses_in_an_hour() {
    let mut engine = engine(Some(8));
    let empty = resident_kib();
    let mut since = (0, worked());
    for n in 0..1_000_000u32 {
        let at = Timestamp::from_millis(START + i64::from(n) * 3_600 / 1_000);
        let text = format!("Failed password for invalid user u{n} from {}", stranger(n));
        let _ = line(&mut engine, at, n, &text);
        if n % 1_000 == 999 {
            engine.take_unsaved();
        }
        if [10_000, 100_000, 1_000_000].contains(&(n + 1)) {
            let took = (worked() - since.1) / (n + 1 - since.0);
            let jail = &engine.jails()[0];
            let (held, forgotten) = (jail.window().len(), jail.forgotten_total());
            let grown = resident_kib().saturating_sub(empty);
            println!(
                "{:>9} addresses: {took:?} each, {grown} KiB, {held} held, {forgotten} forgotten",
                n + 1
            );
            since = (n + 1, worked());
        }
    }
}
