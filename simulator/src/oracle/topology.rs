//! What a topology means to the oracle: sources by what they are, operators in order with their
//! parameters. What the oracle does not model is refused here, with a message, and never guessed.

use std::collections::BTreeMap;

use serde::Deserialize;
use tidings_operators::params::SideInput;
use tidings_pipeline::topology as config;
use tidings_schemas::channel::{ChannelSet, Priority};
use tidings_schemas::units::{Period, Rate};

use super::condition::Condition;

/// Why the oracle cannot say what a topology decides.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the oracle does not model {place}: {problem}")]
pub struct NotModelled {
    /// Where.
    pub place: String,
    /// What it is.
    pub problem: String,
}

fn not_modelled(place: impl Into<String>, problem: impl Into<String>) -> NotModelled {
    NotModelled { place: place.into(), problem: problem.into() }
}

/// What a source's records are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Records {
    /// Events; whether unknown top-level keys move to `data`.
    Events {
        /// They move, and are not refused.
        unknown_to_data: bool,
    },
    /// What deliver gives back.
    Returned,
    /// Profiles.
    Profiles,
    /// Addresses.
    Addresses,
}

/// One source.
#[derive(Clone, Debug)]
pub struct Source {
    /// Its id, which events' ids hash.
    pub id: String,
    /// What it brings.
    pub records: Records,
}

/// One operator as the configuration writes it.
#[derive(Clone, Debug)]
pub struct Written {
    /// Its id, which notifications' ids hash.
    pub id: String,
    /// Its kind.
    pub kind: String,
    /// Its parameters.
    pub params: serde_json::Value,
    /// Its condition.
    pub when: Option<String>,
}

/// What a window is kept by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub(super) enum By {
    #[serde(rename = "type")]
    Type,
    #[serde(rename = "category")]
    Category,
    #[serde(rename = "object.id")]
    Object,
}

/// What a level counts per.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Per {
    Channel,
    Type,
    Category,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Level {
    pub(super) per: Vec<Per>,
    #[serde(flatten)]
    pub(super) rates: BTreeMap<String, Rate>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Gathering {
    pub(super) by: Vec<By>,
    pub(super) window: Period,
    pub(super) threshold: u64,
    pub(super) sliding_max: Option<Period>,
    pub(super) leading: bool,
    pub(super) priorities: Vec<Priority>,
}

impl Default for Gathering {
    fn default() -> Self {
        Self {
            by: vec![By::Type, By::Object],
            window: Period(std::time::Duration::from_secs(300)),
            threshold: 10,
            sliding_max: None,
            leading: false,
            priorities: vec![Priority::Medium, Priority::Low],
        }
    }
}

/// One operator, understood.
#[derive(Clone, Debug)]
pub(super) enum Kind {
    Validate,
    Dedup { window: Period },
    Schedule,
    Preferences,
    Aggregate(Gathering),
    Route,
    QuietHours,
    RateLimit { levels: Vec<Level> },
}

#[derive(Clone, Debug)]
pub(super) struct Step {
    pub(super) id: String,
    pub(super) kind: Kind,
    pub(super) when: Option<Condition>,
}

/// The topology's meaning.
#[derive(Clone, Debug)]
pub struct Topology {
    pub(super) sources: Vec<Source>,
    pub(super) steps: Vec<Step>,
    /// Which step takes in what deliver gives back.
    pub(super) returned_at: usize,
    pub(super) provided: ChannelSet,
    pub(super) spread: Period,
}

impl Topology {
    /// The meaning of a straight chain: every events source feeds the first operator, each operator
    /// the next, the last one the lanes; what deliver gives back enters `returned_at`.
    ///
    /// # Errors
    /// When something of it is not modelled.
    pub fn straight(
        sources: Vec<Source>,
        operators: &[Written],
        returned_at: usize,
        provided: ChannelSet,
    ) -> Result<Self, NotModelled> {
        let mut steps = Vec::new();
        let mut spread = Period::default();
        for written in operators {
            let when = written.when.as_deref().map(Condition::parse).transpose();
            let when = when.map_err(|problem| not_modelled(format!("`when` of `{}`", written.id), problem))?;
            let kind = understood(written, &mut spread)?;
            steps.push(Step { id: written.id.clone(), kind, when });
        }
        match steps.first() {
            Some(Step { kind: Kind::Validate, when: None, .. }) => {}
            _ => return Err(not_modelled("the chain", "its first operator is not an unconditional `validate`")),
        }
        let routes = steps.iter().filter(|step| matches!(step.kind, Kind::Route) && step.when.is_none()).count();
        if routes != 1 {
            return Err(not_modelled("the chain", "it has not exactly one unconditional `route`"));
        }
        Ok(Self { sources, steps, returned_at, provided, spread })
    }

    /// The meaning of a topology as the loader read it.
    ///
    /// # Errors
    /// When something of it is not modelled: a chain that branches, a kind without a model.
    pub fn of_config(topology: &config::Topology, provided: ChannelSet) -> Result<Self, NotModelled> {
        let mut sources = Vec::new();
        let mut critical = Vec::new();
        for source in &topology.sources {
            let unknown_to_data = source.unknown_fields == config::UnknownFields::Data;
            let records = match source.role {
                config::Role::Events => Records::Events { unknown_to_data },
                config::Role::Returned => Records::Returned,
                config::Role::SideInput(SideInput::Profile) => Records::Profiles,
                config::Role::SideInput(SideInput::Reachability) => Records::Addresses,
                // Read by the path beside the dataflow.
                config::Role::Critical => {
                    critical.push(source.name.clone());
                    continue;
                }
            };
            sources.push(Source { id: source.name.clone(), records });
        }
        let mut returned_at = None;
        for (number, operator) in topology.operators.iter().enumerate() {
            for input in &operator.inputs {
                let place = || format!("operator `{}`", operator.id);
                match input {
                    config::Input::Operator(id) if number > 0 && topology.operators[number - 1].id == *id => {}
                    config::Input::Operator(id) => {
                        return Err(not_modelled(place(), format!("it reads `{id}`, which is not the one before it")));
                    }
                    config::Input::Source(name) => {
                        let source = sources.iter().find(|source| source.id == *name);
                        match source.map(|source| source.records) {
                            Some(Records::Returned) if returned_at.is_none() => returned_at = Some(number),
                            Some(Records::Events { .. }) if number == 0 => {}
                            _ if critical.contains(name) => {}
                            _ => return Err(not_modelled(place(), format!("it reads the source `{name}`"))),
                        }
                    }
                }
            }
        }
        let written = |operator: &config::Operator| Written {
            id: operator.id.clone(),
            kind: operator.kind.clone(),
            params: operator.params.clone(),
            when: operator.when.clone(),
        };
        let written: Vec<_> = topology.operators.iter().map(written).collect();
        Self::straight(sources, &written, returned_at.unwrap_or(0), provided)
    }
}

fn understood(written: &Written, spread: &mut Period) -> Result<Kind, NotModelled> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Nothing {}
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Dedup {
        #[serde(default = "day")]
        window: Period,
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Quiet {
        #[serde(default)]
        spread: Option<Period>,
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Limits {
        levels: Vec<Level>,
    }
    fn read<T: serde::de::DeserializeOwned>(written: &Written) -> Result<T, NotModelled> {
        serde_json::from_value(written.params.clone())
            .map_err(|error| not_modelled(format!("the parameters of `{}`", written.id), error.to_string()))
    }
    Ok(match written.kind.as_str() {
        "validate" => read::<Nothing>(written).map(|_| Kind::Validate)?,
        "dedup" => Kind::Dedup { window: read::<Dedup>(written)?.window },
        "schedule" => read::<Nothing>(written).map(|_| Kind::Schedule)?,
        "preferences" => read::<Nothing>(written).map(|_| Kind::Preferences)?,
        "aggregate" => Kind::Aggregate(read(written)?),
        "route" => read::<Nothing>(written).map(|_| Kind::Route)?,
        "quiet_hours" => {
            *spread = read::<Quiet>(written)?.spread.unwrap_or_default();
            Kind::QuietHours
        }
        "rate_limit" => Kind::RateLimit { levels: read::<Limits>(written)?.levels },
        other => return Err(not_modelled(format!("operator `{}`", written.id), format!("its kind is `{other}`"))),
    })
}

const fn day() -> Period {
    Period(std::time::Duration::from_secs(86_400))
}
