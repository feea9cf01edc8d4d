use expect_test::{Expect, expect};
use tracer_abi::abi::places;

use super::*;
use crate::kernel::tests::{KERNELS, LINUX_6_18, edit, signatures};

const EVERY: [Wanted; 4] =
    [Wanted::Best, Wanted::Only(Flavour::Fentry), Wanted::Only(Flavour::Kprobe), Wanted::Only(Flavour::Tracepoint)];

fn hook(name: &str) -> &'static Hook {
    HOOKS.iter().find(|hook| hook.name == name).unwrap()
}

fn kernel(version: &str) -> Signatures {
    signatures(KERNELS.iter().find(|kernel| kernel.version == version).unwrap().btf)
}

fn programs(way: &Way) -> Vec<&'static str> {
    way.programs.iter().map(|(name, _)| *name).collect()
}

/// One hook a line: flavour and first place, or the refusal.
fn table(choice: &Choice) -> String {
    let row = |hook: &'static Hook| match choice.way(hook) {
        Ok(way) => {
            let first = way.programs.first().map_or("nothing".to_owned(), |(_, point)| point.place());
            format!("{}: {}, {first}\n", hook.name, way.flavour.id())
        }
        Err(error) => format!("{error}\n"),
    };
    HOOKS.iter().map(row).collect()
}

#[track_caller]
fn check(version: &str, wanted: Wanted, expected: Expect) {
    expected.assert_eq(&table(&Choice::new(wanted, &kernel(version))));
}

fn edited(from: &str, to: &str) -> Signatures {
    signatures(&edit::renamed(LINUX_6_18, from, to))
}

/// What stands in the way of a hook in this flavour.
fn refusal(kernel: &Signatures, flavour: Flavour, name: &str) -> String {
    Choice::new(Wanted::Only(flavour), kernel).way(hook(name)).unwrap_err().to_string()
}

#[track_caller]
fn refused(kernel: &Signatures, flavour: Flavour, name: &str, expected: Expect) {
    expected.assert_eq(&refusal(kernel, flavour, name));
}

#[track_caller]
fn told(error: &str, expected: Expect) {
    expected.assert_eq(error);
}

#[test]
fn every_hook_has_tracepoints_and_its_best_way_first() {
    for hook in HOOKS {
        assert!(hook.has(Flavour::Tracepoint), "{}", hook.name);
        assert!(hook.ways.is_sorted_by_key(|way| way.flavour), "{}: the best comes first", hook.name);
        for way in hook.ways {
            assert!(way.programs.iter().all(|(name, _)| name.len() <= 15), "{}: names are cut at 15", hook.name);
        }
    }
}

#[test]
fn every_place_of_the_catalogue_is_looked_up_and_every_place_that_is_looked_up_is_used() {
    let points = HOOKS.iter().flat_map(|hook| hook.ways).flat_map(|way| way.programs).map(|(_, point)| *point);
    let (mut tracepoints, mut functions) = (Vec::new(), Vec::new());
    for point in points {
        match point {
            Point::Btf(name, _) => tracepoints.push(name),
            Point::Classic(..) => {}
            Point::Fentry(name, _) | Point::Fexit(name, _) | Point::Kprobe(name, _) | Point::Kretprobe(name) => {
                functions.push(name);
            }
        }
    }
    for (mut used, looked_up) in [(tracepoints, places::TRACEPOINTS.to_vec()), (functions, places::FUNCTIONS.to_vec())]
    {
        used.sort_unstable();
        used.dedup();
        let mut looked_up = looked_up;
        looked_up.sort_unstable();
        assert_eq!(used, looked_up);
    }
}

#[test]
fn every_kernel_takes_functions_where_there_are_any() {
    for kernel in &KERNELS {
        check(
            kernel.version,
            Wanted::Best,
            expect![[r#"
            tcp_conn_request: fentry, the entry of tcp_conn_request()
            tcp_check_req: fentry, the entry of tcp_check_req()
            tcp_v4_rcv: tracepoint, tracepoint kfree_skb
            inet_sk_set_state: tracepoint, tracepoint inet_sock_set_state
            do_exit: tracepoint, tracepoint sched_process_exit
            tcp_child_process: fentry, the entry of tcp_child_process()
            inet_csk_accept: fentry, the entry of security_sock_graft()
            reqsk_timer_handler: fentry, the end of reqsk_timer_handler()
            tcp_rtx_synack: fentry, the end of tcp_rtx_synack()
            tcp_v4_connect: fentry, the end of tcp_v4_connect()
        "#]],
        );
    }
}

#[test]
fn linux_5_10_takes_probes_if_it_is_told_to() {
    check(
        "5.10",
        Wanted::Only(Flavour::Kprobe),
        expect![[r#"
            tcp_conn_request: kprobe, a probe at the end of tcp_conn_request()
            tcp_check_req: kprobe, a probe at the end of tcp_check_req()
            tcp_v4_rcv: tracepoint, tracepoint kfree_skb
            inet_sk_set_state: tracepoint, tracepoint inet_sock_set_state
            do_exit: tracepoint, tracepoint sched_process_exit
            tcp_child_process: kprobe, a probe at the end of tcp_child_process()
            inet_csk_accept: kprobe, a probe at the entry of security_sock_graft()
            reqsk_timer_handler: kprobe, a probe at the end of reqsk_timer_handler()
            tcp_rtx_synack: kprobe, a probe at the end of tcp_rtx_synack()
            tcp_v4_connect: kprobe, nothing
        "#]],
    );
}

#[test]
fn linux_6_18_takes_tracepoints_if_it_is_told_to() {
    check(
        "6.18",
        Wanted::Only(Flavour::Tracepoint),
        expect![[r#"
        tcp_conn_request: tracepoint, tracepoint consume_skb
        tcp_check_req: tracepoint, tracepoint kfree_skb
        tcp_v4_rcv: tracepoint, tracepoint kfree_skb
        inet_sk_set_state: tracepoint, tracepoint inet_sock_set_state
        do_exit: tracepoint, tracepoint sched_process_exit
        tcp_child_process: tracepoint, tracepoint sk_data_ready
        inet_csk_accept: tracepoint, tracepoint syscalls:sys_exit_accept
        reqsk_timer_handler: tracepoint, tracepoint timer_expire_entry
        tcp_rtx_synack: tracepoint, tracepoint tcp_retransmit_synack
        tcp_v4_connect: tracepoint, tracepoint syscalls:sys_exit_connect
    "#]],
    );
}

#[test]
fn the_tracepoint_flavour_is_refused_with_what_older_kernels_lack() {
    check(
        "5.10",
        Wanted::Only(Flavour::Tracepoint),
        expect![[r#"
            hook tcp_conn_request (what became of each SYN) cannot be attached by tracepoint: consume_skb has 1 argument here, and 2 are needed (since 6.4); try --hooks auto
            hook tcp_check_req (final ACKs dropped, resets, repeated SYNs) cannot be attached by tracepoint: kfree_skb has 2 arguments here, and 4 are needed (since 6.11); try --hooks auto
            tcp_v4_rcv: tracepoint, tracepoint kfree_skb
            inet_sk_set_state: tracepoint, tracepoint inet_sock_set_state
            do_exit: tracepoint, tracepoint sched_process_exit
            hook tcp_child_process (what completed late connections; members of SO_REUSEPORT groups) cannot be attached by tracepoint: this kernel has no tracepoint sk_data_ready (since 6.3); try --hooks auto
            hook inet_csk_accept (accepts) cannot be attached by tracepoint: programs cannot read the arguments of a system call here (since 5.15); try --hooks auto
            reqsk_timer_handler: tracepoint, tracepoint timer_expire_entry
            tcp_rtx_synack: tracepoint, tracepoint tcp_retransmit_synack
            hook tcp_v4_connect (port exhaustion) cannot be attached by tracepoint: programs cannot read the arguments of a system call here (since 5.15); try --hooks auto
        "#]],
    );
    check(
        "6.1",
        Wanted::Only(Flavour::Tracepoint),
        expect![[r#"
            hook tcp_conn_request (what became of each SYN) cannot be attached by tracepoint: consume_skb has 1 argument here, and 2 are needed (since 6.4); try --hooks auto
            hook tcp_check_req (final ACKs dropped, resets, repeated SYNs) cannot be attached by tracepoint: kfree_skb has 3 arguments here, and 4 are needed (since 6.11); try --hooks auto
            tcp_v4_rcv: tracepoint, tracepoint kfree_skb
            inet_sk_set_state: tracepoint, tracepoint inet_sock_set_state
            do_exit: tracepoint, tracepoint sched_process_exit
            hook tcp_child_process (what completed late connections; members of SO_REUSEPORT groups) cannot be attached by tracepoint: this kernel has no tracepoint sk_data_ready (since 6.3); try --hooks auto
            inet_csk_accept: tracepoint, tracepoint syscalls:sys_exit_accept
            reqsk_timer_handler: tracepoint, tracepoint timer_expire_entry
            tcp_rtx_synack: tracepoint, tracepoint tcp_retransmit_synack
            tcp_v4_connect: tracepoint, tracepoint syscalls:sys_exit_connect
        "#]],
    );
}

#[test]
fn every_kernel_takes_both_flavours_of_functions_and_the_newer_ones_tracepoints_too() {
    for kernel in &KERNELS {
        let signatures = signatures(kernel.btf);
        let taken = EVERY.map(|wanted| Choice::new(wanted, &signatures).is_complete().is_ok());
        let has_tracepoints = !["5.10", "6.1"].contains(&kernel.version);
        assert_eq!(taken, [true, true, true, has_tracepoints], "{}", kernel.version);
        for (hook, flavour) in Choice::new(Wanted::Best, &signatures).flavours() {
            let function = !["tcp_v4_rcv", "inet_sk_set_state", "do_exit"].contains(&hook.as_str());
            let expected = if function { Flavour::Fentry } else { Flavour::Tracepoint };
            assert_eq!(flavour, expected, "{hook} of {}", kernel.version);
        }
    }
}

#[test]
fn programs_follow_the_number_of_arguments() {
    let uses = |version: &str, name: &str, program: &str| {
        programs(Choice::new(Wanted::Best, &kernel(version)).way(hook(name)).unwrap()).contains(&program)
    };
    for kernel in &KERNELS {
        let version = kernel.version;
        let six = ["6.18", "7.2"].contains(&version);
        assert_eq!(uses(version, "tcp_check_req", "fx_check_req6"), six, "{version}");
        assert_eq!(uses(version, "tcp_check_req", "fx_check_req5"), !six, "{version}");
    }
    for (version, program) in [
        ("5.10", "tp_unheard2"),
        ("6.1", "tp_unheard3"),
        ("6.12", "tp_unheard"),
        ("6.18", "tp_unheard"),
        ("7.2", "tp_unheard"),
    ] {
        assert!(uses(version, "tcp_v4_rcv", program), "{version}");
    }
}

#[test]
fn a_way_for_other_kernels_is_no_rejection_of_the_flavour() {
    for kernel in &KERNELS {
        let choice = Choice::new(Wanted::Best, &signatures(kernel.btf));
        assert_eq!(choice.reasons(), [], "{}: every hook has its best flavour", kernel.version);
        let functions = choice.rejected().iter().filter(|it| it.flavour != Flavour::Tracepoint);
        assert_eq!(functions.count(), 0, "{}: {:?}", kernel.version, choice.rejected());
    }
    let mut choice = Choice::new(Wanted::Best, &kernel("6.18"));
    choice.refused(hook("tcp_conn_request"), "not permitted", true).unwrap();
    for rejected in choice.rejected() {
        assert_eq!(rejected.reason, "not permitted", "{rejected:?}");
    }
}

#[test]
fn a_function_that_is_not_there_is_named_and_the_next_flavour_is_taken() {
    // A static function that the compiler has inlined; probes need it too.
    let without = edited("reqsk_timer_handler", "reqsk_timer_handlex");
    let choice = Choice::new(Wanted::Best, &without);
    assert_eq!(choice.way(hook("reqsk_timer_handler")).unwrap().flavour, Flavour::Tracepoint);
    assert_eq!(choice.way(hook("tcp_rtx_synack")).unwrap().flavour, Flavour::Fentry);
    let reason = "this kernel has no function reqsk_timer_handler(), or has inlined it";
    let rejected = |flavour| Rejected { hook: "reqsk_timer_handler", flavour, reason: reason.to_owned() };
    assert_eq!(choice.rejected(), [rejected(Flavour::Fentry), rejected(Flavour::Kprobe)]);
    refused(
        &without,
        Flavour::Kprobe,
        "reqsk_timer_handler",
        expect![
            "hook reqsk_timer_handler (half-open requests that expired) cannot be attached by kprobe: this kernel has no function reqsk_timer_handler(), or has inlined it; try --hooks auto"
        ],
    );
}

#[test]
fn one_of_several_functions_that_is_not_there_rules_out_the_hook() {
    let without = edited("cookie_v6_check", "cookie_v6_chexx");
    assert_eq!(Choice::new(Wanted::Best, &without).way(hook("tcp_check_req")).unwrap().flavour, Flavour::Tracepoint);
    refused(
        &without,
        Flavour::Fentry,
        "tcp_check_req",
        expect![
            "hook tcp_check_req (final ACKs dropped, resets, repeated SYNs) cannot be attached by fentry: this kernel has no function cookie_v6_check(), or has inlined it; try --hooks auto"
        ],
    );
}

/// 6.18 with one function's prototype taken from another.
fn with_prototype_of(function: &str, other: &str) -> Signatures {
    let mut edited = LINUX_6_18.to_vec();
    let [to, from] = [function, other].map(|name| edit::record(LINUX_6_18, edit::FUNC, name).at + 8);
    edit::set_word(&mut edited, to, edit::word(LINUX_6_18, from));
    signatures(&edited)
}

#[test]
fn a_function_of_an_unknown_number_of_arguments_is_left_to_probes() {
    // As if it had 4: the programs at its end are written for 5 and 6.
    let other = with_prototype_of("tcp_check_req", "tcp_conn_request");
    let choice = Choice::new(Wanted::Best, &other);
    assert_eq!(choice.way(hook("tcp_check_req")).unwrap().flavour, Flavour::Kprobe);
    refused(
        &other,
        Flavour::Fentry,
        "tcp_check_req",
        expect![
            "hook tcp_check_req (final ACKs dropped, resets, repeated SYNs) cannot be attached by fentry: tcp_check_req() has 4 arguments here, and tracer is written for 5 or 6; try --hooks auto"
        ],
    );
    let reasons = choice.reasons();
    assert_eq!((reasons.len(), &reasons[0].hooks[..], reasons[0].of_all), (1, &["tcp_check_req"][..], false));
}

#[test]
fn probes_need_the_arguments_that_they_read_and_take_more() {
    let fewer = with_prototype_of("tcp_conn_request", "reqsk_timer_handler");
    refused(
        &fewer,
        Flavour::Kprobe,
        "tcp_conn_request",
        expect![
            "hook tcp_conn_request (what became of each SYN) cannot be attached by kprobe: tcp_conn_request() has 1 argument here, and tracer is written for 4; try --hooks auto"
        ],
    );
    let more = with_prototype_of("tcp_conn_request", "tcp_check_req");
    let choice = Choice::new(Wanted::Best, &more);
    assert_eq!(choice.way(hook("tcp_conn_request")).unwrap().flavour, Flavour::Kprobe);
}

#[test]
fn where_nothing_is_left_every_flavour_says_why() {
    let mut edited = edit::renamed(LINUX_6_18, "tcp_check_req", "tcp_check_rex");
    // kfree_skb with the two arguments of tcp_retransmit_synack.
    let [from, to] = ["btf_trace_tcp_retransmit_synack", "btf_trace_kfree_skb"]
        .map(|name| edit::record(&edited, edit::TYPEDEF, name).at + 8);
    let prototype = edit::word(&edited, from);
    edit::set_word(&mut edited, to, prototype);
    let choice = Choice::new(Wanted::Best, &signatures(&edited));
    told(
        &choice.is_complete().unwrap_err().to_string(),
        expect![
            "hook tcp_check_req (final ACKs dropped, resets, repeated SYNs) cannot be attached by fentry or kprobe: this kernel has no function tcp_check_req(), or has inlined it; by tracepoint: kfree_skb has 2 arguments here, and 4 are needed (since 6.11)"
        ],
    );
    let way = choice.way(hook("tcp_v4_rcv")).unwrap();
    assert!(programs(way).contains(&"tp_unheard2"), "what can do with two arguments is no worse off");
}

#[test]
fn a_tracepoint_that_every_flavour_needs_is_missed_in_every_flavour() {
    let without = edited("btf_trace_inet_sock_set_state", "btf_truce_inet_sock_set_state");
    for wanted in EVERY {
        let error = Choice::new(wanted, &without).is_complete().unwrap_err().to_string();
        assert_eq!(
            error,
            "hook inet_sk_set_state (connections entering the accept queue, listeners, local clients) cannot be attached by \
             tracepoint: this kernel has no tracepoint inet_sock_set_state"
        );
    }
    let without = edited("btf_trace_sk_data_ready", "btf_truce_sk_data_ready");
    refused(
        &without,
        Flavour::Tracepoint,
        "tcp_child_process",
        expect![
            "hook tcp_child_process (what completed late connections; members of SO_REUSEPORT groups) cannot be attached by tracepoint: this kernel has no tracepoint sk_data_ready (since 6.3); try --hooks auto"
        ],
    );
    assert!(Choice::new(Wanted::Best, &without).is_complete().is_ok());
}

#[test]
fn without_the_helper_for_system_calls_accept_and_connect_need_functions() {
    let without = edited(places::TASK_REGS, "BPF_FUNC_other");
    assert!(Choice::new(Wanted::Best, &without).is_complete().is_ok());
    for name in ["inet_csk_accept", "tcp_v4_connect"] {
        let error = refusal(&without, Flavour::Tracepoint, name);
        let reason =
            "by tracepoint: programs cannot read the arguments of a system call here (since 5.15); try --hooks auto";
        assert!(error.ends_with(reason), "{error}");
    }
}

#[test]
fn a_way_that_the_kernel_refuses_is_followed_by_the_next_of_that_hook_alone() {
    let mut choice = Choice::new(Wanted::Best, &kernel("6.18"));
    let child = hook("tcp_child_process");
    choice.refused(child, "no room", false).unwrap();
    assert_eq!(choice.way(child).unwrap().flavour, Flavour::Kprobe);
    choice.refused(child, "no room either", false).unwrap();
    assert_eq!(choice.way(child).unwrap().flavour, Flavour::Tracepoint);
    assert!(
        HOOKS.iter().filter(|it| it.name != child.name).all(|it| choice.way(it).unwrap().flavour == it.ways[0].flavour)
    );
    let reasons: Vec<_> = choice.reasons().into_iter().map(|it| (it.flavour, it.text, it.of_all)).collect();
    let expected = [(Flavour::Fentry, "no room".into(), false), (Flavour::Kprobe, "no room either".into(), false)];
    assert_eq!(reasons, expected);
    let error = choice.refused(child, "nor here", false).unwrap_err().to_string();
    told(
        &error,
        expect![
            "hook tcp_child_process (what completed late connections; members of SO_REUSEPORT groups) cannot be attached by fentry: no room; by kprobe: no room either; by tracepoint: nor here"
        ],
    );
    assert_eq!(choice.is_complete().unwrap_err().to_string(), error);
    assert!(choice.refused(child, "again", false).is_err(), "there is nothing to refuse any more");
}

#[test]
fn of_ways_of_one_flavour_the_next_is_taken_too() {
    let mut choice = Choice::new(Wanted::Best, &kernel("6.18"));
    let unheard = hook("tcp_v4_rcv");
    choice.refused(unheard, "too large", false).unwrap();
    assert!(programs(choice.way(unheard).unwrap()).contains(&"tp_unheard3"));
    assert_eq!(choice.reasons().len(), 1, "what the kernel refused is told, though the flavour is in use");
}

#[test]
fn a_flavour_that_the_kernel_refuses_entirely_is_not_tried_for_other_hooks() {
    let mut choice = Choice::new(Wanted::Best, &kernel("6.18"));
    choice.refused(hook("tcp_conn_request"), "not permitted", true).unwrap();
    for hook in HOOKS {
        let expected = if hook.has(Flavour::Kprobe) { Flavour::Kprobe } else { Flavour::Tracepoint };
        assert_eq!(choice.way(hook).unwrap().flavour, expected, "{}", hook.name);
        assert_eq!(choice.is_function(hook.name), hook.has(Flavour::Kprobe), "{}", hook.name);
    }
    let reasons = choice.reasons();
    assert_eq!((reasons.len(), reasons[0].of_all, reasons[0].text.as_str()), (1, true, "not permitted"));
    assert_eq!(reasons[0].hooks.len(), HOOKS.iter().filter(|hook| hook.has(Flavour::Fentry)).count());
}

#[test]
fn a_forced_flavour_that_the_kernel_refuses_is_an_error() {
    let mut choice = Choice::new(Wanted::Only(Flavour::Fentry), &kernel("6.18"));
    let error = choice.refused(hook("tcp_conn_request"), "the kernel does not permit it", true).unwrap_err();
    told(
        &error.to_string(),
        expect![
            "hook tcp_conn_request (what became of each SYN) cannot be attached by fentry: the kernel does not permit it; try --hooks auto"
        ],
    );
    assert!(choice.way(hook("tcp_v4_rcv")).is_ok(), "it has tracepoints only, whatever is asked for");
}

#[test]
fn a_flavour_that_the_kernel_lacks_is_excluded_for_every_hook() {
    for (wanted, expected) in [(Wanted::Best, Ok(())), (Wanted::Only(Flavour::Kprobe), Err(()))] {
        let mut choice = Choice::new(wanted, &kernel("6.18"));
        choice.exclude(Flavour::Kprobe, "this kernel has no kprobes");
        assert_eq!(choice.is_complete().map_err(drop), expected);
        assert!(choice.flavours().values().all(|flavour| *flavour != Flavour::Kprobe));
        let all = HOOKS.iter().filter(|hook| hook.has(Flavour::Kprobe)).count();
        assert_eq!(choice.rejected().len(), all, "each hook that has it, once");
        choice.exclude(Flavour::Kprobe, "this kernel has no kprobes");
        assert_eq!(choice.rejected().len(), all);
    }
}

#[test]
fn tracefs_is_needed_only_where_its_tracepoints_are_used() {
    let needs = |wanted| Choice::new(wanted, &kernel("6.18")).needs_tracefs();
    assert_eq!(EVERY.map(needs), [false, false, false, true]);
}
