//! The memory of troubled attempts.

use tracer_abi::abi::{Global, Phase, Tuple, Watch, state};

use crate::{
    emit::{count, now},
    kernel::{atomic, cpu},
    maps::{WATCH, WATCHED},
};

/// No cause yet.
pub(crate) const NO_CAUSE: u8 = 255;

/// How an attempt is known after [`note`].
pub(crate) struct Noted {
    /// Its entry; `None` if the map is full.
    pub(crate) watch: Option<&'static mut Watch>,
    /// It was not known before.
    pub(crate) new: bool,
    /// It began before counting did.
    pub(crate) earlier: bool,
}

/// This CPU's phase, if it is one in which packets are looked at.
#[inline(always)]
pub(crate) fn phase() -> Option<Phase> {
    let phase = cpu()?.phase;
    if phase == Phase::Counting as u32 {
        Some(Phase::Counting)
    } else if phase == Phase::Earlier as u32 {
        Some(Phase::Earlier)
    } else {
        None
    }
}

#[inline(always)]
fn adjust(by: i64) {
    if let Some(watched) = WATCHED.get_ptr_mut(0) {
        // SAFETY: a live value of an array map, only ever changed by atomic addition.
        unsafe { atomic::add(watched, by as u64) };
    }
}

/// Whether anything is watched at all. If not, nobody need read who a connection is between.
#[inline(always)]
pub(crate) fn any() -> bool {
    matches!(WATCHED.get(0), Some(watched) if *watched != 0)
}

/// The entry of a connection.
#[inline(always)]
pub(crate) fn find(tuple: &Tuple) -> Option<&'static mut Watch> {
    if !any() {
        return None;
    }
    let watch = WATCH.get_ptr_mut(tuple)?;
    // SAFETY: a preallocated element: it stays mapped when it is removed meanwhile. The segments of one connection are
    // handled one after the other, so its entry has one writer at a time.
    Some(unsafe { &mut *watch })
}

/// Finds the attempt, or makes an entry for it. A SYN with another initial sequence number than the entry's is a new attempt.
#[inline(always)]
pub(crate) fn note(tuple: &Tuple, isn: u32, is_syn: bool, slot: u32) -> Noted {
    let remember = phase() == Some(Phase::Earlier);
    let at = now();
    let fresh = Watch {
        first_ns: at,
        last_ns: at,
        isn,
        slot,
        state: if remember { state::EARLIER } else { 0 },
        cause: NO_CAUSE,
        padding: [0; 5],
    };
    if let Some(watch) = find(tuple) {
        watch.last_ns = at;
        if !is_syn || watch.isn == isn {
            let earlier = watch.state & state::EARLIER != 0;
            return Noted { watch: Some(watch), new: false, earlier };
        }
        *watch = fresh;
        return Noted { watch: Some(watch), new: true, earlier: remember };
    }
    if WATCH.insert(tuple, fresh, 0).is_err() {
        count(Global::Unwatched);
        return Noted { watch: None, new: true, earlier: remember };
    }
    adjust(1);
    Noted { watch: find(tuple), new: true, earlier: remember }
}

/// Forgets the attempt.
#[inline(always)]
pub(crate) fn forget(tuple: &Tuple) {
    if WATCH.remove(tuple).is_ok() {
        adjust(-1);
    }
}
