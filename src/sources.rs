//! The logs that are followed: woken by inotify, read in turns, remembered by place.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::acquire::bisect::Age;
use crate::acquire::file::{Follower, Start};
use crate::acquire::identity::Position;
use crate::acquire::place::Place;
use crate::acquire::{Aimed, Line, SourceId, Watch, What};
use crate::bell::Bell;
use crate::model::Timestamp;
use crate::status::SourceStatus;

/// Every log that some jail listens to, each once. Sources are numbered as their places were given.
pub struct Sources {
    watch: Watch,
    bell: Bell,
    followed: Vec<Followed>,
    /// Who must be read again.
    awake: BTreeSet<SourceId>,
    /// When those are looked at whose changes raise no events.
    poll_at: Option<Timestamp>,
}

struct Followed {
    id: SourceId,
    place: Place,
    follower: Follower,
    lines: u64,
    last_line: Option<Timestamp>,
}

/// What one turn of reading came to.
#[derive(Debug, Default)]
pub struct Turn {
    pub lines: u64,
    /// More can be read at once.
    pub more: bool,
}

/// How often a log is looked at whose changes raise no events.
const POLL_EVERY: Duration = Duration::from_secs(1);

/// The date that a line bears, if it bears one.
pub type DateOf = Arc<dyn Fn(&[u8]) -> Option<Timestamp> + Send + Sync>;

impl Sources {
    /// Follows these places, each from where it was `saved`, or from the first line that is not older than
    /// `backlog`. What cannot be read is waited for.
    pub fn open(
        places: &[Place],
        saved: &[(String, String)],
        backlog: Duration,
        now: Timestamp,
        date_of: &DateOf,
    ) -> io::Result<Sources> {
        let watch = Watch::new()?;
        let bell = Bell::of(&watch)?;
        let mut sources =
            Sources { watch, bell, followed: Vec::new(), awake: BTreeSet::new(), poll_at: None };
        let saved: BTreeMap<&str, &str> =
            saved.iter().map(|(source, position)| (source.as_str(), position.as_str())).collect();
        for (number, place) in (0..).zip(places) {
            let position = saved.get(place.to_string().as_str()).copied();
            let followed = Followed::open(SourceId(number), place, position, backlog, now, date_of)?;
            sources.awake.insert(followed.id);
            sources.followed.push(followed);
        }
        Ok(sources)
    }

    /// Follows these places from now on: those that were followed go on where they are.
    pub fn follow(
        &mut self,
        places: &[Place],
        backlog: Duration,
        now: Timestamp,
        date_of: &DateOf,
    ) -> io::Result<()> {
        let mut old: Vec<Followed> = std::mem::take(&mut self.followed);
        old.iter().for_each(|followed| self.watch.forget(followed.id));
        for (number, place) in (0..).zip(places) {
            let id = SourceId(number);
            let followed = match old.iter().position(|followed| followed.place == *place) {
                Some(index) => Followed { id, ..old.swap_remove(index) },
                None => Followed::open(id, place, None, backlog, now, date_of)?,
            };
            self.awake.insert(id);
            self.followed.push(followed);
        }
        Ok(())
    }

    /// Waits until something happened to one of the logs.
    pub async fn changed(&mut self) {
        self.bell.rung().await;
        // What cannot be read now rings again, or is polled.
        if let Ok(woken) = self.watch.wake() {
            self.awake.extend(woken.sources);
        }
    }

    /// Reads up to `budget` bytes of every log that is awake, and hands each line to `handle`.
    pub fn read(&mut self, now: Timestamp, budget: usize, mut handle: impl FnMut(usize, Line<'_>)) -> Turn {
        let mut turn = Turn::default();
        for id in std::mem::take(&mut self.awake) {
            let Some(followed) = self.followed.get_mut(id.0 as usize) else { continue };
            let progress = followed.follower.read(now, budget, &mut |line| handle(id.0 as usize, line));
            for notice in &progress.notices {
                // A log that never was there is no news: the status says what is waited for.
                match notice.what {
                    What::Missing if followed.follower.positions().is_none_or(|known| known.is_empty()) => {
                        tracing::debug!("{notice}");
                    }
                    What::Appeared | What::Rotated => tracing::info!("{notice}"),
                    _ => tracing::warn!("{notice}"),
                }
            }
            if progress.overlong > 0 {
                tracing::warn!("{}: {} overlong lines were dropped", followed.place, progress.overlong);
            }
            if progress.lines > 0 {
                followed.lines += progress.lines;
                followed.last_line = Some(now);
                turn.lines += progress.lines;
            }
            let again = match self.watch.aim(id, &followed.follower) {
                Aimed::Unchanged => false,
                Aimed::LookAgain => true,
                Aimed::Blind(why) => {
                    tracing::warn!("{why}");
                    false
                }
            };
            if progress.more || again {
                self.awake.insert(id);
                turn.more = true;
            }
        }
        turn
    }

    /// When to call [`Sources::poll`] next; none where events tell everything.
    pub fn poll_timeout(&mut self, now: Timestamp) -> Option<Timestamp> {
        let watch = &self.watch;
        let blind = self.followed.iter().any(|followed| watch.needs_polling(followed.id));
        self.poll_at = if blind { Some(self.poll_at.unwrap_or(now.plus(POLL_EVERY))) } else { None };
        self.followed.iter().filter_map(|followed| followed.follower.poll_timeout()).chain(self.poll_at).min()
    }

    /// Wakes those that are to be looked at though nothing happened.
    pub fn poll(&mut self, now: Timestamp) {
        let due = self.poll_at.is_some_and(|at| at <= now);
        if due {
            self.poll_at = None;
        }
        for followed in &self.followed {
            let blind = due && self.watch.needs_polling(followed.id);
            if blind || followed.follower.poll_timeout().is_some_and(|at| at <= now) {
                self.awake.insert(followed.id);
            }
        }
    }

    /// What to save of each log, so that the next start goes on where this one is.
    pub fn positions(&self) -> Vec<(String, String)> {
        let position = |followed: &Followed| {
            let positions = followed.follower.positions()?;
            Some((followed.place.to_string(), serde_json::json!(positions).to_string()))
        };
        self.followed.iter().filter_map(position).collect()
    }

    pub fn len(&self) -> usize {
        self.followed.len()
    }

    pub fn is_empty(&self) -> bool {
        self.followed.is_empty()
    }

    pub fn name(&self, source: usize) -> String {
        self.followed[source].place.to_string()
    }

    pub fn status(&self) -> Vec<SourceStatus> {
        self.followed.iter().map(Followed::status).collect()
    }
}

impl Followed {
    fn open(
        id: SourceId,
        place: &Place,
        saved: Option<&str>,
        backlog: Duration,
        now: Timestamp,
        date_of: &DateOf,
    ) -> io::Result<Followed> {
        let oldest = now.minus(backlog);
        let date_of = date_of.clone();
        let age = move |line: &[u8]| match date_of(line) {
            Some(date) if date < oldest => Age::Before,
            Some(_) => Age::Wanted,
            None => Age::Undated,
        };
        let Place::File(path) = place;
        let saved = saved.and_then(|position| serde_json::from_str::<Vec<Position>>(position).ok());
        let follower = Follower::open(path, saved, Start::Since(Box::new(age)), now)?;
        Ok(Followed { id, place: place.clone(), follower, lines: 0, last_line: None })
    }

    fn status(&self) -> SourceStatus {
        let state = match self.follower.trouble() {
            None => "following".to_owned(),
            Some(notice) => notice.to_string(),
        };
        SourceStatus {
            name: self.place.to_string(),
            state,
            lines: self.lines,
            behind: self.follower.behind(),
            last_line: self.last_line,
        }
    }
}
