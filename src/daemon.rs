//! The loop: it waits for files, answers, questions, timers and signals, and hands each to who decides.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use ipnet::IpNet;
use jiff::tz::TimeZone;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

use crate::acquire::place::Place;
use crate::audit::Audit;
use crate::bell::Bell;
use crate::config::Config;
use crate::control::{Failed, Response, failed};
use crate::detect::{self, Clock};
use crate::enforcer::{Done, Enforcer, Restore};
use crate::engine::{Engine, Listener, Outcome};
use crate::host::{self, AddressWatch, Services};
use crate::keeper::Keeper;
use crate::knocks;
use crate::model::{Ban, Change, Event, JailName, Kill, Timestamp, plain};
use crate::never;
use crate::nft::Refusal;
use crate::nft::netlink::Netlink;
use crate::nft::news::News;
use crate::repair::Repairs;
use crate::saving::open_state;
use crate::server::{self, Asked};
use crate::sockets::{Cut, Cutter};
use crate::sources::{DateOf, Sources};
use crate::state::{State, Step};
use crate::status::{News as Told, Past};
use crate::tell;
use crate::yaml::{self, Fault};

/// Where the agent finds and keeps things.
#[derive(Clone, Debug)]
pub struct Places {
    pub config: Option<PathBuf>,
    pub socket: PathBuf,
    pub state: PathBuf,
    /// The jail that reads our standard input in place of its logs; when that ends, so do we.
    pub stdin: Option<JailName>,
}

/// Changes how much is written to the agent's own log.
pub type SetLevel = Box<dyn Fn(tracing::Level) + Send>;

/// Why the agent did not start, or ended.
#[derive(Debug)]
pub enum Stopped {
    BadConfiguration(String),
    NotAllowed(String),
    Failed(String),
}

/// Runs until it is told to stop (SIGINT, SIGTERM), or to the end of the standard input it reads. Bans stay in the
/// kernel.
pub fn run(places: &Places, log_level: SetLevel) -> Result<(), Stopped> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Stopped::Failed(format!("cannot start: {}", plain(&error))))?;
    runtime.block_on(async {
        let (daemon, wakers, thread) = Daemon::start(places, log_level).await?;
        daemon.run(wakers).await;
        // The enforcer ends when the last handle is gone, after the work it was given.
        thread.join().map_err(|_| Stopped::Failed("the enforcer ended in a panic".to_owned()))
    })
}

/// So many changes may be on their way to the kernel; the logs wait beyond that, and memory stays bounded.
const PENDING_MAX: usize = 50_000;
/// So many bytes of each log are read before others get their turn.
const TURN_BYTES: usize = 1 << 20;

/// So much news waits for one who watches slowly.
const NEWS_MAX: usize = 1_024;

/// The running agent.
pub struct Daemon {
    pub(crate) places: Places,
    pub(crate) config: Config,
    /// Whom this host cannot do without.
    pub(crate) own: Vec<IpNet>,
    /// Whom an administrator spares by hand.
    pub(crate) ignored: BTreeSet<IpNet>,
    pub(crate) watch: never::Watch,
    pub(crate) zone: TimeZone,
    pub(crate) engine: Engine,
    pub(crate) enforcer: Enforcer,
    pub(crate) sources: Sources,
    cutter: Cutter,
    pub(crate) state: Option<State>,
    /// What the kernel took since the last save.
    pub(crate) taken: Vec<Change>,
    /// What is to be remembered since the last save.
    pub(crate) past: Vec<Past>,
    /// Those who watch hear of everything.
    pub(crate) news: broadcast::Sender<Arc<Told>>,
    pub(crate) keeper: Keeper,
    pub(crate) save_at: Option<Instant>,
    /// A step that the state had no time for yet.
    pub(crate) unsaved: Option<Box<Step>>,
    /// Changes on their way to the kernel.
    pub(crate) pending: usize,
    tickets: u64,
    /// Questions that are answered when the kernel has spoken, by ticket.
    pub(crate) waiting: HashMap<u64, Waiting>,
    pub(crate) troubles: Vec<String>,
    pub(crate) repairs: Repairs,
    pub(crate) audit: Audit,
    /// The kernel lets a table have an owner.
    pub(crate) can_own: bool,
    pub(crate) started: Timestamp,
    pub(crate) log_level: SetLevel,
    /// When the configuration was read.
    pub(crate) loaded: Timestamp,
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
    ruleset: News,
    ruleset_bell: Bell,
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

/// The agent, what wakes it, and the enforcer's thread.
type Started = (Daemon, Wakers, JoinHandle<()>);

impl Daemon {
    async fn start(places: &Places, log_level: SetLevel) -> Result<Started, Stopped> {
        let loaded = host::now();
        let (place, services) = (places.config.as_deref(), Services::of_this_host());
        let mut config =
            Config::load_sound(place, &services, places.stdin.as_ref()).map_err(bad_configuration)?;
        for broken in &config.broken {
            let name = &broken.terms.name;
            broken.faults.iter().for_each(|why| tracing::error!("{name} does not run, the others do: {why}"));
        }
        let listener = server::listen(&places.socket).map_err(Stopped::Failed)?;
        let mut kernel = Netlink::open().map_err(refused)?;
        let can_own = kernel.can_own();
        config.heed(can_own);
        let ruleset = kernel.port().and_then(News::open).map_err(|error| Stopped::Failed(plain(&error)))?;
        let (enforcer, done, thread) = Enforcer::spawn(Box::new(kernel), host::now);
        let own = never::of_this_host(config.ban_local).map_err(|error| Stopped::Failed(plain(&error)))?;
        let mut watch = never::Watch::over(&config.known);
        watch.first_word(&mut config.known).await;
        let (state, saved, troubles) = open_state(&places.state);
        let spared: Vec<IpNet> = own.iter().chain(&saved.ignored).copied().collect();
        let layout = config.layout(&spared);
        let standing = enforcer.install(layout, Restore::AfterReboot(saved.bans)).await.map_err(refused)?;

        let (logs, listeners) = listeners(&config);
        let mut engine = Engine::new(config.terms(), listeners, config.never(&spared), host::secret());
        saved.memories.into_iter().for_each(|memory| engine.restore_memory(memory));
        restore(&mut engine, standing);
        let zone = TimeZone::system();
        let backlog = longest_findtime(&config);
        let sources = Sources::open(&logs, &saved.positions, backlog, host::now(), &date_of(&config, &zone))
            .map_err(|error| Stopped::Failed(plain(&error)))?;

        let (ask, questions) = mpsc::channel(16);
        let news = broadcast::channel(NEWS_MAX).0;
        tokio::spawn(server::serve(listener, ask, news.clone()));
        let wakers = Wakers::new(done, questions, ruleset).map_err(|error| Stopped::Failed(plain(&error)))?;
        let daemon = Daemon {
            places: places.clone(),
            config,
            own,
            ignored: saved.ignored,
            watch,
            zone,
            engine,
            enforcer,
            sources,
            cutter: Cutter::start(),
            state,
            taken: Vec::new(),
            past: Vec::new(),
            news,
            keeper: Keeper::start(places),
            // Where we began, too, must be known to whoever comes after a crash.
            save_at: Some(Instant::now()),
            unsaved: None,
            pending: 0,
            tickets: 0,
            waiting: HashMap::new(),
            troubles,
            repairs: Repairs::default(),
            audit: Audit::default(),
            can_own,
            started: host::now(),
            log_level,
            loaded,
        };
        tracing::info!("{}", tell::screen::truth(&daemon.status(None)));
        Ok((daemon, wakers, thread))
    }

    async fn run(mut self, mut wakers: Wakers) {
        self.spare();
        self.keeper.want(!self.config.notices.is_empty());
        loop {
            // While nothing may be read, what comes in wakes nobody.
            let may_read = self.may_read();
            let more = may_read && self.read_logs();
            if self.sources.have_ended() {
                tracing::info!("standard input ended, all of it was read");
                break;
            }
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
                () = wakers.ruleset_bell.rung() => {
                    if let Some(damage) = wakers.ruleset.take() {
                        self.handle_damage(damage);
                    }
                }
                Some(news) = self.watch.news() => self.handle_news(news).await,
                () = self.sources.changed(), if may_read => {}
                () = sleep_until(wake_at.unwrap_or_else(Instant::now)), if wake_at.is_some() => {}
                () = tokio::task::yield_now(), if more => {}
            }
            self.audit().await;
            self.repair().await;
            self.handle_time();
            self.look().await;
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

    /// Reads what is new in the logs, and asks the kernel for what follows. True where more waits.
    fn read_logs(&mut self) -> bool {
        let now = host::now();
        let mut out = Outcome::default();
        let mut skewed = Vec::new();
        let of_packets = self.sources.of_packets();
        let Daemon { sources, engine, zone, .. } = self;
        let read = sources.read(now, TURN_BYTES, |source, line| {
            if let Some(entry) = line.entry {
                return engine.handle_entry(source, entry, now, &mut out);
            }
            if of_packets.contains(&source)
                && let Some((jail, from, bytes)) = knocks::dropped(line.text)
            {
                engine.handle_dropped(&jail, from, bytes);
            }
            let clock = if line.fresh { Clock::Arrived(now) } else { Clock::Written { now, zone } };
            engine.handle_line(source, line.text, clock, now, &mut out);
            if line.fresh && engine.compare_clocks(source, line.text, now, zone) {
                skewed.push(source);
            }
        });
        if read.lines > 0 {
            self.schedule_save();
        }
        self.follow(out);
        for source in skewed {
            self.skewed(source).into_iter().for_each(|trouble| tracing::warn!("{trouble}"));
        }
        for source in self.engine.take_proxied() {
            self.proxied(source).into_iter().for_each(|trouble| tracing::warn!("{trouble}"));
        }
        read.more
    }

    /// Tells what happened and asks for what is to change.
    pub(crate) fn follow(&mut self, out: Outcome) -> Option<u64> {
        self.announce(&out.events);
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
            return self.handle_lost(done).await;
        }
        let done = Done { taken: self.engine.without_probes(done.taken), ..done };
        let now = host::now();
        let mut out = Outcome::default();
        for change in &done.taken {
            self.engine.handle_taken(change, now, &mut out);
        }
        self.cutter.cut(done.taken.iter().filter_map(|change| self.cut(change)).collect());
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

    /// Whose connections a change ends.
    fn cut(&self, change: &Change) -> Option<Cut> {
        let Change::Ban(Ban { jail, target, .. }) = change else { return None };
        let config = self.config.jails.iter().find(|config| config.terms.name == *jail)?;
        let ports = (config.kill == Kill::Sockets).then(|| config.ports.clone())?;
        Some(Cut { jail: jail.clone(), target: *target, ports })
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
        let audit_at = self.audit.poll_timeout().filter(|_| self.pending == 0);
        let due = [due, self.repairs.poll_timeout(), audit_at].into_iter().flatten().min();
        due.map(|due| Instant::now() + due.since(now)).into_iter().chain(save_at).min()
    }

    /// Saves as soon as a save may be.
    pub(crate) fn save_soon(&mut self) {
        self.save_at = Some(Instant::now());
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
    fn new(
        done: mpsc::UnboundedReceiver<Done>,
        questions: mpsc::Receiver<Asked>,
        ruleset: News,
    ) -> io::Result<Wakers> {
        let addresses = AddressWatch::new()?;
        Ok(Wakers {
            done,
            questions,
            address_bell: Bell::of(&addresses)?,
            addresses,
            ruleset_bell: Bell::of(&ruleset)?,
            ruleset,
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }
}

pub(crate) fn load(places: &Places) -> Result<Config, Vec<Fault>> {
    Config::load_for(places.config.as_deref(), &Services::of_this_host(), places.stdin.as_ref())
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
pub(crate) fn listeners(config: &Config) -> (Vec<Place>, Vec<Vec<Listener>>) {
    let mut by_place: BTreeMap<&Place, Vec<Listener>> = BTreeMap::new();
    for jail in &config.jails {
        for place in &jail.logpath {
            let (rule, zone) = (jail.rule.clone(), jail.zone.clone());
            let listener = Listener { jail: jail.terms.name.clone(), rule, zone };
            by_place.entry(place).or_default().push(listener);
        }
    }
    by_place.into_iter().map(|(place, listeners)| (place.clone(), listeners)).unzip()
}

/// `zone` is this host's, for logs without one of their own.
pub(crate) fn date_of(config: &Config, zone: &TimeZone) -> DateOf {
    let zone = zone.clone();
    let of = |place: &Place| Some((place.clone(), config.zone_of(place)?.clone()));
    let own: BTreeMap<Place, TimeZone> =
        config.jails.iter().flat_map(|jail| &jail.logpath).filter_map(of).collect();
    Arc::new(move |place, line| detect::date_of(line, host::now(), own.get(place).unwrap_or(&zone)))
}

pub(crate) fn longest_findtime(config: &Config) -> Duration {
    config.terms().iter().map(|terms| terms.findtime).max().unwrap_or_default()
}

fn bad_configuration(faults: Vec<Fault>) -> Stopped {
    Stopped::BadConfiguration(yaml::told(&faults))
}

fn refused(refusal: Refusal) -> Stopped {
    let message = refusal.to_string();
    if refusal == Refusal::NotPermitted { Stopped::NotAllowed(message) } else { Stopped::Failed(message) }
}
