//! PostgreSQL: a database of its own for each round, on the server that `CAP_TEST_POSTGRES_URL` names.

use std::time::Duration;

use cap_core::HandlerError;
use cap_core::storage::Storage as _;
use cap_engine::{Cap, Context, Json, Publish, Subscribe, Tx};
use cap_storage_postgres::PostgresStorage;
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, PgConnection, Row as _};

use crate::backend::{Business, Client, Database, Deed, End, Fallible, unique};
use crate::crash::recorder::Recorder;
use crate::crash::roles::mishap;
use crate::crash::trouble::called_in_billing;
use crate::database::{BUSINESS, NOTE, now_micros};
use crate::twin::postgres::PostgresHand;

/// Names the server; its role must be allowed to create databases.
pub(crate) const URL: &str = "CAP_TEST_POSTGRES_URL";

/// One database.
#[derive(Clone)]
pub(crate) struct Postgres {
    url: String,
    /// Whether the application's statements have names: not in the processes of a crash run, where a pooler may give
    /// their sessions away.
    has_names: bool,
}

fn server() -> Fallible<String> {
    std::env::var(URL).map_err(|_| format!("{URL} is not set: eval \"$(scripts/backends env)\"").into())
}

/// The same server, another database.
pub(crate) fn with_database(url: &str, name: &str) -> Fallible<String> {
    let (scheme, rest) = url.split_once("://").ok_or("it is no URL")?;
    let (authority, old) = rest.split_once('/').unwrap_or((rest, ""));
    let parameters = old.split_once('?').map_or(String::new(), |(_, parameters)| format!("?{parameters}"));
    Ok(format!("{scheme}://{authority}/{name}{parameters}"))
}

/// The same place, for a role whose password is its name.
pub(crate) fn as_role(url: &str, role: &str) -> Fallible<String> {
    let (scheme, rest) = url.split_once("://").ok_or("it is no URL")?;
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    Ok(format!("{scheme}://{role}:{role}@{host}{path}"))
}

/// All that `fresh` makes belongs to the application, which migrates it itself; sequences go with their tables.
const GIVE: &str = "
DO $$ DECLARE it regclass; BEGIN
    FOR it IN SELECT oid FROM pg_class WHERE relkind IN ('r', 'p')
        AND relnamespace IN ('public'::regnamespace, 'cap'::regnamespace)
    LOOP EXECUTE format('ALTER TABLE %s OWNER TO {role}', it); END LOOP;
END $$;
ALTER SCHEMA cap OWNER TO {role}";

pub(crate) async fn open(url: &str) -> Fallible<PgConnection> {
    let options: sqlx::postgres::PgConnectOptions = url.parse()?;
    Ok(options.disable_statement_logging().connect().await?)
}

impl Postgres {
    fn name(&self) -> &str {
        let path = self.url.rsplit_once('/').map_or("", |(_, path)| path);
        path.split('?').next().unwrap_or_default()
    }

    /// The application's.
    fn role(&self) -> String {
        format!("{}_app", self.name())
    }

    async fn run(&self, statements: &[String]) -> Fallible {
        let mut connection = open(&self.url).await?;
        for statement in statements {
            sqlx::raw_sql(AssertSqlSafe(statement.clone())).execute(&mut connection).await?;
        }
        Ok(())
    }
}

impl Database for Postgres {
    type Storage = PostgresStorage;
    type Client = PostgresClient;
    type Hand = PostgresHand;

    async fn fresh() -> Fallible<Self> {
        let name = format!("cap_bench_{}", unique());
        let mut server_connection = open(&server()?).await?;
        sqlx::query(AssertSqlSafe(format!("CREATE DATABASE {name}"))).execute(&mut server_connection).await?;
        // What the round before left to be written is not this round's work.
        let _ = sqlx::query("CHECKPOINT").execute(&mut server_connection).await;
        let database = Self { url: with_database(&server()?, &name)?, has_names: true };
        let mut connection = open(&database.url).await?;
        for table in BUSINESS {
            sqlx::query(table).execute(&mut connection).await?;
        }
        database.storage().await?.prepare().await?;
        Ok(database)
    }

    fn at(place: &str) -> Fallible<Self> {
        Ok(Self { url: place.to_owned(), has_names: false })
    }

    fn place(&self) -> Option<String> {
        Some(self.url.clone())
    }

    async fn storage(&self) -> Fallible<PostgresStorage> {
        Ok(PostgresStorage::connect(&self.url).await?)
    }

    async fn client(&self) -> Fallible<PostgresClient> {
        Ok(PostgresClient { connection: open(&self.url).await?, has_names: self.has_names })
    }

    async fn hand(&self) -> Fallible<PostgresHand> {
        Ok(PostgresHand(open(&self.url).await?))
    }

    async fn another(&self, _: &PostgresHand) -> Fallible<PostgresHand> {
        self.hand().await
    }

    fn billing(&self, _: &PostgresStorage, topic: &str, recorder: Recorder) -> Subscribe {
        Subscribe::to(topic, move |Json(number): Json<i64>, context: Context, mut tx: Tx<PostgresStorage>| {
            let recorder = recorder.clone();
            async move {
                called_in_billing(&recorder, number, &context)?;
                sqlx::query("INSERT INTO invoices (number, made_at) VALUES ($1, $2)")
                    .persistent(false)
                    .bind(number)
                    .bind(now_micros())
                    .execute(&mut **tx)
                    .await?;
                mishap()
            }
        })
    }

    fn locking(&self, _: &PostgresStorage, topic: &str, recorder: Recorder, hold: Duration) -> Subscribe {
        Subscribe::to(topic, move |Json(number): Json<i64>, context: Context, mut tx: Tx<PostgresStorage>| {
            let recorder = recorder.clone();
            async move {
                called_in_billing(&recorder, number, &context)?;
                sqlx::query("UPDATE locks SET holder = $1 WHERE id = 1")
                    .persistent(false)
                    .bind(number)
                    .execute(&mut **tx)
                    .await?;
                tokio::time::sleep(hold).await;
                sqlx::query("INSERT INTO invoices (number, made_at) VALUES ($1, $2)")
                    .persistent(false)
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
        sqlx::query("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ").execute(&mut *tx).await?;
        let orders = sqlx::query("SELECT number FROM orders").fetch_all(&mut *tx).await?;
        let invoices = sqlx::query("SELECT number, made_at FROM invoices").fetch_all(&mut *tx).await?;
        Ok(Business {
            orders: orders.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?,
            invoices: invoices.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect::<Fallible<_>>()?,
        })
    }

    async fn transactions(&self) -> Fallible<Option<u64>> {
        let mut connection = open(&server()?).await?;
        let counted = sqlx::query("SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = $1")
            .bind(self.name())
            .fetch_one(&mut connection)
            .await?;
        Ok(Some(u64::try_from(counted.try_get::<i64, _>(0)?)?))
    }

    async fn application(&self) -> Fallible<Option<String>> {
        let role = self.role();
        let statements = [
            format!("CREATE ROLE {role} LOGIN PASSWORD '{role}'"),
            format!("ALTER DATABASE {} OWNER TO {role}", self.name()),
            GIVE.replace("{role}", &role),
        ];
        self.run(&statements).await?;
        as_role(&self.url, &role).map(Some)
    }

    const POOLER: Option<&'static str> = Some("CAP_TEST_PGBOUNCER_URL");

    const STANDBY: Option<&'static str> = Some("CAP_TEST_POSTGRES_STANDBY_URL");

    const DEEDS: &'static [Deed] = &[Deed::Revoke];

    async fn operate(&self, deed: Deed, is_done: bool) -> Fallible {
        let statement = match (deed, is_done) {
            (Deed::Revoke, true) => format!("REVOKE INSERT ON cap.received FROM {}", self.role()),
            (Deed::Revoke, false) => format!("GRANT INSERT ON cap.received TO {}", self.role()),
            // What it has are defaults, which each transaction overrules.
            (Deed::ReadOnly, _) => return Err("a server of PostgreSQL that is no standby takes writes".into()),
        };
        self.run(&[statement]).await
    }

    async fn discard(self) -> Fallible {
        let mut connection = open(&server()?).await?;
        let database = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name());
        for statement in [database, format!("DROP ROLE IF EXISTS {}", self.role())] {
            sqlx::query(AssertSqlSafe(statement)).execute(&mut connection).await?;
        }
        Ok(())
    }
}

/// An application's connection.
pub(crate) struct PostgresClient {
    connection: PgConnection,
    has_names: bool,
}

impl Client<PostgresStorage> for PostgresClient {
    async fn place(&mut self, cap: &Cap<PostgresStorage>, number: i64, message: Publish, end: End) -> Fallible {
        let mut tx = self.connection.begin().await?;
        sqlx::query("INSERT INTO orders (number, note) VALUES ($1, $2)")
            .persistent(self.has_names)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_place_is_another_roles() {
        assert_eq!(as_role("postgres://u:p@h:1/b?x=1", "app").unwrap(), "postgres://app:app@h:1/b?x=1");
        assert_eq!(as_role("mysql://h", "app").unwrap(), "mysql://app:app@h");
    }

    #[test]
    fn another_database_of_the_same_server_is_named() {
        assert_eq!(with_database("postgres://u:p@h:1/cap?x=1", "b").unwrap(), "postgres://u:p@h:1/b?x=1");
        assert_eq!(with_database("postgres://h", "b").unwrap(), "postgres://h/b");
        assert_eq!(Postgres::at("postgres://u:p@h:1/cap?x=1").unwrap().name(), "cap");
    }
}
