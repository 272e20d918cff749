//! Where the services are, as `make test` sets it in `TEST_…` variables. A test that needs a service which this machine
//! cannot run reports itself as skipped, and fails with `REQUIRE_REAL=1`.

use std::{env, fs::OpenOptions, io::Write, path::PathBuf};

use nix::unistd::User;

/// Returns the variable's value; panics with how to run the tests when it is not set.
pub fn required(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run the tests by `make test`"))
}

/// Returns the address of the Docker engine and the demo image; `None` where there is no engine, and then this test
/// reports itself as skipped.
pub fn docker(test: &str) -> Option<(String, String)> {
    match env::var("TEST_DOCKER_HOST") {
        Ok(host) if !host.is_empty() => Some((host, required("TEST_DEMO_IMAGE"))),
        _ => {
            skip(test, &env::var("TEST_DOCKER_REASON").unwrap_or_else(|_| "no Docker".into()));
            None
        }
    }
}

/// Returns the directory of Postgres' programs and the user to run them as: Postgres refuses to be run by root.
pub fn postgres() -> (PathBuf, Option<User>) {
    let user = env::var("TEST_PG_USER").unwrap_or_default();
    let user = (!user.is_empty()).then(|| User::from_name(&user).unwrap().expect("TEST_PG_USER is a user"));
    (required("TEST_PG_BIN").into(), user)
}

/// Returns Prometheus' own checker; `None` where there is none, and then this test reports itself as skipped.
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
    // Written to the file descriptor: the test harness swallows what passing tests print by `eprintln!`.
    std::io::stderr().write_all(format!("SKIPPED {test}: {reason}\n").as_bytes()).unwrap();
    if let Ok(path) = env::var("TEST_SKIPPED") {
        let mut file = OpenOptions::new().append(true).create(true).open(path).unwrap();
        writeln!(file, "{test}\t{reason}").unwrap();
    }
}
