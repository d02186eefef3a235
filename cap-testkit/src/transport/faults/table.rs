//! The faults, and the checks that catch them.

use std::fmt;

use super::Pretence;

macro_rules! faults {
    ($($pretence:ident { $($fault:ident: $($check:literal)+, $about:literal;)+ })+) => {
        /// One way to break one promise.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum TransportFault {
            $($(#[doc = $about] $fault,)+)+
        }

        impl TransportFault {
            /// All of them.
            pub const ALL: &[Self] = &[$($(Self::$fault),+),+];

            /// What a double with this fault makes believe.
            pub fn pretence(self) -> Pretence {
                match self {
                    $($(Self::$fault)|+ => Pretence::$pretence,)+
                }
            }
        }

        impl fmt::Display for TransportFault {
            /// What the double does.
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self {
                    $($(Self::$fault => $about,)+)+
                })
            }
        }

        /// Which check must fail on a double with which fault. Every check is there at least once.
        pub static TRANSPORT_FAULTS: &[(&str, TransportFault)] =
            &[$($($(($check, TransportFault::$fault),)+)+)+];
    };
}

faults! {
    Memory {
        ConfirmsOnSend: "T-002", "Confirms when it has sent, whoever acknowledges.";
        ConfirmsWithTheFirstGroup: "T-002", "Confirms when one of the groups has acknowledged.";
        ConfirmsWhatItLost: "T-003" "T-022" "T-043", "Confirms what the broker reported as `Unavailable`.";
        ConfirmsTheUnroutable: "T-004", "Confirms a message that no group wants.";
        FailsTheBatchWithOne: "T-005", "Fails the rest of a batch when one message of it fails.";
        ForgetsTheUnavailable: "T-006", "Does not report a message that nobody acknowledged in time.";
        ForgetsConfirmsOnClose: "T-007", "Does not report what is outstanding when it is closed.";
        WaitsForEachConfirm: "T-008", "Sends the next message when the last one is confirmed.";
        ReversesBatches: "T-009", "Sends a batch from its end.";
        LosesOneInAHundred: "T-010", "Confirms every hundredth message and does not send it.";
        SendsOneInAHundredTwice: "T-010", "Sends every hundredth message twice.";
        DropsCapHeaders: "T-011", "Takes `cap-*` headers for its own, but for the id.";
        TakesBodiesForText: "T-012", "Replaces bytes that are no UTF-8.";
        CutsBodiesAt64Kib: "T-013", "Cuts bodies at 64 KiB.";
        CutsBodiesAtTheLimit: "T-014", "Cuts bodies at the limit instead of refusing them.";
        NewOriginOnRedelivery: "T-015", "Gives each delivery an origin of its own.";
        TagsAllAlike: "T-015", "Gives all deliveries the same tag.";
        GroupsShareOneQueue: "T-016", "Has one queue for all groups.";
        MembersGetCopies: "T-017", "Has one queue for each consumer.";
        RefusesASecondSubscription: "T-018", "Refuses to subscribe for a group that exists.";
        StarMatchesManyWords: "T-019", "Takes `*` for any number of words.";
        MatchesByPrefix: "T-020", "Gives an exact topic what begins with it, too.";
        SubscribesLate: "T-021", "Subscribes when the first message is asked for.";
        DeclaresABacklogItDoesNotKeep: "T-022", "Declares that it keeps backlogs.";
        BacklogLeavesOutWhatIsOut: "T-023", "Counts only what waits.";
        AcksNothing: "T-024", "Keeps acknowledgements to itself.";
        AcksOnReceive: "T-025" "T-044", "Acknowledges what it hands out.";
        NeverMarksRedelivery: "T-025" "T-027" "T-037", "Never says that a delivery was delivered before.";
        AcksAllBefore: "T-026" "T-044", "Acknowledges all earlier deliveries with one.";
        AcksWhatIsReleased: "T-027", "Acknowledges what is given back.";
        LosesDroppedReceives: "T-028", "Takes deliveries, and then awaits something else before it hands them out.";
        IgnoresThePrefetch: "T-029", "Hands out as many as there are.";
        IgnoresTheMaximum: "T-030", "Hands out more at once than was asked for.";
        MissesWakeUps: "T-031", "Looks once, and then waits for ever.";
        RefusesToConnectAgain: "T-032", "Fails to connect a second time.";
        VariesItsCapabilities: "T-033", "Declares now this, now that.";
        ConfirmsAfterClose: "T-034", "Confirms what it is given after it was closed.";
        SubscribesAfterClose: "T-035", "Subscribes after it was closed.";
        RefusesToCloseAgain: "T-035", "Fails to close a second time.";
        WaitsForEverWhenClosed: "T-036", "Lets consumers wait for ever when it is closed.";
        ClosesEveryHandle: "T-037", "Closes the other handles with its own.";
        DiesWithItsFirstRuntime: "T-038", "Sends on the runtime that connected.";
        TellsRoutesAfterClose: "T-035", "Tells routes after it was closed.";
        TakesBindingsForTopics: "T-045", "Takes a topic for unrouted that only a pattern matches.";
        SortsTheUnrouted: "T-045", "Answers in the order of the alphabet.";
        RemembersRoutes: "T-046", "Answers what it answered before.";
        TakesConsumersForRoutes: "T-046", "Takes a topic for unrouted whose group is away.";
        ActsOnHeaders: "T-049", "Takes headers named `BCC` for itself.";
        CountsMessagesOnly: "T-051", "Hands out as many bytes as the prefetch has messages.";
        WaitsForRoom: "T-052", "Hands out a message only when the budget has room for it.";
        ProbesForRoutes: "T-047", "Sends a message to each topic to see what becomes of it.";
    }
    Server {
        ConfirmsWithoutStoring: "T-001", "Confirms without storing.";
        ShowsItsSecret: "T-039", "Shows its password in descriptions.";
        ConnectsToNowhere: "T-040", "Succeeds in connecting where nothing is.";
        StaysDisconnected: "T-041", "Cannot connect again after its connection broke.";
        LosesWhatIsOutOnACut: "T-041", "Acknowledges what it hands out, so that a connection takes it along when it breaks.";
        BlamesAllForOne: "T-048", "Reports all that was on a channel when the broker closed it as `Unavailable`.";
        KeepsThePoisonsReason: "T-048", "Reports the message for which the broker broke off as `Unavailable`.";
        TakesFullForAway: "T-050", "Reports a full queue as `Unavailable`.";
        HidesAlarms: "T-053", "Tells of no alarm.";
        RemembersAlarms: "T-053", "Tells of an alarm that is over.";
        LeavesUnbound: "T-054", "Does not bind again what somebody has unbound.";
        CountsOnInAnotherTopic: "T-055", "Takes as many messages for done as were done in the topic that there was before.";
        LosesItsQueuesOnRestart: "T-042", "Forgets its queues when it restarts.";
    }
    Poor {
        TakesUndeclaredPatterns: "T-019", "Takes patterns although it does not declare them.";
        TellsAnUndeclaredBacklog: "T-023", "Tells the backlog although it does not declare it.";
        TellsUndeclaredRoutes: "T-045", "Tells routes although it does not declare that it can.";
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::transport::CHECKS;

    #[test]
    fn every_check_has_a_fault_and_every_row_a_check() {
        let with_fault: HashSet<&str> = TRANSPORT_FAULTS.iter().map(|(check, _)| *check).collect();
        let checks: HashSet<&str> = CHECKS.iter().map(|check| check.id).collect();
        assert_eq!(with_fault, checks);
    }
}
