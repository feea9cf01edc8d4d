//! Pages of docs/ that show what a chore has found.

use std::{fs, path::Path};

use anyhow::Context as _;

/// Puts text into a page, in the place of what stands between the line that names the command and the line of its end, from which it is
/// made.
pub(crate) fn put(page: &Path, command: &str, table: &dyn Fn(&str) -> String) -> anyhow::Result<()> {
    let text = fs::read_to_string(page).with_context(|| format!("cannot read {}", page.display()))?;
    let updated = with(&text, &markers(command), table)
        .with_context(|| format!("{} does not have the two lines that it goes between", page.display()))?;
    fs::write(page, updated).with_context(|| format!("cannot write {}", page.display()))
}

/// The lines between which the output of a command stands.
fn markers(command: &str) -> [String; 2] {
    [format!("<!-- the output of {command} -->\n"), "<!-- its end -->\n".to_owned()]
}

fn with(page: &str, markers: &[String; 2], table: &dyn Fn(&str) -> String) -> Option<String> {
    let (before, rest) = page.split_once(&markers[0])?;
    let (old, after) = rest.split_once(&markers[1])?;
    Some(format!("{before}{}\n{}\n\n{}{after}", markers[0], table(old).trim(), markers[1]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_output_replaces_the_one_that_was_there_and_nothing_else() {
        let markers = markers("cargo xtask vm");
        let page = format!("a\n{}old\n{}b\n", markers[0], markers[1]);
        let updated = with(&page, &markers, &|old| format!("| new for {} |\n", old.trim())).unwrap();
        assert_eq!(updated, format!("a\n{}\n| new for old |\n\n{}b\n", markers[0], markers[1]));
        assert_eq!(with(&updated, &markers, &str::to_owned).as_deref(), Some(updated.as_str()));
        assert_eq!(with("no table", &markers, &str::to_owned), None);
    }
}
