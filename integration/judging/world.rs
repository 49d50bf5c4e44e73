//! The engine, the enforcer and a kernel in which time passes, beside a naive model of what they must do.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use ipnet::IpNet;
use jiff::tz::TimeZone;
use nftjail::detect::{Clock, Library, Rule};
use nftjail::enforcer::{Done, Enforcer, Restore};
use nftjail::engine::{Engine, Listener, Outcome};
use nftjail::jail::Terms;
use nftjail::jail::allow::Allow;
use nftjail::model::{
    Ban, Bantime, Cell, Change, Dropped, Event, Failure, JailName, Layout, Memory as Saved, Ports, Target,
    Timestamp,
};
use nftjail::nft::memory::Memory;
use nftjail::nft::plan;
use nftjail::nft::table::{Element, Key, Table};
use nftjail::nft::transaction::{Operation, Transaction};
use nftjail::nft::{Firewall, Refusal};
use tokio::sync::mpsc::UnboundedReceiver;

use super::naive::{About, Law, Naive, court_end};

const START: i64 = 1_795_255_200_000;

/// The enforcer takes its clock as a plain function: one world at a time may turn this one.
static NOW: AtomicI64 = AtomicI64::new(START);
static TURN: Mutex<()> = Mutex::new(());

fn now() -> Timestamp {
    Timestamp::from_millis(NOW.load(Ordering::SeqCst))
}

const ABOUT: &str = "(?: user=(?P<user>[a-z]+))?(?: path=<PATH>)?";

/// One rule for each jail that listens to lines, since each hears its own program.
fn rules() -> &'static [(&'static str, Arc<Rule>)] {
    static RULES: OnceLock<Vec<(&str, Arc<Rule>)>> = OnceLock::new();
    RULES.get_or_init(|| {
        let compile = |name: &'static str| {
            let text = format!(
                "rule: {name}\nabout: x\nformat: syslog\nprogram: [{name}]\nfailregex:\n  - '^bad{ABOUT} <HOST>$'\n  \
                 - '^<COUNT> bad{ABOUT} <HOST>$'\n  - {{regex: '^worst{ABOUT} <HOST>$', bantime: 5m}}\n\
                 successregex: ['^good{ABOUT} <HOST>$']\nsamples:\n  \
                 - {{line: '2026-11-21T10:00:00Z h {name}[1]: bad 192.0.2.1', addr: 192.0.2.1}}\n  \
                 - {{line: '2026-11-21T10:00:00Z h {name}[1]: good 192.0.2.1'}}\n  \
                 - {{line: '2026-11-21T10:00:00Z h {name}[1]: bad 192.0.2.9 192.0.2.1', hostile: true}}\n"
            );
            let mut library = Library::default();
            library.add(&format!("{name}.yaml"), &text);
            (name, Arc::new(library.compile(name, None).unwrap_or_else(|bad| panic!("{bad}"))))
        };
        ["mail", "sshd", "web"].map(compile).to_vec()
    })
}

/// A kernel in which time passes, and which may refuse everything once.
#[derive(Default)]
pub struct Kernel {
    memory: Memory,
    pub refuses: bool,
}

#[derive(Clone, Default)]
pub struct Shared(Arc<Mutex<Kernel>>);

impl Shared {
    pub fn kernel(&self) -> MutexGuard<'_, Kernel> {
        self.0.lock().unwrap()
    }

    /// Every element comes so much closer to its end; those that are there are gone.
    fn pass(&self, time: Duration) {
        let mut kernel = self.kernel();
        let table = kernel.memory.table(true).unwrap().unwrap();
        let mut transaction = Transaction::default();
        for set in table.sets.into_iter().filter(|set| set.timeout && !set.elements.is_empty()) {
            let left = set.elements.into_iter().filter_map(|element| match element.expires {
                None => Some(element),
                Some(expires) if expires <= time => None,
                Some(expires) => Some(Element { expires: Some(expires - time), ..element }),
            });
            let elements = left.collect();
            transaction.push(Operation::FlushSet(set.name.clone()));
            transaction.push(Operation::AddElements { set: set.name, elements });
        }
        kernel.memory.commit(&transaction).unwrap();
    }

    /// What it holds, and the time left of each.
    pub fn holds(&self) -> BTreeMap<(JailName, Target), Option<Duration>> {
        let table = self.kernel().memory.table(true).unwrap().unwrap();
        table.standing().map(|ban| ((ban.jail, ban.target), ban.expires)).collect()
    }
}

impl Firewall for Shared {
    fn commit(&mut self, transaction: &Transaction) -> Result<(), Refusal> {
        let mut kernel = self.kernel();
        match std::mem::take(&mut kernel.refuses) {
            true => Err(Refusal::NotPermitted),
            false => kernel.memory.commit(transaction),
        }
    }

    fn table(&mut self, elements: bool) -> Result<Option<Table>, Refusal> {
        self.kernel().memory.table(elements)
    }

    fn dropped(&mut self) -> Result<BTreeMap<JailName, Dropped>, Refusal> {
        self.kernel().memory.dropped()
    }

    fn element(&mut self, set: &str, key: Key) -> Result<Option<Element>, Refusal> {
        self.kernel().memory.element(set, key)
    }

    fn elements(&mut self, set: &str) -> Result<Vec<Element>, Refusal> {
        self.kernel().memory.elements(set)
    }
}

/// What a line says.
#[derive(Clone, Copy, Debug)]
pub enum Attempt {
    Bad,
    Count(u32),
    /// Bans for a time of its own.
    Worst,
}

/// The engine, the enforcer and a kernel beside the naive model of them; changes wait at both ends of the kernel.
pub struct World {
    pub engine: Engine,
    enforcer: Enforcer,
    answers: UnboundedReceiver<Done>,
    pub kernel: Shared,
    layout: Layout,
    pub naive: Naive,
    /// What the kernel holds, by its own answers: the end of each ban.
    held: BTreeMap<(JailName, Target), Option<Timestamp>>,
    /// Not yet with the kernel; true where it was asked for by hand.
    asked: VecDeque<(Change, bool)>,
    /// Taken or refused, but the engine does not know.
    answered: VecDeque<Done>,
    saved: BTreeMap<(JailName, Target), Saved>,
    _turn: MutexGuard<'static, ()>,
}

fn engine(laws: &[Law]) -> Engine {
    let terms = laws.iter().map(|law| Terms {
        name: law.name.parse().unwrap(),
        maxretry: law.maxretry,
        findtime: law.findtime,
        distinct: law.distinct,
        user_addrs: law.user_addrs,
        friend_for: law.friend_for,
        bantime: law.bantime,
        increment: law.increment.clone(),
        ignoreip: Allow::new(&law.ignoreip),
        hears_bans: law.hears_bans,
        prefix: law.prefix.clone(),
        extend_on_knock: None,
    });
    let heard = rules().iter().filter(|(name, _)| laws.iter().any(|law| law.name == *name));
    let listeners =
        heard.map(|(name, rule)| Listener { jail: name.parse().unwrap(), rule: rule.clone(), zone: None });
    Engine::new(terms.collect(), vec![listeners.collect()], Allow::default(), 7)
}

impl World {
    pub fn new(laws: &[Law], capacity: u32) -> World {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        NOW.store(START, Ordering::SeqCst);
        let cell = |law: &Law| Cell {
            jail: law.name.parse().unwrap(),
            ports: Ports::All,
            capacity,
            block: nftjail::model::Block::Drop,
            hooks: [nftjail::model::Hook::Prerouting].into(),
            knock: nftjail::model::Knock::default(),
        };
        let layout = Layout { cells: laws.iter().map(cell).collect(), ..Layout::default() };
        let kernel = Shared::default();
        kernel.kernel().memory.commit(&plan::install(&layout, None, &[])).unwrap();
        let (enforcer, answers, _) = Enforcer::spawn(Box::new(kernel.clone()), now);
        World {
            engine: engine(laws),
            enforcer,
            answers,
            kernel,
            layout,
            naive: Naive::new(laws),
            held: BTreeMap::new(),
            asked: VecDeque::new(),
            answered: VecDeque::new(),
            saved: BTreeMap::new(),
            _turn: turn,
        }
    }

    /// What the engine asked for is what the model asks for.
    fn follow(&mut self, out: Outcome, expected: Vec<Change>) {
        assert_eq!(out.changes, expected);
        self.asked.extend(out.changes.into_iter().map(|change| (change, false)));
    }

    pub fn fail(&mut self, jail: &str, addr: &str, attempt: Attempt, age: i64) {
        self.fail_as(jail, addr, attempt, About::default(), age);
    }

    /// A line that was written `age` milliseconds ago is read. One from the future counts now.
    pub fn fail_as(&mut self, jail: &str, addr: &str, attempt: Attempt, about: About, age: i64) {
        let Some(court) = self.naive.courts.iter().position(|court| court.law.name == jail) else { return };
        let (verb, weight, bantime) = match attempt {
            Attempt::Bad => ("bad".to_owned(), 1, None),
            Attempt::Count(count) => (format!("{count} bad"), count, None),
            Attempt::Worst => ("worst".to_owned(), 1, Some(Bantime::For(Duration::from_secs(300)))),
        };
        let (at, out) = self.line(jail, &verb, about, addr, age);
        let failure = Failure { addr: addr.parse().unwrap(), at, weight, bantime, user: None, path: None };
        let expected = self.naive.fail(court, &failure, about, now());
        self.follow(out, expected.into_iter().map(Change::Ban).collect());
    }

    /// Somebody logs in, and nothing follows at once.
    pub fn succeed(&mut self, jail: &str, addr: &str, about: About, age: i64) {
        let Some(court) = self.naive.courts.iter().position(|court| court.law.name == jail) else { return };
        let (at, out) = self.line(jail, "good", about, addr, age);
        assert_eq!(out, Outcome::default());
        self.naive.succeed(court, addr.parse().unwrap(), about.user, at);
    }

    /// When a line counts, and what follows from it.
    fn line(&mut self, jail: &str, verb: &str, about: About, addr: &str, age: i64) -> (Timestamp, Outcome) {
        let written = Timestamp::from_millis(now().as_millis() - age);
        let user = about.user.map(|user| format!(" user={user}")).unwrap_or_default();
        let path = about.path.map(|path| format!(" path={path}")).unwrap_or_default();
        let line = format!("{written} h {jail}[1]: {verb}{user}{path} {addr}");
        let clock = Clock::Written { now: now(), zone: &TimeZone::UTC };
        let mut out = Outcome::default();
        self.engine.handle_line(0, line.as_bytes(), clock, now(), &mut out);
        (written.min(now()), out)
    }

    pub fn now(&self) -> Timestamp {
        now()
    }

    pub fn pass(&mut self, time: Duration) {
        NOW.store(now().plus(time).as_millis(), Ordering::SeqCst);
        self.kernel.pass(time);
        self.held.retain(|_, end| end.is_none_or(|end| end > now()));
        self.handle_timeout();
    }

    fn handle_timeout(&mut self) {
        let mut out = Outcome::default();
        self.engine.handle_timeout(now(), &mut out);
        assert!(out.changes.is_empty(), "the kernel ends bans by itself");
        let ended = out.events.iter().map(|event| match event {
            Event::Ended { ban } => (ban.jail.clone(), ban.target),
            other => panic!("{other:?}"),
        });
        assert_eq!(ended.collect::<BTreeSet<_>>(), self.naive.pass(now()));
    }

    /// The enforcer gives what waits to the kernel, at most so many in one transaction.
    pub fn turn(&mut self, most: usize) {
        let turn: Vec<(Change, bool)> = self.asked.drain(..most.min(self.asked.len())).collect();
        if turn.is_empty() {
            return;
        }
        let refuses = self.kernel.kernel().refuses;
        let before = self.held.clone();
        self.enforcer.apply(0, turn.iter().map(|(change, _)| change.clone()).collect());
        let done = self.answers.blocking_recv().unwrap();
        let mut taken = done.taken.iter().peekable();
        for (change, by_hand) in &turn {
            if taken.next_if(|taken| *taken == change).is_some() {
                self.hold(change, *by_hand);
            }
        }
        assert_eq!(taken.next(), None);
        for (change, why) in &done.refused {
            let over = matches!(change, Change::Ban(ban) if ban.end().is_some_and(|end| end <= now()));
            let full = why.contains("is full") && !self.fits(&before, &turn, change);
            let is_kept = |(other, _): &(Change, String)| {
                matches!(other, Change::Ban(_))
                    && other.jail() == change.jail()
                    && other.target().covers(change.target())
            };
            let kept = change.target().is_network() && done.refused.iter().any(is_kept);
            assert!(over || full || kept || refuses, "{change:?}: {why}");
        }
        self.answered.push_back(done);
    }

    /// Whether all that a turn adds to the set of `change` has room in it, or it is a release of what is held.
    fn fits(
        &self,
        before: &BTreeMap<(JailName, Target), Option<Timestamp>>,
        turn: &[(Change, bool)],
        change: &Change,
    ) -> bool {
        let key = |change: &Change| (change.jail().clone(), change.target());
        if matches!(change, Change::Release { .. }) && before.contains_key(&key(change)) {
            return true;
        }
        let keys = before.keys().cloned().chain(turn.iter().map(|(change, _)| key(change)));
        let set = plan::set_name(change.jail(), change.target());
        let same = |(jail, target): &(JailName, Target)| plan::set_name(jail, *target) == set;
        keys.filter(same).collect::<BTreeSet<_>>().len() <= self.layout.cells[0].capacity as usize
    }

    /// Believes for the kernel what it took. Only a human may shorten a ban.
    fn hold(&mut self, change: &Change, by_hand: bool) {
        let key = (change.jail().clone(), change.target());
        let Change::Ban(ban) = change else {
            self.held.remove(&key);
            return;
        };
        let old = self.held.insert(key, ban.end());
        let longer = match (old, ban.end()) {
            (None, _) | (Some(_), None) => true,
            (Some(None), Some(_)) => false,
            (Some(Some(old)), Some(new)) => old <= new,
        };
        assert!(longer || by_hand, "{ban:?} ends before {old:?}");
    }

    /// The engine hears what became of the oldest turn.
    pub fn answer(&mut self) {
        let Some(done) = self.answered.pop_front() else { return };
        let (mut out, mut expected) = (Outcome::default(), Vec::new());
        for change in &done.taken {
            self.engine.handle_taken(change, now(), &mut out);
            expected.extend(self.naive.taken(change, now()));
        }
        for (change, why) in &done.refused {
            self.engine.handle_refused(change, why, &mut out);
            self.naive.answered(change);
        }
        self.follow(out, expected);
        self.handle_timeout();
    }

    pub fn ban_by_hand(&mut self, jail: &str, target: Target, bantime: Bantime) {
        let Some(court) = self.naive.courts.iter().position(|court| court.law.name == jail) else { return };
        let name: JailName = jail.parse().unwrap();
        let ban = Ban { jail: name.clone(), target, at: now(), bantime };
        let asked = self.engine.handle_ban(&name, &[target], bantime, now()).ok();
        let spared = self.naive.spares(court, target);
        let expected = self.naive.courts[court].changes_for(&ban).filter(|_| !spared);
        assert_eq!(asked, expected);
        if let Some(changes) = asked {
            self.naive.courts[court].asked.push(ban);
            self.asked.extend(changes.into_iter().map(|change| (change, true)));
        }
    }

    /// One jail's ban is lifted, as `nftjail unban --jail` would.
    pub fn release_by_hand(&mut self, jail: &str, target: Target) {
        let name: JailName = jail.parse().unwrap();
        let held = self.engine.jail(&name).filter(|jail| jail.ban(target).is_some());
        if held.is_some_and(|jail| !jail.is_taken_over(target)) {
            self.asked.push_back((Change::Release { jail: name, target }, true));
        }
    }

    pub fn spare(&mut self, never: Vec<IpNet>) {
        let out = self.engine.handle_never(Allow::new(&never));
        let expected = self.naive.spare(never);
        let lifted = out.changes.iter().map(|change| match change {
            Change::Release { jail, target } => (jail.clone(), *target),
            ban => panic!("{ban:?}"),
        });
        assert_eq!(lifted.collect::<BTreeSet<_>>(), expected);
        self.asked.extend(out.changes.into_iter().map(|change| (change, false)));
    }

    /// All that is in flight comes down.
    pub fn settle(&mut self) {
        while !self.asked.is_empty() || !self.answered.is_empty() {
            self.turn(usize::MAX);
            self.answer();
        }
    }

    /// The agent ends, and a new one adopts what was saved and what the kernel holds.
    pub fn restart(&mut self) {
        self.settle();
        self.kernel.kernel().refuses = false;
        self.naive.courts.iter_mut().for_each(|court| court.restart(now()));
        self.save();
        let laws: Vec<Law> = self.naive.courts.iter().map(|court| court.law.clone()).collect();
        self.engine = engine(&laws);
        self.naive.restart();
        self.saved.values().for_each(|memory| self.engine.restore_memory(memory.clone()));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let install = self.enforcer.install(self.layout.clone(), Restore::AfterReboot(Vec::new()));
        runtime.block_on(install).unwrap().into_iter().for_each(|ban| self.engine.restore(ban));
        let never = self.naive.never.clone();
        self.spare(never);
    }

    fn save(&mut self) {
        let unsaved = self.engine.take_unsaved();
        self.saved.extend(unsaved.into_iter().map(|memory| ((memory.jail.clone(), memory.target), memory)));
    }

    /// Believed is what the model believes; held is what was taken; and both are one where nothing is in flight.
    pub fn check(&self) {
        let flying: BTreeSet<(JailName, Target)> = (self.asked.iter().map(|(change, _)| change))
            .chain(self.answered.iter().flat_map(|done| &done.taken))
            .map(|change| (change.jail().clone(), change.target()))
            .collect();
        let mut believed = BTreeMap::new();
        let mut next = None;
        for (jail, court) in self.engine.jails().iter().zip(&self.naive.courts) {
            let ends = |ban: &Ban| (ban.target, ban.end());
            let ours: Vec<_> = jail.bans().map(ends).collect();
            assert_eq!(ours, court.bans.values().map(ends).collect::<Vec<_>>(), "{}", court.law.name);
            // The kernel drops a network when its ban ends, and the jail believes it a little longer.
            let stands = |ban: &&Ban| ban.end().is_none_or(|end| end > now());
            let standing = jail.bans().filter(stands);
            believed.extend(standing.map(|ban| ((ban.jail.clone(), ban.target), ban.end())));
            next = next.into_iter().chain(court.bans.values().filter_map(court_end)).min();
        }
        assert_eq!(self.engine.poll_timeout(), next);
        let left = |end: &Option<Timestamp>| end.map(|end| end.since(now()));
        let held: BTreeMap<_, _> = self.held.iter().map(|(key, end)| (key.clone(), left(end))).collect();
        assert_eq!(self.kernel.holds(), held);
        let landed = |bans: &BTreeMap<(JailName, Target), Option<Timestamp>>| {
            let landed = bans.iter().filter(|(key, _)| !flying.contains(key));
            landed.map(|(key, end)| (key.clone(), *end)).collect::<BTreeMap<_, _>>()
        };
        assert_eq!(landed(&believed), landed(&self.held));
    }
}
