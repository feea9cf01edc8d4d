//! `tracer doctor`: everything is attached as for a trace, and let go; what came of it is told, with what matters to it.

use std::io::{self, IsTerminal};

use anyhow::Result;

use super::{FAILED, limits::bounds, printed, privilege, wanted};
use crate::{
    cli::{DoctorPlan, ListFormat},
    kernel::{Host, Layout},
    probe::{Choice, Flavour, HOOKS, Probe, Settings},
    report::{self, Doctor, DoctorHook, DoctorHost, Finding, NotBetter, NotBy, State, Style},
};

/// What came of trying.
struct Trial {
    /// Nothing without type information.
    choice: Option<Choice>,
    attached: bool,
    reason: Option<String>,
}

pub(super) fn doctor(plan: &DoctorPlan) -> Result<u8> {
    let host = Host::from_env();
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let layout = Layout::read(&host).map_err(|e| e.to_string());
    // Looked at before anything is tried, because trying mounts tracefs.
    let mut machine = vec![
        kernel(&host),
        privileges(privilege::missing(&status).as_deref()),
        type_information(&host, layout.as_ref().map(drop).map_err(String::as_str)),
        addresses(&host),
        kprobes(&host),
        lockdown(&host),
        tracefs(&host),
    ];
    let trial = attempt(&host, layout, &status, plan)?;
    machine.push(ring_buffer(trial.attached));
    let doctor = Doctor {
        host: DoctorHost { kernel: host.release().ok(), architecture: std::env::consts::ARCH },
        attached: trial.attached,
        hooks: hooks(trial.choice.as_ref()),
        not_better: trial.choice.as_ref().map(not_better).unwrap_or_default(),
        machine,
        limits: trial.choice.as_ref().map(limits).unwrap_or_default(),
        reason: trial.reason,
    };
    let mut out = io::stdout().lock();
    let style = Style::new(plan.color.decide(out.is_terminal(), |name| std::env::var(name).ok()));
    let works = doctor.reason.is_none();
    let status = printed(match plan.format {
        ListFormat::Human => report::write_doctor(&doctor, style, &mut out),
        ListFormat::Json => report::write_doctor_json(&doctor, &mut out),
    })?;
    Ok(if works { status } else { FAILED })
}

fn attempt(host: &Host, layout: Result<Layout, String>, status: &str, plan: &DoctorPlan) -> Result<Trial> {
    let permitted = privilege::check(status).map_err(|e| format!("{e:#}"));
    let layout = match (layout, &permitted) {
        (Ok(layout), _) => layout,
        (Err(reason), Ok(())) => return Ok(Trial { choice: None, attached: false, reason: Some(reason) }),
        (Err(reason), Err(and)) => {
            return Ok(Trial { choice: None, attached: false, reason: Some(format!("{reason}; {and}")) });
        }
    };
    let wanted = wanted(plan.hooks);
    if let Err(reason) = permitted {
        let choice = Probe::offered(host, &layout, wanted);
        let reason = match choice.is_complete() {
            Ok(()) => reason,
            Err(e) => format!("{reason}; and with that: {e}"),
        };
        return Ok(Trial { choice: Some(choice), attached: false, reason: Some(reason) });
    }
    let settings = Settings {
        ports: Box::new([0; 1024]),
        every_port: false,
        netns: None,
        bounds: bounds()?,
        log: log::LevelFilter::Off,
    };
    let survey = Probe::survey(host, &layout, &settings, wanted);
    Ok(Trial {
        choice: Some(survey.choice),
        attached: survey.attached,
        reason: survey.outcome.err().map(|e| e.to_string()),
    })
}

fn hooks(choice: Option<&Choice>) -> Vec<DoctorHook> {
    let hook = |hook: &'static crate::probe::Hook| {
        let way = choice.and_then(|choice| choice.way(hook).ok());
        let rejected = choice.map(Choice::rejected).unwrap_or_default().iter().filter(|it| it.hook == hook.name);
        let mut attached_to: Vec<String> = Vec::new();
        for (_, point) in way.iter().flat_map(|way| way.programs) {
            let place = point.place();
            if !attached_to.contains(&place) {
                attached_to.push(place);
            }
        }
        DoctorHook {
            name: hook.name,
            flavour: way.map(|way| way.flavour.id()),
            attached_to,
            not_by: rejected.map(|it| NotBy { flavour: it.flavour.id(), reason: it.reason.clone() }).collect(),
            without: hook.without,
        }
    };
    HOOKS.iter().map(hook).collect()
}

fn not_better(choice: &Choice) -> Vec<NotBetter> {
    let reasons = choice.reasons().into_iter();
    let not_better =
        reasons.map(|it| NotBetter { flavour: it.flavour.id(), reason: it.text, hooks: it.hooks, of_all: it.of_all });
    not_better.collect()
}

fn limits(choice: &Choice) -> Vec<String> {
    let flavours = choice.flavours();
    let of_hooks = HOOKS.iter().filter_map(|hook| Some((hook.name, hook.limit(*flavours.get(hook.name)?)?)));
    let mut limits: Vec<String> = of_hooks.map(|(name, limit)| format!("{name}: {limit}")).collect();
    if flavours.values().any(|flavour| *flavour == Flavour::Kprobe) {
        limits.push(KPROBE_LIMIT.to_owned());
    }
    limits
}

/// `trace_call_bpf()` runs one program of this kind at a time on a CPU.
const KPROBE_LIMIT: &str = "kprobe: of probes that interrupt one another on a CPU, also those of other tools, only the first is \
     run; what another would have seen is missed";

fn kernel(host: &Host) -> Finding {
    let architecture = std::env::consts::ARCH;
    match host.release() {
        Ok(release) => good("kernel", format!("Linux {release}, {architecture}")),
        Err(e) => unknown("kernel", format!("{e}; {architecture}")),
    }
}

fn privileges(missing: Option<&[String]>) -> Finding {
    const NAME: &str = "privileges";
    let user = match rustix::process::geteuid() {
        uid if uid.is_root() => "root".to_owned(),
        uid => format!("user {}", uid.as_raw()),
    };
    match missing {
        Some([]) => good(NAME, format!("{user}, with every capability that is needed")),
        Some(missing) => bad(NAME, format!("{user}, without {}; run with sudo", missing.join(", "))),
        None => unknown(NAME, format!("{user}; the capabilities could not be read")),
    }
}

fn type_information(host: &Host, layout: Result<(), &str>) -> Finding {
    const NAME: &str = "type information";
    let path = host.path("sys/kernel/btf/vmlinux");
    match layout {
        Ok(()) => good(NAME, format!("{}, with all that is read from it", path.display())),
        Err(reason) => bad(NAME, reason.to_owned()),
    }
}

fn addresses(host: &Host) -> Finding {
    const NAME: &str = "kernel addresses";
    let restrict = host.read("proc/sys/kernel/kptr_restrict");
    let restrict = restrict.map_or_else(|_| String::new(), |mode| format!(" (kptr_restrict {mode})"));
    match host.functions(["tcp_rcv_state_process", "reqsk_timer_handler"]) {
        Ok(_) => good(NAME, format!("visible{restrict}")),
        Err(e) => bad(NAME, format!("{e}{restrict}")),
    }
}

fn kprobes(host: &Host) -> Finding {
    // What is missed without them stands among the reasons.
    good("kprobes", if host.has_kprobes() { "in this kernel" } else { "not in this kernel (CONFIG_KPROBES)" })
}

fn lockdown(host: &Host) -> Finding {
    const NAME: &str = "lockdown";
    match host.lockdown().as_deref() {
        Some("confidentiality") => bad(
            NAME,
            "confidentiality: the kernel lets no program read its memory; boot with lockdown=integrity or none",
        ),
        Some(mode) => good(NAME, mode),
        None => good(NAME, "not in this kernel, or not visible"),
    }
}

fn tracefs(host: &Host) -> Finding {
    const NAME: &str = "tracefs";
    match host.tracefs() {
        Some(path) => good(NAME, path.display().to_string()),
        None if rustix::process::geteuid().is_root() => {
            good(NAME, "not mounted; tracer mounts it at /sys/kernel/tracing where it is needed")
        }
        None => unknown(NAME, "not mounted where this user can see it"),
    }
}

fn ring_buffer(attached: bool) -> Finding {
    const NAME: &str = "BPF ring buffer";
    if attached { good(NAME, "works") } else { unknown(NAME, "not tried") }
}

fn good(name: &'static str, text: impl Into<String>) -> Finding {
    Finding { name, state: State::Good, text: text.into() }
}

fn bad(name: &'static str, text: impl Into<String>) -> Finding {
    Finding { name, state: State::Bad, text: text.into() }
}

fn unknown(name: &'static str, text: impl Into<String>) -> Finding {
    Finding { name, state: State::Unknown, text: text.into() }
}
