//! The sources of lines: woken by inotify and epoll, read in turns, remembered by place.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use crate::acquire::bisect::Age;
use crate::acquire::file::{AgeOf, Follower, Start};
use crate::acquire::identity::Position;
use crate::acquire::journal::Journal;
use crate::acquire::journalmatch::Matches;
use crate::acquire::place::{Origin, Place};
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
    /// By the first source of each.
    followed: BTreeMap<SourceId, Followed>,
    /// Who must be read again.
    awake: BTreeSet<SourceId>,
    /// When those are looked at whose changes raise no events.
    poll_at: Option<Timestamp>,
}

/// A reader, and the sources that it serves.
struct Followed {
    reader: Reader,
    sources: Vec<Source>,
}

struct Source {
    id: SourceId,
    place: Place,
    lines: u64,
    last_line: Option<Timestamp>,
}

/// What reads one place, or several of one journal.
enum Reader {
    File(Box<Follower>),
    Stream(Stream),
    Journal(Box<Journal>),
}

/// What is wanted of one journal: by which source, and from where on.
type Wants = Vec<(SourceId, Matches, Option<String>)>;

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
        let ready = Ready::new()?;
        let mut sources = Sources {
            watch_bell: Bell::of(&watch)?,
            watch,
            ready_bell: Bell::of(&ready)?,
            ready,
            followed: BTreeMap::new(),
            awake: BTreeSet::new(),
            poll_at: None,
        };
        let saved = saved.iter().cloned().collect();
        sources.add(places, &saved, &mut Vec::new(), backlog, now, date_of)?;
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
        let positions = self.positions().into_iter().collect();
        let mut old: Vec<Followed> = std::mem::take(&mut self.followed).into_values().collect();
        let ids = old.iter().flat_map(|followed| &followed.sources).map(|source| source.id);
        ids.for_each(|id| self.watch.forget(id));
        self.add(places, &positions, &mut old, backlog, now, date_of)
    }

    /// Follows these places. A journal is opened anew where it was; a reader of `old` that serves one place serves on.
    fn add(
        &mut self,
        places: &[Place],
        saved: &BTreeMap<String, String>,
        old: &mut Vec<Followed>,
        backlog: Duration,
        now: Timestamp,
        date_of: &DateOf,
    ) -> io::Result<()> {
        let mut journals: BTreeMap<&Origin, (Wants, Vec<Source>)> = BTreeMap::new();
        for (number, place) in (0..).zip(places) {
            let id = SourceId(number);
            let known = old.iter().position(|old| old.sources.iter().any(|source| source.place == *place));
            let mut source = Source { id, place: place.clone(), lines: 0, last_line: None };
            if let Some(before) = known.and_then(|at| old[at].sources.iter().find(|old| old.place == *place))
            {
                (source.lines, source.last_line) = (before.lines, before.last_line);
            }
            let position = saved.get(&place.to_string());
            let reader = match (place, known) {
                (Place::Journal(origin, matches), _) => {
                    let (wants, sources) = journals.entry(origin).or_default();
                    wants.push((id, matches.clone(), position.cloned()));
                    sources.push(source);
                    continue;
                }
                (_, Some(at)) => old.swap_remove(at).reader,
                (Place::Stream(channel), None) => Reader::Stream(Stream::of(channel, place.to_string())),
                (Place::File(path), None) => {
                    let saved = position.and_then(|text| serde_json::from_str::<Vec<Position>>(text).ok());
                    let start = Start::Since(age(now.minus(backlog), date_of.clone()));
                    Reader::File(Box::new(Follower::open(path, saved, start, now)?))
                }
            };
            self.followed.insert(id, Followed { reader, sources: vec![source] });
        }
        for (origin, (wants, sources)) in journals {
            let journal = Journal::open(origin.clone(), wants, now.minus(backlog));
            let id = sources[0].id;
            self.followed.insert(id, Followed { reader: Reader::Journal(Box::new(journal)), sources });
        }
        self.awake = self.followed.keys().copied().collect();
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
            let Some(followed) = self.followed.get_mut(&id) else { continue };
            let progress = followed.read(id, now, budget, &mut handle);
            turn.lines += progress.lines;
            let aimed = match &followed.reader {
                Reader::File(follower) => self.watch.aim(id, follower),
                Reader::Stream(stream) => {
                    wait_for(&self.ready, id, stream.descriptors());
                    stream.path().map_or(Aimed::Unchanged, |path| self.watch.aim_at_name(id, path))
                }
                Reader::Journal(journal) => {
                    wait_for(&self.ready, id, journal.descriptors());
                    Aimed::Unchanged
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

    /// When to call [`Sources::poll`] next; none where events tell everything.
    pub fn poll_timeout(&mut self, now: Timestamp) -> Option<Timestamp> {
        let blind = self.followed.iter().any(|(id, followed)| followed.reader.is_blind(*id, &self.watch));
        self.poll_at = if blind { Some(self.poll_at.unwrap_or(now.plus(POLL_EVERY))) } else { None };
        self.followed.values().filter_map(|followed| followed.reader.poll_timeout()).chain(self.poll_at).min()
    }

    /// Wakes those that are to be looked at though nothing happened.
    pub fn poll(&mut self, now: Timestamp) {
        let due = self.poll_at.is_some_and(|at| at <= now);
        if due {
            self.poll_at = None;
        }
        for (id, followed) in &self.followed {
            let blind = due && followed.reader.is_blind(*id, &self.watch);
            if blind || followed.reader.poll_timeout().is_some_and(|at| at <= now) {
                self.awake.insert(*id);
            }
        }
    }

    /// What to save of each source, so that the next start goes on where this one is.
    pub fn positions(&self) -> Vec<(String, String)> {
        self.followed.values().flat_map(Followed::positions).collect()
    }

    pub fn status(&self) -> Vec<SourceStatus> {
        let mut all: Vec<(SourceId, SourceStatus)> =
            self.followed.values().flat_map(Followed::status).collect();
        all.sort_by_key(|(id, _)| *id);
        all.into_iter().map(|(_, status)| status).collect()
    }
}

fn wait_for<'a>(ready: &Ready, id: SourceId, descriptors: impl IntoIterator<Item = BorrowedFd<'a>>) {
    if let Err(error) = ready.aim(id, descriptors) {
        tracing::error!("what comes next cannot be waited for: {}", plain(&error));
    }
}

/// How old a line is beside the `oldest` that is wanted.
fn age(oldest: Timestamp, date_of: DateOf) -> AgeOf {
    Box::new(move |line| match date_of(line) {
        Some(date) if date < oldest => Age::Before,
        Some(_) => Age::Wanted,
        None => Age::Undated,
    })
}

impl Followed {
    fn read(
        &mut self,
        id: SourceId,
        now: Timestamp,
        budget: usize,
        handle: &mut impl FnMut(usize, Line<'_>),
    ) -> Progress {
        let sources = &mut self.sources;
        let mut sink = |id: SourceId, line: Line<'_>| {
            if let Some(source) = sources.iter_mut().find(|source| source.id == id) {
                source.lines += 1;
                source.last_line = Some(now);
            }
            handle(id.0 as usize, line);
        };
        let progress = match &mut self.reader {
            Reader::File(follower) => follower.read(now, budget, &mut |line| sink(id, line)),
            Reader::Stream(stream) => stream.read(now, budget, &mut |line| sink(id, line)),
            Reader::Journal(journal) => journal.read(now, budget, &mut sink),
        };
        self.handle_progress(&progress);
        progress
    }

    fn positions(&self) -> Vec<(String, String)> {
        let one = |position: String| {
            self.sources.iter().map(|source| (source.place.to_string(), position.clone())).collect()
        };
        match &self.reader {
            Reader::File(follower) => follower
                .positions()
                .map(|known| one(serde_json::json!(known).to_string()))
                .unwrap_or_default(),
            // It cannot be read twice.
            Reader::Stream(_) => Vec::new(),
            Reader::Journal(journal) => {
                let name = |id| {
                    self.sources.iter().find(|source| source.id == id).map(|found| found.place.to_string())
                };
                journal.positions().filter_map(|(id, cursor)| Some((name(id)?, cursor))).collect()
            }
        }
    }

    fn handle_progress(&self, progress: &Progress) {
        for notice in &progress.notices {
            // A log that never was there is no news: the status says what is waited for.
            match notice.what {
                What::Missing if !self.reader.has_read() => tracing::debug!("{notice}"),
                What::Appeared | What::Rotated => tracing::info!("{notice}"),
                _ => tracing::warn!("{notice}"),
            }
        }
        if progress.overlong > 0 {
            tracing::warn!("{}: {} overlong lines were dropped", self.sources[0].place, progress.overlong);
        }
    }

    fn status(&self) -> Vec<(SourceId, SourceStatus)> {
        let state = self.reader.trouble().map_or_else(|| "following".to_owned(), |notice| notice.to_string());
        let one = |source: &Source| SourceStatus {
            name: source.place.to_string(),
            state: state.clone(),
            lines: source.lines,
            behind: self.reader.behind(),
            last_line: source.last_line,
        };
        self.sources.iter().map(|source| (source.id, one(source))).collect()
    }
}

impl Reader {
    /// Whether there was ever something to go back to.
    fn has_read(&self) -> bool {
        match self {
            Reader::File(follower) => follower.positions().is_some_and(|known| !known.is_empty()),
            Reader::Stream(_) => false,
            Reader::Journal(journal) => journal.positions().next().is_some(),
        }
    }

    /// Whether what happens to its name raises no events.
    fn is_blind(&self, id: SourceId, watch: &Watch) -> bool {
        let has_name = match self {
            Reader::File(_) => true,
            Reader::Stream(stream) => stream.path().is_some(),
            Reader::Journal(_) => false,
        };
        has_name && watch.needs_polling(id)
    }

    fn poll_timeout(&self) -> Option<Timestamp> {
        match self {
            Reader::File(follower) => follower.poll_timeout(),
            Reader::Stream(stream) => stream.poll_timeout(),
            Reader::Journal(journal) => journal.poll_timeout(),
        }
    }

    fn trouble(&self) -> Option<Notice> {
        match self {
            Reader::File(follower) => follower.trouble(),
            Reader::Stream(stream) => stream.trouble(),
            Reader::Journal(journal) => journal.trouble(),
        }
    }

    /// Bytes that are written and not read yet, where that can be known.
    fn behind(&self) -> u64 {
        match self {
            Reader::File(follower) => follower.behind(),
            Reader::Stream(_) | Reader::Journal(_) => 0,
        }
    }
}
