//! Where the real parts are, as `make test` says. A part that this machine cannot run skips a test by name, unless
//! `REQUIRE_REAL=1`.

use std::{env, fs::OpenOptions, io::Write, path::PathBuf};

use nix::unistd::User;

/// The variable, or a panic that tells how to run the tests.
pub fn required(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run the tests by `make test`"))
}

/// The Docker engine and the demo image; `None`: the test named skips itself.
pub fn docker(test: &str) -> Option<(String, String)> {
    match env::var("TEST_DOCKER_HOST") {
        Ok(host) if !host.is_empty() => Some((host, required("TEST_DEMO_IMAGE"))),
        _ => {
            skip(test, &env::var("TEST_DOCKER_REASON").unwrap_or_else(|_| "no Docker".into()));
            None
        }
    }
}

/// Postgres' own tools, and the user to run them as: it refuses to be run by root.
pub fn postgres() -> (PathBuf, Option<User>) {
    let user = env::var("TEST_PG_USER").unwrap_or_default();
    let user = (!user.is_empty()).then(|| User::from_name(&user).unwrap().expect("TEST_PG_USER is a user"));
    (required("TEST_PG_BIN").into(), user)
}

/// Prometheus' own checker; `None`: the test named skips itself.
pub fn promtool(test: &str) -> Option<PathBuf> {
    match env::var("TEST_PROMTOOL") {
        Ok(path) if !path.is_empty() => Some(path.into()),
        _ => {
            skip(test, "no promtool");
            None
        }
    }
}

fn skip(test: &str, reason: &str) {
    assert!(env::var("REQUIRE_REAL").as_deref() != Ok("1"), "{test} needs a part that is not there: {reason}");
    // Past the test harness, which swallows what passing tests print by `eprintln!`.
    std::io::stderr().write_all(format!("SKIPPED {test}: {reason}\n").as_bytes()).unwrap();
    if let Ok(path) = env::var("TEST_SKIPPED") {
        let mut file = OpenOptions::new().append(true).create(true).open(path).unwrap();
        writeln!(file, "{test}\t{reason}").unwrap();
    }
}
