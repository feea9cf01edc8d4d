//! How much this run may take of the machine.

use anyhow::{Context as _, Result};

use crate::probe::{Bounds, WATCH_ENTRIES};

/// How large the maps are made on this machine.
pub(super) fn bounds() -> Result<Bounds> {
    let mut bounds = Bounds::for_cpus(online());
    if let Some(bytes) = ring_bytes()? {
        bounds.ring_bytes = bytes;
    }
    if let Some(entries) = watch_entries()? {
        bounds.watched = entries;
    }
    Ok(bounds)
}

/// Has what is large mapped on its own, so that it is the kernel's again once it is freed. glibc soon takes larger and larger pieces from
/// its heap instead, where what was freed lies between what was not: a flood took 61 or 67 MB, now 47. musl does so anyway.
pub(super) fn give_back_what_is_large() {
    #[cfg(target_env = "gnu")]
    {
        const LARGE: libc::c_int = 128 << 10;
        // SAFETY: it changes how later allocations are made, and nothing about those that there are. Where it fails, all is as before.
        unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE) };
    }
}

fn online() -> u32 {
    std::thread::available_parallelism().map_or(1, |n| n.get() as u32)
}

/// `TRACER_WATCH_ENTRIES`: another number of attempts to remember, to see what happens when it is too small.
fn watch_entries() -> Result<Option<u32>> {
    let Ok(text) = std::env::var("TRACER_WATCH_ENTRIES") else { return Ok(None) };
    let entries: u32 =
        text.parse().ok().filter(|n: &u32| (8..=WATCH_ENTRIES).contains(n)).with_context(|| {
            format!("TRACER_WATCH_ENTRIES is {text}; it must be a number from 8 to {WATCH_ENTRIES}")
        })?;
    Ok(Some(entries))
}

/// `TRACER_RING_BYTES`: another size of the ring buffer, to see what happens when it is too small.
fn ring_bytes() -> Result<Option<u32>> {
    let Ok(text) = std::env::var("TRACER_RING_BYTES") else { return Ok(None) };
    let bytes: u32 = text
        .parse()
        .ok()
        .filter(|n: &u32| n.is_power_of_two() && *n >= 4096)
        .with_context(|| format!("TRACER_RING_BYTES is {text}; it must be a power of two of at least 4096"))?;
    Ok(Some(bytes))
}
