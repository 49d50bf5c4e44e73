//! The lines of one connection: what they say together that none of them says alone.
#![forbid(unsafe_code)]

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use crate::model::Timestamp;

/// The most sessions a rule remembers; beyond it the oldest is forgotten.
pub const SESSIONS_MAX: usize = 4096;
/// How long after its first line a session is remembered.
pub const SESSION_AGE_MAX: Duration = Duration::from_secs(300);
/// The most user names a session remembers; a further one counts as new each time.
const NAMES_MAX: usize = 4;
/// How much of a name or key is kept.
const TEXT_BYTES_MAX: usize = 128;

/// What a line is to its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It counts.
    Failure,
    /// It is a good log-in.
    Success,
    /// It only tells more: the address, the user.
    Told,
}

/// A line as its session sees it. `debt` is what a failure without an address will be counted as.
#[derive(Clone, Copy, Debug)]
pub struct Told<'a> {
    pub role: Role,
    pub addr: Option<IpAddr>,
    pub user: &'a [u8],
    pub ends: bool,
    pub debt: Debt,
}

/// A failure as its pattern weighs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Debt {
    pub pattern: usize,
    pub weight: u32,
}

/// What follows from a line and all that its session knew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Nothing,
    Failure { addr: IpAddr, user: Option<String>, debt: Debt },
    Success { addr: IpAddr, user: Option<String> },
}

#[derive(Clone, Debug)]
struct Session {
    began: Timestamp,
    serial: u64,
    addr: Option<IpAddr>,
    names: Vec<String>,
    /// A failure that waits for a line with the address.
    owed: Option<Debt>,
}

/// The sessions of one rule.
#[derive(Clone, Debug, Default)]
pub struct Sessions {
    open: HashMap<Box<[u8]>, Session>,
    /// Oldest first; a session that was closed meanwhile is still listed.
    order: VecDeque<(u64, Box<[u8]>)>,
    serial: u64,
}

impl Sessions {
    /// Takes in a line of the session `key`; an empty key is a line without a session.
    ///
    /// 1. A session has one address: a line with another one belongs to a new session under an old number,
    ///    so nobody pays for what another did.
    /// 2. A failure is charged to the line's address, else to the session's, else it is owed until a line of
    ///    the session brings the address. Owed and counted together is one event, told in two lines: it
    ///    counts once, with the greater weight.
    /// 3. A second user name is a failure by itself, whichever line brings it, and so is a success after it.
    /// 4. A success cancels what is owed, and ends the session.
    pub fn handle(&mut self, key: &[u8], line: Told, now: Timestamp) -> Outcome {
        if key.is_empty() {
            return lone(line);
        }
        let key = &key[..key.len().min(TEXT_BYTES_MAX)];
        let mut session = self.take(key, &line, now);
        session.addr = line.addr.or(session.addr);
        let is_new_name = session.learn(line.user);
        let debt = match line.role {
            Role::Success => {
                session.owed = None;
                (session.names.len() > 1).then_some(line.debt)
            }
            Role::Told => session.owed.or((is_new_name && session.names.len() > 1).then_some(line.debt)),
            Role::Failure => {
                Some(session.owed.filter(|owed| owed.weight > line.debt.weight).unwrap_or(line.debt))
            }
        };
        let outcome = match (session.addr, debt) {
            (Some(addr), Some(debt)) => {
                session.owed = None;
                Outcome::Failure { addr, user: session.names.last().cloned(), debt }
            }
            (Some(addr), None) if line.role == Role::Success => {
                Outcome::Success { addr, user: session.names.last().cloned() }
            }
            (None, debt) => {
                session.owed = if line.role == Role::Success { None } else { debt };
                Outcome::Nothing
            }
            _ => Outcome::Nothing,
        };
        if !line.ends && line.role != Role::Success {
            self.keep(key, session);
        }
        outcome
    }

    /// How many sessions are remembered.
    pub fn len(&self) -> usize {
        self.open.len()
    }

    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// The session that a line belongs to, taken out; a new one where there is none.
    fn take(&mut self, key: &[u8], line: &Told, now: Timestamp) -> Session {
        let found = self.open.remove(key).filter(|session| {
            let is_same = line.addr.is_none() || session.addr.is_none() || session.addr == line.addr;
            is_same && now.since(session.began) <= SESSION_AGE_MAX
        });
        found.unwrap_or_else(|| {
            self.serial += 1;
            Session { began: now, serial: self.serial, addr: None, names: Vec::new(), owed: None }
        })
    }

    fn keep(&mut self, key: &[u8], session: Session) {
        // A new session has a number above every listed one.
        if self.order.back().is_none_or(|(last, _)| *last < session.serial) {
            self.order.push_back((session.serial, key.into()));
        }
        self.open.insert(key.into(), session);
        while self.open.len() > SESSIONS_MAX {
            let Some((serial, oldest)) = self.order.pop_front() else { break };
            if self.open.get(&oldest).is_some_and(|session| session.serial == serial) {
                self.open.remove(&oldest);
            }
        }
        if self.order.len() > 2 * SESSIONS_MAX {
            let open = &self.open;
            self.order.retain(|(serial, key)| open.get(key).is_some_and(|session| session.serial == *serial));
        }
    }
}

/// A line that no session joins speaks for itself.
fn lone(line: Told) -> Outcome {
    let user = (!line.user.is_empty()).then(|| printable(line.user));
    match (line.addr, line.role) {
        (Some(addr), Role::Failure) => Outcome::Failure { addr, user, debt: line.debt },
        (Some(addr), Role::Success) => Outcome::Success { addr, user },
        _ => Outcome::Nothing,
    }
}

impl Session {
    /// Remembers a user name, last one last; whether it is new.
    fn learn(&mut self, user: &[u8]) -> bool {
        if user.is_empty() {
            return false;
        }
        let user = printable(user);
        let known = self.names.iter().position(|name| *name == user);
        if let Some(index) = known {
            self.names.remove(index);
        }
        self.names.push(user);
        if self.names.len() > NAMES_MAX {
            self.names.remove(0);
        }
        known.is_none()
    }
}

/// A user name to keep: the start of it, with what is not UTF-8 replaced.
pub fn printable(user: &[u8]) -> String {
    String::from_utf8_lossy(&user[..user.len().min(TEXT_BYTES_MAX)]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "192.0.2.1";
    const B: &str = "192.0.2.2";

    struct Scene {
        sessions: Sessions,
        now: Timestamp,
    }

    impl Scene {
        fn new() -> Self {
            Scene { sessions: Sessions::default(), now: Timestamp::from_millis(0) }
        }

        /// The address that a line of session `key` charges.
        fn line(&mut self, key: &str, role: Role, addr: &str, user: &str) -> Option<String> {
            self.full(key, role, addr, user, false)
        }

        fn full(&mut self, key: &str, role: Role, addr: &str, user: &str, ends: bool) -> Option<String> {
            let debt = Debt { pattern: 0, weight: 1 };
            let told = Told { role, addr: addr.parse().ok(), user: user.as_bytes(), ends, debt };
            match self.sessions.handle(key.as_bytes(), told, self.now) {
                Outcome::Failure { addr, .. } => Some(addr.to_string()),
                _ => None,
            }
        }
    }

    use Role::{Failure, Success, Told as Helper};

    #[test]
    fn a_failure_waits_for_its_address() {
        let mut scene = Scene::new();
        assert_eq!(scene.line("1", Failure, "", "root"), None);
        assert_eq!(scene.line("2", Helper, B, ""), None);
        assert_eq!(scene.line("1", Helper, A, ""), Some(A.to_owned()));
        assert_eq!(scene.line("1", Helper, A, ""), None);
    }

    #[test]
    fn a_failure_is_charged_to_the_address_its_session_brought_before() {
        let mut scene = Scene::new();
        assert_eq!(scene.line("1", Helper, A, ""), None);
        assert_eq!(scene.line("1", Failure, "", ""), Some(A.to_owned()));
        assert_eq!(scene.line("1", Failure, "", ""), Some(A.to_owned()));
    }

    #[test]
    fn success_forgets() {
        let mut scene = Scene::new();
        assert_eq!(scene.line("1", Failure, "", "alice"), None);
        assert_eq!(scene.line("1", Success, A, "alice"), None);
        assert_eq!(scene.line("1", Helper, A, ""), None);
    }

    #[test]
    fn two_names_on_one_connection_are_a_failure() {
        let mut scene = Scene::new();
        assert_eq!(scene.line("1", Helper, A, "root"), None);
        assert_eq!(scene.line("1", Helper, A, "root"), None);
        assert_eq!(scene.line("1", Success, A, "alice"), Some(A.to_owned()));
        assert_eq!(scene.line("1", Success, A, "alice"), None);
    }

    #[test]
    fn another_address_under_the_same_number_is_another_session() {
        let mut scene = Scene::new();
        assert_eq!(scene.line("1", Helper, A, "root"), None);
        assert_eq!(scene.line("1", Helper, B, "alice"), None);
        assert_eq!(scene.line("1", Failure, "", ""), Some(B.to_owned()));
    }

    #[test]
    fn what_ended_or_is_old_is_forgotten() {
        let mut scene = Scene::new();
        assert_eq!(scene.full("1", Failure, "", "", true), None);
        assert_eq!(scene.line("1", Helper, A, ""), None);
        assert_eq!(scene.line("2", Failure, "", ""), None);
        scene.now = scene.now.plus(SESSION_AGE_MAX).plus(Duration::from_millis(1));
        assert_eq!(scene.line("2", Helper, A, ""), None);
    }

    #[test]
    fn the_oldest_gives_way() {
        let mut scene = Scene::new();
        for number in 0..3 * SESSIONS_MAX {
            assert_eq!(scene.line(&number.to_string(), Failure, "", "x"), None);
            scene.full(&format!("closed {number}"), Failure, "", "x", true);
        }
        assert_eq!(scene.sessions.len(), SESSIONS_MAX);
        assert!(scene.sessions.order.len() <= 2 * SESSIONS_MAX);
        assert_eq!(scene.line("0", Helper, A, ""), None);
        assert_eq!(scene.line(&(3 * SESSIONS_MAX - 1).to_string(), Helper, A, ""), Some(A.to_owned()));
    }

    #[test]
    fn a_line_without_a_session_speaks_for_itself() {
        let mut scene = Scene::new();
        assert_eq!(scene.line("", Failure, "", "root"), None);
        assert_eq!(scene.line("", Helper, A, ""), None);
        assert_eq!(scene.line("", Failure, A, "root"), Some(A.to_owned()));
    }
}
