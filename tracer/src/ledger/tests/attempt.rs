//! One connection attempt of the model, and the event that tells of it.

use tracer_abi::abi::{Address, Cause, Deltas, Event, EventKind, Tuple};

pub(super) const SECOND: u64 = 1_000_000_000;

/// What a SYN met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Syn {
    Queued,
    Cookie,
    Dropped(Cause),
    Refused,
    Filtered(u32),
}

/// What an ACK met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ack {
    /// A child; the flags say what completed it.
    Child(u8),
    Dropped(Cause),
    DroppedWithReset(Cause),
    Invalid,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    New,
    Nowhere,
    HalfOpen,
    Cookie,
    Queued,
    Accepted,
    WentWithListener,
}

/// One connection attempt, and all that is true of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attempt {
    pub(super) tuple: Tuple,
    pub(super) isn: u32,
    /// Where its next SYN arrives.
    pub(super) slot: u32,
    /// Where it is counted.
    pub(super) home: u32,
    pub(super) place: Place,
    pub(super) dropped: bool,
    pub(super) decisive: Cause,
    pub(super) answered: bool,
    /// The client has acknowledged a request, and that was dropped.
    pub(super) acknowledged_request: bool,
    /// The client can still come back with a valid cookie.
    pub(super) holds_cookie: bool,
    pub(super) cookie_ns: u64,
    pub(super) dead: bool,
    /// Its `accept()` was seen by no program.
    pub(super) unseen: bool,
    pub(super) by: u8,
    pub(super) synacks: u32,
    pub(super) superseded: bool,
    /// The client was told that nobody listens, or has reset the attempt: it sends no more.
    pub(super) over: bool,
    /// When an event told that its tuple has begun another attempt.
    pub(super) ended_ns: Option<u64>,
}

pub(super) fn event(kind: EventKind, tuple: Tuple, isn: u32, slot: u32, time_ns: u64) -> Event {
    Event {
        time_ns,
        tuple,
        isn,
        slot,
        detail: 0,
        accept_queue: 0,
        accept_limit: 0,
        half_open: 0,
        pid: 0,
        kind: kind as u8,
        flags: 0,
        cause: 0,
        deltas: Deltas::default(),
        comm: [0; 16],
        padding: [0; 8],
    }
}

pub(super) fn tuple(client_port: u16) -> Tuple {
    Tuple {
        client: Address::mapped([10, 0, 0, 1]),
        server: Address::mapped([10, 0, 0, 2]),
        client_port,
        port: 8000,
        netns: 1,
    }
}

impl Attempt {
    pub(super) fn client_port(&self) -> u16 {
        self.tuple.client_port
    }

    pub(super) fn is_queued(&self) -> bool {
        self.place == Place::Queued
    }
}
