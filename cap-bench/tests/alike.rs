//! The storages have the files that the table in `docs/architecture.md` says.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

const STORAGES: [&str; 4] = ["postgres", "mysql", "sqlite", "mongo"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace is above")
}

/// The texts between backticks.
fn quoted(cell: &str) -> impl Iterator<Item = String> + '_ {
    cell.split('`').skip(1).step_by(2).map(str::to_owned)
}

/// The files that a storage has by the table.
fn told(table: &[Vec<&str>], storage: usize) -> BTreeSet<String> {
    let files = table.iter().flat_map(|row| match row[storage + 2] {
        "yes" => quoted(row[0]).collect::<Vec<_>>(),
        "no" => Vec::new(),
        named => quoted(named).collect(),
    });
    files.collect()
}

fn found(storage: &str) -> BTreeSet<String> {
    let folder = root().join(format!("cap-storage-{storage}/src"));
    let files = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let names = files.filter_map(|file| file.ok()?.file_name().into_string().ok());
    names.filter_map(|name| Some(name.strip_suffix(".rs")?.to_owned())).filter(|name| name != "lib").collect()
}

#[test]
fn each_storage_has_the_files_that_the_architecture_says() {
    let text = fs::read_to_string(root().join("docs/architecture.md")).expect("the architecture is there");
    let (_, part) = text.split_once("## The files of a storage").expect("it has the table");
    let rows = part.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
    let cells = |line| str::split(line, '|').map(str::trim).skip(1).take(STORAGES.len() + 2).collect::<Vec<_>>();
    let table: Vec<Vec<&str>> = rows.skip(2).map(cells).collect();
    assert!(table.len() > 10, "the table was not found: {table:?}");
    for (place, storage) in STORAGES.into_iter().enumerate() {
        assert_eq!(told(&table, place), found(storage), "cap-storage-{storage}, as told and as it is");
    }
}
