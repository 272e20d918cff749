//! Every metric there is: what it counts, and in which unit. What is recorded under a name that is not here fails a test.
//!
//! Names end in their unit (`_seconds`, `_bytes`, `_cores`), counters in `_total`. Labels have few values, all known in
//! advance: never an id, a path, a name that a tenant chose. What a process says of itself (`process_*`) comes on top.

/// How a metric moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

use Kind::{Counter, Gauge, Histogram};

/// Kind, name, help.
pub const METRICS: &[(Kind, &str, &str)] = &[
    // --- the HTTP edge
    (Counter, "http_requests_total", "Requests answered, by route pattern."),
    (Histogram, "http_request_seconds", "From a request's head to its answer's head."),
    (Counter, "rate_limit_local_total", "Requests that this process counted alone, since Redis did not answer."),
    // --- identity
    (Counter, "identity_verify_total", "Keys checked, by where the answer was found."),
    (Histogram, "identity_verify_seconds", "Checking a key."),
    (Counter, "identity_cache_fill_total", "Facts about keys put into Redis."),
    (Counter, "identity_flight_joins_total", "Questions that joined another about the same key."),
    (Histogram, "identity_lease_wait_seconds", "Pauses while another process asked about the same key."),
    (Counter, "identity_refresh_ahead_total", "Cached keys asked for again before they ran out."),
    (Gauge, "identity_l1_entries", "Keys kept in this process."),
    (Counter, "identity_l1_epoch_bumps_total", "Times this process forgot all keys, since it may have missed news."),
    (
        Gauge,
        "identity_l1_fence_age_seconds",
        "Age of the latest news from Redis; past one second no kept key is believed.",
    ),
    (Gauge, "identity_feed_age_seconds", "Age of the latest news of changed keys from the primary."),
    (Gauge, "identity_redis_breaker_state", "1: Redis is left alone after failures."),
    (Counter, "identity_mac_fail_total", "Values in Redis that nobody of ours wrote."),
    (Histogram, "identity_revoke_seconds", "From a committed change of a key until the stage."),
    (Gauge, "identity_revoke_pending", "Changes of keys that Redis has not heard of for seconds, 500 at most."),
    (Counter, "identity_revoke_pending_total", "Changes answered before every process had heard of them."),
    (Gauge, "identity_outbox_oldest_seconds", "Age of the oldest such change."),
    // --- Postgres
    (Gauge, "db_pool_max", "Connections that this process may have."),
    (Gauge, "db_pool_size", "Connections that this process has."),
    (Gauge, "db_pool_available", "Connections that nobody uses."),
    (Gauge, "db_pool_waiting", "Who waits for a connection now."),
    (Histogram, "db_checkout_seconds", "Waiting for a connection."),
    (Histogram, "db_query_seconds", "Statements, from sending to the last row."),
    (Counter, "db_read_routed_total", "Reads, by how fresh they had to be and who served them."),
    (Counter, "db_fallback_total", "Reads that failed at the replica and went to the primary."),
    (Gauge, "db_replica_paused", "1: the replica is left alone after a failure."),
    (Counter, "db_conns_discarded_total", "Connections closed instead of being used again, by cause."),
    (Counter, "db_deadlocks_total", "Statements that Postgres ended to resolve a deadlock."),
    // --- the queue
    (Counter, "queue_notifications_total", "Jobs rung in Redis."),
    (Gauge, "queue_jobs", "Unfinished jobs of the whole cluster, 10000 queued ones at most."),
    (Gauge, "queue_oldest_due_seconds", "How long the oldest queued job of the cluster has been due."),
    (Counter, "queue_rescued_total", "What was left by workers that went silent, and put right."),
    // --- the worker
    (Histogram, "job_wait_seconds", "From when a job was due until it was claimed."),
    (Histogram, "job_attempt_seconds", "One attempt of a job."),
    (Counter, "jobs_ended_total", "Attempts, by how they ended."),
    (Histogram, "instance_provisioning_seconds", "From an accepted POST until its instance ran."),
    (Gauge, "worker_slots", "Jobs that this worker can do at a time."),
    (
        Counter,
        "worker_loop_stalls_total",
        "Seconds in which a loop had stood still for long: 15 s at the default lease.",
    ),
    (Gauge, "host_containers", "Containers of this cluster on this host."),
    (Counter, "host_orphans_removed_total", "Containers removed that nobody owned."),
    (Gauge, "host_foreign_containers", "Containers of this cluster on this engine that belong to another host."),
    (Gauge, "host_cpu_capacity_cores", "Processors that instances here may be promised."),
    (Gauge, "host_cpu_committed_cores", "Processors that instances here were promised."),
    (Gauge, "host_memory_capacity_bytes", "Memory that instances here may be promised."),
    (Gauge, "host_memory_committed_bytes", "Memory that instances here were promised."),
    // --- the process
    (
        Counter,
        "log_lines_dropped_total",
        "Log lines dropped, since standard error was not read fast enough or is closed.",
    ),
];
