//! `nftjail selftest`: a line in every log, a ban in the kernel, a rule that drops, and an end by itself.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use jiff::tz::TimeZone;

use crate::acquire::place::Place;
use crate::config::{self, Config};
use crate::control::{self, Failed, Request, Response, Unanswered};
use crate::detect::{Library, probe, wrapper};
use crate::host::{self, Services};
use crate::model::{Hook, JailName, Ports, Protocol, Target, plain};
use crate::nft::netlink::Netlink;
use crate::nft::{Firewall, Refusal};
use crate::resolve::JailConfig;
use crate::tun::Tun;
use crate::yaml::Fault;

/// How far to go.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wishes {
    /// Show what would be written, and write nothing.
    pub dry_run: bool,
    /// Send a packet from the banned address, too, and see it counted.
    pub packets: bool,
}

/// Why nothing could be tested.
pub enum Untested {
    Agent(Unanswered),
    Kernel(Refusal),
    Config(Vec<Fault>),
}

/// What came of it: one line, and whether all that could be tested works.
pub struct Tested {
    pub works: bool,
    pub text: String,
}

/// How long a line may take to the kernel, and a ban may stay beyond its time.
const PATIENCE: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_micros(200);
/// Any port will do for a jail that closes all.
const ANY_PORT: (Protocol, u16) = (Protocol::Tcp, 9);

/// What became of one jail.
enum Outcome {
    Works { took: Duration, without_packet: bool },
    Fails(String),
    NotProbed(String),
}

/// Tests every jail of the configuration, one after the other.
pub fn run(place: Option<&Path>, socket: &Path, wishes: Wishes) -> Result<Tested, Untested> {
    let config = Config::load(place, &Services::of_this_host()).map_err(Untested::Config)?;
    let library =
        config::library(&config::rules_dir(place)).map_err(|fault| Untested::Config(vec![fault]))?;
    if wishes.dry_run {
        return Ok(Tested { works: true, text: would_write(&config, &library) });
    }
    control::ask(socket, &Request::Status { jail: None }).map_err(Untested::Agent)?;
    let kernel = Netlink::open().map_err(Untested::Kernel)?;
    let mut test = Test { socket, library, kernel, wishes, banned: Vec::new() };
    let mut outcomes: Vec<(JailName, Outcome)> =
        config.jails.iter().map(|jail| (jail.terms.name.clone(), test.jail(jail))).collect();
    for (name, addr) in std::mem::take(&mut test.banned) {
        if let Err(why) = test.wait_for_end(&name, addr)
            && let Some((_, outcome)) = outcomes.iter_mut().find(|(tested, _)| *tested == name)
        {
            *outcome = Outcome::Fails(why);
        }
    }
    Ok(summary(&outcomes))
}

fn summary(outcomes: &[(JailName, Outcome)]) -> Tested {
    let (mut took_longest, mut good, mut others, mut fails) = (Duration::ZERO, 0, String::new(), false);
    for (name, outcome) in outcomes {
        match outcome {
            Outcome::Works { took, without_packet } => {
                took_longest = took_longest.max(*took);
                good += 1;
                if *without_packet {
                    others += &format!("; {name} met no packet: only bans at prerouting do");
                }
            }
            Outcome::Fails(why) => {
                fails = true;
                others += &format!("; {name} FAILS: {why}");
            }
            Outcome::NotProbed(why) => others += &format!("; {name} not probed: {why}"),
        }
    }
    let all = outcomes.len();
    let verdict = if fails { "FAILED" } else { "ok" };
    let took =
        if good == 0 { String::new() } else { format!(", line to kernel {}", milliseconds(took_longest)) };
    let jails = if all == 1 { "jail" } else { "jails" };
    Tested { works: !fails, text: format!("selftest {verdict}: {good} of {all} {jails}{took}{others}\n") }
}

fn milliseconds(took: Duration) -> String {
    format!("{:.1} ms", took.as_secs_f64() * 1_000.0)
}

/// The lines of a jail about an address.
fn lines(library: &Library, jail: &JailConfig, addr: IpAddr) -> Result<Vec<String>, String> {
    let name = jail.rule.name();
    let file = library.file(name).map_err(|bad| bad.to_string())?;
    probe::lines(&jail.rule, &file, addr, host::now(), &TimeZone::system()).ok_or_else(|| {
        format!("no sample of the rule {name} can be made a line about {addr} in mode {}", jail.mode)
    })
}

fn would_write(config: &Config, library: &Library) -> String {
    let mut text = String::new();
    for jail in &config.jails {
        for place in &jail.logpath {
            let lines = lines(library, jail, IpAddr::from([192, 0, 2, 213]));
            let lines = lines.map_or_else(|why| why, |lines| lines.join("\n"));
            text += &format!("{} to {place}:\n{lines}\n", jail.terms.name);
        }
    }
    text
}

struct Test<'a> {
    socket: &'a Path,
    library: Library,
    kernel: Netlink,
    wishes: Wishes,
    /// Whose bans must end by themselves.
    banned: Vec<(JailName, IpAddr)>,
}

impl Test<'_> {
    fn jail(&mut self, jail: &JailConfig) -> Outcome {
        let paths: Vec<PathBuf> = jail
            .logpath
            .iter()
            .filter_map(Place::file)
            .filter(|path| path.exists())
            .map(Path::to_owned)
            .collect();
        if paths.is_empty() {
            return match jail.logpath.first() {
                None => Outcome::NotProbed("it has no log, and hears the bans of others".to_owned()),
                Some(place) if place.file().is_none() => Outcome::NotProbed(format!("{place} is not a file")),
                Some(place) => Outcome::Fails(format!("{place} is not there")),
            };
        }
        let mut longest = Duration::ZERO;
        for path in paths {
            match self.source(jail, &path) {
                Ok(took) => longest = longest.max(took),
                Err(outcome) => return outcome,
            }
        }
        Outcome::Works { took: longest, without_packet: self.wishes.packets && !meets_packets(jail) }
    }

    /// One log of a jail: how long its line took to the kernel.
    fn source(&mut self, jail: &JailConfig, path: &Path) -> Result<Duration, Outcome> {
        let name = &jail.terms.name;
        let fails = |why: String| Outcome::Fails(why);
        // A packet must meet the ban of this jail, not one that an earlier jail has of the same address.
        let in_the_way = |tested: &JailName| self.wishes.packets || tested == name;
        let earlier: Vec<_> = self.banned.iter().filter(|(tested, _)| in_the_way(tested)).cloned().collect();
        for (tested, addr) in earlier {
            self.wait_for_end(&tested, addr).map_err(fails)?;
        }
        let addr = self.arm(name)?;
        self.wait_for_end(name, addr).map_err(fails)?;
        let lines = lines(&self.library, jail, addr).map_err(Outcome::NotProbed)?;
        let written = append(path, &lines).map_err(|why| fails(format!("{}: {why}", path.display())))?;
        let target = Target::of(addr);
        while self.remaining(name, target).map_err(fails)?.is_none() {
            if host::awake() - written > PATIENCE {
                let what = "a line was written, and the kernel of this network namespace holds no ban for it";
                return Err(fails(format!("{}: {what}", path.display())));
            }
            thread::sleep(LOOK_EVERY);
        }
        let took = host::awake() - written;
        self.banned.retain(|(tested, _)| tested != name);
        self.banned.push((name.clone(), addr));
        self.is_dropped(jail, addr).map_err(fails)?;
        Ok(took)
    }

    fn arm(&self, name: &JailName) -> Result<IpAddr, Outcome> {
        match control::ask(self.socket, &Request::Probe { jail: name.clone() }) {
            Ok(Response::Probe(addr)) => Ok(addr),
            Ok(Response::Failed { why: Failed::Refused, message }) => Err(Outcome::NotProbed(message)),
            Ok(Response::Failed { why: Failed::NotFound, .. }) => {
                Err(Outcome::Fails("the agent does not know it: nftjail reload".to_owned()))
            }
            Ok(Response::Failed { message, .. }) => Err(Outcome::Fails(message)),
            Ok(_) => Err(Outcome::Fails("the agent is of another version".to_owned())),
            Err(unanswered) => Err(Outcome::Fails(unanswered.to_string())),
        }
    }

    fn remaining(&mut self, name: &JailName, target: Target) -> Result<Option<Duration>, String> {
        let standing = self.kernel.remaining(name, target).map_err(|refusal| refusal.to_string())?;
        Ok(standing.map(|standing| standing.expires.unwrap_or(Duration::MAX)))
    }

    /// A rule that the kernel calls drops the address; where it is wished, a packet shows that it does.
    fn is_dropped(&mut self, jail: &JailConfig, addr: IpAddr) -> Result<(), String> {
        let name = &jail.terms.name;
        let told = |refusal: Refusal| refusal.to_string();
        let table = self.kernel.table(false).map_err(told)?.ok_or("the table is gone")?;
        if let Some(gap) = table.gap(name, &jail.hooks) {
            return Err(format!("the ban is in the kernel, but nothing drops by it: {gap}"));
        }
        let (true, IpAddr::V4(from)) = (self.wishes.packets && meets_packets(jail), addr) else {
            return Ok(());
        };
        let (protocol, port) = match &jail.ports {
            Ports::All => ANY_PORT,
            Ports::Some(ports) => *ports.first().ok_or("it closes no port")?,
        };
        let before = self.dropped(name)?;
        let not_sent =
            |error: io::Error| format!("no packet could be sent through /dev/net/tun: {}", plain(&error));
        Tun::open().and_then(|mut tun| tun.send(from, protocol, port)).map_err(not_sent)?;
        let sent = host::awake();
        while self.dropped(name)? == before {
            if host::awake() - sent > PATIENCE {
                return Err(format!("a packet of {addr} to {port}/{} was not dropped", protocol.name()));
            }
            thread::sleep(LOOK_EVERY);
        }
        Ok(())
    }

    fn dropped(&mut self, name: &JailName) -> Result<u64, String> {
        let dropped = self.kernel.dropped().map_err(|refusal| refusal.to_string())?;
        Ok(dropped.get(name).map_or(0, |dropped| dropped.packets))
    }

    fn wait_for_end(&mut self, name: &JailName, addr: IpAddr) -> Result<(), String> {
        let since = host::awake();
        while let Some(left) = self.remaining(name, Target::of(addr))? {
            if host::awake() - since > PATIENCE {
                return Err(format!("the ban of {addr} did not end by itself"));
            }
            thread::sleep(left.min(Duration::from_millis(100)));
        }
        Ok(())
    }
}

/// Whether a packet for nobody, as the self-test sends it, comes to the rules of the jail.
fn meets_packets(jail: &JailConfig) -> bool {
    jail.hooks.contains(&Hook::Prerouting)
}

/// Writes whole lines in one piece, as a log daemon or a container runtime does, into a log that is there; says when.
fn append(path: &Path, lines: &[String]) -> Result<Duration, String> {
    let told = |error: io::Error| format!("it cannot be written: {}", plain(&error));
    let mut file = OpenOptions::new().append(true).open(path).map_err(told)?;
    let Some(last) = last_line(path).map_err(told)? else {
        return Err("its last line is not finished: nothing was written".to_owned());
    };
    let now = host::now();
    let lines = lines.iter().map(|line| wrapper::wrapped_like(&last, line, now) + "\n");
    let text: String = lines.collect();
    let written = host::awake();
    file.write_all(text.as_bytes()).map_err(told)?;
    Ok(written)
}

/// The last line, or its end where it is very long; none where it is not finished.
fn last_line(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LAST_LINE_BYTES)))?;
    let mut end = Vec::new();
    file.take(LAST_LINE_BYTES).read_to_end(&mut end)?;
    let line = if end.is_empty() { Some(&[][..]) } else { end.strip_suffix(b"\n") };
    Ok(line.and_then(|line| line.rsplit(|byte| *byte == b'\n').next()).map(<[u8]>::to_vec))
}

/// No line that the agent reads is longer, with its newline.
const LAST_LINE_BYTES: u64 = 64 * 1024 + 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_says_what_works_and_what_does_not() {
        let jail = |name: &str, outcome| (name.parse::<JailName>().unwrap(), outcome);
        let works = |us| Outcome::Works { took: Duration::from_micros(us), without_packet: false };
        let all = [jail("a", works(900)), jail("b", works(1_240))];
        assert_eq!(summary(&all).text, "selftest ok: 2 of 2 jails, line to kernel 1.2 ms\n");
        let all = [jail("a", Outcome::Fails("x".to_owned())), jail("b", Outcome::NotProbed("y".to_owned()))];
        let Tested { works, text } = summary(&all);
        assert_eq!(
            (works, text.as_str()),
            (false, "selftest FAILED: 0 of 2 jails; a FAILS: x; b not probed: y\n")
        );
    }

    #[test]
    fn a_line_that_somebody_has_begun_is_not_broken() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        std::fs::write(&path, "whole\nhal").unwrap();
        assert!(append(&path, &["x".to_owned()]).unwrap_err().contains("not finished"));
        std::fs::write(&path, "whole\n").unwrap();
        append(&path, &["x".to_owned(), "y".to_owned()]).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "whole\nx\ny\n");
        std::fs::write(&path, "").unwrap();
        append(&path, &["x".to_owned()]).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "x\n");
    }

    #[test]
    fn the_log_of_a_container_gets_what_its_runtime_would_write() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        std::fs::write(&path, "2026-11-21T10:00:00Z stderr F hello\n").unwrap();
        append(&path, &["x".to_owned()]).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.ends_with("Z stdout F x\n"), "{text}");
    }
}
