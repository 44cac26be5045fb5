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
    /// What the device has done by itself.
    pub fn statistics(&self) -> Result<Statistics> {
        self.device(|device, _| device.statistics().clone())
    }

    /// What it is about.
    pub fn state(&self) -> Result<State> {
        self.device(|device, _| device.state().clone())
    }

    /// Waits until the service has negotiated (by itself); gives the versions.
    pub fn wait_negotiated(&self) -> Result<Versions> {
        self.wait("negotiation", |device, _| match device.state() {
            State::Dead(reason) => Some(Err(Error(format!("the negotiation failed: {reason}")))),
            _ => device.versions().map(Ok),
        })?
    }

    /// The versions agreed on, if they are.
    pub fn versions(&self) -> Result<Option<Versions>> {
        self.device(|device, _| device.versions())
    }

    /// Waits until the device can send a request. An error says what it is about instead.
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

    /// Waits until `count` requests in all have been answered.
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

    /// Waits until `count` requests in all have been sent.
    pub fn wait_requests(&self, count: u64) -> Result<()> {
        self.wait(&format!("{count} requests"), |device, _| {
            (device.statistics().requests >= count).then_some(())
        })
    }

    /// Offers these versions in negotiations instead of a host's.
    pub fn offer_versions(&self, framework: &[Version], message: &[Version]) -> Result<()> {
        self.device(|device, _| device.set_offered(framework, message))
    }

    /// Changes the device's settings (interval, clock, ...).
    pub fn configure(&self, change: impl FnOnce(&mut Device)) -> Result<()> {
        self.device(|device, _| change(device))
    }

    /// Negotiates again on the open channel, as some services do after a restore.
    pub fn restore(&self) -> Result<()> {
        self.device(|device, _| device.renegotiate())
    }

    /// Has the service send a request, as the administrator's tools do (Stop-VM, Get-VM, ...), without waiting for the
    /// reply. It must have negotiated, and have none outstanding.
    pub fn start_request(&self, body: Vec<u8>) -> Result<()> {
        let moment = self.guest.moment();
        Ok(self.device(|device, _| device.request(body, &moment))??)
    }

    /// The reply to what [`ChannelHandle::start_request`] sent, waiting for it.
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

    /// Has the service send a request, and gives its reply.
    pub fn ask(&self, body: Vec<u8>) -> Result<Message> {
        self.start_request(body)?;
        self.wait_reply()
    }

    /// What KVP's host reads of an adapter's addresses, `None` if the guest does not tell them.
    pub fn addresses(&self, mac: &str) -> Result<Option<kvp::Addresses>> {
        let version = self.wait_negotiated()?.message;
        let reply = self.ask(kvp::get_ip_info(version, mac))?;
        match reply.status {
            S_OK => Ok(kvp::addresses(version, &reply.body)),
            _ => Ok(None),
        }
    }

    /// What KVP's host reads from a pool: all its pairs, one by one, until the guest has no more.
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
