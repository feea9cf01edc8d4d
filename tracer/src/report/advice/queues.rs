//! Full queues: which limit it was, where it comes from, and whether the server was slow.

use tracer_abi::abi::Cause;

use super::super::format::{count, counted, time_us};
use super::super::model::{Listener, Report};
use super::{hurt, name, sysctl};

/// A wait in the accept queue that a server which does nothing but accept does not cause, in microseconds.
const SLOW_US: u64 = 100_000;

const GONE: &str = " Its network namespace had gone before its settings could be read.";

/// Advice for SYNs and final ACKs that found the accept queue full.
pub(super) fn accept_queue_full(report: &Report, listener: &Listener) -> String {
    let known = report.settings_known(listener.netns);
    let mut text = limit(listener, known);
    text.push(' ');
    text.push_str(&server(listener));
    if listener.account.lost_with_reset > 0 {
        text.push_str(&format!(
            " {} sent a RST, because net.ipv4.tcp_abort_on_overflow is set; without it their data, or the answer to a \
             repeated SYN-ACK, could still have completed them.",
            were(listener.account.lost_with_reset, "client")
        ));
    }
    match (known, listener.account.accepted) {
        (false, _) => text.push_str(GONE),
        (true, 0) => {}
        (true, _) => text.push_str(&lengthen(report, listener)),
    }
    text
}

/// Advice for valid cookies that found the accept queue full.
pub(super) fn syncookie_ack_dropped(report: &Report, listener: &Listener) -> String {
    let account = &listener.account;
    let mut text = format!(
        "{}: the half-open queue, whose limit is the backlog too, was full, so cookies were sent; when they came back the \
         accept queue was full.",
        name(listener)
    );
    if listener.backlog.syncookies == 2 && report.settings_known(listener.netns) {
        text = format!(
            "{}: net.ipv4.tcp_syncookies is 2, so every SYN is answered with a cookie (1: only while the half-open queue is \
             full); when they came back the accept queue was full.",
            name(listener)
        );
    }
    text.push_str(
        " With a cookie the kernel keeps nothing and repeats no SYN-ACK: such a client believes that it is connected, and \
         only data that it sends soon can still complete it.",
    );
    if hurt(account, Cause::AcceptQueueFull) > 0 {
        text.push_str(" The remedy is that of accept-queue-full.");
    } else {
        text.push('\n');
        text.push_str(&accept_queue_full(report, listener));
    }
    text
}

/// Advice for SYNs that found the half-open queue full, with syncookies off.
pub(super) fn half_open_queue_full(report: &Report, listener: &Listener) -> String {
    let backlog = &listener.backlog;
    let packets = &listener.account.packets;
    let mut text = format!("{}:", name(listener));
    let known = report.settings_known(listener.netns);
    let reserve = packets.syn_dropped_reserve;
    let full = packets.syn_dropped[Cause::HalfOpenQueueFull].saturating_sub(reserve);
    if full > 0 {
        text.push_str(&format!(
            " {} dropped because the half-open queue was at its limit, which is the backlog of the listener, {}.",
            were(full, "SYN"),
            count(backlog.effective.into())
        ));
    }
    if reserve > 0 && known {
        text.push_str(&format!(
            " {} dropped although the queue had room: with tcp_syncookies 0 the last quarter of tcp_max_syn_backlog ({}) is \
             kept for clients that the kernel's TCP metrics know already; others are refused beyond {} requests.",
            were(reserve, "SYN"),
            count(backlog.max_syn_backlog.into()),
            count(holds(backlog.max_syn_backlog))
        ));
    }
    if packets.ack_dropped[Cause::AcceptQueueFull] > 0 {
        text.push_str(
            " Handshakes whose final ACK finds the accept queue full stay half-open and fill this queue: see to \
             accept-queue-full first.",
        );
    }
    if !known {
        text.push_str(GONE);
        return text;
    }
    let set = |assignment: &str| sysctl(report, listener.netns, listener.pid, assignment);
    if backlog.syncookies == 0 {
        text.push_str(" With syncookies the kernel answers such SYNs without storing them:\n    ");
        text.push_str(&set("net.ipv4.tcp_syncookies=1"));
        text.push_str("\nOr raise the limit:");
    } else {
        text.push_str(&format!(
            " tcp_syncookies is {} now, so such SYNs are answered with a cookie now. Or raise the limit:",
            backlog.syncookies
        ));
    }
    let wanted = wanted(listener, Cause::HalfOpenQueueFull);
    if full > 0 {
        if wanted > backlog.somaxconn {
            text.push_str(&format!("\n    {}", set(&format!("net.core.somaxconn={wanted}"))));
        }
        text.push_str(&format!("\n    listen(fd, {wanted})    in the program"));
    }
    if reserve > 0 || (backlog.syncookies == 0 && u64::from(wanted) > holds(backlog.max_syn_backlog)) {
        let enough = wanted.max(backlog.max_syn_backlog).saturating_mul(2);
        text.push_str(&format!("\n    {}", set(&format!("net.ipv4.tcp_max_syn_backlog={enough}"))));
    }
    text
}

/// What the reserve rule leaves to new peers (`tcp_conn_request()` in `net/ipv4/tcp_input.c`).
fn holds(max_syn_backlog: u32) -> u64 {
    u64::from(max_syn_backlog - (max_syn_backlog >> 2)) + 1
}

/// The limit and where it comes from.
fn limit(listener: &Listener, known: bool) -> String {
    let backlog = &listener.backlog;
    let limit = backlog.effective;
    let what = format!("{}: the accept queue was full. Its limit is {}", name(listener), count(limit.into()));
    let holds = format!("(it holds {})", count(u64::from(limit) + 1));
    let somaxconn = count(backlog.somaxconn.into());
    let origin = match backlog.asked {
        Some(asked) if !known => format!("{holds}; listen() asked for {}.", count(asked.into())),
        None if !known => format!("{holds}."),
        Some(asked) if asked > limit && backlog.somaxconn > limit => format!(
            "{holds}: listen() asked for {}, net.core.somaxconn cut it down, and has been raised to {somaxconn} since.",
            count(asked.into())
        ),
        Some(asked) if asked > limit => {
            format!("{holds}: listen() asked for {}, net.core.somaxconn cut it down.", count(asked.into()))
        }
        Some(_) => format!("{holds}: what listen() asked for; net.core.somaxconn is {somaxconn}."),
        None if backlog.somaxconn == limit => {
            format!("{holds}: net.core.somaxconn, so listen() asked for as much or more.")
        }
        None if backlog.somaxconn > limit => format!(
            "{holds}: what listen() asked for, unless net.core.somaxconn, now {somaxconn}, was as low when it was called."
        ),
        None => format!("{holds}; net.core.somaxconn is lower now, {somaxconn}, and applies from the next listen()."),
    };
    format!("{what} {origin}")
}

/// How fast the server accepted.
fn server(listener: &Listener) -> String {
    let who = listener.comm.as_deref().unwrap_or("The server");
    let Some(wait) = listener.accept_wait.filter(|_| listener.account.accepted > 0) else {
        return format!(
            "{who} accepted nothing: it hangs, is busy elsewhere, or does not call accept(). A longer queue would only fill later."
        );
    };
    let (p50, p99, max) = (time_us(wait.p50), time_us(wait.p99), time_us(wait.max));
    if wait.p99 >= SLOW_US {
        format!(
            "{who} was slow to accept: half of the connections waited up to {p50}, one in a hundred {p99} or more, the \
             slowest {max}. A longer queue only carries it over a burst; accept in a thread of its own, or in more of them."
        )
    } else if wait.max >= SLOW_US {
        format!("{who} mostly accepts fast (99 of 100 within {p99}), but paused: one connection waited {max}.")
    } else {
        format!(
            "{who} accepts without long pauses (99 of 100 connections waited at most {p99}, the slowest {max}). A longer queue \
             helps against bursts, not when connections come faster than it accepts all the time."
        )
    }
}

/// How to make the accept queue longer.
fn lengthen(report: &Report, listener: &Listener) -> String {
    let backlog = &listener.backlog;
    let set = |n: u32| sysctl(report, listener.netns, listener.pid, &format!("net.core.somaxconn={n}"));
    let wanted = wanted(listener, Cause::AcceptQueueFull);
    match backlog.asked {
        _ if wanted <= backlog.effective => String::new(),
        // The program asks for enough already.
        Some(asked) if asked > backlog.effective && backlog.somaxconn >= asked => {
            " Restart it, or have it call listen() again, for the limit to rise.".to_owned()
        }
        Some(asked) if asked > backlog.effective && asked >= wanted => format!(
            " To lengthen the queue, raise somaxconn and have it call listen() again (restart it):\n    {}",
            set(asked.min(65_535).max(wanted))
        ),
        _ if wanted > backlog.somaxconn => format!(
            " To lengthen the queue it takes both, the setting first:\n    {}\n    listen(fd, {wanted})    in the program",
            set(wanted)
        ),
        _ => format!(
            " To lengthen the queue, ask for more in the program; somaxconn allows up to {}:\n    listen(fd, {wanted})",
            count(backlog.somaxconn.into())
        ),
    }
}

/// A limit that would have held what was dropped, as a power of two.
fn wanted(listener: &Listener, cause: Cause) -> u32 {
    let mut dropped = hurt(&listener.account, cause);
    if cause == Cause::AcceptQueueFull {
        dropped += hurt(&listener.account, Cause::SyncookieAckDropped);
    }
    let enough = (u64::from(listener.backlog.effective) + dropped).max(127) + 1;
    u32::try_from(enough.next_power_of_two()).unwrap_or(u32::MAX).min(65_535)
}

/// `3 SYNs were`, `1 SYN was`.
fn were(n: u64, one: &str) -> String {
    format!("{} {}", counted(n, one), if n == 1 { "was" } else { "were" })
}
