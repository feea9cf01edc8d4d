//! What happens when several things happen to one attempt.

use expect_test::expect;

use super::script::check;

#[test]
fn a_dropped_syn_that_is_resent_and_accepted_is_late() {
    check(
        "a syn drop accept-queue-full; wait 1; a syn queue; a ack child; wait 2; a accept",
        expect![[r#"
            late a accept-queue-full syn syn 1 pid 42 after 3005 ms
            end
            slot 1: 1 = 1 accepted + 0 pending + 0 lost
              late: accept-queue-full 1; ack 1 data 0 fin 0
        "#]],
    );
}

#[test]
fn dropped_acks_are_late_by_what_completed_them() {
    check(
        "a syn queue; b syn queue; c syn queue; d syn queue; e syn queue
         a ack drop accept-queue-full; b ack drop accept-queue-full; c ack drop accept-queue-full
         d ack drop accept-queue-full; e ack drop accept-queue-full
         a ack child data; b ack child fin; c synack; c ack child; d rst; e ack child data fin
         a accept; b accept; c accept; e accept",
        expect![[r#"
            late a accept-queue-full ack pid 42 after 11 ms
            late b accept-queue-full ack pid 42 after 11 ms
            late c accept-queue-full ack synack 1 pid 42 after 11 ms
            late e accept-queue-full ack pid 42 after 10 ms
            end
            lost d client-reset phantom after 11 ms
            slot 1: 5 = 4 accepted + 0 pending + 1 lost
              lost: client-reset 1
              late: accept-queue-full 4; ack 1 data 1 fin 2
              phantom: 1
        "#]],
    );
}

#[test]
fn a_dropped_syn_that_is_half_open_now_is_lost_and_in_the_queue_it_is_pending() {
    check(
        "a syn drop half-open-queue-full; a syn queue
         b syn drop half-open-queue-full; b syn queue; b ack child",
        expect![[r#"
            end
            lost a half-open-queue-full syn syn 1 after 4 ms
            slot 1: 2 = 0 accepted + 1 pending + 1 lost
              lost: half-open-queue-full 1
        "#]],
    );
}

#[test]
fn an_expired_request_whose_syn_comes_again_is_late_by_expiry() {
    check(
        "a syn queue; wait 3; a expire; wait 4; a syn queue; a ack child; a accept",
        expect![[r#"
            late a handshake-expired syn 1 pid 42 after 4004 ms
            end
            slot 1: 1 = 1 accepted + 0 pending + 0 lost
              late: handshake-expired 1; ack 1 data 0 fin 0
        "#]],
    );
}

#[test]
fn a_syn_dropped_after_expiry_decides_last() {
    check(
        "a syn queue; a expire; a syn drop half-open-queue-full
         b syn drop half-open-queue-full; b syn queue; b expire",
        expect![[r#"
            end
            lost a half-open-queue-full syn syn 1 after 4 ms
            lost b handshake-expired syn 1 after 2 ms
            slot 1: 2 = 0 accepted + 0 pending + 2 lost
              lost: half-open-queue-full 1 handshake-expired 1
        "#]],
    );
}

#[test]
fn a_request_that_expires_after_we_dropped_its_ack_was_acknowledged() {
    check(
        "a syn queue; a ack drop accept-queue-full; a synack; a expire
         b syn queue; b ack drop accept-queue-full; b expire; b ack invalid",
        expect![[r#"
            end
            lost a accept-queue-full ack phantom synack 1 after 6 ms
            lost b accept-queue-full ack phantom after 2 ms
            slot 1: 2 = 0 accepted + 0 pending + 2 lost
              lost: accept-queue-full 2
              phantom: 2
        "#]],
    );
}

#[test]
fn a_dropped_cookie_ack_that_comes_again_too_late_is_invalid() {
    check(
        "a syn cookie; a ack drop accept-queue-full; wait 121; a ack invalid",
        expect![[r#"
            end
            lost a syncookie-invalid ack phantom after 121003 ms
            slot 1: 1 = 0 accepted + 0 pending + 1 lost
              lost: syncookie-invalid 1
              phantom: 1
        "#]],
    );
}

#[test]
fn cookie_connections_are_accepted_or_late_or_pending() {
    check(
        "a syn cookie; a ack child; a accept
         b syn cookie; b ack drop accept-queue-full; b ack child data; b accept
         c syn cookie; c ack child
         d syn cookie
         e syn drop accept-queue-full; e syn cookie; e ack child; e accept",
        expect![[r#"
            late b syncookie-ack-dropped ack pid 42 after 3 ms
            late e accept-queue-full syn syn 1 pid 42 after 3 ms
            end
            slot 1: 5 = 3 accepted + 2 pending + 0 lost
              late: accept-queue-full 1 syncookie-ack-dropped 1; ack 1 data 1 fin 0
        "#]],
    );
}

#[test]
fn a_repeated_synack_alone_makes_nothing_late() {
    check(
        "a syn queue; a synack; a ack child; a accept
         b syn queue; b synack",
        expect![[r#"
            end
            slot 1: 2 = 1 accepted + 1 pending + 0 lost
        "#]],
    );
}

#[test]
fn a_connection_that_was_reset_while_it_waited_is_dead_on_arrival_and_not_lost() {
    check(
        "a syn queue; a ack child; a rst
         b syn queue; b ack child; b rst; b accept
         c syn drop accept-queue-full; c syn queue; c ack child; c rst; c accept",
        expect![[r#"
            late c accept-queue-full syn syn 1 pid 42 after 4 ms
            end
            slot 1: 3 = 2 accepted + 1 pending + 0 lost
              late: accept-queue-full 1; ack 1 data 0 fin 0
              dead on arrival: 2
        "#]],
    );
}

#[test]
fn another_sequence_number_is_another_attempt_and_ends_the_first() {
    check(
        "a syn drop accept-queue-full; a again; a syn drop half-open-queue-full
         b syn cookie; b again; b syn queue; b ack child; b accept",
        expect![[r#"
            lost a accept-queue-full syn after 2 ms
            end
            lost a half-open-queue-full syn after 5 ms
            slot 1: 4 = 1 accepted + 1 pending + 2 lost
              lost: half-open-queue-full 1 accept-queue-full 1
              at syn: 1
        "#]],
    );
}

#[test]
fn a_dead_connection_in_the_queue_outlives_the_next_attempt_of_its_tuple() {
    check(
        "a syn drop accept-queue-full; a syn queue; a ack child; a rst; a again
         a syn drop accept-queue-full; close",
        expect![[r#"
            lost a listener-closed phantom syn 1 after 6 ms
            end
            lost a accept-queue-full syn after 1 ms
            slot 1: 2 = 0 accepted + 0 pending + 2 lost
              lost: accept-queue-full 1 listener-closed 1
              at syn: 1
              phantom: 1
        "#]],
    );
}

#[test]
fn a_restarted_server_takes_the_resent_syn() {
    // The attempt is counted at the first listener, and accepted at the second.
    check(
        "a syn drop accept-queue-full; close; lose; keep; a at 2; a syn queue; a ack child; a accept",
        expect![[r#"
            late a accept-queue-full syn syn 1 pid 42 after 7 ms
            end
            slot 1: 0 = 0 accepted + 0 pending + 0 lost
            slot 2: 1 = 1 accepted + 0 pending + 0 lost
              late: accept-queue-full 1; ack 1 data 0 fin 0
        "#]],
    );
}

#[test]
fn a_resent_syn_that_is_refused_stays_with_the_listener_it_began_at() {
    check(
        "a syn drop accept-queue-full; close; a syn refused",
        expect![[r#"
            lost a no-listener syn syn 1 after 2 ms
            end
            slot 1: 1 = 0 accepted + 0 pending + 1 lost
              lost: no-listener 1
        "#]],
    );
}

#[test]
fn silence_decides_what_is_lost_and_forgets_it() {
    check(
        "a syn drop accept-queue-full; wait 130; b syn queue",
        expect![[r#"
            lost a accept-queue-full syn after 130001 ms
            end
            slot 1: 2 = 0 accepted + 1 pending + 1 lost
              lost: accept-queue-full 1
              at syn: 1
        "#]],
    );
}

#[test]
fn a_connection_that_waits_in_the_queue_for_minutes_is_late_in_the_end() {
    check(
        "a syn drop accept-queue-full; a syn queue; a ack child; wait 600; a accept",
        expect![[r#"
            late a accept-queue-full syn syn 1 pid 42 after 600004 ms
            end
            slot 1: 1 = 1 accepted + 0 pending + 0 lost
              late: accept-queue-full 1; ack 1 data 0 fin 0
        "#]],
    );
}

#[test]
fn the_kernels_memory_fills_the_gaps_that_lost_events_left() {
    check(
        "lose
         a syn drop accept-queue-full; a syn queue; a ack child fin; a accept
         b syn queue; b ack drop accept-queue-full reset
         c syn cookie
         d syn queue; d expire
         e syn drop half-open-queue-full; e syn queue
         f syn cookie; f ack drop accept-queue-full
         g syn queue; g ack drop accept-queue-full; g rst
         h syn drop accept-queue-full; h syn queue; h ack child
         keep",
        expect![[r#"
            end
            late a accept-queue-full syn after 19 ms
            lost b accept-queue-full ack reset phantom after 14 ms
            lost d handshake-expired after 11 ms
            lost e half-open-queue-full syn after 10 ms
            lost f syncookie-ack-dropped ack phantom after 8 ms
            lost g client-reset phantom after 5 ms
            slot 1: 8 = 1 accepted + 2 pending + 5 lost
              lost: half-open-queue-full 1 accept-queue-full 1 syncookie-ack-dropped 1 handshake-expired 1 client-reset 1
              late: accept-queue-full 1; ack 0 data 0 fin 1
              with reset: 1
              phantom: 3
        "#]],
    );
}
