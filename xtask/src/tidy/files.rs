//! Files: every module says in its header what it is for, none is a drawer, every crate takes the workspace's lints,
//! and every dependency has its reason in CONTRIBUTING.md.

use std::fs;

use anyhow::{Context, Result};

use super::Finding;
use super::source::Source;
use crate::workspace::Workspace;

/// Names that say nothing about what is inside, so that everything ends up there.
const DRAWERS: &[&str] = &["utils", "util", "common", "types", "helpers", "helper", "misc"];
/// The one crate with a lint table of its own, for the reason that stands there.
const OWN_LINTS: &[&str] = &["xtask/clickhouse-server/Cargo.toml"];

pub(super) fn check(sources: &[Source]) -> Vec<Finding> {
    sources.iter().flat_map(|source| header(source).into_iter().chain(drawers(source))).collect()
}

fn header(source: &Source) -> Option<Finding> {
    let shipped = source.path.split('/').any(|part| part == "src");
    let first = source.text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
    (shipped && !first.starts_with("//! ")).then(|| Finding {
        path: source.path.clone(),
        line: 1,
        message: "a file begins with `//!` and what it is for; tell its rule in a few sentences".to_owned(),
    })
}

fn drawers(source: &Source) -> Vec<Finding> {
    let remedy = |name: &str| format!("`{name}` is a drawer; name the module after the one thing that it is about");
    let stem = source.path.trim_end_matches(".rs");
    let in_path = stem.split('/').filter(|part| DRAWERS.contains(part)).map(|name| (1, remedy(name)));
    let inline = source.code.lines().enumerate().filter_map(|(number, line)| {
        let name = line.split_once("mod ")?.1.trim_start().strip_suffix('{')?.trim_end();
        DRAWERS.contains(&name).then(|| (number + 1, remedy(name)))
    });
    in_path.chain(inline).map(|(line, message)| Finding { path: source.path.clone(), line, message }).collect()
}

/// The rules about manifests, read as text: a line has a number, a parsed table has none.
pub(super) fn manifests(workspace: &Workspace) -> Result<Vec<Finding>> {
    let read =
        |path: &str| fs::read_to_string(workspace.root.join(path)).with_context(|| format!("cannot read {path}"));
    let mut findings = Vec::new();
    for member in &workspace.members {
        let path = workspace.manifest(member);
        findings.extend(own_lints(&path, &read(&path)?));
    }
    findings.extend(without_reason(&read("Cargo.toml")?, &read("CONTRIBUTING.md")?));
    Ok(findings)
}

fn own_lints(path: &str, manifest: &str) -> Option<Finding> {
    let shared = section(manifest, "[lints]").any(|(_, line)| line.replace(' ', "") == "workspace=true");
    (!shared && !OWN_LINTS.contains(&path)).then(|| Finding {
        path: path.to_owned(),
        line: 1,
        message: "there is one lint table; take it with `[lints] workspace = true`".to_owned(),
    })
}

fn without_reason(manifest: &str, contributing: &str) -> Vec<Finding> {
    section(manifest, "[workspace.dependencies]")
        .filter_map(|(number, line)| {
            let (name, value) = line.split_once('=')?;
            let name = name.trim();
            let ours = value.contains("path =");
            let reasoned = contributing.lines().any(|line| line.starts_with(&format!("| `{name}` |")));
            (!line.starts_with('#') && !ours && !reasoned).then(|| Finding {
                path: "Cargo.toml".to_owned(),
                line: number,
                message: format!("`{name}` has no reason; give it a row in the table of CONTRIBUTING.md"),
            })
        })
        .collect()
}

/// The lines of one section, numbered from the file's first.
fn section<'a>(manifest: &'a str, header: &str) -> impl Iterator<Item = (usize, &'a str)> {
    let lines = manifest.lines().enumerate().map(|(number, line)| (number + 1, line.trim()));
    let mut inside = lines.skip_while(move |(_, line)| *line != header);
    inside.next();
    inside.take_while(|(_, line)| !line.starts_with('['))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(path: &str, text: &str) -> Vec<String> {
        check(&[Source::new(path, text)]).iter().map(Finding::to_string).collect()
    }

    #[test]
    fn a_file_without_header_is_found() {
        assert!(said("sinks/src/lane.rs", "use std::fs;\n")[0].starts_with("sinks/src/lane.rs:1: a file begins"));
        assert_eq!(said("sinks/src/lane.rs", "// A plain comment.\n").len(), 1);
        assert_eq!(said("sinks/src/lane.rs", "\n//! A header.\n"), Vec::<String>::new());
        assert_eq!(said("sinks/tests/lane.rs", "use std::fs;\n"), Vec::<String>::new());
    }

    #[test]
    fn a_drawer_is_found_as_file_folder_and_inline_module() {
        for (path, text, place) in [
            ("sinks/src/utils.rs", "//! A", "sinks/src/utils.rs:1: `utils`"),
            ("sinks/src/common/mod.rs", "//! A", "sinks/src/common/mod.rs:1: `common`"),
            ("sinks/src/lane.rs", "//! A\npub(crate) mod helpers {\n}", "sinks/src/lane.rs:2: `helpers`"),
            ("sinks/src/lane.rs", "//! A\nmod types {\n}", "sinks/src/lane.rs:2: `types`"),
        ] {
            let said = said(path, text);
            assert!(said.len() == 1 && said[0].starts_with(place), "{said:?}");
        }
        assert_eq!(said("sinks/src/type_policy.rs", "//! A\nmod typesetting {\n}"), Vec::<String>::new());
    }

    #[test]
    fn a_crate_that_leaves_the_lints_out_is_found() {
        assert_eq!(own_lints("sinks/Cargo.toml", "[lints]\nworkspace = true\n[dependencies]\n"), None);
        assert!(own_lints("sinks/Cargo.toml", "[dependencies]\nworkspace = true\n").is_some());
        assert_eq!(own_lints("xtask/clickhouse-server/Cargo.toml", "[lints.rust]\n"), None);
    }

    #[test]
    fn a_dependency_without_reason_is_found_by_its_line() {
        let manifest =
            "[workspace.dependencies]\n# ours\nours = { path = \"ours\" }\nserde = \"1\"\nrand = \"1\"\n[lints]\na = 1";
        let said = without_reason(manifest, "| `serde` | encodes |\nrand is mentioned only here");
        assert_eq!(said.len(), 1);
        assert!(said[0].to_string().starts_with("Cargo.toml:5: `rand` has no reason"), "{said:?}");
    }
}
