//! One round of `cargo xtask kill`: a seeded workload on real services and real processes, one fault at
//! moments that the seed draws, until everything has settled; then the checks of the end-to-end test.
//!
//! Not a test of the harness, because it kills services: `cargo xtask kill` starts its own, and says in the
//! environment what to do. `TIDINGS_KILL_FAULT`, `…_LAYOUT`, `…_SEED` and `…_EVENTS` say what the round is about; `…_XTASK`
//! and `…_DIR` name the program and the folder through which services are killed and started. Without them
//! it does nothing and says so. Talk goes to stderr; the last line, on stdout, is the round as JSON.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program that is run by hand, too")]

#[path = "../real/checks.rs"]
mod checks;
#[path = "../real/child.rs"]
mod child;
#[path = "../real/proxy.rs"]
mod proxy;
mod round;
mod timeline;
#[path = "../real/workload.rs"]
mod workload;
#[path = "../real/world.rs"]
mod world;

use crate::round::{Asked, Round};
use crate::timeline::{Fault, Layout};
use crate::world::environment;

fn main() {
    let Some(name) = environment("TIDINGS_KILL_FAULT") else {
        eprintln!("SKIPPED a round of kill: `cargo xtask kill` runs them");
        return;
    };
    let fault = Fault::named(&name).unwrap_or_else(|| {
        panic!("no fault is called `{name}`; there are {:?}", Fault::ALL.map(|(known, _)| known));
    });
    let layout = environment("TIDINGS_KILL_LAYOUT").unwrap_or_else(|| "1x2".to_owned());
    let layout = Layout::named(&layout).unwrap_or_else(|| panic!("no layout is called `{layout}`"));
    let given = |name: &str| environment(name).unwrap_or_else(|| panic!("{name} is not set"));
    let number = |name: &str| given(name).parse().unwrap_or_else(|_| panic!("{name} is no number"));
    let asked = Asked {
        name,
        fault,
        layout,
        seed: number("TIDINGS_KILL_SEED"),
        events: usize::try_from(number("TIDINGS_KILL_EVENTS")).unwrap(),
        xtask: given("TIDINGS_KILL_XTASK").into(),
        services: given("TIDINGS_KILL_DIR").into(),
    };
    println!("{}", Round::new(asked).run());
}
