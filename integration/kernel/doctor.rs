//! What the doctor finds on a host, and that it finds nothing where there is nothing.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Output;

use serde_json::Value;

use super::scene::{Agent, Scene, ask, nftjail};

const CONFIG: &str = "jails: {sshd: {logpath: LOG, port: 22, maxretry: 3, bantime: 1h}}\n";

fn text(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Whether a line of this level is about this, and has this in it.
fn says(told: &str, level: &str, about: &str, what: &str) -> bool {
    let start = format!("{level:<5} {about} ");
    told.lines().any(|line| line.starts_with(&start) && line.contains(what))
}

#[test]
fn on_a_sound_host_all_is_well() {
    let scene = Scene::new();
    scene.fail("203.0.113.7", 1);
    let _agent = Agent::start(&scene, CONFIG);
    scene.fail("203.0.113.7", 1);
    scene.wait_for("the line", || text(&ask(&scene, &["doctor"])).contains("last line 0s ago"));
    let found = ask(&scene, &["doctor"]);
    let told = text(&found);
    assert!(found.status.success(), "{told}");
    assert!(!told.contains("BAD") && told.contains("\nall is well"), "{told}");
    assert!(says(&told, "ok", "hooks", "prerouting -310; nobody else is there"), "{told}");
    assert!(says(&told, "ok", "config", "not changed since"), "{told}");
    let json: Value = serde_json::from_slice(&ask(&scene, &["doctor", "--json"]).stdout).unwrap();
    assert_eq!((&json["schema"], &json["well"]), (&1.into(), &true.into()));
    assert!(json["findings"].as_array().unwrap().iter().any(|finding| finding["about"] == "sets"));
}

#[test]
fn whatever_could_lead_past_us_is_named() {
    let scene = Scene::new();
    scene.fail("203.0.113.7", 1);
    let _agent = Agent::start(&scene, CONFIG);
    let rules = scene.path("other.nft");
    fs::write(
        &rules,
        "table inet router {\n chain early { type filter hook prerouting priority -400; accept; }\n \
         chain late { type filter hook prerouting priority -150; }\n}\n\
         table netdev edge {\n chain in { type filter hook ingress device cable0 priority 0; ip ttl 7 fwd to lo; }\n}\n\
         table ip nat {\n chain PREROUTING { type nat hook prerouting priority -100; tcp dport 8080 dnat to 192.0.2.8:80; \
         tcp dport 8443 redirect to :443; }\n}\n",
    )
    .unwrap();
    let loaded = scene.nft(&["-f", rules.to_str().unwrap()]);
    assert!(loaded.status.success(), "{}", String::from_utf8_lossy(&loaded.stderr));
    // Not every kernel is built with flow tables.
    let flow = "add flowtable inet router fast { hook ingress priority 0 ; devices = { cable0 } ; }";
    let has_flow = scene.nft(&[flow]).status.success();
    scene.on_server("ip").args(["link", "add", "docker0", "type", "bridge"]).status().unwrap();
    let found = ask(&scene, &["doctor"]);
    let told = text(&found);
    assert!(found.status.success(), "nothing of it needs anybody at once: {told}");
    for (level, about, what) in [
        ("ok", "before us", "inet router early at prerouting -400"),
        ("note", "before us", "netdev edge in at ingress 0 on cable0 hands packets to other interfaces"),
        ("ok", "hooks", "inet router late (-150), ip nat PREROUTING (-100)"),
        ("ok", "containers", "8080/tcp, 8443/tcp"),
        ("ok", "containers", "bridge docker0"),
    ] {
        assert!(says(&told, level, about, what), "{what}: {told}");
    }
    assert_eq!(says(&told, "note", "flowtable", "flowtable inet router fast on cable0"), has_flow, "{told}");
}

#[test]
fn what_needs_somebody_is_bad_and_says_what_to_do() {
    let scene = Scene::new();
    fs::write(scene.path("web.log"), "").unwrap();
    let config = format!(
        "jails:\n  sshd: {{logpath: LOG, port: 22, capacity: 2}}\n  nginx-http-auth: {{logpath: {}, port: 80}}\n",
        scene.path("web.log").display()
    );
    let _agent = Agent::start(&scene, &config);
    for addr in ["203.0.113.1", "203.0.113.2"] {
        assert!(ask(&scene, &["ban", "sshd", addr]).status.success());
    }
    assert!(ask(&scene, &["pause", "nginx-http-auth"]).status.success());
    fs::write(scene.path("nftjail.yaml"), config.replace("LOG", "/nowhere")).unwrap();
    let found = ask(&scene, &["doctor"]);
    let told = text(&found);
    assert_eq!(found.status.code(), Some(1), "{told}");
    for (level, about, what) in [
        ("BAD", "logs", "auth.log (sshd): "),
        ("BAD", "sets", "set sshd_v4 holds 2 of 2"),
        ("note", "jail", "nginx-http-auth is paused"),
        ("note", "config", "nftjail.yaml"),
    ] {
        assert!(says(&told, level, about, what), "{what}: {told}");
    }
    assert!(told.contains("→ nftjail reload") && told.contains("\n2 things need you"), "{told}");
}

#[test]
fn without_the_agent_it_says_what_it_can() {
    let scene = Scene::new();
    scene.fail("203.0.113.7", 1);
    let agent = Agent::start(&scene, CONFIG);
    agent.kill();
    assert!(scene.nft(&["flush", "chain", "inet", "nftjail", "jail_sshd"]).status.success());
    let found = ask(&scene, &["doctor"]);
    let told = text(&found);
    assert_eq!(found.status.code(), Some(1), "{told}");
    assert!(says(&told, "BAD", "agent", "does not run"), "{told}");
    assert!(says(&told, "BAD", "table", "sshd: whom it bans is not dropped: no rule drops"), "{told}");
    assert!(scene.nft(&["delete", "table", "inet", "nftjail"]).status.success());
    assert!(says(&text(&ask(&scene, &["doctor"])), "BAD", "table", "there is no table inet nftjail"));

    fs::set_permissions(scene.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = scene.path("nftjail");
    fs::copy(env!("CARGO_BIN_EXE_nftjail"), &program).unwrap();
    let mut user = scene.on_server("setpriv");
    user.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&program).arg("doctor");
    let found = user.output().unwrap();
    assert!(says(&text(&found), "BAD", "kernel", "not allowed"), "{}", text(&found));
}

#[test]
fn an_agent_in_another_network_is_no_protection_here() {
    let scene = Scene::new();
    scene.fail("203.0.113.7", 1);
    let _agent = Agent::start(&scene, CONFIG);
    let mut elsewhere = scene.on_attacker("203.0.113.9", env!("CARGO_BIN_EXE_nftjail"));
    elsewhere.arg("--config").arg(scene.path("nftjail.yaml"));
    elsewhere.arg("--socket").arg(scene.path("control.sock")).arg("doctor");
    let told = text(&elsewhere.output().unwrap());
    assert!(says(&told, "BAD", "network", "another network namespace"), "{told}");
    assert!(nftjail(&scene, &["doctor"]).output().unwrap().status.success());
}
