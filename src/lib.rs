//! nftjail: log lines in, nftables sets out.

pub mod acquire;
pub mod detect;
pub mod jail;
pub mod model;
pub mod nft;
pub mod yaml;
