//! Who is never banned is not, whatever says so: a list in a file, a name, a route, a network of the host's own.

use std::fs;
use std::path::{Path, PathBuf};

use crate::scene::{Agent, SERVER, Scene, ask, ask_json, nftjail};

const OFFICE: &str = "203.0.113.9";
const ATTACKER: &str = "203.0.113.66";

fn config(defaults: &str) -> String {
    format!("defaults: {defaults}\njails: {{sshd: {{logpath: LOG, port: 22, maxretry: 3, bantime: 1h}}}}\n")
}

fn shown(scene: &Scene) -> String {
    String::from_utf8_lossy(&ask(scene, &["status"]).stdout).into_owned()
}

/// Whether the set in front of all jails holds this, as nft writes it.
fn lets_pass(scene: &Scene, net: &str) -> bool {
    let listed = scene.nft(&["list", "set", "inet", "nftjail", "ignore_v4"]);
    String::from_utf8_lossy(&listed.stdout).split([' ', ',', '\n']).any(|word| word == net)
}

/// Writes a file that `ip netns exec` puts over the one in /etc, as ip-netns(8) says; removed with this value.
struct Etc(PathBuf);

impl Etc {
    fn write(scene: &Scene, name: &str, text: &str) -> Etc {
        let dir = Path::new("/etc/netns").join(scene.server());
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(name), text).unwrap();
        Etc(dir)
    }
}

impl Drop for Etc {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_list_in_a_file_holds_as_it_is_now() {
    let mut scene = Scene::new();
    scene.listen(22);
    let list = scene.path("office.txt");
    fs::write(&list, "# nobody yet\n").unwrap();
    let _agent = Agent::start(&scene, &config(&format!("{{ignoreip: 'file:{}'}}", list.display())));
    scene.fail(OFFICE, 3);
    scene.wait_for("the ban", || scene.holds("sshd_v4", OFFICE));
    assert!(!scene.connects(OFFICE, 22));

    fs::write(&list, "203.0.113.8-203.0.113.11 # the office\n").unwrap();
    scene.wait_for("the end of the ban", || !scene.holds("sshd_v4", OFFICE));
    assert!(scene.connects(OFFICE, 22) && lets_pass(&scene, "203.0.113.8/30"));
    scene.fail(OFFICE, 9);
    scene.fail(ATTACKER, 3);
    scene.wait_for("the other ban", || scene.holds("sshd_v4", ATTACKER));
    assert!(!scene.holds("sshd_v4", OFFICE));

    fs::write(&list, "203.0.113.8\noffice\n").unwrap();
    scene.wait_for("the fault", || shown(&scene).contains("office.txt: line 2: \"office\" is neither"));
    assert!(lets_pass(&scene, "203.0.113.8/30"), "what it said before holds on");
    fs::remove_file(&list).unwrap();
    scene.wait_for("the fault", || shown(&scene).contains("office.txt: cannot be read: no such file"));
    assert!(lets_pass(&scene, "203.0.113.8/30"));
    fs::write(&list, "").unwrap();
    scene.wait_for("the empty list", || !lets_pass(&scene, "203.0.113.8/30"));
    assert!(!shown(&scene).contains("office.txt"), "{}", shown(&scene));
}

#[test]
fn a_list_of_one_jail_holds_in_that_jail() {
    let scene = Scene::new();
    let list = scene.path("office.txt");
    fs::write(&list, "").unwrap();
    let jail = |name: &str, more: &str| {
        format!("  {name}: {{rule: sshd, logpath: LOG, port: 22, maxretry: 3, bantime: 1h{more}}}\n")
    };
    let more = format!(", ignoreip: [192.0.2.1, 'file:{}']", list.display());
    let _agent = Agent::start(&scene, &format!("jails:\n{}{}", jail("kind", &more), jail("strict", "")));
    scene.fail(OFFICE, 3);
    scene.wait_for("both bans", || scene.holds("kind_v4", OFFICE) && scene.holds("strict_v4", OFFICE));
    fs::write(&list, OFFICE).unwrap();
    scene.wait_for("the end of the ban", || !scene.holds("kind_v4", OFFICE));
    assert!(scene.holds("strict_v4", OFFICE));
}

#[test]
fn a_broken_list_is_pointed_at_before_the_start() {
    let scene = Scene::new();
    let list = scene.path("office.txt");
    fs::write(&list, "203.0.113.9\n203.0.113.300 # ?\n").unwrap();
    fs::write(scene.path("nftjail.yaml"), config(&format!("{{ignoreip: 'file:{}'}}", list.display())))
        .unwrap();
    let checked = ask(&scene, &["check"]);
    assert_eq!(checked.status.code(), Some(6));
    let told = String::from_utf8_lossy(&checked.stderr).into_owned();
    assert!(told.contains("office.txt:2:1: \"203.0.113.300\" is neither an address"), "{told}");
}

#[test]
fn a_name_is_looked_up_and_one_without_address_is_told() {
    let mut scene = Scene::new();
    scene.listen(22);
    let _hosts = Etc::write(&scene, "hosts", &format!("127.0.0.1 localhost\n{OFFICE} office.example.org\n"));
    let _resolver =
        Etc::write(&scene, "resolv.conf", "nameserver 192.0.2.53\noptions timeout:1 attempts:1\n");
    let names = "{ignoreip: [office.example.org, gone.invalid]}";
    let agent = Agent::start(&scene, &config("{}"));
    scene.fail(OFFICE, 3);
    scene.wait_for("the ban", || scene.holds("sshd_v4", OFFICE));
    assert!(lets_pass(&scene, "192.0.2.53"), "the resolver");
    assert!(agent.stop().success());

    let _agent = Agent::start(&scene, &config(names));
    scene.wait_for("the end of the ban", || !scene.holds("sshd_v4", OFFICE));
    assert!(scene.connects(OFFICE, 22) && lets_pass(&scene, OFFICE));
    scene.wait_for("the trouble", || shown(&scene).contains("never banned: gone.invalid: "));
}

#[test]
fn gateways_are_spared_whenever_they_come() {
    let scene = Scene::new();
    let _agent = Agent::start(&scene, &config("{}"));
    let (first, second) = ("203.0.113.254", "203.0.113.253");
    scene.fail(first, 3);
    scene.wait_for("the ban", || scene.holds("sshd_v4", first));
    let route = |arguments: &[&str]| {
        let mut ip = scene.on_server("ip");
        assert!(ip.args(["route", "replace"]).args(arguments).status().unwrap().success());
    };
    route(&["192.0.2.0/24", "via", second, "dev", "cable0", "onlink"]);
    route(&["default", "via", first, "dev", "cable0", "onlink"]);
    scene.wait_for("the gateway", || lets_pass(&scene, first) && !scene.holds("sshd_v4", first));
    assert!(!lets_pass(&scene, second), "only those of default routes are");
    route(&["default", "table", "77", "nexthop", "via", second, "dev", "cable0", "onlink"]);
    scene.wait_for("that of another table", || lets_pass(&scene, second));
    scene.fail(first, 9);
    scene.fail(ATTACKER, 3);
    scene.wait_for("the ban", || scene.holds("sshd_v4", ATTACKER));
    assert!(!scene.holds("sshd_v4", first));
}

#[test]
fn local_networks_are_spared_unless_they_are_to_be_banned() {
    let scene = Scene::new();
    for net in ["192.168.77.1/24", "203.0.113.1/24"] {
        let mut ip = scene.on_server("ip");
        assert!(ip.args(["addr", "add", net, "dev", "cable0"]).status().unwrap().success());
    }
    let neighbour = "192.168.77.9";
    let agent = Agent::start(&scene, &config("{}"));
    scene.fail(neighbour, 9);
    scene.fail("192.168.78.9", 3);
    scene.fail(ATTACKER, 3);
    scene.wait_for("the bans", || scene.holds("sshd_v4", "192.168.78.9") && scene.holds("sshd_v4", ATTACKER));
    assert!(!scene.holds("sshd_v4", neighbour) && lets_pass(&scene, "192.168.77.0/24"));
    let refused = ask(&scene, &["ban", "sshd", neighbour]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("local network"));

    let log = scene.path("auth.log").display().to_string();
    fs::write(scene.path("nftjail.yaml"), config("{ban_local: true}").replace("LOG", &log)).unwrap();
    assert!(ask(&scene, &["reload"]).status.success());
    assert!(!lets_pass(&scene, "192.168.77.0/24") && lets_pass(&scene, "192.168.77.1"));
    scene.fail(neighbour, 3);
    scene.wait_for("the ban", || scene.holds("sshd_v4", neighbour));
    drop(agent);
}

#[test]
fn nobody_bans_the_own_session_by_mistake() {
    let scene = Scene::new();
    let _agent = Agent::start(&scene, &config("{}"));
    let ban = |arguments: &[&str]| {
        let mut ban = nftjail(&scene, &["ban", "sshd", OFFICE]);
        ban.env("SSH_CONNECTION", format!("{OFFICE} 50000 {SERVER} 22")).args(arguments).output().unwrap()
    };
    let refused = ban(&[]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("your own ssh session"));
    assert!(!scene.holds("sshd_v4", OFFICE));
    assert!(ban(&["--force"]).status.success());
    assert!(scene.holds("sshd_v4", OFFICE));
}

fn told(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn who_is_ignored_by_hand_is_free_at_once_and_stays_so_over_restart_and_reload() {
    let mut scene = Scene::new();
    scene.listen(22);
    let agent = Agent::start(&scene, &config("{}"));
    scene.fail(OFFICE, 3);
    scene.fail("203.0.113.10", 3);
    scene.wait_for("the bans", || scene.holds("sshd_v4", OFFICE) && scene.holds("sshd_v4", "203.0.113.10"));
    let added = ask(&scene, &["ignore", "add", OFFICE]);
    assert_eq!(told(&added), format!("{OFFICE} is never banned from now on; 1 ban was lifted\n"));
    assert!(!scene.holds("sshd_v4", OFFICE), "lifted before the answer");
    assert!(scene.connects(OFFICE, 22) && lets_pass(&scene, OFFICE));
    assert!(told(&ask(&scene, &["ignore", "add", "203.0.113.8/30"])).contains("1 ban was lifted"));
    assert!(!scene.holds("sshd_v4", "203.0.113.10") && lets_pass(&scene, "203.0.113.8/30"));
    let never = "  never banned, by hand: 203.0.113.8/30, 203.0.113.9\n";
    assert!(shown(&scene).contains(never), "{}", shown(&scene));
    let json = ask_json(&scene, &["status"]);
    assert_eq!(json["ignored"], serde_json::json!(["203.0.113.8/30", "203.0.113.9/32"]));

    let text = fs::read_to_string(scene.path("nftjail.yaml")).unwrap();
    assert!(ask(&scene, &["reload"]).status.success());
    assert!(lets_pass(&scene, "203.0.113.8/30"));
    scene.wait_for("the state", || {
        let state = rusqlite::Connection::open(scene.path("state/nftjail.sqlite3")).unwrap();
        state.query_row("SELECT count(*) FROM ignored", [], |row| row.get(0)) == Ok(2)
    });
    agent.kill();
    let agent = Agent::start_again(&scene);
    assert!(lets_pass(&scene, "203.0.113.8/30") && shown(&scene).contains(never));
    scene.fail(OFFICE, 9);
    scene.fail(ATTACKER, 3);
    scene.wait_for("the other ban", || scene.holds("sshd_v4", ATTACKER));
    assert!(!scene.holds("sshd_v4", OFFICE));
    assert_eq!(
        fs::read_to_string(scene.path("nftjail.yaml")).unwrap(),
        text,
        "the configuration is the user's"
    );

    let removed = ask(&scene, &["ignore", "remove", OFFICE]);
    assert_eq!(
        told(&removed),
        format!("{OFFICE} is no longer ignored by itself, but 203.0.113.8/30 is, by hand\n")
    );
    assert!(ask(&scene, &["ignore", "remove", "203.0.113.8/30"]).status.success());
    assert!(!lets_pass(&scene, "203.0.113.8/30") && !lets_pass(&scene, OFFICE));
    assert!(agent.stop().success());
    let _agent = Agent::start_again(&scene);
    scene.fail(OFFICE, 3);
    scene.wait_for("the ban", || scene.holds("sshd_v4", OFFICE));
}

#[test]
fn the_list_of_the_ignored_says_who_says_so_and_what_is_written_is_changed_where_it_is() {
    let scene = Scene::new();
    let list = scene.path("office.txt");
    fs::write(&list, "192.0.2.7\n").unwrap();
    let text = format!(
        "defaults:\n  ignoreip: [192.0.2.128/25, 'file:{}']\n  trusted_proxies: 198.51.100.8/29\njails:\n  sshd: \
         {{logpath: LOG, port: 22, ignoreip: 203.0.113.4}}\n",
        list.display()
    );
    let _agent = Agent::start(&scene, &text);
    assert!(ask(&scene, &["ignore", "add", "::ffff:203.0.113.9"]).status.success());
    let yaml = scene.path("nftjail.yaml").display().to_string();
    let file = format!("ignoreip ({yaml}:2), file:{}", list.display());
    let listed = ask_json(&scene, &["ignore", "list"]);
    for (net, jail, from) in [
        ("203.0.113.9/32", None, "hand"),
        ("192.0.2.128/25", None, &format!("ignoreip ({yaml}:2)")),
        ("192.0.2.7/32", None, &file),
        ("198.51.100.8/29", None, &format!("trusted_proxies ({yaml}:3)")),
        ("203.0.113.4/32", Some("sshd"), "ignoreip of sshd"),
        ("198.51.100.1/32", None, "this host (its own, or one it needs)"),
    ] {
        let wanted = serde_json::json!({"net": net, "jail": jail, "from": from});
        assert!(listed.as_array().unwrap().contains(&wanted), "{wanted} is not in {listed:#}");
    }
    assert!(told(&ask(&scene, &["ignore", "list"])).contains("203.0.113.9   "));
    for (arguments, code, message) in [
        (
            &["remove", "192.0.2.128/25"][..],
            1,
            format!("was not added: it is never banned by ignoreip ({yaml}:2)"),
        ),
        (&["remove", "192.0.2.7"], 1, format!("never banned by {file}")),
        (
            &["remove", "192.0.2.200"],
            1,
            format!("part of 192.0.2.128/25, never banned by ignoreip ({yaml}:2)"),
        ),
        (
            &["remove", "198.51.100.9"],
            1,
            "part of 198.51.100.8/29, never banned by trusted_proxies".to_owned(),
        ),
        (&["remove", "203.0.113.1"], 5, "203.0.113.1 is not ignored".to_owned()),
        (&["add", "0.0.0.0/0"], 1, "0.0.0.0/0 is not ignored: wider than a /8, it would".to_owned()),
        (&["add", "2000::/3"], 1, "wider than a /16".to_owned()),
        (&["add", "203.0.113.9/8"], 2, "has bits beyond its prefix: write 203.0.0.0/8".to_owned()),
        (&["add", "office"], 2, "\"office\" is neither an address nor a network".to_owned()),
        (&["add", "10.0.0.0/8"], 0, String::new()),
        (&["add", "0.0.0.0/0", "--force"], 0, String::new()),
    ] {
        let output = ask(&scene, &[&["ignore"], arguments].concat());
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", told(&output));
        assert!(told(&output).contains(&message), "{arguments:?}: {}", told(&output));
    }
    assert!(lets_pass(&scene, "0.0.0.0/0"));
    let refused = ask(&scene, &["ban", "sshd", "203.0.113.77"]);
    assert!(
        told(&refused).contains("203.0.113.77 is never banned: it is ignored by hand"),
        "{}",
        told(&refused)
    );
}

const PROXY: &str = "198.51.100.9";

#[test]
fn a_trusted_proxy_is_never_banned_and_a_log_that_shows_nobody_else_is_told_loudly() {
    let mut scene = Scene::new();
    scene.listen(22);
    let _agent = Agent::start(&scene, &config("{trusted_proxies: [198.51.100.8/29]}"));
    assert!(lets_pass(&scene, "198.51.100.8/29"));
    assert!(told(&ask(&scene, &["ban", "sshd", PROXY])).contains("is never banned"));
    let log = scene.path("auth.log").display().to_string();
    let hint = format!(
        "every failure in {log} comes from {PROXY}, your proxy: log the real client (nginx: set_real_ip_from"
    );
    scene.fail(PROXY, 19);
    scene.wait_for("the lines", || ask_json(&scene, &["status"])["sources"][0]["lines"] == 19);
    assert!(!shown(&scene).contains("proxy"), "{}", shown(&scene));
    scene.fail(PROXY, 40);
    scene.wait_for("the hint", || shown(&scene).contains(&hint));
    let said = fs::read_to_string(scene.path("agent.log")).unwrap();
    assert_eq!(said.matches("your proxy").count(), 1, "once is enough for a log");
    assert!(said.lines().any(|line| line.contains("WARN") && line.contains(&hint)));

    scene.fail(ATTACKER, 3);
    scene.wait_for("the ban", || scene.holds("sshd_v4", ATTACKER));
    assert!(!shown(&scene).contains("proxy"), "the log names clients by now: {}", shown(&scene));
    assert_eq!(scene.elements("sshd_v4").len(), 1);
    scene.fail("127.0.0.1", 20);
    let hint = "comes from 127.0.0.1, which is never banned: if that is a proxy, log the real client";
    scene.wait_for("the hint", || shown(&scene).contains(hint));
}

#[test]
fn neither_an_office_nor_a_private_host_that_is_banned_is_taken_for_a_proxy() {
    let scene = Scene::new();
    let _agent = Agent::start(&scene, &config(&format!("{{ignoreip: {OFFICE}, trusted_proxies: {PROXY}}}")));
    for _ in 0..15 {
        scene.fail(PROXY, 3);
        scene.fail(OFFICE, 3);
    }
    scene.wait_for("the lines", || ask_json(&scene, &["status"])["sources"][0]["lines"] == 90);
    scene.fail("192.168.78.9", 25);
    scene.wait_for("the ban", || scene.holds("sshd_v4", "192.168.78.9"));
    scene.wait_for("the lines", || ask_json(&scene, &["status"])["sources"][0]["lines"] == 115);
    assert!(!shown(&scene).contains("proxy"), "{}", shown(&scene));
}
