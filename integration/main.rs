//! Everything that can be tested without a kernel: rules, logs, files, verbs, and the order of the house.

mod follow;
mod rules;
mod tail;
mod watch;
