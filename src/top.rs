//! `nftjail top`: the terminal, its keys, and the questions to the agent that keep the view alive.

use std::io;
use std::path::Path;
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};
use std::thread;
use std::time::Duration;

use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use tokio::time::Instant;

use crate::control::{self, Request, Response, Unanswered, Whom};
use crate::model::Target;
use crate::status::{BanStatus, News, Status};
use crate::tell::board::{Board, Followed, Key, Wish};

/// Why the view ended before its user wanted it to.
#[derive(Debug)]
pub enum Unseen {
    Agent(Unanswered),
    Terminal(io::Error),
}

const SECOND: Duration = Duration::from_secs(1);

/// Shows what happens until the user has seen enough.
pub fn run(socket: &Path) -> Result<(), Unseen> {
    let (mut stream, _) = control::watch(socket, None).map_err(Unseen::Agent)?;
    let (tell, news) = sync_channel::<News>(10_000);
    thread::spawn(move || {
        // What comes faster than it is drawn is in the numbers of the status anyway.
        while let Ok(Some(response)) = control::next(&mut stream) {
            if let Response::News(one) = response {
                let _ = tell.try_send(one);
            }
        }
    });
    let mut terminal = ratatui::try_init().map_err(Unseen::Terminal)?;
    let seen = show(&mut terminal, socket, &news);
    ratatui::restore();
    seen
}

fn show(terminal: &mut ratatui::DefaultTerminal, socket: &Path, news: &Receiver<News>) -> Result<(), Unseen> {
    let mut board = Board::default();
    let mut due = Instant::now();
    loop {
        let listening = hear(&mut board, news);
        if due <= Instant::now() {
            due = Instant::now() + SECOND;
            match stand(socket) {
                Ok((status, bans)) => board.tick(status, bans),
                Err(unanswered) if listening => board.say(&unanswered.to_string()),
                Err(unanswered) => return Err(Unseen::Agent(unanswered)),
            }
        }
        terminal.draw(|frame| board.draw(frame)).map_err(Unseen::Terminal)?;
        let wait = due.saturating_duration_since(Instant::now()).min(SECOND / 5);
        if !event::poll(wait).map_err(Unseen::Terminal)? {
            continue;
        }
        let Some(key) = key(&event::read().map_err(Unseen::Terminal)?) else { continue };
        match board.press(key) {
            Followed::Nothing => {}
            Followed::Quit => return Ok(()),
            Followed::Do(wish) => {
                board.say(&fulfil(socket, &wish));
                due = Instant::now();
            }
        }
    }
}

/// False where the agent says no more.
fn hear(board: &mut Board, news: &Receiver<News>) -> bool {
    loop {
        match news.try_recv() {
            Ok(one) => board.hear(&one),
            Err(TryRecvError::Empty) => return true,
            Err(TryRecvError::Disconnected) => return false,
        }
    }
}

fn stand(socket: &Path) -> Result<(Status, Vec<BanStatus>), Unanswered> {
    let other = || Unanswered::Broken("it is of another version".to_owned());
    let Response::Status(status) = control::ask(socket, &Request::Status { jail: None })? else {
        return Err(other());
    };
    let Response::Bans(bans) = control::ask(socket, &Request::Bans { jail: None })? else {
        return Err(other());
    };
    Ok((*status, bans))
}

/// What came of it, in words.
fn fulfil(socket: &Path, wish: &Wish) -> String {
    let request = match wish {
        Wish::Unban(target) => Request::Unban { whom: whom(*target), jail: None },
        Wish::Ignore(target) => Request::IgnoreAdd { net: target.net(), force: false },
    };
    match control::ask(socket, &request) {
        Ok(Response::Done(text)) => text,
        Ok(Response::Failed { message, .. }) => message,
        Ok(_) => "the agent answered something else than was asked".to_owned(),
        Err(unanswered) => unanswered.to_string(),
    }
}

fn whom(target: Target) -> Whom {
    if target.is_network() { Whom::Net(target.net()) } else { Whom::Target(target) }
}

fn key(event: &Event) -> Option<Key> {
    let Event::Key(key) = event else { return None };
    if key.kind == KeyEventKind::Release {
        return None;
    }
    if key.modifiers.contains(KeyModifiers::CONTROL) {
        return (key.code == KeyCode::Char('c')).then_some(Key::Interrupt);
    }
    match key.code {
        KeyCode::Char(c) => Some(Key::Char(c)),
        KeyCode::Up => Some(Key::Up),
        KeyCode::Down => Some(Key::Down),
        KeyCode::Enter => Some(Key::Enter),
        KeyCode::Esc => Some(Key::Escape),
        KeyCode::Backspace => Some(Key::Backspace),
        _ => None,
    }
}
