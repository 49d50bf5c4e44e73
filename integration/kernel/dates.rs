//! Which line counts, and when: logs in another zone, logs of containers, lines that a daemon says came again.

use crate::scene::{Agent, Scene, ask_json};

const ATTACKER: &str = "203.0.113.66";
const OTHER: &str = "203.0.113.67";

fn moment(seconds_ahead: i64, form: &str) -> String {
    let now = jiff::Timestamp::from_millisecond(nftjail::host::now().as_millis() + seconds_ahead * 1000);
    now.unwrap().strftime(form).to_string()
}

#[test]
fn old_lines_are_judged_in_the_zone_of_their_log() {
    let scene = Scene::new();
    // A minute ago, on a clock that is five hours and a half east of UTC.
    let date = moment(5 * 3600 + 1800 - 60, "%b %e %H:%M:%S");
    for _ in 0..3 {
        scene.log(
            "auth.log",
            &format!("{date} web01 sshd[42]: Failed password for root from {ATTACKER} port 22 ssh2"),
        );
    }
    let config = "jails: {sshd: {logpath: LOG, port: 22, maxretry: 3, bantime: 1h, tz: '+05:30'}}";
    let _agent = Agent::start(&scene, config);
    scene.wait_for("the ban", || scene.holds("sshd_v4", ATTACKER));
    let (_, left) = &scene.elements("sshd_v4")[0];
    assert!((3400..=3540).contains(&left.unwrap()), "it began when the last line was written: {left:?}");
}

#[test]
fn containers_are_heard_through_their_runtime() {
    let scene = Scene::new();
    let docker = |text: &str| {
        let (log, time) = (serde_json::json!(text), moment(-60, "%Y-%m-%dT%H:%M:%S.%9fZ"));
        scene.log("docker.log", &format!(r#"{{"log":{log},"stream":"stderr","time":"{time}"}}"#));
    };
    let cri = |tag: &str, text: &str| {
        scene.log("cri.log", &format!("{} stderr {tag} {text}", moment(-60, "%Y-%m-%dT%H:%M:%S.%9fZ")));
    };
    // Long, as a runtime breaks only such lines; its rest alone would name a victim.
    let long = format!("Failed password for {} from 203.0.113.9 port 22 ssh2", "x".repeat(16_384));
    let line = |text: &str| format!("sshd[42]: {text}");
    for _ in 0..2 {
        docker(&format!("{}\n", line(&format!("Failed password for root from {ATTACKER} port 22 ssh2"))));
        cri("F", &line(&format!("Failed password for root from {OTHER} port 22 ssh2")));
    }
    let config = "jails:\n  docker: {rule: sshd, logpath: LOGd, port: 22, maxretry: 3, bantime: 1h}\n  \
                  cri: {rule: sshd, logpath: LOGc, port: 22, maxretry: 3, bantime: 1h}\n";
    let path = |name: &str| scene.path(name).display().to_string();
    let config = config.replace("LOGd", &path("docker.log")).replace("LOGc", &path("cri.log"));
    let _agent = Agent::start(&scene, &config);
    for _ in 0..3 {
        docker(&line(&long));
        docker(&format!(
            "sshd[42]: Failed password for root from 203.0.113.9 port 22 ssh2 from {ATTACKER} port 22 ssh2\n"
        ));
        cri("P", &line(&long));
        cri(
            "F",
            &format!(
                "sshd[42]: Failed password for root from 203.0.113.9 port 22 ssh2 from {OTHER} port 22 ssh2"
            ),
        );
    }
    scene.wait_for("both bans", || scene.holds("docker_v4", ATTACKER) && scene.holds("cri_v4", OTHER));
    assert!(!scene.holds("docker_v4", "203.0.113.9") && !scene.holds("cri_v4", "203.0.113.9"));
}

#[test]
fn a_line_that_came_again_counts_so_often() {
    let scene = Scene::new();
    let _agent = Agent::start(&scene, "jails: {sshd: {logpath: LOG, port: 22, maxretry: 5}}");
    for (address, times) in [(OTHER, 3), (ATTACKER, 4)] {
        scene.fail(address, 1);
        let date = moment(0, "%b %e %H:%M:%S");
        scene.log("auth.log", &format!("{date} web01 last message repeated {times} times"));
    }
    scene.wait_for("the ban", || scene.holds("sshd_v4", ATTACKER));
    assert!(!scene.holds("sshd_v4", OTHER), "four are not five");
    assert_eq!(ask_json(&scene, &["status"])["troubles"], serde_json::json!([]));
}
