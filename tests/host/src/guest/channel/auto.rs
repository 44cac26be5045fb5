// SPDX-License-Identifier: GPL-2.0

//! A channel whose device acts by itself, as on Windows.

use std::time::Duration;

use super::ChannelHandle;
use crate::guest::Error;
use crate::guest::Result;
use crate::ic::device::Device;
use crate::ic::device::State;
use crate::ic::device::Statistics;
use crate::ic::device::Versions;
use crate::ic::frame::Message;
use crate::ic::kvp;
use crate::ic::E_NO_MORE_ITEMS;
use crate::ic::S_OK;
use crate::service::Version;

impl ChannelHandle<'_> {
    /// The device's counts.
    pub fn statistics(&self) -> Result<Statistics> {
        self.device(|device, _| device.statistics().clone())
    }

    /// The device's state.
    pub fn state(&self) -> Result<State> {
        self.device(|device, _| device.state().clone())
    }

    /// Waits until the device has negotiated. Returns the versions.
    pub fn wait_negotiated(&self) -> Result<Versions> {
        self.wait("negotiation", |device, _| match device.state() {
            State::Dead(reason) => Some(Err(Error(format!("the negotiation failed: {reason}")))),
            _ => device.versions().map(Ok),
        })?
    }

    /// The negotiated versions. `None` before the negotiation.
    pub fn versions(&self) -> Result<Option<Versions>> {
        self.device(|device, _| device.versions())
    }

    /// Waits until the device can send a request. If it cannot, the error tells the device's state.
    pub fn wait_ready(&self, timeout: Duration) -> Result<()> {
        let service = self.service;
        let ready = self
            .guest
            .wait_bus_within("a service that is ready", timeout, |bus| {
                match bus.channel(service)?.device().state() {
                    State::Ready => Some(true),
                    State::Dead(_) => Some(false),
                    _ => None,
                }
            });
        match ready {
            Ok(true) => Ok(()),
            _ => Err(Error(match self.state()? {
                State::Closed => {
                    format!("{service}: no contact: the guest has not opened the channel")
                }
                State::Negotiating => {
                    format!("{service}: no contact: the guest does not answer the negotiation")
                }
                State::Waiting { .. } => {
                    format!("{service}: the guest has not answered the last request")
                }
                State::Dead(reason) => format!("{service}: lost communication: {reason}"),
                State::Ready => format!("{service}: the machine has stopped"),
            })),
        }
    }

    /// Waits until the guest has answered `count` requests in all.
    pub fn wait_replies(&self, count: u64) -> Result<Statistics> {
        self.wait(&format!("{count} replies"), |device, _| {
            match device.state() {
                State::Dead(reason) => Some(Err(Error(format!("the service died: {reason}")))),
                _ => {
                    (device.statistics().replies >= count).then(|| Ok(device.statistics().clone()))
                }
            }
        })?
    }

    /// Waits until the device has sent `count` requests in all.
    pub fn wait_requests(&self, count: u64) -> Result<()> {
        self.wait(&format!("{count} requests"), |device, _| {
            (device.statistics().requests >= count).then_some(())
        })
    }

    /// Offers these versions instead of a host's.
    pub fn offer_versions(&self, framework: &[Version], message: &[Version]) -> Result<()> {
        self.device(|device, _| device.set_offered(framework, message))
    }

    /// Changes the device's settings, such as interval and clock.
    pub fn configure(&self, change: impl FnOnce(&mut Device)) -> Result<()> {
        self.device(|device, _| change(device))
    }

    /// Negotiates again on the open channel, as some services do after a restore.
    pub fn restore(&self) -> Result<()> {
        self.device(|device, _| device.renegotiate())
    }

    /// Sends a request, as Stop-VM, Get-VM and the like do, without waiting for the reply. The device must be ready.
    pub fn start_request(&self, body: Vec<u8>) -> Result<()> {
        let moment = self.guest.moment();
        Ok(self.device(|device, _| device.request(body, &moment))??)
    }

    /// Waits for the reply to the request of [`ChannelHandle::start_request`].
    pub fn wait_reply(&self) -> Result<Message> {
        let service = self.service;
        let what = format!("{service}: reply");
        self.guest.wait_bus(&what, |bus| {
            bus.with_device(service, |device, _| match device.take_reply() {
                Some(reply) => Some(Ok(reply)),
                None => match device.state() {
                    State::Waiting { .. } => None,
                    state => Some(Err(Error(format!("{service} has no reply: {state:?}")))),
                },
            })
            .flatten()
        })?
    }

    /// Sends a request and waits for the reply.
    pub fn ask(&self, body: Vec<u8>) -> Result<Message> {
        self.start_request(body)?;
        self.wait_reply()
    }

    /// Asks for an adapter's addresses. `None` if the guest answers with an error, or a host rejects the addresses.
    pub fn addresses(&self, mac: &str) -> Result<Option<kvp::Addresses>> {
        let version = self.wait_negotiated()?.message;
        let reply = self.ask(kvp::get_ip_info(version, mac))?;
        match reply.status {
            S_OK => Ok(kvp::addresses(version, &reply.body)),
            _ => Ok(None),
        }
    }

    /// Enumerates all pairs of a pool, until the guest has no more.
    pub fn enumerate(&self, pool: u8) -> Result<Vec<(String, String)>> {
        let mut pairs = Vec::new();
        for index in 0..1000 {
            let reply = self.ask(kvp::enumerate(pool, index))?;
            match reply.status {
                S_OK => pairs.extend(kvp::pair(&reply.body)),
                E_NO_MORE_ITEMS => return Ok(pairs),
                status => return Err(format!("enumeration ends with {status:#x}").into()),
            }
        }
        Err("the enumeration does not end".into())
    }
}
