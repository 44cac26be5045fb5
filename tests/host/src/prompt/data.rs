// SPDX-License-Identifier: GPL-2.0

//! Commands about data exchange: pairs and addresses.

use std::net::IpAddr;
use std::net::Ipv4Addr;

use super::command::IpSet;
use super::preparation;
use super::session::expected;
use super::session::meaning;
use super::session::Failure;
use super::session::Outcome;
use super::session::Session;
use super::words::pool_name;
use crate::ic::kvp;
use crate::ic::E_NO_MORE_ITEMS;
use crate::ic::S_OK;
use crate::service::Service;

impl Session {
    /// Lists a pool.
    pub(super) fn kvp_list(&self, pool: u8) -> Outcome {
        let pairs = self.ready(Service::Kvp)?.enumerate(pool)?;
        for (key, value) in &pairs {
            self.say(&format!("  {key} = {value}"));
        }
        self.say(&format!(
            "{} in pool {}",
            count(pairs.len(), "pair"),
            pool_name(pool)
        ));
        Ok(())
    }

    /// Reads a value.
    pub(super) fn kvp_get(&self, pool: u8, key: &str) -> Outcome {
        let reply = self.ready(Service::Kvp)?.ask(kvp::get(pool, key))?;
        match reply.status {
            S_OK => {
                let value = kvp::value_of(&reply.body);
                let value = value.ok_or_else(|| "the value cannot be read".to_owned())?;
                self.say(&format!("{key} = {value}"));
                Ok(())
            }
            E_NO_MORE_ITEMS => Err(Failure::Failed(format!(
                "pool {} has no key {key:?}",
                pool_name(pool)
            ))),
            status => Err(Failure::Failed(format!("kvp get: {}", meaning(status)))),
        }
    }

    /// Sets a value.
    pub(super) fn kvp_set(&self, pool: u8, key: &str, value: &str) -> Outcome {
        self.ask(Service::Kvp, "kvp set", kvp::set(pool, key, value))?;
        self.say(&format!("{key} = {value}, in pool {}", pool_name(pool)));
        Ok(())
    }

    /// Deletes a key.
    pub(super) fn kvp_delete(&self, pool: u8, key: &str) -> Outcome {
        self.ask(Service::Kvp, "kvp delete", kvp::delete(pool, key))?;
        self.say(&format!("{key} is deleted from pool {}", pool_name(pool)));
        Ok(())
    }

    /// Reads an adapter's addresses.
    pub(super) fn ip_get(&self, mac: Option<String>) -> Outcome {
        let mac = match (mac, self.options.config.foreign) {
            (Some(mac), _) => mac,
            (None, false) => preparation::MAC.to_owned(),
            (None, true) => return expected("ip get MAC"),
        };
        self.ready(Service::Kvp)?;
        let found = self.guest.channel(Service::Kvp).addresses(&mac)?;
        let Some(found) = found else {
            let why = format!("ip get: the guest tells no addresses of an adapter {mac}");
            return Err(Failure::Failed(why));
        };
        let of = |list: &str| match list.trim_matches(';') {
            "" => "none".to_owned(),
            list => list.replace(';', " "),
        };
        self.say(&format!("  addresses     {}", of(&found.addresses)));
        self.say(&format!("  subnets       {}", of(&found.subnets)));
        self.say(&format!("  gateways      {}", of(&found.gateways)));
        self.say(&format!("  name servers  {}", of(&found.name_servers)));
        let dhcp = if found.dhcp { "with" } else { "without" };
        self.say(&format!("adapter {mac}, {dhcp} DHCP"));
        Ok(())
    }

    /// Gives an adapter addresses.
    pub(super) fn ip_set(&self, set: IpSet) -> Outcome {
        let adapter = match (&set.adapter, self.options.config.foreign) {
            (Some(adapter), _) => adapter.clone(),
            (None, false) => preparation::ADAPTER.to_owned(),
            (None, true) => return expected("ip set {ID} ..."),
        };
        let channel = self.ready(Service::Kvp)?;
        let version = channel.wait_negotiated()?.message;
        let body = kvp::set_ip_info(version, &addresses(&set, &adapter));
        let Some(body) = body else {
            return expected("fewer addresses: these do not fit a message");
        };
        self.ask(Service::Kvp, "ip set", body)?;
        match set.addresses.len() {
            0 => self.say(&format!("adapter {adapter} is to use DHCP")),
            length => self.say(&format!(
                "adapter {adapter} has {}",
                count(length, "new address")
            )),
        }
        Ok(())
    }
}

/// The settings in data exchange's form: the addresses of IPv4 first.
fn addresses(set: &IpSet, adapter: &str) -> kvp::Addresses {
    let mut pairs = set.addresses.clone();
    pairs.sort_by_key(|(address, _)| address.is_ipv6());
    let subnet = |(address, length): &(IpAddr, u8)| match address {
        IpAddr::V4(_) => mask(*length).to_string(),
        IpAddr::V6(_) => length.to_string(),
    };
    let list = |addresses: &[IpAddr]| {
        let mut addresses = addresses.to_vec();
        addresses.sort_by_key(IpAddr::is_ipv6);
        let texts: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
        texts.join(";")
    };
    let only: Vec<IpAddr> = pairs.iter().map(|(address, _)| *address).collect();
    let has_4 = only.iter().any(IpAddr::is_ipv4) || only.is_empty();
    let has_6 = only.iter().any(IpAddr::is_ipv6);
    kvp::Addresses {
        adapter: adapter.to_owned(),
        family: u8::from(has_4) + 2 * u8::from(has_6),
        dhcp: only.is_empty(),
        addresses: list(&only),
        subnets: pairs.iter().map(subnet).collect::<Vec<_>>().join(";"),
        gateways: list(&set.gateways),
        name_servers: list(&set.name_servers),
        origins: Vec::new(),
    }
}

/// The mask of a prefix length.
fn mask(length: u8) -> Ipv4Addr {
    let bits = u32::MAX.checked_shl(32 - u32::from(length.min(32)));
    Ipv4Addr::from(bits.unwrap_or(0))
}

/// A number with its noun.
pub(super) fn count(number: usize, what: &str) -> String {
    match (number, what.ends_with('s')) {
        (1, _) => format!("1 {what}"),
        (_, true) => format!("{number} {what}es"),
        (_, false) => format!("{number} {what}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_in_the_protocols_order() {
        let set = IpSet {
            adapter: None,
            addresses: vec![
                ("fd00::2".parse().unwrap(), 64),
                ("10.0.0.2".parse().unwrap(), 20),
            ],
            gateways: vec!["10.0.0.1".parse().unwrap()],
            name_servers: Vec::new(),
        };
        let made = addresses(&set, "{id}");
        assert_eq!((made.family, made.dhcp), (3, false));
        assert_eq!(made.addresses, "10.0.0.2;fd00::2");
        assert_eq!(made.subnets, "255.255.240.0;64");
        assert_eq!(made.gateways, "10.0.0.1");
        let dhcp = addresses(&IpSet::default(), "{id}");
        assert_eq!((dhcp.family, dhcp.dhcp), (1, true));
        assert_eq!(
            (mask(0).to_string(), mask(32).to_string()),
            ("0.0.0.0".into(), "255.255.255.255".into())
        );
    }

    #[test]
    fn things_are_counted() {
        assert_eq!(count(1, "pair"), "1 pair");
        assert_eq!(count(2, "new address"), "2 new addresses");
    }
}
