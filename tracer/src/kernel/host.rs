//! Where a host's `/proc` and `/sys` are, and what is read from them directly.

use std::{
    fs::File,
    io::{BufRead, BufReader},
    path::PathBuf,
};

use super::KernelError;

/// A host, by the directory that holds its `/proc` and `/sys`.
#[derive(Clone, Debug)]
pub struct Host {
    root: PathBuf,
}

impl Host {
    /// The host whose `/proc` and `/sys` are under `root`.
    #[must_use]
    pub fn at(root: impl Into<PathBuf>) -> Host {
        Host { root: root.into() }
    }

    /// The running host; `TRACER_ROOT` names another root, for tests against a kernel that is not running.
    #[must_use]
    pub fn from_env() -> Host {
        Host::at(std::env::var_os("TRACER_ROOT").map_or_else(|| PathBuf::from("/"), PathBuf::from))
    }

    /// A path under the root; `relative` has no leading slash.
    #[must_use]
    pub fn path(&self, relative: &str) -> PathBuf {
        self.root.join(relative)
    }

    /// Contents of a file under the root, without the final newline.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn read(&self, relative: &str) -> Result<String, KernelError> {
        let path = self.path(relative);
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(text.trim_end().to_owned()),
            Err(source) => Err(KernelError::Read { path: path.display().to_string(), source }),
        }
    }

    /// The kernel's release, as `uname -r` gives it.
    ///
    /// # Errors
    /// If `/proc/sys/kernel/osrelease` cannot be read.
    pub fn release(&self) -> Result<String, KernelError> {
        self.read("proc/sys/kernel/osrelease")
    }

    /// Whether the kernel is of this version (major, minor) or a later one; not, if it does not say.
    #[must_use]
    pub fn is_since(&self, version: (u32, u32)) -> bool {
        self.release().is_ok_and(|release| parse_version(&release).is_some_and(|own| own >= version))
    }

    /// CPUs that are online now; the first, if the kernel does not say.
    #[must_use]
    pub fn online_cpus(&self) -> Vec<usize> {
        let cpus = parse_cpus(&self.read("sys/devices/system/cpu/online").unwrap_or_default());
        if cpus.is_empty() { vec![0] } else { cpus }
    }

    /// Whether the kernel has kprobes.
    #[must_use]
    pub fn has_kprobes(&self) -> bool {
        self.path("sys/bus/event_source/devices/kprobe").exists()
    }

    /// Where tracefs is mounted. The second place can be looked into by root only.
    #[must_use]
    pub fn tracefs(&self) -> Option<PathBuf> {
        let mut places = ["sys/kernel/tracing", "sys/kernel/debug/tracing"].into_iter().map(|place| self.path(place));
        places.find(|place| place.join("events").is_dir())
    }

    /// The mode of kernel lockdown: `none`, `integrity` or `confidentiality`; nothing if the kernel does not say.
    #[must_use]
    pub fn lockdown(&self) -> Option<String> {
        let modes = self.read("sys/kernel/security/lockdown").ok()?;
        let (_, rest) = modes.split_once('[')?;
        Some(rest.split_once(']')?.0.to_owned())
    }

    /// The start and the end of functions in the kernel's text, in the order asked for: the end is the start of what follows.
    ///
    /// # Errors
    /// If `/proc/kallsyms` cannot be read, hides its addresses, or lacks one of them.
    pub fn functions<const N: usize>(&self, names: [&'static str; N]) -> Result<[(u64, u64); N], KernelError> {
        let path = self.path("proc/kallsyms");
        let read = |source| KernelError::Read { path: path.display().to_string(), source };
        let file = File::open(&path).map_err(read)?;
        let mut found = [(0u64, 0u64); N];
        let (mut listed, mut shown) = (false, false);
        let mut reader = BufReader::with_capacity(1 << 16, file);
        let mut line = String::new();
        loop {
            line.clear();
            if reader.read_line(&mut line).map_err(read)? == 0 {
                break;
            }
            let mut words = line.split_ascii_whitespace();
            let (Some(address), Some(_), Some(name)) = (words.next(), words.next(), words.next()) else { continue };
            let Ok(address) = u64::from_str_radix(address, 16) else { continue };
            (listed, shown) = (true, shown || address != 0);
            // A module's symbol has a fourth word; the functions asked for are in the kernel itself.
            if words.next().is_some() {
                continue;
            }
            // The kernel's own symbols come in the order of their addresses, of which several can be equal.
            for (start, end) in &mut found {
                if *start != 0 && address > *start && *end == 0 {
                    *end = address;
                }
            }
            if let Some(i) = names.iter().position(|n| *n == name)
                && found[i].0 == 0
            {
                found[i].0 = address;
            }
            if found.iter().all(|(_, end)| *end != 0) {
                return Ok(found);
            }
        }
        let Some(unknown) = found.iter().position(|(_, end)| *end == 0) else { return Ok(found) };
        let problem = match found[unknown].0 {
            0 if listed && !shown => {
                "its addresses are hidden; run as root, or with CAP_SYSLOG, and with kernel.kptr_restrict below 2"
            }
            0 => {
                "it is not listed; the kernel must be built with CONFIG_KALLSYMS=y and the function must not be inlined"
            }
            _ => "no symbol follows it, so that its end is not known; please report it with `uname -r`",
        };
        Err(KernelError::NoSymbol {
            symbol: names[unknown],
            path: path.display().to_string(),
            problem: problem.to_owned(),
        })
    }
}

/// Of `6.18.44-cloud-amd64`, the first two numbers.
fn parse_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// A list such as `0-3,5`.
fn parse_cpus(list: &str) -> Vec<usize> {
    let mut cpus = Vec::new();
    for part in list.split(',') {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(from), Ok(to)) = (from.parse::<usize>(), to.parse::<usize>()) {
            cpus.extend(from..=to);
        }
    }
    cpus
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_lists_have_single_cpus_and_ranges() {
        assert_eq!(parse_cpus("0"), [0]);
        assert_eq!(parse_cpus("0-2,5"), [0, 1, 2, 5]);
        assert!(parse_cpus("").is_empty());
    }

    #[test]
    fn versions_are_compared_by_number() {
        assert_eq!(parse_version("6.18.44-fc-v669"), Some((6, 18)));
        assert_eq!(parse_version("7.2-rc1"), Some((7, 2)));
        assert_eq!(parse_version("custom"), None);
        assert!(parse_version("6.9.1") < Some((6, 17)) && Some((6, 17)) <= parse_version("6.17.0"));
    }
}
