//! The command line. By hand, as a parser would take longer to compile than the rest of the example.

use std::ffi::OsString;
use std::path::PathBuf;

pub(crate) const HELP: &str = "Orders in, invoices out, none lost and none twice

Usage: quickstart [--input FILE] [--db FILE]

  --input FILE  Orders, one JSON object a line, such as {\"id\":\"A-1\",\"customer\":\"Ada\",\"amount\":12.5};
                `-` is standard input [default: the 1,000 orders that come with the example]
  --db FILE     The SQLite file for orders, invoices and messages; a temporary one if left out
  --help        This";

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Arguments {
    pub(crate) input: PathBuf,
    pub(crate) db: Option<PathBuf>,
}

impl Arguments {
    /// Reads them; nothing if help is asked for.
    pub(crate) fn parse(given: impl IntoIterator<Item = OsString>) -> Result<Option<Self>, String> {
        let mut arguments = Self { input: concat!(env!("CARGO_MANIFEST_DIR"), "/orders.jsonl").into(), db: None };
        let mut given = given.into_iter();
        while let Some(option) = given.next() {
            let mut value = || given.next().map(PathBuf::from).ok_or(format!("{} needs a file", option.display()));
            match option.to_str() {
                Some("--input") => arguments.input = value()?,
                Some("--db") => arguments.db = Some(value()?),
                Some("--help" | "-h") => return Ok(None),
                _ => return Err(format!("there is no option {}; --help names those that there are", option.display())),
            }
        }
        Ok(Some(arguments))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(given: &[&str]) -> Result<Option<Arguments>, String> {
        Arguments::parse(given.iter().map(OsString::from))
    }

    #[test]
    fn options_are_read_in_any_order_and_what_is_wrong_is_named() {
        let shop = Arguments { input: "-".into(), db: Some("shop.db".into()) };
        assert_eq!(parse(&["--db", "shop.db", "--input", "-"]), Ok(Some(shop)));
        assert!(parse(&[]).unwrap().unwrap().input.ends_with("orders.jsonl"));
        assert_eq!(parse(&["--db", "shop.db", "--help"]), Ok(None));
        assert!(parse(&["--db"]).unwrap_err().contains("--db needs a file"));
        assert!(parse(&["--dab", "shop.db"]).unwrap_err().contains("--dab"));
    }
}
