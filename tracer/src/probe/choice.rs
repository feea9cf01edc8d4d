//! Which way each hook is attached on this kernel: the best that it takes. Pure; the kernel's own refusals are told to it.

use std::collections::BTreeMap;

use super::{Flavour, HOOKS, Hook, Obstacle, Point, ProbeError, Way};
use crate::kernel::Signatures;

/// What the user wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// The best that the kernel takes, hook by hook.
    Best,
    /// This flavour, for every hook that has it.
    Only(Flavour),
}

/// A flavour, or a way of it, that a hook is not attached in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// The hook.
    pub hook: &'static str,
    /// The flavour.
    pub flavour: Flavour,
    /// Why not.
    pub reason: String,
}

/// What rules out one flavour for several hooks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    /// The flavour.
    pub flavour: Flavour,
    /// Why not.
    pub text: String,
    /// The hooks.
    pub hooks: Vec<&'static str>,
    /// These are all that have this flavour.
    pub of_all: bool,
}

/// The ways that are left to try, and those that were ruled out.
#[derive(Clone, Debug)]
pub struct Choice {
    wanted: Wanted,
    left: BTreeMap<&'static str, Vec<&'static Way>>,
    rejected: Vec<Rejected>,
}

impl Choice {
    /// Every way that the kernel's type information allows and the user wants.
    #[must_use]
    pub fn new(wanted: Wanted, kernel: &Signatures) -> Choice {
        let mut choice = Choice { wanted, left: BTreeMap::new(), rejected: Vec::new() };
        for hook in HOOKS {
            let mut left: Vec<&'static Way> = Vec::new();
            let mut obstacles: Vec<(Flavour, Obstacle)> = Vec::new();
            for way in hook.ways.iter().filter(|way| is_wanted(wanted, hook, way)) {
                match way.obstacle(kernel) {
                    None => left.push(way),
                    Some(obstacle) => {
                        let mut known = obstacles.iter_mut().filter(|(flavour, _)| *flavour == way.flavour);
                        if !known.any(|(_, one)| one.merge(&obstacle)) {
                            obstacles.push((way.flavour, obstacle));
                        }
                    }
                }
            }
            // Of ways of one flavour that are written for different kernels, it is no loss that this is not the other kernel: neither
            // where one of them can be taken, nor where one has the right arguments and lacks something else.
            for (flavour, obstacle) in &obstacles {
                let taken = left.iter().any(|way| way.flavour == *flavour);
                let lacks_else = obstacles.iter().any(|(same, other)| same == flavour && !other.is_of_arguments());
                let is_other_kernels = taken || obstacle.is_of_arguments() && lacks_else;
                if !is_other_kernels {
                    choice.reject(hook.name, *flavour, obstacle.to_string());
                }
            }
            choice.left.insert(hook.name, left);
        }
        choice
    }

    fn reject(&mut self, hook: &'static str, flavour: Flavour, reason: String) {
        self.rejected.push(Rejected { hook, flavour, reason });
    }

    /// The best way that is left for a hook.
    ///
    /// # Errors
    /// If none is left; the error says why each was ruled out.
    pub fn way(&self, hook: &'static Hook) -> Result<&'static Way, ProbeError> {
        if let Some(way) = self.first(hook.name) {
            return Ok(way);
        }
        let mut reasons: Vec<(&str, Vec<&str>)> = Vec::new();
        for Rejected { flavour, reason, .. } in self.rejected.iter().filter(|it| it.hook == hook.name) {
            match reasons.iter_mut().find(|(same, _)| same == reason) {
                Some((_, flavours)) if flavours.contains(&flavour.id()) => {}
                Some((_, flavours)) => flavours.push(flavour.id()),
                None => reasons.push((reason, vec![flavour.id()])),
            }
        }
        let reasons: Vec<String> =
            reasons.iter().map(|(reason, flavours)| format!("by {}: {reason}", flavours.join(" or "))).collect();
        // A hook that has only what was asked for is not helped by asking for less.
        let remedy = match self.wanted {
            wanted if hook.ways.iter().any(|way| !is_wanted(wanted, hook, way)) => "; try --hooks auto",
            _ => "",
        };
        Err(ProbeError::NoWay { hook: hook.name, without: hook.without, reasons: reasons.join("; "), remedy })
    }

    /// Whether every hook has a way.
    ///
    /// # Errors
    /// Of the first hook that has none, why.
    pub fn is_complete(&self) -> Result<(), ProbeError> {
        HOOKS.iter().try_for_each(|hook| self.way(hook).map(drop))
    }

    fn first(&self, hook: &str) -> Option<&'static Way> {
        self.left.get(hook).and_then(|left| left.first()).copied()
    }

    /// Whether a hook is attached in this flavour.
    #[must_use]
    pub fn is_by(&self, hook: &str, flavour: Flavour) -> bool {
        self.first(hook).is_some_and(|way| way.flavour == flavour)
    }

    /// Whether a hook is attached to functions.
    #[must_use]
    pub fn is_function(&self, hook: &str) -> bool {
        self.first(hook).is_some_and(|way| way.flavour != Flavour::Tracepoint)
    }

    /// The kernel refused the way that was best for a hook. With `entirely` it refuses its flavour, so that no other hook need try.
    ///
    /// # Errors
    /// If nothing else is left for this hook.
    pub fn refused(&mut self, hook: &'static Hook, reason: &str, entirely: bool) -> Result<(), ProbeError> {
        let flavour = self.way(hook)?.flavour;
        if entirely {
            self.exclude(flavour, reason);
        } else {
            self.left.entry(hook.name).or_default().remove(0);
            self.reject(hook.name, flavour, reason.to_owned());
        }
        self.way(hook).map(drop)
    }

    /// The kernel lacks what a flavour needs: no hook takes it. Those that have nothing else are left without a [`Choice::way`].
    pub fn exclude(&mut self, flavour: Flavour, reason: &str) {
        for hook in HOOKS {
            let left = self.left.entry(hook.name).or_default();
            let before = left.len();
            left.retain(|way| way.flavour != flavour);
            if left.len() < before {
                self.reject(hook.name, flavour, reason.to_owned());
            }
        }
    }

    /// Flavour in use, by hook.
    #[must_use]
    pub fn flavours(&self) -> BTreeMap<String, Flavour> {
        let first =
            |(hook, left): (&&'static str, &Vec<&'static Way>)| Some(((*hook).to_owned(), left.first()?.flavour));
        self.left.iter().filter_map(first).collect()
    }

    /// What was ruled out, in the order in which it was: of each hook the flavours that it does not take, and what the kernel refused.
    #[must_use]
    pub fn rejected(&self) -> &[Rejected] {
        &self.rejected
    }

    /// Why hooks are not attached in a better way, reason by reason.
    #[must_use]
    pub fn reasons(&self) -> Vec<Reason> {
        let mut reasons: Vec<Reason> = Vec::new();
        for Rejected { hook, flavour, reason } in &self.rejected {
            // A flavour that comes after the one in use is not missed.
            if self.first(hook).is_some_and(|way| way.flavour < *flavour) {
                continue;
            }
            match reasons.iter_mut().find(|it| it.flavour == *flavour && it.text == *reason) {
                Some(known) if known.hooks.contains(hook) => {}
                Some(known) => known.hooks.push(hook),
                None => {
                    reasons.push(Reason { flavour: *flavour, text: reason.clone(), hooks: vec![hook], of_all: false });
                }
            }
        }
        reasons.sort_by_key(|reason| reason.flavour);
        for reason in &mut reasons {
            reason.of_all = HOOKS.iter().filter(|hook| hook.has(reason.flavour)).count() == reason.hooks.len();
        }
        reasons
    }

    /// Whether anything is attached to a tracepoint that only tracefs names.
    pub(super) fn needs_tracefs(&self) -> bool {
        let mut first = self.left.values().filter_map(|left| left.first());
        first.any(|way| way.programs.iter().any(|(_, point)| matches!(point, Point::Classic(..))))
    }
}

/// A forced flavour is for the hooks that have it; the others have tracepoints only.
fn is_wanted(wanted: Wanted, hook: &Hook, way: &Way) -> bool {
    match wanted {
        Wanted::Best => true,
        Wanted::Only(flavour) if hook.has(flavour) => way.flavour == flavour,
        Wanted::Only(_) => way.flavour == Flavour::Tracepoint,
    }
}

#[cfg(test)]
mod tests;
