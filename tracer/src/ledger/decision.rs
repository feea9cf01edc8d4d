//! One connection whose outcome is decided: what an `events` line says.

use tracer_abi::abi::{Cause, Stage, TASK_COMM_LEN, Tuple};

/// Lost, or accepted after all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Not accepted by the end of the window, or certain never to be.
    Lost,
    /// Dropped at least once, and accepted.
    Late,
}

/// A lost or late connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Lost or late.
    pub outcome: Outcome,
    /// When it was decided, `CLOCK_MONOTONIC` nanoseconds.
    pub at_ns: u64,
    /// The cause of its last decisive event.
    pub cause: Cause,
    /// Where in the handshake that was.
    pub stage: Stage,
    /// Whether the client was sent a RST (`tcp_abort_on_overflow`).
    pub reset: bool,
    /// Whose.
    pub tuple: Tuple,
    /// The listener's slot.
    pub slot: u32,
    /// Lost, and the client had answered a SYN-ACK.
    pub phantom: bool,
    /// How often the client repeated its SYN, as far as it was seen.
    pub syn_retransmits: u32,
    /// How often the SYN-ACK was repeated.
    pub synack_retransmits: u32,
    /// From the first sign of the attempt to its decision.
    pub delay_ns: u64,
    /// The kernel's drop reason (`enum skb_drop_reason`), for `filtered`; otherwise 0.
    pub reason: u32,
    /// The client process (port exhaustion) or the accepting one (late); 0 if unknown.
    pub pid: u32,
    /// Its name, zero-padded.
    pub comm: [u8; TASK_COMM_LEN],
}
