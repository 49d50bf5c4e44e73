//! Ports as people write them, and what they mean on this host.

use std::collections::BTreeSet;

use crate::host::Services;
use crate::model::{Ports, Protocol};
use crate::yaml;

/// Ports as people write them: `ssh`, `2222`, `8000-8010`, `53/udp`, `https/tcp`, or `all` by itself.
pub fn ports(words: &[String], services: &Services) -> Result<Ports, String> {
    if words.iter().any(|word| word == "all") {
        return match words.len() {
            1 => Ok(Ports::All),
            _ => Err("\"all\" stands for every port: leave the others out".to_owned()),
        };
    }
    let mut ports = BTreeSet::new();
    for word in words {
        ports.extend(port(word, services)?);
    }
    if ports.is_empty() {
        return Err("no port is named here: name one, or write all".to_owned());
    }
    Ok(Ports::Some(ports))
}

fn port(word: &str, services: &Services) -> Result<Vec<(Protocol, u16)>, String> {
    let (place, protocol) = match word.split_once('/') {
        Some((place, name)) => {
            let protocol = Protocol::ALL.into_iter().find(|protocol| protocol.name() == name);
            (
                place,
                Some(
                    protocol
                        .ok_or_else(|| yaml::unknown("protocol", name, &Protocol::ALL.map(Protocol::name)))?,
                ),
            )
        }
        None => (word, None),
    };
    if place.starts_with(|c: char| c.is_ascii_digit()) {
        let (first, last) = place.split_once('-').unwrap_or((place, place));
        let number = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0);
        return match (number(first), number(last)) {
            (Some(first), Some(last)) if first <= last => {
                Ok((first..=last).map(|port| (protocol.unwrap_or(Protocol::Tcp), port)).collect())
            }
            _ => Err(format!("\"{word}\" is not a port: ports go from 1 to 65535, a range from low to high")),
        };
    }
    let known = services.ports(place).iter().filter(|(of, _)| protocol.is_none_or(|wanted| wanted == *of));
    let known: Vec<(Protocol, u16)> = known.copied().collect();
    match known.is_empty() {
        true => Err(yaml::unknown("service", word, &services.names())),
        false => Ok(known),
    }
}
