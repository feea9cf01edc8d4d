//! What the kernel side counted for one listener, summed over the CPUs.

use serde::{Deserialize, Serialize};
use tracer_abi::abi::{CAUSES, Cause, SlotCounters, UNTOLD_COOKIE, WAIT_BUCKETS, wait_bucket_floor_us};

/// [`SlotCounters`] of one slot, summed over the CPUs: fields by sum (wrapping), maxima by maximum, the histogram
/// bucket by bucket.
///
/// `closed`, `group`, `waiting`, `half_open` and `port_exhausted` are not in [`SlotCounters`]: whoever adds the CPUs sets them.
/// The default is a slot in which nothing has happened. Serializes for recordings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SlotTotals {
    /// SYN packets, repeated ones included.
    pub syn: u64,
    /// Of these, repetitions of a SYN whose request was already queued.
    pub syn_duplicate: u64,
    /// Attempts that began here.
    pub attempts: u64,
    /// Requests queued.
    pub requests: u64,
    /// SYNs answered with a cookie.
    pub cookies: u64,
    /// SYN-ACKs sent again.
    pub synack_retransmitted: u64,
    /// Connections that entered the accept queue.
    pub queued: u64,
    /// Of these, the ones that came from a request.
    pub children: u64,
    /// Requests that timed out.
    pub expired: u64,
    /// Requests that were reset.
    pub reset: u64,
    /// Connections that `accept()` returned.
    pub accepted: u64,
    /// Of these, the ones whose client had already closed or reset.
    pub dead_on_arrival: u64,
    /// Cookies that came back and became a connection.
    pub cookie_acks: u64,
    /// ACKs that were no valid cookie.
    pub cookie_invalid: u64,
    /// Valid cookies of which no connection came, though nothing was full.
    #[serde(default)]
    pub cookie_unused: u64,
    /// Bare ACKs that `TCP_DEFER_ACCEPT` ignored.
    pub deferred: u64,
    /// SYNs dropped by the reserve rule.
    pub reserve: u64,
    /// Connections in the accept queue that the client reset.
    pub children_reset: u64,
    /// Connections in the accept queue that went with their listener.
    pub children_dropped: u64,
    /// SYNs dropped, by cause.
    pub syn_dropped: [u64; CAUSES],
    /// Handshake-completing segments dropped, by cause.
    pub ack_dropped: [u64; CAUSES],
    /// Attempts that are counted and not told, by cause; of the ones answered with a cookie at `UNTOLD_COOKIE`.
    pub untold: [u64; CAUSES + 1],
    /// Longest accept queue seen.
    pub max_accept_queue: u32,
    /// Longest request queue seen.
    pub max_half_open: u32,
    /// Longest wait in the accept queue, microseconds.
    pub wait_max_us: u64,
    /// Histogram of the waits, by `wait_bucket`; empty until the first CPU has been added.
    pub wait: Vec<u64>,
    /// Whether the listener has closed (`ListenerInfo::closed_ns`).
    pub closed: bool,
    /// Of members of a SO_REUSEPORT group the same number, other than 0: the lowest of their slots, for instance. 0 for
    /// a listener that is alone.
    pub group: u32,
    /// The most connections that can be in the accept queue by the kernel's own count of it: what `queued` and `accepted`
    /// leave beyond that was accepted unseen. Of a closed listener, those that it had when it closed. `None` before the end.
    pub waiting: Option<u64>,
    /// The requests in the kernel's queue, at the same time; `None` before the end.
    pub half_open: Option<u64>,
    /// Of slot `NO_LISTENER` only: local connects that found no free port (`Global::PortExhausted`).
    pub port_exhausted: u64,
}

impl SlotTotals {
    /// Adds what one CPU counted.
    ///
    /// What belongs to a SO_REUSEPORT group is moved to its member on the CPU that learns it, so that one CPU's number
    /// can be below 0 (wrapped); only the sum over all CPUs means something.
    pub fn add_cpu(&mut self, cpu: &SlotCounters) {
        let sums = [
            (&mut self.syn, cpu.syn),
            (&mut self.syn_duplicate, cpu.syn_duplicate),
            (&mut self.attempts, cpu.attempts),
            (&mut self.requests, cpu.requests),
            (&mut self.cookies, cpu.cookies),
            (&mut self.synack_retransmitted, cpu.synack_retransmitted),
            (&mut self.queued, cpu.queued),
            (&mut self.children, cpu.children),
            (&mut self.expired, cpu.expired),
            (&mut self.reset, cpu.reset),
            (&mut self.accepted, cpu.accepted),
            (&mut self.dead_on_arrival, cpu.dead_on_arrival),
            (&mut self.cookie_acks, cpu.cookie_acks),
            (&mut self.cookie_invalid, cpu.cookie_invalid),
            (&mut self.cookie_unused, cpu.cookie_unused),
            (&mut self.deferred, cpu.deferred),
            (&mut self.reserve, cpu.reserve),
            (&mut self.children_reset, cpu.children_reset),
            (&mut self.children_dropped, cpu.children_dropped),
        ];
        // What is moved from one member of a group to another is added on whatever CPU moves it, so that one CPU alone
        // can have less than nothing.
        for (sum, n) in sums {
            *sum = sum.wrapping_add(n);
        }
        for (sum, n) in self.syn_dropped.iter_mut().zip(cpu.syn_dropped) {
            *sum += n;
        }
        for (sum, n) in self.ack_dropped.iter_mut().zip(cpu.ack_dropped) {
            *sum += n;
        }
        for (sum, n) in self.untold.iter_mut().zip(cpu.untold) {
            *sum = sum.wrapping_add(n);
        }
        self.max_accept_queue = self.max_accept_queue.max(cpu.max_accept_queue);
        self.max_half_open = self.max_half_open.max(cpu.max_half_open);
        self.wait_max_us = self.wait_max_us.max(cpu.wait_max_us);
        self.wait.resize(WAIT_BUCKETS, 0);
        for (sum, n) in self.wait.iter_mut().zip(cpu.wait) {
            *sum += u64::from(n);
        }
    }

    /// The wait in the accept queue that `percent` of the accepted connections did not exceed, in microseconds.
    ///
    /// The upper end of the histogram's bucket, so at most 25 % too high, and never above the longest wait seen. `None`
    /// if nothing was accepted.
    #[must_use]
    pub fn percentile(&self, percent: f64) -> Option<u64> {
        let total: u64 = self.wait.iter().sum();
        if total == 0 {
            return None;
        }
        // The rank of the wait that is asked for; a wait of rank 0 does not exist.
        let rank = ((percent / 100.0 * total as f64).ceil() as u64).clamp(1, total);
        let mut below = 0;
        for (bucket, n) in self.wait.iter().enumerate().take(WAIT_BUCKETS) {
            below += n;
            if below >= rank && bucket + 1 < WAIT_BUCKETS {
                return Some((wait_bucket_floor_us(bucket + 1) - 1).min(self.wait_max_us));
            }
        }
        Some(self.wait_max_us)
    }

    /// Attempts that count as this listener's.
    pub(super) fn attempts_here(&self) -> u64 {
        at_least_zero(self.attempts)
    }

    /// Attempts that are counted and not told, and lost: by cause.
    pub(super) fn untold_lost(&self) -> impl Iterator<Item = (Cause, u64)> + '_ {
        Cause::ALL.into_iter().map(|cause| (cause, at_least_zero(self.untold[cause as usize])))
    }

    /// Attempts that are counted and not told, and were answered with a cookie.
    pub(super) fn untold_cookies(&self) -> u64 {
        at_least_zero(self.untold[UNTOLD_COOKIE])
    }

    /// Requests that count as this listener's.
    pub(super) fn requests_here(&self) -> u64 {
        at_least_zero(self.requests)
    }

    /// Requests that are queued now. Negative for a member of a group if another one counts their beginning.
    pub(super) fn half_open_now(&self) -> i64 {
        let gone = self.children.wrapping_add(self.expired).wrapping_add(self.reset);
        self.requests.wrapping_sub(gone) as i64
    }

    /// Connections that entered the accept queue and were not accepted.
    ///
    /// Negative for a member of a group that accepts what was queued for another one.
    pub(super) fn not_accepted(&self) -> i64 {
        self.queued.wrapping_sub(self.accepted) as i64
    }
}

/// A wrapping sum that the CPUs' counters, read one after the other, can show as slightly negative.
pub(super) fn at_least_zero(n: u64) -> u64 {
    if n > i64::MAX as u64 { 0 } else { n }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracer_abi::abi::wait_bucket;

    fn cpu() -> SlotCounters {
        SlotCounters {
            untold: [0; CAUSES + 1],
            syn: 0,
            syn_duplicate: 0,
            attempts: 0,
            requests: 0,
            cookies: 0,
            synack_retransmitted: 0,
            queued: 0,
            children: 0,
            expired: 0,
            reset: 0,
            accepted: 0,
            dead_on_arrival: 0,
            cookie_acks: 0,
            cookie_invalid: 0,
            cookie_unused: 0,
            deferred: 0,
            reserve: 0,
            children_reset: 0,
            children_dropped: 0,
            syn_dropped: [0; CAUSES],
            ack_dropped: [0; CAUSES],
            max_accept_queue: 0,
            max_half_open: 0,
            wait_max_us: 0,
            wait: [0; WAIT_BUCKETS],
        }
    }

    #[test]
    fn cpus_add_up_and_maxima_do_not() {
        let mut totals = SlotTotals::default();
        let mut one = cpu();
        (one.attempts, one.max_accept_queue, one.wait_max_us, one.syn_dropped[1]) = (3, 7, 100, 2);
        let mut two = cpu();
        (two.attempts, two.max_accept_queue, two.wait_max_us, two.syn_dropped[1]) = (4, 5, 200, 1);
        totals.add_cpu(&one);
        totals.add_cpu(&two);
        assert_eq!((totals.attempts, totals.max_accept_queue, totals.wait_max_us), (7, 7, 200));
        assert_eq!(totals.syn_dropped[1], 3);
    }

    #[test]
    fn moves_cancel_across_cpus() {
        let mut here = SlotTotals::default();
        let mut one = cpu();
        (one.attempts, one.requests) = (3, 3);
        let mut two = cpu();
        (two.attempts, two.requests) = (0u64.wrapping_sub(1), 0u64.wrapping_sub(2));
        here.add_cpu(&one);
        here.add_cpu(&two);
        assert_eq!((here.attempts_here(), here.requests_here()), (2, 1));
        let torn = SlotTotals { attempts: 0u64.wrapping_sub(1), ..SlotTotals::default() };
        assert_eq!(torn.attempts_here(), 0);
    }

    #[test]
    fn a_percentile_is_at_most_a_bucket_too_high() {
        let mut totals = SlotTotals::default();
        let mut one = cpu();
        for us in [1u64, 2, 3, 1000] {
            one.wait[wait_bucket(us)] += 1;
        }
        one.wait_max_us = 1000;
        totals.add_cpu(&one);
        assert_eq!(totals.percentile(25.0), Some(1));
        assert_eq!(totals.percentile(50.0), Some(2));
        assert_eq!(totals.percentile(75.0), Some(3));
        assert_eq!(totals.percentile(99.0), Some(1000));
        assert_eq!(totals.percentile(100.0), Some(1000));
        assert_eq!(totals.percentile(0.0), Some(1));
    }

    #[test]
    fn nothing_accepted_has_no_percentile() {
        assert_eq!(SlotTotals::default().percentile(50.0), None);
    }

    #[test]
    fn waits_beyond_the_last_bucket_are_given_by_the_maximum() {
        let mut totals = SlotTotals::default();
        let mut one = cpu();
        one.wait[WAIT_BUCKETS - 1] = 1;
        one.wait_max_us = u64::MAX;
        totals.add_cpu(&one);
        assert_eq!(totals.percentile(50.0), Some(u64::MAX));
    }

    #[test]
    fn totals_survive_a_recording() {
        let mut totals = SlotTotals { closed: true, port_exhausted: 3, ..SlotTotals::default() };
        totals.add_cpu(&cpu());
        let json = serde_json::to_value(&totals).expect("plain numbers");
        assert_eq!(serde_json::from_value::<SlotTotals>(json).expect("written by us"), totals);
    }
}
