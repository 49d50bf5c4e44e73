//! Lines that are JSON: where a rule's fields are, and what a pattern wants of them.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use regex_automata::meta::Regex;
use serde::Deserialize;
use serde_json::Value;

use super::date::Stamp;
use super::file::OneOrMany;
use super::header::{Client, Header};

/// Where a rule's JSON keeps what. A path is keys joined by dots, with numbers for places in a list; of
/// several paths the first that is there is taken.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fields {
    /// The client's address, perhaps with a port.
    pub host: Option<OneOrMany<String>>,
    pub user: Option<OneOrMany<String>>,
    /// A date in any known form, or seconds (or milli-, micro-, nanoseconds) since 1970.
    pub time: Option<OneOrMany<String>>,
    /// What patterns see; without it they see an empty text.
    pub message: Option<OneOrMany<String>>,
    /// What was asked for, perhaps with a query.
    pub path: Option<OneOrMany<String>>,
    pub count: Option<OneOrMany<String>>,
    pub session: Option<OneOrMany<String>>,
}

/// What a field must be: a scalar, or text that begins with `^` and is a regular expression.
pub type Wish = BTreeMap<String, OneOrMany<Value>>;

/// A [`Wish`] ready to be tested: every field must be one of its values.
#[derive(Debug)]
pub struct Where(Vec<(String, Vec<Want>)>);

#[derive(Debug)]
enum Want {
    Exactly(Value),
    Like(Box<Regex>),
}

impl Where {
    /// Compiles with `build`; its error is returned with the field's path.
    pub fn new<E>(wish: &Wish, build: impl Fn(&str) -> Result<Regex, E>) -> Result<Self, (String, E)> {
        let mut all = Vec::new();
        for (path, values) in wish {
            let mut wants = Vec::new();
            for value in values.as_slice() {
                wants.push(match value.as_str().filter(|text| text.starts_with('^')) {
                    Some(regex) => Want::Like(Box::new(build(regex).map_err(|error| (path.clone(), error))?)),
                    None => Want::Exactly(value.clone()),
                });
            }
            all.push((path.clone(), wants));
        }
        Ok(Where(all))
    }

    /// Whether `record` is as wished. A number and the text that spells it are equal.
    pub fn holds(&self, record: &Value) -> bool {
        self.0.iter().all(|(path, wants)| {
            let found = find(record, path).unwrap_or(&Value::Null);
            wants.iter().any(|want| match want {
                Want::Exactly(value) => value == found || text(value).is_some_and(|v| text(found) == Some(v)),
                Want::Like(regex) => text(found).is_some_and(|text| regex.is_match(&text)),
            })
        })
    }
}

/// A line of JSON, with what the rule's fields found in it.
#[derive(Debug)]
pub struct Record<'v> {
    pub value: &'v Value,
    host: Option<String>,
    user: String,
    time: String,
    message: String,
    pub path: Option<String>,
    pub count: String,
    pub session: String,
}

/// Reads one JSON object; bytes that are no UTF-8 are replaced. None where it is no object.
pub fn read(line: &[u8]) -> Option<Value> {
    if line.first() != Some(&b'{') {
        return None;
    }
    serde_json::from_str(&String::from_utf8_lossy(line)).ok()
}

impl<'v> Record<'v> {
    pub fn new(value: &'v Value, fields: &Fields) -> Self {
        let get = |paths: &Option<OneOrMany<String>>| {
            paths.as_ref()?.as_slice().iter().find_map(|path| find(value, path).and_then(text))
        };
        Record {
            value,
            host: get(&fields.host),
            user: get(&fields.user).unwrap_or_default(),
            time: get(&fields.time).unwrap_or_default(),
            message: get(&fields.message).unwrap_or_default(),
            path: get(&fields.path),
            count: get(&fields.count).unwrap_or_default(),
            session: get(&fields.session).unwrap_or_default(),
        }
    }

    pub fn header(&self) -> Header<'_> {
        Header {
            stamp: Stamp::find(self.time.as_bytes()).map(|(stamp, _)| stamp),
            client: self.host.as_ref().map(|host| Client::PerhapsWithPort(host.as_bytes())),
            user: self.user.as_bytes(),
            message: self.message.as_bytes(),
            ..Header::default()
        }
    }
}

/// The value at `path`. A key may itself contain dots.
fn find<'v>(value: &'v Value, path: &str) -> Option<&'v Value> {
    let step = |key: &str| match value {
        Value::Object(object) => object.get(key),
        Value::Array(list) => list.get(key.parse::<usize>().ok()?),
        _ => None,
    };
    step(path)
        .or_else(|| path.match_indices('.').find_map(|(dot, _)| find(step(&path[..dot])?, &path[dot + 1..])))
}

fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(truth) => Some(truth.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(yaml: &str) -> Fields {
        crate::yaml::read("t.yaml", yaml).unwrap()
    }

    #[test]
    fn fields_are_found_by_path() {
        let fields = fields("{host: [request.client_ip, request.remote_ip], user: user.id, time: ts}");
        let line =
            br#"{"ts":1795255200.5,"request":{"remote_ip":"192.0.2.1"},"user.id":7,"list":[1,{"a":2}]}"#;
        let value = read(line).unwrap();
        let record = Record::new(&value, &fields);
        let header = record.header();
        assert_eq!(header.client.unwrap().addr(), Some("192.0.2.1".parse().unwrap()));
        assert_eq!((header.user, header.stamp.unwrap().text()), (&b"7"[..], &b"1795255200.5"[..]));
        assert_eq!(find(&value, "list.1.a"), Some(&Value::from(2)));
        assert!(read(b"[1]").is_none());
        assert!(read(b"{\"a\":").is_none());
    }

    #[test]
    fn wishes_are_lists_of_values_or_anchored_patterns() {
        let wish: Wish =
            crate::yaml::read("t.yaml", "{status: [401, 403], path: '^/login', ok: false}").unwrap();
        let wish = Where::new(&wish, Regex::new).unwrap();
        let holds = |line: &str| wish.holds(&serde_json::from_str(line).unwrap());
        assert!(holds(r#"{"status":403,"path":"/login?x","ok":false}"#));
        assert!(holds(r#"{"status":"401","path":"/login","ok":false}"#));
        assert!(!holds(r#"{"status":200,"path":"/login","ok":false}"#));
        assert!(!holds(r#"{"status":401,"path":"/x/login","ok":false}"#));
        assert!(!holds(r#"{"status":401,"path":"/login"}"#));
    }
}
