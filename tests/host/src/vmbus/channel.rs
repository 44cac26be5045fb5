// SPDX-License-Identifier: GPL-2.0

//! A device on the bus: its offer, its channel while the guest has it open, and how the two work together.

use std::collections::BTreeMap;
use std::time::Instant;

use super::gpadl::Gpadl;
use super::open::Link;
use super::open::OpenChannel;
use crate::guid::Guid;
use crate::ic::device::Device;
use crate::ic::device::Remark;
use crate::ic::Moment;
use crate::service::Service;
use crate::transcript::Speaker;

/// A device's offer that the guest has seen and not released.
pub(super) struct Offered {
    pub(super) relid: u32,
    /// By handle, which the guest chooses; channels may have the same handles.
    pub(super) gpadls: BTreeMap<u32, Gpadl>,
    pub(super) open: Option<OpenChannel>,
    /// The host has taken the offer back, but the guest still holds the number.
    pub(super) rescinded: bool,
}

impl Offered {
    pub(super) fn new(relid: u32) -> Self {
        Self {
            relid,
            gpadls: BTreeMap::new(),
            open: None,
            rescinded: false,
        }
    }

    /// Takes the GPADLs whose teardown waited for the channel to be closed.
    pub(super) fn take_torn_down(&mut self) -> Vec<u32> {
        let down = self.gpadls.iter().filter(|(_, gpadl)| gpadl.tearing_down);
        let handles: Vec<u32> = down.map(|(handle, _)| *handle).collect();
        self.gpadls.retain(|_, gpadl| !gpadl.tearing_down);
        handles
    }
}

/// A device on the bus, offered or not.
pub struct Channel {
    pub(super) service: Service,
    /// Which device of its class it is.
    pub(super) instance: Guid,
    /// It came beside another device of its class, see [`Bus::offer_second`](super::bus::Bus::offer_second).
    pub(super) is_second: bool,
    pub(super) device: Device,
    /// Whether the device is plugged in: offered to a guest that asks, and after the release of a rescinded offer.
    pub(super) present: bool,
    pub(super) offered: Option<Offered>,
    /// What the next open requests are answered: this many more times with this status.
    pub(super) fail_opens: (u32, u32),
    pub(super) opens: u64,
    /// Bytes in the ring to the host that nobody had read when the channel was closed.
    pub(super) left: u32,
    /// The ring was not read to its end, and since when.
    unfinished: Option<Instant>,
}

impl Channel {
    /// A device that is plugged in but not offered yet.
    pub(super) fn new(service: Service) -> Self {
        Self {
            service,
            instance: service.instance(),
            is_second: false,
            device: Device::new(service),
            present: true,
            offered: None,
            fail_opens: (0, 0),
            opens: 0,
            left: 0,
            unfinished: None,
        }
    }

    /// The device behind it.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The channel's number, if the guest holds one.
    pub fn relid(&self) -> Option<u32> {
        self.offered.as_ref().map(|offered| offered.relid)
    }

    /// Whether the offer was taken back, and the guest has not released it.
    pub(super) fn is_rescinded(&self) -> bool {
        let offered = self.offered.as_ref();
        offered.is_some_and(|offered| offered.rescinded)
    }

    /// The open channel.
    pub fn open(&self) -> Option<&OpenChannel> {
        self.offered.as_ref()?.open.as_ref()
    }

    /// How often it was opened.
    pub fn opens(&self) -> u64 {
        self.opens
    }

    /// What the guest sent and nobody took: packets that wait for a scenario, or did when the channel was opened again, and
    /// bytes that were in the ring when it was closed.
    pub fn surplus(&self) -> (usize, u32) {
        (self.device.untaken(), self.left)
    }

    /// Forgets that.
    pub fn forget_surplus(&mut self) {
        self.left = 0;
        self.device.forget_untaken();
    }

    /// Lets the device do what it can: send, read, act on what was read.
    pub(super) fn pump(&mut self, link: &mut Link) {
        let Some(open) = self
            .offered
            .as_mut()
            .and_then(|offered| offered.open.as_mut())
        else {
            return;
        };
        self.unfinished = None;
        let moment = Moment::now(link.hypervisor.reference_time());
        self.device.tick(&moment);
        // A guest that writes all the time must not keep the host here.
        let mut left = open.to_host().most_packets();
        loop {
            let sent = self.device.take_output().into_iter();
            let sent = sent.fold(open.flush(link), |result, packet| {
                result.and_then(|()| open.send(link, packet))
            });
            let received = sent.and_then(|()| match (self.device.wants_packet(), left) {
                (false, _) => {
                    open.stop_reading();
                    Ok(None)
                }
                (true, 0) => {
                    self.unfinished = Some(moment.instant);
                    Ok(None)
                }
                (true, _) => open.receive(link),
            });
            let remark = match received {
                Ok(None) => break,
                Ok(Some(packet)) => {
                    left -= 1;
                    let moment = Moment::now(link.hypervisor.reference_time());
                    let remark = self.device.received(packet, &moment);
                    self.device.tick(&moment);
                    remark
                }
                Err(error) => self.device.broken(error.to_string()),
            };
            match remark {
                Some(Remark::Note(text)) => {
                    link.record(Speaker::Note, self.service.name(), text, &[])
                }
                Some(Remark::Error(text)) => {
                    link.record(Speaker::Error, self.service.name(), text, &[])
                }
                None => {}
            }
        }
    }

    /// When [`Channel::tick`] has something to do.
    pub(super) fn due(&self) -> Option<Instant> {
        let open = self.open()?;
        [open.due(), self.device.due(), self.unfinished]
            .into_iter()
            .flatten()
            .min()
    }

    /// Does what is due at `now`.
    pub(super) fn tick(&mut self, link: &mut Link, now: Instant) {
        if self.due().is_none_or(|due| due > now) {
            return;
        }
        if let Some(open) = self
            .offered
            .as_mut()
            .and_then(|offered| offered.open.as_mut())
        {
            open.tick(link, now);
        }
        self.pump(link);
    }

    /// Closes the channel, if it is open.
    pub(super) fn close(&mut self) {
        if let Some(offered) = &mut self.offered {
            if let Some(open) = offered.open.take() {
                self.unfinished = None;
                // A host never reads replies that it did not ask for, nor any while a scenario has it not read.
                if self.device.is_answered() && self.device.is_reading() {
                    self.left += open.to_host().used().unwrap_or(0);
                }
                self.device.closed();
            }
        }
    }
}
