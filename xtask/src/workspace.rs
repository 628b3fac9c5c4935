//! What cargo knows about this workspace: its members, who depends on whom, where built files go.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// The workspace, as `cargo metadata` describes it.
pub(crate) struct Workspace {
    pub(crate) root: PathBuf,
    pub(crate) target: PathBuf,
    pub(crate) members: Vec<Member>,
}

/// One crate of ours.
pub(crate) struct Member {
    pub(crate) name: String,
    /// The folder that holds its `Cargo.toml`.
    pub(crate) folder: PathBuf,
    /// Names of the crates it depends on, whatever the kind: a dev-dependency upwards is an arrow, too.
    pub(crate) dependencies: Vec<String>,
}

impl Workspace {
    /// Asks cargo; needs no network, because dependencies are not resolved.
    pub(crate) fn load() -> Result<Self> {
        let output = cargo()
            .args(["metadata", "--no-deps", "--format-version=1"])
            .stderr(Stdio::inherit())
            .output()
            .context("cannot run cargo")?;
        if !output.status.success() {
            bail!("`cargo metadata` failed");
        }
        let metadata: Value = serde_json::from_slice(&output.stdout).context("`cargo metadata` printed no JSON")?;
        let text = |value: &Value| value.as_str().map(str::to_owned).context("`cargo metadata` lacks a field");
        let mut members = Vec::new();
        for package in metadata["packages"].as_array().context("`cargo metadata` lacks packages")? {
            let manifest = PathBuf::from(text(&package["manifest_path"])?);
            members.push(Member {
                name: text(&package["name"])?,
                folder: manifest.parent().context("a manifest without a folder")?.to_owned(),
                dependencies: package["dependencies"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .map(|dependency| text(&dependency["name"]))
                    .collect::<Result<_>>()?,
            });
        }
        Ok(Workspace {
            root: text(&metadata["workspace_root"])?.into(),
            target: text(&metadata["target_directory"])?.into(),
            members,
        })
    }

    /// A member's manifest, as seen from the root.
    pub(crate) fn manifest(&self, member: &Member) -> String {
        let folder = member.folder.strip_prefix(&self.root).unwrap_or(&member.folder);
        folder.join("Cargo.toml").to_string_lossy().into_owned()
    }
}

/// The cargo that runs us, in whatever folder we were called from.
#[expect(clippy::disallowed_methods, reason = "cargo names itself to its subcommands in the environment")]
pub(crate) fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // What cargo says to us about ourselves, build scripts would take for news about their own crates: `ring` and all
    // that depends on it were built again each time after a plain `cargo test`.
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")) {
            cargo.env_remove(name);
        }
    }
    cargo
}

/// Runs a command to its end; an error names what was run.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let shown = shown(command);
    let status = command.stdin(Stdio::null()).status().with_context(|| format!("cannot run `{shown}`"))?;
    if !status.success() {
        bail!("`{shown}` failed with {status}");
    }
    Ok(())
}

/// The command as a person would type it, without the folder of its program.
pub(crate) fn shown(command: &Command) -> String {
    let program = PathBuf::from(command.get_program());
    std::iter::once(program.file_name().unwrap_or_default())
        .chain(command.get_args())
        .map(|part| part.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}
