//! What meets the packets of a jail's banned hosts: chains that drop them, and that extend, tell and answer before.
#![forbid(unsafe_code)]

use super::plan::bans_name;
use super::table::{Answer, Chain, Family, KNOCKS, Key, KeyType, Place, Rule, Set};
use crate::model::{Block, Cell, JailName, Knock, Log, Target};

/// The sets whose elements are dropped, in the order in which a packet meets them. Whole networks come last: few are
/// banned, and a lookup among intervals is the slower one.
const BANS: [(Family, KeyType, bool); 4] = [
    (Family::Ipv4, KeyType::Ipv4, false),
    (Family::Ipv6By64, KeyType::Ipv6, false),
    (Family::Ipv4, KeyType::Ipv4, true),
    (Family::Ipv6, KeyType::Ipv6, true),
];
/// The sets of banned hosts that tried again.
const TRIED_AGAIN: [(Family, KeyType); 2] =
    [(Family::Ipv4, KeyType::Ipv4), (Family::Ipv6By64, KeyType::Ipv6)];

/// The chain where a jail's packets come to.
pub fn first_chain(jail: &JailName) -> String {
    format!("jail_{jail}")
}

/// What counts all that a jail's bans drop.
pub fn counter_name(jail: &JailName) -> String {
    format!("{jail}_dropped")
}

/// What a line about a dropped packet begins with, up to `IN=`.
pub fn log_prefix(jail: &JailName) -> String {
    format!("nftjail {jail} dropped: ")
}

fn knocks_name(jail: &JailName, key: KeyType) -> String {
    bans_name(jail, key, false) + KNOCKS
}

/// The set where a jail keeps a banned host that tried again. There is none for networks.
pub fn knock_set(jail: &JailName, target: Target) -> Option<(String, Key)> {
    let key = if target.is_v4() { KeyType::Ipv4 } else { KeyType::Ipv6 };
    (!target.is_network()).then(|| (knocks_name(jail, key), Key::of(target)))
}

/// Both of these sets.
pub fn knock_sets(jail: &JailName) -> [String; 2] {
    TRIED_AGAIN.map(|(_, key)| knocks_name(jail, key))
}

/// The sets that a jail has beside those of its bans and its ports.
pub fn sets(cell: &Cell) -> Vec<Set> {
    let set = |(_, key): (Family, KeyType)| Set {
        name: knocks_name(&cell.jail, key),
        key,
        timeout: true,
        interval: false,
        dynamic: true,
        counter: false,
        size: Some(cell.capacity),
        comment: Some(format!("jail {} knocks", cell.jail)),
        elements: Vec::new(),
    };
    TRIED_AGAIN.into_iter().filter(|_| cell.knock.extends.is_some()).map(set).collect()
}

/// The chains of a jail. Where nothing is to be done but to drop, one will do. Otherwise a packet is sent where that is
/// done for whatever set it was found in: a second lookup would be counted as a second packet.
pub fn chains(cell: &Cell) -> Vec<Chain> {
    let jail = &cell.jail;
    let chain = |name: String, rules| Chain { name, place: Place::Jumped, rules };
    if cell.knock == Knock::default() {
        return vec![chain(first_chain(jail), drops(cell))];
    }
    let (drop, knock) = (format!("drop_{jail}"), format!("knock_{jail}"));
    let goto = |family, set, chain: &String| Rule::Goto { from: Some((family, set)), chain: chain.clone() };
    let Some(timeout) = cell.knock.extends else {
        let found = BANS.map(|(family, key, nets)| goto(family, bans_name(jail, key, nets), &drop));
        return vec![chain(first_chain(jail), found.into()), chain(drop, ends(cell))];
    };
    let by_host = |(family, key, nets): (_, _, bool)| {
        (!nets).then(|| goto(family, bans_name(jail, key, false), &knock))
    };
    let by_net =
        |(family, key, nets): (_, _, bool)| nets.then(|| goto(family, bans_name(jail, key, true), &drop));
    let again = |(family, key)| goto(family, knocks_name(jail, key), &knock);
    let hosts = BANS.into_iter().filter_map(by_host).chain(TRIED_AGAIN.map(again));
    let found = hosts.chain(BANS.into_iter().filter_map(by_net)).collect();
    let update = |(family, key)| Rule::Update { family, set: knocks_name(jail, key), timeout };
    let mut extend: Vec<Rule> = TRIED_AGAIN.map(update).into();
    extend.push(Rule::Goto { from: None, chain: drop.clone() });
    vec![chain(first_chain(jail), found), chain(knock, extend), chain(drop, ends(cell))]
}

/// Rules that drop what is found in a set, one by one. What is rejected is TCP first, since a reset is for TCP alone.
fn drops(cell: &Cell) -> Vec<Rule> {
    let answers: &[Answer] = match cell.block {
        Block::Drop => &[Answer::Nothing],
        Block::Reject => &[Answer::Reset, Answer::Unreachable],
    };
    let drop = |(family, key, nets)| {
        let (set, counter) = (bans_name(&cell.jail, key, nets), counter_name(&cell.jail));
        let one = move |answer: &Answer| Rule::Drop {
            family,
            set: set.clone(),
            counter: counter.clone(),
            answer: *answer,
        };
        answers.iter().map(one)
    };
    BANS.into_iter().flat_map(drop).collect()
}

/// Rules that tell of whoever comes to them, and drop him.
fn ends(cell: &Cell) -> Vec<Rule> {
    let jail = &cell.jail;
    let end = |answer, family| Rule::End { family, counter: counter_name(jail), answer };
    let log = Rule::Log { prefix: log_prefix(jail), to: cell.knock.log };
    let mut rules: Vec<Rule> = (cell.knock.log != Log::Nothing).then_some(log).into_iter().collect();
    match cell.block {
        Block::Drop => rules.push(end(Answer::Nothing, Family::Ipv4)),
        Block::Reject => rules.extend([
            end(Answer::Reset, Family::Ipv4),
            end(Answer::Unreachable, Family::Ipv4),
            end(Answer::Unreachable, Family::Ipv6),
        ]),
    }
    rules
}
