//! The control protocol, and the side of it that asks.
//!
//! A client connects to the Unix socket and sends one question: its length as four bytes, big-endian, at most
//! 65,536, then so many bytes of JSON: `{"version": 1, "request": {"status": {"jail": null}}}`. The agent answers in
//! the same form, `{"status": {...}}`, and hangs up; only `watch` is answered by one message after the other, until
//! the client hangs up. What cannot be done is answered `{"failed": {"why": "not_found", "message": "..."}}`. The
//! names of requests and answers are those of [`Request`] and [`Response`], in snake_case.

use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use ipnet::IpNet;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::model::{Bantime, JailName, Target, Timestamp, plain};
use crate::status::{BanStatus, History, IgnoredStatus, News, Past, Status, Why};

/// The version of the protocol; another number means that questions or answers changed their meaning.
pub const VERSION: u32 = 1;

/// Where the agent listens when nothing else is said.
pub const SOCKET: &str = "/run/nftjail/control.sock";

/// A question as it is sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    pub version: u32,
    pub request: Request,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    Status {
        jail: Option<JailName>,
    },
    Bans {
        jail: Option<JailName>,
    },
    /// Without a `bantime`, for the jail's own.
    Ban {
        jail: JailName,
        targets: Vec<Target>,
        bantime: Option<Bantime>,
    },
    /// Without a jail, from every jail.
    Unban {
        whom: Whom,
        jail: Option<JailName>,
    },
    /// One failure of an address, as if a log had shown it.
    Attempt {
        jail: JailName,
        addr: IpAddr,
    },
    /// Whether a jail stops listening for now; its bans stay.
    Pause {
        jail: JailName,
        paused: bool,
    },
    Reload,
    /// Ban, for a moment and without counting it, the address that the answer names as soon as the jail's log shows
    /// that it failed.
    Probe {
        jail: JailName,
    },
    /// Somebody is never banned from now on. A wide network must be forced.
    IgnoreAdd {
        net: IpNet,
        force: bool,
    },
    IgnoreRemove {
        net: IpNet,
    },
    IgnoreList,
    /// Why somebody is banned, or is not.
    Why {
        target: Target,
    },
    /// Bans since a moment, counted.
    History(Period),
    /// The same, one by one.
    Past(Period),
    /// What happens from now on, in one jail or in all.
    Watch {
        jail: Option<JailName>,
    },
    /// How much the agent writes to its own log from now on: `error`, `warn`, `info` or `debug`.
    LogLevel {
        level: String,
    },
}

/// A part of the past.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Period {
    pub since: Timestamp,
    pub jail: Option<JailName>,
    /// Of this address or network only.
    pub within: Option<IpNet>,
}

/// Whose bans are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Whom {
    Target(Target),
    /// Everybody in a network.
    Net(IpNet),
    Everybody,
}

impl Whom {
    pub fn covers(&self, target: Target) -> bool {
        match self {
            Whom::Target(only) => *only == target,
            Whom::Net(net) => net.contains(&target.net()),
            Whom::Everybody => true,
        }
    }
}

impl FromStr for Whom {
    type Err = String;

    /// An address, or a network; `everybody` has a word of its own on the command line.
    fn from_str(text: &str) -> Result<Self, String> {
        match (text.parse::<Target>(), text.parse::<IpNet>()) {
            (Ok(target), _) if !target.is_network() => Ok(Whom::Target(target)),
            (_, Ok(net)) => Ok(Whom::Net(net.trunc())),
            (Ok(target), _) => Ok(Whom::Target(target)),
            (Err(why), _) => Err(why),
        }
    }
}

impl Request {
    /// Whether it needs the right to change something.
    pub fn changes(&self) -> bool {
        match self {
            Request::Status { .. }
            | Request::Bans { .. }
            | Request::IgnoreList
            | Request::Why { .. }
            | Request::History(_)
            | Request::Past(_)
            | Request::Watch { .. } => false,
            Request::Ban { .. }
            | Request::Unban { .. }
            | Request::Attempt { .. }
            | Request::Pause { .. }
            | Request::Reload
            | Request::Probe { .. }
            | Request::IgnoreAdd { .. }
            | Request::IgnoreRemove { .. }
            | Request::LogLevel { .. } => true,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Response {
    Status(Box<Status>),
    Bans(Vec<BanStatus>),
    /// The address that the jail waits for.
    Probe(IpAddr),
    Ignored(Vec<IgnoredStatus>),
    Why(Box<Why>),
    History(History),
    Past(Vec<Past>),
    /// Who watches hears of everything from now on.
    Watching,
    News(News),
    /// So much happened that who watches was too slow to hear of.
    Missed(u64),
    /// It is done, in words.
    Done(String),
    Failed {
        why: Failed,
        message: String,
    },
}

/// The kinds of failure that scripts tell apart by exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Failed {
    Refused,
    NotAllowed,
    NotFound,
    BadConfiguration,
}

pub fn failed(why: Failed, message: impl Into<String>) -> Response {
    Response::Failed { why, message: message.into() }
}

/// What an answer may take at most.
const RESPONSE_BYTES_MAX: usize = 1 << 30;

/// A message as it is sent: its length, then its JSON.
pub fn frame<T: Serialize>(message: &T) -> io::Result<Vec<u8>> {
    let body = serde_json::to_vec(message)?;
    let length = u32::try_from(body.len()).map_err(io::Error::other)?;
    Ok([&length.to_be_bytes(), body.as_slice()].concat())
}

/// Why no answer came.
#[derive(Debug, thiserror::Error)]
pub enum Unanswered {
    #[error("nftjail does not run: nobody answers at {0} (start it with: nftjail run)")]
    NotRunning(String),
    #[error("{0} may only be used by root, and by members of the group nftjail")]
    NotAllowed(String),
    #[error("the answer did not come: {0}")]
    Broken(String),
}

/// Asks the agent that listens at `path`.
pub fn ask(path: &Path, request: &Request) -> Result<Response, Unanswered> {
    let mut stream = connect(path)?;
    converse(&mut stream, request).map_err(|error| Unanswered::Broken(plain(&error)))
}

/// Asks to be told what happens. The first answer says whether we are; [`next`] waits for the others.
pub fn watch(path: &Path, jail: Option<JailName>) -> Result<(UnixStream, Response), Unanswered> {
    let mut stream = connect(path)?;
    let broken = |error| Unanswered::Broken(plain(&error));
    let first = converse(&mut stream, &Request::Watch { jail }).map_err(broken)?;
    stream.set_read_timeout(None).map_err(broken)?;
    Ok((stream, first))
}

/// The next answer to who watches; none where the agent ended.
pub fn next(stream: &mut UnixStream) -> Result<Option<Response>, Unanswered> {
    match read(stream) {
        Ok(response) => Ok(Some(response)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(Unanswered::Broken(plain(&error))),
    }
}

fn connect(path: &Path) -> Result<UnixStream, Unanswered> {
    let name = path.display().to_string();
    UnixStream::connect(path).map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => Unanswered::NotAllowed(name),
        _ => Unanswered::NotRunning(name),
    })
}

fn converse<T: DeserializeOwned>(stream: &mut UnixStream, request: &Request) -> io::Result<T> {
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    stream.write_all(&frame(&Question { version: VERSION, request: request.clone() })?)?;
    read(stream)
}

fn read<T: DeserializeOwned>(stream: &mut UnixStream) -> io::Result<T> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = u32::from_be_bytes(length) as usize;
    if length > RESPONSE_BYTES_MAX {
        return Err(io::Error::other("it is too long"));
    }
    let mut body = Vec::new();
    stream.take(length as u64).read_to_end(&mut body)?;
    serde_json::from_slice(&body).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whom_an_unban_means() {
        let covers = |whom: &str, target: &str| whom.parse::<Whom>().unwrap().covers(target.parse().unwrap());
        assert!(covers("192.0.2.1", "192.0.2.1") && !covers("192.0.2.1", "192.0.2.2"));
        assert!(covers("192.0.2.0/24", "192.0.2.2") && !covers("192.0.2.0/24", "192.0.3.2"));
        assert!(covers("2001:db8::/32", "2001:db8:1::/64") && !covers("2001:db8::/32", "192.0.2.1"));
        assert!(covers("2001:db8::7", "2001:db8::/64"));
        assert!("soon".parse::<Whom>().unwrap_err().contains("not an IP address or network"));
    }
}
