//! What the kernel will ask for, looked at before anything is done.

use anyhow::{Result, bail};

/// Capability, its bit (`include/uapi/linux/capability.h`), and what it is needed for.
const NEEDED: [(&str, u32, &str); 4] = [
    ("CAP_BPF", 39, "load programs"),
    ("CAP_PERFMON", 38, "read kernel memory from them"),
    ("CAP_SYS_ADMIN", 21, "run the control program and enter network namespaces"),
    ("CAP_SYSLOG", 34, "read the addresses of kernel functions"),
];

/// The needed capabilities that are missing, each with its use; nothing if that cannot be told. `status` is the text of
/// `/proc/self/status`.
pub(super) fn missing(status: &str) -> Option<Vec<String>> {
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    let effective = u64::from_str_radix(mask.trim(), 16).ok()?;
    let missing = NEEDED.iter().filter(|(_, bit, _)| effective >> bit & 1 == 0);
    Some(missing.map(|(name, _, what)| format!("{name} (to {what})")).collect())
}

/// Fails, with the remedy, if a needed capability is missing. `status` is the text of `/proc/self/status`.
///
/// # Errors
/// Names what is missing and what for.
pub(super) fn check(status: &str) -> Result<()> {
    // Unknown is not missing: then the kernel itself will say no.
    let missing = missing(status).unwrap_or_default();
    if missing.is_empty() {
        return Ok(());
    }
    bail!("not permitted to trace: run with sudo; missing {}", missing.join(", "))
}

#[cfg(test)]
mod tests {
    use super::check;

    #[test]
    fn root_has_all() {
        assert!(check("Name:\tx\nCapEff:\t000001ffffffffff\n").is_ok());
    }

    #[test]
    fn what_is_missing_is_named_with_its_use() {
        let error = check("CapEff:\t0000000000000000\n").map_err(|e| e.to_string());
        let error = error.expect_err("nothing is permitted");
        assert!(error.contains("sudo") && error.contains("CAP_BPF (to load programs)"), "{error}");
        let error = check("CapEff:\t000001fbffffffff\n").map_err(|e| e.to_string()).expect_err("one is missing");
        assert!(error.contains("CAP_SYSLOG") && !error.contains("CAP_BPF"), "{error}");
    }

    #[test]
    fn what_is_unknown_is_not_missing() {
        assert!(check("").is_ok());
    }
}
