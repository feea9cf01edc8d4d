//! Debian packages without touching the machine's own package lists: a private apt directory per Debian release.
//!
//! The mirror is the one that the machine's own apt uses; its signatures are checked against Debian's archive keyring.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, ensure};

use crate::host;

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Mirrors may lag behind: a release's lists count for this many seconds after they were signed, even where they say less.
const LISTS_ARE_VALID_FOR: u32 = 90 * 24 * 60 * 60;

/// A private apt directory for one Debian release.
pub(super) struct Apt {
    suite: &'static str,
    directory: PathBuf,
}

impl Apt {
    /// Sets the directory up and fetches the release's package lists.
    pub(super) fn open(suite: &'static str, directory: PathBuf) -> anyhow::Result<Self> {
        if !Path::new(KEYRING).is_file() {
            host::install_packages(&["debian-archive-keyring"], "checking the signatures of Debian's kernels")?;
        }
        let mirror = mirror()?;
        for place in ["lists/partial", "cache/archives/partial"] {
            let place = directory.join(place);
            fs::create_dir_all(&place).with_context(|| format!("cannot make {}", place.display()))?;
        }
        let apt = Self { suite, directory };
        // Nothing is installed there.
        apt.write("status", "")?;
        apt.write("sources.list", &format!("deb [signed-by={KEYRING}] {mirror} {suite} main\n"))?;
        apt.write("apt.conf", &configuration(&apt.directory))?;
        host::execute(apt.command("apt-get").args(["--quiet", "update"]))?;
        Ok(apt)
    }

    /// What `apt-cache show` says about the newest version of a package.
    pub(super) fn show(&self, package: &str) -> anyhow::Result<String> {
        host::output(self.command("apt-cache").args(["show", "--no-all-versions", package]))
            .with_context(|| format!("Debian {} has no package {package}", self.suite))
    }

    /// Downloads packages and unpacks them all into `to`.
    pub(super) fn unpack(&self, packages: &[String], to: &Path) -> anyhow::Result<()> {
        let downloads = self.directory.join("downloads");
        let _ = fs::remove_dir_all(&downloads);
        fs::create_dir_all(&downloads).with_context(|| format!("cannot make {}", downloads.display()))?;
        let mut download = self.command("apt-get");
        host::execute(download.current_dir(&downloads).args(["--quiet", "download"]).args(packages))?;
        let mut files = 0;
        for entry in fs::read_dir(&downloads).with_context(|| format!("cannot read {}", downloads.display()))? {
            let entry = entry.with_context(|| format!("cannot read {}", downloads.display()))?;
            host::execute(Command::new("dpkg-deb").arg("--extract").args([&entry.path(), to]))?;
            files += 1;
        }
        ensure!(files == packages.len(), "apt-get downloaded {files} packages instead of {}", packages.len());
        fs::remove_dir_all(&downloads).with_context(|| format!("cannot remove {}", downloads.display()))
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.arg("--config-file").arg(self.directory.join("apt.conf"));
        command
    }

    fn write(&self, name: &str, text: &str) -> anyhow::Result<()> {
        let path = self.directory.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }
}

/// What differs from the machine's own configuration; everything else, a proxy for example, stays as it is.
fn configuration(directory: &Path) -> String {
    let directory = directory.display();
    format!(
        r#"Dir::State::status "{directory}/status";
Dir::State::lists "{directory}/lists";
Dir::Cache "{directory}/cache";
Dir::Etc::sourcelist "{directory}/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
APT::Architecture "amd64";
APT::Sandbox::User "root";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
Acquire::Languages "none";
Acquire::Min-ValidTime "{LISTS_ARE_VALID_FOR}";
Acquire::Retries "3";
"#
    )
}

/// The Debian mirror that this machine's apt uses.
fn mirror() -> anyhow::Result<String> {
    if host::find_program("apt-get").is_none() {
        anyhow::bail!("the guests run Debian's kernels, which apt-get fetches; there is none on this machine");
    }
    let targets = host::output(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(REPO_URI)",
        "Created-By: Packages",
    ]))?;
    debian_mirror(&targets).context(
        "this machine's apt knows no Debian mirror; add a source of type deb whose URI ends in /debian to \
         /etc/apt/sources.list.d",
    )
}

/// The first repository with Debian itself in it, not its security updates or somebody else's packages.
fn debian_mirror(repositories: &str) -> Option<String> {
    let mut lines = repositories.lines().map(str::trim);
    lines.find(|uri| uri.trim_end_matches('/').rsplit('/').next() == Some("debian")).map(str::to_owned)
}

/// The packages that a package needs, by what `apt-cache show` prints.
pub(super) fn dependencies(description: &str) -> Vec<String> {
    let fields = description.lines().filter_map(|line| {
        let (field, value) = line.split_once(": ")?;
        matches!(field, "Depends" | "Pre-Depends").then_some(value)
    });
    let names = fields.flat_map(|value| value.split([',', '|'])).filter_map(|one| one.split_whitespace().next());
    names.map(|name| name.split_once(':').map_or(name, |(name, _architecture)| name).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_the_first_repository_of_debian_itself() {
        let targets = "http://packages.example/node/\nhttps://mirror.example/debian-security/\n\
                       https://mirror.example/debian/\nhttps://other.example/debian/\n";
        assert_eq!(debian_mirror(targets).as_deref(), Some("https://mirror.example/debian/"));
        assert_eq!(debian_mirror("http://mirror.example/ubuntu/\n"), None);
        assert_eq!(debian_mirror(""), None);
    }

    #[test]
    fn dependencies_are_names_without_versions() {
        let description = "Package: linux-image-7.2.13+deb14-cloud-amd64\nVersion: 7.2.13-1\n\
            Depends: dracut | initramfs-tools (>= 0.120), linux-binary-7.2.13+deb14-cloud-amd64 (= 7.2.13-1), perl:any\n\
            Pre-Depends: linux-base (>= 4.17~)\nBreaks: fwupdate (<< 12-7)\nDescription: Depends on luck\n";
        assert_eq!(
            dependencies(description),
            ["dracut", "initramfs-tools", "linux-binary-7.2.13+deb14-cloud-amd64", "perl", "linux-base"]
        );
    }
}
