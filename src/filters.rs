//! A filter of fail2ban as its files say it, with all that it refers to and all parameters put in.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use crate::dialect::{APACHE, PREFIX};
use crate::ini::{self, Layers, Read, Value};
use crate::jargon::Named;
use crate::shapes::Filter;
use crate::yaml::Fault;

/// Stands for what a shipped filter has, where a value builds on that.
pub const KNOWN: char = '\u{E002}';

/// So often are parameters put into each other, and so long may a text become.
const ROUNDS_MAX: usize = 25;
const TEXT_BYTES_MAX: usize = 256 << 10;

const DEFINITION: &str = "Definition";

/// The files of a filter or an action, each over the one before.
pub fn files(folder: &str, name: &str) -> [String; 2] {
    [format!("{folder}/{name}.conf"), format!("{folder}/{name}.local")]
}

/// What a filter's files say; none where there are none.
pub fn layers(folder: &str, name: &str, read: &Read) -> Result<Option<Layers>, Fault> {
    if name.contains('/') || name.is_empty() {
        return Ok(None);
    }
    let layers = ini::layers(&files(folder, name), read)?;
    let is_there = layers.sections().next().is_some();
    Ok(is_there.then_some(layers))
}

/// A filter under this name in a jail. What the jail itself says of it goes before its files.
pub fn filter(
    name: &str,
    wanted: &Named,
    layers: &Layers,
    jail: &dyn Fn(&str) -> Result<Option<String>, Fault>,
) -> Result<Filter, Fault> {
    let beyond = |key: &str, value: Option<&Value>| -> Option<String> {
        let shared = value.is_some_and(|value| value.file().ends_with("common.conf"));
        match (key, value) {
            ("__prefix_line", _) if shared => Some(PREFIX.to_string()),
            ("_apache_error_client", _) if shared => Some(APACHE.to_string()),
            (_, None) if key.starts_with("known/") => Some(KNOWN.to_string()),
            (_, None) => layers.own("Init", key).map(|value| value.text.clone()),
            _ => None,
        }
    };
    let mut parameters: BTreeMap<String, String> = BTreeMap::new();
    for section in [DEFINITION, "Init"] {
        for key in layers.keys(section).filter(|key| !key.ends_with("regex")) {
            // A parameter that nothing needs may be as broken as it likes.
            if let Ok(Some(text)) = layers.get(section, key, &beyond) {
                parameters.insert(key.to_owned(), text);
            }
        }
    }
    parameters.extend(wanted.options.iter().cloned());
    let get = |key: &str| -> Result<Option<String>, Fault> {
        let text = match jail(key)? {
            Some(text) => Some(text),
            None => layers.get(DEFINITION, key, &beyond)?.or(parameters.get(key).cloned()),
        };
        Ok(text.map(|text| put_in(&text, &parameters)))
    };
    let lines = |text: Option<String>| -> Vec<String> {
        let lines = text.unwrap_or_default();
        lines.split('\n').map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect()
    };
    let lines_at_once =
        get("maxlines")?.is_some_and(|text| text.trim().parse::<u32>().is_ok_and(|lines| lines > 1));
    Ok(Filter {
        name: name.to_owned(),
        from: format!("fail2ban's filter {}", wanted.name),
        prefregex: get("prefregex")?.filter(|text| !text.trim().is_empty()),
        failregex: lines(get("failregex")?),
        ignoreregex: lines(get("ignoreregex")?),
        daemon: get("_daemon")?.map(|text| text.trim().to_owned()),
        datepattern: lines(get("datepattern")?),
        lines_at_once,
        journalmatch: lines(get("journalmatch")?),
        logpath: Vec::new(),
    })
}

/// Replaces `<name>` by the parameter of that name, again and again.
fn put_in(text: &str, parameters: &BTreeMap<String, String>) -> String {
    let mut text = text.to_owned();
    for _ in 0..ROUNDS_MAX {
        let mut out = String::with_capacity(text.len());
        let mut rest = text.as_str();
        let mut changed = false;
        while let Some(open) = rest.find('<') {
            let (before, inner) = (&rest[..open], &rest[open + 1..]);
            out += before;
            let found = inner.split_once('>').and_then(|(name, after)| Some((parameters.get(name)?, after)));
            match found {
                Some((value, after)) if out.len() + value.len() + after.len() < TEXT_BYTES_MAX => {
                    out += value;
                    rest = after;
                    changed = true;
                }
                _ => {
                    out.push('<');
                    rest = inner;
                }
            }
        }
        out += rest;
        text = out;
        if !changed {
            break;
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jargon::named;

    #[test]
    fn variables_parameters_and_a_jails_own_words_come_together() {
        let files = [
            ("filter.d/common.conf", "[DEFAULT]\n__prefix_line = (?:\\S+ )?%(_daemon)s\n"),
            (
                "filter.d/mine.conf",
                "[INCLUDES]\nbefore = common.conf\n[Definition]\n_daemon = myd\nwho = <kind> user\n\
                 failregex = ^%(__prefix_line)sbad <who> <HOST>$\n            ^%(__prefix_line)sworse %(extra)s <HOST>$\n\
                 [Init]\nkind = any\nextra = thing\nmaxlines = 1\n",
            ),
            ("filter.d/mine.local", "[Definition]\nfailregex = %(known/failregex)s\n  ^local <HOST>$\n"),
        ];
        let read = |name: &str| {
            Ok(files.iter().find(|(file, _)| *file == name).map(|(_, text)| text.as_bytes().to_vec()))
        };
        let layers = layers("filter.d", "mine", &read).unwrap().unwrap();
        let wanted = named("mine[kind=odd]").unwrap();
        let jail = |key: &str| Ok((key == "ignoreregex").then(|| "^never <kind>".to_owned()));
        let filter = filter("mine", &wanted, &layers, &jail).unwrap();
        assert_eq!(
            filter.failregex,
            [
                format!("^{PREFIX}bad odd user <HOST>$"),
                format!("^{PREFIX}worse thing <HOST>$"),
                "^local <HOST>$".to_owned()
            ]
        );
        assert_eq!(
            (filter.ignoreregex, filter.daemon),
            (vec!["^never odd".to_owned()], Some("myd".to_owned()))
        );
        assert!(!filter.lines_at_once);
        assert!(super::layers("filter.d", "../x", &read).unwrap().is_none());
    }

    #[test]
    fn parameters_that_hold_each_other_end() {
        let parameters =
            [("a", "<b><b>"), ("b", "<a><a>")].map(|(key, value)| (key.to_owned(), value.to_owned()));
        assert!(put_in("<a>", &parameters.into()).len() <= TEXT_BYTES_MAX + 1_000);
    }
}
