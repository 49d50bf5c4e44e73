//! The loop: it waits for files, answers, questions, timers and signals, and hands each to who decides.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use ipnet::IpNet;
use jiff::tz::TimeZone;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

use crate::acquire::place::Place;
use crate::bell::Bell;
use crate::config::Config;
use crate::control::{self, Asked, Failed, Response, failed};
use crate::detect::{self, Clock};
use crate::enforcer::{Done, Enforcer, Restore};
use crate::engine::{Engine, Listener, Outcome};
use crate::host::{self, AddressWatch, Services};
use crate::jail::{FORGET, Jail};
use crate::model::{Ban, Change, Event, Timestamp, plain};
use crate::never;
use crate::nft::Refusal;
use crate::nft::netlink::Netlink;
use crate::sources::{DateOf, Sources};
use crate::state::{Saved, State, Step};
use crate::tell;
use crate::yaml::{self, Fault};

/// Where the agent finds and keeps things.
#[derive(Clone, Debug)]
pub struct Places {
    pub config: Option<PathBuf>,
    pub socket: PathBuf,
    pub state: PathBuf,
}

/// Why the agent did not start, or ended.
#[derive(Debug)]
pub enum Stopped {
    BadConfiguration(String),
    NotAllowed(String),
    Failed(String),
}

/// Runs until it is told to stop (SIGINT, SIGTERM). Bans stay in the kernel.
pub fn run(places: &Places) -> Result<(), Stopped> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Stopped::Failed(format!("cannot start: {}", plain(&error))))?;
    runtime.block_on(async {
        let (daemon, wakers, thread) = Daemon::start(places).await?;
        daemon.run(wakers).await;
        // The enforcer ends when the last handle is gone, after the work it was given.
        thread.join().map_err(|_| Stopped::Failed("the enforcer ended in a panic".to_owned()))
    })
}

/// So many changes may be on their way to the kernel; the logs wait beyond that, and memory stays bounded.
const PENDING_MAX: usize = 50_000;
/// So many bytes of each log are read before others get their turn.
const TURN_BYTES: usize = 1 << 20;
/// An offender is kept in the state until so many bans are forgotten.
const OFFENCES_REMEMBERED: u32 = 20;
/// Positions and failures are saved this long after they changed.
const SAVE_AFTER: Duration = Duration::from_secs(1);

/// The running agent.
pub struct Daemon {
    places: Places,
    pub(crate) config: Config,
    /// Whom this host cannot do without.
    pub(crate) own: Vec<IpNet>,
    watch: never::Watch,
    zone: TimeZone,
    pub(crate) engine: Engine,
    pub(crate) enforcer: Enforcer,
    pub(crate) sources: Sources,
    state: Option<State>,
    /// What the kernel took since the last save.
    taken: Vec<Change>,
    save_at: Option<Instant>,
    /// A step that the state had no time for yet.
    unsaved: Option<Box<Step>>,
    /// Changes on their way to the kernel.
    pub(crate) pending: usize,
    tickets: u64,
    /// Questions that are answered when the kernel has spoken, by ticket.
    pub(crate) waiting: HashMap<u64, Waiting>,
    pub(crate) troubles: Vec<String>,
    pub(crate) started: Timestamp,
}

/// A question that waits for the kernel.
pub(crate) struct Waiting {
    pub(crate) answer: oneshot::Sender<Response>,
    /// The answer where the kernel takes it.
    pub(crate) done: String,
}

/// What wakes the loop, beside the logs.
struct Wakers {
    done: mpsc::UnboundedReceiver<Done>,
    questions: mpsc::Receiver<Asked>,
    addresses: AddressWatch,
    address_bell: Bell,
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Daemon {
    async fn start(places: &Places) -> Result<(Daemon, Wakers, JoinHandle<()>), Stopped> {
        let mut config =
            Config::load(places.config.as_deref(), &Services::of_this_host()).map_err(bad_configuration)?;
        let listener = control::listen(&places.socket).map_err(Stopped::Failed)?;
        let kernel = Netlink::open().map_err(refused)?;
        let (enforcer, done, thread) = Enforcer::spawn(Box::new(kernel), host::now);
        let own = never::of_this_host(config.ban_local).map_err(|error| Stopped::Failed(plain(&error)))?;
        let mut watch = never::Watch::over(&config.known);
        watch.first_word(&mut config.known).await;
        let (state, saved, troubles) = open_state(&places.state);
        let standing =
            enforcer.install(config.layout(&own), Restore::AfterReboot(saved.bans)).await.map_err(refused)?;

        let (logs, listeners) = listeners(&config);
        let terms = config.jails.iter().map(|jail| jail.terms.clone()).collect();
        let mut engine = Engine::new(terms, listeners, config.never(&own), host::secret());
        saved.memories.into_iter().for_each(|memory| engine.restore_memory(memory));
        restore(&mut engine, standing);
        let zone = TimeZone::system();
        let backlog = longest_findtime(&config);
        let sources = Sources::open(&logs, &saved.positions, backlog, host::now(), &date_of(&zone))
            .map_err(|error| Stopped::Failed(plain(&error)))?;

        let (ask, questions) = mpsc::channel(16);
        tokio::spawn(control::serve(listener, ask));
        let wakers = Wakers::new(done, questions).map_err(|error| Stopped::Failed(plain(&error)))?;
        let daemon = Daemon {
            places: places.clone(),
            config,
            own,
            watch,
            zone,
            engine,
            enforcer,
            sources,
            state,
            taken: Vec::new(),
            save_at: None,
            unsaved: None,
            pending: 0,
            tickets: 0,
            waiting: HashMap::new(),
            troubles,
            started: host::now(),
        };
        tracing::info!("{}", tell::screen::truth(&daemon.status(None)));
        Ok((daemon, wakers, thread))
    }

    async fn run(mut self, mut wakers: Wakers) {
        self.spare();
        loop {
            // While nothing may be read, what comes in wakes nobody.
            let may_read = self.may_read();
            let more = may_read && self.read_logs();
            let wake_at = self.wake_at();
            tokio::select! {
                biased;
                _ = wakers.interrupt.recv() => break,
                _ = wakers.terminate.recv() => break,
                _ = wakers.hangup.recv() => {
                    if let Response::Failed { message, .. } = self.reload().await {
                        tracing::error!("not reloaded: {message}");
                    }
                }
                Some(done) = wakers.done.recv() => self.handle_done(done).await,
                Some(asked) = wakers.questions.recv() => self.handle_question(asked).await,
                () = wakers.address_bell.rung() => {
                    if wakers.addresses.take_news() {
                        self.handle_addresses().await;
                    }
                }
                Some(news) = self.watch.news() => self.handle_news(news).await,
                () = self.sources.changed(), if may_read => {}
                () = sleep_until(wake_at.unwrap_or_else(Instant::now)), if wake_at.is_some() => {}
                () = tokio::task::yield_now(), if more => {}
            }
            self.handle_time();
        }
        let standing: usize = self.engine.jails().iter().map(|jail| jail.bans().len()).sum();
        tracing::info!("stopping; {standing} bans stay in the kernel");
        self.stop(wakers).await;
    }

    /// Not while too much is on its way to the kernel, nor while a save waits for that: a saved position must never
    /// be ahead of the kernel, or a crash would lose the bans between them.
    fn may_read(&self) -> bool {
        self.pending < PENDING_MAX && (self.pending == 0 || !self.save_is_due())
    }

    fn save_is_due(&self) -> bool {
        self.save_at.is_some_and(|at| at <= Instant::now())
    }

    /// Reads what is new in the logs, and asks the kernel for what follows. True where more waits.
    fn read_logs(&mut self) -> bool {
        let now = host::now();
        let mut out = Outcome::default();
        let Daemon { sources, engine, zone, .. } = self;
        let read = sources.read(now, TURN_BYTES, |source, line| match line.entry {
            Some(entry) => engine.handle_entry(source, entry, now, &mut out),
            None => {
                let clock = if line.fresh { Clock::Arrived(now) } else { Clock::Written { now, zone } };
                engine.handle_line(source, line.text, clock, now, &mut out);
            }
        });
        if read.lines > 0 {
            self.schedule_save();
        }
        self.follow(out);
        read.more
    }

    /// Tells what happened and asks for what is to change.
    pub(crate) fn follow(&mut self, out: Outcome) -> Option<u64> {
        out.events.iter().for_each(tell::log);
        if out.changes.is_empty() {
            return None;
        }
        self.tickets += 1;
        self.pending += out.changes.len();
        self.enforcer.apply(self.tickets, out.changes);
        Some(self.tickets)
    }

    async fn handle_done(&mut self, done: Done) {
        self.pending -= done.taken.len() + done.refused.len();
        if done.lost {
            return self.heal(done).await;
        }
        let now = host::now();
        let mut out = Outcome::default();
        for change in &done.taken {
            self.engine.handle_taken(change, now, &mut out);
        }
        for (change, why) in &done.refused {
            self.engine.handle_refused(change, why, &mut out);
        }
        let answer = match done.refused.first() {
            Some((_, why)) => Err(why.clone()),
            None => Ok(()),
        };
        self.taken.extend(done.taken);
        self.schedule_save();
        if let Some(Waiting { answer: reply, done }) = self.waiting.remove(&done.ticket) {
            // A client that hung up does not want to know.
            let _ =
                reply.send(answer.map_or_else(|why| failed(Failed::Refused, why), |()| Response::Done(done)));
        }
        self.follow(out);
    }

    /// Our table is gone or damaged: puts it back with every ban that is believed, then asks again.
    async fn heal(&mut self, done: Done) {
        tracing::error!("somebody removed our table or a part of it: putting it back");
        let believed = self.engine.jails().iter().flat_map(Jail::bans).cloned().collect();
        let healed = self.enforcer.install(self.config.layout(&self.own), Restore::Missing(believed)).await;
        let changes: Vec<Change> = done.refused.into_iter().map(|(change, _)| change).collect();
        match healed {
            Ok(_) => {
                self.pending += changes.len();
                self.enforcer.apply(done.ticket, changes);
            }
            Err(refusal) => {
                let why = refusal.to_string();
                let mut out = Outcome::default();
                for change in &changes {
                    self.engine.handle_refused(change, &why, &mut out);
                }
                if let Some(Waiting { answer, .. }) = self.waiting.remove(&done.ticket) {
                    let _ = answer.send(failed(Failed::Refused, why));
                }
                self.follow(out);
            }
        }
    }

    /// Does what is due: forgets bans that ended, saves.
    fn handle_time(&mut self) {
        let now = host::now();
        let mut out = Outcome::default();
        self.engine.handle_timeout(now, &mut out);
        self.follow(out);
        self.sources.poll(now);
        if self.pending == 0 && self.save_is_due() {
            self.save();
        }
    }

    /// When something is due though nothing happens.
    fn wake_at(&mut self) -> Option<Instant> {
        let now = host::now();
        let due = [self.engine.poll_timeout(), self.sources.poll_timeout(now)].into_iter().flatten().min();
        let save_at = self.save_at.filter(|_| self.pending == 0);
        due.map(|due| Instant::now() + due.since(now)).into_iter().chain(save_at).min()
    }

    fn schedule_save(&mut self) {
        // Also where no state can be kept: what waits to be saved would only grow.
        self.save_at.get_or_insert_with(|| Instant::now() + SAVE_AFTER);
    }

    /// One consistent step for the state: positions, failures, and what the kernel took.
    fn step(&mut self) -> Step {
        let now = host::now();
        Step {
            positions: self.sources.positions(),
            memories: self.engine.take_unsaved(),
            changes: std::mem::take(&mut self.taken),
            stale_failures: now.minus(longest_findtime(&self.config)),
            stale_offenders: now.minus(longest_memory(&self.config)),
            now,
        }
    }

    /// Reads the configuration again and goes on by it, or by the old one where it is not in order.
    pub(crate) async fn reload(&mut self) -> Response {
        let mut config = match Config::load(self.places.config.as_deref(), &Services::of_this_host()) {
            Ok(config) => config,
            Err(faults) => return failed(Failed::BadConfiguration, yaml::told(&faults)),
        };
        config.known.inherit(&self.config.known);
        let own = never::of_this_host(config.ban_local).unwrap_or_else(|_| self.own.clone());
        let standing = match self.enforcer.install(config.layout(&own), Restore::Missing(Vec::new())).await {
            Ok(standing) => standing,
            Err(refusal) => return failed(Failed::Refused, refusal.to_string()),
        };
        let (logs, listeners) = listeners(&config);
        let terms = config.jails.iter().map(|jail| jail.terms.clone()).collect();
        self.engine.amend(terms, listeners);
        standing.into_iter().for_each(|ban| self.engine.restore(ban));
        if let Err(error) =
            self.sources.follow(&logs, longest_findtime(&config), host::now(), &date_of(&self.zone))
        {
            return failed(Failed::Refused, plain(&error));
        }
        self.own = own;
        self.watch = never::Watch::over(&config.known);
        self.config = config;
        self.spare();
        let truth = tell::screen::truth(&self.status(None));
        tracing::info!("reloaded: {truth}");
        Response::Done(format!("reloaded: {truth}"))
    }

    /// Without a state to keep it, what is to be saved is let go, so that it does not pile up.
    fn save(&mut self) {
        self.save_at = None;
        let step = self.unsaved.take().unwrap_or_else(|| Box::new(self.step()));
        if let Some(state) = &self.state
            && let Err(step) = state.save(*step)
        {
            self.unsaved = Some(step);
            self.schedule_save();
        }
    }

    /// Waits for what is on its way to the kernel, and saves it all.
    async fn stop(mut self, mut wakers: Wakers) {
        while self.pending > 0
            && let Some(done) = wakers.done.recv().await
        {
            self.handle_done(done).await;
        }
        let last = self.step();
        if let Some(state) = self.state.take() {
            if let Some(step) = self.unsaved.take() {
                state.save_now(*step);
            }
            state.close(last);
        }
    }
}

impl Wakers {
    fn new(done: mpsc::UnboundedReceiver<Done>, questions: mpsc::Receiver<Asked>) -> io::Result<Wakers> {
        let addresses = AddressWatch::new()?;
        Ok(Wakers {
            done,
            questions,
            address_bell: Bell::of(&addresses)?,
            addresses,
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }
}

fn open_state(dir: &Path) -> (Option<State>, Saved, Vec<String>) {
    match State::open(dir) {
        Ok((state, saved)) => {
            let mut troubles = Vec::new();
            if let Some(aside) = &saved.set_aside {
                troubles.push(format!("the state was damaged and is put aside as {}", aside.display()));
                tracing::error!("{}", troubles[0]);
            }
            (Some(state), saved, troubles)
        }
        Err(why) => {
            let trouble = format!("{why}; bans go on, but a restart will not know where it stopped");
            tracing::error!("{trouble}");
            (None, Saved::default(), vec![trouble])
        }
    }
}

fn restore(engine: &mut Engine, standing: Vec<Ban>) {
    if !standing.is_empty() {
        tracing::info!("{} bans stand in the kernel and are kept", standing.len());
    }
    for ban in standing {
        tell::log(&Event::Restored { ban: ban.clone() });
        engine.restore(ban);
    }
}

/// Each log once, and who listens to it.
fn listeners(config: &Config) -> (Vec<Place>, Vec<Vec<Listener>>) {
    let mut by_place: BTreeMap<&Place, Vec<Listener>> = BTreeMap::new();
    for jail in &config.jails {
        for place in &jail.logpath {
            let listener = Listener { jail: jail.terms.name.clone(), rule: jail.rule.clone() };
            by_place.entry(place).or_default().push(listener);
        }
    }
    by_place.into_iter().map(|(place, listeners)| (place.clone(), listeners)).unzip()
}

fn date_of(zone: &TimeZone) -> DateOf {
    let zone = zone.clone();
    Arc::new(move |line| detect::date_of(line, host::now(), &zone))
}

fn longest_findtime(config: &Config) -> Duration {
    config.jails.iter().map(|jail| jail.terms.findtime).max().unwrap_or_default()
}

/// How long it takes at most until the bans of an offender are all forgotten.
fn longest_memory(config: &Config) -> Duration {
    let forget = config
        .jails
        .iter()
        .filter_map(|jail| jail.terms.increment.as_ref())
        .map(|increment| increment.forget);
    forget.max().unwrap_or(FORGET).saturating_mul(OFFENCES_REMEMBERED)
}

fn bad_configuration(faults: Vec<Fault>) -> Stopped {
    Stopped::BadConfiguration(yaml::told(&faults))
}

fn refused(refusal: Refusal) -> Stopped {
    let message = refusal.to_string();
    if refusal == Refusal::NotPermitted { Stopped::NotAllowed(message) } else { Stopped::Failed(message) }
}
