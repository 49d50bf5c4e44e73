//! Rings when a descriptor becomes readable, whoever owns it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

pub struct Bell(AsyncFd<OwnedFd>);

impl Bell {
    /// Must be called within a tokio runtime. The descriptor is duplicated, so the owner may do as it likes.
    #[expect(unsafe_code, reason = "tokio cannot know that a type keeps its descriptor open")]
    pub fn of(readable: &impl AsFd) -> io::Result<Bell> {
        let own = readable.as_fd().try_clone_to_owned()?;
        // SAFETY: an `OwnedFd` names the same open descriptor until it is dropped.
        let fd = unsafe { AsyncFd::register_with_interest(own, Interest::READABLE) }?;
        Ok(Bell(fd))
    }

    /// Waits until there is something to read. All of it must be read then: it rings for what comes new.
    pub async fn rung(&self) {
        if let Ok(mut ready) = self.0.readable().await {
            ready.clear_ready();
        }
    }
}
