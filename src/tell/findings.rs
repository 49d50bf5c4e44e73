//! What the doctor found, as people read it: a line for each, the worst stand out.
#![forbid(unsafe_code)]

use crate::status::{Checkup, Level};

/// One line for each finding, what to do below it, and a last line that says it all.
pub fn text(checkup: &Checkup) -> String {
    let mut text = String::new();
    for finding in &checkup.findings {
        let level = match finding.level {
            Level::Ok => "ok",
            Level::Note => "note",
            Level::Bad => "BAD",
        };
        text += &format!("{level:<5} {:<11} {}\n", finding.about, printable(&finding.what));
        if let Some(todo) = &finding.todo {
            text += &format!("{:<17} → {}\n", "", printable(todo));
        }
    }
    let count = |level| checkup.findings.iter().filter(|finding| finding.level == level).count();
    let notes = match count(Level::Note) {
        0 => String::new(),
        1 => ", 1 note".to_owned(),
        many => format!(", {many} notes"),
    };
    text + &match count(Level::Bad) {
        0 => format!("\nall is well{notes}\n"),
        1 => format!("\n1 thing needs you{notes}\n"),
        many => format!("\n{many} things need you{notes}\n"),
    }
}

/// Names of chains and files may hold whatever their owner wrote: nothing of it moves the cursor.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::Finding;

    #[test]
    fn the_last_line_says_it_all() {
        let finding = |level, todo: Option<&str>| Finding {
            level,
            about: "hooks",
            what: "x\u{1b}".to_owned(),
            todo: todo.map(ToOwned::to_owned),
        };
        let mut checkup = Checkup { schema: 1, well: true, findings: vec![finding(Level::Ok, None)] };
        assert_eq!(text(&checkup), "ok    hooks       x?\n\nall is well\n");
        checkup.findings.push(finding(Level::Note, Some("do it")));
        checkup.findings.push(finding(Level::Bad, None));
        let wanted = "ok    hooks       x?\nnote  hooks       x?\n                  → do it\nBAD   hooks       x?\n\n\
                      1 thing needs you, 1 note\n";
        assert_eq!(text(&checkup), wanted);
    }
}
