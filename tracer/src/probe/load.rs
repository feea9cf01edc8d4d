//! Loading and attaching.

use std::io::Read;

use aya::{
    Btf, Ebpf, EbpfLoader,
    maps::{Array, MapData, RingBuf},
    programs::{Iter, Program, ProgramError, iter::IterLink},
};
use aya_log::EbpfLogger;
use tracer_abi::abi::Config;
use zerocopy::IntoBytes;

use super::{
    Bounds, Choice, Flavour, HOOKS, Hook, Point, ProbeError, Wanted, Way,
    bounds::CHILDREN_ENTRIES,
    catalogue::Tracepoints,
    kfunc,
    verify::{self, Job, Loaded},
};
use crate::kernel::{Host, Layout};

/// The kernel side, built by `cargo xtask build-ebpf`.
pub(super) static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("CARGO_MANIFEST_DIR"), "/ebpf/tracer.bpf.o"));

/// The first kernel that lets programs read anything by `bpf_rdonly_cast()` without telling what it is: its type information does not
/// say so.
const UNTYPED_READS: (u32, u32) = (6, 17);

/// The first kernel with preempted tracepoints, which its type information does not tell either: a process can be preempted in a program
/// at a tracepoint. Until it runs again, that program is run for nobody else on that CPU, so that more programs are needed there
/// ([`Tracepoints`]), and they disable preemption.
const PREEMPTED_TRACEPOINTS: (u32, u32) = (7, 0);

/// What is fixed for one run.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Ports to trace, one bit each.
    pub ports: Box<[u64; 1024]>,
    /// No ports were given: every listener is traced.
    pub every_port: bool,
    /// Namespace to trace, or all.
    pub netns: Option<u32>,
    /// Sizes.
    pub bounds: Bounds,
    /// What the kernel side says of itself.
    pub log: log::LevelFilter,
}

/// The loaded programs. Dropping it detaches and frees everything.
pub struct Probe {
    pub(super) ebpf: Ebpf,
    pub(super) cpus: Vec<usize>,
    pub(super) slots: u32,
    pub(super) namespaces: u32,
    pub(super) choice: Choice,
    tracepoints: Tracepoints,
    pub(super) calls_apart: bool,
    logger: Option<EbpfLogger<&'static dyn log::Log>>,
}

/// What came of attaching everything, to see whether it can be.
pub struct Survey {
    /// How each hook is attached, as far as it is; by type information alone if nothing could be.
    pub choice: Choice,
    /// Whether the hooks that have a way were really attached.
    pub attached: bool,
    /// Why tracing would not begin.
    pub outcome: Result<(), ProbeError>,
}

/// What is the same for every way of attaching.
struct Ground {
    btf: Btf,
    /// Where `tcp_rcv_state_process`, `reqsk_timer_handler`, `tcp_v4_rcv`, `tcp_v6_rcv` and `nf_hook_slow` begin and end.
    functions: [(u64, u64); 5],
}

impl Ground {
    fn read(host: &Host, layout: &Layout) -> Result<Ground, ProbeError> {
        let [rcv, timer] = host.functions(["tcp_rcv_state_process", "reqsk_timer_handler"])?;
        // Only where a drop has no reason is the function asked that dropped it.
        let [v4, v6, netfilter] = if layout.signatures.tracepoint("kfree_skb").is_some_and(|arguments| arguments < 3) {
            host.functions(["tcp_v4_rcv", "tcp_v6_rcv", "nf_hook_slow"])?
        } else {
            [(0, 0); 3]
        };
        let btf = Btf::from_sys_fs().map_err(|e| ProbeError::Object(e.to_string()))?;
        Ok(Ground { btf, functions: [rcv, timer, v4, v6, netfilter] })
    }
}

/// Why an attempt to attach everything ended.
enum Failed {
    /// For good.
    For(ProbeError),
    /// The kernel refused a way; another may do.
    Way { hook: &'static Hook, reason: String, entirely: bool, choice: Box<Choice> },
}

impl From<ProbeError> for Failed {
    fn from(error: ProbeError) -> Failed {
        Failed::For(error)
    }
}

impl Probe {
    /// Loads and attaches the best programs that this kernel takes and the user wants. They do nothing until they are told to count.
    ///
    /// # Errors
    /// Without privilege, or if the kernel refuses every way for a hook. What was attached by then is gone again.
    pub fn attach(host: &Host, layout: &Layout, settings: &Settings, wanted: Wanted) -> Result<Probe, ProbeError> {
        let mut choice = Probe::offered(host, layout, wanted);
        let ground = Ground::read(host, layout)?;
        loop {
            choice.is_complete()?;
            match Probe::attempt(host, &ground, layout, settings, choice) {
                Ok(probe) => return Ok(probe),
                Err(Failed::For(error)) => return Err(error),
                Err(Failed::Way { hook, reason, entirely, choice: mut tried }) => {
                    tried.refused(hook, &reason, entirely)?;
                    choice = *tried;
                }
            }
        }
    }

    /// The ways that this kernel offers, as far as can be told without trying.
    #[must_use]
    pub fn offered(host: &Host, layout: &Layout, wanted: Wanted) -> Choice {
        let mut choice = Choice::new(wanted, &layout.signatures);
        if !host.has_kprobes() {
            choice.exclude(Flavour::Kprobe, "this kernel has no kprobes (CONFIG_KPROBES)");
        }
        choice
    }

    /// Loads and attaches all that this kernel takes, and lets it go: what [`Probe::attach`] would come to, hook by hook, also where
    /// some hooks have no way.
    #[must_use]
    pub fn survey(host: &Host, layout: &Layout, settings: &Settings, wanted: Wanted) -> Survey {
        let mut choice = Probe::offered(host, layout, wanted);
        let ground = match Ground::read(host, layout) {
            Ok(ground) => ground,
            Err(error) => return Survey { choice, attached: false, outcome: Err(error) },
        };
        loop {
            match Probe::attempt(host, &ground, layout, settings, choice.clone()) {
                Ok(mut probe) => {
                    // The two that are no hooks: a walk that is not read, and the queues of a listener that is not there.
                    let tried = probe.snapshot().and_then(|_| probe.read_queues(1));
                    let outcome = tried.and_then(|()| choice.is_complete());
                    return Survey { choice, attached: true, outcome };
                }
                Err(Failed::For(error)) => return Survey { choice, attached: false, outcome: Err(error) },
                Err(Failed::Way { hook, reason, entirely, choice: mut tried }) => {
                    // That nothing is left for this hook is found at the end.
                    let _ = tried.refused(hook, &reason, entirely);
                    choice = *tried;
                }
            }
        }
    }

    /// Attaches each hook that has a way left.
    fn attempt(
        host: &Host,
        ground: &Ground,
        layout: &Layout,
        settings: &Settings,
        choice: Choice,
    ) -> Result<Probe, Failed> {
        let [rcv, timer, v4, v6, netfilter] = ground.functions;
        let cpus = host.online_cpus();
        let possible = aya::util::nr_cpus().map_err(|(what, e)| ProbeError::Object(format!("{what}: {e}")))? as u32;
        let accept_by_function = choice.is_function("inet_csk_accept");
        let connect_by_probe = choice.is_by("tcp_v4_connect", Flavour::Kprobe);
        let tracepoints =
            Tracepoints { preempted: host.is_since(PREEMPTED_TRACEPOINTS), missed: layout.signatures.notes_misses };
        let untyped = host.is_since(UNTYPED_READS).then_some(0);
        let read_as = layout.cast.and(untyped.or(layout.two_words));
        let config = Config {
            rcv_state_process: rcv.0,
            rcv_state_process_end: rcv.1,
            rcv: [v4.0, v4.1, v6.0, v6.1],
            netfilter: [netfilter.0, netfilter.1],
            reqsk_timer_handler: timer.0,
            hash_seed: seed(),
            mib: layout.mib,
            cpus: possible,
            netns: settings.netns.unwrap_or(0),
            slots: settings.bounds.slots,
            namespaces: settings.bounds.namespaces,
            wake_bytes: settings.bounds.ring_bytes / 8,
            nr_connect: libc::SYS_connect as u32,
            nr_listen: libc::SYS_listen as u32,
            every_port: u32::from(settings.every_port),
            syn_by_function: u32::from(choice.is_function("tcp_conn_request")),
            ack_by_function: u32::from(choice.is_function("tcp_check_req")),
            child_by_function: u32::from(choice.is_function("tcp_child_process")),
            connect_by_function: u32::from(choice.is_function("tcp_v4_connect")),
            accept_by_function: u32::from(accept_by_function),
            connect_by_probe: u32::from(connect_by_probe),
            has_task_regs: u32::from(layout.signatures.task_regs),
            has_percpu_lookup: u32::from(layout.signatures.percpu_lookup),
            mptcp_first: layout.mptcp_first.unwrap_or(u32::MAX),
            told_max: settings.bounds.watched / 8 * 7,
            preempted: u32::from(tracepoints.preempted),
            plain_reads: u32::from(read_as.is_some()),
            read_as: read_as.unwrap_or_default(),
            reasons: layout.reasons,
            offsets: layout.offsets,
        };
        let mut ebpf = EbpfLoader::new()
            .btf(Some(&ground.btf))
            .override_global("CONFIG", config.as_bytes(), true)
            .override_global(aya_log::LEVEL, &(settings.log as u8), false)
            .map_max_entries("WATCH", settings.bounds.watched)
            .map_max_entries("RING", settings.bounds.ring_bytes)
            .map_max_entries("SLOTS", settings.bounds.slots)
            .map_max_entries("COUNTERS", settings.bounds.slots)
            .map_max_entries("NETS", settings.bounds.namespaces)
            .map_max_entries("CHILDREN", if accept_by_function { CHILDREN_ENTRIES } else { 1 })
            .load(kfunc::resolved(OBJECT, &|kfunc| layout.kfunc(kfunc)).bytes())
            .map_err(|e| refused_object(host, &e))?;
        let mut traced: Array<_, u64> = map(&mut ebpf, "TRACED")?;
        for (i, word) in settings.ports.iter().enumerate().filter(|(_, w)| **w != 0) {
            traced.set(i as u32, word, 0).map_err(|e| ProbeError::Map { map: "TRACED", reason: e.to_string() })?;
        }
        let calls_apart = layout.signatures.calls_apart;
        let Bounds { slots, namespaces, .. } = settings.bounds;
        let mut probe = Probe { ebpf, cpus, slots, namespaces, logger: None, choice, tracepoints, calls_apart };
        if probe.choice.needs_tracefs() {
            ensure_tracefs(host)?;
        }
        let others = [("iter_tcp", Job::Walk), ("control", Job::Control)];
        let ways: Vec<_> = HOOKS.iter().filter_map(|hook| Some((hook, probe.choice.way(hook).ok()?))).collect();
        // A kernel that refuses a flavour refuses the first hook; once that is attached, the others are likely to be.
        let (first, rest) = ways.split_at(1.min(ways.len()));
        let mut loaded = Loaded::new();
        for (ways, others) in [(first, &[][..]), (rest, &others[..])] {
            loaded.append(&mut probe.load_ahead(ways, others, &ground.btf));
            for (hook, way) in ways {
                if let Err((reason, entirely)) = probe.take_way(way, &mut loaded)? {
                    let choice = Box::new(probe.choice.clone());
                    return Err(Failed::Way { hook, reason, entirely, choice });
                }
            }
        }
        for name in ["iter_tcp", "control"] {
            let missing = || ProbeError::Object(format!("it has no program {name}"));
            let refused = |e: ProgramError| ProbeError::Refused { hook: "control", program: name, reason: reason(&e) };
            loaded.remove(name).ok_or_else(missing)?.map_err(refused)?;
        }
        Ok(probe)
    }

    /// Loads the programs of these ways, and others, to be attached in their order.
    fn load_ahead(
        &mut self,
        ways: &[(&'static Hook, &'static Way)],
        others: &[(&'static str, Job)],
        btf: &Btf,
    ) -> Loaded {
        let programs = ways.iter().flat_map(|(_, way)| self.needed(way)).map(|(name, point)| (name, Job::Hook(point)));
        let jobs = programs.chain(others.iter().copied()).collect();
        verify::load_all(&mut self.ebpf, &jobs, btf)
    }

    /// The programs of a way that this kernel needs.
    fn needed(&self, way: &'static Way) -> impl Iterator<Item = (&'static str, Point)> + use<> {
        let tracepoints = self.tracepoints;
        way.programs.iter().copied().filter(move |(name, _)| tracepoints.need(name))
    }

    /// Attaches the programs of a hook's best way; the inner error is the kernel's refusal, and whether it concerns the whole flavour.
    fn take_way(&mut self, way: &'static Way, loaded: &mut Loaded) -> Result<Result<(), (String, bool)>, ProbeError> {
        for (name, point) in self.needed(way) {
            let program = program(&mut self.ebpf, name)?;
            // One program can go to several places; it is loaded then.
            let (what, error) = match loaded.remove(name).unwrap_or(Ok(())) {
                Err(e) => (format!("the kernel refused program {name}"), e),
                Ok(()) => match attach(program, point) {
                    Err(e) => (format!("cannot attach to {}", point.place()), e),
                    Ok(()) => continue,
                },
            };
            // A refusal of the flavour is not about the program that it was tried with.
            let prohibited = is_prohibition(&error, way);
            let what = if prohibited { "the kernel does not permit it".to_owned() } else { what };
            return Ok(Err((format!("{what}: {}", reason(&error)), prohibited)));
        }
        Ok(Ok(()))
    }

    /// How each hook is attached, and what was ruled out.
    #[must_use]
    pub fn choice(&self) -> &Choice {
        &self.choice
    }

    /// The ring of events; can be taken once.
    ///
    /// # Errors
    /// If it was taken before.
    pub fn ring(&mut self) -> Result<RingBuf<MapData>, ProbeError> {
        let missing = || ProbeError::Map { map: "RING", reason: "it is not in the object".to_owned() };
        let ring = self.ebpf.take_map("RING").ok_or_else(missing)?;
        RingBuf::try_from(ring).map_err(|e| ProbeError::Map { map: "RING", reason: e.to_string() })
    }

    /// Hands what the kernel side has said of itself to the logger.
    ///
    /// # Errors
    /// If its map cannot be read.
    pub fn relay_log(&mut self) -> Result<(), ProbeError> {
        if self.logger.is_none() {
            let logger = EbpfLogger::init(&mut self.ebpf)
                .map_err(|e| ProbeError::Map { map: "AYA_LOGS", reason: e.to_string() })?;
            self.logger = Some(logger);
        }
        if let Some(logger) = &mut self.logger {
            logger.flush();
        }
        Ok(())
    }

    /// A snapshot to be read from inside a namespace; see `Snapshot::read`.
    ///
    /// # Errors
    /// If the kernel has no TCP iterator.
    pub fn snapshot(&mut self) -> Result<Snapshot, ProbeError> {
        let iter: &mut Iter = typed(&mut self.ebpf, "iter_tcp")?;
        let attach = |e: ProgramError| ProbeError::Attach {
            hook: "snapshot",
            place: "iterator tcp".to_owned(),
            reason: reason(&e),
        };
        let link = iter.attach().map_err(attach)?;
        Ok(Snapshot { link: iter.take_link(link).map_err(attach)? })
    }
}

/// A pending walk over the TCP sockets of whatever namespace the thread that reads it is in.
pub struct Snapshot {
    link: IterLink,
}

impl Snapshot {
    /// Walks: the program sees every TCP socket of the calling thread's network namespace.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn read(self, netns: u32) -> Result<(), ProbeError> {
        let failed = |reason: String| ProbeError::Snapshot { netns, reason };
        let mut file = self.link.into_file().map_err(|e| failed(e.to_string()))?;
        let mut nothing = Vec::new();
        file.read_to_end(&mut nothing).map_err(|e| failed(e.to_string()))?;
        Ok(())
    }
}

pub(super) fn map<'a, T>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<T, ProbeError>
where
    T: TryFrom<&'a mut aya::maps::Map>,
    T::Error: std::fmt::Display,
{
    let map = ebpf
        .map_mut(name)
        .ok_or_else(|| ProbeError::Map { map: name, reason: "it is not in the object".to_owned() })?;
    T::try_from(map).map_err(|e| ProbeError::Map { map: name, reason: e.to_string() })
}

fn wrong_type() -> ProgramError {
    ProgramError::UnexpectedProgramType
}

fn attach(program: &mut Program, point: Point) -> Result<(), ProgramError> {
    match (program, point) {
        (Program::BtfTracePoint(p), Point::Btf(..)) => p.attach().map(drop),
        (Program::TracePoint(p), Point::Classic(category, at)) => p.attach(category, at).map(drop),
        (Program::FEntry(p), Point::Fentry(..)) => p.attach().map(drop),
        (Program::FExit(p), Point::Fexit(..)) => p.attach().map(drop),
        (Program::KProbe(p), Point::Kprobe(function, _) | Point::Kretprobe(function)) => {
            p.attach(function, 0).map(drop)
        }
        _ => Err(wrong_type()),
    }
}

/// Whether the kernel forbids the flavour as such: some are built without trampolines, or do not let them be used.
fn is_prohibition(error: &ProgramError, way: &Way) -> bool {
    way.flavour != Flavour::Tracepoint && chain(error).contains("os error 1)")
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Program, ProbeError> {
    ebpf.program_mut(name).ok_or_else(|| ProbeError::Object(format!("it has no program {name}")))
}

pub(super) fn typed<'a, T>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut T, ProbeError>
where
    &'a mut T: TryFrom<&'a mut Program, Error = ProgramError>,
{
    program(ebpf, name)?.try_into().map_err(|e: ProgramError| ProbeError::Object(format!("program {name}: {e}")))
}

/// The chain of an error in one line; of a verifier's log only the end, which says what was refused.
fn reason(error: &ProgramError) -> String {
    if let ProgramError::LoadError { io_error, verifier_log } = error {
        return refusal(io_error, &end_of_log(&verifier_log.to_string()));
    }
    chain(error)
}

/// Where programs are refused before they are looked at, there is no log.
fn refusal(error: &std::io::Error, log: &str) -> String {
    if log.is_empty() { error.to_string() } else { format!("{error}: {log}") }
}

/// The last lines of a verifier's log in one, without the statistics that follow the verdict and differ from time to time.
fn end_of_log(log: &str) -> String {
    const STATISTICS: [&str; 3] = ["verification time ", "stack depth ", "processed "];
    let is_verdict = |line: &&str| !line.is_empty() && !STATISTICS.iter().any(|begin| line.starts_with(begin));
    let mut last: Vec<&str> = log.lines().filter(is_verdict).rev().take(3).collect();
    last.reverse();
    last.join(" | ")
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    text
}

fn refused_object(host: &Host, error: &aya::EbpfError) -> ProbeError {
    let text = chain(error);
    // Creating the first map is where the kernel looks at the privileges.
    if text.contains("os error 1)") {
        let lockdown = match host.lockdown().as_deref() {
            Some("confidentiality") => {
                " (kernel lockdown is in confidentiality mode, which forbids reading kernel memory)".to_owned()
            }
            _ => String::new(),
        };
        return ProbeError::NotPermitted(lockdown);
    }
    ProbeError::Object(text)
}

/// A number that nobody can guess.
fn seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0)
}

/// System call tracepoints are named in tracefs only. Where nobody has mounted it, it is mounted where the kernel made its place,
/// as trace-cmd does.
fn ensure_tracefs(host: &Host) -> Result<(), ProbeError> {
    if host.tracefs().is_some() {
        return Ok(());
    }
    rustix::mount::mount(
        "tracefs",
        "/sys/kernel/tracing",
        "tracefs",
        rustix::mount::MountFlags::NOSUID | rustix::mount::MountFlags::NODEV | rustix::mount::MountFlags::NOEXEC,
        None,
    )
    .map_err(|e| ProbeError::Tracefs(e.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_verifiers_log_the_verdict_is_told() {
        let log = "func#0 @0\n0: R1=ctx() R10=fp0\n1: (85) call pc+2\ncaller:\n R10=fp0\ncombined stack size of 3 calls is 544. Too \
                   large\n\nverification time 8144723 usec\nstack depth 0+424+0+40\nprocessed 152932 insns (limit 1000000)\n";
        assert_eq!(end_of_log(log), "caller: |  R10=fp0 | combined stack size of 3 calls is 544. Too large");
        assert_eq!(end_of_log("processed 3 insns (limit 1000000)\n"), "");
    }

    #[test]
    fn a_refusal_without_a_log_has_no_empty_end() {
        let error = std::io::Error::from_raw_os_error(libc::EPERM);
        assert_eq!(refusal(&error, ""), "Operation not permitted (os error 1)");
        assert_eq!(refusal(&error, "too large"), "Operation not permitted (os error 1): too large");
    }
}
