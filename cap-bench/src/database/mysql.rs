//! MySQL or MariaDB: a database of its own for each round, on the server that `CAP_TEST_MYSQL_URL` names.

use std::time::Duration;

use cap_core::HandlerError;
use cap_core::storage::Storage as _;
use cap_engine::{Cap, Context, Json, Publish, Subscribe, Tx};
use cap_storage_mysql::MySqlStorage;
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, MySqlConnection, Row as _};

use crate::backend::{Business, Client, Database, Deed, End, Fallible, unique};
use crate::crash::recorder::Recorder;
use crate::crash::roles::mishap;
use crate::crash::trouble::called_in_billing;
use crate::database::postgres::{as_role, with_database};
use crate::database::{BUSINESS, NOTE, now_micros};
use crate::twin::mysql::MySqlHand;

/// Names the server; its user must be allowed to create databases.
pub(crate) const URL: &str = "CAP_TEST_MYSQL_URL";

/// One database.
#[derive(Clone)]
pub(crate) struct MySql {
    url: String,
}

fn server() -> Fallible<String> {
    std::env::var(URL).map_err(|_| format!("{URL} is not set: eval \"$(scripts/backends env)\"").into())
}

/// On the whole database; to insert it may into each table, since only that right can be taken back for one table.
const RIGHTS: &str = "SELECT, UPDATE, DELETE, CREATE, DROP, ALTER, INDEX, REFERENCES";

pub(crate) async fn open(url: &str) -> Fallible<MySqlConnection> {
    let options: sqlx::mysql::MySqlConnectOptions = url.parse()?;
    Ok(options.disable_statement_logging().connect().await?)
}

impl MySql {
    fn name(&self) -> &str {
        let path = self.url.rsplit_once('/').map_or("", |(_, path)| path);
        path.split('?').next().unwrap_or_default()
    }

    /// The application's.
    fn user(&self) -> String {
        format!("{}_app", self.name())
    }

    async fn tables(&self) -> Fallible<Vec<String>> {
        let tables = sqlx::raw_sql("SHOW TABLES").fetch_all(&mut open(&self.url).await?).await?;
        Ok(tables.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?)
    }

    async fn run(&self, statements: &[String]) -> Fallible {
        let mut connection = open(&self.url).await?;
        for statement in statements {
            sqlx::raw_sql(AssertSqlSafe(statement.clone())).execute(&mut connection).await?;
        }
        Ok(())
    }
}

impl Database for MySql {
    type Storage = MySqlStorage;
    type Client = MySqlClient;
    type Hand = MySqlHand;

    async fn fresh() -> Fallible<Self> {
        let name = format!("cap_bench_{}", unique());
        let mut server_connection = open(&server()?).await?;
        sqlx::query(AssertSqlSafe(format!("CREATE DATABASE {name}"))).execute(&mut server_connection).await?;
        let database = Self { url: with_database(&server()?, &name)? };
        let mut connection = open(&database.url).await?;
        for table in BUSINESS {
            sqlx::query(table).execute(&mut connection).await?;
        }
        database.storage().await?.prepare().await?;
        Ok(database)
    }

    fn at(place: &str) -> Fallible<Self> {
        Ok(Self { url: place.to_owned() })
    }

    fn place(&self) -> Option<String> {
        Some(self.url.clone())
    }

    async fn storage(&self) -> Fallible<MySqlStorage> {
        Ok(MySqlStorage::connect(&self.url).await?)
    }

    async fn client(&self) -> Fallible<MySqlClient> {
        Ok(MySqlClient(open(&self.url).await?))
    }

    async fn hand(&self) -> Fallible<MySqlHand> {
        Ok(MySqlHand(open(&self.url).await?))
    }

    async fn another(&self, _: &MySqlHand) -> Fallible<MySqlHand> {
        self.hand().await
    }

    fn billing(&self, _: &MySqlStorage, topic: &str, recorder: Recorder) -> Subscribe {
        Subscribe::to(topic, move |Json(number): Json<i64>, context: Context, mut tx: Tx<MySqlStorage>| {
            let recorder = recorder.clone();
            async move {
                called_in_billing(&recorder, number, &context)?;
                sqlx::query("INSERT INTO invoices (number, made_at) VALUES (?, ?)")
                    .bind(number)
                    .bind(now_micros())
                    .execute(&mut **tx)
                    .await?;
                mishap()
            }
        })
    }

    fn locking(&self, _: &MySqlStorage, topic: &str, recorder: Recorder, hold: Duration) -> Subscribe {
        Subscribe::to(topic, move |Json(number): Json<i64>, context: Context, mut tx: Tx<MySqlStorage>| {
            let recorder = recorder.clone();
            async move {
                called_in_billing(&recorder, number, &context)?;
                sqlx::query("UPDATE locks SET holder = ? WHERE id = 1").bind(number).execute(&mut **tx).await?;
                tokio::time::sleep(hold).await;
                sqlx::query("INSERT INTO invoices (number, made_at) VALUES (?, ?)")
                    .bind(number)
                    .bind(now_micros())
                    .execute(&mut **tx)
                    .await?;
                Ok::<(), HandlerError>(())
            }
        })
    }

    async fn business(&self) -> Fallible<Business> {
        let mut connection = open(&self.url).await?;
        let mut tx = connection.begin().await?;
        // At the level that is the server's default, both see the same moment.
        let orders = sqlx::query("SELECT number FROM orders").fetch_all(&mut *tx).await?;
        let invoices = sqlx::query("SELECT number, made_at FROM invoices").fetch_all(&mut *tx).await?;
        Ok(Business {
            orders: orders.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?,
            invoices: invoices.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect::<Fallible<_>>()?,
        })
    }

    async fn transactions(&self) -> Fallible<Option<u64>> {
        let mut connection = open(&server()?).await?;
        // They are the whole server's, which is nobody else's while this runs.
        let counted = sqlx::raw_sql("SHOW GLOBAL STATUS WHERE Variable_name IN ('Com_commit', 'Com_rollback')");
        let mut transactions = 0;
        for row in counted.fetch_all(&mut connection).await? {
            transactions += row.try_get::<String, _>(1)?.parse::<u64>()?;
        }
        Ok(Some(transactions))
    }

    async fn application(&self) -> Fallible<Option<String>> {
        let (user, database) = (self.user(), self.name());
        let mut statements = vec![
            format!("CREATE USER {user}@'%' IDENTIFIED BY '{user}'"),
            format!("GRANT {RIGHTS} ON {database}.* TO {user}@'%'"),
        ];
        let of_table = |table| format!("GRANT INSERT ON {database}.`{table}` TO {user}@'%'");
        statements.extend(self.tables().await?.into_iter().map(of_table));
        self.run(&statements).await?;
        as_role(&self.url, &user).map(Some)
    }

    const STANDBY: Option<&'static str> = Some("CAP_TEST_MYSQL_STANDBY_URL");

    const DEEDS: &'static [Deed] = &[Deed::Revoke, Deed::ReadOnly];

    async fn operate(&self, deed: Deed, is_done: bool) -> Fallible {
        let statement = match (deed, is_done) {
            (Deed::Revoke, true) => format!("REVOKE INSERT ON `cap.received` FROM {}@'%'", self.user()),
            (Deed::Revoke, false) => format!("GRANT INSERT ON `cap.received` TO {}@'%'", self.user()),
            // The application's user lacks the right to write all the same.
            (Deed::ReadOnly, is_done) => format!("SET GLOBAL read_only = {}", u8::from(is_done)),
        };
        self.run(&[statement]).await
    }

    async fn discard(self) -> Fallible {
        let mut connection = open(&server()?).await?;
        let database = format!("DROP DATABASE IF EXISTS {}", self.name());
        for statement in [database, format!("DROP USER IF EXISTS {}@'%'", self.user())] {
            sqlx::query(AssertSqlSafe(statement)).execute(&mut connection).await?;
        }
        Ok(())
    }
}

/// An application's connection.
pub(crate) struct MySqlClient(MySqlConnection);

impl Client<MySqlStorage> for MySqlClient {
    async fn place(&mut self, cap: &Cap<MySqlStorage>, number: i64, message: Publish, end: End) -> Fallible {
        let mut tx = self.0.begin().await?;
        sqlx::query("INSERT INTO orders (number, note) VALUES (?, ?)")
            .bind(number)
            .bind(NOTE)
            .execute(&mut *tx)
            .await?;
        cap.publish_many_in(&mut tx, [message]).await?;
        match end {
            End::Commit => tx.commit().await?,
            End::RollBack => tx.rollback().await?,
        }
        Ok(())
    }
}
