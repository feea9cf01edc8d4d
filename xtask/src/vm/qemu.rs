//! One guest from its start to its end.

use std::{
    fs::{self, File},
    io::{self, BufReader, Read},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use guest_init::line::Line;
use rustix::process::{Signal, set_parent_process_death_signal};

use crate::host;

const QEMU: &str = "qemu-system-x86_64";
/// What isa-debug-exit makes of the value that init writes after success.
const SUCCESS: i32 = 3;

/// Who executes the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Accelerator {
    Kvm,
    Tcg,
    /// Emulation with a clock that advances by one nanosecond with each instruction: what takes time takes the same in every boot.
    Counting,
}

/// What to boot.
pub(super) struct Guest {
    pub(super) kernel: PathBuf,
    /// The whole initial file system.
    pub(super) initramfs: PathBuf,
    /// Where console and received files go.
    pub(super) directory: PathBuf,
    /// The longest that the guest may be silent.
    pub(super) patience: Duration,
    /// CPUs that it has.
    pub(super) cpus: usize,
}

/// How a guest ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    /// By itself, all done.
    Success,
    /// By itself, because it could not do what it should.
    Failure,
    /// By a panic or a reboot.
    Crash,
    /// It was silent for too long, and was killed.
    Hang,
    /// QEMU gave up, with these last words.
    Qemu(String),
}

/// Installs what booting takes.
pub(super) fn prepare() -> anyhow::Result<()> {
    let needed = [(QEMU, "qemu-system-x86"), ("xz", "xz-utils"), ("dpkg-deb", "dpkg")];
    let missing: Vec<_> = needed.iter().filter(|it| host::find_program(it.0).is_none()).map(|it| it.1).collect();
    if missing.is_empty() {
        return Ok(());
    }
    host::install_packages(&missing, "running the scenarios on other kernels, in virtual machines")
}

/// KVM where it carries a guest from its start to its end, which only a try can tell; else emulation.
pub(super) fn choose_accelerator(guest: &Guest) -> anyhow::Result<Accelerator> {
    if File::options().read(true).write(true).open("/dev/kvm").is_err() {
        return Ok(Accelerator::Tcg);
    }
    let end = run(guest, Accelerator::Kvm, &mut |_| {})?;
    if end == End::Success {
        return Ok(Accelerator::Kvm);
    }
    println!("this machine has /dev/kvm, but a guest does not run with it; emulating instead");
    Ok(Accelerator::Tcg)
}

/// Boots a guest and passes on what it tells, until it ends.
pub(super) fn run(guest: &Guest, accelerator: Accelerator, listener: &mut dyn FnMut(Line)) -> anyhow::Result<End> {
    let mut command = machine(guest, accelerator);
    let console = format!("file:{}", guest.directory.join("console.log").display());
    command.args(["-serial", &console, "-chardev", "stdio,id=results,signal=off", "-serial", "chardev:results"]);
    command.args(["-device", "isa-debug-exit,iobase=0xf4,iosize=0x04"]);
    let mut child = Killed(
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {QEMU}"))?,
    );
    let (sender, messages) = channel();
    let stdout = child.0.stdout.take().expect("stdout was set to a pipe");
    let stderr = child.0.stderr.take().expect("stderr was set to a pipe");
    let directory = guest.directory.clone();
    let told = sender.clone();
    let results = thread::spawn(move || receive(BufReader::new(stdout), &directory, &told));
    let complaints = thread::spawn(move || complain(BufReader::new(stderr), &sender));
    let end = follow(&messages, guest.patience, listener);
    if end == Followed::Silent || end == Followed::Stuck {
        // Ended already, perhaps: what counts is that it is over.
        let _ = child.0.kill();
    }
    let status = child.0.wait().with_context(|| format!("cannot wait for {QEMU}"))?;
    let complaints = complaints.join().expect("a reading thread does not panic");
    results.join().expect("a reading thread does not panic").context("cannot keep what the guest sent")?;
    Ok(match end {
        Followed::Silent => End::Hang,
        Followed::Stuck => End::Qemu(complaints),
        Followed::Over => judge(status, complaints),
    })
}

/// A shell in a guest, on this terminal.
pub(super) fn interact(guest: &Guest, accelerator: Accelerator) -> anyhow::Result<()> {
    let mut command = machine(guest, accelerator);
    command.args(["-chardev", "stdio,id=console,mux=on,signal=off", "-serial", "chardev:console"]);
    command.args(["-mon", "chardev=console", "-serial"]);
    command.arg(format!("file:{}", guest.directory.join("results.log").display()));
    command.args(["-device", "isa-debug-exit,iobase=0xf4,iosize=0x04"]);
    let status = command.status().with_context(|| format!("cannot start {QEMU}"))?;
    ensure!(matches!(status.code(), Some(0 | SUCCESS)), "the guest ended with {status}");
    Ok(())
}

fn machine(guest: &Guest, accelerator: Accelerator) -> Command {
    let mut command = Command::new(host::find_program(QEMU).unwrap_or_else(|| PathBuf::from(QEMU)));
    // A guest must not outlive this program, however that ends: it would keep its CPUs busy.
    let die_with_parent = || Ok(set_parent_process_death_signal(Some(Signal::TERM))?);
    // SAFETY: the closure makes one system call and allocates nothing, which is all that is allowed between fork and exec.
    unsafe { command.pre_exec(die_with_parent) };
    command.args(["-no-user-config", "-nodefaults", "-machine", "pc", "-display", "none", "-m", "1024"]);
    command.arg("-smp").arg(guest.cpus.to_string());
    match accelerator {
        Accelerator::Kvm => command.args(["-accel", "kvm", "-cpu", "host"]),
        // With cmpxchg16b emulated, 6.12 crashes under load.
        // One thread for all CPUs: with a thread each, a CPU runs into the int3 with which another one patches the kernel after that is
        // over, now and then, and the kernel panics (7.2 in `__schedule()`).
        Accelerator::Tcg => command.args(["-accel", "tcg,thread=single", "-cpu", "max,-cx16"]),
        Accelerator::Counting => {
            command.args(["-accel", "tcg,thread=single", "-cpu", "max,-cx16", "-icount", "shift=0,sleep=off"]);
            command.args(["-seed", "1", "-rtc", "base=2026-01-01,clock=vm"])
        }
    };
    command.arg("-no-reboot").arg("-kernel").arg(&guest.kernel).arg("-initrd").arg(&guest.initramfs);
    // A fault in the kernel is a failure, whatever survives it; warnings are shown, the rest of the boot is not. Attaching and
    // detaching wait for a grace period each, which an idle emulated CPU makes long: they are expedited.
    let fixed = if accelerator == Accelerator::Counting { " nokaslr norandmaps" } else { "" };
    command.arg("-append").arg(format!(
        "console=ttyS0 loglevel=5 panic=-1 oops=panic rcupdate.rcu_expedited=1 rcupdate.rcu_tasks_lazy_ms=0{fixed}"
    ));
    command
}

/// Never leaves a guest running.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // Fails only when it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

enum Message {
    Line(Line),
    /// Nothing more can come of this guest, though QEMU does not end.
    Stuck,
}

#[derive(PartialEq, Eq)]
enum Followed {
    Over,
    Silent,
    Stuck,
}

fn follow(messages: &Receiver<Message>, patience: Duration, listener: &mut dyn FnMut(Line)) -> Followed {
    let mut deadline = Instant::now() + patience;
    loop {
        match messages.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(Message::Line(line)) => {
                deadline = Instant::now() + patience;
                listener(line);
            }
            Ok(Message::Stuck) => return Followed::Stuck,
            Err(RecvTimeoutError::Timeout) => return Followed::Silent,
            // Both of QEMU's outputs are closed.
            Err(RecvTimeoutError::Disconnected) => return Followed::Over,
        }
    }
}

/// Reads what the guest tells; files go into `directory`.
fn receive(mut port: impl io::BufRead, directory: &Path, told: &Sender<Message>) -> anyhow::Result<()> {
    let mut bytes = Vec::new();
    // Bytes, as nobody knows what a crashing guest writes.
    while port.read_until(b'\n', &mut bytes)? > 0 {
        if let Some(line) = Line::parse(&String::from_utf8_lossy(&bytes)) {
            if let Line::File { scenario, name, length } = &line {
                let path = directory.join(format!("{}-{}", plain(scenario), plain(name)));
                let mut content = Vec::new();
                port.by_ref().take(*length).read_to_end(&mut content)?;
                fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
            }
            if told.send(Message::Line(line)).is_err() {
                break;
            }
        }
        bytes.clear();
    }
    Ok(())
}

/// A file name that stays in its directory.
fn plain(name: &str) -> String {
    name.chars().map(|char| if char.is_alphanumeric() || "-_.".contains(char) { char } else { '_' }).collect()
}

/// Reads QEMU's messages and returns the last ones.
fn complain(stderr: impl io::BufRead, told: &Sender<Message>) -> String {
    let mut all = Vec::new();
    for line in stderr.lines().map_while(Result::ok) {
        // QEMU stops the guest then, and waits for a debugger.
        if line.starts_with("KVM internal error") {
            let _ = told.send(Message::Stuck);
        }
        all.push(line);
    }
    all.truncate(5);
    all.join("; ")
}

fn judge(status: ExitStatus, complaints: String) -> End {
    match status.code() {
        Some(SUCCESS) => End::Success,
        Some(5) => End::Failure,
        // `panic=-1` and `-no-reboot`.
        Some(0) => End::Crash,
        _ => End::Qemu(format!("{status} {complaints}")),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    #[test]
    fn each_status_of_qemu_has_its_meaning() {
        let judge = |code: i32| judge(ExitStatus::from_raw(code << 8), String::new());
        assert_eq!(judge(3), End::Success);
        assert_eq!(judge(5), End::Failure);
        assert_eq!(judge(0), End::Crash);
        assert!(matches!(judge(1), End::Qemu(_)));
    }

    #[test]
    fn lines_are_passed_on_and_noise_is_not() {
        let (sender, messages) = channel();
        let text = b"noise\xff\nlisted\texpiry\t2\nlisted\tload\t1\n";
        receive(&text[..], Path::new("/nonexistent"), &sender).unwrap();
        drop(sender);
        let mut seen = Vec::new();
        assert!(follow(&messages, Duration::from_secs(60), &mut |line| seen.push(line)) == Followed::Over);
        let listed = |scenario: &str, tests| Line::Listed { scenario: scenario.into(), tests };
        assert_eq!(seen, [listed("expiry", 2), listed("load", 1)]);
    }

    #[test]
    fn a_silent_guest_is_given_up() {
        let (sender, messages) = channel::<Message>();
        assert!(follow(&messages, Duration::ZERO, &mut |_| {}) == Followed::Silent);
        drop(sender);
    }

    #[test]
    fn a_stuck_guest_is_given_up_at_once() {
        let (sender, messages) = channel();
        complain(&b"KVM internal error. Suberror: 1\n"[..], &sender);
        assert!(follow(&messages, Duration::from_secs(60), &mut |_| {}) == Followed::Stuck);
    }

    #[test]
    fn names_from_a_guest_stay_in_their_directory() {
        assert_eq!(plain("../../etc/passwd"), ".._.._etc_passwd");
        assert_eq!(plain("tracer-1.rec"), "tracer-1.rec");
    }
}
