//! The harness of the end-to-end scenarios (`tests/tests/*.rs`).
//!
//! Every scenario runs as root in a network namespace of its own, makes real
//! traffic there, and knows the truth about it from two sources that have
//! nothing to do with the tracer: the sockets' own view (`TCP_INFO`, results of
//! `connect` and `accept`, packets read back from a TUN device) and the
//! kernel's counters of that namespace. The tracer's report is then held
//! against both.
//!
//! | module | what it gives |
//! |---|---|
//! | [`namespace`] | a fresh network namespace for the calling thread, its sysctls and its request sockets |
//! | [`netstat`] | the `TcpExt` counters of the calling thread's namespace |
//! | [`traffic`] | listeners with an exact backlog, non-blocking clients that can be asked for their state |
//! | [`rawtcp`] | handshakes by hand, from addresses that no host owns |
//! | [`flood`] | SYNs of clients that do not exist |
//! | [`path`] | a long path between clients and server in two namespaces: delay, loss, and what crossed it |
//! | [`remote_site`] | a server and its truth at the other end of such a path, for field notes 7 and 8 |
//! | [`workload`] | traffic that more than one scenario needs |
//! | [`load`] | many connections at once |
//! | [`tracer`] | the program under test: start, readiness, marks, stop, outcome |
//! | [`hidden`] | what kernels may hide from every BPF program, counted without BPF |
//! | [`sockets`] | options that only few scenarios need |
//! | [`uring`] | accept and connect through io_uring |
//! | [`bpf`] | what BPF keeps in the kernel: programs, maps, links, pins |
//! | [`report`] | a typed view of its JSON |
//! | [`laws`] | what has to hold in every report, whatever the traffic |
//! | [`session`] | all of these around one workload |
//! | [`notes`] | the field notes: their two programs as processes, and their counts beside the tracer's |
//!
//! The program under test is `$TRACER_BIN`, else the workspace's
//! `target/release/tracer`. Nothing here skips: without root, without a TUN
//! device or without the program a scenario fails and says so.

pub mod bpf;
mod checksum;
pub mod flood;
pub mod hidden;
pub mod laws;
pub mod load;
pub mod namespace;
mod netfilter;
pub mod netstat;
pub mod notes;
pub mod path;
pub mod rawtcp;
pub mod remote_site;
pub mod report;
pub mod session;
pub mod sockets;
mod sys;
pub mod tracer;
pub mod traffic;
mod tun;
pub mod uring;
pub mod wait;
pub mod workload;
