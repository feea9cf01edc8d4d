//! Full queues.

use super::*;

#[test]
fn a_backlog_that_the_program_asked_for_is_raised_in_the_program() {
    check(
        Cause::AcceptQueueFull,
        |l| l.backlog = backlog(128, Some(128), 4096),
        expect![[r#"
        accept-queue-full
          0.0.0.0:8000 (server, pid 4242): the accept queue was full. Its limit is 128 (it holds 129): what
          listen() asked for; net.core.somaxconn is 4,096. server accepts without long pauses (99 of 100
          connections waited at most 2.00 ms, the slowest 3.00 ms). A longer queue helps against bursts, not
          when connections come faster than it accepts all the time. To lengthen the queue, ask for more in
          the program; somaxconn allows up to 4,096:
              listen(fd, 256)
    "#]],
    );
}

#[test]
fn a_backlog_beyond_somaxconn_takes_both() {
    check(
        Cause::AcceptQueueFull,
        |l| l.backlog = backlog(128, Some(128), 128),
        expect![[r#"
        accept-queue-full
          0.0.0.0:8000 (server, pid 4242): the accept queue was full. Its limit is 128 (it holds 129): what
          listen() asked for; net.core.somaxconn is 128. server accepts without long pauses (99 of 100
          connections waited at most 2.00 ms, the slowest 3.00 ms). A longer queue helps against bursts, not
          when connections come faster than it accepts all the time. To lengthen the queue it takes both,
          the setting first:
              sysctl -w net.core.somaxconn=256
              listen(fd, 256)    in the program
    "#]],
    );
}

#[test]
fn a_backlog_cut_down_by_somaxconn_takes_the_setting_and_a_restart() {
    check(
        Cause::AcceptQueueFull,
        |l| l.backlog = backlog(128, Some(1024), 128),
        expect![[r#"
        accept-queue-full
          0.0.0.0:8000 (server, pid 4242): the accept queue was full. Its limit is 128 (it holds 129):
          listen() asked for 1,024, net.core.somaxconn cut it down. server accepts without long pauses (99
          of 100 connections waited at most 2.00 ms, the slowest 3.00 ms). A longer queue helps against
          bursts, not when connections come faster than it accepts all the time. To lengthen the queue,
          raise somaxconn and have it call listen() again (restart it):
              sysctl -w net.core.somaxconn=1024
    "#]],
    );
}

#[test]
fn a_setting_raised_after_listen_takes_only_a_restart() {
    check(
        Cause::AcceptQueueFull,
        |l| l.backlog = backlog(128, Some(1024), 4096),
        expect![[r#"
        accept-queue-full
          0.0.0.0:8000 (server, pid 4242): the accept queue was full. Its limit is 128 (it holds 129):
          listen() asked for 1,024, net.core.somaxconn cut it down, and has been raised to 4,096 since.
          server accepts without long pauses (99 of 100 connections waited at most 2.00 ms, the slowest 3.00
          ms). A longer queue helps against bursts, not when connections come faster than it accepts all the
          time. Restart it, or have it call listen() again, for the limit to rise.
    "#]],
    );
}

#[test]
fn a_listen_call_that_was_not_seen_is_only_supposed() {
    check(
        Cause::AcceptQueueFull,
        |l| l.backlog = backlog(128, None, 4096),
        expect![[r#"
        accept-queue-full
          0.0.0.0:8000 (server, pid 4242): the accept queue was full. Its limit is 128 (it holds 129): what
          listen() asked for, unless net.core.somaxconn, now 4,096, was as low when it was called. server
          accepts without long pauses (99 of 100 connections waited at most 2.00 ms, the slowest 3.00 ms). A
          longer queue helps against bursts, not when connections come faster than it accepts all the time.
          To lengthen the queue, ask for more in the program; somaxconn allows up to 4,096:
              listen(fd, 256)
    "#]],
    );
    check(
        Cause::AcceptQueueFull,
        |l| l.backlog = backlog(4096, None, 4096),
        expect![[r#"
        accept-queue-full
          0.0.0.0:8000 (server, pid 4242): the accept queue was full. Its limit is 4,096 (it holds 4,097):
          net.core.somaxconn, so listen() asked for as much or more. server accepts without long pauses (99
          of 100 connections waited at most 2.00 ms, the slowest 3.00 ms). A longer queue helps against
          bursts, not when connections come faster than it accepts all the time. To lengthen the queue it
          takes both, the setting first:
              sysctl -w net.core.somaxconn=8192
              listen(fd, 8192)    in the program
    "#]],
    );
    check(
        Cause::AcceptQueueFull,
        |l| l.backlog = backlog(4096, None, 128),
        expect![[r#"
        accept-queue-full
          0.0.0.0:8000 (server, pid 4242): the accept queue was full. Its limit is 4,096 (it holds 4,097);
          net.core.somaxconn is lower now, 128, and applies from the next listen(). server accepts without
          long pauses (99 of 100 connections waited at most 2.00 ms, the slowest 3.00 ms). A longer queue
          helps against bursts, not when connections come faster than it accepts all the time. To lengthen
          the queue it takes both, the setting first:
              sysctl -w net.core.somaxconn=8192
              listen(fd, 8192)    in the program
    "#]],
    );
}

#[test]
fn a_server_that_accepts_nothing_is_not_helped_by_a_longer_queue() {
    let stuck = |l: &mut Listener| {
        l.account.lost = by_cause(&[(Cause::AcceptQueueFull, 871)]);
        l.account.pending = 129;
        l.account.accepted = 0;
        l.accept_wait = None;
    };
    check(
        Cause::AcceptQueueFull,
        stuck,
        expect![[r#"
        accept-queue-full
          0.0.0.0:8000 (server, pid 4242): the accept queue was full. Its limit is 128 (it holds 129): what
          listen() asked for; net.core.somaxconn is 4,096. server accepted nothing: it hangs, is busy
          elsewhere, or does not call accept(). A longer queue would only fill later.
    "#]],
    );
}

#[test]
fn a_slow_server_is_told_so() {
    let slow = |l: &mut Listener| {
        l.accept_wait = Some(AcceptWait { p50: 900_000, p90: 2_000_000, p99: 4_900_000, max: 5_000_000 });
    };
    check(
        Cause::AcceptQueueFull,
        slow,
        expect![[r#"
        accept-queue-full
          0.0.0.0:8000 (server, pid 4242): the accept queue was full. Its limit is 128 (it holds 129): what
          listen() asked for; net.core.somaxconn is 4,096. server was slow to accept: half of the
          connections waited up to 900 ms, one in a hundred 4.90 s or more, the slowest 5.00 s. A longer
          queue only carries it over a burst; accept in a thread of its own, or in more of them. To lengthen
          the queue, ask for more in the program; somaxconn allows up to 4,096:
              listen(fd, 256)
    "#]],
    );
}

#[test]
fn a_reset_on_overflow_is_explained() {
    check(
        Cause::AcceptQueueFull,
        |l| l.account.lost_with_reset = 3,
        expect![[r#"
        accept-queue-full
          0.0.0.0:8000 (server, pid 4242): the accept queue was full. Its limit is 128 (it holds 129): what
          listen() asked for; net.core.somaxconn is 4,096. server accepts without long pauses (99 of 100
          connections waited at most 2.00 ms, the slowest 3.00 ms). A longer queue helps against bursts, not
          when connections come faster than it accepts all the time. 3 clients were sent a RST, because
          net.ipv4.tcp_abort_on_overflow is set; without it their data, or the answer to a repeated SYN-ACK,
          could still have completed them. To lengthen the queue, ask for more in the program; somaxconn
          allows up to 4,096:
              listen(fd, 256)
    "#]],
    );
}

#[test]
fn late_connections_alone_are_reason_enough() {
    let late = |l: &mut Listener| {
        l.account.accepted = 1_000;
        l.account.lost = by_cause(&[]);
        l.account.late = by_cause(&[(Cause::AcceptQueueFull, 100)]);
    };
    check(
        Cause::AcceptQueueFull,
        late,
        expect![[r#"
        accept-queue-full
          0.0.0.0:8000 (server, pid 4242): the accept queue was full. Its limit is 128 (it holds 129): what
          listen() asked for; net.core.somaxconn is 4,096. server accepts without long pauses (99 of 100
          connections waited at most 2.00 ms, the slowest 3.00 ms). A longer queue helps against bursts, not
          when connections come faster than it accepts all the time. To lengthen the queue, ask for more in
          the program; somaxconn allows up to 4,096:
              listen(fd, 256)
    "#]],
    );
}

#[test]
fn cookies_everywhere_are_a_setting() {
    check(
        Cause::SyncookieAckDropped,
        |l| l.backlog.syncookies = 2,
        expect![[r#"
        syncookie-ack-dropped
          0.0.0.0:8000 (server, pid 4242): net.ipv4.tcp_syncookies is 2, so every SYN is answered with a
          cookie (1: only while the half-open queue is full); when they came back the accept queue was full.
          With a cookie the kernel keeps nothing and repeats no SYN-ACK: such a client believes that it is
          connected, and only data that it sends soon can still complete it.
          0.0.0.0:8000 (server, pid 4242): the accept queue was full. Its limit is 128 (it holds 129): what
          listen() asked for; net.core.somaxconn is 4,096. server accepts without long pauses (99 of 100
          connections waited at most 2.00 ms, the slowest 3.00 ms). A longer queue helps against bursts, not
          when connections come faster than it accepts all the time. To lengthen the queue, ask for more in
          the program; somaxconn allows up to 4,096:
              listen(fd, 256)
    "#]],
    );
}

#[test]
fn cookies_dropped_beside_requests_need_the_same_remedy() {
    let both =
        |l: &mut Listener| l.account.lost = by_cause(&[(Cause::AcceptQueueFull, 90), (Cause::SyncookieAckDropped, 10)]);
    check(
        Cause::AcceptQueueFull,
        both,
        expect![[r#"
        accept-queue-full
          0.0.0.0:8000 (server, pid 4242): the accept queue was full. Its limit is 128 (it holds 129): what
          listen() asked for; net.core.somaxconn is 4,096. server accepts without long pauses (99 of 100
          connections waited at most 2.00 ms, the slowest 3.00 ms). A longer queue helps against bursts, not
          when connections come faster than it accepts all the time. To lengthen the queue, ask for more in
          the program; somaxconn allows up to 4,096:
              listen(fd, 256)
        syncookie-ack-dropped
          0.0.0.0:8000 (server, pid 4242): the half-open queue, whose limit is the backlog too, was full, so
          cookies were sent; when they came back the accept queue was full. With a cookie the kernel keeps
          nothing and repeats no SYN-ACK: such a client believes that it is connected, and only data that it
          sends soon can still complete it. The remedy is that of accept-queue-full.
    "#]],
    );
}

#[test]
fn a_full_half_open_queue_names_its_limit_and_the_reserve_apart() {
    let full = |dropped, reserve| {
        move |l: &mut Listener| {
            l.backlog.syncookies = 0;
            l.account.packets = Packets {
                syn_dropped: by_cause(&[(Cause::HalfOpenQueueFull, dropped)]),
                syn_dropped_reserve: reserve,
                ..Packets::default()
            };
        }
    };
    check(
        Cause::HalfOpenQueueFull,
        full(100, 0),
        expect![[r#"
        half-open-queue-full
          0.0.0.0:8000 (server, pid 4242): 100 SYNs were dropped because the half-open queue was at its
          limit, which is the backlog of the listener, 128. With syncookies the kernel answers such SYNs
          without storing them:
              sysctl -w net.ipv4.tcp_syncookies=1
          Or raise the limit:
              listen(fd, 256)    in the program
    "#]],
    );
    check(
        Cause::HalfOpenQueueFull,
        full(1, 1),
        expect![[r#"
        half-open-queue-full
          0.0.0.0:8000 (server, pid 4242): 1 SYN was dropped although the queue had room: with
          tcp_syncookies 0 the last quarter of tcp_max_syn_backlog (2,048) is kept for clients that the
          kernel's TCP metrics know already; others are refused beyond 1,537 requests. With syncookies the
          kernel answers such SYNs without storing them:
              sysctl -w net.ipv4.tcp_syncookies=1
          Or raise the limit:
              sysctl -w net.ipv4.tcp_max_syn_backlog=4096
    "#]],
    );
    let behind = |l: &mut Listener| {
        full(120, 20)(l);
        l.backlog.somaxconn = 128;
        l.account.packets.ack_dropped = by_cause(&[(Cause::AcceptQueueFull, 4)]);
    };
    check(
        Cause::HalfOpenQueueFull,
        behind,
        expect![[r#"
        half-open-queue-full
          0.0.0.0:8000 (server, pid 4242): 100 SYNs were dropped because the half-open queue was at its
          limit, which is the backlog of the listener, 128. 20 SYNs were dropped although the queue had
          room: with tcp_syncookies 0 the last quarter of tcp_max_syn_backlog (2,048) is kept for clients
          that the kernel's TCP metrics know already; others are refused beyond 1,537 requests. Handshakes
          whose final ACK finds the accept queue full stay half-open and fill this queue: see to
          accept-queue-full first. With syncookies the kernel answers such SYNs without storing them:
              sysctl -w net.ipv4.tcp_syncookies=1
          Or raise the limit:
              sysctl -w net.core.somaxconn=256
              listen(fd, 256)    in the program
              sysctl -w net.ipv4.tcp_max_syn_backlog=4096
    "#]],
    );
    let since = |l: &mut Listener| {
        full(100, 0)(l);
        l.backlog.syncookies = 1;
    };
    check(
        Cause::HalfOpenQueueFull,
        since,
        expect![[r#"
        half-open-queue-full
          0.0.0.0:8000 (server, pid 4242): 100 SYNs were dropped because the half-open queue was at its
          limit, which is the backlog of the listener, 128. tcp_syncookies is 1 now, so such SYNs are
          answered with a cookie now. Or raise the limit:
              listen(fd, 256)    in the program
    "#]],
    );
}

#[test]
fn settings_that_could_not_be_read_are_not_made_up() {
    let gone = |l: &mut Listener| {
        l.netns = 1;
        l.backlog = backlog(128, Some(1024), 0);
        l.account.lost = by_cause(&[(Cause::AcceptQueueFull, 60), (Cause::HalfOpenQueueFull, 40)]);
        l.account.packets.syn_dropped = by_cause(&[(Cause::HalfOpenQueueFull, 41)]);
    };
    check(
        Cause::AcceptQueueFull,
        gone,
        expect![[r#"
        accept-queue-full
          0.0.0.0:8000 (server, pid 4242): the accept queue was full. Its limit is 128 (it holds 129);
          listen() asked for 1,024. server accepts without long pauses (99 of 100 connections waited at most
          2.00 ms, the slowest 3.00 ms). A longer queue helps against bursts, not when connections come
          faster than it accepts all the time. Its network namespace had gone before its settings could be
          read.
        half-open-queue-full
          0.0.0.0:8000 (server, pid 4242): 41 SYNs were dropped because the half-open queue was at its
          limit, which is the backlog of the listener, 128. Its network namespace had gone before its
          settings could be read.
    "#]],
    );
}
