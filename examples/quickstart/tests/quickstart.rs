//! The README's first command, as a stranger runs it: bad lines, standard input, and interruptions.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rusqlite::Connection;

const PATIENCE: Duration = Duration::from_secs(120);

fn quickstart(db: &Path, input: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_quickstart"));
    command.arg("--db").arg(db).arg("--input").arg(input).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn run_with(db: &Path, lines: &[u8]) -> Output {
    let mut child = quickstart(db, "-").stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(lines).unwrap();
    child.wait_with_output().unwrap()
}

fn closing_line(output: &Output) -> String {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    text.lines().last().unwrap().to_owned()
}

fn numbers(db: &Path, sql: &str) -> i64 {
    let connection = Connection::open(db).unwrap();
    connection.busy_timeout(Duration::from_secs(20)).unwrap();
    connection.query_row(sql, (), |row| row.get(0)).unwrap()
}

const ORDERS_WITHOUT_EXACTLY_ONE_INVOICE: &str =
    "SELECT count(*) FROM orders WHERE (SELECT count(*) FROM invoices WHERE order_id = orders.id) <> 1";
const INVOICES_WITHOUT_ORDER: &str = "SELECT count(*) FROM invoices WHERE order_id NOT IN (SELECT id FROM orders)";

fn order(number: usize) -> String {
    format!("{{\"id\":\"A-{number}\",\"customer\":\"Ada\",\"amount\":{number}.5}}\n")
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}: it never came to that");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

#[test]
fn the_shipped_orders_get_one_invoice_each() {
    let folder = tempfile::tempdir().unwrap();
    let db = folder.path().join("shop.db");
    let input = Path::new(env!("CARGO_MANIFEST_DIR")).join("orders.jsonl");
    let output = quickstart(&db, input.to_str().unwrap()).output().unwrap();
    assert_eq!(
        closing_line(&output),
        "orders committed: 1000, lines rejected: 0, messages handled: 1000, invoices: 1000, in flight: 0"
    );
    assert_eq!(numbers(&db, ORDERS_WITHOUT_EXACTLY_ONE_INVOICE), 0);
}

#[test]
fn bad_lines_are_named_leave_nothing_and_stop_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let db = folder.path().join("shop.db");
    let mut lines = Vec::new();
    lines.extend(order(1).bytes());
    for bad in [
        &b"not json"[..],
        br#"{"id":"B","customer":"Ada","amount":-1}"#,
        br#"{"id":"C","customer":"Ada"}"#,
        b"\xff\xfe",
    ] {
        lines.extend(bad);
        lines.push(b'\n');
    }
    lines.extend(order(1).bytes());
    lines.extend(order(2).trim_end().bytes());
    let output = run_with(&db, &lines);
    assert_eq!(
        closing_line(&output),
        "orders committed: 2, lines rejected: 5, messages handled: 2, invoices: 2, in flight: 0"
    );
    let errors = String::from_utf8(output.stderr).unwrap();
    for (line, part) in
        [(2, "no order"), (3, "negative"), (4, "amount"), (5, "no order"), (6, "\"A-1\" was seen before")]
    {
        let told = errors.lines().find(|error| error.starts_with(&format!("line {line}: ")));
        assert!(told.is_some_and(|error| error.contains(part)), "line {line}, {part}: {errors}");
    }
    assert_eq!(numbers(&db, r#"SELECT count(*) FROM "cap.published""#), 2);
    assert_eq!(numbers(&db, "SELECT count(*) FROM orders"), 2);
}

#[test]
fn a_missing_input_and_an_unusable_database_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let db = folder.path().join("shop.db");
    let output = quickstart(&db, "nowhere.jsonl").output().unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8(output.stderr).unwrap().contains("nowhere.jsonl"));
    let db = folder.path().join("missing/shop.db");
    let output = quickstart(&db, "-").stdin(Stdio::null()).output().unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8(output.stderr).unwrap().contains("missing/shop.db"));
}

/// Starts on endless input, interrupts by `stop` once some orders are there, and runs again.
fn interrupted(stop: impl FnOnce(&mut Child)) {
    let folder = tempfile::tempdir().unwrap();
    let db = folder.path().join("shop.db");
    let mut child = quickstart(&db, "-").stdin(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let feeding =
        std::thread::spawn(move || (1..).take_while(|n| input.write_all(order(*n).as_bytes()).is_ok()).count());
    let some_orders = || {
        let connection = Connection::open(&db).unwrap();
        let orders = connection.query_row("SELECT count(*) FROM orders", (), |row| row.get::<_, i64>(0));
        orders.is_ok_and(|orders| orders > 50)
    };
    wait_until("fifty orders", some_orders);
    stop(&mut child);
    feeding.join().unwrap();

    let output = run_with(&db, b"");
    assert!(closing_line(&output).ends_with("in flight: 0"), "{}", closing_line(&output));
    assert!(numbers(&db, "SELECT count(*) FROM orders") > 50);
    assert_eq!(numbers(&db, ORDERS_WITHOUT_EXACTLY_ONE_INVOICE), 0);
    assert_eq!(numbers(&db, INVOICES_WITHOUT_ORDER), 0);
}

#[test]
fn killed_and_run_again_it_finishes_what_was_left() {
    interrupted(|child| {
        child.kill().unwrap();
        child.wait().unwrap();
    });
}

#[test]
fn interrupted_from_the_keyboard_it_stops_by_itself_and_the_next_run_finishes() {
    interrupted(|child| {
        let told = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
        assert!(told.success());
        let mut output = String::new();
        std::io::Read::read_to_string(&mut child.stdout.take().unwrap(), &mut output).unwrap();
        assert!(child.wait().unwrap().success());
        assert!(output.starts_with("orders committed: "), "{output}");
    });
}
