//! What people ask a running agent: why, what was before, what happens now, and who may ask.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::scene::{Agent, Scene, ask, ask_json, nftjail};

const CONFIG: &str = "jails: {sshd: {logpath: LOG, maxretry: 2, port: 22, bantime: 10m}}\n";
const ATTACKER: &str = "203.0.113.7";

fn text(scene: &Scene, arguments: &[&str]) -> String {
    let output = ask(scene, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn ban(scene: &Scene) {
    scene.fail(ATTACKER, 2);
    scene.wait_for("the ban", || scene.holds("sshd_v4", ATTACKER));
}

#[test]
fn a_ban_is_explained_by_its_lines_and_by_the_kernels_own_clock() {
    let scene = Scene::new();
    let agent = Agent::start(&scene, CONFIG);
    scene.log("auth.log", "hostile \u{1b}[2J text");
    ban(&scene);
    scene.wait_for("the belief", || text(&scene, &["why", ATTACKER]).starts_with("203.0.113.7 is banned"));
    scene.fail(ATTACKER, 1);
    scene.wait_for("what it tried since", || {
        text(&scene, &["why", ATTACKER]).contains("since then it failed 1 time")
    });
    let why = ask_json(&scene, &["why", ATTACKER]);
    let jail = &why["jails"][0];
    assert_eq!(jail["lines"].as_array().unwrap().len(), 2, "{why}");
    assert!(jail["lines"][0]["text"].as_str().unwrap().ends_with("from 203.0.113.7 port 4242 ssh2"));
    let moment = |value: &Value| value.as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    let kernel = moment(&jail["kernel"]["holds"]["ends"]);
    let belief = moment(&jail["ban"]["ends"]);
    assert!((kernel - belief).total(jiff::Unit::Second).unwrap().abs() < 1.0, "{kernel} and {belief}");

    // After a restart the lines come from the state.
    agent.stop();
    let _agent = Agent::start_again(&scene);
    let shown = text(&scene, &["why", ATTACKER]);
    assert_eq!(shown.matches("                ^^^^^^^^^^^\n").count(), 2, "{shown}");
    assert!(shown.contains("the kernel holds it: ends "), "{shown}");

    let removed = scene.nft(&["delete", "element", "inet", "nftjail", "sshd_v4", "{", ATTACKER, "}"]);
    assert!(removed.status.success());
    scene.wait_for("the repair", || scene.holds("sshd_v4", ATTACKER));
    assert!(text(&scene, &["unban", ATTACKER]).contains("is free again"));
    let shown = text(&scene, &["why", ATTACKER]);
    assert!(shown.starts_with("203.0.113.7 is not banned\n"), "{shown}");
    scene.wait_for("the past", || text(&scene, &["why", ATTACKER]).contains("sshd  unbanned by hand"));
    assert!(
        text(&scene, &["why", "127.0.0.1"]).contains("127.0.0.1 is never banned, by what it is (loopback")
    );
}

#[test]
fn the_past_outlives_bans_and_restarts() {
    let scene = Scene::new();
    let agent = Agent::start(&scene, CONFIG);
    ban(&scene);
    assert!(ask(&scene, &["ban", "sshd", "2001:db8::1", "--for", "1h"]).status.success());
    assert!(ask(&scene, &["unban", "--all"]).status.success());
    agent.stop();
    let _agent = Agent::start_again(&scene);
    let history = ask_json(&scene, &["history"]);
    assert_eq!(history["bans"], 2);
    assert_eq!(history["jails"][0]["bans"], 2);
    let networks: Vec<&str> =
        history["networks"].as_array().unwrap().iter().map(|count| count["of"].as_str().unwrap()).collect();
    assert_eq!(networks, ["2001:db8::/48", "203.0.113.0/24"]);
    assert_eq!(
        ask_json(&scene, &["history", "203.0.113.0/24", "--since", "1h", "--jail", "sshd"])["bans"],
        1
    );
    let csv = text(&scene, &["history", "--csv"]);
    let rows: Vec<&str> = csv.lines().map(|row| row.split_once(',').unwrap().1).collect();
    assert_eq!(rows[0], "event,jail,target,ends");
    assert!(rows[1].starts_with("banned,sshd,203.0.113.7,20"), "{csv}");
    assert!(rows[2].starts_with("banned,sshd,2001:db8::/64,20"), "{csv}");
    assert_eq!(rows.len(), 5);
    assert!(rows[3..].contains(&"unbanned,sshd,2001:db8::/64,"), "{csv}");
    assert!(text(&scene, &["history"]).starts_with("2 bans since "));
}

/// `nftjail watch`, which is ended with this value.
struct Watching(Child, BufReader<std::process::ChildStdout>);

impl Watching {
    fn start(scene: &Scene, arguments: &[&str]) -> Watching {
        let arguments = [&["watch"], arguments].concat();
        let mut child = nftjail(scene, &arguments).stdout(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        Watching(child, out)
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.1.read_line(&mut line).unwrap();
        line
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn who_watches_sees_it_happen() {
    let scene = Scene::new();
    let agent = Agent::start(&scene, CONFIG);
    let (mut words, mut json) = (Watching::start(&scene, &[]), Watching::start(&scene, &["sshd", "--json"]));
    // The first that both hear of shows that they listen.
    let (mut first, mut second) = (None, None);
    std::thread::scope(|scope| {
        let words = scope.spawn(|| words.line());
        let json = scope.spawn(|| json.line());
        scene.wait_for("both watchers", || {
            if !words.is_finished() || !json.is_finished() {
                assert!(ask(&scene, &["attempt", "sshd", "203.0.113.99"]).status.success());
                assert!(ask(&scene, &["unban", "--all"]).status.code().is_some());
            }
            words.is_finished() && json.is_finished()
        });
        (first, second) = (words.join().ok(), json.join().ok());
    });
    assert!(first.unwrap().contains("  sshd: "));
    assert_eq!(serde_json::from_str::<Value>(&second.unwrap()).unwrap()["jail"], "sshd");
    ban(&scene);
    let banned = std::iter::repeat_with(|| json.line())
        .map(|line| serde_json::from_str::<Value>(&line).unwrap())
        .find(|news| news["event"] == "banned" && news["target"] == ATTACKER)
        .unwrap();
    assert_eq!((banned["bantime"].as_str(), banned["lines"].as_array().unwrap().len()), (Some("600s"), 2));
    let told = std::iter::repeat_with(|| words.line()).find(|line| line.contains("sshd: banned 203.0.113.7"));
    assert!(told.unwrap().ends_with("sshd: banned 203.0.113.7 for 10m\n"));
    agent.stop();
    while !words.line().is_empty() {}
    assert_eq!(words.0.wait().unwrap().code(), Some(3), "the agent ended");
    assert_eq!(ask(&scene, &["watch", "nosuch"]).status.code(), Some(3));
}

#[test]
fn bans_are_sorted_and_filtered() {
    let scene = Scene::new();
    let _agent = Agent::start(&scene, CONFIG);
    for (whom, time) in [("203.0.113.9", "2h"), ("203.0.113.8", "forever"), ("2001:db8::1", "1h")] {
        assert!(ask(&scene, &["ban", "sshd", whom, "--for", time]).status.success());
    }
    let listed = |arguments: &[&str]| -> Vec<String> {
        let bans = ask_json(&scene, &[&["bans"], arguments].concat());
        bans.as_array().unwrap().iter().map(|ban| ban["target"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(listed(&[]), ["2001:db8::/64", "203.0.113.9", "203.0.113.8"]);
    assert_eq!(listed(&["--sort", "addr"]), ["203.0.113.8", "203.0.113.9", "2001:db8::/64"]);
    assert_eq!(listed(&["--sort", "since", "--limit", "1"]), ["2001:db8::/64"]);
    assert_eq!(listed(&["--in", "203.0.113.0/24"]), ["203.0.113.9", "203.0.113.8"]);
}

#[test]
fn the_log_says_more_when_it_is_asked_to() {
    let scene = Scene::new();
    let _agent = Agent::start(&scene, CONFIG);
    assert!(text(&scene, &["log-level", "error"]).contains("level error"));
    scene.fail("203.0.113.20", 2);
    scene.wait_for("the ban", || scene.holds("sshd_v4", "203.0.113.20"));
    assert!(text(&scene, &["log-level", "info"]).contains("level info"));
    scene.fail("203.0.113.21", 2);
    let log = || fs::read_to_string(scene.path("agent.log")).unwrap();
    scene.wait_for("the word", || log().contains("banned 203.0.113.21"));
    assert!(!log().contains("banned 203.0.113.20"));
    let wrong = ask(&scene, &["log-level", "loud"]);
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("there are error, warn, info and debug"));
}

/// A scene whose server knows two groups and three users.
fn with_users() -> (Scene, Child) {
    let mut scene = Scene::new();
    fs::set_permissions(scene.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let users = "root:x:0:0::/:/bin/sh\nreader:x:4001:4001::/:/bin/sh\nadmin:x:4002:4001::/:/bin/sh\nother:x:4003:4003::/:/bin/sh\n";
    fs::write(scene.path("passwd"), users).unwrap();
    let groups = "root:x:0:\nnftjail:x:4001:\nnftjail-admin:x:4100:admin\nother:x:4003:\n";
    fs::write(scene.path("group"), groups).unwrap();
    let script = "mount --make-rprivate / && mount --bind \"$1/passwd\" /etc/passwd && mount --bind \"$1/group\" /etc/group \
                  && touch \"$1/ready\" && exec sleep infinity";
    let mut keeper = Command::new("unshare");
    keeper.args(["-m", "sh", "-c", script, "sh"]).arg(scene.dir.path());
    let keeper = keeper.spawn().unwrap();
    scene.wait_for("the users", || scene.path("ready").exists());
    scene.mounts = Some(keeper.id());
    (scene, keeper)
}

#[test]
fn a_group_may_ask_and_another_may_change() {
    let (scene, mut keeper) = with_users();
    let agent = Agent::start(&scene, CONFIG);
    let program = scene.path("nftjail");
    fs::copy(env!("CARGO_BIN_EXE_nftjail"), &program).unwrap();
    let code = |user: &str, arguments: &[&str]| {
        let mut command = scene.on_server("setpriv");
        command.args(["--reuid", user, "--regid", user, "--init-groups"]).arg(&program);
        command.arg("--socket").arg(scene.path("control.sock")).args(arguments);
        command.output().unwrap().status.code()
    };
    let ban = ["ban", "sshd", "203.0.113.30"];
    assert_eq!((code("4001", &["status"]), code("4001", &ban)), (Some(0), Some(4)), "reader");
    assert_eq!((code("4003", &["status"]), code("4003", &ban)), (Some(4), Some(4)), "somebody else");
    let admin = |arguments: &[&str]| {
        let mut command = scene.on_server("setpriv");
        command.args(["--reuid", "4002", "--regid", "4001", "--init-groups"]).arg(&program);
        command.arg("--socket").arg(scene.path("control.sock")).args(arguments);
        command.output().unwrap().status.code()
    };
    assert_eq!((admin(&["status"]), admin(&ban)), (Some(0), Some(0)), "admin");
    assert!(scene.holds("sshd_v4", "203.0.113.30"));
    drop(agent);
    keeper.kill().unwrap();
    keeper.wait().unwrap();
}

/// The memory that is the agent's own, in KiB (proc_pid_status(5)).
fn resident(pid: u64) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_thousand_hostile_clients_delay_no_ban_and_take_no_memory() {
    let scene = Scene::new();
    let _agent = Agent::start(&scene, CONFIG);
    let pid = ask_json(&scene, &["status"])["pid"].as_u64().unwrap();
    let before = resident(pid);
    let watch = br#"{"version":1,"request":{"watch":{"jail":null}}}"#;
    let status = br#"{"version":1,"request":{"status":{"jail":null}}}"#;
    let framed = |body: &[u8]| [&(body.len() as u32).to_be_bytes(), body].concat();
    let said: [Vec<u8>; 6] = [
        vec![0xFF; 9_000],
        (60_000_u32).to_be_bytes().to_vec(),
        framed(b"[[[[[[[[[[[["),
        framed(status)[..20].to_vec(),
        framed(watch),
        Vec::new(),
    ];
    let clients: Vec<UnixStream> = (0..1_000)
        .map(|n| {
            let mut client = UnixStream::connect(scene.path("control.sock")).unwrap();
            // Whom the agent hung up on cannot say more; nobody reads what it answers.
            let _ = client.write_all(&said[n % said.len()]);
            client
        })
        .collect();
    ban(&scene);
    assert!(text(&scene, &["status"]).starts_with("1 jail ok"));
    let grown = resident(pid).saturating_sub(before);
    assert!(grown < 4_096, "{grown} KiB more");
    drop(clients);
}

/// `nftjail top` in a real terminal, ended with this value.
struct Screen<'a>(&'a Scene);

impl Screen<'_> {
    fn tmux(&self, arguments: &[&str]) -> String {
        let mut tmux = self.0.on_server("tmux");
        tmux.arg("-S").arg(self.0.path("tmux")).args(["-f", "/dev/null"]).args(arguments);
        String::from_utf8(tmux.output().unwrap().stdout).unwrap()
    }

    fn wait_for(&self, what: &str) {
        self.0.wait_for(what, || self.tmux(&["capture-pane", "-p", "-t", "top"]).contains(what));
    }

    fn press(&self, keys: &[&str]) {
        self.tmux(&[&["send-keys", "-t", "top"], keys].concat());
    }
}

impl Drop for Screen<'_> {
    fn drop(&mut self) {
        self.tmux(&["kill-server"]);
    }
}

#[test]
fn the_live_view_shows_what_happens_and_unbans_when_it_is_confirmed() {
    let scene = Scene::new();
    let _agent = Agent::start(&scene, CONFIG);
    ban(&scene);
    let screen = Screen(&scene);
    let top = nftjail(&scene, &["top"]);
    let words: Vec<&str> = top.get_args().skip(3).map(|word| word.to_str().unwrap()).collect();
    screen.tmux(&[&["new-session", "-d", "-s", "top", "-x", "120", "-y", "30"], &words[..]].concat());
    screen.wait_for("1 bans, the newest first");
    screen.wait_for("1 jail ok");
    scene.fail("203.0.113.99", 1);
    screen.wait_for("203.0.113.99");
    screen.press(&["Down", "u"]);
    screen.wait_for("unban 203.0.113.7? y/n");
    screen.press(&["y"]);
    screen.wait_for("203.0.113.7 is free again");
    assert!(!scene.holds("sshd_v4", ATTACKER));
    screen.press(&["q"]);
    scene.wait_for("the end", || !screen.tmux(&["list-sessions"]).contains("top"));
}
