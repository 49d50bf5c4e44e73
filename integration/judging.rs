//! The judge and the kernel do what a naive model of both says, whatever happens in whatever order.

mod naive;
mod world;

use std::time::Duration;

use ipnet::IpNet;
use nftjail::jail::Jail;
use nftjail::jail::bantime::{Growth, Increment};
use nftjail::jail::prefix::PrefixLaw;
use nftjail::jail::window::TARGETS_MAX;
use nftjail::model::{Ban, Bantime, Target};
use proptest::prelude::*;

use naive::{About, Law};
use world::{Attempt, World};

const JAILS: [&str; 4] = ["mail", "sshd", "web", "recidive"];

/// Few, so that they meet: a mapped one, neighbours in a /64, and one that no remote host can have.
const ADDRS: [&str; 9] = [
    "192.0.2.1",
    "192.0.2.2",
    "192.0.2.3",
    "::ffff:192.0.2.1",
    "198.51.100.7",
    "2001:db8:0:1::1",
    "2001:db8:0:1::2",
    "2001:db8:0:2::1",
    "127.0.0.1",
];

const USERS: [&str; 2] = ["ann", "bob"];
/// The first two are one.
const PATHS: [&str; 4] = ["/a", "/a?b", "/b", "/c"];
const SWARMS: [&[&str]; 3] = [
    &["192.0.2.1", "192.0.2.2", "192.0.2.3"],
    &["192.0.2.3", "192.0.2.77", "192.0.3.1"],
    &["2001:db8:0:1::1", "2001:db8:0:2::1", "2001:db8:0:100::1"],
];

/// Banned by hand; some lie in others, and end or begin with them.
const NETWORKS: [&str; 7] = [
    "192.0.2.0/30",
    "192.0.2.2/31",
    "192.0.2.0/24",
    "192.0.0.0/16",
    "198.51.100.0/25",
    "2001:db8::/56",
    "2001:db8::/48",
];

const NETS: [&str; 5] =
    ["192.0.2.2/32", "192.0.2.2/31", "198.51.100.0/24", "2001:db8:0:1::1/128", "2001:db8:0:2::/64"];

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn target(addr: &str) -> Target {
    addr.parse().unwrap()
}

#[derive(Clone, Debug)]
enum Step {
    Fail(&'static str, &'static str, Attempt, About, i64),
    Succeed(&'static str, &'static str, About, i64),
    /// Neighbours, each of whom does enough to be banned.
    Swarm(&'static str, &'static [&'static str]),
    Pass(u64),
    Turn(usize),
    Answer,
    /// The kernel refuses the next turn whole.
    Refuse,
    Ban(&'static str, &'static str, Bantime),
    /// The ban in this place among those believed is lifted.
    Release(prop::sample::Index),
    Spare(Vec<IpNet>),
    Restart,
}

fn nets(most: usize) -> impl Strategy<Value = Vec<IpNet>> {
    let nets: Vec<IpNet> = NETS.iter().map(|net| net.parse().unwrap()).collect();
    prop::sample::subsequence(nets, 0..=most)
}

fn bantimes() -> impl Strategy<Value = Bantime> {
    prop_oneof![
        6 => (1u64..60).prop_map(|length| Bantime::For(seconds(length))),
        1 => (500u64..40_000).prop_map(|length| Bantime::For(seconds(length))),
        1 => Just(Bantime::Forever),
    ]
}

/// Times are halves of seconds, so that edges are met.
fn steps() -> impl Strategy<Value = Step> {
    let jail = || prop::sample::select(&JAILS[..]);
    // One is seen so often that its bans follow each other while others are still in flight.
    let addr = || prop_oneof![Just(ADDRS[0]), prop::sample::select(&ADDRS[..])];
    let attempt = prop_oneof![
        8 => Just(Attempt::Bad),
        2 => (1u32..8).prop_map(Attempt::Count),
        2 => Just(Attempt::Worst),
    ];
    let age = || prop_oneof![3 => Just(0), 1 => (-4i64..80).prop_map(|halves| halves * 500)];
    let some = |words: &'static [&'static str]| proptest::option::of(prop::sample::select(words));
    let about = || (some(&USERS), some(&PATHS)).prop_map(|(user, path)| About { user, path });
    let whom = prop_oneof![addr(), prop::sample::select(&NETWORKS[..])];
    prop_oneof![
        40 => (jail(), addr(), attempt, about(), age())
            .prop_map(|(jail, addr, attempt, about, age)| Step::Fail(jail, addr, attempt, about, age)),
        6 => (jail(), addr(), about(), age())
            .prop_map(|(jail, addr, about, age)| Step::Succeed(jail, addr, about, age)),
        6 => (jail(), prop::sample::select(&SWARMS[..])).prop_map(|(jail, swarm)| Step::Swarm(jail, swarm)),
        12 => (1u64..40).prop_map(|halves| Step::Pass(halves * 500)),
        1 => (1u64..400).prop_map(|halves| Step::Pass(halves * 500)),
        12 => (1usize..6).prop_map(Step::Turn),
        12 => Just(Step::Answer),
        1 => Just(Step::Refuse),
        3 => (jail(), whom, bantimes()).prop_map(|(jail, addr, length)| Step::Ban(jail, addr, length)),
        5 => any::<prop::sample::Index>().prop_map(Step::Release),
        1 => nets(2).prop_map(Step::Spare),
        1 => Just(Step::Restart),
    ]
}

fn increments() -> impl Strategy<Value = Increment> {
    let growth = prop_oneof![
        (1u32..4).prop_map(Growth::Factor),
        proptest::collection::vec((1u64..200).prop_map(seconds), 1..4).prop_map(Growth::Steps),
    ];
    let forever_at = proptest::option::weighted(0.3, 1u32..5);
    (growth, 20u64..400, any::<bool>(), 5u64..200, forever_at).prop_map(
        |(growth, maxtime, overalljails, forget, forever_at)| Increment {
            growth,
            maxtime: seconds(maxtime),
            rndtime: Duration::ZERO,
            overalljails,
            forget: seconds(forget),
            forever_at,
        },
    )
}

fn prefixes() -> impl Strategy<Value = PrefixLaw> {
    let v4 = prop::sample::subsequence(vec![30, 24, 16], 0..=3);
    let v6 = prop::sample::subsequence(vec![63, 56, 48], 0..=3);
    (v4, v6, 2u32..4, 1u64..100).prop_map(|(v4, v6, offenders, findtime)| PrefixLaw {
        v4,
        v6,
        offenders,
        findtime: seconds(findtime),
    })
}

fn laws() -> impl Strategy<Value = Vec<Law>> {
    let counting = (
        prop::bool::weighted(0.3),
        proptest::option::of(1u32..4),
        proptest::option::weighted(0.8, (1u64..200).prop_map(seconds)),
        proptest::option::weighted(0.7, prefixes()),
    );
    let law = (1u32..=6, 1u64..60, bantimes(), proptest::option::of(increments()), nets(1), counting);
    let law = law.prop_map(|(maxretry, findtime, bantime, increment, ignoreip, counting)| Law {
        name: "",
        maxretry,
        findtime: seconds(findtime),
        distinct: counting.0,
        user_addrs: counting.1,
        friend_for: counting.2,
        prefix: counting.3,
        bantime,
        increment,
        ignoreip,
        hears_bans: false,
    });
    (prop::sample::subsequence(&JAILS[..], 1..=4), proptest::collection::vec(law, 4)).prop_map(
        |(names, mut laws)| {
            laws.truncate(names.len());
            for (law, name) in laws.iter_mut().zip(names) {
                law.name = name;
                law.hears_bans = name == "recidive";
                // The few bans of a short life are enough.
                law.maxretry = if law.hears_bans { law.maxretry.min(3) } else { law.maxretry };
            }
            laws
        },
    )
}

fn take(world: &mut World, step: Step) {
    match step {
        Step::Fail("recidive", ..) | Step::Succeed("recidive", ..) => {}
        Step::Fail(jail, addr, attempt, about, age) => world.fail_as(jail, addr, attempt, about, age),
        Step::Succeed(jail, addr, about, age) => world.succeed(jail, addr, about, age),
        Step::Swarm("recidive", _) => {}
        Step::Swarm(jail, addrs) => {
            addrs.iter().for_each(|addr| world.fail(jail, addr, Attempt::Count(6), 0))
        }
        Step::Pass(ms) => world.pass(Duration::from_millis(ms)),
        Step::Turn(most) => world.turn(most),
        Step::Answer => world.answer(),
        Step::Refuse => world.kernel.kernel().refuses = true,
        Step::Ban(jail, addr, bantime) => world.ban_by_hand(jail, target(addr), bantime),
        Step::Release(index) => {
            let bans: Vec<Ban> = world.engine.jails().iter().flat_map(Jail::bans).cloned().collect();
            if !bans.is_empty() {
                let ban = index.get(&bans);
                world.release_by_hand(ban.jail.as_str(), ban.target);
            }
        }
        Step::Spare(never) => world.spare(never),
        Step::Restart => world.restart(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn whatever_happens_is_what_the_naive_model_says(
        laws in laws(),
        capacity in prop_oneof![1u32..4, Just(1_000)],
        steps in proptest::collection::vec(steps(), 1..150),
    ) {
        let mut world = World::new(&laws, capacity);
        for step in steps {
            take(&mut world, step);
            world.check();
        }
        world.settle();
        world.check();
    }
}

fn law(name: &'static str, maxretry: u32, findtime: Duration, bantime: Duration) -> Law {
    Law {
        name,
        maxretry,
        findtime,
        distinct: false,
        user_addrs: None,
        friend_for: Some(seconds(86_400)),
        bantime: Bantime::For(bantime),
        increment: None,
        ignoreip: Vec::new(),
        hears_bans: name == "recidive",
        prefix: None,
    }
}

/// In which jails the kernel holds a ban of the address, and for how many minutes.
fn drops(world: &World, addr: &str) -> Vec<(String, u64)> {
    let held = world.kernel.holds();
    let ours = held.into_iter().filter(|((_, held), _)| *held == target(addr));
    ours.map(|((jail, _), left)| (jail.to_string(), left.unwrap().as_secs() / 60)).collect()
}

/// Five failed log-ins, and what follows from them.
fn break_in(world: &mut World, addr: &str) {
    (0..5).for_each(|_| world.fail("sshd", addr, Attempt::Bad, 0));
    world.settle();
    world.check();
}

#[test]
fn a_day_of_recidive() {
    const ATTACKER: &str = "203.0.113.7";
    let hour = seconds(3_600);
    let sshd = law("sshd", 5, seconds(600), seconds(600));
    let mut world = World::new(&[sshd, law("recidive", 3, 24 * hour, 7 * 24 * hour)], 1_000);
    let held = |list: &[(&str, u64)]| list.iter().map(|(jail, left)| ((*jail).to_owned(), *left)).collect();

    // Twice it is sshd's affair alone: ten minutes, and the host may try again.
    for _ in 0..2 {
        break_in(&mut world, ATTACKER);
        assert_eq!(drops(&world, ATTACKER), [("sshd".to_owned(), 10)]);
        world.pass(hour);
        assert_eq!(drops(&world, ATTACKER), []);
    }

    // The third time both ban it: for ten minutes, and for a week.
    break_in(&mut world, ATTACKER);
    let both: Vec<_> = held(&[("recidive", 7 * 24 * 60), ("sshd", 10)]);
    assert_eq!(drops(&world, ATTACKER), both);

    // The short ban ends; the long one does not end with it.
    world.pass(seconds(600));
    world.check();
    let long: Vec<_> = held(&[("recidive", 7 * 24 * 60 - 10)]);
    assert_eq!(drops(&world, ATTACKER), long);

    // It comes back by another way, and is banned twice again. Lifting the one leaves the other in force.
    break_in(&mut world, ATTACKER);
    world.release_by_hand("sshd", target(ATTACKER));
    world.settle();
    world.check();
    assert_eq!(drops(&world, ATTACKER), long);
    break_in(&mut world, ATTACKER);
    world.release_by_hand("recidive", target(ATTACKER));
    world.settle();
    world.check();
    assert_eq!(drops(&world, ATTACKER), [("sshd".to_owned(), 10)]);

    // The end of what was lifted takes nothing with it: the host is free when sshd's ban is over, and not before.
    world.pass(seconds(599));
    assert_eq!(drops(&world, ATTACKER), [("sshd".to_owned(), 0)]);
    world.pass(seconds(1));
    world.check();
    assert_eq!(drops(&world, ATTACKER), []);
}

/// What a reload finds in the kernel may be a ban whose answer is still on its way.
#[test]
fn a_reload_between_a_ban_and_its_answer_hides_it_from_nobody() {
    const ATTACKER: &str = "203.0.113.7";
    let hour = seconds(3_600);
    let mut world = World::new(&[law("sshd", 1, hour, hour), law("recidive", 1, hour, 2 * hour)], 1_000);
    world.fail("sshd", ATTACKER, Attempt::Bad, 0);
    world.turn(1);
    let found = Ban {
        jail: "sshd".parse().unwrap(),
        target: target(ATTACKER),
        at: world.now(),
        bantime: Bantime::For(hour),
    };
    world.engine.restore(found);
    world.settle();
    world.check();
    let held = [("recidive".to_owned(), 120), ("sshd".to_owned(), 60)];
    assert_eq!(drops(&world, ATTACKER), held);
    assert_eq!(world.engine.jail(&"sshd".parse().unwrap()).unwrap().banned_total(), 1);
}

#[test]
fn a_flood_of_addresses_meets_a_bound() {
    let mut world = World::new(&[law("sshd", 3, seconds(600), seconds(600))], 10);
    let lines = TARGETS_MAX as u32 + 20_000;
    world.fail("sshd", "192.0.2.1", Attempt::Count(2), 0);
    for n in 0..lines {
        world.fail("sshd", &std::net::Ipv4Addr::from_bits(0x0A00_0000 + n).to_string(), Attempt::Bad, 0);
        assert!(world.engine.jails()[0].window().len() <= TARGETS_MAX);
    }
    assert!(world.engine.jails()[0].window().forgotten() >= 20_000);
    world.fail("sshd", "192.0.2.1", Attempt::Bad, 0);
    world.settle();
    assert_eq!(drops(&world, "192.0.2.1"), [("sshd".to_owned(), 10)]);
}

fn as_user(user: &'static str) -> About {
    About { user: Some(user), path: None }
}

/// Who has an account guesses at another's, and logs in with his own after every guess, so that the count of his
/// failures would begin anew if a log-in forgave them all. Nor does he guess for ever because he is a friend.
#[test]
fn one_good_account_does_not_buy_more_guesses() {
    const ATTACKER: &str = "203.0.113.7";
    let mut world = World::new(&[law("sshd", 5, seconds(600), seconds(600))], 1_000);
    for guess in 0..10 {
        assert_eq!(drops(&world, ATTACKER), [], "after {guess} guesses");
        world.fail_as("sshd", ATTACKER, Attempt::Bad, as_user("root"), 0);
        world.succeed("sshd", ATTACKER, as_user("mallory"), 0);
        world.settle();
    }
    assert_eq!(drops(&world, ATTACKER), [("sshd".to_owned(), 1)], "ten guesses, and a short ban");
    world.pass(seconds(60));
    for _ in 0..10 {
        world.fail_as("sshd", ATTACKER, Attempt::Bad, as_user("root"), 0);
        world.succeed("sshd", ATTACKER, as_user("mallory"), 0);
    }
    world.settle();
    assert_eq!(drops(&world, ATTACKER), [("sshd".to_owned(), 10)], "the second ban is a stranger's");
}

#[test]
fn a_mistyped_password_is_forgiven_with_the_log_in() {
    let mut world = World::new(&[law("sshd", 2, seconds(600), seconds(600))], 1_000);
    for _ in 0..20 {
        world.fail_as("sshd", "192.0.2.1", Attempt::Bad, as_user("ann"), 0);
        world.succeed("sshd", "192.0.2.1", as_user("ann"), 0);
    }
    world.settle();
    assert_eq!(drops(&world, "192.0.2.1"), []);
}

#[test]
fn a_friend_of_one_jail_is_a_stranger_in_the_next() {
    let jails = ["mail", "sshd"].map(|name| law(name, 1, seconds(600), seconds(600)));
    let mut world = World::new(&jails, 1_000);
    world.succeed("mail", "192.0.2.1", About::default(), 0);
    for jail in ["mail", "sshd"] {
        world.fail(jail, "192.0.2.1", Attempt::Bad, 0);
    }
    world.settle();
    assert_eq!(drops(&world, "192.0.2.1"), [("sshd".to_owned(), 10)]);
}

#[test]
fn a_restart_makes_no_stranger_of_a_friend() {
    let mut world = World::new(&[law("sshd", 1, seconds(600), seconds(600))], 1_000);
    world.succeed("sshd", "192.0.2.1", as_user("ann"), 0);
    world.restart();
    world.fail_as("sshd", "192.0.2.1", Attempt::Bad, as_user("ann"), 0);
    world.settle();
    assert_eq!(drops(&world, "192.0.2.1"), []);
}

/// A page that is missing and asked for again and again is one mistake; many paths are a scan.
#[test]
fn twenty_paths_ban_and_twenty_reloads_do_not() {
    let mut world =
        World::new(&[Law { distinct: true, ..law("web", 20, seconds(600), seconds(600)) }], 1_000);
    let paths: Vec<&str> = (0..20).map(|n| &*format!("/phpmyadmin-{n}/").leak()).collect();
    for (reload, path) in paths.iter().enumerate() {
        world.fail_as("web", "192.0.2.1", Attempt::Bad, About { user: None, path: Some("/indxe.html") }, 0);
        let reloaded = &*format!("/indxe.html?{reload}").leak();
        world.fail_as("web", "192.0.2.1", Attempt::Bad, About { user: None, path: Some(reloaded) }, 0);
        world.fail_as("web", "203.0.113.7", Attempt::Bad, About { user: None, path: Some(path) }, 0);
    }
    world.settle();
    assert_eq!(drops(&world, "192.0.2.1"), []);
    assert_eq!(drops(&world, "203.0.113.7"), [("web".to_owned(), 10)]);
}
