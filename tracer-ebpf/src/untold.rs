//! What is counted and not told: attempts beyond those that [`WATCH`](crate::maps::WATCH) has room for.
//!
//! In a flood every SYN is an attempt of its own, and the counts have to be exact all the same: a SYN that comes again is no new
//! attempt, and an attempt whose SYN was dropped can still be accepted. For that, eight bytes of each are enough: a hash of its tuple,
//! its initial sequence number, and what became of its last SYN. It has no event until something else happens to it: then it is
//! promoted, that is, told and watched as any other.

use tracer_abi::abi::{EventKind, Phase, Tuple, UNTOLD_COOKIE, Watch, flag, state};

use crate::{
    emit::{emit, slot_counters},
    kernel::{atomic, config},
    maps::{UNTOLD, UNTOLD_BUCKETS, UNTOLD_PLACES, UNTOLD_TOTAL, WATCHED},
    watch,
};

/// A place that was used and is free again: it does not end a search.
const FREE_AGAIN: u64 = 1;
/// Where the class begins in a word; below it is the initial sequence number.
const CLASS_AT: u64 = 32;
/// Where the hash begins.
const HASH_AT: u64 = 36;
const CLASS: u64 = (1 << HASH_AT) - (1 << CLASS_AT);
/// Any initial sequence number.
const ANY: u64 = u64::MAX;

/// Hash of a tuple. The seed is the collector's, so that nobody can choose tuples that meet in one bucket.
#[inline(always)]
fn hash(tuple: &Tuple) -> u64 {
    let ports = (tuple.netns as u64) << 32 | (tuple.client_port as u64) << 16 | tuple.port as u64;
    let [client, server] = [tuple.client.words(), tuple.server.words()];
    let mut hash: u64 = config!(hash_seed);
    for word in [client[0], client[1], server[0], server[1], ports] {
        hash = (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        hash ^= hash >> 32;
    }
    hash
}

/// The two buckets that an attempt can be in.
#[inline(always)]
fn buckets(hash: u64) -> [u32; 2] {
    let mask = UNTOLD_BUCKETS - 1;
    [hash as u32 & mask, (hash >> 18) as u32 & mask]
}

/// The bits of the hash that are kept, of which one is always set: no word is 0 or [`FREE_AGAIN`].
#[inline(always)]
fn kept(hash: u64) -> u64 {
    (hash >> 37 | 1 << 27) << HASH_AT
}

#[inline(always)]
fn bucket(index: u32) -> Option<&'static mut [u64; UNTOLD_PLACES]> {
    let bucket = UNTOLD.get_ptr_mut(index)?;
    // SAFETY: a live value of an array map. Two CPUs can take a free place at the same instant, and the attempt that was there first
    // is not known again; words are written whole.
    Some(unsafe { &mut *bucket })
}

/// The place of an attempt, counted from 1, and its class from [`CLASS_AT`]; 0 if it has none. A function of its own, as `leader`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn untold_find(hash: u64, isn: u64) -> u64 {
    for index in buckets(hash) {
        let Some(bucket) = bucket(index) else { return 0 };
        let mut unused = false;
        for (i, word) in bucket.iter().enumerate() {
            let same = word >> HASH_AT == kept(hash) >> HASH_AT;
            if same && (isn == ANY || *word as u32 == isn as u32) {
                return *word & CLASS | (index as u64 * UNTOLD_PLACES as u64 + i as u64 + 1);
            }
            unused |= *word == 0;
        }
        if unused {
            return 0;
        }
    }
    0
}

/// Puts a word into a bucket that has room; whether one had.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn untold_add(hash: u64, word: u64) -> u64 {
    for index in buckets(hash) {
        let Some(bucket) = bucket(index) else { return 0 };
        for place in bucket.iter_mut() {
            if *place <= FREE_AGAIN {
                *place = word;
                return 1;
            }
        }
    }
    0
}

/// An attempt that is counted and not told.
struct Untold {
    place: u64,
    class: usize,
}

/// Whether anything is counted and not told.
#[inline(always)]
pub(crate) fn any() -> bool {
    matches!(UNTOLD_TOTAL.get(0), Some(total) if *total != 0)
}

#[inline(always)]
fn find(hash: u64, isn: u64) -> Option<Untold> {
    if !any() {
        return None;
    }
    let found = untold_find(hash, isn);
    let place = (found & ((1 << CLASS_AT) - 1)).checked_sub(1)?;
    Some(Untold { place, class: (found >> CLASS_AT) as usize })
}

impl Untold {
    #[inline(always)]
    fn word(&self) -> Option<&'static mut u64> {
        bucket((self.place / UNTOLD_PLACES as u64) as u32)?.get_mut(self.place as usize % UNTOLD_PLACES)
    }
}

/// Adds to what is counted of a class.
#[inline(always)]
fn tally(slot: u32, class: usize, by: u64) -> Option<()> {
    // Hidden from the compiler, which would otherwise leave out the bounds check that the verifier insists on.
    let sum = slot_counters(slot)?.untold.get_mut(core::hint::black_box(class))?;
    *sum = sum.wrapping_add(by);
    Some(())
}

#[inline(always)]
fn adjust(by: i64) {
    if let Some(total) = UNTOLD_TOTAL.get_ptr_mut(0) {
        // SAFETY: a live value of an array map, only ever changed by atomic addition.
        unsafe { atomic::add(total, by as u64) };
    }
}

/// A SYN was dropped, or answered with a cookie: whether its attempt is one that is counted and not told, or becomes one. `class` is
/// the cause, or [`UNTOLD_COOKIE`].
#[inline(always)]
pub(crate) fn takes(tuple: &Tuple, isn: u32, slot: u32, class: usize) -> bool {
    let crowded = matches!(WATCHED.get(0), Some(watched) if *watched >= config!(told_max) as u64);
    if !crowded && !any() {
        return false;
    }
    takes_one(tuple, isn, slot, class, crowded).is_some()
}

#[inline(always)]
fn takes_one(tuple: &Tuple, isn: u32, slot: u32, class: usize, crowded: bool) -> Option<()> {
    if watch::phase()? != Phase::Counting || watch::find(tuple).is_some() {
        return None;
    }
    let hash = hash(tuple);
    if let Some(known) = find(hash, isn as u64) {
        if known.class != class {
            let word = known.word()?;
            *word = *word & !CLASS | (class as u64) << CLASS_AT;
            tally(slot, known.class, 1u64.wrapping_neg());
            tally(slot, class, 1);
        }
        return Some(());
    }
    if !crowded || untold_add(hash, kept(hash) | (class as u64) << CLASS_AT | isn as u64) == 0 {
        return None;
    }
    adjust(1);
    slot_counters(slot)?.attempts += 1;
    tally(slot, class, 1)
}

/// Whether an attempt of this tuple is counted and not told.
#[inline(always)]
pub(crate) fn knows(tuple: &Tuple) -> bool {
    any() && untold_find(hash(tuple), ANY) != 0
}

/// Something else happens to an attempt that is not watched: if it was counted and not told, it is told and watched from now on.
/// `isn` is `None` where it is not known.
#[inline(always)]
pub(crate) fn promote(tuple: &Tuple, isn: Option<u32>, slot: u32) -> Option<&'static mut Watch> {
    if !any() {
        return None;
    }
    let hash = hash(tuple);
    let known = find(
        hash,
        match isn {
            Some(isn) => isn as u64,
            None => ANY,
        },
    )?;
    let word = known.word()?;
    let isn = *word as u32;
    let cookie = known.class == UNTOLD_COOKIE;
    let watch = watch::note(tuple, isn, true, slot).watch?;
    *word = FREE_AGAIN;
    adjust(-1);
    tally(slot, known.class, 1u64.wrapping_neg());
    if cookie {
        watch.state |= state::COOKIE;
    } else {
        watch.state |= state::TROUBLED;
        watch.cause = known.class as u8;
    }
    emit(if cookie { EventKind::CookieSent } else { EventKind::SynDropped }, tuple, |e| {
        e.isn = isn;
        e.slot = slot;
        e.cause = if cookie { 0 } else { known.class as u8 };
        e.flags = flag::NEW_ATTEMPT | if cookie { flag::COOKIE } else { 0 };
    });
    Some(watch)
}
