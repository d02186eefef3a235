//! All that the process logs, at any level, whoever writes it.

use std::io::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use cap_testkit::log::Log;
use tracing::Level;

/// The one log of the process.
pub(crate) struct All(Log);

impl All {
    pub(crate) fn begin() -> Self {
        let log = Log::default();
        let writing = tracing_subscriber::fmt().with_ansi(false).with_max_level(Level::TRACE);
        writing.with_writer(log.writer()).init();
        log::set_boxed_logger(Box::new(Self(log.clone()))).unwrap();
        log::set_max_level(log::LevelFilter::Trace);
        Self(log)
    }

    pub(crate) fn text(&self) -> String {
        self.0.text()
    }

    /// The beginnings of the lines that show the secret, in any of the forms in which it is easily read.
    pub(crate) fn leaks(&self, secret: &str) -> Vec<String> {
        let forms = forms(secret);
        let text = self.text();
        let leaks = text.lines().filter(|line| forms.iter().any(|form| line.contains(form)));
        leaks.map(|line| line.chars().take(300).collect()).collect()
    }
}

/// As text, as lists of bytes, in hexadecimal, and in base64 wherever it begins.
fn forms(secret: &str) -> Vec<String> {
    let bytes = secret.as_bytes();
    let join = |separator: &str, one: fn(&u8) -> String| bytes.iter().map(one).collect::<Vec<_>>().join(separator);
    let mut forms = vec![
        secret.to_owned(),
        join(", ", u8::to_string),
        join(",", u8::to_string),
        join("", |byte| format!("{byte:02x}")),
        join("", |byte| format!("{byte:02X}")),
    ];
    forms.extend((0..3).map(|before| base64_within(bytes, before)));
    forms
}

/// What of the base64 of some text depends on these bytes alone, if they begin so many bytes after a group of three.
fn base64_within(bytes: &[u8], before: usize) -> String {
    let whole = bytes[(3 - before) % 3..].chunks_exact(3).flatten().copied();
    STANDARD_NO_PAD.encode(whole.collect::<Vec<_>>())
}

/// What drivers write that know only `log`.
impl log::Log for All {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let _ = writeln!(self.0.clone(), "{} {}: {}", record.level(), record.target(), record.args());
    }

    fn flush(&self) {}
}
