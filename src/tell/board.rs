//! The live view of `nftjail top`: what was heard and how it stands, drawn on a terminal.
#![forbid(unsafe_code)]

use std::collections::{HashMap, VecDeque};

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span as Words};
use ratatui::widgets::{Block, Cell, Clear, Paragraph, Row, Sparkline, Table, TableState};

use super::screen::truth;
use crate::model::{JailName, Span, Target, Timestamp};
use crate::status::{BanStatus, Happened, News, Status};

/// So many seconds are drawn.
const SECONDS: usize = 300;
/// So many attackers are told apart; the coolest are forgotten.
const ATTACKERS_MAX: usize = 1_000;
/// So many of them are shown.
const ATTACKERS_SHOWN: usize = 20;

/// What somebody wants done, once it is confirmed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wish {
    Unban(Target),
    Ignore(Target),
}

impl Wish {
    fn question(&self) -> String {
        match self {
            Wish::Unban(target) => format!(" unban {target}? y/n "),
            Wish::Ignore(target) => format!(" never ban {target} again, and unban it now? y/n "),
        }
    }
}

/// What a key means, whatever terminal sent it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    Char(char),
    Up,
    Down,
    Enter,
    Escape,
    Backspace,
    /// Ctrl-C.
    Interrupt,
}

/// What follows from a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Followed {
    Nothing,
    Quit,
    Do(Wish),
}

#[derive(Debug, Default)]
enum Mode {
    #[default]
    Looking,
    Searching,
    Asking(Wish),
}

#[derive(Debug, Default)]
pub struct Board {
    status: Option<Status>,
    /// The newest first.
    bans: Vec<BanStatus>,
    /// Of each second, the newest last.
    failed: VecDeque<u64>,
    banned: VecDeque<u64>,
    /// The second that is counted now.
    counting: (u64, u64),
    attackers: HashMap<Target, (u64, JailName)>,
    search: String,
    selected: TableState,
    mode: Mode,
    /// What came of the last wish, or what is wrong.
    said: String,
}

impl Board {
    pub fn hear(&mut self, news: &News) {
        match news.event {
            Happened::Failed => {
                self.counting.0 += 1;
                if let Some((target, jail)) = news.target.zip(news.jail.as_ref()) {
                    self.attackers.entry(target).or_insert_with(|| (0, jail.clone())).0 += 1;
                    if self.attackers.len() > ATTACKERS_MAX {
                        self.cool();
                    }
                }
            }
            Happened::Banned => self.counting.1 += 1,
            _ => {}
        }
    }

    /// A second is over, and this is how it stands.
    pub fn tick(&mut self, status: Status, mut bans: Vec<BanStatus>) {
        for (seconds, count) in [(&mut self.failed, self.counting.0), (&mut self.banned, self.counting.1)] {
            seconds.push_back(count);
            if seconds.len() > SECONDS {
                seconds.pop_front();
            }
        }
        self.counting = (0, 0);
        bans.sort_by(|a, b| b.at.cmp(&a.at).then(a.target.cmp(&b.target)));
        (self.status, self.bans) = (Some(status), bans);
    }

    pub fn say(&mut self, said: &str) {
        self.said = super::escape::shown(said.lines().next().unwrap_or_default());
    }

    /// Half of the attackers go, those who failed least.
    fn cool(&mut self) {
        let mut counts: Vec<u64> = self.attackers.values().map(|(count, _)| *count).collect();
        counts.sort_unstable();
        let middle = counts[counts.len() / 2];
        self.attackers.retain(|_, (count, _)| *count > middle);
    }

    fn shown(&self) -> impl Iterator<Item = &BanStatus> {
        self.bans.iter().filter(|ban| self.search.is_empty() || ban.target.to_string().contains(&self.search))
    }

    fn chosen(&self) -> Option<Target> {
        self.shown().nth(self.selected.selected()?).map(|ban| ban.target)
    }

    pub fn press(&mut self, key: Key) -> Followed {
        match (&self.mode, key) {
            (_, Key::Interrupt) => return Followed::Quit,
            (Mode::Asking(wish), Key::Char('y')) => {
                let wish = wish.clone();
                self.mode = Mode::Looking;
                return Followed::Do(wish);
            }
            (Mode::Asking(_), _) => self.mode = Mode::Looking,
            (Mode::Searching, Key::Enter) => self.mode = Mode::Looking,
            (Mode::Searching, Key::Escape) => {
                self.search.clear();
                self.mode = Mode::Looking;
            }
            (Mode::Searching, Key::Backspace) => drop(self.search.pop()),
            (Mode::Searching, Key::Char(c)) if self.search.len() < 64 && !c.is_control() => {
                self.search.push(c)
            }
            (Mode::Searching, _) => {}
            (Mode::Looking, Key::Char('q') | Key::Escape) => return Followed::Quit,
            (Mode::Looking, Key::Char('/')) => {
                self.search.clear();
                self.selected.select(None);
                self.mode = Mode::Searching;
            }
            (Mode::Looking, Key::Down | Key::Char('j')) if self.shown().next().is_some() => {
                let last = self.shown().count() - 1;
                self.selected.select(Some(self.selected.selected().map_or(0, |at| (at + 1).min(last))));
            }
            (Mode::Looking, Key::Up | Key::Char('k')) => {
                self.selected.select(self.selected.selected().map(|at| at.saturating_sub(1)));
            }
            (Mode::Looking, Key::Char(c @ ('u' | 'i'))) => match self.chosen() {
                Some(target) => {
                    let wish = if c == 'u' { Wish::Unban(target) } else { Wish::Ignore(target) };
                    self.mode = Mode::Asking(wish);
                }
                None => self.say("choose a ban with the arrow keys first"),
            },
            (Mode::Looking, _) => {}
        }
        Followed::Nothing
    }

    pub fn draw(&mut self, frame: &mut Frame<'_>) {
        let [head, rates, middle, bans, foot] = Layout::vertical([
            Constraint::Length(1),
            Constraint::Length(5),
            Constraint::Max(3 + self.status.as_ref().map_or(0, |status| status.jails.len() as u16).max(5)),
            Constraint::Min(4),
            Constraint::Length(1),
        ])
        .areas(frame.area());
        let truth = self.status.as_ref().map_or_else(|| "asking".to_owned(), truth);
        let bold = Style::new().add_modifier(Modifier::BOLD);
        frame.render_widget(Paragraph::new(Words::styled(truth, bold)), head);
        let [left, right] = Layout::horizontal([Constraint::Fill(1), Constraint::Fill(1)]).areas(rates);
        spark(frame, left, "failures", &self.failed, Color::Yellow);
        spark(frame, right, "bans", &self.banned, Color::Red);
        let [left, right] = Layout::horizontal([Constraint::Fill(3), Constraint::Fill(2)]).areas(middle);
        self.draw_jails(frame, left);
        self.draw_attackers(frame, right);
        self.draw_bans(frame, bans);
        frame.render_widget(Paragraph::new(self.foot()), foot);
        if let Mode::Asking(wish) = &self.mode {
            let question = wish.question();
            let area = frame.area();
            let width = (question.chars().count() as u16 + 2).min(area.width);
            let place = Rect::new((area.width - width) / 2, area.height / 2, width, 3.min(area.height / 2));
            frame.render_widget(Clear, place);
            frame.render_widget(Paragraph::new(question).block(Block::bordered()), place);
        }
    }

    fn draw_jails(&self, frame: &mut Frame<'_>, area: Rect) {
        let jails = self.status.iter().flat_map(|status| &status.jails);
        let rows = jails.map(|jail| {
            let dropped = jail.dropped.map_or_else(|| "?".to_owned(), |dropped| dropped.packets.to_string());
            Row::new([
                jail.name.to_string(),
                jail.banned.to_string(),
                jail.failing.to_string(),
                jail.failed_total.to_string(),
                dropped,
            ])
        });
        let widths = [Constraint::Fill(1)].into_iter().chain([Constraint::Length(9); 4]);
        let table =
            Table::new(rows, widths).header(header(["JAIL", "BANNED", "FAILING", "FAILED", "DROPPED"]));
        frame.render_widget(table.block(Block::bordered().title("jails")), area);
    }

    fn draw_attackers(&self, frame: &mut Frame<'_>, area: Rect) {
        let mut attackers: Vec<_> = self.attackers.iter().collect();
        attackers.sort_by(|a, b| b.1.0.cmp(&a.1.0).then(a.0.cmp(b.0)));
        let rows = attackers.into_iter().take(ATTACKERS_SHOWN).map(|(target, (count, jail))| {
            let is_banned = self.bans.iter().any(|ban| ban.target.covers(*target));
            let style = if is_banned { Style::new().fg(Color::Red) } else { Style::new() };
            Row::new([target.to_string(), count.to_string(), jail.to_string()]).style(style)
        });
        let widths = [Constraint::Fill(2), Constraint::Length(8), Constraint::Fill(1)];
        let table = Table::new(rows, widths).header(header(["ADDRESS", "FAILED", "JAIL"]));
        frame.render_widget(table.block(Block::bordered().title("hottest since you look")), area);
    }

    fn draw_bans(&mut self, frame: &mut Frame<'_>, area: Rect) {
        let now = self.status.as_ref().map_or(Timestamp::default(), |status| status.now);
        let rows: Vec<Row<'_>> = self
            .shown()
            .map(|ban| {
                let left =
                    ban.ends.map_or_else(|| "never".to_owned(), |ends| Span(ends.since(now)).to_string());
                let ago = format!("{} ago", Span(now.since(ban.at)));
                Row::new([ban.target.to_string(), ban.jail.to_string(), ago, left].map(Cell::from))
            })
            .collect();
        let title = match self.search.as_str() {
            "" => format!("{} bans, the newest first", self.bans.len()),
            search => format!("{} of {} bans, with \"{search}\"", rows.len(), self.bans.len()),
        };
        let widths =
            [Constraint::Fill(2), Constraint::Fill(1), Constraint::Length(14), Constraint::Length(10)];
        let table = Table::new(rows, widths)
            .header(header(["BANNED", "JAIL", "SINCE", "ENDS IN"]))
            .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED))
            .block(Block::bordered().title(title));
        frame.render_stateful_widget(table, area, &mut self.selected);
    }

    fn foot(&self) -> Line<'_> {
        match self.mode {
            Mode::Searching => Line::from(format!("address: {}_   (enter: keep, escape: all)", self.search)),
            _ if self.said.is_empty() => {
                Line::from("q quit   / search   up, down choose   u unban   i never ban again")
            }
            _ => Line::from(self.said.as_str()),
        }
    }
}

fn header<const N: usize>(names: [&'static str; N]) -> Row<'static> {
    Row::new(names).style(Style::new().add_modifier(Modifier::DIM))
}

fn spark(frame: &mut Frame<'_>, area: Rect, name: &str, seconds: &VecDeque<u64>, color: Color) {
    let wide = area.width.saturating_sub(2) as usize;
    let data: Vec<u64> = seconds.iter().skip(seconds.len().saturating_sub(wide)).copied().collect();
    let title = format!(
        "{name}: {} in the last second, at most {}",
        data.last().unwrap_or(&0),
        data.iter().max().unwrap_or(&0)
    );
    let sparkline = Sparkline::default().data(&data).style(Style::new().fg(color));
    frame.render_widget(sparkline.block(Block::bordered().title(title)), area);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tell::screen::tests::sample;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    fn ban(target: &str, second: i64) -> BanStatus {
        BanStatus {
            jail: "sshd".parse().unwrap(),
            target: target.parse().unwrap(),
            at: Timestamp::from_millis(second * 1_000),
            ends: Some(Timestamp::from_millis(120_000)),
            dropped: None,
        }
    }

    fn failed(target: &str) -> News {
        News {
            schema: 1,
            at: Timestamp::default(),
            event: Happened::Failed,
            jail: Some("sshd".parse().unwrap()),
            target: Some(target.parse().unwrap()),
            bantime: None,
            ends: None,
            lines: Vec::new(),
            text: String::new(),
        }
    }

    fn board() -> Board {
        let mut board = Board::default();
        (0..3).for_each(|_| board.hear(&failed("192.0.2.9")));
        board.tick(sample(), vec![ban("192.0.2.1", 10), ban("192.0.2.22", 50)]);
        board
    }

    fn drawn(board: &mut Board) -> String {
        let mut terminal = Terminal::new(TestBackend::new(100, 24)).unwrap();
        terminal.draw(|frame| board.draw(frame)).unwrap();
        terminal.backend().to_string()
    }

    #[test]
    fn all_is_on_one_screen() {
        let shown = drawn(&mut board());
        for piece in [
            "1 jail ok",
            "failures: 3 in the last second",
            "192.0.2.9",
            "2 bans, the newest first",
            "10s ago",
            "q quit",
        ] {
            assert!(shown.contains(piece), "{piece}: {shown}");
        }
        let (newest, oldest) = (shown.find("192.0.2.22").unwrap(), shown.find("192.0.2.1 ").unwrap());
        assert!(newest < oldest);
    }

    #[test]
    fn a_search_narrows_and_a_wish_is_confirmed() {
        let mut board = board();
        assert_eq!(board.press(Key::Char('u')), Followed::Nothing);
        assert!(drawn(&mut board).contains("choose a ban"));
        for key in
            [Key::Char('/'), Key::Char('2'), Key::Char('2'), Key::Enter, Key::Down, Key::Down, Key::Char('u')]
        {
            assert_eq!(board.press(key), Followed::Nothing);
        }
        let shown = drawn(&mut board);
        assert!(shown.contains("1 of 2 bans") && shown.contains("unban 192.0.2.22? y/n"), "{shown}");
        assert_eq!(board.press(Key::Char('n')), Followed::Nothing);
        board.press(Key::Char('i'));
        assert_eq!(board.press(Key::Char('y')), Followed::Do(Wish::Ignore("192.0.2.22".parse().unwrap())));
        assert_eq!(board.press(Key::Char('q')), Followed::Quit);
    }

    #[test]
    fn a_flood_of_attackers_is_bounded_and_the_hottest_stay() {
        let mut board = board();
        for n in 0..20_000_u32 {
            board.hear(&failed(&std::net::Ipv4Addr::from(n).to_string()));
            board.hear(&failed("192.0.2.9"));
        }
        assert!(board.attackers.len() <= ATTACKERS_MAX);
        assert!(drawn(&mut board).contains("192.0.2.9"));
    }

    #[test]
    fn a_small_terminal_breaks_nothing() {
        for (width, height) in [(1, 1), (20, 5), (40, 10), (300, 100)] {
            let mut board = board();
            board.press(Key::Down);
            board.press(Key::Char('u'));
            let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
            terminal.draw(|frame| board.draw(frame)).unwrap();
        }
    }
}
