//! The consumer of `order.placed`.

use std::sync::Arc;

use cap::postgres::PostgresStorage;
use cap::{CapBuilder, Json, RetryPolicy, Subscribe, Tx};
use serde::Deserialize;

use crate::Error;

/// As much of an order as billing needs.
#[derive(Deserialize)]
struct Order {
    id: String,
    amount: f64,
}

pub(crate) async fn run(engine: CapBuilder<Arc<PostgresStorage>>) -> Result<(), Error> {
    let invoices = Subscribe::to("order.placed", bill)
        .group("billing")
        .concurrency(8)
        // An order that cannot be invoiced is kept with the reason, and logged as dead: a person must look at it.
        .retry(RetryPolicy::default());
    let cap = engine.subscription(invoices).start().await?;
    tracing::info!("writing invoices");
    crate::asked_to_stop().await;
    cap.stop().await;
    Ok(())
}

/// Writes the invoice. This insert and the record that says that the message is handled are one commit, which is made
/// when this returns.
async fn bill(mut tx: Tx<PostgresStorage>, Json(order): Json<Order>) -> Result<(), sqlx::Error> {
    sqlx::query("INSERT INTO shop.invoices (order_id, amount) VALUES ($1, $2)")
        .bind(&order.id)
        .bind(order.amount)
        .execute(&mut **tx)
        .await?;
    tracing::info!(order = order.id, "invoicing");
    Ok(())
}
