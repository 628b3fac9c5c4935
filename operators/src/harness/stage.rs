//! One operator within the chain: its state, and the calls into it.

use std::sync::Arc;

use tidings_schemas::time::Instant;

use super::drafts::Drafts;
use super::ordinal::Ordinal;
use super::profiles::Profiles;
use super::table::{Image, StateKey, Table};
use crate::ingest::Path;
use crate::item::Item;
use crate::keyed::{Cause, Cx, Known, Operator};
use crate::rules::Rules;

/// Due timers that fire per operator and key group in one epoch; the rest stay due, so that the
/// morning after a long outage is no stampede. 1,024 groups × 256 = 262,144 releases an epoch.
pub const DUE_PER_GROUP_MAX: usize = 256;

/// An item on its way, with its place in the epoch and what set it in motion.
#[derive(Clone, Debug)]
pub(crate) struct Flow {
    pub(crate) ordinal: Ordinal,
    pub(crate) cause: Cause,
    pub(crate) port: u8,
    pub(crate) item: Item,
}

/// What the calls of one operator see.
pub(crate) struct Env<'a> {
    pub(crate) now: Instant,
    pub(crate) epoch: u64,
    pub(crate) rules: &'a Rules,
    pub(crate) profiles: &'a Profiles,
    pub(crate) path: Path,
}

/// What came of a round of calls: items to hand on, and rows.
pub(crate) struct Outbox<'a> {
    pub(crate) flows: Vec<Flow>,
    pub(crate) drafts: &'a mut Drafts,
}

/// An operator of any kind.
pub(crate) trait Stage: Send {
    /// Takes the items in, in order.
    fn on_events(&mut self, env: &Env<'_>, inbox: Vec<Flow>, out: &mut Outbox<'_>);
    /// Fires what is due.
    fn on_timers(&mut self, env: &Env<'_>, out: &mut Outbox<'_>);
    /// Tells of changed users, given in order with what was known before.
    fn on_profiles(&mut self, env: &Env<'_>, changed: &[(Arc<str>, Known)], out: &mut Outbox<'_>);
    /// Tells every user with state that the rules changed.
    fn on_rules(&mut self, env: &Env<'_>, out: &mut Outbox<'_>);
    /// The earliest deadline.
    fn next_timer(&self) -> Option<Instant>;
    /// Images of what the epoch touched.
    fn drain_dirty(&mut self, image: &mut dyn FnMut(StateKey, Image));
    /// Puts an image back.
    fn restore(&mut self, key: &StateKey, image: &Image) -> Result<(), String>;
}

/// An operator with its state.
pub(crate) struct Keyed<O: Operator> {
    id: Arc<str>,
    /// Its place in the chain: what ordinals name it by.
    number: usize,
    operator: O,
    table: Table<O>,
    emitted: Vec<(u8, Item)>,
}

impl<O: Operator> Keyed<O> {
    pub(crate) fn new(id: Arc<str>, number: usize, operator: O) -> Self {
        Self { id, number, operator, table: Table::new(), emitted: Vec::new() }
    }

    fn call(
        &mut self,
        env: &Env<'_>,
        user: &Arc<str>,
        ordinal: &Ordinal,
        cause: &Cause,
        out: &mut Outbox<'_>,
        call: impl FnOnce(&O, &mut Cx<'_, O>),
    ) {
        let known = env.profiles.get(user);
        let (slot, timers) = self.table.slot(user);
        let mut cx = Cx {
            now: env.now,
            epoch: env.epoch,
            operator: &self.id,
            user,
            known,
            rules: env.rules,
            path: env.path,
            slot,
            timers,
            emitted: &mut self.emitted,
            drafts: out.drafts,
            cause,
            place: ordinal,
            number: self.number,
            call: None,
        };
        call(&self.operator, &mut cx);
        if cx.slot.turned_dirty() {
            self.table.settle(user);
        }
        for (index, (port, item)) in self.emitted.drain(..).enumerate() {
            // Rows stand at port 0, before everything that the same call sets in motion.
            let ordinal = ordinal.hop(self.number, port.saturating_add(1), index);
            out.flows.push(Flow { ordinal, cause: cause.clone(), port, item });
        }
    }
}

impl<O: Operator> Stage for Keyed<O> {
    fn on_events(&mut self, env: &Env<'_>, inbox: Vec<Flow>, out: &mut Outbox<'_>) {
        for Flow { ordinal, cause, port, item } in inbox {
            let user = Arc::clone(&item.user);
            self.call(env, &user, &ordinal, &cause, out, |operator, cx| operator.on_event(cx, port, item));
        }
    }

    fn on_timers(&mut self, env: &Env<'_>, out: &mut Outbox<'_>) {
        for (at, user, subkey, id) in self.table.timers.due(env.now, DUE_PER_GROUP_MAX) {
            // A timer that was set in this epoch fires in the next (rule 5); one that an earlier call
            // of this wave moved or took back is not due any more.
            let set_in = self.table.peek(&user).and_then(|slot| slot.timer_set_in(&subkey, id, at));
            if set_in.is_none_or(|epoch| epoch == env.epoch) {
                continue;
            }
            let ordinal = Ordinal::timer(at, &user, &subkey, id);
            self.call(env, &user, &ordinal, &Cause::Timer, out, |operator, cx| {
                cx.clear_timer(&subkey, id);
                operator.on_timer(cx, &subkey, id);
            });
        }
    }

    fn on_profiles(&mut self, env: &Env<'_>, changed: &[(Arc<str>, Known)], out: &mut Outbox<'_>) {
        for (user, old) in changed {
            if self.table.peek(user).is_some_and(super::table::UserSlot::has_entries) {
                let ordinal = Ordinal::profile(user);
                self.call(env, user, &ordinal, &Cause::Profile, out, |operator, cx| operator.on_profile(cx, old));
            }
        }
    }

    fn on_rules(&mut self, env: &Env<'_>, out: &mut Outbox<'_>) {
        for user in self.table.users() {
            let ordinal = Ordinal::rules(&user);
            self.call(env, &user, &ordinal, &Cause::Rules, out, Operator::on_rules);
        }
    }

    fn next_timer(&self) -> Option<Instant> {
        self.table.timers.earliest()
    }

    fn drain_dirty(&mut self, image: &mut dyn FnMut(StateKey, Image)) {
        self.table.drain_dirty(image);
    }

    fn restore(&mut self, key: &StateKey, image: &Image) -> Result<(), String> {
        self.table.restore(key, image)
    }
}
