//! nftjail: log lines in, nftables sets out.

pub mod model;
pub mod nft;
