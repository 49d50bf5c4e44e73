//! The teller: a process of its own that hears what happens and tells it. Whatever becomes of it, no ban waits.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use tokio::time::Instant;

use crate::config;
use crate::control::{self, Period, Request, Response};
use crate::host;
use crate::model::{Ban, Bantime, Event};
use crate::notices::{self, Channel, Notices, Way};
use crate::outbox::Outbox;
use crate::post;
use crate::scrape;
use crate::status::{Happened, News, Past};
use crate::tell;
use crate::yaml::Fault;

/// Why the teller ended.
#[derive(Debug)]
pub enum Untold {
    BadConfiguration(Vec<Fault>),
    NotReachable(String),
    Failed(String),
}

/// After a failure, the first wait, and the longest; each is twice as long as the one before, more or less.
const WAIT: Duration = Duration::from_secs(1);
const WAIT_MAX: Duration = Duration::from_secs(300);
/// So long after it began to listen, the teller asks for what happened before: by then the agent has saved it.
const CATCH_UP: Duration = Duration::from_secs(3);
/// What happened longer ago is not told any more.
const CATCH_UP_MAX: Duration = Duration::from_secs(3_600);
/// When the agent ends, what waits has so long to go out; the rest does when the next one runs.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// Tells what happens until the agent ends.
pub fn run(place: Option<&Path>, socket: &Path, state: &Path) -> Result<(), Untold> {
    let notices = read(place).map_err(Untold::BadConfiguration)?;
    // It fails where there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let broken = |error: rusqlite::Error| Untold::Failed(format!("the outbox cannot be used: {error}"));
    let mut outbox = Outbox::open(state).map_err(broken)?;
    let names: Vec<&str> = notices.channels.iter().map(|channel| channel.name.as_str()).collect();
    outbox.keep(&names).map_err(broken)?;
    if let Some(endpoint) = &notices.metrics {
        scrape::serve(endpoint, socket).map_err(Untold::Failed)?;
    }
    let mut bells = Vec::new();
    let mut threads = Vec::new();
    for channel in notices.channels.clone() {
        let (bell, rung) = sync_channel(1);
        let state = state.to_owned();
        threads.push(thread::spawn(move || Speaker::new(channel, state).run(&rung)));
        bells.push(bell);
    }
    let ended = listen(&notices, &bells, &mut outbox, socket);
    drop(bells);
    let until = Instant::now() + LAST_WORDS;
    while threads.iter().any(|thread| !thread.is_finished()) && Instant::now() < until {
        thread::sleep(Duration::from_millis(20));
    }
    ended
}

/// What the configuration says of telling.
pub fn read(place: Option<&Path>) -> Result<Notices, Vec<Fault>> {
    let files = config::files(place).map_err(|fault| vec![fault])?;
    notices::load(&files)
}

/// Hears what happens and puts it into the outbox.
fn listen(
    notices: &Notices,
    bells: &[SyncSender<()>],
    outbox: &mut Outbox,
    socket: &Path,
) -> Result<(), Untold> {
    let unheard = |error: control::Unanswered| Untold::NotReachable(error.to_string());
    let (mut stream, _) = control::watch(socket, None).map_err(unheard)?;
    let (tell, heard) = sync_channel::<Option<Response>>(1_000);
    let again = socket.to_owned();
    thread::spawn(move || {
        while let Ok(Some(response)) = control::next(&mut stream) {
            if tell.send(Some(response)).is_err() {
                return;
            }
        }
        let _ = tell.send(None);
    });
    let mut catch_up = Some(Instant::now() + CATCH_UP);
    loop {
        let response = match catch_up {
            None => heard.recv().ok().flatten(),
            Some(at) => match heard.recv_timeout(at.saturating_duration_since(Instant::now())) {
                Ok(response) => response,
                Err(RecvTimeoutError::Disconnected) => None,
                Err(RecvTimeoutError::Timeout) => {
                    catch_up = None;
                    for news in before(&again) {
                        put(notices, bells, outbox, &news);
                    }
                    continue;
                }
            },
        };
        match response {
            Some(Response::News(news)) => put(notices, bells, outbox, &news),
            Some(Response::Missed(count)) => {
                tracing::warn!("{count} events came faster than they could be noted, and are looked up");
                catch_up = Some(Instant::now() + CATCH_UP);
            }
            Some(_) => {}
            None => return Ok(()),
        }
    }
}

/// What happened lately, from the state: nobody may have listened.
fn before(socket: &Path) -> Vec<News> {
    let since = host::now().minus(CATCH_UP_MAX);
    let period = Period { since, jail: None, within: None };
    match control::ask(socket, &Request::Past(period)) {
        Ok(Response::Past(past)) => past.into_iter().map(news).collect(),
        Ok(_) => Vec::new(),
        Err(error) => {
            tracing::warn!("what happened before is not known: {error}");
            Vec::new()
        }
    }
}

/// The same as was told, or would have been, when it happened.
fn news(past: Past) -> News {
    let Past { at, event, jail, target, ends, lines } = past;
    let bantime = ends.map_or(Bantime::Forever, |ends| Bantime::For(ends.since(at)));
    let ban = || Ban { jail: jail.clone(), target, at, bantime };
    let event = match event {
        Happened::Unbanned => Event::Released { jail, target },
        Happened::Extended => Event::Extended { ban: ban() },
        _ => Event::Banned { ban: ban() },
    };
    tell::news::news(&event, at, lines)
}

fn put(notices: &Notices, bells: &[SyncSender<()>], outbox: &mut Outbox, news: &News) {
    let wants = |(channel, _): &(&Channel, &SyncSender<()>)| channel.wants(news);
    let wanted: Vec<_> = notices.channels.iter().zip(bells).filter(wants).collect();
    if wanted.is_empty() {
        return;
    }
    let names: Vec<&str> = wanted.iter().map(|(channel, _)| channel.name.as_str()).collect();
    match outbox.put(news, &names, host::now()) {
        // A bell that rings already need not be rung.
        Ok(true) => wanted.iter().for_each(|(_, bell)| _ = bell.try_send(())),
        Ok(false) => {}
        Err(error) => {
            tracing::error!("not told, because the outbox is not to be written: {}: {error}", news.text)
        }
    }
}

/// Delivers what waits for one channel.
struct Speaker {
    channel: Channel,
    state: PathBuf,
    /// When the last message went out.
    last: Option<Instant>,
    /// How often in a row none did.
    failures: u32,
}

impl Speaker {
    fn new(channel: Channel, state: PathBuf) -> Self {
        Speaker { channel, state, last: None, failures: 0 }
    }

    /// Until nobody rings any more, and what waits is told or cannot be.
    fn run(mut self, rung: &Receiver<()>) {
        let mut outbox = match Outbox::open(&self.state) {
            Ok(outbox) => outbox,
            Err(error) => return tracing::error!("{} is not told: {error}", self.channel.name),
        };
        let mut over = false;
        loop {
            let left = self.speak(&mut outbox).unwrap_or_else(|error| {
                tracing::error!("{} is not told: {error}", self.channel.name);
                true
            });
            if over {
                return;
            }
            let wait = if left { Some(self.wait()) } else { None };
            over = match wait {
                // What comes meanwhile goes with the rest.
                Some(wait) => !sleep(rung, wait),
                None => rung.recv().is_err(),
            };
            if !over && let Some(last) = self.last {
                over = !sleep(rung, self.channel.digest.saturating_sub(last.elapsed()));
            }
        }
    }

    /// One message, if there is anything to say and it is time. True where more is left.
    fn speak(&mut self, outbox: &mut Outbox) -> rusqlite::Result<bool> {
        let name = self.channel.name.clone();
        let is_own = matches!(self.channel.way, Way::Exec(_)) && self.channel.digest.is_zero();
        loop {
            outbox.trim(&[&name], host::now())?;
            // A program is run for each event, where it is not told to wait.
            let batch = outbox.batch(&name, is_own.then_some(1))?;
            if batch.is_empty() {
                return Ok(false);
            }
            match post::deliver(&self.channel, &batch, &host::name()) {
                Ok(()) => {
                    outbox.told(&name, &batch)?;
                    if self.failures > 0 {
                        tracing::info!("{name} is told again");
                    }
                    (self.failures, self.last) = (0, Some(Instant::now()));
                    if !self.channel.digest.is_zero() {
                        return Ok(!outbox.batch(&name, Some(1))?.is_empty());
                    }
                }
                Err(why) => {
                    if self.failures == 0 {
                        tracing::warn!("{name} could not be told, and is tried again: {why}");
                    }
                    self.failures = self.failures.saturating_add(1);
                    return Ok(true);
                }
            }
        }
    }

    /// How long until the next try: longer after each failure, and never the same for all.
    fn wait(&self) -> Duration {
        if self.failures == 0 {
            return self
                .last
                .map_or(Duration::ZERO, |last| self.channel.digest.saturating_sub(last.elapsed()));
        }
        let whole = WAIT.saturating_mul(1 << self.failures.min(16).saturating_sub(1)).min(WAIT_MAX);
        whole / 2 + whole.mul_f64((host::secret() % 1_000) as f64 / 2_000.0)
    }
}

/// Waits, whoever rings. False where nobody can any more.
fn sleep(rung: &Receiver<()>, time: Duration) -> bool {
    let until = Instant::now() + time;
    loop {
        match rung.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(()) => {}
            Err(RecvTimeoutError::Timeout) => return true,
            Err(RecvTimeoutError::Disconnected) => return false,
        }
    }
}
