//! A picture of a topology: Mermaid, DOT, and an SVG with a layout of our own.
//!
//! The layout is the layered one of Sugiyama: sources stand right above what reads them, operators
//! by their longest way from a source, sinks last; a line that skips layers bends through
//! placeholders; neighbours are ordered by the mean place of what they are connected with; then
//! each layer is moved as near to those means as its order and its gaps allow. Everything is a
//! function of the topology alone, so pictures can be compared byte by byte.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::Value;

use super::config::{Place, Providers, Role, Topology};
use super::kinds::OperatorKinds;

/// What a box is, and how it is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    Source,
    SideInput,
    Critical,
    Operator,
    Sink,
}

impl Shape {
    const ALL: [Self; 5] = [Self::Source, Self::SideInput, Self::Critical, Self::Operator, Self::Sink];

    const fn class(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::SideInput => "side",
            Self::Critical => "critical",
            Self::Operator => "operator",
            Self::Sink => "sink",
        }
    }

    /// Fill and line, by day and by night.
    const fn colours(self) -> [&'static str; 4] {
        match self {
            Self::Source => ["#e3f0fc", "#2f74c0", "#12304f", "#5b9bdd"],
            Self::SideInput => ["#f1f1f4", "#8a8a97", "#2a2a31", "#8a8a97"],
            Self::Critical => ["#fde7e4", "#c8412f", "#4a1812", "#e5705f"],
            Self::Operator => ["#ffffff", "#55555f", "#1d1d22", "#9a9aa6"],
            Self::Sink => ["#e4f5e8", "#2f8a4b", "#12391f", "#5cb878"],
        }
    }
}

struct Node {
    key: String,
    shape: Shape,
    title: String,
    lines: Vec<String>,
}

struct Edge {
    from: usize,
    to: usize,
    dashed: bool,
}

struct Graph {
    nodes: Vec<Node>,
    edges: Vec<Edge>,
}

/// Longest line below a title, in characters; the rest is cut off, the file has it whole.
const LINE_MAX: usize = 40;

impl Graph {
    fn of(topology: &Topology, kinds: &OperatorKinds) -> Self {
        let mut graph = Self { nodes: Vec::new(), edges: Vec::new() };
        let mut by_name: BTreeMap<&str, usize> = BTreeMap::new();
        for source in &topology.sources {
            let shape = match source.role {
                Role::Events | Role::Returned => Shape::Source,
                Role::Critical => Shape::Critical,
                Role::SideInput(_) => Shape::SideInput,
            };
            let mut lines = vec![match &source.place {
                Place::Topic(topic) => topic.clone(),
                Place::File(path) => path.display().to_string(),
                Place::Stdin => "stdin".to_owned(),
            }];
            if source.at_least.0 > 0 {
                lines.push(format!("at least {}", source.at_least));
            }
            by_name.insert(&source.name, graph.add(&source.name, "source", shape, &source.name, lines));
        }
        for operator in &topology.operators {
            let mut lines = Vec::new();
            if operator.kind != operator.id {
                lines.push(operator.kind.clone());
            }
            lines.extend(summary(&operator.params));
            lines.extend(operator.when.as_ref().map(|when| format!("when {when}")));
            let node = graph.add(&operator.id, "operator", Shape::Operator, &operator.id, lines);
            by_name.insert(&operator.id, node);
            for input in &operator.inputs {
                graph.edges.extend(by_name.get(input.name()).map(|from| Edge { from: *from, to: node, dashed: false }));
            }
            let needs = kinds.0.get(operator.kind.as_str()).map_or(&[][..], |kind| kind.needs);
            for side in needs {
                let brings = topology.sources.iter().filter(|source| source.role == Role::SideInput(*side));
                for source in brings {
                    let from = by_name.get(source.name.as_str());
                    graph.edges.extend(from.map(|from| Edge { from: *from, to: node, dashed: true }));
                }
            }
        }
        let critical: Vec<usize> =
            (0..graph.nodes.len()).filter(|n| graph.nodes[*n].shape == Shape::Critical).collect();
        let beside = (!critical.is_empty()).then(|| {
            let lines = vec!["validate, preferences, route".to_owned(), "one by one, beside the dataflow".to_owned()];
            graph.add("critical_path", "path", Shape::Critical, "critical path", lines)
        });
        for from in critical {
            graph.edges.extend(beside.map(|to| Edge { from, to, dashed: false }));
        }
        for (channel, sink) in &topology.sinks {
            let line = match &sink.providers {
                Providers::InOrder(list) => list.join(", then "),
                Providers::ByPlatform(map) => {
                    let each = map.iter().map(|(platform, list)| format!("{platform}: {}", list.join(", then ")));
                    each.collect::<Vec<_>>().join(", ")
                }
            };
            let mut lines = vec![line];
            lines.extend(sink.cap.map(|cap| format!("at most {cap}")));
            let node = graph.add(channel.as_str(), "sink", Shape::Sink, channel.as_str(), lines);
            let inputs = sink.inputs.iter().filter_map(|input| by_name.get(input.as_str()).copied());
            graph.edges.extend(inputs.chain(beside).map(|from| Edge { from, to: node, dashed: false }));
        }
        graph
    }

    fn add(&mut self, name: &str, what: &str, shape: Shape, title: &str, lines: Vec<String>) -> usize {
        let cut = |line: String| match line.char_indices().nth(LINE_MAX) {
            Some((at, _)) => format!("{}…", &line[..at]),
            None => line,
        };
        let lines = lines.into_iter().map(cut).collect();
        self.nodes.push(Node { key: format!("{what}_{name}"), shape, title: title.to_owned(), lines });
        self.nodes.len() - 1
    }
}

/// Parameters in a line or two: scalars as they are, lists of words joined, other lists counted.
fn summary(params: &Value) -> Vec<String> {
    let Some(map) = params.as_object() else { return Vec::new() };
    let said = map.iter().filter_map(|(key, value)| match value {
        Value::Null | Value::Bool(false) => None,
        Value::Bool(true) => Some(key.clone()),
        Value::Number(number) => Some(format!("{key} {number}")),
        Value::String(text) => Some(format!("{key} {text}")),
        Value::Array(items) if items.is_empty() => None,
        Value::Array(items) => match items.iter().map(Value::as_str).collect::<Option<Vec<_>>>() {
            Some(words) => Some(format!("{key} {}", words.join(", "))),
            None => Some(format!("{key} × {}", items.len())),
        },
        Value::Object(inner) => {
            let inner: Vec<String> = inner.iter().map(|(name, value)| format!("{name} {}", plain(value))).collect();
            Some(format!("{key} {}", inner.join(", ")))
        }
    });
    let mut lines: Vec<String> = Vec::new();
    for part in said {
        match lines.last_mut() {
            Some(last) if last.chars().count() + part.chars().count() + 3 <= LINE_MAX => {
                last.push_str(" · ");
                last.push_str(&part);
            }
            _ => lines.push(part),
        }
    }
    lines
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// As a Mermaid flowchart, for Markdown.
#[must_use]
pub fn mermaid(topology: &Topology, kinds: &OperatorKinds) -> String {
    let graph = Graph::of(topology, kinds);
    let mut out = String::from("flowchart TD\n");
    for node in &graph.nodes {
        let text =
            |text: &str| text.replace('&', "#amp;").replace('"', "#quot;").replace('<', "#lt;").replace('>', "#gt;");
        let label: Vec<String> = std::iter::once(format!("<b>{}</b>", text(&node.title)))
            .chain(node.lines.iter().map(|l| text(l)))
            .collect();
        let (open, close) = match node.shape {
            Shape::Source | Shape::SideInput => ("([", "])"),
            Shape::Critical | Shape::Operator => ("[", "]"),
            Shape::Sink => ("[[", "]]"),
        };
        let class = node.shape.class();
        let _ = writeln!(out, "  {}{open}\"{}\"{close}:::{class}", node.key, label.join("<br>"));
    }
    for edge in &graph.edges {
        let arrow = if edge.dashed { "-.->" } else { "-->" };
        let _ = writeln!(out, "  {} {arrow} {}", graph.nodes[edge.from].key, graph.nodes[edge.to].key);
    }
    for shape in Shape::ALL {
        let [fill, line, ..] = shape.colours();
        let _ = writeln!(out, "  classDef {} fill:{fill},stroke:{line},color:#1c1c21", shape.class());
    }
    out
}

/// As a DOT digraph, for Graphviz.
#[must_use]
pub fn dot(topology: &Topology, kinds: &OperatorKinds) -> String {
    let graph = Graph::of(topology, kinds);
    let mut out =
        String::from("digraph topology {\n  node [shape=box, style=\"rounded,filled\", fontname=\"sans-serif\"];\n");
    for node in &graph.nodes {
        let text = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"");
        let lines: Vec<String> = std::iter::once(&node.title).chain(&node.lines).map(|line| text(line)).collect();
        let [fill, line, ..] = node.shape.colours();
        let _ =
            writeln!(out, "  {} [label=\"{}\", fillcolor=\"{fill}\", color=\"{line}\"];", node.key, lines.join("\\n"));
    }
    for edge in &graph.edges {
        let style = if edge.dashed { " [style=dashed]" } else { "" };
        let _ = writeln!(out, "  {} -> {}{style};", graph.nodes[edge.from].key, graph.nodes[edge.to].key);
    }
    out.push_str("}\n");
    out
}

// ── the layout ──────────────────────────────────────────────────────────────────────────────────

/// Between two boxes of a layer, between two layers, and around everything, in pixels.
const GAP: f64 = 28.0;
const LAYER_GAP: f64 = 46.0;
const MARGIN: f64 = 24.0;
const PADDING: f64 = 14.0;
const TITLE_HEIGHT: f64 = 20.0;
const LINE_HEIGHT: f64 = 16.0;
/// Rounds of ordering and of moving; more change nothing at the size of topologies.
const ROUNDS: usize = 24;

/// A place in a layer: a box, or a placeholder through which a line passes.
struct Slot {
    node: Option<usize>,
    /// Whether it is an operator.
    spine: bool,
    layer: usize,
    width: f64,
    height: f64,
    x: f64,
    above: Vec<usize>,
    below: Vec<usize>,
}

struct Layout {
    slots: Vec<Slot>,
    layers: Vec<Vec<usize>>,
    /// The slots of each edge, from top to bottom.
    routes: Vec<Vec<usize>>,
}

impl Layout {
    fn of(graph: &Graph) -> Self {
        let layer_of = layers(graph);
        let count = layer_of.iter().max().map_or(0, |last| last + 1);
        let mut layout = Self { slots: Vec::new(), layers: vec![Vec::new(); count], routes: Vec::new() };
        for (index, node) in graph.nodes.iter().enumerate() {
            let widest = node.lines.iter().map(|line| line.chars().count() as f64 * 6.1);
            let width = widest.fold(node.title.chars().count() as f64 * 8.2, f64::max) + 2.0 * PADDING;
            let height = TITLE_HEIGHT + LINE_HEIGHT * node.lines.len() as f64 + PADDING;
            let slot = layout.slot(Some(index), layer_of[index], width.max(96.0), height);
            layout.slots[slot].spine = node.shape == Shape::Operator;
        }
        for edge in &graph.edges {
            let mut route = vec![edge.from];
            for layer in layer_of[edge.from] + 1..layer_of[edge.to] {
                let slot = layout.slot(None, layer, 2.0, 0.0);
                route.push(slot);
            }
            route.push(edge.to);
            for pair in route.windows(2) {
                layout.slots[pair[0]].below.push(pair[1]);
                layout.slots[pair[1]].above.push(pair[0]);
            }
            layout.routes.push(route);
        }
        layout.order();
        layout.place();
        layout
    }

    fn slot(&mut self, node: Option<usize>, layer: usize, width: f64, height: f64) -> usize {
        let (above, below) = (Vec::new(), Vec::new());
        self.slots.push(Slot { node, spine: false, layer, width, height, x: 0.0, above, below });
        self.layers[layer].push(self.slots.len() - 1);
        self.slots.len() - 1
    }

    /// Orders each layer by the mean position of what its slots are connected with, down and up again;
    /// the order with the fewest crossings wins.
    fn order(&mut self) {
        let mut best = (self.crossings(), self.layers.clone());
        for round in 0..ROUNDS {
            let down = round % 2 == 0;
            let layers: Vec<usize> =
                if down { (0..self.layers.len()).collect() } else { (0..self.layers.len()).rev().collect() };
            for layer in layers {
                let position = self.positions();
                let mean = |slot: usize| {
                    let near = if down { &self.slots[slot].above } else { &self.slots[slot].below };
                    match near.len() {
                        0 => position[slot] as f64,
                        count => near.iter().map(|other| position[*other] as f64).sum::<f64>() / count as f64,
                    }
                };
                let mut ordered: Vec<(f64, usize)> =
                    self.layers[layer].iter().map(|slot| (mean(*slot), *slot)).collect();
                ordered.sort_by(|a, b| a.0.total_cmp(&b.0));
                self.layers[layer] = ordered.into_iter().map(|(_, slot)| slot).collect();
            }
            let crossings = self.crossings();
            if crossings < best.0 {
                best = (crossings, self.layers.clone());
            }
        }
        self.layers = best.1;
    }

    fn positions(&self) -> Vec<usize> {
        let mut position = vec![0; self.slots.len()];
        for layer in &self.layers {
            for (at, slot) in layer.iter().enumerate() {
                position[*slot] = at;
            }
        }
        position
    }

    fn crossings(&self) -> usize {
        let position = self.positions();
        let mut count = 0;
        for layer in &self.layers {
            let lines: Vec<(usize, usize)> = layer
                .iter()
                .flat_map(|slot| self.slots[*slot].below.iter().map(|to| (position[*slot], position[*to])))
                .collect();
            for (at, a) in lines.iter().enumerate() {
                count +=
                    lines[at + 1..].iter().filter(|b| (a.0 < b.0 && a.1 > b.1) || (a.0 > b.0 && a.1 < b.1)).count();
            }
        }
        count
    }

    /// Moves each layer to the means of its neighbours. Order and gaps hold: what would overlap is
    /// pooled and moved together (isotonic regression).
    fn place(&mut self) {
        for round in 0..ROUNDS {
            for at in 0..self.layers.len() {
                let layer = self.layers[if round % 2 == 0 { at } else { self.layers.len() - 1 - at }].clone();
                let (mut offsets, mut offset) = (Vec::new(), 0.0);
                for (index, slot) in layer.iter().enumerate() {
                    if index > 0 {
                        offset += (self.slots[layer[index - 1]].width + self.slots[*slot].width) / 2.0 + GAP;
                    }
                    offsets.push(offset);
                }
                // (sum of what its members want, weight, members)
                let mut pools: Vec<(f64, f64, usize)> = Vec::new();
                for (index, slot) in layer.iter().enumerate() {
                    let near = self.slots[*slot].above.iter().chain(&self.slots[*slot].below);
                    let (sum, weight) = near.fold((0.0, 0.0), |(sum, total), other| {
                        let pull = pull(&self.slots[*slot], &self.slots[*other]);
                        (sum + pull * self.slots[*other].x, total + pull)
                    });
                    let (wanted, weight) =
                        if weight > 0.0 { (sum / weight, weight) } else { (offsets[index] - offset / 2.0, 1.0) };
                    pools.push(((wanted - offsets[index]) * weight, weight, 1));
                    while let [.., a, b] = pools.as_slice()
                        && a.0 / a.1 >= b.0 / b.1
                    {
                        let merged = (a.0 + b.0, a.1 + b.1, a.2 + b.2);
                        pools.truncate(pools.len() - 2);
                        pools.push(merged);
                    }
                }
                let starts =
                    pools.iter().flat_map(|(sum, weight, members)| std::iter::repeat_n(sum / weight, *members));
                for ((slot, offset), start) in layer.iter().zip(&offsets).zip(starts) {
                    self.slots[*slot].x = start + offset;
                }
            }
        }
        let left = self.slots.iter().map(|slot| slot.x - slot.width / 2.0).fold(f64::INFINITY, f64::min);
        for slot in &mut self.slots {
            slot.x = (slot.x - left + MARGIN).round();
        }
    }
}

/// How strongly two slots want to stand in one line: the chain of operators is the picture's spine,
/// and a line that skips layers should run straight.
fn pull(a: &Slot, b: &Slot) -> f64 {
    match (a.spine && b.spine, a.node.is_none() && b.node.is_none()) {
        (true, _) => 16.0,
        (_, true) => 4.0,
        _ => 1.0,
    }
}

/// The layer of each node: operators by their longest way, sources right above their first reader,
/// sinks and the critical path at the bottom.
fn layers(graph: &Graph) -> Vec<usize> {
    let mut layer = vec![0usize; graph.nodes.len()];
    let is_source = |node: usize| graph.edges.iter().all(|edge| edge.to != node);
    // Edges are in topological order of what they lead to, so one pass is enough.
    for edge in &graph.edges {
        let least = if is_source(edge.from) { 1 } else { layer[edge.from] + 1 };
        layer[edge.to] = layer[edge.to].max(least);
    }
    let last = (0..graph.nodes.len()).filter(|n| graph.nodes[*n].shape == Shape::Operator).map(|n| layer[n]).max();
    let bottom = last.unwrap_or(1) + 1;
    for (index, node) in graph.nodes.iter().enumerate() {
        match node.shape {
            Shape::Sink => layer[index] = bottom,
            Shape::Critical if !is_source(index) => layer[index] = bottom - 1,
            _ => {}
        }
    }
    for index in (0..graph.nodes.len()).filter(|index| is_source(*index)) {
        let first = graph.edges.iter().filter(|edge| edge.from == index).map(|edge| layer[edge.to]).min();
        layer[index] = first.unwrap_or(1).saturating_sub(1);
    }
    layer
}

/// As a picture that needs nothing else: no script, no font, no network; light and dark.
#[must_use]
pub fn svg(topology: &Topology, kinds: &OperatorKinds) -> String {
    let graph = Graph::of(topology, kinds);
    let layout = Layout::of(&graph);
    let (mut tops, mut y) = (Vec::new(), MARGIN);
    for layer in &layout.layers {
        let height = layer.iter().map(|slot| layout.slots[*slot].height).fold(0.0, f64::max);
        tops.push((y, height));
        y += height + LAYER_GAP;
    }
    let height = (y - LAYER_GAP + MARGIN).max(2.0 * MARGIN);
    let width = layout.slots.iter().map(|slot| slot.x + slot.width / 2.0).fold(0.0, f64::max) + MARGIN;
    let mut out = String::new();
    let _ = writeln!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" height=\"{height:.0}\" viewBox=\"0 0 {width:.0} {height:.0}\" role=\"img\" aria-label=\"topology\">"
    );
    out.push_str(&style());
    out.push_str("<defs>");
    for head in ["head", "critical-head"] {
        let _ = write!(
            out,
            "<marker id=\"{head}\" viewBox=\"0 0 8 8\" refX=\"7\" refY=\"4\" markerWidth=\"7\" markerHeight=\"7\" orient=\"auto\"><path d=\"M0 0L8 4L0 8z\" class=\"{head}\"/></marker>"
        );
    }
    out.push_str("</defs>\n");
    for (edge, route) in graph.edges.iter().zip(&layout.routes) {
        let critical = graph.nodes[edge.from].shape == Shape::Critical;
        let (class, head) = match (edge.dashed, critical) {
            (true, _) => ("edge side-edge", "head"),
            (_, true) => ("edge critical-edge", "critical-head"),
            _ => ("edge", "head"),
        };
        let d = path(&layout, &tops, route);
        let _ = writeln!(out, "<path class=\"{class}\" marker-end=\"url(#{head})\" d=\"{d}\"/>");
    }
    for slot in &layout.slots {
        let Some(node) = slot.node.map(|node| &graph.nodes[node]) else { continue };
        let (top, layer_height) = tops[slot.layer];
        let y = (top + (layer_height - slot.height) / 2.0).round();
        let _ = writeln!(
            out,
            "<g class=\"{}\"><rect x=\"{:.0}\" y=\"{y:.0}\" width=\"{:.0}\" height=\"{:.0}\" rx=\"9\"/><text x=\"{:.0}\" y=\"{:.0}\" class=\"title\">{}</text>",
            node.shape.class(),
            slot.x - slot.width / 2.0,
            slot.width,
            slot.height,
            slot.x,
            y + PADDING / 2.0 + 14.0,
            escape(&node.title)
        );
        for (index, line) in node.lines.iter().enumerate() {
            let y = y + PADDING / 2.0 + TITLE_HEIGHT + LINE_HEIGHT * index as f64 + 11.0;
            let _ = writeln!(out, "<text x=\"{:.0}\" y=\"{y:.0}\">{}</text>", slot.x, escape(line));
        }
        out.push_str("</g>\n");
    }
    out.push_str("</svg>\n");
    out
}

/// A line through its slots: straight within a layer, bent between layers.
fn path(layout: &Layout, tops: &[(f64, f64)], route: &[usize]) -> String {
    let mut out = String::new();
    for pair in route.windows(2) {
        let (from, to) = (&layout.slots[pair[0]], &layout.slots[pair[1]]);
        let edge_of = |slot: &Slot, bottom: bool| {
            let (top, height) = tops[slot.layer];
            let inset = slot.node.map_or(0.0, |_| (height - slot.height) / 2.0);
            if bottom { top + height - inset } else { top + inset }
        };
        let (y0, y1) = (edge_of(from, true), edge_of(to, false));
        if from.node.is_some() {
            let _ = write!(out, "M{:.0} {y0:.0}", from.x);
        } else {
            let _ = write!(out, "L{:.0} {y0:.0}", from.x);
        }
        let end = if to.node.is_some() { y1 - 1.0 } else { y1 };
        let bend = (tops[to.layer].0 - LAYER_GAP / 2.0).round();
        let _ = write!(out, "C{:.0} {bend:.0} {:.0} {bend:.0} {:.0} {end:.0}", from.x, to.x, to.x);
    }
    out
}

fn style() -> String {
    let mut out = String::from(
        "<style>text{font:12px system-ui,-apple-system,\"Segoe UI\",Helvetica,Arial,sans-serif;text-anchor:middle;fill:#5a5a66}\
         .title{font-size:14px;font-weight:600;fill:#1c1c21}rect{stroke-width:1.4}\
         .edge{fill:none;stroke:#7a7a86;stroke-width:1.5}.side-edge{stroke-dasharray:4 4;stroke:#a5a5b0}.critical-edge{stroke:#c8412f}\
         .head{fill:#7a7a86}.critical-head{fill:#c8412f}",
    );
    let (mut day, mut night) = (String::new(), String::new());
    for shape in Shape::ALL {
        let [fill, line, night_fill, night_line] = shape.colours();
        let _ = write!(day, ".{} rect{{fill:{fill};stroke:{line}}}", shape.class());
        let _ = write!(night, ".{} rect{{fill:{night_fill};stroke:{night_line}}}", shape.class());
    }
    out.push_str(&day);
    let _ =
        writeln!(out, "@media(prefers-color-scheme:dark){{text{{fill:#b4b4c0}}.title{{fill:#f2f2f5}}{night}}}</style>");
    out
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
