// SPDX-License-Identifier: GPL-2.0

//! Hyper-V sockets: sessions without a network, such as those of ssh. In the guest, the kernel's `hv_sock` implements them,
//! and `tests/guest/vsock.c` uses them.

use std::time::Duration;

use host::guest::Connection;
use host::guest::Result;
use host::machine::Exit;

use crate::debug;
use crate::scenario::Context;
use crate::scenario::Scenario;

/// The scenarios of this file. They do not insert the module. So they run for one module only.
pub const SCENARIOS: &[Scenario] = &[
    Scenario::new("sockets_carry_bytes", carry_bytes)
        .unloaded()
        .rust_only(),
    Scenario::new("sockets_many", many).unloaded().rust_only(),
    Scenario::new("sockets_end_each_direction", end_each_direction)
        .unloaded()
        .rust_only(),
    Scenario::new("sockets_from_the_guest", from_the_guest)
        .unloaded()
        .rust_only(),
    Scenario::new("sockets_refused", refused)
        .unloaded()
        .rust_only(),
    Scenario::new("sockets_leave_nothing", leave_nothing)
        .unloaded()
        .rust_only()
        .ends_guest(),
];

/// A port of the guest.
const PORT: u32 = 5000;

/// A port of the host.
const HOST_PORT: u32 = 6000;

/// The number of connections at the same time.
const MANY: u32 = 20;

/// Inserts the kernel's modules for Hyper-V sockets.
fn insert(t: &Context<'_>) -> Result<()> {
    t.sh_ok(
        "while read -r name rest; do insmod /modules/sockets/$name $rest || exit; done </modules/sockets/order",
    )
    .map(|_| ())
}

/// Removes these modules after host and guest have released all connections.
fn remove(t: &Context<'_>) -> Result<()> {
    t.wait_no_connections()?;
    t.sh_ok("until rmmod hv_sock 2>/dev/null; do usleep 100000; done; rmmod vsock")
        .map(|_| ())
}

/// Connects to a port at which the guest listens.
fn connected(t: &Context<'_>, port: u32) -> Result<Connection> {
    let connection = t.connect(port)?;
    connection.wait_connected()?;
    Ok(connection)
}

/// Returns `count` bytes, which differ for each seed.
fn bytes(seed: u32, count: usize) -> Vec<u8> {
    (seed..)
        .flat_map(|word| word.wrapping_mul(0x9e37_79b1).to_le_bytes())
        .take(count)
        .collect()
}

/// Reads `count` bytes from a connection, or fewer if the connection ends.
fn read(connection: &Connection, count: usize) -> Result<Vec<u8>> {
    let mut all = Vec::new();
    while all.len() < count {
        let more = connection.read()?;
        if more.is_empty() {
            break;
        }
        all.extend(more);
    }
    Ok(all)
}

/// Waits until a file in the guest has this line.
fn wait_file(t: &Context<'_>, file: &str, line: &str) -> Result<()> {
    t.sh_ok(&format!(
        "until [ \"$(cat {file} 2>/dev/null)\" = '{line}' ]; do usleep 100000; done; rm {file}"
    ))
    .map(|_| ())
}

/// The host sends bytes to a program in the guest, which sends them back. The bytes exceed the rings.
fn carry_bytes(t: &Context<'_>) -> Result<()> {
    insert(t)?;
    t.sh_ok(&format!("vsock listen {PORT} 1 cat"))?;
    let connection = connected(t, PORT)?;
    for count in [1, 5, 8, 4096, 300_000] {
        let sent = bytes(count as u32, count);
        connection.write(&sent)?;
        let back = read(&connection, count)?;
        t.check(back == sent, &format!("{count} bytes come back"))?;
    }
    connection.finish()?;
    t.equal("what is behind them", connection.read_all()?, Vec::new())?;
    drop(connection);
    remove(t)
}

/// Connections at the same time do not mix their bytes.
fn many(t: &Context<'_>) -> Result<()> {
    insert(t)?;
    t.sh_ok(&format!("vsock listen {PORT} {MANY} cat"))?;
    let offered = (0..MANY).map(|_| t.connect(PORT));
    let connections = offered.collect::<Result<Vec<Connection>>>()?;
    let numbered = || (0..MANY).zip(&connections);
    for (_, connection) in numbered() {
        connection.wait_connected()?;
    }
    for (number, connection) in numbered() {
        connection.write(&bytes(number << 16, 10_000))?;
        connection.finish()?;
    }
    for (number, connection) in numbered() {
        let is_right = connection.read_all()? == bytes(number << 16, 10_000);
        t.check(is_right, &format!("connection {number} has its own bytes"))?;
    }
    drop(connections);
    remove(t)
}

/// Each side ends its own direction. The other direction still works.
fn end_each_direction(t: &Context<'_>) -> Result<()> {
    insert(t)?;
    // The program prints its count after the host has ended its direction.
    t.sh_ok(&format!("vsock listen {PORT} 1 'wc -c'"))?;
    let connection = connected(t, PORT)?;
    connection.write(&bytes(0, 12_345))?;
    connection.finish()?;
    t.equal("its count", connection.read_all()?, b"12345\n".to_vec())?;
    drop(connection);

    // The host sends after the program has ended its direction. The bytes arrive although the host has hung up.
    let command = "echo first; vsock end; cat >/tmp/got";
    t.sh_ok(&format!("vsock listen {PORT} 1 '{command}'"))?;
    let connection = connected(t, PORT)?;
    t.equal("the first", connection.read_all()?, b"first\n".to_vec())?;
    connection.write(b"then ")?;
    connection.write(b"the host")?;
    connection.finish()?;
    drop(connection);
    wait_file(t, "/tmp/got", "then the host")?;
    remove(t)
}

/// Programs in the guest connect to the host.
fn from_the_guest(t: &Context<'_>) -> Result<()> {
    insert(t)?;
    let listener = t.listen(HOST_PORT);
    let connect = |number: u32| {
        let command = format!("echo program {number}; cat >/tmp/got.{number}");
        t.sh_ok(&format!(
            "vsock connect {HOST_PORT} '{command}' >/dev/null 2>&1 &"
        ))
    };
    connect(1)?;
    let first = listener.accept()?;
    connect(2)?;
    let second = listener.accept()?;
    for (number, connection) in [(1, first), (2, second)] {
        let said = format!("program {number}\n");
        t.equal("said", read(&connection, said.len())?, said.into_bytes())?;
        connection.write(format!("host {number}").as_bytes())?;
        connection.finish()?;
        t.equal("the end", connection.read_all()?, Vec::new())?;
    }
    for number in [1, 2] {
        wait_file(t, &format!("/tmp/got.{number}"), &format!("host {number}"))?;
    }
    drop(listener);
    remove(t)
}

/// A connection to a port without a listener fails, in both directions. Ports with a listener still work.
fn refused(t: &Context<'_>) -> Result<()> {
    insert(t)?;
    t.sh_ok(&format!("vsock listen {PORT} 2 cat"))?;
    let nowhere = t.connect(PORT + 1)?;
    // The guest takes offers in their order.
    for _ in 0..2 {
        let connection = connected(t, PORT)?;
        connection.finish()?;
        t.equal("the end", connection.read_all()?, Vec::new())?;
    }
    t.check(!nowhere.is_connected(), "nobody has accepted the first")?;
    drop(nowhere);

    t.sh_ok(&format!("vsock refused {HOST_PORT}"))?;
    let listener = t.listen(HOST_PORT + 1);
    t.sh_ok(&format!("vsock refused {HOST_PORT}"))?;
    drop(listener);
    t.sh_ok(&format!("vsock refused {}", HOST_PORT + 1))?;
    remove(t)
}

/// A session with unread bytes in both directions.
fn session(t: &Context<'_>) -> Result<Connection> {
    t.sh_ok(&format!("vsock listen {PORT} 1 'yes & cat >/dev/null'"))?;
    let connection = connected(t, PORT)?;
    connection.write(&bytes(0, 10_000))?;
    read(&connection, 10_000)?;
    Ok(connection)
}

/// The host hangs up during a session, or the guest powers off. The guest releases each connection, and the modules can be
/// removed. On the debug kernel, kmemleak finds no leak.
///
/// The guest does not hibernate during a session, because of a fault of hv_vmbus: an earlier connection leaves the
/// completion done for which `vmbus_bus_suspend()` waits. So the suspend continues before the channel is rescinded
/// (`hv_sock channel not rescinded!`), and the guest then waits for the rescind forever.
fn leave_nothing(t: &Context<'_>) -> Result<()> {
    insert(t)?;
    for _ in 0..3 {
        drop(session(t)?);
    }
    remove(t)?;
    if t.sh("[ -e /sys/kernel/debug/kmemleak ]")?.status == 0 {
        debug::finds_nothing(t)?;
    }

    insert(t)?;
    let connection = session(t)?;
    t.sh_start("poweroff -f")?;
    let exit = t.wait_exit(Duration::from_secs(60))?;
    t.equal("end", exit, Exit::PowerOff)?;
    t.check(connection.read_all().is_err(), "the session is over")
}
