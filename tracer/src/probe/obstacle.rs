//! What a kernel lacks for a program, as far as its type information tells, and how people are told.

use std::fmt;

use super::{Point, Way};
use crate::kernel::Signatures;

impl Way {
    /// Why it cannot be taken on this kernel, as far as its type information tells.
    #[must_use]
    pub fn obstacle(&self, kernel: &Signatures) -> Option<Obstacle> {
        self.programs.iter().find_map(|(_, point)| point.obstacle(kernel))
    }
}

impl Point {
    /// Why a program cannot go here on this kernel, as far as its type information tells.
    fn obstacle(self, kernel: &Signatures) -> Option<Obstacle> {
        match self {
            Point::Classic(..) if !kernel.task_regs => Some(Obstacle::NoTaskRegs),
            Point::Classic(..) => None,
            Point::Btf(name, needs) => match kernel.tracepoint(name) {
                None => Some(Obstacle::NoTracepoint(name)),
                Some(has) if has < needs => Some(Obstacle::FewerArguments { tracepoint: name, has, needs }),
                Some(_) => None,
            },
            Point::Fentry(name, needs) | Point::Fexit(name, needs) => match kernel.function(name) {
                None => Some(Obstacle::NoFunction(name)),
                // The result is found behind the last argument, so that one more is as wrong as one less.
                Some(has) if has != needs => {
                    Some(Obstacle::OtherArguments { function: name, has, written_for: vec![needs] })
                }
                Some(_) => None,
            },
            Point::Kprobe(name, needs) => match kernel.function(name) {
                None => Some(Obstacle::NoFunction(name)),
                Some(has) if has < needs => {
                    Some(Obstacle::OtherArguments { function: name, has, written_for: vec![needs] })
                }
                Some(_) => None,
            },
            Point::Kretprobe(name) => kernel.function(name).is_none().then_some(Obstacle::NoFunction(name)),
        }
    }
}

/// What this kernel lacks for a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// A tracepoint.
    NoTracepoint(&'static str),
    /// Arguments of a tracepoint.
    FewerArguments {
        /// The tracepoint.
        tracepoint: &'static str,
        /// How many it has.
        has: usize,
        /// How many the program reads.
        needs: usize,
    },
    /// A function.
    NoFunction(&'static str),
    /// The arguments of a function that a program is written for.
    OtherArguments {
        /// The function.
        function: &'static str,
        /// How many it has.
        has: usize,
        /// How many the programs are written for, in rising order.
        written_for: Vec<usize>,
    },
    /// The helper that reads the arguments of the system call under way.
    NoTaskRegs,
}

impl Obstacle {
    /// Whether another number of arguments would do.
    pub(super) fn is_of_arguments(&self) -> bool {
        matches!(self, Obstacle::FewerArguments { .. } | Obstacle::OtherArguments { .. })
    }

    /// Makes one of two, if they are the same of two ways that differ in the number of arguments.
    pub(super) fn merge(&mut self, other: &Obstacle) -> bool {
        match (&mut *self, other) {
            (
                Obstacle::OtherArguments { function, written_for, .. },
                Obstacle::OtherArguments { function: same, written_for: more, .. },
            ) if function == same => {
                written_for.extend(more);
                written_for.sort_unstable();
                written_for.dedup();
                true
            }
            (
                Obstacle::FewerArguments { tracepoint, needs, .. },
                Obstacle::FewerArguments { tracepoint: same, needs: less, .. },
            ) if tracepoint == same => {
                *needs = (*needs).min(*less);
                true
            }
            (one, other) => one == other,
        }
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Obstacle::NoTracepoint(name) => {
                write!(f, "this kernel has no tracepoint {name}{}", Since(brought(name)))
            }
            Obstacle::FewerArguments { tracepoint, has, needs } => {
                let are = if *needs == 1 { "is" } else { "are" };
                let since = Since(gave_arguments(tracepoint, *needs));
                write!(f, "{tracepoint} has {} here, and {needs} {are} needed{since}", arguments(*has))
            }
            Obstacle::NoFunction(name) => write!(f, "this kernel has no function {name}(), or has inlined it"),
            Obstacle::OtherArguments { function, has, written_for } => {
                let written_for: Vec<String> = written_for.iter().map(usize::to_string).collect();
                let written_for = written_for.join(" or ");
                write!(f, "{function}() has {} here, and tracer is written for {written_for}", arguments(*has))
            }
            Obstacle::NoTaskRegs => {
                write!(f, "programs cannot read the arguments of a system call here{}", Since(Some("5.15")))
            }
        }
    }
}

fn arguments(n: usize) -> String {
    format!("{n} argument{}", if n == 1 { "" } else { "s" })
}

/// The kernel version that brought something, as a remark.
struct Since(Option<&'static str>);

impl fmt::Display for Since {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |version| write!(f, " (since {version})"))
    }
}

/// The kernel version that brought a tracepoint, of those that not every kernel in use has.
fn brought(tracepoint: &str) -> Option<&'static str> {
    (tracepoint == "sk_data_ready").then_some("6.3")
}

/// The kernel version that gave a tracepoint so many arguments.
fn gave_arguments(tracepoint: &str, needs: usize) -> Option<&'static str> {
    match (tracepoint, needs) {
        ("consume_skb", 2) => Some("6.4"),
        ("kfree_skb", 3) => Some("5.17"),
        ("kfree_skb", 4) => Some("6.11"),
        _ => None,
    }
}
