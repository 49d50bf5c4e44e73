//! The journal as the only log: a real journald with a /run, /dev and /var/log of its own, and whatever befalls it.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::scene::{Agent, Scene, ask_json};

const ATTACKER: &str = "203.0.113.66";
const VICTIM: &str = "203.0.113.9";
/// No log file and no match is named: what a fresh Debian has.
const SSHD: &str = "jails:\n  sshd: {port: 22, maxretry: 3, bantime: 1h}\n";
const MACHINE: &str = "0123456789abcdef0123456789abcdef";

/// A scene whose server has mounts of its own, with a journald in them.
struct Machine {
    scene: Scene,
    /// Keeps the mounts.
    keeper: Child,
    journald: Child,
}

impl Machine {
    fn new() -> Machine {
        let mut scene = Scene::new();
        let script = "set -e; mount --make-rprivate /; mount -t tmpfs tmpfs /run; mount -t tmpfs tmpfs /var/log
            mkdir -p /run/sshd /run/systemd/system /run/systemd/journald.conf.d /run/systemd/journal /run/log \
                     /var/log/journal/$1
            echo $1 >/run/machine-id; mount --bind /run/machine-id /etc/machine-id
            mkdir /run/dev; mount --rbind /dev /run/dev; mount -t tmpfs -o mode=755 tmpfs /dev
            for node in null zero full random urandom tty ptmx; do
                touch /dev/$node; mount --bind /run/dev/$node /dev/$node
            done
            ln -s /run/systemd/journal/dev-log /dev/log; ln -s /proc/self/fd /dev/fd
            printf '[Journal]\\nStorage=persistent\\nForwardToSyslog=no\\nReadKMsg=no\\nAudit=no\\n' \
                >/run/systemd/journald.conf.d/a.conf
            printf 'RateLimitIntervalSec=0\\nSyncIntervalSec=0\\n' >>/run/systemd/journald.conf.d/a.conf
            touch /run/systemd/journal/flushed /run/ready; exec sleep infinity";
        let mut keeper = Command::new("unshare");
        keeper.args(["--mount", "sh", "-c", script, "sh", MACHINE]);
        let keeper = keeper.spawn().unwrap();
        scene.wait_for("the mounts", || inside(keeper.id(), "/run/ready").exists());
        scene.mounts = Some(keeper.id());
        let journald = journald(&scene);
        Machine { scene, keeper, journald }
    }

    /// A path as the server sees it.
    fn inside(&self, path: &str) -> PathBuf {
        inside(self.keeper.id(), path)
    }

    /// Writes lines to /dev/log as root, as a daemon does.
    fn log(&self, program: &str, message: &str, count: usize) {
        let socket = UnixDatagram::unbound().unwrap();
        let path = self.inside("/run/systemd/journal/dev-log");
        for _ in 0..count {
            self.scene.wait_for("journald to take a line", || {
                let line = format!("<38>Nov 21 10:00:00 {program}[4242]: {message}");
                socket.send_to(line.as_bytes(), &path).is_ok()
            });
        }
    }

    fn fail(&self, address: &str, count: usize) {
        self.log("sshd", &failed(address), count);
    }

    fn run(&self, program: &str, arguments: &[&str]) {
        let output = self.scene.on_server(program).args(arguments).output().unwrap();
        assert!(
            output.status.success(),
            "{program} {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    /// Runs something as an unprivileged user, with this on its standard input.
    fn run_as_nobody(&self, program: &str, arguments: &[&str], input: &Path) {
        let mut command = self.scene.on_server("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", program]).args(arguments);
        let output = command.stdin(fs::File::open(input).unwrap()).output().unwrap();
        assert!(
            output.status.success(),
            "{program} {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    fn kill_journald(&mut self) {
        self.journald.kill().unwrap();
        self.journald.wait().unwrap();
        self.journald = journald(&self.scene);
    }

    /// Waits until the agent has counted so many failures since its start.
    fn wait_for_failures(&self, count: u64) {
        self.scene.wait_for(&format!("failure {count}"), || self.failures() >= count);
        assert_eq!(self.failures(), count);
    }

    fn failures(&self) -> u64 {
        ask_json(&self.scene, &["status"])["jails"][0]["failed_total"].as_u64().unwrap()
    }

    fn agent_pid(&self) -> u64 {
        ask_json(&self.scene, &["status"])["pid"].as_u64().unwrap()
    }

    fn journal_files(&self) -> Vec<PathBuf> {
        let dir = fs::read_dir(self.inside(&format!("/var/log/journal/{MACHINE}"))).unwrap();
        dir.map(|entry| entry.unwrap().path()).collect()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        for child in [&mut self.journald, &mut self.keeper] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A path as a process with mounts of its own sees it.
fn inside(process: u32, path: &str) -> PathBuf {
    format!("/proc/{process}/root{path}").into()
}

fn journald(scene: &Scene) -> Child {
    let socket = inside(scene.mounts.unwrap(), "/run/systemd/journal/dev-log");
    let _ = fs::remove_file(&socket);
    let mut journald = scene.on_server("/lib/systemd/systemd-journald");
    let child = journald.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    scene.wait_for("journald", || socket.exists());
    child
}

fn failed(address: &str) -> String {
    format!("Failed password for root from {address} port 4242 ssh2")
}

/// The children of a process that run this program.
fn children(of: u64, program: &str) -> Vec<i32> {
    let processes =
        fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().into_string().ok());
    let is_child = |pid: &i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let Some((name, rest)) = stat.split_once(") ") else { return false };
        name.ends_with(program) && rest.split(' ').nth(1) == Some(&of.to_string())
    };
    processes.filter_map(|name| name.parse().ok()).filter(is_child).collect()
}

#[test]
fn a_real_brute_force_is_cut_off_where_the_journal_is_the_only_log() {
    let mut machine = Machine::new();
    machine.scene.start_sshd_as_it_is();
    let agent = Agent::start(&machine.scene, SSHD);
    let status = ask_json(&machine.scene, &["status"]);
    let name =
        "journal (_UID=0 SYSLOG_IDENTIFIER=sshd SYSLOG_IDENTIFIER=sshd-session SYSLOG_IDENTIFIER=sshd-auth)";
    assert_eq!(status["sources"][0]["name"], name);
    for _ in 0..3 {
        assert!(!machine.scene.wrong_password(ATTACKER).success());
    }
    machine.scene.wait_for("the ban", || machine.scene.holds("sshd_v4", ATTACKER));
    assert!(!machine.scene.connects(ATTACKER, 22) && machine.scene.connects("203.0.113.67", 22));
    assert!(agent.stop().success());
}

#[test]
fn an_unprivileged_user_cannot_have_anybody_banned() {
    let machine = Machine::new();
    let own = "own: {rule: sshd, port: 22, journalmatch: SYSLOG_IDENTIFIER=sshd, maxretry: 3}\n  \
               box: {rule: sshd, port: 22, journalmatch: CONTAINER_NAME=box, maxretry: 3}";
    fs::write(machine.scene.path("nftjail.yaml"), format!("{SSHD}  {own}\n")).unwrap();
    let _agent = Agent::start_again(&machine.scene);
    let dir = machine.scene.dir.path();
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
    // What an attacker on the machine may call a program.
    let disguised = machine.scene.path("sshd");
    fs::copy("/usr/bin/logger", &disguised).unwrap();
    let (lines, native) = (machine.scene.path("lines"), machine.scene.path("native"));
    fs::write(&lines, format!("{}\n", failed(VICTIM)).repeat(5)).unwrap();
    let fields = format!(
        "MESSAGE={}\nSYSLOG_IDENTIFIER=sshd\nSYSLOG_PID=1\nPRIORITY=6\n_UID=0\n_COMM=sshd\n_SYSTEMD_UNIT=ssh.service\n\
         _TRANSPORT=syslog\nCONTAINER_NAME=box\nUNIT=ssh.service\nOBJECT_SYSTEMD_UNIT=ssh.service\n__CURSOR=x\n",
        failed(VICTIM)
    );
    fs::write(&native, fields).unwrap();
    for _ in 0..5 {
        machine.run_as_nobody("logger", &["--journald"], &native);
    }
    machine.run_as_nobody("logger", &["-t", "sshd"], &lines);
    machine.run_as_nobody("logger", &["-t", "sshd", "--id=1", "-p", "authpriv.info"], &lines);
    machine.run_as_nobody(disguised.to_str().unwrap(), &["-t", "sshd"], &lines);
    machine.run_as_nobody("systemd-cat", &["-t", "sshd", "cat"], &lines);
    // A service of root's that writes what a client sent, with line ends and all.
    machine.log("app", &format!("hello\n{}\n<38>sshd[1]: {}", failed(VICTIM), failed(VICTIM)), 5);
    machine.log("sshd", &format!("hello\n{}", failed(VICTIM)), 5);
    machine.run("journalctl", &["--sync"]);

    machine.fail(ATTACKER, 3);
    fs::write(
        &native,
        format!("MESSAGE={}\nSYSLOG_IDENTIFIER=0123456789ab\nCONTAINER_NAME=box\n", failed(ATTACKER)),
    )
    .unwrap();
    for _ in 0..3 {
        machine.run(
            "logger",
            &["--journald=".to_owned() + native.to_str().unwrap()].each_ref().map(String::as_str),
        );
    }
    for set in ["sshd_v4", "own_v4", "box_v4"] {
        machine.scene.wait_for("the ban of the true attacker", || machine.scene.holds(set, ATTACKER));
        assert!(!machine.scene.holds(set, VICTIM), "{set}");
    }
    let status = ask_json(&machine.scene, &["status"]);
    let failing = |jail: &Value| jail["failing"].as_u64();
    let jails = status["jails"].as_array().unwrap();
    assert!(jails.iter().map(failing).all(|failing| failing == Some(0)), "{status}");
    let written =
        machine.scene.on_server("journalctl").args(["--merge", "-t", "sshd", "-o", "cat"]).output().unwrap();
    let forged = String::from_utf8_lossy(&written.stdout).matches(VICTIM).count();
    assert!(forged >= 25, "the journal did take what was forged: {forged}");
}

#[test]
fn every_line_that_the_journal_keeps_counts_once() {
    let mut machine = Machine::new();
    let config = SSHD.replace("maxretry: 3", "maxretry: 60");
    machine.fail(ATTACKER, 5);
    machine.run("journalctl", &["--sync"]);
    let agent = Agent::start(&machine.scene, &config);
    machine.wait_for_failures(5);

    machine.kill_journald();
    machine.fail(ATTACKER, 5);
    machine.wait_for_failures(10);

    machine.run("journalctl", &["--rotate"]);
    machine.fail(ATTACKER, 5);
    machine.wait_for_failures(15);

    // What is let go of was read already.
    machine.run("journalctl", &["--rotate", "--vacuum-files=1", "--vacuum-time=1s"]);
    machine.fail(ATTACKER, 5);
    machine.wait_for_failures(20);

    let child = children(machine.agent_pid(), "journalctl");
    assert_eq!(child.len(), 1, "one child for the journal");
    kill_process(Pid::from_raw(child[0]).unwrap(), Signal::KILL).unwrap();
    machine.fail(ATTACKER, 5);
    machine.wait_for_failures(25);

    // Damaged all over: what is in there is lost to whoever did not read it, and journald begins another file.
    for file in machine.journal_files() {
        let file = OpenOptions::new().read(true).write(true).open(file).unwrap();
        for at in (4_096..file.metadata().unwrap().len()).step_by(97) {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ 0xa5], at).unwrap();
        }
    }
    machine.kill_journald();
    machine.fail(ATTACKER, 5);
    machine.wait_for_failures(30);
    // So that all of this is saved: what a crash has us read again is damaged now.
    assert!(agent.stop().success());
    let agent = Agent::start_again(&machine.scene);

    let child = children(machine.agent_pid(), "journalctl");
    agent.kill();
    machine.scene.wait_for("the child to end with the agent", || {
        child.iter().all(|pid| !Path::new(&format!("/proc/{pid}")).exists())
    });
    // As after a reboot: what is known of the last boot is not of this one.
    machine.fail(ATTACKER, 5);
    machine.run("journalctl", &["--sync"]);
    let boot = machine.inside("/run/boot");
    fs::write(&boot, "01234567-89ab-4def-8123-456789abcdef\n").unwrap();
    machine.run("mount", &["--bind", "/run/boot", "/proc/sys/kernel/random/boot_id"]);
    machine.kill_journald();
    let agent = Agent::start_again(&machine.scene);
    // What was counted before the crash and not saved is read again: so it is the sum that is exact.
    let told = |words: &str| fs::read_to_string(machine.scene.path("agent.log")).unwrap().contains(words);
    machine.scene.wait_for("failure 35", || told("failed (35 of 60)"));
    machine.fail(ATTACKER, 24);
    machine.scene.wait_for("failure 59", || told("failed (59 of 60)"));
    assert!(!machine.scene.holds("sshd_v4", ATTACKER));
    machine.fail(ATTACKER, 1);
    machine.scene.wait_for("the ban", || machine.scene.holds("sshd_v4", ATTACKER));
    assert!(agent.stop().success());
}

#[test]
fn what_was_let_go_of_while_we_were_away_is_told_and_the_rest_is_read() {
    let machine = Machine::new();
    let config = SSHD.replace("maxretry: 3", "maxretry: 60");
    let agent = Agent::start(&machine.scene, &config);
    machine.fail(ATTACKER, 3);
    machine.wait_for_failures(3);
    assert!(agent.stop().success());
    machine.fail(ATTACKER, 3);
    machine.run("journalctl", &["--rotate"]);
    machine.fail(ATTACKER, 4);
    machine.run("journalctl", &["--vacuum-files=1"]);
    let _agent = Agent::start_again(&machine.scene);
    machine.wait_for_failures(4);
    let told = fs::read_to_string(machine.scene.path("agent.log")).unwrap();
    assert!(told.contains("the journal does not go on where it was left: entries may be missing"), "{told}");
}

#[test]
fn a_journal_in_a_folder_and_a_reload_that_adds_a_jail() {
    let machine = Machine::new();
    let folder = format!("/var/log/journal/{MACHINE}");
    let config =
        format!("defaults: {{journal: {folder}, maxretry: 60}}\n{}", SSHD.replace(", maxretry: 3", ""));
    machine.fail(ATTACKER, 3);
    machine.run("journalctl", &["--sync"]);
    let _agent = Agent::start(&machine.scene, &config);
    machine.wait_for_failures(3);
    let name = &ask_json(&machine.scene, &["status"])["sources"][0]["name"];
    assert!(name.as_str().unwrap().starts_with(&format!("journal {folder} (_UID=0 ")), "{name}");

    // The new jail has the backlog, and the old one has nothing twice.
    let more = format!("{config}  two: {{rule: sshd, port: 22, journalmatch: _UID=0}}\n");
    fs::write(machine.scene.path("nftjail.yaml"), more).unwrap();
    assert!(crate::scene::ask(&machine.scene, &["reload"]).status.success());
    machine.fail(ATTACKER, 2);
    machine.scene.wait_for("both jails", || {
        let status = ask_json(&machine.scene, &["status"]);
        let counted = |jail: usize| status["jails"][jail]["failed_total"].as_u64().unwrap();
        assert!(counted(0) <= 5 && counted(1) <= 5, "{status}");
        counted(0) == 5 && counted(1) == 5
    });
    assert_eq!(children(machine.agent_pid(), "journalctl").len(), 1, "one child for both");

    // The entry that was read last is nobody's any more, which is no gap.
    let lines = || ask_json(&machine.scene, &["status"])["sources"][0]["lines"].as_u64().unwrap();
    let before = lines();
    machine.log("app", "root wrote this", 1);
    machine.scene.wait_for("another's entry", || lines() > before);
    fs::write(machine.scene.path("nftjail.yaml"), config).unwrap();
    assert!(crate::scene::ask(&machine.scene, &["reload"]).status.success());
    machine.fail(ATTACKER, 1);
    machine.wait_for_failures(6);
    let told = fs::read_to_string(machine.scene.path("agent.log")).unwrap();
    assert!(!told.contains("does not go on where it was left"), "{told}");
}

#[test]
fn an_entry_that_journalctl_cannot_read_is_passed_over_and_told() {
    let machine = Machine::new();
    let minute_ago = nftjail::host::now().as_millis() - 60_000;
    let entry = |number: i64| {
        let time = (minute_ago + number * 1_000) * 1_000;
        format!(
            "__CURSOR=s=a;i={number};b=b;m={number};t={time:x};x=0\n_MACHINE_ID={MACHINE}\n_UID=0\n_PID=1\n\
             SYSLOG_IDENTIFIER=sshd\nMESSAGE={}\n\n",
            failed(ATTACKER)
        )
    };
    fs::write(machine.inside("/run/first"), entry(0)).unwrap();
    fs::write(machine.inside("/run/later"), entry(0) + &entry(30)).unwrap();
    let script = "#!/bin/sh\necho \"$*\" >>/run/asked\nif [ $(wc -l </run/asked) -gt 2 ]; then cat /run/later; exec sleep 1000; fi\n\
                  cat /run/first; echo 'Failed to get journal fields: Protocol not supported' >&2; exit 1\n";
    fs::write(machine.inside("/run/journalctl"), script).unwrap();
    machine.run("chmod", &["+x", "/run/journalctl"]);
    machine.run("mount", &["--bind", "/run/journalctl", "/usr/bin/journalctl"]);

    let agent = Agent::start(&machine.scene, SSHD);
    machine.wait_for_failures(2);
    let asked = fs::read_to_string(machine.inside("/run/asked")).unwrap();
    let since = |line: &str| -> i64 {
        line.split("--since=@").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap()
    };
    let since: Vec<i64> = asked.lines().map(since).collect();
    let first = minute_ago / 1_000;
    assert!(since[0] < first && since[1] == first + 1 && since[2] > first + 1, "{first}: {asked}");
    let told = fs::read_to_string(machine.scene.path("agent.log")).unwrap();
    assert!(told.contains("cannot read journal: journalctl ended: Failed to get journal fields"), "{told}");
    assert!(told.contains("the journal does not go on where it was left: entries may be missing"), "{told}");
    assert!(agent.stop().success());
}

#[test]
fn where_journalctl_cannot_be_run_the_status_says_so_and_it_is_tried_again() {
    let machine = Machine::new();
    let config = SSHD.replace("port: 22", "port: 22, journal: system");
    fs::write(machine.scene.path("nftjail.yaml"), config).unwrap();
    machine.run("mount", &["--bind", "/dev/null", "/usr/bin/journalctl"]);
    let _agent = Agent::start_again(&machine.scene);
    let state = || ask_json(&machine.scene, &["status"])["sources"][0]["state"].as_str().unwrap().to_owned();
    assert!(
        state().starts_with("cannot read journal: journalctl cannot be run: permission denied"),
        "{}",
        state()
    );
    // Tried again by itself.
    machine.run("umount", &["/usr/bin/journalctl"]);
    machine.fail(ATTACKER, 3);
    machine.scene.wait_for("the ban", || machine.scene.holds("sshd_v4", ATTACKER));
    assert_eq!(state(), "following");
}
