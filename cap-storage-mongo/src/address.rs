//! Addresses of records, made by the process itself: a counter in the database would put all publishers in a row.
//!
//! The hour since 1970 is in the upper bits, so that a list is roughly in the order of time and the index of `_id` grows
//! at its end. Below it each process counts up from a random start of that hour. Ten processes that each insert 5000
//! records a second meet once in some months; `_id` is unique, so the insert fails then, and is done again with others.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use uuid::Uuid;

/// Bits below the hour: room for some millions a microsecond.
const COUNTED: u32 = 43;

const SECONDS: u64 = 3600;

#[derive(Debug, Clone, Copy)]
struct Addresses {
    hour: i64,
    next: i64,
}

static ADDRESSES: Mutex<Addresses> = Mutex::new(Addresses { hour: -1, next: 0 });

/// So many addresses, never given before by this process.
pub(crate) fn take(number: usize) -> Range<i64> {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs());
    let hour = i64::try_from(seconds / SECONDS).unwrap_or(0);
    ADDRESSES.lock().unwrap_or_else(PoisonError::into_inner).take(hour, number)
}

/// Another process has met ours: goes on elsewhere.
pub(crate) fn begin_anew() {
    ADDRESSES.lock().unwrap_or_else(PoisonError::into_inner).hour = -1;
}

impl Addresses {
    fn take(&mut self, hour: i64, number: usize) -> Range<i64> {
        let number = i64::try_from(number).unwrap_or(i64::MAX);
        if hour != self.hour || self.next.saturating_add(number) >= 1 << COUNTED {
            // The upper 48 bits of such a UUID are random. The start is in the lower half, so that there is room.
            let random = Uuid::new_v4().as_u64_pair().0 >> (64 - COUNTED + 1);
            *self = Self { hour, next: i64::try_from(random).unwrap_or(0) };
        }
        let first = (hour << COUNTED) | self.next;
        self.next += number;
        first..first + number
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_positive_distinct_and_in_the_order_of_the_hours() {
        let mut addresses = Addresses { hour: -1, next: 0 };
        // Until 2089, as the hours have 20 bits.
        for hour in [0, 498_000, (1 << 20) - 1] {
            let (one, other) = (addresses.take(hour, 3000), addresses.take(hour, 1));
            assert!(one.start >= 0 && one.end == other.start, "{one:?} {other:?}");
            assert_eq!(one.end - one.start, 3000);
            assert_eq!(one.start >> COUNTED, hour);
        }
    }

    #[test]
    fn processes_start_apart() {
        let start = || Addresses { hour: -1, next: 0 }.take(7, 1).start;
        assert_ne!(start(), start());
        let first = take(2);
        begin_anew();
        assert!(!first.contains(&take(1).start));
    }

    #[test]
    fn a_full_hour_begins_anew_within_it() {
        let mut addresses = Addresses { hour: 7, next: (1 << COUNTED) - 2 };
        let taken = addresses.take(7, 2);
        assert_eq!((taken.end - 1) >> COUNTED, 7);
    }
}
