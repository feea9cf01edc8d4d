//! What `-v` and `-vv` say on stderr.

use log::{LevelFilter, Log, Metadata, Record};

use crate::cli::Verbosity;

struct Stderr;

static STDERR: Stderr = Stderr;

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // The libraries have their own talk; it is asked for with -vv.
        let own = metadata.target().starts_with("tracer");
        metadata.level() <= log::max_level() && (own || log::max_level() >= LevelFilter::Debug)
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            eprintln!("tracer: {}", record.args());
        }
    }

    fn flush(&self) {}
}

/// Sets what is said.
pub(super) fn start(verbosity: Verbosity) {
    let level = match verbosity {
        Verbosity::Quiet => LevelFilter::Error,
        Verbosity::Normal => LevelFilter::Warn,
        Verbosity::Verbose => LevelFilter::Info,
        Verbosity::Debug => LevelFilter::Debug,
    };
    // A second call finds the logger in place, which is as well.
    let _ = log::set_logger(&STDERR);
    log::set_max_level(level);
}
