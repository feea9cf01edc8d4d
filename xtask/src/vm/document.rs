//! The page that shows the table of all runs, docs/kernels.md.

use std::{fs, path::Path};

use anyhow::Context as _;

/// The lines of docs/kernels.md between which the table stands.
const MARKERS: [&str; 2] = ["<!-- the table of cargo xtask vm --document -->\n", "<!-- its end -->\n"];

/// Puts the table into the page, in the place of the one that is there.
pub(super) fn put_table(page: &Path, table: &str) -> anyhow::Result<()> {
    let text = fs::read_to_string(page).with_context(|| format!("cannot read {}", page.display()))?;
    let updated = with_table(&text, table)
        .with_context(|| format!("{} does not have the two lines that the table goes between", page.display()))?;
    fs::write(page, updated).with_context(|| format!("cannot write {}", page.display()))
}

fn with_table(page: &str, table: &str) -> Option<String> {
    let (before, rest) = page.split_once(MARKERS[0])?;
    let (_, after) = rest.split_once(MARKERS[1])?;
    Some(format!("{before}{}\n{}\n\n{}{after}", MARKERS[0], table.trim(), MARKERS[1]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_replaces_the_one_that_was_there_and_nothing_else() {
        let page = format!("a\n{}old\n{}b\n", MARKERS[0], MARKERS[1]);
        let updated = with_table(&page, "| new |\n").unwrap();
        assert_eq!(updated, format!("a\n{}\n| new |\n\n{}b\n", MARKERS[0], MARKERS[1]));
        assert_eq!(with_table(&updated, "| new |\n").as_deref(), Some(updated.as_str()));
        assert_eq!(with_table("no table", "| new |"), None);
    }
}
