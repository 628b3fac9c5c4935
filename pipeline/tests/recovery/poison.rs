//! An operator that some events kill, each at another kind of call.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tidings_operators::item::Item;
use tidings_operators::keyed::{Cx, Known, Operator, State, Subkey, Table, TimerId};
use tidings_operators::registry::OperatorKind;
use tidings_schemas::lifecycle::State as Did;

pub(crate) const KINDS: &[OperatorKind] = &[OperatorKind::of::<Poison>()];

const WAKE: TimerId = TimerId(0);

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PoisonParams {}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Kept {
    count: u32,
}

impl State for Kept {}

/// Dies of what arrives about `poison`, and takes the process along with `fatal_poison`; never ends with
/// `endless_poison`; dies of `slow_poison` when an hour is over; of a profile that changes
/// while it keeps `shy_poison`. All else passes.
pub(crate) struct Poison;

fn about(item: &Item) -> &str {
    item.object.as_ref().map_or("", |object| object.id.as_str())
}

impl Operator for Poison {
    const KIND: &'static str = "poison";
    type Params = PoisonParams;
    type User = Kept;
    type Entry = Kept;
    type Body = Option<Box<Item>>;
    type Store = Table<Self>;

    fn new(_: PoisonParams) -> Self {
        Self
    }

    fn on_event(&self, cx: &mut Cx<'_, Self>, _: u8, item: Box<Item>) {
        // What it did before it died must not be seen.
        cx.user_mut().count += 1;
        let span = match about(&item) {
            "poison" => panic!("poisoned by {}", item.user),
            "fatal_poison" => std::process::abort(),
            "endless_poison" => loop {
                std::thread::park();
            },
            "slow_poison" => Duration::from_secs(3600),
            "shy_poison" => Duration::from_secs(36_000),
            _ => return cx.emit(0, item),
        };
        let (subkey, at) = (Subkey::of(&[about(&item)]), cx.now().after(span));
        cx.record_events(&item, &[Did::Parked], None, Some(at));
        cx.entry_mut(&subkey).count += 1;
        cx.set_body(&subkey, Some(item));
        cx.set_timer(&subkey, WAKE, at);
    }

    fn on_timer(&self, cx: &mut Cx<'_, Self>, subkey: &Subkey, _: TimerId) {
        cx.user_mut().count += 1;
        let (_, item) = cx.remove(subkey).unwrap();
        panic!("poisoned slowly: {}", about(&item.unwrap()));
    }

    fn on_profile(&self, cx: &mut Cx<'_, Self>, _: &Known) {
        cx.user_mut().count += 1;
        let shy = Subkey::of(&["shy_poison"]);
        assert!(cx.entry(&shy).is_none(), "poisoned by a look");
    }
}
