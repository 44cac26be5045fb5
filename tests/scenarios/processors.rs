// SPDX-License-Identifier: GPL-2.0

//! Four processors: channels move between them, and they go offline and online, while all services are busy.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

use host::guest::Result;
use host::ic::S_OK;
use host::service::Service;

use crate::daemon;
use crate::daemon::wait_for;
use crate::daemon::Daemon;
use crate::daemon::Talk;
use crate::framing;
use crate::removal;
use crate::scenario::Context;
use crate::scenario::Machine;
use crate::scenario::Scenario;

/// The services that answer without a daemon, and are flooded.
const FLOODED: [Service; 2] = [Service::Heartbeat, Service::TimeSync];

/// Requests that the guest finds together.
const TOGETHER: usize = 20;

/// How often each processor but the first goes offline.
const ROUNDS: u32 = 4;

/// The scenarios of this file.
pub const SCENARIOS: &[Scenario] = &[
    Scenario::new("processors_flooded", flooded)
        .machine(Machine::FOUR_PROCESSORS)
        .more()
        .by_chance()
        .daemons()
        .scripted(&FLOODED),
    Scenario::new("processors_come_and_go", come_and_go)
        .machine(Machine::FOUR_PROCESSORS)
        .more()
        .by_chance()
        .daemons()
        .scripted(&FLOODED),
];

/// Each service is on a processor of its own, and all are flooded at the same time.
fn flooded(t: &Context<'_>) -> Result<()> {
    for (&service, processor) in busy(t).iter().zip([1, 2, 3, 0, 1]) {
        t.sh_ok(&format!("echo {processor} | tee {}", processor_of(service)))?;
    }
    under_load(t, 200, || Ok(()))
}

/// Channels move to each processor in turn, which then goes offline with all of them, and online again.
fn come_and_go(t: &Context<'_>) -> Result<()> {
    // The kernel moves open channels only. C leaves that of file copy closed.
    let files: Vec<String> = busy(t).into_iter().map(processor_of).collect();
    let files = files.join(" ");
    under_load(t, 0, || {
        t.sh_ok(&format!(
            "rm -f /tmp/round*; setsid sh -c 'for round in $(seq {ROUNDS}); do for cpu in 1 2 3; do \
                 for file in {files}; do echo $cpu >$file || exit; done; \
                 online=/sys/devices/system/cpu/cpu$cpu/online; \
                 until echo 0 >$online; do sleep 0.1; done; \
                 grep -x $cpu {files} && exit; \
                 echo 1 >$online || exit; \
                 done; : >/tmp/round$round; done' >/tmp/moved 2>&1 &"
        ))?;
        (1..=ROUNDS).try_for_each(|round| {
            wait_for(t, &format!("[ -e /tmp/round{round} ]")).map_err(|error| {
                let said = t.sh_ok("cat /tmp/moved").unwrap_or_default();
                format!("round {round}: {error}\n{said}").into()
            })
        })
    })
}

/// The file in the guest that has the processor of the service's channel, as a pattern.
fn processor_of(service: Service) -> String {
    format!(
        "/sys/bus/vmbus/devices/{}/channels/*/cpu",
        service.instance()
    )
}

/// The services under load.
fn busy(t: &Context<'_>) -> Vec<Service> {
    [&FLOODED, removal::services(t)].concat()
}

/// Calls `act` while all services are busy, for `least` requests or more each. Each request must get one reply.
fn under_load(t: &Context<'_>, least: u64, act: impl FnOnce() -> Result<()>) -> Result<()> {
    for &service in removal::services(t) {
        Talk::begin(t, service, Daemon::of(service))?;
    }
    for service in FLOODED {
        t.channel(service).negotiate_all()?;
    }
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let begin = |service| {
            let is_over = &is_over;
            scope.spawn(move || {
                let mut count = 0;
                while count < least || !is_over.load(Relaxed) {
                    count += ask(t, service)
                        .map_err(|error| format!("after {count} requests to {service}: {error}"))?;
                }
                println!("# {}: {count} requests to {service}", t.module().name());
                Ok(())
            })
        };
        let loads: Vec<_> = busy(t).into_iter().map(begin).collect();
        let acted = act();
        is_over.store(true, Relaxed);
        let loaded = loads.into_iter().map(|load| match load.join() {
            Ok(result) => result,
            Err(_) => Err("the host failed".into()),
        });
        acted.and(loaded.collect::<Result<()>>())
    })?;
    for service in busy(t) {
        t.channel(service).expect_silence(daemon::QUIET)?;
    }
    removal::services(t)
        .iter()
        .try_for_each(|&service| Daemon::of(service).kill(t))
}

/// Sends a request to a service's daemon, or [`TOGETHER`] beats or samples, and receives the replies. Returns their number.
fn ask(t: &Context<'_>, service: Service) -> Result<u64> {
    if !FLOODED.contains(&service) {
        let talk = Talk::with(t, service);
        return talk
            .expect("a request", removal::request(service), S_OK)
            .map(|_| 1);
    }
    let channel = t.channel(service);
    let requests = (0..TOGETHER)
        .map(|_| framing::request(t, service))
        .collect::<Result<Vec<_>>>()?;
    channel.send_together(&requests.iter().collect::<Vec<_>>())?;
    for request in &requests {
        let reply = channel.receive()?;
        t.equal("transaction", reply.transaction_id, request.transaction_id)?;
        t.equal("status", reply.status, S_OK)?;
    }
    Ok(TOGETHER as u64)
}
