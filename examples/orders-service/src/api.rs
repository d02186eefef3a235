//! `POST /orders` and `GET /orders/{id}`.

use std::future::IntoFuture as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::http::header::LOCATION;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Json, Router};
use cap::postgres::PostgresStorage;
use cap::{Cap, CapBuilder};
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use tokio::net::TcpListener;

use crate::Error;

/// How long a stop waits for requests that have begun.
const LAST_REQUESTS: Duration = Duration::from_secs(10);

#[derive(Serialize, Deserialize)]
struct Order {
    id: String,
    customer: String,
    amount: f64,
}

/// An order as `GET` shows it.
#[derive(Serialize)]
struct Shown {
    #[serde(flatten)]
    order: Order,
    invoiced: bool,
}

/// What requests need.
#[derive(Clone)]
struct Shop {
    pool: PgPool,
    cap: Cap<PostgresStorage>,
}

/// A status and what to tell the client. What is wrong with a body that is no order, axum tells.
type Refusal = (StatusCode, String);

pub(crate) async fn run(engine: CapBuilder<Arc<PostgresStorage>>, listen: SocketAddr) -> Result<(), Error> {
    let listener = TcpListener::bind(listen).await.map_err(|error| format!("cannot listen on {listen}: {error}"))?;
    let cap = engine.start().await?;
    let shop = Shop { pool: cap.storage().pool().clone(), cap: cap.clone() };
    let router = Router::new().route("/orders", post(place)).route("/orders/{id}", get(show)).with_state(shop);

    tracing::info!(address = %listener.local_addr()?, "taking orders");
    let serving = axum::serve(listener, router).with_graceful_shutdown(crate::asked_to_stop());
    tokio::select! {
        served = serving.into_future() => served?,
        () = too_late() => tracing::warn!("stopping with requests unanswered"),
    }
    cap.stop().await;
    Ok(())
}

async fn too_late() {
    crate::asked_to_stop().await;
    tokio::time::sleep(LAST_REQUESTS).await;
}

async fn place(State(shop): State<Shop>, Json(order): Json<Order>) -> Result<impl IntoResponse, Refusal> {
    if let Some(fault) = order.fault() {
        return Err((StatusCode::UNPROCESSABLE_ENTITY, fault));
    }
    match insert(&shop, &order).await {
        Ok(true) => Ok((StatusCode::CREATED, [(LOCATION, format!("/orders/{}", order.id))])),
        Ok(false) => Err((StatusCode::CONFLICT, format!("there is an order {} already", order.id))),
        Err(error) => {
            // A commit whose answer was lost may have been made, and its error is nothing that a client need know.
            tracing::error!(order = order.id, error, "an order may not have been taken");
            let advice = "the order may not have been taken: send it again, and 409 says that it was";
            Err((StatusCode::SERVICE_UNAVAILABLE, advice.to_owned()))
        }
    }
}

/// The order and its message are one commit. The broker has no part in it: while it is away, orders are taken all the
/// same. Answers `false` if there is an order with this id; dropping the transaction then takes everything back.
async fn insert(shop: &Shop, order: &Order) -> Result<bool, Error> {
    let mut tx = shop.pool.begin().await?;
    let inserted =
        sqlx::query("INSERT INTO shop.orders (id, customer, amount) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING")
            .bind(&order.id)
            .bind(&order.customer)
            .bind(order.amount)
            .execute(&mut *tx)
            .await?;
    if inserted.rows_affected() == 0 {
        return Ok(false);
    }
    shop.cap.publish_in(&mut tx, "order.placed", order).await?;
    tx.commit().await?;
    Ok(true)
}

async fn show(State(shop): State<Shop>, Path(id): Path<String>) -> Result<Json<Shown>, Refusal> {
    let not_found = || (StatusCode::NOT_FOUND, "there is no such order".to_owned());
    if !is_id(&id) {
        return Err(not_found());
    }
    let row: Option<(String, f64, bool)> = sqlx::query_as(
        "SELECT customer, amount, EXISTS (SELECT FROM shop.invoices WHERE order_id = orders.id)
         FROM shop.orders WHERE id = $1",
    )
    .bind(&id)
    .fetch_optional(&shop.pool)
    .await
    .map_err(|error| {
        tracing::error!(order = id, %error, "an order could not be shown");
        (StatusCode::SERVICE_UNAVAILABLE, "orders cannot be shown now: try again".to_owned())
    })?;
    let (customer, amount, invoiced) = row.ok_or_else(not_found)?;
    Ok(Json(Shown { order: Order { id, customer, amount }, invoiced }))
}

impl Order {
    /// What is wrong with it, for the client.
    fn fault(&self) -> Option<String> {
        if !is_id(&self.id) {
            return Some("`id` must have 1 to 64 characters: letters of ASCII, digits, `-` and `_`".to_owned());
        }
        let length = self.customer.chars().count();
        if !(1..=200).contains(&length) || self.customer.chars().any(char::is_control) {
            return Some("`customer` must have 1 to 200 characters, and none may be a control character".to_owned());
        }
        if !self.amount.is_finite() || self.amount < 0.0 {
            return Some(format!("`amount` must be a number from 0 on, and {} is not", self.amount));
        }
        None
    }
}

fn is_id(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    (1..=64).contains(&text.len()) && text.chars().all(allowed)
}
