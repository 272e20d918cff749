//! Parsers of what clients and operators write: no text makes them panic, and what was written by the program is read
//! again as what it was. Parsers that are not public have such tests beside them.

use std::net::Ipv4Addr;

use app::{
    config::{
        database::PostgresUrl,
        instances::InstanceConfig,
        redis::RedisConfig,
        secrets::{KeySecrets, Versioned},
    },
    core::{
        id::{InstanceId, parse_uuid},
        identity::api_key::{KeyEnv, KeyRing, PresentedKey},
        instances::{InstanceSpec, RawInstance},
        page::{PageRequest, parse_cursor},
    },
};
use clap::Parser;
use proptest::{collection::vec, prelude::*};
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use uuid::Uuid;

const PORTS: std::ops::RangeInclusive<u16> = 20000..=29999;

#[derive(Parser)]
struct Instances {
    #[command(flatten)]
    config: InstanceConfig,
}

fn instances(option: &str, text: &str) -> Result<InstanceConfig, clap::Error> {
    Instances::try_parse_from(["test", &format!("--{option}={text}")]).map(|parsed| parsed.config)
}

fn key_ring() -> KeyRing {
    let secret = || vec![Versioned { version: 1, secret: vec![7; 32].into() }];
    KeyRing::new(&KeySecrets { peppers: secret(), tags: secret(), cache: secret() })
}

/// A request's body of the right shape, with values that may be wrong.
fn bodies() -> impl Strategy<Value = Value> {
    let number = prop_oneof![-2..70000_i32, any::<i32>()];
    let protocol =
        prop_oneof![Just(json!("tcp")), Just(json!("udp")), Just(Value::Null), any::<String>().prop_map(Value::from)];
    let port = (number.clone(), number.clone(), protocol)
        .prop_map(|(container, host, protocol)| json!({"container": container, "host": host, "protocol": protocol}));
    let map = || proptest::collection::btree_map(any::<String>(), any::<String>(), 0..4);
    let text = || proptest::option::of(any::<String>());
    let sizes = (proptest::option::of(number.clone()), proptest::option::of(number));
    (
        text(),
        any::<String>(),
        proptest::option::of(vec(any::<String>(), 0..4)),
        sizes,
        map(),
        map(),
        vec(port, 0..4),
        text(),
        text(),
    )
        .prop_map(|(name, image, command, (cpu, memory), env, labels, ports, network, policy)| {
            json!({
                "name": name, "image": image, "command": command, "cpu_millis": cpu, "memory_mib": memory, "env": env,
                "labels": labels, "ports": ports, "network": network, "restart_policy": policy,
                "placement": {"host": network, "labels": labels},
            })
        })
}

proptest! {
    #[test]
    fn instance_spec_is_accepted_or_refused_with_places_in_the_body(body in bodies()) {
        let raw: RawInstance = serde_json::from_value(body.clone()).expect("the right shape");

        if let Err(errors) = InstanceSpec::parse(raw, &PORTS) {
            prop_assert!(!errors.is_empty());
            for error in errors {
                let first = error.pointer.split('/').nth(1).unwrap_or_default();
                prop_assert!(body.get(first).is_some(), "{} is not in {body}", error.pointer);
            }
        }
    }

    #[test]
    fn instance_spec_keeps_what_was_valid(
        name in "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?",
        cpu in 100..1000_i32,
        container in 1..=u16::MAX,
        host in PORTS,
    ) {
        let ports = json!([{"container": container, "host": host}]);
        let body = json!({"name": name, "image": "web:1", "cpu_millis": cpu, "ports": ports});

        let raw = serde_json::from_value(body).expect("the right shape");
        let spec = InstanceSpec::parse(raw, &PORTS).expect("valid");

        prop_assert_eq!((spec.name, spec.cpu_millis), (Some(name), cpu));
        prop_assert_eq!((spec.ports[0].container, spec.ports[0].host), (container, host));
    }

    #[test]
    fn cursor_leads_to_the_item_that_it_was_made_of(bytes in any::<[u8; 16]>(), text in any::<String>()) {
        let id = Uuid::from_bytes(bytes);
        let page = PageRequest { limit: 1, before: None }.finish(vec![(id, 0), (id, 0)], |id| *id);

        prop_assert_eq!(page.next_cursor.as_deref().and_then(parse_cursor), Some(id));
        // Any other text is no cursor, or the one of the item that it leads to.
        if let Some(id) = parse_cursor(&text) {
            let page = PageRequest { limit: 1, before: None }.finish(vec![(id, 0), (id, 0)], |id| *id);
            prop_assert_eq!(page.next_cursor, Some(text));
        }
    }

    #[test]
    fn id_is_read_in_any_case_and_in_one_form_only(bytes in any::<[u8; 16]>(), text in any::<String>()) {
        let id = InstanceId::from(Uuid::from_bytes(bytes));

        for text in [id.to_string(), id.to_string().to_uppercase()] {
            prop_assert_eq!(text.parse::<InstanceId>().ok(), Some(id));
        }
        prop_assert!(parse_uuid(&id.uuid().simple().to_string()).is_err());
        prop_assert!(parse_uuid(&text).is_err() || text.len() == 36);
    }

    #[test]
    fn api_key_is_read_again_and_any_change_is_refused(
        seed in any::<[u8; 30]>(),
        at in 0..56_usize,
        other in "[A-Za-z0-9_é]",
    ) {
        let (ring, mut seed) = (key_ring(), seed);
        let made = ring.generate(KeyEnv::Live, |bytes| {
            // Different bytes at each call: some are not used.
            seed.iter_mut().for_each(|byte| *byte = byte.wrapping_mul(5).wrapping_add(17));
            bytes.copy_from_slice(&seed);
            Ok::<(), std::convert::Infallible>(())
        });
        let key = made.expect("infallible");
        let text = key.text.expose_secret();

        let presented = PresentedKey::parse(text).expect("well-formed");
        prop_assert!(ring.has_valid_tag(&presented));
        prop_assert_eq!(ring.hashes(&presented).next(), Some(key.hash));

        let changed = format!("{}{other}{}", &text[..at], &text[at + 1..]);
        let is_refused = PresentedKey::parse(&changed).is_none_or(|presented| !ring.has_valid_tag(&presented));
        prop_assert!(is_refused || changed == *text);
    }

    #[test]
    fn no_text_is_an_api_key_by_chance(text in any::<String>(), like in "cpk_(live|test)_[0-9A-Za-z]{47}") {
        prop_assert!(PresentedKey::parse(&text).is_none());
        // The checksum lets one of four billion through; the tag is checked then.
        prop_assert!(PresentedKey::parse(&like).is_none_or(|presented| !key_ring().has_valid_tag(&presented)));
    }

    #[test]
    fn default_cidr_is_private_and_of_an_allowed_size(
        address in any::<u32>(),
        length in 0..=33_u8,
        text in any::<String>(),
    ) {
        let written = format!("{}/{length}", Ipv4Addr::from(address));
        for text in [text, written, format!("10.{}.0.0/{length}", address % 256)] {
            if let Ok(config) = instances("default-cidr", &text) {
                let cidr = config.default_cidr;
                prop_assert!(cidr.first_address().is_private() && (16..=29).contains(&cidr.network_length()), "{}", text);
                prop_assert_eq!(cidr.to_string(), text.trim());
            }
        }
    }

    #[test]
    fn port_range_is_read_again(first in any::<u16>(), last in any::<u16>(), text in any::<String>()) {
        let read = instances("port-range", &format!("{first}-{last}")).ok().map(|config| config.port_range);

        prop_assert_eq!(read, (first >= 1 && first <= last).then_some(first..=last));
        prop_assert!(instances("port-range", &text).is_err());
    }

    #[test]
    fn urls_are_read_or_refused_without_their_password(
        password in "[a-z]{12}",
        text in any::<String>(),
        before in "[a-z:/@?=&%0-9]{0,20}",
        after in "[a-z:/@?=&%0-9]{0,20}",
    ) {
        let urls = [
            text,
            format!("{before}{password}{after}"),
            format!("redis://user:{password}@{before}{after}"),
            format!("postgresql://user:{password}@{before}{after}"),
        ];
        for url in urls {
            let redis = RedisConfig::parse(&url).map(|config| format!("{config:?}"));
            let postgres = PostgresUrl::parse(&url).map(|config| format!("{config:?}"));
            for refused in [redis.err(), postgres.err()].into_iter().flatten() {
                prop_assert!(!refused.contains(&password), "{} of {}", refused, url);
            }
        }
    }

    #[test]
    fn urls_lead_to_the_host_and_port_that_they_name(
        host in "[a-z][a-z0-9]{0,20}",
        port in 1..=u16::MAX,
        password in "[a-z]{1,12}",
    ) {
        let redis = RedisConfig::parse(&format!("redis://:{password}@{host}:{port}/3")).expect("valid").fred();
        let postgres = PostgresUrl::parse(&format!("postgresql://u:{password}@{host}:{port}/db")).expect("valid").config();

        let servers: Vec<_> = redis.server.hosts().iter().map(|server| (server.host.to_string(), server.port)).collect();
        prop_assert_eq!(servers, [(host.clone(), port)]);
        prop_assert_eq!((redis.password.as_deref(), redis.database), (Some(password.as_str()), Some(3)));
        prop_assert_eq!(postgres.get_hosts(), [tokio_postgres::config::Host::Tcp(host)]);
        prop_assert_eq!((postgres.get_ports(), postgres.get_password()), (&[port][..], Some(password.as_bytes())));
    }
}
