//! `APP_PORT_RANGE`, `APP_DEFAULT_CIDR`: what the API assigns to instances and to new tenants.

use std::ops::RangeInclusive;

use cidr::Ipv4Cidr;
use clap::Args;

use super::value::{Value, value};

/// Ports and addresses that the API assigns.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Instances")]
pub struct InstanceConfig {
    /// Host ports that instances may publish. It must be the same in every process of a cluster.
    #[arg(long, env = "APP_PORT_RANGE", default_value = "20000-29999", value_name = "FIRST-LAST",
          value_parser = port_range())]
    pub port_range: RangeInclusive<u16>,
    /// Address range of the network `default` that each new tenant gets.
    #[arg(long, env = "APP_DEFAULT_CIDR", default_value = "10.64.0.0/16", value_name = "CIDR",
          value_parser = private_cidr())]
    pub default_cidr: Ipv4Cidr,
}

fn port_range() -> Value<RangeInclusive<u16>> {
    value("20000-29999", "`FIRST-LAST`, two ports from 1 to 65535", |text| {
        text.split_once('-')
            .and_then(|(first, last)| Some((first.trim().parse().ok()?, last.trim().parse().ok()?)))
            .filter(|(first, last): &(u16, u16)| *first >= 1 && first <= last)
            .map(|(first, last)| first..=last)
            .ok_or_else(|| format!("\"{text}\" is not FIRST-LAST"))
    })
}

fn private_cidr() -> Value<Ipv4Cidr> {
    value("10.64.0.0/16", "a private IPv4 network of /16 to /29", |text| {
        text.trim()
            .parse()
            .ok()
            .filter(|c: &Ipv4Cidr| c.first_address().is_private() && (16..=29).contains(&c.network_length()))
            .ok_or_else(|| format!("\"{text}\" is not a private network of /16 to /29"))
    })
}
