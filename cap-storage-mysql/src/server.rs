//! Which server it is: MySQL and MariaDB count their versions apart.

use cap_core::ErrorKind;
use cap_storage_sqlx::{Fallible, Fault};
use sqlx::MySqlConnection;

use crate::row;
use crate::script::Script;
use crate::sql;

/// The oldest that know `SKIP LOCKED`, and all else that is used.
const OLDEST_MYSQL: (u32, u32) = (8, 0);
const OLDEST_MARIADB: (u32, u32) = (10, 6);

/// Refuses a server that is too old; answers how much it takes at once, in bytes.
pub(crate) async fn ask(connection: &mut MySqlConnection) -> Fallible<u64> {
    let answers = Script::default().plain(sql::SERVER).run(connection).await?;
    let Some(row) = answers.first().and_then(|answer| answer.rows.first()) else { return Err(row::out_of_step()) };
    let version = row::octets(row, 0)?.map(String::from_utf8_lossy).unwrap_or_default();
    check(&version).map_err(|reason| Fault::said(ErrorKind::Rejected, reason))?;
    Ok(u64::try_from(row::integer(row, 1)?).unwrap_or(0))
}

/// `version` is what `VERSION()` answers: `8.0.36`, `10.11.6-MariaDB-log`.
fn check(version: &str) -> Result<(), String> {
    let needed = "MySQL 8.0 or MariaDB 10.6 is needed, or newer (for `SKIP LOCKED`)";
    if version.contains("TiDB") {
        return Err(format!("the server is {version}, which has no `SKIP LOCKED`: {needed}"));
    }
    let is_mariadb = version.to_ascii_lowercase().contains("mariadb");
    // MariaDB before 11 tells old replicas that it is 5.5.5, and some proxies tell everybody.
    let numbers = if is_mariadb { version.trim_start_matches("5.5.5-") } else { version };
    let mut numbers = numbers.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse::<u32>().unwrap_or(0));
    let found = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let (name, oldest) = if is_mariadb { ("MariaDB", OLDEST_MARIADB) } else { ("MySQL", OLDEST_MYSQL) };
    if found < oldest {
        return Err(format!("the server is {name} {version}, which is too old: {needed}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mysql_and_mariadb_are_told_apart_and_what_is_too_old_is_named() {
        for good in
            ["8.0.11", "8.4.3-3 (Percona)", "9.1.0", "10.6.0-MariaDB", "5.5.5-10.11.6-MariaDB-1:10", "11.4.2-MariaDB"]
        {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for (bad, named) in [
            ("5.7.44-log", "MySQL 5.7.44"),
            ("10.5.23-MariaDB", "MariaDB 10.5"),
            ("5.5.5-10.4.1-mariadb", "MariaDB"),
            ("8.0.11-TiDB-v7.5.0", "TiDB"),
            ("", "MySQL"),
        ] {
            let reason = check(bad).unwrap_err();
            assert!(reason.contains(named) && reason.contains("MariaDB 10.6"), "{reason}");
        }
    }
}
