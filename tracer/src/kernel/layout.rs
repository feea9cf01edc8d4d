//! Layouts of the running kernel, from its own type information (BTF).

use std::collections::{BTreeMap, HashMap};

use tracer_abi::abi::{COUNTERS, Counter, Kfunc, Offsets, Reasons, TCP_RULES, places};

use super::{Host, KernelError, types::Types};

/// What the programs need to know about this kernel's types.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Where fields lie.
    pub offsets: Offsets,
    /// Indices into `linux_mib.mibs`, by [`Counter`].
    pub mib: [u32; COUNTERS],
    /// Drop reasons that are told apart.
    pub reasons: Reasons,
    /// Names of all drop reasons.
    pub drop_reasons: DropReasons,
    /// Where `struct mptcp_sock` has its first TCP connection; `None` without MPTCP.
    pub mptcp_first: Option<u32>,
    /// What the programs can be attached to.
    pub signatures: Signatures,
    /// The numbers among the kernel's types of what programs call to disable preemption, by [`Kfunc`]; `None` where they cannot.
    pub preemption: Option<[u32; Kfunc::PREEMPTION.len()]>,
    /// The number of the function that lets programs read kernel memory without a helper; `None` where there is none.
    pub cast: Option<u32>,
    /// The number of a structure of two words, as which that function may be asked to see any address.
    pub two_words: Option<u32>,
}

impl Layout {
    /// The number among the kernel's types of a function that programs may call; `None` where they may not.
    #[must_use]
    pub fn kfunc(&self, kfunc: Kfunc) -> Option<u32> {
        match Kfunc::PREEMPTION.iter().position(|it| *it == kfunc) {
            Some(index) => Some(self.preemption?[index]),
            None => self.cast,
        }
    }
}

/// The kernel functions that programs call, if all are there, and if global functions may be called between them.
fn preemption(types: &Types) -> Option<[u32; Kfunc::PREEMPTION.len()]> {
    let (strukt, field) = places::MIGHT_SLEEP;
    types.offset(types.strukt(strukt)?, field)?;
    let mut numbers = [0; Kfunc::PREEMPTION.len()];
    for (number, kfunc) in numbers.iter_mut().zip(Kfunc::PREEMPTION) {
        *number = types.function_id(kfunc.name())?;
    }
    Some(numbers)
}

/// A structure of two words, if the second lies where a word ends.
fn two_words(types: &Types) -> Option<u32> {
    let (strukt, second) = places::TWO_WORDS;
    types.strukt(strukt).filter(|id| types.offset(*id, second) == Some(size_of::<u64>() as u32))
}

/// Which places the kernel has, and with how many arguments; prototypes keep no argument names, and their number is what tells
/// kernels apart, and what a wrong program would break: it loads all the same and reads garbage.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Signatures {
    tracepoints: BTreeMap<&'static str, usize>,
    functions: BTreeMap<&'static str, usize>,
    /// Whether programs can read the registers of the system call under way (`bpf_task_pt_regs()`).
    pub task_regs: bool,
    /// Whether programs can reach other CPUs' values (`bpf_map_lookup_percpu_elem()`).
    pub percpu_lookup: bool,
    /// Whether programs at system calls' tracepoints are run apart: see [`places::CALLS_APART`].
    pub calls_apart: bool,
    /// Whether a program at a tracepoint is not run while it is running already: see [`places::NOTES_MISSES`].
    pub notes_misses: bool,
}

impl Signatures {
    fn of(types: &Types) -> Signatures {
        let helpers = types.enumerators(places::HELPERS).unwrap_or_default();
        let has = |helper: &str| helpers.iter().any(|(name, _)| name == helper);
        // The first argument of a tracepoint's type is the probe's own.
        let arguments =
            |name: &str| Some(types.prototype(&format!("btf_trace_{name}"))?.parameters.len().saturating_sub(1));
        Signatures {
            tracepoints: places::TRACEPOINTS.iter().filter_map(|name| Some((*name, arguments(name)?))).collect(),
            functions: places::FUNCTIONS
                .iter()
                .filter_map(|name| Some((*name, types.function(name)?.parameters.len())))
                .collect(),
            task_regs: has(places::TASK_REGS),
            percpu_lookup: has(places::PERCPU_LOOKUP),
            calls_apart: types.function_id(places::CALLS_APART).is_some(),
            notes_misses: types.function_id(places::NOTES_MISSES).is_some(),
        }
    }

    /// Number of arguments of a typed tracepoint; `None` if the kernel has none of that name.
    #[must_use]
    pub fn tracepoint(&self, name: &str) -> Option<usize> {
        self.tracepoints.get(name).copied()
    }

    /// Number of arguments of a function; `None` if the kernel has none of that name, or inlined it everywhere.
    #[must_use]
    pub fn function(&self, name: &str) -> Option<usize> {
        self.functions.get(name).copied()
    }
}

/// Names of `enum skb_drop_reason`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DropReasons(Vec<(u32, String)>);

impl DropReasons {
    /// The name of a reason, without its prefix, as `perf trace` and `dropwatch` show it.
    #[must_use]
    pub fn name(&self, reason: u32) -> Option<&str> {
        self.0.iter().find(|(n, _)| *n == reason).map(|(_, name)| name.as_str())
    }
}

impl Layout {
    /// Reads everything from the host's BTF.
    ///
    /// # Errors
    /// If there is no BTF, or the kernel's types are not as the programs need them; the message names what is missing.
    pub fn read(host: &Host) -> Result<Layout, KernelError> {
        Layout::of(&Types::read(&host.path("sys/kernel/btf/vmlinux"))?)
    }

    /// Takes everything from types that have been read.
    pub(super) fn of(types: &Types) -> Result<Layout, KernelError> {
        let mut offsets = Offsets::default();
        // Looking up a name is what costs time, and many fields share a structure.
        let mut strukts = HashMap::new();
        for (index, (_, strukt, field)) in Offsets::FIELDS.iter().enumerate() {
            let id = *strukts.entry(*strukt).or_insert_with(|| types.strukt(strukt));
            let offset = id.and_then(|id| types.offset(id, field)).ok_or(KernelError::NoField { strukt, field })?;
            offsets.set(index, offset);
        }
        let mib = mib(types)?;
        let drop_reasons = drop_reasons(types);
        let reason = |name: &str| drop_reasons.0.iter().find(|(_, n)| n == name).map_or(u32::MAX, |(n, _)| *n);
        let reasons = Reasons {
            no_socket: reason("NO_SOCKET"),
            not_specified: reason("NOT_SPECIFIED"),
            tcp_rules: TCP_RULES.map(|name| reason(name.trim_start_matches(PREFIX))),
        };
        let mptcp_first = types.strukt("mptcp_sock").and_then(|id| types.offset(id, "first"));
        Ok(Layout {
            offsets,
            mib,
            reasons,
            drop_reasons,
            mptcp_first,
            signatures: Signatures::of(types),
            preemption: preemption(types),
            cast: types.function_id(Kfunc::RdonlyCast.name()),
            two_words: two_words(types),
        })
    }
}

const PREFIX: &str = "SKB_DROP_REASON_";

/// Indices of the counters. Their enumeration has no name, so it is found by one of its enumerators.
fn mib(types: &Types) -> Result<[u32; COUNTERS], KernelError> {
    let known = Counter::ListenDrops.enumerator();
    let counters = types.enumerators_with(known, COUNTERS).ok_or(KernelError::NoEnumerator(known))?;
    let mut mib = [0; COUNTERS];
    for counter in Counter::ALL {
        let name = counter.enumerator();
        let found = counters.iter().find(|(own, _)| own == name);
        mib[counter as usize] = found.ok_or(KernelError::NoEnumerator(name))?.1;
    }
    Ok(mib)
}

fn drop_reasons(types: &Types) -> DropReasons {
    let all = types.enumerators("skb_drop_reason").unwrap_or_default();
    DropReasons(all.into_iter().map(|(name, n)| (n, name.trim_start_matches(PREFIX).to_owned())).collect())
}
