//! Judges a history: pure, from the recorded events and a final read of the business tables and CAP's tables alone.
//!
//! - *committed*: every order in the business table, and every one whose commit was answered.
//! - *lost*: a committed order that is not in the table, has no invoice, or was never seen by the group `audit`.
//! - *phantom*: an order that is not in the table but has an invoice or was given to a handler, and one in the table
//!   whose rollback was answered.
//! - *duplicate execution*: an order with more than one invoice: the transactional handler's effect happened twice.
//! - *stall*: the time from the answer to the commit (for one without an answer, from the transaction's beginning) to
//!   the effect (the invoice, or the first call in `audit`), less the time in between in which a server was away or a
//!   role had no running process. One that has no effect stalls until the last event.
//! - *trouble*: a message that is no order ([`Trouble`]). It is lost like an order if it was stored in the outbox and
//!   lacks an effect that its kind must have.
//! - *killer*: trouble that must be dead in the group whose process it aborts.
//! - *poison*: trouble that may be dead, handled, or waiting with a reason; one of which nothing is left or which waits
//!   without saying why is *unaccounted*.
//! - *buried*: a record that is dead and is neither poison's nor a killer's in the group that it kills.
//! - *slow*: a nemesis beside which healthy messages were too slow ([`neighbours`]).
//! - *health*: whether the processes said that they were ill while they were, and well when they were ([`health`]).

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::backend::Business;
use crate::crash::health::{self, Told};
use crate::crash::intervals::merged;
use crate::crash::neighbours::{self, Beside, Latency, Window};
use crate::crash::recorder::{Event, What};
use crate::crash::remains::Remaining;
use crate::crash::trouble::{BILLING, Trouble};

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
    pub(crate) killers: usize,
    /// Killers that are dead where they kill.
    pub(crate) killers_dead: usize,
    pub(crate) poisons: usize,
    pub(crate) poisons_dead: usize,
    pub(crate) poisons_handled: usize,
    /// Poison that waits to be tried again, and says why.
    pub(crate) poisons_waiting: usize,
    pub(crate) unaccounted: usize,
    /// Trouble of other kinds: it must have all its effects.
    pub(crate) other_trouble: usize,
    pub(crate) buried: usize,
    /// How healthy messages fared beside each nemesis, and in the calm.
    pub(crate) neighbours: BTreeMap<String, Beside>,
    pub(crate) slow: usize,
    /// What the processes said of their health.
    pub(crate) health: Told,
    pub(crate) longest_stall_s: f64,
    /// Which order and group stalled longest.
    pub(crate) longest_stall_of: Option<String>,
    /// Some of what is wrong, for people.
    pub(crate) examples: Vec<String>,
}

impl Verdict {
    /// Whether all that was committed is delivered, and trouble has come to its end.
    pub(crate) fn is_complete(&self) -> bool {
        self.delivered == self.committed && self.lost + self.unaccounted == 0 && self.killers_dead == self.killers
    }

    /// Whether nothing is wrong.
    pub(crate) fn is_good(&self) -> bool {
        let wrong = [self.lost, self.phantom, self.duplicate_executions, self.unaccounted, self.buried, self.slow];
        wrong.into_iter().sum::<usize>() == 0 && self.health.is_good() && self.killers_dead == self.killers
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
    /// The message ids of trouble.
    trouble: BTreeMap<i64, String>,
    windows: Vec<Window>,
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
                What::Trouble { id, message } => drop(sorted.trouble.insert(*id, message.clone())),
                What::Window { of, from, judged } => {
                    sorted.windows.push(Window { of: of.clone(), from: *from, until: event.at, judged: *judged });
                }
                What::Started | What::Attack { .. } | What::Health { .. } => {}
            }
        }
        sorted.outages = merged(std::mem::take(&mut sorted.outages));
        sorted
    }

    fn repeats(&self, group: &str) -> usize {
        self.calls.get(group).into_iter().flat_map(BTreeMap::values).map(|(_, times)| times - 1).sum()
    }

    /// The time from an order's commit to its effect or the last event, without the outages in between.
    fn stall(&self, id: i64, effect: Option<i64>) -> Option<i64> {
        let from = *self.committed.get(&id).or_else(|| self.begun.get(&id))?;
        let until = effect.unwrap_or(self.last);
        let away: i64 = self.outages.iter().map(|(begin, end)| (until.min(*end) - from.max(*begin)).max(0)).sum();
        Some(((until - from).max(0) - away).max(0))
    }
}

/// When each message had its effect for the first time, by group.
struct Effects<'a> {
    invoices: &'a BTreeMap<i64, (i64, usize)>,
    audited: &'a BTreeMap<i64, (i64, usize)>,
}

impl Effects<'_> {
    fn first(&self, group: &str, id: i64) -> Option<i64> {
        let effects = if group == BILLING { self.invoices } else { self.audited };
        effects.get(&id).map(|(first, _)| *first)
    }

    /// The groups of these in which there was none.
    fn missing(&self, groups: &[&'static str], id: i64) -> Vec<&'static str> {
        groups.iter().copied().filter(|group| self.first(group, id).is_none()).collect()
    }
}

/// Judges.
pub(crate) fn check(events: &[Event], business: &Business, remains: &[Remaining]) -> Verdict {
    let sorted = Sorted::new(events);
    let orders: BTreeSet<i64> = business.orders.iter().copied().collect();
    let mut invoices: BTreeMap<i64, (i64, usize)> = BTreeMap::new();
    for (number, at) in &business.invoices {
        let invoice = invoices.entry(*number).or_insert((*at, 0));
        *invoice = (invoice.0.min(*at), invoice.1 + 1);
    }
    let none = BTreeMap::new();
    let effects = Effects { invoices: &invoices, audited: sorted.calls.get(AUDIT).unwrap_or(&none) };
    let answered = sorted.committed.keys().filter(|id| Trouble::of(**id).is_none());
    let committed: BTreeSet<i64> = orders.iter().chain(answered).copied().collect();

    let mut verdict = Verdict {
        committed: committed.len(),
        rolled_back: sorted.rolled_back.len(),
        commits_without_answer: orders.iter().filter(|id| !sorted.committed.contains_key(id)).count(),
        repeats_in_audit: sorted.repeats(AUDIT),
        repeats_in_billing: sorted.repeats(BILLING),
        ..Verdict::default()
    };
    let mut latencies = Vec::new();
    for id in &committed {
        judge_order(&mut verdict, *id, orders.contains(id), &effects.missing(&[BILLING, AUDIT], *id));
        for group in [BILLING, AUDIT] {
            let Some(took) = sorted.stall(*id, effects.first(group, *id)) else { continue };
            stalled(&mut verdict, *id, group, took);
            latencies.extend(sorted.committed.get(id).map(|at| Latency { committed: *at, took }));
        }
    }
    verdict.neighbours = neighbours::measure(&sorted.windows, &latencies);
    verdict.health = health::judge(events);
    verdict.slow = verdict.neighbours.values().filter(|beside| beside.slow).count();
    for (id, message) in &sorted.trouble {
        let own: Vec<_> = remains.iter().filter(|remaining| remaining.message == *message).collect();
        if sorted.committed.contains_key(id) || !own.is_empty() {
            judge_trouble(&mut verdict, *id, &effects, &own);
        }
    }
    judge_dead(&mut verdict, &sorted, remains);

    let called = sorted.calls.values().flat_map(BTreeMap::keys).chain(invoices.keys());
    let is_known = |id: &i64| committed.contains(id) || sorted.trouble.contains_key(id);
    let unknown: BTreeSet<i64> = called.filter(|id| !is_known(id)).copied().collect();
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

fn judge_order(verdict: &mut Verdict, id: i64, is_stored: bool, missing: &[&str]) {
    if is_stored && missing.is_empty() {
        verdict.delivered += 1;
        return;
    }
    verdict.lost += 1;
    verdict.example(match is_stored {
        false => format!("lost: the commit of {id} was answered, but it is not in the table"),
        true => format!("lost: {id} had no effect in {}", missing.join(" and ")),
    });
}

/// `own`: what is left of its records.
fn judge_trouble(verdict: &mut Verdict, id: i64, effects: &Effects<'_>, own: &[&Remaining]) {
    let Some(trouble) = Trouble::of(id) else { return };
    let missing = effects.missing(trouble.effects(), id);
    if !missing.is_empty() {
        verdict.lost += 1;
        verdict.example(format!("lost: {trouble:?} {id} had no effect in {}", missing.join(" and ")));
    }
    let is_dead_in = |group| own.iter().any(|remaining| remaining.dead && remaining.group == Some(group));
    match (trouble, trouble.dies_in()) {
        (Trouble::Poison(poison), _) => {
            verdict.poisons += 1;
            if effects.first(AUDIT, id).is_some() {
                verdict.poisons_handled += 1;
            } else if own.iter().any(|remaining| remaining.dead) {
                verdict.poisons_dead += 1;
            } else if own.iter().any(|remaining| remaining.reason.is_some()) {
                verdict.poisons_waiting += 1;
            } else {
                verdict.unaccounted += 1;
                verdict.example(format!("unaccounted: {poison:?} {id} is neither handled nor dead, and says nothing"));
            }
        }
        (_, Some(group)) => {
            verdict.killers += 1;
            verdict.killers_dead += usize::from(is_dead_in(group));
            if !is_dead_in(group) {
                verdict.example(format!("killer: {id} is not dead in {group}"));
            }
        }
        (_, None) => verdict.other_trouble += 1,
    }
}

/// Nobody may be dead but poison, and killers where they kill.
fn judge_dead(verdict: &mut Verdict, sorted: &Sorted, remains: &[Remaining]) {
    let by_message: BTreeMap<&str, Trouble> =
        sorted.trouble.iter().filter_map(|(id, message)| Some((message.as_str(), Trouble::of(*id)?))).collect();
    for dead in remains.iter().filter(|remaining| remaining.dead) {
        let may_be = match by_message.get(dead.message.as_str()) {
            Some(Trouble::Poison(_)) => true,
            Some(trouble) => dead.group.is_some() && trouble.dies_in() == dead.group,
            None => false,
        };
        if !may_be {
            verdict.buried += 1;
            let (place, reason) = (dead.group.unwrap_or("the outbox"), dead.reason.as_deref().unwrap_or_default());
            verdict.example(format!("buried: message {} in {place}: {reason}", dead.message));
        }
    }
}

fn stalled(verdict: &mut Verdict, id: i64, group: &str, took: i64) {
    let stall = took as f64 / 1e6;
    if stall > verdict.longest_stall_s {
        verdict.longest_stall_s = stall;
        verdict.longest_stall_of = Some(format!("order {id} in {group}"));
    }
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
        let verdict = check(&events, &business, &[]);
        assert!(verdict.is_good() && verdict.is_complete(), "{verdict:?}");
        assert_eq!((verdict.committed, verdict.rolled_back, verdict.delivered), (2, 1, 2));
        assert_eq!(verdict.longest_stall_s, 2.0);
    }

    #[test]
    fn an_order_without_an_invoice_is_lost() {
        let (events, mut business) = good();
        business.invoices.pop();
        let verdict = check(&events, &business, &[]);
        assert_eq!((verdict.lost, verdict.delivered), (1, 1));
        assert!(!verdict.is_complete());
    }

    #[test]
    fn an_order_that_the_audit_never_saw_is_lost() {
        let (mut events, business) = good();
        events.retain(|event| event != &handled(3, AUDIT, 2));
        assert_eq!(check(&events, &business, &[]).lost, 1);
    }

    #[test]
    fn a_commit_that_was_answered_and_is_not_there_is_lost() {
        let (events, mut business) = good();
        business.orders.pop();
        let verdict = check(&events, &business, &[]);
        assert_eq!((verdict.lost, verdict.phantom), (1, 0));
    }

    #[test]
    fn a_commit_without_an_answer_counts_if_the_table_has_it() {
        let (mut events, business) = good();
        events.retain(|event| event.what != What::Committed { id: 2 });
        let verdict = check(&events, &business, &[]);
        assert_eq!((verdict.committed, verdict.commits_without_answer, verdict.lost), (2, 1, 0));
        assert_eq!(verdict.longest_stall_s, 3.0, "from the beginning of its transaction");
    }

    #[test]
    fn what_is_handled_but_was_rolled_back_is_a_phantom() {
        for effect in ["billing", AUDIT] {
            let (mut events, business) = good();
            events.push(handled(4, effect, 3));
            assert_eq!(check(&events, &business, &[]).phantom, 1);
        }
        let (events, mut business) = good();
        business.invoices.push((3, 4 * SECOND));
        assert_eq!(check(&events, &business, &[]).phantom, 1);
    }

    #[test]
    fn an_order_in_the_table_that_was_rolled_back_is_a_phantom() {
        let (events, mut business) = good();
        business.orders.push(3);
        assert_eq!(check(&events, &business, &[]).phantom, 1);
    }

    #[test]
    fn a_second_invoice_is_a_duplicate_execution_and_a_second_call_is_not() {
        let (mut events, mut business) = good();
        events.extend([handled(4, "billing", 1), handled(4, AUDIT, 1), handled(5, AUDIT, 1)]);
        let verdict = check(&events, &business, &[]);
        assert_eq!((verdict.duplicate_executions, verdict.repeats_in_billing, verdict.repeats_in_audit), (0, 1, 2));
        business.invoices.push((1, 4 * SECOND));
        assert_eq!(check(&events, &business, &[]).duplicate_executions, 1);
    }

    #[test]
    fn a_stall_is_counted_without_outages() {
        let (mut events, business) = good();
        events.retain(|event| event != &handled(3, AUDIT, 2));
        events.push(handled(21, AUDIT, 2));
        assert_eq!(check(&events, &business, &[]).longest_stall_s, 20.0);
        // Two that overlap, one of which began before the commit: 15 s of 20.
        events.push(event(10, What::outage("broker", 0)));
        events.push(event(16, What::outage("database", 5 * SECOND)));
        let verdict = check(&events, &business, &[]);
        assert_eq!(verdict.longest_stall_s, 5.0);
        assert_eq!(verdict.longest_stall_of.as_deref(), Some("order 2 in audit"));
    }

    #[test]
    fn what_is_never_handled_stalls_to_the_end() {
        let (mut events, business) = good();
        events.retain(|event| event != &handled(3, AUDIT, 2));
        events.push(event(61, What::Started));
        assert_eq!(check(&events, &business, &[]).longest_stall_s, 60.0);
    }

    /// A good history with one message of trouble that is stored.
    fn with(trouble: Trouble) -> (Vec<Event>, Business, i64) {
        let (mut events, business) = good();
        let id = trouble.number(1);
        events.push(event(4, What::Trouble { id, message: "m".into() }));
        events.push(event(5, What::Committed { id }));
        (events, business, id)
    }

    fn left(group: Option<&'static str>, dead: bool, reason: Option<&str>) -> Remaining {
        Remaining { message: "m".into(), group, dead, reason: reason.map(str::to_owned) }
    }

    #[test]
    fn a_killer_must_be_dead_where_it_kills_and_handled_elsewhere() {
        let (mut events, business, id) = with(Trouble::Killer { in_audit: false });
        events.push(handled(6, AUDIT, id));
        let dead = [left(Some(BILLING), true, Some("given up"))];
        let verdict = check(&events, &business, &dead);
        assert!(verdict.is_good() && verdict.is_complete(), "{verdict:?}");
        let alive = check(&events, &business, &[left(Some(BILLING), false, None)]);
        assert_eq!((alive.killers, alive.killers_dead, alive.is_good()), (1, 0, false));
        events.pop();
        assert_eq!(check(&events, &business, &dead).lost, 1);
    }

    #[test]
    fn who_is_dead_beside_a_killer_is_buried() {
        let (mut events, business, id) = with(Trouble::Killer { in_audit: false });
        events.push(handled(6, AUDIT, id));
        let neighbour = Remaining { message: "n".into(), ..left(Some(BILLING), true, Some("given up")) };
        let killed = left(Some(BILLING), true, Some("given up"));
        let verdict = check(&events, &business, &[killed.clone(), neighbour]);
        assert_eq!((verdict.buried, verdict.is_good()), (1, false));
        let elsewhere = left(Some(AUDIT), true, Some("given up"));
        assert_eq!(check(&events, &business, &[killed, elsewhere]).buried, 1);
    }

    #[test]
    fn poison_is_accounted_for_if_it_is_handled_or_dead_or_says_why_it_waits() {
        let (mut events, business, id) = with(Trouble::Poison(crate::crash::trouble::Poison::Bcc));
        let dead = check(&events, &business, &[left(Some(AUDIT), true, Some("bad"))]);
        assert_eq!((dead.poisons_dead, dead.buried, dead.is_good()), (1, 0, true));
        let waiting = check(&events, &business, &[left(None, false, Some("refused"))]);
        assert_eq!((waiting.poisons_waiting, waiting.is_good()), (1, true));
        assert_eq!(check(&events, &business, &[left(None, false, None)]).unaccounted, 1);
        assert_eq!(check(&events, &business, &[]).unaccounted, 1);
        events.push(handled(6, AUDIT, id));
        assert_eq!(check(&events, &business, &[]).poisons_handled, 1);
    }

    #[test]
    fn other_trouble_is_lost_without_its_effects_if_it_was_stored() {
        let (mut events, business, id) = with(Trouble::Renewed);
        assert_eq!(check(&events, &business, &[]).lost, 1);
        events.push(handled(6, AUDIT, id));
        assert!(check(&events, &business, &[]).is_good());
        events.retain(|event| !matches!(event.what, What::Handled { .. } | What::Committed { .. }));
        let never_stored = check(&events, &Business::default(), &[]);
        assert_eq!((never_stored.lost, never_stored.other_trouble), (0, 0));
    }

    #[test]
    fn trouble_that_nobody_published_is_a_phantom() {
        let (mut events, business) = good();
        events.push(handled(6, AUDIT, Trouble::Big.number(9)));
        assert_eq!(check(&events, &business, &[]).phantom, 1);
    }

    #[test]
    fn slow_neighbours_are_wrong() {
        let (mut events, mut business) = (Vec::new(), Business::default());
        for (id, from, took) in (0..30).map(|id| (id, id, 0)).chain((30..60).map(|id| (id, 100 + id, 1))) {
            events.extend([event(from, What::Committed { id }), handled(from + took, AUDIT, id)]);
            business.orders.push(id);
            business.invoices.push((id, (from + took) * SECOND));
        }
        events.push(event(90, What::Window { of: neighbours::CALM.into(), from: 0, judged: true }));
        events.push(event(200, What::Window { of: "poison".into(), from: 100 * SECOND, judged: true }));
        let verdict = check(&events, &business, &[]);
        assert_eq!((verdict.lost, verdict.slow, verdict.is_good()), (0, 1, false));
    }
}
