//! Layouts of the running kernel, from its own type information (BTF).

use std::collections::HashMap;

use tracer_abi::abi::{COUNTERS, Counter, Offsets, Reasons, TCP_RULES};

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

/// A tracepoint and what its arguments must be named, in order, as far as they are used.
struct Signature {
    hook: &'static str,
    arguments: &'static [&'static str],
    since: &'static str,
}

const SIGNATURES: [Signature; 7] = [
    Signature { hook: "consume_skb", arguments: &["skb", "location"], since: "6.4" },
    Signature { hook: "kfree_skb", arguments: &["skb", "location", "reason", "rx_sk"], since: "6.11" },
    Signature { hook: "inet_sock_set_state", arguments: &["sk", "oldstate", "newstate"], since: "4.16" },
    Signature { hook: "tcp_retransmit_synack", arguments: &["sk", "req"], since: "4.16" },
    Signature { hook: "sk_data_ready", arguments: &["sk"], since: "6.3" },
    Signature { hook: "timer_expire_entry", arguments: &["timer"], since: "2.6.32" },
    Signature { hook: "timer_expire_exit", arguments: &["timer"], since: "2.6.32" },
];

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
        for signature in &SIGNATURES {
            signature.check(types)?;
        }
        Ok(Layout { offsets, mib, reasons, drop_reasons })
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

impl Signature {
    /// Checks a tracepoint's arguments. Its type is a pointer to a function whose first argument is the probe's own.
    fn check(&self, types: &Types) -> Result<(), KernelError> {
        let Signature { hook, arguments, since } = self;
        let problem = |problem: String| KernelError::Tracepoint { hook, problem };
        let prototype = types
            .prototype(&format!("btf_trace_{hook}"))
            .ok_or_else(|| problem(format!("this kernel has no such tracepoint (it is there since {since})")))?;
        // Prototypes keep no argument names; their number is what tells kernels apart, and what a wrong one would break.
        let have = prototype.parameters.len().saturating_sub(1);
        if have < arguments.len() {
            return Err(problem(format!(
                "the tracepoint has {have} arguments here; tracer needs {} ({}), as kernels since {since} have them",
                arguments.len(),
                arguments.join(", "),
            )));
        }
        Ok(())
    }
}
