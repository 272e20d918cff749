//! The clock of an API's machine jumps: nothing about keys depends on it. Postgres' clock decides what has expired, and
//! between two questions to it a monotonic clock that nobody sets.

use std::{fs, path::Path, process::Command, time::Duration};

use serde_json::json;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{alone, metric, stage::TwoReplicas, wire::RawClient};

/// The wall clock as the C library tells it, moved by the seconds in a file.
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

async fn stepped(l1: &str) {
    let directory = tempfile::TempDir::new().unwrap();
    let (library, step) = (build(directory.path()), directory.path().join("step"));
    let set = |seconds: i64| fs::write(&step, seconds.to_string()).unwrap();
    set(0);
    let stage = TwoReplicas::with(l1, |cluster| {
        cluster.set("LD_PRELOAD", library).set("CLOCK_STEP", step.display());
    })
    .await;
    let base = &stage.a.1;
    let mut wire = RawClient::open(base).await;
    let hour = 3600;
    for seconds in [hour, -hour, 48 * hour, 0] {
        // To expire in half an hour, and in two seconds, by Postgres' clock.
        let long = stage.mint.keys(1, stage.tenant, &["keys:read"], Some(1800.0)).await.remove(0);
        let short = stage.mint.keys(1, stage.tenant, &["keys:read"], Some(2.0)).await.remove(0);
        let revoked = stage.key().await;
        stage.warm(&long).await;
        stage.warm(&revoked).await;
        wire.get("/keys/self", &short.text).await.expect(200);
        set(seconds);

        // It did jump: a new key's expiry is compared with it, for want of anything better.
        let soon = (OffsetDateTime::now_utc() + Duration::from_secs(1200)).format(&Rfc3339).unwrap();
        let body = json!({"name": "soon", "scopes": ["keys:read"], "expires_at": soon});
        let made = wire.ask("POST", "/keys", &stage.admin, Some(&body)).await.status;
        assert_eq!(made, if seconds > 1200 { 422 } else { 201 });

        wire.get("/keys/self", &long.text).await.expect(200);
        stage.revoke(&stage.b.1, &revoked).await.expect(204);
        stage.refused(&revoked).await;
        let own = stage.key().await;
        stage.warm(&own).await;
        stage.revoke(base, &own).await.expect(204);
        stage.refused(&own).await;
        stage.mint.expired(&short).await;
        stage.refused(&short).await;
        wire.get("/keys/self", &long.text).await.expect(200);
    }
    // The caches were in use all the time.
    let from_postgres = metric(base, "identity_verify_total", &[("tier", "pg"), ("result", "accepted")]).await;
    let from_caches = metric(base, "identity_verify_total", &[("result", "accepted")]).await - from_postgres;
    assert!(from_caches > from_postgres, "{from_caches} from caches, {from_postgres} from Postgres");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_of_the_clock_lets_nobody_in_and_sends_nobody_away() {
    let _alone = alone().await;
    stepped("on").await;
    stepped("off").await;
}
