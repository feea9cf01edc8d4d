//! Debian's cloud kernels and its static busybox: fetched once, kept outside the tree.

use std::{
    env, fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};

use super::{
    apt::{Apt, dependencies},
    matrix::Kernel,
};

/// How long a kernel stays the newest of its suite without asking again.
const FRESH: Duration = Duration::from_secs(24 * 60 * 60);

const META_PACKAGE: &str = "linux-image-cloud-amd64";
const BUSYBOX_PACKAGE: &str = "busybox-static";
const PEERS_PACKAGE: &str = "libbpf-tools";

/// Where kernels are kept.
pub(super) struct Cache {
    root: PathBuf,
}

/// A kernel that is ready to be booted.
#[derive(Debug)]
pub(super) struct Image {
    /// As `uname -r` gives it.
    pub(super) release: String,
    directory: PathBuf,
}

impl Image {
    /// The bootable file.
    pub(super) fn kernel(&self) -> PathBuf {
        self.directory.join("vmlinuz")
    }

    /// What the kernel's `/lib/modules/<release>` holds.
    pub(super) fn modules(&self) -> PathBuf {
        self.directory.join("modules")
    }
}

impl Cache {
    /// `tracer/kernels` in the user's cache directory.
    pub(super) fn locate() -> anyhow::Result<Self> {
        // The XDG specification has relative paths ignored.
        let named = env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
        let cache = named.or_else(|| env::home_dir().map(|home| home.join(".cache")));
        let cache = cache.context("cannot tell where to keep kernels; set XDG_CACHE_HOME")?;
        Ok(Self { root: cache.join("tracer/kernels") })
    }

    /// The kernel that the suite carries now, or the one that it carried when it was last asked, if it cannot be asked.
    pub(super) fn obtain(&self, kernel: Kernel) -> anyhow::Result<Image> {
        let current = self.root.join(kernel.suite()).join("current");
        let known = self.known(&current);
        if let Some(image) = &known
            && fs::metadata(&current).and_then(|it| it.modified()).is_ok_and(|time| is_fresh(time.elapsed().ok()))
        {
            return Ok(Image { release: image.release.clone(), directory: image.directory.clone() });
        }
        let image = match (self.fetch(kernel), known) {
            (Ok(image), _) => image,
            (Err(error), Some(image)) => {
                println!("kernel {}: using {} of an earlier run: {error:#}", kernel.name(), image.release);
                return Ok(image);
            }
            (Err(error), None) => return Err(error.context(format!("cannot get kernel {}", kernel.name()))),
        };
        fs::write(&current, &image.release).with_context(|| format!("cannot write {}", current.display()))?;
        Ok(image)
    }

    fn known(&self, current: &Path) -> Option<Image> {
        let release = fs::read_to_string(current).ok()?;
        let directory = self.root.join(&release);
        directory.is_dir().then_some(Image { release, directory })
    }

    fn fetch(&self, kernel: Kernel) -> anyhow::Result<Image> {
        println!("kernel {}: asking Debian {} for its cloud kernel", kernel.name(), kernel.suite());
        let apt = Apt::open(kernel.suite(), self.root.join(kernel.suite()))?;
        let image = image_package(&dependencies(&apt.show(META_PACKAGE)?))?;
        let release = image.strip_prefix(IMAGE_PREFIX).expect("it was chosen by that").to_owned();
        ensure!(
            kernel.is(&release),
            "Debian {} carries {release} by now, which is not kernel {}",
            kernel.suite(),
            kernel.name()
        );
        let directory = self.root.join(&release);
        if !directory.is_dir() {
            let packages = packages_with_content(&image, &release, &dependencies(&apt.show(&image)?));
            self.unpack(&apt, &packages, &release, &directory)?;
        }
        Ok(Image { release, directory })
    }

    /// Keeps of the packages what a guest needs. The directory appears in one step, so that it is never half of a kernel.
    fn unpack(&self, apt: &Apt, packages: &[String], release: &str, directory: &Path) -> anyhow::Result<()> {
        let unpacked = Scratch::new(&self.root)?;
        let unfinished = Scratch::new(&self.root)?;
        apt.unpack(packages, &unpacked.0)?;
        let keep = |places: &[String], name: &str| -> anyhow::Result<()> {
            let found = places.iter().map(|place| unpacked.0.join(place)).find(|path| path.exists());
            let found = found.with_context(|| format!("the packages {packages:?} hold none of {places:?}"))?;
            let to = unfinished.0.join(name);
            fs::rename(&found, &to).with_context(|| format!("cannot move {} to {}", found.display(), to.display()))
        };
        keep(&[format!("boot/vmlinuz-{release}"), format!("usr/lib/modules/{release}/vmlinuz")], "vmlinuz")?;
        keep(&[format!("lib/modules/{release}"), format!("usr/lib/modules/{release}")], "modules")?;
        fs::rename(&unfinished.0, directory).with_context(|| format!("cannot make {}", directory.display()))
    }

    /// A static busybox: guests have no shell otherwise.
    pub(super) fn busybox(&self) -> anyhow::Result<PathBuf> {
        let file = self.root.join("busybox");
        if !file.is_file() {
            println!("asking Debian for {BUSYBOX_PACKAGE}: the guests' shell");
            let suite = Kernel::V6_12.suite();
            let apt = Apt::open(suite, self.root.join(suite))?;
            let unpacked = Scratch::new(&self.root)?;
            apt.unpack(&[BUSYBOX_PACKAGE.into()], &unpacked.0)?;
            let places = ["usr/bin/busybox", "bin/busybox"].map(|place| unpacked.0.join(place));
            let found = places.iter().find(|path| path.is_file());
            let found = found.with_context(|| format!("{BUSYBOX_PACKAGE} holds no busybox"))?;
            fs::rename(found, &file).with_context(|| format!("cannot make {}", file.display()))?;
        }
        Ok(file)
    }

    /// bcc's libbpf-tools with all that they need, as their packages unpack: other programs that watch connections.
    pub(super) fn peers(&self) -> anyhow::Result<PathBuf> {
        let directory = self.root.join(PEERS_PACKAGE);
        if !directory.is_dir() {
            println!("asking Debian for {PEERS_PACKAGE}: what the tracer is compared with in guests");
            let suite = Kernel::V6_12.suite();
            let apt = Apt::open(suite, self.root.join(suite))?;
            let mut packages = vec![PEERS_PACKAGE.to_owned()];
            let mut next = 0;
            while let Some(package) = packages.get(next) {
                for needed in dependencies(&apt.show(package)?) {
                    if !packages.contains(&needed) {
                        packages.push(needed);
                    }
                }
                next += 1;
            }
            let unpacked = Scratch::new(&self.root)?;
            apt.unpack(&packages, &unpacked.0)?;
            fs::rename(&unpacked.0, &directory).with_context(|| format!("cannot make {}", directory.display()))?;
        }
        Ok(directory)
    }
}

/// A directory beside the kernels, on the same file system, that goes away with the value.
struct Scratch(PathBuf);

impl Scratch {
    fn new(root: &Path) -> anyhow::Result<Self> {
        for number in 0..100 {
            let path = root.join(format!("unfinished-{}-{number}", std::process::id()));
            if fs::create_dir(&path).is_ok() {
                return Ok(Self(path));
            }
        }
        bail!("cannot make a directory in {}", root.display())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // It is not there any more when it has become a kernel's directory.
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn is_fresh(age: Option<Duration>) -> bool {
    age.is_some_and(|age| age < FRESH)
}

const IMAGE_PREFIX: &str = "linux-image-";

/// The versioned package that the meta package stands for.
fn image_package(dependencies: &[String]) -> anyhow::Result<String> {
    let versioned = |name: &&String| {
        name.strip_prefix(IMAGE_PREFIX).is_some_and(|rest| rest.starts_with(|char: char| char.is_ascii_digit()))
    };
    let found = dependencies.iter().find(versioned).cloned();
    found.with_context(|| format!("{META_PACKAGE} depends on no kernel, only on {dependencies:?}"))
}

/// The packages that hold the kernel and its modules: newer releases leave the image package itself empty, and spread the
/// content over others, whose names end alike.
fn packages_with_content(image: &str, release: &str, dependencies: &[String]) -> Vec<String> {
    let mut packages = vec![image.to_owned()];
    packages.extend(dependencies.iter().filter(|name| name.ends_with(&format!("-{release}"))).cloned());
    packages
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn the_kernel_is_the_versioned_image() {
        let sid = names(&["linux-base-cloud-amd64", "linux-image-7.2.13+deb14-cloud-amd64"]);
        assert_eq!(image_package(&sid).unwrap(), "linux-image-7.2.13+deb14-cloud-amd64");
        assert!(image_package(&names(&["linux-base", "linux-image-cloud-amd64"])).is_err());
    }

    #[test]
    fn a_split_kernel_is_fetched_in_all_its_parts() {
        let old = "linux-image-6.1.0-50-cloud-amd64";
        let packages = packages_with_content(old, "6.1.0-50-cloud-amd64", &names(&["kmod", "linux-base", "dracut"]));
        assert_eq!(packages, [old]);
        let release = "7.2.13+deb14-cloud-amd64";
        let part = |kind: &str| format!("linux-{kind}-{release}");
        let dependencies = [part("base"), part("binary"), "linux-base".into(), "dracut".into(), part("modules")];
        let packages = packages_with_content(&part("image"), release, &dependencies);
        assert_eq!(packages, ["image", "base", "binary", "modules"].map(part));
    }

    #[test]
    fn an_answer_is_fresh_for_a_day_and_never_from_the_future() {
        assert!(is_fresh(Some(Duration::from_secs(60))));
        assert!(!is_fresh(Some(FRESH)));
        assert!(!is_fresh(None));
    }
}
