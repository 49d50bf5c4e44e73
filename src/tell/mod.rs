//! Who hears what happened: for now the log of the agent itself.

pub mod message;
pub mod screen;

use crate::model::Event;

/// Writes an event to the agent's own log, each at its level.
pub fn log(event: &Event) {
    let text = message::text(event);
    match event {
        Event::Failed { .. } | Event::Ignored { .. } | Event::Overdue { .. } | Event::Restored { .. } => {
            tracing::debug!("{text}");
        }
        Event::Refused { .. } => tracing::error!("{text}"),
        _ => tracing::info!("{text}"),
    }
}
