//! The table of checks, written once: the suite, the tests, the reports and the table of faults are all made from it.

/// Calls a macro with a token tree of yours and then the whole table, one row for each check:
/// `"S-001" module::name { promises: […], needs: …, undeclared: …, catches: "…", faults: […] }`.
#[doc(hidden)]
#[macro_export]
macro_rules! for_each_storage_check {
    ($callback:path, $arguments:tt) => {
        $callback! { $arguments
            "S-001" transaction::a_publish_is_visible_after_the_commit {
                promises: ["Enlist/1"], needs: ENLISTS, undeclared: without_enlisting_there_is_no_transaction,
                catches: "a message that is missing or late after its commit",
                faults: [EnlistForgets, EnlistUndeclared]
            }
            "S-002" transaction::a_publish_is_invisible_before_the_commit {
                promises: ["Enlist/1", "Enlist/2", "claim/1", "next_due/1"], needs: ENLISTS,
                catches: "a dirty read, or an insert on a connection of the storage's own",
                faults: [EnlistCommitsAtOnce]
            }
            "S-003" transaction::a_publish_is_gone_after_the_rollback {
                promises: ["Enlist/1"], needs: ENLISTS,
                catches: "an insert on a connection of the storage's own; an id that stays taken",
                faults: [EnlistCommitsAtOnce, RollbackKeepsIds]
            }
            "S-004" transaction::a_savepoint_takes_back_what_was_published_after_it {
                promises: ["Enlist/1"], needs: SAVEPOINTS,
                catches: "messages buffered beside the transaction, which know of no savepoint",
                faults: [SavepointForgotten]
            }
            "S-005" transaction::several_publishes_and_the_data_are_one_commit {
                promises: ["Enlist/1"], needs: ENLISTS,
                catches: "a batch that is committed in part, or apart from the data",
                faults: [EnlistKeepsLastBatchOnly]
            }
            "S-006" transaction::a_duplicate_leaves_the_transaction_usable {
                promises: ["Enlist/3", "insert/3"], needs: ENLISTS,
                catches: "a violated constraint that dooms the user's transaction",
                faults: [DuplicateDoomsTransaction]
            }
            "S-007" transaction::one_id_in_a_transaction_and_beside_it_is_stored_once {
                promises: ["insert/3"], needs: ENLISTS,
                catches: "a check for the id before the insert, instead of a unique key",
                faults: [InsertDoesNotWaitForTransaction]
            }
            "S-008" transaction::a_handler_commits_effects_messages_and_settlement {
                promises: ["Transact/1", "TransactAsync/1"], needs: TRANSACTIONAL_HANDLERS, undeclared: without_transactional_handlers_there_are_none,
                catches: "a settlement, or a message, left out of the handler's commit",
                faults: [HandlerForgetsSettlement, HandlerForgetsMessages, TransactUndeclared]
            }
            "S-009" transaction::a_handler_that_fails_leaves_nothing {
                promises: ["Transact/2", "TransactAsync/2"], needs: TRANSACTIONAL_HANDLERS,
                catches: "effects of a failed handler that are committed",
                faults: [FailedHandlerKeepsEffects, FailedHandlerGivesRecordBack]
            }
            "S-010" transaction::a_handler_that_panics_leaves_nothing {
                promises: ["Transact/2", "TransactAsync/2", "Transact/4", "TransactAsync/4"], needs: TRANSACTIONAL_HANDLERS,
                catches: "effects of a panic that are committed; a connection that it leaves in a transaction",
                faults: [PanickedHandlerKeepsEffects]
            }
            "S-011" transaction::a_handler_without_the_record_leaves_nothing {
                promises: ["Transact/3", "TransactAsync/3", "take_over/3"], needs: TRANSACTIONAL_HANDLERS,
                catches: "a handler of a node thought dead whose effects happen a second time",
                faults: [HandlerIgnoresToken]
            }
            "S-012" transaction::a_handler_may_publish_what_is_there_already {
                promises: ["Transact/1", "TransactAsync/1"], needs: TRANSACTIONAL_HANDLERS,
                catches: "a handler that fails for ever, because it published the same reply before",
                faults: [HandlerFailsOnDuplicate]
            }
            "S-013" transaction::a_handler_whose_message_is_refused_leaves_nothing {
                promises: ["Transact/4", "TransactAsync/4", "Transact/1", "TransactAsync/1"], needs: REFUSING_HANDLERS,
                catches: "an error of the storage after which the handler's effects are committed all the same",
                faults: [RefusedHandlerKeepsEffects]
            }
            "S-014" transaction::handlers_at_once_commit_each_their_own {
                promises: ["Transact/1", "TransactAsync/1", "Transact/2", "TransactAsync/2"], needs: TRANSACTIONAL_HANDLERS,
                catches: "handlers that share one transaction or one connection",
                faults: [HandlersShareTransaction]
            }
            "S-015" publish::what_is_stored_is_seen_by_every_handle {
                promises: ["insert/1", "claim/1"],
                catches: "an answer before the commit; a cache of the handle's own",
                faults: [InsertForgets]
            }
            "S-016" publish::an_insert_answers_for_each_record_in_order {
                promises: ["insert/2"],
                catches: "answers in the order of the database, or only for what was stored",
                faults: [InsertAnswersReversed]
            }
            "S-017" publish::an_id_that_is_there_is_a_duplicate_and_the_others_are_stored {
                promises: ["insert/3"],
                catches: "one duplicate that takes the whole batch with it, or overwrites what is there",
                faults: [DuplicateTakesBatchWithIt, DuplicateOverwrites]
            }
            "S-018" publish::the_second_of_two_equal_ids_in_one_call_is_a_duplicate {
                promises: ["insert/3"],
                catches: "a look for duplicates before the insert, which does not see the batch itself",
                faults: [InsertAnswersStored]
            }
            "S-019" publish::of_concurrent_inserts_of_one_id_one_is_stored {
                promises: ["insert/3"],
                catches: "a check for the id before the insert, instead of a unique key",
                faults: [InsertAnswersStored]
            }
            "S-020" publish::content_comes_back_to_the_byte {
                promises: ["insert/5"],
                catches: "a JSON column that normalizes; a character set of three bytes; quoting by hand",
                faults: [ContentNormalized, ContentWithoutEmoji]
            }
            "S-021" publish::a_content_of_one_mebibyte_comes_back {
                promises: ["insert/5"],
                catches: "a column type that cuts off",
                faults: [ContentCutAt64K]
            }
            "S-022" publish::long_and_odd_names_come_back {
                promises: ["insert/5"],
                catches: "columns that are too short; quoting by hand",
                faults: [TopicCut]
            }
            "S-023" publish::names_that_differ_a_little_are_different {
                promises: ["insert/3", "insert/5", "claim/1"],
                catches: "a collation that ignores case, accents or trailing spaces",
                faults: [IdsWithoutCase]
            }
            "S-024" publish::state_and_reason_come_back {
                promises: ["insert/5"],
                catches: "a state that is decided by the storage, a reason that is lost or cut",
                faults: [ReasonLost, AttemptsStartAtZero]
            }
            "S-025" publish::a_refused_insert_stores_nothing {
                promises: ["insert/4"], needs: MAX_CONTENT,
                catches: "a batch that is stored in part",
                faults: [RefusedInsertStoresSome]
            }
            "S-026" publish::a_record_that_nobody_could_work_on_is_refused {
                promises: ["insert/7", "insert/4"],
                catches: "a record that stays in flight for ever, held by nobody; one in the inbox of no group",
                faults: [InsertDropsOrphans, InsertTakesOrphans]
            }
            "S-027" publish::calls_with_empty_lists_are_harmless {
                promises: ["insert/2", "settle/2", "next_due/1"],
                catches: "`IN ()`, which is a syntax error",
                faults: [EmptyListFails]
            }
            "S-028" publish::a_batch_of_three_thousand_works {
                promises: ["insert/2", "settle/2"],
                catches: "more bind parameters than the database takes",
                faults: [LargeBatchFails]
            }
            "S-029" publish::a_runtime_that_dies_in_a_call_leaves_all_or_nothing {
                promises: ["insert/4", "settle/4"],
                catches: "several statements without a transaction around them",
                faults: [InsertInTwoSteps, SettleInTwoSteps]
            }
            "S-030" inbox::of_concurrent_deliveries_of_one_message_one_is_stored {
                promises: ["insert/3"],
                catches: "a missing unique key of message id and group",
                faults: [InsertAnswersStored]
            }
            "S-031" inbox::each_group_has_its_own_record_of_a_message {
                promises: ["insert/3", "claim/1"],
                catches: "a unique key of the message id alone: the second group never gets it",
                faults: [InboxIgnoresGroupInKey]
            }
            "S-032" inbox::a_finished_record_still_makes_a_second_delivery_a_duplicate {
                promises: ["insert/3"],
                catches: "a unique key over unfinished records only: a second delivery is handled again",
                faults: [FinishedForgotten]
            }
            "S-033" inbox::an_inbox_record_held_by_its_receiver_needs_no_claim {
                promises: ["insert/3", "claim/1", "settle/1"],
                catches: "a received record that nobody, or anybody, may work on",
                faults: [ReceiverHoldsNothing]
            }
            "S-034" inbox::a_waiting_record_inserted_with_a_claim_is_claimable {
                promises: ["insert/5", "claim/1"],
                catches: "a claim that is written to records that are not in flight",
                faults: [ReceiverHoldsEverything]
            }
            "S-035" inbox::an_insert_with_the_claim_of_nobody_is_refused {
                promises: ["insert/6"],
                catches: "records held by a node that is dead, which nobody takes over",
                faults: [InsertWithoutLease, InsertOneWithoutLease]
            }
            "S-036" claim::each_record_is_claimed_once_by_eight_handles {
                promises: ["claim/2"],
                catches: "two workers that get one row: no lock, or the wrong isolation",
                faults: [ClaimAnswersTwice]
            }
            "S-037" claim::a_claim_takes_no_more_than_its_limit {
                promises: ["claim/3"],
                catches: "a limit that is not applied, or 0 that means all",
                faults: [ClaimIgnoresLimit]
            }
            "S-038" claim::the_earliest_due_are_claimed_first {
                promises: ["claim/3"],
                catches: "the order of addresses instead of due times; an answer in any order, as of `RETURNING`",
                faults: [DueForgotten, ClaimAnswersReversed]
            }
            "S-039" claim::what_is_due_later_is_left {
                promises: ["claim/1"],
                catches: "a delayed record, or a retry, that is claimed at once",
                faults: [DueForgotten]
            }
            "S-040" claim::versions_are_claimed_apart {
                promises: ["claim/1"],
                catches: "an engine that takes the records of another version",
                faults: [VersionForgotten]
            }
            "S-041" claim::lanes_are_claimed_apart {
                promises: ["claim/1"],
                catches: "a group that takes the records of another",
                faults: [ClaimIgnoresGroup]
            }
            "S-042" claim::a_claim_counts_the_attempt_and_writes_the_owner {
                promises: ["claim/1"],
                catches: "attempts counted when they end: a message that kills the process is tried for ever",
                faults: [ClaimDoesNotCount, ClaimHidesOwner]
            }
            "S-043" claim::a_claim_of_nobody_is_refused {
                promises: ["claim/5", "claim/9"],
                catches: "a node thought dead that goes on to claim; records that a refused claim keeps",
                faults: [ClaimWithoutLease, ClaimOfNobodyTakes]
            }
            "S-044" claim::a_claim_says_when_the_next_is_due {
                promises: ["claim/6"],
                catches: "a due message that starts at a tick instead of its time",
                faults: [ClaimNextDueTooLate, ClaimNextDueMissing]
            }
            "S-045" claim::what_is_committed_late_is_claimed {
                promises: ["claim/1"], needs: ENLISTS,
                catches: "a cursor over addresses, which skips what is committed out of their order",
                faults: [ClaimByCursor]
            }
            "S-046" claim::a_claim_does_not_wait_for_an_open_transaction {
                promises: ["claim/4"], needs: ENLISTS,
                catches: "one long business transaction that stops all sending",
                faults: [ClaimWaitsForTransactions]
            }
            "S-047" claim::a_claim_does_not_pay_for_finished_and_delayed_records {
                promises: ["claim/7"], needs: READS_IN_ORDER,
                catches: "a scan of the table: a history that makes the present slow",
                faults: [ClaimScans]
            }
            "S-048" claim::next_due_waits_for_no_transaction_and_hinders_none {
                promises: ["next_due/2", "next_due/1"], needs: ENLISTS,
                catches: "a look at the next due time that locks",
                faults: [NextDueWaitsForTransactions]
            }
            "S-049" claim::publishing_claiming_settling_and_collecting_at_once_lose_nothing {
                promises: ["collect/2", "claim/2", "settle/1"],
                catches: "deadlocks between the loops, and records that fall between them",
                faults: [ClaimDropsOne, CollectDeadlocks]
            }
            "S-050" lease::a_node_that_joined_may_claim {
                promises: ["join/1", "claim/5"],
                catches: "a lease that is not written, or already over",
                faults: [JoinForgets]
            }
            "S-051" lease::joining_again_begins_the_lease_anew {
                promises: ["join/1"],
                catches: "an insert that ignores the row that is there",
                faults: [JoinOnlyOnce]
            }
            "S-052" lease::a_heartbeat_is_a_new_sign_of_life {
                promises: ["heartbeat/1", "take_over/1"],
                catches: "a long handler that loses its record while its node lives",
                faults: [HeartbeatForgets, TakeOverIgnoresSign]
            }
            "S-053" lease::who_was_taken_over_from_stays_lost {
                promises: ["heartbeat/1"],
                catches: "a heartbeat that revives a node whose records may be another's",
                faults: [HeartbeatRevives]
            }
            "S-054" lease::a_heartbeat_tells_the_others_signs {
                promises: ["heartbeat/2"],
                catches: "a takeover that never comes, or comes from the node itself",
                faults: [SignsOfOwn, SignsMissing]
            }
            "S-055" lease::what_the_dead_held_is_taken_over {
                promises: ["take_over/2", "take_over/3"],
                catches: "records of a crashed node that stay with it for ever; crashes that count no attempt",
                faults: [TakeOverForgets, TakeOverUncounts, TakeOverOnlyOutbox]
            }
            "S-056" lease::nothing_is_taken_from_a_live_node {
                promises: ["take_over/1"],
                catches: "a takeover by the age of the claim instead of the lease",
                faults: [TakeOverFromTheLiving]
            }
            "S-057" lease::a_lease_is_as_long_as_it_is_said_to_be {
                promises: ["heartbeat/3"],
                catches: "leases in whole seconds, or by another clock; a heartbeat that cannot shorten one",
                faults: [LeaseRoundedDown, LeaseRoundedUp, HeartbeatOnlyExtends]
            }
            "S-058" lease::a_former_owner_cannot_settle {
                promises: ["take_over/3", "settle/1"],
                catches: "a missing fence: a late settlement overwrites the new owner's state",
                faults: [SettleIgnoresToken]
            }
            "S-059" lease::takeovers_at_once_take_each_record_once {
                promises: ["take_over/4"],
                catches: "takeovers that count, or wake, twice",
                faults: [TakeOverCountsTwice]
            }
            "S-060" lease::what_a_receiver_held_is_taken_over {
                promises: ["take_over/2", "insert/6"],
                catches: "a received record whose holder is not the node",
                faults: [ReceiverIsGhost]
            }
            "S-061" lease::leaving_gives_everything_back_uncounted {
                promises: ["leave/1", "take_over/3"],
                catches: "a deployment that costs attempts, or leaves records to the takeover",
                faults: [LeaveForgets, LeaveCounts]
            }
            "S-062" lease::leaving_touches_no_other_node {
                promises: ["leave/1"],
                catches: "a node that signs off and takes the others' records with it",
                faults: [LeaveTakesFromAll]
            }
            "S-063" lease::a_release_undoes_a_claim {
                promises: ["release/1"],
                catches: "records lost to a claim whose answer never arrived",
                faults: [ReleaseForgets, ReleaseCounts]
            }
            "S-064" lease::a_release_touches_only_its_token {
                promises: ["release/2"],
                catches: "a release by node, which takes its other claims away",
                faults: [ReleaseTakesAllOfNode]
            }
            "S-065" settle::a_settlement_writes_every_field {
                promises: ["settle/3", "settle/2"],
                catches: "a column that is forgotten, or a time by the host's clock",
                faults: [SettleForgetsReason, SettleForgetsDelay]
            }
            "S-066" settle::a_settlement_changes_nothing_else {
                promises: ["settle/3"],
                catches: "content that is rewritten, or the time of insertion moved",
                faults: [SettleRewritesContent, SettleMovesAdded]
            }
            "S-067" settle::a_second_settlement_is_lost {
                promises: ["settle/1"],
                catches: "a success that a late failure undoes",
                faults: [SecondSettlementWritten]
            }
            "S-068" settle::a_settlement_in_flight_keeps_the_claim {
                promises: ["settle/2"],
                catches: "a record still in flight that nobody holds",
                faults: [SettleInFlightLetsGo]
            }
            "S-069" settle::one_lost_settlement_does_not_hinder_the_others {
                promises: ["settle/1", "settle/2"],
                catches: "one bad settlement that fails, or shifts, the whole batch",
                faults: [LostSettlementTakesBatchWithIt, SettleAnswersReversed]
            }
            "S-070" settle::what_is_finished_is_never_claimed {
                promises: ["claim/1"],
                catches: "a dead record that is tried again without being told to",
                faults: [FinishedIsDueAgain]
            }
            "S-071" time::a_delayed_message_is_due_at_its_time {
                promises: ["claim/1", "claim/6"],
                catches: "a delay in whole seconds, or from the host's clock",
                faults: [DueForgotten, DelayRoundedUp]
            }
            "S-072" time::a_message_for_a_moment_is_due_at_that_moment {
                promises: ["claim/1", "claim/6"],
                catches: "a moment in local time, or in whole seconds",
                faults: [DueForgotten, MomentRoundedUp]
            }
            "S-073" time::a_failed_record_is_tried_again_at_its_time {
                promises: ["settle/3", "claim/1"],
                catches: "a retry at once, or never",
                faults: [SettleForgetsDelay]
            }
            "S-074" time::next_due_is_right_for_each_lane {
                promises: ["next_due/1"],
                catches: "answers in another order, or for records in flight and finished",
                faults: [NextDueReversed, NextDueCountsHeld]
            }
            "S-075" time::the_clock_is_in_utc_and_finer_than_a_second {
                promises: ["insert/5", "settle/3"],
                catches: "local time; columns of whole seconds",
                faults: [ClockInLocalTime, ClockInSeconds]
            }
            "S-076" time::a_hundred_years_are_no_overflow {
                promises: ["insert/5", "claim/1"],
                catches: "a column type that ends in 2038",
                faults: [FarFutureOverflows]
            }
            "S-077" schema::preparing_again_keeps_every_row {
                promises: ["prepare/1", "prepare/2"],
                catches: "tables that are made anew, a restart that fails on what is there",
                faults: [PrepareWipes, PrepareWorksOnce]
            }
            "S-078" schema::eight_nodes_may_prepare_an_empty_database_at_once {
                promises: ["prepare/1"],
                catches: "nodes that race for the first `CREATE TABLE`",
                faults: [PrepareRaces]
            }
            "S-079" schema::an_unknown_schema_version_is_refused {
                promises: ["prepare/3"], needs: PERSISTENT,
                catches: "an old binary that writes to new tables",
                faults: [SchemaNotChecked, SchemaErrorNamesNothing]
            }
            "S-080" schema::a_database_that_cannot_be_opened_is_named {
                promises: ["prepare/4"], needs: UNUSABLE,
                catches: "an error at night that does not say which database; one that shows the password",
                faults: [UnusableIsReady, UnusableIsNotNamed, ErrorShowsSecret]
            }
            "S-081" schema::records_outlive_their_handles {
                promises: ["insert/1"], needs: PERSISTENT,
                catches: "a database that lives in the handle",
                faults: [ReopenedIsEmpty]
            }
            "S-082" schema::a_storage_shows_its_place_and_no_secret {
                promises: ["describe"],
                catches: "a connection URL with its password in a log",
                faults: [DescribeShowsSecret, DebugShowsSecret]
            }
            "S-083" schema::capabilities_are_constant_and_as_expected {
                promises: ["capabilities"],
                catches: "capabilities found out on the way, after the engine has asked",
                faults: [CapabilitiesChange]
            }
            "S-084" upkeep::only_expired_terminal_records_are_collected {
                promises: ["collect/1"],
                catches: "a clean-up that deletes what was never sent",
                faults: [CollectTakesUnexpired, CollectTakesWaiting]
            }
            "S-085" upkeep::a_collection_is_bounded_and_spans_versions {
                promises: ["collect/1"],
                catches: "a delete of millions in one transaction; records of old versions kept for ever",
                faults: [CollectIgnoresLimit, CollectOnlyV1]
            }
            "S-086" upkeep::collectors_at_once_collect_each_record_once {
                promises: ["collect/2"],
                catches: "collectors that deadlock or count twice",
                faults: [CollectCountsTwice]
            }
            "S-087" upkeep::counts_agree_with_the_list {
                promises: ["counts/1"],
                catches: "a dashboard that shows dead records as pending",
                faults: [CountsDeadAsRetrying]
            }
            "S-088" upkeep::a_list_holds_what_matches_every_filter {
                promises: ["counts/1", "list/1"],
                catches: "a filter that is ignored, or `or` in place of `and`",
                faults: [ListIgnoresTopic, ListIgnoresStatus, ListUnordered]
            }
            "S-089" upkeep::pages_show_each_record_once_while_others_are_inserted {
                promises: ["list/1"],
                catches: "pages by offset, which shift under inserts",
                faults: [PagesOverlap, PagesSkip]
            }
            "S-090" upkeep::only_terminal_records_are_requeued {
                promises: ["requeue/1"],
                catches: "a requeued record that is sent twice, or that is dead again after one attempt",
                faults: [RequeueTakesHeld, RequeueKeepsAttempts]
            }
            "S-091" upkeep::what_is_in_flight_is_not_deleted {
                promises: ["delete/1"],
                catches: "a cancelled message that is sent all the same; one deleted under its worker",
                faults: [DeleteTakesHeld, DeleteKeepsWaiting]
            }
            "S-092" upkeep::a_commit_of_another_handle_wakes_its_table {
                promises: ["watch/2", "watch/1"], needs: WATCHES, undeclared: without_watching_the_answer_is_unsupported,
                catches: "a wake-up that is lost, or that tells of the outbox only",
                faults: [WatchIsSilent, WatchKnowsOutboxOnly, WatchUndeclared]
            }
            "S-093" upkeep::a_watch_may_be_dropped_at_any_time {
                promises: ["watch/3"], needs: WATCHES,
                catches: "a connection that is left unusable by the watch that was dropped on it",
                faults: [DroppedWatchBreaksHandle]
            }
            "S-094" chore::of_nodes_that_ask_for_a_chore_at_once_one_has_it {
                promises: ["take_chore/1"],
                catches: "a look at the chore before it is taken: two nodes that do it",
                faults: [ChoreIsEverybodys, ChoreLookedAtFirst]
            }
            "S-095" chore::the_node_that_has_a_chore_gets_it_again {
                promises: ["take_chore/2"],
                catches: "a chore that moves about at each term, or that a node cannot give up sooner",
                faults: [ChoreNotRenewed, ChoreOnlyExtended, ChoreRefusedToItsNode]
            }
            "S-096" chore::a_chore_ends_with_its_term_and_not_before {
                promises: ["take_chore/3", "take_chore/1"],
                catches: "a chore that nobody does any more; one taken away early; one that those renew who ask in vain",
                faults: [ChoreNeverEnds, ChoreRenewedByOthers, ChoreTermRoundedDown, ChoreTermRoundedUp]
            }
            "S-097" chore::a_chore_is_free_when_its_node_leaves {
                promises: ["take_chore/4", "leave/1"],
                catches: "a deployment after which nobody does the chore for a term",
                faults: [LeaveKeepsChore, LeaveFreesEveryChore]
            }
            "S-098" chore::a_chore_is_free_when_its_node_is_taken_over {
                promises: ["take_chore/4", "take_over/1"],
                catches: "a crash after which nobody does the chore for a term",
                faults: [TakeOverKeepsChore, TakeOverFreesEveryChore]
            }
            "S-099" chore::a_chore_is_not_for_a_node_that_is_not_registered {
                promises: ["take_chore/5"],
                catches: "a node thought dead that goes on to do the chore",
                faults: [ChoreWithoutLease, ChoreTakenByTheRefused]
            }
            "S-100" chore::a_chore_waits_for_no_open_transaction {
                promises: ["take_chore/6"], needs: ENLISTS,
                catches: "one long business transaction behind which every node waits for its turn",
                faults: [ChoreWaitsForTransactions]
            }
            "S-101" settle::a_token_counts_for_its_own_records_only {
                promises: ["settle/1"],
                catches: "records and tokens compared as two lists: a late settlement written in the company of others",
                faults: [SettleMixesTokens]
            }
            "S-102" inbox::each_address_is_that_of_its_record {
                promises: ["insert/2"],
                catches: "an order that is guessed: the outcome of one message written to the record of another",
                faults: [InsertMixesNewOnes]
            }
            "S-103" suspect::a_takeover_counts_a_crash_and_no_attempt {
                promises: ["take_over/2", "claim/1"],
                catches: "a message that kills its process again and again without being found out",
                faults: [TakeOverForgetsCrash, TakeOverCountsOneCrash, TakeOverForgetsReason, ClaimHidesCrashes, ListHidesCrashes]
            }
            "S-104" suspect::giving_back_keeps_crashes_and_reason {
                promises: ["leave/1", "release/1", "release/2"],
                catches: "a deployment that makes suspects, or that clears a killer of suspicion",
                faults: [LeaveCountsCrash, LeaveForgetsCrashes, LeaveForgetsReason, ReleaseCountsCrash, ReleaseForgetsReason]
            }
            "S-105" suspect::crashes_are_those_of_the_state {
                promises: ["insert/5", "settle/3", "requeue/1"],
                catches: "a suspicion that outlives the attempt that disproved it",
                faults: [InsertForgetsCrashes, SettleForgetsCrashes, SettleKeepsCrashes, RequeueKeepsCrashes]
            }
            "S-106" suspect::suspects_have_a_lane_of_their_own {
                promises: ["claim/1", "claim/3"],
                catches: "healthy records that wait behind a crash loop, suspects that are worked on like any other",
                faults: [ClaimTakesSuspects, SuspectsClaimTakesAll, SuspectsOutOfOrder]
            }
            "S-107" suspect::next_due_is_right_for_suspects_and_others_apart {
                promises: ["next_due/1", "claim/6"],
                catches: "a lane that is woken again and again for what waits in another",
                faults: [NextDueMixesLanes, ClaimNextDueMixesLanes]
            }
            "S-108" suspect::a_claim_does_not_pay_for_the_other_lanes {
                promises: ["claim/7"], needs: READS_IN_ORDER,
                catches: "an index without the group or the crashes: one group's backlog that slows the others",
                faults: [ClaimScans]
            }
            "S-109" bounds::excepted_topics_are_left_alone {
                promises: ["claim/1", "claim/6"],
                catches: "a message taken by a node that cannot handle it; a list quoted by hand, or compared without case",
                faults: [ClaimIgnoresExceptions, ExceptsWithoutCase, ExceptsByPattern]
            }
            "S-110" bounds::next_due_of_a_claim_is_not_that_of_excepted_topics {
                promises: ["claim/6", "claim/1"],
                catches: "a node that claims in a circle, because what it leaves alone is due",
                faults: [ClaimNextDueCountsExcepted]
            }
            "S-111" bounds::what_waits_behind_excepted_topics_is_claimed {
                promises: ["claim/1", "claim/3"],
                catches: "a limit that is applied before the exception: one topic that blocks all others",
                faults: [ExceptsWithinAHundred]
            }
            "S-112" bounds::a_claim_is_bounded_in_bytes {
                promises: ["claim/8", "claim/6"],
                catches: "memory bounded by count only; a large message that is never taken; a rest that nobody comes for",
                faults: [ClaimIgnoresBytes, ClaimCountsCharacters, ClaimLeavesTheLarge, ClaimCutSaysNothing]
            }
            "S-113" bounds::claims_bounded_in_bytes_take_everything_in_order {
                promises: ["claim/8", "claim/3"],
                catches: "records that are skipped, or taken and not answered, where bytes cut an answer",
                faults: [ClaimSkipsTheLarge, ClaimCutLosesOne]
            }
            "S-114" bounds::bytes_and_exceptions_go_together {
                promises: ["claim/8", "claim/1", "claim/6"],
                catches: "bytes of records that are left alone, counted as if they were taken",
                faults: [ExceptedCountAsBytes]
            }
            "S-115" lock::a_settlement_does_not_wait_for_a_locked_record {
                promises: ["settle/5", "settle/2"], needs: LOCKING_HANDLERS,
                catches: "one abandoned handler behind whose transaction all outcomes wait",
                faults: [SettleWaitsForTransactions, SettleOfLockedTakesBatchWithIt, SettleOfLockedIsLost, SettleOfLockedFails]
            }
            "S-116" lock::an_insert_does_not_wait_for_a_record_at_work {
                promises: ["insert/8", "insert/3"], needs: LOCKING_HANDLERS,
                catches: "a second delivery that waits for the handler of the first, and all deliveries behind it",
                faults: [InsertWaitsForTransactions, InsertOfLockedFails, InsertOfLockedTakesBatchWithIt]
            }
            "S-117" lock::a_takeover_does_not_wait_for_a_locked_record {
                promises: ["take_over/5", "take_over/2"], needs: LOCKING_HANDLERS,
                catches: "one hanging handler of a dead node that keeps everything else it held",
                faults: [TakeOverWaitsForTransactions, TakeOverForgetsLocked, TakeOverOfLockedFails]
            }
            "S-118" lock::leaving_does_not_wait_for_a_locked_record {
                promises: ["leave/1", "take_over/5"], needs: LOCKING_HANDLERS,
                catches: "a stop that hangs on a handler's transaction; a record that stays with the node that left",
                faults: [LeaveWaitsForTransactions, LeaveForgetsLocked]
            }
            "S-119" lock::a_handler_at_work_hinders_nobody {
                promises: ["claim/4", "next_due/2", "heartbeat/1", "join/1"], needs: LOCKING_HANDLERS,
                catches: "a lease that is lost because a heartbeat waits for a handler",
                faults: [ClaimWaitsForTransactions, NextDueWaitsForTransactions, HeartbeatWaitsForTransactions]
            }
            "S-120" time::no_time_is_too_far_off {
                promises: ["insert/5", "settle/3", "claim/3", "claim/6", "next_due/1", "collect/1"],
                catches: "a sum of times that overflows; a first or last moment that the column type does not have",
                faults: [FarFutureOverflows, FarFutureRefused, EarliestRefused, LongRetentionOverflows]
            }
            "S-121" time::leases_and_terms_may_be_for_ever {
                promises: ["join/1", "heartbeat/1", "heartbeat/2", "heartbeat/3", "take_chore/1", "take_chore/2"],
                catches: "a long lease that is over at once, or that is refused",
                faults: [LongLeaseOverflows, LongLeaseRefused, LongTermOverflows]
            }
            "S-122" publish::the_longest_reason_comes_back {
                promises: ["insert/5", "settle/3"], needs: UNICODE,
                catches: "a reason that the column has no room for: an outcome that is never written",
                faults: [ReasonCutAt4000, ReasonWithoutEmoji, SettledReasonCutAt4000]
            }
            "S-123" upkeep::a_watch_says_that_it_listens {
                promises: ["watch/4", "watch/2"], needs: WATCHES,
                catches: "polls that go on beside a watch, or that are given up before it works",
                faults: [WatchNeverListens, WatchListensTooSoon, WatchListensLate]
            }
            "S-124" refusal::what_the_environment_refuses_works_once_that_is_put_right {
                promises: ["insert/9", "insert/4", "claim/9", "settle/6", "settle/4"], needs: REFUSED_WRITES,
                catches: "a message that is given up for rights that somebody revoked; a connection that never recovers",
                faults: [EnvironmentIsRejected, EnvironmentSticks, EnvironmentStoresAll, EnvironmentClaimsAll]
            }
            "S-125" refusal::what_is_refused_for_its_content_is_rejected {
                promises: ["insert/9", "insert/4"], needs: REFUSED_RECORDS,
                catches: "one wrong message that is tried for ever, and its neighbours with it",
                faults: [RefusalIsEnvironment, RefusalIsUnavailable, RefusedInsertStoresSome]
            }
            "S-126" runtime::heartbeats_go_on_while_every_worker_thread_is_blocked {
                promises: ["join/1", "heartbeat/1"],
                catches: "a lease that is lost because handlers block the threads on which its connection lives",
                faults: [JoinNeedsRuntime, HeartbeatNeedsRuntime]
            }
            "S-127" runtime::heartbeats_go_on_from_the_next_runtime {
                promises: ["join/1", "heartbeat/1"],
                catches: "a connection kept for heartbeats that is dead with the runtime that made it",
                faults: [HeartbeatKeepsFirstRuntime]
            }
            "S-128" lease::a_lease_whose_end_has_passed_is_renewed {
                promises: ["heartbeat/1", "take_over/1"],
                catches: "a database's clock that steps forward, and every node is dead",
                faults: [LeaseEndsByClock, TakeOverByClock]
            }
            "S-129" runtime::work_goes_on_while_other_runtimes_are_blocked {
                promises: ["insert/10"],
                catches: "connections that were opened, or go back to their pool, where handlers block, and that everything else \
                          has to wait for",
                faults: [WorkNeedsFirstRuntime, ConnectionsReturnWhereUsed]
            }
            "S-130" refusal::an_address_that_is_taken_fails_nobody {
                promises: ["insert/1", "insert/3"], needs: ADDRESSES_SET_BACK,
                catches: "a sequence that stands behind its table after a restore: every transaction fails until it has caught up",
                faults: [TakenAddressFails, TakenAddressIsDuplicate, TakenAddressFailsTransaction]
            }
            "S-131" runtime::handlers_of_blocked_runtimes_keep_no_connection {
                promises: ["insert/10"], needs: LOCKING_HANDLERS,
                catches: "connections of handlers' transactions that go back to their pool only when a blocked runtime goes on",
                faults: [HandlersReturnWhereTheyRan]
            }
        }
    };
}
