//! Words that may not stand in certain files.
//!
//! A rule is a row: words, where they are looked for, and the remedy. Exceptions are rows, too, each with its reason.

use super::Finding;
use super::source::{Source, is_name};

/// A set of words with one reason and one remedy.
struct Rule {
    words: &'static [&'static str],
    view: View,
    applies: fn(&str) -> bool,
    remedy: &'static str,
}

/// What of a file is looked at.
#[derive(Clone, Copy)]
enum View {
    /// All of it, comments included.
    Text,
    /// Code, its tests included.
    Code,
    /// Code without tests.
    Shipped,
}

/// Modules that may start tasks with a bare `tokio::spawn`, each with the reason and with who ends them. A path here
/// that starts none any more is a finding as well.
const TASK_OWNERS: &[(&str, &str)] = &[];

const SPAWN: Rule = Rule {
    words: &["tokio::spawn", "task::spawn", "task::spawn_local", "current().spawn"],
    view: View::Shipped,
    applies: |_| true,
    remedy: "a task without an owner outlives its errors; spawn on a `tokio::task::JoinSet` that its owner joins, or \
             add the module to TASK_OWNERS with a reason",
};

const RULES: &[Rule] = &[
    Rule {
        words: &["timely", "differential_dataflow"],
        view: View::Code,
        applies: |path| !path.starts_with("operators/src/harness/"),
        remedy: "only operators/src/harness knows the dataflow engine; express it through the harness",
    },
    Rule {
        words: &["SystemTime", "Instant::now", "Timestamp::now", "Zoned::now", "Utc::now", "Local::now"],
        view: View::Shipped,
        applies: is_operator,
        remedy: "an operator has no clock, or a replay would decide differently; take `now` as a parameter",
    },
    Rule {
        words: &["rand", "fastrand", "getrandom", "thread_rng", "RandomState", "new_v4", "ring::rand"],
        view: View::Shipped,
        applies: is_operator,
        remedy: "an operator has no randomness, or a replay would decide differently; hash what the decision is about",
    },
    Rule {
        words: &["std::env", "env::var", "env::vars", "env::var_os"],
        view: View::Shipped,
        applies: is_operator,
        remedy: "an operator has no environment; what it needs is a parameter in the topology",
    },
    Rule {
        words: &["std::thread", "thread::spawn", "thread::current", "thread_local"],
        view: View::Shipped,
        applies: is_operator,
        remedy: "an operator knows no thread, because workers may be any number; leave concurrency to the harness",
    },
    Rule {
        words: &["unbounded", "unbounded_channel", "UnboundedSender", "UnboundedReceiver", "mpsc::channel()"],
        view: View::Shipped,
        applies: |_| true,
        remedy: "an unbounded channel turns a slow reader into lost memory; give it a capacity",
    },
    Rule {
        words: &["for_each_stamp", "for_each_time"],
        view: View::Code,
        applies: |_| true,
        remedy: "it sorts by stamp, unstably, and so breaks each sender's order; use `for_each`",
    },
    Rule {
        words: &["todo!", "unimplemented!"],
        view: View::Code,
        applies: |_| true,
        remedy: "nothing half done is merged; finish it or leave it out",
    },
    Rule {
        words: &["FIXME", "TODO", "for now", "For now"],
        view: View::Text,
        // The rules themselves must name the words.
        applies: |path| path != "xtask/src/tidy/words.rs",
        remedy: "nothing half done is merged; finish it, leave it out, or state plainly what is not promised",
    },
];

fn is_operator(path: &str) -> bool {
    path.starts_with("operators/src/") && !path.starts_with("operators/src/harness/")
}

pub(super) fn check(sources: &[Source]) -> Vec<Finding> {
    let mut findings = spawns(sources, TASK_OWNERS);
    findings.extend(sources.iter().flat_map(|source| RULES.iter().flat_map(|rule| broken(rule, source))));
    findings
}

fn broken(rule: &Rule, source: &Source) -> Vec<Finding> {
    if !(rule.applies)(&source.path) {
        return Vec::new();
    }
    let text = match rule.view {
        View::Text => &source.text,
        View::Code => &source.code,
        View::Shipped => &source.shipped,
    };
    let mut findings = Vec::new();
    for (number, line) in text.lines().enumerate() {
        // One finding a line: `tokio::task::spawn` holds two of the words.
        if let Some(word) = rule.words.iter().find(|word| holds(line, word)) {
            findings.push(Finding {
                path: source.path.clone(),
                line: number + 1,
                message: format!("`{word}`: {}", rule.remedy),
            });
        }
    }
    findings
}

fn spawns(sources: &[Source], owners: &[(&str, &str)]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for source in sources {
        let found = broken(&SPAWN, source);
        let is_owner = owners.iter().any(|(path, _)| *path == source.path);
        if !is_owner {
            findings.extend(found);
        } else if found.is_empty() {
            findings.push(stale(&source.path));
        }
    }
    let exists = |path: &str| sources.iter().any(|source| source.path == path);
    findings.extend(owners.iter().filter(|(path, _)| !exists(path)).map(|(path, _)| stale(path)));
    findings
}

fn stale(path: &str) -> Finding {
    let message = "starts no task any more; take it out of TASK_OWNERS in xtask/src/tidy/words.rs".to_owned();
    Finding { path: path.to_owned(), line: 1, message }
}

/// Whether the word stands in the line and is not part of a longer name.
fn holds(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        let ends_in_name = word.chars().next_back().is_some_and(is_name);
        !(before.is_some_and(is_name) || ends_in_name && after.is_some_and(is_name))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(path: &str, text: &str) -> String {
        check(&[Source::new(path, text)]).iter().map(|finding| format!("{finding}\n")).collect()
    }

    #[test]
    fn each_rule_bites_and_names_file_line_and_remedy() {
        for (path, line, remedy) in [
            ("sinks/src/lane.rs", "use timely::dataflow::Scope;", "operators/src/harness"),
            ("operators/tests/dataflow.rs", "use timely::dataflow::Scope;", "operators/src/harness"),
            ("pipeline/src/main.rs", "use differential_dataflow::Collection;", "operators/src/harness"),
            ("operators/src/dedup.rs", "let now = std::time::SystemTime::now();", "take `now` as a parameter"),
            ("operators/src/dedup.rs", "let now = Instant::now();", "take `now` as a parameter"),
            ("operators/src/dedup.rs", "let now = jiff::Timestamp::now();", "take `now` as a parameter"),
            ("operators/src/dedup.rs", "rand::rng().random()", "hash what"),
            ("operators/src/dedup.rs", "Uuid::new_v4()", "hash what"),
            ("operators/src/dedup.rs", "std::env::var(NAME)", "parameter in the topology"),
            ("operators/src/dedup.rs", "std::thread::spawn(work)", "leave concurrency"),
            ("sinks/src/lane.rs", "tokio::spawn(work)", "JoinSet"),
            ("sinks/src/lane.rs", "tokio::task::spawn(work)", "JoinSet"),
            ("sinks/src/lane.rs", "let (a, b) = tokio::sync::mpsc::unbounded_channel();", "capacity"),
            ("sinks/src/lane.rs", "let (a, b) = crossbeam_channel::unbounded();", "capacity"),
            ("sinks/src/lane.rs", "let (a, b) = std::sync::mpsc::channel();", "capacity"),
            ("operators/src/harness/run.rs", "input.for_each_stamp(work)", "for_each"),
            ("sinks/src/lane.rs", "todo!()", "finish it"),
            ("sinks/src/lane.rs", "unimplemented!(\"x\")", "finish it"),
            ("sinks/src/lane.rs", "// FIXME: slow", "finish it"),
            ("sinks/src/lane.rs", "// Good enough. For now.", "finish it"),
        ] {
            let found = findings(path, &format!("//! Header.\n{line}\n"));
            assert!(found.starts_with(&format!("{path}:2: `")), "{path}: {line} gave {found:?}");
            assert!(found.contains(remedy), "{path}: {line} gave {found:?}");
            assert_eq!(found.lines().count(), 1, "{found}");
        }
    }

    #[test]
    fn the_same_words_are_free_where_they_belong() {
        for (path, line) in [
            ("operators/src/harness/run.rs", "use timely::dataflow::Scope; std::thread::spawn(work);"),
            ("operators/src/dedup.rs", "// the only crate that names timely, on its own thread"),
            ("operators/src/dedup.rs", "let text = \"Instant::now\";"),
            ("operators/src/dedup.rs", "#[cfg(test)]\nmod tests { fn a() { std::env::var(NAME); } }"),
            ("operators/src/dedup.rs", "let operand = brand(errand);"),
            ("pipeline/src/main.rs", "let now = Instant::now();"),
            ("sinks/src/lane.rs", "let (a, b) = tokio::sync::mpsc::channel(LANE_MAX);"),
            ("sinks/src/lane.rs", "let above = Bound::Unbounded;"),
            ("sinks/src/lane.rs", "tasks.spawn(work); tokio::task::spawn_blocking(work);"),
            ("sinks/src/lane.rs", "// waits for nowhere"),
        ] {
            assert_eq!(findings(path, line), "", "{path}: {line}");
        }
    }

    #[test]
    fn an_owner_of_tasks_may_spawn_until_it_no_longer_does() {
        let spawning = [Source::new("sinks/src/tasks.rs", "tokio::spawn(work)")];
        let owners = [("sinks/src/tasks.rs", "joins them")];
        assert_eq!(spawns(&spawning, &owners), []);
        assert_eq!(spawns(&[Source::new("sinks/src/tasks.rs", "")], &owners).len(), 1);
        assert_eq!(spawns(&[], &owners).len(), 1);
    }
}
