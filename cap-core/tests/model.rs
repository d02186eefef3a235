//! The life of messages, model-checked: within bounds, every interleaving of everything that can happen to them keeps
//! the promises of the design; and the checker finds each of a list of mistakes.
//!
//! `cargo test --release` explores further than a debug build does; `-- --nocapture` shows how far.

#[path = "model/mod.rs"]
mod model;

use model::checker::{EVERY_CALM_RUN_ENDS, NOTHING_IS_STUCK, explore};
use model::faults::Fault;
use model::setup::{Kind, Mishap, Setup};
use model::state::{Message, Row};

use Kind::{Killer, Later, Plain, Transactional, Unreadable};
use Mishap::{
    BrokerCrash, ConsumerLoss, Crash, HandlerFailure, LeaseExpiry, Leave, LostAnswer, LostConfirm, Refusal, Requeue,
};

/// What nodes, databases and brokers suffer.
const COMMON: [(Mishap, u8); 7] = [
    (Crash, 2),
    (LeaseExpiry, 2),
    (LostConfirm, 2),
    (LostAnswer, 2),
    (Leave, 2),
    (ConsumerLoss, 2),
    (HandlerFailure, 2),
];

/// What cuts work short, and what leaves its outcome unknown.
const WORST: [(Mishap, u8); 4] = [(Crash, 2), (LeaseExpiry, 2), (LostConfirm, 1), (LostAnswer, 1)];

/// A debug build is content with fewer mishaps, though of the same kinds.
const fn at_most(in_release: u8, in_debug: u8) -> u8 {
    if cfg!(debug_assertions) { in_debug } else { in_release }
}

/// Tests that every promise holds in all worlds of a setup.
macro_rules! holds {
    ($($name:ident: $setup:expr;)+) => { $(
        #[test]
        fn $name() {
            let explored = explore(&$setup).unwrap();
            let (worlds, transitions, depth) = (explored.worlds, explored.transitions, explored.depth);
            println!("{}: {worlds} worlds, {transitions} transitions, {depth} deep", stringify!($name));
        }
    )+ };
}

holds! {
    one_plain_message_keeps_the_promises_in_every_order:
        Setup::of(&[Plain]).mishaps(at_most(2, 1), &COMMON);
    one_transactional_message_keeps_the_promises_in_every_order:
        Setup::of(&[Transactional]).mishaps(at_most(2, 1), &COMMON);
    two_messages_keep_the_promises_in_every_order:
        Setup::of(&[Plain, Transactional])
            .mishaps(1, &[(LostAnswer, 1), (ConsumerLoss, at_most(1, 0)), (LostConfirm, at_most(1, 0))]);
    one_plain_message_survives_many_mishaps:
        Setup::of(&[Plain]).mishaps(at_most(4, 2), &COMMON).reduced();
    one_transactional_message_survives_many_mishaps:
        Setup::of(&[Transactional]).mishaps(at_most(4, 2), &COMMON).reduced();
    two_plain_messages_survive_every_mishap:
        Setup::of(&[Plain, Plain]).mishaps(1, &COMMON).reduced();
    two_plain_messages_survive_the_worst_together:
        Setup::of(&[Plain, Plain]).mishaps(at_most(2, 1), &WORST).reduced();
    a_plain_and_a_transactional_message_survive_every_mishap:
        Setup::of(&[Plain, Transactional]).mishaps(1, &COMMON).reduced();
    two_groups_get_a_message_whatever_happens:
        Setup::of(&[Plain]).groups(2).mishaps(at_most(2, 1), &COMMON).reduced();
    a_killer_beside_another_message_ends_dead:
        Setup::of(&[Killer, Plain])
            .nodes(at_most(2, 1).into())
            .mishaps(at_most(1, 0), &[(Crash, 1), (LostAnswer, 1)])
            .reduced();
    a_killer_and_its_neighbour_are_told_apart_in_spite_of_mishaps:
        Setup::of(&[Killer, Plain])
            .nodes(1)
            .claims_at_once()
            .mishaps(1, &[(Leave, 1), (LostAnswer, at_most(1, 0)), (HandlerFailure, at_most(1, 0))])
            .reduced();
    a_killer_is_found_out_in_company:
        Setup::of(&[Killer, Plain]).nodes(1).claims_at_once().crashes(3).reduced();
    a_killer_ends_dead_whoever_interferes:
        Setup::of(&[Killer]).mishaps(at_most(2, 1), &COMMON).reduced();
    a_broker_that_forgets_loses_nothing:
        Setup::of(&[Plain]).forgetful().mishaps(at_most(2, 1), &[(BrokerCrash, 2), (Crash, 1), (LostConfirm, 1)]);
    a_broker_that_forgets_loses_nothing_of_two_groups:
        Setup::of(&[Plain])
            .groups(2)
            .forgetful()
            .mishaps(at_most(3, 2), &[(BrokerCrash, 2), (Crash, 1), (LostConfirm, 1)])
            .reduced();
    what_fails_for_good_is_dead_and_can_be_requeued:
        Setup::of(&[Plain]).mishaps(at_most(3, 2), &[(Refusal, 1), (Requeue, 2), (HandlerFailure, 2), (Crash, 1)]);
    an_unreadable_message_is_parked:
        Setup::of(&[Unreadable, Plain]).mishaps(1, &COMMON).reduced();
    a_message_for_later_is_sent_when_it_is_due:
        Setup::of(&[Later]).mishaps(at_most(2, 1), &COMMON);
    collecting_disturbs_nothing:
        Setup::of(&[Transactional]).collecting().mishaps(1, &COMMON);
}

/// Tests that the checker finds a mistake, by the promise that it breaks.
macro_rules! finds {
    ($($name:ident: $fault:ident in $setup:expr, breaks $promise:expr;)+) => { $(
        #[test]
        fn $name() {
            let violation = explore(&$setup.with(Fault::$fault)).expect_err("a mistake that is not found");
            println!("{violation:?}");
            assert_eq!(violation.promise, $promise, "{violation:?}");
        }
    )+ };
}

finds! {
    a_record_marked_before_its_confirm: MarkBeforeConfirm in Setup::of(&[Plain]),
        breaks "what_succeeded_in_the_outbox_was_confirmed";
    a_confirm_of_what_did_not_reach_every_group: ConfirmWithoutRouting in Setup::of(&[Plain]).groups(2),
        breaks "what_succeeded_in_the_outbox_is_in_every_queue_or_inbox";
    a_forgetful_broker_that_confirms_too_soon: ConfirmBeforeAck in
        Setup::of(&[Plain]).forgetful().mishaps(1, &[(BrokerCrash, 1)]),
        breaks "what_succeeded_in_the_outbox_is_in_every_queue_or_inbox";
    a_lost_confirm_that_nobody_gives_back: GiveBackForgotten in Setup::of(&[Plain]).mishaps(1, &[(LostConfirm, 1)]),
        breaks NOTHING_IS_STUCK;
    an_ack_before_the_insert: AckBeforeInsert in Setup::of(&[Plain]),
        breaks "what_is_acknowledged_is_in_the_inbox";
    an_inbox_that_takes_an_id_twice: NoDedupe in Setup::of(&[Plain]).mishaps(1, &[(Crash, 1)]),
        breaks "a_message_is_once_in_the_inbox_of_a_group";
    a_claim_that_sees_open_transactions: ClaimSeesUncommitted in Setup::of(&[Plain]),
        breaks "what_is_not_committed_is_neither_claimed_nor_sent";
    two_equal_claims: ClaimTakesHeld in Setup::of(&[Plain]),
        breaks "a_live_node_works_only_on_what_it_holds";
    a_lost_claim_that_nobody_releases: LostClaimForgotten in Setup::of(&[Plain]).mishaps(1, &[(LostAnswer, 1)]),
        breaks NOTHING_IS_STUCK;
    a_release_of_other_claims: ReleaseIgnoresToken in Setup::of(&[Plain, Plain]).mishaps(1, &[(LostAnswer, 1)]),
        breaks "a_live_node_works_only_on_what_it_holds";
    a_settlement_without_fencing: SettleIgnoresToken in Setup::of(&[Plain]).mishaps(1, &[(LeaseExpiry, 1)]),
        breaks "only_the_holder_writes";
    a_transaction_without_fencing: TransactIgnoresToken in Setup::of(&[Transactional]).mishaps(1, &[(LeaseExpiry, 1)]),
        breaks "only_the_holder_writes";
    an_effect_apart_from_its_success: EffectApartFromSuccess in Setup::of(&[Transactional]),
        breaks "a_transactional_effect_and_its_success_are_one";
    a_takeover_from_a_living_node: TakeOverFromTheLiving in Setup::of(&[Plain]),
        breaks "a_live_node_works_only_on_what_it_holds";
    a_takeover_that_counts_no_crash: TakeOverForgetsCrash in Setup::of(&[Killer]),
        breaks "a_killer_is_not_tried_for_ever";
    a_crash_that_nobody_recovers_from: NoTakeOver in Setup::of(&[Plain]).mishaps(1, &[(Crash, 1)]),
        breaks NOTHING_IS_STUCK;
    a_heartbeat_that_revives: HeartbeatRevives in Setup::of(&[Plain]).mishaps(1, &[(LeaseExpiry, 1)]),
        breaks "a_live_node_works_only_on_what_it_holds";
    a_restart_under_the_old_id: RestartKeepsId in Setup::of(&[Plain]).mishaps(1, &[(Crash, 1)]),
        breaks NOTHING_IS_STUCK;
    a_claim_that_counts_only_the_first_attempt: OnlyFirstAttemptCounts in
        Setup::of(&[Plain]).mishaps(2, &[(HandlerFailure, 2)]),
        breaks "what_failed_too_often_is_dead";
    a_killer_that_is_tried_though_it_is_given_up: ExhaustedTried in Setup::of(&[Killer]),
        breaks "a_killer_is_not_tried_for_ever";
    an_exhaustion_without_a_trial: NoTrial in Setup::of(&[Plain]).mishaps(1, &[(Crash, 1)]),
        breaks "nobody_but_a_killer_is_given_up";
    a_trial_that_is_not_written_down: TrialNotWritten in Setup::of(&[Killer]),
        breaks "a_killer_is_not_tried_for_ever";
    a_trial_in_company: CompanyInTrial in
        Setup::of(&[Killer, Plain]).nodes(1).claims_at_once().reduced(),
        breaks "nobody_but_a_killer_is_given_up";
    a_trial_that_is_ended_by_a_killer_that_was_no_suspect: OneTrialBuries in
        Setup::of(&[Killer, Plain]).nodes(1).claims_at_once().mishaps(1, &[(Crash, 1)]).reduced(),
        breaks "nobody_but_a_killer_is_given_up";
    a_trial_that_counts_though_it_was_given_back: MarkNotCompared in
        Setup::of(&[Plain]).mishaps(3, &[(Crash, 2), (Leave, 1)]),
        breaks "nobody_but_a_killer_is_given_up";
    a_trial_that_a_leave_does_not_end: LeaveKeepsMark in
        Setup::of(&[Plain]).nodes(1).claims_at_once().mishaps(4, &[(Crash, 3), (Leave, 1)]).reduced(),
        breaks "nobody_but_a_killer_is_given_up";
    a_trial_that_may_be_written_and_is_forgotten: UnansweredMarkLetsGo in
        Setup::of(&[Plain]).nodes(1).claims_at_once().mishaps(4, &[(Crash, 3), (LostAnswer, 1)]).reduced(),
        breaks "nobody_but_a_killer_is_given_up";
    a_settlement_that_leaves_the_crashes: SettleKeepsCrashes in Setup::of(&[Plain]).mishaps(1, &[(Crash, 1)]),
        breaks "every_record_is_lawful";
    a_requeue_of_work_in_flight: RequeueTakesHeld in Setup::of(&[Plain]).mishaps(1, &[(Requeue, 1)]),
        breaks "a_live_node_works_only_on_what_it_holds";
    a_collector_of_waiting_records: CollectsWaiting in Setup::of(&[Plain]).collecting(),
        breaks "only_terminal_records_disappear";
    an_exhausted_record_that_nobody_buries: ExhaustedGivenBack in Setup::of(&[Killer]),
        breaks EVERY_CALM_RUN_ENDS;
}

#[test]
fn a_violation_is_told_as_its_shortest_story() {
    let violation = explore(&Setup::of(&[Plain]).with(Fault::MarkBeforeConfirm)).unwrap_err();
    let story: Vec<String> = violation.steps.iter().map(ToString::to_string).collect();
    assert_eq!(
        story,
        [
            "the user commits message 0",
            "node 0 joins under a new id",
            "node 0 claims outbox record 0",
            "node 0 settles outbox record 0: begun",
        ]
    );
}

#[test]
fn fewer_interleavings_come_to_the_same_ends() {
    for setup in [
        Setup::of(&[Plain]).mishaps(at_most(2, 1), &COMMON),
        Setup::of(&[Transactional]).mishaps(at_most(2, 1), &COMMON),
        Setup::of(&[Plain, Plain]).mishaps(1, &[(LostAnswer, 1)]),
        Setup::of(&[Killer]).mishaps(1, &[(Crash, 1)]),
    ] {
        let every = explore(&setup).unwrap();
        let fewer = explore(&setup.reduced()).unwrap();
        assert_eq!(every.ends, fewer.ends);
        assert!(fewer.worlds * 2 < every.worlds);
    }
}

/// Given up for crashes: nothing else is dead and has any.
fn is_given_up(row: &Row) -> bool {
    row.is_dead() && row.crashes > 0
}

/// Attempts and crashes are counted for all that is in flight when a process ends, and most of it is innocent.
#[test]
fn the_neighbours_of_a_killer_all_end_well() {
    let explored = explore(&Setup::of(&[Killer, Plain]).nodes(1).reduced()).unwrap();
    for messages in &explored.ends {
        let slots = messages.iter().flat_map(|message| [&message.outbox, &message.groups[0].inbox]);
        let given_up = slots.filter(|slot| slot.row().is_some_and(is_given_up)).count();
        let effects = messages.iter().map(|message| message.groups[0].effects);
        assert!(given_up <= 1 && effects.max() <= Some(3), "{messages:?}");
    }
}

/// An innocent that is tried alone when its process ends by itself, and again when that happens once more, cannot be told from
/// a killer: it is given up. It takes as many crashes as [`RetryPolicy::crashes`] says, and another.
///
/// [`RetryPolicy::crashes`]: cap_core::RetryPolicy::crashes
#[test]
fn only_crashes_in_two_trials_bury_an_innocent() {
    let ends = |setup: Setup| explore(&setup).unwrap().ends.into_iter().flatten();
    let is_buried = |message: Message| message.groups[0].inbox.row().is_some_and(is_given_up);
    assert!(!ends(Setup::of(&[Plain]).nodes(1).mishaps(2, &[(Crash, 2)]).reduced()).any(is_buried));
    assert!(ends(Setup::of(&[Plain]).nodes(1).mishaps(3, &[(Crash, 3)]).reduced()).any(is_buried));
    assert!(!ends(Setup::of(&[Plain]).nodes(1).crashes(3).mishaps(3, &[(Crash, 3)]).reduced()).any(is_buried));
}
