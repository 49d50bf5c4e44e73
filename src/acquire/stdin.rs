//! Standard input, for as long as it lasts.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use crate::model::plain;

use super::splitter::Splitter;
use super::stream::{Kind, Left, take, waiting};
use super::tail::Reading;

pub(super) struct Stdin {
    stdin: io::Stdin,
    splitter: Splitter,
    ended: bool,
}

impl Stdin {
    pub(super) fn new() -> Stdin {
        Stdin { stdin: io::stdin(), splitter: Splitter::new(0), ended: false }
    }
}

impl Kind for Stdin {
    fn read(&mut self, reading: &mut Reading) -> Result<bool, String> {
        if self.ended {
            return Ok(false);
        }
        let left = take(&self.stdin, &mut self.splitter, reading);
        // What cannot be read now never can again: nobody replaces it.
        self.ended = matches!(left, Ok(Left::Ended) | Err(_));
        left.map(|left| left == Left::More).map_err(|error| plain(&error))
    }

    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        if self.ended { Vec::new() } else { vec![self.stdin.as_fd()] }
    }

    fn behind(&self) -> u64 {
        waiting(&self.stdin)
    }

    fn has_ended(&self) -> bool {
        self.ended
    }
}
