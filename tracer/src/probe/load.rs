//! Loading and attaching.

use std::{collections::BTreeMap, io::Read, path::Path};

use aya::{
    Btf, Ebpf, EbpfLoader,
    maps::{Array, MapData, RingBuf},
    programs::{BtfTracePoint, Iter, Program, ProgramError, RawTracePoint, TracePoint, iter::IterLink},
};
use aya_log::EbpfLogger;
use tracer_abi::abi::Config;
use zerocopy::IntoBytes;

use super::{Flavour, HOOKS, Hook, ProbeError, catalogue::Point};
use crate::kernel::{Host, Layout};

/// The kernel side, built by `cargo xtask build-ebpf`.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("CARGO_MANIFEST_DIR"), "/ebpf/tracer.bpf.o"));

/// Entries of the map `WATCH`; see `tracer-ebpf/src/maps.rs`.
pub(super) const WATCH_ENTRIES: u32 = 131_072;

/// How large the maps are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes of the ring: a power of two, and a multiple of the page size.
    pub ring_bytes: u32,
    /// Listener slots.
    pub slots: u32,
    /// Network namespaces.
    pub namespaces: u32,
}

impl Bounds {
    /// Bounds that keep all maps together under 64 MiB, whatever the number of CPUs.
    #[must_use]
    pub fn for_cpus(cpus: u32) -> Bounds {
        // 24 MiB for what is kept per listener and CPU; at least 16 listeners, at most as many as the object has.
        let per_slot = cpus.max(1) * size_of::<tracer_abi::abi::SlotCounters>() as u32;
        let per_net = cpus.max(1) * size_of::<tracer_abi::abi::NetCounters>() as u32;
        Bounds {
            ring_bytes: 16 << 20,
            slots: ((20 << 20) / per_slot).clamp(16, 1024),
            namespaces: ((4 << 20) / per_net).clamp(16, 512),
        }
    }
}

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
    btf: Btf,
    logger: Option<EbpfLogger<&'static dyn log::Log>>,
}

impl Probe {
    /// Loads the programs; nothing is attached yet.
    ///
    /// # Errors
    /// Without privilege, or if the kernel refuses a program.
    pub fn load(host: &Host, layout: &Layout, settings: &Settings) -> Result<Probe, ProbeError> {
        let [rcv, timer] = host
            .functions(["tcp_rcv_state_process", "reqsk_timer_handler"])
            .map_err(|e| ProbeError::Object(e.to_string()))?;
        let cpus = online_cpus();
        let possible = aya::util::nr_cpus().map_err(|(what, e)| ProbeError::Object(format!("{what}: {e}")))? as u32;
        let config = Config {
            rcv_state_process: rcv.0,
            rcv_state_process_end: rcv.1,
            reqsk_timer_handler: timer.0,
            mib: layout.mib,
            cpus: possible,
            netns: settings.netns.unwrap_or(0),
            slots: settings.bounds.slots,
            wake_bytes: settings.bounds.ring_bytes / 8,
            nr_connect: libc::SYS_connect as u32,
            nr_listen: libc::SYS_listen as u32,
            every_port: u32::from(settings.every_port),
            reasons: layout.reasons,
            offsets: layout.offsets,
        };
        let btf = Btf::from_sys_fs().map_err(|e| ProbeError::Object(e.to_string()))?;
        let mut ebpf = EbpfLoader::new()
            .btf(Some(&btf))
            .override_global("CONFIG", config.as_bytes(), true)
            .override_global(aya_log::LEVEL, &(settings.log as u8), false)
            .map_max_entries("WATCH", WATCH_ENTRIES)
            .map_max_entries("RING", settings.bounds.ring_bytes)
            .map_max_entries("SLOTS", settings.bounds.slots)
            .map_max_entries("COUNTERS", settings.bounds.slots)
            .map_max_entries("NETS", settings.bounds.namespaces)
            .load(OBJECT)
            .map_err(|e| refused_object(&e))?;
        let mut traced: Array<_, u64> = map(&mut ebpf, "TRACED")?;
        for (i, word) in settings.ports.iter().enumerate().filter(|(_, w)| **w != 0) {
            traced.set(i as u32, word, 0).map_err(|e| ProbeError::Map { map: "TRACED", reason: e.to_string() })?;
        }
        let mut probe = Probe { ebpf, cpus, slots: settings.bounds.slots, btf, logger: None };
        probe.load_programs()?;
        Ok(probe)
    }

    fn load_programs(&mut self) -> Result<(), ProbeError> {
        for hook in HOOKS {
            for (name, point) in hook.tracepoints {
                let refused =
                    |e: ProgramError| ProbeError::Refused { hook: hook.name, program: name, reason: reason(&e) };
                match (program(&mut self.ebpf, name)?, point) {
                    (Program::BtfTracePoint(p), Point::Btf(at)) => p.load(at, &self.btf).map_err(refused)?,
                    (Program::TracePoint(p), Point::Classic(..)) => p.load().map_err(refused)?,
                    _ => return Err(ProbeError::Object(format!("program {name} is of an unexpected type"))),
                }
            }
        }
        let refused =
            |program| move |e: ProgramError| ProbeError::Refused { hook: "control", program, reason: reason(&e) };
        let iter: &mut Iter = typed(&mut self.ebpf, "iter_tcp")?;
        iter.load("tcp", &self.btf).map_err(refused("iter_tcp"))?;
        let control: &mut RawTracePoint = typed(&mut self.ebpf, "control")?;
        control.load().map_err(refused("control"))
    }

    /// Attaches every hook, and says how.
    ///
    /// # Errors
    /// If one cannot be attached; those that were are detached when the probe is dropped.
    pub fn attach(&mut self) -> Result<BTreeMap<String, Flavour>, ProbeError> {
        ensure_tracefs()?;
        let mut attached = BTreeMap::new();
        for hook in HOOKS {
            self.attach_hook(hook)?;
            attached.insert(hook.name.to_owned(), Flavour::Tracepoint);
        }
        Ok(attached)
    }

    fn attach_hook(&mut self, hook: &'static Hook) -> Result<(), ProbeError> {
        for (name, point) in hook.tracepoints {
            let (place, result) = match point {
                Point::Btf(at) => {
                    let program: &mut BtfTracePoint = typed(&mut self.ebpf, name)?;
                    (format!("tracepoint {at}"), program.attach().map(drop))
                }
                Point::Classic(category, at) => {
                    let program: &mut TracePoint = typed(&mut self.ebpf, name)?;
                    (format!("tracepoint {category}:{at}"), program.attach(category, at).map(drop))
                }
            };
            result.map_err(|e| ProbeError::Attach { hook: hook.name, place, reason: reason(&e) })?;
        }
        Ok(())
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

    /// A snapshot to be read from inside a namespace; see [`Snapshot::read`].
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
        let log = verifier_log.to_string();
        let mut last: Vec<&str> = log.lines().filter(|l| !l.is_empty()).rev().take(4).collect();
        last.reverse();
        return format!("{io_error}: {}", last.join(" | "));
    }
    chain(error)
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

fn refused_object(error: &aya::EbpfError) -> ProbeError {
    let text = chain(error);
    // Creating the first map is where the kernel looks at the privileges.
    if text.contains("os error 1)") {
        return ProbeError::NotPermitted(lockdown());
    }
    ProbeError::Object(text)
}

fn lockdown() -> String {
    match std::fs::read_to_string("/sys/kernel/security/lockdown") {
        Ok(state) if state.contains("[confidentiality]") => {
            " (kernel lockdown is in confidentiality mode, which forbids reading kernel memory)".to_owned()
        }
        _ => String::new(),
    }
}

/// CPUs that are online now.
fn online_cpus() -> Vec<usize> {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default();
    let cpus = parse_cpus(text.trim());
    if cpus.is_empty() { vec![0] } else { cpus }
}

/// A list such as `0-3,5`.
fn parse_cpus(list: &str) -> Vec<usize> {
    let mut cpus = Vec::new();
    for part in list.split(',') {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(from), Ok(to)) = (from.parse::<usize>(), to.parse::<usize>()) {
            cpus.extend(from..=to);
        }
    }
    cpus
}

/// System call tracepoints are named in tracefs only. Where nobody has mounted it, it is mounted where the kernel made its place,
/// as trace-cmd does.
fn ensure_tracefs() -> Result<(), ProbeError> {
    let mounted = |at: &str| Path::new(at).join("events").is_dir();
    if mounted("/sys/kernel/tracing") || mounted("/sys/kernel/debug/tracing") {
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
    fn cpu_lists_have_single_cpus_and_ranges() {
        assert_eq!(parse_cpus("0"), [0]);
        assert_eq!(parse_cpus("0-2,5"), [0, 1, 2, 5]);
        assert!(parse_cpus("").is_empty());
    }

    #[test]
    fn the_maps_stay_within_the_memory_bound_on_any_number_of_cpus() {
        for cpus in [1, 2, 8, 64, 256] {
            let b = Bounds::for_cpus(cpus);
            let per_cpu = size_of::<tracer_abi::abi::SlotCounters>() * b.slots as usize
                + size_of::<tracer_abi::abi::NetCounters>() * b.namespaces as usize;
            let watch = WATCH_ENTRIES as usize * 120;
            let connecting = 65_536 * 120;
            let total = b.ring_bytes as usize + per_cpu * cpus as usize + watch + connecting;
            assert!(total < 64 << 20, "{cpus} CPUs: {} MiB", total >> 20);
        }
    }
}
