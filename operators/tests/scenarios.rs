//! Every scenario script below `cases/`: the operators' specification as lines that run.

use std::path::Path;

use tidings_schemas::ids::NotificationId;
use tidings_schemas::lane::LaneRecord;

#[test]
fn every_scenario_says_what_it_should() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases");
    let mut scripts: Vec<_> = walk(&root);
    scripts.sort();
    let mut failed = Vec::new();
    for path in &scripts {
        let script = std::fs::read_to_string(path).expect("a script");
        let name = path.strip_prefix(&root).expect("below cases").display().to_string();
        if let Err(panic) = std::panic::catch_unwind(|| tidings_operators::script::check(&script)) {
            let message = panic.downcast_ref::<String>().cloned().unwrap_or_else(|| "panicked".to_owned());
            failed.push(format!("{name}: {message}"));
        }
    }
    assert!(scripts.len() >= 20, "only {} scripts found", scripts.len());
    assert!(failed.is_empty(), "\n{}", failed.join("\n\n"));
}

fn walk(folder: &Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}

/// A group of which one member expires is not too late before the others are; and what retractions
/// leave of a window bears the name of the event that is left.
#[test]
fn what_is_left_of_a_group_is_named_by_who_is_left() {
    let told = tidings_operators::script::tell(
        r#"chain validate | dedup | preferences | aggregate {"window":"5m"} | route
addresses u1 push
at 2026-03-01 10:00
event e1 u1 like bob photo7
event e2 u1 like alice photo7
retract r1 u1 like bob photo7
event e3 u1 like bob photo8
event e4 u1 like alice photo8 {"expires_at":"2026-03-01T10:06:00Z"}
at 2026-03-01 10:05"#,
    );
    let push = |object: &str| {
        let is = |lane: &&LaneRecord| !lane.silent && lane.object.as_ref().is_some_and(|other| other.id == object);
        told.lanes.iter().find(is).expect("a push")
    };
    assert_eq!(push("photo7").notification, NotificationId::of_one("u1", told.events["e2"].0));
    assert_eq!((push("photo8").activities, push("photo8").expires_at), (2, None));
}
