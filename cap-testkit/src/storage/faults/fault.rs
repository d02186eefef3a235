//! The faults, in the order of the checks that they are there for.

use std::fmt;

macro_rules! faults {
    ($($name:ident => $text:literal,)*) => {
        /// One mistake that a storage could make. A double makes exactly one.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum StorageFault {
            $(
                #[doc = concat!($text, ".")]
                $name,
            )*
        }

        impl StorageFault {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// What it does.
            pub const fn text(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }
    };
}

impl fmt::Display for StorageFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

faults! {
    EnlistForgets => "`enlist` answers `Stored` and stores nothing",
    EnlistUndeclared => "Enlisting works although it is not declared",
    EnlistCommitsAtOnce => "`enlist` inserts on a connection of its own",
    RollbackKeepsIds => "A rollback leaves the published ids taken",
    SavepointForgotten => "A rollback to a savepoint undoes nothing",
    EnlistKeepsLastBatchOnly => "Of several publishes in a transaction only the last is kept",
    DuplicateDoomsTransaction => "After a `Duplicate` the transaction refuses everything",
    InsertDoesNotWaitForTransaction => "An insert of an id that an open transaction holds answers `Stored`",
    HandlerForgetsSettlement => "A handler's transaction leaves out the settlement",
    HandlerForgetsMessages => "A handler's transaction leaves out the messages",
    TransactUndeclared => "Transactional handlers work although they are not declared",
    FailedHandlerKeepsEffects => "The effects of a handler that fails are committed",
    FailedHandlerGivesRecordBack => "The record of a handler that fails is held no longer",
    PanickedHandlerKeepsEffects => "The effects of a handler that panics are committed",
    HandlerIgnoresToken => "The effects of a handler whose record is another's are committed",
    HandlerFailsOnDuplicate => "A handler that publishes a known id is rolled back",
    RefusedHandlerKeepsEffects => "The effects of a handler whose message is refused are committed",
    HandlersShareTransaction => "A handler that fails undoes the effects of the others",
    InsertForgets => "`insert` answers `Stored` and stores nothing",
    InsertAnswersReversed => "`insert` answers in the reverse order",
    InsertMixesNewOnes => "Of a batch of which nothing was there the addresses are answered in another order",
    DuplicateTakesBatchWithIt => "One duplicate makes the whole batch one",
    DuplicateOverwrites => "A duplicate replaces the record that is there",
    InsertAnswersStored => "A duplicate is answered as `Stored`",
    ContentNormalized => "Spaces in the content are left out",
    ContentWithoutEmoji => "Characters beyond three bytes become question marks",
    ContentCutAt64K => "The content is cut off at 64 KiB",
    TopicCut => "The topic is cut off at 64 characters",
    IdsWithoutCase => "Message ids are stored in small letters",
    ReasonLost => "The reason of an inserted state is not stored",
    AttemptsStartAtZero => "The attempts of an inserted state are not stored",
    RefusedInsertStoresSome => "A refused batch is stored up to the record that is refused",
    InsertDropsOrphans => "Records that nobody could work on are left out, and answered as `Stored`",
    InsertTakesOrphans => "Records that nobody could work on are stored as waiting for the first group",
    EmptyListFails => "An empty list is a syntax error",
    LargeBatchFails => "A batch of more than 1,000 records is refused",
    InsertInTwoSteps => "A batch is inserted in two transactions",
    SettleInTwoSteps => "A batch is settled in two transactions",
    InboxIgnoresGroupInKey => "The inbox has a unique key of the message id alone",
    FinishedForgotten => "A finished record does not count as a duplicate",
    ReceiverHoldsNothing => "A record inserted in flight waits instead",
    ReceiverHoldsEverything => "A waiting record inserted with a claim is held by it",
    InsertWithoutLease => "An insert with a claim joins a node that has no lease",
    InsertOneWithoutLease => "An insert of a single record with a claim joins a node that has no lease",
    ClaimAnswersTwice => "A claim also answers a record of the claim before",
    ClaimIgnoresLimit => "A claim takes everything that is due",
    DueForgotten => "Every inserted record is due now",
    VersionForgotten => "Every inserted record is of version `v1`",
    ClaimIgnoresGroup => "A claim takes the records of all groups",
    ClaimDoesNotCount => "A claim leaves the attempts at one",
    ClaimAnswersReversed => "A claim answers its records in the reverse order",
    ClaimHidesOwner => "A claimed record does not say who holds it",
    ClaimWithoutLease => "A claim joins a node that has no lease",
    ClaimNextDueTooLate => "`next_due` of a claim is a day late",
    ClaimNextDueMissing => "`next_due` of a claim is always none",
    ClaimByCursor => "A claim leaves addresses below the greatest one claimed before",
    ClaimWaitsForTransactions => "A claim waits until no transaction is open",
    ClaimScans => "A claim reads the whole table",
    NextDueWaitsForTransactions => "`next_due` waits until no transaction is open",
    ClaimDropsOne => "One record is claimed and not answered",
    CollectDeadlocks => "`collect` deadlocks, and says so",
    JoinForgets => "`join` writes nothing",
    JoinOnlyOnce => "A second `join` writes nothing",
    HeartbeatForgets => "A heartbeat renews nothing",
    HeartbeatOnlyExtends => "A heartbeat never shortens a lease",
    HeartbeatRevives => "A heartbeat renews a lease that has run out",
    NextExpiryIsOwn => "`next_expiry` counts the node's own lease",
    NextExpiryMissing => "`next_expiry` is always none",
    TakeOverForgets => "A takeover does nothing",
    TakeOverUncounts => "A takeover does not count the attempt of the dead",
    TakeOverOnlyOutbox => "A takeover leaves the inbox",
    TakeOverFromTheLiving => "A takeover takes from every node",
    LeaseRoundedDown => "Leases are cut to whole seconds",
    LeaseRoundedUp => "Leases are rounded up to whole seconds",
    SettleIgnoresToken => "A settlement is written whoever holds the record",
    TakeOverCountsTwice => "A takeover that finds nothing answers as the one before",
    ReceiverIsGhost => "A record inserted in flight is held by a node that nobody knows",
    LeaveForgets => "`leave` does nothing",
    LeaveCounts => "`leave` counts the attempts of what it gives back",
    LeaveTakesFromAll => "`leave` gives back what all nodes hold",
    ReleaseForgets => "`release` does nothing",
    ReleaseCounts => "`release` counts the attempts of what it gives back",
    ReleaseTakesAllOfNode => "`release` gives back every claim of the node",
    SettleForgetsReason => "A settlement leaves out the reason",
    SettleForgetsDelay => "A settlement makes a failed record due at once",
    SettleRewritesContent => "A settlement changes the content",
    SettleMovesAdded => "A settlement moves the time of insertion",
    SecondSettlementWritten => "A settlement that is lost is answered as `Written`",
    SettleInFlightLetsGo => "A record settled as in flight waits instead",
    LostSettlementTakesBatchWithIt => "One lost settlement makes the whole batch lost",
    SettleAnswersReversed => "`settle` answers in the reverse order",
    FinishedIsDueAgain => "A dead record is due at once",
    DelayRoundedUp => "Delays are rounded up to whole seconds",
    MomentRoundedUp => "Moments are rounded up to whole seconds",
    NextDueReversed => "`next_due` answers in the reverse order",
    NextDueCountsHeld => "`next_due` counts records in flight",
    ClockInLocalTime => "`Added` is an hour ahead of UTC",
    ClockInSeconds => "`Added` has whole seconds",
    FarFutureOverflows => "A delay of more than fifty years is none",
    PrepareWipes => "`prepare` empties the tables",
    PrepareWorksOnce => "A second `prepare` fails on the tables of the first",
    PrepareRaces => "Two `prepare` at once fail",
    SchemaNotChecked => "An unknown schema version is taken for known",
    SchemaErrorNamesNothing => "The error of an unknown schema version does not name it",
    UnusableIsReady => "An unusable database is taken for ready",
    UnusableIsNotNamed => "The error of an unusable database does not name it",
    ErrorShowsSecret => "The error of an unusable database shows the password",
    ReopenedIsEmpty => "The database is gone with its last handle",
    DescribeShowsSecret => "`describe` shows the password",
    DebugShowsSecret => "The debug output shows the password",
    CapabilitiesChange => "A prepared handle declares other capabilities",
    CollectTakesUnexpired => "`collect` deletes terminal records before they expire",
    CollectTakesWaiting => "`collect` deletes waiting records",
    CollectIgnoresLimit => "`collect` deletes more than its limit",
    CollectOnlyV1 => "`collect` leaves versions other than `v1`",
    CollectCountsTwice => "A `collect` that finds nothing answers as the one before",
    CountsDeadAsRetrying => "`counts` takes dead records for such that are tried again",
    ListIgnoresTopic => "`list` ignores the topic",
    ListIgnoresStatus => "`list` ignores the status",
    ListUnordered => "`list` answers the greatest address first",
    PagesOverlap => "A page begins with the last record of the page before",
    PagesSkip => "A page leaves out its first record",
    RequeueTakesHeld => "`requeue` takes records in flight",
    RequeueKeepsAttempts => "`requeue` leaves attempts counted",
    DeleteTakesHeld => "`delete` takes records in flight",
    DeleteKeepsWaiting => "`delete` counts waiting records and leaves them",
    WatchIsSilent => "`watch` wakes nobody",
    WatchKnowsOutboxOnly => "`watch` does not tell of the inbox",
    WatchUndeclared => "`watch` works although it is not declared",
    DroppedWatchBreaksHandle => "A watch that is dropped takes the handle with it",
    ChoreIsEverybodys => "Every node that asks for a chore has it",
    ChoreLookedAtFirst => "Nodes that ask for a free chore at once all have it",
    ChoreNotRenewed => "A node that asks again for its chore keeps the old term",
    ChoreOnlyExtended => "A node that asks again for its chore never gets a shorter term",
    ChoreRefusedToItsNode => "A node that asks again for its chore is refused",
    ChoreNeverEnds => "A chore stays with its node after the term",
    ChoreRenewedByOthers => "A node that is refused a chore renews it for the node that has it",
    ChoreTermRoundedDown => "Terms of chores are cut to whole seconds",
    ChoreTermRoundedUp => "Terms of chores are rounded up to whole seconds",
    LeaveKeepsChore => "`leave` does not free the node's chore",
    LeaveFreesEveryChore => "`leave` frees the chores of all nodes",
    TakeOverKeepsChore => "A takeover does not free the chores of the dead",
    TakeOverFreesEveryChore => "A takeover frees the chores of the living",
    ChoreWithoutLease => "A node without a lease that asks for a chore is given one",
    ChoreTakenByTheRefused => "A chore is not free any more after a node without a lease was refused it",
    ChoreWaitsForTransactions => "`take_chore` waits until no transaction is open",
    SettleMixesTokens => "A settlement under any token of its batch is written",
}
