//! The sources of lines: woken by inotify and epoll, read in turns, remembered by place.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use crate::acquire::bisect::Age;
use crate::acquire::file::{Follower, Start};
use crate::acquire::files::Files;
use crate::acquire::journal::Journal;
use crate::acquire::journalmatch::Matches;
use crate::acquire::place::{Channel, Origin, Place};
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
    /// One journal, for this source and all later ones that want some of it.
    Journal(Box<Journal>),
    /// The journal that this earlier source reads.
    Shared(u32),
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
        sources.add(places, &saved.iter().cloned().collect(), Vec::new(), backlog, now, date_of)?;
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
        let old: Vec<Followed> = std::mem::take(&mut self.followed);
        old.iter().flat_map(Followed::looks).for_each(|(id, _)| self.watch.forget(id));
        self.add(places, &positions, old, backlog, now, date_of)
    }

    /// Follows these places, with the readers of `old` where they serve one place. A journal is opened anew.
    fn add(
        &mut self,
        places: &[Place],
        saved: &BTreeMap<String, String>,
        mut old: Vec<Followed>,
        backlog: Duration,
        now: Timestamp,
        date_of: &DateOf,
    ) -> io::Result<()> {
        let mut journals: BTreeMap<&Origin, (u32, Wants)> = BTreeMap::new();
        for (number, place) in (0..).zip(places) {
            let id = SourceId(number, 0);
            let known = old.iter().position(|followed| followed.place == *place);
            let known = known.map(|index| old.swap_remove(index));
            let position = saved.get(&place.to_string());
            let followed = match (known, place) {
                (known, Place::Journal(origin, matches)) => {
                    let (first, wants) = journals.entry(origin).or_insert((number, Vec::new()));
                    wants.push((id, matches.clone(), position.cloned()));
                    let fresh = Followed::new(id, place, Reader::Shared(*first));
                    known.map_or(fresh, |known| Followed { id, reader: Reader::Shared(*first), ..known })
                }
                (Some(known), _) => Followed { id, ..known },
                (None, _) => {
                    let reader = Reader::open(place, position.map(String::as_str), backlog, now, date_of)?;
                    Followed::new(id, place, reader)
                }
            };
            self.followed.push(followed);
        }
        for (origin, (first, wants)) in journals {
            let journal = Journal::open(origin.clone(), wants, now.minus(backlog));
            self.followed[first as usize].reader = Reader::Journal(Box::new(journal));
        }
        self.awake = self.followed.iter().flat_map(Followed::looks).map(|(id, _)| id).collect();
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
            let mut heard: BTreeMap<u32, u64> = BTreeMap::new();
            let progress = followed.reader.read(id, now, budget, &mut |source, line| {
                *heard.entry(source.0).or_default() += 1;
                handle(source.0 as usize, line);
            });
            followed.handle_progress(&progress);
            for (source, lines) in heard {
                let source = &mut self.followed[source as usize];
                source.lines += lines;
                source.last_line = Some(now);
            }
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
                wait_for(&self.ready, id, place, stream.descriptors());
                stream.path().map_or(Aimed::Unchanged, |path| self.watch.aim_at_name(id, path))
            }
            Reader::Journal(journal) => {
                wait_for(&self.ready, id, place, journal.descriptors());
                Aimed::Unchanged
            }
            Reader::Shared(_) => Aimed::Unchanged,
        }
    }

    /// Whether the one came to its end that we run for: standard input.
    pub fn have_ended(&self) -> bool {
        self.followed.iter().any(|followed| match &followed.reader {
            Reader::Stream(stream) => stream.has_ended(),
            _ => false,
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
            Reader::Journal(_) | Reader::Shared(_) => false,
        };
        has_name && self.watch.needs_polling(id)
    }

    /// What to save of each log, so that the next start goes on where this one is.
    pub fn positions(&self) -> Vec<(String, String)> {
        let mut positions = Vec::new();
        for followed in &self.followed {
            match &followed.reader {
                Reader::Journal(journal) => positions
                    .extend(journal.positions().map(|(id, cursor)| (self.name(id.0 as usize), cursor))),
                reader => {
                    let known = reader.positions().map(|known| known.to_string());
                    positions.extend(known.map(|known| (followed.place.to_string(), known)));
                }
            }
        }
        positions
    }

    /// The sources where the kernel tells of packets, and nobody else can.
    pub fn of_packets(&self) -> BTreeSet<usize> {
        let is_one = |followed: &Followed| matches!(followed.place, Place::Stream(Channel::Nflog(_)));
        self.followed
            .iter()
            .enumerate()
            .filter(|(_, followed)| is_one(followed))
            .map(|(number, _)| number)
            .collect()
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
        let status = |followed: &Followed| match followed.reader {
            Reader::Shared(first) => followed.status(&self.followed[first as usize].reader),
            _ => followed.status(&followed.reader),
        };
        self.followed.iter().map(status).collect()
    }
}

fn wait_for<'a>(
    ready: &Ready,
    id: SourceId,
    place: &Place,
    descriptors: impl IntoIterator<Item = BorrowedFd<'a>>,
) {
    if let Err(error) = ready.aim(id, descriptors) {
        tracing::error!("{place} cannot be waited for: {}", plain(&error));
    }
}

impl Followed {
    fn new(id: SourceId, place: &Place, reader: Reader) -> Followed {
        Followed { id, place: place.clone(), reader, lines: 0, overlong: 0, last_line: None }
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

    fn handle_progress(&mut self, progress: &Progress) {
        progress.notices.iter().for_each(|notice| self.tell(notice));
        if progress.overlong > 0 {
            self.overlong += progress.overlong;
            tracing::warn!("{}: {} overlong lines were dropped", self.place, progress.overlong);
        }
    }

    /// `reader` is who reads it.
    fn status(&self, reader: &Reader) -> SourceStatus {
        SourceStatus {
            name: self.place.to_string(),
            state: reader.state(),
            lines: self.lines,
            behind: reader.behind(),
            overlong: self.overlong,
            lost: reader.lost(),
            last_line: self.last_line,
        }
    }
}

impl Reader {
    fn open(
        place: &Place,
        saved: Option<&str>,
        backlog: Duration,
        now: Timestamp,
        date_of: &DateOf,
    ) -> io::Result<Reader> {
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
            // A journal serves several sources, and is opened for all of them.
            Place::Journal(..) => Reader::Shared(0),
            Place::Glob(glob) => {
                let files = Files::open(glob, serde_json::from_str(saved).ok(), Box::new(start), now);
                Reader::Files(Box::new(files))
            }
        };
        Ok(reader)
    }

    fn read(
        &mut self,
        id: SourceId,
        now: Timestamp,
        budget: usize,
        sink: &mut dyn FnMut(SourceId, Line<'_>),
    ) -> Progress {
        let mut own = |line: Line<'_>| sink(id, line);
        match self {
            Reader::File(follower) => follower.read(now, budget, &mut own),
            Reader::Files(files) => files.read(id.1, now, budget, &mut own),
            Reader::Stream(stream) => stream.read(now, budget, &mut own),
            Reader::Journal(journal) => journal.read(now, budget, sink),
            Reader::Shared(_) => Progress::default(),
        }
    }

    /// What to save of it; of a stream nothing, since it cannot be read twice.
    fn positions(&self) -> Option<serde_json::Value> {
        match self {
            Reader::File(follower) => follower.positions().map(|positions| serde_json::json!(positions)),
            Reader::Files(files) => files.positions().map(|positions| serde_json::json!(positions)),
            Reader::Stream(_) | Reader::Journal(_) | Reader::Shared(_) => None,
        }
    }

    /// Whether anything was ever read of it.
    fn has_begun(&self) -> bool {
        match self {
            Reader::File(follower) => follower.positions().is_some_and(|positions| !positions.is_empty()),
            Reader::Files(_) => true,
            Reader::Stream(_) | Reader::Shared(_) => false,
            Reader::Journal(journal) => journal.positions().next().is_some(),
        }
    }

    fn poll_timeout(&self) -> Option<Timestamp> {
        match self {
            Reader::File(follower) => follower.poll_timeout(),
            Reader::Files(_) | Reader::Shared(_) => None,
            Reader::Stream(stream) => stream.poll_timeout(),
            Reader::Journal(journal) => journal.poll_timeout(),
        }
    }

    /// What begins with `following`, or what it waits for, in words.
    fn state(&self) -> String {
        let trouble = match self {
            Reader::File(follower) => follower.trouble(),
            Reader::Files(files) => return files.state(),
            Reader::Stream(stream) => stream.trouble(),
            Reader::Journal(journal) => journal.trouble(),
            Reader::Shared(_) => None,
        };
        trouble.map_or_else(|| "following".to_owned(), |notice| notice.to_string())
    }

    /// Bytes that are written and not read yet.
    fn behind(&self) -> u64 {
        match self {
            Reader::File(follower) => follower.behind(),
            Reader::Files(files) => files.followers().map(|(_, follower)| follower.behind()).sum(),
            Reader::Stream(stream) => stream.behind(),
            Reader::Journal(_) | Reader::Shared(_) => 0,
        }
    }

    /// Lines that the kernel dropped because they came faster than they were read.
    fn lost(&self) -> u64 {
        match self {
            Reader::Stream(stream) => stream.lost(),
            _ => 0,
        }
    }
}
