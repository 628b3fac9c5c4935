//! A template folder that is edited while it is in use.

use std::fs::{remove_file, write};

use tidings_schemas::channel::Channel;

use super::super::{Content, Subject};
use super::*;

fn sms(id: &str, version: u32, body: &str) -> String {
    format!("template_id: {id}\nchannel: sms\nversion: {version}\nbody: \"{body}\"\n")
}

fn says(store: &TemplateStore, event_type: &str) -> Option<String> {
    let data = BTreeMap::new();
    let subject = Subject {
        template_id: None,
        event_type,
        channel: Channel::Sms,
        locale: None,
        user: "u1",
        data: &data,
        actors: &[],
        actors_count: 0,
        activities: 1,
        object: None,
    };
    match store.current().render(&subject) {
        Ok(Content::Sms(sms)) => Some(sms.text),
        _ => None,
    }
}

/// Problems without the folder's path.
fn problems(store: &TemplateStore) -> Vec<String> {
    let folder = format!("{}/", store.folder.display());
    store.problems().iter().map(|problem| problem.to_string().replace(&folder, "")).collect()
}

#[test]
fn an_edit_is_taken_up_and_a_broken_one_keeps_the_last_good_text() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    write(file("a.yaml"), sms("a", 1, "first")).unwrap();
    write(file("notes.txt"), "not a template").unwrap();
    let store = TemplateStore::open(folder.path(), "en").unwrap();
    assert_eq!(says(&store, "a").as_deref(), Some("first"));
    assert!(!store.refresh(), "nothing changed");

    write(file("a.yaml"), sms("a", 1, "second one")).unwrap();
    write(file("b.yaml"), sms("b", 1, "new")).unwrap();
    assert!(store.refresh());
    assert_eq!((says(&store, "a").as_deref(), says(&store, "b").as_deref()), (Some("second one"), Some("new")));

    write(file("a.yaml"), sms("a", 1, "third {{ broken")).unwrap();
    assert!(!store.refresh(), "what is in use is what was");
    assert_eq!(says(&store, "a").as_deref(), Some("second one"));
    assert_eq!(
        problems(&store),
        ["a.yaml:4:17: syntax error: unexpected end of input, expected end of variable block"]
    );
    store.refresh();
    assert_eq!(problems(&store).len(), 1, "it stays a problem until it is mended");

    // Other files go on being taken up meanwhile.
    write(file("b.yaml"), sms("b", 1, "newer text")).unwrap();
    assert!(store.refresh());
    assert_eq!(says(&store, "b").as_deref(), Some("newer text"));

    write(file("a.yaml"), sms("a", 1, "mended")).unwrap();
    assert!(store.refresh());
    assert_eq!(says(&store, "a").as_deref(), Some("mended"));
    assert_eq!(problems(&store), [""; 0]);

    remove_file(file("b.yaml")).unwrap();
    assert!(store.refresh());
    assert_eq!(says(&store, "b"), None);
}

#[test]
fn files_at_odds_wait_until_they_agree() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    write(file("a.yaml"), sms("x", 1, "one")).unwrap();
    write(file("b.yaml"), sms("x", 2, "two")).unwrap();
    let store = TemplateStore::open(folder.path(), "en").unwrap();
    write(file("c.yaml"), sms("x", 2, "two again")).unwrap();
    write(file("d.yaml"), sms("y", 1, "why")).unwrap();
    assert!(store.refresh());
    assert_eq!((says(&store, "x").as_deref(), says(&store, "y").as_deref()), (Some("two"), Some("why")));
    let [problem] = &problems(&store)[..] else { panic!("{:?}", problems(&store)) };
    assert!(problem.starts_with("c.yaml: `x` has version 2 for sms in `default` in "), "{problem}");

    remove_file(file("b.yaml")).unwrap();
    assert!(store.refresh());
    assert_eq!(says(&store, "x").as_deref(), Some("two again"));
    assert_eq!(problems(&store), [""; 0]);
}

#[test]
fn a_folder_out_of_reach_keeps_all_texts() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path().join("a.yaml"), sms("a", 1, "first")).unwrap();
    let store = TemplateStore::open(folder.path(), "en").unwrap();
    folder.close().unwrap();
    assert!(!store.refresh());
    assert_eq!(says(&store, "a").as_deref(), Some("first"));
    let [problem] = &store.problems()[..] else { panic!("{:?}", store.problems()) };
    assert!(problem.to_string().contains("can't be read: "), "{problem}");
}

#[test]
fn a_broken_file_at_the_start_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path().join("a.yaml"), sms("a", 1, "{{")).unwrap();
    write(folder.path().join("layout.html"), "<p>\n  {{ subject | nope }}").unwrap();
    write(folder.path().join("ok.yaml"), sms("ok", 1, "fine")).unwrap();
    let errors = TemplateStore::open(folder.path(), "en").unwrap_err();
    let prefix = format!("{}/", folder.path().display());
    let errors: Vec<String> = errors.iter().map(|error| error.to_string().replace(&prefix, "")).collect();
    assert_eq!(
        errors,
        [
            "a.yaml:4:8: syntax error: unexpected end of input, expected expression",
            "layout.html:2:16: filter nope is unknown"
        ]
    );
    assert!(Templates::load(folder.path()).is_err());
}
