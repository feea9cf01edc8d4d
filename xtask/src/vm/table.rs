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

/// The table as Markdown, aligned so that it also reads well on a terminal.
pub(super) fn render(columns: &[Column]) -> String {
    let mut scenarios: Vec<&str> = columns.iter().flat_map(|it| it.cells.iter().map(|it| it.0.as_str())).collect();
    scenarios.sort_unstable();
    scenarios.dedup();
    let mut rows = vec![vec!["scenario".to_owned()]];
    rows[0].extend(columns.iter().map(|it| format!("{} {}", it.kernel.name(), it.flavour.name())));
    for scenario in scenarios {
        let mut row = vec![scenario.to_owned()];
        row.extend(columns.iter().map(|it| {
            let cell = it.cells.iter().find(|it| it.0 == scenario);
            cell.map_or_else(|| "not run".into(), |it| short(&it.1))
        }));
        rows.push(row);
    }
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: Vec<_> = (0..=columns.len()).map(width).collect();
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

/// The kernels by their full names, and every reason, for below the table.
pub(super) fn notes(columns: &[Column]) -> String {
    let mut text = String::new();
    for column in columns {
        let name = format!("{} {}", column.kernel.name(), column.flavour.name());
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
    fn a_scenario_that_one_combination_lacks_is_shown_as_not_run() {
        let mut columns = columns();
        columns[0].cells.pop();
        assert!(render(&columns).contains("| expiry   | not run "), "{}", render(&columns));
    }
}
