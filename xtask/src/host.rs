//! The machine that the chores run on: its tools, its packages, the workspace's own places.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail, ensure};

/// The cargo that started this chore, so that the toolchain in use stays the same.
pub(crate) fn cargo() -> Command {
    Command::new(env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")))
}

/// Where the workspace lies and where cargo puts what it builds.
pub(crate) struct Workspace {
    pub(crate) root: PathBuf,
    pub(crate) target: PathBuf,
}

impl Workspace {
    /// Asks cargo, which alone knows about `CARGO_TARGET_DIR` and configuration files.
    pub(crate) fn locate() -> anyhow::Result<Self> {
        let text = output(cargo().args(["metadata", "--no-deps", "--format-version", "1"]))?;
        let metadata: serde_json::Value =
            serde_json::from_str(&text).context("cannot read what cargo metadata printed")?;
        let field = |name: &str| {
            let value = metadata.get(name).and_then(serde_json::Value::as_str);
            value.map(PathBuf::from).with_context(|| format!("cargo metadata names no {name}"))
        };
        Ok(Self { root: field("workspace_root")?, target: field("target_directory")? })
    }
}

/// Runs a command with its output passed through and nothing on its stdin; an unsuccessful end is an error.
pub(crate) fn execute(command: &mut Command) -> anyhow::Result<()> {
    let shown = shown(command);
    println!("$ {shown}");
    let status = command.stdin(Stdio::null()).status().with_context(|| format!("cannot start {shown}"))?;
    ensure!(status.success(), "{shown}: {status}");
    Ok(())
}

/// Runs a command and returns what it wrote to stdout; its stderr is passed through.
pub(crate) fn output(command: &mut Command) -> anyhow::Result<String> {
    let bytes = output_bytes(command)?;
    String::from_utf8(bytes).with_context(|| format!("{}: output is not UTF-8", shown(command)))
}

/// The same for output that is no text.
pub(crate) fn output_bytes(command: &mut Command) -> anyhow::Result<Vec<u8>> {
    let shown = shown(command);
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot start {shown}"))?;
    ensure!(output.status.success(), "{shown}: {}", output.status);
    Ok(output.stdout)
}

fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or(command.get_program());
    let mut words = vec![program.to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|arg| arg.to_string_lossy().into_owned()));
    words.join(" ")
}

/// Finds a program as a shell would, and in the places that a root login may leave out of its PATH.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let cargo_bin = cargo_home().map(|home| home.join("bin"));
    env::split_paths(&path)
        .chain(cargo_bin)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|file| file.is_file())
}

fn cargo_home() -> Option<PathBuf> {
    let named = env::var_os("CARGO_HOME").map(PathBuf::from);
    named.or_else(|| env::home_dir().map(|home| home.join(".cargo")))
}

/// Whether this process has effective user id 0, read from the kernel rather than from `$USER`.
pub(crate) fn is_root() -> bool {
    std::fs::read_to_string("/proc/self/status").is_ok_and(|status| effective_uid(&status) == Some(0))
}

fn effective_uid(status: &str) -> Option<u32> {
    let ids = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    ids.split_whitespace().nth(1)?.parse().ok()
}

/// Installs Debian packages as root after saying what for; elsewhere the error names the one command to run.
pub(crate) fn install_packages(packages: &[&str], why: &str) -> anyhow::Result<()> {
    let list = packages.join(" ");
    if !is_root() {
        bail!("{why} needs packages that are not installed; run: sudo apt-get install {list}");
    }
    if find_program("apt-get").is_none() {
        bail!("{why} needs packages (Debian's names: {list}), and there is no apt-get; install them by hand");
    }
    println!("installing {list}: {why}");
    if install(packages).is_ok() {
        return Ok(());
    }
    // On a fresh machine the package lists are empty or old.
    execute(apt_get().arg("update"))?;
    install(packages)
}

fn install(packages: &[&str]) -> anyhow::Result<()> {
    execute(apt_get().args(["install", "--yes", "--no-install-recommends"]).args(packages))
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").arg("--quiet");
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn effective_uid_is_the_second_id_of_the_uid_line() {
        let status = "Name:\ttest\nUmask:\t0022\nUid:\t1000\t0\t1000\t1000\nGid:\t5\t5\t5\t5\n";
        assert_eq!(effective_uid(status), Some(0));
    }

    #[test]
    fn effective_uid_is_unknown_without_the_line() {
        assert_eq!(effective_uid("Name:\ttest\n"), None);
    }

    #[test]
    fn a_command_is_shown_by_its_name_and_arguments() {
        let mut command = Command::new("/opt/bin/cargo");
        command.args(["build", "--release"]);
        assert_eq!(shown(&command), "cargo build --release");
    }

    #[test]
    fn a_program_that_does_not_exist_is_not_found() {
        assert_eq!(find_program("no-such-program-anywhere"), None);
    }
}
