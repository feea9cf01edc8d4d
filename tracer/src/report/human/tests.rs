use std::time::Duration;

use expect_test::{Expect, expect};

use super::super::{Mark, samples};
use super::*;

fn page(report: &Report, color: bool) -> String {
    let mut out = Vec::new();
    write(report, Style::new(color), &mut out).expect("memory");
    String::from_utf8(out).expect("UTF-8")
}

fn check(report: &Report, expected: Expect) {
    let page = page(report, false);
    for line in page.lines() {
        assert!(line.chars().count() <= WIDTH, "{} columns: {line}", line.chars().count());
        assert_eq!(line, line.trim_end(), "blanks at the end");
    }
    expected.assert_eq(&page);
}

#[test]
fn the_first_field_note_is_explained_on_one_page() {
    check(
        &samples::field_note_1(),
        expect![[r#"
            20,000 attempts: 19,600 accepted, 400 lost (2.0 %), 0 pending
            lost to accept-queue-full (400)
            12.3 s until the command ended; Linux 6.18.44; hooks: tracepoint
            ./load-test --threads 20 --connections 1000: status 0

            0.0.0.0:8000  server (pid 4242)
                  20,000  attempts
                  19,600  accepted                 98.0 %
                       0  pending
                     400  lost                     2.0 %
                      12    accept-queue-full      SYN dropped: the accept queue was full
                     388    accept-queue-full      final ACK dropped: the accept queue was full
                       0    unattributed
                     388  phantom                  of the lost: the client could believe that it was connected
                     153  late                     of the accepted: dropped before (accept-queue-full)
                     100    completed by ACK       a bare ACK, in answer to a repeated SYN-ACK
                      50    completed by data      the first data carried the ACK
                       3    completed by FIN       the client's close carried the ACK
                      12  dead on arrival          of the accepted: the client had closed or reset before
              accept queue     now 0, peak 129 of 128+1: full; listen() asked for 128; somaxconn 4,096
              half-open queue  now 0, peak 117, limit 128; syncookies 1, tcp_max_syn_backlog 2,048
              accept wait      p50 12 us, p90 40 us, p99 900 us, max 5.00 s
              packets          SYN 20,024 (36 dropped), SYN-ACK 19,988, 2,705 repeated, 3,246 final ACKs dropped

            clients on this machine
                  20,000  connects
                  19,988  established
                      12  failed
                      12    ETIMEDOUT
                  19,988  FINs sent                because a signal ended the process
                     pid  process           connects  established   failed
                    4243  load-test           20,000       19,988       12  ETIMEDOUT 12
                          19,988 FINs, because a signal ended the process

            cross-check                     kernel       tracer
              ListenDrops                    3,282        3,282  ok
              ListenOverflows                3,282        3,282  ok
              7 others                           0            0  ok
              exact: every counter is equal, no event was lost

            what to change
              accept-queue-full
                0.0.0.0:8000 (server, pid 4242): the accept queue was full. Its limit is 128 (it holds 129):
                what listen() asked for; net.core.somaxconn is 4,096. server mostly accepts fast (99 of 100
                within 900 us), but paused: one connection waited 5.00 s. To lengthen the queue, ask for more in
                the program; somaxconn allows up to 4,096:
                    listen(fd, 1024)
        "#]],
    );
}

#[test]
fn everything_at_once_stays_readable() {
    check(
        &samples::trouble(),
        expect![[r#"
            88 attempts: 30 accepted, 45 lost (51.1 %), 13 pending
            lost to half-open-queue-full (17), syncookie-ack-dropped (9), filtered (7), port-exhaustion (5),
            listener-closed (4), no-listener (2), unattributed (1)
            not exact: see the notes of the cross-check
            10.0 s until interrupted; Linux 6.18.44; hooks: tracepoint

            0.0.0.0:8000  server (pid 4242)
                      30  attempts
                       0  accepted                 0 %
                      13  pending                  half-open or in the accept queue, never dropped
                      17  lost                     56.7 %
                      17    half-open-queue-full   SYN dropped: the reserve of tcp_max_syn_backlog was reached
                       0    unattributed
              accept queue     now 0, peak 0 of 128+1; somaxconn 4,096
              half-open queue  now 13, peak 13, limit 128; syncookies 0, tcp_max_syn_backlog 16: reserve reached
              packets          SYN 30 (17 dropped), SYN-ACK 13, 13 repeated

            *:8000  slow (pid 77), network namespace blue (4026532210), SO_REUSEPORT
                      40  attempts
                      30  accepted                 75.0 %
                       0  pending
                      10  lost                     25.0 %
                       9    syncookie-ack-dropped  valid syncookie came back, dropped: accept queue full
                       1    unattributed           no evidence; see the cross-check
                       9  phantom                  of the lost: the client could believe that it was connected
              accept queue     now 6, peak 6 of 5+1: full; listen() asked for 4,096; somaxconn 5
              half-open queue  now 0, peak 6, limit 5: full; syncookies 1, tcp_max_syn_backlog 2,048
              accept wait      p50 150 ms, p90 220 ms, p99 250 ms, max 260 ms
              packets          SYN 40, SYN-ACK 6, 34 with a cookie, 11 final ACKs dropped, 24 cookies accepted,
                               2 invalid cookies

            [::1]:9000  owner unknown, closed
                       4  attempts
                       0  accepted                 0 %
                       0  pending
                       4  lost                     100 %
                       4    listener-closed        the listener closed while it was waiting
                       0    unattributed
                       4  phantom                  of the lost: the client could believe that it was connected
              accept queue     now 0, peak 4 of 128+1; listen() asked for 128; somaxconn 4,096
              half-open queue  now 0, peak 0, limit 128; syncookies 1, tcp_max_syn_backlog 2,048
              packets          SYN 4, SYN-ACK 4

            met no listener
                      14  attempts
                       0  accepted                 0 %
                       0  pending
                      14  lost                     100 %
                       5    port-exhaustion        connect() found no free local port (EADDRNOTAVAIL)
                       2    no-listener            nobody listened there: refused
                       7    filtered               dropped on the way to the listener
                       6      NETFILTER_DROP
                       1      TCP_CSUM
                       0    unattributed

            clients on this machine
                      31  connects
                      17  established
                       1  in progress
                      13  failed
                       2    ECONNREFUSED
                       6    ETIMEDOUT
                       5    port-exhaustion
                      12  FINs sent                close() 2, exit 10
                       5  RSTs sent                by close()
                     pid  process           connects  established   failed
                     502  greedy                  19            5       13  ETIMEDOUT 6, port-exhaustion 5, ...
                          5 RSTs, by close()
                     501  good                    12           12        0
                          12 FINs, close() 2, exit 10

            marks               accepted         lost
                 3.200 s              20           11  client stopped
                 7.654 s              30           44  mark 2

            cross-check                     kernel       tracer
              ListenDrops                       29           28  MISMATCH
              ListenOverflows                   11           11  ok
              TCPReqQFullDoCookies              34           34  ok
              SyncookiesSent                    34           34  ok
              SyncookiesRecv                    35           35  ok
              SyncookiesFailed                   2            2  ok
              3 others                           0            0  ok
              not exact
                1,024 events found no room in the ring buffer: counts hold, details of some attempts are missing
                and their cause may be unattributed
                ListenDrops: the kernel counted 29, the tracer 28

            what to change
              half-open-queue-full
                0.0.0.0:8000 (server, pid 4242): 17 SYNs were dropped although the queue had room: with
                tcp_syncookies 0 the last quarter of tcp_max_syn_backlog (16) is kept for clients that the
                kernel's TCP metrics know already; others are refused beyond 13 requests. With syncookies the
                kernel answers such SYNs without storing them:
                    sysctl -w net.ipv4.tcp_syncookies=1
                Or raise the limit:
                    sysctl -w net.ipv4.tcp_max_syn_backlog=512
              syncookie-ack-dropped
                *:8000 (slow, pid 77): the half-open queue, whose limit is the backlog too, was full, so cookies
                were sent; when they came back the accept queue was full. With a cookie the kernel keeps nothing
                and repeats no SYN-ACK: such a client believes that it is connected, and only data that it sends
                soon can still complete it.
                *:8000 (slow, pid 77): the accept queue was full. Its limit is 5 (it holds 6): listen() asked
                for 4,096, net.core.somaxconn cut it down. slow was slow to accept: half of the connections
                waited up to 150 ms, one in a hundred 250 ms or more, the slowest 260 ms. A longer queue only
                carries it over a burst; accept in a thread of its own, or in more of them. To lengthen the
                queue, raise somaxconn and have it call listen() again (restart it):
                    nsenter --net=/run/netns/blue sysctl -w net.core.somaxconn=4096
              filtered
                7 connections were dropped before the listener saw them. The report lists the kernel's reasons;
                for NETFILTER_DROP look at the firewall's counters:
                    nft list ruleset
                    iptables -nvL
              port-exhaustion
                5 connect() calls to 10.9.0.1:8000 found no free local port in network namespace blue
                (4026532210), by greedy (pid 502). net.ipv4.ip_local_port_range is 32768 60999: 28,232 ports for
                one source and one destination, those in TIME_WAIT included. A client that calls bind() before
                connect() shares them among all destinations, unless it sets IP_BIND_ADDRESS_NO_PORT. Reuse
                connections, use more addresses, or widen the range (and keep servers' ports out of it with
                ip_local_reserved_ports):
                    nsenter --net=/run/netns/blue sysctl -w net.ipv4.ip_local_port_range="1024 65535"
                When they ran out, 28,230 were in use towards it: ESTAB 28,000, TIME-WAIT 230; 2 ports of the
                range are reserved. greedy (pid 502) held 27,000, good (pid 501) held 1,000. Ports in TIME-WAIT
                can be used again after a second, where both ends use timestamps:
                    nsenter --net=/run/netns/blue sysctl -w net.ipv4.tcp_tw_reuse=1
              listener-closed
                [::1]:9000 closed while 4 connections were half-open or in its accept queue; the kernel gave
                them up, and their clients get a RST. Hand the listening socket over to the next process (socket
                activation, SCM_RIGHTS) instead of closing it, or accept until EAGAIN just before close().
              no-listener
                2 connections were refused: nobody listened at that address and port. Check that the server runs
                and which address it is bound to:
                    tracer listeners
              unattributed
                1 connection: the evidence is missing; the notes of the cross-check say why. Tracing fewer ports
                at a time leaves more room for it.
        "#]],
    );
}

#[test]
fn a_traced_port_without_traffic_is_shown() {
    check(
        &samples::idle(),
        expect![[r#"
        0 attempts: nobody tried to connect
        10.0 s (--duration); Linux 6.18.44; hooks: tracepoint

        0.0.0.0:8000  server (pid 4242)
                   0  attempts

        cross-check                     kernel       tracer
          all 9 counters                     0            0  ok
          exact: every counter is equal, no event was lost
    "#]],
    );
}

#[test]
fn a_traced_port_without_listener_is_said_so() {
    let mut report = samples::idle();
    report.listeners.clear();
    assert!(page(&report, false).contains("\nno listener on the traced ports\n"));
}

#[test]
fn idle_listeners_are_left_out_unless_their_port_was_asked_for() {
    let mut report = samples::idle();
    report.ports = None;
    assert!(!page(&report, false).contains("0.0.0.0:8000"));
}

#[test]
fn of_many_processes_that_ended_the_first_and_the_last_are_shown_and_every_mark_that_was_asked_for() {
    let labels = |ends: usize| {
        let mut report = samples::idle();
        let mark = |label: String, asked| Mark { at: Duration::from_secs(1), label, asked, accepted: 1, lost: 2 };
        report.marks = (1..=ends).map(|n| mark(format!("end {n}"), false)).collect();
        report.marks.insert(8, mark("SIGUSR1".to_owned(), true));
        let page = page(&report, false);
        let marks = page.split("\nmarks ").nth(1).unwrap().split("\n\n").next().unwrap();
        marks.lines().skip(1).map(|line| line[43..].to_owned()).collect::<Vec<_>>().join(", ")
    };
    assert_eq!(
        labels(40),
        "end 1, end 2, end 3, end 4, end 5, end 6, 28 more processes ended, SIGUSR1, \
         end 35, end 36, end 37, end 38, end 39, end 40"
    );
    assert_eq!(
        labels(13),
        "end 1, end 2, end 3, end 4, end 5, end 6, end 7, end 8, SIGUSR1, end 9, end 10, end 11, end 12, end 13"
    );
}

#[test]
fn colour_adds_nothing_but_colour() {
    for report in [samples::field_note_1(), samples::trouble(), samples::idle()] {
        let mut plain = page(&report, true);
        assert!(plain.contains('\x1b'));
        for code in ["\x1b[0m", "\x1b[1m", "\x1b[2m", "\x1b[31m", "\x1b[32m"] {
            plain = plain.replace(code, "");
        }
        assert_eq!(plain, page(&report, false));
    }
}
