//! What the kernel makes of us: real netlink in network namespaces that each test makes, with `nft -j` as the judge.

mod doctor;
mod documents;
mod enabled;
mod hooks;
mod netns;
mod never;
mod nft;
mod protects;
mod recidive;
mod refuses;
mod rejects;
mod reloads;
mod repairs;
mod scene;
mod selftest;
mod soaks;
