//! Every storage check fails on the faults that it is there for, and on nothing else.

use std::collections::HashSet;

use cap_testkit::storage::{CHECKS, STORAGE_FAULTS, StorageFault, fault_table};

/// What the doubles add to the memory storage is right, but for their fault.
mod sound {
    cap_testkit::storage_conformance!(cap_testkit::storage::FaultyFixture::sound());
}

/// The checks ask nothing of a storage that it does not declare.
mod modest {
    cap_testkit::storage_conformance!(cap_testkit::storage::FaultyFixture::modest());
}

/// The checks do not hang on a database with one writer, and hold by a clock that nobody moves.
mod single_writer {
    cap_testkit::storage_conformance!(cap_testkit::storage::FaultyFixture::single_writer());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_check_fails_on_each_of_its_faults() {
    let table = fault_table().await;
    for kill in &table {
        println!("{kill}");
    }
    let missed: Vec<_> = table.iter().filter(|kill| kill.noticed.is_none()).map(ToString::to_string).collect();
    println!("{} of {} faults killed", table.len() - missed.len(), table.len());
    assert!(missed.is_empty(), "not noticed:\n{}", missed.join("\n"));
    assert_eq!(table.len(), STORAGE_FAULTS.iter().map(|(_, faults)| faults.len()).sum::<usize>());
}

#[test]
fn every_check_has_a_fault_and_every_fault_a_check() {
    for (check, (id, faults)) in CHECKS.iter().zip(STORAGE_FAULTS) {
        assert_eq!(check.id, *id);
        assert!(!faults.is_empty(), "{id} {}", check.name);
    }
    let used: HashSet<StorageFault> = STORAGE_FAULTS.iter().flat_map(|(_, faults)| faults.iter().copied()).collect();
    for fault in StorageFault::ALL {
        assert!(used.contains(fault), "no check is tried on {fault:?}");
    }
}
