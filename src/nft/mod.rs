//! Ban → set element: what the kernel shall hold, planned as transactions, sent through netlink, read back.
#![forbid(unsafe_code)]

pub mod banned;
pub mod memory;
pub mod netlink;
pub mod news;
pub mod plan;
pub mod surroundings;
pub mod table;
pub mod transaction;

mod attribute;
mod expression;
mod listing;
mod reply;
mod rule;
mod wire;

use std::collections::BTreeMap;

use rustix::io::Errno;

use crate::model::{Dropped, JailName, Target};
use plan::set_name;
use table::{Element, Key, Standing, TABLE, Table};
use transaction::Transaction;

/// Something that holds our table: the kernel, or a stand-in that refuses what the kernel refuses.
/// Its calls block, so it belongs on a thread of its own.
pub trait Firewall: Send {
    /// Makes all of the transaction true, or nothing of it.
    fn commit(&mut self, transaction: &Transaction) -> Result<(), Refusal>;

    /// Reads our table back; none where it does not exist. Without `elements` the sets of
    /// banned hosts come back empty.
    /// Reading them takes 0.2 s at 100,000 bans and 40 s at a million: the kernel walks the set anew for every
    /// 32 KiB of answer.
    fn table(&mut self, elements: bool) -> Result<Option<Table>, Refusal>;

    /// What each jail's bans dropped so far; empty where the table does not exist.
    fn dropped(&mut self) -> Result<BTreeMap<JailName, Dropped>, Refusal>;

    /// One element, without reading its set; none where it or its set does not exist.
    fn element(&mut self, set: &str, key: Key) -> Result<Option<Element>, Refusal>;

    /// All elements of a set, which takes as long as in [`Firewall::table`]; none where it does not exist.
    fn elements(&mut self, set: &str) -> Result<Vec<Element>, Refusal>;

    /// One ban, without reading its set; none where it is not in force, or its set does not exist.
    fn remaining(&mut self, jail: &JailName, target: Target) -> Result<Option<Standing>, Refusal> {
        let element = self.element(&set_name(jail, target), Key::of(target))?;
        Ok(element.and_then(|element| element.standing(jail)))
    }
}

/// Why nothing was changed, or read. `operation` counts within the transaction, `element` within the operation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("not allowed to change the firewall: run as root or give it CAP_NET_ADMIN")]
    NotPermitted,

    #[error("this kernel has no nf_tables: load it with modprobe nf_tables")]
    NoNfTables,

    #[error("set {set} is full ({size} elements)")]
    Full { operation: usize, element: Option<usize>, set: String, size: u32 },

    #[error("set {set} holds a network that overlaps it")]
    Overlaps { operation: usize, element: Option<usize>, set: String },

    #[error("{doing}: no such thing in the kernel; somebody else removed it, or all of table inet {TABLE}")]
    Missing { operation: usize, element: Option<usize>, doing: String },

    #[error("the kernel's answers were lost: whether it took the transaction is not known")]
    Lost,

    #[error("the ruleset kept changing while it was read; try again")]
    Restless,

    #[error("{doing}: {errno}")]
    Failed { operation: Option<usize>, element: Option<usize>, doing: String, errno: Errno },
}

impl Refusal {
    /// The operation that was refused, where it was one.
    pub fn operation(&self) -> Option<usize> {
        match self {
            Refusal::Full { operation, .. }
            | Refusal::Overlaps { operation, .. }
            | Refusal::Missing { operation, .. } => Some(*operation),
            Refusal::Failed { operation, .. } => *operation,
            _ => None,
        }
    }

    /// The first element of that operation which was refused, where it was one.
    pub fn element(&self) -> Option<usize> {
        match self {
            Refusal::Full { element, .. }
            | Refusal::Overlaps { element, .. }
            | Refusal::Missing { element, .. }
            | Refusal::Failed { element, .. } => *element,
            _ => None,
        }
    }

    /// The one of the changes given to `plan::apply` that was refused, where it was one.
    pub fn change(&self, transaction: &Transaction) -> Option<usize> {
        transaction.change_at(self.operation()?, self.element()?)
    }
}
