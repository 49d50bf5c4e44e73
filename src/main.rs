//! The binary: everything is in the library.

use std::io::{self, BufRead, Write};
use std::path::PathBuf;
use std::sync::Arc;

use clap::{Parser, Subcommand};
use jiff::tz::TimeZone;
use nftjail::detect::{Clock, Detector, Library, answer};
use nftjail::model::Timestamp;

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Says of each line what a rule makes of it.
    Match {
        #[arg(long)]
        rule: String,
        #[arg(long)]
        mode: Option<String>,
        #[arg(long)]
        rules: Option<PathBuf>,
        #[arg(long)]
        json: bool,
        #[arg(default_value = "-")]
        file: PathBuf,
    },
    /// Proves every rule.
    Check {
        #[arg(long)]
        rules: Option<PathBuf>,
    },
}

fn library(rules: Option<PathBuf>) -> io::Result<Library> {
    let mut library = Library::shipped();
    if let Some(dir) = rules {
        library.add_dir(&dir)?;
    }
    Ok(library)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    match Cli::parse().verb {
        Verb::Match { rule, mode, rules, json: _, file } => {
            let rule = match library(rules)?.compile(&rule, mode.as_deref()) {
                Ok(rule) => rule,
                Err(error) => {
                    eprintln!("{error}");
                    std::process::exit(6);
                }
            };
            let mut detector = Detector::new(vec![Arc::new(rule)]);
            let zone = TimeZone::system();
            let now = Timestamp::from_millis(jiff::Timestamp::now().as_millisecond());
            let input: Box<dyn BufRead> = match file.as_os_str() == "-" {
                true => Box::new(io::stdin().lock()),
                false => Box::new(io::BufReader::new(std::fs::File::open(file)?)),
            };
            let mut out = io::stdout().lock();
            for (line, text) in input.split(b'\n').enumerate() {
                let clock = Clock::Written { now, zone: &zone };
                let answer = answer::answer(&mut detector, line as u64 + 1, &text?, clock);
                serde_json::to_writer(&mut out, &answer)?;
                writeln!(out)?;
            }
        }
        Verb::Check { rules } => {
            let bad = library(rules)?.check();
            for rule in &bad {
                println!("{rule}");
            }
            std::process::exit(i32::from(!bad.is_empty()));
        }
    }
    Ok(())
}
