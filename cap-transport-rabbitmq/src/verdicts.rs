//! Which of the acknowledged messages were returned.
//!
//! RabbitMQ tells of a message that no queue wants with a `basic.return` before its acknowledgement, naming the message.
//! The driver keeps returns in a list, and gives the oldest to whichever acknowledgement it handles next: on a channel
//! with several messages on their way that is often another message's, and one acknowledgement of many spreads them at
//! random. Taken at its word, a message would be reported as delivered that was thrown away. So a return is matched here
//! by the message id that it carries, and an acknowledgement counts only when it is certain that no return of its
//! message is still to come.
//!
//! It is certain when every return that came before it has been handed out and looked at. One that was handed out with
//! an acknowledgement that resolved earlier is seen one pass later at the latest; whether any were left in the list is
//! told by an acknowledgement that brings none: then the list was empty.

use std::collections::HashMap;

/// An acknowledged message: its id, and the caller's own data.
#[derive(Debug)]
pub(crate) struct Acked<T> {
    pub(crate) id: String,
    /// Whether no return came with it, be it its own or another's.
    pub(crate) alone: bool,
    pub(crate) item: T,
}

/// The outcome of an acknowledged message.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Taken,
    /// With the broker's words.
    Returned(String),
}

#[derive(Debug)]
pub(crate) struct Verdicts<T> {
    pass: u64,
    /// Found in the pass before: it is certain now which returns came with what resolved before them.
    recent: Vec<Acked<T>>,
    /// Acknowledged while returns were left in the list; with the pass that found them.
    held: Vec<(u64, Acked<T>)>,
    /// Returns that were seen and whose messages were not yet judged.
    returned: HashMap<String, Vec<String>>,
}

impl<T> Verdicts<T> {
    pub(crate) fn new() -> Self {
        Self { pass: 0, recent: Vec::new(), held: Vec::new(), returned: HashMap::new() }
    }

    /// Notes a return, whatever it came with.
    pub(crate) fn note_return(&mut self, id: String, reply: String) {
        self.returned.entry(id).or_default().push(reply);
    }

    /// Whether another pass may judge more.
    pub(crate) fn is_pending(&self) -> bool {
        !self.recent.is_empty()
    }

    /// Ends a pass, in which everything that was woken before it began has been looked at and its returns noted; `found`
    /// are the acknowledged. `is_last`: nothing else is on its way, so that no return can come any more.
    pub(crate) fn pass(&mut self, found: Vec<Acked<T>>, is_last: bool) -> Vec<(T, Verdict)> {
        self.pass += 1;
        let mut judged = Vec::new();
        let list_was_empty = self.recent.iter().any(|acked| acked.alone);
        let is_last = is_last && found.is_empty();
        let (pass, returned) = (self.pass, &mut self.returned);
        for acked in std::mem::replace(&mut self.recent, found) {
            match take(returned, &acked.id) {
                Some(reply) => judged.push((acked.item, Verdict::Returned(reply))),
                None if acked.alone => judged.push((acked.item, Verdict::Taken)),
                None => self.held.push((pass - 1, acked)),
            }
        }
        let mut still_held = Vec::new();
        for (found_in, acked) in self.held.drain(..) {
            // What emptied the list was found in the pass before this one. It resolved after all that two passes before
            // that had found, and only then is the list known to be rid of their returns.
            let certain = is_last || (list_was_empty && found_in + 3 <= pass);
            match take(returned, &acked.id) {
                Some(reply) => judged.push((acked.item, Verdict::Returned(reply))),
                None if certain => judged.push((acked.item, Verdict::Taken)),
                None => still_held.push((found_in, acked)),
            }
        }
        self.held = still_held;
        judged
    }

    /// Gives back all that was never judged.
    pub(crate) fn into_unjudged(self) -> impl Iterator<Item = T> {
        self.recent.into_iter().chain(self.held.into_iter().map(|(_, acked)| acked)).map(|acked| acked.item)
    }
}

fn take(returned: &mut HashMap<String, Vec<String>>, id: &str) -> Option<String> {
    let replies = returned.get_mut(id)?;
    let reply = replies.pop();
    if replies.is_empty() {
        returned.remove(id);
    }
    reply
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The driver's list, as it hands out returns.
    #[derive(Default)]
    struct Driver {
        returns: std::collections::VecDeque<u32>,
        resolved: Vec<(u32, Option<u32>)>,
    }

    impl Driver {
        fn ack(&mut self, message: u32) {
            self.resolved.push((message, self.returns.pop_front()));
        }
    }

    fn look(verdicts: &mut Verdicts<u32>, resolved: &[(u32, Option<u32>)], is_last: bool) -> Vec<(u32, Verdict)> {
        let mut found = Vec::new();
        for &(message, returned) in resolved {
            if let Some(returned) = returned {
                verdicts.note_return(returned.to_string(), "NO_ROUTE".into());
            }
            found.push(Acked { id: message.to_string(), alone: returned.is_none(), item: message });
        }
        verdicts.pass(found, is_last)
    }

    /// A stream of random numbers that is the same each time.
    fn numbers(mut seed: u64) -> impl FnMut(u64) -> u64 {
        move |below| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % below
        }
    }

    /// The broker acknowledges some, in any order.
    fn acknowledge(driver: &mut Driver, open: &mut Vec<u32>, random: &mut impl FnMut(u64) -> u64) {
        for _ in 0..random(5) {
            if !open.is_empty() {
                let place = random(open.len() as u64) as usize;
                driver.ack(open.remove(place));
            }
        }
    }

    #[test]
    fn a_return_that_came_with_another_acknowledgement_finds_its_message() {
        let (mut verdicts, mut driver) = (Verdicts::new(), Driver::default());
        driver.returns.push_back(2);
        (1..=3).for_each(|message| driver.ack(message));
        assert!(look(&mut verdicts, &driver.resolved, false).is_empty());
        let mut judged = look(&mut verdicts, &[], true);
        judged.extend(look(&mut verdicts, &[], true));
        judged.sort_by_key(|(message, _)| *message);
        let expected = [Verdict::Taken, Verdict::Returned("NO_ROUTE".into()), Verdict::Taken];
        assert_eq!(judged.into_iter().map(|(_, verdict)| verdict).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn no_history_makes_a_returned_message_pass_for_taken_or_leaves_one_unjudged() {
        for seed in 0..2_000 {
            let mut random = numbers(seed);
            let (mut verdicts, mut driver) = (Verdicts::new(), Driver::default());
            let unroutable: Vec<bool> = (0..40).map(|_| random(3) == 0).collect();
            let (mut open, mut told) = (Vec::new(), 0);
            let mut judged = Vec::new();
            while told < 40 || !open.is_empty() || !driver.resolved.is_empty() || verdicts.is_pending() {
                match random(3) {
                    // The broker takes some, in order, and returns those that nobody wants at once.
                    0 => {
                        for message in told..(told + 4).min(40) {
                            if unroutable[message as usize] {
                                driver.returns.push_back(message);
                            }
                            open.push(message);
                        }
                        told = (told + 4).min(40);
                    }
                    1 => acknowledge(&mut driver, &mut open, &mut random),
                    // A pass sees all that resolved before it, and some of what resolves meanwhile.
                    _ => {
                        let mut seen = std::mem::take(&mut driver.resolved);
                        acknowledge(&mut driver, &mut open, &mut random);
                        let (now, later) = driver.resolved.drain(..).partition(|_| random(2) == 0);
                        let now: Vec<_> = now;
                        seen.extend(now);
                        driver.resolved = later;
                        let is_last = told == 40 && open.is_empty() && driver.resolved.is_empty();
                        judged.extend(look(&mut verdicts, &seen, is_last));
                    }
                }
            }
            judged.extend(verdicts.pass(Vec::new(), true));
            assert_eq!(judged.len(), 40, "seed {seed}");
            for (message, verdict) in judged {
                let expected = unroutable[message as usize];
                assert_eq!(matches!(verdict, Verdict::Returned(_)), expected, "seed {seed}, message {message}");
            }
        }
    }
}
