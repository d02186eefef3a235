//! What the tests share: a database, a place on the broker and processes that are theirs alone.

mod process;
mod proxy;

pub(crate) use process::Process;
pub(crate) use proxy::Proxy;

use std::str::FromStr as _;
use std::time::{Duration, Instant};

use cap::MessageId;
use lapin::options::{ExchangeDeleteOptions, QueueDeleteOptions};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, PgConnection};
use tokio::runtime::Runtime;

/// How long anything may take. What a killed process held is taken over after 15 s.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// Looks until something holds.
pub(crate) fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}: it never came to that");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

/// A server's URL. These tests are never skipped.
fn server(variable: &str, name: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| {
        panic!(
            "this test needs {name} and {variable} is not set. Start one and say where it is:\n    \
             scripts/backends up postgres rabbitmq\n    eval \"$(scripts/backends env)\""
        )
    })
}

/// One test's database, and its place on the broker: the version in the names of its exchange and its queue.
pub(crate) struct World {
    pub(crate) runtime: Runtime,
    pub(crate) version: String,
    pub(crate) broker: String,
    pub(crate) database: String,
    name: String,
}

impl World {
    pub(crate) fn new() -> Self {
        let broker = server("CAP_TEST_RABBITMQ_URL", "RabbitMQ");
        let server = PgConnectOptions::from_str(&server("CAP_TEST_POSTGRES_URL", "PostgreSQL")).expect("a URL");
        // As long as a version may be. What is left out changes once in 18 hours.
        let version = MessageId::generate().as_str()[4..].to_owned();
        let name = format!("orders_test_{version}");
        let database = server.database(&name).to_url_lossy().to_string();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("one");
        let world = Self { runtime, version, broker, database, name };
        world.on_server(format!("CREATE DATABASE {}", world.name));
        world
    }

    pub(crate) fn api(&self) -> Api {
        self.api_by(&self.broker)
    }

    /// An API that reaches the broker at this URL, when it takes orders.
    pub(crate) fn api_by(&self, broker: &str) -> Api {
        let process = Process::start(&["api", "--listen", "127.0.0.1:0"], &self.database, broker, &self.version);
        let line = process.wait_for("taking orders");
        let (_, address) = line.rsplit_once("address=").expect("an address");
        Api { orders: format!("http://{address}/orders"), process }
    }

    pub(crate) fn billing(&self) -> Process {
        self.billing_by(&self.broker)
    }

    /// A billing that reaches the broker at this URL, when it consumes.
    pub(crate) fn billing_by(&self, broker: &str) -> Process {
        let process = Process::start(&["billing"], &self.database, broker, &self.version);
        process.wait_for("writing invoices");
        process
    }

    /// The one number that a query answers.
    pub(crate) fn number(&self, sql: &'static str) -> i64 {
        self.runtime.block_on(async {
            let mut connection = PgConnection::connect(&self.database).await.expect("a connection");
            let number = sqlx::query_scalar(sql).fetch_one(&mut connection).await.expect("a number");
            connection.close().await.expect("closed");
            number
        })
    }

    /// The ids of all orders.
    pub(crate) fn orders(&self) -> Vec<String> {
        self.runtime.block_on(async {
            let mut connection = PgConnection::connect(&self.database).await.expect("a connection");
            sqlx::query_scalar("SELECT id FROM shop.orders ORDER BY id COLLATE \"C\"")
                .fetch_all(&mut connection)
                .await
                .expect("orders")
        })
    }

    /// Waits until there are as many invoices as orders, or more.
    pub(crate) fn wait_for_invoices(&self) {
        wait_until("an invoice for each order", || {
            self.number("SELECT (SELECT count(*) FROM shop.orders) - (SELECT count(*) FROM shop.invoices)") <= 0
        });
    }

    pub(crate) fn assert_one_invoice_each(&self) {
        let not_once = self.number(
            "SELECT count(*) FROM shop.orders WHERE (SELECT count(*) FROM shop.invoices WHERE order_id = orders.id
                                                AND invoices.amount = orders.amount) <> 1",
        );
        let invented =
            self.number("SELECT count(*) FROM shop.invoices WHERE order_id NOT IN (SELECT id FROM shop.orders)");
        assert_eq!((not_once, invented), (0, 0), "orders without exactly one invoice, and invoices without order");
    }

    fn on_server(&self, sql: String) {
        let server = PgConnectOptions::from_str(&server("CAP_TEST_POSTGRES_URL", "PostgreSQL")).expect("a URL");
        self.runtime.block_on(async {
            let connecting = PgConnection::connect_with(&server).await;
            let mut connection =
                connecting.unwrap_or_else(|error| panic!("is the server of CAP_TEST_POSTGRES_URL up? {error}"));
            sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await.expect("done");
        });
    }

    async fn clean_broker(&self) -> lapin::Result<()> {
        let connection = lapin::Connection::connect(&self.broker, lapin::ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        let (queue, exchange) = (format!("billing.{}", self.version), format!("cap.default.router.{}", self.version));
        channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await?;
        channel.exchange_delete(exchange.into(), ExchangeDeleteOptions::default()).await
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Err(error) = self.runtime.block_on(self.clean_broker()) {
            println!("the broker was not cleaned: {error}");
        }
        if !std::thread::panicking() {
            self.on_server(format!("DROP DATABASE {} WITH (FORCE)", self.name));
        }
    }
}

/// A running API.
pub(crate) struct Api {
    pub(crate) process: Process,
    orders: String,
}

impl Api {
    /// Posts `{"id":…,"customer":"Ada","amount":12.5}`; answers the status.
    pub(crate) fn order(&self, id: &str) -> u16 {
        self.post(&format!(r#"{{"id":"{id}","customer":"Ada","amount":12.5}}"#)).0
    }

    /// Posts a body; answers the status and the text.
    pub(crate) fn post(&self, body: &str) -> (u16, String) {
        answer(agent().post(&self.orders).header("content-type", "application/json").send(body))
    }

    /// Gets an order; answers the status and the text.
    pub(crate) fn get(&self, id: &str) -> (u16, String) {
        answer(agent().get(format!("{}/{id}", self.orders)).call())
    }
}

fn agent() -> ureq::Agent {
    ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(PATIENCE)).build().into()
}

fn answer(response: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> (u16, String) {
    let mut response = response.expect("an answer");
    let text = response.body_mut().read_to_string().expect("text");
    (response.status().as_u16(), text)
}
