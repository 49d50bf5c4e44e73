//! `nftjail doctor`: asks the agent, the kernel and the host how they are; changes nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use jiff::tz::TimeZone;
use rustix::process::Pid;
use rustix::thread::{CapabilitySet, capabilities};

use crate::config::{self, Config};
use crate::control::{self, Request, Response};
use crate::diagnosis::{self, Agent, Facts, Kernel};
use crate::host::{self, Services};
use crate::model::{Timestamp, plain};
use crate::nft::netlink::Netlink;
use crate::nft::{Firewall, Refusal};
use crate::status::{Checkup, Level, Status};
use crate::yaml;

/// Looks at everything once.
pub fn run(place: Option<&Path>, socket: &Path) -> Checkup {
    let before = status(socket);
    let kernel = kernel().map_err(|refusal| refusal.to_string());
    let agent = status(socket).map(|mut after| {
        // What ended or began meanwhile is no difference between belief and kernel.
        for jail in &mut after.jails {
            let known = before.iter().flat_map(|before| &before.jails).find(|known| known.name == jail.name);
            jail.banned = jail.banned.min(known.map_or(0, |known| known.banned));
        }
        agent(after)
    });
    let facts = Facts {
        now: host::now(),
        agent,
        kernel,
        links: host::links().map_err(|error| format!("interfaces cannot be listed: {}", plain(&error))),
        config: config_files(place),
        legacy: legacy_tables(),
        release: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
        zone: zone(),
        synchronised: synchronised(),
    };
    let findings = diagnosis::findings(&facts);
    Checkup { schema: 1, well: findings.iter().all(|finding| finding.level < Level::Bad), findings }
}

fn status(socket: &Path) -> Result<Status, String> {
    match control::ask(socket, &Request::Status { jail: None }) {
        Ok(Response::Status(status)) => Ok(*status),
        Ok(_) => Err("the agent answered something else than was asked: it is of another version".to_owned()),
        Err(unanswered) => Err(unanswered.to_string()),
    }
}

fn agent(status: Status) -> Agent {
    let pid = i32::try_from(status.pid).ok().and_then(Pid::from_raw);
    let capable = pid.and_then(|pid| capabilities(Some(pid)).ok());
    let network = |process: String| fs::read_link(format!("/proc/{process}/ns/net")).ok();
    let theirs = network(status.pid.to_string());
    Agent {
        capable: capable.map(|sets| sets.effective.contains(CapabilitySet::NET_ADMIN)),
        same_network: theirs.map(|theirs| network("self".to_owned()) == Some(theirs)),
        zone_changed: written(Path::new("/etc/localtime")).is_some_and(|at| at > status.started),
        status,
    }
}

fn kernel() -> Result<Kernel, Refusal> {
    let mut netlink = Netlink::open()?;
    Ok(Kernel { table: netlink.table(false)?, around: netlink.surroundings()? })
}

/// When a file, or a link itself, was last written.
fn written(path: &Path) -> Option<Timestamp> {
    let since = fs::symlink_metadata(path).ok()?.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
    Some(Timestamp::from_millis(since.as_millis() as i64))
}

/// The files of the configuration, and the folders whose change means that files came or went.
fn config_files(place: Option<&Path>) -> Result<Vec<(PathBuf, Timestamp)>, String> {
    let config = Config::load(place, &Services::of_this_host())
        .map_err(|faults| yaml::told(&faults).replace('\n', " "))?;
    let rules = config::rules_dir(place);
    let mut paths = config.files;
    paths.extend(fs::read_dir(&rules).into_iter().flatten().flatten().map(|entry| entry.path()));
    paths.push(rules);
    paths.extend(
        place
            .is_none_or(Path::is_dir)
            .then(|| place.unwrap_or(Path::new(config::CONFIG_DIR)).join("nftjail.d")),
    );
    Ok(paths.into_iter().filter_map(|path| Some((path.clone(), written(&path)?))).collect())
}

/// The tables of the old iptables programs, which nftables does not show.
fn legacy_tables() -> Vec<String> {
    let families = [("ip", "/proc/net/ip_tables_names"), ("ip6", "/proc/net/ip6_tables_names")];
    let tables = families.into_iter().flat_map(|(family, path)| {
        let text = fs::read_to_string(path).unwrap_or_default();
        text.lines().map(|table| format!("{family} {table}")).collect::<Vec<_>>()
    });
    tables.collect()
}

fn zone() -> String {
    let zone = TimeZone::system();
    let now = jiff::Timestamp::from_millisecond(host::now().as_millis()).unwrap_or_default();
    format!("time zone {} ({})", zone.iana_name().unwrap_or("without a name"), zone.to_offset(now))
}

/// What systemd-timesyncd(8) says, where it runs.
fn synchronised() -> Option<bool> {
    let dir = Path::new("/run/systemd/timesync");
    dir.is_dir().then(|| dir.join("synchronized").exists())
}
