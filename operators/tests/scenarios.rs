//! Every scenario script below `cases/`: the operators' specification as lines that run.

use std::path::Path;

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
