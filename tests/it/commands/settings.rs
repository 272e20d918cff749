//! Bad values of every variable of every subcommand: the error is one line, which names the variable and shows a good
//! value.

use std::{
    collections::BTreeSet,
    sync::Mutex,
    time::{Duration, Instant},
};

use app::cli::Cli;
use clap::CommandFactory;

use super::exited::{Exited, run_to_exit};
use crate::support::Cluster;

/// Stands in bad values where a secret would.
pub const SECRET: &str = "sesame";

/// One setting of one subcommand.
pub struct Setting {
    /// The subcommand as typed, such as `keys create`.
    pub role: Vec<String>,
    /// `None` when no environment variable sets it.
    pub variable: Option<String>,
    pub option: Option<String>,
    pub is_secret: bool,
    pub default: Option<String>,
}

/// Returns all settings, read from the program's own command line definition.
pub fn all_settings() -> Vec<Setting> {
    let mut cli = Cli::command();
    cli.build();
    let mut all = Vec::new();
    collect(&cli, &[], &mut all);
    all
}

fn collect(command: &clap::Command, path: &[String], all: &mut Vec<Setting>) {
    let deeper = command.get_subcommands().filter(|sub| sub.get_name() != "help").collect::<Vec<_>>();
    for sub in &deeper {
        collect(sub, &[path, &[sub.get_name().to_owned()]].concat(), all);
    }
    if !deeper.is_empty() {
        return;
    }
    for argument in command.get_arguments() {
        if ["help", "version"].contains(&argument.get_id().as_str()) {
            continue;
        }
        let text = |text: &std::ffi::OsStr| text.to_string_lossy().into_owned();
        all.push(Setting {
            role: path.to_vec(),
            variable: argument.get_env().map(text),
            option: argument.get_long().map(|long| format!("--{long}")),
            is_secret: argument.is_hide_env_values_set(),
            default: argument.get_default_values().first().map(|value| text(value)),
        });
    }
}

/// Values that are wrong in every subcommand.
const BAD: &[(&str, &[&str])] = &[
    ("APP_ALLOW_SIMULATED", &["perhaps", "2"]),
    ("APP_CACHE_SECRETS", &["sesame", "1:sesame", "1:abcd"]),
    ("APP_DEFAULT_CIDR", &["8.8.8.0/24", "10.0.0.0/8", "10.64.0.1/24", "192.168.0.0/30", "fd00::/64", "default", ""]),
    ("APP_DRAIN_TIMEOUT", &["60s", "-1", "4000", ""]),
    ("APP_ENV", &["prod", "Production", ""]),
    ("APP_HEALTHCHECK_WORKER", &["9091", "localhost", "127.0.0.1:99999"]),
    ("APP_HOST_ADDRESS", &["http://192.0.2.10", "a b", "[::1]:80/"]),
    ("APP_HOST_CPU_MILLIS", &["0", "1.5", "-1000", "all"]),
    ("APP_HOST_LABELS", &["zone", "=a", "zone=a,disk"]),
    ("APP_HOST_MEMORY_MIB", &["0", "32GiB", "1e3"]),
    ("APP_HOST_NAME", &["two words", "höst", "../escape", "a/b"]),
    ("APP_HTTP_WORKERS", &["two", "-1", "5000", ""]),
    ("APP_JOB_DEADLINE_MS", &["10m", "1", ""]),
    ("APP_KEY_LIMIT_BURST", &["0", "1.5", "1000001", "many"]),
    ("APP_KEY_LIMIT_RPS", &["-1", "0.0001", "1e7", "fast", "NaN"]),
    ("APP_KEY_NAME", &["", "  "]),
    ("APP_KEY_PEPPERS", &["sesame", "1:sesame", "1:abcd", "62:5e5a", "1:", ",", " , "]),
    ("APP_KEY_SCOPES", &["root", "admin,instances", "Admin", ""]),
    ("APP_KEY_TAG_SECRETS", &["sesame", "1:sesame", "x:sesame", "1:00,2:sesame"]),
    ("APP_LEASE_MS", &["30s", "10", "-1", "99999999999999999999", ""]),
    ("APP_LISTEN", &["8080", ":8080", "localhost:8080", "127.0.0.1", "127.0.0.1:65536", ""]),
    ("APP_LOG_FORMAT", &["xml", "JSON", ""]),
    ("APP_MIGRATE_CHECK", &["maybe"]),
    ("APP_ORPHAN_GRACE_MS", &["10min", "-1"]),
    ("APP_PORT_RANGE", &["20000", "30000-20000", "0-100", "1-70000", "a-b", "-", ""]),
    ("APP_PURGE_YES", &["maybe"]),
    ("APP_RECHECK_MS", &["0", "1"]),
    ("APP_REGISTRIES", &["http://registry.internal", "registry.internal/a", "registry:port", ":5000", "[::1]:5000"]),
    ("APP_RESTART_BACKOFF_MS", &["0", "1s"]),
    ("APP_SHUTDOWN_DELAY_MS", &["2s", "-1"]),
    ("APP_SHUTDOWN_TIMEOUT_MS", &["2s", "700000"]),
    ("APP_SECRETS_DIR", &["/dev/null/secrets", "/proc/secrets"]),
    ("APP_STATE_DIR", &["", "/dev/null/state", "/proc/state"]),
    ("APP_TENANT", &["Acme", "", "a b", "-a", "a.b"]),
    ("APP_WORK_LISTEN", &["9091", "here:9091", ""]),
    ("COMPUTE_BACKEND", &["podman", "Docker", ""]),
    ("DATABASE_PASSWORD_FILE", &["/dev/null/password", "/proc/password"]),
    (
        "DATABASE_READ_URL",
        &["postgresql://u:sesame@h:port/db", "mysql://u:sesame@h/db", "postgresql://u:sesame@h/db?sslmode=always"],
    ),
    (
        "DATABASE_URL",
        &[
            "",
            "sesame",
            "postgresql:///db",
            "postgresql://u:sesame@h:port/db",
            "mysql://u:sesame@h/db",
            "postgresql://u:sesame@h/db?sslmode=always",
            "postgresql://u:sesame@h/db?connect_timeout=soon",
            // A password whose special characters were not encoded: no part of it may be shown either.
            "postgresql://u@h/db?password=a&sesame=b",
            "host=h user=u password=my sesame=x",
            "host=h user=u password='sesame",
        ],
    ),
    ("DB_MAX_CONNS", &["0", "1", "-3", "many", "100000", ""]),
    ("DB_WAIT_SECONDS", &["soon", "-1", "1.5", ""]),
    ("DOCKER_HOST", &["ssh://h", "localhost:2375", "/var/run/docker.sock"]),
    ("IDENTITY_CACHE", &["perhaps", "redis"]),
    ("IDENTITY_L1", &["perhaps", "2"]),
    ("NETWORK_BACKEND", &["bridge", "ovn", "docker", ""]),
    ("RATE_LIMIT_BURST", &["0", "many", ""]),
    ("RATE_LIMIT_RPS", &["-1", "fast", "NaN", ""]),
    ("REDIS_PASSWORD_FILE", &["/dev/null/password", "/proc/password"]),
    (
        "REDIS_URL",
        &[
            "",
            ":6379",
            "redis:port",
            "redis://u:sesame@h:port",
            "http://u:sesame@h",
            "u:sesame://h",
            "rediss://:sesame@",
        ],
    ),
    ("RUST_LOG", &["app=loud", "info,app=7", "app[=info"]),
    ("SIMULATED_FAIL_RATE", &["1.5", "-0.1", "NaN", "5%", ""]),
    ("SIMULATED_LATENCY_MS", &["fast", "-1", ""]),
    ("WORK_CONCURRENCY", &["0", "-1", "1e3", "2000", ""]),
];

/// Returns a command with everything that the subcommand needs besides, so that the setting under test is the only
/// wrong one.
fn command(cluster: &Cluster, role: &[String]) -> std::process::Command {
    let mut command = cluster.command(&role.iter().map(String::as_str).collect::<Vec<_>>());
    // The log level of an operator: the default must not hide the line.
    command.env_remove("RUST_LOG").env_remove("RUST_BACKTRACE");
    // Refused at once if a bad setting got through to where it is used.
    command.env("DB_WAIT_SECONDS", "0");
    if role == ["keys", "create"] {
        command.envs([("APP_TENANT", "acme"), ("APP_KEY_NAME", "first"), ("APP_KEY_SCOPES", "admin")]);
    }
    if role.first().is_some_and(|role| role == "tenants") {
        command.env("APP_TENANT", "acme");
    }
    command
}

fn check_error(what: &str, variable: &str, value: &str, exited: &Exited) -> Result<(), String> {
    let line = exited.stderr.trim_end();
    let wrong = |problem: &str| Err(format!("{what}: {problem}: {exited:?}"));
    if exited.code != Some(1) {
        return wrong("the exit code");
    }
    if exited.took > Duration::from_secs(20) {
        return wrong("it took too long");
    }
    if exited.stderr.lines().count() != 1 || !exited.stdout.is_empty() {
        return wrong("not one line");
    }
    let Some(rest) = line.strip_prefix(&format!("app: {variable}: ")) else {
        return wrong("the line does not begin with the variable");
    };
    let Some((problem, example)) = rest.split_once(&format!("; example: {variable}=")) else {
        return wrong("no example");
    };
    if problem.len() < 8 || example.is_empty() {
        return wrong("is too short");
    }
    if line.contains(SECRET)
        || (value.len() > 3
            && ["APP_CACHE_SECRETS", "APP_KEY_PEPPERS", "APP_KEY_TAG_SECRETS"].contains(&variable)
            && line.contains(value))
    {
        return wrong("shows a secret");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_values_give_one_line_with_variable_reason_and_example() {
    let cluster = Cluster::simulated().await;
    let all = all_settings();
    let mut cases = Vec::new();
    for setting in &all {
        let (role, variable) = (&setting.role, setting.variable.as_deref().unwrap_or("none"));
        let Some((_, values)) = BAD.iter().find(|(known, _)| *known == variable) else {
            panic!("{role:?} takes {variable}, for which there is no bad value here");
        };
        for (n, value) in values.iter().enumerate() {
            let mut by_variable = command(&cluster, role);
            by_variable.env(variable, value);
            cases.push((format!("{role:?} {variable}={value}"), variable, *value, by_variable));
            // An option is the same setting, so one bad value is enough.
            if n == 0 {
                let option = setting.option.as_deref().unwrap();
                let mut by_option = command(&cluster, role);
                by_option.arg(format!("{option}={value}"));
                cases.push((format!("{role:?} {option}={value}"), variable, *value, by_option));
            }
        }
    }
    let known: BTreeSet<&str> = all.iter().filter_map(|setting| setting.variable.as_deref()).collect();
    let tested: BTreeSet<&str> = BAD.iter().map(|(variable, _)| *variable).collect();
    assert_eq!(known, tested, "variables that no subcommand reads");

    let (queue, wrong) = (Mutex::new(cases), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().unwrap().pop();
                    let Some((what, variable, value, command)) = next else { return };
                    let started = Instant::now();
                    let exited = ended_or_killed(command);
                    if let Err(problem) = exited.and_then(|exited| check_error(&what, variable, value, &exited)) {
                        wrong.lock().unwrap().push(format!("{problem} ({:?})", started.elapsed()));
                    }
                }
            });
        }
    });
    let wrong = wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

/// Collects a panic as a failure, so that the test reports all of them and not only the first.
fn ended_or_killed(command: std::process::Command) -> Result<Exited, String> {
    let what = format!("{command:?}");
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run_to_exit(command, Duration::from_secs(60))))
        .map_err(|_| format!("{what} did not end"))
}

#[test]
fn options_and_environment_variables_correspond() {
    let all = all_settings();
    assert!(all.len() > 80, "the walk found only {}", all.len());

    for Setting { role, variable, option, .. } in &all {
        assert!(variable.is_some() && option.is_some(), "{role:?}: {variable:?} and {option:?} belong together");
    }
    // One variable is one setting everywhere: the same option, the same default.
    for one in &all {
        for other in all.iter().filter(|other| other.variable == one.variable) {
            assert_eq!((&one.option, &one.default), (&other.option, &other.default), "{:?} {:?}", one.role, other.role);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn option_overrides_its_variable() {
    let cluster = Cluster::simulated().await;

    let mut command = cluster.command(&["migrate", "--db-max-conns", "3"]);
    command.env("DB_MAX_CONNS", "nonsense");
    run_to_exit(command, Duration::from_secs(60)).expect(0);

    let mut command = cluster.command(&["migrate", "--db-max-conns", "nonsense"]);
    command.env("DB_MAX_CONNS", "3").env_remove("RUST_LOG");
    let line = run_to_exit(command, Duration::from_secs(60)).expect(1).line().to_owned();
    assert!(line.starts_with("app: DB_MAX_CONNS: \"nonsense\""), "{line}");
}
