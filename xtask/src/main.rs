//! The workspace's own chores, run as `cargo xtask <COMMAND>`.
//!
//! One module per subcommand, each with its `Options` and a `run`; `host` holds what they share about the machine.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod build_ebpf;
mod host;
mod test;

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
}

fn main() -> ExitCode {
    let outcome = if build_ebpf::rustc_wrapper::is_requested() {
        build_ebpf::rustc_wrapper::run()
    } else {
        match Cli::parse().command {
            Command::BuildEbpf(options) => build_ebpf::run(&options),
            Command::Test(options) => test::run(&options),
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
