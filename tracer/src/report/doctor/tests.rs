use expect_test::{Expect, expect};

use super::*;

fn finding(name: &'static str, state: State, text: &str) -> Finding {
    Finding { name, state, text: text.to_owned() }
}

fn hook(name: &'static str, flavour: Option<&'static str>, without: &'static str) -> DoctorHook {
    let attached_to = flavour.map(|_| format!("the end of {name}()")).into_iter().collect();
    DoctorHook { name, flavour, attached_to, not_by: Vec::new(), without }
}

fn works() -> Doctor {
    Doctor {
        reason: None,
        host: DoctorHost { kernel: Some("6.12.107".to_owned()), architecture: "x86_64" },
        attached: true,
        hooks: vec![
            hook("tcp_conn_request", Some("fentry"), "what became of each SYN"),
            hook("reqsk_timer_handler", Some("fentry"), "half-open requests that expired"),
        ],
        not_better: Vec::new(),
        machine: vec![
            finding("kernel", State::Good, "Linux 6.12.107, x86_64"),
            finding("privileges", State::Good, "root, with every capability that is needed"),
        ],
        limits: Vec::new(),
    }
}

/// A kernel without kprobes that refuses trampolines and has lost a function, and a tracepoint for it.
fn does_not() -> Doctor {
    let mut doctor = works();
    doctor.reason = Some(
        "hook tcp_conn_request (what became of each SYN) cannot be attached by fentry: the kernel does not permit it: Operation \
         not permitted (os error 1); by kprobe: this kernel has no kprobes (CONFIG_KPROBES)"
            .to_owned(),
    );
    doctor.hooks[0].flavour = None;
    doctor.hooks[0].attached_to.clear();
    doctor.hooks[0].not_by =
        vec![NotBy { flavour: "kprobe", reason: "this kernel has no kprobes (CONFIG_KPROBES)".to_owned() }];
    doctor.hooks[1].flavour = Some("tracepoint");
    doctor.not_better = vec![
        NotBetter {
            flavour: "fentry",
            reason: "the kernel does not permit it: Operation not permitted (os error 1)".to_owned(),
            hooks: vec!["tcp_conn_request", "reqsk_timer_handler"],
            of_all: true,
        },
        NotBetter {
            flavour: "kprobe",
            reason: "this kernel has no function reqsk_timer_handler(), or has inlined it".to_owned(),
            hooks: vec!["reqsk_timer_handler"],
            of_all: false,
        },
    ];
    doctor.machine.push(finding("lockdown", State::Bad, "confidentiality"));
    doctor.limits = vec![
        "tcp_conn_request: a queued SYN of a SO_REUSEPORT group is counted at the group's first member until its connection is \
         established"
            .to_owned(),
    ];
    doctor
}

fn not_permitted() -> Doctor {
    let mut doctor = works();
    doctor.reason = Some("not permitted to trace: run with sudo; missing CAP_BPF (to load programs)".to_owned());
    doctor.attached = false;
    doctor.machine[1] =
        finding("privileges", State::Bad, "user 1000, without CAP_BPF (to load programs); run with sudo");
    doctor.machine.push(finding("BPF ring buffer", State::Unknown, "not tried"));
    doctor
}

#[track_caller]
fn check(doctor: &Doctor, expected: Expect) {
    let mut out = Vec::new();
    write_human(doctor, Style::new(false), &mut out).expect("memory");
    let page = String::from_utf8(out).expect("UTF-8");
    for line in page.lines() {
        assert!(line.chars().count() <= WIDTH, "{} columns: {line}", line.chars().count());
        assert_eq!(line, line.trim_end(), "blanks at the end");
    }
    expected.assert_eq(&page);
}

#[test]
fn where_all_is_well_nothing_is_explained() {
    check(
        &works(),
        expect![[r#"
        tracing works: all 2 hooks were attached, and let go again

        hook                 flavour     what is lost without it
        tcp_conn_request     fentry      what became of each SYN
        reqsk_timer_handler  fentry      half-open requests that expired

        this machine
          kernel            Linux 6.12.107, x86_64
          privileges        root, with every capability that is needed
    "#]],
    );
}

#[test]
fn a_hook_that_cannot_be_attached_is_named_with_the_reason_and_each_reason_stands_once() {
    check(
        &does_not(),
        expect![[r#"
        tracing does not work: hook tcp_conn_request (what became of each SYN) cannot be attached by fentry:
        the kernel does not permit it: Operation not permitted (os error 1); by kprobe: this kernel has no
        kprobes (CONFIG_KPROBES)

        hook                 flavour     what is lost without it
        tcp_conn_request     none        what became of each SYN
        reqsk_timer_handler  tracepoint  half-open requests that expired

        why not a better flavour
          no hook by fentry: the kernel does not permit it: Operation not permitted (os error 1)
          not reqsk_timer_handler by kprobe: this kernel has no function reqsk_timer_handler(), or has
          inlined it

        this machine
          kernel            Linux 6.12.107, x86_64
          privileges        root, with every capability that is needed
          lockdown          confidentiality

        limits of these hooks
          - tcp_conn_request: a queued SYN of a SO_REUSEPORT group is counted at the group's first member
            until its connection is established
    "#]],
    );
}

#[test]
fn without_privilege_it_says_what_was_not_tried() {
    check(
        &not_permitted(),
        expect![[r#"
        tracing does not work: not permitted to trace: run with sudo; missing CAP_BPF (to load programs)

        hook                 flavour     what is lost without it
        tcp_conn_request     fentry      what became of each SYN
        reqsk_timer_handler  fentry      half-open requests that expired
        Nothing was attached: the flavours are those that the kernel's type information allows.

        this machine
          kernel            Linux 6.12.107, x86_64
          privileges        user 1000, without CAP_BPF (to load programs); run with sudo
          BPF ring buffer   not tried
    "#]],
    );
}

#[test]
fn colour_changes_nothing_but_colour() {
    let page = |color| {
        let mut out = Vec::new();
        write_human(&does_not(), Style::new(color), &mut out).expect("memory");
        String::from_utf8(out).expect("UTF-8")
    };
    let coloured = page(true);
    let mut plain = String::new();
    for (i, part) in coloured.split('\x1b').enumerate() {
        plain.push_str(if i == 0 { part } else { part.split_once('m').expect("a sequence").1 });
    }
    assert_eq!(plain, page(false));
    assert_ne!(coloured, plain);
}

#[test]
fn json_has_every_fact() {
    let mut out = Vec::new();
    write_json(&does_not(), &mut out).expect("memory");
    let text = String::from_utf8(out).expect("UTF-8");
    assert!(text.ends_with("}\n") && text.lines().count() == 1);
    let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    expect![[r#"
        {
          "attached": true,
          "hooks": [
            {
              "attached_to": [],
              "flavour": null,
              "name": "tcp_conn_request",
              "not_by": [
                {
                  "flavour": "kprobe",
                  "reason": "this kernel has no kprobes (CONFIG_KPROBES)"
                }
              ],
              "without": "what became of each SYN"
            },
            {
              "attached_to": [
                "the end of reqsk_timer_handler()"
              ],
              "flavour": "tracepoint",
              "name": "reqsk_timer_handler",
              "not_by": [],
              "without": "half-open requests that expired"
            }
          ],
          "host": {
            "architecture": "x86_64",
            "kernel": "6.12.107"
          },
          "limits": [
            "tcp_conn_request: a queued SYN of a SO_REUSEPORT group is counted at the group's first member until its connection is established"
          ],
          "machine": [
            {
              "name": "kernel",
              "state": "good",
              "text": "Linux 6.12.107, x86_64"
            },
            {
              "name": "privileges",
              "state": "good",
              "text": "root, with every capability that is needed"
            },
            {
              "name": "lockdown",
              "state": "bad",
              "text": "confidentiality"
            }
          ],
          "not_better": [
            {
              "flavour": "fentry",
              "hooks": [
                "tcp_conn_request",
                "reqsk_timer_handler"
              ],
              "reason": "the kernel does not permit it: Operation not permitted (os error 1)"
            },
            {
              "flavour": "kprobe",
              "hooks": [
                "reqsk_timer_handler"
              ],
              "reason": "this kernel has no function reqsk_timer_handler(), or has inlined it"
            }
          ],
          "reason": "hook tcp_conn_request (what became of each SYN) cannot be attached by fentry: the kernel does not permit it: Operation not permitted (os error 1); by kprobe: this kernel has no kprobes (CONFIG_KPROBES)",
          "schema": "tracer-doctor/1",
          "works": false
        }"#]].assert_eq(&serde_json::to_string_pretty(&value).expect("JSON"));
    let mut out = Vec::new();
    write_json(&works(), &mut out).expect("memory");
    let value: serde_json::Value = serde_json::from_slice(&out).expect("JSON");
    assert_eq!((&value["works"], &value["reason"]), (&true.into(), &serde_json::Value::Null));
}
