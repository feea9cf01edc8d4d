use std::collections::BTreeMap;

use expect_test::{Expect, expect};
use tracer_abi::abi::Cause;

use super::super::model::{AcceptWait, Backlog, ByEnder, ClientProcess, Exhaustion, Listener, Report};
use super::super::samples::{self, by_cause};
use super::*;
use crate::ledger::{Account, Packets};

/// The advice on one listener that lost 100 of 1,000 connections to a cause.
fn check(cause: Cause, change: impl FnOnce(&mut Listener), expected: Expect) {
    let mut report = samples::idle();
    let listener = &mut report.listeners[0];
    listener.account =
        Account { attempts: 1_000, accepted: 900, lost: by_cause(&[(cause, 100)]), ..Account::default() };
    listener.accept_wait = Some(AcceptWait { p50: 20, p90: 500, p99: 2_000, max: 3_000 });
    change(listener);
    report.totals = report.listeners[0].account;
    expect_advice(&report, expected);
}

fn expect_advice(report: &Report, expected: Expect) {
    let text: Vec<String> = advise(report)
        .iter()
        .map(|a| format!("{}\n{}", a.cause.id(), super::super::format::wrap(&a.text, "  ", 100)))
        .collect();
    expected.assert_eq(&text.concat());
}

fn backlog(effective: u32, asked: Option<u32>, somaxconn: u32) -> Backlog {
    Backlog { effective, asked, somaxconn, max_syn_backlog: 2048, syncookies: 1 }
}

mod queues;

#[test]
fn nothing_lost_needs_no_advice() {
    assert_eq!(advise(&samples::idle()), []);
}

#[test]
fn a_closed_listener_is_handed_over_or_inherited() {
    check(
        Cause::ListenerClosed,
        |_| {},
        expect![[r#"
        listener-closed
          0.0.0.0:8000 (server, pid 4242) closed while 100 connections were half-open or in its accept
          queue; the kernel gave them up, and their clients get a RST. Hand the listening socket over to the
          next process (socket activation, SCM_RIGHTS) instead of closing it, or accept until EAGAIN just
          before close().
    "#]],
    );
    check(
        Cause::ListenerClosed,
        |l| l.reuseport = true,
        expect![[r#"
        listener-closed
          0.0.0.0:8000 (server, pid 4242) closed while 100 connections were half-open or in its accept
          queue; the kernel gave them up, and their clients get a RST. Another member of its SO_REUSEPORT
          group can inherit what is queued (Linux 5.14 and later):
              sysctl -w net.ipv4.tcp_migrate_req=1
    "#]],
    );
}

#[test]
fn ports_that_ran_out_name_the_range_the_destination_and_the_process() {
    let mut report = samples::idle();
    report.totals =
        Account { attempts: 15, accepted: 10, lost: by_cause(&[(Cause::PortExhaustion, 5)]), ..Account::default() };
    report.clients.exhausted = vec![Exhaustion {
        netns: samples::HOST_NETNS,
        server: [127, 0, 0, 1].into(),
        port: 8000,
        failed: 5,
        in_use: None,
    }];
    report.clients.by_process = vec![ClientProcess {
        pid: 502,
        comm: "load".into(),
        connects: 15,
        established: 10,
        failed: 5,
        failed_by: BTreeMap::from([("port-exhaustion".to_owned(), 5)]),
        fins: ByEnder::default(),
        resets: ByEnder::default(),
    }];
    let host = report.namespaces.get_mut(&samples::HOST_NETNS).expect("the host's");
    host.local_port_range = Some((40000, 40009));
    expect_advice(
        &report,
        expect![[r#"
        port-exhaustion
          5 connect() calls to 127.0.0.1:8000 found no free local port, by load (pid 502).
          net.ipv4.ip_local_port_range is 40000 40009: 10 ports for one source and one destination, those in
          TIME_WAIT included. A client that calls bind() before connect() shares them among all
          destinations, unless it sets IP_BIND_ADDRESS_NO_PORT. Reuse connections, use more addresses, or
          widen the range (and keep servers' ports out of it with ip_local_reserved_ports):
              sysctl -w net.ipv4.ip_local_port_range="1024 65535"
          What holds the ports, by state:
              ss -Htan dst 127.0.0.1:8000 | awk '{print $1}' | sort | uniq -c
    "#]],
    );
    report.namespaces.get_mut(&samples::HOST_NETNS).expect("the host's").local_port_range = Some((1024, 65535));
    expect_advice(
        &report,
        expect![[r#"
        port-exhaustion
          5 connect() calls to 127.0.0.1:8000 found no free local port, by load (pid 502).
          net.ipv4.ip_local_port_range is 1024 65535: 64,512 ports for one source and one destination, those
          in TIME_WAIT included. A client that calls bind() before connect() shares them among all
          destinations, unless it sets IP_BIND_ADDRESS_NO_PORT. That is nearly every port: reuse
          connections, or use more source or destination addresses.
          What holds the ports, by state:
              ss -Htan dst 127.0.0.1:8000 | awk '{print $1}' | sort | uniq -c
    "#]],
    );
    report.clients.exhausted.clear();
    expect_advice(
        &report,
        expect![[r#"
        port-exhaustion
          5 connect() calls: no free local port was left for the destination.
    "#]],
    );
}

#[test]
fn causes_without_a_setting_say_where_to_look() {
    let mut report = samples::idle();
    let causes = [
        Cause::SyncookieInvalid,
        Cause::HandshakeExpired,
        Cause::ClientReset,
        Cause::NoListener,
        Cause::Filtered,
        Cause::NoMemory,
        Cause::Unanswered,
        Cause::Unattributed,
    ];
    let lost: Vec<(Cause, u64)> = causes.into_iter().zip((1..=8).rev()).collect();
    report.totals = Account { attempts: 36, lost: by_cause(&lost), ..Account::default() };
    expect_advice(
        &report,
        expect![[r#"
        syncookie-invalid
          8 connections: an ACK came that no cookie of the last two minutes fits, and was answered with a
          RST. It came too late, or belongs to a connection that this machine no longer knows. No setting
          changes that; --format events names the clients.
        handshake-expired
          7 connections: the client never acknowledged the SYN-ACK. Look for spoofed or scanning sources, a
          firewall that drops SYN-ACKs, or a route back that does not lead to the client; --format events
          names the clients.
        client-reset
          6 connections: the client itself ended the handshake with a RST: it gave up waiting, or only
          probed the port (scan, health check). Nothing to change on this side, unless a full queue is
          listed too.
        no-listener
          5 connections were refused: nobody listened at that address and port. Check that the server runs
          and which address it is bound to:
              tracer listeners --port 8000
        filtered
          4 connections were dropped before the listener saw them. The report lists the kernel's reasons;
          for NETFILTER_DROP look at the firewall's counters:
              nft list ruleset
              iptables -nvL
        no-memory
          3 connections: the kernel had no memory for the request, no route back to the client, or a
          security module refused it. See which:
              dmesg | tail
              cat /proc/net/sockstat
              ip route get CLIENT
        unanswered
          2 connections: connect() timed out on this machine and none of its SYNs came to a listener. They
          were lost on the way: look at the routes, at the firewall's rules for outgoing packets, and at the
          wire:
              tcpdump -ni any 'tcp[tcpflags] & tcp-syn != 0'
        unattributed
          1 connection: the evidence is missing; the notes of the cross-check say why. Tracing fewer ports
          at a time leaves more room for it.
    "#]],
    );
}

#[test]
fn of_many_listeners_the_worst_are_named() {
    let mut report = samples::idle();
    let member = report.listeners[0].clone();
    report.listeners = (1..=5)
        .map(|n| {
            let mut member = member.clone();
            member.pid = Some(100 + n);
            member.account = Account {
                attempts: n.into(),
                lost: by_cause(&[(Cause::ListenerClosed, n.into())]),
                ..Account::default()
            };
            report.totals = report.totals + member.account;
            member
        })
        .collect();
    expect_advice(
        &report,
        expect![[r#"
        listener-closed
          0.0.0.0:8000 (server, pid 105) closed while 5 connections were half-open or in its accept queue;
          the kernel gave them up, and their clients get a RST. Hand the listening socket over to the next
          process (socket activation, SCM_RIGHTS) instead of closing it, or accept until EAGAIN just before
          close().
        listener-closed
          0.0.0.0:8000 (server, pid 104) closed while 4 connections were half-open or in its accept queue;
          the kernel gave them up, and their clients get a RST. Hand the listening socket over to the next
          process (socket activation, SCM_RIGHTS) instead of closing it, or accept until EAGAIN just before
          close().
        listener-closed
          0.0.0.0:8000 (server, pid 103) closed while 3 connections were half-open or in its accept queue;
          the kernel gave them up, and their clients get a RST. Hand the listening socket over to the next
          process (socket activation, SCM_RIGHTS) instead of closing it, or accept until EAGAIN just before
          close().
        listener-closed
          The same for 2 more listeners: 3 connections.
    "#]],
    );
}

#[test]
fn a_setting_of_another_namespace_is_changed_there() {
    let cut = |l: &mut Listener| l.backlog = backlog(128, Some(1024), 128);
    let report = samples::idle();
    let named = *report.namespaces.keys().find(|n| **n != samples::HOST_NETNS).expect("two namespaces");
    for (netns, pid, command) in [
        (samples::HOST_NETNS, Some(7), "sysctl -w a=1"),
        (named, Some(7), "nsenter --net=/run/netns/blue sysctl -w a=1"),
        (named, None, "nsenter --net=/run/netns/blue sysctl -w a=1"),
        (1, Some(7), "nsenter -t 7 -n sysctl -w a=1"),
        (1, None, "sysctl -w a=1    (in network namespace 1)"),
    ] {
        assert_eq!(sysctl(&report, netns, pid, "a=1"), command);
    }
    let elsewhere = |l: &mut Listener| {
        cut(l);
        l.netns = named;
    };
    check(
        Cause::AcceptQueueFull,
        elsewhere,
        expect![[r#"
            accept-queue-full
              0.0.0.0:8000 (server, pid 4242): the accept queue was full. Its limit is 128 (it holds 129):
              listen() asked for 1,024, net.core.somaxconn cut it down. server accepts without long pauses (99
              of 100 connections waited at most 2.00 ms, the slowest 3.00 ms). A longer queue helps against
              bursts, not when connections come faster than it accepts all the time. To lengthen the queue,
              raise somaxconn and have it call listen() again (restart it):
                  nsenter --net=/run/netns/blue sysctl -w net.core.somaxconn=1024
        "#]],
    );
}
