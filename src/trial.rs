//! `nftjail try`: the real agent on a real log in a throwaway network, shown step by step.

use std::cmp::Ordering;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use jiff::tz::TimeZone;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::config::Config;
use crate::control::{self, Request, Response, Whom};
use crate::detect;
use crate::host::{self, Services};
use crate::lab::Lab;
use crate::model::{JailName, Ports, Target, Timestamp, plain};
use crate::nft::Firewall;
use crate::nft::netlink::Netlink;
use crate::status::{BanStatus, Status};
use crate::tell::screen;

/// What sshd of Debian 12 wrote while it was attacked; the same log serves the tests.
const BUNDLED_LOG: &str = include_str!("../examples/auth.log");

/// So many failures are shown; a long log would bury what matters.
const DETAILS_MAX: usize = 30;

/// Runs the whole show. Nothing outside the throwaway namespaces and a folder in the temporary directory is
/// touched, and both are gone afterwards.
pub fn run(log: Option<&Path>, rule: &str) -> Result<(), String> {
    let lab = Lab::enter()?;
    let trial = Trial::prepare(log, rule)?;
    let mut agent = Agent::start(&trial)?;
    let status = trial.wait_until_read(&mut agent)?;
    let bans = trial.bans()?;

    say("How the jail stands (nftjail status)");
    show(&screen::status(&status));
    say("Who is banned (nftjail bans)");
    show(&screen::bans(&bans, status.now));
    let guilty = match bans.iter().max_by_key(|ban| ban.at) {
        Some(ban) => someone_in(ban.target),
        None => trial.ban_somebody()?,
    };
    say("What the kernel holds (nft list ruleset)");
    show(&trial.ruleset()?);
    trial.show_packets(&lab, guilty)?;
    drop(agent);
    println!("\nDone. Agent and namespaces are gone; the host's own firewall was never touched.");
    Ok(())
}

struct Trial {
    dir: TempDir,
    jail: JailName,
    port: u16,
    /// From the host's clock to the end of the log.
    clock_offset_s: i64,
}

impl Trial {
    fn prepare(log: Option<&Path>, rule: &str) -> Result<Trial, String> {
        let told = |error: io::Error| format!("no temporary folder: {}", plain(&error));
        let dir = TempDir::with_prefix("nftjail-try-").map_err(told)?;
        let path = match log {
            Some(path) => {
                path.canonicalize().map_err(|error| format!("{}: {}", path.display(), plain(&error)))?
            }
            None => dir.path().join("auth.log"),
        };
        if log.is_none() {
            fs::write(&path, BUNDLED_LOG).map_err(told)?;
        }
        let jail: JailName = rule.parse().or_else(|_| "trial".parse())?;
        let text = serde_json::json!({"jails": {jail.as_str(): {"rule": rule, "logpath": path}}}).to_string();
        let config_path = dir.path().join("nftjail.yaml");
        fs::write(&config_path, text).map_err(told)?;
        let config = Config::load(Some(&config_path), &Services::of_this_host()).map_err(|faults| {
            faults.iter().map(|fault| fault.message.clone()).collect::<Vec<_>>().join("\n")
        })?;
        let port = match &config.jails[0].ports {
            Ports::Some(ports) => ports.first().map_or(22, |(_, port)| *port),
            Ports::All => 22,
        };
        let ended = end_of(&path).map_err(|error| format!("{}: {}", path.display(), plain(&error)))?;
        let now = host::now();
        let clock_offset_s = ended.map_or(0, |ended| (ended.as_millis() - now.as_millis()) / 1_000);
        println!("Reading {} as if it ended now, with the rule {rule}.", path.display());
        Ok(Trial { dir, jail, port, clock_offset_s })
    }

    /// For a log at whose end nobody is banned any more.
    fn ban_somebody(&self) -> Result<IpAddr, String> {
        let somebody = IpAddr::from(Ipv4Addr::new(203, 0, 113, 66));
        println!("  Nobody is, at the end of this log: {somebody} is banned by hand to show the rest.");
        self.ask(&Request::Ban {
            jail: self.jail.clone(),
            targets: vec![Target::of(somebody)],
            bantime: None,
        })?;
        Ok(somebody)
    }
}

/// The date of the last line that bears one, looked for in the last 64 KiB.
fn end_of(path: &Path) -> io::Result<Option<Timestamp>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(64 << 10)))?;
    let mut tail = Vec::new();
    file.take(64 << 10).read_to_end(&mut tail)?;
    let (now, zone) = (host::now(), TimeZone::system());
    let mut lines = tail.rsplit(|byte| *byte == b'\n');
    Ok(lines.find_map(|line| detect::date_of(line, now, &zone)))
}

/// An address in a banned target: the /64 is banned as a whole.
fn someone_in(target: Target) -> IpAddr {
    match target.network() {
        IpAddr::V6(network) => Ipv6Addr::from_bits(network.to_bits() | 0x66).into(),
        v4 => v4,
    }
}

/// Somebody of the same family who did nothing.
fn clean_address(guilty: IpAddr) -> IpAddr {
    match guilty {
        IpAddr::V4(_) => Ipv4Addr::new(203, 0, 113, 77).into(),
        IpAddr::V6(_) => Ipv6Addr::new(0x2001, 0xdb8, 0xcafe, 0, 0, 0, 0, 0x77).into(),
    }
}

impl Trial {
    fn socket(&self) -> PathBuf {
        self.dir.path().join("control.sock")
    }

    fn ask(&self, request: &Request) -> Result<Response, String> {
        match control::ask(&self.socket(), request).map_err(|error| error.to_string())? {
            Response::Failed { message, .. } => Err(message),
            answer => Ok(answer),
        }
    }

    fn status(&self) -> Option<Status> {
        match self.ask(&Request::Status { jail: None }) {
            Ok(Response::Status(status)) => Some(*status),
            _ => None,
        }
    }

    /// Waits until the agent has read the log to its end and the kernel has answered.
    fn wait_until_read(&self, agent: &mut Agent) -> Result<Status, String> {
        loop {
            if let Some(status) = self.status()
                && status.sources.iter().all(|source| source.behind == 0 && source.lines > 0)
                && status.pending == 0
            {
                return Ok(status);
            }
            agent.is_alive()?;
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn bans(&self) -> Result<Vec<BanStatus>, String> {
        match self.ask(&Request::Bans { jail: None })? {
            Response::Bans(bans) => Ok(bans),
            _ => Err("the agent answered something else than was asked".to_owned()),
        }
    }

    fn ruleset(&self) -> Result<String, String> {
        let mut kernel = Netlink::open().map_err(|refusal| refusal.to_string())?;
        let table = kernel.table(true).map_err(|refusal| refusal.to_string())?;
        table.map(|table| table.to_string()).ok_or_else(|| "the kernel holds no table of ours".to_owned())
    }

    /// Packets from the banned address and from a clean one, before and after the ban is lifted.
    fn show_packets(&self, lab: &Lab, guilty: IpAddr) -> Result<(), String> {
        let told = |error: io::Error| format!("no packet could be sent: {}", plain(&error));
        lab.listen(self.port).map_err(told)?;
        let clean = clean_address(guilty);
        say(&format!("Packets to port {}, from a clean and from the banned address", self.port));
        self.show_knock(lab, "clean ", clean)?;
        self.show_knock(lab, "banned", guilty)?;
        let dropped = self.status().and_then(|status| status.jails[0].dropped).unwrap_or_default();
        println!("  The kernel's counter: {} packets, {} bytes dropped.", dropped.packets, dropped.bytes);

        say(&format!("nftjail unban {}", Target::of(guilty)));
        if let Response::Done(text) =
            self.ask(&Request::Unban { whom: Whom::Target(Target::of(guilty)), jail: None })?
        {
            println!("  {text}");
        }
        self.show_knock(lab, "unbanned", guilty)
    }

    fn show_knock(&self, lab: &Lab, who: &str, from: IpAddr) -> Result<(), String> {
        let arrived = lab
            .knock(from, self.port)
            .map_err(|error| format!("no packet could be sent: {}", plain(&error)))?;
        println!(
            "  {who} {from}: {}",
            if arrived { "connected" } else { "no answer, its packet was dropped" }
        );
        Ok(())
    }
}

/// The agent as a process of its own, ended with this value whatever happens.
struct Agent(Child);

impl Agent {
    fn start(trial: &Trial) -> Result<Agent, String> {
        let told = |error: io::Error| format!("the agent cannot be started: {}", plain(&error));
        let mut child = Command::new(std::env::current_exe().map_err(told)?)
            .arg("run")
            .arg("--config")
            .arg(trial.dir.path().join("nftjail.yaml"))
            .arg("--socket")
            .arg(trial.socket())
            .arg("--state")
            .arg(trial.dir.path().join("state"))
            .args(["--log", "debug", "--clock-offset", &trial.clock_offset_s.to_string()])
            .stderr(Stdio::piped())
            .spawn()
            .map_err(told)?;
        say("What the agent says (its own log)");
        if let Some(stderr) = child.stderr.take() {
            thread::spawn(move || pass_on(stderr));
        }
        Ok(Agent(child))
    }

    fn is_alive(&mut self) -> Result<(), String> {
        match self.0.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => Err(format!("the agent ended: {status}")),
            Err(error) => Err(format!("the agent cannot be watched: {}", plain(&error))),
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some(pid) = Pid::from_raw(self.0.id() as i32) {
            // It may have ended by itself; then there is nobody to tell.
            let _ = kill_process(pid, Signal::TERM);
        }
        let _ = self.0.wait();
    }
}

/// Every ban is shown, but not every failure.
fn pass_on(log: impl io::Read) {
    let mut details = 0;
    for line in BufReader::new(log).lines().map_while(Result::ok) {
        details += usize::from(line.contains("DEBUG"));
        match details.cmp(&DETAILS_MAX) {
            Ordering::Greater if line.contains("DEBUG") => {}
            Ordering::Equal if line.contains("DEBUG") => println!("  … more of these"),
            _ => println!("  {line}"),
        }
    }
}

fn say(title: &str) {
    println!("\n== {title}");
}

fn show(text: &str) {
    let indented: String = text.lines().map(|line| format!("  {line}\n")).collect();
    // A reader that has gone has seen enough.
    let _ = io::stdout().write_all(indented.as_bytes());
}
