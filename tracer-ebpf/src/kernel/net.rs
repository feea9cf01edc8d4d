//! `struct net`: a namespace, and the counters that are the verdict.

use core::ffi::c_void;

use aya_ebpf::helpers::bpf_map_lookup_percpu_elem;
use tracer_abi::abi::{COUNTERS, Counter, Deltas, Global, NetCounters, Phase, RIVALS, verdict::Reserve};

use super::{config, cpu, percpu_offset, percpu_offset_of, read, read_or_zero};
use crate::{
    emit::count,
    maps::{NET_LIST, NET_NUMBERS, NETS, NETS_FROM, NETS_MAX, TAKEN},
};

/// A `struct net *`; 0 where there is none.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Net(pub(crate) u64);

/// A set of counters, as bits by number.
pub(crate) type Set = u32;

/// All nine.
pub(crate) const ALL: Set = (1 << COUNTERS) - 1;

/// The counter as a set.
pub(crate) const fn only(counter: Counter) -> Set {
    1 << counter as u32
}

impl Net {
    /// Its inode number.
    #[inline(always)]
    pub(crate) fn inum(self) -> u32 {
        read_or_zero(self.0 + config!(offsets.net_inum) as u64)
    }

    /// What is known of it on this CPU; `None` if it is not traced.
    #[inline(always)]
    pub(crate) fn counters(self) -> Option<&'static mut NetCounters> {
        let known = NETS.get_ptr_mut(self.number()?)?;
        // SAFETY: this CPU's value of a map whose entries are given once while programs are attached. It is written by
        // programs in softirq on this CPU, by the control program and by a state change, each with this CPU to itself
        // (the latter two only before the first packet of the namespace, or for the phase).
        Some(unsafe { &mut *known })
    }

    /// Its number, if it has one.
    #[inline(always)]
    fn number(self) -> Option<u32> {
        let cpu = cpu()?;
        if self.has(cpu.net) {
            return Some(cpu.net);
        }
        let number = self.listed()?;
        cpu.net = number;
        Some(number)
    }

    #[inline(always)]
    fn listed(self) -> Option<u32> {
        // SAFETY: the value is copied at once.
        unsafe { NET_NUMBERS.get(self.0) }.copied()
    }

    /// Whether this is its number.
    #[inline(always)]
    fn has(self, number: u32) -> bool {
        number != 0 && NET_LIST.get(number).copied() == Some(self.0)
    }

    /// Address of this CPU's, or another's, `linux_mib.mibs`.
    #[inline(always)]
    fn mibs(self, percpu_offset: u64) -> Option<u64> {
        let mib: u64 = read(self.0 + config!(offsets.net_mib) as u64)?;
        Some(mib.wrapping_add(percpu_offset) + config!(offsets.mib_mibs) as u64)
    }

    /// What this CPU added to the given counters since they were last taken: the verdict on the packet that it is handling.
    ///
    /// Counters that are not in the set keep what they have for the next call.
    #[inline(always)]
    pub(crate) fn take(self, known: &mut NetCounters, set: Set, deltas: &mut Deltas) -> Option<()> {
        let mibs = self.mibs(percpu_offset()?)?;
        let (followed, counted) = (known.followed(), known.counted());
        // Without a branch: the verifier would follow every combination of counters that moved and counters that did not.
        for i in 0..COUNTERS {
            if set & 1 << i == 0 {
                continue;
            }
            let now: u64 = read(mibs + 8 * config!(mib[i]) as u64)?;
            let rise = now.wrapping_sub(known.last[i]);
            known.last[i] = now;
            known.seen[i] += rise & counted;
            // Not 0 if anything moved, and the rise itself if that fits: one packet raises a counter by one. Another call may have
            // taken this counter for the same packet already.
            deltas.0[i] |= ((rise | rise >> 8 | rise >> 16 | rise >> 24) & followed) as u8;
        }
        Some(())
    }

    #[inline(always)]
    fn read_all(mibs: u64, into: &mut [u64; COUNTERS]) -> Option<()> {
        for (i, value) in into.iter_mut().enumerate() {
            *value = read(mibs + 8 * config!(mib[i]) as u64)?;
        }
        Some(())
    }

    /// Begins to follow this namespace, on all CPUs.
    ///
    /// Safe to do without stopping anything when its first listener appears: before that no counter of ours moves. At the
    /// start of a run, where listeners exist already, the control program takes the start values again on each CPU.
    #[inline(always)]
    pub(crate) fn follow(self) -> Option<()> {
        if follows(self.0) != 0 { Some(()) } else { None }
    }

    #[inline(always)]
    fn followed(self) -> Option<()> {
        let inum = self.inum();
        let wanted = config!(netns);
        if wanted != 0 && wanted != inum {
            return None;
        }
        if let Some(known) = self.counters()
            && known.inum == inum
            && known.mode != 0
        {
            return Some(());
        }
        let Some(number) = self.enlist() else {
            count(Global::NetsUnseen);
            return None;
        };
        let counting = cpu()?.phase == Phase::Counting as u32;
        let mode = if counting { NetCounters::COUNTED } else { NetCounters::FOLLOWED };
        if config!(has_percpu_lookup) == 0 {
            // Every CPU starts itself when a packet of the namespace first comes to it; see `sync`.
            return Some(());
        }
        for cpu in 0..config!(cpus) {
            self.prime(number, cpu, inum, mode);
        }
        Some(())
    }

    /// At the entry of a function that is going to judge a packet: what this CPU dropped elsewhere is not this packet's.
    ///
    /// Only `ListenDrops` is raised elsewhere too (a broadcast SYN, an ICMP error for a request); the others are taken at the
    /// end of each function that raises them. Such drops are in no verdict, so that the cross-check shows them.
    #[inline(always)]
    pub(crate) fn sync(self) -> Option<()> {
        let known = self.counters()?;
        let mibs = self.mibs(percpu_offset()?)?;
        if config!(has_percpu_lookup) == 0 && known.mode == 0 {
            // A namespace that was followed before its first packet: nothing was counted here yet.
            Self::read_all(mibs, &mut known.last)?;
            known.start = known.last;
            known.inum = self.inum();
            let counting = cpu()?.phase == Phase::Counting as u32;
            known.mode = if counting { NetCounters::COUNTED } else { NetCounters::FOLLOWED };
            return Some(());
        }
        known.last[Counter::ListenDrops as usize] =
            read(mibs + 8 * config!(mib[Counter::ListenDrops as usize]) as u64)?;
        Some(())
    }

    /// Gives it a number. One that had its address before is gone, and what was counted for that stays at its own number.
    #[inline(always)]
    fn enlist(self) -> Option<u32> {
        let number = self.allocate()?;
        if let Some(before) = self.listed() {
            NET_LIST.set(before, 0, 0).ok()?;
            NET_NUMBERS.insert(self.0, number, 0).ok()?;
        } else if NET_NUMBERS.insert(self.0, number, 1).is_err() {
            // BPF_NOEXIST: its first two listeners open at the same instant, and the other CPU was faster. Or there is no room.
            return self.listed();
        }
        NET_LIST.set(number, self.0, 0).ok()?;
        Some(number)
    }

    #[inline(always)]
    fn allocate(self) -> Option<u32> {
        let last = NET_LIST.get_ptr_mut(0)?;
        // SAFETY: a live value of an array map. It is a hint: who inserts the entry has the number.
        let last = unsafe { &mut *last };
        let first = *last as u32 + 1;
        for i in 0..RIVALS {
            let number = first + i;
            if number >= config!(namespaces) || number >= NETS_MAX {
                break;
            }
            // BPF_NOEXIST
            if TAKEN.insert(NETS_FROM + number, self.0, 1).is_ok() {
                *last = number as u64;
                return Some(number);
            }
        }
        None
    }

    #[inline(always)]
    fn prime(self, key: u32, cpu: u32, inum: u32, mode: u32) -> Option<()> {
        // SAFETY: the map and the key are valid, and the key lives through the call.
        let value: *mut c_void =
            unsafe { bpf_map_lookup_percpu_elem((&raw const NETS).cast_mut().cast(), (&raw const key).cast(), cpu) };
        if value.is_null() {
            return None;
        }
        // SAFETY: the value of that CPU, which does not use it before `mode` is set.
        let known = unsafe { &mut *value.cast::<NetCounters>() };
        let mibs = self.mibs(percpu_offset_of(cpu)?)?;
        Self::read_all(mibs, &mut known.last)?;
        known.start = known.last;
        known.inum = inum;
        known.mode = mode;
        Some(())
    }

    /// Takes this CPU's counters as the start of counting.
    #[inline(always)]
    pub(crate) fn begin(self) -> Option<()> {
        let known = self.counters()?;
        Self::read_all(self.mibs(percpu_offset()?)?, &mut known.last)?;
        known.start = known.last;
        // Where no CPU can start another one, this is the first that this one hears of the namespace.
        known.inum = self.inum();
        known.mode = NetCounters::COUNTED;
        Some(())
    }

    /// Takes this CPU's counters as the end of counting.
    #[inline(always)]
    pub(crate) fn end(self) -> Option<()> {
        let known = self.counters()?;
        known.mode = NetCounters::FOLLOWED;
        Self::read_all(self.mibs(percpu_offset()?)?, &mut known.end)
    }

    /// What decides the reserve rule of `tcp_conn_request()`, besides the queue.
    #[inline(always)]
    pub(crate) fn reserve(self, queue_len: u32) -> Reserve {
        Reserve {
            syncookies: read(self.0 + config!(offsets.net_syncookies) as u64).unwrap_or(1),
            max_syn_backlog: read_or_zero(self.0 + config!(offsets.net_max_syn_backlog) as u64),
            queue_len,
            slack: config!(cpus) - 1,
        }
    }
}

/// [`Net::follow`]: whether it is followed. A function of its own: those that call it have little stack left, and the verifier need
/// not look at it again at every call.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn follows(net: u64) -> u32 {
    Net(net).followed().is_some() as u32
}
