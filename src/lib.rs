//! nftjail: log lines in, nftables sets out.

pub mod acquire;
pub mod detect;
pub mod model;
pub mod nft;
