//! `cargo xtask vm`: the scenarios on other kernels, in virtual machines.
//!
//! Each combination of kernel and flavour has a guest of its own: one of Debian's cloud kernels, a file system in memory
//! with the static tracer and the static scenarios, and `guest-init` as the first process. A guest has no disk and no network
//! card. Guests run one after the other, with two CPUs each, unless more at once are asked for.

use std::{
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};

use crate::{
    document,
    host::{self, Workspace},
};

mod apt;
mod build;
mod cpio;
mod guests;
mod initramfs;
mod instructions;
mod kernels;
mod matrix;
mod modules;
mod qemu;
mod record;
mod table;

use guests::Host;
use kernels::Cache;
use matrix::Flavour;
pub(crate) use matrix::Kernel;
use record::Cell;
use table::Column;

/// The default is everything.
#[derive(clap::Args, Default)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Options {
    #[command(subcommand)]
    command: Option<Subcommand>,
    /// A kernel to run on; may be given more than once [default: all of them]
    #[arg(long, value_enum)]
    kernel: Vec<Kernel>,
    /// A flavour to force; may be given more than once [default: all that can be forced]
    #[arg(long, value_enum)]
    hooks: Vec<Flavour>,
    /// Run only this scenario: a file of tests/tests, without `.rs`; may be given more than once
    #[arg(long, value_name = "NAME")]
    scenario: Vec<String>,
    /// Guests that run at the same time, of different kernels; more than one have one CPU each instead of two
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    at_once: usize,
    /// Put what was run into each kernel's table in docs/kernels.md
    #[arg(long)]
    document: bool,
    /// Keep the guests' file systems, consoles and recordings even when all goes well
    #[arg(long)]
    keep: bool,
}

/// What `cargo xtask test` runs on every kernel: the scenario that compares all flavours on dropped ACKs and cookies, and those that
/// need what differs most between kernels. All scenarios in all flavours take hours in emulated guests.
const SHORT: [&str; 4] = ["flavours", "listener_closed", "port_exhaustion", "reuseport"];

impl Options {
    /// The part of the matrix that every test run includes.
    pub(crate) fn short() -> Self {
        Self { hooks: vec![Flavour::Auto], scenario: SHORT.map(str::to_owned).into(), ..Self::default() }
    }
}

#[derive(clap::Subcommand)]
enum Subcommand {
    /// An interactive shell in a guest, with the tracer and the scenarios in it
    Shell {
        /// The kernel to boot
        #[arg(long, value_enum, default_value = "newest")]
        kernel: Kernel,
    },
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let workspace = Workspace::locate()?;
    qemu::prepare()?;
    let directory = workspace.target.join("vm");
    // Alone a guest has two CPUs; several at once have one each. (An emulated one with more CPUs than it is given here stops when
    // the kernel patches its own code; see `guests::workers`.)
    let cpus = if options.at_once > 1 { 1 } else { 2 };
    let host = Host { cache: Cache::locate()?, programs: build::build(&options.scenario)?, directory, cpus };
    if let Some(Subcommand::Shell { kernel }) = options.command {
        return host.shell(kernel);
    }
    let kernels = if options.kernel.is_empty() { Kernel::ALL.to_vec() } else { without_repetition(&options.kernel) };
    let flavours = if options.hooks.is_empty() { Flavour::FORCED.to_vec() } else { without_repetition(&options.hooks) };
    let begun = Instant::now();
    let columns = host.run_kernels(&kernels, &flavours, options)?;
    let text = format!("{}\n{}", table::render(&columns), table::notes(&columns));
    println!("\n{text}");
    let file = host.directory.join("table.md");
    fs::write(&file, &text).with_context(|| format!("cannot write {}", file.display()))?;
    if options.document {
        document(&workspace.root, &columns)?;
    }
    conclude(&columns, begun.elapsed(), &host.directory)
}

/// Puts each kernel's columns into the page, in the place of what is there of them, with the commit that they were run on: all kernels take
/// more than an hour when they are emulated, and need not be run in one sitting.
fn document(root: &Path, columns: &[Column]) -> anyhow::Result<()> {
    let mut describe = Command::new("git");
    let commit = host::output(describe.current_dir(root).args(["describe", "--always", "--dirty"]))?;
    for own in columns.chunk_by(|one, other| one.kernel == other.kernel) {
        let name = own[0].kernel.name();
        let (file, command) = (root.join("docs/kernels.md"), format!("cargo xtask vm --kernel {name}"));
        document::put(&file, &command, &|old| table::page(old, own, commit.trim()))?;
    }
    Ok(())
}

/// Instructions per connection on these kernels, or on every one, as tables.
pub(crate) fn instructions(kernels: &[Kernel]) -> anyhow::Result<String> {
    qemu::prepare()?;
    let directory = Workspace::locate()?.target.join("vm");
    // One scenario has to be built; none is run.
    let programs = build::build(&["doctor".to_owned()])?;
    let kernels = if kernels.is_empty() { Kernel::ALL.to_vec() } else { without_repetition(kernels) };
    instructions::measure(&kernels, &Host { cache: Cache::locate()?, programs, directory, cpus: 1 })
}

fn without_repetition<T: Ord + Copy>(values: &[T]) -> Vec<T> {
    let mut values = values.to_vec();
    values.sort_unstable();
    values.dedup();
    values
}

fn conclude(columns: &[Column], took: Duration, directory: &Path) -> anyhow::Result<()> {
    let cells = || columns.iter().flat_map(|it| it.cells.iter().map(|it| &it.1));
    let bad = cells().filter(|cell| cell.is_bad()).count();
    let passed = cells().filter(|cell| matches!(cell, Cell::Passed(_))).count();
    ensure!(bad == 0, "{bad} scenarios in guests failed; their consoles are in {}", directory.display());
    println!(
        "{passed} scenarios in guests passed, {} absent as expected, in {} s",
        cells().count() - passed,
        took.as_secs()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bad_cell_fails_the_run() {
        let column = |cell| Column {
            kernel: Kernel::V6_12,
            release: None,
            flavour: Flavour::Tracepoint,
            cells: vec![("expiry".into(), Cell::Passed(Duration::ZERO)), ("load".into(), cell)],
        };
        let conclude = |cell| conclude(&[column(cell)], Duration::ZERO, Path::new("target/vm"));
        assert!(conclude(Cell::Absent("no such tracepoint".into())).is_ok());
        assert!(conclude(Cell::Unfinished("never began".into())).is_err());
        assert!(conclude(Cell::Failed { tests: 1, failed: vec!["a".into()] }).is_err());
    }

    #[test]
    fn repeated_options_count_once() {
        let given = [Kernel::Newest, Kernel::V6_1, Kernel::Newest];
        assert_eq!(without_repetition(&given), [Kernel::V6_1, Kernel::Newest]);
    }
}
