//! Publishing by hand: the two inserts in one transaction.

use crate::backend::{Broker, Database, Fallible, Hand};
use crate::twin::rows;

/// Places orders with the numbers from `first` on over one connection.
pub(crate) async fn publish<D: Database, B: Broker>(
    hand: &mut D::Hand,
    broker: &B,
    numbers: std::ops::Range<i64>,
    payload: impl Fn(i64) -> String,
) -> Fallible {
    for number in numbers {
        let payload = serde_json::to_string(&payload(number))?;
        hand.place(&rows::outbox_row(number, &broker.names().topic, &payload)).await?;
    }
    Ok(())
}
