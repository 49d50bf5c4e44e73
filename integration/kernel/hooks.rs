//! Where a jail's bans are met: whatever arrives, or only what is for this host, or only what it passes on.

use nftjail::model::{Block, Hook, Layout};
use nftjail::nft::Firewall;

use crate::netns::*;
use crate::reloads::reload;
use crate::scene::{Agent, CONTAINER, SERVER, Scene, ask, ask_json};

const ATTACKER: &str = "203.0.113.66";
const OTHER: &str = "203.0.113.67";

fn config(hook: &str) -> String {
    format!("jails: {{sshd: {{logpath: LOG, port: 22, maxretry: 3, bantime: 1h{hook}}}}}\n")
}

#[test]
fn a_ban_is_met_at_the_hook_of_its_jail_and_nowhere_else() {
    let mut scene = Scene::new();
    scene.listen(22);
    scene.add_container(22);
    let _agent = Agent::start(&scene, &config(""));
    assert!(ask(&scene, &["ban", "sshd", ATTACKER, "--for", "1h"]).status.success());
    let reaches = |from: &str| (scene.connects(from, 22), scene.connects_to(from, CONTAINER, 22));
    for (hook, host, container) in [
        ("", false, false),
        (", hook: input", false, true),
        (", hook: forward", true, false),
        (", hook: [input, forward], block: reject", false, false),
        (", hook: prerouting", false, false),
    ] {
        let reloaded = reload(&scene, &config(hook));
        assert!(reloaded.status.success(), "{}", String::from_utf8_lossy(&reloaded.stderr));
        assert!(scene.holds("sshd_v4", ATTACKER), "the ban stays as it is");
        assert_eq!(reaches(ATTACKER), (host, container), "the host and the container behind it{hook}");
        assert_eq!(reaches(OTHER), (true, true), "{hook}");
    }
    let status = ask_json(&scene, &["status"]);
    assert_eq!(status["jails"][0]["hooks"], serde_json::json!(["prerouting"]));
}

#[test]
fn who_is_never_banned_passes_at_every_hook() {
    let mut scene = Scene::new();
    scene.listen(22);
    scene.add_container(22);
    let agent = Agent::start(&scene, &config(", hook: [input, forward]"));
    assert!(ask(&scene, &["ban", "sshd", ATTACKER]).status.success());
    // While it runs it would put back what is changed by hand.
    assert!(agent.stop().success());
    assert!(!scene.connects(ATTACKER, 22) && !scene.connects_to(ATTACKER, CONTAINER, 22));
    let spare = ["add", "element", "inet", "nftjail", "ignore_v4", &format!("{{ {ATTACKER} }}")];
    assert!(scene.nft(&spare).status.success());
    assert!(scene.holds("sshd_v4", ATTACKER));
    assert!(scene.connects(ATTACKER, 22) && scene.connects_to(ATTACKER, CONTAINER, 22));
}

/// Behind a translated port, prerouting sees the port that the client dialled, the others the one it was sent to.
#[test]
fn ports_are_those_of_the_hook() {
    let mut scene = Scene::new();
    scene.add_container(22);
    let rules = format!(
        "table ip nat {{\n chain pre {{\n type nat hook prerouting priority dstnat;\n ip daddr {SERVER} tcp dport \
         2222 dnat to {CONTAINER}:22\n }}\n}}\n"
    );
    std::fs::write(scene.path("nat.nft"), rules).unwrap();
    assert!(scene.nft(&["-f", scene.path("nat.nft").to_str().unwrap()]).status.success());
    let _agent = Agent::start(&scene, &config(", hook: forward"));
    assert!(ask(&scene, &["ban", "sshd", ATTACKER, "--for", "1h"]).status.success());
    assert!(scene.connects(OTHER, 2222));
    assert!(!scene.connects(ATTACKER, 2222), "to forward it is port 22");
    assert!(reload(&scene, &config(", hook: prerouting")).status.success());
    assert!(scene.connects(ATTACKER, 2222), "to prerouting it is port 2222");
}

#[test]
fn every_hook_prints_and_reads_back_as_nft_prints_it() {
    in_namespace(|| {
        let hooked = |name, hooks: &[Hook], block| {
            let mut cell = cell(name, &[], 10);
            (cell.hooks, cell.block) = (hooks.iter().copied().collect(), block);
            cell
        };
        let mut cells = vec![
            hooked("arrives", &[Hook::Prerouting], Block::Drop),
            hooked("own", &[Hook::Input], Block::Reject),
            hooked("passed", &[Hook::Forward], Block::Reject),
            hooked("all", &Hook::ALL, Block::Drop),
        ];
        let never = vec!["127.0.0.0/8".parse().unwrap()];
        let mut netlink = installed(&Layout { cells: cells.clone(), never: never.clone(), owned: false });
        apply(&mut netlink, &[ban("own", "192.0.2.1", 600), ban("passed", "2001:db8::", 0)]);
        let table = assert_prints_as_nft_does(&mut netlink);
        let text = run(&LIST);
        for hook in ["prerouting priority raw", "input priority filter", "forward priority filter"] {
            assert!(text.contains(&format!("type filter hook {hook} - 10; policy accept;")), "{text}");
        }
        assert_eq!(table.standing().count(), 2);
        // One hook after the other goes, and comes again.
        while let Some(cell) = cells.pop() {
            install(&mut netlink, &Layout { cells: cells.clone(), never: never.clone(), owned: false }, &[]);
            let hooks = ["prerouting", "input", "forward"].into_iter();
            let there: Vec<&str> =
                hooks.filter(|hook| run(&LIST).contains(&format!("hook {hook}"))).collect();
            let wanted =
                Hook::ALL.into_iter().filter(|hook| cells.iter().any(|cell| cell.hooks.contains(hook)));
            assert_eq!(there, wanted.map(Hook::name).collect::<Vec<_>>(), "without {}", cell.jail);
        }
        install(&mut netlink, &layout(), &[]);
        assert_eq!(netlink.table(false).unwrap().unwrap().chains[0].name, "prerouting");
    });
}
