//! Who is never banned is not, whatever says so: a list in a file, a name, a route, a network of the host's own.

use std::fs;
use std::path::{Path, PathBuf};

use crate::scene::{Agent, SERVER, Scene, ask, nftjail};

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
    scene.wait_for("the trouble", || shown(&scene).contains("ignoreip: gone.invalid: "));
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
