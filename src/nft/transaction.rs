//! What shall change in the kernel, all at once or not at all; prints as an nft script.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use super::table::{Chain, Counter, Element, Place, Rule, Set, TABLE};

/// The most elements in one message. An interval of IPv6 with a counter takes 132 bytes at most, and the list of them
/// must stay below 64 KiB: an attribute's length is 16 bits wide, and the kernel takes what wraps for a shorter list.
pub const ELEMENTS_MAX: usize = 490;

/// One message to the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Creates the table where it does not exist, and owns it from now on where that is asked for.
    AddTable {
        comment: String,
        owned: bool,
    },
    DeleteTable,
    AddCounter(Counter),
    DeleteCounter(String),
    /// Creates the set; its elements are added by operations of their own.
    AddSet(Set),
    DeleteSet(String),
    FlushSet(String),
    /// Adds elements; one that exists keeps its timer on Linux before 6.12, and everywhere if the timeout is
    /// equal.
    AddElements {
        set: String,
        elements: Arc<[Element]>,
    },
    /// Deletes elements, each of which must exist.
    DeleteElements {
        set: String,
        elements: Arc<[Element]>,
    },
    /// Creates the chain; its rules are added by operations of their own.
    AddChain(Chain),
    /// Deletes all rules of the chain.
    FlushChain(String),
    DeleteChain(String),
    AddRule {
        chain: String,
        rule: Rule,
    },
}

impl Operation {
    /// What the operation does, as part of a sentence: `deleting set sshd_v4`.
    pub fn doing(&self) -> String {
        match self {
            Operation::AddTable { .. } => format!("adding table inet {TABLE}"),
            Operation::DeleteTable => format!("deleting table inet {TABLE}"),
            Operation::AddCounter(counter) => format!("adding counter {}", counter.name),
            Operation::DeleteCounter(name) => format!("deleting counter {name}"),
            Operation::AddSet(set) => format!("adding set {}", set.name),
            Operation::DeleteSet(name) => format!("deleting set {name}"),
            Operation::FlushSet(name) => format!("flushing set {name}"),
            Operation::AddElements { set, .. } => format!("adding to set {set}"),
            Operation::DeleteElements { set, .. } => format!("deleting from set {set}"),
            Operation::AddChain(chain) => format!("adding chain {}", chain.name),
            Operation::FlushChain(name) => format!("flushing chain {name}"),
            Operation::DeleteChain(name) => format!("deleting chain {name}"),
            Operation::AddRule { chain, rule } => format!("adding \"{rule}\" to chain {chain}"),
        }
    }

    /// The elements that the operation adds or deletes, and their set.
    pub fn elements(&self) -> Option<(&str, &[Element])> {
        match self {
            Operation::AddElements { set, elements } | Operation::DeleteElements { set, elements } => {
                Some((set, elements))
            }
            _ => None,
        }
    }
}

/// Operations that the kernel makes true in one instant, or refuses together.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Transaction {
    operations: Vec<Operation>,
    /// For the operations that come from changes: the change of each element.
    origins: BTreeMap<usize, Arc<[usize]>>,
}

impl Transaction {
    pub fn operations(&self) -> &[Operation] {
        &self.operations
    }

    pub fn is_empty(&self) -> bool {
        self.operations.is_empty()
    }

    /// Which of the changes that `plan::apply` was given an element of an operation stands for.
    pub fn change_at(&self, operation: usize, element: usize) -> Option<usize> {
        self.origins.get(&operation)?.get(element).copied()
    }

    /// The bound of a set that the transaction creates.
    pub fn size_of(&self, name: &str) -> Option<u32> {
        self.operations.iter().find_map(|operation| match operation {
            Operation::AddSet(set) if set.name == name => set.size,
            _ => None,
        })
    }

    /// Appends an operation of at most `ELEMENTS_MAX` elements.
    pub fn push(&mut self, operation: Operation) {
        debug_assert!(operation.elements().is_none_or(|(_, elements)| elements.len() <= ELEMENTS_MAX));
        self.operations.push(operation);
    }

    /// As `push`, where each element stands for a change.
    pub fn push_from(&mut self, operation: Operation, changes: Arc<[usize]>) {
        self.origins.insert(self.operations.len(), changes);
        self.push(operation);
    }
}

/// A script for `nft -f`, which commits it as one transaction too.
impl fmt::Display for Transaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.operations.iter().try_for_each(|operation| writeln!(f, "{operation}"))
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Operation::AddTable { comment, owned } => {
                let flags = if *owned { "flags owner,persist ; " } else { "" };
                write!(f, "add table inet {TABLE} {{ {flags}comment \"{comment}\" ; }}")
            }
            Operation::DeleteTable => write!(f, "delete table inet {TABLE}"),
            Operation::AddCounter(Counter { name, dropped }) => {
                let (packets, bytes) = (dropped.packets, dropped.bytes);
                write!(f, "add counter inet {TABLE} {name} {{ packets {packets} bytes {bytes} ; }}")
            }
            Operation::DeleteCounter(name) => write!(f, "delete counter inet {TABLE} {name}"),
            Operation::AddSet(set) => {
                write!(f, "add set inet {TABLE} {} {{ {}; }}", set.name, set.properties().join("; "))
            }
            Operation::DeleteSet(name) => write!(f, "delete set inet {TABLE} {name}"),
            Operation::FlushSet(name) => write!(f, "flush set inet {TABLE} {name}"),
            Operation::AddElements { set, elements } => {
                let texts: Vec<String> = elements.iter().map(Element::to_string).collect();
                write!(f, "add element inet {TABLE} {set} {{ {} }}", texts.join(", "))
            }
            Operation::DeleteElements { set, elements } => {
                let texts: Vec<String> = elements.iter().map(|element| element.key.to_string()).collect();
                write!(f, "delete element inet {TABLE} {set} {{ {} }}", texts.join(", "))
            }
            Operation::AddChain(Chain { name, place: Place::Jumped, .. }) => {
                write!(f, "add chain inet {TABLE} {name}")
            }
            Operation::AddChain(Chain { name, place, .. }) => {
                write!(f, "add chain inet {TABLE} {name} {{ {place} }}")
            }
            Operation::FlushChain(name) => write!(f, "flush chain inet {TABLE} {name}"),
            Operation::DeleteChain(name) => write!(f, "delete chain inet {TABLE} {name}"),
            Operation::AddRule { chain, rule } => write!(f, "add rule inet {TABLE} {chain} {rule}"),
        }
    }
}
