//! The form of every error, whichever part of the server returns it.

use std::{collections::BTreeSet, fmt::Write};

use actix_web::{ResponseError, body::to_bytes};
use app::{
    core::invalid::Invalid,
    http::problem::{Code, Problem},
};
use serde_json::{Value, json};

use crate::support::Answer;

/// All codes of the contract.
pub const CODES: [(&str, u16); 19] = [
    ("malformed_request", 400),
    ("unauthenticated", 401),
    ("forbidden", 403),
    ("quota_exceeded", 403),
    ("not_found", 404),
    ("method_not_allowed", 405),
    ("name_taken", 409),
    ("invalid_state", 409),
    ("network_in_use", 409),
    ("address_exhausted", 409),
    ("port_taken", 409),
    ("idempotency_in_progress", 409),
    ("payload_too_large", 413),
    ("unsupported_media_type", 415),
    ("validation_failed", 422),
    ("idempotency_key_reused", 422),
    ("rate_limited", 429),
    ("internal", 500),
    ("unavailable", 503),
];

/// Asserts a problem with this code and all its required fields, and returns the pointers of `errors`.
#[track_caller]
pub fn problem(answer: &Answer, code: &str) -> Vec<String> {
    let what = format!("{} {:?} {}", answer.status, answer.headers, answer.text);
    assert_eq!(answer.code(), code, "{what}");
    let status = CODES.iter().find(|(known, _)| *known == code).expect("a code of the closed set").1;
    assert_eq!(answer.status, status, "{what}");
    assert_eq!(answer.header("content-type"), "application/problem+json", "{what}");
    let fields: BTreeSet<&str> = answer.body.as_object().unwrap().keys().map(String::as_str).collect();
    let mut expected = BTreeSet::from(["type", "title", "status", "detail", "code", "request_id"]);
    if code == "validation_failed" {
        expected.insert("errors");
    }
    assert_eq!(fields, expected, "{what}");
    assert_eq!(answer.body["status"], json!(status), "{what}");
    for field in ["type", "title", "detail", "request_id"] {
        assert!(answer.body[field].as_str().is_some_and(|text| !text.is_empty()), "{field}: {what}");
    }
    assert_eq!(answer.body["request_id"], answer.header("x-request-id"), "{what}");
    let belongs = match status {
        401 => answer.header("www-authenticate") == "Bearer",
        405 => !answer.header("allow").is_empty(),
        429 | 503 => answer.header("retry-after").parse::<u32>().is_ok(),
        _ => true,
    };
    assert!(belongs, "{what}");
    let errors = answer.body["errors"].as_array().cloned().unwrap_or_default();
    assert!(code != "validation_failed" || !errors.is_empty(), "{what}");
    for error in &errors {
        let fields: BTreeSet<&str> = error.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(fields, BTreeSet::from(["pointer", "code", "detail"]), "{what}");
        assert!(error.as_object().unwrap().values().all(serde_json::Value::is_string), "{what}");
    }
    errors.iter().map(|error| error["pointer"].as_str().unwrap().to_owned()).collect()
}

/// The response of each code, with the headers that belong to it.
#[actix_web::test]
async fn problem_of_every_code_is_its_snapshot() {
    let mut shown = String::new();
    for code in Code::ALL {
        let problem = match code {
            Code::ValidationFailed => Problem::invalid(vec![
                Invalid::new("/image", "required", "missing field `image`"),
                Invalid::new("?limit", "invalid", "must be a whole number, 0 or more"),
            ]),
            Code::MethodNotAllowed => Problem::method_not_allowed("GET, HEAD".into()),
            Code::NotFound => Problem::not_found(),
            Code::Internal => Problem::internal(),
            _ => Problem::new(*code, "[detail]"),
        };
        let response = problem.error_response();
        writeln!(shown, "HTTP {}", response.status()).unwrap();
        let headers: BTreeSet<String> =
            response.headers().iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        headers.iter().for_each(|header| writeln!(shown, "{header}").unwrap());
        let mut body: Value = serde_json::from_slice(&to_bytes(response.into_body()).await.unwrap()).unwrap();
        body["request_id"] = json!("[request_id]");
        writeln!(shown, "{body:#}\n").unwrap();
    }

    insta::with_settings!({ prepend_module_to_snapshot => false, omit_expression => true }, {
        insta::assert_snapshot!("problems", shown);
    });
}
