//! Judges a history: pure, from the recorded events and a final read of the business tables alone.
//!
//! - *committed*: every order in the business table, and every one whose commit was answered.
//! - *lost*: a committed order that is not in the table, has no invoice, or was never seen by the group `audit`.
//! - *phantom*: an order that is not in the table but has an invoice or was given to a handler, and one in the table
//!   whose rollback was answered.
//! - *duplicate execution*: an order with more than one invoice: the transactional handler's effect happened twice.
//! - *stall*: the time from the answer to the commit (for one without an answer, from the transaction's beginning) to
//!   the effect (the invoice, or the first call in `audit`), less the time in between in which a server was away or a
//!   role had no running process. One that has no effect stalls until the last event.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::backend::Business;
use crate::crash::recorder::{Event, What};

/// The group whose calls are its effects.
pub(crate) const AUDIT: &str = "audit";

/// What was counted.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct Verdict {
    pub(crate) committed: usize,
    pub(crate) rolled_back: usize,
    /// Commits of which only the table tells: their answer never came.
    pub(crate) commits_without_answer: usize,
    /// Committed orders that have had their effect in every group.
    pub(crate) delivered: usize,
    pub(crate) lost: usize,
    pub(crate) phantom: usize,
    pub(crate) duplicate_executions: usize,
    /// Calls of the plain handler beyond the first for an order: allowed, since it promises at least once.
    pub(crate) repeats_in_audit: usize,
    /// Calls of the transactional handler beyond the first, whose effects were taken back.
    pub(crate) repeats_in_billing: usize,
    pub(crate) longest_stall_s: f64,
    /// Which order and group stalled longest.
    pub(crate) longest_stall_of: Option<String>,
    /// Some of what is wrong, for people.
    pub(crate) examples: Vec<String>,
}

impl Verdict {
    /// Whether all that was committed is delivered.
    pub(crate) fn is_complete(&self) -> bool {
        self.delivered == self.committed
    }

    /// Whether nothing is wrong.
    pub(crate) fn is_good(&self) -> bool {
        self.lost + self.phantom + self.duplicate_executions == 0
    }

    fn example(&mut self, text: String) {
        const MOST: usize = 10;
        if self.examples.len() < MOST {
            self.examples.push(text);
        }
    }
}

/// The history, sorted by order.
#[derive(Debug, Default)]
struct Sorted {
    begun: BTreeMap<i64, i64>,
    committed: BTreeMap<i64, i64>,
    rolled_back: BTreeSet<i64>,
    /// Calls, by group and order: when the first was, and how many there were.
    calls: BTreeMap<String, BTreeMap<i64, (i64, usize)>>,
    outages: Vec<(i64, i64)>,
    last: i64,
}

impl Sorted {
    fn new(events: &[Event]) -> Self {
        let mut sorted = Self::default();
        for event in events {
            sorted.last = sorted.last.max(event.at);
            match &event.what {
                What::Begun { id } => drop(sorted.begun.entry(*id).or_insert(event.at)),
                What::Committed { id } => drop(sorted.committed.entry(*id).or_insert(event.at)),
                What::RolledBack { id } => drop(sorted.rolled_back.insert(*id)),
                What::Handled { group, id, .. } => {
                    let calls = sorted.calls.entry(group.clone()).or_default().entry(*id).or_insert((event.at, 0));
                    *calls = (calls.0.min(event.at), calls.1 + 1);
                }
                What::Outage { from, .. } => sorted.outages.push((*from, event.at)),
                What::Started | What::Attack { .. } => {}
            }
        }
        sorted.outages = merged(std::mem::take(&mut sorted.outages));
        sorted
    }

    fn repeats(&self, group: &str) -> usize {
        self.calls.get(group).into_iter().flat_map(BTreeMap::values).map(|(_, times)| times - 1).sum()
    }
}

/// Judges.
pub(crate) fn check(events: &[Event], business: &Business) -> Verdict {
    let sorted = Sorted::new(events);
    let orders: BTreeSet<i64> = business.orders.iter().copied().collect();
    let mut invoices: BTreeMap<i64, (i64, usize)> = BTreeMap::new();
    for (number, at) in &business.invoices {
        let invoice = invoices.entry(*number).or_insert((*at, 0));
        *invoice = (invoice.0.min(*at), invoice.1 + 1);
    }
    let none = BTreeMap::new();
    let audited = sorted.calls.get(AUDIT).unwrap_or(&none);
    let committed: BTreeSet<i64> = orders.iter().chain(sorted.committed.keys()).copied().collect();

    let mut verdict = Verdict {
        committed: committed.len(),
        rolled_back: sorted.rolled_back.len(),
        commits_without_answer: orders.iter().filter(|id| !sorted.committed.contains_key(id)).count(),
        repeats_in_audit: sorted.repeats(AUDIT),
        repeats_in_billing: sorted.repeats("billing"),
        ..Verdict::default()
    };
    for id in &committed {
        let effects = [("billing", invoices.get(id)), (AUDIT, audited.get(id))];
        let missing: Vec<_> = effects.iter().filter(|(_, effect)| effect.is_none()).map(|(group, _)| *group).collect();
        if !orders.contains(id) {
            verdict.example(format!("lost: the commit of {id} was answered, but it is not in the table"));
        } else if !missing.is_empty() {
            verdict.example(format!("lost: {id} had no effect in {}", missing.join(" and ")));
        }
        if orders.contains(id) && missing.is_empty() {
            verdict.delivered += 1;
        } else {
            verdict.lost += 1;
        }
        for (group, effect) in effects {
            stalled(&mut verdict, &sorted, *id, group, effect.map_or(sorted.last, |(first, _)| *first));
        }
    }
    let called = sorted.calls.values().flat_map(BTreeMap::keys).chain(invoices.keys());
    let unknown: BTreeSet<i64> = called.filter(|id| !committed.contains(id)).copied().collect();
    let undead: BTreeSet<i64> = orders.intersection(&sorted.rolled_back).copied().collect();
    for id in unknown.union(&undead) {
        verdict.phantom += 1;
        verdict.example(format!("phantom: {id} was never committed"));
    }
    for (id, (_, times)) in invoices.iter().filter(|(_, (_, times))| *times > 1) {
        verdict.duplicate_executions += 1;
        verdict.example(format!("duplicate execution: {id} has {times} invoices"));
    }
    verdict
}

fn stalled(verdict: &mut Verdict, sorted: &Sorted, id: i64, group: &str, until: i64) {
    let Some(from) = sorted.committed.get(&id).or_else(|| sorted.begun.get(&id)).copied() else { return };
    let away: i64 = sorted.outages.iter().map(|(begin, end)| (until.min(*end) - from.max(*begin)).max(0)).sum();
    let stall = ((until - from).max(0) - away).max(0) as f64 / 1e6;
    if stall > verdict.longest_stall_s {
        verdict.longest_stall_s = stall;
        verdict.longest_stall_of = Some(format!("order {id} in {group}"));
    }
}

/// Intervals, with those that touch made one.
fn merged(mut intervals: Vec<(i64, i64)>) -> Vec<(i64, i64)> {
    intervals.sort_unstable();
    let mut merged: Vec<(i64, i64)> = Vec::new();
    for (begin, end) in intervals {
        match merged.last_mut() {
            Some(last) if begin <= last.1 => last.1 = last.1.max(end),
            _ => merged.push((begin, end)),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000;

    fn event(seconds: i64, what: What) -> Event {
        Event { at: seconds * SECOND, who: "test".into(), what }
    }

    fn handled(seconds: i64, group: &str, id: i64) -> Event {
        event(seconds, What::Handled { group: group.into(), id, attempt: 1 })
    }

    /// Two orders that went well, and one that was rolled back.
    fn good() -> (Vec<Event>, Business) {
        let mut events = vec![event(0, What::Begun { id: 3 }), event(1, What::RolledBack { id: 3 })];
        for id in [1, 2] {
            events.extend([event(0, What::Begun { id }), event(1, What::Committed { id })]);
            events.extend([handled(2, "billing", id), handled(3, AUDIT, id)]);
        }
        (events, Business { orders: vec![1, 2], invoices: vec![(1, 2 * SECOND), (2, 2 * SECOND)] })
    }

    #[test]
    fn a_good_history_is_good() {
        let (events, business) = good();
        let verdict = check(&events, &business);
        assert!(verdict.is_good() && verdict.is_complete(), "{verdict:?}");
        assert_eq!((verdict.committed, verdict.rolled_back, verdict.delivered), (2, 1, 2));
        assert_eq!(verdict.longest_stall_s, 2.0);
    }

    #[test]
    fn an_order_without_an_invoice_is_lost() {
        let (events, mut business) = good();
        business.invoices.pop();
        let verdict = check(&events, &business);
        assert_eq!((verdict.lost, verdict.delivered), (1, 1));
        assert!(!verdict.is_complete());
    }

    #[test]
    fn an_order_that_the_audit_never_saw_is_lost() {
        let (mut events, business) = good();
        events.retain(|event| event != &handled(3, AUDIT, 2));
        assert_eq!(check(&events, &business).lost, 1);
    }

    #[test]
    fn a_commit_that_was_answered_and_is_not_there_is_lost() {
        let (events, mut business) = good();
        business.orders.pop();
        let verdict = check(&events, &business);
        assert_eq!((verdict.lost, verdict.phantom), (1, 0));
    }

    #[test]
    fn a_commit_without_an_answer_counts_if_the_table_has_it() {
        let (mut events, business) = good();
        events.retain(|event| event.what != What::Committed { id: 2 });
        let verdict = check(&events, &business);
        assert_eq!((verdict.committed, verdict.commits_without_answer, verdict.lost), (2, 1, 0));
        assert_eq!(verdict.longest_stall_s, 3.0, "from the beginning of its transaction");
    }

    #[test]
    fn what_is_handled_but_was_rolled_back_is_a_phantom() {
        for effect in ["billing", AUDIT] {
            let (mut events, business) = good();
            events.push(handled(4, effect, 3));
            assert_eq!(check(&events, &business).phantom, 1);
        }
        let (events, mut business) = good();
        business.invoices.push((3, 4 * SECOND));
        assert_eq!(check(&events, &business).phantom, 1);
    }

    #[test]
    fn an_order_in_the_table_that_was_rolled_back_is_a_phantom() {
        let (events, mut business) = good();
        business.orders.push(3);
        assert_eq!(check(&events, &business).phantom, 1);
    }

    #[test]
    fn a_second_invoice_is_a_duplicate_execution_and_a_second_call_is_not() {
        let (mut events, mut business) = good();
        events.extend([handled(4, "billing", 1), handled(4, AUDIT, 1), handled(5, AUDIT, 1)]);
        let verdict = check(&events, &business);
        assert_eq!((verdict.duplicate_executions, verdict.repeats_in_billing, verdict.repeats_in_audit), (0, 1, 2));
        business.invoices.push((1, 4 * SECOND));
        assert_eq!(check(&events, &business).duplicate_executions, 1);
    }

    #[test]
    fn a_stall_is_counted_without_outages() {
        let (mut events, business) = good();
        events.retain(|event| event != &handled(3, AUDIT, 2));
        events.push(handled(21, AUDIT, 2));
        assert_eq!(check(&events, &business).longest_stall_s, 20.0);
        // Two that overlap, one of which began before the commit: 15 s of 20.
        events.push(event(10, What::Outage { of: "broker".into(), from: 0 }));
        events.push(event(16, What::Outage { of: "database".into(), from: 5 * SECOND }));
        let verdict = check(&events, &business);
        assert_eq!(verdict.longest_stall_s, 5.0);
        assert_eq!(verdict.longest_stall_of.as_deref(), Some("order 2 in audit"));
    }

    #[test]
    fn what_is_never_handled_stalls_to_the_end() {
        let (mut events, business) = good();
        events.retain(|event| event != &handled(3, AUDIT, 2));
        events.push(event(61, What::Started));
        assert_eq!(check(&events, &business).longest_stall_s, 60.0);
    }
}
