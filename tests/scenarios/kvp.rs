// SPDX-License-Identifier: GPL-2.0

//! Data exchange with the distribution's `hv_kvp_daemon`.

use std::time::Duration;
use std::time::Instant;

use host::guest::Module;
use host::guest::Result;
use host::ic::frame;
use host::ic::frame::Message;
use host::ic::kvp;
use host::ic::text::utf16;
use host::ic::E_FAIL;
use host::ic::E_INVALID_ARGUMENT;
use host::ic::E_NOT_SUPPORTED;
use host::ic::E_NO_MORE_ITEMS;
use host::ic::S_OK;
use host::service::Service;
use host::service::Version;

use crate::addresses::negotiate;
use crate::addresses::REFUSED;
use crate::daemon;
use crate::daemon::ShellDaemon;
use crate::daemon::Talk;
use crate::daemon::PROMPT;
use crate::daemon::QUIET;
use crate::removal;
use crate::scenario::Context;
use crate::scenario::Scenario;

/// The version in which addresses are text.
pub const TEXT: Version = (4, 0);
/// The version in which addresses are numbers.
pub const NUMBERS: Version = (5, 0);

/// The scenarios of this file.
pub const SCENARIOS: &[Scenario] = &[
    Scenario::new("kvp_waits_for_its_daemon", waits_for_its_daemon).daemons(),
    Scenario::new("kvp_enumerates_the_guest", enumerates_the_guest).daemons(),
    Scenario::new("kvp_keeps_what_is_set", keeps_what_is_set)
        .everywhere()
        .daemons(),
    Scenario::new("kvp_gets_values", gets_values)
        .daemons()
        .rust_only(),
    Scenario::new("kvp_value_types", value_types)
        .daemons()
        .rust_only(),
    Scenario::new("kvp_any_text", any_text)
        .daemons()
        .rust_only(),
    Scenario::new("kvp_sizes", sizes).daemons().rust_only(),
    Scenario::new("kvp_quick_answers", quick_answers).daemons(),
    Scenario::new("kvp_endless_answers", endless_answers)
        .daemons()
        .rust_only()
        .expects_log(REFUSED),
    Scenario::new("kvp_queued_requests", queued_requests)
        .daemons()
        .rust_only()
        .expects_log(&["KVP: unexpected message of type"]),
    Scenario::new("kvp_registration_over_netlink", registration_over_netlink)
        .daemons()
        .rust_only(),
    Scenario::new("kvp_refuses", refuses).daemons().rust_only(),
    Scenario::new("kvp_index_of_no_entry", index_of_no_entry)
        .daemons()
        .rust_only(),
    Scenario::new("kvp_daemon_killed", daemon_killed).daemons(),
    Scenario::new("kvp_restore", restore).daemons().versions(),
    Scenario::new("kvp_negotiates_amid_a_request", negotiates_amid_a_request)
        .daemons()
        .rust_only(),
    Scenario::new(
        "kvp_negotiates_twice_without_a_daemon",
        negotiates_twice_without_a_daemon,
    )
    .daemons()
    .rust_only(),
    Scenario::new(
        "kvp_negotiates_as_its_daemon_dies",
        negotiates_as_its_daemon_dies,
    )
    .daemons()
    .race()
    .by_chance(),
    Scenario::new("kvp_unbound_as_a_file_closes", unbound_as_a_file_closes)
        .daemons()
        .rust_only(),
    Scenario::new("kvp_unbound_under_its_daemon", unbound_under_its_daemon)
        .daemons()
        .rust_only()
        .versions(),
    Scenario::new("kvp_rescinded_under_its_daemon", rescinded_under_its_daemon)
        .daemons()
        .rust_only()
        .versions(),
    Scenario::new(
        "kvp_removal_waits_for_its_daemon",
        removal_waits_for_its_daemon,
    )
    .daemons()
    .versions(),
];

/// Starts the daemon, and negotiates the newest version.
pub fn begin<'a>(t: &'a Context<'_>) -> Result<Talk<'a>> {
    Talk::begin(t, Service::Kvp, daemon::KVP)
}

/// All pairs of a pool, in order.
pub fn pairs(talk: Talk<'_>, pool: u8) -> Result<Vec<(String, String)>> {
    let mut all = Vec::new();
    for index in 0..1000 {
        let reply = talk.ask(kvp::enumerate(pool, index))?;
        match reply.status {
            S_OK => all.push(kvp::pair(&reply.body).ok_or("a pair that a host cannot read")?),
            E_NO_MORE_ITEMS => return Ok(all),
            status => return Err(format!("enumeration ends with {status:#x}").into()),
        }
    }
    Err("the enumeration does not end".into())
}

/// The module answers the negotiation when the daemon has registered, and not before.
fn waits_for_its_daemon(t: &Context<'_>) -> Result<()> {
    let talk = Talk::with(t, Service::Kvp);
    let offer = Message::negotiation(
        Service::Kvp.framework_versions(),
        Service::Kvp.message_versions(),
        9,
    );
    talk.channel.send(&offer)?;
    talk.channel.expect_silence(QUIET)?;
    daemon::KVP.start(t)?;
    let reply = talk.promptly("the negotiation", &offer, S_OK)?;
    let chosen = frame::negotiated(&reply).map_err(|rejection| rejection.to_string())?;
    let newest = newest(t);
    t.equal("versions", chosen, ((3, 0), newest))?;
    t.log_has(&format!("KVP IC version {}.{}", newest.0, newest.1))?;
    talk.finish()
}

/// The newest version that the module knows.
pub fn newest(t: &Context<'_>) -> Version {
    match t.module() {
        Module::C => TEXT,
        Module::Rust => NUMBERS,
    }
}

/// The host enumerates the daemon's facts about the guest.
fn enumerates_the_guest(t: &Context<'_>) -> Result<()> {
    t.sh_ok("ip addr flush dev dummy0; ip addr add 10.9.8.7/24 dev dummy0; ip link set dummy0 up")?;
    let talk = begin(t)?;
    let all = pairs(talk, kvp::AUTO)?;
    let value = |key: &str| {
        let found = all.iter().find(|(name, _)| name == key);
        found.map(|(_, value)| value.as_str()).unwrap_or("(none)")
    };
    t.equal("pairs", all.len(), 10)?;
    t.equal(
        "IntegrationServicesVersion",
        value("IntegrationServicesVersion"),
        "3.1",
    )?;
    t.equal("OSName", value("OSName"), "Debian GNU/Linux")?;
    t.equal(
        "ProcessorArchitecture",
        value("ProcessorArchitecture"),
        "x86_64",
    )?;
    t.equal(
        "NetworkAddressIPv4",
        value("NetworkAddressIPv4"),
        "10.9.8.7",
    )?;
    let release = t.sh_ok("uname -r")?;
    t.equal("OSBuildNumber", value("OSBuildNumber"), release.as_str())?;
    let start = Instant::now();
    for _ in 0..50 {
        talk.expect("OSName", kvp::enumerate(kvp::AUTO, 5), S_OK)?;
    }
    let rate = 50.0 / start.elapsed().as_secs_f64();
    println!("# {}: {rate:.0} round trips per second", t.module().name());
    talk.finish()
}

/// Checks that a pool's file has one record in the daemon's format: a key (512 bytes) and a value (2048 bytes), each
/// ended by a NUL.
pub fn file_has(t: &Context<'_>, pool: u8, key: &str, value: &str) -> Result<()> {
    let file = format!("/var/lib/hyperv/.kvp_pool_{pool}");
    let at = |offset: usize, length: usize| {
        t.sh_ok(&format!(
            "tail -c +{} {file} | head -c {length} | tr '\\000' '\\n' | head -n 1",
            offset + 1
        ))
    };
    t.equal(
        "size",
        t.sh_ok(&format!("stat -c %s {file}"))?.as_str(),
        "2560",
    )?;
    t.equal("key in the pool's file", at(0, 512)?.as_str(), key)?;
    t.equal("value in the pool's file", at(512, 2048)?.as_str(), value)
}

/// A pair that the host sets in a pool is in the pool's file and enumeration until the host deletes it.
fn keeps_what_is_set(t: &Context<'_>) -> Result<()> {
    let talk = begin(t)?;
    for pool in [
        kvp::EXTERNAL,
        kvp::GUEST,
        kvp::AUTO,
        kvp::AUTO_EXTERNAL,
        kvp::AUTO_INTERNAL,
    ] {
        talk.expect("SET", kvp::set(pool, "Ключ", "first"), S_OK)?;
        talk.expect("SET again", kvp::set(pool, "Ключ", "grüße €😀"), S_OK)?;
        file_has(t, pool, "Ключ", "grüße €😀")?;
        // The daemon generates the pairs of this pool.
        if pool != kvp::AUTO {
            let all = pairs(talk, pool)?;
            t.equal(
                "pairs",
                all,
                vec![("Ключ".to_owned(), "grüße €😀".to_owned())],
            )?;
        }
        talk.expect("DELETE", kvp::delete(pool, "Ключ"), S_OK)?;
        t.equal(
            "size of the pool's file",
            t.sh_ok(&format!("stat -c %s /var/lib/hyperv/.kvp_pool_{pool}"))?
                .as_str(),
            "0",
        )?;
        talk.expect(
            "DELETE of nothing",
            kvp::delete(pool, "Ключ"),
            E_NO_MORE_ITEMS,
        )?;
    }
    // The host can read a pair of the guest.
    t.sh_ok(
        "{ printf fromguest; head -c 503 /dev/zero; printf hello; head -c 2043 /dev/zero; } \
         >/var/lib/hyperv/.kvp_pool_1",
    )?;
    let all = pairs(talk, kvp::GUEST)?;
    t.equal(
        "pairs",
        all,
        vec![("fromguest".to_owned(), "hello".to_owned())],
    )?;
    talk.finish()
}

/// The emulated host acts for the service, and is restored amid a request. It negotiates anew, and the service works.
fn restore(t: &Context<'_>) -> Result<()> {
    let channel = t.channel(Service::Kvp);
    channel.auto()?;
    daemon::KVP.start(t)?;
    channel.wait_negotiated()?;
    let before = channel.enumerate(kvp::AUTO)?;
    daemon::KVP.stop(t)?;
    channel.start_request(kvp::enumerate(kvp::AUTO, 5))?;
    t.save_restore();
    daemon::KVP.resume(t)?;
    let versions = channel.wait_negotiated()?;
    t.equal("version", versions.message, newest(t))?;
    t.equal("pairs", channel.enumerate(kvp::AUTO)?, before)?;
    t.equal("negotiations", channel.statistics()?.negotiations, 2)?;
    t.equal("times the channel was opened", channel.opens()?, 1)
}

/// GET returns the value. With C it is always empty.
fn gets_values(t: &Context<'_>) -> Result<()> {
    let talk = begin(t)?;
    for pool in 0..5 {
        let key = format!("key{pool}");
        talk.expect("SET", kvp::set(pool, &key, "grüße €😀"), S_OK)?;
        let reply = talk.expect("GET", kvp::get(pool, &key), S_OK)?;
        t.equal(
            "value",
            kvp::value_of(&reply.body).as_deref(),
            Some("grüße €😀"),
        )?;
        talk.expect("GET of nothing", kvp::get(pool, "another"), E_NO_MORE_ITEMS)?;
    }
    talk.finish()
}

/// Checks that a SET with this type and these bytes gives the key the value `text`.
fn becomes(talk: Talk<'_>, t: &Context<'_>, kind: u32, bytes: &[u8], text: &str) -> Result<()> {
    let what = format!("type {kind} {text:?}");
    talk.expect(
        &what,
        kvp::set_value(kvp::EXTERNAL, "key", kind, bytes),
        S_OK,
    )?;
    let reply = talk.expect(&what, kvp::get(kvp::EXTERNAL, "key"), S_OK)?;
    t.equal(&what, kvp::value_of(&reply.body).as_deref(), Some(text))
}

/// The daemon keeps values of all types of a host as text. SET with another type fails, and the value stays.
fn value_types(t: &Context<'_>) -> Result<()> {
    let talk = begin(t)?;
    becomes(talk, t, kvp::SZ, &utf16("text"), "text")?;
    becomes(talk, t, kvp::EXPAND_SZ, &utf16("%PATH%"), "%PATH%")?;
    becomes(
        talk,
        t,
        kvp::DWORD,
        &4_000_000_000u32.to_le_bytes(),
        "4000000000",
    )?;
    becomes(
        talk,
        t,
        kvp::QWORD,
        &u64::MAX.to_le_bytes(),
        "18446744073709551615",
    )?;
    becomes(talk, t, kvp::SZ, &utf16(""), "")?;
    becomes(talk, t, kvp::SZ, &utf16("kept"), "kept")?;
    for kind in [0, kvp::BINARY, 5, 7, 12, u32::MAX] {
        let request = kvp::set_value(kvp::EXTERNAL, "key", kind, &[1, 2, 3, 4]);
        talk.expect(&format!("type {kind}"), request, E_INVALID_ARGUMENT)?;
    }
    let reply = talk.expect("GET", kvp::get(kvp::EXTERNAL, "key"), S_OK)?;
    t.equal("value", kvp::value_of(&reply.body).as_deref(), Some("kept"))?;
    talk.finish()
}

/// Text of any content and size is converted or rejected, and never read past its end.
fn any_text(t: &Context<'_>) -> Result<()> {
    let talk = begin(t)?;
    let units =
        |units: &[u16]| -> Vec<u8> { units.iter().flat_map(|unit| unit.to_le_bytes()).collect() };
    becomes(
        talk,
        t,
        kvp::SZ,
        &units(&[0xd800, 0x61, 0xdc00, 0]),
        "\u{fffd}a\u{fffd}",
    )?;
    becomes(talk, t, kvp::SZ, &units(&[0x61, 0x62]), "ab")?;
    becomes(talk, t, kvp::SZ, &[0x61, 0, 0x62], "a")?;
    becomes(talk, t, kvp::SZ, &[], "")?;
    becomes(talk, t, kvp::SZ, &units(&[0x61, 0, 0x62, 0]), "a")?;
    // A value of 1024 units without a NUL fits as UTF-8. The host gets back the part that fits with a NUL.
    let full = units(&[0x78; 1024]);
    becomes(talk, t, kvp::SZ, &full, &"x".repeat(1023))?;
    let wide = kvp::set_value(kvp::EXTERNAL, "key", kvp::SZ, &units(&[0x20ac; 1024]));
    talk.expect("3072 bytes as UTF-8", wide, E_INVALID_ARGUMENT)?;
    // A key of 256 units without a NUL fits.
    let key = units(&[0x6b; 256]);
    let long = kvp::set_raw(kvp::SET, 0, 512, &key, kvp::SZ, 4, &utf16("v"));
    talk.expect("key of 256 units", long, S_OK)?;
    let wide = kvp::set_raw(
        kvp::SET,
        0,
        512,
        &units(&[0x20ac; 256]),
        kvp::SZ,
        4,
        &utf16("v"),
    );
    talk.expect("key of 768 bytes as UTF-8", wide, E_INVALID_ARGUMENT)?;
    talk.finish()
}

/// A key or a value that claims to be longer than its field is rejected.
fn sizes(t: &Context<'_>) -> Result<()> {
    let talk = begin(t)?;
    let key = utf16("k");
    for size in [513, 1024, 0x8000_0000, u32::MAX] {
        let what = format!("key size {size}");
        let request = kvp::set_raw(kvp::SET, 0, size, &key, kvp::SZ, 4, &utf16("v"));
        talk.expect(&what, request, E_INVALID_ARGUMENT)?;
        let mut request = kvp::delete(0, "k");
        request[kvp::BODY..kvp::BODY + 4].copy_from_slice(&size.to_le_bytes());
        talk.expect(&what, request, E_INVALID_ARGUMENT)?;
    }
    for size in [2049, u32::MAX] {
        let request = kvp::set_raw(kvp::SET, 0, 4, &utf16("k"), kvp::SZ, size, &utf16("v"));
        talk.expect(&format!("value size {size}"), request, E_INVALID_ARGUMENT)?;
    }
    talk.expect("a good one", kvp::enumerate(kvp::AUTO, 0), S_OK)?;
    talk.finish()
}

/// The daemon answers each of many requests at once. No answer is lost.
fn quick_answers(t: &Context<'_>) -> Result<()> {
    let talk = begin(t)?;
    let start = Instant::now();
    for number in 0..500 {
        let text = number.to_string();
        talk.expect("SET", kvp::set(kvp::EXTERNAL, "key", &text), S_OK)?;
    }
    t.check(
        start.elapsed() < Duration::from_secs(30),
        "no request waited for its time-out",
    )?;
    file_has(t, kvp::EXTERNAL, "key", "499")?;
    talk.finish()
}

/// The daemon's texts have no NUL. The host gets as much of each as its field has room for.
fn endless_answers(t: &Context<'_>) -> Result<()> {
    t.sh_ok("{ head -c 4 /dev/zero; head -c 7428 /dev/zero | tr '\\000' x; } >/tmp/endless")?;
    let daemon = ShellDaemon::registered(t, Service::Kvp, &ShellDaemon::answers("/tmp/endless"))?;
    let talk = Talk::with(t, Service::Kvp);
    talk.channel.negotiate_all()?;
    let reply = talk.expect("ENUMERATE", kvp::enumerate(kvp::GUEST, 0), S_OK)?;
    let (key, value) = kvp::pair(&reply.body).ok_or("a pair that a host cannot read")?;
    let only_x = |text: &str| text.chars().all(|letter| letter == 'x');
    t.check(only_x(&key) && only_x(&value), "both texts have only x")?;
    t.check(
        (1..256).contains(&key.len()) && (1..1024).contains(&value.len()),
        "both texts fit in their fields",
    )?;
    // The last entry of such a list may be cut, so it is no address. C knows addresses only as text.
    if t.module() == Module::Rust {
        talk.expect("GET_IP_INFO", kvp::get_ip_info(NUMBERS, "adapter"), E_FAIL)?;
        t.log_has("hv_utils: KVP: the daemon's text of subnets has no end: GET_IP_INFO fails, status 0x80004005")?;
    }
    negotiate(talk, TEXT)?;
    let reply = talk.expect("GET_IP_INFO", kvp::get_ip_info(TEXT, "adapter"), S_OK)?;
    let got = kvp::addresses(TEXT, &reply.body).ok_or("no addresses")?;
    t.check(only_x(&got.gateways), "the list has only x")?;
    daemon.kill(t)?;
    talk.finish()
}

/// A request behind another request, or behind an unknown message, is answered after it.
fn queued_requests(t: &Context<'_>) -> Result<()> {
    let talk = begin(t)?;
    for kind in [Service::Kvp.message_type(), 0xffff] {
        let mut first = talk.channel.request(kvp::enumerate(kvp::AUTO, 0))?;
        first.kind = kind;
        let second = talk.channel.request(kvp::enumerate(kvp::AUTO, 1))?;
        talk.channel.send_together(&[&first, &second])?;
        let status = if kind == 0xffff { E_FAIL } else { S_OK };
        talk.promptly("the first", &first, status)?;
        talk.promptly("the second", &second, S_OK)?;
    }
    talk.finish()
}

/// A program registers over netlink. It is not the daemon: only the program with the device open is.
fn registration_over_netlink(t: &Context<'_>) -> Result<()> {
    let talk = Talk::with(t, Service::Kvp);
    let offer = Message::negotiation(&[(3, 0)], &[(4, 0)], 9);
    talk.channel.send(&offer)?;
    t.sh_ok("register-by-netlink")?;
    talk.channel.expect_silence(QUIET)?;
    daemon::KVP.start(t)?;
    talk.promptly("the negotiation", &offer, S_OK)?;
    talk.finish()
}

/// A request that no host sends is answered once, with an error. The next request is served.
fn refuses(t: &Context<'_>) -> Result<()> {
    let talk = begin(t)?;
    for operation in [6, 7, 100, 255] {
        let mut body = kvp::enumerate(kvp::AUTO, 0);
        body[0] = operation;
        talk.expect(&format!("operation {operation}"), body, E_NOT_SUPPORTED)?;
    }
    for pool in [5, 6, 255] {
        for body in [
            kvp::enumerate(pool, 0),
            kvp::set(pool, "k", "v"),
            kvp::get(pool, "k"),
            kvp::delete(pool, "k"),
        ] {
            talk.expect(&format!("pool {pool}"), body, E_INVALID_ARGUMENT)?;
        }
    }
    for length in [0, 1, 2, 4, 8, 100, 2568] {
        let body = kvp::set(0, "k", "v")[..length].to_vec();
        talk.expect(&format!("{length} bytes"), body, E_INVALID_ARGUMENT)?;
    }
    talk.expect("a good one", kvp::enumerate(kvp::AUTO, 0), S_OK)?;
    talk.finish()
}

/// An index beyond the pool's entries ends the enumeration, negative numbers included. The daemon survives.
fn index_of_no_entry(t: &Context<'_>) -> Result<()> {
    let talk = begin(t)?;
    for index in [10, 0x7fff_ffff, 0x8000_0000, u32::MAX] {
        for pool in [kvp::AUTO, kvp::GUEST] {
            talk.expect(
                &format!("index {index}"),
                kvp::enumerate(pool, index),
                E_NO_MORE_ITEMS,
            )?;
        }
    }
    talk.expect("a good one", kvp::enumerate(kvp::AUTO, 0), S_OK)?;
    talk.finish()
}

/// The daemon dies with a request pending. The next daemon answers the request.
fn daemon_killed(t: &Context<'_>) -> Result<()> {
    let talk = begin(t)?;
    daemon::KVP.stop(t)?;
    let request = talk.pend(kvp::enumerate(kvp::AUTO, 1))?;
    daemon::KVP.kill(t)?;
    if t.module() == Module::C {
        // C does not keep the request.
        talk.promptly("the request in work", &request, E_FAIL)?;
        daemon::KVP.start(t)?;
    } else {
        talk.channel.expect_silence(QUIET)?;
        daemon::KVP.start(t)?;
        let reply = talk.promptly("the request in work", &request, S_OK)?;
        t.check(kvp::pair(&reply.body).is_some(), "the reply has a pair")?;
    }
    let reply = talk.expect("with a new daemon", kvp::enumerate(kvp::AUTO, 1), S_OK)?;
    t.check(kvp::pair(&reply.body).is_some(), "the reply has a pair")?;
    talk.finish()
}

/// The host negotiates anew amid a request, so it expects no reply to the request, and gets none. The daemon's late
/// answer is dropped.
fn negotiates_amid_a_request(t: &Context<'_>) -> Result<()> {
    let talk = begin(t)?;
    for unread in [false, true] {
        if unread {
            daemon::KVP.stop(t)?;
            talk.pend(kvp::enumerate(kvp::AUTO, 1))?;
        } else {
            // The daemon has read this request, and hangs: nobody opens the other end of the FIFO that it reads.
            t.sh_ok("rm -f /var/lib/hyperv/.kvp_pool_1; mkfifo /var/lib/hyperv/.kvp_pool_1")?;
            talk.pend(kvp::enumerate(kvp::GUEST, 1))?;
        }
        talk.channel.negotiate_all()?;
        talk.channel
            .send(&talk.channel.request(kvp::enumerate(kvp::AUTO, 5))?)?;
        talk.channel.expect_silence(QUIET)?;
        match unread {
            true => daemon::KVP.resume(t)?,
            false => {
                t.sh_ok(": >/var/lib/hyperv/.kvp_pool_1; rm /var/lib/hyperv/.kvp_pool_1; : >/var/lib/hyperv/.kvp_pool_1")?;
            }
        }
        let reply = talk.channel.receive()?;
        let pair = kvp::pair(&reply.body).map(|(key, _)| key);
        t.equal("the later request's reply", pair.as_deref(), Some("OSName"))?;
        talk.channel.expect_silence(QUIET)?;
    }
    talk.expect("the next", kvp::enumerate(kvp::AUTO, 0), S_OK)?;
    talk.finish()
}

/// The host negotiates again before it has an answer. Each negotiation gets an answer, in order.
fn negotiates_twice_without_a_daemon(t: &Context<'_>) -> Result<()> {
    let talk = Talk::with(t, Service::Kvp);
    let offers = [1, 2, 3].map(|id| Message::negotiation(&[(3, 0)], &[(4, 0)], id));
    for offer in &offers {
        talk.channel.send(offer)?;
        talk.channel.expect_silence(QUIET)?;
    }
    daemon::KVP.start(t)?;
    for offer in &offers {
        talk.promptly("the negotiation", offer, S_OK)?;
    }
    talk.expect("a request", kvp::enumerate(kvp::AUTO, 1), S_OK)?;
    talk.finish()
}

/// The host negotiates as the daemon dies with a request pending. After the answer to the negotiation, no reply to the
/// earlier request comes.
fn negotiates_as_its_daemon_dies(t: &Context<'_>) -> Result<()> {
    let talk = begin(t)?;
    for number in 0..20 {
        daemon::KVP.stop(t)?;
        talk.pend(kvp::enumerate(kvp::AUTO, 1))?;
        let offer = Message::negotiation(&[(3, 0)], &[(4, 0)], 100 + number);
        t.sh_ok(&format!(
            "{{ usleep {}; killall -KILL hv_kvp_daemon; }} &",
            u32::from(number) * 200
        ))?;
        talk.channel.send(&offer)?;
        daemon::KVP.wait_gone(t)?;
        daemon::KVP.start(t)?;
        while talk.channel.receive_within(PROMPT)?.transaction_id != offer.transaction_id {}
        talk.channel.expect_silence(QUIET)?;
        talk.expect("the next", kvp::enumerate(kvp::AUTO, 0), S_OK)?;
    }
    talk.finish()
}

/// The device is unbound while a process closes its file. The memory that the process uses stays until it has finished.
fn unbound_as_a_file_closes(t: &Context<'_>) -> Result<()> {
    let id = Service::Kvp.instance();
    // All processes run on one processor. The process that unbinds has real-time priority: it continues as soon as it
    // can, in the middle of the close. So does kdevtmpfs, which removes the device's node: the unbinding waits for it.
    t.sh_ok(
        "rm -f /tmp/open /tmp/unbinds /tmp/close /tmp/closed /tmp/unbound; \
         nodes=$(pidof kdevtmpfs) && taskset -p 1 $nodes && chrt -f -p 49 $nodes && \
         { taskset 1 sh -c 'exec 5<>/dev/vmbus/hv_kvp; : >/tmp/open; until [ -e /tmp/close ]; do sleep 0.1; done; \
         exec 5>&-; : >/tmp/closed' >/dev/null 2>&1 & }",
    )?;
    daemon::wait_for(t, "[ -e /tmp/open ]")?;
    t.sh_ok(&format!(
        "{{ taskset 1 chrt -f 50 sh -c ': >/tmp/unbinds; echo {id} >{}/unbind; : >/tmp/unbound' >/dev/null 2>&1 & }}",
        daemon::driver(Service::Kvp)
    ))?;
    daemon::wait_for(t, "[ -e /tmp/unbinds ]")?;
    t.sh_ok("sleep 0.5; : >/tmp/close")?;
    daemon::wait_for(t, "[ -e /tmp/closed ] && [ -e /tmp/unbound ]")?;
    t.sh_ok("chrt -o -p 0 $(pidof kdevtmpfs)")?;
    daemon::rebind(t, "bind", Service::Kvp)?;
    t.channel(Service::Kvp).wait_open()?;
    removal::serves(t, Service::Kvp)
}

/// The device is unbound at once while its daemon hangs. The daemon notices later, and exits. The next daemon works.
fn unbound_under_its_daemon(t: &Context<'_>) -> Result<()> {
    let talk = begin(t)?;
    daemon::KVP.stop(t)?;
    talk.pend(kvp::enumerate(kvp::AUTO, 1))?;
    let took = daemon::rebind(t, "unbind", Service::Kvp)?;
    t.check(took < PROMPT, &format!("unbinding took {took:?}"))?;
    t.check(!talk.channel.is_open(), "the channel is closed")?;
    t.sh_ok("[ ! -e /dev/vmbus/hv_kvp ]")?;
    daemon::KVP.resume(t)?;
    daemon::KVP.wait_gone(t)?;
    daemon::rebind(t, "bind", Service::Kvp)?;
    talk.channel.wait_open()?;
    let talk = begin(t)?;
    talk.expect("after a rebind", kvp::enumerate(kvp::AUTO, 1), S_OK)?;
    talk.finish()
}

/// The host rescinds the device while its daemon hangs. VMBus still works, and the device comes back.
fn rescinded_under_its_daemon(t: &Context<'_>) -> Result<()> {
    let talk = begin(t)?;
    daemon::KVP.stop(t)?;
    talk.pend(kvp::enumerate(kvp::AUTO, 1))?;
    talk.channel.rescind()?;
    talk.channel.wait_released()?;
    talk.channel.reoffer()?;
    talk.channel.wait_open()?;
    daemon::KVP.kill(t)?;
    let talk = begin(t)?;
    talk.expect("after a rescind", kvp::enumerate(kvp::AUTO, 1), S_OK)?;
    talk.finish()
}

/// The module cannot be removed while a daemon has its device open. It can be removed afterwards.
fn removal_waits_for_its_daemon(t: &Context<'_>) -> Result<()> {
    begin(t)?.finish()?;
    let output = t.sh("rmmod hv_utils")?;
    t.check(output.status != 0, "rmmod is refused")?;
    daemon::KVP.kill(t)?;
    t.rmmod()
}
