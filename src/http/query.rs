//! Query parameters, strictly: bad percent-encoding is 400; unknown, repeated or malformed parameters are 422.

use actix_web::HttpRequest;

use super::problem::{Code, Problem};
use crate::core::{
    invalid::Invalid,
    page::{PageRequest, parse_cursor},
};

/// The parameters not taken yet, and what is wrong so far. `finish` must be called: it refuses what is left.
#[derive(Debug)]
pub struct Query {
    parameters: Vec<(String, String)>,
    wrong: Vec<Invalid>,
}

impl Query {
    /// # Errors
    /// 400 when it cannot be decoded.
    pub fn of(request: &HttpRequest) -> Result<Self, Problem> {
        Self::parse(request.query_string())
    }

    fn parse(text: &str) -> Result<Self, Problem> {
        let decode = |part: &str| {
            decode(part).ok_or_else(|| Problem::new(Code::MalformedRequest, "the query's percent-encoding is broken"))
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

    /// The parameter's only value.
    pub fn take(&mut self, name: &str) -> Option<String> {
        let mut values = self.take_all(name);
        if values.len() > 1 {
            self.refuse(name, "duplicate", "is given more than once");
        }
        values.pop()
    }

    /// All values of the parameter; an empty one counts as absent.
    pub fn take_all(&mut self, name: &str) -> Vec<String> {
        let taken = self.parameters.extract_if(.., |(known, _)| known == name);
        taken.map(|(_, value)| value).filter(|value| !value.is_empty()).collect()
    }

    /// The parameter through `parse`, whose `None` is told with `expected`.
    pub fn take_parsed<T>(&mut self, name: &str, expected: &str, parse: impl Fn(&str) -> Option<T>) -> Option<T> {
        let text = self.take(name)?;
        let parsed = parse(&text);
        if parsed.is_none() {
            self.refuse(name, "invalid", expected);
        }
        parsed
    }

    /// `limit` and `cursor`.
    pub fn take_page(&mut self) -> PageRequest {
        let limit = self.take_parsed("limit", "must be a whole number from 0", |text| {
            // However many digits it has, it is a number, and cut.
            let digits = text.bytes().all(|b| b.is_ascii_digit());
            digits.then(|| text.parse::<u64>().unwrap_or(u64::MAX))
        });
        let limit = match limit {
            None | Some(0) => PageRequest::DEFAULT,
            Some(n) => usize::try_from(n).unwrap_or(PageRequest::MAX).min(PageRequest::MAX),
        };
        let before = self.take_parsed("cursor", "must be the next_cursor of an answer", parse_cursor);
        PageRequest { limit, before }
    }

    pub fn refuse(&mut self, name: &str, code: &'static str, detail: &str) {
        self.wrong.push(Invalid::new(format!("?{name}"), code, detail));
    }

    /// # Errors
    /// 422 with all that is wrong, unknown parameters included.
    pub fn finish(mut self) -> Result<(), Problem> {
        for (name, _) in std::mem::take(&mut self.parameters) {
            self.refuse(&name.replace('\0', ""), "unknown_field", "no such parameter here");
        }
        if self.wrong.is_empty() { Ok(()) } else { Err(Problem::invalid(self.wrong)) }
    }
}

/// Percent-decodes a form-encoded part; `None` if it is broken or not UTF-8.
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
    use super::*;

    #[test]
    fn limits_are_cut_or_refused_as_documented() {
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
    fn broken_encoding_is_malformed() {
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
