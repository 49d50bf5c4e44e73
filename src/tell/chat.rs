//! A message in the form that a chat or a push service takes over HTTP.
#![forbid(unsafe_code)]

use serde::Deserialize;
use serde_json::json;

use super::digest::Message;
use crate::status::News;

/// Whose form it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Template {
    /// `{"schema": 1, "host": …, "news": […]}`, for programs of one's own.
    #[default]
    Json,
    Ntfy,
    Slack,
    Discord,
    Telegram,
    Matrix,
}

/// Where a message goes.
#[derive(Clone, Copy, Debug)]
pub struct Envelope<'a> {
    pub url: &'a str,
    /// What opens the service.
    pub token: Option<&'a str>,
    /// The chat or room.
    pub to: Option<&'a str>,
    /// Whose news it is.
    pub host: &'a str,
    /// This message's own.
    pub number: u64,
}

/// A request that carries a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// `PUT` where not `POST`.
    pub put: bool,
    pub url: String,
    pub headers: Vec<(&'static str, String)>,
    pub body: String,
}

/// What a chat takes at most, in characters: Discord's 2,000 is the least.
const TEXT_MAX: usize = 1_900;

impl Template {
    pub fn name(self) -> &'static str {
        match self {
            Template::Json => "json",
            Template::Ntfy => "ntfy",
            Template::Slack => "slack",
            Template::Discord => "discord",
            Template::Telegram => "telegram",
            Template::Matrix => "matrix",
        }
    }

    /// Whether the chat or room must be named.
    pub fn needs_to(self) -> bool {
        matches!(self, Template::Telegram | Template::Matrix)
    }

    pub fn call(self, envelope: &Envelope<'_>, news: &[News], message: &Message) -> Call {
        let Envelope { url, mut token, to, host, number } = *envelope;
        let text: String = format!("{}\n{}", message.subject, message.body).chars().take(TEXT_MAX).collect();
        let to = to.unwrap_or_default();
        let mut headers = vec![("Content-Type", "application/json".to_owned())];
        let mut url = url.to_owned();
        let body = match self {
            Template::Json => json!({"schema": 1, "host": host, "news": news}).to_string(),
            // Its API for JSON has the topic in the body; the form with headers could not carry every subject.
            Template::Ntfy => {
                let (base, topic) = url.rsplit_once('/').unwrap_or((&url, ""));
                let body = json!({"topic": topic, "title": message.subject, "message": text}).to_string();
                url = base.to_owned();
                body
            }
            Template::Slack => json!({"text": slack(&text)}).to_string(),
            Template::Discord => json!({"content": text, "allowed_mentions": {"parse": []}}).to_string(),
            Template::Telegram => {
                url = format!(
                    "{}/bot{}/sendMessage",
                    url.trim_end_matches('/'),
                    token.take().unwrap_or_default()
                );
                json!({"chat_id": to, "text": text, "link_preview_options": {"is_disabled": true}})
                    .to_string()
            }
            Template::Matrix => {
                let room = to.replace('!', "%21").replace(':', "%3A").replace('#', "%23");
                let base = url.trim_end_matches('/');
                url = format!("{base}/_matrix/client/v3/rooms/{room}/send/m.room.message/nftjail{number}");
                json!({"msgtype": "m.notice", "body": text}).to_string()
            }
        };
        headers.extend(token.map(|token| ("Authorization", format!("Bearer {token}"))));
        Call { put: self == Template::Matrix, url, headers, body }
    }
}

/// In Slack's text these three are markup, by which one could mention everybody.
fn slack(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn call(template: Template, url: &str) -> (Call, Value) {
        let message = Message { subject: "[h] <!channel> & \"x\"".to_owned(), body: "b\n".to_owned() };
        let envelope =
            Envelope { url, token: Some("t0ken"), to: Some("!room:example.org"), host: "h", number: 7 };
        let call = template.call(&envelope, &[], &message);
        let body = serde_json::from_str(&call.body).unwrap();
        (call, body)
    }

    #[test]
    fn each_service_gets_its_own_form() {
        let text = "[h] <!channel> & \"x\"\nb\n";
        let bearer = ("Authorization", "Bearer t0ken".to_owned());
        let (ntfy, body) = call(Template::Ntfy, "https://ntfy.example.org/bans");
        assert_eq!(
            (ntfy.url.as_str(), &body["topic"], &body["message"]),
            ("https://ntfy.example.org", &json!("bans"), &json!(text))
        );
        assert!(ntfy.headers.contains(&bearer));
        let (_, body) = call(Template::Slack, "https://x.example");
        assert_eq!(body["text"], "[h] &lt;!channel&gt; &amp; \"x\"\nb\n");
        let (_, body) = call(Template::Discord, "https://x.example");
        assert_eq!((&body["content"], &body["allowed_mentions"]["parse"]), (&json!(text), &json!([])));
        let (telegram, body) = call(Template::Telegram, "https://api.telegram.org");
        assert_eq!(telegram.url, "https://api.telegram.org/bott0ken/sendMessage");
        assert!(!telegram.headers.contains(&bearer));
        assert_eq!(body["chat_id"], "!room:example.org");
        let (matrix, body) = call(Template::Matrix, "https://matrix.example.org/");
        assert_eq!(
            matrix.url,
            "https://matrix.example.org/_matrix/client/v3/rooms/%21room%3Aexample.org/send/m.room.message/nftjail7"
        );
        assert!(matrix.put && body["msgtype"] == "m.notice");
        let (own, body) = call(Template::Json, "https://x.example");
        assert_eq!((own.put, &body["host"], &body["news"]), (false, &json!("h"), &json!([])));
    }
}
