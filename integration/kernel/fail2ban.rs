//! Moving from Debian's fail2ban: its shipped configuration, its standing bans, its words, and its judgement beside ours.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::Value;
use socket2::{Domain, Protocol, Socket, Type};

use crate::scene::{Agent, SERVER, SERVER_V6, Scene, ask, ask_json, nftjail};

/// A fail2ban in the scene's namespace, with files of its own, ended with this value.
struct Fail2ban {
    dir: PathBuf,
    server: Child,
}

impl Fail2ban {
    /// Starts it with Debian's files and this over them, and waits until it answers.
    fn start(scene: &Scene, jail_local: &str) -> Fail2ban {
        let dir = scene.path("fail2ban");
        debian_files(&dir);
        fs::write(
            dir.join("jail.local"),
            jail_local.replace("LOG", &scene.path("auth.log").display().to_string()),
        )
        .unwrap();
        let at = |name: &str| dir.join(name).display().to_string();
        let global = format!(
            "[Definition]\nlogtarget = {}\ndbfile = {}\nsocket = {}\npidfile = {}\nallowipv6 = auto\n",
            at("fail2ban.log"),
            at("fail2ban.sqlite3"),
            at("sock"),
            at("pid")
        );
        fs::write(dir.join("fail2ban.local"), global).unwrap();
        let mut server = scene.on_server("fail2ban-server");
        server
            .args(["-f", "-c", &at(""), "-s", &at("sock"), "-p", &at("pid"), "start"])
            .stdout(Stdio::null());
        let fail2ban = Fail2ban { server: server.spawn().unwrap(), dir };
        scene.wait_for("fail2ban", || fail2ban.ask(scene, &["status", "sshd"]).status.success());
        fail2ban
    }

    fn ask(&self, scene: &Scene, words: &[&str]) -> Output {
        let mut client = scene.on_server("fail2ban-client");
        client
            .arg("-c")
            .arg(&self.dir)
            .arg("-s")
            .arg(self.dir.join("sock"))
            .arg("-p")
            .arg(self.dir.join("pid"));
        client.args(words).output().unwrap()
    }

    fn says(&self, scene: &Scene, words: &[&str]) -> String {
        String::from_utf8(self.ask(scene, words).stdout).unwrap()
    }

    fn database(&self) -> PathBuf {
        self.dir.join("fail2ban.sqlite3")
    }

    fn stop(mut self, scene: &Scene) {
        assert!(self.ask(scene, &["stop"]).status.success());
        self.server.wait().unwrap();
    }
}

impl Drop for Fail2ban {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

fn debian_files(dir: &Path) {
    let copied = Command::new("cp").args(["-r", "/etc/fail2ban"]).arg(dir).status().unwrap();
    assert!(copied.success(), "the package fail2ban is installed");
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn debians_whole_configuration_is_imported_and_in_order() {
    let scene = Scene::new();
    let dir = scene.path("fail2ban");
    debian_files(&dir);
    fs::write(dir.join("jail.local"), "[DEFAULT]\nenabled = true\n").unwrap();
    let all = fs::read_to_string(dir.join("jail.conf")).unwrap();
    let theirs =
        all.lines().filter(|line| line.starts_with('[')).count() - "[INCLUDES] [DEFAULT]".split(' ').count();
    let out = scene.path("nftjail.yaml");
    let output = ask(&scene, &["import", dir.to_str().unwrap(), "--output", out.to_str().unwrap()]);
    let report = text(&output.stdout);
    assert!(output.status.success(), "{report}{}", text(&output.stderr));
    let written = fs::read_dir(out.join("nftjail.d")).unwrap().count();
    // One lets hosts in instead of keeping them out.
    assert_eq!(written, theirs - 1, "{report}");
    assert!(report.contains("pass2allow-ftp: lets hosts in instead of keeping them out"), "{report}");
    assert!(!out.join("rules").exists(), "every jail is served by the shipped rule of its filter's name");
    let checked = ask(&scene, &["check"]);
    let off = report.matches("enabled false").count();
    let told = text(&checked.stdout) + &text(&checked.stderr);
    assert!(checked.status.success() && told.contains(&format!("{} jails ok", written - off)), "{told}");
}

/// Tells somebody to stop when it goes.
struct Enough<'s>(&'s AtomicBool);

impl Drop for Enough<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// SYNs to the server's port 22 from these hosts, as fast as may be, until told to stop.
fn knock(scene: &Scene, from: &[IpAddr], stop: &AtomicBool) -> u64 {
    scene.as_attacker("203.0.113.250", || {
        let mut sent = 0;
        while !stop.load(Ordering::Relaxed) {
            for from in from {
                let (domain, to) = match from {
                    IpAddr::V4(_) => (Domain::IPV4, SERVER),
                    IpAddr::V6(_) => (Domain::IPV6, SERVER_V6),
                };
                let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP)).unwrap();
                socket.set_nonblocking(true).unwrap();
                socket.bind(&SocketAddr::new(*from, 0).into()).unwrap();
                // It is on its way, or refused at once: both are a packet.
                let _ = socket.connect(&SocketAddr::new(to.parse().unwrap(), 22).into());
                sent += 1;
            }
            thread::sleep(Duration::from_millis(1));
        }
        sent
    })
}

/// Counts what passes everybody's rules, behind fail2ban's chain and ours.
const WITNESS: &str = "table inet witness {
    counter passed {}
    chain input {
        type filter hook input priority 300;
        ip saddr 203.0.113.0/29 tcp dport 22 counter name passed
        ip6 saddr 2001:db8:66::/64 tcp dport 22 counter name passed
    }
}";

fn passed(scene: &Scene) -> u64 {
    let listed = scene.nft(&["-j", "list", "counter", "inet", "witness", "passed"]);
    let listed: Value = serde_json::from_slice(&listed.stdout).unwrap();
    let counter = listed["nftables"].as_array().unwrap().iter().find_map(|object| object.get("counter"));
    counter.unwrap()["packets"].as_u64().unwrap()
}

#[test]
fn no_packet_of_a_banned_host_passes_while_one_takes_over_from_the_other() {
    let mut scene = Scene::new();
    scene.listen(22);
    scene.fail("203.0.113.1", 5);
    let local = "[DEFAULT]\nbanaction = nftables\nbantime = 1h\n[sshd]\nenabled = true\nlogpath = LOG\nbackend = polling\n";
    let fail2ban = Fail2ban::start(&scene, local);
    fail2ban.says(&scene, &["set", "sshd", "banip", "203.0.113.2", "2001:db8:66::9"]);
    let hosts = ["203.0.113.1", "203.0.113.2", "2001:db8:66::9"].map(|host| host.parse::<IpAddr>().unwrap());
    scene.wait_for("three bans", || {
        let banned = fail2ban.says(&scene, &["get", "sshd", "banip"]);
        let rows = rusqlite::Connection::open(fail2ban.database()).and_then(|database| {
            database.query_row("SELECT count(*) FROM bips", [], |row| row.get::<_, u32>(0))
        });
        banned.split_whitespace().count() == 3 && rows == Ok(3)
    });
    for host in hosts {
        scene.wait_for("a ban in fail2ban's own table", || !scene.connects(&host.to_string(), 22));
    }
    let witness = scene.nft(&[WITNESS]);
    assert!(witness.status.success(), "{}", text(&witness.stderr));

    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let knocking = scope.spawn(|| knock(&scene, &hosts, &stop));
        // Also where something here fails.
        let enough = Enough(&stop);
        let (dir, database) = (fail2ban.dir.display().to_string(), fail2ban.database().display().to_string());
        // A folder where others have their file: the scene's agent finds it there.
        let (out, state) = (scene.path("nftjail.yaml"), scene.path("state"));
        let mut import = nftjail(&scene, &["import", &dir, "--database", &database]);
        let output = import.arg("--output").arg(&out).arg("--state").arg(&state).output().unwrap();
        let told = text(&output.stdout) + &text(&output.stderr);
        assert!(
            output.status.success() && told.contains("3 bans of 1 jails are in the kernel now"),
            "{told}"
        );
        fail2ban.stop(&scene);
        let tables = text(&scene.nft(&["list", "tables"]).stdout);
        assert!(!tables.contains("f2b"), "{tables}");
        let agent = Agent::start_again(&scene);
        let bans = ask_json(&scene, &["bans"]);
        assert_eq!(bans.as_array().unwrap().len(), 3, "{bans}");
        let (seconds, whole) = (scene.elements("sshd_v4"), Some(3_600));
        assert!(seconds.iter().all(|(_, left)| *left > Some(3_000) && *left < whole), "{seconds:?}");
        assert_eq!(agent.stop().code(), Some(0));
        drop(enough);
        let sent = knocking.join().unwrap();
        assert!(sent > 300, "{sent} packets");
    });
    assert_eq!(passed(&scene), 0, "no packet passed");
    let state = rusqlite::Connection::open(scene.path("state/nftjail.sqlite3")).unwrap();
    let bans: Vec<u32> = state
        .prepare("SELECT bans FROM offender")
        .unwrap()
        .query_map([], |row| row.get(0))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    assert_eq!(bans, [1, 1, 1], "offenders are remembered");
    // The witness sees packets that pass.
    assert!(scene.nft(&["delete", "table", "inet", "nftjail"]).status.success());
    assert!(scene.connects("203.0.113.1", 22) && passed(&scene) > 0);
}

#[test]
fn what_scripts_read_is_what_fail2ban_client_prints() {
    let scene = Scene::new();
    scene.log("auth.log", "nothing yet");
    let local = "[DEFAULT]\nbanaction = nftables\n[sshd]\nenabled = true\nlogpath = LOG\nbackend = polling\n";
    let fail2ban = Fail2ban::start(&scene, local);
    let agent = Agent::start(&scene, "jails: {sshd: {logpath: LOG, port: 22}}\n");
    scene.fail("203.0.113.8", 2);
    let both = |words: &[&str]| {
        let ours = ask(&scene, &[&["f2b"], words].concat());
        let theirs = fail2ban.ask(&scene, words);
        let code = |output: &Output| output.status.code().map(|code| code & 0xff);
        ((text(&ours.stdout), code(&ours)), (text(&theirs.stdout), code(&theirs)))
    };
    scene.wait_for("both have counted", || {
        let (ours, theirs) = both(&["status", "sshd"]);
        ours == theirs && ours.0.contains("Total failed:\t2")
    });
    let commands = [
        "ping",
        "status",
        "status sshd",
        "banned",
        "get sshd banip",
        "set sshd banip 203.0.113.1",
        "set sshd banip 203.0.113.2 203.0.113.3",
        "status sshd",
        "status sshd short",
        "banned",
        "banned 203.0.113.1 203.0.113.9",
        "get sshd banip",
        "get sshd banned",
        "get sshd banned 203.0.113.1 203.0.113.9",
        "set sshd unbanip 203.0.113.1",
        "set sshd unbanip 203.0.113.1",
        "set sshd unbanip --report-absent 203.0.113.1",
        "unban 203.0.113.2",
        "unban --all",
        "unban --all",
        "status sshd",
        "banned",
        "status nosuch",
        "set nosuch banip 203.0.113.1",
        "get sshd bantime",
        "get sshd findtime",
        "get sshd maxretry",
        "get sshd logpath",
        "set sshd idle on",
        "set sshd idle off",
        "set sshd attempt 203.0.113.8",
        "reload",
        "frobnicate",
    ];
    for command in commands {
        let words: Vec<&str> = command.split(' ').collect();
        let (ours, theirs) = both(&words);
        assert_eq!(ours, theirs, "{command}");
    }
    let with_time = text(&ask(&scene, &["f2b", "set", "sshd", "banip", "203.0.113.4"]).stdout);
    assert_eq!(with_time, "1\n");
    let line = text(&ask(&scene, &["f2b", "get", "sshd", "banip", "--with-time"]).stdout);
    assert!(line.starts_with("203.0.113.4 \t20") && line.contains(" + 600 = 20"), "{line}");
    assert_eq!(agent.stop().code(), Some(0));
    assert_eq!(ask(&scene, &["f2b", "ping"]).status.code(), Some(255));
    fail2ban.stop(&scene);
}

#[test]
fn a_week_beside_fail2ban_explains_every_difference() {
    let scene = Scene::new();
    scene.log("auth.log", "nothing yet");
    let local = "[DEFAULT]\nbanaction = nftables\n[sshd]\nenabled = true\nlogpath = LOG\nbackend = polling\nmaxretry = 4\n";
    let fail2ban = Fail2ban::start(&scene, local);
    fs::write(
        scene.path("nftjail.yaml"),
        format!("jails: {{sshd: {{logpath: {}, port: 22}}}}", scene.path("auth.log").display()),
    )
    .unwrap();
    scene.fail("203.0.113.1", 5);
    scene.fail("203.0.113.2", 4);
    fail2ban.says(&scene, &["set", "sshd", "banip", "203.0.113.3"]);
    scene.wait_for("three bans", || {
        fail2ban.says(&scene, &["get", "sshd", "banip"]).split_whitespace().count() == 3
    });
    fail2ban.stop(&scene);
    let log = scene.path("fail2ban/fail2ban.log").display().to_string();
    let compared = ask_json(&scene, &["compare", "--fail2ban-log", &log]);
    let targets = |key: &str| -> Vec<(String, String)> {
        let list = compared[key].as_array().unwrap().iter();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        list.map(|one| (text(&one["target"]), text(&one["why"]["reason"]))).collect()
    };
    assert_eq!(targets("both"), [("203.0.113.1".to_owned(), String::new())]);
    assert_eq!(
        targets("only_fail2ban"),
        [
            ("203.0.113.2".to_owned(), "at most 4 of 5 failures fell within 10m here".to_owned()),
            ("203.0.113.3".to_owned(), "no line of these logs counts for it here".to_owned()),
        ]
    );
    let lines = &compared["only_fail2ban"][0]["why"];
    assert_eq!(
        (lines["nftjail"].as_array().unwrap().len(), lines["fail2ban"].as_array().unwrap().len()),
        (4, 5)
    );
    let shown = ask(&scene, &["compare", "--fail2ban-log", &log]);
    assert!(text(&shown.stdout).contains("2 bans only by fail2ban"));
}
