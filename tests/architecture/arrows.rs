//! Which module may import which. A module's row is the one with its longest prefix; a module without a row may import
//! nothing of ours. Its own subtree is always open to it: the top-level module, or inside `core` the module below it.
//! What a module re-exports may also be imported from there, if the module that defines it may be imported.

use crate::{
    source::{Source, absolute, within},
    tree::TREE,
    violation::{Rule, Violation, assert_none, violations},
};

struct Arrow {
    from: &'static [&'static str],
    to: &'static [&'static [&'static str]],
    rule: &'static str,
}

const fn arrow(from: &'static [&'static str], to: &'static [&'static [&'static str]], rule: &'static str) -> Arrow {
    Arrow { from, to, rule }
}

const EVERYTHING: &[&str] = &[""];

/// What every noun of `core` may use: plain values, connections and settings.
const BASICS: &[&str] = &[
    "core::breaker",
    "core::db",
    "core::id",
    "core::invalid",
    "core::label",
    "core::page",
    "core::random",
    "core::redis",
    "core::text",
    "core::text_enum",
    "config",
];

const INSTANCE_TYPES: &[&str] =
    &["core::instances::reason", "core::instances::restart_policy", "core::instances::spec", "core::instances::state"];

const ARROWS: &[Arrow] = &[
    arrow(&["main", "cli", "commands", "startup"], &[EVERYTHING], "the composition roots may import everything"),
    arrow(&["api"], &[&["core", "http", "config"]], "api imports core, http and config; never worker or backend"),
    arrow(
        &["worker"],
        &[&["core", "http", "backend", "config", "shutdown", "telemetry"]],
        "worker imports core, http, backend, config, shutdown and telemetry; never api",
    ),
    arrow(&["backend"], &[&["core::id", "core::text"]], "backend imports core::id and core::text, and its own specs"),
    arrow(
        &["http"],
        &[&["core::id", "core::invalid", "core::page"]],
        "http imports only core::id, core::invalid and core::page",
    ),
    arrow(&["telemetry"], &[&["config::environment"]], "telemetry imports only the format of its logs"),
    arrow(&["lib", "config", "shutdown"], &[], "a leaf imports nothing of ours"),
    arrow(
        &[
            "core::instances::service",
            "core::identity::keys_service",
            "core::identity::service",
            "core::tenants::service",
            "core::maintenance",
        ],
        &[&["core", "config"]],
        "services and maintenance import core and config: nothing in core imports HTTP or containers",
    ),
    arrow(
        &["core::instances"],
        &[BASICS, &["core::idempotency", "core::queue::job"]],
        "instances may import idempotency and the leaf queue::job; other nouns meet in a service",
    ),
    arrow(
        &["core::queue"],
        &[BASICS, INSTANCE_TYPES],
        "queue may import reason, restart_policy, spec and state of instances; other nouns meet in a service",
    ),
    arrow(
        &["core::queue::workers"],
        &[BASICS, INSTANCE_TYPES, &["core::hosts"]],
        "a worker is registered together with its host; other nouns meet in a service",
    ),
    arrow(
        &["core::identity"],
        &[BASICS, &["core::idempotency"]],
        "identity may import idempotency; other nouns meet in a service",
    ),
    arrow(
        &["core::tenants"],
        &[BASICS, &["core::identity::invalidation"]],
        "tenants may import identity::invalidation, since a suspension invalidates keys; other nouns meet in a service",
    ),
    arrow(
        &["core::networks", "core::hosts"],
        &[BASICS],
        "nouns do not import each other: they meet in a service, or in the statement that joins them",
    ),
    arrow(
        &["core::queue::job", "core::queue::notify"],
        &[&["core::id", "core::redis", "core::breaker", "core::text_enum", "config"]],
        "queue::job and queue::notify import no noun",
    ),
    arrow(
        &["core::idempotency"],
        &[&["core::db", "core::id"]],
        "idempotency imports the database and ids, and no noun",
    ),
    arrow(
        &["core::read_your_writes"],
        &[&["core::db", "core::id", "core::redis", "core::breaker", "config"]],
        "read_your_writes imports connections and ids, and no noun",
    ),
    arrow(&["core::page"], &[&["core::db"]], "core::page imports what it reads rows with"),
    arrow(&["core::db", "core::redis"], &[&["config", "core::id"]], "a connection imports its settings and no noun"),
    arrow(
        &["core::breaker", "core::id", "core::invalid", "core::label", "core::random", "core::text", "core::text_enum"],
        &[],
        "plain values import nothing of ours",
    ),
];

pub fn arrows(source: &Source) -> Vec<Violation> {
    let mut found = Vec::new();
    for path in &source.paths {
        let module = &path.module;
        let Some(target) = absolute(module, &path.is.segments) else { continue };
        let definition = TREE.definition(&target, 0).map(|source| source.module.as_str());
        let target = target.join("::");
        let reach = |arrow: &&Arrow| arrow.from.iter().filter(|from| within(module, from)).map(|from| from.len()).max();
        let row = ARROWS.iter().filter(|arrow| reach(arrow).is_some()).max_by_key(reach);
        let mut to = row.into_iter().flat_map(|row| row.to).copied().flatten();
        let may_import = |to: &&str| within(&target, to) || definition.is_some_and(|module| within(module, to));
        if !within(&target, own(module)) && !to.any(may_import) {
            let violation = Violation::at(source, Rule::Arrow, path, format!("{module} → {target}"));
            found.push(match row {
                Some(row) => violation.because(row.rule),
                None => violation,
            });
        }
    }
    found
}

/// The subtree that is always open to a module.
fn own(module: &str) -> &str {
    let depth = if within(module, "core") { 2 } else { 1 };
    module.match_indices("::").nth(depth - 1).map_or(module, |(end, _)| &module[..end])
}

#[test]
fn arrows_point_inwards() {
    assert_none(violations(arrows));
}

mod catches {
    use super::*;
    use crate::violation::cases::{assert_catches, assert_lets_pass};

    #[test]
    fn wrong_arrows() {
        assert_catches(
            arrows,
            &[
                ("src/api/jobs.rs", "use crate::worker::ProvisionWorker;"),
                ("src/api/mod.rs", "use crate::{core::id::JobId, backend::{self, Compute as C}};"),
                ("src/api/jobs.rs", "use super::super::worker;"),
                ("src/api/jobs.rs", "fn f() { crate::startup::database(); }"),
                ("src/api/jobs.rs", "use crate::*;"),
                ("src/api/jobs.rs", "tokio::select! { _ = crate::worker::run() => {} }"),
                ("src/api/jobs.rs", "json!({ \"a\": [crate::backend::LIMIT] })"),
                ("src/worker/jobs/mod.rs", "use crate::api::ApiState;"),
                ("src/backend/docker/spec.rs", "fn f(p: &crate::core::instances::spec::Port) {}"),
                ("src/backend/mod.rs", "use crate::config::backend::BackendConfig;"),
                ("src/core/queue/claim.rs", "use crate::backend::ContainerSpec;"),
                ("src/core/queue/claim.rs", "macro_rules! m { () => { $crate::http::problem::new() } }"),
                ("src/core/queue/claim.rs", "macro_rules! m { () => { use crate::{config, http::problem}; } }"),
                ("src/http/query.rs", "use crate::core::{page::Page, queue::job};"),
                ("src/http/body.rs", "mod tests { use super::*; use super::super::super::api; }"),
                ("src/config/redis.rs", "use crate::core::redis;"),
                ("src/shutdown.rs", "use crate::worker::ProvisionWorker;"),
                ("src/telemetry/mod.rs", "use crate::core::id::JobId;"),
                ("src/newcomer.rs", "use crate::core::id::JobId;"),
            ],
        );
        assert_lets_pass(
            arrows,
            &[
                ("src/main.rs", "use app::{cli::Cli, commands};"),
                ("src/commands/serve.rs", "use crate::{api, worker, backend::docker};"),
                (
                    "src/backend/docker/spec.rs",
                    "use super::{super::ContainerSpec, labels}; use crate::{backend::Plan, core::id::JobId};",
                ),
                (
                    "src/http/query.rs",
                    "//! [`crate::worker`]\nconst T: &str = \"use crate::worker;\"; /* crate::api::x */",
                ),
                ("src/http/query.rs", "use std::fmt; use core::fmt::Debug; use crate::core::page::Page;"),
                ("src/core/queue/mod.rs", "pub(in crate::core::networks) fn f() -> impl Sized + use<> {}"),
                ("src/core/queue/mod.rs", "use self::job::JobStatus; info!(a = x.crate_name, \"b\");"),
            ],
        );
    }

    #[test]
    fn nouns_that_meet() {
        assert_catches(
            arrows,
            &[
                ("src/core/queue/store.rs", "use crate::core::instances::store;"),
                ("src/core/queue/store.rs", "use super::super::networks::store;"),
                ("src/core/queue/job.rs", "use crate::core::instances::state::InstanceStatus;"),
                ("src/core/instances/create.rs", "use crate::core::queue::claim;"),
                ("src/core/networks/mod.rs", "use super::tenants;"),
                ("src/core/hosts/store.rs", "use crate::core::{db::DualDb, queue::claim};"),
                ("src/core/hosts/store.rs", "use crate::core;"),
                ("src/core/id.rs", "use crate::core::db::DualDb;"),
                ("src/core/db/mod.rs", "use crate::core::queue::job::JobStatus;"),
                ("src/core/newcomer.rs", "use crate::core::queue::job::JobStatus;"),
                ("src/core/instances/service.rs", "use crate::http::problem;"),
            ],
        );
        assert_lets_pass(
            arrows,
            &[
                (
                    "src/core/queue/store.rs",
                    "use super::job; use crate::core::{db::DbError, id::{JobId, TenantId}, page::*};",
                ),
                ("src/core/queue/claim.rs", "use crate::core::instances::{spec::Port, state::Transition};"),
                ("src/core/instances/delete.rs", "use crate::core::{idempotency, queue::job::JobKind};"),
                ("src/core/instances/service.rs", "use crate::core::{queue::notify::Notifier, tenants};"),
                ("src/core/maintenance.rs", "use crate::core::queue::rescue;"),
            ],
        );
    }

    #[test]
    fn a_violation_has_a_line_a_text_and_a_rule() {
        let text = "//! é\n\nuse crate::{\n    core::id,\n    worker::Context,\n};\n";
        let lines: Vec<_> = arrows(&Source::new("src/api/jobs.rs", text)).iter().map(ToString::to_string).collect();
        let rule = "api imports core, http and config; never worker or backend";
        assert_eq!(lines, [format!("src/api/jobs.rs:5: api::jobs → worker::Context: {rule}")]);
    }
}
