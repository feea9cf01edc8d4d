//! Lost and late connections as they are decided, and who ended their clients: one JSON line each.

use std::io::{self, Write};
use std::net::IpAddr;
use std::time::Duration;

use serde::Serialize;
use tracer_abi::abi::{Cause, Ender, Event, flag};

use super::{format, json};
use crate::ledger::{Decision, Outcome};

#[derive(Serialize)]
struct Line<'a> {
    event: &'static str,
    at_seconds: f64,
    cause: &'static str,
    stage: Option<&'static str>,
    client: IpAddr,
    client_port: u16,
    server: IpAddr,
    port: u16,
    netns: u32,
    phantom: bool,
    syn_retransmits: u32,
    synack_retransmits: u32,
    delay_ms: f64,
    reset: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    comm: Option<String>,
}

/// Writes the line of a decision. `start_ns` is the start of the window by the decision's clock (`CLOCK_MONOTONIC`);
/// `reason` gives the name of one of the kernel's drop reasons (`enum skb_drop_reason`).
///
/// # Errors
/// When `out` cannot be written.
pub fn decision<'a>(
    decision: &Decision,
    start_ns: u64,
    reason: impl FnOnce(u32) -> Option<&'a str>,
    out: &mut dyn Write,
) -> io::Result<()> {
    let comm = format::comm(&decision.comm);
    let line = Line {
        event: match decision.outcome {
            Outcome::Lost => "lost",
            Outcome::Late => "late",
        },
        at_seconds: json::seconds(Duration::from_nanos(decision.at_ns.saturating_sub(start_ns))),
        cause: decision.cause.id(),
        stage: decision.stage.id(),
        client: format::address(decision.tuple.client),
        client_port: decision.tuple.client_port,
        server: format::address(decision.tuple.server),
        port: decision.tuple.port,
        netns: decision.tuple.netns,
        phantom: decision.phantom,
        syn_retransmits: decision.syn_retransmits,
        synack_retransmits: decision.synack_retransmits,
        delay_ms: (decision.delay_ns / 1000) as f64 / 1e3,
        reset: decision.reset,
        reason: if decision.cause == Cause::Filtered { reason(decision.reason) } else { None },
        pid: (decision.pid > 0).then_some(decision.pid),
        comm: (!comm.is_empty()).then_some(comm),
    };
    // One write, so that a reader never sees half a line.
    let mut text = serde_json::to_vec(&line)?;
    text.push(b'\n');
    out.write_all(&text)
}

/// The end of a client's connection that is told apart from others.
#[derive(Serialize)]
struct EndLine {
    event: &'static str,
    at_seconds: f64,
    by: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    signal: Option<u32>,
    client: IpAddr,
    client_port: u16,
    server: IpAddr,
    port: u16,
    netns: u32,
    pid: u32,
    comm: String,
}

/// Writes the line of a FIN or a RST ([`EventKind::ClientEnded`](tracer_abi::abi::EventKind)) that a local process caused on a
/// troubled connection. `start_ns` as in [`decision`].
///
/// # Errors
/// When `out` cannot be written.
pub fn ending(event: &Event, start_ns: u64, out: &mut dyn Write) -> io::Result<()> {
    let ender = Ender::ALL.get(usize::from(event.cause)).copied().unwrap_or(Ender::Other);
    let line = EndLine {
        event: if event.flags & flag::RESET != 0 { "reset" } else { "fin" },
        at_seconds: json::seconds(Duration::from_nanos(event.time_ns.saturating_sub(start_ns))),
        by: ender.id(),
        signal: (ender == Ender::Signal).then_some(event.detail & 0x7f),
        client: format::address(event.tuple.client),
        client_port: event.tuple.client_port,
        server: format::address(event.tuple.server),
        port: event.tuple.port,
        netns: event.tuple.netns,
        pid: event.pid,
        comm: format::comm(&event.comm),
    };
    let mut text = serde_json::to_vec(&line)?;
    text.push(b'\n');
    out.write_all(&text)
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use tracer_abi::abi::{Address, Stage, Tuple};

    use super::*;

    fn lost() -> Decision {
        Decision {
            outcome: Outcome::Lost,
            at_ns: 8_250_000_999,
            cause: Cause::AcceptQueueFull,
            stage: Stage::Ack,
            reset: false,
            tuple: Tuple {
                client: Address::mapped([10, 0, 0, 7]),
                server: Address::mapped([10, 0, 0, 1]),
                client_port: 40001,
                port: 8000,
                netns: 4026531840,
            },
            slot: 1,
            phantom: true,
            syn_retransmits: 0,
            synack_retransmits: 5,
            delay_ns: 3_200_400_999,
            reason: 0,
            pid: 0,
            comm: [0; 16],
        }
    }

    fn check(decision: &Decision, expected: Expect) {
        let mut line = Vec::new();
        super::decision(decision, 5_000_000_000, |n| (n == 9).then_some("NETFILTER_DROP"), &mut line).expect("memory");
        expected.assert_eq(&String::from_utf8(line).expect("UTF-8"));
    }

    #[test]
    fn a_lost_connection_is_one_line_with_the_keys_of_the_contract() {
        check(
            &lost(),
            expect![[r#"
            {"event":"lost","at_seconds":3.250001,"cause":"accept-queue-full","stage":"ack","client":"10.0.0.7","client_port":40001,"server":"10.0.0.1","port":8000,"netns":4026531840,"phantom":true,"syn_retransmits":0,"synack_retransmits":5,"delay_ms":3200.4,"reset":false}
        "#]],
        );
    }

    #[test]
    fn a_late_connection_names_who_accepted_it() {
        let mut comm = [0; 16];
        comm[..6].copy_from_slice(b"server");
        check(
            &Decision { outcome: Outcome::Late, phantom: false, pid: 42, comm, ..lost() },
            expect![[r#"
            {"event":"late","at_seconds":3.250001,"cause":"accept-queue-full","stage":"ack","client":"10.0.0.7","client_port":40001,"server":"10.0.0.1","port":8000,"netns":4026531840,"phantom":false,"syn_retransmits":0,"synack_retransmits":5,"delay_ms":3200.4,"reset":false,"pid":42,"comm":"server"}
        "#]],
        );
    }

    #[test]
    fn a_filtered_syn_keeps_the_reason_of_the_kernel() {
        let mut tuple = lost().tuple;
        tuple.client = Address::new([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
        let filtered =
            Decision { cause: Cause::Filtered, stage: Stage::Syn, phantom: false, reason: 9, tuple, ..lost() };
        check(
            &filtered,
            expect![[r#"
            {"event":"lost","at_seconds":3.250001,"cause":"filtered","stage":"syn","client":"2001:db8::2","client_port":40001,"server":"10.0.0.1","port":8000,"netns":4026531840,"phantom":false,"syn_retransmits":0,"synack_retransmits":5,"delay_ms":3200.4,"reset":false,"reason":"NETFILTER_DROP"}
        "#]],
        );
    }

    #[test]
    fn port_exhaustion_has_no_stage_and_names_the_process() {
        let mut tuple = lost().tuple;
        tuple.client_port = 0;
        let failed = Decision {
            cause: Cause::PortExhaustion,
            stage: Stage::None,
            phantom: false,
            synack_retransmits: 0,
            delay_ns: 0,
            pid: 4243,
            comm: *b"a-name-of-15-chr",
            tuple,
            ..lost()
        };
        check(
            &failed,
            expect![[r#"
            {"event":"lost","at_seconds":3.250001,"cause":"port-exhaustion","stage":null,"client":"10.0.0.7","client_port":0,"server":"10.0.0.1","port":8000,"netns":4026531840,"phantom":false,"syn_retransmits":0,"synack_retransmits":0,"delay_ms":0.0,"reset":false,"pid":4243,"comm":"a-name-of-15-chr"}
        "#]],
        );
    }
}
