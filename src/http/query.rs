//! Reads query parameters strictly, so that a typing error is not ignored silently.
//!
//! A query that is not percent-encoded UTF-8 is answered 400. Parameters that are unknown, repeated, malformed or contain
//! U+0000 are answered 422, all of them at once. An empty parameter counts as absent. A handler takes each parameter that it
//! knows, then calls `finish`, which refuses the rest.

use actix_web::HttpRequest;

use super::problem::{Code, Problem};
use crate::core::{
    invalid::Invalid,
    page::{PageRequest, parse_cursor},
};

/// The parameters that are not taken yet, and the errors found so far. `finish` must be called.
#[derive(Debug)]
pub struct Query {
    parameters: Vec<(String, String)>,
    wrong: Vec<Invalid>,
}

impl Query {
    /// Decodes the query of a request.
    ///
    /// # Errors
    /// `malformed_request` when it is not percent-encoded UTF-8.
    pub fn of(request: &HttpRequest) -> Result<Self, Problem> {
        Self::parse(request.query_string())
    }

    fn parse(text: &str) -> Result<Self, Problem> {
        let decode = |part: &str| {
            decode(part).ok_or_else(|| Problem::new(Code::MalformedRequest, "the query is not percent-encoded UTF-8"))
        };
        let parameters = text
            .split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| {
                let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                Ok((decode(name)?, decode(value)?))
            })
            .collect::<Result<Vec<_>, Problem>>()?;
        let nul = |(name, value): &&(String, String)| name.contains('\0') || value.contains('\0');
        let wrong = parameters.iter().filter(nul).map(|(name, _)| {
            Invalid::new(format!("?{}", name.replace('\0', "")), "invalid", "must not contain U+0000")
        });
        Ok(Self { wrong: wrong.collect(), parameters })
    }

    /// Takes a parameter that may be given once; `None` when it is absent or empty.
    pub fn take(&mut self, name: &str) -> Option<String> {
        let mut values = self.take_all(name);
        if values.len() > 1 {
            self.refuse(name, "duplicate", "is given more than once");
        }
        values.pop()
    }

    /// Takes all values of a parameter that may be repeated, without the empty ones.
    pub fn take_all(&mut self, name: &str) -> Vec<String> {
        let pairs = self.parameters.extract_if(.., |(known, _)| known == name);
        pairs.map(|(_, value)| value).filter(|value| !value.is_empty()).collect()
    }

    /// Takes a parameter and parses it. When `parse` returns `None`, the request is refused with `expected`, which continues
    /// "limit …".
    pub fn take_parsed<T>(&mut self, name: &str, expected: &str, parse: impl Fn(&str) -> Option<T>) -> Option<T> {
        let text = self.take(name)?;
        let parsed = parse(&text);
        if parsed.is_none() {
            self.refuse(name, "invalid", expected);
        }
        parsed
    }

    /// Takes `limit` and `cursor`. A limit of 0 is the default one; one above the maximum is the maximum.
    pub fn take_page(&mut self) -> PageRequest {
        let limit = self.take_parsed("limit", "must be a whole number, 0 or more", |text| {
            // A number that does not fit u64 is above the maximum, whatever it is.
            let digits = text.bytes().all(|b| b.is_ascii_digit());
            digits.then(|| text.parse::<u64>().unwrap_or(u64::MAX))
        });
        let limit = match limit {
            None | Some(0) => PageRequest::DEFAULT,
            Some(n) => usize::try_from(n).unwrap_or(PageRequest::MAX).min(PageRequest::MAX),
        };
        let before = self.take_parsed("cursor", "must be the next_cursor of a page", parse_cursor);
        PageRequest { limit, before }
    }

    /// Adds an error about a parameter; `finish` will refuse the request. `code`: one of `invalid::CODES`.
    pub fn refuse(&mut self, name: &str, code: &'static str, detail: &str) {
        self.wrong.push(Invalid::new(format!("?{name}"), code, detail));
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// `validation_failed` with every error found, including one for each parameter that was not taken.
    pub fn finish(mut self) -> Result<(), Problem> {
        for (name, _) in std::mem::take(&mut self.parameters) {
            self.refuse(&name.replace('\0', ""), "unknown_field", "is not a parameter of this operation");
        }
        if self.wrong.is_empty() { Ok(()) } else { Err(Problem::invalid(self.wrong)) }
    }
}

/// Decodes a name or a value (`application/x-www-form-urlencoded`: `+` is a space); `None` when an escape is incomplete or
/// not hexadecimal, or the result is not UTF-8.
fn decode(part: &str) -> Option<String> {
    let mut bytes = part.bytes();
    let mut decoded = Vec::with_capacity(part.len());
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digits = [bytes.next()?, bytes.next()?];
                data_encoding::HEXLOWER_PERMISSIVE.decode(&digits).ok()?[0]
            }
            other => other,
        });
    }
    String::from_utf8(decoded).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encode(text: &str) -> String {
        text.bytes().map(|byte| format!("%{byte:02X}")).collect()
    }

    proptest! {
        #[test]
        fn decode_undoes_percent_encoding(text in any::<String>()) {
            prop_assert_eq!(decode(&encode(&text)), Some(text.clone()));
            prop_assert_eq!(decode(&encode(&text).to_lowercase()), Some(text));
        }

        #[test]
        fn any_query_is_read_or_refused(text in any::<String>(), ascii in "[a-c=&%+0-9A-F]{0,30}") {
            for text in [text, ascii] {
                match Query::parse(&text) {
                    Ok(query) => {
                        let is_empty = query.parameters.is_empty();
                        // Nothing was taken, so only an empty query has nothing to refuse.
                        prop_assert_eq!(query.finish().is_ok(), is_empty, "{}", text);
                    }
                    Err(problem) => prop_assert_eq!(problem.code, Code::MalformedRequest, "{}", text),
                }
            }
        }

        #[test]
        fn every_pair_of_a_query_is_taken_once(values in proptest::collection::vec("[^\0]{1,8}", 0..6)) {
            let pairs: Vec<_> = values.iter().map(|value| format!("label={}", encode(value))).collect();
            let mut query = Query::parse(&pairs.join("&")).expect("encoded");

            prop_assert_eq!(query.take_all("label"), values);
            prop_assert!(query.take("label").is_none() && query.finish().is_ok());
        }

        #[test]
        fn page_is_within_its_bounds_or_refused(limit in any::<String>(), cursor in any::<String>()) {
            let text = format!("limit={}&cursor={}", encode(&limit), encode(&cursor));
            let mut query = Query::parse(&text).expect("encoded");

            let page = query.take_page();

            prop_assert!((1..=PageRequest::MAX).contains(&page.limit));
            prop_assert!(query.finish().is_err() || limit.bytes().all(|byte| byte.is_ascii_digit()));
        }
    }

    #[test]
    fn limit_is_cut_or_refused_as_documented() {
        let limit = |text: &str| {
            let mut query = Query::parse(text).expect("decodes");
            let page = query.take_page();
            query.finish().map(|()| page.limit).map_err(|problem| problem.code)
        };
        for (text, expected) in [
            ("", 50),
            ("limit=", 50),
            ("limit=0", 50),
            ("limit=7", 7),
            ("limit=501", 500),
            ("limit=99999999999999999999999", 500),
        ] {
            assert_eq!(limit(text), Ok(expected), "{text}");
        }
        for text in ["limit=-1", "limit=ten", "cursor=%21", "limit=1&limit=2", "colour=red", "limit=1%00"] {
            assert_eq!(limit(text), Err(Code::ValidationFailed), "{text}");
        }
    }

    #[test]
    fn incomplete_percent_encoding_is_malformed_request() {
        for text in ["a=%", "a=%1", "a=%zz", "a=%ff", "%c3=1"] {
            assert_eq!(Query::parse(text).expect_err(text).code, Code::MalformedRequest, "{text}");
        }
        let mut query = Query::parse("label=a%3Db+c&label=d").expect("decodes");
        assert_eq!(query.take_all("label"), ["a=b c", "d"]);
    }

    #[test]
    fn empty_parameters_count_as_absent() {
        let mut query = Query::parse("name=&label=&label&name=a&label=b&&limit=").expect("decodes");

        assert_eq!(query.take("name").as_deref(), Some("a"));
        assert_eq!(query.take_all("label"), ["b"]);
        assert_eq!(query.take_page().limit, PageRequest::DEFAULT);
        assert!(query.finish().is_ok());
    }
}
