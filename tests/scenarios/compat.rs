// SPDX-License-Identifier: GPL-2.0

//! A daemon of 32 bits on a kernel of 64 bits.

use host::guest::Result;
use host::ic::kvp;
use host::ic::vss;
use host::ic::S_OK;
use host::service::Service;

use crate::daemon::wait_for;
use crate::daemon::Talk;
use crate::scenario::Context;
use crate::scenario::Machine;
use crate::scenario::Scenario;

/// The scenarios of this file.
pub const SCENARIOS: &[Scenario] = &[Scenario::new("daemon_of_32_bits", of_32_bits)
    .machine(Machine::MORE)
    .more()
    .daemons()];

/// What the host sees of an answer: status and body.
type Answer = (u32, Vec<u8>);

/// A daemon, compiled for 64 bits and for 32 bits, gives the same answers to the host.
fn of_32_bits(t: &Context<'_>) -> Result<()> {
    let requests: [(Service, Vec<Vec<u8>>); 2] = [
        (
            Service::Kvp,
            vec![
                kvp::enumerate(kvp::AUTO, 0),
                kvp::set(kvp::EXTERNAL, "key", "text"),
                kvp::get(kvp::GUEST, "key"),
                kvp::delete(kvp::EXTERNAL, "key"),
            ],
        ),
        (
            Service::Vss,
            [vss::HOT_BACKUP, vss::FREEZE, vss::THAW]
                .map(vss::body)
                .to_vec(),
        ),
    ];
    for (service, requests) in requests {
        let of_64 = answers(t, service, 64, &requests)?;
        let of_32 = answers(t, service, 32, &requests)?;
        t.check(
            of_64.iter().all(|(status, _)| *status == S_OK),
            "a daemon of 64 bits answers with success",
        )?;
        for (number, answer) in of_32.iter().enumerate() {
            t.check(
                *answer == of_64[number],
                &format!("both daemons answer request {number} to {service} alike"),
            )?;
        }
        if service == Service::Kvp {
            let pair = Some(("Daemon".to_owned(), "small".to_owned()));
            t.equal("the pair", kvp::pair(&of_64[0].1), pair)?;
        }
    }
    Ok(())
}

/// The answers to requests that a daemon of this many bits gives.
fn answers(
    t: &Context<'_>,
    service: Service,
    bits: u32,
    requests: &[Vec<u8>],
) -> Result<Vec<Answer>> {
    let program = format!("small-daemon-{bits}");
    // The byte says whether the file has 32 or 64 bits.
    let class = t.sh_ok(&format!("od -An -tu1 -j4 -N1 /bin/{program}"))?;
    t.equal(
        "the program's class",
        class.trim(),
        if bits == 32 { "1" } else { "2" },
    )?;
    t.sh_ok(&format!(
        "rm -f /tmp/said; setsid {program} {} >/tmp/said 2>&1 &",
        service.name()
    ))?;
    wait_for(t, "grep -q registered /tmp/said")?;
    let talk = Talk::with(t, service);
    talk.channel.negotiate_all()?;
    let answers = requests.iter().map(|request| {
        let reply = talk.ask(request.clone())?;
        Ok((reply.status, reply.body))
    });
    let answers = answers.collect::<Result<Vec<_>>>()?;
    let asked = requests.len();
    wait_for(t, &format!("[ $(grep -c answered /tmp/said) = {asked} ]"))?;
    t.sh_ok(&format!("killall -KILL {program}"))?;
    wait_for(t, &format!("! pidof {program} >/dev/null"))?;
    talk.finish()?;
    Ok(answers)
}
