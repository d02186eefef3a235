//! The suite quotes the promises that the storage traits make, and the traits make those that the suite quotes.

use std::collections::BTreeSet;

use cap_testkit::storage::PROMISES;

/// The numbered promises in the documentation of each method and trait: `claim/2`, `Enlist/1`.
fn promises_of(source: &str) -> BTreeSet<String> {
    let mut promises = BTreeSet::new();
    let mut numbers: Vec<&str> = Vec::new();
    for line in source.lines().map(str::trim) {
        if let Some(text) = line.strip_prefix("/// ") {
            let number = text.split(". ").next().filter(|number| number.bytes().all(|byte| byte.is_ascii_digit()));
            numbers.extend(number.filter(|number| !number.is_empty()));
            continue;
        }
        let item = line.strip_prefix("fn ").or_else(|| line.strip_prefix("pub trait "));
        if let Some(item) = item {
            let name = item.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default();
            promises.extend(numbers.iter().map(|number| format!("{name}/{number}")));
        }
        if !line.starts_with("///") {
            numbers.clear();
        }
    }
    promises
}

#[test]
fn the_suite_knows_every_promise_of_the_storage_traits() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../cap-core/src/storage");
    let files = ["mod.rs", "enlist.rs", "transact.rs"].map(|file| std::fs::read_to_string(format!("{folder}/{file}")));
    let sources = files.map(|source| source.expect("the kit is tested in its workspace"));
    let promised: BTreeSet<String> = sources.iter().flat_map(|source| promises_of(source)).collect();
    let quoted: BTreeSet<String> =
        PROMISES.iter().filter(|promise| promise.contains('/')).map(|promise| (*promise).to_owned()).collect();
    assert!(promised.len() > 40, "the promises are no longer found: {promised:?}");
    assert_eq!(promised, quoted);
}
