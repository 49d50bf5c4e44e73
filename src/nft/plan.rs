//! From what we want to the one transaction that makes the kernel hold it: the whole layout, or changes to bans.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnet::IpNet;

use super::banned;
use super::table::{Chain, Counter, Element, Family, Key, KeyType, NETS, Place, Rule, Set, Standing, Table};
use super::transaction::{ELEMENTS_MAX, Operation, Transaction};
use crate::model::{Cell, Change, Dropped, Hook, JailName, Layout, Ports, Target, Timestamp};

const COMMENT: &str = "nftjail agent, layout 1";

/// The table that the layout asks for, without bans.
pub fn wanted(layout: &Layout) -> Table {
    let (comment, owned) = (Some(COMMENT.to_owned()), layout.owned);
    let mut table = Table { comment, owned, ..Table::default() };
    table.counters = layout.cells.iter().map(|cell| counter(&cell.jail)).collect();
    let (v4, v6): (Vec<IpNet>, Vec<IpNet>) =
        IpNet::aggregate(&layout.never).into_iter().partition(|net| matches!(net, IpNet::V4(_)));
    table.sets = vec![never("ignore_v4", KeyType::Ipv4, v4), never("ignore_v6", KeyType::Ipv6, v6)];
    let mut gates = Hook::ALL.map(|hook| (hook, Vec::new()));
    let mut chains = Vec::new();
    for cell in &layout.cells {
        let jail = &cell.jail;
        for nets in [false, true] {
            table.sets.push(bans(cell, KeyType::Ipv4, nets));
            table.sets.push(bans(cell, KeyType::Ipv6, nets));
        }
        let chain = banned::first_chain(jail);
        table.sets.extend(banned::sets(cell));
        let jump = match ports(cell) {
            None => Rule::Jump { chain: chain.clone() },
            Some(ports) => {
                let rule = Rule::JumpPorts { ports: ports.name.clone(), chain: chain.clone() };
                table.sets.push(ports);
                rule
            }
        };
        let its = gates.iter_mut().filter(|(hook, _)| cell.hooks.contains(hook));
        its.for_each(|(_, jumps)| jumps.push(jump.clone()));
        chains.extend(banned::chains(cell));
    }
    table.chains = gates.into_iter().filter(|(_, jumps)| !jumps.is_empty()).map(gate).collect();
    table.chains.extend(chains);
    table
}

/// Where packets come from the kernel: first those who are never banned pass, then the jails of this hook are asked.
fn gate((hook, jumps): (Hook, Vec<Rule>)) -> Chain {
    let accept = |family, set: &str| Rule::Accept { family, set: set.to_owned() };
    let mut rules = vec![accept(Family::Ipv4, "ignore_v4"), accept(Family::Ipv6, "ignore_v6")];
    rules.extend(jumps);
    Chain { name: hook.name().to_owned(), place: Place::At(hook), rules }
}

fn counter(jail: &JailName) -> Counter {
    Counter { name: banned::counter_name(jail), dropped: Dropped::default() }
}

fn never(name: &str, key: KeyType, nets: Vec<IpNet>) -> Set {
    let mut elements: Vec<Element> =
        nets.into_iter().map(|net| Element::permanent(Key::Range(net.network(), net.broadcast()))).collect();
    elements.sort_by_key(|element| element.key);
    let (name, comment) = (name.to_owned(), Some("never banned".to_owned()));
    let (timeout, interval, dynamic, counter) = (false, true, false, false);
    Set { name, key, timeout, interval, dynamic, counter, size: None, comment, elements }
}

/// The most networks of each family that one jail can hold. Where the kernel counts the end of an interval too, as
/// older ones may (Linux 6.18 does not), half as many fit.
const NETS_MAX: u32 = 1 << 16;

fn bans(cell: &Cell, key: KeyType, nets: bool) -> Set {
    let what = match (key, nets) {
        (_, true) => " networks",
        (KeyType::Ipv6, false) => " /64",
        _ => "",
    };
    Set {
        name: bans_name(&cell.jail, key, nets),
        key,
        timeout: true,
        interval: nets,
        dynamic: false,
        counter: cell.knock.counts,
        size: Some(if nets { cell.capacity.min(NETS_MAX) } else { cell.capacity }),
        comment: Some(format!("jail {}{what}", cell.jail)),
        elements: Vec::new(),
    }
}

pub(super) fn bans_name(jail: &JailName, key: KeyType, nets: bool) -> String {
    let family = if key == KeyType::Ipv4 { "v4" } else { "v6" };
    format!("{jail}_{family}{}", if nets { NETS } else { "" })
}

/// The set that holds a jail's bans of a target's kind.
pub fn set_name(jail: &JailName, target: Target) -> String {
    bans_name(jail, if target.is_v4() { KeyType::Ipv4 } else { KeyType::Ipv6 }, target.is_network())
}

/// All sets that hold a jail's bans.
pub fn bans_sets(jail: &JailName) -> [String; 4] {
    [(KeyType::Ipv4, false), (KeyType::Ipv6, false), (KeyType::Ipv4, true), (KeyType::Ipv6, true)]
        .map(|(key, nets)| bans_name(jail, key, nets))
}

fn ports(cell: &Cell) -> Option<Set> {
    let Ports::Some(ports) = &cell.ports else { return None };
    let elements = ports
        .iter()
        .map(|&(protocol, port)| Element::permanent(Key::Service(protocol as u8, port)))
        .collect();
    let (key, comment) = (KeyType::ProtoService, Some(format!("jail {}", cell.jail)));
    let name = format!("{}_ports", cell.jail);
    let (timeout, interval, dynamic, counter) = (false, false, false, false);
    Some(Set { name, key, timeout, interval, dynamic, counter, size: None, comment, elements })
}

/// Makes the kernel hold exactly the layout, whatever `found` is: bans of jails that stay are kept with their
/// remaining time, everything else that is not in the layout goes. Empty where nothing is to be done.
///
/// `found` must have been read with its elements: sets that must be created anew are filled from it.
/// `standing` are bans to put in as well; where `found` has the ban already, or a network that overlaps it, the
/// kernel's is kept. Where a set cannot hold all, those that last longest are put in.
pub fn install(layout: &Layout, found: Option<&Table>, standing: &[Standing]) -> Transaction {
    let wanted = wanted(layout);
    let nothing = Table::default();
    let held = found.unwrap_or(&nothing);
    let mut transaction = Transaction::default();
    let keep = found.is_some_and(|found| may_stay(found, &wanted));
    if found.is_some() && !keep {
        transaction.push(Operation::DeleteTable);
    }
    // A table that outlived its owner is owned again by adding it.
    if !keep || layout.owned {
        transaction.push(Operation::AddTable { comment: COMMENT.to_owned(), owned: layout.owned });
    }
    let old = if keep { held } else { &nothing };
    clear(&mut transaction, old, &wanted);
    for counter in wanted.counters.iter().filter(|counter| old.counter(&counter.name).is_none()) {
        let dropped = held.counter(&counter.name).map_or(counter.dropped, |held| held.dropped);
        transaction.push(Operation::AddCounter(Counter { name: counter.name.clone(), dropped }));
    }
    let standing = by_set(standing);
    for set in &wanted.sets {
        fill(&mut transaction, set, old, held, standing.get(&set.name));
    }
    program(&mut transaction, old, &wanted);
    transaction
}

/// As [`install`], but `found` was read without the bans of hosts: of `believed`, only what was in sets that must be
/// created anew is put in, since the others hold theirs.
pub fn mend(layout: &Layout, found: Option<&Table>, believed: Vec<Standing>) -> Transaction {
    let wanted = wanted(layout);
    let kept = found.filter(|found| may_stay(found, &wanted));
    // Networks are few, and were read.
    let holds = |ban: &Standing| {
        let stands = kept.and_then(|found| found.set(&set_name(&ban.jail, ban.target)));
        stands.is_some_and(|set| stays(set, &wanted) && !set.interval)
    };
    let lost: Vec<Standing> = believed.into_iter().filter(|ban| !holds(ban)).collect();
    install(layout, found, &lost)
}

/// Whether the table itself can be kept: what cannot be changed in place, or named one by one, goes with it.
fn may_stay(found: &Table, wanted: &Table) -> bool {
    let same_place =
        |chain: &Chain| wanted.chain(&chain.name).is_none_or(|wanted| wanted.place == chain.place);
    (&found.comment, found.owned) == (&wanted.comment, wanted.owned)
        && found.foreign.is_empty()
        && found.chains.iter().all(same_place)
}

/// Deletes what must not stay: rules first, since they hold the sets, then sets, which may hold chains.
fn clear(transaction: &mut Transaction, old: &Table, wanted: &Table) {
    let sets: Vec<&Set> = old.sets.iter().filter(|set| !stays(set, wanted)).collect();
    let chains: Vec<&Chain> = old.chains.iter().filter(|chain| wanted.chain(&chain.name).is_none()).collect();
    let counters: Vec<&Counter> =
        old.counters.iter().filter(|counter| wanted.counter(&counter.name).is_none()).collect();
    for chain in &old.chains {
        if chain.rules.is_empty() || rules_stay(chain, old, wanted) {
            continue;
        }
        transaction.push(Operation::FlushChain(chain.name.clone()));
    }
    for set in sets {
        transaction.push(Operation::DeleteSet(set.name.clone()));
    }
    for chain in chains {
        transaction.push(Operation::DeleteChain(chain.name.clone()));
    }
    for counter in counters {
        transaction.push(Operation::DeleteCounter(counter.name.clone()));
    }
}

/// Whether a chain of either table has the rules it shall have, and all sets they look into stay.
fn rules_stay(chain: &Chain, old: &Table, wanted: &Table) -> bool {
    let set_stays = |name: &str| old.set(name).is_some_and(|set| stays(set, wanted));
    old.chain(&chain.name) == wanted.chain(&chain.name)
        && chain.rules.iter().filter_map(Rule::set).all(set_stays)
}

fn stays(set: &Set, wanted: &Table) -> bool {
    wanted.set(&set.name).is_some_and(|wanted| wanted.same_kind(set))
}

fn by_set(standing: &[Standing]) -> BTreeMap<String, BTreeMap<Key, Element>> {
    let mut sets: BTreeMap<String, BTreeMap<Key, Element>> = BTreeMap::new();
    for ban in standing {
        let key = Key::of(ban.target);
        let element = Element::lasting(key, ban.timeout, ban.expires);
        sets.entry(set_name(&ban.jail, ban.target)).or_default().insert(key, element);
    }
    sets
}

/// Creates one set where it is not there, and gives it the elements that it lacks.
fn fill(
    transaction: &mut Transaction,
    set: &Set,
    old: &Table,
    held: &Table,
    standing: Option<&BTreeMap<Key, Element>>,
) {
    let stands = old.set(&set.name).filter(|old| old.same_kind(set));
    if stands.is_none() {
        transaction.push(Operation::AddSet(Set { elements: Vec::new(), ..set.clone() }));
    }
    if !set.timeout {
        match stands {
            Some(stands) if same_elements(stands, set) => return,
            Some(stands) if !stands.elements.is_empty() => {
                transaction.push(Operation::FlushSet(set.name.clone()));
            }
            _ => {}
        }
        return add(transaction, &set.name, set.elements.clone());
    }
    let held = held.set(&set.name).filter(|held| held.key == set.key && held.interval == set.interval);
    let held = held.map_or(&[][..], |held| &held.elements);
    let (held, strange): (Vec<&Element>, Vec<&Element>) =
        held.iter().partition(|element| element.key.target().is_some());
    // Nobody could have banned these. They are added first, in case they run out meanwhile.
    for element in strange.into_iter().filter(|_| stands.is_some()) {
        let elements: Arc<[Element]> = [Element::permanent(element.key)].into();
        let origins: Arc<[usize]> = [].into();
        change(transaction, &set.name, &elements, &origins, DELETE);
    }
    let mut missing: BTreeMap<Key, Element> = standing.cloned().unwrap_or_default();
    // What the kernel holds may be newer than what is missed: a network that took this one over.
    let held_keys: BTreeSet<Key> = held.iter().map(|element| element.key).collect();
    missing.retain(|key, _| held_keys.contains(key) || !overlaps(&held_keys, *key));
    for element in held {
        match stands {
            Some(_) => missing.remove(&element.key),
            None => {
                let again = Element::lasting(element.key, element.timeout, element.expires);
                let again = again.counted(element.dropped.filter(|_| set.counter));
                missing.insert(element.key, again)
            }
        };
    }
    let taken = stands.map_or(0, |stands| stands.elements.len());
    let room = set.size.map_or(usize::MAX, |size| (size as usize).saturating_sub(taken));
    add(transaction, &set.name, longest(missing, room));
}

/// Whether an interval shares an address with any of these, which do not overlap each other.
fn overlaps(held: &BTreeSet<Key>, key: Key) -> bool {
    let Key::Range(first, last) = key else { return false };
    // The only one that can reach into it from below is the last that does not begin after it.
    let below = held.range(..=Key::Range(last, last)).next_back();
    matches!(below, Some(Key::Range(_, end)) if *end >= first)
}

fn same_elements(one: &Set, other: &Set) -> bool {
    let keys = |set: &Set| {
        let mut keys: Vec<Key> = set.elements.iter().map(|element| element.key).collect();
        keys.sort();
        keys
    };
    keys(one) == keys(other)
}

fn longest(elements: BTreeMap<Key, Element>, room: usize) -> Vec<Element> {
    let mut elements: Vec<Element> = elements.into_values().collect();
    if elements.len() > room {
        let left = |element: &Element| element.expires.or(element.timeout);
        elements.sort_by(|one, other| {
            let forever_first = one.timeout.is_some().cmp(&other.timeout.is_some());
            forever_first.then(left(other).cmp(&left(one)))
        });
        elements.truncate(room);
    }
    elements
}

fn add(transaction: &mut Transaction, set: &str, elements: Vec<Element>) {
    for chunk in elements.chunks(ELEMENTS_MAX) {
        transaction.push(Operation::AddElements { set: set.to_owned(), elements: chunk.into() });
    }
}

/// Adds the chains that are not there, then the rules of those that are empty by now.
fn program(transaction: &mut Transaction, old: &Table, wanted: &Table) {
    for chain in wanted.chains.iter().filter(|chain| old.chain(&chain.name).is_none()) {
        transaction.push(Operation::AddChain(Chain { rules: Vec::new(), ..chain.clone() }));
    }
    for chain in wanted.chains.iter().filter(|chain| !rules_stay(chain, old, wanted)) {
        for rule in &chain.rules {
            transaction.push(Operation::AddRule { chain: chain.name.clone(), rule: rule.clone() });
        }
    }
}

/// Bans and releases, in one transaction; releases come first, so that their room can be used.
///
/// A ban that ended before `now` is left out. Of several changes for one jail and target the last counts.
/// Every element is added before it is deleted, so that deleting cannot fail where it does not exist, and a
/// ban is added once more: on no kernel does a mere repeated add extend the timer for sure.
/// Where a set is full, releasing what it does not hold is refused as full too.
///
/// Networks must not overlap, for the kernel refuses that: one that is asked for comes with the releases of those
/// in it. Such a network cannot be there yet, and is added once: Linux 6.18 cannot find the end of an interval
/// that was added where another one with the same end was deleted in the same transaction.
pub fn apply(changes: &[Change], now: Timestamp) -> Transaction {
    apply_counting(changes, now, &BTreeMap::new())
}

/// As [`apply`], where the bans of some changes, by their place, have counted so much already.
pub fn apply_counting(changes: &[Change], now: Timestamp, counted: &BTreeMap<usize, Dropped>) -> Transaction {
    let mut last: BTreeMap<(&JailName, Target), usize> = BTreeMap::new();
    for (index, change) in changes.iter().enumerate() {
        if !matches!(change, Change::Ban(ban) if ban.end().is_some_and(|end| end <= now)) {
            last.insert((change.jail(), change.target()), index);
        }
    }
    let mut sets: BTreeMap<(bool, String), Vec<(Element, usize)>> = BTreeMap::new();
    let mut nets = Vec::new();
    for ((jail, target), index) in last {
        let key = Key::of(target);
        let (is_ban, element) = match &changes[index] {
            Change::Ban(ban) => {
                let left = ban.end().map(|end| end.since(now));
                (true, Element::lasting(key, left, None).counted(counted.get(&index).copied()))
            }
            Change::Release { .. } => (false, Element::permanent(key)),
        };
        match target.is_network() {
            true => nets.push((is_ban, jail, target, element, index)),
            false => sets.entry((is_ban, set_name(jail, target))).or_default().push((element, index)),
        }
    }
    let mut transaction = Transaction::default();
    for ((is_ban, set), pairs) in sets {
        for chunk in pairs.chunks(ELEMENTS_MAX) {
            let elements: Arc<[Element]> = chunk.iter().map(|(element, _)| element.clone()).collect();
            let origins: Arc<[usize]> = chunk.iter().map(|(_, index)| *index).collect();
            change(&mut transaction, &set, &elements, &origins, if is_ban { ADD_ANEW } else { DELETE });
        }
    }
    // One by one: of those that overlap, one is gone before the other comes.
    nets.sort_by_key(|(is_ban, ..)| *is_ban);
    let gone: BTreeSet<(&JailName, Target)> =
        nets.iter().filter(|(is_ban, ..)| !is_ban).map(|(_, jail, target, ..)| (*jail, *target)).collect();
    for (is_ban, jail, target, element, index) in nets {
        let takes_over = || inside(&gone, jail, target).next().is_some();
        let steps = match is_ban {
            false => DELETE,
            true if takes_over() => ADD,
            true => ADD_ANEW,
        };
        change(&mut transaction, &set_name(jail, target), &[element].into(), &[index].into(), steps);
    }
    transaction
}

/// Whether to add at each step, or to delete.
type Steps = &'static [bool];
const ADD: Steps = &[true];
const DELETE: Steps = &[true, false];
const ADD_ANEW: Steps = &[true, false, true];

fn change(
    transaction: &mut Transaction,
    set: &str,
    elements: &Arc<[Element]>,
    origins: &Arc<[usize]>,
    steps: Steps,
) {
    for adds in steps {
        let (set, elements) = (set.to_owned(), elements.clone());
        let operation = match adds {
            true => Operation::AddElements { set, elements },
            false => Operation::DeleteElements { set, elements },
        };
        transaction.push_from(operation, origins.clone());
    }
}

/// The networks of a jail that lie in another.
fn inside<'a>(
    nets: &'a BTreeSet<(&JailName, Target)>,
    jail: &'a JailName,
    target: Target,
) -> impl Iterator<Item = Target> + 'a {
    let later = nets.range((jail, target)..).map(|(owner, net)| (*owner, *net));
    later.take_while(move |(owner, net)| *owner == jail && target.covers(*net)).map(|(_, net)| net)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Ban, Bantime, Block, Knock, Log, Protocol};
    use crate::nft::Firewall;
    use crate::nft::memory::Memory;
    use proptest::prelude::*;
    use std::collections::BTreeSet;
    use std::time::Duration;

    const NOW: Timestamp = Timestamp::from_millis(1_000_000);

    fn jail(name: &str) -> JailName {
        name.parse().unwrap()
    }

    fn prerouting() -> BTreeSet<Hook> {
        [Hook::Prerouting].into()
    }

    fn ban(addr: &str, ms: u64) -> Change {
        let bantime = Bantime::For(Duration::from_millis(ms));
        Change::Ban(Ban { jail: jail("sshd"), target: addr.parse().unwrap(), at: NOW, bantime })
    }

    fn release(addr: &str) -> Change {
        Change::Release { jail: jail("sshd"), target: addr.parse().unwrap() }
    }

    #[test]
    fn releases_go_first_and_bans_are_added_deleted_and_added() {
        let transaction = apply(&[ban("192.0.2.1", 600_000), release("192.0.2.2")], NOW);
        let expected = [
            "add element inet nftjail sshd_v4 { 192.0.2.2 }",
            "delete element inet nftjail sshd_v4 { 192.0.2.2 }",
            "add element inet nftjail sshd_v4 { 192.0.2.1 timeout 10m }",
            "delete element inet nftjail sshd_v4 { 192.0.2.1 }",
            "add element inet nftjail sshd_v4 { 192.0.2.1 timeout 10m }",
        ];
        assert_eq!(transaction.to_string().lines().collect::<Vec<_>>(), expected);
        let origins: Vec<_> = (0..6).map(|operation| transaction.change_at(operation, 0)).collect();
        assert_eq!(origins, [Some(1), Some(1), Some(0), Some(0), Some(0), None]);
        assert_eq!(transaction.change_at(0, 1), None);
    }

    #[test]
    fn the_last_change_counts_and_ended_bans_do_not() {
        let changes = [ban("192.0.2.1", 1_000), release("192.0.2.1"), ban("192.0.2.1", 60_000)];
        let transaction = apply(&changes, NOW);
        assert_eq!(transaction.operations().len(), 3);
        assert_eq!(transaction.change_at(0, 0), Some(2));
        assert!(apply(&changes, NOW.plus(Duration::from_secs(60))).to_string().contains("delete element"));
        assert!(apply(&changes[..1], NOW.plus(Duration::from_secs(1))).is_empty());
        assert!(apply(&[], NOW).is_empty());
    }

    #[test]
    fn many_bans_are_split_into_messages_that_fit() {
        let changes: Vec<Change> =
            (0..2_500u32).map(|at| ban(&format!("10.0.{}.{}", at / 250, at % 250), 1)).collect();
        let transaction = apply(&changes, NOW);
        let sizes: Vec<usize> =
            transaction.operations().iter().map(|operation| operation.elements().unwrap().1.len()).collect();
        assert_eq!(sizes, [[490; 3], [490; 3], [490; 3], [490; 3], [490; 3], [50; 3]].concat());
        let mut origins: Vec<usize> = (0..18)
            .step_by(3)
            .flat_map(|operation| (0..490).map(move |element| (operation, element)))
            .filter_map(|(operation, element)| transaction.change_at(operation, element))
            .collect();
        origins.sort();
        assert!(origins.into_iter().eq(0..2_500));
    }

    #[test]
    fn a_network_comes_after_those_that_it_takes_over_and_is_added_once() {
        let changes = [
            release("192.0.2.0/26"),
            ban("192.0.2.0/24", 60_000),
            ban("203.0.113.0/24", 60_000),
            release("192.0.2.128/25"),
        ];
        let transaction = apply(&changes, NOW);
        let expected = [
            "add element inet nftjail sshd_v4_nets { 192.0.2.0/26 }",
            "delete element inet nftjail sshd_v4_nets { 192.0.2.0/26 }",
            "add element inet nftjail sshd_v4_nets { 192.0.2.128/25 }",
            "delete element inet nftjail sshd_v4_nets { 192.0.2.128/25 }",
            "add element inet nftjail sshd_v4_nets { 192.0.2.0/24 timeout 1m }",
            "add element inet nftjail sshd_v4_nets { 203.0.113.0/24 timeout 1m }",
            "delete element inet nftjail sshd_v4_nets { 203.0.113.0/24 }",
            "add element inet nftjail sshd_v4_nets { 203.0.113.0/24 timeout 1m }",
        ];
        assert_eq!(transaction.to_string().lines().collect::<Vec<_>>(), expected);
        let origins: Vec<_> = (0..8).map(|operation| transaction.change_at(operation, 0)).collect();
        assert_eq!(origins, [0, 0, 3, 3, 1, 2, 2, 2].map(Some));
    }

    #[test]
    fn intervals_that_nobody_could_have_banned_are_removed_and_networks_stay() {
        let cell = Cell {
            jail: jail("sshd"),
            ports: Ports::All,
            block: Block::Drop,
            hooks: prerouting(),
            capacity: 9,
            knock: Knock::default(),
        };
        let layout = Layout { cells: vec![cell], ..Layout::default() };
        let mut memory = Memory::default();
        memory.commit(&install(&layout, None, &[])).unwrap();
        memory.commit(&apply(&[ban("192.0.2.0/24", 60_000), ban("2001:db8::/48", 60_000)], NOW)).unwrap();
        let odd = [("10.0.0.1", "10.0.0.1"), ("10.0.0.2", "10.0.0.4"), ("0.0.0.0", "7.255.255.255")]
            .map(|(first, last)| Key::Range(first.parse().unwrap(), last.parse().unwrap()));
        let mut strange = Transaction::default();
        let elements = odd.map(Element::permanent);
        strange.push(Operation::AddElements { set: "sshd_v4_nets".to_owned(), elements: elements.into() });
        let before = memory.table(true).unwrap();
        memory.commit(&strange).unwrap();
        let found = memory.table(true).unwrap();
        assert_eq!(found.as_ref().unwrap().standing().count(), 2);
        memory.commit(&install(&layout, found.as_ref(), &[])).unwrap();
        assert_eq!(memory.table(true).unwrap(), before);
    }

    #[test]
    fn where_not_all_fit_those_that_last_longest_are_installed() {
        let cell = Cell {
            jail: jail("sshd"),
            ports: Ports::All,
            block: Block::Drop,
            hooks: prerouting(),
            capacity: 2,
            knock: Knock::default(),
        };
        let layout = Layout { cells: vec![cell], ..Layout::default() };
        let standing = |addr: &str, seconds: Option<u64>| {
            let time = seconds.map(Duration::from_secs);
            Standing { jail: jail("sshd"), target: addr.parse().unwrap(), timeout: time, expires: time }
        };
        let all =
            [standing("192.0.2.1", Some(9)), standing("192.0.2.2", None), standing("192.0.2.3", Some(10))];
        let script = install(&layout, None, &all).to_string();
        assert!(script.contains("{ 192.0.2.2, 192.0.2.3 timeout 10s expires 10s }"), "{script}");
    }

    #[test]
    fn another_block_changes_the_rules_of_its_jail_and_nothing_else() {
        let cell = |name| Cell {
            jail: jail(name),
            ports: Ports::All,
            block: Block::Drop,
            hooks: prerouting(),
            capacity: 2,
            knock: Knock::default(),
        };
        let mut layout = Layout { cells: vec![cell("sshd"), cell("web")], ..Layout::default() };
        let mut memory = Memory::default();
        memory.commit(&install(&layout, None, &[])).unwrap();
        memory.commit(&apply(&[ban("192.0.2.1", 60_000)], NOW)).unwrap();
        layout.cells[0].block = Block::Reject;
        let found = memory.table(true).unwrap();
        let script = install(&layout, found.as_ref(), &[]).to_string();
        let mut expected = vec!["flush chain inet nftjail jail_sshd".to_owned()];
        for (source, icmp) in [
            ("ip saddr @sshd_v4", "icmp"),
            ("ip6 saddr & ffff:ffff:ffff:ffff:: == @sshd_v6", "icmpv6"),
            ("ip saddr @sshd_v4_nets", "icmp"),
            ("ip6 saddr @sshd_v6_nets", "icmpv6"),
        ] {
            let rule = format!("add rule inet nftjail jail_sshd {source}");
            let counter = "counter name \"sshd_dropped\" reject with";
            expected.push(format!("{rule} meta l4proto tcp {counter} tcp reset"));
            expected.push(format!("{rule} {counter} {icmp} port-unreachable"));
        }
        assert_eq!(script.lines().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_jail_is_asked_at_its_hooks_only_and_nobody_is_dropped_there_who_is_never_banned() {
        let cell = |name, hooks: &[Hook]| Cell {
            jail: jail(name),
            ports: Ports::All,
            block: Block::Drop,
            hooks: hooks.iter().copied().collect(),
            capacity: 2,
            knock: Knock::default(),
        };
        let layout = Layout {
            cells: vec![cell("own", &[Hook::Input]), cell("both", &[Hook::Input, Hook::Forward])],
            ..Layout::default()
        };
        let script = install(&layout, None, &[]).to_string();
        let gates: Vec<&str> =
            script.lines().filter(|line| line.contains(" hook ") || line.contains(" jump ")).collect();
        let expected = [
            "add chain inet nftjail input { type filter hook input priority filter - 10; policy accept; }",
            "add chain inet nftjail forward { type filter hook forward priority filter - 10; policy accept; }",
            "add rule inet nftjail input jump jail_own",
            "add rule inet nftjail input jump jail_both",
            "add rule inet nftjail forward jump jail_both",
        ];
        assert_eq!(gates, expected);
        for hook in ["input", "forward"] {
            let never = script.find(&format!("add rule inet nftjail {hook} ip saddr @ignore_v4 accept"));
            assert!(never < script.find(&format!("{hook} jump")) && never.is_some(), "{script}");
        }
    }

    fn layouts() -> impl Strategy<Value = Layout> {
        let ports = prop_oneof![
            Just(Ports::All),
            proptest::collection::btree_set(1u16..4, 1..3)
                .prop_map(|ports| Ports::Some(ports.into_iter().map(|port| (Protocol::Tcp, port)).collect())),
        ];
        let block = prop::sample::select(vec![Block::Drop, Block::Reject]);
        let hooks = prop::sample::subsequence(Hook::ALL.to_vec(), 1..=3);
        let extends = prop::option::of(prop::sample::select(vec![1, 600]).prop_map(Duration::from_secs));
        let log = prop::sample::select(vec![Log::Nothing, Log::Kernel, Log::Nflog(5)]);
        let knock =
            (extends, any::<bool>(), log).prop_map(|(extends, counts, log)| Knock { extends, counts, log });
        let cell = (prop::sample::select(vec!["a", "b", "c"]), ports, block, hooks, 2u32..4, knock).prop_map(
            |(name, ports, block, hooks, capacity, knock)| {
                let hooks = hooks.into_iter().collect();
                Cell { jail: jail(name), ports, block, hooks, capacity, knock }
            },
        );
        let never = prop::sample::subsequence(vec!["10.0.0.0/8", "10.0.0.0/9", "10.128.0.0/9", "::/0"], 0..4);
        (proptest::collection::vec(cell, 0..4), never).prop_map(|(mut cells, never)| {
            cells.sort_by_key(|cell| cell.jail.clone());
            cells.dedup_by_key(|cell| cell.jail.clone());
            Layout { cells, never: never.into_iter().map(|net| net.parse().unwrap()).collect(), owned: false }
        })
    }

    proptest! {
        #[test]
        fn any_layout_is_reached_from_any_other_and_the_bans_of_jails_that_stay_are_kept(
            layouts in proptest::collection::vec(layouts(), 2..5),
        ) {
            let mut memory = Memory::default();
            let mut before = Layout::default();
            for layout in layouts {
                let found = memory.table(true).unwrap();
                memory.commit(&install(&layout, found.as_ref(), &[])).unwrap();
                for cell in &layout.cells {
                    let was = before.cells.iter().any(|old| old.jail == cell.jail);
                    for target in ["192.0.2.1", "192.0.2.0/24", "2001:db8::/48"] {
                        let target = target.parse().unwrap();
                        prop_assert_eq!(memory.remaining(&cell.jail, target).unwrap().is_some(), was);
                        let (jail, at, bantime) = (cell.jail.clone(), NOW, Bantime::Forever);
                        memory.commit(&apply(&[Change::Ban(Ban { jail, target, at, bantime })], NOW)).unwrap();
                    }
                }
                let found = memory.table(true).unwrap();
                prop_assert!(install(&layout, found.as_ref(), &[]).is_empty());
                let found = found.unwrap();
                let wanted = wanted(&layout);
                prop_assert_eq!(found.sets.len(), wanted.sets.len());
                prop_assert_eq!(found.chains.len(), wanted.chains.len());
                for chain in &wanted.chains {
                    prop_assert_eq!(found.chain(&chain.name), Some(chain));
                }
                for set in wanted.sets.iter().filter(|set| !set.timeout) {
                    prop_assert!(same_elements(found.set(&set.name).unwrap(), set));
                }
                before = layout;
            }
        }
    }
}
