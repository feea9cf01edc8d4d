//! Layouts of the running kernel, from its own type information (BTF).

use btf_rs::{Btf, BtfType, Type};
use tracer_abi::abi::{COUNTERS, Counter, Offsets, Reasons, TCP_RULES};

use super::{Host, KernelError};

/// What the programs need to know about this kernel's types.
#[derive(Clone, Debug)]
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
#[derive(Clone, Debug, Default)]
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
        let path = host.path("sys/kernel/btf/vmlinux");
        let shown = path.display().to_string();
        let bytes = std::fs::read(&path).map_err(|source| KernelError::NoBtf { path: shown.clone(), source })?;
        let btf =
            Btf::from_bytes(&bytes).map_err(|e| KernelError::BadBtf { path: shown.clone(), reason: e.to_string() })?;
        let types = Types { btf };
        let mut offsets = Offsets::default();
        for (index, (_, strukt, path)) in Offsets::FIELDS.iter().enumerate() {
            let offset = types.offset(strukt, path).ok_or(KernelError::NoField { strukt, field: path })?;
            offsets.set(index, offset);
        }
        let mib = types.mib()?;
        let drop_reasons = types.drop_reasons();
        let reason = |name: &str| drop_reasons.0.iter().find(|(_, n)| n == name).map_or(u32::MAX, |(n, _)| *n);
        let reasons = Reasons {
            no_socket: reason("NO_SOCKET"),
            not_specified: reason("NOT_SPECIFIED"),
            tcp_rules: TCP_RULES.map(|name| reason(name.trim_start_matches(PREFIX))),
        };
        for signature in &SIGNATURES {
            types.check(signature)?;
        }
        Ok(Layout { offsets, mib, reasons, drop_reasons })
    }
}

const PREFIX: &str = "SKB_DROP_REASON_";

struct Types {
    btf: Btf,
}

impl Types {
    /// Byte offset of a field given by its path; anonymous structures and unions on the way are looked through.
    fn offset(&self, strukt: &str, path: &str) -> Option<u32> {
        let mut here = self.btf.resolve_types_by_name(strukt).ok()?.into_iter().find_map(|t| match t {
            Type::Struct(s) if !s.members.is_empty() => Some(s),
            _ => None,
        })?;
        let mut bits = 0;
        let mut parts = path.split('.').peekable();
        while let Some(part) = parts.next() {
            let (at, member) = self.member(&here, part)?;
            bits += at;
            if parts.peek().is_some() {
                here = self.aggregate(&member)?;
            }
        }
        Some(bits / 8)
    }

    fn member(&self, strukt: &btf_rs::Struct, name: &str) -> Option<(u32, btf_rs::Member)> {
        for member in &strukt.members {
            let own = self.btf.resolve_name(member).unwrap_or_default();
            if own == name {
                return Some((member.bit_offset(), member.clone()));
            }
            if own.is_empty()
                && let Some(inner) = self.aggregate(member)
                && let Some((at, found)) = self.member(&inner, name)
            {
                return Some((member.bit_offset() + at, found));
            }
        }
        None
    }

    /// The structure or union behind a member, through typedefs and qualifiers.
    fn aggregate(&self, of: &dyn BtfType) -> Option<btf_rs::Struct> {
        self.btf.chained_type_iter(of).find_map(|t| match t {
            Type::Struct(s) | Type::Union(s) => Some(s),
            _ => None,
        })
    }

    /// Indices of the counters. Their enum has no name, so it is found by one of its enumerators.
    fn mib(&self) -> Result<[u32; COUNTERS], KernelError> {
        let (first, last) = self.btf.base().type_id_range();
        let has = |e: &btf_rs::Enum, name: &str| {
            e.members.iter().find(|m| self.btf.resolve_name(*m).is_ok_and(|n| n == name)).map(|m| m.val())
        };
        let known = Counter::ListenDrops.enumerator();
        let counters = (first..=last).find_map(|id| match self.btf.resolve_type_by_id(id) {
            Ok(Type::Enum(e)) if e.members.len() > COUNTERS && has(&e, known).is_some() => Some(e),
            _ => None,
        });
        let counters = counters.ok_or(KernelError::NoEnumerator(known))?;
        let mut mib = [0; COUNTERS];
        for counter in Counter::ALL {
            let name = counter.enumerator();
            mib[counter as usize] = has(&counters, name).ok_or(KernelError::NoEnumerator(name))?;
        }
        Ok(mib)
    }

    fn drop_reasons(&self) -> DropReasons {
        let mut all = Vec::new();
        for t in self.btf.resolve_types_by_name("skb_drop_reason").unwrap_or_default() {
            if let Type::Enum(e) = t {
                for member in &e.members {
                    if let Ok(name) = self.btf.resolve_name(member) {
                        all.push((member.val(), name.trim_start_matches(PREFIX).to_owned()));
                    }
                }
            }
        }
        DropReasons(all)
    }

    /// Checks a tracepoint's arguments by name. Its type is a pointer to a function whose first argument is the probe's own.
    fn check(&self, signature: &Signature) -> Result<(), KernelError> {
        let problem = |problem: String| KernelError::Tracepoint { hook: signature.hook, problem };
        let typedef = format!("btf_trace_{}", signature.hook);
        let prototype = self
            .btf
            .resolve_types_by_name(&typedef)
            .unwrap_or_default()
            .into_iter()
            .find_map(|t| match t {
                Type::Typedef(t) => self.btf.chained_type_iter(&t).find_map(|t| match t {
                    Type::FuncProto(p) => Some(p),
                    _ => None,
                }),
                _ => None,
            })
            .ok_or_else(|| {
                problem(format!("this kernel has no such tracepoint (it is there since {})", signature.since))
            })?;
        // Prototypes keep no argument names; their number is what tells kernels apart, and what a wrong one would break.
        let have = prototype.parameters.len().saturating_sub(1);
        if have < signature.arguments.len() {
            return Err(problem(format!(
                "the tracepoint has {have} arguments here; tracer needs {} ({}), as kernels since {} have them",
                signature.arguments.len(),
                signature.arguments.join(", "),
                signature.since
            )));
        }
        Ok(())
    }
}
