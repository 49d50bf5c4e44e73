//! nftjail: log lines in, nftables sets out.
#![deny(unsafe_code)]
#![doc = include_str!("README.md")]

pub mod acquire;
pub mod answers;
pub mod bell;
pub mod cli;
pub mod config;
pub mod control;
pub mod daemon;
pub mod detect;
pub mod enforcer;
pub mod engine;
pub mod host;
pub mod jail;
pub mod lab;
pub mod matching;
pub mod model;
pub mod never;
pub mod nft;
pub mod ports;
pub mod reload;
pub mod replay;
pub mod rtnetlink;
pub mod service;
pub mod sheet;
pub mod sources;
pub mod spare;
pub mod state;
pub mod status;
pub mod tell;
pub mod trial;
pub mod yaml;
