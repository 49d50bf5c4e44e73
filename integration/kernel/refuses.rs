//! Every refusal that a user can meet is one clear line that says what to do, and nothing is lost by it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output, Stdio};

use crate::scene::{Agent, Scene, ask, ask_json, nftjail};

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Runs the agent with a configuration that it cannot run by.
fn run_with(scene: &Scene, config: &str) -> Output {
    fs::write(scene.path("nftjail.yaml"), config).unwrap();
    nftjail(scene, &["run"]).arg("--state").arg(scene.path("state")).output().unwrap()
}

#[test]
fn faults_in_the_configuration_are_pointed_at() {
    let scene = Scene::new();
    for (config, message) in [
        ("jails: [", "nftjail.yaml:1:"),
        (
            "jails:\n  sshd:\n    maxretri: 5\n",
            ":3:5: unknown key \"maxretri\": did you mean maxretry?\n 3 |     maxretri: 5\n   |     ^",
        ),
        ("jails:\n  sshd:\n  sshd:\n", ":3:3: \"sshd\" stands here a second time"),
        ("defaults:\n  ignoreip: [10.0.0/8]\n", ":2:14: \"10.0.0/8\" is neither an address nor a network"),
        (
            "defaults:\n  ignoreip: [10.0.0.1/8]\n",
            ":2:14: 10.0.0.1/8 has bits beyond its prefix: write 10.0.0.0/8",
        ),
        (
            "defaults:\n  ignoreip: [192.0.2.9-192.0.2.1]\n",
            ":2:14: \"192.0.2.9-192.0.2.1\" does not go from a lower address to a higher",
        ),
        (
            "defaults:\n  ignoreip: file:/nonexistent/office.txt\n",
            ":2:13: /nonexistent/office.txt: cannot be read: no such file",
        ),
        ("jails:\n  sshd:\n    ban_local: true\n", ":3:16: this belongs to defaults, not to a jail"),
        ("jails:\n  sshd:\n    bantime: 600\n", ":3:14: \"600\" is not a length of time: write 90s, 10m"),
        ("jails:\n  sshd:\n    bantime: -1\n", ":3:14: \"-1\" is not a length of time"),
        ("jails:\n  sshd:\n    maxretry: 0\n", ":3:15: this must be from 1 to"),
        ("jails:\n  sshd:\n    port: [shh]\n", ":3:11: unknown service \"shh\": did you mean ssh?"),
        ("jails:\n  sshd:\n    port: 70000\n", ":3:11: \"70000\" is not a port"),
        ("jails:\n  sshd:\n    rule: sshdd\n", ":3:11: unknown rule \"sshdd\": did you mean sshd?"),
        (
            "jails:\n  sshd:\n    mode: agressive\n",
            ":3:11: unknown mode \"agressive\": did you mean aggressive?",
        ),
        (
            "jails:\n  sshd:\n    increment: {factr: 2}\n",
            ":3:17: unknown key \"factr\": did you mean factor?",
        ),
        ("jails:\n  sshd:\n    increment: {factor: 0}\n", ":3:16: a factor of 0 would end every ban"),
        ("jails:\n  sshd:\n    block: rejct\n", ":3:12: unknown word \"rejct\": did you mean reject?"),
        (
            "jails:\n  sshd:\n    hook: inptu\n",
            ":3:11: \"inptu\" is no hook: there are prerouting, input, forward",
        ),
        ("jails:\n  sshd:\n    enabled: yes\n", ":3:14: write true, false or auto"),
        ("jails:\n  sshd:\n    enabled: 1\n", ":3:14: write true, false or auto"),
        (
            "jails:\n  sshd:\n    trusted_proxies: 192.0.2.1\n",
            ":3:22: this belongs to defaults, not to a jail",
        ),
        (
            "jails:\n  sshd:\n    logpath: auth.log\n",
            ":3:5: logpath \"auth.log\" does not name a file from the root",
        ),
        ("jails:\n  sshd:\n    logpath: ''\n", ":3:5: logpath \"\" does not name a file from the root"),
        ("jails:\n  sshd:\n    hook: []\n", ":3:11: name one: prerouting, input or forward"),
        (
            "jails:\n  sshd:\n    count_by: [addr, prefx]\n",
            ":3:22: unknown word \"prefx\": did you mean prefix?",
        ),
        (
            "jails:\n  sshd:\n    count_by: prefix\n",
            ":3:15: addresses are what is banned: write [addr, user] or [addr, prefix]",
        ),
        (
            "jails:\n  sshd:\n    prefix: {v4: 24}\n",
            ":3:5: prefix means nothing without count_by: [addr, prefix]",
        ),
        ("defaults:\n  prefix: {v4: [24, 15]}\n", ":2:11: /15 is wider than /16 (v6: /32): add force: true"),
        ("defaults:\n  prefix: {v6: 31}\n", ":2:11: /31 is wider than /16 (v6: /32): add force: true"),
        ("defaults:\n  prefix: {v4: 7, force: true}\n", ":2:11: /7 is no network that can be banned"),
        ("defaults:\n  prefix: {v6: 64}\n", ":2:11: /64 is no network that can be banned"),
        ("defaults:\n  prefix: {offenders: 1}\n", ":2:11: offenders must be from 2 to"),
        ("jails:\n  Sshd:\n", ":2:3: \"Sshd\" cannot name a jail"),
        ("jails:\n  mysshd:\n    port: 22\n", "needs the key rule"),
    ] {
        let output = run_with(&scene, config);
        assert_eq!(output.status.code(), Some(6), "{config}: {}", told(&output));
        assert!(told(&output).contains(message), "{config}: {}", told(&output));
        let checked = ask(&scene, &["check"]);
        assert_eq!(checked.status.code(), Some(6));
        assert!(told(&checked).contains(message));
    }
    assert!(!scene.nft(&["list", "table", "inet", "nftjail"]).status.success(), "nothing was programmed");
}

#[test]
fn all_faults_are_told_at_once() {
    let scene = Scene::new();
    let output = run_with(&scene, "jails:\n  sshd:\n    maxretry: 0\n    port: shh\n    mode: x\n");
    for place in [":3:15:", ":4:11:", ":5:11:"] {
        assert!(told(&output).contains(place), "{}", told(&output));
    }
}

#[test]
fn without_the_capability_it_says_which() {
    let scene = Scene::new();
    fs::write(scene.path("nftjail.yaml"), "jails: {sshd: {logpath: /nonexistent/auth.log}}\n").unwrap();
    let mut run = scene.on_server("capsh");
    let program = env!("CARGO_BIN_EXE_nftjail");
    run.args(["--drop=cap_net_admin", "--", "-c", "exec \"$@\"", "sh", program]);
    run.arg("--config").arg(scene.path("nftjail.yaml")).arg("--socket").arg(scene.path("control.sock"));
    let output = run.arg("run").arg("--state").arg(scene.path("state")).output().unwrap();
    assert_eq!(output.status.code(), Some(4), "{}", told(&output));
    assert!(told(&output).contains("CAP_NET_ADMIN"), "{}", told(&output));
    assert_eq!(told(&output).trim_end().lines().count(), 1, "{}", told(&output));
}

#[test]
fn a_full_set_is_said_in_words_and_the_rest_goes_on() {
    let scene = Scene::new();
    let config = "jails: {sshd: {logpath: LOG, port: 22, maxretry: 1, bantime: 1h, capacity: 3}}\n";
    let _agent = Agent::start(&scene, config);
    for n in 0..8 {
        scene.fail(&format!("203.0.113.{n}"), 1);
    }
    scene.fail("2001:db8:66::1", 1);
    scene.wait_for("the other family", || scene.holds("sshd_v6", "2001:db8:66::"));
    assert_eq!(scene.elements("sshd_v4").len(), 3);
    assert_eq!(ask_json(&scene, &["bans"]).as_array().unwrap().len(), 4, "only what was taken is believed");
    let log = fs::read_to_string(scene.path("agent.log")).unwrap();
    assert!(log.contains("NOT banned") && log.contains("set sshd_v4 is full (3"), "{log}");
    let refused = ask(&scene, &["ban", "sshd", "203.0.113.99"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(told(&refused).contains("set sshd_v4 is full (3"), "{}", told(&refused));
}

#[test]
fn a_log_that_is_missing_or_is_none_is_waited_for() {
    let scene = Scene::new();
    let _agent = Agent::start(&scene, "jails: {sshd: {logpath: LOG, port: 22, maxretry: 1}}\n");
    let status = ask(&scene, &["status"]);
    let shown = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(shown.starts_with("0 jails ok, 1 waiting") && shown.contains("auth.log"), "{shown}");
    scene.fail("203.0.113.1", 1);
    scene.wait_for("the ban", || scene.holds("sshd_v4", "203.0.113.1"));
    assert!(String::from_utf8_lossy(&ask(&scene, &["status"]).stdout).starts_with("1 jail ok"));

    let fifo = scene.path("auth.log");
    fs::remove_file(&fifo).unwrap();
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    scene.wait_for("the refusal", || {
        String::from_utf8_lossy(&ask(&scene, &["status"]).stdout).contains("not a file")
    });
}

#[test]
fn a_log_that_may_not_be_read_is_said_and_read_when_it_may() {
    let scene = Scene::new();
    let log = scene.path("auth.log");
    fs::write(&log, "").unwrap();
    std::os::unix::fs::chown(&log, Some(12_345), Some(12_345)).unwrap();
    fs::set_permissions(&log, fs::Permissions::from_mode(0o600)).unwrap();
    let config = format!("jails: {{sshd: {{logpath: {}, port: 22, maxretry: 1}}}}\n", log.display());
    fs::write(scene.path("nftjail.yaml"), config).unwrap();
    let mut run = scene.on_server("capsh");
    run.args(["--drop=cap_dac_override,cap_dac_read_search", "--", "-c", "exec \"$@\"", "sh"]);
    run.arg(env!("CARGO_BIN_EXE_nftjail")).arg("--config").arg(scene.path("nftjail.yaml"));
    run.arg("--socket").arg(scene.path("control.sock")).arg("run").arg("--state").arg(scene.path("state"));
    let mut agent = run.stderr(Stdio::null()).spawn().unwrap();
    let shows = |text: &str| String::from_utf8_lossy(&ask(&scene, &["status"]).stdout).contains(text);
    scene.wait_for("the refusal", || shows("auth.log: permission denied"));
    fs::set_permissions(&log, fs::Permissions::from_mode(0o644)).unwrap();
    scene.wait_for("the log", || shows("1 jail ok"));
    agent.kill().unwrap();
    agent.wait().unwrap();
}

#[test]
fn the_verbs_tell_by_their_exit_code_how_it_went() {
    let scene = Scene::new();
    let nobody = ask(&scene, &["status"]);
    assert_eq!(nobody.status.code(), Some(3));
    assert!(told(&nobody).contains("nftjail does not run"), "{}", told(&nobody));
    let _agent = Agent::start(&scene, "jails: {sshd: {logpath: LOG, port: 22}}\n");
    for (arguments, code, message) in [
        (&["ban", "sshd", "203.0.113.1"][..], 0, ""),
        (&["ban", "sshdd", "203.0.113.1"], 5, "unknown jail \"sshdd\": did you mean sshd?"),
        (&["ban", "sshd", "0.0.0.0/0"], 2, "too much of the internet"),
        (&["ban", "sshd", "203.0.113"], 2, "is not an IP address or network"),
        (&["ban", "sshd", "203.0.113.1", "--for", "soon"], 2, "is not a length of time"),
        (&["unban", "203.0.113.1"], 0, ""),
        (&["unban", "203.0.113.1"], 5, "is not banned"),
        (&["unban", "--all"], 5, "nobody is banned in any jail"),
        (&["unban"], 2, "required"),
        (&["attempt", "web", "203.0.113.1"], 5, "unknown jail"),
        (&["pause", "web"], 5, "unknown jail"),
        (&["status", "web"], 5, "unknown jail"),
        (&["frobnicate"], 2, "unrecognized subcommand"),
    ] {
        let output = ask(&scene, arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", told(&output));
        assert!(told(&output).contains(message), "{arguments:?}: {}", told(&output));
    }
    let second = nftjail(&scene, &["run"]).arg("--state").arg(scene.path("state")).output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    assert!(told(&second).contains("another nftjail runs already"), "{}", told(&second));
}

#[test]
fn others_may_look_through_the_socket_only_if_they_can_open_it() {
    let scene = Scene::new();
    let _agent = Agent::start(&scene, "jails: {sshd: {logpath: LOG, port: 22}}\n");
    let socket = scene.path("control.sock");
    let as_nobody = |verb: &[&str]| {
        let mut command = scene.on_server("setpriv");
        command.args([
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            env!("CARGO_BIN_EXE_nftjail"),
            "--socket",
        ]);
        command.arg(&socket).args(verb).stdin(Stdio::null()).output().unwrap()
    };
    fs::set_permissions(scene.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let closed = as_nobody(&["status"]);
    assert_eq!(closed.status.code(), Some(4), "{}", told(&closed));
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o666)).unwrap();
    assert_eq!(as_nobody(&["status"]).status.code(), Some(0));
    let refused = as_nobody(&["ban", "sshd", "203.0.113.1"]);
    assert_eq!(refused.status.code(), Some(4));
    assert!(
        told(&refused).contains("only root and members of the group nftjail-admin may change anything"),
        "{}",
        told(&refused)
    );
}
