//! All that the process logs, at any level, whoever writes it.

use std::io;
use std::sync::{Arc, Mutex};

use tracing::Level;

/// The one log of the process.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    pub(crate) fn begin() -> Self {
        let log = Self::default();
        let writer = log.clone();
        let writing = tracing_subscriber::fmt().with_ansi(false).with_max_level(Level::TRACE);
        writing.with_writer(move || writer.clone()).init();
        log::set_boxed_logger(Box::new(log.clone())).unwrap();
        log::set_max_level(log::LevelFilter::Trace);
        log
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
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
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let whole = &bytes[(3 - before) % 3..];
    let groups = whole.chunks_exact(3).flat_map(|group| {
        let bits = group.iter().fold(0, |bits, byte| bits << 8 | usize::from(*byte));
        [18, 12, 6, 0].map(|shift| char::from(DIGITS[bits >> shift & 63]))
    });
    groups.collect()
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What drivers write that know only `log`.
impl log::Log for Log {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let line = format!("{} {}: {}\n", record.level(), record.target(), record.args());
        self.0.lock().unwrap().extend_from_slice(line.as_bytes());
    }

    fn flush(&self) {}
}
