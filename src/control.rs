//! The control protocol: one question and one answer, each a JSON text after its length as four bytes, big-endian.

use std::fs;
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream as Client;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;

use crate::model::{Bantime, JailName, Target};
use crate::status::{BanStatus, IgnoredStatus, Status};

/// Where the agent listens when nothing else is said.
pub const SOCKET: &str = "/run/nftjail/control.sock";

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
    fn changes(&self) -> bool {
        !matches!(self, Request::Status { .. } | Request::Bans { .. } | Request::IgnoreList)
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

/// A question that waits for its answer.
pub struct Asked {
    pub request: Request,
    pub answer: oneshot::Sender<Response>,
}

const REQUEST_BYTES_MAX: usize = 64 << 10;
const RESPONSE_BYTES_MAX: usize = 1 << 30;
const CLIENTS_MAX: usize = 32;
/// So long may a client take to say its question or to take its answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Listens at `path`. A socket that a crashed agent left is replaced; a living agent's is not.
pub fn listen(path: &Path) -> Result<UnixListener, String> {
    let told =
        |error: io::Error| format!("cannot listen at {}: {}", path.display(), crate::model::plain(&error));
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).map_err(told)?;
    }
    match Client::connect(path) {
        Ok(_) => return Err(format!("another nftjail runs already: it answers at {}", path.display())),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(told)?
        }
        Err(_) => {}
    }
    let listener = UnixListener::bind(path).map_err(told)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o660)).map_err(told)?;
    Ok(listener)
}

/// Takes questions from clients and hands them to the daemon, for as long as it listens.
pub async fn serve(listener: UnixListener, questions: mpsc::Sender<Asked>) {
    let places = Arc::new(Semaphore::new(CLIENTS_MAX));
    while let Ok(place) = places.clone().acquire_owned().await {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors, most likely: others will close theirs.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let questions = questions.clone();
        tokio::spawn(async move {
            // A client that hangs up or talks nonsense is its own affair.
            let _ = converse(stream, questions).await;
            drop(place);
        });
    }
}

async fn converse(mut stream: UnixStream, questions: mpsc::Sender<Asked>) -> io::Result<()> {
    let peer = stream.peer_cred()?.uid();
    let body = timeout(PATIENCE, read_request(&mut stream)).await??;
    let response = match serde_json::from_slice::<Request>(&body) {
        Err(error) => failed(Failed::Refused, format!("not a request of this version: {error}")),
        Ok(request) if request.changes() && !may_change(peer) => {
            failed(Failed::NotAllowed, "only root may change anything")
        }
        Ok(request) => {
            let (answer, answered) = oneshot::channel();
            questions.send(Asked { request, answer }).await.map_err(io::Error::other)?;
            answered.await.map_err(io::Error::other)?
        }
    };
    let bytes = frame(&response)?;
    timeout(PATIENCE, stream.write_all(&bytes)).await?
}

async fn read_request(stream: &mut UnixStream) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).await?;
    let length = u32::from_be_bytes(length) as usize;
    if length > REQUEST_BYTES_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    Ok(body)
}

/// Root, and the user that the agent itself runs as.
fn may_change(uid: u32) -> bool {
    uid == 0 || uid == rustix::process::geteuid().as_raw()
}

fn frame<T: Serialize>(message: &T) -> io::Result<Vec<u8>> {
    let body = serde_json::to_vec(message)?;
    let length = u32::try_from(body.len()).map_err(io::Error::other)?;
    Ok([&length.to_be_bytes(), body.as_slice()].concat())
}

/// Why no answer came.
#[derive(Debug, thiserror::Error)]
pub enum Unanswered {
    #[error("nftjail does not run: nobody answers at {0} (start it with: nftjail run)")]
    NotRunning(String),
    #[error("{0} may only be used by root")]
    NotAllowed(String),
    #[error("the answer did not come: {0}")]
    Broken(String),
}

/// Asks the agent that listens at `path`.
pub fn ask(path: &Path, request: &Request) -> Result<Response, Unanswered> {
    let name = path.display().to_string();
    let mut stream = Client::connect(path).map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => Unanswered::NotAllowed(name),
        _ => Unanswered::NotRunning(name),
    })?;
    converse_with(&mut stream, request).map_err(|error| Unanswered::Broken(crate::model::plain(&error)))
}

fn converse_with<T: DeserializeOwned>(stream: &mut Client, request: &Request) -> io::Result<T> {
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    stream.write_all(&frame(request)?)?;
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

    fn told(text: &str) -> Response {
        Response::Done(text.to_owned())
    }

    fn run<F: Future>(future: F) -> F::Output {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }

    #[test]
    fn a_question_is_answered_and_garbage_harms_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sub/control.sock");
        run(async {
            let (questions, mut asked) = mpsc::channel(1);
            tokio::spawn(serve(listen(&path).unwrap(), questions));
            tokio::spawn(async move {
                while let Some(question) = asked.recv().await {
                    let _ = question.answer.send(told(&format!("{:?}", question.request)));
                }
            });
            let client = path.clone();
            tokio::task::spawn_blocking(move || {
                let mut garbage = Client::connect(&client).unwrap();
                garbage.write_all(&[0xFF; 64]).unwrap();
                let mut nonsense = Client::connect(&client).unwrap();
                nonsense.write_all(&[&4_u32.to_be_bytes(), &b"[{]}"[..]].concat()).unwrap();
                assert_eq!(ask(&client, &Request::Reload).unwrap(), told("Reload"));
            })
            .await
            .unwrap();
        });
    }

    #[test]
    fn whom_an_unban_means() {
        let covers = |whom: &str, target: &str| whom.parse::<Whom>().unwrap().covers(target.parse().unwrap());
        assert!(covers("192.0.2.1", "192.0.2.1") && !covers("192.0.2.1", "192.0.2.2"));
        assert!(covers("192.0.2.0/24", "192.0.2.2") && !covers("192.0.2.0/24", "192.0.3.2"));
        assert!(covers("2001:db8::/32", "2001:db8:1::/64") && !covers("2001:db8::/32", "192.0.2.1"));
        assert!(covers("2001:db8::7", "2001:db8::/64"));
        assert!("soon".parse::<Whom>().unwrap_err().contains("not an IP address or network"));
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_living_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.sock");
        run(async {
            let first = listen(&path).unwrap();
            assert!(listen(&path).unwrap_err().contains("another nftjail runs already"));
            drop(first);
            assert!(path.exists(), "a crash leaves the socket");
            assert!(matches!(ask(&path, &Request::Reload), Err(Unanswered::NotRunning(_))));
            listen(&path).unwrap();
        });
    }
}
