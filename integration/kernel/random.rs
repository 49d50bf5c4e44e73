//! Ten thousand things happen to two jails, and the kernel holds exactly what follows from them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use nftjail::control::{self, Request, Response, Whom};
use nftjail::host;
use nftjail::model::{Bantime, JailName, Target, Timestamp};
use nftjail::nft::Firewall;
use nftjail::nft::netlink::Netlink;

use crate::scene::{Agent, SERVER, SERVER_V6, Scene};

const OPERATIONS: usize = 10_000;
const JAILS: [&str; 2] = ["all", "web"];
const SECOND: Duration = Duration::from_secs(1);

/// SplitMix64: the same story at every run.
struct Chance(u64);

impl Chance {
    fn below(&mut self, most: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % most as u64) as usize
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }
}

/// 240 hosts, each alone in its /64 where it is of IPv6.
fn hosts() -> Vec<IpAddr> {
    let v4 = (0..160_u32).map(|n| IpAddr::V4(Ipv4Addr::from_bits(0xCB00_7100 + n * 3 / 2)));
    let v6 =
        (0..80_u128).map(|n| IpAddr::V6(Ipv6Addr::from_bits((0x2001_0db8_0066 << 80) + ((n * 3) << 64) + 7)));
    v4.chain(v6).collect()
}

/// The networks of every length that the hosts are in, but for the widest, which would hide all others.
fn networks() -> Vec<Target> {
    let around = |addr: IpAddr| {
        let lengths = if addr.is_ipv4() { 25..=31 } else { 57..=63 };
        lengths.filter_map(move |length| Target::of(addr).within(length))
    };
    hosts().into_iter().flat_map(around).collect::<BTreeSet<_>>().into_iter().collect()
}

type Bans = BTreeMap<(JailName, Target), Option<Timestamp>>;

struct Story<'a> {
    scene: &'a Scene,
    chance: Chance,
    hosts: Vec<IpAddr>,
    networks: Vec<Target>,
    /// What must stand, by the answers alone.
    bans: Bans,
    /// The longest that an answer took: a ban begins somewhere in that time.
    slowest: Duration,
    /// What happened how often.
    seen: BTreeMap<&'static str, usize>,
}

impl Story<'_> {
    fn ask(&mut self, request: &Request) -> Response {
        let asked = host::now();
        let answer = control::ask(&self.scene.path("control.sock"), request).unwrap();
        self.slowest = self.slowest.max(host::now().since(asked));
        answer
    }

    fn count(&mut self, what: &'static str) {
        *self.seen.entry(what).or_default() += 1;
    }

    fn target(&mut self) -> Target {
        match self.chance.below(3) {
            0 => self.chance.of(&self.networks),
            _ => Target::of(self.chance.of(&self.hosts)),
        }
    }

    fn step(&mut self, number: usize) {
        let jail: JailName = self.chance.of(&JAILS).parse().unwrap();
        match self.chance.below(20) {
            _ if number % 400 == 399 => self.reload(number),
            0..11 => self.ban(jail),
            11..13 => self.attempt(jail),
            _ => self.unban(jail),
        }
    }

    /// One network, or several hosts at once.
    fn ban(&mut self, jail: JailName) {
        let mut targets = vec![self.target()];
        if !targets[0].is_network() {
            targets.extend((0..self.chance.below(8)).map(|_| Target::of(self.chance.of(&self.hosts))));
        }
        let bantime = match self.chance.below(10) {
            0 => Bantime::Forever,
            1..4 => Bantime::For(SECOND * (1 + self.chance.below(3) as u32)),
            n => Bantime::For(Duration::from_secs(3_600 * n as u64)),
        };
        let now = host::now();
        let request = Request::Ban { jail: jail.clone(), targets: targets.clone(), bantime: Some(bantime) };
        match self.ask(&request) {
            Response::Done(_) => {
                let net = targets[0];
                let is_taken_over = |(owner, other): &(JailName, Target)| {
                    *owner == jail && other.is_network() && net.is_network() && net.covers(*other)
                };
                self.bans.retain(|key, _| !is_taken_over(key) || key.1 == net);
                for target in targets {
                    let old = self.bans.insert((jail.clone(), target), bantime.end(now));
                    self.count(if old.is_some() { "banned again" } else { "banned" });
                }
            }
            Response::Failed { message, .. } => {
                let known = ["is banned already, with all of", "is banned for longer"];
                assert!(
                    targets[0].is_network() && known.iter().any(|why| message.contains(why)),
                    "{message}"
                );
                self.count("refused");
            }
            other => panic!("{other:?}"),
        }
    }

    /// One failure bans in these jails, for a day, where no ban stands that lasts longer.
    fn attempt(&mut self, jail: JailName) {
        let addr = self.chance.of(&self.hosts);
        let end = host::now().plus(Duration::from_secs(86_400));
        let answer = self.ask(&Request::Attempt { jail: jail.clone(), addr });
        assert!(matches!(answer, Response::Done(_)), "{answer:?}");
        while !matches!(self.ask(&Request::Status { jail: None }), Response::Status(status) if status.pending == 0)
        {
        }
        let held = self.bans.entry((jail, Target::of(addr))).or_insert(Some(end));
        *held = held.map(|old| old.max(end));
        self.count("attempted");
    }

    fn unban(&mut self, jail: JailName) {
        let whom = match self.target() {
            net if net.is_network() => Whom::Net(net.net()),
            host => Whom::Target(host),
        };
        let only = (self.chance.below(2) == 0).then_some(jail);
        let now = host::now();
        let answer = self.ask(&Request::Unban { whom, jail: only.clone() });
        let meant = |(jail, target): &(JailName, Target)| {
            only.as_ref().is_none_or(|only| only == jail) && whom.covers(*target)
        };
        let sure = |end: &Option<Timestamp>| end.is_none_or(|end| end > now.plus(SECOND));
        let lifted = self.bans.iter().any(|(key, end)| meant(key) && sure(end));
        match answer {
            Response::Done(_) => self.count("unbanned"),
            other => {
                assert!(!lifted, "{whom:?}: {other:?}");
                self.count("not banned");
            }
        }
        self.bans.retain(|key, _| !meant(key));
    }

    fn reload(&mut self, number: usize) {
        let config = self.scene.path("nftjail.yaml");
        let text = fs::read_to_string(&config).unwrap();
        let (one, other) = ("block: drop", "block: reject");
        let text = if number % 800 == 799 { text.replace(one, other) } else { text.replace(other, one) };
        fs::write(&config, text).unwrap();
        let answer = self.ask(&Request::Reload);
        assert!(matches!(answer, Response::Done(_)), "{answer:?}");
        self.count("reloaded");
    }

    /// Bans of a few seconds are over, in the kernel too.
    fn settle(&mut self) {
        let last = host::now().plus(SECOND * 4);
        self.scene.wait_for("the end of the short bans", || host::now() > last.plus(SECOND));
        let before = self.bans.len();
        self.bans.retain(|_, end| end.is_none_or(|end| end > last));
        self.seen.insert("ended", before - self.bans.len());
    }

    /// Who reaches a port of the server, of these, by one datagram each.
    fn reach(&self, from: &[IpAddr], port: u16) -> BTreeSet<IpAddr> {
        let receivers = [SERVER, SERVER_V6].map(|addr| {
            self.scene.as_server(|| {
                let socket = UdpSocket::bind((addr, port)).unwrap();
                socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
                socket
            })
        });
        let outsiders: [IpAddr; 2] = ["203.0.112.1", "2001:db8:67::1"].map(|addr| addr.parse().unwrap());
        let mut arrived = BTreeSet::new();
        for (receiver, outsider) in receivers.iter().zip(outsiders) {
            let server = receiver.local_addr().unwrap();
            let send = |from: IpAddr| {
                self.scene.as_attacker(&outsider.to_string(), || {
                    UdpSocket::bind(SocketAddr::new(from, 0)).unwrap().send_to(b"x", server).unwrap();
                });
            };
            let mut wait_for_outsider = || loop {
                let (_, sender) = receiver.recv_from(&mut [0; 8]).expect("nobody bans the outsider");
                if sender.ip() == outsider {
                    return;
                }
                arrived.insert(sender.ip());
            };
            // The first makes the way known, the second comes after all others.
            send(outsider);
            wait_for_outsider();
            let ours: Vec<IpAddr> =
                from.iter().copied().filter(|addr| addr.is_ipv4() == server.is_ipv4()).collect();
            self.scene.as_attacker(&outsider.to_string(), || {
                for addr in ours {
                    UdpSocket::bind(SocketAddr::new(addr, 0)).unwrap().send_to(b"x", server).unwrap();
                }
            });
            send(outsider);
            wait_for_outsider();
        }
        arrived
    }
}

/// Who is banned is the same, and until when, but for so much.
fn assert_same(what: &str, one: &Bans, other: &Bans, but_for: Duration) {
    let close = |one: &Option<Timestamp>, other: &Option<Timestamp>| match (one, other) {
        (Some(one), Some(other)) => one.since(*other).max(other.since(*one)) <= but_for,
        (one, other) => one == other,
    };
    let same = |key: &(JailName, Target)| one.get(key).zip(other.get(key)).is_some_and(|(a, b)| close(a, b));
    let keys: BTreeSet<_> = one.keys().chain(other.keys()).collect();
    let wrong: Vec<_> = keys.into_iter().filter(|key| !same(key)).collect();
    let shown: Vec<_> = wrong.iter().take(5).map(|key| (key, one.get(key), other.get(key))).collect();
    assert!(wrong.is_empty(), "{what}: {} of {} differ: {shown:?}", wrong.len(), one.len());
}

#[test]
fn after_ten_thousand_operations_the_kernel_holds_what_we_believe() {
    let scene = Scene::new();
    let config = "defaults: {maxretry: 1, bantime: 1d, block: drop}\n\
                  jails:\n  all: {rule: sshd, logpath: LOG, port: all}\n  web: {rule: sshd, logpath: LOG, port: 80/udp}\n";
    let _agent = Agent::start(&scene, config);
    let (hosts, networks) = (hosts(), networks());
    scene.give_attacker_all(hosts.iter().copied());
    let (bans, seen) = (Bans::new(), BTreeMap::new());
    let slowest = Duration::ZERO;
    let mut story = Story { scene: &scene, chance: Chance(7), hosts, networks, bans, slowest, seen };
    for number in 0.. {
        story.step(number);
        if story.seen.values().sum::<usize>() >= OPERATIONS {
            break;
        }
    }
    story.settle();
    for what in ["banned", "banned again", "refused", "attempted", "unbanned", "reloaded", "ended"] {
        assert!(story.seen[what] >= 5, "{:?}", story.seen);
    }

    let Response::Bans(listed) = story.ask(&Request::Bans { jail: None }) else { panic!() };
    let believed: Bans = listed.into_iter().map(|ban| ((ban.jail, ban.target), ban.ends)).collect();
    assert_same("believed, and what was answered", &believed, &story.bans, SECOND + story.slowest);
    let now = host::now();
    let table = scene.as_server(|| Netlink::open().unwrap().table(true).unwrap().unwrap());
    let meanwhile = host::now().since(now);
    let end = |left: Option<Duration>| left.map(|left| now.plus(left));
    let held: Bans = table.standing().map(|ban| ((ban.jail, ban.target), end(ban.expires))).collect();
    assert_same("held by the kernel, and believed", &held, &believed, SECOND + meanwhile);
    assert!(held.keys().any(|(_, target)| target.is_network()));

    let asked: Vec<IpAddr> = story.hosts.iter().copied().step_by(3).collect();
    let is_banned = |jails: &[&str], addr: &IpAddr| {
        let covers = |(jail, target): &(JailName, Target)| {
            jails.contains(&jail.as_str()) && target.covers(Target::of(*addr))
        };
        held.keys().any(covers)
    };
    for (port, jails) in [(80, &JAILS[..]), (81, &JAILS[..1])] {
        let free: BTreeSet<IpAddr> = asked.iter().copied().filter(|addr| !is_banned(jails, addr)).collect();
        assert!(
            (5..asked.len() - 5).contains(&free.len()),
            "some are banned and some are not: {}",
            free.len()
        );
        assert_eq!(story.reach(&asked, port), free, "port {port}");
    }
}
