//! Everything that can be tested without a kernel: rules, logs, files, verbs, and the order of the house.

mod copies;
mod crowds;
mod examples;
mod follow;
mod globs;
mod import;
mod judging;
mod reallogs;
mod rotation;
mod rules;
mod tail;
mod tidy;
mod watch;
