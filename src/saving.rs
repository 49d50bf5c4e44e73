//! What the daemon keeps for its next start: one consistent step at a time, a moment after something changed.

use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;

use crate::config::Config;
use crate::daemon::{Daemon, longest_findtime};
use crate::host;
use crate::jail::FORGET;
use crate::state::{Saved, State, Step};

/// Positions and failures are saved this long after they changed.
const SAVE_AFTER: Duration = Duration::from_secs(1);
/// An offender is kept in the state until so many bans are forgotten.
const OFFENCES_REMEMBERED: u32 = 20;

impl Daemon {
    pub(crate) fn save_is_due(&self) -> bool {
        self.save_at.is_some_and(|at| at <= Instant::now())
    }

    pub(crate) fn schedule_save(&mut self) {
        // Also where no state can be kept: what waits to be saved would only grow.
        self.save_at.get_or_insert_with(|| Instant::now() + SAVE_AFTER);
    }

    /// One consistent step for the state: positions, failures, and what the kernel took.
    pub(crate) fn step(&mut self) -> Step {
        let now = host::now();
        Step {
            positions: self.sources.positions(),
            memories: self.engine.take_unsaved(),
            changes: std::mem::take(&mut self.taken),
            past: std::mem::take(&mut self.past),
            ignored: self.ignored.clone(),
            stale_failures: now.minus(longest_findtime(&self.config)),
            stale_offenders: now.minus(longest_memory(&self.config)),
            stale_friends: now.minus(longest_friendship(&self.config)),
            now,
        }
    }

    /// Without a state to keep it, what is to be saved is let go, so that it does not pile up.
    pub(crate) fn save(&mut self) {
        self.save_at = None;
        let step = self.unsaved.take().unwrap_or_else(|| Box::new(self.step()));
        if let Some(state) = &self.state
            && let Err(step) = state.save(*step)
        {
            self.unsaved = Some(step);
            self.schedule_save();
        }
    }
}

pub(crate) fn open_state(dir: &Path) -> (Option<State>, Saved, Vec<String>) {
    match State::open(dir) {
        Ok((state, saved)) => {
            let mut troubles = Vec::new();
            if let Some(aside) = &saved.set_aside {
                troubles.push(format!("the state was damaged and is put aside as {}", aside.display()));
                tracing::error!("{}", troubles[0]);
            }
            (Some(state), saved, troubles)
        }
        Err(why) => {
            let trouble = format!("{why}; bans go on, but a restart will not know where it stopped");
            tracing::error!("{trouble}");
            (None, Saved::default(), vec![trouble])
        }
    }
}

/// How long it takes at most until the bans of an offender are all forgotten.
fn longest_memory(config: &Config) -> Duration {
    let increments = config.terms().into_iter().filter_map(|terms| terms.increment);
    let forget = increments.map(|increment| increment.forget);
    forget.max().unwrap_or(FORGET).saturating_mul(OFFENCES_REMEMBERED)
}

fn longest_friendship(config: &Config) -> Duration {
    config.terms().iter().filter_map(|terms| terms.friend_for).max().unwrap_or_default()
}
