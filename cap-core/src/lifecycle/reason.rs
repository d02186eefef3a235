//! Reasons, as they are stored and told: bounded, whatever somebody gave as one.

/// The longest reason that is kept, in bytes.
pub const MAX_REASON: usize = 4096;

/// The reason, or its beginning and how long it was.
pub(super) fn cut(reason: &str) -> String {
    if reason.len() <= MAX_REASON {
        return reason.to_owned();
    }
    let told = format!("… (cut: it had {} bytes)", reason.len());
    let end = reason.floor_char_boundary(MAX_REASON - told.len());
    format!("{}{told}", &reason[..end])
}

/// The reason in letters that every database and every encoding has.
pub(super) fn plain(reason: &str) -> String {
    let ascii = |char: char| if char.is_ascii_graphic() || char == ' ' { char } else { '?' };
    let mut plain: String = reason.chars().map(ascii).collect();
    plain.truncate(MAX_REASON);
    plain
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_long_reason_says_that_it_was_cut() {
        let cut = cut(&"ä".repeat(9_000_000));
        assert!(cut.len() <= MAX_REASON && cut.ends_with("… (cut: it had 18000000 bytes)"), "{cut}");
    }

    proptest! {
        #[test]
        fn a_reason_is_bounded_and_what_fits_stays_as_it_is(reason in "\\PC{0,3000}") {
            let cut = cut(&reason);
            prop_assert!(cut.len() <= MAX_REASON);
            prop_assert!(reason.len() > MAX_REASON || cut == reason);
            prop_assert!(plain(&reason).is_ascii());
        }
    }
}
