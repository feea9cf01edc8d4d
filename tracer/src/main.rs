//! `tracer`: parse, run, exit.

use std::process::ExitCode;

fn main() -> ExitCode {
    let invocation = match tracer::cli::parse(std::env::args_os()) {
        Ok(invocation) => invocation,
        Err(refused) => {
            refused.print();
            return ExitCode::from(refused.exit_code());
        }
    };
    match tracer::run::run(invocation) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("tracer: {error:#}");
            ExitCode::from(tracer::run::FAILED)
        }
    }
}
