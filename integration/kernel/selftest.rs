//! The self-test passes where all works, fails where one part does not, and leaves nothing behind.

use std::fs;
use std::path::Path;
use std::thread;

use nftjail::control::{Request, Response};
use nftjail::nft::Firewall;
use nftjail::selftest::{self, Wishes};
use nftjail::server;
use nftjail::state::State;

use super::netns::{in_namespace, installed, run};
use super::scene::{Agent, Scene, ask, ask_json};

const PROBED: &str = "192.0.2.213";

/// Three jails with logs, of which two share one, and one that hears the others.
fn host(scene: &Scene) -> Agent {
    fs::write(scene.path("auth.log"), "").unwrap();
    fs::write(scene.path("web.log"), "").unwrap();
    let config = format!(
        "jails:\n  sshd: {{logpath: LOG, port: 22, maxretry: 2, bantime: 1h}}\n  \
         again: {{rule: sshd, logpath: LOG, port: all, maxretry: 1, bantime: 1h, hook: [input, forward]}}\n  \
         nginx-http-auth: {{logpath: {}, port: 80}}\n  recidive: {{maxretry: 1}}\n",
        scene.path("web.log").display()
    );
    Agent::start(scene, &config)
}

fn line(scene: &Scene, arguments: &[&str]) -> (Option<i32>, String) {
    let output = ask(scene, &[&["selftest"], arguments].concat());
    (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

#[test]
fn every_jail_of_a_sound_host_is_proven_and_nothing_stays() {
    let scene = Scene::new();
    let agent = host(&scene);
    let links = || scene.on_server("ip").args(["-o", "link"]).output().unwrap().stdout;
    let before = links();
    let (code, told) = line(&scene, &["--packets"]);
    assert_eq!(code, Some(0), "{told}");
    assert!(told.starts_with("selftest ok: 3 of 4 jails, line to kernel "), "{told}");
    assert!(told.contains("; again met no packet: "), "{told}");
    assert!(told.contains("; recidive not probed: ") && told.lines().count() == 1, "{told}");
    assert_eq!(links(), before);
    for log in ["auth.log", "web.log"] {
        let text = fs::read_to_string(scene.path(log)).unwrap();
        let lines = text.lines().filter(|line| line.contains(PROBED)).count();
        assert_eq!(lines, if log == "auth.log" { 2 } else { 1 }, "{text}");
    }
    for set in ["sshd_v4", "again_v4", "nginx-http-auth_v4", "recidive_v4"] {
        assert_eq!(scene.elements(set), []);
    }
    let status = ask_json(&scene, &["status"]);
    for jail in status["jails"].as_array().unwrap() {
        for count in ["failing", "failed_total", "banned", "banned_total"] {
            assert_eq!(jail[count], 0, "{count} of {jail}");
        }
        let met_one = jail["name"] == "sshd" || jail["name"] == "nginx-http-auth";
        assert_eq!(jail["dropped"]["packets"], u64::from(met_one), "{jail}");
    }
    assert_eq!(status["repairs"]["total"], 0);
    assert!(!fs::read_to_string(scene.path("agent.log")).unwrap().contains(PROBED));
    assert_eq!(line(&scene, &[]).0, Some(0), "it can be run again at once");
    assert!(agent.stop().success());
    let (_state, saved) = State::open(&scene.path("state")).unwrap();
    assert_eq!((saved.memories, saved.bans), (Vec::new(), Vec::new()));
}

#[test]
fn what_does_not_work_is_named() {
    let scene = Scene::new();
    let _agent = host(&scene);
    assert!(ask(&scene, &["pause", "again"]).status.success());
    let config = fs::read_to_string(scene.path("nftjail.yaml")).unwrap();
    fs::write(scene.path("other.log"), "").unwrap();
    let web = scene.path("web.log").display().to_string();
    fs::write(
        scene.path("nftjail.yaml"),
        config.replace(&web, &scene.path("other.log").display().to_string())
            + "  dovecot: {logpath: /nowhere, port: 1}\n",
    )
    .unwrap();
    let (code, told) = line(&scene, &[]);
    assert_eq!(code, Some(1), "{told}");
    for piece in [
        "selftest FAILED: 1 of 5 jails, ",
        "; again not probed: it is paused",
        "; dovecot FAILS: /nowhere is not there",
        "other.log: a line was written, and the kernel of this network namespace holds no ban for it",
    ] {
        assert!(told.contains(piece), "{piece}: {told}");
    }
}

#[test]
fn an_agent_that_is_down_is_told_apart_and_a_dry_run_writes_nothing() {
    let scene = Scene::new();
    let agent = host(&scene);
    let before = fs::read_to_string(scene.path("auth.log")).unwrap();
    let (code, told) = line(&scene, &["--dry-run"]);
    assert!(
        code == Some(0) && told.contains("Failed password for nftjail-selftest from 192.0.2.213"),
        "{told}"
    );
    agent.kill();
    let (code, told) = line(&scene, &[]);
    assert!(code == Some(3) && told.contains("does not run"), "{told}");
    assert_eq!(fs::read_to_string(scene.path("auth.log")).unwrap(), before);
}

#[test]
fn whom_the_configuration_spares_is_not_taken_for_the_test() {
    let scene = Scene::new();
    fs::write(scene.path("auth.log"), "").unwrap();
    let _agent = Agent::start(
        &scene,
        "defaults: {ignoreip: [192.0.2.0/24]}\njails: {sshd: {logpath: LOG, port: 22}}\n",
    );
    let (code, told) = line(&scene, &[]);
    assert_eq!(code, Some(0), "{told}");
    assert!(fs::read_to_string(scene.path("auth.log")).unwrap().contains("198.51.100.213"));
}

/// An agent that answers and bans, and lets everything pass.
#[test]
fn a_ban_that_drops_nothing_is_no_pass() {
    in_namespace(|| {
        let dir = tempfile::tempdir().unwrap();
        let (log, place, socket) =
            (dir.path().join("log"), dir.path().join("nftjail.yaml"), dir.path().join("control.sock"));
        fs::write(&log, "").unwrap();
        fs::write(&place, format!("jails: {{sshd: {{logpath: {}, port: 22}}}}\n", log.display())).unwrap();
        let mut kernel = installed(&super::netns::layout());
        assert_eq!(tested(&place, &socket, &log), (true, String::new()));
        run(&["nft", "flush", "chain", "inet", "nftjail", "prerouting"]);
        let (works, told) = tested(&place, &socket, &log);
        assert!(!works && told.contains("nothing drops by it: no chain at prerouting leads to"), "{told}");
        run(&["nft", "flush", "chain", "inet", "nftjail", "jail_sshd"]);
        let (works, told) = tested(&place, &socket, &log);
        assert!(
            !works && told.contains("nothing drops by it: no rule drops what is in the set sshd_v4"),
            "{told}"
        );
        assert!(kernel.table(true).unwrap().unwrap().standing().next().is_none());
    });
}

/// What the self-test says of an agent that bans whom a line shows, and does nothing else.
fn tested(place: &Path, socket: &Path, log: &Path) -> (bool, String) {
    fs::write(log, "").unwrap();
    let _ = fs::remove_file(socket);
    thread::scope(|scope| {
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let agent = scope.spawn(move || {
            runtime.block_on(async {
                let (ask, mut asked) = tokio::sync::mpsc::channel::<server::Asked>(4);
                tokio::spawn(server::serve(
                    server::listen(socket).unwrap(),
                    ask,
                    tokio::sync::broadcast::channel(1).0,
                ));
                tokio::spawn(async move {
                    while let Some(question) = asked.recv().await {
                        let answer = match question.request {
                            Request::Probe { .. } => Response::Probe(PROBED.parse().unwrap()),
                            _ => Response::Done(String::new()),
                        };
                        let _ = question.answer.send(answer);
                    }
                });
                ready.send(()).unwrap();
                let _ = stopped.await;
            });
        });
        is_ready.recv().unwrap();
        let banner = scope.spawn(|| {
            while fs::read_to_string(log).unwrap().is_empty() {
                thread::yield_now();
            }
            run(&["nft", "add", "element", "inet", "nftjail", "sshd_v4", "{ 192.0.2.213 timeout 1s }"]);
        });
        let Ok(tested) = selftest::run(Some(place), socket, Wishes::default()) else { panic!() };
        banner.join().unwrap();
        drop(stop);
        agent.join().unwrap();
        (tested.works, if tested.works { String::new() } else { tested.text })
    })
}
