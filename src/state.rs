//! What must outlive the agent: where each log was read to, the failures that count, and the bans, in SQLite.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use ipnet::IpNet;
use rusqlite::{Connection, ErrorCode, Row, params};

use crate::history;
use crate::model::{Ban, Bantime, Change, JailName, Memory, Target, Timestamp};
use crate::status::Past;

/// The file in the state folder. It is plain SQLite; times are milliseconds since 1970, UTC.
pub const FILE: &str = "nftjail.sqlite3";

/// `position`: how far each log was read, as the source wrote it (JSON).
/// `failure`: the failures of each target that still count, oldest first (JSON list).
/// `offender`: how often each target was banned, and when last.
/// `ignored`: whom an administrator spares by hand.
/// `friend`: when each target logged in last.
/// `ban`: the bans the kernel holds; `ends` is null where a ban never ends. It serves after a reboot.
const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS position (source TEXT PRIMARY KEY, place TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS failure (
    jail TEXT NOT NULL, target TEXT NOT NULL, times TEXT NOT NULL, last INTEGER NOT NULL,
    PRIMARY KEY (jail, target)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS failure_last ON failure (last);
CREATE TABLE IF NOT EXISTS offender (
    jail TEXT NOT NULL, target TEXT NOT NULL, bans INTEGER NOT NULL, last INTEGER NOT NULL,
    PRIMARY KEY (jail, target)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS ignored (net TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS friend (
    jail TEXT NOT NULL, target TEXT NOT NULL, last INTEGER NOT NULL,
    PRIMARY KEY (jail, target)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS ban (
    jail TEXT NOT NULL, target TEXT NOT NULL, at INTEGER NOT NULL, ends INTEGER,
    PRIMARY KEY (jail, target)) WITHOUT ROWID;
";

/// One consistent step: a line is either in both the position and the failures, or in neither.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    pub positions: Vec<(String, String)>,
    /// What is remembered of each target that changed; empty where it is forgotten.
    pub memories: Vec<Memory>,
    /// Changes that the kernel took.
    pub changes: Vec<Change>,
    /// What is to be remembered of these when they are over.
    pub past: Vec<Past>,
    /// All who are ignored by hand.
    pub ignored: BTreeSet<IpNet>,
    /// Failures before this count no more.
    pub stale_failures: Timestamp,
    /// Nor do bans before this make anybody an offender.
    pub stale_offenders: Timestamp,
    /// Nor do log-ins before this make anybody a friend.
    pub stale_friends: Timestamp,
    pub now: Timestamp,
}

/// What was saved before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Saved {
    pub positions: Vec<(String, String)>,
    pub memories: Vec<Memory>,
    pub bans: Vec<Ban>,
    pub ignored: BTreeSet<IpNet>,
    /// Set where the file was damaged and put aside under this name.
    pub set_aside: Option<PathBuf>,
}

/// Saves on a thread of its own, since a disk may take its time and a ban may not.
pub struct State {
    steps: SyncSender<Step>,
    thread: JoinHandle<()>,
}

impl State {
    /// Opens the state in `dir`, which is made if need be, and reads what was saved.
    pub fn open(dir: &Path) -> Result<(State, Saved), String> {
        let told = |error: &dyn std::fmt::Display| format!("cannot keep state in {}: {error}", dir.display());
        fs::create_dir_all(dir).map_err(|error| told(&crate::model::plain(&error)))?;
        let path = dir.join(FILE);
        let (connection, saved) = match read(&path) {
            Ok(read) => read,
            Err(error) if is_damage(&error) => {
                let aside = path.with_extension("sqlite3.damaged");
                fs::rename(&path, &aside).map_err(|error| told(&crate::model::plain(&error)))?;
                let (connection, saved) = read(&path).map_err(|error| told(&error))?;
                (connection, Saved { set_aside: Some(aside), ..saved })
            }
            Err(error) => return Err(told(&error)),
        };
        let (steps, work) = sync_channel(1);
        let thread = thread::Builder::new()
            .name("state".to_owned())
            .spawn(move || run(connection, &work))
            .map_err(|error| told(&error))?;
        Ok((State { steps, thread }, saved))
    }

    /// Hands over a step, or gives it back where the last one is still being written.
    pub fn save(&self, step: Step) -> Result<(), Box<Step>> {
        match self.steps.try_send(step) {
            Ok(()) | Err(TrySendError::Disconnected(_)) => Ok(()),
            Err(TrySendError::Full(step)) => Err(Box::new(step)),
        }
    }

    /// Hands over a step, waiting until the last one is written.
    pub fn save_now(&self, step: Step) {
        // A writer that is gone has said why in the log.
        let _ = self.steps.send(step);
    }

    /// Saves a last step and waits until it is on the disk.
    pub fn close(self, step: Step) {
        self.save_now(step);
        drop(self.steps);
        let _ = self.thread.join();
    }
}

fn is_damage(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}

fn read(path: &Path) -> rusqlite::Result<(Connection, Saved)> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(Duration::from_secs(1))?;
    // Of a new file only; an old one keeps what it has.
    connection.pragma_update(None, "auto_vacuum", "full")?;
    connection.pragma_update(None, "journal_mode", "wal")?;
    // In WAL mode this survives a crash of the agent whole, and of the machine but for the last moments.
    connection.pragma_update(None, "synchronous", "normal")?;
    connection.pragma_update(None, "cache_size", -256)?;
    connection.execute_batch(SCHEMA)?;
    connection.execute_batch(history::SCHEMA)?;

    let positions =
        rows(&connection, "SELECT source, place FROM position", |row| Ok(Some((row.get(0)?, row.get(1)?))))?;
    let all = "SELECT jail, target, times, bans, offender.last, friend.last FROM failure
        FULL JOIN offender USING (jail, target) FULL JOIN friend USING (jail, target)";
    let memories = rows(&connection, all, |row| {
        let times: Option<String> = row.get(2)?;
        let times: Option<Vec<i64>> = times.map_or(Some(Vec::new()), |text| serde_json::from_str(&text).ok());
        let times = times.map(|times| times.into_iter().map(Timestamp::from_millis).collect());
        let last =
            |index| Ok::<_, rusqlite::Error>(row.get::<_, Option<i64>>(index)?.map(Timestamp::from_millis));
        let offender = row.get::<_, Option<u32>>(3)?.zip(last(4)?);
        let friend = last(5)?;
        let memory = |((jail, target), times)| Memory { jail, target, times, offender, friend };
        Ok(key(row)?.zip(times).map(memory))
    })?;
    let bans = rows(&connection, "SELECT jail, target, at, ends FROM ban", |row| {
        let at = Timestamp::from_millis(row.get(2)?);
        let ends: Option<i64> = row.get(3)?;
        let bantime = match ends.map(|ends| Timestamp::from_millis(ends).since(at)) {
            Some(Duration::ZERO) => return Ok(None),
            Some(duration) => Bantime::For(duration),
            None => Bantime::Forever,
        };
        Ok(key(row)?.map(|(jail, target)| Ban { jail, target, at, bantime }))
    })?;
    let ignored =
        rows(&connection, "SELECT net FROM ignored", |row| Ok(row.get::<_, String>(0)?.parse().ok()))?;
    let ignored = ignored.into_iter().collect();
    Ok((connection, Saved { positions, memories, bans, ignored, set_aside: None }))
}

/// All rows of a query but those that somebody else wrote as we would not have.
fn rows<T>(
    connection: &Connection,
    query: &str,
    read: impl FnMut(&Row<'_>) -> rusqlite::Result<Option<T>>,
) -> rusqlite::Result<Vec<T>> {
    let mut query = connection.prepare(query)?;
    let rows = query.query_map([], read)?;
    rows.filter_map(Result::transpose).collect()
}

fn key(row: &Row<'_>) -> rusqlite::Result<Option<(JailName, Target)>> {
    let (jail, target): (String, String) = (row.get(0)?, row.get(1)?);
    Ok(jail.parse().ok().zip(target.parse().ok()))
}

fn run(mut connection: Connection, work: &Receiver<Step>) {
    let mut failing = false;
    while let Ok(step) = work.recv() {
        match write(&mut connection, &step) {
            Ok(()) if failing => {
                failing = false;
                tracing::info!("state is saved again");
            }
            Ok(()) => {}
            Err(error) if failing => tracing::debug!("state was not saved: {error}"),
            Err(error) => {
                failing = true;
                tracing::error!("state cannot be saved, bans go on without it: {error}");
            }
        }
    }
}

fn write(connection: &mut Connection, step: &Step) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    {
        let mut put = transaction.prepare_cached("INSERT OR REPLACE INTO position VALUES (?1, ?2)")?;
        for (source, place) in &step.positions {
            put.execute(params![source, place])?;
        }
        let mut put = transaction.prepare_cached("INSERT OR REPLACE INTO failure VALUES (?1, ?2, ?3, ?4)")?;
        let mut drop = transaction.prepare_cached("DELETE FROM failure WHERE jail = ?1 AND target = ?2")?;
        let mut note =
            transaction.prepare_cached("INSERT OR REPLACE INTO offender VALUES (?1, ?2, ?3, ?4)")?;
        let mut pardon =
            transaction.prepare_cached("DELETE FROM offender WHERE jail = ?1 AND target = ?2")?;
        let mut befriend = transaction.prepare_cached("INSERT OR REPLACE INTO friend VALUES (?1, ?2, ?3)")?;
        let mut estrange =
            transaction.prepare_cached("DELETE FROM friend WHERE jail = ?1 AND target = ?2")?;
        for Memory { jail, target, times, offender, friend } in &step.memories {
            let key = (jail.as_str(), target.to_string());
            match offender {
                Some((bans, last)) => note.execute(params![key.0, key.1, bans, last.as_millis()])?,
                None => pardon.execute(params![key.0, key.1])?,
            };
            match friend {
                Some(last) => befriend.execute(params![key.0, key.1, last.as_millis()])?,
                None => estrange.execute(params![key.0, key.1])?,
            };
            let times: Vec<i64> = times.iter().map(|time| time.as_millis()).collect();
            match times.last() {
                Some(last) => {
                    put.execute(params![key.0, key.1, serde_json::json!(times).to_string(), last])?
                }
                None => drop.execute(params![key.0, key.1])?,
            };
        }
        let mut put = transaction.prepare_cached("INSERT OR REPLACE INTO ban VALUES (?1, ?2, ?3, ?4)")?;
        let mut drop = transaction.prepare_cached("DELETE FROM ban WHERE jail = ?1 AND target = ?2")?;
        for change in &step.changes {
            let (jail, target) = (change.jail().as_str(), change.target().to_string());
            match change {
                Change::Ban(ban) => put.execute(params![
                    jail,
                    target,
                    ban.at.as_millis(),
                    ban.end().map(Timestamp::as_millis)
                ])?,
                Change::Release { .. } => drop.execute(params![jail, target])?,
            };
        }
        history::write(&transaction, &step.past, step.now)?;
        transaction.execute("DELETE FROM ignored", [])?;
        let mut put = transaction.prepare_cached("INSERT INTO ignored VALUES (?1)")?;
        for net in &step.ignored {
            put.execute([net.to_string()])?;
        }
        transaction.execute("DELETE FROM failure WHERE last < ?1", [step.stale_failures.as_millis()])?;
        transaction.execute("DELETE FROM offender WHERE last < ?1", [step.stale_offenders.as_millis()])?;
        transaction.execute("DELETE FROM friend WHERE last < ?1", [step.stale_friends.as_millis()])?;
        transaction.execute("DELETE FROM ban WHERE ends <= ?1", [step.now.as_millis()])?;
    }
    transaction.commit()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step() -> Step {
        let jail: JailName = "sshd".parse().unwrap();
        let memory = |addr: &str| Memory {
            jail: jail.clone(),
            target: addr.parse().unwrap(),
            times: Vec::new(),
            offender: None,
            friend: None,
        };
        let at = |ms| Timestamp::from_millis(ms);
        let ban = |addr: &str, bantime| Ban {
            jail: jail.clone(),
            target: addr.parse().unwrap(),
            at: Timestamp::from_millis(1_000),
            bantime,
        };
        Step {
            positions: vec![("/var/log/auth.log".into(), "{}".to_owned())],
            memories: vec![
                Memory { times: vec![at(5)], ..memory("192.0.2.1") },
                Memory { offender: Some((3, at(1_000))), ..memory("192.0.2.2") },
                Memory { friend: Some(at(1_500)), ..memory("192.0.2.3") },
                Memory {
                    times: vec![at(5)],
                    offender: Some((1, at(7))),
                    friend: Some(at(9)),
                    ..memory("192.0.2.4")
                },
                Memory { offender: Some((1, at(7))), friend: Some(at(9)), ..memory("192.0.2.5") },
            ],
            changes: vec![
                Change::Ban(ban("192.0.2.2", Bantime::Forever)),
                Change::Ban(ban("2001:db8::/64", Bantime::For(Duration::from_secs(9)))),
                Change::Ban(ban("192.0.2.3", Bantime::For(Duration::from_secs(1)))),
                Change::Ban(ban("192.0.2.4", Bantime::Forever)),
                Change::Release { jail: jail.clone(), target: "192.0.2.4".parse().unwrap() },
            ],
            past: Vec::new(),
            ignored: ["192.0.2.0/24", "2001:db8::/32"].map(|net| net.parse().unwrap()).into(),
            stale_failures: Timestamp::from_millis(0),
            stale_offenders: Timestamp::from_millis(0),
            stale_friends: Timestamp::from_millis(0),
            now: Timestamp::from_millis(2_000),
        }
    }

    #[test]
    fn what_was_saved_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let (state, saved) = State::open(dir.path()).unwrap();
        assert_eq!(saved, Saved::default());
        state.close(step());
        let (state, saved) = State::open(dir.path()).unwrap();
        assert_eq!(saved.positions, step().positions);
        assert_eq!(saved.ignored, step().ignored);
        let mut memories = saved.memories;
        memories.sort_by_key(|memory| memory.target);
        assert_eq!(memories, step().memories);
        let bans: Vec<String> =
            saved.bans.iter().map(|ban| format!("{} {}", ban.target, ban.bantime)).collect();
        assert_eq!(
            bans,
            ["192.0.2.2 forever", "2001:db8::/64 9s"],
            "the one that ended and the lifted one are gone"
        );
        let forgotten = |memory: Memory| Memory { times: Vec::new(), offender: None, friend: None, ..memory };
        let memories = step().memories.into_iter().map(forgotten).collect();
        state.close(Step { memories, ignored: BTreeSet::new(), ..step() });
        let saved = State::open(dir.path()).unwrap().1;
        assert_eq!((saved.memories, saved.ignored), (vec![], BTreeSet::new()));
    }

    #[test]
    fn who_logged_in_too_long_ago_is_not_kept() {
        let dir = tempfile::tempdir().unwrap();
        let stale_friends = Timestamp::from_millis(1_500);
        State::open(dir.path()).unwrap().0.close(Step { stale_friends, ..step() });
        let memories = State::open(dir.path()).unwrap().1.memories;
        let friends: Vec<_> = memories.iter().filter_map(|memory| memory.friend).collect();
        assert_eq!(friends, [stale_friends]);
    }

    #[test]
    fn a_state_from_before_there_were_friends_is_read() {
        let dir = tempfile::tempdir().unwrap();
        State::open(dir.path()).unwrap().0.close(step());
        Connection::open(dir.path().join(FILE)).unwrap().execute_batch("DROP TABLE friend").unwrap();
        let (state, saved) = State::open(dir.path()).unwrap();
        assert_eq!((saved.set_aside, saved.memories.len()), (None, 4));
        assert!(saved.memories.iter().all(|memory| memory.friend.is_none()));
        state.close(step());
        assert_eq!(State::open(dir.path()).unwrap().1.memories.len(), step().memories.len());
    }

    #[test]
    fn a_damaged_file_is_put_aside() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE), "this is not a database at all, but it is long enough to be read")
            .unwrap();
        let (_, saved) = State::open(dir.path()).unwrap();
        assert!(saved.set_aside.is_some_and(|aside| aside.exists()));
    }
}
