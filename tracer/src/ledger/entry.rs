//! One troubled attempt: what is known of it, and how each event changes that.

use tracer_abi::abi::{Cause, Event, EventKind, NO_LISTENER, Stage, TASK_COMM_LEN, Tuple, Watch, flag, state};

use super::decision::{Decision, Outcome};

/// How long a cookie is good for: `MAX_SYNCOOKIE_AGE` periods of 60 s (`include/net/tcp.h`).
pub(super) const COOKIE_NS: u64 = 120_000_000_000;

/// Where an attempt is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Phase {
    /// The server holds nothing of it: its SYN was dropped, or its request was removed.
    Gone,
    /// A request is queued.
    HalfOpen,
    /// It was answered with a cookie, and nothing came back yet.
    Cookie,
    /// In the accept queue.
    Queued,
    /// Accepted. Final.
    Accepted,
    /// It left the accept queue together with its listener. Final.
    QueueGone,
}

/// Bits of [`Entry::marks`].
pub(super) mod mark {
    /// Dropped at least once, or its request was removed.
    pub(crate) const TROUBLED: u8 = 1 << 0;
    /// The client had answered a SYN-ACK.
    pub(crate) const ANSWERED: u8 = 1 << 1;
    /// Completed by data.
    pub(crate) const DATA: u8 = 1 << 2;
    /// Completed by FIN.
    pub(crate) const FIN: u8 = 1 << 3;
    /// With the last decisive event, the client was sent a RST.
    pub(crate) const RESET: u8 = 1 << 4;
    /// Its decision has been handed out.
    pub(crate) const DECIDED: u8 = 1 << 5;
    /// A failed `connect()` was counted as this attempt.
    pub(crate) const AT_CLIENT: u8 = 1 << 6;
    /// The server's side of it was seen.
    pub(crate) const AT_SERVER: u8 = 1 << 7;
}

/// One attempt. The key is its tuple.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    /// First sign of it.
    pub(super) first_ns: u64,
    /// Last sign of it.
    pub(super) last_ns: u64,
    /// Last event with which the kernel side counted it as a new attempt; 0 if none was seen.
    pub(super) counted_ns: u64,
    /// When `cause` was decided.
    pub(super) decisive_ns: u64,
    /// The client's initial sequence number; 0 if unknown.
    pub(super) isn: u32,
    /// The listener's slot.
    pub(super) slot: u32,
    /// The kernel's drop reason, for `filtered`.
    pub(super) reason: u32,
    /// The client's process, where it is known.
    pub(super) pid: u32,
    /// SYNs that were seen again.
    pub(super) syn_retransmits: u16,
    /// SYN-ACKs sent again.
    pub(super) synack_retransmits: u16,
    /// Bits of [`mark`].
    pub(super) marks: u8,
    /// Of the last decisive event.
    pub(super) cause: Cause,
    /// Of the last decisive event.
    pub(super) stage: Stage,
    /// Where it is.
    pub(super) phase: Phase,
}

// With its key, its hash and its place in the index, an attempt takes 112 bytes.
const _: () = assert!(size_of::<Entry>() == 56);
const _: () = assert!(size_of::<(Tuple, Entry)>() == 96);

/// What an attempt counts as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Accepted; `late` if it was dropped before.
    Accepted { late: bool },
    /// In the accept queue, when last heard of.
    Queued,
    /// It was in the accept queue of a listener that closed.
    QueueGone,
    /// Half-open and never dropped, when last heard of: the kernel side does not watch it, and tells no more if it goes
    /// well.
    HalfOpen,
    /// Answered with a cookie, never dropped, and the cookie is still good.
    Cookie,
    /// Lost.
    Lost(Loss),
}

/// A loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Loss {
    pub(super) cause: Cause,
    pub(super) stage: Stage,
    pub(super) reset: bool,
    pub(super) phantom: bool,
    /// Its request is still queued.
    pub(super) half_open: bool,
}

impl Entry {
    /// An attempt of which nothing is known but that it exists.
    pub(super) fn new(isn: u32, slot: u32, time_ns: u64) -> Entry {
        Entry {
            first_ns: time_ns,
            last_ns: time_ns,
            counted_ns: 0,
            decisive_ns: 0,
            isn,
            slot,
            reason: 0,
            pid: 0,
            syn_retransmits: 0,
            synack_retransmits: 0,
            marks: 0,
            cause: Cause::Unattributed,
            stage: Stage::None,
            phase: Phase::Gone,
        }
    }

    pub(super) fn has(&self, marks: u8) -> bool {
        self.marks & marks == marks
    }

    /// Whether only a failed `connect()` told of it so far.
    pub(super) fn only_at_client(&self) -> bool {
        self.has(mark::AT_CLIENT) && !self.has(mark::AT_SERVER)
    }

    fn has_left_the_handshake(&self) -> bool {
        matches!(self.phase, Phase::Queued | Phase::Accepted | Phase::QueueGone)
    }

    /// Whether nothing more can happen to it.
    pub(super) fn is_final(&self) -> bool {
        matches!(self.phase, Phase::Accepted | Phase::QueueGone)
    }

    /// Whether `event`, which carries this attempt's tuple, is about this attempt and not about another one.
    ///
    /// A SYN, a request and a cookie's ACK tell the initial sequence number. Other ACKs and RSTs tell it only if the
    /// client has sent no data before them; there, what the kernel side knew of the tuple decides.
    pub(super) fn is_meant_by(&self, event: &Event, kind: EventKind) -> bool {
        let unknown = self.isn == 0 || event.isn == 0;
        if !unknown && self.isn == event.isn {
            return true;
        }
        let old = event.time_ns <= self.last_ns;
        if event.flags & flag::NEW_ATTEMPT != 0 {
            // Another one, unless it is this one twice, or all that is known of this one is that connect() failed.
            return unknown && (old || self.only_at_client());
        }
        let cookie = event.flags & flag::COOKIE != 0;
        let troubled_request = self.phase == Phase::HalfOpen && self.has(mark::TROUBLED);
        match kind {
            // The kernel side has remembered the attempt, and nothing that it forgets it for has happened.
            EventKind::CookieInvalid | EventKind::ClientReset => old || !self.is_final(),
            // A child does not know its number, and this attempt would have been told of when it was queued.
            EventKind::ChildClosed => match self.phase {
                Phase::Queued | Phase::QueueGone => true,
                Phase::Accepted => old,
                Phase::Gone | Phase::Cookie | Phase::HalfOpen => false,
            },
            EventKind::CompletedBy => true,
            EventKind::Accepted => unknown,
            _ if unknown => old || !self.is_final(),
            EventKind::SynAckRetransmitted | EventKind::RequestExpired | EventKind::RequestReset => troubled_request,
            EventKind::AckDropped | EventKind::ChildQueued if !cookie => troubled_request,
            _ => false,
        }
    }

    /// Whether it is this attempt that a `connect()` failed with.
    pub(super) fn failed_in(&self, event: &Event) -> bool {
        if self.isn == 0 || event.isn == 0 { !self.is_final() } else { self.isn == event.isn }
    }

    /// Takes note of an event about this attempt. `listener_closed`: its listener had closed when it happened.
    pub(super) fn take(&mut self, event: &Event, kind: EventKind, listener_closed: bool, fresh: bool) {
        let time = event.time_ns;
        let stale = time < self.last_ns;
        let new = event.flags & flag::NEW_ATTEMPT != 0;
        if self.only_at_client() {
            // That connect() failed is no verdict once the server's side of it is seen.
            self.marks &= !mark::TROUBLED;
            (self.cause, self.stage, self.decisive_ns) = (Cause::Unattributed, Stage::None, 0);
        }
        if self.isn == 0 {
            self.isn = event.isn;
        }
        self.marks |= mark::AT_SERVER;
        if is_syn(kind) && !(fresh && new) && (fresh || time > self.last_ns) {
            self.syn_retransmits = self.syn_retransmits.saturating_add(1);
        }
        if new {
            self.counted_ns = self.counted_ns.max(time);
        }
        self.first_ns = self.first_ns.min(time);
        self.last_ns = self.last_ns.max(time);

        // A packet that is dropped at the listener after the connection was queued is not one of this handshake.
        let over = self.has_left_the_handshake() && !stale;
        let fixed = self.has_left_the_handshake() || stale;
        let cause = Cause::from_u8(event.cause).unwrap_or(Cause::Unattributed);
        match kind {
            EventKind::SynDropped if !over => {
                // A filter in front of the listener does not touch the request that an earlier SYN left there.
                if cause != Cause::Filtered || self.phase != Phase::HalfOpen {
                    self.go(Phase::Gone, fixed);
                }
                if self.trouble(cause, Stage::Syn, time) {
                    self.reason = if cause == Cause::Filtered { event.detail } else { 0 };
                }
            }
            EventKind::CookieSent => self.go(Phase::Cookie, fixed),
            EventKind::SynQueued => self.go(Phase::HalfOpen, fixed),
            EventKind::AckDropped if !over => {
                let reset = event.flags & flag::RESET != 0;
                let cookie = event.flags & flag::COOKIE != 0 || cause == Cause::SyncookieAckDropped;
                let request_stays = !reset && (!cookie || event.detail == 1);
                self.go(if request_stays { Phase::HalfOpen } else { Phase::Gone }, fixed);
                self.marks |= mark::ANSWERED;
                if self.trouble(cause, Stage::Ack, time) && reset {
                    self.marks |= mark::RESET;
                }
            }
            EventKind::CookieInvalid if !over => {
                self.go(Phase::Gone, fixed);
                // The ACK of a request that we dropped comes back when that request is gone: it never was a cookie.
                if !self.acknowledged_a_request() {
                    self.trouble(Cause::SyncookieInvalid, Stage::Ack, time);
                }
            }
            EventKind::SynAckRetransmitted => {
                self.go(Phase::HalfOpen, fixed);
                self.synack_resent(event.detail);
            }
            EventKind::RequestExpired if !over => {
                self.go(Phase::Gone, fixed);
                self.synack_resent(event.detail);
                if listener_closed {
                    self.trouble(Cause::ListenerClosed, Stage::None, time);
                } else if !self.knows_better_than(Cause::HandshakeExpired) {
                    self.trouble(Cause::HandshakeExpired, Stage::None, time);
                }
            }
            // A RST beside the window of a request changes nothing.
            EventKind::ClientReset if self.phase == Phase::HalfOpen => {}
            EventKind::RequestReset | EventKind::ClientReset if !over => {
                self.go(Phase::Gone, fixed);
                self.trouble(Cause::ClientReset, Stage::None, time);
            }
            EventKind::ChildQueued => {
                self.synack_resent(event.detail);
                self.queue();
            }
            EventKind::Accepted => self.accept(),
            EventKind::ChildClosed if event.flags & flag::LISTENER_CLOSED != 0 && self.phase != Phase::Accepted => {
                self.phase = Phase::QueueGone;
            }
            EventKind::CompletedBy => {
                self.marks |= if event.flags & flag::DATA != 0 { mark::DATA } else { 0 };
                self.marks |= if event.flags & flag::FIN != 0 { mark::FIN } else { 0 };
            }
            _ => {}
        }
    }

    /// Records a decisive event, unless a later one is known already; whether it counts.
    pub(super) fn trouble(&mut self, cause: Cause, stage: Stage, time_ns: u64) -> bool {
        self.marks |= mark::TROUBLED;
        if time_ns < self.decisive_ns {
            return false;
        }
        self.marks &= !mark::RESET;
        (self.cause, self.stage, self.decisive_ns) = (cause, stage, time_ns);
        true
    }

    fn go(&mut self, to: Phase, fixed: bool) {
        if !fixed {
            self.phase = to;
        }
    }

    fn synack_resent(&mut self, times: u32) {
        self.synack_retransmits = self.synack_retransmits.max(u16::try_from(times).unwrap_or(u16::MAX));
    }

    fn queue(&mut self) {
        if !self.is_final() {
            self.phase = Phase::Queued;
        }
    }

    fn accept(&mut self) {
        if self.phase != Phase::QueueGone {
            self.phase = Phase::Accepted;
        }
    }

    /// Takes over what the kernel's own memory of this attempt says and no event had told. `fresh`: there was no event.
    pub(super) fn reconcile(&mut self, watch: &Watch, fresh: bool) {
        let has = |bit: u16| watch.state & bit != 0;
        self.first_ns = self.first_ns.min(watch.first_ns);
        self.last_ns = self.last_ns.max(watch.last_ns);
        if self.only_at_client() {
            self.marks &= !mark::TROUBLED;
            (self.cause, self.stage) = (Cause::Unattributed, Stage::None);
        }
        self.marks |= mark::AT_SERVER;
        let cause = if has(state::TROUBLED) { Cause::from_u8(watch.cause) } else { None };
        // An ACK that is no cookie answers nothing.
        let answered = has(state::ANSWERED) && cause != Some(Cause::SyncookieInvalid);
        self.marks |= if answered { mark::ANSWERED } else { 0 };
        self.marks |= if has(state::BY_DATA) { mark::DATA } else { 0 };
        self.marks |= if has(state::BY_FIN) { mark::FIN } else { 0 };
        if has(state::ACCEPTED) {
            self.accept();
        } else if has(state::QUEUED) {
            self.queue();
        } else if !self.has_left_the_handshake() {
            let refused =
                matches!(cause, Some(Cause::SyncookieInvalid | Cause::ClientReset)) && cause != Some(self.cause);
            let waits = has(state::COOKIE) && !answered && !refused;
            self.phase = match self.phase {
                _ if has(state::HALF_OPEN) => Phase::HalfOpen,
                // A SYN that was dropped after the cookie was sent leaves the kernel's bit, and the events know better.
                Phase::Gone if !fresh => Phase::Gone,
                _ if waits => Phase::Cookie,
                _ => Phase::Gone,
            };
        }
        if has(state::TROUBLED) {
            self.marks |= mark::TROUBLED;
        }
        if let Some(cause) = cause.filter(|cause| *cause != self.cause && !self.knows_better_than(*cause)) {
            self.cause = cause;
            self.stage = match cause {
                Cause::HandshakeExpired | Cause::ClientReset | Cause::ListenerClosed => Stage::None,
                _ if has(state::STAGE_ACK) => Stage::Ack,
                _ => Stage::Syn,
            };
            self.marks &= !mark::RESET;
            let reset = has(state::RESET) && self.stage == Stage::Ack && cause != Cause::SyncookieInvalid;
            self.marks |= if reset { mark::RESET } else { 0 };
        }
    }

    /// Whether the cause here is kept although a later event, taken alone, would say `later`.
    fn knows_better_than(&self, later: Cause) -> bool {
        self.cause == Cause::ListenerClosed
            || self.acknowledged_a_request() && matches!(later, Cause::HandshakeExpired | Cause::SyncookieInvalid)
            || self.has(mark::ANSWERED) && self.stage == Stage::Ack && later == Cause::HandshakeExpired
    }

    /// Whether the client acknowledged a request and we dropped that.
    fn acknowledged_a_request(&self) -> bool {
        self.has(mark::ANSWERED) && self.stage == Stage::Ack && self.cause != Cause::SyncookieAckDropped
    }

    /// What the attempt counts as at `now_ns`. `closed_ns`: when its listener closed, 0 if that is not known.
    pub(super) fn verdict(&self, closed_ns: Option<u64>, now_ns: u64) -> Verdict {
        let troubled = self.has(mark::TROUBLED);
        let lost = |cause, stage, half_open| {
            let reset = cause == self.cause && self.has(mark::RESET);
            Verdict::Lost(Loss { cause, stage, reset, phantom: self.has(mark::ANSWERED), half_open })
        };
        let expires_ns = self.last_ns.saturating_add(COOKIE_NS);
        match self.phase {
            Phase::Accepted => Verdict::Accepted { late: troubled },
            Phase::QueueGone => Verdict::QueueGone,
            // If its listener has closed and no event said what became of it, the counters tell how many there are.
            Phase::Queued => Verdict::Queued,
            Phase::HalfOpen if !troubled => Verdict::HalfOpen,
            Phase::HalfOpen if closed_ns.is_some() => lost(Cause::ListenerClosed, Stage::None, true),
            Phase::HalfOpen => lost(self.cause, self.stage, true),
            Phase::Cookie if closed_ns.is_some_and(|closed| closed < expires_ns) => {
                lost(Cause::ListenerClosed, Stage::None, false)
            }
            Phase::Cookie if expires_ns <= now_ns => lost(Cause::HandshakeExpired, Stage::None, false),
            Phase::Cookie if !troubled => Verdict::Cookie,
            Phase::Cookie | Phase::Gone => lost(self.cause, self.stage, false),
        }
    }

    /// The line of this attempt, if its verdict has one and it was not handed out before.
    pub(super) fn decide(&mut self, tuple: &Tuple, verdict: Verdict, at: At) -> Option<Decision> {
        if self.has(mark::DECIDED) {
            return None;
        }
        let mut decision = Decision {
            outcome: Outcome::Lost,
            at_ns: at.time_ns,
            cause: self.cause,
            stage: self.stage,
            reset: false,
            tuple: *tuple,
            slot: self.slot,
            phantom: false,
            syn_retransmits: u32::from(self.syn_retransmits),
            synack_retransmits: u32::from(self.synack_retransmits),
            delay_ns: at.time_ns.saturating_sub(self.first_ns),
            reason: 0,
            pid: if at.pid == 0 { self.pid } else { at.pid },
            comm: at.comm,
        };
        match verdict {
            Verdict::Accepted { late: true } => {
                decision.outcome = Outcome::Late;
                decision.reset = self.has(mark::RESET);
            }
            Verdict::Lost(loss) => {
                (decision.cause, decision.stage) = (loss.cause, loss.stage);
                (decision.reset, decision.phantom) = (loss.reset, loss.phantom);
            }
            Verdict::QueueGone => {
                (decision.cause, decision.stage, decision.phantom) = (Cause::ListenerClosed, Stage::None, true);
            }
            Verdict::Accepted { late: false } | Verdict::Queued | Verdict::HalfOpen | Verdict::Cookie => return None,
        }
        if decision.cause == Cause::Filtered {
            decision.reason = self.reason;
        }
        self.marks |= mark::DECIDED;
        Some(decision)
    }

    /// Whether it is lost for good, so that its line need not wait: it went with its listener's accept queue, or the
    /// client was told that nobody listens.
    pub(super) fn is_lost_for_good(&self) -> bool {
        self.phase == Phase::QueueGone
            || self.phase == Phase::Gone && self.has(mark::TROUBLED) && self.cause == Cause::NoListener
    }

    /// Follows the attempt to the slot of an event; the slot that it left, if it did.
    pub(super) fn follow(&mut self, slot: u32) -> Option<u32> {
        // That nobody listens any more does not take the attempt away from the listener it began at.
        if slot == NO_LISTENER || slot == self.slot {
            return None;
        }
        Some(std::mem::replace(&mut self.slot, slot))
    }
}

/// When, and by whom, a verdict came about.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct At {
    pub(super) time_ns: u64,
    pub(super) pid: u32,
    pub(super) comm: [u8; TASK_COMM_LEN],
}

fn is_syn(kind: EventKind) -> bool {
    matches!(kind, EventKind::SynDropped | EventKind::CookieSent | EventKind::SynQueued)
}
