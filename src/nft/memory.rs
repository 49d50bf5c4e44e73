//! A firewall in memory: refuses what the kernel refuses; time does not pass in it, that is its caller's part.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use rustix::io::Errno;

use super::table::{Element, Key, Rule, Set, Table};
use super::transaction::{Operation, Transaction};
use super::{Firewall, Refusal};
use crate::model::{Dropped, JailName};

/// Holds what was committed; starts without a table.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    table: Option<Held>,
}

#[derive(Clone, Debug, Default)]
struct Held {
    /// Without elements.
    table: Table,
    elements: BTreeMap<String, Contents>,
}

/// The elements of one set.
type Contents = BTreeMap<Key, Element>;

/// A refusal of one operation: which element, and why.
type Fault = (Option<usize>, Errno);

impl Memory {
    /// Sets what a jail's bans dropped, as packets would.
    pub fn set_dropped(&mut self, jail: &JailName, dropped: Dropped) {
        let name = format!("{jail}_dropped");
        let counters = self.table.iter_mut().flat_map(|held| &mut held.table.counters);
        counters.filter(|counter| counter.name == name).for_each(|counter| counter.dropped = dropped);
    }

    /// Forgets everything, as `nft flush ruleset` makes the kernel.
    pub fn flush(&mut self) {
        self.table = None;
    }
}

impl Firewall for Memory {
    fn commit(&mut self, transaction: &Transaction) -> Result<(), Refusal> {
        let mut table = self.table.clone();
        for (operation, what) in transaction.operations().iter().enumerate() {
            perform(&mut table, what)
                .map_err(|(element, errno)| explain(&table, what, operation, element, errno))?;
        }
        self.table = table;
        Ok(())
    }

    fn table(&mut self, elements: bool) -> Result<Option<Table>, Refusal> {
        Ok(self.table.as_ref().map(|held| {
            let mut table = held.table.clone();
            for set in table.sets.iter_mut().filter(|set| elements || !set.timeout || set.interval) {
                set.elements = held.elements[&set.name].values().cloned().collect();
            }
            let count = |(name, contents): (&String, &Contents)| (name.clone(), contents.len() as u32);
            table.counts = held.elements.iter().map(count).collect();
            table
        }))
    }

    fn dropped(&mut self) -> Result<BTreeMap<JailName, Dropped>, Refusal> {
        let counters = self.table.iter().flat_map(|held| &held.table.counters);
        Ok(counters.filter_map(|counter| Some((counter.jail()?, counter.dropped))).collect())
    }

    fn element(&mut self, set: &str, key: Key) -> Result<Option<Element>, Refusal> {
        Ok(self.elements(set)?.into_iter().find(|element| element.key == key))
    }

    fn elements(&mut self, set: &str) -> Result<Vec<Element>, Refusal> {
        let contents = self.table.as_ref().and_then(|held| held.elements.get(set));
        Ok(contents.map_or_else(Vec::new, |contents| contents.values().cloned().collect()))
    }
}

fn explain(
    table: &Option<Held>,
    what: &Operation,
    operation: usize,
    element: Option<usize>,
    errno: Errno,
) -> Refusal {
    let size = |set: &str| table.as_ref()?.table.set(set)?.size;
    let doing = what.doing();
    match (errno, what.elements()) {
        (Errno::NFILE, Some((set, _))) => {
            let (set, size) = (set.to_owned(), size(set).unwrap_or(0));
            Refusal::Full { operation, element, set, size }
        }
        (Errno::EXIST, Some((set, _))) => Refusal::Overlaps { operation, element, set: set.to_owned() },
        (Errno::NOENT, _) => Refusal::Missing { operation, element, doing },
        _ => Refusal::Failed { operation: Some(operation), element, doing, errno },
    }
}

fn perform(table: &mut Option<Held>, what: &Operation) -> Result<(), Fault> {
    match what {
        Operation::AddTable { comment, owned } => {
            table.get_or_insert_with(|| {
                let table = Table { comment: Some(comment.clone()), owned: *owned, ..Table::default() };
                Held { table, elements: BTreeMap::new() }
            });
            Ok(())
        }
        Operation::DeleteTable => table.take().map(drop).ok_or((None, Errno::NOENT)),
        _ => perform_in(table.as_mut().ok_or((None, Errno::NOENT))?, what),
    }
}

fn perform_in(held: &mut Held, what: &Operation) -> Result<(), Fault> {
    let table = &mut held.table;
    match what {
        Operation::AddTable { .. } | Operation::DeleteTable => {}
        Operation::AddCounter(counter) => {
            if table.counter(&counter.name).is_none() {
                table.counters.push(counter.clone());
            }
        }
        Operation::DeleteCounter(name) => {
            free(table, |rule| rule.counter() == Some(name))?;
            remove(&mut table.counters, |counter| counter.name == *name)?;
        }
        Operation::AddSet(set) => match table.set(&set.name) {
            Some(known) if known.same_kind(set) => {}
            Some(_) => return Err((None, Errno::EXIST)),
            None => {
                table.sets.push(Set { elements: Vec::new(), ..set.clone() });
                held.elements.insert(set.name.clone(), Contents::default());
            }
        },
        Operation::DeleteSet(name) => {
            free(table, |rule| rule.set() == Some(name))?;
            remove(&mut table.sets, |set| set.name == *name)?;
            held.elements.remove(name);
        }
        Operation::FlushSet(name) => {
            let contents = held.elements.get_mut(name).ok_or((None, Errno::NOENT))?;
            contents.clear();
        }
        Operation::AddElements { set, elements } => {
            let kind = table.set(set).ok_or((None, Errno::NOENT))?;
            let contents = held.elements.get_mut(set).ok_or((None, Errno::NOENT))?;
            add(contents, kind, elements)?;
        }
        Operation::DeleteElements { set, elements } => {
            let contents = held.elements.get_mut(set).ok_or((None, Errno::NOENT))?;
            for (index, element) in elements.iter().enumerate() {
                contents.remove(&element.key).ok_or((Some(index), Errno::NOENT))?;
            }
        }
        Operation::AddChain(chain) => match table.chain(&chain.name) {
            Some(known) if known.place == chain.place => {}
            Some(_) => return Err((None, Errno::EXIST)),
            None => table.chains.push(chain.clone()),
        },
        Operation::FlushChain(name) => {
            let chain = table.chains.iter_mut().find(|chain| chain.name == *name);
            chain.ok_or((None, Errno::NOENT))?.rules.clear();
        }
        Operation::DeleteChain(name) => {
            free(table, |rule| rule.target() == Some(name))?;
            remove(&mut table.chains, |chain| chain.name == *name)?;
        }
        Operation::AddRule { chain, rule } => {
            let set_there = rule.set().is_none_or(|set| table.set(set).is_some());
            let chain_there = rule.target().is_none_or(|chain| table.chain(chain).is_some());
            let found = table.chains.iter_mut().find(|known| known.name == *chain);
            match found {
                Some(found) if set_there && chain_there => found.rules.push(rule.clone()),
                _ => return Err((None, Errno::NOENT)),
            }
        }
    }
    Ok(())
}

fn add(contents: &mut Contents, kind: &Set, elements: &[Element]) -> Result<(), Fault> {
    for (index, element) in elements.iter().enumerate() {
        let interval = matches!(element.key, Key::Range(..));
        if interval && contents.keys().any(|key| overlap(*key, element.key)) {
            return Err((Some(index), Errno::EXIST));
        }
        let taken = contents.len();
        match contents.entry(element.key) {
            // What exists keeps its timer, as on Linux before 6.12.
            Entry::Occupied(_) => {}
            Entry::Vacant(_) if kind.size.is_some_and(|size| taken >= size as usize) => {
                return Err((Some(index), Errno::NFILE));
            }
            Entry::Vacant(entry) => {
                let expires = element.expires.or(element.timeout);
                let dropped = element.dropped.or(kind.counter.then(Dropped::default));
                entry.insert(Element { expires, dropped, ..element.clone() });
            }
        }
    }
    Ok(())
}

/// Whether two intervals that are not the same share an address.
fn overlap(one: Key, other: Key) -> bool {
    match (one, other) {
        (Key::Range(first, last), Key::Range(other_first, other_last)) => {
            one != other && first <= other_last && other_first <= last
        }
        _ => false,
    }
}

fn free(table: &Table, used: impl Fn(&Rule) -> bool) -> Result<(), Fault> {
    match table.chains.iter().any(|chain| chain.rules.iter().any(&used)) {
        true => Err((None, Errno::BUSY)),
        false => Ok(()),
    }
}

fn remove<T>(list: &mut Vec<T>, matches: impl Fn(&T) -> bool) -> Result<(), Fault> {
    let at = list.iter().position(matches).ok_or((None, Errno::NOENT))?;
    list.remove(at);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Layout, Timestamp};
    use crate::nft::plan;

    fn with_jail() -> (Memory, JailName) {
        let (mut memory, jail): (Memory, JailName) = (Memory::default(), "sshd".parse().unwrap());
        let cell = crate::model::Cell {
            jail: jail.clone(),
            ports: crate::model::Ports::All,
            block: crate::model::Block::Drop,
            hooks: [crate::model::Hook::Prerouting].into(),
            capacity: 1,
            knock: crate::model::Knock::default(),
        };
        let layout = Layout { cells: vec![cell], ..Layout::default() };
        memory.commit(&plan::install(&layout, None, &[])).unwrap();
        (memory, jail)
    }

    #[test]
    fn what_is_refused_changes_nothing() {
        let (mut memory, jail) = with_jail();
        let before = memory.table(true);
        let bantime = crate::model::Bantime::Forever;
        let ban = |addr: &str| {
            let target = addr.parse().unwrap();
            crate::model::Change::Ban(crate::model::Ban {
                jail: jail.clone(),
                target,
                at: Timestamp::default(),
                bantime,
            })
        };
        let transaction = plan::apply(&[ban("192.0.2.2"), ban("192.0.2.1")], Timestamp::default());
        let refusal = memory.commit(&transaction).unwrap_err();
        assert_eq!(refusal.to_string(), "set sshd_v4 is full (1 elements)");
        assert_eq!(refusal.change(&transaction), Some(0), "it is the second by address");
        assert_eq!(memory.table(true), before);
    }

    #[test]
    fn what_is_in_use_cannot_be_deleted_and_what_is_not_there_neither() {
        let (mut memory, jail) = with_jail();
        let mut refuses = |operation: Operation, errno: Option<Errno>| {
            let mut transaction = Transaction::default();
            transaction.push(operation);
            match memory.commit(&transaction) {
                Err(Refusal::Failed { errno: found, .. }) => assert_eq!(Some(found), errno),
                other => {
                    assert!(errno.is_none() && matches!(other, Err(Refusal::Missing { .. })), "{other:?}")
                }
            }
        };
        refuses(Operation::DeleteSet("sshd_v4".into()), Some(Errno::BUSY));
        refuses(Operation::DeleteCounter("sshd_dropped".into()), Some(Errno::BUSY));
        refuses(Operation::DeleteChain("jail_sshd".into()), Some(Errno::BUSY));
        refuses(Operation::DeleteSet("nosuch".into()), None);
        let dropped = Dropped { packets: 1, bytes: 40 };
        memory.set_dropped(&jail, dropped);
        assert_eq!(memory.dropped().unwrap()[&jail], dropped);
        memory.flush();
        assert_eq!(memory.table(true), Ok(None));
    }
}
