//! Text that somebody else wrote, made so that it cannot move a cursor, change a colour or turn a line around.
#![forbid(unsafe_code)]

use std::fmt::Write;

/// Whether a terminal may take it for more than a letter: C0 and C1 controls (ECMA-48), line and paragraph separators,
/// what turns the direction of writing (UAX 9), and what is invisible.
fn is_active(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
        || matches!(c, '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// For people: `\n`, `\u{1b}` and the like stand where the character stood; all else is as it was.
pub fn shown(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_active(c) { out.extend(c.escape_debug()) } else { out.push(c) }
    }
    out
}

/// For programs and the terminal they are tried on: the same JSON, with every such character written as an escape of
/// its own (RFC 8259, section 7).
pub fn json(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        // Outside of strings JSON has no other control than the line feeds that make it pretty.
        if c != '\n' && is_active(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(out, "\\u{unit:04x}");
            }
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTILE: &str = "a\u{1b}[2J\u{9b}31m\r\n\t\u{7f}\u{202e}gnp\u{200b}\u{2028}\u{e0041}é漢\u{0}z";

    #[test]
    fn what_is_shown_moves_nothing() {
        assert_eq!(
            shown(HOSTILE),
            r"a\u{1b}[2J\u{9b}31m\r\n\t\u{7f}\u{202e}gnp\u{200b}\u{2028}\u{e0041}é漢\0z"
        );
        assert!(!shown(HOSTILE).chars().any(is_active));
    }

    #[test]
    fn json_stays_the_same_json() {
        let text = serde_json::to_string(HOSTILE).unwrap();
        let escaped = json(&text);
        assert!(!escaped.chars().any(is_active), "{escaped}");
        assert_eq!(serde_json::from_str::<String>(&escaped).unwrap(), HOSTILE);
    }
}
