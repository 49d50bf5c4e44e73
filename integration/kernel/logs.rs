//! Logs as the agent reads them: every line counts once, whatever kills it, and every file of a pattern is read.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{chown, lchown, symlink};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use rusqlite::Connection;

use crate::scene::{Agent, Scene, ask, ask_json, failure};

const ADDRESSES: usize = 20;

/// Kills the agent at many moments while a log is written and rotated; then each line counted once.
fn every_line_counts_once(kills: u64, logpath: &str) {
    let scene = Scene::new();
    let path = scene.path(logpath).display().to_string();
    let config = format!("jails: {{sshd: {{logpath: '{path}', port: 22, maxretry: 1000, findtime: 1d}}}}\n");
    fs::write(scene.path("site.log"), "").unwrap();
    let first = Agent::start(&scene, &config);
    let (stop, written) = (AtomicBool::new(false), AtomicUsize::new(0));
    let agent = thread::scope(|scope| {
        scope.spawn(|| write(&scene, &stop, &written));
        let mut agent = first;
        for kill in 0..kills {
            // At any moment of the second in which what was read is saved.
            thread::sleep(Duration::from_millis(kill * 7_919 % 1_300));
            agent.kill();
            agent = Agent::start_again(&scene);
        }
        stop.store(true, Ordering::Relaxed);
        agent
    });
    let written = written.load(Ordering::Relaxed);
    scene.wait_for("the last line", || ask_json(&scene, &["status"])["sources"][0]["behind"] == 0);
    assert!(agent.stop().success());
    let state = Connection::open(scene.path("state/nftjail.sqlite3")).unwrap();
    let mut query = state.prepare("SELECT target, json_array_length(times) FROM failure").unwrap();
    let rows =
        query.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, u32>(1)? as usize))).unwrap();
    let mut counted: Vec<(String, usize)> = rows.collect::<Result<_, _>>().unwrap();
    counted.sort();
    let mut expected: Vec<(String, usize)> = (0..ADDRESSES)
        .map(|address| (format!("203.0.113.{address}"), (written + ADDRESSES - 1 - address) / ADDRESSES))
        .collect();
    expected.sort();
    assert_eq!(counted, expected, "{written} lines and {kills} kills");
    println!("{kills} kills under {written} lines: every line counted once");
}

/// Writes failures of each address in turn, and rotates now and then as logrotate does.
fn write(scene: &Scene, stop: &AtomicBool, written: &AtomicUsize) {
    let name = |number: usize| match number {
        0 => "site.log".to_owned(),
        _ => format!("site.log.{number}"),
    };
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) && number < ADDRESSES * 990 {
        if number % 700 == 699 {
            for old in (0..5).rev() {
                let _ = fs::rename(scene.path(&name(old)), scene.path(&name(old + 1)));
            }
        }
        scene.log("site.log", &failure(&format!("203.0.113.{}", number % ADDRESSES)));
        number += 1;
        written.store(number, Ordering::Relaxed);
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn ten_kills_under_load_leave_every_failure_counted_once() {
    every_line_counts_once(10, "site.log");
}

#[test]
fn nor_do_kills_disturb_the_files_of_a_pattern() {
    every_line_counts_once(5, "site*");
}

#[test]
#[ignore = "runs for minutes"]
fn a_hundred_kills_under_load_leave_every_failure_counted_once() {
    every_line_counts_once(100, "site.log");
}

#[test]
fn a_file_that_comes_to_match_a_pattern_is_read_at_once() {
    let scene = Scene::new();
    fs::create_dir(scene.path("web")).unwrap();
    let pattern = scene.path("web/*access.log").display().to_string();
    let config = format!("jails: {{sshd: {{logpath: '{pattern}', port: 22, maxretry: 3, bantime: 1h}}}}\n");
    let _agent = Agent::start(&scene, &config);
    let status = ask(&scene, &["status"]);
    let status = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(
        status.starts_with("0 jails ok, 1 waiting; sshd: no file matches: waiting for one\n"),
        "{status}"
    );
    for (count, (name, address)) in
        [("shop.access.log", "203.0.113.66"), ("blog.access.log", "203.0.113.67")].into_iter().enumerate()
    {
        for _ in 0..3 {
            scene.log(&format!("web/{name}"), &failure(address));
        }
        scene.log("web/error.log", &failure("203.0.113.99"));
        scene.wait_for("the ban", || scene.holds("sshd_v4", address));
        let status = ask_json(&scene, &["status"]);
        let wanted = if count == 0 { "following 1 file" } else { "following 2 files" };
        assert_eq!(status["sources"][0]["state"], wanted);
        assert_eq!(status["sources"][0]["name"], pattern.as_str());
    }
    let status = ask(&scene, &["status"]);
    assert!(String::from_utf8_lossy(&status.stdout).starts_with("1 jail ok\n"));
    assert_eq!(scene.elements("sshd_v4").len(), 2);
}

/// The logs of a web application, in a folder where its own user may put what it likes.
#[test]
fn nothing_in_a_folder_of_others_has_the_agent_read_what_is_not_theirs() {
    const NOBODY: u32 = 65_534;
    let scene = Scene::new();
    let dir = scene.path("app");
    fs::create_dir(&dir).unwrap();
    chown(&dir, Some(NOBODY), None).unwrap();
    scene.log("secret", &failure("203.0.113.66"));
    let put = |name: &str, owner: u32, make: &dyn Fn(&std::path::Path)| {
        make(&dir.join(name));
        lchown(dir.join(name), Some(owner), None).unwrap();
    };
    put("link.log", NOBODY, &|path| symlink(scene.path("secret"), path).unwrap());
    put("device.log", NOBODY, &|path| symlink("/dev/zero", path).unwrap());
    put("folder.log", NOBODY, &|path| fs::create_dir(path).unwrap());
    put("fifo.log", NOBODY, &|path| {
        assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
    });
    let mut logs: Vec<String> = ["link", "device", "folder", "fifo", "good"]
        .iter()
        .map(|name| dir.join(format!("{name}.log")).display().to_string())
        .collect();
    logs.push(dir.join("*.log").display().to_string());
    let config = format!("jails: {{sshd: {{logpath: {logs:?}, port: 22, maxretry: 1, bantime: 1h}}}}\n");
    let _agent = Agent::start(&scene, &config);
    put("good.log", NOBODY, &|path| {
        let mut file = OpenOptions::new().create(true).append(true).open(path).unwrap();
        file.write_all(format!("{}\n", failure("203.0.113.67")).as_bytes()).unwrap();
    });
    scene.wait_for("the ban from the log", || scene.holds("sshd_v4", "203.0.113.67"));
    assert!(!scene.holds("sshd_v4", "203.0.113.66"), "what the link leads to is not read");
    let status = ask_json(&scene, &["status"]);
    let state = |name: &str| {
        let sources = status["sources"].as_array().unwrap();
        let source = sources.iter().find(|source| source["name"].as_str().unwrap().ends_with(name)).unwrap();
        source["state"].as_str().unwrap().to_owned()
    };
    assert!(state("link.log").contains("belongs to user 65534 and leads to a file of user 0"));
    assert!(state("device.log").ends_with("it is a device, not a file"));
    assert!(state("folder.log").ends_with("it is a directory, not a file"));
    assert!(state("fifo.log").ends_with("it is a FIFO, not a file"));
    assert!(state("*.log").starts_with("following 1 file; not reading "), "{}", state("*.log"));
}
