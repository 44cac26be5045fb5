// SPDX-License-Identifier: GPL-2.0

//! Commands about the devices themselves: unplugged and plugged in, waited for, flooded; and the transcript.

use std::path::PathBuf;
use std::time::Duration;
use std::time::Instant;

use super::session::expected;
use super::session::Failure;
use super::session::Outcome;
use super::session::Session;
use super::session::PATIENCE;
use crate::guest::ChannelHandle;
use crate::guest::Result;
use crate::ic::device::State;
use crate::ic::frame::Message;
use crate::ic::heartbeat;
use crate::ic::kvp;
use crate::ic::timesync;
use crate::ic::vss;
use crate::service::Service;

/// Lines of the transcript that are printed.
const SHOWN: usize = 20;

/// How long to wait for each answer to a flood.
const ANSWER: Duration = Duration::from_secs(20);

impl Session {
    /// Unplugs a device.
    pub(super) fn rescind(&self, service: Service) -> Outcome {
        self.runs()?;
        let channel = self.guest.channel(service);
        if !channel.is_present() {
            return expected("a service that is offered: this one is not");
        }
        channel.rescind()?;
        channel.wait_released()?;
        self.say(&format!(
            "{service} is unplugged, and the guest has released it"
        ));
        Ok(())
    }

    /// Plugs a device in again.
    pub(super) fn offer(&self, service: Service) -> Outcome {
        self.runs()?;
        let channel = self.guest.channel(service);
        if channel.is_present() {
            return expected("a service that is not offered: this one is");
        }
        channel.reoffer()?;
        channel.wait_open()?;
        self.say(&format!(
            "{service} is plugged in, and the guest has opened its channel"
        ));
        Ok(())
    }

    /// Waits until a service can take a request.
    pub(super) fn wait(&self, service: Service, time: Duration) -> Outcome {
        self.runs()?;
        let channel = self.guest.channel(service);
        channel.wait_ready(time)?;
        let versions = channel.wait_negotiated()?;
        let (major, minor) = versions.message;
        self.say(&format!(
            "{service} takes requests, with version {major}.{minor}"
        ));
        Ok(())
    }

    /// Waits until the console has printed a text.
    pub(super) fn expect(&self, text: &str) -> Outcome {
        self.runs()?;
        match self.guest.wait_console(text, 0) {
            Ok(()) => {
                self.say(&format!("the console has printed {text:?}"));
                Ok(())
            }
            Err(_) => Err(Failure::Failed(format!(
                "the console has not printed {text:?}"
            ))),
        }
    }

    /// Takes the lead of a service while no answer is outstanding: that would be taken for the flood's.
    fn lead(&self, service: Service) -> Outcome<ChannelHandle<'_>> {
        let channel = self.ready(service)?;
        let what = format!("{service}: no outstanding request");
        self.guest.wait_bus_within(&what, PATIENCE, |bus| {
            let led = bus.with_device(service, |device, _| {
                let is_ready = *device.state() == State::Ready;
                if is_ready {
                    device.script();
                }
                is_ready.then_some(())
            });
            led.flatten()
        })?;
        Ok(channel)
    }

    /// Sends many requests at once, and waits for the answers.
    pub(super) fn flood(&self, service: Service, count: u32) -> Outcome {
        let channel = self.lead(service)?;
        let flooded = flood(channel, count, &self.guest.moment());
        channel.auto()?;
        let seconds = flooded?.as_secs_f64();
        channel.wait_negotiated()?;
        self.say(&format!(
            "{service}: {count} requests at once, all answered after {:.1} ms, {:.0} a second",
            seconds * 1e3,
            f64::from(count) / seconds
        ));
        Ok(())
    }

    /// Prints the end of the transcript, or writes all of it to a file.
    pub(super) fn transcript(&self, file: Option<PathBuf>) -> Outcome {
        let length = self.guest.transcript_length();
        match file {
            Some(file) => match self.guest.save_transcript(&file, 0) {
                Ok(()) => {
                    self.say(&format!("{length} entries are in {}", file.display()));
                    Ok(())
                }
                Err(error) => expected(format!(
                    "a file that can be written here, not {:?}: {error}",
                    file.display()
                )),
            },
            None => {
                let from = length.saturating_sub(SHOWN);
                for line in self.guest.normalised_transcript(from).lines() {
                    self.say(&format!("  {line}"));
                }
                self.say(&format!("{length} entries"));
                Ok(())
            }
        }
    }
}

/// Sends the requests, and takes the answer to each; gives the time until the last.
fn flood(
    channel: ChannelHandle<'_>,
    count: u32,
    moment: &crate::ic::Moment,
) -> std::result::Result<Duration, Failure> {
    let requests: Result<Vec<Message>> = (0..count)
        .map(|number| request(channel, number, moment))
        .collect();
    let requests = requests?;
    let start = Instant::now();
    channel.send_together(&requests.iter().collect::<Vec<_>>())?;
    for number in 0..count {
        let reply = channel.receive_within(ANSWER).map_err(|_| {
            format!(
                "{}: {number} of {count} requests are answered",
                channel.service()
            )
        })?;
        let id = requests[number as usize].transaction_id;
        if reply.transaction_id != id {
            return Err(Failure::Failed(format!(
                "answer {number} is to the request with id {}, not {id}",
                reply.transaction_id
            )));
        }
    }
    Ok(start.elapsed())
}

/// A request that changes nothing in the guest; a negotiation if the service has none.
fn request(channel: ChannelHandle<'_>, number: u32, moment: &crate::ic::Moment) -> Result<Message> {
    let service = channel.service();
    let body = match service {
        Service::Heartbeat => heartbeat::body(u64::from(number), heartbeat::RESERVED),
        Service::TimeSync => {
            let version = channel.versions()?.map_or((4, 0), |it| it.message);
            timesync::body(version, moment, timesync::SAMPLE)
        }
        Service::Kvp => kvp::enumerate(kvp::AUTO, 0),
        Service::Vss => vss::body(vss::GET_DM_INFO),
        _ => {
            return Ok(Message::negotiation(
                service.framework_versions(),
                service.message_versions(),
                number as u8,
            ))
        }
    };
    channel.request(body)
}
