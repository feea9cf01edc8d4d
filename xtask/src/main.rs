//! The workspace's own chores, run as `cargo xtask <COMMAND>`.
//!
//! One module per subcommand, each with its `Options` and a `run`; `host` holds what they share about the machine.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod bench;
mod build_ebpf;
mod document;
mod field_notes;
mod host;
mod test;
mod trim_btf;
mod vm;

#[derive(Parser)]
#[command(name = "cargo xtask", about, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build the kernel side and put the object under tracer/ebpf/, or compare the one that is there
    BuildEbpf(build_ebpf::Options),
    /// Set up, build and run every test of the workspace (root is needed for those on the running kernel)
    Test(test::Options),
    /// Make the field notes' traffic again and show the tracer's numbers beside those of its programs
    FieldNotes(field_notes::Options),
    /// Measure what watching a load costs, beside other programs that watch, and in guests by instructions
    Bench(bench::Options),
    /// Run the scenarios on other kernels, in virtual machines, or get a shell in one
    Vm(vm::Options),
    /// Write the part of a kernel's type information (BTF) that tracer reads, for tests that need no such kernel
    TrimBtf(trim_btf::Options),
}

fn main() -> ExitCode {
    let outcome = if build_ebpf::rustc_wrapper::is_requested() {
        build_ebpf::rustc_wrapper::run()
    } else {
        match Cli::parse().command {
            Command::BuildEbpf(options) => build_ebpf::run(&options),
            Command::Test(options) => test::run(&options),
            Command::FieldNotes(options) => field_notes::run(&options),
            Command::Bench(options) => bench::run(&options),
            Command::Vm(options) => vm::run(&options),
            Command::TrimBtf(options) => trim_btf::run(&options),
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Without the backtrace that RUST_BACKTRACE would add: the message is written to be enough.
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
