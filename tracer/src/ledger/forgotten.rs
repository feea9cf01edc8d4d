//! Which attempts are in the sums already, though the ledger does not keep them any more.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};

use tracer_abi::abi::Tuple;

/// A bounded set of attempts, by hash: 8 bytes for each.
#[derive(Debug, Default)]
pub(super) struct Forgotten {
    hasher: RandomState,
    hashes: HashSet<u64>,
    /// The set was full at least once, and was emptied.
    incomplete: bool,
}

impl Forgotten {
    /// Adds an attempt, after emptying the set if it has `capacity` of them.
    pub(super) fn insert(&mut self, tuple: &Tuple, isn: u32, capacity: usize) {
        if self.hashes.len() >= capacity {
            self.hashes.clear();
            self.incomplete = true;
        }
        self.hashes.insert(self.hasher.hash_one((tuple, isn)));
    }

    /// Whether the attempt is known to be in the set.
    pub(super) fn has(&self, tuple: &Tuple, isn: u32) -> bool {
        !self.hashes.is_empty() && self.hashes.contains(&self.hasher.hash_one((tuple, isn)))
    }

    /// Whether the attempt is in the set, or could be one that the set lost.
    pub(super) fn may_have(&self, tuple: &Tuple, isn: u32) -> bool {
        self.incomplete || self.has(tuple, isn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_set_says_that_it_does_not_know() {
        let mut set = Forgotten::default();
        let tuple = Tuple::default();
        assert!(!set.may_have(&tuple, 1));
        set.insert(&tuple, 1, 2);
        set.insert(&tuple, 2, 2);
        assert!(set.has(&tuple, 1) && !set.may_have(&tuple, 3));
        set.insert(&tuple, 3, 2);
        assert!(!set.has(&tuple, 1) && set.has(&tuple, 3));
        assert!(set.may_have(&tuple, 1) && set.may_have(&tuple, 4));
    }
}
