//! A server and an attacker in namespaces of their own, the real agent on the server, and packets between them.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;
use tempfile::TempDir;

pub const SERVER: &str = "198.51.100.1";
/// Behind the server, which passes on what is for it.
pub const CONTAINER: &str = "192.0.2.77";
pub const SERVER_V6: &str = "2001:db8:51::1";

static COUNT: AtomicU32 = AtomicU32::new(0);

/// Two network namespaces with a cable, removed when this value goes.
pub struct Scene {
    pub dir: TempDir,
    server: String,
    attacker: String,
    container: Option<String>,
    /// The process whose mounts the server has, where it has its own.
    pub mounts: Option<u32>,
    children: Vec<Child>,
}

impl Scene {
    /// Attackers have 203.0.113.0/24 and 2001:db8:66::/48, each address added where it is used.
    pub fn new() -> Scene {
        let id = format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let (server, attacker) = (format!("njs-{id}"), format!("nja-{id}"));
        for name in [&server, &attacker] {
            ip(&["netns", "add", name]);
            ip(&["-n", name, "link", "set", "lo", "up"]);
        }
        ip(&[
            "link", "add", "cable0", "netns", &server, "type", "veth", "peer", "name", "cable1", "netns",
            &attacker,
        ]);
        ip(&["-n", &server, "link", "set", "cable0", "up"]);
        ip(&["-n", &attacker, "link", "set", "cable1", "up"]);
        ip(&["-n", &server, "addr", "add", &format!("{SERVER}/32"), "dev", "cable0"]);
        ip(&["-n", &server, "addr", "add", &format!("{SERVER_V6}/128"), "dev", "cable0", "nodad"]);
        for family in ["-4", "-6"] {
            ip(&["-n", &server, family, "route", "add", "default", "dev", "cable0"]);
            ip(&["-n", &attacker, family, "route", "add", "default", "dev", "cable1"]);
        }
        Scene {
            dir: TempDir::with_prefix("nftjail-").unwrap(),
            server,
            attacker,
            container: None,
            mounts: None,
            children: Vec::new(),
        }
    }

    /// A third namespace, which is reached through the server, with something that takes connections on this port.
    pub fn add_container(&mut self, port: u16) {
        let name = self.server.replace("njs-", "njc-");
        ip(&["netns", "add", &name]);
        self.container = Some(name.clone());
        ip(&[
            "link",
            "add",
            "cable2",
            "netns",
            &self.server,
            "type",
            "veth",
            "peer",
            "name",
            "cable3",
            "netns",
            &name,
        ]);
        ip(&["-n", &self.server, "link", "set", "cable2", "up"]);
        ip(&["-n", &name, "link", "set", "cable3", "up"]);
        ip(&["-n", &self.server, "route", "add", CONTAINER, "dev", "cable2"]);
        ip(&["-n", &name, "addr", "add", &format!("{CONTAINER}/32"), "dev", "cable3"]);
        ip(&["-n", &name, "route", "add", "default", "dev", "cable3"]);
        let routes = "echo 1 >/proc/sys/net/ipv4/ip_forward && echo 1 >/proc/sys/net/ipv4/conf/all/proxy_arp";
        assert!(self.on_server("sh").args(["-c", routes]).status().unwrap().success());
        let mut nc = inside(&name, "nc");
        nc.args(["-l", "-k", "-s", CONTAINER, "-p", &port.to_string()]);
        self.children.push(nc.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap());
        let from = "203.0.113.250";
        self.wait_for("the container", || self.connects_to(from, CONTAINER, port));
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The name of the server's namespace.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// A command on the server's side.
    pub fn on_server(&self, program: &str) -> Command {
        let Some(process) = self.mounts else { return inside(&self.server, program) };
        let mut command = inside(&self.server, "nsenter");
        command.args(["--mount", "--target", &process.to_string(), "--", program]);
        command
    }

    /// A command on the attacker's side, which now has this address.
    pub fn on_attacker(&self, address: &str, program: &str) -> Command {
        self.give_attacker(address);
        inside(&self.attacker, program)
    }

    /// Runs something on a thread of its own on the attacker's side, which now has this address.
    pub fn as_attacker<T: Send>(&self, address: &str, act: impl FnOnce() -> T + Send) -> T {
        self.give_attacker(address);
        on_thread_in(&self.attacker, act)
    }

    /// Runs something on a thread of its own on the server.
    pub fn as_server<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        on_thread_in(&self.server, act)
    }

    /// Gives the attacker many addresses at once.
    pub fn give_attacker_all(&self, addresses: impl IntoIterator<Item = IpAddr>) {
        let lines = addresses.into_iter().map(|address| match address {
            IpAddr::V4(v4) => format!("addr add {v4}/32 dev cable1\n"),
            IpAddr::V6(v6) => format!("addr add {v6}/128 dev cable1 nodad\n"),
        });
        let batch = self.path("addresses");
        fs::write(&batch, lines.collect::<String>()).unwrap();
        ip(&["-n", &self.attacker, "-batch", batch.to_str().unwrap()]);
    }

    fn give_attacker(&self, address: &str) {
        let length = if address.contains(':') { 128 } else { 32 };
        let net = format!("{address}/{length}");
        // An address that is there already is as good.
        let _ = Command::new("ip")
            .args(["-n", &self.attacker, "addr", "add", &net, "dev", "cable1"])
            .args(address.contains(':').then_some("nodad"))
            .stderr(Stdio::null())
            .status();
    }

    /// Whether a TCP connection from this address to this port of the server comes about.
    pub fn connects(&self, from: &str, port: u16) -> bool {
        self.connects_to(from, if from.contains(':') { SERVER_V6 } else { SERVER }, port)
    }

    pub fn connects_to(&self, from: &str, to: &str, port: u16) -> bool {
        let port = port.to_string();
        let mut nc = self.on_attacker(from, "nc");
        nc.args(["-z", "-w", "1", "-s", from, to, &port]).stdout(Stdio::null()).stderr(Stdio::null());
        nc.status().unwrap().success()
    }

    /// Something that takes connections on a port of the server.
    pub fn listen(&mut self, port: u16) {
        for (family, address) in [("-4", SERVER), ("-6", SERVER_V6)] {
            let mut nc = self.on_server("nc");
            nc.args([family, "-l", "-k", "-s", address, "-p", &port.to_string()]);
            let child = nc.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            self.children.push(child);
        }
        let wanted = format!(":{port} ");
        self.wait_for("a listening port", || {
            let sockets = self.on_server("ss").args(["-Hltn"]).output().unwrap();
            String::from_utf8_lossy(&sockets.stdout).matches(wanted.as_str()).count() >= 2
        });
    }

    /// Writes a line to a log, as a syslog daemon does: in one write.
    pub fn log(&self, name: &str, line: &str) {
        let mut file = OpenOptions::new().create(true).append(true).open(self.path(name)).unwrap();
        file.write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    /// Writes `count` failed logins of an address to auth.log.
    pub fn fail(&self, address: &str, count: usize) {
        for _ in 0..count {
            self.log("auth.log", &failure(address));
        }
    }

    /// The table as the project's own tool of record lists it.
    pub fn nft(&self, arguments: &[&str]) -> Output {
        self.on_server("nft").args(arguments).output().unwrap()
    }

    /// The elements of one of our sets: address and the seconds it still has, if it ends.
    pub fn elements(&self, set: &str) -> Vec<(String, Option<u64>)> {
        let listed = self.nft(&["-j", "list", "set", "inet", "nftjail", set]);
        assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
        let listed: Value = serde_json::from_slice(&listed.stdout).unwrap();
        let set = listed["nftables"].as_array().unwrap().iter().find_map(|object| object.get("set")).unwrap();
        let none = Vec::new();
        let elements = set.get("elem").and_then(Value::as_array).unwrap_or(&none);
        let name = |value: &Value| match value.get("prefix") {
            Some(net) => format!("{}/{}", net["addr"].as_str().unwrap(), net["len"]),
            None => value.as_str().unwrap().to_owned(),
        };
        let read = |element: &Value| match element.get("elem") {
            Some(inner) => (name(&inner["val"]), inner["expires"].as_u64()),
            None => (name(element), None),
        };
        elements.iter().map(read).collect()
    }

    pub fn holds(&self, set: &str, address: &str) -> bool {
        self.elements(set).iter().any(|(held, _)| held == address)
    }

    /// Waits for something that must come; the suite's own time limit is the only one.
    pub fn wait_for(&self, what: &str, mut is_there: impl FnMut() -> bool) {
        for round in 0.. {
            if is_there() {
                return;
            }
            if round == 3_000 {
                let told = |name| fs::read_to_string(self.path(name)).unwrap_or_default();
                panic!("{what} did not come\n{}\n{}", told("auth.log"), told("agent.log"));
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// A real sshd on port 22, whose syslog lines go to auth.log under the header that rsyslog gives them.
    pub fn start_sshd(&mut self) {
        let dev = self.path("dev");
        fs::create_dir_all(&dev).unwrap();
        fs::create_dir_all("/run/sshd").unwrap();
        let socket = self.path("log.sock");
        let syslog = UnixDatagram::bind(&socket).unwrap();
        let log = self.path("auth.log");
        thread::spawn(move || write_log(&syslog, &log));
        let config = self.sshd_config();
        // sshd logs to /dev/log and nowhere else: it gets a /dev of its own, where that is our socket.
        let script = "mount --make-rprivate / && mount -t tmpfs tmpfs \"$1\" && for d in null zero random urandom tty ptmx; \
                      do touch \"$1/$d\" && mount --bind /dev/$d \"$1/$d\" || exit 1; done && ln -s \"$2\" \"$1/log\" && \
                      mount --move \"$1\" /dev && exec /usr/sbin/sshd -D -f \"$3\"";
        let mut sshd = self.on_server("unshare");
        sshd.args(["-m", "sh", "-c", script, "sh"]).args([&dev, &socket, &config]);
        self.children.push(sshd.spawn().unwrap());
        self.wait_for("sshd", || self.connects("203.0.113.250", 22));
    }

    /// A real sshd on port 22 that logs to whatever /dev/log the server has.
    pub fn start_sshd_as_it_is(&mut self) {
        let config = self.sshd_config();
        self.children.push(self.on_server("/usr/sbin/sshd").arg("-D").arg("-f").arg(config).spawn().unwrap());
        self.wait_for("sshd", || self.connects("203.0.113.250", 22));
    }

    fn sshd_config(&self) -> PathBuf {
        let key = self.path("key");
        let made = Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-f"])
            .arg(&key)
            .status()
            .unwrap();
        assert!(made.success());
        let config = format!(
            "Port 22\nHostKey {}\nPidFile none\nUsePAM no\nPasswordAuthentication yes\n\
             KbdInteractiveAuthentication no\nMaxStartups 100\nUseDNS no\n",
            key.display()
        );
        let path = self.path("sshd_config");
        fs::write(&path, config).unwrap();
        path
    }

    /// Tries to log in with a wrong password, and tells how it ended.
    pub fn wrong_password(&self, from: &str) -> ExitStatus {
        self.ssh(from, "wrong", &["true"]).status().unwrap()
    }

    /// An ssh client that answers with this password.
    pub fn ssh(&self, from: &str, password: &str, command: &[&str]) -> Command {
        let mut ssh = self.on_attacker(from, "sshpass");
        ssh.args(["-p", password, "ssh", "-F", "/dev/null", "-b", from])
            .args([
                "-o",
                "StrictHostKeyChecking=no",
                "-o",
                "UserKnownHostsFile=/dev/null",
                "-o",
                "LogLevel=ERROR",
            ])
            .args(["-o", "PreferredAuthentications=password", "-o", "NumberOfPasswordPrompts=1"])
            .args(["-o", "ConnectTimeout=1", &format!("nobody@{SERVER}")])
            .args(command)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        ssh
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
        for name in [&self.server, &self.attacker].into_iter().chain(&self.container) {
            let _ = Command::new("ip").args(["netns", "del", name]).status();
        }
    }
}

/// A failed login as sshd logs it, now.
pub fn failure(address: &str) -> String {
    format!("{} web01 sshd[4242]: Failed password for root from {address} port 4242 ssh2", now())
}

/// The time as rsyslog writes it since Debian 12.
fn now() -> String {
    let now = jiff::Timestamp::from_millisecond(nftjail::host::now().as_millis()).unwrap();
    now.strftime("%Y-%m-%dT%H:%M:%S.%6f+00:00").to_string()
}

/// What rsyslog does: `<38>Nov 21 10:00:00 sshd[1]: text` becomes a line with date and host.
fn write_log(syslog: &UnixDatagram, log: &Path) {
    let mut file = File::options().create(true).append(true).open(log).unwrap();
    let mut buffer = [0; 8192];
    while let Ok(length) = syslog.recv(&mut buffer) {
        let text = String::from_utf8_lossy(&buffer[..length]);
        // The header of RFC 3164 is `<PRI>Mmm dd hh:mm:ss `: 16 characters after the bracket.
        let message = text.split_once('>').and_then(|(_, rest)| rest.get(16..)).unwrap_or(&text);
        let _ = file.write_all(format!("{} web01 {}\n", now(), message.trim_end()).as_bytes());
    }
}

fn on_thread_in<T: Send>(namespace: &str, act: impl FnOnce() -> T + Send) -> T {
    let namespace = File::open(Path::new("/run/netns").join(namespace)).unwrap();
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            act()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn inside(namespace: &str, program: &str) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", namespace, program]);
    command
}

fn ip(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).output().unwrap();
    assert!(output.status.success(), "ip {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The agent, ended with this value.
pub struct Agent {
    child: Child,
}

impl Agent {
    /// Starts the agent on the server with this configuration, and waits until it answers.
    pub fn start(scene: &Scene, config: &str) -> Agent {
        Agent::start_with(scene, config, &[])
    }

    /// The same, with more in its environment.
    pub fn start_with(scene: &Scene, config: &str, environment: &[(&str, &str)]) -> Agent {
        fs::write(
            scene.path("nftjail.yaml"),
            config.replace("LOG", &scene.path("auth.log").display().to_string()),
        )
        .unwrap();
        Agent::start_in(scene, environment)
    }

    /// Starts it with the configuration and state that are there.
    pub fn start_again(scene: &Scene) -> Agent {
        Agent::start_in(scene, &[])
    }

    fn start_in(scene: &Scene, environment: &[(&str, &str)]) -> Agent {
        let log = File::options().create(true).append(true).open(scene.path("agent.log")).unwrap();
        let mut agent = nftjail(scene, &["run", "--log", "debug"]);
        agent.arg("--state").arg(scene.path("state")).envs(environment.iter().copied());
        let child = agent.stderr(log).spawn().unwrap();
        let mut agent = Agent { child };
        scene.wait_for("the agent", || {
            let ended = agent.child.try_wait().unwrap();
            assert!(
                ended.is_none(),
                "the agent ended: {}",
                fs::read_to_string(scene.path("agent.log")).unwrap()
            );
            ask(scene, &["status"]).status.success()
        });
        agent
    }

    /// Ends it as a crash or the kernel's OOM killer would.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Ends it as systemd does, and tells how it ended.
    pub fn stop(mut self) -> ExitStatus {
        let pid = rustix::process::Pid::from_raw(self.child.id() as i32).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.child.wait().unwrap()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A verb of our own program on the server's side, with this scene's configuration and socket.
pub fn nftjail(scene: &Scene, arguments: &[&str]) -> Command {
    let mut command = scene.on_server(env!("CARGO_BIN_EXE_nftjail"));
    command.arg("--config").arg(scene.path("nftjail.yaml")).arg("--socket").arg(scene.path("control.sock"));
    command.args(arguments);
    command
}

pub fn ask(scene: &Scene, arguments: &[&str]) -> Output {
    nftjail(scene, arguments).output().unwrap()
}

/// The answer of a reading verb as JSON.
pub fn ask_json(scene: &Scene, arguments: &[&str]) -> Value {
    let output = ask(scene, &[arguments, &["--json"]].concat());
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}
