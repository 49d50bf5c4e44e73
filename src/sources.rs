//! The sources of lines: woken by inotify and epoll, read in turns, remembered by place.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::acquire::bisect::Age;
use crate::acquire::file::{Follower, Start};
use crate::acquire::files::Files;
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
    Files(Box<Files>),
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
            let followed = Followed::open(SourceId(number, 0), place, position, backlog, now, date_of)?;
            sources.awake.extend(followed.looks().map(|(id, _)| id));
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
        old.iter().flat_map(Followed::looks).for_each(|(id, _)| self.watch.forget(id));
        for (number, place) in (0..).zip(places) {
            let id = SourceId(number, 0);
            let followed = match old.iter().position(|followed| followed.place == *place) {
                Some(index) => Followed { id, ..old.swap_remove(index) },
                None => Followed::open(id, place, None, backlog, now, date_of)?,
            };
            self.awake.extend(followed.looks().map(|(id, _)| id));
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
            if let (Reader::Files(files), 0) = (&mut followed.reader, id.1) {
                let looked = files.look(now);
                self.awake.extend(looked.awake.into_iter().map(|file| SourceId(id.0, file)));
                looked.gone.into_iter().for_each(|file| self.watch.forget(SourceId(id.0, file)));
                looked.notices.iter().for_each(|notice| followed.tell(notice));
                turn.more |= !self.awake.is_empty();
            }
            let progress = followed.reader.read(id.1, now, budget, &mut |line| handle(id.0 as usize, line));
            followed.handle_progress(&progress, now);
            turn.lines += progress.lines;
            let aimed = self.aim(id);
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

    /// Watches what was just looked at or read for what comes next.
    fn aim(&mut self, id: SourceId) -> Aimed {
        let Followed { reader, place, .. } = &mut self.followed[id.0 as usize];
        match reader {
            Reader::File(follower) => self.watch.aim(id, follower),
            Reader::Files(files) if id.1 == 0 => self.watch.aim_at_names(id, files),
            Reader::Files(files) => match files.keep(id.1) {
                Some(follower) => self.watch.aim(id, follower),
                None => {
                    self.watch.forget(id);
                    Aimed::Unchanged
                }
            },
            Reader::Stream(stream) => {
                if let Err(error) = self.ready.aim(id, stream) {
                    tracing::error!("{place} cannot be waited for: {}", plain(&error));
                }
                stream.path().map_or(Aimed::Unchanged, |path| self.watch.aim_at_name(id, path))
            }
        }
    }

    /// Whether the one came to its end that we run for: standard input.
    pub fn have_ended(&self) -> bool {
        self.followed.iter().any(|followed| match &followed.reader {
            Reader::File(_) | Reader::Files(_) => false,
            Reader::Stream(stream) => stream.has_ended(),
        })
    }

    /// When to call [`Sources::poll`] next; none where events tell everything.
    pub fn poll_timeout(&mut self, now: Timestamp) -> Option<Timestamp> {
        let looks = || self.followed.iter().flat_map(Followed::looks);
        let blind = looks().any(|(id, _)| self.is_blind(id));
        // Whoever is awake is read as soon as that may be; no time brings it nearer.
        let due = looks().filter(|(id, _)| !self.awake.contains(id)).filter_map(|(_, due)| due).min();
        self.poll_at = if blind { Some(self.poll_at.unwrap_or(now.plus(POLL_EVERY))) } else { None };
        due.into_iter().chain(self.poll_at).min()
    }

    /// Wakes those that are to be looked at though nothing happened.
    pub fn poll(&mut self, now: Timestamp) {
        let all = self.poll_at.take_if(|at| *at <= now).is_some();
        let looks = self.followed.iter().flat_map(Followed::looks);
        let due = looks.filter(|(id, due)| all && self.is_blind(*id) || due.is_some_and(|at| at <= now));
        let due: Vec<SourceId> = due.map(|(id, _)| id).collect();
        self.awake.extend(due);
    }

    /// Whether what happens to its name raises no events.
    fn is_blind(&self, id: SourceId) -> bool {
        let has_name = match &self.followed[id.0 as usize].reader {
            Reader::File(_) | Reader::Files(_) => true,
            Reader::Stream(stream) => stream.path().is_some(),
        };
        has_name && self.watch.needs_polling(id)
    }

    /// What to save of each log, so that the next start goes on where this one is.
    pub fn positions(&self) -> Vec<(String, String)> {
        let position = |followed: &Followed| {
            Some((followed.place.to_string(), followed.reader.positions()?.to_string()))
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
        let start = move || Start::Since(Box::new(age.clone()));
        let saved = saved.unwrap_or_default();
        let reader = match place {
            Place::Stream(channel) => Reader::Stream(Stream::of(channel, place.to_string())),
            Place::File(path) => {
                let follower = Follower::open(path, serde_json::from_str(saved).ok(), start(), now)?;
                Reader::File(Box::new(follower))
            }
            Place::Glob(glob) => {
                let files = Files::open(glob, serde_json::from_str(saved).ok(), Box::new(start), now);
                Reader::Files(Box::new(files))
            }
        };
        Ok(Followed { id, place: place.clone(), reader, lines: 0, overlong: 0, last_line: None })
    }

    /// What there is to be looked at: the source itself and each file of a pattern, and when, though nothing happens.
    fn looks(&self) -> impl Iterator<Item = (SourceId, Option<Timestamp>)> {
        let files = match &self.reader {
            Reader::Files(files) => Some(files.followers()),
            _ => None,
        };
        let file =
            |(number, follower): (u32, &Follower)| (SourceId(self.id.0, number), follower.poll_timeout());
        std::iter::once((self.id, self.reader.poll_timeout())).chain(files.into_iter().flatten().map(file))
    }

    fn tell(&self, notice: &Notice) {
        match (&notice.what, &self.reader) {
            // A log that never was there is no news: the status says what is waited for.
            (What::Missing, reader) if !reader.has_begun() => tracing::debug!("{notice}"),
            // Of many files one is gone; nobody waits for it.
            (What::Missing, Reader::Files(_)) => tracing::debug!("{notice}"),
            (What::Appeared | What::Rotated, _) => tracing::info!("{notice}"),
            _ => tracing::warn!("{notice}"),
        }
    }

    fn handle_progress(&mut self, progress: &Progress, now: Timestamp) {
        progress.notices.iter().for_each(|notice| self.tell(notice));
        if progress.overlong > 0 {
            self.overlong += progress.overlong;
            tracing::warn!("{}: {} overlong lines were dropped", self.place, progress.overlong);
        }
        if progress.lines > 0 {
            self.lines += progress.lines;
            self.last_line = Some(now);
        }
    }

    fn status(&self) -> SourceStatus {
        SourceStatus {
            name: self.place.to_string(),
            state: self.reader.state(),
            lines: self.lines,
            behind: self.reader.behind(),
            overlong: self.overlong,
            lost: self.reader.lost(),
            last_line: self.last_line,
        }
    }
}

impl Reader {
    fn read(&mut self, file: u32, now: Timestamp, budget: usize, sink: &mut dyn FnMut(Line<'_>)) -> Progress {
        match self {
            Reader::File(follower) => follower.read(now, budget, sink),
            Reader::Files(files) => files.read(file, now, budget, sink),
            Reader::Stream(stream) => stream.read(now, budget, sink),
        }
    }

    /// What to save of it; of a stream nothing, since it cannot be read twice.
    fn positions(&self) -> Option<serde_json::Value> {
        match self {
            Reader::File(follower) => follower.positions().map(|positions| serde_json::json!(positions)),
            Reader::Files(files) => files.positions().map(|positions| serde_json::json!(positions)),
            Reader::Stream(_) => None,
        }
    }

    /// Whether anything was ever read of it.
    fn has_begun(&self) -> bool {
        match self {
            Reader::File(follower) => follower.positions().is_some_and(|positions| !positions.is_empty()),
            Reader::Files(_) => true,
            Reader::Stream(_) => false,
        }
    }

    fn poll_timeout(&self) -> Option<Timestamp> {
        match self {
            Reader::File(follower) => follower.poll_timeout(),
            Reader::Files(_) => None,
            Reader::Stream(stream) => stream.poll_timeout(),
        }
    }

    /// What begins with `following`, or what it waits for, in words.
    fn state(&self) -> String {
        let trouble = match self {
            Reader::File(follower) => follower.trouble(),
            Reader::Files(files) => return files.state(),
            Reader::Stream(stream) => stream.trouble(),
        };
        trouble.map_or_else(|| "following".to_owned(), |notice| notice.to_string())
    }

    /// Bytes that are written and not read yet.
    fn behind(&self) -> u64 {
        match self {
            Reader::File(follower) => follower.behind(),
            Reader::Files(files) => files.followers().map(|(_, follower)| follower.behind()).sum(),
            Reader::Stream(stream) => stream.behind(),
        }
    }

    /// Lines that the kernel dropped because they came faster than they were read.
    fn lost(&self) -> u64 {
        match self {
            Reader::File(_) | Reader::Files(_) => 0,
            Reader::Stream(stream) => stream.lost(),
        }
    }
}
