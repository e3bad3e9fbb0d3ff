//! Checks that the packages depend on each other in one direction only.

use anyhow::{Context, Result, bail};

use crate::process;

/// The packages in layers: each may need those before it, by name. Nothing that is shipped may
/// need a package of tests, benchmarks or tools, not even to test itself with.
const ALLOWED: &[(&str, &[&str])] = &[
    ("towpath-ebpf-common", &[]),
    ("towpath-proto", &["towpath-ebpf-common"]),
    ("towpath-engine", &["towpath-proto"]),
    ("towpath-kernel", &["towpath-proto", "towpath-ebpf-common"]),
    (
        "towpath-server",
        &[
            "towpath-kernel",
            "towpath-engine",
            "towpath-proto",
            "towpath-ebpf-common",
        ],
    ),
    ("towpath", &["towpath-engine", "towpath-proto"]),
    (
        "towpath-cli",
        &[
            "towpath",
            "towpath-server",
            "towpath-kernel",
            "towpath-engine",
            "towpath-proto",
            "towpath-ebpf-common",
        ],
    ),
];

/// Fails where a package needs one it must not know, naming both.
pub(crate) fn check() -> Result<()> {
    println!(
        "\ndependencies: cli → server, node → engine, kernel → proto → ebpf/common, and none on tests, bench or xtask"
    );
    let metadata = process::metadata()?;
    let packages = metadata["packages"]
        .as_array()
        .context("no packages in the metadata")?;
    let name = |value: &serde_json::Value| value["name"].as_str().map(str::to_owned);
    let own: Vec<String> = packages.iter().filter_map(name).collect();
    for package in packages {
        let package_name = name(package).context("a package without a name")?;
        let Some((_, allowed)) = ALLOWED.iter().find(|(layer, _)| *layer == package_name) else {
            continue;
        };
        let needed = package["dependencies"]
            .as_array()
            .context("no list of dependencies")?;
        for dependency in needed
            .iter()
            .filter_map(name)
            .filter(|name| own.contains(name))
        {
            if !allowed.contains(&dependency.as_str()) {
                bail!("{package_name} must not depend on {dependency}");
            }
        }
    }
    for (layer, _) in ALLOWED {
        anyhow::ensure!(
            own.iter().any(|name| name == layer),
            "the package {layer} is missing"
        );
    }
    Ok(())
}
