//! Keeps the teller running beside the agent, as long as there is anybody to tell.

use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::daemon::Places;
use crate::model::plain;

/// A teller that ended is started again after so long.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// The handle. A teller ends by itself when the agent does, since nobody speaks to it any more.
pub struct Keeper {
    kept: Arc<(Mutex<Kept>, Condvar)>,
}

#[derive(Default)]
struct Kept {
    wanted: bool,
    child: Option<OwnedFd>,
}

impl Keeper {
    pub fn start(places: &Places) -> Keeper {
        let kept = Arc::new((Mutex::new(Kept::default()), Condvar::new()));
        let (shared, places) = (kept.clone(), places.clone());
        let keep = move || loop {
            let (lock, changed) = &*shared;
            let until_wanted = changed.wait_while(held(lock), |kept| !kept.wanted);
            drop(until_wanted);
            run(&places, lock);
            if held(lock).wanted {
                thread::sleep(AGAIN_AFTER);
            }
        };
        let started = thread::Builder::new().name("keeper".to_owned()).spawn(keep);
        if let Err(error) = started {
            tracing::error!("nobody is told what happens: {}", plain(&error));
        }
        Keeper { kept }
    }

    /// Whether there is anybody to tell, by the configuration as it is now; a teller that runs reads it again.
    pub fn want(&self, wanted: bool) {
        let (lock, changed) = &*self.kept;
        let mut kept = held(lock);
        kept.wanted = wanted;
        if let Some(child) = &kept.child {
            // One that is gone needs no word.
            let _ = pidfd_send_signal(child, Signal::TERM);
        }
        changed.notify_all();
    }
}

fn held(lock: &Mutex<Kept>) -> MutexGuard<'_, Kept> {
    lock.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Runs a teller to its end.
fn run(places: &Places, lock: &Mutex<Kept>) {
    let mut command = Command::new("/proc/self/exe");
    command.arg("--socket").arg(&places.socket);
    if let Some(config) = &places.config {
        command.arg("--config").arg(config);
    }
    command.arg("tell").arg("--state").arg(&places.state).stdin(Stdio::null()).stdout(Stdio::null());
    let spawned = {
        // Whoever wants it to end must find it.
        let mut kept = held(lock);
        let spawned = command.spawn();
        kept.child = spawned.as_ref().ok().and_then(|child| {
            let pid = Pid::from_raw(child.id() as i32)?;
            pidfd_open(pid, PidfdFlags::empty()).ok()
        });
        spawned
    };
    match spawned {
        Ok(mut child) => drop(child.wait()),
        Err(error) => tracing::error!("the teller cannot be started: {}", plain(&error)),
    }
    held(lock).child = None;
}
