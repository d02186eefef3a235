//! Text from outside, as it may be shown to people: in a log or an error it must not look like something else.

use std::fmt::{self, Write as _};

/// Text that may come from anywhere, for people to read: what would steer the terminal, begin another line or turn the
/// order of the letters about is written as an escape (`\u{202e}`). All other letters stay as they are.
///
/// ```
/// assert_eq!(cap_core::shown("order\u{202e}7\n").to_string(), r"order\u{202e}7\n");
/// ```
pub fn shown(text: &str) -> Shown<'_> {
    Shown(text)
}

/// What [`shown`] answers.
#[derive(Clone, Copy)]
pub struct Shown<'t>(&'t str);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut plain = 0;
        for (place, char) in self.0.char_indices().filter(|(_, char)| is_misleading(*char)) {
            f.write_str(&self.0[plain..place])?;
            for escaped in char.escape_default() {
                f.write_char(escaped)?;
            }
            plain = place + char.len_utf8();
        }
        f.write_str(&self.0[plain..])
    }
}

impl fmt::Debug for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Control characters, line and paragraph separators, and what Unicode has that is not seen itself but changes what is:
/// marks of direction (Unicode Standard Annex 9), letters without width, tags.
fn is_misleading(char: char) -> bool {
    matches!(char,
        '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
        | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
        || char.is_control()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_misleads_is_escaped_and_letters_of_any_language_stay() {
        assert_eq!(shown("\u{1b}[2J\r\n\0").to_string(), r"\u{1b}[2J\r\n\u{0}");
        assert_eq!(shown("a\u{202e}b\u{2066}c\u{2028}d\u{feff}").to_string(), r"a\u{202e}b\u{2066}c\u{2028}d\u{feff}");
        let plain = "日本 \"é\" הודעה 'नमस्ते' \\ 𝄞";
        assert_eq!(shown(plain).to_string(), plain);
    }

    proptest! {
        #[test]
        fn nothing_that_misleads_is_left(text in ".{0,50}") {
            prop_assert!(!shown(&text).to_string().chars().any(is_misleading));
        }
    }
}
