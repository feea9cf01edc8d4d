//! `tracer doctor`: what this kernel and these privileges allow, as a page or as JSON.

use std::fmt::Write as _;
use std::io::{self, Write};

use serde::Serialize;

use super::format::{Style, wrap};
use super::human::WIDTH;

const SCHEMA: &str = "tracer-doctor/1";

/// Everything that was found out.
#[derive(Clone, Debug, Serialize)]
pub struct Doctor {
    /// Why tracing would not begin, and what helps; nothing if it would.
    pub reason: Option<String>,
    /// The machine.
    pub host: DoctorHost,
    /// Whether the hooks were really attached. If not, flavours are those that the kernel's type information allows.
    pub attached: bool,
    /// Every hook.
    pub hooks: Vec<DoctorHook>,
    /// Why hooks are not attached in a better flavour, reason by reason.
    pub not_better: Vec<NotBetter>,
    /// What matters on this machine.
    pub machine: Vec<Finding>,
    /// What is not seen with the flavours in use.
    pub limits: Vec<String>,
}

/// The machine.
#[derive(Clone, Debug, Serialize)]
pub struct DoctorHost {
    /// The kernel's release; nothing if it does not say.
    pub kernel: Option<String>,
    /// The processor's architecture.
    pub architecture: &'static str,
}

/// One hook.
#[derive(Clone, Debug, Serialize)]
pub struct DoctorHook {
    /// The function that it stands for.
    pub name: &'static str,
    /// The flavour; nothing if it cannot be attached.
    pub flavour: Option<&'static str>,
    /// Where its programs go.
    pub attached_to: Vec<String>,
    /// Flavours that were ruled out, also those that are no better.
    pub not_by: Vec<NotBy>,
    /// What cannot be told without it.
    pub without: &'static str,
}

/// A flavour that was ruled out for a hook.
#[derive(Clone, Debug, Serialize)]
pub struct NotBy {
    /// The flavour.
    pub flavour: &'static str,
    /// Why.
    pub reason: String,
}

/// Why some hooks are not attached in a better flavour.
#[derive(Clone, Debug, Serialize)]
pub struct NotBetter {
    /// The flavour.
    pub flavour: &'static str,
    /// Why.
    pub reason: String,
    /// The hooks.
    pub hooks: Vec<&'static str>,
    /// These are all that can have this flavour on some kernel.
    #[serde(skip)]
    pub of_all: bool,
}

/// Whether something is as tracing needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It is, or does not matter.
    Good,
    /// It is not.
    Bad,
    /// Could not be found out.
    Unknown,
}

/// One thing that matters on this machine.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// What.
    pub name: &'static str,
    /// Whether it is as tracing needs it.
    pub state: State,
    /// How it is, and what helps.
    pub text: String,
}

/// Writes one JSON object.
///
/// # Errors
/// When `out` cannot be written.
pub fn write_json(doctor: &Doctor, out: &mut dyn Write) -> io::Result<()> {
    #[derive(Serialize)]
    struct Wire<'a> {
        schema: &'static str,
        works: bool,
        #[serde(flatten)]
        doctor: &'a Doctor,
    }
    // One write, so that a reader never sees half a line.
    let mut text = serde_json::to_vec(&Wire { schema: SCHEMA, works: doctor.reason.is_none(), doctor })?;
    text.push(b'\n');
    out.write_all(&text)
}

/// Writes a page: the verdict, the hooks, why not in a better way, the machine, the limits.
///
/// # Errors
/// When `out` cannot be written.
pub fn write_human(doctor: &Doctor, style: Style, out: &mut dyn Write) -> io::Result<()> {
    let mut page = String::new();
    match &doctor.reason {
        None => {
            let text = format!("tracing works: all {} hooks were attached, and let go again", doctor.hooks.len());
            let _ = writeln!(page, "{}", style.good(&text));
        }
        Some(reason) => {
            let text = wrap(&format!("tracing does not work: {reason}"), "", WIDTH);
            let _ = writeln!(page, "{}", style.bad(text.trim_end()));
        }
    }
    hooks(doctor, style, &mut page);
    not_better(doctor, style, &mut page);
    heading("this machine", style, &mut page);
    for finding in &doctor.machine {
        let text = hanging(&format!("  {:<18}", finding.name), &finding.text);
        page.push_str(&match finding.state {
            State::Bad => style.bad(&text),
            State::Good => text.into(),
            State::Unknown => style.dim(&text),
        });
        page.push('\n');
    }
    if !doctor.limits.is_empty() {
        heading("limits of these hooks", style, &mut page);
        for limit in &doctor.limits {
            let _ = writeln!(page, "{}", hanging("  - ", limit));
        }
    }
    out.write_all(page.as_bytes())
}

fn hooks(doctor: &Doctor, style: Style, page: &mut String) {
    heading("hook                 flavour     what is lost without it", style, page);
    for hook in &doctor.hooks {
        let flavour = hook.flavour.unwrap_or("none");
        let row = format!("{:<20} {flavour:<11} {}", hook.name, hook.without);
        page.push_str(&if hook.flavour.is_some() { row.into() } else { style.bad(&row) });
        page.push('\n');
    }
    if !doctor.attached {
        let known = doctor.hooks.iter().any(|hook| hook.flavour.is_some());
        let flavours = if known { ": the flavours are those that the kernel's type information allows" } else { "" };
        let _ = writeln!(page, "Nothing was attached{flavours}.");
    }
}

fn not_better(doctor: &Doctor, style: Style, page: &mut String) {
    if doctor.not_better.is_empty() {
        return;
    }
    heading("why not a better flavour", style, page);
    for it in &doctor.not_better {
        let hooks = if it.of_all { "no hook".to_owned() } else { format!("not {}", it.hooks.join(", ")) };
        let _ = writeln!(page, "{}", hanging("  ", &format!("{hooks} by {}: {}", it.flavour, it.reason)));
    }
}

fn heading(text: &str, style: Style, page: &mut String) {
    let _ = writeln!(page, "\n{}", style.strong(text));
}

/// Text after a beginning, its further lines below the text; without a newline at the end.
fn hanging(beginning: &str, text: &str) -> String {
    let indent = " ".repeat(beginning.chars().count());
    let wrapped = wrap(text, &indent, WIDTH);
    format!("{beginning}{}", wrapped.trim())
}

#[cfg(test)]
mod tests;
