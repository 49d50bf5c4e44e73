//! Whole networks: banned for many offenders or by hand, never more than was meant, and kept like every other ban.

use std::time::Duration;

use nftjail::nft::memory::Memory;
use nftjail::nft::{Firewall, Refusal, plan};

use crate::netns::{self, NOW, apply, ban, in_namespace, installed, layout, release};
use crate::scene::{Agent, Scene, ask, ask_json, nftjail};

const CONFIG: &str = "jails: {sshd: {logpath: LOG, port: 22, maxretry: 1, bantime: 1h, count_by: [addr, prefix], \
                      prefix: {offenders: 3}}}\n";
const NET: &str = "203.0.113.0/24";

fn out(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn err(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Waits, since a busy machine may take longer than a connection's patience.
fn gets_in(scene: &Scene, from: &str) {
    scene.wait_for(&format!("a connection from {from}"), || scene.connects(from, 22));
}

#[test]
fn enough_offenders_ban_their_network_until_it_is_freed() {
    let mut scene = Scene::new();
    scene.listen(22);
    let agent = Agent::start(&scene, CONFIG);
    for n in 1..=2 {
        scene.fail(&format!("203.0.113.{n}"), 1);
        scene.fail(&format!("2001:db8:66:{n}::1"), 1);
    }
    scene.wait_for("the fourth host", || scene.elements("sshd_v6").len() == 2);
    gets_in(&scene, "203.0.113.99");
    gets_in(&scene, "2001:db8:66:99::1");
    scene.fail("203.0.113.3", 1);
    scene.fail("2001:db8:66:3::1", 1);
    scene.wait_for("both networks", || {
        scene.holds("sshd_v4_nets", NET) && scene.holds("sshd_v6_nets", "2001:db8:66::/56")
    });
    assert!(!scene.connects("203.0.113.99", 22) && !scene.connects("2001:db8:66:99::1", 22));
    gets_in(&scene, "203.0.112.99");
    gets_in(&scene, "2001:db8:66:100::1");
    let shown = out(&ask(&scene, &["bans"]));
    assert!(shown.contains("sshd  203.0.113.0/24     ") && shown.contains("2001:db8:66::/56"), "{shown}");

    agent.kill();
    let agent = Agent::start_again(&scene);
    let believed = |scene: &Scene| ask_json(scene, &["bans"]).as_array().unwrap().len();
    assert_eq!(believed(&scene), 8, "a crash loses none");
    assert!(agent.stop().success());
    assert!(scene.nft(&["flush", "ruleset"]).status.success());
    let _agent = Agent::start_again(&scene);
    assert_eq!(believed(&scene), 8, "nor does a reboot");
    assert!(scene.holds("sshd_v4_nets", NET) && !scene.connects("203.0.113.99", 22));

    let inside = ask(&scene, &["unban", "203.0.113.99"]);
    let wanted = "203.0.113.99 itself is not banned in any jail; but all of 203.0.113.0/24 is banned in sshd: \
                  nftjail unban 203.0.113.0/24";
    assert_eq!((inside.status.code(), err(&inside)), (Some(5), format!("nftjail: {wanted}\n")));
    let own = out(&ask(&scene, &["unban", "203.0.113.1"]));
    assert!(
        own.starts_with("the ban of 203.0.113.1 itself was lifted (sshd); but all of 203.0.113.0/24"),
        "{own}"
    );
    assert!(!scene.connects("203.0.113.1", 22));
    assert_eq!(
        out(&ask(&scene, &["unban", NET])),
        "3 bans were lifted (sshd)\n",
        "the network and two hosts"
    );
    gets_in(&scene, "203.0.113.1");
    gets_in(&scene, "203.0.113.99");
    scene.fail("203.0.113.4", 1);
    scene.wait_for("the next host", || scene.holds("sshd_v4", "203.0.113.4"));
    // Those who were freed do not count.
    gets_in(&scene, "203.0.113.99");
}

#[test]
fn a_network_with_somebody_to_be_spared_is_not_banned_and_he_passes_where_it_is() {
    let mut scene = Scene::new();
    scene.listen(22);
    let config = format!("defaults: {{ignoreip: 203.0.112.9}}\n{CONFIG}");
    let _agent = Agent::start(&scene, &config);
    for n in 1..=3 {
        scene.fail(&format!("203.0.112.{n}"), 1);
        scene.fail(&format!("203.0.113.{n}"), 1);
    }
    scene.wait_for("the other network", || scene.holds("sshd_v4_nets", NET));
    assert_eq!(scene.elements("sshd_v4_nets").len(), 1);
    let by_hand = ask(&scene, &["ban", "sshd", "203.0.112.0/24"]);
    let wanted =
        "203.0.112.0/24 is never banned for the sake of 203.0.112.9: it is ignored by hand or in ignoreip";
    assert!(by_hand.status.code() == Some(1) && err(&by_hand).contains(wanted), "{}", err(&by_hand));

    assert!(!scene.connects("203.0.113.9", 22));
    let log = scene.path("auth.log").display().to_string();
    let spared = config.replace("203.0.112.9", "203.0.113.9").replace("LOG", &log);
    std::fs::write(scene.path("nftjail.yaml"), spared).unwrap();
    assert!(ask(&scene, &["reload"]).status.success());
    gets_in(&scene, "203.0.113.9");
    assert!(!scene.connects("203.0.113.10", 22), "his neighbours do not");
    assert!(scene.holds("sshd_v4_nets", NET), "a reload keeps the ban");
}

#[test]
fn what_is_banned_by_hand_is_never_more_than_was_meant() {
    let scene = Scene::new();
    let _agent = Agent::start(
        &scene,
        "jails: {sshd: {logpath: LOG, port: 22}, web: {rule: sshd, port: 80, logpath: LOG}}\n",
    );
    for (arguments, code, message) in [
        (&["203.0.113.0/24", "--for", "1h"][..], 0, ""),
        (&["203.0.113.9/24"], 2, "203.0.113.9/24 has bits beyond its prefix: write 203.0.113.0/24"),
        (
            &["0.0.0.0/0", "--force"],
            2,
            "0.0.0.0/0 is too much of the internet to be banned: /8 is the widest",
        ),
        (&["2000::/3", "--force"], 2, "/16 is the widest"),
        (&["192.0.0.0/15"], 1, "192.0.0.0/15 is not banned: it is wider than /16 (IPv6: /32): say --force"),
        (&["2001:db8::/31"], 1, "it is wider than /16 (IPv6: /32)"),
        (&["192.0.0.0/15", "--force"], 0, ""),
        (&["198.51.0.0/16"], 1, "198.51.0.0/16 is never banned for the sake of 198.51.100.1"),
        (
            &["127.0.0.0/8", "--force"],
            1,
            "for the sake of 127.0.0.0: no remote host can have such an address",
        ),
        (&["203.0.113.64/26"], 1, "203.0.113.64/26 is banned already, with all of 203.0.113.0/24"),
        (
            &["203.0.0.0/16", "--for", "10m"],
            1,
            "203.0.113.0/24 in 203.0.0.0/16 is banned for longer: unban it first",
        ),
        (&["203.0.2.0/24", "203.0.2.0/25"], 1, "203.0.2.0/25 is in 203.0.2.0/24: name one of them"),
        (&["203.0.0.0/16", "--for", "2h"], 0, ""),
        (&["203.0.113.7", "--for", "3h"], 0, ""),
        (&["203.0.0.0/16", "--for", "30m"], 0, ""),
    ] {
        let output = ask(&scene, &[&["ban", "sshd"], arguments].concat());
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", err(&output));
        assert!(err(&output).contains(message), "{arguments:?}: {}", err(&output));
    }
    let mut own = nftjail(&scene, &["ban", "sshd", "192.88.99.0/24"]);
    let own = own.env("SSH_CONNECTION", "192.88.99.7 50000 198.51.100.1 22").output().unwrap();
    assert!(own.status.code() == Some(1) && err(&own).contains("your own ssh session"), "{}", err(&own));
    let held: Vec<String> = scene.elements("sshd_v4_nets").into_iter().map(|(net, _)| net).collect();
    assert_eq!(held, ["192.0.0.0/15", "203.0.0.0/16"]);
    assert!(scene.elements("sshd_v4_nets")[1].1.unwrap() <= 1_800, "by hand a ban is also made shorter");
    assert!(scene.holds("sshd_v4", "203.0.113.7"), "the ban of a host in it is its own");
    assert!(scene.elements("web_v4_nets").is_empty());
}

#[test]
fn a_network_that_was_banned_is_free_in_time_and_can_be_banned_again() {
    let mut scene = Scene::new();
    scene.listen(22);
    let _agent = Agent::start(&scene, CONFIG);
    for net in ["203.0.113.128/25", NET] {
        // Until the kernel has let go of the last for sure, one that overlaps it is refused in words.
        scene.wait_for("the ban", || ask(&scene, &["ban", "sshd", net, "--for", "4s"]).status.success());
        assert!(!scene.connects("203.0.113.130", 22));
        scene.wait_for("its end", || scene.elements("sshd_v4_nets").is_empty());
        gets_in(&scene, "203.0.113.130");
        assert!(
            ask(&scene, &["ban", "sshd", net, "--for", "1s"]).status.success(),
            "the same is taken at once"
        );
    }
}

#[test]
fn what_others_do_to_networks_is_put_back_or_adopted() {
    let mut scene = Scene::new();
    scene.listen(22);
    let _agent = Agent::start(&scene, CONFIG);
    assert!(ask(&scene, &["ban", "sshd", NET]).status.success());
    let change = |what: &str, elements: &str| {
        let elements = format!("{{ {elements} }}");
        let done = scene.nft(&[what, "element", "inet", "nftjail", "sshd_v4_nets", &elements]);
        assert!(done.status.success(), "{}", err(&done));
    };
    change("delete", NET);
    scene.wait_for("the ban", || scene.holds("sshd_v4_nets", NET));
    assert!(!scene.connects("203.0.113.9", 22));
    change("add", "192.0.2.0/24 timeout 1h, 192.0.3.1-192.0.3.2 timeout 1h");
    let believed = || -> Vec<String> {
        let bans = ask_json(&scene, &["bans", "--sort", "addr"]);
        bans.as_array().unwrap().iter().map(|ban| ban["target"].as_str().unwrap().to_owned()).collect()
    };
    scene.wait_for("the other's ban", || believed() == ["192.0.2.0/24", NET]);
    scene.wait_for("the end of what is no network", || scene.elements("sshd_v4_nets").len() == 2);
    assert!(scene.nft(&["delete", "table", "inet", "nftjail"]).status.success());
    scene.wait_for("all again", || {
        scene.holds("sshd_v4_nets", NET) && scene.holds("sshd_v4_nets", "192.0.2.0/24")
    });
    assert_eq!(out(&ask(&scene, &["unban", "192.0.2.0/24"])), "the ban of 192.0.2.0/24 was lifted (sshd)\n");
}

/// What the kernel makes of networks that touch, and what it refuses; the stand-in refuses it too.
#[test]
fn networks_take_each_other_over_at_once_and_overlap_never() {
    let check = |firewall: &mut dyn Firewall| {
        let held = |firewall: &mut dyn Firewall| -> Vec<String> {
            let table = firewall.table(true).unwrap().unwrap();
            let mut held: Vec<String> = table.standing().map(|ban| ban.target.to_string()).collect();
            held.sort();
            held
        };
        let halves = ["192.0.2.0/25", "192.0.2.128/25"];
        for parts in [&["192.0.2.0/25"][..], &["192.0.2.128/25"], &["192.0.2.64/26"], &halves] {
            let neighbours = ["192.0.1.0/24", "192.0.3.0/24"].map(|net| ban("sshd", net, 60));
            firewall.commit(&plan::apply(&neighbours, NOW)).unwrap();
            let bans: Vec<_> = parts.iter().map(|net| ban("sshd", net, 60)).collect();
            firewall.commit(&plan::apply(&bans, NOW)).unwrap();
            let mut wide: Vec<_> = parts.iter().map(|net| release("sshd", net)).collect();
            wide.push(ban("sshd", "192.0.2.0/24", 60));
            firewall.commit(&plan::apply(&wide, NOW)).unwrap();
            assert_eq!(held(firewall), ["192.0.1.0/24", "192.0.2.0/24", "192.0.3.0/24"], "{parts:?}");
            for net in ["192.0.2.0/25", "192.0.2.128/25", "192.0.2.64/26", "192.0.0.0/22"] {
                for change in [ban("sshd", net, 60), release("sshd", net)] {
                    let refusal = firewall.commit(&plan::apply(&[change], NOW)).unwrap_err();
                    assert!(matches!(refusal, Refusal::Overlaps { .. }), "{net}: {refusal:?}");
                    assert_eq!(refusal.to_string(), "set sshd_v4_nets holds a network that overlaps it");
                }
            }
            firewall.commit(&plan::apply(&[ban("sshd", "192.0.2.0/24", 90)], NOW)).unwrap();
            let target = netns::target("192.0.2.0/24");
            let standing = firewall.remaining(&netns::jail("sshd"), target).unwrap().unwrap();
            assert_eq!(standing.timeout, Some(Duration::from_secs(90)));
            firewall.commit(&plan::apply(&[release("sshd", "192.0.2.0/24")], NOW)).unwrap();
        }
    };
    in_namespace(|| check(&mut installed(&layout())));
    let mut memory = Memory::default();
    memory.commit(&plan::install(&layout(), None, &[])).unwrap();
    check(&mut memory);
}

#[test]
fn a_set_of_networks_is_full_at_its_size_and_never_larger_than_the_capacity() {
    let mut small = layout();
    small.cells[0].capacity = 2;
    let check = |firewall: &mut dyn Firewall| {
        firewall.commit(&plan::install(&small, None, &[])).unwrap();
        let nets = ["192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24"].map(|net| ban("sshd", net, 60));
        firewall.commit(&plan::apply(&nets[..2], NOW)).unwrap();
        let refusal = firewall.commit(&plan::apply(&nets, NOW)).unwrap_err();
        assert_eq!(refusal.to_string(), "set sshd_v4_nets is full (2 elements)");
    };
    in_namespace(|| check(&mut nftjail::nft::netlink::Netlink::open().unwrap()));
    check(&mut Memory::default());
    in_namespace(|| {
        let mut netlink = installed(&layout());
        apply(&mut netlink, &[ban("web", "192.0.2.0/24", 60)]);
        assert!(netns::run(&netns::LIST).contains("set web_v4_nets {\n\t\ttype ipv4_addr\n\t\tsize 65536\n"));
    });
}
