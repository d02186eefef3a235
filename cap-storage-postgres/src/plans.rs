//! How the server carries the statements out, whatever its statistics say.

use cap_testkit::server::Server;
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};

use crate::schema;
use crate::sql::{Sql, Statement};

const SERVER: Server = Server {
    variable: "CAP_TEST_POSTGRES_URL",
    name: "postgres",
    hint: "set it to a server of yours, for a role that may create schemas: postgres://user:password@localhost/database",
};

const NODE: &str = "'00000000-0000-0000-0000-000000000001'";

async fn run(connection: &mut PgConnection, sql: impl Into<String>) {
    sqlx::raw_sql(AssertSqlSafe(sql.into())).execute(connection).await.unwrap();
}

/// The plan of a prepared statement, as the `plan_cache_mode` says.
async fn plan(connection: &mut PgConnection, statement: &Statement, parameters: &[&str]) -> String {
    run(connection, format!("PREPARE explained AS {}", statement.text())).await;
    let given = if parameters.is_empty() { String::new() } else { format!("({})", parameters.join(", ")) };
    let explain = format!("EXPLAIN (COSTS OFF) EXECUTE explained {given}");
    let steps = sqlx::raw_sql(AssertSqlSafe(explain)).fetch_all(&mut *connection).await.unwrap();
    run(connection, "DEALLOCATE explained").await;
    steps.iter().map(|step| step.get::<&str, _>(0).to_owned()).collect::<Vec<_>>().join("\n")
}

/// Rows `from` to `to` of both tables: one in a hundred is in flight, and as many of the others wait as `waiting` says.
async fn fill(connection: &mut PgConnection, sql: &Sql, from: u32, to: u32, waiting: &str) {
    for (table, column, value) in [(&sql.names.published, "", ""), (&sql.names.received, "\"Group\", ", "'g', ")] {
        let insert = format!(
            r#"INSERT INTO {table} ("Version", "Name", {column}"Content", "Retries", "Added", "StatusName", "MessageId",
                                    "DueAt", "Owner", "ExpiresAt")
               SELECT 'v1', 'a', {value}repeat('x', 200), 1, now(),
                      CASE WHEN held THEN 'Queued' WHEN waits THEN 'Scheduled' ELSE 'Succeeded' END, 'm' || n,
                      CASE WHEN waits AND NOT held THEN now() + (random() - 0.9) * interval '1 day' END,
                      CASE WHEN held THEN uuid {NODE} END,
                      CASE WHEN NOT waits AND NOT held THEN now() + (random() - 0.9) * interval '1 day' END
               FROM (SELECT n, n % 100 = 0 AS held, {waiting} AS waits FROM generate_series({from}, {to}) AS n) AS rows"#
        );
        run(connection, insert).await;
    }
}

#[tokio::test]
async fn what_runs_often_uses_its_index_whatever_the_statistics_say() {
    let options: PgConnectOptions = SERVER.url().parse().unwrap();
    let mut connection = PgConnection::connect_with(&options).await.unwrap();
    // A schema of its own that is never committed.
    let sql = Sql::new("cap plans");
    let mut tx = connection.begin().await.unwrap();
    schema::apply(&mut tx, &sql).await.unwrap();
    run(&mut tx, "SET LOCAL jit = off").await;

    // A prepared statement comes to the generic plan; each connection's first five are made for their parameters.
    let modes = ["force_generic_plan", "force_custom_plan"];
    let all = ["none", "of empty tables", "of a time when nothing waited", "of much smaller tables", "as it is"];
    for statistics in all {
        match statistics {
            "none" => fill(&mut tx, &sql, 1, 60_000, "true").await,
            "of empty tables" => {
                run(&mut tx, format!("TRUNCATE {}, {}", sql.names.published, sql.names.received)).await;
                run(&mut tx, "ANALYZE").await;
                fill(&mut tx, &sql, 1, 20_000, "false").await;
            }
            "of a time when nothing waited" => {
                run(&mut tx, "ANALYZE").await;
                fill(&mut tx, &sql, 20_001, 40_000, "true").await;
            }
            "of much smaller tables" => {
                run(&mut tx, "ANALYZE").await;
                fill(&mut tx, &sql, 40_001, 140_000, "n % 2 = 1").await;
            }
            _ => run(&mut tx, "ANALYZE").await,
        }
        for mode in modes {
            run(&mut tx, format!("SET LOCAL plan_cache_mode = {mode}")).await;
            look(&mut tx, &sql, &format!("statistics {statistics}, {mode}")).await;
        }
    }
    tx.rollback().await.unwrap();
}

async fn look(connection: &mut PgConnection, sql: &Sql, situation: &str) {
    for (name, table) in [("published", &sql.published), ("received", &sql.received)] {
        let mut uses = async |statement: &Statement, parameters: &[&str], steps: &[String]| {
            let plan = plan(connection, statement, parameters).await;
            let said = || format!("{situation}: {}\n{plan}", statement.text());
            assert!(!plan.contains(&format!("Seq Scan on {name}")), "it scans, {}", said());
            assert!(!plan.contains(&format!("Sort Key: {name}")), "it sorts what it has not counted, {}", said());
            for step in steps {
                assert!(plan.contains(step), "{step} is missing, {}", said());
            }
        };
        // In the order of the index, without sorting: however many there are, it reads no more than its limit.
        let in_order = |index: &str| format!("Index Scan using {name}_{index} on");
        let by = |index: &str| format!("{name}_{index}");
        let claim =
            |except: &'static str, floor: &'static str| [NODE, NODE, "'v1'", "500", "1000000", except, floor, "'g'"];
        for (except, floor) in [("'{}'", "NULL"), ("'{b, c}'", "NULL"), ("'{}'", "1700000000000000")] {
            let claim = &claim(except, floor)[..if name == "published" { 7 } else { 8 }];
            // The scan begins at the floor.
            let from_floor = "(\"DueAt\" >= ".to_owned();
            uses(&table.claim, claim, &[in_order("due"), by("pkey"), from_floor.clone()]).await;
            if name == "received" {
                uses(&table.claim_suspects, claim, &[in_order("suspects"), by("pkey"), from_floor]).await;
            }
        }
        uses(&table.known, &["'{m1, m2}'", "'{g, g}'"], &[by("message")]).await;
        uses(&table.collect, &["100"], &[in_order("expired"), by("pkey")]).await;
        uses(&table.list, &["0", "10", "NULL", "NULL", "NULL", "NULL"], &[by("pkey")]).await;
        uses(&table.find, &["0", "10", "NULL", "NULL", "NULL", "NULL", "'m'"], &[by("message")]).await;
        uses(&table.release, &[NODE, NODE], &[by("owner")]).await;
        uses(&table.give_back, &[NODE], &[by("owner")]).await;
        uses(&table.take_over, &[], &[in_order("owner").replace("Scan", "Only Scan"), by("pkey")]).await;
        let kinds = ["'{1}'", "'{1}'", "'{}'", "'{}'", "'{}'", "'{}'", "'{}'", "'{}'", "'{}'", "'{}'", "'20'"];
        uses(&table.settle, &kinds, &[by("pkey")]).await;
        uses(&table.settle_unlocked, &kinds[..10], &[by("pkey")]).await;
        uses(&table.held, &["'{1}'"], &[by("pkey")]).await;
        let alike = ["'{1}'", "'{}'", "'Succeeded'", "1", "NULL", "NULL", "NULL", "NULL", "0", "'20'"];
        uses(&table.settle_alike, &alike, &[by("pkey"), "hashed SubPlan".into()]).await;
        uses(&table.delete, &["'{1}'"], &[by("pkey")]).await;
    }
    let plan = plan(connection, &sql.next_due, &["'v1'", "'{NULL, g, g}'", "'{f, f, t}'", "'{NULL, NULL, 1}'"]).await;
    for index in ["published_due", "received_due", "received_suspects"] {
        assert!(plan.contains(index), "{plan}");
    }
    assert!(!plan.contains("Seq Scan"), "{plan}");
    assert!(!plan.contains("Sort Key: published") && !plan.contains("Sort Key: received"), "{plan}");
}
