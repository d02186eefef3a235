//! The table of checks, written once: the suite, the tests and the reports are all made from it.

use crate::check::Check;

use super::fixture::{self, TransportAbilities, TransportFixture};
use super::{acknowledge, consume, groups, lifecycle, neighbours, outage, remade, routes, send, shape};

/// A check of the transport suite.
pub type TransportCheck = Check<dyn TransportFixture, TransportAbilities>;

/// Every numbered promise of the transport traits. Each is quoted by at least one check.
pub const PROMISES: &[&str] = &[
    "connect/1",
    "connect/2",
    "send/1",
    "send/2",
    "send/3",
    "send/4",
    "send/5",
    "send/6",
    "send/7",
    "send/8",
    "send/9",
    "obstacle/1",
    "subscribe/1",
    "subscribe/2",
    "subscribe/3",
    "subscribe/4",
    "backlog/1",
    "unrouted/1",
    "unrouted/2",
    "unrouted/3",
    "close/1",
    "receive/1",
    "receive/2",
    "receive/3",
    "ack/1",
    "ack/2",
    "release/1",
];

/// Calls a macro with a token tree of yours and then the whole table, one row for each check:
/// `"T-001" module::name { promises: […], needs: …, undeclared: …, catches: "…" }`.
#[doc(hidden)]
#[macro_export]
macro_rules! for_each_transport_check {
    ($callback:path, $arguments:tt) => {
        $callback! { $arguments
            "T-001" send::a_durable_confirm_means_that_the_broker_has_it {
                promises: ["send/1"], needs: DURABLE,
                catches: "`Ok` before the broker took the message over (confirms off, acks=0)"
            }
            "T-002" send::a_volatile_confirm_waits_for_every_group {
                promises: ["send/1"], needs: VOLATILE,
                catches: "`Ok` while the only copy of a message is in a broker that forgets it"
            }
            "T-003" send::what_goes_away_with_its_group_is_not_confirmed {
                promises: ["send/1", "send/3"], needs: VOLATILE,
                catches: "`Ok` for a message whose consumer went away before it acknowledged"
            }
            "T-004" send::a_message_that_no_group_wants_is_unroutable {
                promises: ["send/2"],
                catches: "a message for nobody dropped silently (`mandatory` off)"
            }
            "T-005" send::one_that_fails_does_not_hinder_the_others {
                promises: ["send/4", "send/2"],
                catches: "a batch that fails as a whole, or outcomes given to the wrong message"
            }
            "T-006" send::every_outcome_is_reported_within_the_limit {
                promises: ["send/5"],
                catches: "a confirm that never comes when a consumer does not answer"
            }
            "T-007" send::every_outcome_is_reported_when_the_transport_closes {
                promises: ["send/5", "close/1"],
                catches: "confirms forgotten on close"
            }
            "T-008" send::many_confirms_are_outstanding_at_once {
                promises: ["send/7"],
                catches: "one round trip for each message"
            }
            "T-009" send::messages_of_one_sender_arrive_in_order {
                promises: ["capabilities/ordered"], needs: ORDERED,
                catches: "windowed confirms or retries that reorder messages"
            }
            "T-010" send::concurrent_senders_and_consumers_lose_and_duplicate_nothing {
                promises: ["subscribe/1", "send/1", "ack/1"],
                catches: "races between handles that lose or double messages"
            }
            "T-011" shape::id_topic_and_headers_arrive_unchanged {
                promises: ["send/6"],
                catches: "a mapper that renames, drops or re-encodes headers"
            }
            "T-012" shape::any_bytes_arrive_unchanged {
                promises: ["send/6"],
                catches: "bodies taken for text; an empty body taken for none"
            }
            "T-013" shape::a_body_of_256_kib_arrives_whole {
                promises: ["send/6"],
                catches: "bodies cut at a frame or buffer size"
            }
            "T-014" shape::a_body_over_the_limit_is_invalid {
                promises: ["send/3", "send/4"], needs: MAX_BODY,
                catches: "a too large body cut, sent, or reported as worth trying again"
            }
            "T-015" shape::origin_and_tag_tell_deliveries_apart {
                promises: ["release/1", "receive"],
                catches: "an origin that is new on each delivery, or a tag that two deliveries share"
            }
            "T-016" groups::each_group_gets_each_message_once {
                promises: ["subscribe/1"],
                catches: "groups that take each other's messages"
            }
            "T-017" groups::members_of_a_group_share_its_messages {
                promises: ["subscribe/1"],
                catches: "every member getting a copy"
            }
            "T-018" groups::subscribing_again_changes_nothing {
                promises: ["subscribe/1"],
                catches: "a second start that fails, or that wipes what the queue held"
            }
            "T-019" groups::patterns_match_as_the_table_says {
                promises: ["subscribe/2"], needs: WILDCARDS, undeclared: a_pattern_is_refused,
                catches: "`*` and `#` with a meaning of the broker's own"
            }
            "T-020" groups::an_exact_topic_gets_no_other {
                promises: ["subscribe/2"],
                catches: "topics matched by prefix or without regard to case; a second topic forgotten"
            }
            "T-021" groups::what_is_sent_right_after_subscribing_arrives {
                promises: ["subscribe/3"],
                catches: "a subscription that answers before it is in force"
            }
            "T-022" groups::a_backlog_is_kept_or_refused_as_declared {
                promises: ["capabilities/keeps_backlog", "send/3"],
                catches: "messages confirmed that nobody will ever get"
            }
            "T-023" groups::the_backlog_counts_what_waits_and_what_is_out {
                promises: ["backlog/1"], needs: REPORTS_BACKLOG, undeclared: the_backlog_is_refused,
                catches: "a number that leaves out what is delivered and unacknowledged"
            }
            "T-024" acknowledge::what_is_acknowledged_is_gone {
                promises: ["ack/1"],
                catches: "acknowledgements that the broker never gets"
            }
            "T-025" acknowledge::a_dropped_consumer_gives_back_what_it_did_not_acknowledge {
                promises: ["ack/2"],
                catches: "automatic acknowledgement on receipt; a missing redelivery flag"
            }
            "T-026" acknowledge::acknowledging_out_of_order_leaves_the_others {
                promises: ["ack/1", "ack/2"],
                catches: "cumulative acknowledgement that passes over unfinished messages"
            }
            "T-027" acknowledge::a_released_delivery_comes_again {
                promises: ["release/1"],
                catches: "a release that drops or acknowledges"
            }
            "T-028" consume::a_receive_that_is_dropped_loses_nothing {
                promises: ["receive/1"],
                catches: "deliveries taken from a buffer before an await"
            }
            "T-029" consume::no_more_than_the_prefetch_are_out {
                promises: ["receive/2"],
                catches: "unbounded buffering"
            }
            "T-030" consume::receive_honours_its_maximum {
                promises: ["receive"],
                catches: "a batch as large as the broker's, whatever was asked for"
            }
            "T-031" consume::a_waiting_receive_is_woken {
                promises: ["receive", "receive/1"],
                catches: "a wake-up lost between looking and waiting"
            }
            "T-032" lifecycle::connecting_again_is_harmless {
                promises: ["connect/1"],
                catches: "declaring twice that fails, or a second connection that ends the first"
            }
            "T-033" lifecycle::capabilities_are_constant_and_as_expected {
                promises: ["capabilities"],
                catches: "a capability that vanished, and its checks with it"
            }
            "T-034" lifecycle::after_close_a_send_is_unavailable {
                promises: ["close/1"],
                catches: "silent success after a stop"
            }
            "T-035" lifecycle::after_close_all_else_is_stopped {
                promises: ["close/1"],
                catches: "a second close that fails; a closed handle that connects again"
            }
            "T-036" lifecycle::a_waiting_receive_ends_when_the_transport_closes {
                promises: ["close/1", "receive/3"],
                catches: "a consumer that waits for ever after the stop"
            }
            "T-037" lifecycle::closing_one_handle_leaves_the_others {
                promises: ["close/1", "receive/3"],
                catches: "handles that share a connection, or deliveries stuck with a closed one"
            }
            "T-038" lifecycle::a_handle_outlives_the_runtime_that_used_it_first {
                promises: ["send/5", "subscribe/3"],
                catches: "work spawned on the runtime that happened to call first"
            }
            "T-039" lifecycle::secrets_are_never_shown {
                promises: ["describe"], needs: SECRET,
                catches: "credentials in Debug, descriptions or errors"
            }
            "T-040" outage::a_broker_that_is_not_there_is_an_error {
                promises: ["connect/2"], needs: NOWHERE,
                catches: "a connect that hangs, or succeeds and fails later"
            }
            "T-041" outage::after_cut_connections_it_sends_and_consumes_again {
                promises: ["connect/1", "send/3", "send/5", "receive/3", "ack/2"], needs: CUT,
                catches: "a handle that stays dead; deliveries lost with their connection"
            }
            "T-042" outage::what_was_confirmed_outlives_a_restart_of_the_broker {
                promises: ["send/1"], needs: RESTART,
                catches: "messages or queues that are not persistent"
            }
            "T-043" send::closing_amid_sends_leaves_no_outcome_in_doubt {
                promises: ["send/1", "send/5", "close/1"],
                catches: "`Ok` or silence for what was in a buffer when the transport closed"
            }
            "T-044" acknowledge::members_that_come_and_go_lose_nothing {
                promises: ["ack/1", "ack/2", "subscribe/1"],
                catches: "messages that fall between a consumer's end and the next one's begin"
            }
            "T-045" routes::exactly_what_would_be_unroutable_is_unrouted {
                promises: ["unrouted/1", "unrouted/2"], needs: CHECKS_ROUTES, undeclared: routes_are_refused,
                catches: "bindings compared with topics as texts, or answers in an order of the broker's own"
            }
            "T-046" routes::routes_are_told_as_they_are_now {
                promises: ["unrouted/2"], needs: CHECKS_ROUTES,
                catches: "answers from a cache; consumers counted instead of queues"
            }
            "T-047" routes::asking_for_routes_sends_nothing {
                promises: ["unrouted/3"], needs: CHECKS_ROUTES,
                catches: "a probe that consumers get as a message"
            }
            "T-048" neighbours::a_message_for_which_the_broker_breaks_off_is_found {
                promises: ["send/8", "send/4"], needs: POISON,
                catches: "a channel's end reported for all that was on it, and for the next ones again"
            }
            "T-049" shape::headers_that_brokers_read_arrive_unchanged {
                promises: ["send/6"],
                catches: "header names with a meaning for the broker that reach it as they are"
            }
            "T-050" neighbours::a_full_queue_is_the_affair_of_its_topic {
                promises: ["send/3", "send/4"], needs: FULL,
                catches: "a refusal for the state of one topic taken for an outage of the broker"
            }
            "T-051" consume::no_more_bytes_than_the_budget_are_out {
                promises: ["receive/2"],
                catches: "memory bounded by the number of messages alone"
            }
            "T-052" consume::a_message_larger_than_the_budget_arrives {
                promises: ["receive/2"],
                catches: "a large message that waits for room that there never is"
            }
            "T-053" neighbours::an_alarm_is_told_while_it_lasts {
                promises: ["obstacle/1", "send/5"], needs: ALARM,
                catches: "a broker that takes nothing and looks healthy"
            }
            "T-054" neighbours::what_was_taken_away_is_made_again_when_a_message_comes_back {
                promises: ["send/9"], needs: UNBIND,
                catches: "a binding that an operator deleted, missing until a restart"
            }
            "T-055" remade::what_is_sent_after_a_topic_was_made_again_arrives {
                promises: ["subscribe/4"], needs: REMAKE,
                catches: "a position kept as a number, which counts in whatever log is there"
            }
        }
    };
}

macro_rules! table {
    ({} $($id:literal $module:ident::$name:ident {
        promises: $promises:tt,
        $(needs: $need:ident,)?
        $(undeclared: $undeclared:ident,)?
        catches: $catches:literal
    })*) => {
        /// The checks of the transport suite, in the order of their numbers.
        pub static CHECKS: &[TransportCheck] = &[$(Check {
            id: $id,
            name: stringify!($name),
            promises: &$promises,
            needs: table!(@option $(fixture::$need)?),
            catches: $catches,
            run: |fixture| Box::pin($module::$name(fixture)),
            undeclared: table!(@option $(|fixture| Box::pin($module::$undeclared(fixture)))?),
        }),*];
    };
    (@option) => { None };
    (@option $value:expr) => { Some($value) };
}

crate::for_each_transport_check! { table, {} }

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_promise_is_quoted_by_a_check() {
        let quoted: HashSet<&str> = CHECKS.iter().flat_map(|check| check.promises).copied().collect();
        let forgotten: Vec<&&str> = PROMISES.iter().filter(|promise| !quoted.contains(**promise)).collect();
        assert!(forgotten.is_empty(), "no check quotes {forgotten:?}");
    }

    #[test]
    fn every_quoted_number_is_a_promise() {
        for check in CHECKS {
            for quoted in check.promises.iter().filter(|quoted| quoted.ends_with(|last: char| last.is_ascii_digit())) {
                assert!(PROMISES.contains(quoted), "{} quotes {quoted}", check.id);
            }
        }
    }

    #[test]
    fn numbers_are_consecutive_and_names_distinct() {
        for (place, check) in CHECKS.iter().enumerate() {
            assert_eq!(check.id, format!("T-{:03}", place + 1));
        }
        let names: HashSet<&str> = CHECKS.iter().map(|check| check.name).collect();
        assert_eq!(names.len(), CHECKS.len());
    }
}
