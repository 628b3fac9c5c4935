//! `tidings schema`: the JSON Schema of topologies, for editors.

use tidings_pipeline::topology::{OperatorKinds, ProviderKinds, schema};

use super::{Exit, Shell};

/// Print the JSON Schema of topologies; editors complete and check with it.
#[derive(clap::Args)]
pub(crate) struct Schema {}

impl Schema {
    pub(crate) fn run(self, shell: &Shell) -> anyhow::Result<Exit> {
        shell.json(&schema(&OperatorKinds::standard(), &ProviderKinds::standard()))?;
        Ok(Exit::Ok)
    }
}
