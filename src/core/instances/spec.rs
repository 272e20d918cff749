//! Parsing a request for an instance: `RawInstance`, the body as it was sent, becomes `InstanceSpec`, which can be accepted.
//!
//! `InstanceSpec::parse` returns everything that is wrong with the body at once, each with a JSON pointer. It refuses what
//! could not be stored or could run nowhere. Whether the image exists and whether a host has room is found out by the job.

use std::{collections::BTreeMap, ops::RangeInclusive};

use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

use super::restart_policy::RestartPolicy;
pub use crate::core::label::is_label;
use crate::core::{id::name_or_id, invalid::Invalid, text_enum::text_enum};

/// The body of `POST /instances`; only `image` is required.
#[derive(Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = CreateInstance)]
pub struct RawInstance {
    /// A lower-case RFC 1123 label, unique per tenant among instances that are not deleted; generated when absent.
    pub name: Option<String>,
    /// The reference of a container image.
    #[schema(example = "nginx:1.27")]
    pub image: String,
    /// The command; the image's own when absent.
    pub command: Option<Vec<String>>,
    /// The environment. Readable with `instances:read`: keep secrets in a secret store.
    #[serde(default, deserialize_with = "null_is_absent")]
    pub env: BTreeMap<String, String>,
    /// The share of processors in thousandths of a core; default 100.
    pub cpu_millis: Option<i32>,
    /// The memory limit in MiB; default 128.
    pub memory_mib: Option<i32>,
    /// A network's name or id; default `default`.
    pub network: Option<String>,
    /// Ports to publish.
    #[serde(default, deserialize_with = "null_is_absent")]
    pub ports: Vec<RawPort>,
    /// Labels, which lists can be filtered by.
    #[serde(default, deserialize_with = "null_is_absent")]
    pub labels: BTreeMap<String, String>,
    /// Whether the process is started again after it ends; default `no`.
    #[schema(value_type = Option<RestartPolicy>)]
    pub restart_policy: Option<String>,
    /// Where the instance may run; anywhere when absent.
    pub placement: Option<Placement>,
}

// `env` may hold the tenant's secrets.
impl std::fmt::Debug for RawInstance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RawInstance").field("image", &self.image).finish_non_exhaustive()
    }
}

/// A port to publish.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RawPort {
    /// The port in the container.
    pub container: i32,
    /// The port on the host; 0 (default): a free one of the cluster's range.
    #[serde(default, deserialize_with = "null_is_absent")]
    pub host: i32,
    /// The protocol; default `tcp`.
    #[schema(value_type = Option<Protocol>)]
    pub protocol: Option<String>,
}

/// Where an instance may run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Placement {
    /// A host's name or id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Labels that the host must have.
    #[serde(default, deserialize_with = "null_is_absent", skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// A published port; in a request, a `host` of 0 means any free port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Port {
    /// The port in the container.
    pub container: u16,
    /// The port on the host, from the cluster's range.
    pub host: u16,
    /// The protocol.
    pub protocol: Protocol,
}

text_enum! {
    /// A published port's protocol.
    pub enum Protocol as Protocol {
        /// TCP.
        Tcp = "tcp",
        /// UDP.
        Udp = "udp",
    }
}

/// A request that can be accepted.
#[derive(Clone)]
pub struct InstanceSpec {
    /// The name; `None`: one is generated.
    pub name: Option<String>,
    /// The reference of the image.
    pub image: String,
    /// The command; `None`: the image's own.
    pub command: Option<Vec<String>>,
    /// The environment.
    pub env: BTreeMap<String, String>,
    /// The share of processors, in thousandths of a core.
    pub cpu_millis: i32,
    /// The memory limit in MiB.
    pub memory_mib: i32,
    /// The network's name or id.
    pub network: String,
    /// The ports to publish; a `host` of 0 is any free port of the range.
    pub ports: Vec<Port>,
    /// The labels.
    pub labels: BTreeMap<String, String>,
    /// Whether the process is started again after it ends.
    pub restart_policy: RestartPolicy,
    /// Where the instance may run.
    pub placement: Placement,
}

// `env` may hold the tenant's secrets.
impl std::fmt::Debug for InstanceSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InstanceSpec").field("image", &self.image).finish_non_exhaustive()
    }
}

/// The longest value of `env` and the longest item of `command`, in bytes of UTF-8.
const TEXT_BYTES_MAX: usize = 32 * 1024;
/// `env` (names and values) and `command` (its items) together, in bytes of UTF-8. Each list of instances carries them, and
/// Docker keeps them in memory.
const ENV_AND_COMMAND_BYTES_MAX: usize = 64 * 1024;
const PORTS_MAX: usize = 64;

/// Reads an optional field that is no `Option`: `null` counts as absent.
fn null_is_absent<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

impl InstanceSpec {
    /// Checks a request. `range`: the host ports that may be named.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn parse(raw: RawInstance, range: &RangeInclusive<u16>) -> Result<Self, Vec<Invalid>> {
        let mut wrong = Vec::new();
        if let Some(name) = &raw.name
            && !is_label(name)
        {
            wrong.push(Invalid::new(
                "/name",
                "invalid",
                "must be 1 to 63 characters of a-z, 0-9 and '-', not starting or ending with '-'",
            ));
        }
        if raw.image.is_empty() || raw.image.len() > 512 || !raw.image.chars().all(is_image_char) {
            wrong.push(Invalid::new("/image", "invalid", "must be an image reference such as nginx:1.27"));
        }
        if let Some(command) = &raw.command {
            check_command(command, &mut wrong);
        }
        check_map("/env", &raw.env, 512, TEXT_BYTES_MAX, |key| !key.is_empty() && !key.contains('='), &mut wrong);
        check_env_and_command(&raw, &mut wrong);
        check_map("/labels", &raw.labels, 64, 255, is_label_name, &mut wrong);
        // Docker's own lower limits. A request that is too large for every host is accepted, and its job fails.
        let cpu_millis = in_range("/cpu_millis", raw.cpu_millis.unwrap_or(100), 10..=10_000_000, &mut wrong);
        let memory_mib = in_range("/memory_mib", raw.memory_mib.unwrap_or(128), 6..=1_000_000_000, &mut wrong);
        let network = name_or_id(raw.network.unwrap_or_else(|| "default".into()));
        if !is_label(&network) {
            wrong.push(Invalid::new("/network", "invalid", "must be a network's name or id"));
        }
        let ports = check_ports(&raw.ports, range, &mut wrong);
        let restart_policy = raw.restart_policy.as_deref().map_or(Ok(RestartPolicy::No), str::parse);
        if restart_policy.is_err() {
            wrong.push(Invalid::new("/restart_policy", "invalid", "must be no, on_failure or always"));
        }
        let mut placement = raw.placement.unwrap_or_default();
        placement.host = placement.host.map(name_or_id);
        if placement.host.as_ref().is_some_and(|host| host.is_empty() || host.len() > 253) {
            wrong.push(Invalid::new("/placement/host", "invalid", "must be a host's name or id"));
        }
        check_map("/placement/labels", &placement.labels, 64, 255, is_label_name, &mut wrong);
        if !wrong.is_empty() {
            return Err(wrong);
        }
        Ok(Self {
            name: raw.name,
            image: raw.image,
            command: raw.command,
            env: raw.env,
            cpu_millis,
            memory_mib,
            network,
            ports,
            labels: raw.labels,
            restart_policy: restart_policy.unwrap_or_default(),
            placement,
        })
    }
}

/// A label's name holds no `=`, which ends it in a query (`label=name=value`).
fn is_label_name(text: &str) -> bool {
    (1..=63).contains(&text.len()) && !text.contains('=')
}

fn is_image_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || "._-/:@".contains(c)
}

fn check_command(command: &[String], wrong: &mut Vec<Invalid>) {
    if command.is_empty() || command.len() > 1024 {
        wrong.push(Invalid::new("/command", "invalid", "must have 1 to 1024 items; leave it out for the image's own"));
    }
    if command.first().is_some_and(String::is_empty) {
        wrong.push(Invalid::new("/command/0", "invalid", "must not be empty"));
    }
    if let Some(at) = command.iter().position(|item| item.len() > TEXT_BYTES_MAX) {
        wrong.push(Invalid::new(
            format!("/command/{at}"),
            "too_long",
            format!("must have at most {TEXT_BYTES_MAX} bytes"),
        ));
    }
}

fn check_env_and_command(raw: &RawInstance, wrong: &mut Vec<Invalid>) {
    let command: usize = raw.command.iter().flatten().map(String::len).sum();
    let env: usize = raw.env.iter().map(|(name, value)| name.len() + value.len()).sum();
    if command + env > ENV_AND_COMMAND_BYTES_MAX {
        let detail = format!("env and command must have at most {ENV_AND_COMMAND_BYTES_MAX} bytes together");
        let parts = [("/command", command), ("/env", env)];
        let parts = parts.into_iter().filter(|(_, bytes)| *bytes > 0);
        wrong.extend(parts.map(|(pointer, _)| Invalid::new(pointer, "too_long", detail.as_str())));
    }
}

fn check_map(
    at: &str,
    map: &BTreeMap<String, String>,
    max_items: usize,
    max_value: usize,
    good_key: impl Fn(&str) -> bool,
    wrong: &mut Vec<Invalid>,
) {
    if map.len() > max_items {
        wrong.push(Invalid::new(at, "too_long", format!("must have at most {max_items} entries")));
    }
    for (key, value) in map {
        // RFC 6901: "~" and "/" inside a pointer's token.
        let pointer = || format!("{at}/{}", key.replace('~', "~0").replace('/', "~1"));
        if !good_key(key) {
            wrong.push(Invalid::new(
                pointer(),
                "invalid",
                "the key is empty, too long or has a character that it must not have",
            ));
        }
        if value.len() > max_value {
            wrong.push(Invalid::new(pointer(), "too_long", format!("must have at most {max_value} bytes")));
        }
    }
}

fn in_range(at: &str, value: i32, range: RangeInclusive<i32>, wrong: &mut Vec<Invalid>) -> i32 {
    if !range.contains(&value) {
        wrong.push(Invalid::new(at, "out_of_range", format!("must be from {} to {}", range.start(), range.end())));
    }
    value
}

fn check_ports(raw: &[RawPort], range: &RangeInclusive<u16>, wrong: &mut Vec<Invalid>) -> Vec<Port> {
    if raw.len() > PORTS_MAX {
        wrong.push(Invalid::new("/ports", "too_long", format!("must have at most {PORTS_MAX} entries")));
    }
    let mut ports: Vec<Port> = Vec::new();
    // Each port is compared with all before it, so the number is limited before the loop.
    for (at, port) in raw.iter().take(PORTS_MAX).enumerate() {
        let pointer = |field: &str| format!("/ports/{at}/{field}");
        let protocol = match port.protocol.as_deref() {
            None | Some("tcp") => Protocol::Tcp,
            Some("udp") => Protocol::Udp,
            Some(_) => {
                wrong.push(Invalid::new(pointer("protocol"), "invalid", "must be tcp or udp"));
                continue;
            }
        };
        let Some(container) = u16::try_from(port.container).ok().filter(|n| *n > 0) else {
            wrong.push(Invalid::new(pointer("container"), "out_of_range", "must be from 1 to 65535"));
            continue;
        };
        let Some(host) = u16::try_from(port.host).ok().filter(|n| *n == 0 || range.contains(n)) else {
            let detail = format!("must be 0 (any free one) or from {} to {}", range.start(), range.end());
            wrong.push(Invalid::new(pointer("host"), "out_of_range", detail));
            continue;
        };
        if ports.iter().any(|p| p.protocol == protocol && p.container == container) {
            wrong.push(Invalid::new(pointer("container"), "duplicate", "is published twice"));
        }
        if host != 0 && ports.iter().any(|p| p.protocol == protocol && p.host == host) {
            wrong.push(Invalid::new(pointer("host"), "duplicate", "is named twice"));
        }
        ports.push(Port { container, host, protocol });
    }
    ports
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn parse(body: Value) -> Result<InstanceSpec, Vec<Invalid>> {
        InstanceSpec::parse(serde_json::from_value(body).expect("the right shape"), &(20000..=29999))
    }

    fn pointers(body: Value) -> Vec<String> {
        parse(body).expect_err("refused").into_iter().map(|wrong| wrong.pointer).collect()
    }

    #[test]
    fn image_is_the_only_required_field() {
        let spec = parse(json!({"image": "nginx:1.27"})).expect("accepted");
        assert_eq!((spec.cpu_millis, spec.memory_mib, spec.network.as_str()), (100, 128, "default"));
        assert_eq!((spec.restart_policy, spec.command), (RestartPolicy::No, None));
    }

    #[test]
    fn everything_wrong_is_reported_at_once_with_its_place() {
        let body = json!({
            "name": "Web_1", "image": "no spaces please", "command": [], "env": {"A=B": "x"}, "cpu_millis": 0,
            "memory_mib": -1, "network": "", "labels": {"": "x", "a=b": "x"}, "restart_policy": "never",
            "ports": [{"container": 0}, {"container": 80, "host": 80}, {"container": 80, "protocol": "icmp"}],
            "placement": {"host": ""},
        });
        let expected = [
            "/name",
            "/image",
            "/command",
            "/env/A=B",
            "/labels/",
            "/labels/a=b",
            "/cpu_millis",
            "/memory_mib",
            "/network",
            "/ports/0/container",
            "/ports/1/host",
            "/ports/2/protocol",
            "/restart_policy",
            "/placement/host",
        ];
        assert_eq!(pointers(body), expected);
    }

    #[test]
    fn env_and_command_are_limited_together() {
        let half = ENV_AND_COMMAND_BYTES_MAX / 2;
        let body = |value: usize| json!({"image": "a", "command": ["x", "x".repeat(half - 1)], "env": {"NAME": "x".repeat(value)}});

        assert!(parse(body(half - 4)).is_ok());
        assert_eq!(pointers(body(half - 3)), ["/command", "/env"]);
        let only_env = json!({"A": "x".repeat(TEXT_BYTES_MAX), "B": "x".repeat(TEXT_BYTES_MAX)});
        assert_eq!(pointers(json!({"image": "a", "env": only_env})), ["/env"]);
    }

    #[test]
    fn optional_field_that_is_null_counts_as_absent() {
        let nulls = json!({
            "name": null, "image": "a", "command": null, "env": null, "cpu_millis": null, "memory_mib": null,
            "network": null, "ports": [{"container": 80, "host": null, "protocol": null}], "labels": null,
            "restart_policy": null, "placement": {"host": null, "labels": null},
        });

        let spec = parse(nulls).expect("accepted");

        assert_eq!((spec.network.as_str(), spec.cpu_millis, spec.placement), ("default", 100, Placement::default()));
        assert!(parse(json!({"image": "a", "ports": null, "placement": null})).is_ok());
    }

    #[test]
    fn port_is_published_once_per_protocol() {
        assert!(
            parse(json!({"image": "a", "ports": [{"container": 53}, {"container": 53, "protocol": "udp"}]})).is_ok()
        );
        let twice =
            json!({"image": "a", "ports": [{"container": 53, "host": 20000}, {"container": 53, "host": 20000}]});
        assert_eq!(pointers(twice), ["/ports/1/container", "/ports/1/host"]);
    }
}
