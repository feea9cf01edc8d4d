//! The manual page: the help text as roff, with one section for each command and the examples.

use std::io::{self, Write};

use clap::Command;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

/// Writes `tracer(8)`.
pub(super) fn render(mut command: Command, out: &mut dyn Write) -> io::Result<()> {
    command.build();
    let subcommands: Vec<Command> = command.get_subcommands().cloned().collect();
    let man = Man::new(command).section("8").manual("System Administration");
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    synopsis(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    commands(&subcommands, &mut page)?;
    after(&mut page)?;
    man.render_version_section(&mut page)?;
    out.write_all(&page)
}

fn synopsis(page: &mut Vec<u8>) -> io::Result<()> {
    let mut roff = Roff::new();
    roff.control("SH", ["SYNOPSIS"]);
    for (words, rest) in [
        ("tracer", " [-p LIST] [OPTIONS] [-- COMMAND [ARGS]...]"),
        ("tracer doctor", " [--hooks auto|fentry|kprobe|tracepoint] [-f human|json]"),
        ("tracer listeners", " [-p LIST] [--netns all|self|PATH|PID] [-f human|json]"),
        ("tracer replay", " FILE [-f human|json|events] [-o FILE] [--fail-on CAUSE]"),
        ("tracer completions", " SHELL"),
        ("tracer man", ""),
    ] {
        roff.text([bold(words), roman(rest)]);
        roff.control("br", []);
    }
    roff.to_writer(page)
}

fn commands(subcommands: &[Command], page: &mut Vec<u8>) -> io::Result<()> {
    let mut roff = Roff::new();
    roff.control("SH", ["COMMANDS"]);
    for command in subcommands {
        roff.control("TP", []);
        roff.text([bold(format!("tracer {}", command.get_name()))]);
        let about = command.get_about().map(ToString::to_string).unwrap_or_default();
        roff.text([roman(about)]);
    }
    roff.to_writer(page)
}

/// The examples and what follows them: a heading is a line without indentation that ends with a colon.
fn after(page: &mut Vec<u8>) -> io::Result<()> {
    let mut roff = Roff::new();
    let mut open = false;
    for line in super::args::after_help(true).lines() {
        if let Some(heading) = line.strip_suffix(':').filter(|h| !h.starts_with(' ')) {
            if open {
                roff.control("fi", []);
            }
            roff.control("SH", [heading.to_uppercase().as_str()]);
            roff.control("nf", []);
            open = true;
        } else if !line.is_empty() {
            roff.text([roman(line.trim_start())]);
        }
    }
    roff.control("fi", []);
    roff.to_writer(page)
}
