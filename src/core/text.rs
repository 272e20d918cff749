//! Text from outside this program: messages of a registry, an engine or an image.
//!
//! Such text can hold anything. Postgres refuses U+0000 in `jsonb`, a line break forges log lines, and a message of
//! megabytes would be written with every heartbeat. A `CleanText` is only made by `new`, so a field of this type is one line
//! of at most `TEXT_MAX` bytes without control characters.

use std::{fmt, ops::Deref};

use serde::{Deserialize, Serialize};

/// The longest text, in bytes of UTF-8.
pub const TEXT_MAX: usize = 2048;
const ELLIPSIS: &str = "…";

/// One line of at most `TEXT_MAX` bytes without control characters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String")]
pub struct CleanText(String);

impl CleanText {
    /// Cleans a text: each control character and line separator becomes a space, and what exceeds the limit is cut off at a
    /// character's boundary. An ellipsis, within the limit, marks the cut.
    pub fn new(text: &str) -> Self {
        let clean = |c: char| if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') { ' ' } else { c };
        // A replacement is never longer than what it replaces, so the start of the text is enough.
        let fits = text.len() <= TEXT_MAX;
        let start = if fits { text } else { &text[..text.floor_char_boundary(TEXT_MAX - ELLIPSIS.len())] };
        let mut cleaned: String = start.chars().map(clean).collect();
        if !fits {
            cleaned.push_str(ELLIPSIS);
        }
        Self(cleaned)
    }
}

impl From<&str> for CleanText {
    fn from(text: &str) -> Self {
        Self::new(text)
    }
}

impl From<String> for CleanText {
    fn from(text: String) -> Self {
        Self::new(&text)
    }
}

impl Deref for CleanText {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for CleanText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_text_becomes_one_short_line(text in any::<String>(), times in 1..300_usize) {
            let cleaned = CleanText::new(&text.repeat(times));

            prop_assert!(cleaned.len() <= TEXT_MAX && !cleaned.chars().any(char::is_control));
            prop_assert_eq!(CleanText::new(&cleaned), cleaned);
        }
    }

    #[test]
    fn control_characters_become_spaces() {
        for (text, expected) in [
            ("", ""),
            ("plain, with ümläuts and 漢字", "plain, with ümläuts and 漢字"),
            ("a\0b", "a b"),
            ("two\r\nlines\tand a tab", "two  lines and a tab"),
            ("\u{1b}[31mred\u{7f}\u{85}end", " [31mred  end"),
            ("line\u{2028}paragraph\u{2029}end", "line paragraph end"),
        ] {
            assert_eq!(&*CleanText::new(text), expected, "{text:?}");
        }
    }

    #[test]
    fn long_text_is_cut_at_a_character_with_an_ellipsis() {
        let exact = "x".repeat(TEXT_MAX);
        assert_eq!(&*CleanText::new(&exact), exact);

        // Characters of 1 to 4 bytes, and a prefix that shifts where the boundary falls.
        for (character, prefix) in [("x", ""), ("ä", "x"), ("漢", "xx"), ("🦀", "xxx"), ("\0", "")] {
            let text = format!("{prefix}{}", character.repeat(3_000_000 / character.len()));

            let cut = CleanText::new(&text);

            assert!((TEXT_MAX - 3..=TEXT_MAX).contains(&cut.len()), "{character}: {}", cut.len());
            assert!(cut.ends_with(ELLIPSIS));
            assert!(!cut.contains('\0'));
        }
    }

    #[test]
    fn cleaning_twice_changes_nothing() {
        let once = CleanText::new(&"a\n漢".repeat(5000));
        assert_eq!(CleanText::new(&once), once);
    }
}
