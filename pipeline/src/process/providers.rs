//! Providers of a topology: built by their kind, chosen by list or platform.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context as _, anyhow};
use tidings_sinks::lane::{Choice, Pace};
use tidings_sinks::providers::paced::Paced;
use tidings_sinks::providers::{self, Context, Provider};

use crate::topology::{Config, Providers};

pub(super) type Built = BTreeMap<String, Arc<dyn Provider>>;

/// The rates of providers, by name: whoever builds them keeps to the same ones.
pub(super) fn rates(config: &Config) -> BTreeMap<String, Arc<Pace>> {
    let rated = config.deployment.providers.iter().filter_map(|(name, provider)| Some((name, provider.rate?)));
    rated.map(|(name, rate)| (name.clone(), Arc::new(Pace::new(rate)))).collect()
}

/// Every provider of the topology, by name. Beside `others` those that own files of this machine are theirs.
pub(super) fn build(
    config: &Config,
    context: &Context,
    rates: &BTreeMap<String, Arc<Pace>>,
    others: Option<&Built>,
) -> anyhow::Result<Built> {
    let mut built = Built::new();
    for (name, provider) in &config.deployment.providers {
        if let Some(theirs) = others.and_then(|others| others.get(name)).filter(|it| it.is_one_owner()) {
            built.insert(name.clone(), Arc::clone(theirs));
            continue;
        }
        let kind = providers::kind(&provider.kind).ok_or_else(|| anyhow!("provider `{name}`: unknown kind"))?;
        let made = kind.build(provider.params.get().clone(), context).with_context(|| format!("provider `{name}`"))?;
        let made = match rates.get(name) {
            Some(pace) => Arc::new(Paced::new(made, Arc::clone(pace))) as Arc<dyn Provider>,
            None => made,
        };
        built.insert(name.clone(), made);
    }
    Ok(built)
}

/// Who carries a channel.
pub(super) fn choice(built: &Built, providers: &Providers) -> anyhow::Result<Choice> {
    let find = |name: &String| built.get(name).cloned().ok_or_else(|| anyhow!("provider `{name}` is not configured"));
    Ok(match providers {
        Providers::InOrder(names) => Choice::List(names.iter().map(find).collect::<anyhow::Result<_>>()?),
        Providers::ByPlatform(platforms) => {
            let first = |(platform, names): (&String, &Vec<String>)| {
                let name = names.first().ok_or_else(|| anyhow!("platform `{platform}` names no provider"))?;
                Ok((platform.clone(), find(name)?))
            };
            Choice::ByPlatform(platforms.iter().map(first).collect::<anyhow::Result<_>>()?)
        }
    })
}
