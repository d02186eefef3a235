//! Messages that make trouble: what each kind is, where it goes, what it does to its handler, and how it may end. Which
//! of them a message is, its number alone tells.

use std::time::Duration;

use cap_core::{HandlerError, Message};
use cap_engine::{Context, Json};

use crate::crash::checker::AUDIT;
use crate::crash::recorder::Recorder;

/// The group whose handlers are transactional.
pub(crate) const BILLING: &str = "billing";

/// What is behind a round's topic in the names of its other topics: messages that only the newer version of the service
/// knows, poison, large ones, those that hold a row lock or hang on one, and those whose topic is made again and again.
pub(crate) const RENEWED: &str = ".renewed";
pub(crate) const POISON: &str = ".poison";
pub(crate) const BIG: &str = ".big";
pub(crate) const HOLD: &str = ".hold";
pub(crate) const HANG: &str = ".hang";
pub(crate) const REMADE: &str = ".remade";
/// All topics of a round: that of the orders, whose name nothing is added to, and the others.
pub(crate) const TOPICS: [&str; 7] = ["", RENEWED, POISON, BIG, HOLD, HANG, REMADE];

/// The topics of a group, by what is behind the round's topic.
pub(crate) fn topics_of(group: &str) -> &'static [&'static str] {
    if group == AUDIT { &["", RENEWED, POISON, BIG, REMADE] } else { &["", HOLD, HANG] }
}

/// A kind of trouble.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// Its handler in one group aborts the process: it must end dead there, and be handled in the other group.
    Killer { in_audit: bool },
    /// Its handler in `audit` blocks every thread of the runtime for a while.
    Blocker,
    /// An older version of the service has no subscription for it; the newer one fails at its first attempt.
    Renewed,
    /// Its transactional handler holds a row lock for longer than the lease.
    Hold,
    /// Its transactional handler waits for that row lock, until its timeout.
    Hang,
    /// It has several megabytes.
    Big,
    /// Its topic is deleted and made again before it or after it.
    Remade,
    /// Something chokes on it: it may end dead, but must not disappear.
    Poison(Poison),
}

/// What somebody chokes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Poison {
    /// The handler fails for good, with a reason of megabytes.
    HugeReason,
    /// The handler fails for good, with a reason that some databases cannot store.
    OddReason,
    /// The handler panics.
    Panic,
    /// A text header that RabbitMQ reads itself and wants to be a list.
    Cc,
    /// Another one.
    Bcc,
    /// A payload with escaped NUL and characters outside the basic plane.
    OddText,
    /// A payload that is JSON, but no Unicode: half of a surrogate pair.
    LoneSurrogate,
}

impl Poison {
    pub(crate) const ALL: [Self; 7] =
        [Self::HugeReason, Self::Bcc, Self::OddReason, Self::Panic, Self::Cc, Self::OddText, Self::LoneSurrogate];

    /// The header that it has beside the usual ones.
    pub(crate) fn header(self) -> Option<&'static str> {
        match self {
            Self::Cc => Some("CC"),
            Self::Bcc => Some("BCC"),
            _ => None,
        }
    }

    /// The second member of its payload, as JSON.
    fn text(self) -> &'static str {
        match self {
            Self::OddText => r#""\u0000 \u0001 \\u0000 𝄞 👩‍👩‍👧 \ud834\udd1e""#,
            Self::LoneSurrogate => r#""\ud800""#,
            _ => r#""poison""#,
        }
    }

    /// What its handler does.
    fn handled(self) -> Result<(), HandlerError> {
        const HUGE: usize = 9_000_000;
        match self {
            Self::HugeReason => Err(HandlerError::permanent("x".repeat(HUGE))),
            Self::OddReason => Err(HandlerError::permanent("a reason with \0, \u{7f}, 日本, 𝄞 and \u{10ffff}")),
            Self::Panic => panic!("a handler panics on purpose"),
            Self::Cc | Self::Bcc | Self::OddText | Self::LoneSurrogate => Ok(()),
        }
    }
}

/// Numbers from here on are trouble's; orders have smaller ones.
const FIRST: i64 = 1_000_000_000_000_000;
/// Between the variants of a kind.
const VARIANT: i64 = 1_000_000_000_000;

impl Trouble {
    fn code(self) -> (i64, i64) {
        match self {
            Self::Killer { in_audit } => (1, i64::from(in_audit)),
            Self::Blocker => (2, 0),
            Self::Renewed => (3, 0),
            Self::Hold => (4, 0),
            Self::Hang => (5, 0),
            Self::Big => (6, 0),
            Self::Poison(poison) => (7, Poison::ALL.iter().position(|other| *other == poison).unwrap_or(0) as i64),
            Self::Remade => (8, 0),
        }
    }

    /// The number of the message with this place among all.
    pub(crate) fn number(self, place: i64) -> i64 {
        let (kind, variant) = self.code();
        kind * FIRST + variant * VARIANT + place
    }

    /// What the number of a message says; `None` for an order.
    pub(crate) fn of(number: i64) -> Option<Self> {
        let variant = number % FIRST / VARIANT;
        match number / FIRST {
            1 => Some(Self::Killer { in_audit: variant == 1 }),
            2 => Some(Self::Blocker),
            3 => Some(Self::Renewed),
            4 => Some(Self::Hold),
            5 => Some(Self::Hang),
            6 => Some(Self::Big),
            7 => Some(Self::Poison(*Poison::ALL.get(usize::try_from(variant).ok()?)?)),
            8 => Some(Self::Remade),
            _ => None,
        }
    }

    /// What is behind the round's topic in the name of its topic.
    pub(crate) fn topic(self) -> &'static str {
        match self {
            Self::Killer { .. } | Self::Blocker => "",
            Self::Renewed => RENEWED,
            Self::Poison(_) => POISON,
            Self::Big => BIG,
            Self::Hold => HOLD,
            Self::Hang => HANG,
            Self::Remade => REMADE,
        }
    }

    /// How many groups get it.
    pub(crate) fn groups(self) -> usize {
        [BILLING, AUDIT].into_iter().filter(|group| topics_of(group).contains(&self.topic())).count()
    }

    /// Its payload, as JSON; a large one has about so many bytes.
    pub(crate) fn payload(self, number: i64, bytes: usize) -> Vec<u8> {
        match self {
            Self::Killer { .. } | Self::Blocker | Self::Hold | Self::Hang => number.to_string(),
            Self::Renewed | Self::Remade => format!(r#"[{number},""]"#),
            Self::Poison(poison) => format!("[{number},{}]", poison.text()),
            Self::Big => format!(r#"[{number},"{}"]"#, "x".repeat(bytes)),
        }
        .into_bytes()
    }

    /// The groups in which it must have its effect.
    pub(crate) fn effects(self) -> &'static [&'static str] {
        match self {
            Self::Killer { in_audit: true } | Self::Hold | Self::Hang => &[BILLING],
            Self::Killer { in_audit: false } | Self::Renewed | Self::Big | Self::Remade => &[AUDIT],
            Self::Blocker => &[BILLING, AUDIT],
            Self::Poison(_) => &[],
        }
    }

    /// The group in which it must end dead.
    pub(crate) fn dies_in(self) -> Option<&'static str> {
        match self {
            Self::Killer { in_audit } => Some(if in_audit { AUDIT } else { BILLING }),
            _ => None,
        }
    }
}

/// In a process of a run: what panics on purpose is not told.
pub(crate) fn keep_quiet_about_purpose() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !panic.payload_as_str().is_some_and(|text| text.ends_with("on purpose")) {
            usual(panic);
        }
    }));
}

/// The first thing in the transactional handler of `billing`: a killer ends the process here, and a call is recorded.
pub(crate) fn called_in_billing(recorder: &Recorder, number: i64, context: &Context) -> std::io::Result<()> {
    if Trouble::of(number) == Some(Trouble::Killer { in_audit: false }) {
        std::process::abort();
    }
    recorder.handled(BILLING, number, context.attempt())
}

/// The first thing in the handler of `audit` for orders: killers and blockers do here what they are for.
pub(crate) async fn met_in_audit(number: i64, lease: Duration) {
    match Trouble::of(number) {
        Some(Trouble::Killer { in_audit: true }) => std::process::abort(),
        // More than half of it, less than all of it.
        Some(Trouble::Blocker) => block_all_threads(lease.mul_f64(0.7)).await,
        _ => {}
    }
}

/// Keeps every thread of the runtime busy, as handlers do that wait without `await`.
async fn block_all_threads(pause: Duration) {
    let runtime = tokio::runtime::Handle::current();
    // From outside of the runtime, so that every thread may take one: those that a worker spawns may wait for it.
    let spawning = tokio::task::spawn_blocking(move || {
        for _ in 1..runtime.metrics().num_workers() {
            runtime.spawn(async move { std::thread::sleep(pause) });
        }
    });
    let _ = spawning.await;
    std::thread::sleep(pause);
}

/// The handler in `audit` of all that comes on topics of trouble's own.
pub(crate) async fn audited(message: Message, context: Context, recorder: Recorder) -> Result<(), HandlerError> {
    let Json((number, _)): Json<(i64, String)> = Json(message.json().map_err(HandlerError::permanent)?);
    match Trouble::of(number) {
        Some(Trouble::Poison(poison)) => poison.handled()?,
        // So that it waits in the inbox, for any node to claim it.
        Some(Trouble::Renewed) if context.attempt() == 1 => return Err(HandlerError::retry("another time")),
        _ => {}
    }
    Ok(recorder.handled(AUDIT, number, context.attempt())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_tells_what_trouble_it_is() {
        let kinds = [
            Trouble::Killer { in_audit: true },
            Trouble::Killer { in_audit: false },
            Trouble::Blocker,
            Trouble::Renewed,
            Trouble::Hold,
            Trouble::Hang,
            Trouble::Big,
            Trouble::Remade,
        ];
        for kind in kinds.into_iter().chain(Poison::ALL.map(Trouble::Poison)) {
            assert_eq!(Trouble::of(kind.number(17)), Some(kind));
            assert!(TOPICS.contains(&kind.topic()));
        }
        assert_eq!(Trouble::of(5_000_010_000_004), None, "an order of process 5");
    }

    #[test]
    fn payloads_are_json_and_only_half_a_pair_is_no_text() {
        for poison in Poison::ALL {
            let kind = Trouble::Poison(poison);
            let read = serde_json::from_slice::<(i64, String)>(&kind.payload(kind.number(1), 0));
            assert_eq!(read.is_ok(), poison != Poison::LoneSurrogate, "{poison:?}: {read:?}");
        }
    }
}
