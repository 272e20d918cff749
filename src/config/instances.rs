//! What the API gives out: `APP_PORT_RANGE` (host ports, cluster-wide) and `APP_DEFAULT_CIDR` (each tenant's first network).

use std::ops::RangeInclusive;

use cidr::Ipv4Cidr;
use clap::Args;

use super::{ConfigError, setting};

#[derive(Args, Clone, Debug)]
pub struct InstanceArgs {
    /// Host ports that instances may publish; the same on every process.
    #[arg(long, env = "APP_PORT_RANGE", default_value = "20000-29999", value_name = "FIRST-LAST")]
    port_range: String,
    /// The network `default` that each new tenant gets.
    #[arg(long, env = "APP_DEFAULT_CIDR", default_value = "10.64.0.0/16", value_name = "CIDR")]
    default_cidr: String,
}

#[derive(Clone, Debug)]
pub struct InstanceConfig {
    pub port_range: RangeInclusive<u16>,
    pub default_cidr: Ipv4Cidr,
}

impl InstanceArgs {
    /// # Errors
    /// The first setting that is wrong.
    pub fn resolve(&self) -> Result<InstanceConfig, ConfigError> {
        let range = setting("APP_PORT_RANGE", &self.port_range, "20000-29999");
        let (first, last) = self
            .port_range
            .split_once('-')
            .and_then(|(first, last)| Some((first.trim().parse().ok()?, last.trim().parse().ok()?)))
            .filter(|(first, last): &(u16, u16)| *first >= 1 && first <= last)
            .ok_or_else(|| range.wrong(format_args!("\"{}\" is not FIRST-LAST", self.port_range)))?;
        Ok(InstanceConfig { port_range: first..=last, default_cidr: self.default_cidr()? })
    }

    /// # Errors
    /// When it is not a private network of /16 to /29.
    pub fn default_cidr(&self) -> Result<Ipv4Cidr, ConfigError> {
        let cidr = setting("APP_DEFAULT_CIDR", &self.default_cidr, "10.64.0.0/16");
        self.default_cidr
            .trim()
            .parse()
            .ok()
            .filter(|c: &Ipv4Cidr| c.first_address().is_private() && (16..=29).contains(&c.network_length()))
            .ok_or_else(|| cidr.wrong(format_args!("\"{}\" is not a private network of /16 to /29", self.default_cidr)))
    }
}
