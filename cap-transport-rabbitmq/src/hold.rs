//! What a consumer has in this process: deliveries that wait to be handed out, and those that are out.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use cap_core::transport::Delivery;
use cap_core::{Error, Result};
use tokio::sync::Notify;

/// How much of it there may be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) count: usize,
    pub(crate) bytes: usize,
}

/// Shared by the consumer, which hands out, and by what takes deliveries from the broker.
#[derive(Debug)]
pub(crate) struct Hold {
    pub(crate) limits: Limits,
    inner: Mutex<Held>,
    /// Something has come, or the consumer is over.
    pub(crate) came: Notify,
    /// Something is gone.
    pub(crate) went: Notify,
    /// Held by who does not want anything to go just now.
    pub(crate) gate: tokio::sync::Mutex<()>,
}

/// Both lists are in the order of their tags, and all that is out was handed out before all that waits.
#[derive(Debug, Default)]
pub(crate) struct Held {
    waiting: VecDeque<Delivery>,
    /// The tags of what is out, and the bytes.
    out: VecDeque<(u64, usize)>,
    bytes_waiting: usize,
    bytes_out: usize,
    over: Option<Error>,
}

impl Hold {
    pub(crate) fn new(limits: Limits) -> Self {
        Self { limits, inner: Mutex::default(), came: Notify::new(), went: Notify::new(), gate: Default::default() }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Held> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends it: what was not handed out is forgotten, since the broker gives it to others.
    pub(crate) fn end(&self, error: Error) {
        self.lock().end(error);
        self.came.notify_one();
    }

    /// Everything that may be handed out, if there is anything, up to `max`; none if nothing may now.
    pub(crate) fn hand_out(&self, max: usize) -> Option<Result<Vec<Delivery>>> {
        let mut held = self.lock();
        let mut ready = Vec::new();
        while ready.len() < max {
            let Some(delivery) = held.next(self.limits) else {
                break;
            };
            ready.push(delivery);
        }
        match &held.over {
            _ if !ready.is_empty() => Some(Ok(ready)),
            Some(error) => Some(Err(error.clone())),
            None => None,
        }
    }
}

impl Held {
    fn next(&mut self, limits: Limits) -> Option<Delivery> {
        let bytes = self.waiting.front()?.body.len();
        let fits = self.out.len() < limits.count && self.bytes_out + bytes <= limits.bytes;
        if !fits && !self.out.is_empty() {
            return None;
        }
        let delivery = self.waiting.pop_front()?;
        self.bytes_waiting -= bytes;
        self.bytes_out += bytes;
        self.out.push_back((delivery.tag.0, bytes));
        Some(delivery)
    }

    pub(crate) fn push(&mut self, delivery: Delivery) {
        if self.over.is_none() {
            self.bytes_waiting += delivery.body.len();
            self.waiting.push_back(delivery);
        }
    }

    pub(crate) fn end(&mut self, error: Error) {
        self.over.get_or_insert(error);
        (self.waiting, self.bytes_waiting) = (VecDeque::new(), 0);
    }

    pub(crate) fn over(&self) -> Option<&Error> {
        self.over.as_ref()
    }

    pub(crate) fn count(&self) -> usize {
        self.waiting.len() + self.out.len()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes_waiting + self.bytes_out
    }

    /// How many there are with tags up to this one.
    pub(crate) fn count_up_to(&self, tag: u64) -> usize {
        let waiting = self.waiting.partition_point(|delivery| delivery.tag.0 <= tag);
        waiting + self.out.partition_point(|(out, _)| *out <= tag)
    }

    pub(crate) fn count_out(&self) -> usize {
        self.out.len()
    }

    /// The first tag that is out.
    pub(crate) fn first_out(&self) -> Option<u64> {
        self.out.front().map(|(tag, _)| *tag)
    }

    /// Takes tags, which are in order, out of what is out; or tells those that are not out, and takes none.
    pub(crate) fn take_back(&mut self, tags: &[u64]) -> Result<(), Vec<u64>> {
        let mut out = self.out.iter().map(|(tag, _)| *tag).peekable();
        let mut is_out = |tag: u64| {
            while out.next_if(|out| *out < tag).is_some() {}
            out.next_if_eq(&tag).is_some()
        };
        let unknown: Vec<u64> = tags.iter().copied().filter(|tag| !is_out(*tag)).collect();
        if !unknown.is_empty() {
            return Err(unknown);
        }
        let mut taken = tags.iter().peekable();
        let mut bytes = 0;
        self.out.retain(|(tag, size)| {
            let is_taken = taken.next_if_eq(&tag).is_some();
            bytes += if is_taken { *size } else { 0 };
            !is_taken
        });
        self.bytes_out -= bytes;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use cap_core::transport::DeliveryTag;

    use super::*;

    fn delivery(tag: u64, bytes: usize) -> Delivery {
        let (topic, headers, origin) = ("a".into(), Default::default(), None);
        Delivery { tag: DeliveryTag(tag), topic, headers, body: vec![0; bytes].into(), origin, redelivered: false }
    }

    fn handed_out(hold: &Hold) -> Vec<u64> {
        let ready = hold.hand_out(100).map(Result::unwrap).unwrap_or_default();
        ready.iter().map(|delivery| delivery.tag.0).collect()
    }

    #[test]
    fn no_more_is_out_than_the_limits_allow_but_one_of_any_size() {
        let hold = Hold::new(Limits { count: 3, bytes: 10 });
        for (tag, bytes) in [(1, 4), (2, 4), (3, 4), (4, 50), (5, 0), (6, 0), (7, 0), (8, 0)] {
            hold.lock().push(delivery(tag, bytes));
        }
        assert_eq!(handed_out(&hold), [1, 2]);
        hold.lock().take_back(&[1]).unwrap();
        assert_eq!(handed_out(&hold), [3]);
        hold.lock().take_back(&[2]).unwrap();
        assert!(handed_out(&hold).is_empty(), "the large one waits until it is alone");
        hold.lock().take_back(&[3]).unwrap();
        assert_eq!(handed_out(&hold), [4]);
        let (bytes, count, up_to) = {
            let held = hold.lock();
            (held.bytes(), held.count(), held.count_up_to(5))
        };
        assert_eq!((bytes, count, up_to), (50, 5, 2));
        assert_eq!(hold.lock().take_back(&[4, 6]), Err(vec![6]));
        hold.lock().take_back(&[4]).unwrap();
        assert_eq!(handed_out(&hold), [5, 6, 7]);
    }
}
