//! Event → message: what people and programs are told.

pub mod board;
pub mod chat;
pub mod digest;
pub mod escape;
pub mod familiar;
pub mod findings;
pub mod message;
pub mod metrics;
pub mod news;
pub mod past;
pub mod screen;

use crate::model::Event;

/// Writes an event to the agent's own log, each at its level. What is not asked for costs no text.
pub fn log(event: &Event) {
    match event {
        Event::Failed { .. } | Event::Ignored { .. } | Event::Overdue { .. } | Event::Restored { .. } => {
            tracing::debug!("{}", message::text(event));
        }
        Event::Repaired { .. } | Event::PutBack { .. } | Event::Adopted { .. } => {
            tracing::warn!("{}", message::text(event));
        }
        Event::Refused { .. } => tracing::error!("{}", message::text(event)),
        _ => tracing::info!("{}", message::text(event)),
    }
}
