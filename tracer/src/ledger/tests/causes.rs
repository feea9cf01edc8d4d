//! One test for each cause.

use expect_test::expect;

use super::script::check;

#[test]
fn a_healthy_connection_is_only_in_the_counters() {
    check(
        "a syn queue; a ack child; a accept
         b syn queue; b ack child
         c syn queue",
        expect![[r#"
            end
            slot 1: 3 = 1 accepted + 2 pending + 0 lost
        "#]],
    );
}

#[test]
fn a_syn_dropped_many_times_is_one_attempt_lost_to_the_accept_queue() {
    check(
        "a syn drop accept-queue-full; wait 1; a syn drop accept-queue-full; wait 2; a syn drop accept-queue-full",
        expect![[r#"
            end
            lost a accept-queue-full syn syn 2 after 3004 ms
            slot 1: 1 = 0 accepted + 0 pending + 1 lost
              lost: accept-queue-full 1
              at syn: 1
        "#]],
    );
}

#[test]
fn a_syn_dropped_by_the_request_queue_is_half_open_queue_full() {
    check(
        "a syn queue
         b syn drop half-open-queue-full",
        expect![[r#"
            end
            lost b half-open-queue-full syn after 0 ms
            slot 1: 2 = 0 accepted + 1 pending + 1 lost
              lost: half-open-queue-full 1
        "#]],
    );
}

#[test]
fn a_dropped_final_ack_that_still_waits_is_lost_and_a_phantom() {
    check(
        "a syn queue; a ack drop accept-queue-full; wait 1; a synack; a ack drop accept-queue-full",
        expect![[r#"
            end
            lost a accept-queue-full ack phantom synack 1 after 1003 ms
            slot 1: 1 = 0 accepted + 0 pending + 1 lost
              lost: accept-queue-full 1
              phantom: 1
        "#]],
    );
}

#[test]
fn abort_on_overflow_resets_the_client() {
    check(
        "a syn queue; a ack drop accept-queue-full reset",
        expect![[r#"
            end
            lost a accept-queue-full ack reset phantom after 0 ms
            slot 1: 1 = 0 accepted + 0 pending + 1 lost
              lost: accept-queue-full 1
              with reset: 1
              phantom: 1
        "#]],
    );
}

#[test]
fn a_dropped_cookie_ack_is_syncookie_ack_dropped() {
    check(
        "a syn cookie; a ack drop accept-queue-full; wait 3; a ack drop accept-queue-full",
        expect![[r#"
            end
            lost a syncookie-ack-dropped ack phantom after 3003 ms
            slot 1: 1 = 0 accepted + 0 pending + 1 lost
              lost: syncookie-ack-dropped 1
              phantom: 1
        "#]],
    );
}

#[test]
fn a_bogus_ack_is_an_attempt_lost_to_an_invalid_cookie() {
    check(
        "a ack invalid
         b syn cookie; b ack invalid",
        expect![[r#"
            end
            lost a syncookie-invalid ack after 2 ms
            lost b syncookie-invalid ack after 1 ms
            slot 1: 2 = 0 accepted + 0 pending + 2 lost
              lost: syncookie-invalid 2
        "#]],
    );
}

#[test]
fn connects_without_a_port_are_attempts_of_no_listener() {
    check(
        "exhaust; exhaust",
        expect![[r#"
            lost - port-exhaustion pid 7 after 0 ms
            lost - port-exhaustion pid 7 after 0 ms
            end
            slot 0: 2 = 0 accepted + 0 pending + 2 lost
              lost: port-exhaustion 2
            slot 1: 0 = 0 accepted + 0 pending + 0 lost
        "#]],
    );
}

#[test]
fn connects_without_a_port_are_counted_though_their_events_are_lost() {
    check(
        "exhaust; lose; exhaust; keep",
        expect![[r#"
            lost - port-exhaustion pid 7 after 0 ms
            end
            slot 0: 2 = 0 accepted + 0 pending + 2 lost
              lost: port-exhaustion 2
              unlisted: 1
            slot 1: 0 = 0 accepted + 0 pending + 0 lost
        "#]],
    );
}

#[test]
fn a_request_that_nobody_acknowledged_expires() {
    check(
        "a syn queue; wait 1; a synack; wait 2; a expire",
        expect![[r#"
            end
            lost a handshake-expired synack 1 after 2002 ms
            slot 1: 1 = 0 accepted + 0 pending + 1 lost
              lost: handshake-expired 1
        "#]],
    );
}

#[test]
fn a_cookie_that_never_came_back_expires_after_two_minutes() {
    check(
        "a syn cookie; wait 119",
        expect![[r#"
            end
            slot 1: 1 = 0 accepted + 1 pending + 0 lost
        "#]],
    );
    check(
        "a syn cookie; wait 120",
        expect![[r#"
            end
            lost a handshake-expired after 120001 ms
            slot 1: 1 = 0 accepted + 0 pending + 1 lost
              lost: handshake-expired 1
        "#]],
    );
}

#[test]
fn a_client_that_resets_its_request_is_client_reset() {
    check(
        "a syn queue; a rst
         b syn cookie; b rst",
        expect![[r#"
            end
            lost a client-reset after 2 ms
            lost b client-reset after 1 ms
            slot 1: 2 = 0 accepted + 0 pending + 2 lost
              lost: client-reset 2
        "#]],
    );
}

#[test]
fn a_reset_after_the_dropped_ack_is_client_reset_of_a_phantom() {
    check(
        "a syn queue; a ack drop accept-queue-full; a rst",
        expect![[r#"
            end
            lost a client-reset phantom after 1 ms
            slot 1: 1 = 0 accepted + 0 pending + 1 lost
              lost: client-reset 1
              phantom: 1
        "#]],
    );
}

#[test]
fn four_that_wait_when_the_listener_closes_are_lost_with_it() {
    check(
        "a syn queue; b syn queue; c syn queue; d syn queue; e syn queue
         a ack child; b ack child; c ack child; d ack child; e ack child
         a accept
         close",
        expect![[r#"
            lost b listener-closed phantom after 0 ms
            lost c listener-closed phantom after 0 ms
            lost d listener-closed phantom after 0 ms
            lost e listener-closed phantom after 0 ms
            end
            slot 1: 5 = 1 accepted + 0 pending + 4 lost
              lost: listener-closed 4
              phantom: 4
        "#]],
    );
}

#[test]
fn requests_of_a_closed_listener_are_lost_with_it_and_the_healthy_ones_have_no_line() {
    check(
        "a syn queue
         b syn queue; b synack
         c syn queue; c ack drop accept-queue-full
         d syn cookie
         e syn drop accept-queue-full
         f syn queue
         close
         f expire",
        expect![[r#"
            end
            lost c listener-closed phantom after 5 ms
            lost d listener-closed after 4 ms
            lost e accept-queue-full syn after 3 ms
            lost f listener-closed after 0 ms
            slot 1: 6 = 0 accepted + 0 pending + 6 lost
              lost: accept-queue-full 1 listener-closed 5
              at syn: 1
              phantom: 1
              unlisted: 2
        "#]],
    );
}

#[test]
fn a_syn_that_nobody_listens_for_is_refused_at_once() {
    check(
        "close; a syn refused",
        expect![[r#"
            lost a no-listener syn after 0 ms
            end
            slot 0: 1 = 0 accepted + 0 pending + 1 lost
              lost: no-listener 1
            slot 1: 0 = 0 accepted + 0 pending + 0 lost
        "#]],
    );
}

#[test]
fn a_filtered_syn_keeps_the_kernels_reason() {
    check(
        "a syn filtered 9; wait 1; a syn filtered 9",
        expect![[r#"
            end
            lost a filtered syn syn 1 reason 9 after 1002 ms
            slot 0: 1 = 0 accepted + 0 pending + 1 lost
              lost: filtered 1
            slot 1: 0 = 0 accepted + 0 pending + 0 lost
        "#]],
    );
}

#[test]
fn a_request_that_could_not_be_allocated_is_no_memory() {
    check(
        "a syn drop no-memory
         b syn queue; b ack drop no-memory",
        expect![[r#"
            end
            lost a no-memory syn after 2 ms
            lost b no-memory ack phantom after 0 ms
            slot 1: 2 = 0 accepted + 0 pending + 2 lost
              lost: no-memory 2
              phantom: 1
        "#]],
    );
}

#[test]
fn a_connect_that_timed_out_unseen_is_unanswered() {
    check(
        "a timeout",
        expect![[r#"
            end
            lost a unanswered pid 7 after 0 ms
            slot 0: 1 = 0 accepted + 0 pending + 1 lost
              lost: unanswered 1
            slot 1: 0 = 0 accepted + 0 pending + 0 lost
        "#]],
    );
}

#[test]
fn what_no_entry_explains_is_unattributed() {
    // The attempt's only event is lost, and so is the kernel's own note of it, because its tuple began another attempt.
    check(
        "lose; a syn drop accept-queue-full; keep; a again; a syn cookie",
        expect![[r#"
            end
            slot 1: 2 = 0 accepted + 1 pending + 1 lost
              lost: unattributed 1
              unlisted: 1
        "#]],
    );
}
