//! Bans of the past: written with every save, read on the side, bounded.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use rusqlite::{Connection, OpenFlags, Row, params};

use crate::model::{JailName, Target, Timestamp};
use crate::state::FILE;
use crate::status::{Count, Happened, History, Past};

/// `history`: each ban, each that was made longer, each that was lifted by hand; `ends` is null where a ban never
/// ends, and where one was lifted. `lines` are those that led to it (JSON list).
pub const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS history (
    id INTEGER PRIMARY KEY, at INTEGER NOT NULL, event TEXT NOT NULL, jail TEXT NOT NULL, target TEXT NOT NULL,
    ends INTEGER, lines TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS history_at ON history (at);
CREATE INDEX IF NOT EXISTS history_target ON history (target);
";

/// The past is forgotten after so long ...
const KEPT: Duration = Duration::from_secs(400 * 86_400);
/// ... or when so much came after it.
const ROWS_MAX: u32 = 200_000;
/// So many of each kind are counted one by one.
const TOP: usize = 20;
/// So many of one target are shown.
const PAST_SHOWN: u32 = 20;

/// Adds to the past, in the transaction that saves everything else, and forgets what is too old or too much.
pub fn write(connection: &Connection, past: &[Past], now: Timestamp) -> rusqlite::Result<()> {
    if past.is_empty() {
        return Ok(());
    }
    let mut put = connection.prepare_cached(
        "INSERT INTO history (at, event, jail, target, ends, lines) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
    )?;
    for Past { at, event, jail, target, ends, lines } in past {
        put.execute(params![
            at.as_millis(),
            event.name(),
            jail.as_str(),
            target.to_string(),
            ends.map(Timestamp::as_millis),
            serde_json::json!(lines).to_string()
        ])?;
    }
    connection.execute("DELETE FROM history WHERE at < ?1", [now.minus(KEPT).as_millis()])?;
    connection
        .execute("DELETE FROM history WHERE id <= (SELECT max(id) FROM history) - ?1", [ROWS_MAX])
        .map(drop)
}

/// Which part of the past is asked for.
#[derive(Clone, Debug, Default)]
pub struct Part {
    pub since: Timestamp,
    pub jail: Option<JailName>,
    /// This target, and all that it covers.
    pub within: Option<IpNet>,
}

/// Reads the state of an agent beside it: in WAL mode nobody waits for anybody.
pub struct Reader {
    path: PathBuf,
}

impl Reader {
    pub fn of(state: &Path) -> Reader {
        Reader { path: state.join(FILE) }
    }

    fn open(&self) -> Result<Connection, String> {
        let told = |why: &dyn std::fmt::Display| format!("cannot read {}: {why}", self.path.display());
        fs::metadata(&self.path).map_err(|error| told(&crate::model::plain(&error)))?;
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&self.path, flags).map_err(|error| told(&error))?;
        connection.busy_timeout(Duration::from_secs(5)).map_err(|error| told(&error))?;
        Ok(connection)
    }

    /// The past of one target, the last first.
    pub fn of_target(&self, target: Target) -> Result<Vec<Past>, String> {
        let query = "SELECT at, event, jail, target, ends, lines FROM history WHERE target = ?1
            ORDER BY id DESC LIMIT ?2";
        let read = |connection: &Connection| -> rusqlite::Result<Vec<Past>> {
            let mut query = connection.prepare(query)?;
            let rows = query.query_map(params![target.to_string(), PAST_SHOWN], past)?;
            rows.filter_map(Result::transpose).collect()
        };
        read(&self.open()?).map_err(|error| error.to_string())
    }

    /// Every row of a part, the oldest first.
    pub fn all(&self, part: &Part) -> Result<Vec<Past>, String> {
        let mut all = Vec::new();
        self.walk(part, |past| all.push(past))?;
        Ok(all)
    }

    /// The bans of a part, counted.
    pub fn counted(&self, part: &Part) -> Result<History, String> {
        let (mut days, mut jails, mut targets, mut networks) = Default::default();
        let mut bans = 0;
        self.walk(part, |past| {
            if past.event == Happened::Banned {
                bans += 1;
                count(&mut days, past.at.to_string().split('T').next().unwrap_or_default());
                count(&mut jails, past.jail.as_str());
                count(&mut targets, &past.target.to_string());
                count(&mut networks, &network(past.target));
            }
        })?;
        let mut days: Vec<Count> = days.into_iter().map(|(of, bans)| Count { of, bans }).collect();
        days.sort_by(|a, b| b.of.cmp(&a.of));
        let (jails, targets, networks) = (top(jails), top(targets), top(networks));
        Ok(History { schema: 1, since: part.since, bans, days, jails, targets, networks })
    }

    fn walk(&self, part: &Part, mut each: impl FnMut(Past)) -> Result<(), String> {
        let Part { since, jail, within } = part;
        let query = "SELECT at, event, jail, target, ends, lines FROM history
            WHERE at >= ?1 AND (?2 IS NULL OR jail = ?2) ORDER BY id";
        let mut read = |connection: &Connection| {
            let mut query = connection.prepare(query)?;
            let rows =
                query.query_map(params![since.as_millis(), jail.as_ref().map(JailName::as_str)], past)?;
            for row in rows {
                if let Some(past) = row?
                    && within.is_none_or(|net| net.contains(&past.target.net()))
                {
                    each(past);
                }
            }
            Ok(())
        };
        read(&self.open()?).map_err(|error: rusqlite::Error| error.to_string())
    }
}

/// None where somebody else wrote the row as we would not have.
fn past(row: &Row<'_>) -> rusqlite::Result<Option<Past>> {
    let (event, jail, target): (String, String, String) = (row.get(1)?, row.get(2)?, row.get(3)?);
    let lines: String = row.get(5)?;
    let at = Timestamp::from_millis(row.get(0)?);
    let ends = row.get::<_, Option<i64>>(4)?.map(Timestamp::from_millis);
    let event = Happened::ALL.into_iter().find(|(_, name)| *name == event).map(|(event, _)| event);
    let key = jail.parse().ok().zip(target.parse().ok());
    Ok(event.zip(key).zip(serde_json::from_str(&lines).ok()).map(|((event, (jail, target)), lines)| Past {
        at,
        event,
        jail,
        target,
        ends,
        lines,
    }))
}

fn count(counts: &mut HashMap<String, u64>, of: &str) {
    match counts.get_mut(of) {
        Some(count) => *count += 1,
        None => drop(counts.insert(of.to_owned(), 1)),
    }
}

/// The IPv4 /24 or IPv6 /48 of a target, or the target where it is wider.
fn network(target: Target) -> String {
    target.within(if target.is_v4() { 24 } else { 48 }).unwrap_or(target).to_string()
}

fn top(counts: HashMap<String, u64>) -> Vec<Count> {
    let mut counts: Vec<Count> = counts.into_iter().map(|(of, bans)| Count { of, bans }).collect();
    counts.sort_by(|a, b| b.bans.cmp(&a.bans).then_with(|| a.of.cmp(&b.of)));
    counts.truncate(TOP);
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ban(at: i64, jail: &str, target: &str) -> Past {
        Past {
            at: Timestamp::from_millis(at),
            event: Happened::Banned,
            jail: jail.parse().unwrap(),
            target: target.parse().unwrap(),
            ends: Some(Timestamp::from_millis(at + 1)),
            lines: vec!["a 'line' \u{1b}".to_owned()],
        }
    }

    fn filled(dir: &Path, past: &[Past], now: i64) -> Reader {
        let connection = Connection::open(dir.join(FILE)).unwrap();
        connection.execute_batch(SCHEMA).unwrap();
        write(&connection, past, Timestamp::from_millis(now)).unwrap();
        Reader::of(dir)
    }

    #[test]
    fn the_past_is_counted_and_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let day = 86_400_000;
        let unban = Past { event: Happened::Unbanned, ends: None, ..ban(day, "sshd", "192.0.2.1") };
        let past = [
            ban(0, "sshd", "192.0.2.1"),
            ban(day, "web", "192.0.2.2"),
            unban,
            ban(day, "sshd", "192.0.2.1"),
            ban(day, "sshd", "2001:db8::/64"),
        ];
        let reader = filled(dir.path(), &past, day);
        let history = reader.counted(&Part::default()).unwrap();
        let told = |counts: &[Count]| -> Vec<String> {
            counts.iter().map(|count| format!("{} {}", count.of, count.bans)).collect()
        };
        assert_eq!(history.bans, 4);
        assert_eq!(told(&history.days), ["1970-01-02 3", "1970-01-01 1"]);
        assert_eq!(told(&history.jails), ["sshd 3", "web 1"]);
        assert_eq!(told(&history.targets), ["192.0.2.1 2", "192.0.2.2 1", "2001:db8::/64 1"]);
        assert_eq!(told(&history.networks), ["192.0.2.0/24 3", "2001:db8::/48 1"]);
        let part = |since, jail: Option<&str>, within: Option<&str>| Part {
            since: Timestamp::from_millis(since),
            jail: jail.map(|jail| jail.parse().unwrap()),
            within: within.map(|net| net.parse().unwrap()),
        };
        let bans = |part| reader.counted(&part).unwrap().bans;
        assert_eq!(bans(part(1, None, None)), 3);
        assert_eq!(bans(part(0, Some("web"), None)), 1);
        assert_eq!(bans(part(0, None, Some("192.0.2.0/24"))), 3);
        assert_eq!(bans(part(0, None, Some("2001:db8::/32"))), 1);
        assert_eq!(reader.all(&Part::default()).unwrap(), past);
        let mut of = reader.of_target("192.0.2.1".parse().unwrap()).unwrap();
        of.reverse();
        assert_eq!(of, [past[0].clone(), past[2].clone(), past[3].clone()]);
    }

    #[test]
    fn the_past_has_an_end() {
        let dir = tempfile::tempdir().unwrap();
        let now = KEPT.as_millis() as i64 + 1;
        let reader = filled(dir.path(), &[ban(0, "sshd", "192.0.2.1"), ban(2, "sshd", "192.0.2.2")], now);
        assert_eq!(reader.all(&Part::default()).unwrap(), [ban(2, "sshd", "192.0.2.2")]);
        // As if so many had come in between.
        let connection = Connection::open(dir.path().join(FILE)).unwrap();
        let add = |target: &str| {
            write(&connection, &[ban(now, "sshd", target)], Timestamp::from_millis(now)).unwrap()
        };
        add("192.0.2.3");
        connection.execute("UPDATE history SET id = id + ?1 WHERE target = '192.0.2.3'", [ROWS_MAX]).unwrap();
        add("192.0.2.4");
        let left = reader.all(&Part::default()).unwrap();
        assert_eq!(left, [ban(now, "sshd", "192.0.2.3"), ban(now, "sshd", "192.0.2.4")]);
    }

    #[test]
    fn without_a_state_there_is_no_past() {
        let dir = tempfile::tempdir().unwrap();
        let why = Reader::of(dir.path()).counted(&Part::default()).unwrap_err();
        assert!(why.ends_with("nftjail.sqlite3: no such file or directory"), "{why}");
    }
}
