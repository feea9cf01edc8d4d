//! A model of the kernel side: every attempt with its true history, the counters, the watch map and the events that
//! follow from it, and the outcome by the words of the contract.

use std::collections::BTreeMap;

use tracer_abi::abi::{Cause, Event, EventKind, NO_LISTENER, Tuple, Watch, flag, state};

use super::attempt::{Ack, Attempt, Place, SECOND, Syn, event, tuple};
use crate::ledger::SlotTotals;

#[derive(Default)]
pub(super) struct Kernel {
    pub(super) now_ns: u64,
    pub(super) slots: BTreeMap<u32, SlotTotals>,
    pub(super) closed_ns: BTreeMap<u32, u64>,
    pub(super) watch: BTreeMap<Tuple, Watch>,
    pub(super) attempts: Vec<Attempt>,
    /// Events that found room in the ring, not yet read.
    pub(super) ring: Vec<Event>,
    /// The next events find no room.
    pub(super) ring_full: bool,
}

impl Kernel {
    pub(super) fn new() -> Kernel {
        Kernel { now_ns: SECOND, ..Kernel::default() }
    }

    /// The counters as the collector reads them at the end.
    pub(super) fn totals(&self) -> Vec<(u32, SlotTotals)> {
        let with_queue = |(slot, totals): (&u32, &SlotTotals)| {
            let waiting = totals.waiting.or_else(|| Some(self.waiting(*slot)));
            (*slot, SlotTotals { waiting, ..totals.clone() })
        };
        self.slots.iter().map(with_queue).collect()
    }

    /// Length of an accept queue.
    fn waiting(&self, slot: u32) -> u64 {
        self.attempts.iter().filter(|a| a.slot == slot && a.place == Place::Queued).count() as u64
    }

    fn slot(&mut self, slot: u32) -> &mut SlotTotals {
        self.slots.entry(slot).or_default()
    }

    fn is_closed(&self, slot: u32) -> bool {
        self.closed_ns.contains_key(&slot)
    }

    /// A client is about to send a first SYN; its index.
    pub(super) fn client(&mut self, client_port: u16, slot: u32) -> usize {
        let isn = self.attempts.len() as u32 + 1;
        self.attempts.push(Attempt {
            tuple: tuple(client_port),
            isn,
            slot,
            home: slot,
            place: Place::New,
            dropped: false,
            decisive: Cause::Unattributed,
            answered: false,
            acknowledged_request: false,
            holds_cookie: false,
            cookie_ns: 0,
            dead: false,
            unseen: false,
            by: 0,
            synacks: 0,
            superseded: false,
            over: false,
            ended_ns: None,
        });
        self.attempts.len() - 1
    }

    /// The same client tries once more from the same port; `None` if its last try is still a live connection or
    /// request.
    pub(super) fn again(&mut self, i: usize) -> Option<usize> {
        let a = &mut self.attempts[i];
        let live = match a.place {
            Place::HalfOpen => true,
            Place::Queued => !a.dead,
            _ => false,
        };
        if live || a.superseded {
            return None;
        }
        a.superseded = true;
        let (port, slot) = (a.tuple.client_port, a.slot);
        Some(self.client(port, slot))
    }

    fn emit(&mut self, i: usize, kind: EventKind, fill: impl FnOnce(&mut Event)) -> bool {
        let a = self.attempts[i];
        let mut e = event(kind, a.tuple, a.isn, a.slot, self.now_ns);
        fill(&mut e);
        if self.ring_full {
            return false;
        }
        self.ring.push(e);
        // A child that is taken, or only reset, may be an earlier one of its tuple: such an event does not tell of a
        // new one.
        let tells = kind != EventKind::Accepted && (kind != EventKind::ChildClosed || e.flags != 0);
        for older in self.attempts[..i].iter_mut().filter(|older| tells && older.tuple == a.tuple) {
            older.ended_ns.get_or_insert(self.now_ns);
        }
        true
    }

    fn watched(&self, i: usize) -> bool {
        let a = &self.attempts[i];
        self.watch.get(&a.tuple).is_some_and(|w| w.isn == a.isn)
    }

    /// Sets and clears bits of the watch entry, which is made if need be.
    fn note(&mut self, i: usize, set: u16, clear: u16, cause: Option<Cause>) {
        let (a, now) = (self.attempts[i], self.now_ns);
        let w = self.watch.entry(a.tuple).or_default();
        if w.isn != a.isn {
            *w = Watch { first_ns: now, isn: a.isn, cause: 255, ..Watch::default() };
        }
        w.last_ns = now;
        if a.home != NO_LISTENER {
            w.slot = a.slot;
        }
        w.state = w.state & !clear | set;
        if let Some(cause) = cause {
            w.cause = cause as u8;
        }
    }

    /// First of all, an attempt is counted.
    fn begin(&mut self, i: usize, slot: u32) -> u8 {
        if self.attempts[i].place != Place::New {
            return 0;
        }
        self.attempts[i].home = slot;
        self.slot(slot).attempts += 1;
        flag::NEW_ATTEMPT
    }

    pub(super) fn syn(&mut self, i: usize, syn: Syn) -> bool {
        let a = self.attempts[i];
        if a.over || a.superseded || a.answered {
            return false;
        }
        let open = !self.is_closed(a.slot);
        let possible = match syn {
            Syn::Refused => !open,
            Syn::Filtered(_) => a.place != Place::Cookie,
            _ => open,
        };
        if !possible || !matches!(a.place, Place::New | Place::Nowhere | Place::Cookie) {
            return false;
        }
        let slot = if matches!(syn, Syn::Refused | Syn::Filtered(_)) { NO_LISTENER } else { a.slot };
        let new = self.begin(i, slot);
        self.slot(slot).syn += 1;
        if slot != NO_LISTENER {
            // Attempts are where they got to; the ledger has to follow, because the counter does not.
            self.attempts[i].home = slot;
        }
        let trouble = |k: &mut Kernel, cause: Cause, detail: u32| {
            k.slot(slot).syn_dropped[cause as usize] += 1;
            k.attempts[i].place = Place::Nowhere;
            k.attempts[i].dropped = true;
            k.attempts[i].decisive = cause;
            k.note(i, state::TROUBLED, state::STAGE_ACK, Some(cause));
            k.emit(i, EventKind::SynDropped, |e| {
                (e.cause, e.flags, e.detail, e.slot) = (cause as u8, new, detail, slot);
            });
        };
        match syn {
            Syn::Dropped(cause) => trouble(self, cause, 0),
            Syn::Refused => {
                self.attempts[i].over = true;
                trouble(self, Cause::NoListener, 0);
            }
            Syn::Filtered(reason) => trouble(self, Cause::Filtered, reason),
            Syn::Queued => {
                self.slot(slot).requests += 1;
                self.attempts[i].place = Place::HalfOpen;
                self.attempts[i].holds_cookie = false;
                if new == 0 {
                    self.note(i, state::HALF_OPEN, state::COOKIE, None);
                    self.emit(i, EventKind::SynQueued, |_| {});
                }
            }
            Syn::Cookie => {
                self.slot(slot).cookies += 1;
                self.attempts[i].place = Place::Cookie;
                self.attempts[i].holds_cookie = true;
                self.attempts[i].cookie_ns = self.now_ns;
                self.note(i, state::COOKIE, 0, None);
                self.emit(i, EventKind::CookieSent, |e| e.flags = new | flag::COOKIE);
            }
        }
        true
    }

    pub(super) fn ack(&mut self, i: usize, ack: Ack) -> bool {
        let a = self.attempts[i];
        let cookie = a.place != Place::HalfOpen;
        let valid = !cookie || a.holds_cookie && matches!(a.place, Place::Cookie | Place::Nowhere);
        let invalid = matches!(a.place, Place::New | Place::Nowhere | Place::Cookie);
        if a.over || a.superseded || self.is_closed(a.slot) || !(if ack == Ack::Invalid { invalid } else { valid }) {
            return false;
        }
        let cookie_flag = if cookie { flag::COOKIE } else { 0 };
        match ack {
            Ack::Child(by) => {
                self.slot(a.slot).queued += 1;
                if cookie {
                    self.slot(a.slot).cookie_acks += 1;
                } else {
                    self.slot(a.slot).children += 1;
                }
                self.attempts[i].place = Place::Queued;
                self.attempts[i].by = by;
                if self.watched(i) {
                    let data = if by & flag::DATA != 0 { state::BY_DATA } else { 0 };
                    let fin = if by & flag::FIN != 0 { state::BY_FIN } else { 0 };
                    self.note(i, state::QUEUED | state::ANSWERED | data | fin, state::HALF_OPEN, None);
                    self.emit(i, EventKind::ChildQueued, |e| (e.flags, e.detail) = (cookie_flag, a.synacks));
                    if by != 0 {
                        self.emit(i, EventKind::CompletedBy, |e| (e.isn, e.flags) = (0, by));
                    }
                }
            }
            Ack::Dropped(cause) | Ack::DroppedWithReset(cause) => {
                let cause = if cookie { Cause::SyncookieAckDropped } else { cause };
                let reset = !cookie && matches!(ack, Ack::DroppedWithReset(_));
                self.slot(a.slot).ack_dropped[cause as usize] += 1;
                let a = &mut self.attempts[i];
                (a.dropped, a.answered, a.decisive) = (true, true, cause);
                a.acknowledged_request |= !cookie;
                if cookie || reset {
                    a.place = Place::Nowhere;
                }
                let slot = a.slot;
                let mut flags = cookie_flag;
                let (mut set, mut clear) = (state::TROUBLED | state::ANSWERED | state::STAGE_ACK, state::RESET);
                if reset {
                    flags |= flag::RESET;
                    self.slot(slot).reset += 1;
                    (set, clear) = (set | state::RESET, state::HALF_OPEN);
                } else if !cookie {
                    set |= state::HALF_OPEN;
                }
                self.note(i, set, clear, Some(cause));
                self.emit(i, EventKind::AckDropped, |e| (e.cause, e.flags) = (cause as u8, flags));
            }
            Ack::Invalid => {
                let new = self.begin(i, a.slot);
                self.slot(a.slot).cookie_invalid += 1;
                let a = &mut self.attempts[i];
                a.home = a.slot;
                (a.place, a.dropped, a.holds_cookie) = (Place::Nowhere, true, false);
                let keeps = a.acknowledged_request;
                if !keeps {
                    a.decisive = Cause::SyncookieInvalid;
                }
                let cause = if keeps { None } else { Some(Cause::SyncookieInvalid) };
                self.note(i, state::TROUBLED | state::STAGE_ACK, 0, cause);
                self.emit(i, EventKind::CookieInvalid, |e| {
                    (e.cause, e.flags) = (Cause::SyncookieInvalid as u8, new);
                });
            }
        }
        true
    }

    pub(super) fn synack_again(&mut self, i: usize) -> bool {
        let a = &mut self.attempts[i];
        if a.place != Place::HalfOpen {
            return false;
        }
        a.synacks += 1;
        let (slot, times) = (a.slot, a.synacks);
        self.slot(slot).synack_retransmitted += 1;
        self.emit(i, EventKind::SynAckRetransmitted, |e| e.detail = times) || self.ring_full
    }

    pub(super) fn expire(&mut self, i: usize) -> bool {
        let a = self.attempts[i];
        if a.place != Place::HalfOpen {
            return false;
        }
        self.slot(a.slot).expired += 1;
        let cause = match (self.is_closed(a.slot), a.answered) {
            (true, _) => Cause::ListenerClosed,
            (false, true) => a.decisive,
            (false, false) => Cause::HandshakeExpired,
        };
        let now = &mut self.attempts[i];
        (now.place, now.dropped, now.decisive) = (Place::Nowhere, true, cause);
        self.note(i, state::TROUBLED, state::HALF_OPEN, Some(cause));
        self.emit(i, EventKind::RequestExpired, |e| e.detail = a.synacks);
        true
    }

    pub(super) fn rst(&mut self, i: usize) -> bool {
        let a = self.attempts[i];
        let kind = match a.place {
            Place::HalfOpen => EventKind::RequestReset,
            Place::Cookie | Place::Nowhere if a.holds_cookie && !a.over => EventKind::ClientReset,
            Place::Queued if !a.dead => {
                self.attempts[i].dead = true;
                self.slot(a.slot).children_reset += 1;
                self.child_closed(i, 0);
                return true;
            }
            _ => return false,
        };
        if a.superseded {
            return false;
        }
        if kind == EventKind::RequestReset {
            self.slot(a.slot).reset += 1;
        }
        let now = &mut self.attempts[i];
        (now.place, now.dropped, now.decisive, now.holds_cookie) = (Place::Nowhere, true, Cause::ClientReset, false);
        now.over = true;
        self.note(i, state::TROUBLED, state::HALF_OPEN, Some(Cause::ClientReset));
        self.emit(i, kind, |_| {});
        true
    }

    pub(super) fn accept(&mut self, i: usize) -> bool {
        let a = self.attempts[i];
        if a.place != Place::Queued {
            return false;
        }
        self.slot(a.slot).accepted += 1;
        self.slot(a.slot).dead_on_arrival += u64::from(a.dead);
        self.attempts[i].place = Place::Accepted;
        if self.watched(i) {
            let told = self.emit(i, EventKind::Accepted, |e| {
                (e.pid, e.comm[0], e.flags) = (42, b's', if a.dead { flag::DEAD_ON_ARRIVAL } else { 0 });
            });
            if told {
                self.watch.remove(&a.tuple);
            } else {
                self.note(i, state::ACCEPTED, 0, None);
            }
        } else if a.dead && a.dropped {
            // Its tuple is watched for another attempt by now; the child's own record still knows it.
            self.emit(i, EventKind::Accepted, |e| e.flags = flag::DEAD_ON_ARRIVAL);
        }
        true
    }

    /// `accept()` returned it, and nobody was told.
    pub(super) fn accept_unseen(&mut self, i: usize) -> bool {
        let a = &mut self.attempts[i];
        if a.place != Place::Queued {
            return false;
        }
        (a.place, a.unseen) = (Place::Accepted, true);
        true
    }

    pub(super) fn close(&mut self, slot: u32) -> bool {
        if self.is_closed(slot) {
            return false;
        }
        let waiting = self.waiting(slot);
        let totals = self.slot(slot);
        (totals.closed, totals.waiting) = (true, Some(waiting));
        self.closed_ns.insert(slot, self.now_ns);
        if !self.ring_full {
            self.ring.push(event(EventKind::ListenerClosed, Tuple::default(), 0, slot, self.now_ns));
        }
        for i in 0..self.attempts.len() {
            if self.attempts[i].slot == slot && self.attempts[i].place == Place::Queued {
                self.attempts[i].place = Place::WentWithListener;
                self.slot(slot).children_dropped += 1;
                self.child_closed(i, flag::LISTENER_CLOSED);
            }
        }
        true
    }

    /// Of a child, the sequence number is known only from the watch entry.
    fn child_closed(&mut self, i: usize, flags: u8) {
        let isn = if self.watched(i) { self.attempts[i].isn } else { 0 };
        self.emit(i, EventKind::ChildClosed, |e| (e.isn, e.flags) = (isn, flags));
    }

    /// A `connect()` without a free local port.
    pub(super) fn exhaust(&mut self) {
        let totals = self.slot(NO_LISTENER);
        (totals.attempts, totals.port_exhausted) = (totals.attempts + 1, totals.port_exhausted + 1);
        let mut e = event(EventKind::ConnectFailed, tuple(0), 0, NO_LISTENER, self.now_ns);
        (e.detail, e.flags, e.pid, e.comm[0]) = (99, flag::NEW_ATTEMPT, 7, b'c');
        if !self.ring_full {
            self.ring.push(e);
        }
    }

    /// A `connect()` timed out, and no SYN of it was seen.
    pub(super) fn unanswered(&mut self, i: usize) -> bool {
        if self.attempts[i].place != Place::New {
            return false;
        }
        let new = self.begin(i, NO_LISTENER);
        let a = &mut self.attempts[i];
        (a.place, a.dropped, a.decisive, a.superseded) = (Place::Nowhere, true, Cause::Unanswered, true);
        self.emit(i, EventKind::ConnectFailed, |e| {
            (e.detail, e.flags, e.pid, e.slot) = (110, new, 7, NO_LISTENER);
        });
        true
    }
}
