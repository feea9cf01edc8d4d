//! The record beside the object: what it was built from, by what, and its own digest.

use std::{
    fmt::{self, Write as _},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};
use sha2::{Digest as _, Sha256};

use super::{PACKAGE, TARGET};
use crate::host;

/// The tools whose versions decide the object's bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tools {
    /// As `rustc --version` prints it, without the leading name.
    pub(super) rustc: String,
    /// As `bpf-linker --version` prints it, without the leading name.
    pub(super) bpf_linker: String,
    /// Of the LLVM that bpf-linker was built with, or `unknown`.
    pub(super) llvm: String,
}

impl fmt::Display for Tools {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rustc {}, bpf-linker {}, LLVM {}", self.rustc, self.bpf_linker, self.llvm)
    }
}

/// The content of `tracer/ebpf/tracer.bpf.o.sources.sha256`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    /// SHA-256 over everything that the object is made from, in hexadecimal.
    pub(super) sources: String,
    /// SHA-256 of the object, in hexadecimal.
    pub(super) object: String,
    pub(super) tools: Tools,
}

const HEADING: &str = "# Written by `cargo xtask build-ebpf`, compared by `cargo xtask build-ebpf --check`.\n";

impl Record {
    pub(super) fn to_text(&self) -> String {
        let Self { sources, object, tools: Tools { rustc, bpf_linker, llvm } } = self;
        format!(
            "{HEADING}sources: {sources}\nobject: {object}\nrustc: {rustc}\nbpf-linker: {bpf_linker}\nllvm: {llvm}\n"
        )
    }

    pub(super) fn parse(text: &str) -> anyhow::Result<Self> {
        let field = |name: &str| {
            let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
            value.map(str::to_owned).with_context(|| format!("the record has no line `{name}: ...`"))
        };
        let tools = Tools { rustc: field("rustc")?, bpf_linker: field("bpf-linker")?, llvm: field("llvm")? };
        Ok(Self { sources: field("sources")?, object: field("object")?, tools })
    }
}

/// SHA-256 of `bytes` in hexadecimal.
pub(super) fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a String cannot fail");
        text
    })
}

/// The digest over all that decides the object apart from the tools: the kernel side's sources and manifest, the locked
/// versions of the crates that it links, and the profile it is built with.
pub(super) fn sources_digest(root: &Path) -> anyhow::Result<String> {
    let package = root.join(PACKAGE);
    let mut files = vec![package.join("Cargo.toml")];
    collect_rust_files(&package, &mut files)?;
    let mut parts = Vec::new();
    for file in files {
        let text = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let name = file.strip_prefix(root).expect("the file was found below the root").display().to_string();
        parts.push((name, text));
    }
    parts.push(("crates".into(), linked_crates(root)?.into_bytes()));
    let manifest = root.join("Cargo.toml");
    let manifest = fs::read_to_string(&manifest).with_context(|| format!("cannot read {}", manifest.display()))?;
    let profile = toml_table(&manifest, "[profile.ebpf]");
    ensure!(!profile.is_empty(), "Cargo.toml has no table [profile.ebpf], which the kernel side is built with");
    parts.push(("profile".into(), profile.into_bytes()));
    Ok(digest_parts(parts))
}

/// One digest over named parts, whatever order they were found in.
fn digest_parts(mut parts: Vec<(String, Vec<u8>)>) -> String {
    parts.sort();
    let list: String = parts.iter().map(|(name, bytes)| format!("{} {name}\n", digest(bytes))).collect();
    digest(list.as_bytes())
}

fn collect_rust_files(directory: &Path, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    let entries = fs::read_dir(directory).with_context(|| format!("cannot list {}", directory.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot list {}", directory.display()))?;
        let path = entry.path();
        if entry.file_type().with_context(|| format!("cannot look at {}", path.display()))?.is_dir() {
            // A package built on its own has its target directory here.
            if entry.file_name() != "target" {
                collect_rust_files(&path, files)?;
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(())
}

/// Names and versions of the crates that the kernel side is built from, one per line, in a fixed order.
fn linked_crates(root: &Path) -> anyhow::Result<String> {
    let tree = host::output(host::cargo().current_dir(root).args([
        "tree",
        "--package",
        PACKAGE,
        "--features",
        "kernel",
        "--target",
        TARGET,
        "--edges",
        "normal",
        "--prefix",
        "none",
        "--format",
        "{p}",
    ]))?;
    Ok(crate_list(&tree))
}

/// Keeps name and version of each line of `cargo tree`: the rest tells where a path lies or that a line was repeated.
fn crate_list(tree: &str) -> String {
    let mut crates: Vec<String> = tree
        .lines()
        .filter(|line| !line.trim().is_empty())
        .map(|line| line.split_whitespace().take(2).collect::<Vec<_>>().join(" ") + "\n")
        .collect();
    crates.sort();
    crates.dedup();
    crates.concat()
}

/// The settings of one table of a TOML file: its lines up to the next heading, without comments and empty lines.
fn toml_table(text: &str, heading: &str) -> String {
    text.lines()
        .map(str::trim)
        .skip_while(|line| *line != heading)
        .skip(1)
        .take_while(|line| !line.starts_with('['))
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| format!("{line}\n"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            sources: "aa".into(),
            object: "bb".into(),
            tools: Tools { rustc: "1.95.0 (x 2026)".into(), bpf_linker: "0.13.0".into(), llvm: "unknown".into() },
        }
    }

    #[test]
    fn a_record_reads_back_as_it_was_written() {
        assert_eq!(Record::parse(&record().to_text()).unwrap(), record());
    }

    #[test]
    fn a_record_without_a_line_is_named_by_that_line() {
        let text = record().to_text().replace("object: bb\n", "");
        let error = Record::parse(&text).unwrap_err();
        assert_eq!(error.to_string(), "the record has no line `object: ...`");
    }

    #[test]
    fn digest_is_sha256_in_hexadecimal() {
        // FIPS 180-2, appendix B.1.
        assert_eq!(digest(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    #[test]
    fn the_order_in_which_files_are_found_does_not_matter_but_names_and_content_do() {
        let part = |name: &str, text: &str| (name.to_owned(), text.as_bytes().to_vec());
        let one = digest_parts(vec![part("a", "1"), part("b", "2")]);
        assert_eq!(one, digest_parts(vec![part("b", "2"), part("a", "1")]));
        assert_ne!(one, digest_parts(vec![part("a", "2"), part("b", "1")]));
        assert_ne!(one, digest_parts(vec![part("a", "1"), part("c", "2")]));
    }

    #[test]
    fn crates_are_listed_once_and_without_paths() {
        let tree = "tracer-ebpf v0.1.0 (/somewhere/tracer-ebpf)\naya-ebpf v0.2.1\naya-ebpf-macros v0.2.0 (proc-macro)\n\
                    aya-ebpf v0.2.1 (*)\n";
        assert_eq!(crate_list(tree), "aya-ebpf v0.2.1\naya-ebpf-macros v0.2.0\ntracer-ebpf v0.1.0\n");
    }

    #[test]
    fn a_table_ends_at_the_next_heading_and_comments_do_not_count() {
        let text = "[a]\nx = 1\n[profile.ebpf]\n# why\ninherits = \"release\"\n\nlto = \"off\"\n[b]\ny = 2\n";
        assert_eq!(toml_table(text, "[profile.ebpf]"), "inherits = \"release\"\nlto = \"off\"\n");
        assert_eq!(toml_table(text, "[c]"), "");
    }
}
