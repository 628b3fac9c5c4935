//! `tidings graph`: a picture of a topology.

use std::path::PathBuf;

use serde_json::json;
use tidings_operators::calendar::Calendar;
use tidings_pipeline::topology::{OperatorKinds, dot, mermaid, svg};

use super::{Exit, Shell};

/// Draw a topology: Mermaid for Markdown, DOT for Graphviz, or an SVG that needs nothing else.
#[derive(clap::Args)]
pub(crate) struct Graph {
    /// The topology.
    file: PathBuf,
    /// How it is drawn.
    #[arg(long, value_enum, default_value_t = Format::Mermaid)]
    format: Format,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Format {
    Mermaid,
    Dot,
    Svg,
}

impl Graph {
    pub(crate) fn run(self, shell: &Shell) -> anyhow::Result<Exit> {
        let loaded = shell.load(&self.file, &Calendar::bundled())?;
        let (topology, kinds) = (&loaded.config.topology, OperatorKinds::standard());
        let (name, picture) = match self.format {
            Format::Mermaid => ("mermaid", mermaid(topology, &kinds)),
            Format::Dot => ("dot", dot(topology, &kinds)),
            Format::Svg => ("svg", svg(topology, &kinds)),
        };
        match shell.json {
            true => shell.json(&json!({ "format": name, "graph": picture }))?,
            false => shell.data(picture)?,
        }
        Ok(Exit::Ok)
    }
}
