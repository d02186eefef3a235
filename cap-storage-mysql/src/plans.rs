//! How the server carries the statements out, however small or large the tables are.

use cap_testkit::server::Server;
use sqlx::mysql::{MySqlConnectOptions, MySqlRow};
use sqlx::{AssertSqlSafe, Connection, MySqlConnection, Row};

use crate::schema;
use crate::script::{Script, bytes, text};
use crate::sql::{Sql, Statement, TERMS};

const SERVER: Server = Server {
    variable: "CAP_TEST_MYSQL_URL",
    name: "mariadb",
    hint: "set it to a server of yours, for a user who may create tables: mysql://user:password@localhost/database",
};

async fn run(connection: &mut MySqlConnection, sql: impl Into<String>) {
    sqlx::raw_sql(AssertSqlSafe(sql.into())).execute(connection).await.unwrap();
}

/// Rows `from` to `to` of both tables: one in ten is in flight, half of the others wait.
async fn fill(connection: &mut MySqlConnection, prefix: &str, from: u32, to: u32) {
    for (table, column, value) in [("published", "", ""), ("received", "`Group`, ", "'g', ")] {
        let row = |n: u32| {
            let state = match n % 10 {
                0 => "'Queued', NULL, REPEAT('o', 16), NULL",
                1..=4 => "'Succeeded', NULL, NULL, UTC_TIMESTAMP(6) - INTERVAL 1 DAY",
                _ => "'Scheduled', UTC_TIMESTAMP(6) - INTERVAL 1 DAY, NULL, NULL",
            };
            format!("('v1', 'a', {value}REPEAT('x', 200), 1, UTC_TIMESTAMP(6), 'm{n}', {state})")
        };
        let rows: Vec<String> = (from..to).map(row).collect();
        let insert = format!(
            "INSERT INTO `{prefix}.{table}` (Version, Name, {column}Content, Retries, Added, MessageId, StatusName, DueAt,
                                             Owner, ExpiresAt)
             VALUES {}",
            rows.join(",")
        );
        run(connection, insert).await;
    }
}

#[tokio::test]
async fn what_runs_often_uses_its_index_in_small_tables_and_in_large_ones() {
    let options: MySqlConnectOptions = SERVER.url().parse().unwrap();
    let mut connection = MySqlConnection::connect_with(&options).await.unwrap();
    let prefix = format!("plans {}", std::process::id());
    let sql = Sql::new(&prefix);
    schema::apply(&mut connection, &sql).await.unwrap();

    let node = bytes(&[b'o'; 16]);
    let values = [
        ("version", &*text(Some("v1"))),
        ("lane", &text(Some("g"))),
        ("suspects", "0"),
        ("suspect", "0"),
        ("crashes", "0"),
        ("and_no_topic_of", " AND `Name` NOT IN (_utf8mb4 x'62',_utf8mb4 x'63')"),
        ("share", "100000"),
        ("limit", "500"),
        ("node", &node),
        ("owners", &node),
        ("token", &node),
        ("id", "1"),
        ("ids", "1,2,3,4,5,6,7,8,9,10,11,12"),
        ("message_ids", "x'6d31',x'6d32',x'6d33'"),
        ("after", "0"),
        ("status", "NULL"),
        ("first", "1"),
        ("last", "9"),
        ("topic", "NULL"),
        ("group_asked", "NULL"),
        ("message_id", "x'6d31'"),
        ("attempts", "1"),
        ("reason", "NULL"),
        ("due", "UTC_TIMESTAMP(6)"),
        ("expires", "NULL"),
        ("owner", "NULL"),
        ("claim", "NULL"),
    ];
    for size in ["a few rows", "many rows"] {
        match size {
            "a few rows" => fill(&mut connection, &prefix, 1, 20).await,
            _ => fill(&mut connection, &prefix, 20, 5_000).await,
        }
        run(&mut connection, format!("ANALYZE TABLE `{prefix}.published`, `{prefix}.received`")).await;
        for (name, table) in [("published", &sql.published), ("received", &sql.received)] {
            let of = |index: &str| format!("{name}_{index}");
            let statements: [(&Statement, String); 21] = [
                (&table.due, of("due")),
                (&table.known, of("message")),
                (&table.contents, "PRIMARY".into()),
                (&table.lock_free, "PRIMARY".into()),
                (&table.expired, of("expired")),
                (&table.all_stored, "PRIMARY".into()),
                (&table.stored, of("message")),
                (&table.find, of("message")),
                (&table.held_by_node, of("owner")),
                (&table.held_under_token, of("owner")),
                (&table.held_by_dead, of("owner")),
                (&table.hold, "PRIMARY".into()),
                (&table.held, "PRIMARY".into()),
                (&table.lock_held, "PRIMARY".into()),
                (&table.lock_held_at_once, "PRIMARY".into()),
                (&table.settle, "PRIMARY".into()),
                (&table.give_back, "PRIMARY".into()),
                (&table.lock_held_by, "PRIMARY".into()),
                (&table.collect, "PRIMARY".into()),
                (&table.requeue, "PRIMARY".into()),
                (&table.delete, "PRIMARY".into()),
            ];
            for (statement, index) in statements {
                let script = Script::default().then(statement, &values);
                let explain = format!("EXPLAIN {}", script.text().trim().trim_start_matches(TERMS[0]));
                let steps = sqlx::raw_sql(AssertSqlSafe(explain)).fetch_all(&mut connection).await.unwrap();
                let said = || format!("with {size}: {}", script.text());
                let column = |step: &MySqlRow, name: &str| step.get::<Option<String>, _>(name).unwrap_or_default();
                let (reads, others) = steps.split_last().unwrap();
                let is_derived = |step: &MySqlRow| column(step, "table").starts_with("<derived");
                assert!(others.iter().all(is_derived), "it reads more than once: {}", said());
                let step = |name: &str| column(reads, name);
                assert_eq!(step("key"), index, "{}", said());
                // Of the whole index nothing is read but what is looked for, and in its order. (A message has few records.)
                assert!(["range", "ref", "const"].contains(&&*step("type")), "{} {}", step("type"), said());
                let sorts = step("Extra").contains("filesort") || step("Extra").contains("temporary");
                assert!(!sorts || index == of("message"), "it sorts: {}, {}", step("Extra"), said());
            }
        }
    }
    for table in ["published", "received", "nodes", "chores", "schema"] {
        run(&mut connection, format!("DROP TABLE `{prefix}.{table}`")).await;
    }
}
