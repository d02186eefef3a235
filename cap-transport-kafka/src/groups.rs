//! What is known of groups in this process, from one of their consumers to the next.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cap_core::Group;

use crate::place::{Beginning, Place};

#[derive(Debug, Default)]
pub(crate) struct Groups(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Where a group has been, it does not begin at the end again, which would pass over what was sent since the topic was
    /// made again, or to its new partitions.
    begun: HashSet<(Group, Arc<str>)>,
    /// Those whose members go without their static name.
    nameless: HashSet<Group>,
}

impl Groups {
    pub(crate) fn has_begun(&self, group: &Group, topic: &Arc<str>) -> bool {
        self.lock().begun.contains(&(group.clone(), Arc::clone(topic)))
    }

    pub(crate) fn note(&self, group: &Group, begun: &[(Place, Beginning)]) {
        self.lock().begun.extend(begun.iter().map(|(place, _)| (group.clone(), Arc::clone(&place.topic))));
    }

    pub(crate) fn is_nameless(&self, group: &Group) -> bool {
        self.lock().nameless.contains(group)
    }

    /// From now on the group's members are strangers to it each time they come, and are given what they want.
    pub(crate) fn drop_name(&self, group: &Group) {
        self.lock().nameless.insert(group.clone());
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
