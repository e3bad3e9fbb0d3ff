//! Checks the documents that say which test shows what: every test they name exists, and every row of
//! their tables names one, or says why there is none.
//!
//! A row's last column is the test, written as `` `name_of_the_test` ``. A row without one says `not
//! built` there, or `no such part`.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use crate::process;

/// The documents.
const FILES: [&str; 2] = ["docs/COVERAGE.md", "docs/SECURITY.md"];
/// What a row without a test begins with.
const EXCUSES: [&str; 2] = ["not built", "no such part"];

/// Fails with every row that is wrong.
pub(crate) fn check() -> Result<()> {
    let mut tests = HashSet::new();
    for directory in ["userspace", "ebpf/common", "tests", "bench", "xtask"] {
        collect_tests(&process::root().join(directory), &mut tests)?;
    }
    for file in FILES {
        let text = fs::read_to_string(process::root().join(file))
            .with_context(|| format!("cannot read {file}"))?;
        let (rows, wrong) = judge(&text, &tests);
        if !wrong.is_empty() {
            bail!("{file} is not true:\n  {}", wrong.join("\n  "));
        }
        let shown = rows.iter().filter(|shown| **shown).count();
        ensure!(shown > 0, "{file} has no rows");
        println!(
            "\n{file}: {} rows, {shown} with tests that exist, {} without",
            rows.len(),
            rows.len() - shown
        );
    }
    Ok(())
}

/// For each row of a document whether it has a test, and what is wrong.
fn judge(text: &str, tests: &HashSet<String>) -> (Vec<bool>, Vec<String>) {
    let mut rows = Vec::new();
    let mut wrong = Vec::new();
    let mut lines = text.lines().enumerate().peekable();
    while let Some((number, line)) = lines.next() {
        let is_rule = |line: &str| line.starts_with("|-") || line.starts_with("| -");
        let is_header = lines.peek().is_some_and(|(_, next)| is_rule(next));
        if !line.starts_with("| ") || is_rule(line) || is_header {
            continue;
        }
        let mut cells = line.trim_end().trim_end_matches('|').rsplit('|');
        let cell = cells.next().unwrap_or("").trim();
        let named: Vec<&str> = cell.split('`').skip(1).step_by(2).collect();
        if named.is_empty() && !EXCUSES.iter().any(|excuse| cell.starts_with(excuse)) {
            let excuses = EXCUSES.join("` nor `");
            wrong.push(format!(
                "line {}: neither a test nor `{excuses}`",
                number + 1
            ));
        }
        rows.push(!named.is_empty());
        let missing = named
            .iter()
            .filter(|name| !tests.contains(name.rsplit("::").next().unwrap_or(name)));
        wrong.extend(missing.map(|name| format!("line {}: no test is named {name}", number + 1)));
    }
    (rows, wrong)
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
    use std::collections::HashSet;

    use super::{judge, tests_in};

    #[test]
    fn a_row_names_tests_that_exist_or_says_why_it_has_none() {
        let tests = HashSet::from(["a_test".to_owned()]);
        let table = |cell: &str| format!("| part | test |\n|---|---|\n| some `part` | {cell} |\n");
        let judged = |cell: &str| judge(&table(cell), &tests);
        assert_eq!(judged("`a_test`, `module::a_test`"), (vec![true], vec![]));
        assert_eq!(judged("not built: later"), (vec![false], vec![]));
        assert_eq!(judged("no such part"), (vec![false], vec![]));
        assert_eq!(judged("`another`").1, ["line 3: no test is named another"]);
        assert_eq!(judged("").1.len(), 1);
    }

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
