//! Owns the firewall on a thread of its own: one transaction a turn, refusals by name, nothing believed unasked.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use crate::held::{Found, Held, Looks, Seen, Watched, Who};
use crate::model::{Ban, Bantime, Change, Dropped, JailName, Layout, Target, Timestamp};
use crate::nft::news::Damage;
use crate::nft::plan;
use crate::nft::table::Standing;
use crate::nft::transaction::Operation;
use crate::nft::{Firewall, Refusal};

/// Work for the enforcer; it is done in order.
enum Job {
    Apply { ticket: u64, changes: Vec<Change> },
    Install { layout: Layout, restore: Restore, reply: oneshot::Sender<Result<Vec<Ban>, Refusal>> },
    Dropped { reply: oneshot::Sender<Result<BTreeMap<JailName, Dropped>, Refusal>> },
    Look { jail: JailName, target: Target, reply: oneshot::Sender<Result<Option<Found>, Refusal>> },
    Audit { layout: Layout, sample: Sample, reply: oneshot::Sender<Result<Damage, Refusal>> },
    Knocks { looks: Looks, reply: oneshot::Sender<Result<Held, Refusal>> },
    Seen { jails: Vec<JailName>, reply: oneshot::Sender<Result<BTreeMap<Who, Seen>, Refusal>> },
}

/// Bans to look up one by one, and how many there are.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    pub bans: Vec<Ban>,
    /// How many bans of each jail the kernel must hold at the least.
    pub counts: BTreeMap<JailName, usize>,
    /// The sample is every ban there is.
    pub whole: bool,
}

/// Bans to put in with a layout.
#[derive(Clone, Debug)]
pub enum Restore {
    /// These, where the kernel holds no table of ours: the machine was restarted.
    AfterReboot(Vec<Ban>),
    /// Those of these whose sets are not in the kernel, or not as they should be. The other sets are not read: that
    /// would take long where they are large.
    Lost(Vec<Ban>),
    /// All of these, each with the time it has left, whatever the kernel holds.
    All(Vec<Ban>),
}

/// What became of the changes of one ticket.
#[derive(Debug)]
pub struct Done {
    pub ticket: u64,
    pub taken: Vec<Change>,
    pub refused: Vec<(Change, String)>,
    /// The refused ones met no table, set or chain of ours: somebody removed it.
    pub lost: bool,
}

/// The handle: sends work, never waits for it.
#[derive(Clone)]
pub struct Enforcer {
    jobs: Sender<Job>,
}

impl Enforcer {
    /// Starts the thread. It ends when the last handle is dropped, after the work it was given.
    pub fn spawn(
        firewall: Box<dyn Firewall>,
        now: fn() -> Timestamp,
    ) -> (Enforcer, mpsc::UnboundedReceiver<Done>, thread::JoinHandle<()>) {
        let (jobs, work) = channel();
        let (done, answers) = mpsc::unbounded_channel();
        let mut worker = Worker { firewall, now, done, watched: Watched::default() };
        let thread = thread::Builder::new()
            .name("enforcer".to_owned())
            .spawn(move || worker.run(&work))
            .expect("a thread can be started");
        (Enforcer { jobs }, answers, thread)
    }

    /// Asks for changes; [`Done`] with this ticket says what became of them.
    pub fn apply(&self, ticket: u64, changes: Vec<Change>) {
        self.send(Job::Apply { ticket, changes });
    }

    /// Makes the kernel hold `layout`. Returns the bans of an earlier agent that stand in it, and the restored, after
    /// [`Restore::AfterReboot`]; otherwise the networks that stand in it and are not among the bans to put in.
    pub async fn install(&self, layout: Layout, restore: Restore) -> Result<Vec<Ban>, Refusal> {
        let (reply, answer) = oneshot::channel();
        self.send(Job::Install { layout, restore, reply });
        answer.await.expect("the enforcer answers before it ends")
    }

    pub async fn dropped(&self) -> Result<BTreeMap<JailName, Dropped>, Refusal> {
        let (reply, answer) = oneshot::channel();
        self.send(Job::Dropped { reply });
        answer.await.expect("the enforcer answers before it ends")
    }

    /// One ban, as the kernel holds it; none where it does not.
    pub async fn look(&self, jail: JailName, target: Target) -> Result<Option<Found>, Refusal> {
        let (reply, answer) = oneshot::channel();
        self.send(Job::Look { jail, target, reply });
        answer.await.expect("the enforcer answers before it ends")
    }

    /// Compares what the kernel holds with `layout` and the bans of `sample`. No set is read whole.
    pub async fn audit(&self, layout: Layout, sample: Sample) -> Result<Damage, Refusal> {
        let (reply, answer) = oneshot::channel();
        self.send(Job::Audit { layout, sample, reply });
        answer.await.expect("the enforcer answers before it ends")
    }

    /// For how long each of the unsure is held beyond the end of its ban, if it is.
    pub async fn knocks(&self, looks: Looks) -> Result<Held, Refusal> {
        let (reply, answer) = oneshot::channel();
        self.send(Job::Knocks { looks, reply });
        answer.await.expect("the enforcer answers before it ends")
    }

    /// What the kernel knows of the bans of these jails beside their ends. Their sets are read whole, and changes wait
    /// meanwhile: 0.2 s for 100,000 bans.
    pub async fn seen(&self, jails: Vec<JailName>) -> Result<BTreeMap<Who, Seen>, Refusal> {
        let (reply, answer) = oneshot::channel();
        self.send(Job::Seen { jails, reply });
        answer.await.expect("the enforcer answers before it ends")
    }

    fn send(&self, job: Job) {
        self.jobs.send(job).expect("the enforcer lives as long as its handle");
    }
}

/// So many changes go into one transaction at the most: about 20 ms of the kernel's time.
const TURN_CHANGES_MAX: usize = 10_000;

/// A timer in the kernel that differs from what is believed by more was changed by somebody, or the clock was.
const TIMER_DIFFERS: Duration = Duration::from_secs(2);

/// Why a ban was not asked for.
const OVER: &str = "it was over before the kernel could be asked";

/// What works on the thread.
pub(crate) struct Worker {
    pub(crate) firewall: Box<dyn Firewall>,
    pub(crate) now: fn() -> Timestamp,
    done: mpsc::UnboundedSender<Done>,
    pub(crate) watched: Watched,
}

impl Worker {
    fn run(&mut self, work: &Receiver<Job>) {
        let mut next = work.recv().ok();
        while let Some(job) = next.take() {
            match job {
                Job::Apply { ticket, changes } => next = self.turn(work, ticket, changes),
                Job::Install { layout, restore, reply } => {
                    // A receiver that is gone has given up waiting: nobody is left to tell.
                    let _ = reply.send(self.install(&layout, &restore));
                }
                Job::Dropped { reply } => {
                    let _ = reply.send(self.firewall.dropped());
                }
                Job::Look { jail, target, reply } => {
                    let _ = reply.send(self.find(&jail, target));
                }
                Job::Audit { layout, sample, reply } => {
                    let _ = reply.send(self.audit(&layout, &sample));
                }
                Job::Knocks { looks, reply } => {
                    let _ = reply.send(self.knocks(&looks));
                }
                Job::Seen { jails, reply } => {
                    let _ = reply.send(self.seen(&jails));
                }
            }
            if next.is_none() {
                next = work.recv().ok();
            }
        }
    }

    /// One turn: all changes that wait, in one transaction. Returns the other job it came upon, if any.
    fn turn(&mut self, work: &Receiver<Job>, ticket: u64, changes: Vec<Change>) -> Option<Job> {
        let mut tickets = vec![(ticket, changes.len())];
        let mut all = changes;
        let mut other = None;
        while all.len() < TURN_CHANGES_MAX {
            match work.try_recv() {
                Ok(Job::Apply { ticket, changes }) => {
                    tickets.push((ticket, changes.len()));
                    all.extend(changes);
                }
                Ok(job) => {
                    other = Some(job);
                    break;
                }
                Err(_) => break,
            }
        }
        let (verdicts, lost) = self.commit(&all);
        let mut judged = all.into_iter().zip(verdicts);
        for (ticket, count) in tickets {
            let mut done = Done { ticket, taken: Vec::new(), refused: Vec::new(), lost };
            for (change, verdict) in judged.by_ref().take(count) {
                match verdict {
                    None => done.taken.push(change),
                    Some(why) => done.refused.push((change, why)),
                }
            }
            // The daemon that is gone has no use for the answer; the kernel holds what it holds.
            let _ = self.done.send(done);
        }
        other
    }

    /// Commits what the kernel takes and leaves out what it refuses. For each change, why it was refused;
    /// and whether that was because our table is not there.
    fn commit(&mut self, changes: &[Change]) -> (Vec<Option<String>>, bool) {
        let now = (self.now)();
        // The plan leaves these out, so that nobody may believe that they replaced what stands.
        let over = |change: &Change| match change {
            Change::Ban(ban) => ban.end().filter(|end| *end <= now).map(|_| OVER.to_owned()),
            Change::Release { .. } => None,
        };
        let mut verdicts: Vec<Option<String>> = changes.iter().map(over).collect();
        let mut left: Vec<usize> = (0..changes.len()).filter(|index| verdicts[*index].is_none()).collect();
        let mut at_once = 1;
        while !left.is_empty() {
            let asked: Vec<Change> = left.iter().map(|index| changes[*index].clone()).collect();
            // What cannot be read is counted anew.
            let counted = self.counted(&asked).unwrap_or_default();
            let transaction = plan::apply_counting(&asked, now, &counted);
            let Err(refusal) = self.firewall.commit(&transaction) else {
                let released = asked.iter().filter(|change| matches!(change, Change::Release { .. }));
                // Whom this leaves held, the look that follows each release finds.
                released.for_each(|change| drop(self.let_go(change.jail(), change.target())));
                break;
            };
            let why = Some(refusal.to_string());
            let lost = matches!(refusal, Refusal::Missing { .. });
            let Some(first) = refusal.change(&transaction).filter(|_| !lost) else {
                left.iter().for_each(|index| verdicts[*index] = why.clone());
                return (verdicts, lost);
            };
            let is_full = matches!(refusal, Refusal::Full { .. });
            let overlaps = matches!(refusal, Refusal::Overlaps { .. });
            let key = |change: &Change| (change.jail().clone(), change.target());
            match &asked[first] {
                // Only what is not in a full set, or overlaps what is, cannot be released from it: the release is true
                // already, and with it what was asked for the same target before.
                release @ Change::Release { .. } if is_full || overlaps => {
                    let last = left[first];
                    left.retain(|index| *index > last || key(&changes[*index]) != key(release));
                }
                // A full set refuses one ban after the other: leaving out twice as many each time ends soon.
                _ => {
                    let most = if overlaps { 1 } else { at_once };
                    for index in refused_with(&asked, first, most) {
                        verdicts[left[index]] = why.clone();
                    }
                    left.retain(|index| verdicts[*index].is_none());
                    at_once *= 2;
                }
            }
        }
        (verdicts, false)
    }

    fn install(&mut self, layout: &Layout, restore: &Restore) -> Result<Vec<Ban>, Refusal> {
        self.watched = Watched::of(layout);
        let now = (self.now)();
        let adopts = matches!(restore, Restore::AfterReboot(_));
        let found = self.firewall.table(adopts)?;
        let wanted = |jail: &JailName| layout.cells.iter().any(|cell| cell.jail == *jail);
        let lasting = |bans: &[Ban]| -> Vec<Standing> {
            bans.iter().filter(|ban| wanted(&ban.jail)).filter_map(|ban| left(ban, now)).collect()
        };
        // Networks are read even where hosts are not.
        let strangers = |bans: &[Ban]| -> Vec<Ban> {
            let known: BTreeSet<(&JailName, Target)> =
                bans.iter().map(|ban| (&ban.jail, ban.target)).collect();
            let held = found.iter().flat_map(|table| table.standing());
            let nets = held.filter(|ban| ban.target.is_network() && wanted(&ban.jail));
            nets.filter(|net| !known.contains(&(&net.jail, net.target))).map(|net| ban(&net, now)).collect()
        };
        match restore {
            Restore::AfterReboot(bans) => {
                let kept: Vec<Standing> = match &found {
                    Some(table) => table.standing().filter(|ban| wanted(&ban.jail)).collect(),
                    None => lasting(bans),
                };
                self.firewall.commit(&plan::install(layout, found.as_ref(), &kept))?;
                Ok(kept.iter().map(|standing| ban(standing, now)).collect())
            }
            Restore::Lost(bans) => {
                self.firewall.commit(&plan::mend(layout, found.as_ref(), lasting(bans)))?;
                Ok(strangers(bans))
            }
            Restore::All(bans) => {
                self.firewall.commit(&plan::mend(layout, found.as_ref(), lasting(bans)))?;
                let again: Vec<Change> = bans.iter().cloned().map(Change::Ban).collect();
                // What a full set refuses now, the next audit finds missing.
                again.chunks(TURN_CHANGES_MAX).for_each(|some| drop(self.commit(some)));
                Ok(strangers(bans))
            }
        }
    }

    /// What is otherwise than it should be. Where a ban of the sample is, others may be as well.
    fn audit(&mut self, layout: &Layout, sample: &Sample) -> Result<Damage, Refusal> {
        let found = self.firewall.table(false)?;
        let repair = plan::mend(layout, found.as_ref(), Vec::new());
        // A table that has an owner is always owned again, whether there is anything to do or not.
        let is_work = |operation: &Operation| !matches!(operation, Operation::AddTable { .. });
        let structure = repair.operations().iter().any(is_work);
        let counts = found.map(|table| table.counts).unwrap_or_default();
        let held = |jail: &JailName| {
            let count = |suffix: &str| counts.get(&format!("{jail}_{suffix}")).map(|count| *count as usize);
            Some(count("v4")? + count("v6")?)
        };
        let short = |(jail, least): (&JailName, &usize)| held(jail).is_some_and(|held| held < *least);
        let mut damage = Damage { structure, missed: sample.counts.iter().any(short), ..Damage::default() };
        for ban in &sample.bans {
            let now = (self.now)();
            let Some(believed) =
                left(ban, now).filter(|left| left.expires.is_none_or(|left| left > TIMER_DIFFERS))
            else {
                continue;
            };
            let held = self.firewall.remaining(&ban.jail, ban.target)?;
            let stands = held.is_some_and(|held| alike(held.expires, believed.expires));
            if !stands && self.held(&ban.jail, ban.target)?.is_none() {
                damage.touched.insert((ban.jail.clone(), ban.target));
            }
        }
        damage.missed |= !sample.whole && !damage.touched.is_empty();
        Ok(damage)
    }
}

/// Whether two bans end at about the same time, or both never.
fn alike(held: Option<Duration>, believed: Option<Duration>) -> bool {
    match (held, believed) {
        (Some(held), Some(believed)) => held.abs_diff(believed) <= TIMER_DIFFERS,
        (held, believed) => held == believed,
    }
}

/// Which changes to leave out where `first` was refused: it, and as many of its kind after it as `most` says. Those
/// that a refused network was to take over are not released either.
fn refused_with(asked: &[Change], first: usize, most: usize) -> Vec<usize> {
    let is_ban = |change: &Change| matches!(change, Change::Ban(_));
    let kind = |change: &Change| (is_ban(change), plan::set_name(change.jail(), change.target()));
    let alike = |index: &usize| kind(&asked[*index]) == kind(&asked[first]);
    let mut refused: Vec<usize> = (first..asked.len()).filter(alike).take(most).collect();
    let nets: Vec<Target> =
        refused.iter().map(|index| asked[*index].target()).filter(|target| target.is_network()).collect();
    let stays = |index: &usize| {
        let change = &asked[*index];
        !is_ban(change)
            && change.jail() == asked[first].jail()
            && change.target().is_network()
            && nets.iter().any(|net| net.covers(change.target()))
    };
    refused.extend((0..asked.len()).filter(stays));
    refused
}

/// What is left of a ban; none where it is over.
fn left(ban: &Ban, now: Timestamp) -> Option<Standing> {
    let (timeout, expires) = match ban.bantime {
        Bantime::Forever => (None, None),
        Bantime::For(whole) => {
            (Some(whole), Some(ban.at.plus(whole).since(now)).filter(|left| !left.is_zero()))
        }
    };
    let over = timeout.is_some() && expires.is_none();
    (!over).then(|| Standing { jail: ban.jail.clone(), target: ban.target, timeout, expires })
}

/// The ban that the kernel holds, as it was decided.
pub fn ban(standing: &Standing, now: Timestamp) -> Ban {
    let (at, bantime) = match standing.timeout {
        None => (now, Bantime::Forever),
        Some(whole) => {
            let passed = whole.saturating_sub(standing.expires.unwrap_or(whole));
            (now.minus(passed), Bantime::For(whole))
        }
    };
    Ban { jail: standing.jail.clone(), target: standing.target, at, bantime }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Block, Cell, Hook, Knock, Ports};
    use crate::nft::banned::knock_set;
    use crate::nft::memory::Memory;
    use crate::nft::table::{Element, Key};
    use crate::nft::transaction::Transaction;

    fn now() -> Timestamp {
        Timestamp::from_millis(1_000_000)
    }

    fn layout(capacity: u32) -> Layout {
        let hooks = [Hook::Prerouting].into();
        let jail = "sshd".parse().unwrap();
        let cell =
            Cell { jail, ports: Ports::All, block: Block::Drop, hooks, capacity, knock: Knock::default() };
        Layout { cells: vec![cell], ..Layout::default() }
    }

    fn changes(addresses: std::ops::Range<u8>) -> Vec<Change> {
        let ban = |n| Ban {
            jail: "sshd".parse().unwrap(),
            target: format!("192.0.2.{n}").parse().unwrap(),
            at: now(),
            bantime: Bantime::For(Duration::from_secs(60)),
        };
        addresses.map(|n| Change::Ban(ban(n))).collect()
    }

    fn worker(capacity: u32) -> (Worker, mpsc::UnboundedReceiver<Done>) {
        let (done, answers) = mpsc::unbounded_channel();
        let watched = Watched::default();
        let mut worker = Worker { firewall: Box::new(Memory::default()), now, done, watched };
        worker.install(&layout(capacity), &Restore::Lost(Vec::new())).unwrap();
        (worker, answers)
    }

    #[test]
    fn each_ticket_hears_of_its_own_changes() {
        let (mut worker, mut answers) = worker(100);
        let (jobs, work) = channel();
        jobs.send(Job::Apply { ticket: 2, changes: changes(5..7) }).unwrap();
        assert!(worker.turn(&work, 1, changes(0..3)).is_none());
        let (first, second) = (answers.try_recv().unwrap(), answers.try_recv().unwrap());
        assert_eq!((first.ticket, first.taken), (1, changes(0..3)));
        assert_eq!((second.ticket, second.taken), (2, changes(5..7)));
    }

    #[test]
    fn what_a_full_set_refuses_does_not_take_the_rest_with_it() {
        let (mut worker, mut answers) = worker(3);
        let v6 = Change::Ban(Ban {
            jail: "sshd".parse().unwrap(),
            target: "2001:db8::/64".parse().unwrap(),
            at: now(),
            bantime: Bantime::Forever,
        });
        let all: Vec<Change> = changes(0..200).into_iter().chain([v6.clone()]).collect();
        worker.turn(&channel().1, 1, all);
        let done = answers.try_recv().unwrap();
        assert_eq!(done.taken, [changes(0..3), vec![v6]].concat());
        assert_eq!(done.refused.len(), 197);
        assert!(done.refused[0].1.contains("set sshd_v4 is full"), "{}", done.refused[0].1);
        assert!(!done.lost);
    }

    #[test]
    fn a_full_set_refuses_no_release() {
        let (mut worker, mut answers) = worker(3);
        worker.turn(&channel().1, 1, changes(0..3));
        let release = Change::Release { jail: "sshd".parse().unwrap(), target: changes(0..1)[0].target() };
        worker.turn(&channel().1, 2, [changes(3..20), vec![release.clone()]].concat());
        let (_, second) = (answers.try_recv().unwrap(), answers.try_recv().unwrap());
        assert_eq!(second.taken, [changes(3..4), vec![release]].concat());
    }

    #[test]
    fn what_is_not_in_a_full_set_counts_as_released() {
        let (mut worker, mut answers) = worker(3);
        worker.turn(&channel().1, 1, changes(0..3));
        let release = Change::Release { jail: "sshd".parse().unwrap(), target: changes(9..10)[0].target() };
        let asked = [changes(9..10), vec![release]].concat();
        worker.turn(&channel().1, 2, asked.clone());
        let (_, second) = (answers.try_recv().unwrap(), answers.try_recv().unwrap());
        assert_eq!((second.taken, second.refused), (asked, Vec::new()));
        let table = worker.firewall.table(true).unwrap().unwrap();
        assert_eq!(table.standing().count(), 3, "and nothing was put in on the way");
    }

    fn net(target: &str, seconds: Option<u64>) -> Change {
        let (jail, target) = ("sshd".parse().unwrap(), target.parse().unwrap());
        let ban = |seconds| Ban {
            jail: "sshd".parse().unwrap(),
            target,
            at: now(),
            bantime: Bantime::For(Duration::from_secs(seconds)),
        };
        seconds.map_or(Change::Release { jail, target }, |seconds| Change::Ban(ban(seconds)))
    }

    #[test]
    fn a_network_takes_others_over_or_leaves_them_all() {
        let (mut worker, mut answers) = worker(3);
        let nothing = channel().1;
        let narrow = [net("192.0.2.0/26", Some(60)), net("192.0.2.128/26", Some(60))];
        worker.turn(&nothing, 1, narrow.to_vec());
        let wide = [net("192.0.2.0/26", None), net("192.0.2.128/26", None), net("192.0.2.0/24", Some(60))];
        worker.turn(&nothing, 2, wide.to_vec());
        // What is already gone for the sake of a wider one is released without harm to that.
        worker.turn(&nothing, 3, vec![net("192.0.2.0/26", None)]);
        worker.turn(&nothing, 4, vec![net("203.0.113.0/26", Some(60))]);
        // Nobody told that the first is there: the second cannot be taken, and takes nothing with it.
        worker.turn(
            &nothing,
            5,
            vec![
                net("203.0.113.64/26", None),
                net("203.0.113.0/24", Some(60)),
                net("203.0.113.0/26", Some(90)),
            ],
        );
        let done: Vec<Done> = (0..5).map(|_| answers.try_recv().unwrap()).collect();
        assert!(done[..4].iter().all(|done| done.refused.is_empty()));
        let refused: Vec<Target> = done[4].refused.iter().map(|(change, _)| change.target()).collect();
        assert_eq!(refused, [net("203.0.113.64/26", None).target(), net("203.0.113.0/24", None).target()]);
        assert_eq!(done[4].refused[0].1, "set sshd_v4_nets holds a network that overlaps it");
        assert_eq!(done[4].taken, [net("203.0.113.0/26", Some(90))]);
        let table = worker.firewall.table(true).unwrap().unwrap();
        let held: Vec<String> =
            table.standing().map(|ban| format!("{} {:?}", ban.target, ban.timeout.unwrap())).collect();
        assert_eq!(held, ["192.0.2.0/24 60s", "203.0.113.0/26 90s"]);
    }

    #[test]
    fn a_network_that_is_missed_does_not_come_back_into_one_that_took_it_over() {
        let (mut worker, _answers) = worker(3);
        worker.turn(&channel().1, 1, vec![net("192.0.2.0/24", Some(60))]);
        let bans =
            ["192.0.2.0/26", "192.0.0.0/16", "203.0.113.0/24"].map(|target| match net(target, Some(60)) {
                Change::Ban(ban) => ban,
                Change::Release { .. } => unreachable!(),
            });
        let strangers = worker.install(&layout(3), &Restore::Lost(bans.to_vec())).unwrap();
        let text = |target: Target| target.to_string();
        let strangers: Vec<String> = strangers.iter().map(|ban| text(ban.target)).collect();
        assert_eq!(strangers, ["192.0.2.0/24"], "what is not believed is told");
        let table = worker.firewall.table(false).unwrap().unwrap();
        let held: Vec<String> = table.standing().map(|ban| text(ban.target)).collect();
        assert_eq!(held, ["192.0.2.0/24", "203.0.113.0/24"]);
    }

    #[test]
    fn what_was_over_before_it_was_asked_was_not_taken() {
        let (mut worker, mut answers) = worker(3);
        let mut late = changes(0..1);
        let Change::Ban(ban) = &mut late[0] else { panic!() };
        ban.at = now().minus(Duration::from_secs(60));
        worker.turn(&channel().1, 1, late.clone());
        assert_eq!(answers.try_recv().unwrap().refused, [(late.remove(0), OVER.to_owned())]);
    }

    #[test]
    fn a_table_that_somebody_removed_is_reported_as_lost() {
        let (mut worker, mut answers) = worker(3);
        worker.firewall = Box::new(Memory::default());
        worker.turn(&channel().1, 1, changes(0..2));
        let done = answers.try_recv().unwrap();
        assert!(done.lost && done.taken.is_empty());
        let bans = changes(0..2).into_iter().filter_map(|change| match change {
            Change::Ban(ban) => Some(ban),
            Change::Release { .. } => None,
        });
        let bans: Vec<Ban> = bans.collect();
        let half = Restore::AfterReboot(bans[..1].to_vec());
        assert_eq!(worker.install(&layout(3), &half).unwrap(), bans[..1], "it is put back with the bans");
        let all = Restore::AfterReboot(bans.clone());
        assert_eq!(
            worker.install(&layout(3), &all).unwrap(),
            bans[..1],
            "what stands is what the kernel holds"
        );
        let standing = |worker: &mut Worker| worker.firewall.table(true).unwrap().unwrap().standing().count();
        worker.install(&layout(3), &Restore::Lost(bans.clone())).unwrap();
        assert_eq!(standing(&mut worker), 1, "a set that stands is left as it is");
        worker.install(&layout(4), &Restore::Lost(bans.clone())).unwrap();
        assert_eq!(standing(&mut worker), 2, "one that is made anew gets all that is believed");
        worker.install(&layout(4), &Restore::All(bans)).unwrap();
        assert_eq!(standing(&mut worker), 2);
    }

    /// A worker with a jail that extends and counts, in whose second set somebody tried again.
    fn extending(capacity: u32) -> (Worker, mpsc::UnboundedReceiver<Done>, Layout) {
        let mut layout = layout(capacity);
        layout.cells[0].knock =
            Knock { extends: Some(Duration::from_secs(30)), counts: true, ..Knock::default() };
        let (mut worker, answers) = worker(capacity);
        worker.install(&layout, &Restore::Lost(Vec::new())).unwrap();
        (worker, answers, layout)
    }

    fn knock(worker: &mut Worker, n: u8) {
        let (_, key) = knock_set(&jail(), target(n)).unwrap();
        let time = Some(Duration::from_secs(30));
        add(worker, "sshd_v4_knocks", Element::lasting(key, time, Some(Duration::from_secs(20))));
    }

    fn add(worker: &mut Worker, set: &str, element: Element) {
        let mut transaction = Transaction::default();
        transaction.push(Operation::AddElements { set: set.to_owned(), elements: [element].into() });
        worker.firewall.commit(&transaction).unwrap();
    }

    fn jail() -> JailName {
        "sshd".parse().unwrap()
    }

    fn target(n: u8) -> Target {
        format!("192.0.2.{n}").parse().unwrap()
    }

    #[test]
    fn who_is_released_is_not_held_either_though_his_sets_are_full() {
        let (mut worker, mut answers, _) = extending(1);
        worker.turn(&channel().1, 1, changes(0..1));
        knock(&mut worker, 0);
        let release = |n| Change::Release { jail: jail(), target: target(n) };
        worker.turn(&channel().1, 2, vec![release(7), release(0)]);
        let (_, second) = (answers.try_recv().unwrap(), answers.try_recv().unwrap());
        assert_eq!((second.taken.len(), second.refused), (2, vec![]));
        assert_eq!(worker.firewall.table(true).unwrap().unwrap().standing().count(), 0);
    }

    #[test]
    fn who_is_held_is_found_and_who_was_freed_is_let_go() {
        let (mut worker, ..) = extending(9);
        (0..2).for_each(|n| knock(&mut worker, n));
        let who = |n| (jail(), target(n));
        let looks = Looks { unsure: vec![who(0), who(5)], freed: vec![who(1), who(6)] };
        let left = Some(Duration::from_secs(20));
        assert_eq!(worker.knocks(&looks), Ok(vec![(who(0), left), (who(5), None)]));
        assert_eq!(worker.held(&who(1).0, who(1).1), Ok(None));
        assert!(worker.held(&who(0).0, who(0).1).unwrap().is_some());
        worker.install(&layout(9), &Restore::Lost(Vec::new())).unwrap();
        assert_eq!(worker.knocks(&looks).unwrap()[0].1, None, "no jail extends any more");
    }

    #[test]
    fn who_is_only_held_is_adopted_with_the_rest_and_is_no_damage() {
        let (mut worker, _, layout) = extending(9);
        worker.commit(&changes(0..1));
        (0..2).for_each(|n| knock(&mut worker, n));
        let standing = worker.install(&layout, &Restore::AfterReboot(Vec::new())).unwrap();
        let ends: Vec<_> = standing.iter().map(|ban| (ban.target, ban.end().unwrap().since(now()))).collect();
        let seconds = Duration::from_secs;
        assert_eq!(ends, [(target(0), seconds(60)), (target(1), seconds(20))], "a ban goes before a knock");
        assert_eq!(worker.firewall.elements("sshd_v4").unwrap().len(), 2, "both are banned now");
        let sample = Sample { bans: standing, counts: BTreeMap::new(), whole: true };
        assert_eq!(worker.audit(&layout, &sample), Ok(Damage::default()));
        let mut gone = Transaction::default();
        gone.push(Operation::FlushSet("sshd_v4".to_owned()));
        worker.firewall.commit(&gone).unwrap();
        assert_eq!(worker.audit(&layout, &sample), Ok(Damage::default()), "both are held");
        gone.push(Operation::FlushSet("sshd_v4_knocks".to_owned()));
        worker.firewall.commit(&gone).unwrap();
        assert_eq!(worker.audit(&layout, &sample).unwrap().touched.len(), 2);
    }

    #[test]
    fn a_ban_counts_on_when_it_is_asked_for_again_and_is_seen_with_its_count() {
        let (mut worker, ..) = extending(9);
        let counted = Dropped { packets: 3, bytes: 180 };
        add(&mut worker, "sshd_v4", Element::permanent(Key::of(target(0))).counted(Some(counted)));
        worker.commit(&changes(0..2));
        knock(&mut worker, 1);
        let seen = worker.seen(&[jail()]).unwrap();
        let of = |n| seen[&(jail(), target(n))].clone();
        assert_eq!(of(0), Seen { held: None, dropped: Some(counted) });
        assert_eq!(of(1).dropped, Some(Dropped::default()));
        assert_eq!(of(1).held.unwrap().end(), Some(now().plus(Duration::from_secs(20))));
    }

    fn bans(addresses: std::ops::Range<u8>) -> Vec<Ban> {
        let ban = |change| match change {
            Change::Ban(ban) => ban,
            Change::Release { .. } => panic!(),
        };
        changes(addresses).into_iter().map(ban).collect()
    }

    fn sample(addresses: std::ops::Range<u8>, whole: bool) -> Sample {
        let counts = BTreeMap::from([("sshd".parse().unwrap(), addresses.len())]);
        Sample { bans: bans(addresses), counts, whole }
    }

    #[test]
    fn an_audit_finds_what_nobody_told_of() {
        let (mut worker, _answers) = worker(100);
        worker.commit(&changes(0..9));
        let audit = |worker: &mut Worker, whole| worker.audit(&layout(100), &sample(0..9, whole)).unwrap();
        assert_eq!(audit(&mut worker, true), Damage::default());
        let release = Change::Release { jail: "sshd".parse().unwrap(), target: bans(3..4)[0].target };
        worker.commit(&[release]);
        let damage = audit(&mut worker, true);
        assert_eq!(damage.touched.len(), 1);
        assert!(damage.missed && !damage.structure, "the kernel counts one too few");
        let mut few = sample(4..9, false);
        few.counts.clear();
        assert_eq!(worker.audit(&layout(100), &few), Ok(Damage::default()));
        few.bans.extend(bans(3..4));
        assert!(worker.audit(&layout(100), &few).unwrap().missed, "where one is missing, others may be");
        worker.install(&layout(100), &Restore::All(bans(0..9))).unwrap();
        assert_eq!(audit(&mut worker, true), Damage::default());

        worker.firewall = Box::new(Memory::default());
        assert!(audit(&mut worker, true).structure);
        worker.install(&layout(100), &Restore::Lost(bans(0..9))).unwrap();
        assert_eq!(audit(&mut worker, true), Damage::default());
        assert!(worker.audit(&layout(50), &sample(0..9, true)).unwrap().structure);

        let owned = Layout { owned: true, ..layout(100) };
        worker.install(&owned, &Restore::Lost(bans(0..9))).unwrap();
        assert_eq!(worker.audit(&owned, &sample(0..9, true)), Ok(Damage::default()));
    }

    #[test]
    fn an_audit_finds_timers_that_somebody_changed() {
        let (mut worker, _answers) = worker(100);
        let mut short = changes(0..1);
        let Change::Ban(ban) = &mut short[0] else { panic!() };
        ban.bantime = Bantime::For(Duration::from_secs(57));
        worker.commit(&[short, changes(1..2)].concat());
        let damage = worker.audit(&layout(100), &sample(0..2, true)).unwrap();
        assert_eq!(
            damage.touched.into_iter().map(|(_, target)| target).collect::<Vec<_>>(),
            [bans(0..1)[0].target]
        );
        worker.install(&layout(100), &Restore::All(bans(0..2))).unwrap();
        assert_eq!(worker.audit(&layout(100), &sample(0..2, true)), Ok(Damage::default()));
        let mut over = sample(1..3, true);
        over.counts.clear();
        over.bans[1].at = now().minus(Duration::from_secs(59));
        assert_eq!(worker.audit(&layout(100), &over), Ok(Damage::default()), "what ends soon may be gone");
    }
}
