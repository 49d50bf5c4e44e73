//! What is still to be told: on disk, so that a crash or a dead channel loses nothing, and bounded.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, params};

use crate::model::Timestamp;
use crate::status::News;

/// The file in the state folder.
const FILE: &str = "outbox.sqlite3";

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS waiting (
    id INTEGER PRIMARY KEY AUTOINCREMENT, channel TEXT NOT NULL, news TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS waiting_channel ON waiting (channel, id);
CREATE TABLE IF NOT EXISTS missed (channel TEXT PRIMARY KEY, count INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS heard (key TEXT PRIMARY KEY, at INTEGER NOT NULL) WITHOUT ROWID;
";

/// So much waits for one channel; what comes after it displaces the oldest, and that is counted.
const WAITING_MAX: u32 = 10_000;
/// So much goes into one message.
const BATCH: u32 = 1_000;
/// What was heard is known again for so long ...
const HEARD_FOR: Duration = Duration::from_secs(86_400);
/// ... or until so much else was heard.
const HEARD_MAX: u32 = 50_000;

pub struct Outbox {
    connection: Connection,
}

/// What one message is to tell.
#[derive(Debug, Default, PartialEq)]
pub struct Batch {
    pub news: Vec<News>,
    /// Lost before it, because too much waited.
    pub missed: u64,
    last: i64,
}

impl Batch {
    pub fn is_empty(&self) -> bool {
        self.news.is_empty() && self.missed == 0
    }

    /// Its own among all messages of this outbox.
    pub fn number(&self) -> u64 {
        self.last.unsigned_abs()
    }
}

impl Outbox {
    pub fn open(state: &Path) -> rusqlite::Result<Outbox> {
        let connection = Connection::open(state.join(FILE))?;
        connection.busy_timeout(Duration::from_secs(10))?;
        connection.pragma_update(None, "journal_mode", "wal")?;
        connection.pragma_update(None, "synchronous", "normal")?;
        connection.pragma_update(None, "cache_size", -256)?;
        connection.execute_batch(SCHEMA)?;
        Ok(Outbox { connection })
    }

    /// Puts in what these channels are to tell. False where it was heard before: the agent is asked for what happened
    /// while nobody listened.
    pub fn put(&mut self, news: &News, channels: &[&str], now: Timestamp) -> rusqlite::Result<bool> {
        let transaction = self.connection.transaction()?;
        let key =
            format!("{} {} {:?} {:?} {}", news.at, news.event.name(), news.jail, news.target, news.text);
        let heard = "INSERT OR IGNORE INTO heard VALUES (?1, ?2)";
        if transaction.prepare_cached(heard)?.execute(params![key, now.as_millis()])? == 0 {
            return Ok(false);
        }
        let text = serde_json::json!(news).to_string();
        for channel in channels {
            transaction
                .prepare_cached("INSERT INTO waiting (channel, news) VALUES (?1, ?2)")?
                .execute(params![channel, text])?;
        }
        transaction.commit()?;
        Ok(true)
    }

    /// Forgets what is too old or too much.
    pub fn trim(&mut self, channels: &[&str], now: Timestamp) -> rusqlite::Result<()> {
        let transaction = self.connection.transaction()?;
        for channel in channels {
            let oldest = "SELECT id FROM waiting WHERE channel = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2";
            let oldest: Option<i64> =
                transaction.query_row(oldest, params![channel, WAITING_MAX], |row| row.get(0)).optional()?;
            let Some(oldest) = oldest else { continue };
            let lost = transaction
                .execute("DELETE FROM waiting WHERE channel = ?1 AND id <= ?2", params![channel, oldest])?;
            transaction.execute(
                "INSERT INTO missed VALUES (?1, ?2) ON CONFLICT DO UPDATE SET count = count + excluded.count",
                params![channel, lost as i64],
            )?;
        }
        transaction.execute("DELETE FROM heard WHERE at < ?1", [now.minus(HEARD_FOR).as_millis()])?;
        let surplus =
            "DELETE FROM heard WHERE key IN (SELECT key FROM heard ORDER BY at DESC LIMIT -1 OFFSET ?1)";
        let heard: u32 = transaction.query_row("SELECT count(*) FROM heard", [], |row| row.get(0))?;
        if heard > HEARD_MAX {
            transaction.execute(surplus, [HEARD_MAX / 2])?;
        }
        transaction.commit()
    }

    /// The oldest that waits for a channel, at most so much.
    pub fn batch(&self, channel: &str, most: Option<u32>) -> rusqlite::Result<Batch> {
        let query = "SELECT id, news FROM waiting WHERE channel = ?1 ORDER BY id LIMIT ?2";
        let mut query = self.connection.prepare_cached(query)?;
        let rows = query.query_map(params![channel, most.unwrap_or(BATCH)], |row| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?))
        })?;
        let mut batch = Batch::default();
        for row in rows {
            let (id, text) = row?;
            batch.last = id;
            // What somebody else wrote here is not told.
            batch.news.extend(serde_json::from_str::<News>(&text));
        }
        let missed = "SELECT count FROM missed WHERE channel = ?1";
        let missed: Option<i64> =
            self.connection.query_row(missed, [channel], |row| row.get(0)).optional()?;
        batch.missed = missed.unwrap_or(0).unsigned_abs();
        Ok(batch)
    }

    /// A batch was told.
    pub fn told(&mut self, channel: &str, batch: &Batch) -> rusqlite::Result<()> {
        let transaction = self.connection.transaction()?;
        transaction
            .execute("DELETE FROM waiting WHERE channel = ?1 AND id <= ?2", params![channel, batch.last])?;
        transaction.execute(
            "UPDATE missed SET count = count - ?2 WHERE channel = ?1",
            params![channel, batch.missed as i64],
        )?;
        transaction.execute("DELETE FROM missed WHERE count <= 0", [])?;
        transaction.commit()
    }

    /// Forgets what waits for channels that are no more.
    pub fn keep(&mut self, channels: &[&str]) -> rusqlite::Result<()> {
        let names: Vec<String> = {
            let mut query = self.connection.prepare("SELECT DISTINCT channel FROM waiting")?;
            let rows = query.query_map([], |row| row.get(0))?;
            rows.collect::<rusqlite::Result<_>>()?
        };
        for name in names.iter().filter(|name| !channels.contains(&name.as_str())) {
            self.connection.execute("DELETE FROM waiting WHERE channel = ?1", [name])?;
            self.connection.execute("DELETE FROM missed WHERE channel = ?1", [name])?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::Happened;

    fn news(ms: i64) -> News {
        News {
            schema: 1,
            at: Timestamp::from_millis(ms),
            event: Happened::Banned,
            jail: Some("sshd".parse().unwrap()),
            target: Some("192.0.2.1".parse().unwrap()),
            bantime: None,
            ends: None,
            lines: vec!["a".to_owned()],
            text: "x".to_owned(),
        }
    }

    #[test]
    fn what_waits_outlives_a_crash_and_is_told_once() {
        let dir = tempfile::tempdir().unwrap();
        let now = Timestamp::from_millis(0);
        let mut outbox = Outbox::open(dir.path()).unwrap();
        assert!(outbox.put(&news(1), &["a", "b"], now).unwrap());
        assert!(outbox.put(&news(2), &["a"], now).unwrap());
        assert!(!outbox.put(&news(1), &["a", "b"], now).unwrap(), "it was heard before");
        drop(outbox);
        let mut outbox = Outbox::open(dir.path()).unwrap();
        let batch = outbox.batch("a", None).unwrap();
        assert_eq!((batch.news.clone(), batch.missed), (vec![news(1), news(2)], 0));
        assert_eq!(outbox.batch("a", Some(1)).unwrap().news, [news(1)]);
        outbox.told("a", &batch).unwrap();
        assert!(outbox.batch("a", None).unwrap().is_empty());
        assert_eq!(outbox.batch("b", None).unwrap().news, [news(1)]);
        outbox.keep(&["a"]).unwrap();
        assert!(outbox.batch("b", None).unwrap().is_empty());
    }

    #[test]
    fn what_is_too_much_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let now = Timestamp::from_millis(0);
        let mut outbox = Outbox::open(dir.path()).unwrap();
        outbox.put(&news(1), &["a"], now).unwrap();
        outbox.put(&news(2), &["a"], now).unwrap();
        // As if so many had come in between.
        outbox
            .connection
            .execute_batch(&format!(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {WAITING_MAX})
             INSERT INTO waiting (channel, news) SELECT 'a', news FROM n, (SELECT news FROM waiting LIMIT 1)"
            ))
            .unwrap();
        outbox.trim(&["a", "b"], now).unwrap();
        let batch = outbox.batch("a", None).unwrap();
        assert_eq!((batch.news.len(), batch.missed), (BATCH as usize, 2));
        outbox.told("a", &batch).unwrap();
        assert_eq!(outbox.batch("a", None).unwrap().missed, 0);
    }
}
