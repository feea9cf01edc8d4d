//! What each cause means, in a line.

use tracer_abi::abi::{Cause, Stage};

/// The meaning of a cause for the connection that it befell, at most 61 columns.
pub(super) fn meaning(cause: Cause, stage: Stage) -> &'static str {
    match (cause, stage) {
        (Cause::HalfOpenQueueFull, _) => "SYN dropped: the half-open queue was full",
        (Cause::AcceptQueueFull, Stage::Syn) => "SYN dropped: the accept queue was full",
        (Cause::AcceptQueueFull, Stage::Ack) => "final ACK dropped: the accept queue was full",
        (Cause::AcceptQueueFull, Stage::None) => "dropped: the accept queue was full",
        (Cause::SyncookieAckDropped, _) => "valid syncookie came back, dropped: accept queue full",
        (Cause::PortExhaustion, _) => "connect() found no free local port (EADDRNOTAVAIL)",
        (Cause::SyncookieInvalid, _) => "an ACK came back that is no valid syncookie",
        (Cause::HandshakeExpired, _) => "SYN-ACK sent, never acknowledged, given up",
        (Cause::ClientReset, _) => "the client reset the half-open connection",
        (Cause::ListenerClosed, _) => "the listener closed while it was waiting",
        (Cause::NoListener, _) => "nobody listened there: refused",
        (Cause::Filtered, _) => "dropped on the way to the listener",
        (Cause::NoMemory, _) => "no memory, no route back, or a security module",
        (Cause::Unanswered, _) => "local connect() timed out; no SYN of it was seen here",
        (Cause::Unattributed, _) => "no evidence; see the cross-check",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_meaning_fits_its_column() {
        for cause in Cause::ALL {
            for stage in [Stage::None, Stage::Syn, Stage::Ack] {
                assert!(meaning(cause, stage).len() <= 61, "{}", cause.id());
            }
        }
    }

    #[test]
    fn every_cause_has_a_section_in_the_documentation() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/causes.md");
        let text = std::fs::read_to_string(path).expect("docs/causes.md is part of the checkout");
        for cause in Cause::ALL {
            let found = text.lines().any(|line| {
                line.strip_prefix("##").is_some_and(|heading| heading.trim_matches(['#', ' ', '`']) == cause.id())
            });
            assert!(found, "docs/causes.md has no section for {}", cause.id());
        }
    }
}
