//! Lines that nobody keeps: a ban through each kind of stream, and what hostile hands do to it.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;

use crate::scene::{Agent, Scene, ask_json, failure};

const ATTACKER: &str = "203.0.113.66";
const OTHER: &str = "203.0.113.67";

fn jail(logpath: &str) -> String {
    format!("jails:\n  sshd:\n    logpath: {logpath}\n    port: 22\n    maxretry: 3\n    bantime: 1h\n")
}

fn failures(address: &str, count: usize) -> String {
    format!("{}\n", failure(address)).repeat(count)
}

fn write(path: &Path, text: &str) {
    OpenOptions::new().write(true).open(path).unwrap().write_all(text.as_bytes()).unwrap();
}

/// How the only source stands, in words.
fn state(scene: &Scene) -> String {
    ask_json(scene, &["status"])["sources"][0]["state"].as_str().unwrap().to_owned()
}

#[test]
fn failures_that_come_through_a_fifo_ban_whoever_replaces_it() {
    let scene = Scene::new();
    let path = scene.path("log");
    let agent = Agent::start(&scene, &jail(&format!("fifo:{}", path.display())));
    scene.wait_for("the fifo", || path.exists());
    write(&path, &failures(ATTACKER, 3));
    scene.wait_for("the ban", || scene.holds("sshd_v4", ATTACKER));

    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    scene.wait_for("the refusal", || state(&scene).ends_with("it is a directory, not a fifo"));
    fs::remove_dir(&path).unwrap();
    scene.wait_for("the fifo again", || state(&scene) == "following");
    write(&path, &failures(OTHER, 3));
    scene.wait_for("the other ban", || scene.holds("sshd_v4", OTHER));
    assert!(agent.stop().success());
}
