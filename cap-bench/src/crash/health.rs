//! Whether what the processes said of their health was true: pure, from the recorded events alone.
//!
//! - A process is *known* at a time if it has written its health down shortly before and shortly after, in one life: it was
//!   neither killed nor frozen, nor kept from it.
//! - *unnoticed*: an outage that must make a process ill, in which it was known and still said that it was ready when it
//!   should have noticed. Only outages are judged that went on for a while after that, since a server is back somewhat
//!   before the record says so.
//! - *lingering*: a process that was known for 5 s after the end of an outage, and was not ready in all of that time.
//!   Not judged where another outage, or an attack on the connections or on that process, is on in those 5 s or was
//!   shortly before.
//! - *ailing*: a process that was not ready for 5 s on end in a calm window, more than 5 s after any outage.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::crash::neighbours::CALM;
use crate::crash::recorder::{Ails, Event, What};

const SECOND: i64 = 1_000_000;
/// Within this long after an outage everybody must be well again.
const MENDING: i64 = 5 * SECOND;
/// A server is back at most so long before the record says so.
const EARLY: i64 = 3 * SECOND / 2;
/// Who has written nothing down for longer than this is not known.
const GAP: i64 = 5 * SECOND / 2;
/// What happened to a process so long before an outage's end may still ail it: it had to join again, under another id.
const BEFORE: i64 = 12 * SECOND;

/// What was told of outages, and what was wrong with it.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct Told {
    /// By what was away.
    pub(crate) outages: BTreeMap<String, Outages>,
    pub(crate) unnoticed: usize,
    pub(crate) lingering: usize,
    pub(crate) ailing: usize,
    /// Some of what is wrong, for people.
    pub(crate) examples: Vec<String>,
}

/// Those of one kind.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct Outages {
    pub(crate) number: usize,
    /// How often a process had to be ill, and was or was not.
    pub(crate) judged_ill: usize,
    /// How often a process had to be well again, and was or was not.
    pub(crate) judged_well: usize,
    /// The longest time from an outage's beginning until a process said that it was ill, of those that did.
    pub(crate) longest_until_ill_s: f64,
    /// The longest time from an outage's end until a process was ready, of those judged.
    pub(crate) longest_until_well_s: f64,
}

impl Told {
    pub(crate) fn is_good(&self) -> bool {
        self.unnoticed + self.lingering + self.ailing == 0
    }

    fn example(&mut self, text: String) {
        const MOST: usize = 10;
        if self.examples.len() < MOST {
            self.examples.push(text);
        }
    }
}

/// What one process said, and when.
#[derive(Debug, Clone, Copy)]
struct Said {
    at: i64,
    ready: bool,
}

/// One life of a process.
#[derive(Debug)]
struct Life<'a> {
    who: &'a str,
    said: Vec<Said>,
}

impl Life<'_> {
    fn consumes(&self) -> bool {
        self.who.starts_with("consumer") || self.who.starts_with("node")
    }

    /// Whether it wrote something down shortly before, shortly after and all the time between.
    fn is_known(&self, from: i64, until: i64) -> bool {
        let first = self.said.partition_point(|said| said.at <= from);
        let last = self.said.partition_point(|said| said.at < until);
        let Some(first) = first.checked_sub(1) else { return false };
        let Some(known) = self.said.get(first..=last) else { return false };
        known.windows(2).all(|pair| pair[1].at - pair[0].at <= GAP)
    }

    /// Whether it was ready at that time, by what it had said last.
    fn was_ready(&self, at: i64) -> bool {
        self.said.iter().take_while(|said| said.at <= at).last().is_some_and(|said| said.ready)
    }

    /// When it said so first, from then on; then, if it had said so last.
    fn first(&self, ready: bool, from: i64) -> Option<i64> {
        if self.was_ready(from) == ready {
            return Some(from);
        }
        self.said.iter().find(|said| said.at > from && said.ready == ready).map(|said| said.at)
    }
}

/// One outage.
#[derive(Debug)]
struct Outage<'a> {
    of: &'a str,
    from: i64,
    until: i64,
    ails: Option<Ails>,
}

/// The history, sorted.
#[derive(Debug, Default)]
struct History<'a> {
    lives: Vec<Life<'a>>,
    outages: Vec<Outage<'a>>,
    attacks: Vec<(i64, &'a str)>,
    calms: Vec<(i64, i64)>,
}

impl<'a> History<'a> {
    fn new(events: &'a [Event]) -> Self {
        let (mut history, mut current) = (Self::default(), BTreeMap::<&str, usize>::new());
        for Event { at, who, what } in events {
            match what {
                What::Started => drop(current.remove(who.as_str())),
                What::Health { ready, .. } => {
                    let lives = &mut history.lives;
                    let life = *current.entry(who).or_insert_with(|| {
                        lives.push(Life { who, said: Vec::new() });
                        lives.len() - 1
                    });
                    lives[life].said.push(Said { at: *at, ready: *ready });
                }
                What::Outage { of, from, ails } => {
                    history.outages.push(Outage { of, from: *from, until: *at, ails: *ails });
                }
                What::Attack { on } => history.attacks.push((*at, on)),
                What::Window { of, from, .. } if of == CALM => history.calms.push((*from, *at)),
                _ => {}
            }
        }
        history
    }

    /// Whether nothing else happened to this process shortly before and after the end of an outage.
    fn is_left_alone(&self, life: &Life<'_>, outage: &Outage<'_>) -> bool {
        let mended = outage.until..=outage.until + MENDING;
        let is_on = |other: &Outage<'_>| other.from <= *mended.end() && other.until > outage.until;
        let is_attacked = |(at, on): &(i64, &str)| {
            let is_cut = on.starts_with("cut ") && mended.contains(at);
            is_cut || on.contains(life.who) && (outage.until - BEFORE..=*mended.end()).contains(at)
        };
        !self.outages.iter().any(is_on) && !self.attacks.iter().any(is_attacked)
    }
}

/// Judges.
pub(crate) fn judge(events: &[Event]) -> Told {
    let history = History::new(events);
    let mut told = Told::default();
    for outage in &history.outages {
        told.outages.entry(outage.of.to_owned()).or_default().number += 1;
        for life in &history.lives {
            judge_illness(&mut told, life, outage);
            if history.is_left_alone(life, outage) {
                judge_mending(&mut told, life, outage);
            }
        }
    }
    for life in &history.lives {
        history.calms.iter().for_each(|calm| judge_calm(&mut told, &history, life, *calm));
    }
    told
}

fn judge_illness(told: &mut Told, life: &Life<'_>, outage: &Outage<'_>) {
    let Some(ails) = outage.ails else { return };
    if ails.only_consumers && !life.consumes() || !life.is_known(outage.from, outage.until) {
        return;
    }
    let of_kind = told.outages.entry(outage.of.to_owned()).or_default();
    if let Some(ill) = life.first(false, outage.from).filter(|ill| *ill < outage.until) {
        of_kind.longest_until_ill_s = of_kind.longest_until_ill_s.max(seconds(ill - outage.from));
    }
    let noticed_by = outage.from + ails.within;
    if noticed_by + EARLY > outage.until {
        return;
    }
    of_kind.judged_ill += 1;
    if life.was_ready(noticed_by) {
        told.unnoticed += 1;
        told.example(format!(
            "unnoticed: {} was ready {:.1} s into {} of {:.1} s, at {}",
            life.who,
            seconds(ails.within),
            outage.of,
            seconds(outage.until - outage.from),
            outage.from
        ));
    }
}

fn judge_mending(told: &mut Told, life: &Life<'_>, outage: &Outage<'_>) {
    let limit = outage.until + MENDING;
    if !life.is_known(outage.until, limit) {
        return;
    }
    let of_kind = told.outages.entry(outage.of.to_owned()).or_default();
    of_kind.judged_well += 1;
    let well = life.first(true, outage.until);
    if let Some(well) = well {
        of_kind.longest_until_well_s = of_kind.longest_until_well_s.max(seconds(well - outage.until));
    }
    if well.is_none_or(|well| well > limit) {
        told.lingering += 1;
        told.example(format!(
            "lingering: {} was not ready within 5 s after {}, at {}",
            life.who, outage.of, outage.until
        ));
    }
}

fn judge_calm(told: &mut Told, history: &History<'_>, life: &Life<'_>, (from, until): (i64, i64)) {
    let mended = history.outages.iter().filter(|outage| outage.from < until).map(|outage| outage.until + MENDING);
    let attacked = history.attacks.iter().filter(|(at, on)| *at < until && on.contains(life.who));
    let from = mended.chain(attacked.map(|(at, _)| at + BEFORE)).fold(from, i64::max);
    let mut ill_since = None;
    for said in life.said.iter().filter(|said| (from..until).contains(&said.at)) {
        ill_since = if said.ready { None } else { ill_since.or(Some(said.at)) };
        if ill_since.is_some_and(|since| said.at - since >= MENDING) {
            told.ailing += 1;
            return told.example(format!("ailing: {} was not ready in a calm, at {}", life.who, said.at));
        }
    }
}

fn seconds(micros: i64) -> f64 {
    micros as f64 / SECOND as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(seconds: f64, who: &str, what: What) -> Event {
        Event { at: (seconds * 1e6) as i64, who: who.into(), what }
    }

    fn outage(from: i64, until: f64, ails: Option<Ails>) -> Event {
        event(until, "nemesis", What::Outage { of: "postgres".into(), from: from * SECOND, ails })
    }

    const EVERYBODY: Option<Ails> = Some(Ails { only_consumers: false, within: 6 * SECOND });

    /// From then until then each half second; not ready in the second interval.
    fn life(who: &str, from: i64, until: i64, ill: std::ops::Range<i64>) -> Vec<Event> {
        let mut events = vec![event(from as f64, who, What::Started)];
        events.extend((from * 2..until * 2).map(|half| {
            let is_ill = (ill.start * 2..ill.end * 2).contains(&half);
            event(half as f64 / 2.0 + 0.01, who, What::Health { ready: !is_ill, ill: Vec::new() })
        }));
        events
    }

    fn judged(events: Vec<Event>) -> Told {
        let mut events = events;
        events.sort_by_key(|event| event.at);
        judge(&events)
    }

    #[test]
    fn who_is_ill_in_an_outage_and_well_after_it_is_right() {
        let mut events = life("relay-3", 0, 40, 12..22);
        events.push(outage(10, 20.0, EVERYBODY));
        let told = judged(events);
        assert!(told.is_good(), "{told:?}");
        let outages = &told.outages["postgres"];
        assert_eq!((outages.number, outages.judged_ill, outages.judged_well), (1, 1, 1));
        assert_eq!((outages.longest_until_ill_s, outages.longest_until_well_s), (2.01, 2.01));
    }

    #[test]
    fn who_is_ready_in_a_long_outage_has_not_noticed() {
        let ill = |range| {
            let mut events = life("relay-3", 0, 40, range);
            events.push(outage(10, 20.0, EVERYBODY));
            judged(events)
        };
        assert_eq!((ill(0..0).unnoticed, ill(0..0).is_good()), (1, false));
        assert_eq!(ill(17..21).unnoticed, 1, "too late");
        assert_eq!(ill(12..14).unnoticed, 1, "well again though nothing is mended");
    }

    #[test]
    fn a_short_outage_need_not_be_noticed_nor_one_that_ails_others() {
        let told = |outage| {
            let mut events = life("relay-3", 0, 40, 0..0);
            events.push(outage);
            judged(events)
        };
        let consumers = Some(Ails { only_consumers: true, within: 6 * SECOND });
        for outage in [outage(10, 16.0, EVERYBODY), outage(10, 20.0, None), outage(10, 20.0, consumers)] {
            let told = told(outage);
            assert_eq!((told.unnoticed, told.outages["postgres"].judged_ill), (0, 0));
        }
    }

    #[test]
    fn who_is_not_ready_five_seconds_after_an_outage_lingers() {
        let mut events = life("consumer-4", 0, 40, 11..18);
        events.push(outage(10, 12.0, EVERYBODY));
        let told = judged(events.clone());
        assert_eq!((told.lingering, told.is_good()), (1, false));
        for alone in [
            outage(13, 14.0, None),
            event(13.0, "nemesis", What::Attack { on: "cut database".into() }),
            event(3.0, "nemesis", What::Attack { on: "freeze consumer-4 for 2s".into() }),
        ] {
            let mut events = events.clone();
            events.push(alone);
            assert_eq!(judged(events).lingering, 0);
        }
        events.push(event(3.0, "nemesis", What::Attack { on: "freeze consumer-5 for 2s".into() }));
        assert_eq!(judged(events).lingering, 1, "another one was attacked");
    }

    #[test]
    fn nobody_is_judged_who_is_not_known() {
        // Killed in the outage, and started again at once; frozen until the end of the outage.
        let mut events = life("relay-3", 0, 15, 0..0);
        events.extend(life("relay-3", 15, 40, 0..0));
        events.extend(
            life("publisher-1", 0, 40, 19..30).into_iter().filter(|event| !(11..19).contains(&(event.at / SECOND))),
        );
        events.push(outage(10, 20.0, EVERYBODY));
        events.push(event(10.5, "nemesis", What::Attack { on: "freeze publisher-1 for 8s".into() }));
        let told = judged(events);
        assert_eq!((told.outages["postgres"].judged_ill, told.is_good()), (0, true), "{told:?}");
    }

    #[test]
    fn who_is_ill_in_a_calm_ails() {
        let calm = |from: i64, until: f64| {
            event(until, "nemesis", What::Window { of: CALM.into(), from: from * SECOND, judged: true })
        };
        let mut events = life("consumer-4", 0, 40, 22..29);
        events.push(calm(20, 30.0));
        assert_eq!((judged(events.clone()).ailing, judged(events.clone()).is_good()), (1, false));
        events.push(outage(10, 19.0, None));
        assert_eq!(judged(events).ailing, 0, "that may be the outage's");
        let mut events = life("consumer-4", 0, 40, 22..26);
        events.push(calm(20, 30.0));
        assert_eq!(judged(events).ailing, 0, "not for long enough");
    }
}
