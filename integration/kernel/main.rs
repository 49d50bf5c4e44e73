//! What the kernel makes of us: real netlink in network namespaces that each test makes, with `nft -j` as the judge.

mod netns;
mod nft;
