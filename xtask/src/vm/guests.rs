//! The guests of a run: what each is booted with, and what came of it.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use guest_init::{
    line::{Line, Verdict},
    plan::{self, Plan},
};

use super::{
    Options,
    build::Programs,
    initramfs,
    kernels::{Cache, Image},
    matrix::{self, Flavour, Kernel, Support},
    modules::Modules,
    qemu::{self, Accelerator, End, Guest},
    record::{Cell, Record},
    table::Column,
};

/// What the scenarios and the tracer use of the kernel and may be a module.
const MODULES: [&str; 4] = ["tun", "nf_tables", "inet_diag", "tcp_diag"];

/// Scenarios that put the machine under load, or measure time: they run one test at a time, when the others are through.
const ALONE: [&str; 6] = ["field_note_1", "field_note_7", "field_note_8", "field_notes", "flood", "load"];

/// How many tests run at a time otherwise: they mostly wait for the kernel's timers.
///
/// An emulated guest runs one. With more, one test attaches its hooks while another has traffic, and then a CPU of QEMU 7.2
/// can run into the int3 with which the kernel patches its own code, after the kernel has taken it away: 6.12 panics.
fn workers(accelerator: Accelerator) -> usize {
    match accelerator {
        Accelerator::Kvm => 3,
        Accelerator::Tcg | Accelerator::Counting => 1,
    }
}

/// How many times as long as on hardware a test waits before it fails. An emulated CPU takes a minute for what the verifier does in a
/// second while a load has the CPU too.
fn patience(accelerator: Accelerator) -> &'static str {
    match accelerator {
        Accelerator::Kvm => "1",
        Accelerator::Tcg | Accelerator::Counting => "5",
    }
}

/// The longest that one test may take in an emulated guest.
const TEST_LIMIT: Duration = Duration::from_secs(600);
/// How much longer a guest may be silent: the boot, or the end of a test that was killed.
const SILENCE: Duration = Duration::from_secs(60);
/// The longest that the tracer may take to refuse.
const REFUSAL_LIMIT: Duration = Duration::from_secs(60);

/// What all guests have in common.
pub(super) struct Host {
    pub(super) cache: Cache,
    pub(super) programs: Programs,
    pub(super) directory: PathBuf,
    /// CPUs of a guest.
    pub(super) cpus: usize,
}

/// A kernel with its part of the guests' file system.
pub(super) struct Prepared {
    pub(super) image: Image,
    common: Vec<u8>,
    modules: Vec<String>,
    cpus: usize,
}

impl Prepared {
    /// Adds an archive to the guests' file system.
    pub(super) fn add(&mut self, archive: &[u8]) {
        self.common.extend(archive);
    }
}

impl Host {
    pub(super) fn prepare(&self, kernel: Kernel) -> anyhow::Result<Prepared> {
        let image = self.cache.obtain(kernel)?;
        let modules = Modules::find(&image.modules())?.closure(&MODULES);
        let modules = modules.with_context(|| format!("cannot prepare kernel {}", image.release))?;
        let common = initramfs::common(&self.programs, &self.cache.busybox()?, &modules)?;
        let modules = modules.iter().map(|it| initramfs::module_path(&it.name)).collect();
        Ok(Prepared { image, common, modules, cpus: self.cpus })
    }

    pub(super) fn shell(&self, kernel: Kernel) -> anyhow::Result<()> {
        let prepared = self.prepare(kernel)?;
        let accelerator = self.accelerator(&prepared)?;
        let plan = Plan { shell: true, ..self.plan(&prepared) };
        println!("{}: `exit` ends the guest, Ctrl-A X kills it; /scenarios has the tests", prepared.image.release);
        let guest = Files::write(&self.directory.join("shell"), &prepared, &plan)?;
        qemu::interact(&guest.guest(&prepared, Duration::MAX), accelerator)
    }

    fn accelerator(&self, prepared: &Prepared) -> anyhow::Result<Accelerator> {
        let guest = Files::write(&self.directory.join("accelerator"), prepared, &self.plan(prepared))?;
        let chosen = qemu::choose_accelerator(&guest.guest(prepared, Duration::from_secs(20)))?;
        guest.remove()?;
        Ok(chosen)
    }

    pub(super) fn plan(&self, prepared: &Prepared) -> Plan {
        let environment =
            [("PATH", "/bin"), ("HOME", "/"), ("TRACER_BIN", initramfs::TRACER), ("TRACER_LOAD", initramfs::LOAD)];
        Plan {
            modules: prepared.modules.clone(),
            environment: environment.map(|(name, value)| (name.into(), value.into())).into(),
            limit: TEST_LIMIT,
            ..Plan::default()
        }
    }

    pub(super) fn run_kernels(
        &self,
        kernels: &[Kernel],
        flavours: &[Flavour],
        options: &Options,
    ) -> anyhow::Result<Vec<Column>> {
        let Some(first) = kernels.first() else { return Ok(Vec::new()) };
        let accelerator = self.accelerator(&self.prepare(*first)?)?;
        let waiting = Mutex::new(kernels.iter());
        // A worker takes a kernel, and the next when it is through with it.
        let work = || -> anyhow::Result<Vec<Column>> {
            let mut columns = Vec::new();
            loop {
                let mut waiting = waiting.lock().map_err(|_| anyhow::anyhow!("another guest's thread panicked"))?;
                let Some(&kernel) = waiting.next() else { return Ok(columns) };
                // One after the other: apt takes its lock only once.
                let prepared = self.prepare(kernel)?;
                drop(waiting);
                let guests = Guests { host: self, kernel, prepared: &prepared, accelerator, keep: options.keep };
                columns.extend(guests.run(flavours)?);
            }
        };
        let parts: Vec<_> = thread::scope(|scope| {
            let workers: Vec<_> = (0..options.at_once.max(1)).map(|_| scope.spawn(work)).collect();
            workers.into_iter().map(thread::ScopedJoinHandle::join).collect()
        });
        let mut columns = Vec::new();
        for part in parts {
            columns.extend(part.map_err(|_| anyhow::anyhow!("a guest's thread panicked"))??);
        }
        columns.sort_by_key(|column| (column.kernel, column.flavour));
        Ok(columns)
    }

    pub(super) fn boot(
        &self,
        name: &str,
        prepared: &Prepared,
        plan: &Plan,
        accelerator: Accelerator,
    ) -> anyhow::Result<(Record, End, Files)> {
        let files = Files::write(&self.directory.join(name), prepared, plan)?;
        let begun = Instant::now();
        let mut record = Record::default();
        let patience = plan.limit + SILENCE;
        let end = qemu::run(&files.guest(prepared, patience), accelerator, &mut |line| {
            announce(name, &line);
            record.note(line);
        })?;
        println!("{name}: ended after {:.1} s: {}", begun.elapsed().as_secs_f64(), end_in_words(&record, &end));
        Ok((record, end, files))
    }
}

/// The guests of one kernel.
struct Guests<'a> {
    host: &'a Host,
    kernel: Kernel,
    prepared: &'a Prepared,
    accelerator: Accelerator,
    keep: bool,
}

impl Guests<'_> {
    fn run(&self, flavours: &[Flavour]) -> anyhow::Result<Vec<Column>> {
        println!("kernel {}: {} ({:?})", self.kernel.name(), self.prepared.image.release, self.accelerator);
        let mut columns = self.expect_refusals(flavours)?;
        for &flavour in flavours {
            if matrix::support(self.kernel, flavour) == Support::Expected {
                columns.push(self.run_scenarios(flavour)?);
            }
        }
        Ok(columns)
    }

    /// One guest for all absent flavours of a kernel: in each the tracer has to refuse, or the matrix is out of date.
    fn expect_refusals(&self, flavours: &[Flavour]) -> anyhow::Result<Vec<Column>> {
        let absent: Vec<_> = flavours
            .iter()
            .filter_map(|&flavour| match matrix::support(self.kernel, flavour) {
                Support::Absent(reason) => Some((flavour, reason)),
                Support::Expected => None,
            })
            .collect();
        if absent.is_empty() {
            return Ok(Vec::new());
        }
        let mut plan = Plan { limit: REFUSAL_LIMIT, ..self.host.plan(self.prepared) };
        plan.probes.extend(absent.iter().map(|(flavour, _)| {
            plan::Probe {
                name: flavour.name().into(),
                argv: [
                    initramfs::TRACER,
                    "--hooks",
                    flavour.name(),
                    "--port",
                    "8000",
                    "--duration",
                    "1s",
                    "--format",
                    "json",
                ]
                .map(str::to_owned)
                .into(),
            }
        }));
        let name = format!("{}-absent", self.kernel.name());
        let (record, end, files) = self.host.boot(&name, self.prepared, &plan, self.accelerator)?;
        let column = |(flavour, reason): (Flavour, &str)| {
            let verdict = refusal(&record, &end, flavour, reason);
            Column { kernel: self.kernel, release: None, flavour, cells: self.all_scenarios(&verdict) }
        };
        let columns: Vec<_> = absent.into_iter().map(column).collect();
        tidy(&files, &columns, self.keep)?;
        Ok(columns)
    }

    fn all_scenarios(&self, cell: &Cell) -> Vec<(String, Cell)> {
        self.host.programs.scenarios.iter().map(|it| (it.name.clone(), cell.clone())).collect()
    }

    fn run_scenarios(&self, flavour: Flavour) -> anyhow::Result<Column> {
        let mut plan = Plan { workers: workers(self.accelerator), ..self.host.plan(self.prepared) };
        plan.environment.push(("TRACER_HOOKS".into(), flavour.name().into()));
        plan.environment.push(("TESTS_PATIENCE".into(), patience(self.accelerator).into()));
        let to_run = self
            .host
            .programs
            .scenarios
            .iter()
            .filter(|it| matrix::exception(self.kernel, flavour, &it.name).is_none());
        plan.scenarios.extend(to_run.map(|it| plan::Scenario {
            name: it.name.clone(),
            path: initramfs::scenario_path(&it.name),
            alone: ALONE.contains(&it.name.as_str()),
        }));
        let name = format!("{}-{}", self.kernel.name(), flavour.name());
        let (record, end, files) = self.host.boot(&name, self.prepared, &plan, self.accelerator)?;
        let release = record.ready.as_ref().map(|it| it.0.clone());
        if let Some(booted) = &release {
            ensure!(
                *booted == self.prepared.image.release,
                "booted {booted} instead of {}",
                self.prepared.image.release
            );
        }
        let cell = |name: &str| match matrix::exception(self.kernel, flavour, name) {
            Some(reason) => Cell::Absent(reason.into()),
            None => record.cell(name, &end),
        };
        let mut cells: Vec<_> =
            self.host.programs.scenarios.iter().map(|it| (it.name.clone(), cell(&it.name))).collect();
        if let Some(fault) = record.fault(&end) {
            // Even if it came after the last test.
            cells.push(("(the guest)".into(), Cell::Unfinished(fault)));
        }
        let column = Column { kernel: self.kernel, release, flavour, cells };
        tidy(&files, std::slice::from_ref(&column), self.keep)?;
        Ok(column)
    }
}

pub(super) fn end_in_words(record: &Record, end: &End) -> String {
    record.fault(end).unwrap_or_else(|| "complete".into())
}

/// What an absent flavour's probe says about all scenarios in it.
fn refusal(record: &Record, end: &End, flavour: Flavour, reason: &str) -> Cell {
    match record.probes.iter().find(|it| it.0 == flavour.name()) {
        Some((_, Some(1 | 2), message)) => Cell::Absent(format!("{reason} ({message})")),
        Some((_, Some(0), _)) => Cell::Unfinished(
            "the tracer starts, though the matrix has the flavour as absent on this kernel: expect it there".into(),
        ),
        Some((_, code, message)) => {
            let code = code.map_or_else(|| "no exit code".into(), |code| format!("exit code {code}"));
            Cell::Unfinished(format!("the tracer did not refuse in an orderly way: {code}, {message}"))
        }
        None => Cell::Unfinished(format!("its refusal was never seen: {}", end_in_words(record, end))),
    }
}

/// Progress: a line per test.
fn announce(name: &str, line: &Line) {
    match line {
        Line::Ready { uptime_ms, .. } => println!("{name}: ready after {uptime_ms} ms"),
        Line::Probed { name: flavour, code, message } => println!("{name}: {flavour}: exit code {code:?}: {message}"),
        Line::Ended { scenario, test, verdict, took_ms } => {
            let word = if *verdict == Verdict::Passed { "passed" } else { &verdict.word().to_uppercase() };
            println!("{name}: {scenario}::{test} {word} ({took_ms} ms)");
        }
        Line::File { name: file, length, .. } => println!("{name}: received {file}, {length} bytes"),
        Line::Trouble { message } => println!("{name}: {message}"),
        Line::Listed { .. } | Line::Begun { .. } | Line::Done => {}
    }
}

/// After a failure everything stays but the file system, which is large and can be made again.
fn tidy(files: &Files, columns: &[Column], keep: bool) -> anyhow::Result<()> {
    if keep {
        return Ok(());
    }
    if columns.iter().flat_map(|it| &it.cells).any(|it| it.1.is_bad()) {
        println!("kept: {}", files.directory.display());
        return fs::remove_file(files.initramfs()).context("cannot remove a guest's file system");
    }
    files.remove()
}

/// The files of one guest.
pub(super) struct Files {
    directory: PathBuf,
}

impl Files {
    fn write(directory: &Path, prepared: &Prepared, plan: &Plan) -> anyhow::Result<Self> {
        let files = Self { directory: directory.to_owned() };
        if directory.exists() {
            files.remove()?;
        }
        fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
        let archive = [&prepared.common[..], &initramfs::with_plan(plan)?].concat();
        let path = files.initramfs();
        fs::write(&path, archive).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(files)
    }

    fn initramfs(&self) -> PathBuf {
        self.directory.join("initramfs.cpio")
    }

    fn guest(&self, prepared: &Prepared, patience: Duration) -> Guest {
        Guest {
            kernel: prepared.image.kernel(),
            initramfs: self.initramfs(),
            directory: self.directory.clone(),
            patience,
            cpus: prepared.cpus,
        }
    }

    pub(super) fn remove(&self) -> anyhow::Result<()> {
        fs::remove_dir_all(&self.directory).with_context(|| format!("cannot remove {}", self.directory.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probed(code: Option<i32>) -> Record {
        let mut record = Record::default();
        record.note(Line::Probed { name: "kprobe".into(), code, message: "no kprobes here".into() });
        record
    }

    #[test]
    fn only_an_orderly_refusal_makes_a_flavour_absent() {
        let verdict = |record: &Record, end| refusal(record, &end, Flavour::Kprobe, "none built");
        for code in [1, 2] {
            let expected = Cell::Absent("none built (no kprobes here)".into());
            assert_eq!(verdict(&probed(Some(code)), End::Success), expected);
        }
        for code in [Some(0), Some(101), None] {
            assert!(verdict(&probed(code), End::Success).is_bad(), "{code:?}");
        }
        assert!(verdict(&Record::default(), End::Crash).is_bad());
    }
}
