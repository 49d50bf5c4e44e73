//! Somebody else changes our table: the kernel holds what is believed again, at once, and who it was is told.

use std::fs;

use super::scene::{Agent, Scene, ask, ask_json};

const ATTACKER: &str = "203.0.113.66";
const OTHER: &str = "203.0.113.67";
const CONFIG: &str = "jails: {sshd: {logpath: LOG, port: 22, maxretry: 3, bantime: 1h}}\n";

/// A server with one attacker banned.
fn banned() -> (Scene, Agent) {
    let mut scene = Scene::new();
    scene.listen(22);
    let agent = Agent::start(&scene, CONFIG);
    scene.fail(ATTACKER, 3);
    scene.wait_for("the ban", || scene.holds("sshd_v4", ATTACKER));
    (scene, agent)
}

fn repairs(scene: &Scene) -> u64 {
    ask_json(scene, &["status"])["repairs"]["total"].as_u64().unwrap()
}

fn listing(scene: &Scene) -> String {
    let text = String::from_utf8(scene.nft(&["-s", "list", "table", "inet", "nftjail"]).stdout).unwrap();
    // The counters go on where they were, or begin anew; what is left of a ban gets less.
    let mut words: Vec<&str> = text.split_whitespace().collect();
    words.retain(|word| !word.starts_with("expires") && !word.ends_with("s,") && !word.contains("ms"));
    words.join(" ")
}

#[test]
fn whatever_is_removed_comes_back_and_who_did_it_is_told() {
    let (scene, _agent) = banned();
    let table = ["inet", "nftjail"];
    let damages: [&[&[&str]]; 7] = [
        &[&["flush", "ruleset"]],
        &[&["delete", "table", table[0], table[1]]],
        &[&["flush", "chain", table[0], table[1], "jail_sshd"]],
        &[&["flush", "chain", table[0], table[1], "prerouting"]],
        &[
            &["flush", "chain", table[0], table[1], "jail_sshd"],
            &["delete", "set", table[0], table[1], "sshd_v4"],
        ],
        &[&["delete", "element", table[0], table[1], "sshd_v4", "{", ATTACKER, "}"]],
        &[&["flush", "set", table[0], table[1], "sshd_v4"]],
    ];
    for commands in damages {
        let before = repairs(&scene);
        for command in commands {
            // The agent may have put back what the second command takes away.
            scene.nft(command);
        }
        scene.wait_for(&format!("the repair after {commands:?}"), || {
            repairs(&scene) > before && scene.holds("sshd_v4", ATTACKER)
        });
        assert!(!scene.connects(ATTACKER, 22), "{commands:?}");
    }
    let status = ask_json(&scene, &["status"]);
    assert!(status["repairs"]["by"].as_str().unwrap().starts_with("nft (process "), "{status}");
    let told = String::from_utf8(ask(&scene, &["status"]).stdout).unwrap();
    assert!(told.contains("by nft (process "), "{told}");
}

#[test]
fn what_is_added_to_our_table_goes_but_a_ban_by_hand_is_believed() {
    let (scene, _agent) = banned();
    let whole = listing(&scene);
    let before = repairs(&scene);
    assert!(scene.nft(&["insert", "rule", "inet", "nftjail", "prerouting", "accept"]).status.success());
    scene.wait_for("the repair", || repairs(&scene) > before);
    assert_eq!(listing(&scene), whole);
    assert!(!scene.connects(ATTACKER, 22));

    let element = ["add", "element", "inet", "nftjail", "sshd_v4", "{ 203.0.113.67 timeout 30m }"];
    assert!(scene.nft(&element).status.success());
    scene.wait_for("belief", || ask_json(&scene, &["bans"]).as_array().unwrap().len() == 2);
    assert!(ask(&scene, &["unban", OTHER]).status.success());
    assert!(!scene.holds("sshd_v4", OTHER), "what is believed can be lifted");
}

#[test]
fn changes_to_other_tables_are_none_of_our_business() {
    let (scene, _agent) = banned();
    let file = scene.path("other.nft");
    fs::write(&file, "table inet other { set sshd_v4 { type ipv4_addr; elements = { 192.0.2.1 }; }; }\n")
        .unwrap();
    let before = repairs(&scene);
    assert!(scene.nft(&["-f", file.to_str().unwrap()]).status.success());
    assert!(scene.nft(&["delete", "table", "inet", "other"]).status.success());
    // Commands are answered after what the kernel told before: the agent has heard of it all by now.
    scene.fail(OTHER, 3);
    scene.wait_for("the ban", || scene.holds("sshd_v4", OTHER));
    assert_eq!(repairs(&scene), before);
}

#[test]
fn our_own_bans_in_masses_are_no_damage() {
    let (scene, _agent) = banned();
    let many: String =
        (0..20_000u32).map(|n| format!("10.{}.{}.{}\n", n >> 16, n >> 8 & 255, n & 255)).collect();
    let file = scene.path("many");
    fs::write(&file, many).unwrap();
    let mut ban = super::scene::nftjail(&scene, &["ban", "sshd", "--stdin", "--for", "1h"]);
    assert!(ban.stdin(fs::File::open(&file).unwrap()).output().unwrap().status.success());
    assert_eq!(repairs(&scene), 0);
    assert!(scene.nft(&["flush", "ruleset"]).status.success());
    let there = || scene.nft(&["list", "set", "inet", "nftjail", "sshd_v4"]).status.success();
    scene.wait_for("all of them", || there() && scene.elements("sshd_v4").len() == 20_001);
}

#[test]
fn a_table_with_an_owner_is_nobody_elses_to_change() {
    let mut scene = Scene::new();
    scene.listen(22);
    let agent = Agent::start(&scene, &format!("defaults: {{owner: true}}\n{CONFIG}"));
    let status = ask_json(&scene, &["status"]);
    if !status["troubles"].as_array().unwrap().is_empty() {
        // An older kernel: that it says so is all there is to see.
        assert!(status["troubles"][0].as_str().unwrap().contains("Linux 6.9"), "{status}");
        return;
    }
    scene.fail(ATTACKER, 3);
    scene.wait_for("the ban", || scene.holds("sshd_v4", ATTACKER));
    assert!(scene.nft(&["flush", "ruleset"]).status.success());
    assert!(
        !scene.nft(&["delete", "element", "inet", "nftjail", "sshd_v4", "{", ATTACKER, "}"]).status.success()
    );
    assert!(scene.holds("sshd_v4", ATTACKER) && !scene.connects(ATTACKER, 22));
    assert_eq!(repairs(&scene), 0);

    assert!(agent.stop().success());
    assert!(!scene.connects(ATTACKER, 22), "the table outlives its owner");
    let agent = Agent::start_again(&scene);
    scene.fail(OTHER, 3);
    scene.wait_for("a ban by the next owner", || scene.holds("sshd_v4", OTHER));
    assert!(!scene.nft(&["delete", "table", "inet", "nftjail"]).status.success());

    fs::write(scene.path("nftjail.yaml"), CONFIG.replace("LOG", scene.path("auth.log").to_str().unwrap()))
        .unwrap();
    assert!(ask(&scene, &["reload"]).status.success());
    assert!(scene.holds("sshd_v4", OTHER) && scene.holds("sshd_v4", ATTACKER), "bans stay without an owner");
    assert!(scene.nft(&["delete", "table", "inet", "nftjail"]).status.success());
    drop(agent);
}
