//! Checks `docs/COVERAGE.md`: every test it names exists, and every row that is not marked as later
//! work names one.
//!
//! A row's last two columns are the item in the code and the test. Tests are written as
//! `` `name_of_the_test` ``; a row without a test says `not built` there.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::process;

const FILE: &str = "docs/COVERAGE.md";
const NOT_BUILT: &str = "not built";

/// Fails with every row that is wrong.
pub(crate) fn check() -> Result<()> {
    let text = fs::read_to_string(process::root().join(FILE))
        .with_context(|| format!("cannot read {FILE}"))?;
    let mut tests = HashSet::new();
    for directory in ["userspace", "tests", "bench", "xtask"] {
        collect_tests(&process::root().join(directory), &mut tests)?;
    }
    let mut rows = 0;
    let mut built = 0;
    let mut wrong = Vec::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| is_row(line)) {
        rows += 1;
        let cell = line
            .trim_end()
            .trim_end_matches('|')
            .rsplit('|')
            .next()
            .unwrap_or("")
            .trim();
        let named: Vec<&str> = cell.split('`').skip(1).step_by(2).collect();
        if named.is_empty() && !cell.starts_with(NOT_BUILT) {
            wrong.push(format!(
                "line {}: neither a test nor `{NOT_BUILT}`",
                number + 1
            ));
        }
        built += usize::from(!named.is_empty());
        let missing = named
            .iter()
            .filter(|name| !tests.contains(name.rsplit("::").next().unwrap_or(name)));
        wrong.extend(missing.map(|name| format!("line {}: no test is named {name}", number + 1)));
    }
    if !wrong.is_empty() {
        bail!("{FILE} is not true:\n  {}", wrong.join("\n  "));
    }
    anyhow::ensure!(rows > 0, "{FILE} has no rows");
    println!(
        "\ncoverage: {rows} parts, {built} with tests that exist, {} not built",
        rows - built
    );
    Ok(())
}

fn is_row(line: &str) -> bool {
    line.starts_with("| ") && !line.starts_with("| seed")
}

/// Adds the names of all functions marked as tests below `directory`.
fn collect_tests(directory: &Path, tests: &mut HashSet<String>) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            collect_tests(&path, tests)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            tests.extend(tests_in(&fs::read_to_string(&path)?));
        }
    }
    Ok(())
}

/// Names of the functions that follow a `#[test]`, with other attributes between them at most.
fn tests_in(source: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut marked = false;
    for line in source.lines().map(str::trim) {
        if line == "#[test]" {
            marked = true;
        } else if let Some(rest) = line.split("fn ").nth(1).filter(|_| marked) {
            let end = rest.find(['(', '<']).unwrap_or(rest.len());
            names.push(rest[..end].to_owned());
            marked = false;
        } else if !line.starts_with("#[") && !line.starts_with("//") {
            marked = false;
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::tests_in;

    #[test]
    fn only_functions_marked_as_tests_count() {
        let source = "
            #[test]
            #[ignore = \"slow\"]
            fn a_test_with_another_attribute() {}
            fn a_helper() {}
            #[test]
            // A remark.
            fn a_test_behind_a_remark() -> Result<(), ()> {}
            #[test]
            struct NotAFunction;
            fn after_something_else() {}";
        assert_eq!(
            tests_in(source),
            ["a_test_with_another_attribute", "a_test_behind_a_remark"]
        );
    }
}
