//! Which jails run: those whose service is there, and all that are in order, whatever is wrong with another.

use std::fs;

use crate::reloads::reload;
use crate::scene::{Agent, Scene, ask, ask_json, nftjail};

const ATTACKER: &str = "203.0.113.66";
const OTHER: &str = "203.0.113.67";

fn shown(scene: &Scene) -> String {
    String::from_utf8_lossy(&ask(scene, &["status"]).stdout).into_owned()
}

fn told(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn an_automatic_jail_runs_where_its_service_is_and_says_why() {
    let mut scene = Scene::new();
    let log = scene.path("vsftpd.log");
    let config = format!(
        "defaults: {{enabled: auto}}\njails:\n  known: {{rule: sshd, port: 2222}}\n  main: {{rule: sshd, enabled: true, \
         logpath: LOG}}\n  recidive:\n  vsftpd: {{logpath: {}, port: 21}}\n",
        log.display()
    );
    let _agent = Agent::start(&scene, &config);
    let auto = |jail: &str| {
        let status = ask_json(&scene, &["status"]);
        let all = status["auto"].as_array().unwrap().iter();
        let found = all.clone().find(|auto| auto["jail"] == jail)?;
        let runs = status["jails"].as_array().unwrap().iter().any(|running| running["name"] == jail);
        assert_eq!(found["on"], runs);
        Some((runs, found["why"].as_str().unwrap().to_owned()))
    };
    let off = "no log, no unit, nothing listens on 21/tcp".to_owned();
    assert_eq!(auto("vsftpd"), Some((false, off.clone())));
    assert_eq!(auto("known"), Some((true, "ssh.service is installed".to_owned())));
    assert_eq!(auto("recidive"), Some((true, "it hears the other jails".to_owned())));
    assert_eq!(auto("main"), None, "it runs anyhow");
    assert!(shown(&scene).contains(&format!("\nvsftpd    off  {off}\n")), "{}", shown(&scene));
    let refused = ask(&scene, &["ban", "vsftpd", ATTACKER]);
    assert_eq!(
        (refused.status.code(), told(&refused)),
        (Some(5), format!("nftjail: the jail vsftpd is off: {off}\n"))
    );
    assert!(told(&ask(&scene, &["check"])).contains(&format!("\nvsftpd    off  {off}\n")));

    scene.listen(21);
    assert!(reload(&scene, &config).status.success());
    let auto = |jail: &str| {
        let status = ask_json(&scene, &["status"]);
        let found =
            status["auto"].as_array().unwrap().iter().find(|auto| auto["jail"] == jail).unwrap().clone();
        (found["on"].as_bool().unwrap(), found["why"].as_str().unwrap().to_owned())
    };
    assert_eq!(auto("vsftpd"), (true, "somebody listens on 21/tcp".to_owned()));
    fs::write(&log, "").unwrap();
    assert!(reload(&scene, &config).status.success());
    assert_eq!(auto("vsftpd"), (true, format!("{} is there", log.display())));
    scene.log(
        "vsftpd.log",
        &format!("Sat Nov 21 10:00:00 2026 [pid 7] [bob] FAIL LOGIN: Client \"{ATTACKER}\""),
    );
    scene
        .wait_for("the failure", || ask_json(&scene, &["status", "vsftpd"])["jails"][0]["failed_total"] == 1);
}

/// An own rule whose sample says what is not so.
const WRONG: &str = "rule: wrong\nabout: x\nformat: none\nfailregex: ['^bad <HOST>$']\nsamples:\n  \
                     - {line: bad 192.0.2.1, addr: 192.0.2.2}\n  - {line: good}\n  - {line: bad 203.0.113.9 x, hostile: true}\n";

#[test]
fn a_broken_jail_is_told_loudly_and_stops_no_other() {
    let scene = Scene::new();
    fs::create_dir(scene.path("rules")).unwrap();
    fs::write(scene.path("rules/wrong.yaml"), WRONG).unwrap();
    fs::write(scene.path("rules/unread.yaml"), b"rule: unread \xff").unwrap();
    let sound = "  sshd: {logpath: LOG, port: 22, maxretry: 3, bantime: 1h}\n";
    let config = format!(
        "jails:\n{sound}  few: {{rule: sshd, maxretry: 0}}\n  lost: {{rule: sshd, logpath: auth.log}}\n  \
         unknown: {{rule: sshdd}}\n  unread: {{logpath: LOG}}\n  wrong: {{logpath: LOG}}\n"
    );
    let _agent = Agent::start(&scene, &config);
    scene.fail(ATTACKER, 3);
    scene.wait_for("the ban", || scene.holds("sshd_v4", ATTACKER));
    let first = "1 jail ok, 5 BROKEN; few does not run; lost does not run; unknown does not run; unread does not \
                 run; wrong does not run\n";
    assert!(shown(&scene).starts_with(first), "{}", shown(&scene));
    let checked = ask(&scene, &["check"]);
    assert_eq!(checked.status.code(), Some(6));
    let said = fs::read_to_string(scene.path("agent.log")).unwrap();
    for fault in [
        ":3:31: this must be from 1 to",
        ":4:9: logpath \"auth.log\" does not name a file from the root",
        ":5:19: unknown rule \"sshdd\": did you mean sshd?",
        "unread.yaml: is not UTF-8 text",
        "wrong.yaml:6:5: counts for 192.0.2.1, and must count for 192.0.2.2",
    ] {
        assert!(shown(&scene).contains(fault), "{fault} is not in {}", shown(&scene));
        assert!(told(&checked).contains(fault), "{fault} is not in {}", told(&checked));
        let is_told = |line: &str| line.contains("ERROR") && line.contains(fault);
        assert!(said.lines().any(is_told), "{fault} is not in {said}");
    }
    let broken = ask_json(&scene, &["status", "few"])["broken"].clone();
    assert_eq!(broken[0]["jail"], "few");

    let refused = reload(&scene, &config.replace("maxretry: 3", "maxretry: 1"));
    assert_eq!(refused.status.code(), Some(6), "a reload stays with what runs: {}", told(&refused));
    scene.fail(OTHER, 1);
    scene.wait_for("the line", || ask_json(&scene, &["status"])["jails"][0]["failed_total"] == 4);
    assert!(!scene.holds("sshd_v4", OTHER));
    assert!(reload(&scene, &format!("jails:\n{sound}")).status.success());
    assert!(shown(&scene).starts_with("1 jail ok\n"), "{}", shown(&scene));
    assert!(scene.holds("sshd_v4", ATTACKER));
}

#[test]
fn a_jail_that_breaks_keeps_its_bans_and_its_counts_until_it_runs_again() {
    let mut scene = Scene::new();
    scene.listen(22);
    scene.listen(80);
    let sound = "jails:\n  sshd: {logpath: LOG, port: 22}\n  web: {rule: sshd, logpath: LOG, port: 80, maxretry: 2, bantime: 1h}\n";
    let agent = Agent::start(&scene, sound);
    scene.fail(ATTACKER, 2);
    scene.fail(OTHER, 1);
    scene.wait_for("the ban", || scene.holds("web_v4", ATTACKER));
    assert!(agent.stop().success());

    let agent = Agent::start(&scene, &sound.replace("maxretry: 2", "maxretry: 0"));
    let first = "1 jail ok, 1 BROKEN; web does not run, only its bans (1) go on\n";
    assert!(shown(&scene).starts_with(first), "{}", shown(&scene));
    assert!(!scene.connects(ATTACKER, 80) && scene.connects(ATTACKER, 22), "on the ports that it says");
    assert_eq!(ask_json(&scene, &["bans"])[0]["jail"], "web");
    assert!(ask(&scene, &["ban", "web", "203.0.113.68"]).status.success());
    assert!(told(&ask(&scene, &["unban", "203.0.113.68"])).contains("was banned in web"));
    assert!(agent.stop().success());

    let log = scene.path("auth.log").display().to_string();
    fs::write(scene.path("nftjail.yaml"), sound.replace("LOG", &log)).unwrap();
    let _agent = Agent::start_again(&scene);
    assert!(shown(&scene).starts_with("2 jails ok\n") && scene.holds("web_v4", ATTACKER));
    scene.fail(OTHER, 1);
    scene.wait_for("the second failure", || scene.holds("web_v4", OTHER));
}

#[test]
fn no_agent_starts_where_no_jail_is_left_or_nobody_knows_who_is_never_banned() {
    let scene = Scene::new();
    for config in [
        "jails: {sshd: {maxretry: 0}}\n",
        "defaults: {ignoreip: [192.0.2.300]}\njails: {sshd: }\n",
        "defaults: {trusted_proxies: file:/nonexistent/proxies}\njails: {sshd: }\n",
        "jails: {sshd: {enabled: maybe}}\n",
    ] {
        fs::write(scene.path("nftjail.yaml"), config).unwrap();
        let run = nftjail(&scene, &["run"]).arg("--state").arg(scene.path("state")).output().unwrap();
        assert_eq!(run.status.code(), Some(6), "{config}: {}", told(&run));
    }
    assert!(!scene.nft(&["list", "table", "inet", "nftjail"]).status.success());
}
