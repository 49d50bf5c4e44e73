//! What the user came for: attackers are dropped, everybody else is not, and nothing undoes a ban but its end.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use crate::scene::{Agent, SERVER, SERVER_V6, Scene, ask, ask_json, failure, nftjail};

const SSHD: &str = "jails:\n  sshd:\n    logpath: LOG\n    port: 22\n    maxretry: 3\n    bantime: 6s\n";
const ATTACKER: &str = "203.0.113.66";
const OTHER: &str = "203.0.113.67";

#[test]
fn a_real_brute_force_is_cut_off_and_the_ban_ends_by_itself() {
    let mut scene = Scene::new();
    scene.start_sshd();
    scene.listen(80);
    let agent = Agent::start(&scene, SSHD);

    let mut session = scene.on_attacker(ATTACKER, "nc");
    let mut session = session
        .args(["-s", ATTACKER, "198.51.100.1", "22"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut banner = String::new();
    let mut from_server = BufReader::new(session.stdout.take().unwrap());
    from_server.read_line(&mut banner).unwrap();
    assert!(banner.starts_with("SSH-2.0"), "the session stands: {banner}");

    for _ in 0..3 {
        assert!(!scene.wrong_password(ATTACKER).success());
    }
    scene.wait_for("the ban", || scene.holds("sshd_v4", ATTACKER));
    assert!(!scene.connects(ATTACKER, 22), "the next SYN is dropped");
    assert!(scene.connects(ATTACKER, 80), "the ban is for the port of the jail");
    assert!(scene.connects(OTHER, 22), "another host still gets in");

    session.stdin.take().unwrap().write_all(b"SSH-2.0-late\r\n").unwrap();
    let (heard, hears) = std::sync::mpsc::channel();
    thread::spawn(move || {
        let mut answer = Vec::new();
        let _ = from_server.read_until(b'\n', &mut answer);
        let _ = heard.send(answer);
    });
    assert!(hears.recv_timeout(Duration::from_secs(2)).is_err(), "the established session is cut");
    session.kill().unwrap();
    session.wait().unwrap();

    let status = ask_json(&scene, &["status", "sshd"]);
    assert!(status["jails"][0]["dropped"]["packets"].as_u64().unwrap() > 0);
    assert!(agent.stop().success());
    assert!(scene.holds("sshd_v4", ATTACKER), "the ban outlives the agent");
    scene.wait_for("the end of the ban", || !scene.holds("sshd_v4", ATTACKER));
    assert!(scene.connects(ATTACKER, 22));
}

#[test]
fn jails_that_overlap_cannot_undo_each_other() {
    let mut scene = Scene::new();
    scene.listen(22);
    scene.listen(80);
    let config = "jails:\n  sshd: {logpath: LOG, port: 22, maxretry: 3, bantime: 3s}\n  \
                  slow: {rule: sshd, logpath: LOG, port: all, maxretry: 3, bantime: 60s}\n";
    let _agent = Agent::start(&scene, config);
    scene.fail(ATTACKER, 3);
    scene.fail(OTHER, 3);
    scene.wait_for("both bans", || scene.holds("sshd_v4", OTHER) && scene.holds("slow_v4", OTHER));
    scene.wait_for("the end of the short ban", || !scene.holds("sshd_v4", ATTACKER));
    assert!(scene.holds("slow_v4", ATTACKER), "its end leaves the long ban in force");
    assert!(!scene.connects(ATTACKER, 22) && !scene.connects(ATTACKER, 80));

    assert!(ask(&scene, &["ban", "sshd", OTHER, "--for", "1h"]).status.success());
    assert!(ask(&scene, &["unban", OTHER, "--jail", "sshd"]).status.success());
    assert!(!scene.holds("sshd_v4", OTHER));
    assert!(!scene.connects(OTHER, 22), "nor does lifting it by hand");
    assert!(ask(&scene, &["unban", OTHER]).status.success());
    assert!(scene.connects(OTHER, 22));
}

/// The story that every fail2ban user knows: the same host comes back after each ban.
#[test]
fn who_comes_back_is_banned_longer_and_then_by_recidive_on_every_port() {
    let mut scene = Scene::new();
    scene.listen(22);
    scene.listen(80);
    let config = "jails:\n  sshd: {logpath: LOG, port: 22, maxretry: 1, bantime: 1s, increment: {factor: 2}}\n  \
                  recidive: {maxretry: 3}\n";
    fs::write(scene.path("auth.log"), "").unwrap();
    let agent = Agent::start(&scene, config);
    assert!(String::from_utf8_lossy(&ask(&scene, &["status"]).stdout).starts_with("2 jails ok"));
    for round in 1..=3 {
        scene.fail(ATTACKER, 1);
        scene.wait_for("the ban", || scene.holds("sshd_v4", ATTACKER));
        if round < 3 {
            assert!(scene.connects(ATTACKER, 80), "the first bans are for the port of their jail");
            scene.wait_for("its end", || !scene.holds("sshd_v4", ATTACKER));
            assert!(scene.connects(ATTACKER, 22), "free again after ban {round}");
        }
    }
    scene.wait_for("recidive", || scene.holds("recidive_v4", ATTACKER));
    let standing = ask_json(&scene, &["bans", "--sort", "jail"]);
    let lengths: Vec<(&str, i64)> = standing.as_array().unwrap().iter().map(length).collect();
    assert_eq!(
        lengths,
        [("recidive", 7 * 86_400), ("sshd", 4)],
        "a week; and the third ban is four times the first"
    );
    assert!(!scene.connects(ATTACKER, 80), "recidive closes every port");
    assert!(ask(&scene, &["unban", ATTACKER, "--jail", "sshd"]).status.success());
    assert!(!scene.connects(ATTACKER, 22), "the old jail cannot undo it");

    assert!(agent.stop().success());
    let _agent = Agent::start_again(&scene);
    assert!(scene.holds("recidive_v4", ATTACKER), "nor does a restart");
}

/// The jail of a ban, and how many seconds it lasts.
fn length(ban: &serde_json::Value) -> (&str, i64) {
    let time = |key: &str| ban[key].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    let length = time("ends").as_millisecond() - time("at").as_millisecond();
    (ban["jail"].as_str().unwrap(), (length + 500) / 1_000)
}

#[test]
fn ipv6_is_banned_as_its_64_and_own_addresses_never() {
    let mut scene = Scene::new();
    scene.listen(22);
    let _agent = Agent::start(&scene, SSHD);
    for address in ["2001:db8:66::1", "2001:db8:66::2", "2001:db8:66::3"] {
        scene.fail(address, 1);
    }
    scene.wait_for("the ban of the /64", || scene.holds("sshd_v6", "2001:db8:66::"));
    assert!(!scene.connects("2001:db8:66::77", 22), "every address of the /64 is banned");
    assert!(scene.connects("2001:db8:66:1::77", 22), "its neighbour is not");

    scene.fail(crate::scene::SERVER, 9);
    scene.fail("127.0.0.1", 9);
    scene.fail(OTHER, 3);
    scene.wait_for("the ban that comes after", || scene.holds("sshd_v4", OTHER));
    assert_eq!(scene.elements("sshd_v4").len(), 1, "own addresses are not banned");
    let refused = ask(&scene, &["ban", "sshd", crate::scene::SERVER]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("is never banned"));
}

#[test]
fn a_published_port_of_another_namespace_is_covered() {
    let mut scene = Scene::new();
    scene.listen(22);
    let rules = "table ip nat {
 chain pre {
 type nat hook prerouting priority dstnat;
 tcp dport 2222 redirect to :22
 }
}
";
    fs::write(scene.path("nat.nft"), rules).unwrap();
    assert!(scene.nft(&["-f", scene.path("nat.nft").to_str().unwrap()]).status.success());
    let config = "jails: {sshd: {logpath: LOG, port: 2222, maxretry: 3, bantime: 60s}}\n";
    let _agent = Agent::start(&scene, config);
    assert!(scene.connects(ATTACKER, 2222));
    scene.fail(ATTACKER, 3);
    scene.wait_for("the ban", || scene.holds("sshd_v4", ATTACKER));
    assert!(!scene.connects(ATTACKER, 2222), "the port as the world sees it is closed");
    assert!(scene.connects(ATTACKER, 22), "what it is translated to is another port");
}

#[test]
fn a_restart_adopts_bans_reads_on_and_counts_no_line_twice() {
    let scene = Scene::new();
    let config = "jails: {sshd: {logpath: LOG, port: 22, maxretry: 3, bantime: 1h}}\n";
    let agent = Agent::start(&scene, config);
    scene.fail(ATTACKER, 3);
    scene.fail(OTHER, 2);
    scene.wait_for("the ban", || scene.holds("sshd_v4", ATTACKER));
    let left = scene.elements("sshd_v4")[0].1.unwrap();
    assert!(agent.stop().success());
    scene.fail("203.0.113.68", 3);

    let agent = Agent::start_again(&scene);
    scene.wait_for("the ban from while it was away", || scene.holds("sshd_v4", "203.0.113.68"));
    let bans = ask_json(&scene, &["bans"]);
    assert_eq!(bans.as_array().unwrap().len(), 2, "the old ban is adopted: {bans}");
    let still = scene.elements("sshd_v4").into_iter().find(|(held, _)| held == ATTACKER).unwrap().1.unwrap();
    assert!(still <= left, "its time went on: {still} of {left}");
    assert!(!scene.holds("sshd_v4", OTHER), "two failures are two, not four");
    scene.fail(OTHER, 1);
    scene.wait_for("the third failure", || scene.holds("sshd_v4", OTHER));
    drop(agent);
}

#[test]
fn no_acknowledged_ban_is_lost_by_a_crash() {
    let scene = Scene::new();
    let config = "jails: {sshd: {logpath: LOG, port: 22, maxretry: 1, bantime: 1h}}\n";
    fs::write(scene.path("auth.log"), "").unwrap();
    let mut agent = Agent::start(&scene, config);
    let mut acknowledged = Vec::new();
    for round in 0_u32..12 {
        for n in 0..40 {
            scene.log("auth.log", &failure(&format!("203.0.113.{}", round * 20 + n % 20)));
        }
        let by_hand = format!("192.0.2.{round}");
        if ask(&scene, &["ban", "sshd", &by_hand]).status.success() {
            acknowledged.push(by_hand);
        }
        thread::sleep(Duration::from_millis(u64::from(round * 7 % 23)));
        agent.kill();
        for address in &acknowledged {
            assert!(scene.holds("sshd_v4", address), "{address} was acknowledged before kill {round}");
        }
        agent = Agent::start_again(&scene);
    }
    assert_eq!(acknowledged.len(), 12);
    scene.wait_for("every attacker in the log", || scene.elements("sshd_v4").len() == 12 * 20 + 12);
    let believed = ask_json(&scene, &["bans"]).as_array().unwrap().len();
    assert_eq!(believed, 12 * 20 + 12, "what is believed is what the kernel holds");
}

#[test]
fn a_reload_applies_and_loses_nothing() {
    let mut scene = Scene::new();
    scene.listen(22);
    scene.listen(80);
    let _agent = Agent::start(&scene, SSHD.replace("6s", "1h").as_str());
    scene.fail(ATTACKER, 3);
    scene.fail(OTHER, 2);
    scene.wait_for("the ban", || scene.holds("sshd_v4", ATTACKER));
    assert!(scene.connects(ATTACKER, 80));

    let log = scene.path("auth.log").display().to_string();
    let more = format!(
        "defaults: {{ignoreip: 203.0.113.9}}\njails:\n  sshd: {{logpath: {log}, port: [22, 80], maxretry: 3, bantime: 1h}}\n  \
         web: {{rule: sshd, logpath: {log}, port: 8080, maxretry: 50}}\n"
    );
    fs::write(scene.path("nftjail.yaml"), more).unwrap();
    let reloaded = ask(&scene, &["reload"]);
    assert!(reloaded.status.success(), "{}", String::from_utf8_lossy(&reloaded.stderr));
    assert!(
        scene.holds("sshd_v4", ATTACKER) && !scene.connects(ATTACKER, 80),
        "the ban stays, with the new port"
    );
    scene.fail("203.0.113.9", 9);
    scene.fail(OTHER, 1);
    scene.wait_for("the failures from before count on", || scene.holds("sshd_v4", OTHER));
    assert!(!scene.holds("sshd_v4", "203.0.113.9"));

    fs::write(scene.path("nftjail.yaml"), "jails:\n  sshd:\n    prot: 22\n").unwrap();
    let refused = ask(&scene, &["reload"]);
    assert_eq!(refused.status.code(), Some(6));
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(told.contains(":3:5: unknown key \"prot\": did you mean port?"), "{told}");
    assert!(scene.holds("sshd_v4", ATTACKER), "the old configuration goes on");
}

#[test]
fn an_administrator_bans_and_frees_many_at_once() {
    let scene = Scene::new();
    let _agent = Agent::start(&scene, "jails: {sshd: {logpath: LOG, port: 22, maxretry: 2, bantime: 1h}}\n");
    let many: String = (0..12_000).map(|n| format!("10.{}.{}.1\n", n / 250, n % 250)).collect();
    let mut ban = nftjail(&scene, &["ban", "sshd", "--stdin"]);
    let mut ban = ban.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    ban.stdin.take().unwrap().write_all(many.as_bytes()).unwrap();
    assert!(ban.wait().unwrap().success());
    assert_eq!(scene.elements("sshd_v4").len(), 12_000);
    assert!(ask(&scene, &["unban", "10.3.0.0/16"]).status.success());
    assert_eq!(scene.elements("sshd_v4").len(), 11_750);
    assert!(ask(&scene, &["unban", "--all"]).status.success());
    assert_eq!(scene.elements("sshd_v4").len(), 0);

    let first = ask(&scene, &["attempt", "sshd", ATTACKER]);
    assert_eq!(String::from_utf8_lossy(&first.stdout), format!("sshd: {ATTACKER} failed (1 of 2)\n"));
    assert!(ask(&scene, &["pause", "sshd"]).status.success());
    scene.fail(ATTACKER, 5);
    scene.fail(OTHER, 5);
    scene.wait_for("the lines", || ask_json(&scene, &["status"])["sources"][0]["lines"] == 10);
    assert!(ask(&scene, &["resume", "sshd"]).status.success());
    assert!(ask(&scene, &["attempt", "sshd", ATTACKER]).status.success());
    scene.wait_for("the ban by attempts", || scene.holds("sshd_v4", ATTACKER));
    assert_eq!(scene.elements("sshd_v4").len(), 1, "what a paused jail heard does not count");
}

#[test]
fn what_we_programmed_round_trips_through_nft() {
    let scene = Scene::new();
    let config = "jails:\n  sshd: {logpath: LOG, port: [22, 2222, 53/udp], maxretry: 3, bantime: 1h}\n  \
                  all: {rule: sshd, logpath: LOG, port: all, maxretry: 3, bantime: forever}\n";
    let _agent = Agent::start(&scene, config);
    scene.fail(ATTACKER, 3);
    scene.fail("2001:db8:66::1", 3);
    scene.wait_for("the bans", || scene.holds("all_v4", ATTACKER) && scene.holds("all_v6", "2001:db8:66::"));
    let listed = scene.nft(&["list", "table", "inet", "nftjail"]);
    fs::write(scene.path("listed.nft"), &listed.stdout).unwrap();
    let checked = scene.nft(&["-c", "-f", scene.path("listed.nft").to_str().unwrap()]);
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    let permanent = scene.elements("all_v4");
    assert_eq!(permanent, [(ATTACKER.to_owned(), None)]);
}

#[test]
fn connections_of_a_banned_host_are_ended_where_that_is_asked_for() {
    const ATTACKER_V6: &str = "2001:db8:66:1::9";
    let mut scene = Scene::new();
    scene.listen(22);
    scene.listen(80);
    let config = "jails: {sshd: {logpath: LOG, port: 22, maxretry: 3, bantime: 1h, kill: sockets}}\n";
    let _agent = Agent::start(&scene, config);
    let connect = |from: &str, to: &str, port: u16| {
        let to: SocketAddr = SocketAddr::new(to.parse().unwrap(), port);
        scene.as_attacker(from, || {
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).unwrap();
            socket.bind(&SocketAddr::new(from.parse().unwrap(), 0).into()).unwrap();
            socket.connect(&to.into()).unwrap();
            socket
        })
    };
    let connections = [
        connect(ATTACKER, SERVER, 22),
        connect(ATTACKER, SERVER, 80),
        connect(ATTACKER_V6, SERVER_V6, 22),
        connect(OTHER, SERVER, 22),
    ];
    // Of those that wait to be accepted, too: nc takes one at a time.
    let established = || {
        let sockets = scene.on_server("ss").args(["-Htn", "state", "established"]).output().unwrap();
        let text = String::from_utf8(sockets.stdout).unwrap();
        let peers =
            text.lines().map(|line| line.split_whitespace().skip(2).take(2).collect::<Vec<_>>().join(" "));
        let mut ports: Vec<String> =
            peers.map(|peers| peers.rsplit_once(':').unwrap().0.to_owned()).collect();
        ports.sort();
        ports
    };
    assert_eq!(established().len(), 4);
    scene.fail(ATTACKER, 3);
    scene.fail(ATTACKER_V6, 3);
    let left = [format!("{SERVER}:22 {OTHER}"), format!("{SERVER}:80 {ATTACKER}")];
    scene.wait_for("the end of both", || established() == left);
    assert!(ask(&scene, &["ban", "sshd", "203.0.113.0/24"]).status.success());
    scene.wait_for("the end of those in a banned network", || established() == left[1..]);
    drop(connections);
}
