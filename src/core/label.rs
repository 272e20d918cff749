//! The names of tenants, networks and instances: lower-case RFC 1123 labels, so that each is valid in a host name.

/// The longest label, in characters (RFC 1123, 2.1).
const LABEL_LENGTH_MAX: usize = 63;

/// Returns whether the text is a lower-case RFC 1123 label.
pub fn is_label(text: &str) -> bool {
    let is_inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (1..=LABEL_LENGTH_MAX).contains(&text.len())
        && text.chars().all(is_inner)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_follows_rfc_1123() {
        for good in ["a", "web-1", "0", &"x".repeat(63)] {
            assert!(is_label(good), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a.b", "a_b", "é", &"x".repeat(64)] {
            assert!(!is_label(bad), "{bad}");
        }
    }
}
