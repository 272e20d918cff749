//! The registries that images may be pulled from: those with public addresses, and those that the operator allows.
//!
//! The engine sends its requests from inside the host, and to loopback even without TLS. An image named
//! `127.0.0.1:2375/a` would make it send a request to whatever listens there, and the error of the pull would reveal to
//! the tenant what that is. Before a pull, the registry is therefore taken from the reference by the distribution's own
//! grammar, and its name is resolved. A registry without an address, or with one that is not public (RFC 1918,
//! loopback, link-local, …) or is this host's own, is refused; the text is the same for all these causes.
//!
//! Nothing is sent to a registry that is refused, except for the resolution of its name. Docker Hub and the registries
//! that the operator allows are not resolved, because behind a proxy they may have no address here.
//!
//! This does not restrict what the engine does afterwards. It resolves the name again and may get another address by
//! then, it follows redirects of a registry, and it may have mirrors. What it reads there is not shown to tenants
//! (`error`).

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket},
    sync::Arc,
};

use tokio::{net, time};

use super::client::SHORT_CALL_TIMEOUT;
use crate::backend::BackendError;

/// The names of Docker Hub in references. A reference without a registry means Docker Hub too.
const DOCKER_HUB: [&str; 2] = ["docker.io", "index.docker.io"];

/// The registries that the operator allows.
#[derive(Clone, Default)]
pub(super) struct Registries(Arc<HashSet<String>>);

impl From<&[String]> for Registries {
    fn from(names: &[String]) -> Self {
        Self(Arc::new(names.iter().map(|name| canonical(name)).collect()))
    }
}

impl Registries {
    /// Checks that the image may be pulled from its registry.
    ///
    /// # Errors
    /// `ImagePullFailed` when the registry is not allowed; `ImageNotFound` when its name is invalid.
    pub(super) async fn check(&self, image: &str) -> Result<(), BackendError> {
        let Some(registry) = registry_of(image) else { return Ok(()) };
        let Some(host) = host_of(registry) else {
            return Err(BackendError::ImageNotFound(format!("{image}: invalid reference format").into()));
        };
        if DOCKER_HUB.contains(&registry) || self.0.contains(&canonical(registry)) || is_public(host).await {
            return Ok(());
        }
        tracing::info!(image, "refused a pull: its registry has no public address and is not in APP_REGISTRIES");
        let refusal = format!(
            "{image}: the registry's name does not resolve to public addresses, and this cluster does not allow it"
        );
        Err(BackendError::ImagePullFailed(refusal.into()))
    }
}

/// Returns the part of a reference that names its registry, with its port; `None`: Docker Hub. By the distribution's
/// grammar (`reference/normalize.go`) it is the first component, if that has a dot, a colon or a capital letter, or is
/// `localhost`.
fn registry_of(image: &str) -> Option<&str> {
    let (first, _) = image.split_once('/')?;
    let is_registry = first.contains(['.', ':']) || first.contains(char::is_uppercase) || first == "localhost";
    is_registry.then_some(first)
}

/// Returns the host of a registry; `None`: it is not a name or an IPv4 address with an optional port. References with
/// IPv6 addresses have been refused before.
fn host_of(registry: &str) -> Option<&str> {
    let (host, port) = registry.split_once(':').map_or((registry, None), |(host, port)| (host, Some(port)));
    let is_name = !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-'));
    let is_port = port.is_none_or(|port| port.parse::<u16>().is_ok());
    (is_name && is_port).then_some(host)
}

/// Returns the form in which registries are compared: lower case, without a final dot.
fn canonical(registry: &str) -> String {
    let (host, port) = registry.split_once(':').map_or((registry, None), |(host, port)| (host, Some(port)));
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    port.map_or_else(|| host.clone(), |port| format!("{host}:{port}"))
}

/// Returns whether all addresses of the name are public, and none is this host's own.
async fn is_public(host: &str) -> bool {
    if !is_unambiguous(host) {
        return false;
    }
    // With a time-out: a tenant may choose a name whose servers never answer.
    let Ok(Ok(resolved)) = time::timeout(SHORT_CALL_TIMEOUT, net::lookup_host((host, 0))).await else { return false };
    let addresses: Vec<IpAddr> = resolved.map(|address| address.ip()).collect();
    !addresses.is_empty() && addresses.iter().all(|address| is_global(*address) && !is_own(*address))
}

/// Returns whether all resolvers read the name alike. A last label that is a number makes the whole an IPv4 address
/// (WHATWG URL, "ends in a number"), and of its spellings only the dotted decimal one has one meaning: `010.0.0.1` is
/// 8.0.0.1 or 10.0.0.1, `2130706433` and `0x7f.1` are 127.0.0.1 or the name of a host.
fn is_unambiguous(host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host);
    let last = host.rsplit('.').next().unwrap_or_default();
    let is_hex = last.get(..2).is_some_and(|prefix| prefix.eq_ignore_ascii_case("0x"));
    let is_number = !last.is_empty() && last.chars().all(|c| c.is_ascii_digit()) || is_hex;
    !is_number || host.parse::<Ipv4Addr>().is_ok()
}

/// Returns whether an address is public, by IANA's registries of special-purpose addresses.
fn is_global(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => is_global_v4(v4),
        IpAddr::V6(v6) => is_global_v6(v6),
    }
}

fn is_global_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let is_special = a == 0
        || a >= 240
        || address.is_loopback()
        || address.is_private()
        || address.is_link_local()
        || address.is_multicast()
        // Carrier-grade NAT (RFC 6598), protocol assignments (RFC 6890), benchmarks (RFC 2544).
        || a == 100 && b & 0xc0 == 64
        || (a, b, c) == (192, 0, 0)
        || a == 198 && b & 0xfe == 18;
    !is_special
}

fn is_global_v6(address: Ipv6Addr) -> bool {
    let segments = address.segments();
    let v4 = |high: u16, low: u16| Ipv4Addr::from(u32::from(high) << 16 | u32::from(low));
    match segments {
        // Mapped and compatible addresses, NAT64 (RFC 6052) and 6to4 (RFC 3056) contain an IPv4 address, which decides.
        // `::` and `::1` contain 0.0.0.0 and 0.0.0.1.
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => is_global_v4(v4(high, low)),
        [0x2002, high, low, ..] => is_global_v4(v4(high, low)),
        // Protocol assignments, Teredo among them.
        [0x2001, second, ..] if second < 0x200 => false,
        // Global unicast (RFC 4291). Everything else is unique local, link-local, multicast or not assigned.
        [first, ..] => first & 0xe000 == 0x2000,
    }
}

/// Returns whether this host has the address: the kernel then chooses that same address as the source of a datagram to
/// it. Nothing is sent. Binding the address would prove nothing, since `net.ipv4.ip_nonlocal_bind` allows binding any.
fn is_own(address: IpAddr) -> bool {
    let any: IpAddr = if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let source = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect((address, 9))?;
        socket.local_addr()
    });
    source.is_ok_and(|source| source.ip() == address)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_reference_has_a_usable_host_or_none(text in any::<String>(), like in "[a-zA-Z0-9.:/@_-]{0,40}") {
            for image in [text, like] {
                let Some(registry) = registry_of(&image) else { continue };
                let start = format!("{registry}/");
                prop_assert!(image.starts_with(&start));
                if let Some(host) = host_of(registry) {
                    let is_name = host.chars().all(|c| c.is_ascii_alphanumeric() || ".-".contains(c));
                    prop_assert!(is_name && registry.starts_with(host));
                }
                prop_assert_eq!(canonical(&canonical(registry)), canonical(registry));
                is_unambiguous(registry);
            }
        }

        #[test]
        fn numbers_are_unambiguous_as_dotted_decimals_only(address in any::<u32>()) {
            let address = Ipv4Addr::from(address);

            let number = u32::from(address);
            let hexadecimal = format!("0x{number:x}");

            prop_assert!(is_unambiguous(&address.to_string()));
            prop_assert!(!is_unambiguous(&number.to_string()) && !is_unambiguous(&hexadecimal));
        }
    }

    #[test]
    fn registry_of_a_reference_is_that_of_the_distribution() {
        for (image, registry) in [
            ("nginx", None),
            ("nginx:1.27", None),
            ("library/nginx", None),
            ("127.0.0.1:5000", None),
            ("a_b/c", None),
            ("docker.io/nginx", Some("docker.io")),
            ("ghcr.io/a/b:1", Some("ghcr.io")),
            ("registry:5000/a", Some("registry:5000")),
            ("localhost/a", Some("localhost")),
            ("INTERNAL/a", Some("INTERNAL")),
            ("127.0.0.1:5000/a/b@sha256:00", Some("127.0.0.1:5000")),
            ("user@127.0.0.1:5000/a", Some("user@127.0.0.1:5000")),
        ] {
            assert_eq!(registry_of(image), registry, "{image}");
        }
    }

    #[test]
    fn registry_is_a_host_with_an_optional_port() {
        assert_eq!(host_of("ghcr.io"), Some("ghcr.io"));
        assert_eq!(host_of("registry.internal:5000"), Some("registry.internal"));
        for wrong in ["user@127.0.0.1:5000", ":5000", "a:b:1", "a:", "a:x", "a:99999", "a_b.c", "a+b.c"] {
            assert_eq!(host_of(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn numeric_names_other_than_dotted_decimals_are_ambiguous() {
        for host in ["ghcr.io", "127.0.0.1", "8.8.8.8.", "1.example", "0x.example", "localhost", "a1"] {
            assert!(is_unambiguous(host), "{host}");
        }
        for host in ["2130706433", "0x7f.1", "0x7f000001", "127.1", "010.0.0.1", "127.0.0.0x1", "1.2.3.4.5", "a.0X1"] {
            assert!(!is_unambiguous(host), "{host}");
        }
    }

    #[test]
    fn special_purpose_addresses_are_not_global() {
        for (address, expected) in [
            ("8.8.8.8", true),
            ("172.15.0.1", true),
            ("172.32.0.1", true),
            ("100.63.0.1", true),
            ("100.128.0.1", true),
            ("192.0.1.1", true),
            ("223.255.255.255", true),
            ("0.0.0.0", false),
            ("0.1.2.3", false),
            ("10.0.0.1", false),
            ("100.64.0.1", false),
            ("100.127.255.255", false),
            ("127.0.0.1", false),
            ("127.255.0.1", false),
            ("169.254.169.254", false),
            ("172.16.0.1", false),
            ("172.31.255.255", false),
            ("192.0.0.8", false),
            ("192.168.1.1", false),
            ("198.18.0.1", false),
            ("198.19.255.255", false),
            ("224.0.0.1", false),
            ("240.0.0.1", false),
            ("255.255.255.255", false),
            ("2606:4700::1111", true),
            ("2001:4860:4860::8888", true),
            ("::", false),
            ("::1", false),
            ("::7f00:1", false),
            ("::ffff:127.0.0.1", false),
            ("::ffff:10.0.0.1", false),
            ("::ffff:8.8.8.8", true),
            ("64:ff9b::a00:1", false),
            ("64:ff9b::808:808", true),
            ("64:ff9b:1::808:808", false),
            ("2002:7f00:1::1", false),
            ("2002:808:808::1", true),
            ("2001:0:1::", false),
            ("fc00::1", false),
            ("fdff::1", false),
            ("fe80::1", false),
            ("fec0::1", false),
            ("ff02::1", false),
            ("100::1", false),
        ] {
            assert_eq!(is_global(address.parse().expect("an address")), expected, "{address}");
        }
        assert!(is_own(Ipv4Addr::LOCALHOST.into()));
        assert!(!is_own(Ipv4Addr::new(8, 8, 8, 8).into()));
    }

    #[tokio::test]
    async fn registry_without_public_address_is_refused_unless_allowed() {
        let registries = Registries::from(&["127.0.0.1:5000".to_owned(), "Registry.Internal".to_owned()][..]);
        for image in [
            "nginx",
            "docker.io/library/nginx",
            "127.0.0.1:5000/a",
            "registry.internal/a:1",
            "registry.internal./a",
            // A public address: nothing is resolved.
            "8.8.8.8/a",
        ] {
            assert!(registries.check(image).await.is_ok(), "{image}");
        }
        for image in [
            "127.0.0.1/a",
            "127.0.0.1:5001/a",
            "registry.internal:5000/a",
            "localhost/a",
            "localhost:5000/a",
            "localhost.:5000/a",
            "LOCALHOST:5000/a",
            "2130706433:5000/a",
            "0x7f.1/a",
            "127.1:5000/a",
            "10.1.2.3/a",
            "169.254.169.254/a",
            "100.64.0.1:5000/a",
        ] {
            let refused = registries.check(image).await;
            assert!(matches!(refused, Err(BackendError::ImagePullFailed(_))), "{image}: {refused:?}");
        }
        for image in ["user@127.0.0.1:5000/a", "127.0.0.1:x/a"] {
            let invalid = registries.check(image).await;
            assert!(matches!(invalid, Err(BackendError::ImageNotFound(_))), "{image}: {invalid:?}");
        }
    }
}
