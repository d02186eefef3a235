//! A subscription's share of its group's room, so that a handler that hangs, or is slow, takes nothing from the others: what
//! waits for it waits in the inbox, and claims leave its topics alone until there is room again.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cap_core::{Topic, TopicPattern};
use tokio::sync::Notify;

use crate::engine::slots::Slots;

/// At most so many records in one claim.
pub(crate) const BATCH: usize = 500;
/// So many may be claimed beyond what is free, as long as nothing is known of how many of a claim are for it.
const LEAST: usize = 32;
/// So many topics of a pattern are left alone. Of more, some are claimed and given back.
const TOPICS: usize = 64;

#[derive(Debug)]
pub(crate) struct Share {
    pub(crate) slots: Arc<Slots>,
    /// How many may be claimed beyond what is free: a claim does not know beforehand for whom its records are. Twice as
    /// many after each claim that was not too much.
    beyond: AtomicUsize,
    /// Of a pattern: what was lately found to match it while it was full.
    topics: Mutex<VecDeque<Topic>>,
    /// Nothing of it can begin at present, whatever room there is.
    shut: AtomicBool,
}

impl Share {
    pub(crate) fn new(concurrency: usize, most_bytes: usize, opened: Arc<Notify>) -> Self {
        Self {
            slots: Slots::adaptive(concurrency, most_bytes, opened),
            beyond: AtomicUsize::new(LEAST),
            topics: Mutex::default(),
            shut: AtomicBool::new(false),
        }
    }

    pub(crate) fn is_full(&self) -> bool {
        self.is_shut() || self.slots.is_full(BATCH / 2)
    }

    pub(crate) fn is_shut(&self) -> bool {
        self.shut.load(Ordering::Acquire)
    }

    /// Whether anything of it can begin.
    pub(crate) fn shut(&self, is_shut: bool) {
        self.shut.store(is_shut, Ordering::Release);
    }

    /// How many records a claim may bring that can be for it.
    pub(crate) fn allowance(&self) -> usize {
        self.slots.left().max(self.beyond.load(Ordering::Relaxed))
    }

    /// A claim came in while it was not full.
    pub(crate) fn learn(&self) {
        let beyond = if self.slots.is_over() { LEAST } else { self.beyond.load(Ordering::Relaxed) * 2 };
        self.beyond.store(beyond.min(BATCH), Ordering::Relaxed);
    }

    /// So much more is here than there is room for that nothing more may be kept waiting.
    pub(crate) fn is_flooded(&self) -> bool {
        self.slots.used() > self.slots.capacity() + BATCH
    }

    fn topics(&self) -> MutexGuard<'_, VecDeque<Topic>> {
        self.topics.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A message of `topic` waits for room.
    pub(crate) fn note(&self, pattern: &TopicPattern, topic: &Topic) {
        if pattern.exact().is_some() {
            return;
        }
        let mut topics = self.topics();
        if topics.contains(topic) {
            return;
        }
        if topics.len() == TOPICS {
            topics.pop_front();
        }
        topics.push_back(topic.clone());
    }

    /// What claims leave alone while it is full.
    pub(crate) fn waiting_topics(&self, pattern: &TopicPattern) -> Vec<Topic> {
        match pattern.exact() {
            Some(topic) => vec![topic],
            None => self.topics().iter().cloned().collect(),
        }
    }
}
