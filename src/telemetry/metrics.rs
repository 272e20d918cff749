//! The list of all metrics of the API and the worker, with what each one means.
//!
//! A metric that is recorded under another name or as another kind, or is never recorded, fails a test. Names end in
//! their unit (`_seconds`, `_bytes`, `_cores`), counters in `_total`. Label values are few and known in advance: never
//! an id, a path or a name that a tenant chose, because each value is a time series in every process. The metrics of
//! the process itself (`process_*`) come on top. `docs/operations.md` lists the labels and says what is worth an alarm.

/// How the value of a metric moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It only grows, from 0 at the start of the process.
    Counter,
    /// It goes up and down.
    Gauge,
    /// It counts observations by their size.
    Histogram,
}

/// A metric.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// How its value moves.
    pub kind: Kind,
    /// Its name in Prometheus.
    pub name: &'static str,
    /// Its meaning, as one or more sentences.
    pub help: &'static str,
}

const fn counter(name: &'static str, help: &'static str) -> Metric {
    Metric { kind: Kind::Counter, name, help }
}

const fn gauge(name: &'static str, help: &'static str) -> Metric {
    Metric { kind: Kind::Gauge, name, help }
}

const fn histogram(name: &'static str, help: &'static str) -> Metric {
    Metric { kind: Kind::Histogram, name, help }
}

/// Every metric.
#[rustfmt::skip]
pub const METRICS: &[Metric] = &[
    // --- HTTP
    counter("http_requests_total",
        "Counts the answered requests by method, route pattern and status."),
    histogram("http_request_seconds",
        "Measures the seconds from a request's head to the start of its response, by method and route pattern."),
    counter("rate_limit_local_total",
        "Counts the requests that this process counted against a key's rate limit alone because Redis did not answer."),
    // --- API keys
    counter("identity_verify_total",
        "Counts the verified API keys by the tier that decided (tag, l1, redis, pg) and by result."),
    histogram("identity_verify_seconds",
        "Measures the seconds that the verification of an API key takes, by the tier that decided."),
    counter("identity_cache_fill_total",
        "Counts the lookups of keys that were written to Redis, by outcome."),
    counter("identity_flight_joins_total",
        "Counts the verifications that waited for the result of another one of the same key in this process."),
    histogram("identity_lease_wait_seconds",
        "Measures the seconds that a verification waited for another process that looks the same key up."),
    counter("identity_refresh_ahead_total",
        "Counts the cached keys that were looked up again shortly before their entry expired."),
    gauge("identity_l1_entries",
        "Shows the number of keys in the cache of this process."),
    counter("identity_l1_epoch_bumps_total",
        "Counts how often this process emptied its cache of keys because it may have missed invalidations."),
    gauge("identity_l1_fence_age_seconds",
        "Shows the seconds since this process last read the invalidation log. Above 1, its cache of keys is not used."),
    gauge("identity_feed_age_seconds",
        "Shows the seconds since this process last read the changes of keys from the primary."),
    gauge("identity_redis_breaker_state",
        "Shows 1 while this process does not use Redis for keys because of earlier failures, else 0."),
    counter("identity_mac_fail_total",
        "Counts the values in Redis with a wrong signature: no process of this cluster wrote them."),
    histogram("identity_revoke_seconds",
        "Measures the seconds from the commit of a change of a key until the stage of its propagation was reached."),
    gauge("identity_revoke_pending",
        "Shows the number of committed changes of keys that are not written to Redis after seconds, 500 at most."),
    counter("identity_revoke_pending_total",
        "Counts the changes of keys that were answered before every process was known to apply them."),
    gauge("identity_outbox_oldest_seconds",
        "Shows the age in seconds of the oldest change of a key that is not written to Redis yet."),
    // --- Postgres
    gauge("db_pool_max",
        "Shows the number of connections that this process may open to a server, by the server's role."),
    gauge("db_pool_size",
        "Shows the number of open connections of this process to a server, by the server's role."),
    gauge("db_pool_available",
        "Shows the number of open connections that are not in use, by the server's role."),
    gauge("db_pool_waiting",
        "Shows the number of tasks that wait for a connection, by the server's role."),
    histogram("db_checkout_seconds",
        "Measures the seconds that a task waited for a connection, by the server's role."),
    histogram("db_query_seconds",
        "Measures the seconds from sending a statement to receiving its last row, by the server's role and outcome."),
    counter("db_read_routed_total",
        "Counts the reads by the consistency that they needed and by the server that answered."),
    counter("db_fallback_total",
        "Counts the reads that failed at the replica and were sent to the primary, by cause."),
    gauge("db_replica_paused",
        "Shows 1 while this process sends no reads to the replica because of an earlier failure, else 0."),
    counter("db_conns_discarded_total",
        "Counts the connections that were closed instead of being used again, by cause."),
    counter("db_deadlocks_total",
        "Counts the statements that Postgres ended to resolve a deadlock."),
    // --- queue
    counter("queue_notifications_total",
        "Counts the wake-ups of workers that were to be sent through Redis, by outcome."),
    gauge("queue_jobs",
        "Shows the number of unfinished jobs of the whole cluster by state, with 10000 queued ones at most."),
    gauge("queue_oldest_due_seconds",
        "Shows for how many seconds the oldest queued job of the whole cluster has been due."),
    counter("queue_rescued_total",
        "Counts the jobs and instances that were corrected after a worker went silent, or that no host can hold."),
    // --- worker
    histogram("job_wait_seconds",
        "Measures the seconds from when a job was due until a worker claimed it, by kind."),
    histogram("job_attempt_seconds",
        "Measures the seconds that one attempt of a job took, by kind."),
    counter("jobs_ended_total",
        "Counts the ended attempts of jobs by kind and outcome."),
    histogram("instance_provisioning_seconds",
        "Measures the seconds from the acceptance of an instance until it was running."),
    gauge("worker_slots",
        "Shows the number of jobs that this worker can run at the same time, split into free and busy slots."),
    counter("worker_loop_stalls_total",
        "Counts the seconds in which a loop of this worker had made no progress for half a lease, 15 s at most."),
    gauge("host_containers",
        "Shows the number of containers of this host's instances."),
    counter("host_orphans_removed_total",
        "Counts the removed containers that belonged to no instance."),
    gauge("host_foreign_containers",
        "Shows the number of containers of this cluster on this engine that belong to another host."),
    gauge("host_cpu_capacity_cores",
        "Shows the processor cores of this host that instances may reserve."),
    gauge("host_cpu_committed_cores",
        "Shows the processor cores of this host that instances have reserved."),
    gauge("host_memory_capacity_bytes",
        "Shows the bytes of memory of this host that instances may reserve."),
    gauge("host_memory_committed_bytes",
        "Shows the bytes of memory of this host that instances have reserved."),
    // --- process
    counter("log_lines_dropped_total",
        "Counts the log lines that were dropped because standard error was not read fast enough or is closed."),
];
