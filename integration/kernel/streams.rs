//! Lines that nobody keeps: a ban through each kind of stream, and what hostile hands do to it.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::Write;
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;

use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;

use crate::scene::{Agent, Scene, ask, ask_json, failure, nftjail};

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

/// The first source as the status has it.
fn source(scene: &Scene) -> Value {
    ask_json(scene, &["status"])["sources"][0].clone()
}

fn state(scene: &Scene) -> String {
    source(scene)["state"].as_str().unwrap().to_owned()
}

fn lines(scene: &Scene) -> u64 {
    source(scene)["lines"].as_u64().unwrap()
}

fn pid(scene: &Scene) -> Pid {
    let pid = ask_json(scene, &["status"])["pid"].as_i64().unwrap();
    Pid::from_raw(i32::try_from(pid).unwrap()).unwrap()
}

/// The most memory that the agent ever held, in KiB.
fn most_memory(pid: Pid) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Runs something on a thread of its own in the server's namespace.
fn as_server<T: Send>(scene: &Scene, act: impl FnOnce() -> T + Send) -> T {
    let namespace = File::open(Path::new("/run/netns").join(scene.server())).unwrap();
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            act()
        });
        thread.join().unwrap()
    })
}

/// What glibc's syslog(3) sends: no host, and the line's priority in front.
fn syslog(address: &str) -> String {
    let line = failure(address);
    let (_, message) = line.split_once(" web01 ").unwrap();
    format!("<86>Nov 21 10:00:00 {message}")
}

#[test]
fn failures_that_come_through_a_fifo_ban_whoever_replaces_it() {
    let scene = Scene::new();
    let path = scene.path("log");
    let agent = Agent::start(&scene, &jail(&format!("fifo:{}", path.display())));
    scene.wait_for("the fifo", || path.exists());
    write(&path, &failures(ATTACKER, 3));
    scene.wait_for("the ban", || scene.holds("sshd_v4", ATTACKER));

    // The agent makes the fifo again as soon as it sees that it is gone.
    scene.wait_for("a folder in its place", || {
        fs::remove_file(&path).is_ok() && fs::create_dir(&path).is_ok()
    });
    scene.wait_for("the refusal", || state(&scene).ends_with("it is a directory, not a fifo"));
    fs::remove_dir(&path).unwrap();
    scene.wait_for("the fifo again", || state(&scene) == "following");
    write(&path, &failures(OTHER, 3));
    scene.wait_for("the other ban", || scene.holds("sshd_v4", OTHER));
    assert!(agent.stop().success());
}

#[test]
fn a_flood_through_a_fifo_waits_and_grows_nothing() {
    const LINES: u64 = 60_000;
    let scene = Scene::new();
    let path = scene.path("log");
    let agent = Agent::start(&scene, &jail(&format!("fifo:{}", path.display())));
    scene.wait_for("the fifo", || path.exists());
    let pid = pid(&scene);
    let before = most_memory(pid);
    kill_process(pid, Signal::STOP).unwrap();
    let writer = thread::spawn({
        let path = path.clone();
        move || {
            let mut fifo = OpenOptions::new().write(true).open(path).unwrap();
            for number in 0..LINES {
                // Every address fails once, so that it is counted, and one of them bans.
                let address = format!("203.0.{}.{}", 113 + number / 250 % 8, number % 250);
                writeln!(fifo, "{}", failure(&address)).unwrap();
            }
        }
    });
    let waiting = || {
        let fifo = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        rustix::io::ioctl_fionread(fifo).unwrap()
    };
    scene.wait_for("a full fifo", || waiting() > 900_000);
    assert!(!writer.is_finished(), "the writer waits");
    kill_process(pid, Signal::CONT).unwrap();
    writer.join().unwrap();
    scene.wait_for("every line", || lines(&scene) == LINES);
    assert_eq!((source(&scene)["lost"].as_u64(), source(&scene)["overlong"].as_u64()), (Some(0), Some(0)));
    let grown = most_memory(pid) - before;
    assert!(grown < 20 << 10, "{grown} KiB");
    assert!(agent.stop().success());
}

#[test]
fn a_datagram_is_one_line_and_bans_but_no_newline_within_it_does() {
    let scene = Scene::new();
    let path = scene.path("log.sock");
    let agent = Agent::start(&scene, &jail(&format!("unix:{}", path.display())));
    scene.wait_for("the socket", || path.exists());
    let client = UnixDatagram::unbound().unwrap();
    for _ in 0..3 {
        // A user name as an attacker likes it.
        let forged = format!("<86>Nov 21 10:00:00 sshd[1]: user x\n{}", syslog(OTHER));
        client.send_to(forged.as_bytes(), &path).unwrap();
        client.send_to(syslog(ATTACKER).as_bytes(), &path).unwrap();
    }
    scene.wait_for("the ban", || scene.holds("sshd_v4", ATTACKER));
    assert!(!scene.holds("sshd_v4", OTHER), "who is named behind a newline did nothing");
    assert_eq!(lines(&scene), 6);

    // The administrator lets a group write; that holds over a restart.
    fs::set_permissions(&path, Permissions::from_mode(0o620)).unwrap();
    agent.kill();
    let agent = Agent::start_again(&scene);
    scene.wait_for("the socket again", || client.send_to(syslog(OTHER).as_bytes(), &path).is_ok());
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o620);
    assert!(agent.stop().success());
}

#[test]
fn udp_of_this_host_bans_and_what_a_flood_loses_is_counted() {
    const SENT: u64 = 50_000;
    let scene = Scene::new();
    let agent = Agent::start(&scene, &jail("udp:127.0.0.1:5514"));
    let pid = pid(&scene);
    as_server(&scene, || {
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.connect("127.0.0.1:5514").unwrap();
        scene.wait_for("the ban", || {
            let _ = client.send(syslog(ATTACKER).as_bytes());
            scene.holds("sshd_v4", ATTACKER)
        });
        // From an address of this host that others can reach too: who comes from there may be anybody.
        let stranger = UdpSocket::bind(format!("{}:0", crate::scene::SERVER)).unwrap();
        for _ in 0..5 {
            stranger.send_to(syslog(OTHER).as_bytes(), "127.0.0.1:5514").unwrap();
        }
        let (read, before) = (lines(&scene), most_memory(pid));
        kill_process(pid, Signal::STOP).unwrap();
        for _ in 0..SENT {
            client.send(b"<13>Nov 21 10:00:00 cron[1]: nothing of interest").unwrap();
        }
        kill_process(pid, Signal::CONT).unwrap();
        let count =
            |source: &Value| source["lines"].as_u64().unwrap() - read + source["lost"].as_u64().unwrap();
        scene.wait_for("every line to be read or counted", || count(&source(&scene)) == SENT);
        assert!(source(&scene)["lost"].as_u64().unwrap() > 1_000);
        let grown = most_memory(pid) - before;
        assert!(grown < 20 << 10, "{grown} KiB");
    });
    assert!(!scene.holds("sshd_v4", OTHER), "a line that does not come from loopback counts for nothing");
    let log = fs::read_to_string(scene.path("agent.log")).unwrap();
    assert_eq!(log.matches("refused lines from 198.51.100.1").count(), 1);
    assert!(agent.stop().success());
}

/// The agent with standard input for one jail, once it answers.
fn piped(scene: &Scene, jail: &str) -> Child {
    let log = File::options().create(true).append(true).open(scene.path("agent.log")).unwrap();
    let mut agent = nftjail(scene, &["run", "--stdin", "--jail", jail, "--state"]);
    let agent = agent.arg(scene.path("state")).stdin(Stdio::piped()).stderr(log).spawn().unwrap();
    scene.wait_for("the agent", || ask(scene, &["status"]).status.success());
    agent
}

#[test]
fn standard_input_is_read_in_place_of_the_logs_until_it_ends() {
    let scene = Scene::new();
    fs::write(scene.path("nftjail.yaml"), jail("fifo:/nonexistent/fifo")).unwrap();
    let mut agent = piped(&scene, "sshd");
    assert_eq!(ask_json(&scene, &["status"])["jails"][0]["sources"], serde_json::json!(["stdin"]));
    let mut stdin = agent.stdin.take().unwrap();
    stdin.write_all(failures(ATTACKER, 3).as_bytes()).unwrap();
    scene.wait_for("the ban", || scene.holds("sshd_v4", ATTACKER));
    // What is written at the very end counts too, but not a line that was cut off.
    stdin.write_all(failures(OTHER, 3).as_bytes()).unwrap();
    stdin.write_all(failures("203.0.113.68", 3).trim_end().as_bytes()).unwrap();
    drop(stdin);
    assert!(agent.wait().unwrap().success());
    assert!(scene.holds("sshd_v4", ATTACKER) && scene.holds("sshd_v4", OTHER), "bans outlive the agent");
    assert!(!scene.holds("sshd_v4", "203.0.113.68"));
}

#[test]
fn standard_input_needs_a_jail_that_there_is() {
    let scene = Scene::new();
    fs::write(scene.path("nftjail.yaml"), jail("/dev/null")).unwrap();
    let run = |arguments: &[&str]| {
        let output = nftjail(&scene, arguments).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, told) = run(&["run", "--stdin", "--jail", "shd"]);
    assert_eq!(code, Some(6));
    assert!(told.contains("--jail: unknown jail \"shd\": did you mean sshd?"), "{told}");
    assert_eq!(run(&["run", "--stdin"]).0, Some(2));
    assert_eq!(run(&["run", "--jail", "sshd"]).0, Some(2));

    // Where nothing is configured a rule's name will do, and a file is as good as a pipe.
    fs::remove_file(scene.path("nftjail.yaml")).unwrap();
    fs::create_dir(scene.path("nftjail.yaml")).unwrap();
    fs::write(scene.path("old.log"), failures(ATTACKER, 5)).unwrap();
    let mut agent = nftjail(&scene, &["run", "--stdin", "--jail", "sshd", "--state"]);
    let agent = agent.arg(scene.path("state")).stdin(File::open(scene.path("old.log")).unwrap());
    assert!(agent.output().unwrap().status.success());
    assert!(scene.holds("sshd_v4", ATTACKER));
}

#[test]
fn what_a_program_prints_bans_and_the_program_ends_with_us() {
    let scene = Scene::new();
    let log = scene.path("auth.log");
    fs::write(&log, "").unwrap();
    let tail = format!("command: [tail, --follow, \"{}\"]", log.display());
    let config = jail("/dev/null").replace("logpath: /dev/null", &tail);
    let agent = Agent::start(&scene, &config);
    scene.fail(ATTACKER, 3);
    scene.wait_for("the ban", || scene.holds("sshd_v4", ATTACKER));
    let children = |pid: Pid| {
        let pid = pid.as_raw_nonzero();
        fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default()
    };
    let is_gone = |child: &str| {
        let stat = fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        stat.split(") ").nth(1).is_none_or(|rest| rest.starts_with('Z'))
    };
    let child = children(pid(&scene)).trim().to_owned();
    assert!(!is_gone(&child));

    // It is ended by somebody, and started again.
    kill_process(Pid::from_raw(child.parse().unwrap()).unwrap(), Signal::KILL).unwrap();
    scene.wait_for("its end", || {
        state(&scene).ends_with("it was ended by signal 9; it is started again after 1s")
    });
    scene.wait_for("its start", || state(&scene) == "following");
    scene.fail(OTHER, 3);
    scene.wait_for("the other ban", || scene.holds("sshd_v4", OTHER));

    // A reload that does not change it leaves it alone; one that takes it away ends it.
    let child = children(pid(&scene)).trim().to_owned();
    assert!(ask(&scene, &["reload"]).status.success());
    assert_eq!(children(pid(&scene)).trim(), child);
    let fifo = jail(&format!("fifo:{}", scene.path("log").display()));
    fs::write(scene.path("nftjail.yaml"), fifo).unwrap();
    assert!(ask(&scene, &["reload"]).status.success());
    scene.wait_for("its end", || is_gone(&child));
    scene.wait_for("the fifo", || scene.path("log").exists());
    write(&scene.path("log"), &failures("203.0.113.68", 3));
    scene.wait_for("the third ban", || scene.holds("sshd_v4", "203.0.113.68"));

    // However we end, it ends too, also one that never looks whether somebody reads.
    let config = jail("/dev/null").replace("logpath: /dev/null", "command: [sleep, 600]");
    fs::write(scene.path("nftjail.yaml"), config).unwrap();
    assert!(ask(&scene, &["reload"]).status.success());
    let child = || children(pid(&scene)).trim().to_owned();
    scene.wait_for("its start", || !child().is_empty());
    let child = child();
    agent.kill();
    scene.wait_for("its end", || is_gone(&child));
}

#[test]
fn the_check_says_what_each_stream_will_find() {
    let scene = Scene::new();
    let dir = scene.dir.path().display().to_string();
    fs::write(scene.path("plain"), "").unwrap();
    Command::new("mkfifo").args(["-m", "622"]).arg(scene.path("loose")).status().unwrap();
    let places = format!(
        "[fifo:{dir}/new, fifo:{dir}/plain, fifo:{dir}/loose, unix:{dir}/log.sock, udp:127.0.0.1:5514]"
    );
    let config = jail(&places) + "    command: [no-such-program, -f]\n";
    fs::write(scene.path("nftjail.yaml"), config).unwrap();
    let output = ask(&scene, &["check"]);
    let wanted = format!(
        "sshd: fifo:{dir}/new is not there yet, will be made\n\
         sshd: fifo:{dir}/plain cannot be read: it is a file, not a fifo\n\
         sshd: fifo:{dir}/loose cannot be read: everybody may write to it, and could have anybody banned: take that \
         away (chmod o-w)\n\
         sshd: unix:{dir}/log.sock is not there yet, will be made\n\
         sshd: udp:127.0.0.1:5514 ok\n\
         sshd: command:no-such-program -f cannot be read: there is no program no-such-program\n"
    );
    let told = String::from_utf8(output.stdout).unwrap();
    assert!(told.starts_with(&wanted), "{told}{}", String::from_utf8_lossy(&output.stderr));
    assert!(!scene.path("new").exists() && !scene.path("log.sock").exists(), "a check changes nothing");
}
