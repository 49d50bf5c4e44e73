//! nftjail: log lines in, nftables sets out.

pub mod detect;
pub mod model;
