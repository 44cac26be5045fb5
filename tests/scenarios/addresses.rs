// SPDX-License-Identifier: GPL-2.0

//! Addresses of the guest's network adapters, with the distribution's `hv_kvp_daemon`. Messages have them as numbers
//! from version 5.0 of data exchange on, and as text before.

use host::bytes::put;
use host::guest::Module;
use host::guest::Result;
use host::ic::kvp;
use host::ic::E_FAIL;
use host::ic::E_INVALID_ARGUMENT;
use host::ic::S_OK;
use host::service::Service;
use host::service::Version;

use crate::daemon;
use crate::daemon::Talk;
use crate::kvp::begin;
use crate::kvp::newest;
use crate::kvp::NUMBERS;
use crate::kvp::TEXT;
use crate::scenario::Context;
use crate::scenario::Scenario;

/// HV_GUID_NOTFOUND
const E_NOT_FOUND: u32 = 0x8004_1002;

/// The parameter that sets the newest version.
const PROTOCOL: &str = "/sys/module/hv_utils/parameters/kvp_protocol";

/// Texts of log lines about addresses that are rejected or left out.
pub const REFUSED: &[&str] = &[
    "GET_IP_INFO fails, status 0x80004005",
    "SET_IP_INFO fails, status 0x80070057",
    "GET_IP_INFO: subnets missing",
    "callbacks suppressed",
];

/// The scenarios of this file.
pub const SCENARIOS: &[Scenario] = &[
    Scenario::new("kvp_addresses", addresses).daemons(),
    Scenario::new("kvp_addresses_as_numbers", addresses_as_numbers)
        .daemons()
        .rust_only(),
    Scenario::new(
        "kvp_addresses_of_the_guest_that_do_not_fit",
        guest_has_too_many,
    )
    .daemons()
    .rust_only()
    .expects_log(REFUSED),
    Scenario::new(
        "kvp_addresses_of_the_host_that_do_not_fit",
        host_has_too_many,
    )
    .daemons()
    .rust_only()
    .expects_log(REFUSED),
    Scenario::new("kvp_addresses_asked_for_by_a_host", host_asks_for_addresses).daemons(),
    Scenario::new("kvp_protocol", protocol)
        .daemons()
        .rust_only()
        .expects_log(&[
            "no version that is known",
            "`3' invalid for parameter `kvp_protocol'",
        ]),
];

/// The host reads an adapter's addresses, and sets others, through the daemon's scripts.
fn addresses(t: &Context<'_>) -> Result<()> {
    with_adapter(t, |id| give_addresses(t, id))
}

/// Calls `run` with the id of a network adapter whose addresses the daemon can set.
pub fn with_adapter(t: &Context<'_>, run: impl FnOnce(&str) -> Result<()>) -> Result<()> {
    // The guest has no network adapter of Hyper-V. A bind mount lets the daemon find an adapter's GUID at dummy0.
    let id = "{f8615163-df3e-46c5-913f-f2d2f965ed0e}";
    let script = "#!/bin/sh\\n. \"$1\"\\nip addr flush dev $DEVICE\\nip addr add $IPADDR0/$NETMASK0 dev $DEVICE\\n\
                  cp \"$2\" /tmp/nmconnection\\n";
    t.sh_ok(&format!(
        "ip addr flush dev dummy0; ip link set dummy0 address 00:15:5d:01:02:03 up && \
         ip addr add 10.9.8.7/24 dev dummy0 && rm -rf /tmp/nmconnection && \
         printf '{script}' >/usr/libexec/hypervkvpd/hv_set_ifconfig && \
         chmod +x /usr/libexec/hypervkvpd/hv_set_ifconfig && \
         mkdir -p /tmp/net/dummy0/device && echo '{id}' >/tmp/net/dummy0/device/device_id && \
         cat /sys/class/net/dummy0/address >/tmp/net/dummy0/address && mount --bind /tmp/net /sys/class/net"
    ))?;
    let result = run(id);
    t.sh_ok(
        "umount /sys/class/net; rm -rf /tmp/net; ip addr flush dev dummy0; \
         echo 1 >/proc/sys/net/ipv6/conf/dummy0/disable_ipv6",
    )?;
    result
}

/// The addresses that the host sets.
pub fn new_addresses(id: &str) -> kvp::Addresses {
    kvp::Addresses {
        adapter: id.to_owned(),
        family: 1,
        dhcp: false,
        addresses: "10.20.30.40".to_owned(),
        subnets: "255.255.0.0".to_owned(),
        gateways: "10.20.0.1".to_owned(),
        name_servers: "10.20.0.2;10.20.0.3".to_owned(),
        origins: Vec::new(),
    }
}

/// The MAC address of the adapter.
const MAC: &str = "00:15:5D:01:02:03";

/// Negotiates a single version. Fails if the guest does not agree on it.
pub fn negotiate(talk: Talk<'_>, version: Version) -> Result<()> {
    talk.channel.negotiate(&[(3, 0)], &[version]).map(|_| ())
}

/// Checks that a file in the guest has these lines.
fn has_lines(t: &Context<'_>, file: &str, lines: &[&str]) -> Result<()> {
    let text = t.sh_ok(&format!("cat {file}"))?;
    let has = |line: &&&str| !text.lines().any(|it| it == **line);
    match lines.iter().find(has) {
        Some(missing) => Err(format!("{file} has no line {missing}: {text}").into()),
        None => Ok(()),
    }
}

/// Checks that the guest reports these addresses of the adapter, as numbers.
fn tells(t: &Context<'_>, talk: Talk<'_>, expected: &kvp::Addresses) -> Result<()> {
    let request = kvp::get_ip_info(NUMBERS, MAC);
    let reply = talk.expect("GET_IP_INFO", request.clone(), S_OK)?;
    // The bytes before and behind the numbers have not changed.
    t.equal("bytes before", &reply.body[..4], &request[..4])?;
    t.equal("bytes behind", &reply.body[3716..], &request[3716..])?;
    let got = kvp::addresses(NUMBERS, &reply.body).ok_or("addresses that a host cannot read")?;
    t.equal("addresses", &got, expected)
}

/// With version 5.0 the host reads an adapter's addresses of both families as numbers, and sets others, through the
/// daemon's scripts.
fn addresses_as_numbers(t: &Context<'_>) -> Result<()> {
    with_adapter(t, |id| numbers(t, id))
}

fn numbers(t: &Context<'_>, id: &str) -> Result<()> {
    // Start the daemon before there are name servers: when it starts, it asks them for the guest's name.
    let talk = begin(t)?;
    tells_numbers(t, talk)?;
    takes_numbers(t, talk, id)?;
    takes_dhcp(t, talk, id)?;
    t.sh_ok("rm /etc/resolv.conf")?;
    talk.finish()
}

/// The host reads addresses of both families: static ones, and of DHCP. Then none, and those of an unknown adapter.
fn tells_numbers(t: &Context<'_>, talk: Talk<'_>) -> Result<()> {
    t.sh_ok(
        "echo 0 >/proc/sys/net/ipv6/conf/dummy0/disable_ipv6; ip addr flush dev dummy0; \
         ip addr add 10.9.8.7/24 dev dummy0 && ip addr add 10.9.9.7/16 dev dummy0 && \
         ip -6 addr add fd00::1:2/64 dev dummy0 && ip -6 addr add 2001:db8::9/127 dev dummy0 && \
         ip route add default via 10.9.8.1 dev dummy0 && ip -6 route add default via fd00::1 dev dummy0 && \
         printf 'search example\\nnameserver 10.9.8.2\\nnameserver fe80::2%%dummy0\\n' >/etc/resolv.conf",
    )?;
    let mut expected = kvp::Addresses {
        adapter: MAC.to_owned(),
        family: 3,
        dhcp: false,
        addresses: "10.9.8.7;10.9.9.7;2001:db8::9;fd00::1:2".to_owned(),
        subnets: "255.255.255.0;255.255.0.0;127;64".to_owned(),
        gateways: "10.9.8.1;fd00::1".to_owned(),
        // The interface's name is cut off: the host cannot use it.
        name_servers: "10.9.8.2;fe80::2".to_owned(),
        origins: vec![kvp::origin::STATIC; 4],
    };
    tells(t, talk, &expected)?;
    t.sh_ok(
        "mkdir -p /etc/sysconfig/network-scripts && \
         echo BOOTPROTO=dhcp >/etc/sysconfig/network-scripts/ifcfg-dummy0",
    )?;
    expected.dhcp = true;
    expected.origins = vec![kvp::origin::OTHER; 4];
    tells(t, talk, &expected)?;
    t.sh_ok("rm -r /etc/sysconfig; ip addr flush dev dummy0")?;
    // Without addresses there is no family, and the daemon looks for nothing else.
    let none = kvp::Addresses {
        adapter: MAC.to_owned(),
        ..kvp::Addresses::default()
    };
    tells(t, talk, &none)?;
    let unknown = kvp::get_ip_info(NUMBERS, "00:15:5D:00:00:00");
    talk.expect("GET_IP_INFO of another adapter", unknown, E_FAIL)
        .map(|_| ())
}

/// The host sets addresses of both families. Both files of the daemon have them, and its script gets them.
fn takes_numbers(t: &Context<'_>, talk: Talk<'_>, id: &str) -> Result<()> {
    let given = kvp::Addresses {
        adapter: id.to_owned(),
        family: 3,
        dhcp: false,
        addresses: "10.20.30.40;10.20.30.41;fd00::40;fd00::41".to_owned(),
        subnets: "255.255.0.0;255.255.255.128;64;128".to_owned(),
        gateways: "10.20.0.1;fd00::1".to_owned(),
        name_servers: "10.20.0.2;10.20.0.3;fd00::2".to_owned(),
        origins: Vec::new(),
    };
    let request = kvp::set_ip_info(NUMBERS, &given).ok_or("no room")?;
    talk.expect("SET_IP_INFO", request, S_OK)?;
    has_lines(
        t,
        "/var/lib/hyperv/ifcfg-dummy0",
        &[
            "DEVICE=dummy0",
            "BOOTPROTO=none",
            "IPADDR0=10.20.30.40",
            "IPADDR1=10.20.30.41",
            "IPV6ADDR=fd00:0000:0000:0000:0000:0000:0000:0040",
            "IPV6ADDR_1=fd00:0000:0000:0000:0000:0000:0000:0041",
            "NETMASK0=255.255.0.0",
            "NETMASK1=255.255.255.128",
            "IPV6NETMASK=64",
            "IPV6NETMASK_1=128",
            "GATEWAY=10.20.0.1",
            "IPV6_DEFAULTGW=fd00:0000:0000:0000:0000:0000:0000:0001",
            "DNS1=10.20.0.2",
            "DNS2=10.20.0.3",
            "DNS3=fd00:0000:0000:0000:0000:0000:0000:0002",
        ],
    )?;
    has_lines(
        t,
        "/tmp/nmconnection",
        &[
            "method=manual",
            "address1=10.20.30.40/16",
            "address2=10.20.30.41/25",
            "gateway=10.20.0.1",
            "dns=10.20.0.2,10.20.0.3",
            "address1=fd00::40/64",
            "address2=fd00::41/128",
            "gateway=fd00::1",
            "dns=fd00::2",
        ],
    )?;
    // The host now reads the addresses that the script has set.
    let reply = talk.expect("GET_IP_INFO", kvp::get_ip_info(NUMBERS, MAC), S_OK)?;
    let got = kvp::addresses(NUMBERS, &reply.body).ok_or("addresses that a host cannot read")?;
    t.equal(
        "address and mask",
        (got.addresses.as_str(), got.subnets.as_str()),
        ("10.20.30.40", "255.255.0.0"),
    )
}

/// The host sets an adapter to DHCP. For an unknown adapter the request fails.
fn takes_dhcp(t: &Context<'_>, talk: Talk<'_>, id: &str) -> Result<()> {
    let dhcp = kvp::Addresses {
        adapter: id.to_owned(),
        family: 1,
        dhcp: true,
        ..kvp::Addresses::default()
    };
    let request = kvp::set_ip_info(NUMBERS, &dhcp).ok_or("no room")?;
    talk.expect("SET_IP_INFO of DHCP", request, S_OK)?;
    has_lines(t, "/var/lib/hyperv/ifcfg-dummy0", &["BOOTPROTO=dhcp"])?;
    let other = kvp::Addresses {
        adapter: "{00000000-0000-0000-0000-000000000000}".to_owned(),
        ..dhcp
    };
    let request = kvp::set_ip_info(NUMBERS, &other).ok_or("no room")?;
    talk.expect("SET_IP_INFO of another adapter", request, E_NOT_FOUND)
        .map(|_| ())
}

/// The daemon leaves out some values. The host gets the others, and the log has the number of missing ones.
fn daemon_leaves_out(t: &Context<'_>, talk: Talk<'_>) -> Result<()> {
    let request = || kvp::get_ip_info(NUMBERS, MAC);
    // The daemon leaves out prefix lengths of many IPv6 addresses.
    t.sh_ok(
        "echo 0 >/proc/sys/net/ipv6/conf/dummy0/disable_ipv6; ip addr flush dev dummy0; \
         i=10; while [ $i -lt 44 ]; do \
         ip -6 addr add fd00::$i/64 dev dummy0 || exit 1; i=$((i + 1)); done",
    )?;
    let lacks = |subnets: usize, servers: usize| {
        format!(
            "hv_utils: KVP: GET_IP_INFO: subnets missing: {subnets}, \
             gateways and name servers that are no addresses: {servers}"
        )
    };
    let reply = talk.expect("34 IPv6 addresses", request(), S_OK)?;
    let got = kvp::addresses(NUMBERS, &reply.body).ok_or("no addresses")?;
    t.equal("addresses", got.addresses.split(';').count(), 34)?;
    let mut subnets = vec!["64"; 32];
    subnets.extend(["0"; 2]);
    t.equal("prefix lengths", got.subnets, subnets.join(";"))?;
    t.log_has(&lacks(2, 0))?;

    t.sh_ok(
        "ip addr flush dev dummy0; ip addr add 10.9.8.7/24 dev dummy0; \
         printf 'nameserver %s\\n' 10.9.8.1 nobody 10.9.8.2 >/etc/resolv.conf",
    )?;
    // A host that polls causes one log line.
    for _ in 0..2 {
        let reply = talk.expect("a name server without an address", request(), S_OK)?;
        let got = kvp::addresses(NUMBERS, &reply.body).ok_or("no addresses")?;
        t.equal(
            "name servers",
            got.name_servers.as_str(),
            "10.9.8.1;10.9.8.2",
        )?;
        t.equal("lines", t.kernel_log()?.matches(&lacks(0, 1)).count(), 1)?;
    }
    t.sh_ok("rm /etc/resolv.conf")?;
    Ok(())
}

/// The guest has more addresses or gateways than a message has room for. The request fails with empty lists, and the
/// log has the reason.
fn guest_has_too_many(t: &Context<'_>) -> Result<()> {
    with_adapter(t, |_| {
        let talk = begin(t)?;
        let request = || kvp::get_ip_info(NUMBERS, MAC);
        let fails = |why: &str| -> Result<()> {
            let reply = talk.expect(why, request(), E_FAIL)?;
            t.equal("counts", &reply.body[4..28], &[0; 24])?;
            t.log_has(&format!(
                "hv_utils: KVP: {why}: GET_IP_INFO fails, status 0x80004005"
            ))
        };
        let add = |from: u32, to: u32| {
            t.sh_ok(&format!(
                "i={from}; while [ $i -le {to} ]; do ip addr add 10.9.9.$i/24 dev dummy0 || exit 1; i=$((i + 1)); done"
            ))
        };
        // The daemon runs this script once for each address, which takes long: turn it off.
        let script = "/usr/libexec/hypervkvpd/hv_get_dhcp_info";
        t.sh_ok(&format!("chmod -x {script}; ip addr flush dev dummy0"))?;
        add(1, 64)?;
        let reply = talk.expect("64 addresses", request(), S_OK)?;
        let got = kvp::addresses(NUMBERS, &reply.body).ok_or("no addresses")?;
        t.equal("addresses", got.addresses.split(';').count(), 64)?;
        add(65, 65)?;
        fails("more than 64 IPv4 addresses")?;

        t.sh_ok("ip addr flush dev dummy0; ip addr add 10.9.8.7/24 dev dummy0")?;
        let routes = |from: u32, to: u32| {
            t.sh_ok(&format!(
                "i={from}; while [ $i -le {to} ]; do \
                 ip route add default via 10.9.8.$i dev dummy0 metric $i || exit 1; i=$((i + 1)); done"
            ))
        };
        routes(1, 5)?;
        let reply = talk.expect("5 gateways", request(), S_OK)?;
        let got = kvp::addresses(NUMBERS, &reply.body).ok_or("no addresses")?;
        t.equal("gateways", got.gateways.split(';').count(), 5)?;
        routes(6, 6)?;
        fails("more than 5 IPv4 gateways")?;

        daemon_leaves_out(t, talk)?;
        talk.expect("a good one", request(), S_OK)?;
        t.sh_ok(&format!("chmod +x {script}"))?;
        talk.finish()
    })
}

/// The host sends too many or invalid addresses. The module rejects them, and does not ask the daemon.
fn host_has_too_many(t: &Context<'_>) -> Result<()> {
    let talk = begin(t)?;
    // A stopped daemon: a request that reached it would wait.
    daemon::KVP.stop(t)?;
    too_long(t, talk)?;
    let empty = kvp::set_ip_info(NUMBERS, &kvp::Addresses::default()).ok_or("no room")?;
    too_many(t, talk, &empty, |room| room + 1)?;
    // The module logs ten of these in five seconds.
    t.sh_ok("sleep 6")?;
    too_many(t, talk, &empty, |_| u32::MAX)?;
    let mut request = empty.clone();
    put(&mut request, kvp::COUNTS[1], &1u32.to_le_bytes());
    put(&mut request, kvp::PREFIXES, &129u32.to_le_bytes());
    refused(t, talk, "invalid subnets", request)?;
    let hole = kvp::Addresses {
        addresses: "10.0.0.1".to_owned(),
        subnets: "255.0.255.0".to_owned(),
        ..kvp::Addresses::default()
    };
    let request = kvp::set_ip_info(NUMBERS, &hole).ok_or("no room")?;
    refused(t, talk, "invalid subnets", request)?;
    let mut request = empty.clone();
    request[28..284].fill(0x61);
    refused(t, talk, "too long for the daemon: adapter's id", request)?;
    for length in [4, 100, 3715] {
        let body = empty[..length].to_vec();
        talk.expect(&format!("{length} bytes"), body, E_INVALID_ARGUMENT)?;
    }
    daemon::KVP.resume(t)?;
    talk.expect("a good one", kvp::enumerate(kvp::AUTO, 0), S_OK)?;
    talk.finish()
}

/// Checks that SET_IP_INFO is rejected, and that the log has one more line with the reason.
fn refused(t: &Context<'_>, talk: Talk<'_>, why: &str, request: Vec<u8>) -> Result<()> {
    let line = format!("hv_utils: KVP: {why}: SET_IP_INFO fails, status 0x80070057");
    let count = || -> Result<usize> { Ok(t.kernel_log()?.matches(&line).count()) };
    let before = count()?;
    talk.expect(why, request, E_INVALID_ARGUMENT)?;
    t.equal(&format!("lines {line:?}"), count()?, before + 1)
}

/// Lists that fit as numbers, but not as text.
fn too_long(t: &Context<'_>, talk: Talk<'_>) -> Result<()> {
    let many = |text: &str, count: usize| vec![text; count].join(";");
    let long = kvp::Addresses {
        adapter: "{id}".to_owned(),
        family: 2,
        addresses: many("fd00:1111:2222:3333:4444:5555:6666:7777", 64),
        subnets: many("64", 64),
        ..kvp::Addresses::default()
    };
    let request = kvp::set_ip_info(NUMBERS, &long).ok_or("no room")?;
    refused(t, talk, "too long for the daemon: addresses", request)?;
    let servers = kvp::Addresses {
        name_servers: long.addresses,
        ..kvp::Addresses::default()
    };
    let request = kvp::set_ip_info(NUMBERS, &servers).ok_or("no room")?;
    refused(t, talk, "too long for the daemon: name servers", request)
}

/// Each list claims more entries than there is room for. `count` gives the number.
fn too_many(t: &Context<'_>, talk: Talk<'_>, empty: &[u8], count: fn(u32) -> u32) -> Result<()> {
    let lists = [
        (64, "IPv4 addresses"),
        (64, "IPv6 addresses"),
        (5, "IPv4 gateways"),
        (5, "IPv6 gateways"),
        (64, "IPv4 name servers"),
        (64, "IPv6 name servers"),
    ];
    for (at, (room, list)) in kvp::COUNTS.into_iter().zip(lists) {
        let mut request = empty.to_vec();
        put(&mut request, at, &count(room).to_le_bytes());
        refused(t, talk, &format!("more than {room} {list}"), request)?;
    }
    Ok(())
}

/// The emulated host acts for the service. It asks for addresses with version 5.0, and not with older versions.
fn host_asks_for_addresses(t: &Context<'_>) -> Result<()> {
    with_adapter(t, |_| {
        let channel = t.channel(Service::Kvp);
        channel.auto()?;
        daemon::KVP.start(t)?;
        t.equal("version", channel.wait_negotiated()?.message, newest(t))?;
        let told = channel.addresses(MAC);
        if t.module() == Module::C {
            let error = told.err().map(|error| error.to_string());
            return t.check(
                error
                    .as_deref()
                    .is_some_and(|error| error.contains("need version 5.0")),
                &format!("the host does not ask ({error:?})"),
            );
        }
        let got = told?.ok_or("the guest does not tell")?;
        t.check(
            got.addresses.contains("10.9.8.7"),
            &format!("{got:?} has 10.9.8.7"),
        )
    })
}

/// With `kvp_protocol=4` the next negotiation agrees on 4.0.
fn protocol(t: &Context<'_>) -> Result<()> {
    let value = || t.sh_ok(&format!("cat {PROTOCOL}"));
    t.equal("the default", value()?.as_str(), "5")?;
    let talk = begin(t)?;
    let agrees_on = |version| -> Result<()> {
        let versions = talk.channel.negotiate_all()?;
        t.equal("version", versions.message, version)
    };
    agrees_on(NUMBERS)?;
    t.sh_ok(&format!("echo 4 >{PROTOCOL}"))?;
    // The version of the last negotiation still holds.
    let request = || kvp::get_ip_info(NUMBERS, MAC);
    with_adapter(t, |_| {
        talk.expect("GET_IP_INFO", request(), S_OK).map(|_| ())
    })?;
    agrees_on(TEXT)?;
    with_adapter(t, |id| give_addresses_as_text(t, talk, id))?;
    talk.channel.negotiate_in_vain(&[(3, 0)], &[NUMBERS])?;
    for refused in ["3", "6", "0", "4294967300", "-1", "x", ""] {
        let output = t.sh(&format!("echo {refused} >{PROTOCOL}"))?;
        t.check(
            output.text.contains("Invalid argument"),
            &format!("{refused:?} is invalid ({:?})", output.text),
        )?;
    }
    t.equal("the value", value()?.as_str(), "4")?;
    t.sh_ok(&format!("echo 5 >{PROTOCOL}"))?;
    agrees_on(NUMBERS)?;
    talk.finish()?;
    daemon::KVP.kill(t)?;
    if t.config().built_in {
        return Ok(());
    }
    t.unload()?;
    t.check(
        t.load_with("kvp_protocol=3").is_err(),
        "the module refuses 3",
    )?;
    t.log_has("`3' invalid for parameter `kvp_protocol'")?;
    t.load_with("kvp_protocol=4")?;
    t.equal("the value", value()?.as_str(), "4")?;
    talk.channel.wait_open()?;
    let talk = begin(t)?;
    let versions = talk.channel.negotiate_all()?;
    t.equal("version", versions.message, TEXT)?;
    t.log_has("KVP IC version 4.0")?;
    talk.finish()?;
    daemon::KVP.kill(t)?;
    t.unload()?;
    t.load()
}

fn give_addresses(t: &Context<'_>, id: &str) -> Result<()> {
    let talk = begin(t)?;
    // C's newest version.
    negotiate(talk, TEXT)?;
    give_addresses_as_text(t, talk, id)
}

fn give_addresses_as_text(t: &Context<'_>, talk: Talk<'_>, id: &str) -> Result<()> {
    let reply = talk.expect("GET_IP_INFO", kvp::get_ip_info(TEXT, MAC), S_OK)?;
    let got = kvp::addresses(TEXT, &reply.body).ok_or("no addresses")?;
    t.check(
        got.addresses.contains("10.9.8.7"),
        &format!("{got:?} has 10.9.8.7"),
    )?;
    t.check(
        got.subnets.contains("255.255.255.0"),
        &format!("{got:?} has the mask"),
    )?;
    t.equal("adapter", got.adapter.as_str(), MAC)?;
    t.equal("family", got.family & 1, 1)?;

    let given = new_addresses(id);
    let request = kvp::set_ip_info(TEXT, &given).ok_or("no room")?;
    talk.expect("SET_IP_INFO", request, S_OK)?;
    let shown = t.sh_ok("ip -4 addr show dev dummy0")?;
    t.check(
        shown.contains("10.20.30.40/16"),
        &format!("{shown:?} has 10.20.30.40/16"),
    )?;
    has_lines(
        t,
        "/var/lib/hyperv/ifcfg-dummy0",
        &[
            "DEVICE=dummy0",
            "BOOTPROTO=none",
            "IPADDR0=10.20.30.40",
            "NETMASK0=255.255.0.0",
            "GATEWAY=10.20.0.1",
            "DNS1=10.20.0.2",
            "DNS2=10.20.0.3",
        ],
    )?;
    let reply = talk.expect("GET_IP_INFO", kvp::get_ip_info(TEXT, MAC), S_OK)?;
    let got = kvp::addresses(TEXT, &reply.body).ok_or("no addresses")?;
    t.check(
        got.addresses.contains("10.20.30.40"),
        &format!("{got:?} has 10.20.30.40"),
    )?;

    let other = kvp::Addresses {
        adapter: "{00000000-0000-0000-0000-000000000000}".to_owned(),
        ..given
    };
    let request = kvp::set_ip_info(TEXT, &other).ok_or("no room")?;
    talk.expect("SET_IP_INFO of another adapter", request, E_NOT_FOUND)?;
    talk.finish()
}
