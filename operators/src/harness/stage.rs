//! One operator within the chain: what it asks of its state, whichever layout that has, and the calls into it.

use std::cell::OnceCell;
use std::sync::Arc;

use bytes::Bytes;
use tidings_schemas::time::Instant;

use super::aside::{Crumbs, PORT_ASIDE, Skip, parked, skip_at};
use super::book::Spot;
use super::drafts::Drafts;
use super::ordinal::Ordinal;
use super::profiles::Profiles;
use super::table::{Image, StateKey, UserKey};
use super::timers::Due;
use crate::ingest::{ItemFacts, Path};
use crate::item::Item;
use crate::keyed::{Cause, Cx, Known, Operator, Subkey};
use crate::rules::Rules;
use crate::when::When;

/// Due timers that fire per operator and key group in one epoch; the rest stay due, so that the
/// morning after a long outage is no stampede. 1,024 groups × 256 = 262,144 releases an epoch.
pub const DUE_PER_GROUP_MAX: usize = 256;

/// An item on its way.
#[derive(Clone, Debug)]
pub(crate) struct Flow {
    /// Where it stands.
    pub(crate) spot: Spot,
    pub(crate) port: u8,
    /// Of the item's user.
    pub(crate) placement: u64,
    pub(crate) item: Box<Item>,
}

/// What the calls of one operator see.
pub(crate) struct Env<'a> {
    pub(crate) now: Instant,
    pub(crate) epoch: u64,
    pub(crate) rules: &'a Rules,
    pub(crate) profiles: &'a Profiles,
    pub(crate) path: Path,
    /// Calls that are not made.
    pub(crate) skips: &'a [Skip],
    /// Who hears of each call before it is made.
    pub(crate) crumbs: Option<&'a dyn Crumbs>,
}

/// What came of a round of calls: items to hand on, and rows.
pub(crate) struct Outbox<'a> {
    pub(crate) flows: Vec<Flow>,
    pub(crate) drafts: &'a mut Drafts,
}

/// An operator of any kind.
pub(crate) trait Stage: Send {
    /// Takes the items in, in order; those for which `when` does not hold pass.
    fn on_events(&mut self, env: &Env<'_>, when: Option<&When>, inbox: &mut Vec<Flow>, out: &mut Outbox<'_>);
    /// Fires what is due.
    fn on_timers(&mut self, env: &Env<'_>, out: &mut Outbox<'_>);
    /// Tells of changed users, given in order with what was known before.
    fn on_profiles(&mut self, env: &Env<'_>, changed: &[(Arc<str>, Known)], out: &mut Outbox<'_>);
    /// Tells every user with state that the rules changed.
    fn on_rules(&mut self, env: &Env<'_>, out: &mut Outbox<'_>);
    /// The earliest deadline.
    fn next_timer(&self) -> Option<Instant>;
    /// Users and keys of users of which it keeps state.
    fn keys(&self) -> usize;
    /// Images of what the epoch touched, and how many.
    fn drain_dirty(&mut self) -> (usize, Bytes);
    /// Puts an image back.
    fn restore(&mut self, key: &StateKey, image: &Image) -> Result<(), String>;
}

/// Where an operator's state lies: what the engine asks of it, in whichever layout. What operators ask of
/// it, their [`Cx`] offers.
pub trait Store<O: Operator>: Default + Send {
    /// What is due at `now`, at most `per_group` of a key group: the rest waits for the next epoch.
    /// Each of them is to be [fired](Self::fires).
    fn due(&mut self, now: Instant, per_group: usize) -> Vec<Due>;
    /// Whether a due timer fires now. Not if it was set in this epoch: then in the next; nor if a call
    /// of this wave moved it or took it back.
    fn fires(&mut self, due: &Due) -> bool;
    /// Takes off a timer that fires.
    fn fire(&mut self, due: &Due);
    /// The earliest deadline, as of the end of the last epoch.
    fn next_timer(&self) -> Option<Instant>;
    /// Users and keys of users of which there is state.
    fn keys(&self) -> usize;
    /// Removes an entry and its timers, and returns its body. The entry lies there, empty, until its image was made.
    fn take_out(&mut self, user: UserKey<'_>, subkey: &Subkey) -> Option<O::Body>;
    /// Forgets what is known of the user as a whole.
    fn clear_user(&mut self, user: UserKey<'_>);
    /// The user's subkeys, in order.
    fn subkeys(&self, user: UserKey<'_>) -> Vec<Subkey>;
    /// Whether there is anything of the user.
    fn has_entries(&self, user: UserKey<'_>) -> bool;
    /// Users with state, in order.
    fn user_names(&self) -> Vec<Arc<str>>;
    /// Images of all that this epoch touched, and how many; the marks are taken off.
    fn drain_dirty(&mut self) -> (usize, Bytes);
    /// Puts an image back.
    ///
    /// # Errors
    /// When it is none of this operator's state.
    fn restore(&mut self, key: &StateKey, image: &Image) -> Result<(), String>;
}

/// An operator with its state.
pub(crate) struct Keyed<O: Operator> {
    id: Arc<str>,
    /// Its place in the chain: what ordinals name it by.
    number: usize,
    operator: O,
    table: O::Store,
}

impl<O: Operator> Keyed<O> {
    pub(crate) fn new(id: Arc<str>, number: usize, operator: O) -> Self {
        Self { id, number, operator, table: O::Store::default() }
    }

    fn call(
        &mut self,
        env: &Env<'_>,
        user: UserKey<'_>,
        spot: Spot,
        out: &mut Outbox<'_>,
        call: impl FnOnce(&O, &mut Cx<'_, O>),
    ) {
        let mut cx = Cx {
            now: env.now,
            operator: &self.id,
            user,
            profiles: env.profiles,
            known: OnceCell::new(),
            rules: env.rules,
            path: env.path,
            table: &mut self.table,
            flows: &mut out.flows,
            emitted: 0,
            drafts: out.drafts,
            spot,
            number: self.number,
            call: None,
        };
        if let Some(crumbs) = env.crumbs {
            crumbs.at(env.epoch, &cx.drafts.book.ordinal(spot), Some(self.number));
        }
        cx.drafts.book.enter(spot, Some(self.number));
        call(&self.operator, &mut cx);
        cx.drafts.book.leave();
    }
}

impl<O: Operator> Keyed<O> {
    /// Items that would kill here: they leave the chain.
    fn set_aside(&self, env: &Env<'_>, inbox: &mut Vec<Flow>, out: &mut Outbox<'_>) {
        for flow in std::mem::take(inbox) {
            let ordinal = out.drafts.book.ordinal(flow.spot);
            match skip_at(env.skips, &ordinal, Some(self.number)) {
                Some(skip) => {
                    let spot = out.drafts.book.root(ordinal, Cause::Words(skip.problem.clone()));
                    out.flows.push(Flow { spot, port: PORT_ASIDE, ..flow });
                }
                None => inbox.push(flow),
            }
        }
    }

    /// Entries that would kill: they leave the state, and what is parked in them leaves the chain. Says
    /// whether there was anything to leave out.
    fn take_out(
        &mut self,
        env: &Env<'_>,
        user: UserKey<'_>,
        spot: Spot,
        subkey: Option<&Subkey>,
        out: &mut Outbox<'_>,
    ) -> bool {
        if env.skips.is_empty() {
            return false;
        }
        let ordinal = out.drafts.book.ordinal(spot);
        let Some(skip) = skip_at(env.skips, &ordinal, Some(self.number)) else { return false };
        let subkeys = match subkey {
            Some(subkey) => vec![subkey.clone()],
            None => self.table.subkeys(user),
        };
        for (index, subkey) in subkeys.iter().enumerate() {
            let body = self.table.take_out(user, subkey);
            if let Some(item) = body.and_then(|body| parked(&body)) {
                let cause = Cause::Words(skip.problem.clone());
                let spot = out.drafts.book.root(ordinal.hop(self.number, 0, index), cause);
                out.flows.push(Flow { spot, port: PORT_ASIDE, placement: user.placement, item });
            }
        }
        if subkey.is_none() {
            self.table.clear_user(user);
        }
        true
    }
}

impl<O: Operator> Stage for Keyed<O> {
    fn on_events(&mut self, env: &Env<'_>, when: Option<&When>, inbox: &mut Vec<Flow>, out: &mut Outbox<'_>) {
        if !env.skips.is_empty() {
            self.set_aside(env, inbox, out);
        }
        for flow in inbox.drain(..) {
            let holds = |when: &When| flow.item.is_control() || when.holds(&ItemFacts::new(&flow.item));
            if !when.is_none_or(holds) {
                // What the operator is not for passes untouched, in its place.
                let spot = out.drafts.book.hop(flow.spot, self.number, 1, 0);
                out.flows.push(Flow { spot, port: 0, ..flow });
                continue;
            }
            let Flow { spot, port, placement, item } = flow;
            let name = Arc::clone(&item.user);
            let user = UserKey { name: &name, placement };
            self.call(env, user, spot, out, |operator, cx| operator.on_event(cx, port, item));
        }
    }

    fn on_timers(&mut self, env: &Env<'_>, out: &mut Outbox<'_>) {
        for due in self.table.due(env.now, DUE_PER_GROUP_MAX) {
            if !self.table.fires(&due) {
                continue;
            }
            let (user, ordinal) = (UserKey::of(&due.user), Ordinal::timer(due.at, &due.user, &due.subkey, due.id));
            let spot = out.drafts.book.root(ordinal, Cause::Timer);
            if self.take_out(env, user, spot, Some(&due.subkey), out) {
                continue;
            }
            self.table.fire(&due);
            self.call(env, user, spot, out, |operator, cx| operator.on_timer(cx, &due.subkey, due.id));
        }
    }

    fn on_profiles(&mut self, env: &Env<'_>, changed: &[(Arc<str>, Known)], out: &mut Outbox<'_>) {
        for (name, old) in changed {
            let user = UserKey::of(name);
            if !self.table.has_entries(user) {
                continue;
            }
            let spot = out.drafts.book.root(Ordinal::profile(name), Cause::Profile);
            if !self.take_out(env, user, spot, None, out) {
                self.call(env, user, spot, out, |operator, cx| operator.on_profile(cx, old));
            }
        }
    }

    fn on_rules(&mut self, env: &Env<'_>, out: &mut Outbox<'_>) {
        for name in self.table.user_names() {
            let spot = out.drafts.book.root(Ordinal::rules(&name), Cause::Rules);
            if !self.take_out(env, UserKey::of(&name), spot, None, out) {
                self.call(env, UserKey::of(&name), spot, out, Operator::on_rules);
            }
        }
    }

    fn next_timer(&self) -> Option<Instant> {
        self.table.next_timer()
    }

    fn keys(&self) -> usize {
        self.table.keys()
    }

    fn drain_dirty(&mut self) -> (usize, Bytes) {
        self.table.drain_dirty()
    }

    fn restore(&mut self, key: &StateKey, image: &Image) -> Result<(), String> {
        self.table.restore(key, image)
    }
}
