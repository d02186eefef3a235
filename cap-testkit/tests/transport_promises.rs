//! The list of promises is the one in the trait's documentation.

use cap_testkit::transport::PROMISES;

/// The numbered promises of the trait's source, as `method/number`: a documentation line `/// 1. …` belongs to the next
/// method.
fn promises_in(source: &str) -> Vec<String> {
    let mut promises = Vec::new();
    let mut numbers: Vec<&str> = Vec::new();
    for line in source.lines().map(str::trim) {
        let numbered = line.strip_prefix("/// ").and_then(|text| text.split_once(". "));
        if let Some((number, _)) = numbered.filter(|(number, _)| number.parse::<u8>().is_ok()) {
            numbers.push(number);
        }
        if let Some(method) = line.strip_prefix("fn ").and_then(|rest| rest.split(['(', '<']).next()) {
            promises.extend(numbers.drain(..).map(|number| format!("{method}/{number}")));
        }
    }
    promises
}

#[test]
fn the_suite_knows_every_promise_of_the_trait() {
    // Beside this crate in the repository; a packaged copy of this crate does not have it.
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../cap-core/src/transport.rs");
    let Ok(source) = std::fs::read_to_string(path) else {
        return;
    };
    assert_eq!(promises_in(&source), PROMISES);
}
