//! `/proc/kallsyms`: where functions begin and end.

use super::{Host, host_with};
use crate::kernel::KernelError;

fn functions(kallsyms: &str) -> Result<[(u64, u64); 2], KernelError> {
    let (_root, host) = host_with("proc/kallsyms", kallsyms.as_bytes());
    host.functions(["tcp_rcv_state_process", "reqsk_timer_handler"])
}

fn problem(kallsyms: &str) -> (&'static str, String) {
    match functions(kallsyms) {
        Err(KernelError::NoSymbol { symbol, problem, .. }) => (symbol, problem),
        other => panic!("expected a missing symbol, found {other:x?}"),
    }
}

#[test]
fn functions_end_where_the_next_symbol_begins_and_come_in_the_order_asked_for() {
    let found = functions(
        "ffffffff81000000 T _text\n\
         ffffffff81c00100 t reqsk_timer_handler\n\
         ffffffff81c00500 t inet_csk_reqsk_queue_drop_and_put\n\
         ffffffff81c10000 T tcp_rcv_state_process\n\
         ffffffff81c11200 t tcp_collapse\n",
    );
    assert_eq!(found.unwrap(), [(0xffffffff81c10000, 0xffffffff81c11200), (0xffffffff81c00100, 0xffffffff81c00500)]);
}

#[test]
fn a_second_name_of_the_same_address_does_not_end_a_function() {
    let found = functions(
        "ffffffff81c00100 t __pfx_alias_before\n\
         ffffffff81c00100 t reqsk_timer_handler\n\
         ffffffff81c00100 t alias_after\n\
         ffffffff81c00500 T tcp_rcv_state_process\n\
         ffffffff81c00500 T another_alias\n\
         ffffffff81c00900 t next\n",
    );
    assert_eq!(found.unwrap(), [(0xffffffff81c00500, 0xffffffff81c00900), (0xffffffff81c00100, 0xffffffff81c00500)]);
}

#[test]
fn names_that_only_begin_alike_are_other_functions() {
    let found = functions(
        "ffffffff81c00000 t __pfx_reqsk_timer_handler\n\
         ffffffff81c00010 t reqsk_timer_handler.cold\n\
         ffffffff81c00100 t reqsk_timer_handler\n\
         ffffffff81c00200 T tcp_rcv_state_process\n\
         ffffffff81c00300 t next\n",
    );
    assert_eq!(found.unwrap()[1], (0xffffffff81c00100, 0xffffffff81c00200));
}

#[test]
fn a_modules_symbol_neither_is_nor_ends_a_function_of_the_kernel() {
    let (symbol, problem) = problem(
        "ffffffff81c00100 t reqsk_timer_handler\n\
         ffffffff81c00500 t next\n\
         ffffffffc0000000 t tcp_rcv_state_process\t[impostor]\n\
         ffffffffc0001000 t impostor_next\t[impostor]\n",
    );
    assert_eq!(symbol, "tcp_rcv_state_process");
    assert!(problem.contains("not listed"), "{problem}");

    let (symbol, problem) = self::problem(
        "ffffffff81c00100 t reqsk_timer_handler\n\
         ffffffff81c00500 T tcp_rcv_state_process\n\
         ffffffffc0000000 t init_module\t[nf_tables]\n",
    );
    assert_eq!(symbol, "tcp_rcv_state_process");
    assert!(problem.contains("no symbol follows it"), "{problem}");
}

#[test]
fn the_last_symbol_of_the_file_has_no_end_and_the_message_says_so() {
    let (symbol, problem) =
        problem("ffffffff81c00100 T tcp_rcv_state_process\nffffffff81c00500 t reqsk_timer_handler\n");
    assert_eq!(symbol, "reqsk_timer_handler");
    assert!(problem.contains("no symbol follows it"), "{problem}");
}

#[test]
fn a_missing_function_is_named_with_what_the_kernel_needs() {
    let (symbol, problem) = problem("ffffffff81c00100 T tcp_rcv_state_process\nffffffff81c00500 t next\n");
    assert_eq!(symbol, "reqsk_timer_handler");
    assert!(problem.contains("CONFIG_KALLSYMS=y") && problem.contains("inlined"), "{problem}");
    let (symbol, problem) = self::problem("");
    assert_eq!(symbol, "tcp_rcv_state_process");
    assert!(problem.contains("CONFIG_KALLSYMS=y"), "{problem}");
}

#[test]
fn hidden_addresses_are_told_from_a_missing_function() {
    let (_, problem) = problem(
        "0000000000000000 T _text\n\
         0000000000000000 T tcp_rcv_state_process\n\
         0000000000000000 t reqsk_timer_handler\n\
         0000000000000000 t next\n",
    );
    assert!(problem.contains("hidden") && problem.contains("CAP_SYSLOG"), "{problem}");
}

#[test]
fn a_per_cpu_symbol_at_zero_does_not_mean_that_addresses_are_hidden() {
    // Before 6.15 the per-CPU section of x86 begins at 0, and so does the file.
    let (symbol, problem) = problem(
        "0000000000000000 A fixed_percpu_data\n\
         ffffffff81c00100 T tcp_rcv_state_process\n\
         ffffffff81c00500 t next\n",
    );
    assert_eq!(symbol, "reqsk_timer_handler");
    assert!(problem.contains("not listed"), "{problem}");
}

#[test]
fn lines_that_are_no_symbols_are_passed_over() {
    let found = functions(
        "\nffffffff81c00100\nnot an address\n\
         ffffffff81c00100 t reqsk_timer_handler\n\
         ffffffff81c00500 T tcp_rcv_state_process\n\
         ffffffff81c00900 t next",
    );
    assert_eq!(found.unwrap()[0], (0xffffffff81c00500, 0xffffffff81c00900));
}

#[test]
fn a_host_without_the_file_is_told_its_path() {
    let (_root, host) = host_with("proc/version", b"Linux\n");
    let error = host.functions(["tcp_rcv_state_process"]).unwrap_err().to_string();
    assert!(error.starts_with("cannot read ") && error.contains("proc/kallsyms: No such file"), "{error}");
}

#[test]
fn every_function_of_the_catalogue_is_found_on_this_kernel_or_its_addresses_are_hidden() {
    match Host::at("/").functions(["tcp_rcv_state_process", "reqsk_timer_handler"]) {
        Ok(found) => assert!(found.iter().all(|(start, end)| start < end && end - start < 0x10000), "{found:x?}"),
        Err(error) => assert!(error.to_string().contains("its addresses are hidden"), "{error}"),
    }
}
