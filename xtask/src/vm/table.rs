//! The table at the end: kernel x flavour x scenario.

use std::fmt::Write as _;

use super::{
    matrix::{Flavour, Kernel},
    record::Cell,
};

/// A combination and what became of the scenarios in it.
pub(super) struct Column {
    pub(super) kernel: Kernel,
    /// `uname -r`, once the kernel has been booted.
    pub(super) release: Option<String>,
    pub(super) flavour: Flavour,
    pub(super) cells: Vec<(String, Cell)>,
}

impl Column {
    fn name(&self) -> String {
        format!("{} {}", self.kernel.name(), self.flavour.name())
    }
}

/// The table as Markdown.
pub(super) fn render(columns: &[Column]) -> String {
    let mut scenarios: Vec<&str> = columns.iter().flat_map(|it| it.cells.iter().map(|it| it.0.as_str())).collect();
    scenarios.sort_unstable();
    scenarios.dedup();
    let mut rows = vec![vec![CORNER.to_owned()]];
    rows[0].extend(columns.iter().map(Column::name));
    for scenario in scenarios {
        let mut row = vec![scenario.to_owned()];
        row.extend(columns.iter().map(|it| {
            let cell = it.cells.iter().find(|it| it.0 == scenario);
            cell.map_or_else(|| "not run".into(), |it| short(&it.1))
        }));
        rows.push(row);
    }
    aligned(&rows)
}

const CORNER: &str = "scenario";

/// Rows as Markdown that also reads well on a terminal; the first is the head.
fn aligned(rows: &[Vec<String>]) -> String {
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(String::len).max().unwrap_or(0);
    let widths: Vec<_> = (0..rows.first().map_or(0, Vec::len)).map(width).collect();
    let mut text = String::new();
    for (number, row) in rows.iter().enumerate() {
        let cells = row.iter().zip(&widths);
        text += &cells.map(|(cell, &width)| format!("| {cell:width$} ")).collect::<String>();
        text += "|\n";
        if number == 0 {
            text += &widths.iter().map(|width| format!("|{}", "-".repeat(width + 2))).collect::<String>();
            text += "|\n";
        }
    }
    text
}

/// A kernel's columns for the page: the table, the notes, and the commit that they were run on. A run of some of what stands in the page
/// changes only that, and says its commit in each cell.
pub(super) fn page(old: &str, columns: &[Column], commit: &str) -> String {
    let ran = |row: &str, column: &str| {
        columns.iter().find(|it| it.name() == column).and_then(|it| it.cells.iter().find(|(name, _)| name == row))
    };
    let mut rows: Vec<Vec<String>> = old.lines().filter(|line| line.starts_with('|')).map(cells).collect();
    let head = if rows.len() < 2 { Vec::new() } else { rows.remove(0) };
    rows.retain(|row| row.len() == head.len() && !row[0].starts_with('-'));
    let is_left = rows.iter().any(|row| head.iter().skip(1).any(|column| ran(&row[0], column).is_none()));
    let is_new =
        |(column, row): (&Column, &String)| !head.contains(&column.name()) || !rows.iter().any(|it| it[0] == *row);
    if !is_left || columns.iter().flat_map(|it| it.cells.iter().map(move |cell| (it, &cell.0))).any(is_new) {
        return format!("{}\n{}\nCommit {commit}.\n", render(columns), notes(columns));
    }
    let mut kept: Vec<String> =
        old.lines().filter(|line| !line.starts_with('|') && line.contains(": ")).map(str::to_owned).collect();
    for row in &mut rows {
        for (at, column) in head.iter().enumerate().skip(1) {
            if let Some((scenario, cell)) = ran(&row[0], column) {
                row[at] = format!("{} ({commit})", short(cell));
                kept.retain(|line| !line.starts_with(&format!("{column}: FAILED {scenario}:")));
            }
        }
    }
    let failed = notes(columns);
    kept.extend(failed.lines().filter(|line| line.contains(": FAILED ")).map(str::to_owned));
    rows.insert(0, head);
    let first = old.lines().rfind(|line| line.starts_with("Commit ")).unwrap_or_default();
    format!("{}\n{}\n\n{first}\n", aligned(&rows), kept.join("\n"))
}

/// The cells of a line of a table.
fn cells(line: &str) -> Vec<String> {
    line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()
}

/// The kernels by their full names, and every reason, for below the table.
pub(super) fn notes(columns: &[Column]) -> String {
    let mut text = String::new();
    for column in columns {
        let name = column.name();
        if let Some(release) = &column.release {
            writeln!(text, "{name}: {release}").expect("a string takes everything");
        }
        let mut told: Vec<String> = Vec::new();
        for (scenario, cell) in &column.cells {
            let line = match cell {
                Cell::Passed(_) => continue,
                // Usually the same for every scenario.
                Cell::Absent(reason) => format!("{name}: absent: {reason}"),
                Cell::Failed { failed, .. } => failed
                    .iter()
                    .map(|test| format!("{name}: FAILED {scenario}::{test}"))
                    .collect::<Vec<_>>()
                    .join("\n"),
                Cell::Unfinished(reason) => format!("{name}: FAILED {scenario}: {reason}"),
            };
            if !told.contains(&line) {
                told.push(line);
            }
        }
        told.iter().for_each(|line| writeln!(text, "{line}").expect("a string takes everything"));
    }
    text
}

fn short(cell: &Cell) -> String {
    match cell {
        Cell::Passed(took) => format!("passed {:.1} s", took.as_secs_f64()),
        Cell::Failed { tests, failed } => format!("FAILED {}/{tests}", failed.len()),
        Cell::Unfinished(_) => "UNFINISHED".into(),
        Cell::Absent(_) => "absent".into(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn columns() -> [Column; 2] {
        let absent = || Cell::Absent("no tracepoint sk_data_ready".into());
        let failed = Cell::Failed { tests: 3, failed: vec!["late (failed)".into(), "lost (hung)".into()] };
        let column = |kernel, release: Option<&str>, cells: [(&str, Cell); 2]| Column {
            kernel,
            release: release.map(str::to_owned),
            flavour: Flavour::Tracepoint,
            cells: cells.map(|(name, cell)| (name.to_owned(), cell)).into(),
        };
        [
            column(Kernel::V6_1, None, [("load", absent()), ("expiry", absent())]),
            column(
                Kernel::V6_12,
                Some("6.12.107+deb13"),
                [("expiry", Cell::Passed(Duration::from_millis(2_340))), ("load", failed)],
            ),
        ]
    }

    #[test]
    fn the_table_has_a_row_per_scenario_and_a_column_per_combination() {
        let expected = "\
| scenario | 6.1 tracepoint | 6.12 tracepoint |
|----------|----------------|-----------------|
| expiry   | absent         | passed 2.3 s    |
| load     | absent         | FAILED 2/3      |
";
        assert_eq!(render(&columns()), expected);
    }

    #[test]
    fn the_notes_name_kernels_reasons_and_tests_once() {
        let expected = "\
6.1 tracepoint: absent: no tracepoint sk_data_ready
6.12 tracepoint: 6.12.107+deb13
6.12 tracepoint: FAILED load::late (failed)
6.12 tracepoint: FAILED load::lost (hung)
";
        assert_eq!(notes(&columns()), expected);
    }

    #[test]
    fn a_run_of_a_part_changes_that_part_of_the_page_and_says_its_commit() {
        let passed = |seconds| Cell::Passed(Duration::from_secs(seconds));
        let column = |flavour, cells: &[(&str, Cell)]| Column {
            kernel: Kernel::V6_1,
            release: Some("6.1.0-50".into()),
            flavour,
            cells: cells.iter().map(|(name, cell)| ((*name).to_owned(), cell.clone())).collect(),
        };
        let failed = || Cell::Failed { tests: 3, failed: vec!["late (failed)".into()] };
        let whole = [
            column(Flavour::Fentry, &[("expiry", passed(1)), ("load", passed(2))]),
            column(Flavour::Kprobe, &[("expiry", failed()), ("load", failed())]),
        ];
        let first = page("anything", &whole, "aaa");
        let expected = "\
| scenario | 6.1 fentry   | 6.1 kprobe |
|----------|--------------|------------|
| expiry   | passed 1.0 s | FAILED 1/3 |
| load     | passed 2.0 s | FAILED 1/3 |

6.1 fentry: 6.1.0-50
6.1 kprobe: 6.1.0-50
6.1 kprobe: FAILED expiry::late (failed)
6.1 kprobe: FAILED load::late (failed)

Commit aaa.
";
        assert_eq!(first, expected);
        let expected = "\
| scenario | 6.1 fentry   | 6.1 kprobe         |
|----------|--------------|--------------------|
| expiry   | passed 1.0 s | FAILED 1/3         |
| load     | passed 2.0 s | passed 3.0 s (bbb) |

6.1 fentry: 6.1.0-50
6.1 kprobe: 6.1.0-50
6.1 kprobe: FAILED expiry::late (failed)

Commit aaa.
";
        assert_eq!(page(&first, &[column(Flavour::Kprobe, &[("load", passed(3))])], "bbb"), expected);
        // What the page does not have, or all that it has, makes a new one.
        assert!(page(&first, &[column(Flavour::Kprobe, &[("other", passed(3))])], "bbb").ends_with("Commit bbb.\n"));
        assert!(page(&first, &whole, "bbb").ends_with("Commit bbb.\n"));
    }

    #[test]
    fn a_scenario_that_one_combination_lacks_is_shown_as_not_run() {
        let mut columns = columns();
        columns[0].cells.pop();
        assert!(render(&columns).contains("| expiry   | not run "), "{}", render(&columns));
    }
}
