//! What the kernel makes of us: real netlink in network namespaces that each test makes, with `nft -j` as the judge.

mod asking;
mod dates;
mod doctor;
mod documents;
mod enabled;
mod fail2ban;
mod hooks;
mod journal;
mod logs;
mod netns;
mod networks;
mod never;
mod nft;
mod protects;
mod random;
mod recidive;
mod refuses;
mod rejects;
mod reloads;
mod repairs;
mod scene;
mod selftest;
mod soaks;
mod streams;
mod telling;
