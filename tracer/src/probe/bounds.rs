//! How large the maps are made, so that all together stay within a bound.

use tracer_abi::abi::{NetCounters, SlotCounters};

/// Entries of the map `WATCH`; see `tracer-ebpf/src/maps.rs`.
pub(crate) const WATCH_ENTRIES: u32 = 131_072;

/// Entries of the map `CHILDREN`, where function hooks need it.
pub(super) const CHILDREN_ENTRIES: u32 = 16_384;

/// How large the maps are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes of the ring: a power of two, and a multiple of the page size.
    pub ring_bytes: u32,
    /// Troubled attempts that are remembered at a time. Seven of eight are told as they come; the rest is room for those that something
    /// more happens to.
    pub watched: u32,
    /// Listener slots.
    pub slots: u32,
    /// Network namespaces.
    pub namespaces: u32,
}

impl Bounds {
    /// Bounds that keep all maps together under 64 MiB, whatever the number of CPUs.
    #[must_use]
    pub fn for_cpus(cpus: u32) -> Bounds {
        // 10 MiB for what is kept per listener and CPU; at least 16 listeners, at most as many as the object has.
        let per_slot = cpus.max(1) * size_of::<SlotCounters>() as u32;
        let per_net = cpus.max(1) * size_of::<NetCounters>() as u32;
        Bounds {
            ring_bytes: 8 << 20,
            watched: WATCH_ENTRIES,
            slots: ((10 << 20) / per_slot).clamp(16, 1024),
            namespaces: ((3 << 20) / per_net).clamp(16, 512),
        }
    }
}

#[cfg(test)]
mod tests {
    use tracer_abi::abi::Process;

    use super::*;

    #[test]
    fn the_maps_stay_within_the_memory_bound_on_any_number_of_cpus() {
        for cpus in [1, 2, 8, 64, 256] {
            let b = Bounds::for_cpus(cpus);
            let per_cpu =
                size_of::<SlotCounters>() * b.slots as usize + size_of::<NetCounters>() * b.namespaces as usize;
            // Key and value, and 48 bytes that the kernel keeps beside them; 72 for what is least recently used.
            let watch = b.watched as usize * 120;
            let untold = 16 << 20;
            let connecting = 65_536 * 120;
            let children = (CHILDREN_ENTRIES as usize + 8192) * (16 + 72);
            let processes = 4096 * (8 + size_of::<Process>() + 48);
            let maps = watch + untold + connecting + children + processes;
            let total = b.ring_bytes as usize + per_cpu * cpus as usize + maps;
            assert!(total < 64 << 20, "{cpus} CPUs: {} MiB", total >> 20);
        }
    }
}
