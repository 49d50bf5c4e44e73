//! The verb `check`: what the agent would make of its configuration on this host.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use crate::acquire::journal;
use crate::acquire::place::Place;
use crate::acquire::stream::Stream;
use crate::config::{self, Config};
use crate::host::Services;
use crate::model::plain;
use crate::tell::screen;
use crate::yaml;

/// The answer, or all that is wrong.
pub fn run(place: Option<&Path>) -> Result<String, String> {
    let config = Config::load(place, &Services::of_this_host()).map_err(|faults| yaml::told(&faults))?;
    let library = config::library(&config::rules_dir(place)).map_err(|fault| yaml::told(&[fault]))?;
    let bad: Vec<String> = library.check().iter().map(ToString::to_string).collect();
    if !bad.is_empty() {
        return Err(format!("the rules are not in order\n{}", bad.join("\n")));
    }
    let mut text = String::new();
    for jail in &config.jails {
        let name = &jail.terms.name;
        for place in &jail.logpath {
            text += &format!("{name}: {place} {}\n", outlook(place));
        }
    }
    if !config.auto.is_empty() {
        text += &screen::auto(&config.auto);
    }
    let count = config.jails.len();
    let rules = library.names().count();
    let jails = if count == 1 { "jail" } else { "jails" };
    Ok(text + &format!("{count} {jails} ok; {rules} rules prove themselves\n"))
}

/// What the agent will find in this place.
fn outlook(place: &Place) -> String {
    let found = match place {
        // What is not a file is not opened: a FIFO would hold us.
        Place::File(path) => {
            match fs::metadata(path).map(|found| found.is_file().then(|| File::open(path))) {
                Ok(None) => Ok("is not a file, one will be waited for".to_owned()),
                Ok(Some(Ok(_))) => Ok("ok".to_owned()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    Ok("is not there yet, will be waited for".to_owned())
                }
                Ok(Some(Err(error))) | Err(error) => Err(plain(&error)),
            }
        }
        Place::Glob(glob) => Ok(match glob.count() {
            0 => "matches nothing yet, will be waited for".to_owned(),
            1 => "matches 1 file".to_owned(),
            many => format!("matches {many} files"),
        }),
        Place::Journal(origin, _) => Ok(match journal::is_there(origin) {
            true => "ok".to_owned(),
            false => "is not there yet, will be waited for".to_owned(),
        }),
        Place::Stream(channel) => Stream::of(channel, place.to_string()).outlook().map(str::to_owned),
    };
    found.unwrap_or_else(|why| format!("cannot be read: {why}"))
}
