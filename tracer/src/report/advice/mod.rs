//! What to change: sentences that name the limits that were found, and commands that change them.
//!
//! Pure: model in, advice out. Every number comes from the model; where a fact is missing, the sentence is left out.

mod queues;

use tracer_abi::abi::Cause;

use super::format::{count, counted};
use super::model::{Advice, Exhaustion, Listener, PortsInUse, Report};
use crate::ledger::Account;

/// Listeners named for one cause; the rest are counted.
const NAMED: usize = 3;

/// What to change, the cause with the most lost and late connections first.
#[must_use]
pub fn advise(report: &Report) -> Vec<Advice> {
    let mut causes: Vec<(u64, Cause)> =
        Cause::ALL.into_iter().map(|cause| (hurt(&report.totals, cause), cause)).filter(|(n, _)| *n > 0).collect();
    causes.sort_by_key(|(n, _)| std::cmp::Reverse(*n));
    let mut advice = Vec::new();
    for (n, cause) in causes {
        for text in for_cause(report, cause, n) {
            advice.push(Advice { cause, text });
        }
    }
    advice
}

/// Attempts that this cause lost or delayed.
fn hurt(account: &Account, cause: Cause) -> u64 {
    account.lost[cause] + account.late[cause]
}

fn for_cause(report: &Report, cause: Cause, n: u64) -> Vec<String> {
    let connections = counted(n, "connection");
    let were = if n == 1 { "was" } else { "were" };
    let once = |text: String| vec![text];
    match cause {
        Cause::AcceptQueueFull => each_listener(report, cause, |l| queues::accept_queue_full(report, l)),
        Cause::SyncookieAckDropped => each_listener(report, cause, |l| queues::syncookie_ack_dropped(report, l)),
        Cause::HalfOpenQueueFull => each_listener(report, cause, |l| queues::half_open_queue_full(report, l)),
        Cause::ListenerClosed => each_listener(report, cause, |l| listener_closed(report, l)),
        Cause::PortExhaustion => port_exhaustion(report, n),
        Cause::HandshakeExpired => once(format!(
            "{connections}: the client never acknowledged the SYN-ACK. Look for spoofed or scanning sources, a firewall \
             that drops SYN-ACKs, or a route back that does not lead to the client; --format events names the clients."
        )),
        Cause::SyncookieInvalid => once(format!(
            "{connections}: an ACK came that no cookie of the last two minutes fits, and was answered with a RST. It came \
             too late, or belongs to a connection that this machine no longer knows. No setting changes that; --format \
             events names the clients."
        )),
        Cause::ClientReset => once(format!(
            "{connections}: the client itself ended the handshake with a RST: it gave up waiting, or only probed the port \
             (scan, health check). Nothing to change on this side, unless a full queue is listed too."
        )),
        Cause::NoListener => once(format!(
            "{connections} {were} refused: nobody listened at that address and port. Check that the server runs and which \
             address it is bound to:\n    tracer listeners{}",
            ports(report)
        )),
        Cause::Filtered => once(format!(
            "{connections} {were} dropped before the listener saw them. The report lists the kernel's reasons; for \
             NETFILTER_DROP look at the firewall's counters:\n    nft list ruleset\n    iptables -nvL"
        )),
        Cause::NoMemory => once(format!(
            "{connections}: the kernel had no memory for the request, no route back to the client, or a security module \
             refused it. See which:\n    dmesg | tail\n    cat /proc/net/sockstat\n    ip route get CLIENT"
        )),
        Cause::Unanswered => once(format!(
            "{connections}: connect() timed out on this machine and none of its SYNs came to a listener. They were lost \
             on the way: look at the routes, at the firewall's rules for outgoing packets, and at the \
             wire:\n    tcpdump -ni any 'tcp[tcpflags] & tcp-syn != 0'"
        )),
        Cause::Unattributed => once(format!(
            "{connections}: the evidence is missing; the notes of the cross-check say why. Tracing fewer ports at a \
             time leaves more room for it."
        )),
    }
}

/// The text for each of the listeners that this cause hurt most.
fn each_listener(report: &Report, cause: Cause, text: impl Fn(&Listener) -> String) -> Vec<String> {
    let mut hurt: Vec<(u64, &Listener)> =
        report.listeners.iter().map(|l| (self::hurt(&l.account, cause), l)).filter(|(n, _)| *n > 0).collect();
    hurt.sort_by_key(|(n, _)| std::cmp::Reverse(*n));
    let mut texts: Vec<String> = hurt.iter().take(NAMED).map(|(_, listener)| text(listener)).collect();
    if let Some(rest) = hurt.get(NAMED..).filter(|rest| !rest.is_empty()) {
        let n: u64 = rest.iter().map(|(n, _)| n).sum();
        texts.push(format!(
            "The same for {}: {}.",
            counted(rest.len() as u64, "more listener"),
            counted(n, "connection")
        ));
    }
    texts
}

fn listener_closed(report: &Report, listener: &Listener) -> String {
    let remedy = if listener.reuseport {
        let command = sysctl(report, listener.netns, None, "net.ipv4.tcp_migrate_req=1");
        format!(
            "Another member of its SO_REUSEPORT group can inherit what is queued (Linux 5.14 and later):\n    {command}"
        )
    } else {
        "Hand the listening socket over to the next process (socket activation, SCM_RIGHTS) instead of closing it, or \
         accept until EAGAIN just before close()."
            .to_owned()
    };
    format!(
        "{} closed while {} half-open or in its accept queue; the kernel gave them up, and their clients get a RST. {remedy}",
        name(listener),
        match hurt(&listener.account, Cause::ListenerClosed) {
            1 => "1 connection was".to_owned(),
            n => format!("{} connections were", count(n)),
        }
    )
}

fn port_exhaustion(report: &Report, n: u64) -> Vec<String> {
    let exhausted = &report.clients.exhausted;
    if exhausted.is_empty() {
        return vec![format!("{}: no free local port was left for the destination.", counted(n, "connect() call"))];
    }
    let mut texts: Vec<String> = exhausted.iter().take(NAMED).map(|e| exhausted_ports(report, e)).collect();
    if exhausted.len() > NAMED {
        texts.push(format!("The same for {}.", counted((exhausted.len() - NAMED) as u64, "more destination")));
    }
    texts
}

fn exhausted_ports(report: &Report, e: &Exhaustion) -> String {
    let place = super::format::place(e.server, e.port, false);
    let mut text = format!("{} to {place} found no free local port", counted(e.failed, "connect() call"));
    if e.netns != report.host.netns {
        text.push_str(&format!(" in network namespace {}", report.netns_label(e.netns)));
    }
    let culprits = culprits(report);
    if !culprits.is_empty() {
        text.push_str(&format!(", by {culprits}"));
    }
    text.push('.');
    let range = report.namespaces.get(&e.netns).and_then(|ns| ns.local_port_range);
    if let Some((first, last)) = range {
        let ports = u64::from(last) + 1 - u64::from(first);
        text.push_str(&format!(
            " net.ipv4.ip_local_port_range is {first} {last}: {} for one source and one destination, those in TIME_WAIT \
             included. A client that calls bind() before connect() shares them among all destinations, unless it sets \
             IP_BIND_ADDRESS_NO_PORT.",
            counted(ports, "port")
        ));
        if ports < 60_000 {
            text.push_str(&format!(
                " Reuse connections, use more addresses, or widen the range (and keep servers' ports out of it with \
                 ip_local_reserved_ports):\n    {}",
                sysctl(report, e.netns, None, "net.ipv4.ip_local_port_range=\"1024 65535\"")
            ));
        } else {
            text.push_str(
                " That is nearly every port: reuse connections, or use more source or destination addresses.",
            );
        }
    }
    match &e.in_use {
        Some(ports) => {
            let available = range.map(|(first, last)| u64::from(last - first) + 1 - u64::from(ports.reserved));
            text.push_str(&ports_in_use(report, e, ports, available));
        }
        None => {
            text.push_str("\nWhat holds the ports, by state:\n    ");
            text.push_str(&format!("ss -Htan dst {place} | awk '{{print $1}}' | sort | uniq -c"));
        }
    }
    text
}

/// What held the ports when they ran out, and what follows from that. `available`: the range without what is reserved.
fn ports_in_use(report: &Report, e: &Exhaustion, ports: &PortsInUse, available: Option<u64>) -> String {
    let by_state: Vec<String> = ports.by_state.iter().map(|(state, n)| format!("{state} {}", count(*n))).collect();
    let mut text = format!(
        "\nWhen they ran out, {} in use towards it",
        match ports.total() {
            1 => "1 was".to_owned(),
            n => format!("{} were", count(n)),
        }
    );
    if !by_state.is_empty() {
        text.push_str(&format!(": {}", by_state.join(", ")));
    }
    if ports.reserved > 0 {
        text.push_str(&format!("; {} of the range are reserved", counted(ports.reserved.into(), "port")));
    }
    text.push('.');
    let holders: Vec<String> = ports
        .by_process
        .iter()
        .take(NAMED)
        .map(|(pid, comm, n)| format!("{comm} (pid {pid}) held {}", count(*n)))
        .collect();
    if !holders.is_empty() {
        text.push_str(&format!(" {}.", holders.join(", ")));
    }
    // The kernel looks at the ports one by one, while others are being given back.
    if available.is_some_and(|available| ports.total() < available / 2) {
        text.push_str(
            " That is far from all: either they have been given back since, or ports were taken by bind() before \
             connect() for other destinations.",
        );
    }
    if ports.by_state.get("TIME-WAIT").is_some_and(|n| *n > 0) && ports.tw_reuse != 1 {
        text.push_str(&format!(
            " Ports in TIME-WAIT can be used again after a second, where both ends use timestamps:\n    {}",
            sysctl(report, e.netns, None, "net.ipv4.tcp_tw_reuse=1")
        ));
    }
    text
}

/// The processes whose connects found no port, the worst first.
fn culprits(report: &Report) -> String {
    let failed = |p: &super::ClientProcess| p.failed_by.get(Cause::PortExhaustion.id()).copied().unwrap_or(0);
    let mut processes: Vec<_> = report.clients.by_process.iter().filter(|p| failed(p) > 0).collect();
    processes.sort_by_key(|p| std::cmp::Reverse(failed(p)));
    let names: Vec<String> = processes.iter().take(NAMED).map(|p| format!("{} (pid {})", p.comm, p.pid)).collect();
    let more = match processes.len().saturating_sub(NAMED) {
        0 => String::new(),
        n => format!(" and {n} more"),
    };
    format!("{}{more}", names.join(", "))
}

/// The option that names the ports that were asked for.
fn ports(report: &Report) -> String {
    let ranges = report.ports.iter().flatten();
    let texts: Vec<String> = ranges
        .map(|r| if r.start() == r.end() { r.start().to_string() } else { format!("{}-{}", r.start(), r.end()) })
        .collect();
    if texts.is_empty() { String::new() } else { format!(" --port {}", texts.join(",")) }
}

/// `0.0.0.0:8000 (server, pid 42)`.
fn name(listener: &Listener) -> String {
    let place = listener.place();
    match (&listener.comm, listener.pid) {
        (Some(comm), Some(pid)) => format!("{place} ({comm}, pid {pid})"),
        (None, Some(pid)) => format!("{place} (pid {pid})"),
        _ => place,
    }
}

/// The command that changes a setting in that namespace.
fn sysctl(report: &Report, netns: u32, pid: Option<u32>, assignment: &str) -> String {
    let path = report.namespaces.get(&netns).and_then(|ns| ns.path.as_deref());
    match (netns == report.host.netns, path, pid) {
        (true, _, _) => format!("sysctl -w {assignment}"),
        (false, Some(path), _) => format!("nsenter --net={} sysctl -w {assignment}", path.display()),
        (false, None, Some(pid)) => format!("nsenter -t {pid} -n sysctl -w {assignment}"),
        (false, None, None) => format!("sysctl -w {assignment}    (in network namespace {netns})"),
    }
}

#[cfg(test)]
mod tests;
