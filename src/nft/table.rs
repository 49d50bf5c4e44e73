//! What one nftables table holds, as plain values; `listing` prints them.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};

use crate::model::{Dropped, Hook, JailName, Log, Target};

/// The name of our table, in the family `inet`.
pub const TABLE: &str = "nftjail";

/// The shortest timeout that we ever program: 0 would be a permanent element, and what is less than a jiffy
/// the kernel rounds up to one.
pub const TIMEOUT_MIN: Duration = Duration::from_millis(1);

/// The longest timeout that we ever program: a hundred years. The kernel refuses 584 with ERANGE.
pub const TIMEOUT_MAX: Duration = Duration::from_secs(100 * 365 * 86_400);

/// How the name of a set of whole networks ends. No jail's name makes another set's name end so.
pub const NETS: &str = "_nets";

/// How the name of a set of banned hosts that tried again ends; nor does one make another's end so.
pub const KNOCKS: &str = "_knocks";

/// So many packets at once are told of to the kernel's own log, after that one a second.
pub const LOG_BURST: u32 = 10;

/// Our table as the kernel holds it; every list is in the kernel's order, which is the order of creation.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Table {
    pub comment: Option<String>,
    /// Nobody but its owner may change it: NFT_TABLE_F_OWNER and, so that it outlives the owner, NFT_TABLE_F_PERSIST.
    pub owned: bool,
    pub counters: Vec<Counter>,
    pub sets: Vec<Set>,
    pub chains: Vec<Chain>,
    /// Objects of kinds that we never write, by kind and name, such as `quota daily`.
    pub foreign: Vec<String>,
    /// How many elements each set holds, where the kernel tells it: Linux 6.18 does, 6.12 does not.
    pub counts: BTreeMap<String, u32>,
}

impl Table {
    pub fn set(&self, name: &str) -> Option<&Set> {
        self.sets.iter().find(|set| set.name == name)
    }

    pub fn chain(&self, name: &str) -> Option<&Chain> {
        self.chains.iter().find(|chain| chain.name == name)
    }

    pub fn counter(&self, name: &str) -> Option<&Counter> {
        self.counters.iter().find(|counter| counter.name == name)
    }

    /// Why packets from whom a jail bans would not be dropped; none where at each of these hooks, or at any where none
    /// is named, the kernel calls a chain that leads to rules that drop them, and nothing in it is not ours.
    pub fn gap(&self, jail: &JailName, hooks: &BTreeSet<Hook>) -> Option<String> {
        let ours = |chain: &&Chain| !chain.rules.iter().any(|rule| matches!(rule, Rule::Foreign(_)));
        for suffix in ["v4", "v6"] {
            let wanted = format!("{jail}_{suffix}");
            if self.set(&wanted).is_none() {
                return Some(format!("there is no set {wanted}"));
            }
            let drops = |rule: &Rule| match rule {
                Rule::Drop { set, .. } => *set == wanted,
                Rule::Goto { from: Some((_, set)), chain } => *set == wanted && self.ends(chain, GOTOS_MAX),
                _ => false,
            };
            let Some(chain) = self.chains.iter().filter(ours).find(|chain| chain.rules.iter().any(drops))
            else {
                return Some(format!("no rule drops what is in the set {wanted}"));
            };
            let has_ports = |rule: &Rule| match rule {
                Rule::JumpPorts { ports, .. } => self.set(ports).is_some_and(|set| !set.elements.is_empty()),
                _ => true,
            };
            let leads = |rule: &Rule| rule.target() == Some(&chain.name) && has_ports(rule);
            let gates = || self.chains.iter().filter(ours).filter(|gate| gate.rules.iter().any(leads));
            let at = |hook: Hook| gates().any(|gate| gate.place == Place::At(hook));
            if let Some(missing) = hooks.iter().find(|hook| !at(**hook)) {
                return Some(format!("no chain at {} leads to the chain {}", missing.name(), chain.name));
            }
            if !Hook::ALL.into_iter().any(at) {
                return Some(format!("no chain that the kernel calls leads to the chain {}", chain.name));
            }
        }
        None
    }

    /// Whether whoever comes to a chain is dropped in it, or in the last one that it leads to.
    fn ends(&self, chain: &str, gotos: u8) -> bool {
        let Some(chain) = self.chain(chain) else { return false };
        let is_end = |rule: &Rule| match rule {
            Rule::End { answer, .. } => *answer != Answer::Reset,
            Rule::Goto { from: None, chain } => gotos > 0 && self.ends(chain, gotos - 1),
            _ => false,
        };
        let ours = !chain.rules.iter().any(|rule| matches!(rule, Rule::Foreign(_)));
        ours && chain.rules.iter().any(is_end)
    }

    /// The bans that the table's elements are, of jails whose sets are named as ours; and where a host's own ban is
    /// over, but it tried again, that.
    pub fn standing(&self) -> impl Iterator<Item = Standing> {
        let of = |set: &Set, jail: Option<JailName>| -> Vec<Standing> {
            jail.map_or_else(Vec::new, |jail| {
                set.elements.iter().filter_map(|element| element.standing(&jail)).collect()
            })
        };
        let bans = move || self.sets.iter().flat_map(move |set| of(set, set.jail()));
        let mut knocks: Vec<Standing> = self.sets.iter().flat_map(|set| of(set, set.knocks_of())).collect();
        if !knocks.is_empty() {
            let known: BTreeSet<(JailName, Target)> = bans().map(|ban| (ban.jail, ban.target)).collect();
            knocks.retain(|knock| !known.contains(&(knock.jail.clone(), knock.target)));
        }
        bans().chain(knocks)
    }
}

/// More chains in a row than we ever write.
const GOTOS_MAX: u8 = 3;

/// A named counter: what one jail's bans dropped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counter {
    pub name: String,
    pub dropped: Dropped,
}

impl Counter {
    /// The jail that the counter counts for.
    pub fn jail(&self) -> Option<JailName> {
        self.name.strip_suffix("_dropped")?.parse().ok()
    }
}

/// A named set and its elements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    pub name: String,
    pub key: KeyType,
    pub timeout: bool,
    pub interval: bool,
    /// Rules add elements to it as packets come.
    pub dynamic: bool,
    /// Each element counts the packets that were looked up as it.
    pub counter: bool,
    /// The most elements it may hold; none where the kernel sets no bound.
    pub size: Option<u32>,
    pub comment: Option<String>,
    pub elements: Vec<Element>,
}

impl Set {
    /// The same set but for its elements.
    pub fn same_kind(&self, other: &Set) -> bool {
        self.key == other.key
            && (self.timeout, self.interval, self.size) == (other.timeout, other.interval, other.size)
            && (self.dynamic, self.counter) == (other.dynamic, other.counter)
            && self.comment == other.comment
    }

    /// The jail whose bans the set holds; none for other sets.
    pub fn jail(&self) -> Option<JailName> {
        let name = if self.interval { self.name.strip_suffix(NETS)? } else { &self.name };
        let key = if name.ends_with("_v4") { KeyType::Ipv4 } else { KeyType::Ipv6 };
        if self.key != key || !self.timeout {
            return None;
        }
        Set::jail_of(name)
    }

    /// The jail whose banned hosts that tried again the set holds.
    pub fn knocks_of(&self) -> Option<JailName> {
        Set::jail_of(self.name.strip_suffix(KNOCKS)?)
    }

    /// The jail whose bans of hosts a set of that name would hold.
    pub fn jail_of(name: &str) -> Option<JailName> {
        name.strip_suffix("_v4").or(name.strip_suffix("_v6"))?.parse().ok()
    }
}

/// What a set's elements are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyType {
    Ipv4,
    Ipv6,
    /// `inet_proto . inet_service`
    ProtoService,
    /// A map, or a kind of set that we never write.
    Foreign,
}

/// One element of a set; permanent where it has no timeout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Element {
    pub key: Key,
    pub timeout: Option<Duration>,
    /// The time left; where an element is added without it, all of its timeout is left.
    pub expires: Option<Duration>,
    /// What it counted, where its set has counters.
    pub dropped: Option<Dropped>,
}

impl Element {
    pub fn permanent(key: Key) -> Self {
        Element { key, timeout: None, expires: None, dropped: None }
    }

    /// The ban that the element is in a set of this jail; none for one that we would not have written.
    pub fn standing(&self, jail: &JailName) -> Option<Standing> {
        let Element { key, timeout, expires, .. } = *self;
        Some(Standing { jail: jail.clone(), target: key.target()?, timeout, expires })
    }

    /// An element as it may be programmed: times within `TIMEOUT_MIN..=TIMEOUT_MAX`, no more left than the
    /// whole, since the kernel refuses that with ERANGE.
    pub fn lasting(key: Key, timeout: Option<Duration>, expires: Option<Duration>) -> Self {
        let timeout = timeout.map(|timeout| timeout.clamp(TIMEOUT_MIN, TIMEOUT_MAX));
        let expires = timeout.and_then(|timeout| Some(expires?.clamp(TIMEOUT_MIN, timeout)));
        Element { key, timeout, expires, dropped: None }
    }

    /// The same, which has counted so much already.
    pub fn counted(self, dropped: Option<Dropped>) -> Self {
        Element { dropped, ..self }
    }
}

/// What identifies an element within its set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    Addr(IpAddr),
    /// The first and the last address of an interval, of one family.
    Range(IpAddr, IpAddr),
    /// Protocol number and port.
    Service(u8, u16),
}

impl Key {
    /// The element that bans a target.
    pub fn of(target: Target) -> Self {
        match target.is_network() {
            true => Key::Range(target.network(), target.net().broadcast()),
            false => Key::Addr(target.network()),
        }
    }

    /// The target that an element bans; none for an interval that we would not have written.
    pub fn target(self) -> Option<Target> {
        match self {
            Key::Addr(addr) => Some(Target::of(addr)),
            Key::Range(first, last) => {
                let net = IpNet::new(first, prefix_len(first, last)?).ok()?;
                Target::try_from(net).ok().filter(|target| Key::of(*target) == self)
            }
            Key::Service(..) => None,
        }
    }
}

/// The prefix length of an interval that is exactly one network.
pub fn prefix_len(first: IpAddr, last: IpAddr) -> Option<u8> {
    match (first, last) {
        (IpAddr::V4(first), IpAddr::V4(last)) => {
            let mut nets = Ipv4Subnets::new(first, last, 0);
            nets.next().filter(|net| net.broadcast() == last).map(|net| net.prefix_len())
        }
        (IpAddr::V6(first), IpAddr::V6(last)) => {
            let mut nets = Ipv6Subnets::new(first, last, 0);
            nets.next().filter(|net| net.broadcast() == last).map(|net| net.prefix_len())
        }
        _ => None,
    }
}

/// A chain and its rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    pub name: String,
    pub place: Place,
    pub rules: Vec<Rule>,
}

/// Where the kernel calls a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Nowhere: rules jump to it.
    Jumped,
    /// Prerouting at priority raw - 10: before connection tracking and before destination NAT, so that published
    /// container ports are covered and established connections are cut. The others at filter - 10, before what the
    /// host's own firewall mostly accepts.
    At(Hook),
    /// A hook, type, priority or policy that we never write.
    Foreign,
}

/// What a rule looks up of a packet's source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    Ipv4,
    Ipv6,
    /// The first 64 bits, which is what a ban of an IPv6 address covers.
    Ipv6By64,
}

/// The few rules that we write, and what stands for all others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Accepts sources in the set.
    Accept {
        family: Family,
        set: String,
    },
    /// Jumps where protocol and destination port are in the set.
    JumpPorts {
        ports: String,
        chain: String,
    },
    Jump {
        chain: String,
    },
    /// Counts and drops sources in the set, and answers them.
    Drop {
        family: Family,
        set: String,
        counter: String,
        answer: Answer,
    },
    /// Sends sources in the set, or everybody, to another chain for good.
    Goto {
        from: Option<(Family, String)>,
        chain: String,
    },
    /// Adds the source to the set, or begins its time there anew. Where the set is full, nothing is added and the next
    /// rule is asked: a rule that drops must not be the same.
    Update {
        family: Family,
        set: String,
        timeout: Duration,
    },
    /// Tells of the packet, to the kernel's own log so many times a second at the most.
    Log {
        prefix: String,
        to: Log,
    },
    /// Counts and drops whoever comes here, and answers. A family matters to [`Answer::Unreachable`] only.
    End {
        family: Family,
        counter: String,
        answer: Answer,
    },
    /// Not ours: the names of its expressions.
    Foreign(String),
}

impl Rule {
    /// The set that the rule looks into.
    pub fn set(&self) -> Option<&str> {
        match self {
            Rule::Accept { set, .. } | Rule::Drop { set, .. } | Rule::JumpPorts { ports: set, .. } => {
                Some(set)
            }
            Rule::Update { set, .. } | Rule::Goto { from: Some((_, set)), .. } => Some(set),
            Rule::Jump { .. }
            | Rule::Goto { from: None, .. }
            | Rule::Log { .. }
            | Rule::End { .. }
            | Rule::Foreign(_) => None,
        }
    }

    /// The counter that the rule counts with.
    pub fn counter(&self) -> Option<&str> {
        match self {
            Rule::Drop { counter, .. } | Rule::End { counter, .. } => Some(counter),
            _ => None,
        }
    }

    /// The chain that the rule leads to.
    pub fn target(&self) -> Option<&str> {
        match self {
            Rule::Jump { chain } | Rule::JumpPorts { chain, .. } | Rule::Goto { chain, .. } => Some(chain),
            _ => None,
        }
    }
}

/// What the sender of a dropped packet hears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Nothing,
    /// A TCP reset; the rule is for TCP alone.
    Reset,
    /// Port unreachable, by the ICMP of the rule's family.
    Unreachable,
}

/// A ban as the kernel holds it, or as it shall.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    pub jail: JailName,
    pub target: Target,
    /// The whole length of the ban; none where it never ends.
    pub timeout: Option<Duration>,
    /// The time left.
    pub expires: Option<Duration>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_time_is_programmed_that_the_kernel_reads_as_forever_or_refuses() {
        let key = Key::Addr("192.0.2.1".parse().unwrap());
        let element = |timeout, expires| {
            let ms = |ms| Some(Duration::from_millis(ms));
            let element = Element::lasting(key, ms(timeout), ms(expires));
            (element.timeout.unwrap().as_millis(), element.expires.unwrap().as_millis())
        };
        assert_eq!(element(0, 0), (1, 1));
        assert_eq!(element(600_000, 0), (600_000, 1));
        assert_eq!(element(600_000, 600_001), (600_000, 600_000));
        assert_eq!(element(u64::MAX, u64::MAX), (TIMEOUT_MAX.as_millis(), TIMEOUT_MAX.as_millis()));
    }
    #[test]
    fn a_table_that_lets_pass_is_told_from_one_that_drops() {
        let jail: JailName = "sshd".parse().unwrap();
        let ports = crate::model::Ports::Some([(crate::model::Protocol::Tcp, 22)].into());
        let (block, knock) = (crate::model::Block::Reject, crate::model::Knock::default());
        let hooks: BTreeSet<Hook> = [Hook::Prerouting, Hook::Input].into();
        let cell = crate::model::Cell {
            jail: jail.clone(),
            ports,
            block,
            hooks: hooks.clone(),
            capacity: 10,
            knock,
        };
        let layout = crate::model::Layout { cells: vec![cell], ..crate::model::Layout::default() };
        let whole = crate::nft::plan::wanted(&layout);
        assert_eq!(whole.gap(&jail, &hooks), None);
        let without = |change: &dyn Fn(&mut Table)| {
            let mut table = whole.clone();
            change(&mut table);
            table.gap(&jail, &hooks).unwrap_or_default()
        };
        let chain = |name: &'static str| {
            move |table: &mut Table, change: &dyn Fn(&mut Chain)| {
                change(table.chains.iter_mut().find(|chain| chain.name == name).unwrap());
            }
        };
        let (drops, gate) = (chain("jail_sshd"), chain("prerouting"));
        let foreign = || Rule::Foreign("x".to_owned());
        assert_eq!(
            without(&|table| table.sets.retain(|set| set.name != "sshd_v6")),
            "there is no set sshd_v6"
        );
        let no_rule = "no rule drops what is in the set sshd_v4";
        assert_eq!(without(&|table| drops(table, &|chain| chain.rules.clear())), no_rule);
        assert_eq!(without(&|table| drops(table, &|chain| chain.rules.insert(0, foreign()))), no_rule);
        let uncalled = "no chain at prerouting leads to the chain jail_sshd";
        assert_eq!(without(&|table| gate(table, &|chain| chain.rules.clear())), uncalled);
        assert_eq!(without(&|table| gate(table, &|chain| chain.rules.push(foreign()))), uncalled);
        assert_eq!(without(&|table| gate(table, &|chain| chain.place = Place::Jumped)), uncalled);
        let no_ports = |table: &mut Table| {
            let ports = table.sets.iter_mut().filter(|set| set.name == "sshd_ports");
            ports.for_each(|set| set.elements.clear());
        };
        assert_eq!(without(&no_ports), uncalled);
        let mut one = whole.clone();
        gate(&mut one, &|chain| chain.rules.clear());
        assert_eq!(one.gap(&jail, &BTreeSet::new()), None, "it is met at input");
        one.chains.retain(|chain| chain.name != "input");
        assert!(one.gap(&jail, &BTreeSet::new()).is_some());
    }
}
