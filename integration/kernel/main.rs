//! What the kernel makes of us: real netlink in network namespaces that each test makes, with `nft -j` as the judge.

mod documents;
mod journal;
mod netns;
mod never;
mod nft;
mod protects;
mod refuses;
mod rejects;
mod scene;
mod streams;
