//! Which kernels and flavours there are, and what is expected of each combination.

use clap::ValueEnum;

/// The kernels that the tracer is proven on: Debian's cloud kernels, each from the release that carries it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Kernel {
    #[value(name = "5.10")]
    V5_10,
    #[value(name = "6.1")]
    V6_1,
    #[value(name = "6.12")]
    V6_12,
    #[value(name = "newest")]
    Newest,
}

impl Kernel {
    pub(super) const ALL: [Self; 4] = [Self::V5_10, Self::V6_1, Self::V6_12, Self::Newest];

    /// The name on the command line and in the table.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::V5_10 => "5.10",
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
            Self::Newest => "newest",
        }
    }

    /// The Debian release that carries it.
    pub(super) fn suite(self) -> &'static str {
        match self {
            Self::V5_10 => "bullseye",
            Self::V6_1 => "bookworm",
            Self::V6_12 => "trixie",
            Self::Newest => "sid",
        }
    }

    /// Whether `release` (as `uname -r` gives it) is this kernel and not another one that the suite carries by now.
    pub(super) fn is(self, release: &str) -> bool {
        let version = release.strip_prefix(self.name());
        self == Self::Newest || version.is_some_and(|rest| rest.starts_with(['.', '-', '+']))
    }
}

/// How the tracer attaches: its option `--hooks`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(super) enum Flavour {
    Auto,
    Fentry,
    Kprobe,
    Tracepoint,
}

impl Flavour {
    /// Each of them can be forced; `auto` is one of them wherever it runs.
    pub(super) const FORCED: [Self; 3] = [Self::Fentry, Self::Kprobe, Self::Tracepoint];

    /// The option's value.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Fentry => "fentry",
            Self::Kprobe => "kprobe",
            Self::Tracepoint => "tracepoint",
        }
    }
}

/// What is expected of a combination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Support {
    /// Every scenario has to run and pass.
    Expected,
    /// The tracer has to refuse at start, because of this.
    Absent(&'static str),
}

/// What is expected of the tracer in `flavour` on `kernel`. A row here is a promise in both directions: where it says absent,
/// a run fails if the tracer starts after all.
pub(super) fn support(kernel: Kernel, flavour: Flavour) -> Support {
    match (flavour, kernel) {
        (Flavour::Tracepoint, Kernel::V5_10 | Kernel::V6_1) => {
            Support::Absent("its tracepoint consume_skb does not say where in the kernel a packet ended (6.4)")
        }
        _ => Support::Expected,
    }
}

/// Scenarios that a combination cannot run though the combination is expected, with the reason.
const EXCEPTIONS: [(Kernel, Flavour, &str, &str); 0] = [];

/// Why `scenario` is not to run in an expected combination; `None` where it has to.
pub(super) fn exception(kernel: Kernel, flavour: Flavour, scenario: &str) -> Option<&'static str> {
    let found = EXCEPTIONS.iter().find(|it| (it.0, it.1, it.2) == (kernel, flavour, scenario));
    found.map(|it| it.3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_is_known_by_its_release() {
        assert!(Kernel::V5_10.is("5.10.0-32-cloud-amd64"));
        assert!(Kernel::V6_1.is("6.1.0-50-cloud-amd64"));
        assert!(!Kernel::V6_1.is("6.12.107+deb13-cloud-amd64"));
        assert!(Kernel::V6_12.is("6.12.107+deb13-cloud-amd64"));
        assert!(Kernel::Newest.is("7.2.13+deb14-cloud-amd64"));
    }

    #[test]
    fn names_are_those_of_the_command_line() {
        for kernel in Kernel::ALL {
            assert_eq!(Kernel::from_str(kernel.name(), false), Ok(kernel));
        }
        for flavour in Flavour::value_variants() {
            assert_eq!(Flavour::from_str(flavour.name(), false), Ok(*flavour));
        }
    }

    #[test]
    fn auto_is_expected_exactly_where_some_flavour_is() {
        for kernel in Kernel::ALL {
            let forced = Flavour::FORCED.iter().any(|&flavour| support(kernel, flavour) == Support::Expected);
            assert_eq!(support(kernel, Flavour::Auto) == Support::Expected, forced, "{}", kernel.name());
        }
    }

    #[test]
    fn every_absence_and_exception_has_a_reason() {
        for kernel in Kernel::ALL {
            for &flavour in Flavour::value_variants() {
                assert_ne!(support(kernel, flavour), Support::Absent(""));
            }
        }
        assert!(EXCEPTIONS.iter().all(|it| !it.3.is_empty()));
    }
}
