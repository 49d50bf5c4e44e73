//! One epoll instance for all streams: readable when one of them is.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;

use super::SourceId;
use super::stream::Stream;

/// Holds the descriptors of streams, level-triggered: what was not read to its end is said again.
#[derive(Debug)]
pub struct Ready(OwnedFd);

impl Ready {
    /// # Errors
    /// EMFILE: too many open files.
    pub fn new() -> io::Result<Ready> {
        Ok(Ready(epoll::create(epoll::CreateFlags::CLOEXEC)?))
    }

    /// Waits for what this stream has open now. To be called after each read: what it closed is forgotten by itself.
    pub fn aim<'a>(
        &self,
        id: SourceId,
        descriptors: impl IntoIterator<Item = BorrowedFd<'a>>,
    ) -> io::Result<()> {
        let data = epoll::EventData::new_u64(id.0.into());
        for fd in descriptors {
            let known = match epoll::modify(&self.0, fd, data, epoll::EventFlags::IN) {
                Err(Errno::NOENT) => epoll::add(&self.0, fd, data, epoll::EventFlags::IN),
                other => other,
            };
            match known {
                // A regular file as standard input: epoll_ctl(2) refuses what can always be read.
                Err(Errno::PERM) => {}
                other => other?,
            }
        }
        Ok(())
    }

    /// Who can be read now, of so many streams; never blocks.
    pub fn wake(&self, streams: usize) -> io::Result<BTreeSet<SourceId>> {
        let mut events = Vec::with_capacity(1 + streams * Stream::DESCRIPTORS_MAX);
        epoll::wait(&self.0, spare_capacity(&mut events), Some(&Timespec::default()))?;
        Ok(events.iter().map(|event: &epoll::Event| SourceId(event.data.u64() as u32, 0)).collect())
    }
}

impl AsFd for Ready {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
