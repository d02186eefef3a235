//! The transport suite is tested by its faults: each check fails on the doubles that it is there to catch, and passes
//! on the sound ones.

use std::collections::HashSet;
use std::sync::Arc;

use cap_testkit::transport::{
    CHECKS, FaultyFixture, Pretence, TRANSPORT_FAULTS, TransportFault, TransportFixture, fault_table,
};
use cap_testkit::{Outcome, Report, RunOptions, run_all};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_check_fails_on_each_of_its_faults() {
    let table = fault_table().await;
    for kill in &table {
        println!("{kill}");
    }
    let missed: Vec<_> = table.iter().filter(|kill| kill.noticed.is_none()).map(ToString::to_string).collect();
    println!("{} of {} faults killed", table.len() - missed.len(), TRANSPORT_FAULTS.len());
    assert!(missed.is_empty(), "not noticed:\n{}", missed.join("\n"));
    assert_eq!(table.len(), TRANSPORT_FAULTS.len());
}

#[test]
fn every_check_has_a_fault_and_every_fault_a_check() {
    let checked: HashSet<&str> = TRANSPORT_FAULTS.iter().map(|(id, _)| *id).collect();
    assert_eq!(checked, CHECKS.iter().map(|check| check.id).collect());
    let used: HashSet<TransportFault> = TRANSPORT_FAULTS.iter().map(|(_, fault)| *fault).collect();
    assert_eq!(used, TransportFault::ALL.iter().copied().collect());
}

async fn report_on(pretence: Pretence) -> Report {
    let make = || async move { Arc::new(FaultyFixture::sound(pretence)) as Arc<dyn TransportFixture> };
    run_all(CHECKS, make, &RunOptions::for_subject(format!("{pretence:?}"))).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sound_doubles_pass_and_run_every_check() {
    let mut passed = HashSet::new();
    let mut refused = HashSet::new();
    for pretence in Pretence::ALL {
        let report = report_on(pretence).await;
        println!("{report}");
        assert!(report.is_conformant(), "the sound double {pretence:?} fails:\n{report}");
        for entry in report.entries {
            match entry.outcome {
                Outcome::Passed => drop(passed.insert(entry.id)),
                Outcome::Unsupported { verified: true, .. } => drop(refused.insert(entry.id)),
                _ => {}
            }
        }
    }
    let never_ran: Vec<&str> = CHECKS.iter().map(|check| check.id).filter(|id| !passed.contains(id)).collect();
    assert!(never_ran.is_empty(), "no sound double runs {never_ran:?}");
    let can_refuse = CHECKS.iter().filter(|check| check.undeclared.is_some()).map(|check| check.id);
    assert_eq!(refused, can_refuse.collect());
}
