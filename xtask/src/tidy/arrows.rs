//! Arrows between crates point down: schemas ← operators ← sinks ← pipeline ← benches, simulator.
//!
//! Cargo refuses circles but not an arrow that skips upwards into a new one, and a dev-dependency upwards is refused
//! by nobody. The engine belongs to `operators` alone, and the tools depend on nothing that they build or check.

use super::Finding;
use crate::workspace::{Member, Workspace};

/// The floors, lowest first. Crates on one floor don't know each other.
const FLOORS: &[&[&str]] = &[
    &["tidings-schemas"],
    &["tidings-operators"],
    &["tidings-sinks", "tidings-gateway"],
    &["tidings-pipeline"],
    &["tidings-benches", "tidings-simulator"],
];
/// Beside the house: they must build before anything else does.
const TOOLS: &[&str] = &["xtask", "clickhouse-server"];
/// The one crate that may name the engine, and the engine's crates.
const ENGINE_OWNER: &str = "tidings-operators";
const ENGINE: &[&str] = &["timely", "differential-dataflow"];

pub(super) fn check(workspace: &Workspace) -> Vec<Finding> {
    workspace
        .members
        .iter()
        .flat_map(|member| {
            let messages = wrong_arrows(member, &workspace.members);
            messages.into_iter().map(|message| Finding { path: workspace.manifest(member), line: 1, message })
        })
        .collect()
}

fn wrong_arrows(member: &Member, members: &[Member]) -> Vec<String> {
    let mut messages = Vec::new();
    let own = floor(&member.name);
    let is_tool = TOOLS.contains(&member.name.as_str());
    if own.is_none() && !is_tool {
        messages.push("this crate stands on no floor; give it one in xtask/src/tidy/arrows.rs".to_owned());
    }
    for dependency in &member.dependencies {
        if ENGINE.contains(&dependency.as_str()) && member.name != ENGINE_OWNER {
            messages.push(format!("`{dependency}` belongs to {ENGINE_OWNER} alone; use its harness"));
        }
        if !members.iter().any(|member| member.name == *dependency) {
            continue;
        }
        if is_tool || TOOLS.contains(&dependency.as_str()) {
            messages.push(format!("a tool and what it builds don't link each other: run `{dependency}` instead"));
        } else if own.is_some() && floor(dependency) >= own {
            messages.push(format!("the arrow to `{dependency}` does not point down; move what is shared below both"));
        }
    }
    messages
}

fn floor(name: &str) -> Option<usize> {
    FLOORS.iter().position(|floor| floor.contains(&name))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is said of a crate with one dependency, in a workspace of all crates on the floors and the tools.
    fn said(name: &str, dependency: &str) -> Vec<String> {
        let member = |name: &str, dependencies: Vec<String>| Member {
            name: name.to_owned(),
            folder: "/workspace".into(),
            dependencies,
        };
        let names = FLOORS.iter().copied().flatten().chain(TOOLS);
        let members: Vec<Member> = names.map(|name| member(name, Vec::new())).collect();
        wrong_arrows(&member(name, vec![dependency.to_owned()]), &members)
    }

    #[test]
    fn arrows_point_down_and_nowhere_else() {
        for (from, to, remedy) in [
            ("tidings-schemas", "tidings-operators", "below both"),
            ("tidings-operators", "tidings-sinks", "below both"),
            ("tidings-operators", "tidings-operators", "below both"),
            ("tidings-sinks", "tidings-pipeline", "below both"),
            ("tidings-sinks", "tidings-gateway", "below both"),
            ("tidings-pipeline", "tidings-benches", "below both"),
            ("tidings-pipeline", "tidings-simulator", "below both"),
            ("tidings-benches", "tidings-simulator", "below both"),
            ("tidings-pipeline", "xtask", "run"),
            ("xtask", "tidings-schemas", "run"),
            ("clickhouse-server", "tidings-schemas", "run"),
            ("tidings-sinks", "timely", "its harness"),
            ("tidings-pipeline", "differential-dataflow", "its harness"),
            ("tidings-attic", "serde", "stands on no floor"),
        ] {
            let said = said(from, to);
            assert!(said.len() == 1 && said[0].contains(remedy), "{from} -> {to}: {said:?}");
        }
        for (from, to) in [
            ("tidings-operators", "tidings-schemas"),
            ("tidings-sinks", "tidings-operators"),
            ("tidings-pipeline", "tidings-schemas"),
            ("tidings-benches", "tidings-pipeline"),
            ("tidings-simulator", "tidings-pipeline"),
            ("tidings-operators", "timely"),
            ("xtask", "anyhow"),
        ] {
            assert_eq!(said(from, to), Vec::<String>::new(), "{from} -> {to}");
        }
    }
}
