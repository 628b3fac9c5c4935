//! Calls that kill their operator, and how the next run leaves them out.
//!
//! # Cast
//! A call is named by its *place*: the ordinal of what it is for, and the operator. A *skip* is a place
//! that was logged: there nothing is called any more.
//!
//! # Protocol
//! 1. A panic is caught around a whole epoch (`caught`); on its way out it notes where it came from
//!    (`Crumb` and `Book`, which cost nothing while nobody panics). The worker reports it and is done for: what
//!    state a panic leaves behind is nobody's guess.
//! 2. The host logs the skip, and starts again from what is durable. Nothing of the epoch was said,
//!    because that needs all its workers.
//! 3. The epoch runs again, for ever, without the call. A source's record is refused before it enters the
//!    chain, whatever died of it, and goes to the dead letters as it came. What a timer, a profile or rules
//!    set in motion ends at that place: the operator's entry, or the item on its way, goes there.
//!
//! A death that cannot be caught (an abort, an endless loop) takes the process with it. Where the host asks for
//! it ([`Crumbs`]), it hears of each call before it is made, and the next process knows.
//!
//! # Not promised
//! That another record is not killed by the same state: each costs a skip, and the host bounds them.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tidings_schemas::ids::placement;
use tidings_schemas::lifecycle::{Stage as Writer, State as Did, Unit};
use tidings_schemas::reason::Reason;

use super::book::Spot;
use super::drafts::Drafts;
use super::feed::Lot;
use super::ordinal::Ordinal;
use crate::ingest::Path;
use crate::item::Item;
use crate::keyed::{About, Cause};

/// Output port that leaves the chain for the dead letters, whatever stands below.
pub(crate) const PORT_ASIDE: u8 = 252;

/// Most characters of a panic's message that are kept: enough to find the line, too few to fill a log.
const MESSAGE_CHARS_MAX: usize = 300;

/// A call that is not made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skip {
    /// What it was for. A source's record stands for all that it sets in motion.
    pub ordinal: Ordinal,
    /// The operator's number; none for the chain's end, and where it does not matter.
    pub operator: Option<u16>,
    /// Who died and of what, in words: what the dead letter says.
    pub problem: String,
}

/// A call that killed its operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Killed {
    /// The epoch, of which nothing is said.
    pub epoch: u64,
    /// What the next run is to leave out.
    pub skip: Skip,
}

/// Hears of each call before it is made: for deaths that leave no word.
pub trait Crumbs: Send + Sync + std::fmt::Debug {
    /// A call of this epoch is about to be made.
    fn at(&self, epoch: u64, ordinal: &Ordinal, operator: Option<usize>);
}

impl Skip {
    /// The call at this place, or the record that set it in motion.
    #[must_use]
    pub fn of(ordinal: Ordinal, operator: Option<u16>, problem: String) -> Self {
        match ordinal.as_record() {
            Some((lot, offset)) => Self { ordinal: Ordinal::record(lot, offset), operator: None, problem },
            None => Self { ordinal, operator, problem },
        }
    }

    /// The record that is to be refused, if it is one.
    #[must_use]
    pub fn record(&self) -> Option<(Lot, u64)> {
        self.ordinal.as_record()
    }

    fn is_at(&self, ordinal: &Ordinal, operator: Option<usize>) -> bool {
        self.operator.map(usize::from) == operator && self.ordinal == *ordinal
    }
}

/// The skip of this place, if there is one.
pub(crate) fn skip_at<'a>(skips: &'a [Skip], ordinal: &Ordinal, operator: Option<usize>) -> Option<&'a Skip> {
    skips.iter().find(|skip| skip.is_at(ordinal, operator))
}

/// Where a panic came from.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) ordinal: Ordinal,
    pub(crate) operator: Option<usize>,
}

/// A panic.
#[derive(Debug)]
pub(crate) struct Died {
    place: Option<Place>,
    message: String,
}

impl Died {
    /// The call that killed, as the next run is to leave it out; in words where no call is known, which is
    /// the harness's own fault. `name` says an operator's id by its number.
    pub(crate) fn killed(self, epoch: u64, name: impl Fn(usize) -> Option<Arc<str>>) -> Result<Killed, String> {
        let Self { place, message } = self;
        let Some(Place { ordinal, operator }) = place else { return Err(format!("it panicked: {message}")) };
        let who = match operator.and_then(name) {
            Some(id) => format!("operator `{id}`"),
            None => "what stands around the operators".to_owned(),
        };
        let problem = format!("it killed {who}: {message}");
        let operator = operator.and_then(|number| u16::try_from(number).ok());
        Ok(Killed { epoch, skip: Skip::of(ordinal, operator, problem) })
    }
}

thread_local! {
    /// Where the panic under way came from: set while it passes, taken where it is caught.
    static FROM: RefCell<Option<Place>> = const { RefCell::new(None) };
}

/// A record that is being read. Dropped only by a panic, because [`Crumb::survived`] forgets it.
pub(crate) struct Crumb(pub(crate) Lot, pub(crate) u64);

impl Crumb {
    /// Nothing happened.
    pub(crate) const fn survived(self) {
        std::mem::forget(self);
    }
}

impl Drop for Crumb {
    fn drop(&mut self) {
        came_from(Place { ordinal: Ordinal::record(self.0, self.1), operator: None });
    }
}

/// Notes where the panic under way came from. The innermost place is the first that it passes.
pub(crate) fn came_from(place: Place) {
    FROM.with_borrow_mut(|from| {
        from.get_or_insert(place);
    });
}

/// Runs `what`; a panic becomes what it says, and where it came from.
pub(crate) fn caught<T>(what: impl FnOnce() -> T) -> Result<T, Box<Died>> {
    catch_unwind(AssertUnwindSafe(what)).map_err(|payload| {
        let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_default();
        Box::new(Died { place: FROM.take(), message: text.chars().take(MESSAGE_CHARS_MAX).collect() })
    })
}

/// What an operator's body holds: what operators park is an item.
pub(crate) fn parked(body: &impl Serialize) -> Option<Box<Item>> {
    let bytes = postcard::to_stdvec(body).ok().filter(|bytes| !bytes.is_empty())?;
    postcard::from_bytes::<Option<Box<Item>>>(&bytes).ok()?
}

/// Says what became of an item that is set aside; returns its dead letter.
pub(crate) fn set_aside(item: &Item, spot: Spot, drafts: &mut Drafts, path: Path) -> Vec<u8> {
    let call = drafts.call(spot, None, "quarantine", placement(&item.user));
    let reason = Some(Reason::Panicked);
    if item.leg.is_some() {
        let did = [Did::Suppressed];
        drafts.add(call, Unit::Leg, &About::leg(item), &did, reason, None, None);
    } else {
        for member in &item.members {
            let about = About::member(item, member);
            drafts.add(call, Unit::Event, &about, &[Did::Rejected], reason, None, None);
        }
    }
    let stage = match path {
        Path::Decide => Writer::Decide,
        Path::Critical => Writer::Critical,
    };
    let problem = if let Cause::Words(problem) = drafts.book.cause(spot) { problem.as_str() } else { "" };
    let data: serde_json::Value = serde_json::from_str(&item.newest().content.data).unwrap_or_default();
    serde_json::json!({
        "v": 1, "stage": stage, "event": item.newest().event, "reason": Reason::Panicked, "problem": problem,
        "user_id": item.user, "tenant": item.tenant, "type": item.event_type, "notification": item.notification,
        "leg": item.leg, "members": item.members.iter().map(|member| member.event).collect::<Vec<_>>(),
        "object": item.object, "data": data, "created_at": item.created_at,
    })
    .to_string()
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::super::book::Book;
    use super::*;

    #[test]
    fn a_panic_says_where_it_came_from_once() {
        let (lot, subkey) = (Lot { source: 1, partition: 2 }, crate::keyed::Subkey::of(&["k"]));
        let timer = Ordinal::timer(tidings_schemas::time::Instant(5), "u1", &subkey, crate::keyed::TimerId(0));
        let record = Ordinal::record(lot, 7);
        let died = |ordinal: &Ordinal, operator| {
            caught(|| {
                Crumb(lot, 8).survived();
                let _outer = Crumb(lot, 9);
                let mut book = Book::default();
                let [other, spot] = [Ordinal::record(lot, 6), ordinal.clone()].map(|it| book.root(it, Cause::Rules));
                book.enter(other, Some(2));
                book.leave();
                book.enter(spot, operator);
                panic!("of {}", "grief");
            })
            .err()
            .unwrap()
            .killed(3, |number| (number == 4).then(|| "route".into()))
            .unwrap()
        };
        // What a record set in motion is left out as a whole.
        let problem = "it killed operator `route`: of grief".to_owned();
        let skip = Skip { ordinal: record.clone(), operator: None, problem: problem.clone() };
        assert_eq!(died(&record.hop(1, 1, 0), Some(4)), Killed { epoch: 3, skip });
        let skip = Skip { ordinal: timer.hop(3, 1, 0), operator: Some(4), problem };
        assert_eq!(died(&timer.hop(3, 1, 0), Some(4)), Killed { epoch: 3, skip });
        let end = died(&timer, None).skip;
        assert_eq!(end.problem, "it killed what stands around the operators: of grief");
        assert!(skip_at(std::slice::from_ref(&end), &timer, None).is_some());
        assert!(skip_at(&[end], &timer, Some(4)).is_none());
        let nobody = caught(|| panic!("alone")).err().unwrap().killed(3, |_| None).unwrap_err();
        assert_eq!(nobody, "it panicked: alone");
    }
}
