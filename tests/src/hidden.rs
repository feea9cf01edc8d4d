//! Packets that a kernel may hide from every BPF program, counted without BPF.
//!
//! Not every kernel runs BPF programs while a thread of process 1 is the current task: one microVM kernel was seen not to. A
//! softirq that interrupts such a thread handles packets all the same, and no tracer is shown them. Whether that happened can
//! be told by perf events: each thread of process 1 gets a counter at each tracepoint by which the tracer sees packets. What they
//! count is an upper bound for what was hidden, 0 on a machine where process 1 has nothing to do; on other kernels these packets
//! are handled in such moments too, and shown. A report may be inexact only with this evidence, which comes from the kernel and
//! not from the program under test.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::{fmt, thread};

use anyhow::{Context, Result, ensure};
use rustix::mount::{MountFlags, mount};

use crate::sys;

/// The process whose threads are watched.
const PROCESS_1: u32 = 1;
/// What cannot be counted on kernels before 5.13.
const NEW_THREADS: &str = "what new threads are interrupted by";

/// Running counters; dropping them ends the counting.
#[derive(Debug)]
pub struct Hidden {
    counters: Vec<(&'static str, File)>,
    not_counted: BTreeMap<&'static str, String>,
}

impl Hidden {
    /// Counts what is handled while a thread of process 1 is current, of connections to and from `port` where the tracepoint
    /// names a port. Where nothing can be counted nothing will be found: no evidence is no excuse.
    #[must_use]
    pub fn open(port: u16) -> Self {
        Self::of_process(PROCESS_1, port)
    }

    fn of_process(process: u32, port: u16) -> Self {
        let mut hidden = Self { counters: Vec::new(), not_counted: BTreeMap::new() };
        for place in places(port) {
            if let Err(error) = hidden.count(process, &place) {
                hidden.not_counted.insert(place.name, format!("{error:#}"));
            }
        }
        hidden
    }

    fn count(&mut self, process: u32, place: &Place) -> Result<()> {
        let filter = CString::new(place.filter.as_deref().map_err(|error| anyhow::anyhow!("{error}"))?)?;
        let id = tracepoint_id(place.name)?;
        let mut counted = Vec::new();
        loop {
            // Threads that are begun by one with a counter have one too; others may begin while this loop runs.
            let new: Vec<_> = threads(process)?.into_iter().filter(|it| !counted.contains(it)).collect();
            if new.is_empty() {
                return Ok(());
            }
            for thread in new {
                counted.push(thread);
                match self.count_thread(thread, id, &filter) {
                    Ok(counter) => self.counters.push((place.name, counter)),
                    // It has ended meanwhile.
                    Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                    Err(error) => return Err(error).context("no perf event"),
                }
            }
        }
    }

    fn count_thread(&mut self, thread: libc::pid_t, tracepoint: u64, filter: &CStr) -> io::Result<File> {
        let counter = match sys::count_tracepoint(thread, tracepoint, filter, true) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                let counter = sys::count_tracepoint(thread, tracepoint, filter, false)?;
                self.not_counted.insert(NEW_THREADS, error.to_string());
                counter
            }
            counter => counter?,
        };
        Ok(counter.into())
    }

    /// What was counted so far.
    ///
    /// # Errors
    /// Fails when a counter cannot be read.
    pub fn read(&self) -> io::Result<Evidence> {
        let mut counts = BTreeMap::new();
        for (name, counter) in &self.counters {
            let mut value = [0; 8];
            (&*counter).read_exact(&mut value)?;
            *counts.entry(*name).or_default() += u64::from_ne_bytes(value);
        }
        Ok(Evidence { counts, not_counted: self.not_counted.clone() })
    }
}

/// What was handled while a thread of process 1 was current.
///
/// Shown as one line, which begins with `HIDDEN: ` if there was anything: `cargo xtask test` looks for it among what a failed
/// test has printed. Belongs into the text of each error that hidden packets can be the reason of. A test that panics while
/// it has this value prints it by itself.
#[derive(Debug, Default)]
pub struct Evidence {
    counts: BTreeMap<&'static str, u64>,
    not_counted: BTreeMap<&'static str, String>,
}

impl Evidence {
    /// All events: packets, and what was done because of them or by a timer.
    #[must_use]
    pub fn events(&self) -> u64 {
        self.counts.values().sum()
    }

    /// Packets alone: each SYN that a listener has handled, each packet that was dropped.
    #[must_use]
    pub fn packets(&self) -> u64 {
        [CONSUMED, DROPPED].iter().filter_map(|name| self.counts.get(name)).sum()
    }
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.events() == 0 {
            write!(f, "nothing seen to be hidden")?;
        } else {
            write!(
                f,
                "HIDDEN: {} events came while a thread of process 1 was current, where this kernel may run no BPF program:",
                self.events()
            )?;
            for (name, count) in self.counts.iter().filter(|(_, count)| **count > 0) {
                write!(f, " {name} {count}")?;
            }
        }
        for (name, reason) in &self.not_counted {
            write!(f, "; {name} cannot be counted: {}", reason.replace('\n', " "))?;
        }
        Ok(())
    }
}

impl Drop for Evidence {
    fn drop(&mut self) {
        if thread::panicking() && self.events() > 0 {
            println!("{self}");
        }
    }
}

const CONSUMED: &str = "skb/consume_skb";
const DROPPED: &str = "skb/kfree_skb";
const CHANGED: &str = "sock/inet_sock_set_state";

/// A tracepoint of which the events that pass a filter are counted.
struct Place {
    /// As it is named below the directory of events.
    name: &'static str,
    /// A filter of the kernel's syntax, or why there is none.
    filter: Result<String, String>,
}

/// Where the tracer sees what it does not see in system calls (`tracer/src/probe/catalogue.rs`). A listener is told of a new
/// connection (`sk_data_ready`) right after that connection has changed its state, which is counted.
///
/// A kernel that lacks a field refuses the filter. Without `location`, up to 6.1, a SYN's end cannot be told from that of any
/// other packet.
fn places(port: u16) -> [Place; 5] {
    let within = |function: &str, filter: fn((u64, u64)) -> String| {
        symbols().as_ref().map_err(Clone::clone)?.get(function).copied().map(filter).ok_or(format!("no {function}"))
    };
    [
        Place {
            name: CONSUMED,
            filter: within("tcp_rcv_state_process", |(start, end)| {
                format!("location >= {start:#x} && location < {end:#x}")
            }),
        },
        // IPv4 and IPv6: what else is dropped (messages of local sockets, for instance) has nothing to do with TCP.
        Place { name: DROPPED, filter: Ok("protocol == 0x800 || protocol == 0x86dd".into()) },
        // Of clients, what becomes of SYN_SENT (2). Of the server's ends, what becomes of SYN_RECV (3), and ESTABLISHED (1) or
        // CLOSE_WAIT (8) to CLOSE (7) or CLOSE_WAIT. The other changes are of no interest to the tracer, and there are many.
        Place {
            name: CHANGED,
            filter: Ok(format!(
                "(dport == {port} && oldstate == 2) || (sport == {port} && (oldstate == 3 || \
                 ((oldstate == 1 || oldstate == 8) && (newstate == 7 || newstate == 8))))"
            )),
        },
        Place { name: "tcp/tcp_retransmit_synack", filter: Ok(format!("sport == {port}")) },
        Place {
            name: "timer/timer_expire_entry",
            filter: within("reqsk_timer_handler", |(start, _)| format!("function == {start:#x}")),
        },
    ]
}

/// Functions of the kernel, with where they begin and end.
type Symbols = BTreeMap<&'static str, (u64, u64)>;

/// The functions of [`places`]. The kernel does not move them, and its list is long: it is read once.
fn symbols() -> &'static Result<Symbols, String> {
    static SYMBOLS: OnceLock<Result<Symbols, String>> = OnceLock::new();
    SYMBOLS.get_or_init(|| {
        let text =
            fs::read_to_string("/proc/kallsyms").map_err(|error| format!("cannot read /proc/kallsyms: {error}"))?;
        Ok(["tcp_rcv_state_process", "reqsk_timer_handler"]
            .into_iter()
            .filter_map(|name| Some((name, extent(&text, name)?)))
            .collect())
    })
}

/// A function of the kernel's own, from its address to the next higher one of any symbol. None where addresses are not shown.
fn extent(kallsyms: &str, name: &str) -> Option<(u64, u64)> {
    let symbols = || {
        kallsyms.lines().filter_map(|line| {
            let mut words = line.split_ascii_whitespace();
            let address = u64::from_str_radix(words.next()?, 16).ok()?;
            // A fourth word is the module that the symbol is in.
            Some((address, words.nth(1)?, words.next().is_none()))
        })
    };
    let start = symbols().find(|(address, symbol, own)| *own && *symbol == name && *address > 0)?.0;
    let end = symbols().map(|it| it.0).filter(|address| *address > start).min()?;
    Some((start, end))
}

/// The number by which perf events know a tracepoint.
fn tracepoint_id(name: &str) -> Result<u64> {
    let path = tracefs()?.join("events").join(name).join("id");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    text.trim().parse().with_context(|| format!("{} holds {text:?}", path.display()))
}

/// Where tracefs is; mounted, as the tracer does, where nobody has done it.
fn tracefs() -> Result<PathBuf> {
    const PLACE: &str = "/sys/kernel/tracing";
    let found =
        || [PLACE, "/sys/kernel/debug/tracing"].map(PathBuf::from).into_iter().find(|it| it.join("events").is_dir());
    if let Some(found) = found() {
        return Ok(found);
    }
    mount("tracefs", PLACE, "tracefs", MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC, None)
        .context("cannot mount tracefs")?;
    ensure!(Path::new(PLACE).join("events").is_dir(), "tracefs has no events");
    Ok(PLACE.into())
}

/// The threads of a process.
fn threads(process: u32) -> Result<Vec<libc::pid_t>> {
    let path = format!("/proc/{process}/task");
    let entries = fs::read_dir(&path).with_context(|| format!("cannot read {path}"))?;
    entries
        .map(|entry| entry?.file_name().to_string_lossy().parse().context("a thread without a number"))
        .collect::<Result<_>>()
        .with_context(|| format!("cannot list {path}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::namespace::Namespace;
    use crate::traffic::{Fleet, Listen};

    const CONNECTS: u64 = 20;

    #[test]
    fn handshakes_by_a_counted_process_and_its_new_threads_are_counted_and_by_port() -> Result<()> {
        let _namespace = Namespace::enter()?;
        let (listener, other) = (Listen::new(100).open()?, Listen::new(100).open()?);
        let process = std::process::id();
        let (counters, elsewhere) =
            (Hidden::of_process(process, listener.port()), Hidden::of_process(process, other.port()));
        let changes = |evidence: &Evidence| evidence.counts.get(CHANGED).copied().unwrap_or(0);
        let _fleet = Fleet::connect(CONNECTS as usize, listener.address())?;
        // On loopback, most packets are handled before connect() returns. Both ends become established.
        let evidence = counters.read()?;
        let first = changes(&evidence);
        assert!((1..=2 * CONNECTS).contains(&first), "{evidence}");
        assert!(evidence.packets() > 0 || evidence.not_counted.contains_key(CONSUMED), "{evidence}");
        assert_eq!(changes(&elsewhere.read()?), 0);
        if !counters.not_counted.contains_key(NEW_THREADS) {
            let address = listener.address();
            thread::spawn(move || Fleet::connect(CONNECTS as usize, address)).join().expect("no panic")?;
            assert!(changes(&counters.read()?) > first, "nothing in a thread that began later");
        }
        Ok(())
    }

    #[test]
    fn evidence_is_one_line_that_begins_with_hidden_only_if_there_is_any() {
        let not_counted = [(DROPPED, "no\nreason".to_owned())].into();
        let mut evidence = Evidence { counts: [(CONSUMED, 0)].into(), not_counted };
        assert_eq!(evidence.to_string(), "nothing seen to be hidden; skb/kfree_skb cannot be counted: no reason");
        evidence.counts = [(CONSUMED, 2), (DROPPED, 1), ("tcp/tcp_retransmit_synack", 4)].into();
        assert_eq!((evidence.packets(), evidence.events()), (3, 7));
        let line = evidence.to_string();
        assert!(line.starts_with("HIDDEN: 7 events ") && !line.contains('\n'), "{line}");
    }

    #[test]
    fn a_function_ends_at_the_next_symbol_in_whatever_order_and_hidden_addresses_are_none() {
        let text = "0000000000000900 T after\n0000000000000100 t wanted\t[module]\n0000000000000500 T wanted\n\
                    0000000000000700 d data\n0000000000000000 A zero\n";
        assert_eq!(extent(text, "wanted"), Some((0x500, 0x700)));
        assert_eq!(extent(text, "missing"), None);
        assert_eq!(extent("0000000000000000 T wanted\n0000000000000000 T after\n", "wanted"), None);
    }
}
