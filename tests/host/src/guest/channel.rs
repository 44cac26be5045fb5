// SPDX-License-Identifier: GPL-2.0

//! A service's channel from the host's side, from offer to release.

mod auto;
mod ring;
mod script;

use super::Error;
use super::Guest;
use super::Result;
use crate::guid::Guid;
use crate::ic::device::Device;
use crate::service::Service;

/// A service's channel, from the host's side.
///
/// At first the device acts by itself, as on Windows (see [`crate::ic::device`]). After [`ChannelHandle::script`] the
/// scenario sends and receives, until [`ChannelHandle::auto`].
#[derive(Clone, Copy)]
pub struct ChannelHandle<'a> {
    pub(super) guest: &'a Guest,
    pub(super) service: Service,
}

impl ChannelHandle<'_> {
    /// The service.
    pub fn service(&self) -> Service {
        self.service
    }

    /// Reads or changes the device. The second argument of `act` is whether its channel is open.
    fn device<R>(&self, act: impl FnOnce(&mut Device, bool) -> R) -> Result<R> {
        self.guest
            .with_bus(|bus| bus.with_device(self.service, act))
            .ok_or_else(|| format!("the machine has no {}", self.service).into())
    }

    /// Waits until `done` returns a value. Its second argument is whether the channel is open.
    fn wait<R>(&self, what: &str, mut done: impl FnMut(&Device, bool) -> Option<R>) -> Result<R> {
        let service = self.service;
        let what = format!("{service}: {what}");
        self.guest.wait_bus(&what, |bus| {
            let channel = bus.channel(service)?;
            done(channel.device(), channel.open().is_some())
        })
    }

    /// The error for a channel that is not open.
    fn not_open(&self) -> Error {
        format!("{}: the channel is not open", self.service).into()
    }

    /// Whether the guest has opened the channel.
    pub fn is_open(&self) -> bool {
        self.guest.with_bus(|bus| {
            bus.channel(self.service)
                .is_some_and(|channel| channel.open().is_some())
        })
    }

    /// Whether the device is plugged in.
    pub fn is_present(&self) -> bool {
        self.guest.with_bus(|bus| {
            bus.channel(self.service)
                .is_some_and(|channel| channel.is_present())
        })
    }

    /// Waits until the guest has opened the channel.
    pub fn wait_open(&self) -> Result<()> {
        self.wait("open channel", |_, open| open.then_some(()))
    }

    /// Waits until the guest has closed the channel.
    pub fn wait_closed(&self) -> Result<()> {
        self.wait("closed channel", |_, open| (!open).then_some(()))
    }

    /// Unplugs the device.
    pub fn rescind(&self) -> Result<()> {
        Ok(self.guest.with_bus(|bus| bus.rescind(self.service))?)
    }

    /// Plugs the device in again.
    pub fn reoffer(&self) -> Result<()> {
        Ok(self.guest.with_bus(|bus| bus.reoffer(self.service))?)
    }

    /// Changes the instance id of the device, from its next offer until [`ChannelHandle::reset`].
    pub fn set_instance(&self, instance: Guid) {
        self.guest
            .with_bus(|bus| bus.set_instance(self.service, instance));
    }

    /// Plugs in a second device of the class, with this instance id. The other functions here concern the first device.
    pub fn offer_second(&self, instance: Guid) {
        self.guest
            .with_bus(|bus| bus.offer_second(self.service, instance));
    }

    /// Unplugs the second device.
    pub fn rescind_second(&self) -> Result<()> {
        Ok(self
            .guest
            .with_bus(|bus| bus.rescind_second(self.service))?)
    }

    /// Makes the second device the first one. The other functions here then concern it.
    pub fn swap_second(&self) -> Result<()> {
        Ok(self.guest.with_bus(|bus| bus.swap_second(self.service))?)
    }

    /// How often the guest has opened the second device's channel.
    pub fn second_opens(&self) -> Result<u64> {
        let opens = self.guest.with_bus(|bus| bus.second_opens(self.service));
        opens.ok_or_else(|| format!("there is no second {}", self.service).into())
    }

    /// Waits until the guest has released every rescinded channel.
    pub fn wait_released(&self) -> Result<()> {
        self.guest
            .wait_bus("release of the rescinded channel", |bus| {
                (!bus.has_unreleased()).then_some(())
            })
    }

    /// Makes the host refuse the guest's next `count` messages that close the channel, for lack of buffers.
    pub fn refuse_closes(&self, count: u32) {
        self.guest
            .with_bus(|bus| bus.refuse_closes(self.service, count));
    }

    /// Answers the next `count` open requests with `status`, an NTSTATUS.
    pub fn fail_opens(&self, count: u32, status: u32) {
        self.guest
            .with_bus(|bus| bus.fail_opens(self.service, count, status));
    }

    /// How often the guest has opened the channel since the last [`ChannelHandle::reset`].
    pub fn opens(&self) -> Result<u64> {
        let opens = self
            .guest
            .with_bus(|bus| Some(bus.channel(self.service)?.opens()));
        opens.ok_or_else(|| format!("the machine has no {}", self.service).into())
    }

    /// Resets the device: it acts by itself as on Windows, with default settings and versions, plugged in, with counts
    /// of zero.
    pub fn reset(&self) -> Result<()> {
        self.guest.with_bus(|bus| bus.renew(self.service));
        Ok(())
    }
}
