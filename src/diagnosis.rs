//! From the facts about a host to what is well, what is worth knowing, and what somebody must do.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use crate::host::Link;
use crate::model::{JailName, Span, Timestamp};
use crate::nft::surroundings::{BaseChain, Surroundings};
use crate::nft::table::{Set, TABLE, Table};
use crate::status::{Finding, JailStatus, Level, SourceStatus, Status};

/// What was found on the host, each where it could be.
pub struct Facts {
    pub now: Timestamp,
    pub agent: Result<Agent, String>,
    pub kernel: Result<Kernel, String>,
    pub links: Result<Vec<Link>, String>,
    /// The files of the configuration, and when each was written; or why it is not in order.
    pub config: Result<Vec<(PathBuf, Timestamp)>, String>,
    /// Tables that the old iptables programs hold: `ip filter`.
    pub legacy: Vec<String>,
    /// The version of the kernel.
    pub release: String,
    /// The time zone, in words.
    pub zone: String,
    /// Whether the clock is set by a server; none where nobody says.
    pub synchronised: Option<bool>,
}

pub struct Agent {
    pub status: Status,
    /// Whether it may change the firewall; none where its process cannot be seen.
    pub capable: Option<bool>,
    /// Whether it is in the network namespace that is looked at.
    pub same_network: Option<bool>,
    /// The time zone of the host was changed after it started.
    pub zone_changed: bool,
}

pub struct Kernel {
    /// Ours, without bans.
    pub table: Option<Table>,
    pub around: Surroundings,
}

/// A log that nobody wrote to for so long may be the wrong one.
const QUIET: Duration = Duration::from_secs(86_400);
/// So many per cent of a set are many.
const FULL_PERCENT: u64 = 80;
/// So many names of a list are shown.
const SHOWN: usize = 8;
/// The hooks that all packets from outside pass before they are routed.
const PREROUTING: &str = "prerouting";

/// Everything that is to be said, in the order in which packets and lines go.
pub fn findings(facts: &Facts) -> Vec<Finding> {
    let mut found = Vec::new();
    match &facts.agent {
        Ok(agent) => of_agent(agent, facts.now, &mut found),
        Err(why) => {
            found.push(bad("agent", why.clone(), "start it: nftjail run; what it knows is not shown here"))
        }
    }
    match &facts.kernel {
        Ok(kernel) => of_kernel(kernel, facts.agent.as_ref().ok(), &mut found),
        Err(why) => {
            found.push(bad("kernel", why.clone(), "nothing is known of hooks, sets and bans without it"))
        }
    }
    let table = facts.kernel.as_ref().ok().and_then(|kernel| kernel.table.as_ref());
    let features = match table.map(|table| table.counts.is_empty()) {
        Some(true) => "; nf_tables does not tell how full a set is, so the agent's count is shown",
        Some(false) => "; nf_tables tells how full each set is",
        None => "",
    };
    found.push(ok("kernel", format!("Linux {}{features}", facts.release)));
    if !facts.legacy.is_empty() {
        let tables = facts.legacy.join(", ");
        found.push(ok(
            "iptables",
            format!("old tables are in use ({tables}): what they accept is no way past us"),
        ));
    }
    match &facts.links {
        Ok(links) => of_links(links, &mut found),
        Err(why) => found.push(note("interfaces", why.clone(), "XDP, tc and bridges are not looked at")),
    }
    if let Ok(agent) = &facts.agent {
        of_logs(&agent.status, facts.now, &mut found);
    }
    of_clock(facts, &mut found);
    of_config(facts, &mut found);
    found
}

fn ok(about: &'static str, what: String) -> Finding {
    Finding { level: Level::Ok, about, what, todo: None }
}

fn note(about: &'static str, what: String, todo: impl Into<String>) -> Finding {
    Finding { level: Level::Note, about, what, todo: Some(todo.into()) }
}

fn bad(about: &'static str, what: String, todo: impl Into<String>) -> Finding {
    Finding { level: Level::Bad, ..note(about, what, todo) }
}

/// The first names of a list, and how many more there are.
fn listed(names: impl IntoIterator<Item = String>) -> String {
    let mut names: Vec<String> = names.into_iter().collect();
    let more = names.len().saturating_sub(SHOWN);
    names.truncate(SHOWN);
    let shown = names.join(", ");
    if more == 0 { shown } else { format!("{shown} and {more} more") }
}

fn of_agent(agent: &Agent, now: Timestamp, found: &mut Vec<Finding>) {
    let status = &agent.status;
    let age = Span(now.since(status.started));
    found.push(ok("agent", format!("{} runs since {age}, process {}", status.version, status.pid)));
    if agent.capable == Some(false) {
        let todo = "give it AmbientCapabilities=CAP_NET_ADMIN, or run it as root";
        found.push(bad("capability", "the agent lacks CAP_NET_ADMIN: it cannot ban".to_owned(), todo));
    }
    if agent.same_network == Some(false) {
        let what = "the agent is in another network namespace than this command".to_owned();
        found.push(bad(
            "network",
            what,
            "what is said of the kernel here is not where it bans: run both in one",
        ));
    }
    found
        .extend(status.troubles.iter().map(|trouble| bad("trouble", trouble.clone(), "see the agent's log")));
    if let (total @ 1.., Some(last), Some(by)) =
        (status.repairs.total, status.repairs.last, &status.repairs.by)
    {
        let what =
            format!("our table was put back {total} times, last {} ago after {by}", Span(now.since(last)));
        found.push(note("repairs", what, "let it reload its own tables only, not flush the whole ruleset"));
    }
    if let Some(at) = status.audited {
        let age = Span(now.since(at));
        found.push(ok("audit", format!("belief and kernel were compared {age} ago")));
    }
}

fn of_kernel(kernel: &Kernel, agent: Option<&Agent>, found: &mut Vec<Finding>) {
    found.push(ok("capability", "CAP_NET_ADMIN is here: the ruleset can be read".to_owned()));
    of_hooks(&kernel.around, found);
    of_earlier(&kernel.around, found);
    of_detours(&kernel.around, found);
    let Some(table) = &kernel.table else {
        let what = format!("there is no table inet {TABLE}: nobody is banned");
        found.push(bad("table", what, "start the agent; where it runs, it puts the table back by itself"));
        return;
    };
    let jails: BTreeSet<JailName> = table.sets.iter().filter_map(Set::jail).collect();
    for jail in &jails {
        let known = agent.iter().flat_map(|agent| &agent.status.jails).find(|known| known.name == *jail);
        let hooks = known.iter().flat_map(|known| &known.hooks).copied().collect();
        if let Some(gap) = table.gap(jail, &hooks) {
            let what = format!("{jail}: whom it bans is not dropped: {gap}");
            found.push(bad(
                "table",
                what,
                "start the agent; where it runs, nftjail reload puts the table back",
            ));
        }
    }
    for jail in agent.map_or(&[][..], |agent| &agent.status.jails) {
        of_jail(jail, table, found);
    }
    of_sets(table, agent, found);
}

/// Where we are called, and who else is there.
fn of_hooks(around: &Surroundings, found: &mut Vec<Finding>) {
    for chain in around.chains.iter().filter(|chain| is_ours(chain)) {
        let same = |other: &&BaseChain| {
            !is_ours(other)
                && other.hook == chain.hook
                && matches!(other.family.as_str(), "inet" | "ip" | "ip6")
        };
        let name = |other: &BaseChain| {
            format!("{} {} {} ({})", other.family, other.table, other.name, other.priority)
        };
        let others = match listed(around.chains.iter().filter(same).map(name)) {
            none if none.is_empty() => "nobody else is there".to_owned(),
            others => format!("there too: {others}"),
        };
        found.push(ok("hooks", format!("we are called at {} {}; {others}", chain.hook, chain.priority)));
    }
}

fn is_ours(chain: &BaseChain) -> bool {
    chain.family == "inet" && chain.table == TABLE
}

/// Who sees packets before us.
fn of_earlier(around: &Surroundings, found: &mut Vec<Finding>) {
    let said = |chain: &BaseChain| {
        let BaseChain { family, table, name, hook, priority, .. } = chain;
        let on = if chain.devices.is_empty() {
            String::new()
        } else {
            format!(" on {}", chain.devices.join(", "))
        };
        format!("{family} {table} {name} at {hook} {priority}{on}")
    };
    let ours = around.chains.iter().find(|chain| is_ours(chain) && chain.hook == PREROUTING);
    let is_before = |chain: &&BaseChain| match chain.hook.as_str() {
        "ingress" => true,
        PREROUTING if is_ours(chain) => false,
        PREROUTING => chain.family == "bridge" || ours.is_some_and(|ours| chain.priority <= ours.priority),
        _ => false,
    };
    let forwards = |chain: &&BaseChain| {
        around.forwarding.contains(&(chain.family.clone(), chain.table.clone(), chain.name.clone()))
    };
    let (forwards, others): (Vec<&BaseChain>, Vec<&BaseChain>) =
        around.chains.iter().filter(is_before).partition(forwards);
    if !others.is_empty() {
        let names = listed(others.into_iter().map(said));
        let what = format!(
            "before us: {names}; what they accept comes to us all the same, what they drop never does"
        );
        found.push(ok("before us", what));
    }
    for chain in forwards {
        let what =
            format!("{} hands packets to other interfaces (fwd, dup): those pass before us", said(chain));
        found.push(note("before us", what, "a banned host is not stopped there: see that chain's rules"));
    }
}

/// What is led elsewhere: connections past us, ports behind us.
fn of_detours(around: &Surroundings, found: &mut Vec<Finding>) {
    for flow in &around.flow_tables {
        let what = format!(
            "flowtable {} {} {} on {}: connections in it are passed on before our hook, also those of banned hosts",
            flow.family,
            flow.table,
            flow.name,
            flow.devices.join(", ")
        );
        found.push(note(
            "flowtable",
            what,
            "new ones are dropped; to cut standing ones, do not offload those ports",
        ));
    }
    if !around.published.is_empty() {
        let ports = around.published.iter().map(|(protocol, port)| match protocol {
            Some(protocol) => format!("{port}/{}", protocol.name()),
            None => port.to_string(),
        });
        let ports = listed(ports);
        let what = format!(
            "published or redirected ports: {ports}; a jail at prerouting meets them so, one at input or forward \
             by the inner port"
        );
        found.push(ok("containers", what));
    }
}

fn of_jail(jail: &JailStatus, table: &Table, found: &mut Vec<Finding>) {
    if !table.sets.iter().any(|set| set.jail().as_ref() == Some(&jail.name)) {
        let what = format!("{}: there is no set for its bans", jail.name);
        found.push(bad("table", what, "nftjail reload puts the table back"));
    }
    let held =
        |suffix: &str| table.counts.get(&format!("{}_{suffix}", jail.name)).map(|count| *count as usize);
    if let (Some(v4), Some(v6)) = (held("v4"), held("v6"))
        && v4 + v6 < jail.banned
    {
        let what =
            format!("{}: the agent believes {} bans, the kernel holds {}", jail.name, jail.banned, v4 + v6);
        found.push(bad("bans", what, "the next audit puts them back within a minute; nftjail status tells"));
    }
    if jail.paused {
        let what = format!("{} is paused: it counts nothing", jail.name);
        found.push(note("jail", what, format!("nftjail resume {}", jail.name)));
    }
}

/// How full the sets are.
fn of_sets(table: &Table, agent: Option<&Agent>, found: &mut Vec<Finding>) {
    let mut fullest = 0;
    for set in &table.sets {
        let (Some(jail), Some(size @ 1..)) = (set.jail(), set.size) else { continue };
        // Where the kernel does not tell, all bans of the jail are in this set at the most.
        let believed = || {
            let jail = agent?.status.jails.iter().find(|known| known.name == jail)?;
            Some(jail.banned as u64)
        };
        let count = table.counts.get(&set.name).map(|count| u64::from(*count)).or_else(believed);
        let (size, Some(count)) = (u64::from(size), count) else { continue };
        let percent = count * 100 / size;
        fullest = fullest.max(percent);
        let what = format!("set {} holds {count} of {size}", set.name);
        let todo = "raise capacity of the jail, or ban for a shorter time";
        if count >= size {
            found.push(bad("sets", what + ": nobody else can be banned there", todo));
        } else if percent > FULL_PERCENT {
            found.push(note("sets", what, todo));
        }
    }
    if fullest <= FULL_PERCENT {
        found.push(ok("sets", format!("the fullest set is at {fullest} %")));
    }
}

fn of_links(links: &[Link], found: &mut Vec<Finding>) {
    let named = |is: fn(&Link) -> bool| {
        let names: Vec<String> = links.iter().filter(|link| is(link)).map(|link| link.name.clone()).collect();
        (!names.is_empty()).then(|| listed(names))
    };
    if let Some(names) = named(|link| link.has_xdp) {
        let what =
            format!("an XDP program sees packets first on {names}: what it redirects passes before us");
        found.push(note(
            "before us",
            what,
            "bpftool net shows which; one that only drops or passes does no harm",
        ));
    }
    if let Some(names) = named(|link| link.has_tc) {
        let what =
            format!("traffic control may see packets first on {names}: what it redirects passes before us");
        found.push(note("before us", what, "tc filter show dev NAME ingress lists its filters"));
    }
    if let Some(names) = named(|link| link.has_own_stack) {
        let what = format!("{names}: its packets come in past the hooks of the interface below it");
        found.push(note("containers", what, "where it belongs to a guest, ban in the guest"));
    }
    for bridge in links.iter().filter(|link| link.is_bridge) {
        let outside = links.iter().filter(|link| link.joins.as_ref() == Some(&bridge.name));
        let outside = listed(outside.map(|link| link.name.clone()));
        if outside.is_empty() {
            let what = format!(
                "bridge {}: what is routed to it from outside comes past our hook first",
                bridge.name
            );
            found.push(ok("containers", what));
        } else {
            let what = format!(
                "bridge {} joins {outside}: frames from there to guests on it are not routed and do not meet our hook",
                bridge.name
            );
            found.push(note("containers", what, "ban in the guests, or load br_netfilter"));
        }
    }
}

fn of_logs(status: &Status, now: Timestamp, found: &mut Vec<Finding>) {
    for source in &status.sources {
        let reads = |jail: &&JailStatus| jail.sources.contains(&source.name);
        let listeners = || status.jails.iter().filter(reads);
        let is_read = |name: &String| {
            status.sources.iter().any(|other| other.name == *name && other.state == "following")
        };
        let names = listed(listeners().map(|jail| jail.name.to_string()));
        let is_spare = listeners().all(|jail| jail.sources.iter().any(is_read));
        found.push(of_log(source, &names, is_spare, status.started, now));
    }
}

fn of_log(source: &SourceStatus, jails: &str, is_spare: bool, started: Timestamp, now: Timestamp) -> Finding {
    let name = &source.name;
    if source.state != "following" {
        let what = format!("{name} ({jails}): {}", source.state);
        let todo = "set logpath to where the service logs, or remove it there; nftjail check tries each";
        return if is_spare { note("logs", what, todo) } else { bad("logs", what, todo) };
    }
    let quiet = now.since(source.last_line.unwrap_or(started));
    if quiet >= QUIET {
        let what = format!("{name} ({jails}): no line for {}", Span(quiet));
        return note(
            "logs",
            what,
            "does the service still log there? nftjail selftest proves the way from there on",
        );
    }
    let age = source
        .last_line
        .map_or_else(|| "no line yet".to_owned(), |_| format!("last line {} ago", Span(quiet)));
    let behind = if source.behind == 0 { String::new() } else { format!(", {} bytes behind", source.behind) };
    ok("logs", format!("{name} ({jails}): {age}{behind}"))
}

fn of_clock(facts: &Facts, found: &mut Vec<Finding>) {
    let what = format!("{}, {}", facts.now, facts.zone);
    match facts.synchronised {
        Some(false) => found.push(note("clock", format!("{what}; not synchronised yet"), "see timedatectl")),
        Some(true) => found.push(ok("clock", format!("{what}; synchronised"))),
        None => found.push(ok("clock", what)),
    }
    if facts.agent.as_ref().is_ok_and(|agent| agent.zone_changed) {
        let what = "the time zone of the host was changed after the agent started".to_owned();
        found.push(note("clock", what, "restart the agent: dates without a zone are read in the old one"));
    }
}

fn of_config(facts: &Facts, found: &mut Vec<Finding>) {
    let files = match &facts.config {
        Ok(files) => files,
        Err(faults) => {
            let what = format!("the configuration is not in order: {faults}");
            return found.push(bad(
                "config",
                what,
                "until it is, the agent goes on by the old one and cannot be restarted",
            ));
        }
    };
    let Ok(agent) = &facts.agent else { return };
    let newer = files.iter().filter(|(_, written)| *written > agent.status.loaded);
    let newer = listed(newer.map(|(path, _)| path.display().to_string()));
    if newer.is_empty() {
        let age = Span(facts.now.since(agent.status.loaded));
        found.push(ok("config", format!("read {age} ago, not changed since")));
    } else {
        let what = format!("written after the agent read it: {newer}");
        found.push(note("config", what, "nftjail reload"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Block, Hook};
    use crate::nft::surroundings::FlowTable;
    use crate::status::Repairs;

    const NOW: Timestamp = Timestamp::from_millis(1_000_000_000_000);

    fn ago(seconds: u64) -> Timestamp {
        NOW.minus(Duration::from_secs(seconds))
    }

    fn source(name: &str) -> SourceStatus {
        let state = "following".to_owned();
        SourceStatus {
            name: name.to_owned(),
            state,
            lines: 1,
            behind: 0,
            lost: 0,
            overlong: 0,
            last_line: Some(ago(3)),
        }
    }

    fn facts() -> Facts {
        let jail = JailStatus {
            name: "sshd".parse().unwrap(),
            rule: "sshd".to_owned(),
            mode: "normal".to_owned(),
            ports: "22/tcp".to_owned(),
            paused: false,
            block: Block::Drop,
            hooks: vec![Hook::Prerouting],
            maxretry: 5,
            findtime: "10m".to_owned(),
            bantime: "1h".to_owned(),
            extend_on_knock: None,
            failing: 0,
            failed_total: 0,
            banned: 2,
            banned_total: 2,
            forgotten_total: 0,
            dropped: None,
            sources: vec!["a.log".to_owned(), "b.log".to_owned()],
        };
        let status = Status {
            schema: 1,
            version: "0.1.0".to_owned(),
            pid: 7,
            started: ago(200_000),
            loaded: ago(100),
            audited: Some(ago(30)),
            now: NOW,
            pending: 0,
            jails: vec![jail],
            sources: vec![source("a.log"), source("b.log")],
            repairs: Repairs::default(),
            broken: Vec::new(),
            auto: Vec::new(),
            ignored: Vec::new(),
            troubles: Vec::new(),
        };
        let cell = crate::model::Cell {
            jail: "sshd".parse().unwrap(),
            ports: crate::model::Ports::All,
            block: Block::Drop,
            hooks: [Hook::Prerouting].into(),
            capacity: 10,
            knock: crate::model::Knock::default(),
        };
        let layout = crate::model::Layout { cells: vec![cell], ..crate::model::Layout::default() };
        let mut table = crate::nft::plan::wanted(&layout);
        table.counts = [("sshd_v4".to_owned(), 1), ("sshd_v6".to_owned(), 1)].into();
        Facts {
            now: NOW,
            agent: Ok(Agent { status, capable: Some(true), same_network: Some(true), zone_changed: false }),
            kernel: Ok(Kernel { table: Some(table), around: Surroundings::default() }),
            links: Ok(Vec::new()),
            config: Ok(vec![(PathBuf::from("nftjail.yaml"), ago(200))]),
            legacy: Vec::new(),
            release: "6.18".to_owned(),
            zone: "UTC".to_owned(),
            synchronised: Some(true),
        }
    }

    /// What is found that is not well, after `change`.
    fn found(change: impl FnOnce(&mut Facts)) -> Vec<String> {
        let mut facts = facts();
        change(&mut facts);
        let found = findings(&facts).into_iter().filter(|finding| finding.level > Level::Ok);
        found.map(|finding| format!("{:?} {}: {}", finding.level, finding.about, finding.what)).collect()
    }

    fn agent(facts: &mut Facts) -> &mut Agent {
        facts.agent.as_mut().unwrap_or_else(|_| panic!())
    }

    fn kernel(facts: &mut Facts) -> &mut Kernel {
        facts.kernel.as_mut().unwrap_or_else(|_| panic!())
    }

    #[test]
    fn nothing_is_found_where_all_is_well() {
        assert_eq!(found(|_| {}), [""; 0]);
    }

    #[test]
    fn each_fault_is_found_and_nothing_else() {
        type Break = fn(&mut Facts);
        let faults: [(Break, &str); 16] = [
            (|facts| agent(facts).capable = Some(false), "Bad capability: the agent lacks CAP_NET_ADMIN"),
            (|facts| agent(facts).same_network = Some(false), "Bad network: "),
            (|facts| agent(facts).zone_changed = true, "Note clock: the time zone"),
            (|facts| agent(facts).status.troubles.push("x is y".to_owned()), "Bad trouble: x is y"),
            (
                |facts| {
                    let by = Some("nft (process 9)".to_owned());
                    agent(facts).status.repairs = Repairs { total: 3, last: Some(ago(60)), by };
                },
                "Note repairs: our table was put back 3 times, last 1m ago after nft (process 9)",
            ),
            (
                |facts| agent(facts).status.jails[0].banned = 3,
                "Bad bans: sshd: the agent believes 3 bans, the kernel holds 2",
            ),
            (|facts| agent(facts).status.jails[0].paused = true, "Note jail: sshd is paused"),
            (
                |facts| agent(facts).status.sources[0].last_line = Some(ago(90_000)),
                "Note logs: a.log (sshd): no line for 1d1h",
            ),
            (
                |facts| agent(facts).status.sources[0].last_line = None,
                "Note logs: a.log (sshd): no line for 2d7h",
            ),
            (
                |facts| agent(facts).status.sources[0].state = "waits".to_owned(),
                "Note logs: a.log (sshd): waits",
            ),
            (|facts| facts.synchronised = Some(false), "Note clock: "),
            (
                |facts| facts.config = Err("x.yaml:1:1: y".to_owned()),
                "Bad config: the configuration is not in order: x.yaml:1:1: y",
            ),
            (
                |facts| facts.config = Ok(vec![("new.yaml".into(), ago(99))]),
                "Note config: written after the agent read it: new.yaml",
            ),
            (
                |facts| {
                    kernel(facts).table.as_mut().unwrap().counts.insert("sshd_v6".to_owned(), 9);
                },
                "Note sets: set sshd_v6 holds 9 of 10",
            ),
            (
                |facts| {
                    kernel(facts).table.as_mut().unwrap().counts.insert("sshd_v6".to_owned(), 10);
                },
                "Bad sets: set sshd_v6 holds 10 of 10: nobody else",
            ),
            (|facts| kernel(facts).table = None, "Bad table: there is no table inet nftjail"),
        ];
        for (change, wanted) in faults {
            let found = found(change);
            assert!(found.len() == 1 && found[0].starts_with(wanted), "{wanted}: {found:?}");
        }
    }

    #[test]
    fn a_jail_that_hears_nothing_is_worse_than_one_log_that_waits() {
        let found = found(|facts| {
            agent(facts).status.sources.iter_mut().for_each(|source| source.state = "waits".to_owned());
        });
        assert_eq!(found, ["Bad logs: a.log (sshd): waits", "Bad logs: b.log (sshd): waits"]);
    }

    #[test]
    fn what_leads_past_us_is_found() {
        let link = |name: &str| Link { name: name.to_owned(), ..Link::default() };
        let found = found(|facts| {
            let around = &mut kernel(facts).around;
            let text = |text: &str| text.to_owned();
            let chain = |hook: &str, priority| BaseChain {
                family: text("netdev"),
                table: text("edge"),
                name: text(hook),
                hook: text(hook),
                priority,
                drops: false,
                devices: vec![text("eth0")],
            };
            around.chains = vec![chain("egress", 0), chain("ingress", 0)];
            around.forwarding.insert((text("netdev"), text("edge"), text("ingress")));
            let devices = vec![text("eth0"), text("eth1")];
            around.flow_tables.push(FlowTable {
                family: text("inet"),
                table: text("r"),
                name: text("f"),
                devices,
            });
            facts.links = Ok(vec![
                Link { has_xdp: true, joins: Some("br0".to_owned()), ..link("eth0") },
                Link { is_bridge: true, ..link("br0") },
                Link { is_bridge: true, ..link("docker0") },
                Link { has_own_stack: true, ..link("macvlan0") },
                Link { has_tc: true, ..link("eth1") },
            ]);
        });
        let starts = [
            "Note before us: netdev edge ingress at ingress 0 on eth0 hands packets",
            "Note flowtable: flowtable inet r f on eth0, eth1: ",
            "Note before us: an XDP program sees packets first on eth0",
            "Note before us: traffic control may see packets first on eth1",
            "Note containers: macvlan0: ",
            "Note containers: bridge br0 joins eth0: ",
        ];
        assert_eq!(found.len(), starts.len(), "{found:?}");
        for (found, start) in found.iter().zip(starts) {
            assert!(found.starts_with(start), "{found}");
        }
    }
}
