//! The clock of an API's machine is stepped, and nothing about keys depends on it: Postgres' clock decides what has
//! expired, and between two queries the process uses its monotonic clock.

use std::{fs, path::Path, process::Command, time::Duration};

use serde_json::json;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{metric, raw_client::RawClient, serial, two_replicas::TwoReplicas};

/// A replacement for the C library's wall clock, which adds the seconds in a file.
const SHIM: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t id, struct timespec *now) {
    int result = (int)syscall(SYS_clock_gettime, id, now);
    const char *path = getenv("CLOCK_STEP");
    if (result == 0 && id == CLOCK_REALTIME && path) {
        char text[32] = {0};
        int file = open(path, O_RDONLY);
        if (file >= 0) {
            if (read(file, text, sizeof text - 1) > 0) now->tv_sec += atol(text);
            close(file);
        }
    }
    return result;
}
"#;

fn build(directory: &Path) -> String {
    let (source, library) = (directory.join("clock.c"), directory.join("clock.so"));
    fs::write(&source, SHIM).unwrap();
    let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).status().unwrap();
    assert!(built.success());
    library.display().to_string()
}

async fn step_clock(l1: &str) {
    let directory = tempfile::TempDir::new().unwrap();
    let (library, step) = (build(directory.path()), directory.path().join("step"));
    let set = |seconds: i64| fs::write(&step, seconds.to_string()).unwrap();
    set(0);
    let replicas = TwoReplicas::start_with(l1, |cluster| {
        cluster.set("LD_PRELOAD", library).set("CLOCK_STEP", step.display());
    })
    .await;
    let base = &replicas.a.1;
    let mut client = RawClient::connect(base).await;
    let hour = 3600;
    for seconds in [hour, -hour, 48 * hour, 0] {
        // One key that expires in half an hour, and one that expires in two seconds, by Postgres' clock.
        let long = replicas.key_factory.create_keys(1, replicas.tenant, &["keys:read"], Some(1800.0)).await.remove(0);
        let short = replicas.key_factory.create_keys(1, replicas.tenant, &["keys:read"], Some(2.0)).await.remove(0);
        let revoked = replicas.create_key().await;
        replicas.warm(&long).await;
        replicas.warm(&revoked).await;
        client.get("/keys/self", &short.text).await.expect(200);
        set(seconds);

        // The step has an effect: the expiry of a new key is compared with the machine's clock.
        let soon = (OffsetDateTime::now_utc() + Duration::from_secs(1200)).format(&Rfc3339).unwrap();
        let body = json!({"name": "soon", "scopes": ["keys:read"], "expires_at": soon});
        let made = client.send("POST", "/keys", &replicas.admin, Some(&body)).await.status;
        assert_eq!(made, if seconds > 1200 { 422 } else { 201 });

        client.get("/keys/self", &long.text).await.expect(200);
        replicas.revoke(&replicas.b.1, &revoked).await.expect(204);
        replicas.assert_refused(&revoked).await;
        let own = replicas.create_key().await;
        replicas.warm(&own).await;
        replicas.revoke(base, &own).await.expect(204);
        replicas.assert_refused(&own).await;
        replicas.key_factory.wait_until_expired(&short).await;
        replicas.assert_refused(&short).await;
        client.get("/keys/self", &long.text).await.expect(200);
    }
    // The caches were in use all the time.
    let from_postgres = metric(base, "identity_verify_total", &[("tier", "pg"), ("result", "accepted")]).await;
    let from_caches = metric(base, "identity_verify_total", &[("result", "accepted")]).await - from_postgres;
    assert!(from_caches > from_postgres, "{from_caches} from caches, {from_postgres} from Postgres");
}

#[tokio::test(flavor = "multi_thread")]
async fn clock_step_admits_no_revoked_key_and_refuses_no_valid_one() {
    let _serial = serial().await;
    step_clock("on").await;
    step_clock("off").await;
}
