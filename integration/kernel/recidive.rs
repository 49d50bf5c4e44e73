//! The story of one host that comes again and again, told with packets.

use std::fs;

use crate::scene::{Agent, Scene, ask, ask_json};

const HOST: &str = "203.0.113.66";
const NEIGHBOUR: &str = "203.0.113.67";
const JAILS: &str = "jails:\n  sshd: {logpath: LOG, port: 22, maxretry: 3, bantime: 3s}\n  \
                     recidive: {maxretry: 2, findtime: 1d, bantime: 1w}\n";

/// Where a host still gets in: by ssh, and to the web server.
fn gets_in(scene: &Scene, host: &str) -> (bool, bool) {
    (scene.connects(host, 22), scene.connects(host, 80))
}

/// The same, as long as the set holds the host: a short ban may end on a slow machine before all is tried.
fn gets_in_while_held(scene: &Scene, set: &str, wanted: (bool, bool)) {
    let got = gets_in(scene, HOST);
    assert!(got == wanted || !scene.holds(set, HOST), "{got:?}, not {wanted:?}");
}

fn jails_that_ban(scene: &Scene, host: &str) -> Vec<String> {
    let bans = ask_json(scene, &["bans"]);
    let of_it = bans.as_array().unwrap().iter().filter(|ban| ban["target"] == host);
    of_it.map(|ban| ban["jail"].as_str().unwrap().to_owned()).collect()
}

/// The kernel ends a ban by its own clock, which may be some milliseconds before the agent's.
fn wait_for_its_end(scene: &Scene) {
    let gone = || !scene.holds("sshd_v4", HOST) && !jails_that_ban(scene, HOST).contains(&"sshd".to_owned());
    scene.wait_for("the end of sshd's ban", gone);
}

#[test]
fn two_bans_of_one_host_overlap_and_neither_ends_the_other() {
    let mut scene = Scene::new();
    scene.listen(22);
    scene.listen(80);
    let agent = Agent::start(&scene, JAILS);

    // Monday: it guesses passwords. It may no more, for a while; the web server is none of sshd's business.
    scene.fail(HOST, 3);
    scene.wait_for("the first ban", || scene.holds("sshd_v4", HOST));
    gets_in_while_held(&scene, "sshd_v4", (false, true));
    wait_for_its_end(&scene);
    assert_eq!(gets_in(&scene, HOST), (true, true));

    // Later that day it is back. Now two jails ban it: one for a while, and one for the week, from everything.
    scene.fail(HOST, 3);
    scene.wait_for("both bans", || scene.holds("sshd_v4", HOST) && scene.holds("recidive_v4", HOST));
    assert_eq!(gets_in(&scene, HOST), (false, false));

    // The short ban is over. Its end is its own.
    scene.wait_for("the end of the short one", || jails_that_ban(&scene, HOST) == ["recidive"]);
    assert!(!scene.holds("sshd_v4", HOST));
    assert_eq!(gets_in(&scene, HOST), (false, false));

    // Somebody bans it by hand, changes his mind, and lifts that; then he changes the jail, and starts the agent anew.
    assert!(ask(&scene, &["ban", "sshd", HOST, "--for", "1h"]).status.success());
    assert!(ask(&scene, &["unban", HOST, "--jail", "sshd"]).status.success());
    assert_eq!(gets_in(&scene, HOST), (false, false));
    let log = scene.path("auth.log").display().to_string();
    let other = JAILS.replace("LOG", &log).replace("port: 22", "port: [22, 2222]").replace("3s", "1h");
    fs::write(scene.path("nftjail.yaml"), other).unwrap();
    assert!(ask(&scene, &["reload"]).status.success());
    assert_eq!(jails_that_ban(&scene, HOST), ["recidive"]);
    assert!(agent.stop().success());
    let _agent = Agent::start_again(&scene);
    assert_eq!(jails_that_ban(&scene, HOST), ["recidive"]);
    assert_eq!(gets_in(&scene, HOST), (false, false));
    assert_eq!(gets_in(&scene, NEIGHBOUR), (true, true), "all the while everybody else gets in");

    // Its week has begun when it was banned, and nothing of all this began it anew.
    let left = scene.elements("recidive_v4")[0].1.unwrap();
    assert!((6 * 86_400..7 * 86_400 - 3).contains(&left), "{left} seconds are left");
}

/// A week is five seconds here.
#[test]
fn when_the_week_is_over_nothing_of_it_is_left() {
    let mut scene = Scene::new();
    scene.listen(22);
    scene.listen(80);
    let agent = Agent::start(&scene, &JAILS.replace("1w", "5s"));

    // Twice banned, and now for the week.
    for round in 1..=2 {
        scene.fail(HOST, 3);
        scene.wait_for("the ban", || scene.holds("sshd_v4", HOST));
        if round == 1 {
            wait_for_its_end(&scene);
        }
    }
    scene.wait_for("recidive", || scene.holds("recidive_v4", HOST));

    // The week passes while nobody looks: the kernel ends the ban without the agent.
    assert!(agent.stop().success());
    gets_in_while_held(&scene, "recidive_v4", (false, false));
    scene.wait_for("the end of the week", || !scene.holds("recidive_v4", HOST));
    scene.wait_for("the end of the day", || scene.elements("sshd_v4").is_empty());
    assert_eq!(gets_in(&scene, HOST), (true, true));
    assert!(scene.elements("recidive_v4").is_empty());

    // The agent comes back. It bans nobody for what is over, and the old bans are not counted once more: whoever has
    // the address now begins anew. One ban is sshd's affair, the second is recidive's again.
    let _agent = Agent::start_again(&scene);
    assert_eq!(jails_that_ban(&scene, HOST), Vec::<String>::new());
    assert_eq!(gets_in(&scene, HOST), (true, true));
    scene.fail(HOST, 2);
    scene.wait_for("the lines", || ask_json(&scene, &["status"])["jails"][1]["failed_total"] == 2);
    assert_eq!(jails_that_ban(&scene, HOST), Vec::<String>::new(), "two failures are two");
    scene.fail(HOST, 1);
    scene.wait_for("the ban", || scene.holds("sshd_v4", HOST));
    assert!(!scene.holds("recidive_v4", HOST), "the first of this life");
    gets_in_while_held(&scene, "sshd_v4", (false, true));
    wait_for_its_end(&scene);
    scene.fail(HOST, 3);
    scene.wait_for("recidive", || scene.holds("recidive_v4", HOST));
}
