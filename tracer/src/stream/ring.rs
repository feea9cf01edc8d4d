//! The ring buffer, on tokio.

use std::{io, time::Duration};

use aya::maps::{MapData, RingBuf};
use tokio::{io::unix::AsyncFd, time::timeout};
use tracer_abi::abi::Event;
use zerocopy::FromBytes;

/// How long events may lie in the ring: the kernel side wakes the reader only when a part of the ring is full.
const PATIENCE: Duration = Duration::from_millis(50);

/// Bytes that an event takes in the ring: with its header.
pub const EVENT_BYTES: u64 = 8 + size_of::<Event>() as u64;

/// The reading end of the ring.
pub struct Ring {
    inner: AsyncFd<RingBuf<MapData>>,
    /// Events that were read.
    pub events: u64,
    /// The most events that were read in one go.
    pub most: u64,
    /// Records that were not of an event's size; 0 unless object and collector are of different versions.
    pub unreadable: u64,
}

impl Ring {
    /// Reads from this ring.
    ///
    /// # Errors
    /// Outside a tokio runtime, or if the ring cannot be polled.
    pub fn new(ring: RingBuf<MapData>) -> io::Result<Ring> {
        // SAFETY: the map owns its file descriptor, which stays open and the same until the map is dropped with this.
        let inner = unsafe { AsyncFd::register(ring)? };
        Ok(Ring { inner, events: 0, most: 0, unreadable: 0 })
    }

    /// Waits until there may be events: woken by the kernel side, or after 50 ms.
    ///
    /// # Errors
    /// If polling fails.
    pub async fn ready(&mut self) -> io::Result<()> {
        match timeout(PATIENCE, self.inner.readable()).await {
            Ok(guard) => guard.map(|mut guard| guard.clear_ready()),
            Err(_) => Ok(()),
        }
    }

    /// Hands out all events that are there now, in the order in which they were reserved.
    pub fn drain(&mut self, mut each: impl FnMut(&Event)) {
        let ring = self.inner.get_mut();
        let mut events = 0;
        while let Some(item) = ring.next() {
            match decode(&item) {
                Some(event) => {
                    events += 1;
                    each(&event);
                }
                None => self.unreadable += 1,
            }
        }
        self.events += events;
        self.most = self.most.max(events);
    }
}

/// The event in a record of the ring, or `None` if the record has another size.
#[must_use]
pub fn decode(record: &[u8]) -> Option<Event> {
    Event::read_from_bytes(record).ok()
}
