//! The sources of lines: woken by inotify and epoll, read in turns, remembered by place.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::acquire::bisect::Age;
use crate::acquire::file::{Follower, Start};
use crate::acquire::identity::Position;
use crate::acquire::place::Place;
use crate::acquire::ready::Ready;
use crate::acquire::stream::Stream;
use crate::acquire::{Aimed, Line, Notice, Progress, SourceId, Watch, What};
use crate::bell::Bell;
use crate::model::{Timestamp, plain};
use crate::status::SourceStatus;

/// Every source that some jail listens to, each once. They are numbered as their places were given.
pub struct Sources {
    watch: Watch,
    watch_bell: Bell,
    ready: Ready,
    ready_bell: Bell,
    followed: Vec<Followed>,
    /// Who must be read again.
    awake: BTreeSet<SourceId>,
    /// When those are looked at whose changes raise no events.
    poll_at: Option<Timestamp>,
}

struct Followed {
    id: SourceId,
    place: Place,
    reader: Reader,
    lines: u64,
    overlong: u64,
    last_line: Option<Timestamp>,
}

/// What reads a place.
enum Reader {
    File(Box<Follower>),
    Stream(Stream),
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

/// The date that a line of the log at this place bears, if it bears one.
pub type DateOf = Arc<dyn Fn(&Place, &[u8]) -> Option<Timestamp> + Send + Sync>;

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
        let ready = Ready::new()?;
        let mut sources = Sources {
            watch_bell: Bell::of(&watch)?,
            watch,
            ready_bell: Bell::of(&ready)?,
            ready,
            followed: Vec::new(),
            awake: BTreeSet::new(),
            poll_at: None,
        };
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

    /// Waits until something happened to one of them.
    pub async fn changed(&mut self) {
        // What cannot be read now rings again, or is polled.
        tokio::select! {
            () = self.watch_bell.rung() => {
                self.awake.extend(self.watch.wake().into_iter().flat_map(|woken| woken.sources));
            }
            () = self.ready_bell.rung() => {
                self.awake.extend(self.ready.wake(self.followed.len()).into_iter().flatten());
            }
        }
    }

    /// Reads up to `budget` bytes of every log that is awake, and hands each line to `handle`.
    pub fn read(&mut self, now: Timestamp, budget: usize, mut handle: impl FnMut(usize, Line<'_>)) -> Turn {
        let mut turn = Turn::default();
        for id in std::mem::take(&mut self.awake) {
            let Some(followed) = self.followed.get_mut(id.0 as usize) else { continue };
            let progress = followed.reader.read(now, budget, &mut |line| handle(id.0 as usize, line));
            followed.handle_progress(&progress, now);
            turn.lines += progress.lines;
            let aimed = match &followed.reader {
                Reader::File(follower) => self.watch.aim(id, follower),
                Reader::Stream(stream) => {
                    if let Err(error) = self.ready.aim(id, stream) {
                        tracing::error!("{} cannot be waited for: {}", followed.place, plain(&error));
                    }
                    stream.path().map_or(Aimed::Unchanged, |path| self.watch.aim_at_name(id, path))
                }
            };
            if let Aimed::Blind(why) = &aimed {
                tracing::warn!("{why}");
            }
            if progress.more || aimed == Aimed::LookAgain {
                self.awake.insert(id);
                turn.more = true;
            }
        }
        turn
    }

    /// Whether the one came to its end that we run for: standard input.
    pub fn have_ended(&self) -> bool {
        self.followed.iter().any(|followed| match &followed.reader {
            Reader::File(_) => false,
            Reader::Stream(stream) => stream.has_ended(),
        })
    }

    /// When to call [`Sources::poll`] next; none where events tell everything.
    pub fn poll_timeout(&mut self, now: Timestamp) -> Option<Timestamp> {
        let blind = self.followed.iter().any(|followed| followed.is_blind(&self.watch));
        self.poll_at = if blind { Some(self.poll_at.unwrap_or(now.plus(POLL_EVERY))) } else { None };
        // Whoever is awake is read as soon as that may be; no time brings it nearer.
        let asleep = self.followed.iter().filter(|followed| !self.awake.contains(&followed.id));
        asleep.filter_map(|followed| followed.reader.poll_timeout()).chain(self.poll_at).min()
    }

    /// Wakes those that are to be looked at though nothing happened.
    pub fn poll(&mut self, now: Timestamp) {
        let due = self.poll_at.is_some_and(|at| at <= now);
        if due {
            self.poll_at = None;
        }
        for followed in &self.followed {
            let blind = due && followed.is_blind(&self.watch);
            if blind || followed.reader.poll_timeout().is_some_and(|at| at <= now) {
                self.awake.insert(followed.id);
            }
        }
    }

    /// What to save of each log, so that the next start goes on where this one is.
    pub fn positions(&self) -> Vec<(String, String)> {
        let position = |followed: &Followed| {
            let positions = followed.reader.positions()?;
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
        let (date_of, log) = (date_of.clone(), place.clone());
        let age = move |line: &[u8]| match date_of(&log, line) {
            Some(date) if date < oldest => Age::Before,
            Some(_) => Age::Wanted,
            None => Age::Undated,
        };
        let reader = match place {
            Place::Stream(channel) => Reader::Stream(Stream::of(channel, place.to_string())),
            Place::File(path) => {
                let saved = saved.and_then(|position| serde_json::from_str::<Vec<Position>>(position).ok());
                Reader::File(Box::new(Follower::open(path, saved, Start::Since(Box::new(age)), now)?))
            }
        };
        Ok(Followed { id, place: place.clone(), reader, lines: 0, overlong: 0, last_line: None })
    }

    fn handle_progress(&mut self, progress: &Progress, now: Timestamp) {
        for notice in &progress.notices {
            // A log that never was there is no news: the status says what is waited for.
            match notice.what {
                What::Missing if self.reader.positions().is_none_or(|known| known.is_empty()) => {
                    tracing::debug!("{notice}");
                }
                What::Appeared | What::Rotated => tracing::info!("{notice}"),
                _ => tracing::warn!("{notice}"),
            }
        }
        if progress.overlong > 0 {
            self.overlong += progress.overlong;
            tracing::warn!("{}: {} overlong lines were dropped", self.place, progress.overlong);
        }
        if progress.lines > 0 {
            self.lines += progress.lines;
            self.last_line = Some(now);
        }
    }

    /// Whether what happens to its name raises no events.
    fn is_blind(&self, watch: &Watch) -> bool {
        let has_name = match &self.reader {
            Reader::File(_) => true,
            Reader::Stream(stream) => stream.path().is_some(),
        };
        has_name && watch.needs_polling(self.id)
    }

    fn status(&self) -> SourceStatus {
        let state = match self.reader.trouble() {
            None => "following".to_owned(),
            Some(notice) => notice.to_string(),
        };
        SourceStatus {
            name: self.place.to_string(),
            state,
            lines: self.lines,
            behind: self.reader.behind(),
            overlong: self.overlong,
            lost: self.reader.lost(),
            last_line: self.last_line,
        }
    }
}

impl Reader {
    fn read(&mut self, now: Timestamp, budget: usize, sink: &mut dyn FnMut(Line<'_>)) -> Progress {
        match self {
            Reader::File(follower) => follower.read(now, budget, sink),
            Reader::Stream(stream) => stream.read(now, budget, sink),
        }
    }

    /// What to save of it; of a stream nothing, since it cannot be read twice.
    fn positions(&self) -> Option<Vec<Position>> {
        match self {
            Reader::File(follower) => follower.positions(),
            Reader::Stream(_) => None,
        }
    }

    fn poll_timeout(&self) -> Option<Timestamp> {
        match self {
            Reader::File(follower) => follower.poll_timeout(),
            Reader::Stream(stream) => stream.poll_timeout(),
        }
    }

    fn trouble(&self) -> Option<Notice> {
        match self {
            Reader::File(follower) => follower.trouble(),
            Reader::Stream(stream) => stream.trouble(),
        }
    }

    /// Bytes that are written and not read yet.
    fn behind(&self) -> u64 {
        match self {
            Reader::File(follower) => follower.behind(),
            Reader::Stream(stream) => stream.behind(),
        }
    }

    /// Lines that the kernel dropped because they came faster than they were read.
    fn lost(&self) -> u64 {
        match self {
            Reader::File(_) => 0,
            Reader::Stream(stream) => stream.lost(),
        }
    }
}
