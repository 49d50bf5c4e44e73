//! Bans that stand in fail2ban's database, put into the kernel and into our state with the time they have left.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

use crate::config::Config;
use crate::control::{self, Request, Unanswered};
use crate::host::{self, Services};
use crate::jargon::jail_name;
use crate::model::{Ban, Bantime, Change, JailName, Memory, Target, Timestamp};
use crate::never;
use crate::nft::netlink::Netlink;
use crate::nft::table::Standing;
use crate::nft::{Firewall, Refusal, plan};
use crate::state::{State, Step};
use crate::yaml;

/// More bans than a jail's sets hold are no database of bans.
const ROWS_MAX: usize = 4 << 20;

/// Why nothing was taken over.
#[derive(Debug)]
pub enum Stopped {
    BadConfiguration(String),
    NotAllowed(String),
    Failed(String),
}

impl From<Refusal> for Stopped {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::NotPermitted => Stopped::NotAllowed(refusal.to_string()),
            refusal => Stopped::Failed(format!("the kernel did not take the bans: {refusal}")),
        }
    }
}

/// One row: who is banned where, since when and for how long, and for which time.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Row {
    jail: String,
    whom: String,
    /// Seconds since 1970.
    at: i64,
    /// Seconds; negative where it never ends.
    bantime: i64,
    count: u32,
}

/// What the rows come to.
#[derive(Debug, Default, PartialEq, Eq)]
struct Taken {
    bans: BTreeMap<(JailName, Target), Ban>,
    offenders: BTreeMap<(JailName, Target), (u32, Timestamp)>,
    over: usize,
    spared: usize,
    /// Jails that are not configured here, and how many of their bans still stand.
    strange: BTreeMap<String, usize>,
    /// What is no address.
    unreadable: usize,
}

/// Puts the bans of `database` into the kernel, which holds them from then on, and into the state in `state` for the
/// agent that is started next. The agent must not run meanwhile.
pub fn run(database: &Path, config: Option<&Path>, state: &Path, socket: &Path) -> Result<String, Stopped> {
    let failed = |why: String| Stopped::Failed(format!("{why}; nobody was banned"));
    let rows =
        read(database).map_err(|error| failed(format!("cannot read {}: {error}", database.display())))?;
    let mut config = Config::load(config, &Services::of_this_host())
        .map_err(|faults| Stopped::BadConfiguration(yaml::told(&faults)))?;
    if !matches!(control::ask(socket, &Request::Status { jail: None }), Err(Unanswered::NotRunning(_))) {
        let how = "stop it (its bans stay in the kernel), import, and start it again";
        return Err(failed(format!("nftjail runs and keeps its own state: {how}")));
    }
    let mut kernel = Netlink::open()?;
    let can_own = kernel.can_own();
    config.heed(can_own);
    let own = never::of_this_host(config.ban_local).map_err(|error| failed(crate::model::plain(&error)))?;
    let (kept, saved) = State::open(state).map_err(failed)?;
    let spared: Vec<_> = own.iter().chain(&saved.ignored).copied().collect();
    let mut layout = config.layout(&spared);
    // We are gone in a moment, and nobody owns a table after that.
    layout.owned = false;
    let never = config.never(&spared);
    let jails: Vec<JailName> = layout.cells.iter().map(|cell| cell.jail.clone()).collect();
    let now = host::now();
    let taken = take(rows, &jails, now, &|target| never.covers(target.network()));

    let found = kernel.table(true)?;
    let standing: Vec<Standing> = found
        .iter()
        .flat_map(|table| table.standing())
        .chain(taken.bans.values().filter_map(|ban| left(ban, now)))
        .collect();
    kernel.commit(&plan::install(&layout, found.as_ref(), &standing))?;
    kept.close(step(&taken, saved.memories, saved.ignored, now));
    Ok(told(&taken))
}

fn read(database: &Path) -> Result<Vec<Row>, String> {
    let said = |error: rusqlite::Error| error.to_string();
    // A database that fail2ban writes to is read as it is.
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(database, flags).map_err(said)?;
    connection.busy_timeout(Duration::from_secs(5)).map_err(said)?;
    let query = "SELECT jail, ip, timeofban, bantime, bancount FROM bips";
    let mut query = connection.prepare(query).map_err(|error| match error.to_string() {
        text if text.contains("no such") => {
            format!("{text}: it is no database of fail2ban 0.11 or later; a newer fail2ban converts an older one at its start")
        }
        text => text,
    })?;
    let rows = query.query_map([], |row| {
        let (at, bantime): (f64, f64) = (row.get(2)?, row.get(3)?);
        let count: i64 = row.get(4)?;
        let count = u32::try_from(count.max(1)).unwrap_or(u32::MAX);
        Ok(Row { jail: row.get(0)?, whom: row.get(1)?, at: at as i64, bantime: bantime as i64, count })
    });
    let rows: Vec<Row> = rows.map_err(said)?.take(ROWS_MAX).collect::<Result<_, _>>().map_err(said)?;
    Ok(rows)
}

/// Sorts the rows into bans that stand and offenders that are remembered.
fn take(rows: Vec<Row>, jails: &[JailName], now: Timestamp, is_spared: &dyn Fn(Target) -> bool) -> Taken {
    let mut taken = Taken::default();
    for Row { jail, whom, at, bantime, count } in rows {
        let Ok(target) = whom.parse::<Target>() else {
            taken.unreadable += 1;
            continue;
        };
        let at = Timestamp::from_millis(at.saturating_mul(1_000));
        let bantime = match u64::try_from(bantime) {
            Ok(seconds) => Bantime::For(Duration::from_secs(seconds)),
            Err(_) => Bantime::Forever,
        };
        let stands = bantime.end(at).is_none_or(|end| end > now);
        let Some(jail) = jails.iter().find(|known| known.as_str() == jail_name(&jail)) else {
            *taken.strange.entry(jail).or_default() += usize::from(stands);
            continue;
        };
        let key = (jail.clone(), target);
        let earlier = taken.offenders.get(&key).copied().unwrap_or_default();
        // Several hosts of one /64 are one offender.
        taken.offenders.insert(key.clone(), (earlier.0.max(count), earlier.1.max(at)));
        if !stands {
            taken.over += 1;
            continue;
        }
        if is_spared(target) {
            taken.spared += 1;
            continue;
        }
        let ban = Ban { jail: jail.clone(), target, at, bantime };
        let lasts_longer = |other: &Ban| ends(other) >= ends(&ban);
        if !taken.bans.get(&key).is_some_and(lasts_longer) {
            taken.bans.insert(key, ban);
        }
    }
    without_overlaps(&mut taken.bans);
    taken
}

fn ends(ban: &Ban) -> Timestamp {
    ban.end().unwrap_or(Timestamp::from_millis(i64::MAX))
}

/// The kernel takes no two networks of which one lies in the other: the one that lasts longer stays, the wider of two
/// that end together.
fn without_overlaps(bans: &mut BTreeMap<(JailName, Target), Ban>) {
    let mut nets: Vec<Ban> = bans.values().filter(|ban| ban.target.is_network()).cloned().collect();
    nets.sort_by_key(|ban| (std::cmp::Reverse(ends(ban)), ban.target.net().prefix_len()));
    let mut stay: Vec<Ban> = Vec::new();
    for net in nets {
        let meets = |other: &Ban| {
            other.jail == net.jail && (other.target.covers(net.target) || net.target.covers(other.target))
        };
        match stay.iter().any(meets) {
            true => drop(bans.remove(&(net.jail, net.target))),
            false => stay.push(net),
        }
    }
}

fn left(ban: &Ban, now: Timestamp) -> Option<Standing> {
    let (timeout, expires) = match ban.bantime {
        Bantime::Forever => (None, None),
        Bantime::For(whole) => {
            let left = ban.end()?.since(now);
            (Some(whole.max(left)), Some(left).filter(|left| !left.is_zero())?.into())
        }
    };
    Some(Standing { jail: ban.jail.clone(), target: ban.target, timeout, expires })
}

fn step(
    taken: &Taken,
    memories: Vec<Memory>,
    ignored: std::collections::BTreeSet<ipnet::IpNet>,
    now: Timestamp,
) -> Step {
    let mut known: BTreeMap<(JailName, Target), Memory> =
        memories.into_iter().map(|memory| ((memory.jail.clone(), memory.target), memory)).collect();
    for ((jail, target), (count, last)) in &taken.offenders {
        let nothing =
            Memory { jail: jail.clone(), target: *target, times: Vec::new(), offender: None, friend: None };
        let memory = known.entry((jail.clone(), *target)).or_insert(nothing);
        let (bans, at) = memory.offender.unwrap_or_default();
        memory.offender = Some((bans.max(*count), at.max(*last)));
    }
    Step {
        memories: known.into_values().collect(),
        changes: taken.bans.values().cloned().map(Change::Ban).collect(),
        ignored,
        now,
        ..Step::default()
    }
}

fn told(taken: &Taken) -> String {
    let jails: std::collections::BTreeSet<&JailName> = taken.bans.keys().map(|(jail, _)| jail).collect();
    let mut text = format!(
        "{} bans of {} jails are in the kernel now, with the time they had left; {} offenders are remembered\n",
        taken.bans.len(),
        jails.len(),
        taken.offenders.len()
    );
    let mut line = |count: usize, what: &str| {
        if count > 0 {
            text += &format!("{count} {what}\n");
        }
    };
    line(taken.over, "were over");
    line(taken.spared, "are of hosts that nobody bans here");
    line(taken.unreadable, "are no addresses");
    for (jail, count) in taken.strange.iter().filter(|(_, count)| **count > 0) {
        line(*count, &format!("are of the jail {jail}, which is not configured here"));
    }
    text + "They hold from now on. Stop fail2ban and start nftjail, in this order, at any time.\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_795_255_200_000);

    fn row(jail: &str, whom: &str, ago: i64, bantime: i64, count: u32) -> Row {
        Row {
            jail: jail.to_owned(),
            whom: whom.to_owned(),
            at: NOW.as_millis() / 1_000 - ago,
            bantime,
            count,
        }
    }

    #[test]
    fn bans_come_with_what_is_left_of_them() {
        let rows = vec![
            row("sshd", "192.0.2.1", 100, 600, 2),
            row("sshd", "192.0.2.2", 700, 600, 3),
            row("sshd", "192.0.2.3", 9_999_999, -1, 1),
            row("sshd", "2001:db8::1", 100, 300, 1),
            row("sshd", "2001:db8::2", 100, 600, 4),
            row("sshd", "198.51.100.9", 0, 600, 1),
            row("3Proxy", "192.0.2.4", 0, 600, 1),
            row("gone", "192.0.2.4", 0, 600, 1),
            row("sshd", "some-name", 0, 600, 1),
            row("sshd", "203.0.113.0/24", 0, 600, 1),
            row("sshd", "203.0.113.0/28", 0, 500, 1),
        ];
        let jails = ["sshd", "jail-3proxy"].map(|name| name.parse().unwrap());
        let spared: Target = "198.51.100.9".parse().unwrap();
        let taken = take(rows, &jails, NOW, &|target| target == spared);
        let bans: Vec<(String, Option<u64>)> = taken
            .bans
            .values()
            .map(|ban| {
                let left = left(ban, NOW).unwrap();
                (format!("{} {}", ban.jail, ban.target), left.expires.map(|left| left.as_secs()))
            })
            .collect();
        let wanted = [
            ("jail-3proxy 192.0.2.4", Some(600)),
            ("sshd 192.0.2.1", Some(500)),
            ("sshd 192.0.2.3", None),
            ("sshd 2001:db8::/64", Some(500)),
            ("sshd 203.0.113.0/24", Some(600)),
        ];
        let mut bans = bans;
        bans.sort();
        assert_eq!(bans, wanted.map(|(text, left)| (text.to_owned(), left)));
        assert_eq!((taken.over, taken.spared, taken.unreadable), (1, 1, 1));
        assert_eq!(taken.strange, BTreeMap::from([("gone".to_owned(), 1)]));
        let count = |addr: &str| taken.offenders[&(jails[0].clone(), addr.parse().unwrap())].0;
        assert_eq!((count("192.0.2.2"), count("2001:db8::/64")), (3, 4));
    }

    #[test]
    fn what_is_remembered_of_somebody_else_stays() {
        let jails = ["sshd".parse().unwrap()];
        let taken = take(vec![row("sshd", "192.0.2.1", 100, 600, 2)], &jails, NOW, &|_| false);
        let memory = |addr: &str, offender| Memory {
            jail: jails[0].clone(),
            target: addr.parse().unwrap(),
            times: vec![NOW],
            offender,
            friend: Some(NOW),
        };
        let step = step(
            &taken,
            vec![memory("192.0.2.1", Some((5, NOW))), memory("192.0.2.2", None)],
            [].into(),
            NOW,
        );
        assert_eq!(step.memories, [memory("192.0.2.1", Some((5, NOW))), memory("192.0.2.2", None)]);
    }

    #[test]
    fn what_is_no_database_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.sqlite3");
        assert!(read(&path).unwrap_err().contains("unable to open"));
        std::fs::write(&path, "no database at all, but long enough to be taken for one by its size").unwrap();
        assert!(read(&path).unwrap_err().contains("not a database"));
        std::fs::remove_file(&path).unwrap();
        Connection::open(&path).unwrap().execute_batch("CREATE TABLE bans (x)").unwrap();
        assert!(read(&path).unwrap_err().contains("0.11 or later"));
    }
}
