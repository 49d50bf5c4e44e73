//! The side of the control protocol that answers: who may ask what, and how many at once.

use std::collections::VecDeque;
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixStream as Client;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::unistd::{Gid, Group, Uid, User, getgrouplist};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::UCred;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::timeout;

use crate::control::{Failed, Question, Request, Response, VERSION, failed, frame};
use crate::model::{JailName, plain};
use crate::status::News;

/// Its members may ask.
const READERS: &str = "nftjail";
/// Its members may change things as well.
const ADMINS: &str = "nftjail-admin";

/// A question that waits for its answer.
pub struct Asked {
    pub request: Request,
    pub answer: oneshot::Sender<Response>,
}

const REQUEST_BYTES_MAX: usize = 64 << 10;
/// So many clients are served at once; the next one takes the place of the one that has been there longest.
const CLIENTS_MAX: usize = 32;
const WATCHERS_MAX: usize = 32;
/// So long may a client take to say its question or to take an answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Listens at `path`, for root and the group `nftjail` where there is one. A socket that a crashed agent left is
/// replaced; a living agent's is not.
pub fn listen(path: &Path) -> Result<UnixListener, String> {
    let told = |error: io::Error| format!("cannot listen at {}: {}", path.display(), plain(&error));
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
    if let Some(group) = group(READERS) {
        chown(path, None, Some(group.as_raw())).map_err(told)?;
    }
    Ok(listener)
}

/// Those who are served, the longest first.
#[derive(Default)]
struct Served(VecDeque<AbortHandle>);

impl Served {
    fn add(&mut self, client: AbortHandle, most: usize) {
        self.0.retain(|client| !client.is_finished());
        if self.0.len() >= most
            && let Some(oldest) = self.0.pop_front()
        {
            oldest.abort();
        }
        self.0.push_back(client);
    }
}

/// Takes questions from clients and hands them to the daemon, for as long as it listens.
pub async fn serve(
    listener: UnixListener,
    questions: mpsc::Sender<Asked>,
    news: broadcast::Sender<Arc<News>>,
) {
    let mut clients = Served::default();
    let mut watchers = Served::default();
    let (watch, mut watching) = mpsc::channel::<(UnixStream, Option<JailName>)>(1);
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else {
                    // Out of descriptors, most likely: others will close theirs.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                };
                let (questions, watch) = (questions.clone(), watch.clone());
                let client = tokio::spawn(async move {
                    // A client that hangs up or talks nonsense is its own affair.
                    let _ = converse(stream, questions, watch).await;
                });
                clients.add(client.abort_handle(), CLIENTS_MAX);
            }
            Some((stream, jail)) = watching.recv() => {
                let news = news.subscribe();
                let watcher = tokio::spawn(async move {
                    let _ = tell(stream, jail, news).await;
                });
                watchers.add(watcher.abort_handle(), WATCHERS_MAX);
            }
        }
    }
}

async fn converse(
    mut stream: UnixStream,
    questions: mpsc::Sender<Asked>,
    watch: mpsc::Sender<(UnixStream, Option<JailName>)>,
) -> io::Result<()> {
    let peer = stream.peer_cred()?;
    let body = timeout(PATIENCE, read_request(&mut stream)).await??;
    let response = match serde_json::from_slice::<Question>(&body) {
        Err(error) => failed(Failed::Refused, format!("not a question of version {VERSION}: {error}")),
        Ok(Question { version, .. }) if version != VERSION => {
            let why =
                format!("the agent speaks version {VERSION} of the protocol, and was asked in {version}");
            failed(Failed::Refused, why)
        }
        Ok(Question { request, .. }) if request.changes() && !may_change(peer).await => {
            let why = format!("only root and members of the group {ADMINS} may change anything");
            failed(Failed::NotAllowed, why)
        }
        Ok(Question { request: Request::Watch { jail }, .. }) => {
            return watch.send((stream, jail)).await.map_err(io::Error::other);
        }
        Ok(Question { request, .. }) => {
            let (answer, answered) = oneshot::channel();
            questions.send(Asked { request, answer }).await.map_err(io::Error::other)?;
            answered.await.map_err(io::Error::other)?
        }
    };
    send(&mut stream, &response).await
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

async fn send(stream: &mut UnixStream, response: &Response) -> io::Result<()> {
    let bytes = frame(response)?;
    timeout(PATIENCE, stream.write_all(&bytes)).await?
}

/// Tells one who watches what happens, until it hangs up or does not listen.
async fn tell(
    mut stream: UnixStream,
    jail: Option<JailName>,
    mut news: broadcast::Receiver<Arc<News>>,
) -> io::Result<()> {
    send(&mut stream, &Response::Watching).await?;
    loop {
        tokio::select! {
            heard = news.recv() => match heard {
                Ok(news) if jail.is_none() || news.jail == jail => {
                    send(&mut stream, &Response::News(News::clone(&news))).await?;
                }
                Ok(_) => {}
                Err(broadcast::error::RecvError::Lagged(missed)) => {
                    send(&mut stream, &Response::Missed(missed)).await?;
                }
                Err(broadcast::error::RecvError::Closed) => return Ok(()),
            },
            // It has nothing more to say: whatever comes is its end.
            _ = stream.read_u8() => return Ok(()),
        }
    }
}

/// Root, the user that the agent itself runs as, and the members of `nftjail-admin`.
async fn may_change(peer: UCred) -> bool {
    let (uid, gid) = (peer.uid(), Gid::from_raw(peer.gid()));
    if uid == 0 || uid == rustix::process::geteuid().as_raw() {
        return true;
    }
    // The host may keep its users far away.
    let ask = move || group(ADMINS).is_some_and(|admins| gid == admins || groups(uid, gid).contains(&admins));
    tokio::task::spawn_blocking(ask).await.unwrap_or(false)
}

fn group(name: &str) -> Option<Gid> {
    Group::from_name(name).ok().flatten().map(|group| group.gid)
}

fn groups(uid: u32, gid: Gid) -> Vec<Gid> {
    let user = User::from_uid(Uid::from_raw(uid)).ok().flatten();
    let name = user.and_then(|user| CString::new(user.name).ok());
    name.and_then(|name| getgrouplist(&name, gid).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{Unanswered, ask, next, watch};
    use crate::model::{Event, Timestamp};
    use crate::tell;
    use std::io::Write;

    fn told(text: &str) -> Response {
        Response::Done(text.to_owned())
    }

    fn run<F: Future>(future: F) -> F::Output {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }

    fn news(jail: &str) -> Arc<News> {
        let (jail, target) = (jail.parse().unwrap(), "192.0.2.1".parse().unwrap());
        Arc::new(tell::news::news(&Event::Released { jail, target }, Timestamp::from_millis(0), Vec::new()))
    }

    #[test]
    fn a_question_is_answered_and_garbage_harms_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sub/control.sock");
        run(async {
            let (questions, mut asked) = mpsc::channel(1);
            tokio::spawn(serve(listen(&path).unwrap(), questions, broadcast::channel(1).0));
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
                let silent: Vec<Client> =
                    (0..CLIENTS_MAX * 3).map(|_| Client::connect(&client).unwrap()).collect();
                assert_eq!(ask(&client, &Request::Reload).unwrap(), told("Reload"));
                drop(silent);
                let mut newer = Client::connect(&client).unwrap();
                newer.write_all(&frame(&Question { version: 2, request: Request::Reload }).unwrap()).unwrap();
                let Ok(Some(Response::Failed { message, .. })) = next(&mut newer) else { panic!() };
                assert_eq!(message, "the agent speaks version 1 of the protocol, and was asked in 2");
            })
            .await
            .unwrap();
        });
    }

    #[test]
    fn who_watches_hears_of_his_jail_and_of_what_he_missed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.sock");
        run(async {
            let (questions, _asked) = mpsc::channel(1);
            let tell = broadcast::channel(2).0;
            tokio::spawn(serve(listen(&path).unwrap(), questions, tell.clone()));
            let (mut stream, first) =
                tokio::task::spawn_blocking(move || watch(&path, Some("sshd".parse().unwrap())).unwrap())
                    .await
                    .unwrap();
            assert_eq!(first, Response::Watching);
            // All of it before the watcher gets a turn: it hears of the last two, and how many were before.
            for jail in ["sshd", "sshd", "sshd", "web", "sshd"] {
                tell.send(news(jail)).unwrap();
            }
            tokio::task::spawn_blocking(move || {
                assert_eq!(next(&mut stream).unwrap(), Some(Response::Missed(3)));
                assert_eq!(next(&mut stream).unwrap(), Some(Response::News(News::clone(&news("sshd")))));
            })
            .await
            .unwrap();
            assert_eq!(tell.receiver_count(), 1);
            // He hung up.
            while tell.receiver_count() > 0 {
                tokio::task::yield_now().await;
            }
        });
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
