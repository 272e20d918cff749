//! Refusals that statements raise by `app_refuse(code, detail)`.
//!
//! A statement that accepts a request cannot return "refused" after it has written something: it raises an error, which
//! undoes all of it. The codes are this enum; a test compares it with those in the migrations and in the `.sql` files.

use crate::core::text_enum::text_enum;

text_enum! {
    /// A code that a statement refuses a request with.
    pub enum Refusal as Refusal {
        /// The tenant has no network of this name or id.
        NetworkUnknown = "network_unknown",
        /// The instance would exceed the tenant's quota; the detail states use and limit.
        QuotaExceeded = "quota_exceeded",
        /// Another instance publishes a host port that the request names; the detail is protocol and port.
        PortTaken = "port_taken",
        /// No probed address was free: repeat the statement.
        AddressRetry = "address_retry",
        /// No probed host port was free: repeat the statement.
        PortRetry = "port_retry",
        /// A job was added while the statement waited for the instance's lock: repeat the statement.
        DeleteRetry = "delete_retry",
    }
}

impl Refusal {
    /// Returns the refusal with this code; `None` for a code that this release does not know.
    pub fn from_code(code: &str) -> Option<Self> {
        code.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::Path};

    use super::*;

    /// Adds the code of each `app_refuse('code', …)` in the `.sql` files below a folder.
    fn collect(folder: &Path, codes: &mut BTreeSet<String>) {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                collect(&path, codes);
            } else if path.extension().is_some_and(|extension| extension == "sql") {
                let text = fs::read_to_string(&path).expect("a readable file");
                let calls = text.split("app_refuse('").skip(1);
                codes.extend(calls.filter_map(|call| Some(call.split_once('\'')?.0.to_owned())));
            }
        }
    }

    #[test]
    fn refusals_are_exactly_those_that_statements_raise() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut raised = BTreeSet::new();

        collect(&root.join("migrations"), &mut raised);
        collect(&root.join("src"), &mut raised);

        assert_eq!(raised, Refusal::ALL.iter().map(ToString::to_string).collect());
    }

    #[test]
    fn unknown_code_is_no_refusal() {
        assert_eq!(Refusal::from_code("port_taken"), Some(Refusal::PortTaken));
        assert_eq!(Refusal::from_code("eaten"), None);
    }
}
