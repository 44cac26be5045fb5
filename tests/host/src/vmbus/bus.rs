// SPDX-License-Identifier: GPL-2.0

//! The bus: connection, offers, and the life of channels, as a state machine of messages in and messages out.
//!
//! Sources: `drivers/hv/{connection,channel,channel_mgmt}.c` for what a guest expects, Microsoft's open-source VMM for
//! what a host does with what it does not expect. Whatever the guest sends, the worst that happens is an error in the
//! transcript and, where the protocol has one, a failing answer.
//!
//! A device that is unplugged keeps its channel's number until the guest releases it; plugged in again before that, it
//! is offered when the guest does.

use std::sync::Arc;
use std::time::Instant;

use super::channel::Channel;
use super::channel::Offered;
use super::gpadl::Gpadl;
use super::message;
use super::message::FromGuest;
use super::message::Offer;
use super::message::ToGuest;
use super::open::Link;
use super::open::OpenChannel;
use crate::guid::Guid;
use crate::hypercall::Status;
use crate::ic::device;
use crate::ic::device::Device;
use crate::memory::GuestMemory;
use crate::ring::Ring;
use crate::service::Service;
use crate::service::Version;
use crate::synic::Hypervisor;
use crate::synic::VMBUS_SINT;
use crate::transcript::Speaker;
use crate::transcript::Transcript;

/// The VMBus versions that hosts have spoken and that need no shared interrupt page, oldest first.
pub const VERSIONS: [Version; 9] = [
    (2, 4),
    (3, 0),
    (4, 0),
    (4, 1),
    (5, 0),
    (5, 1),
    (5, 2),
    (5, 3),
    (6, 0),
];

/// The connection for messages of every version (`VMBUS_MESSAGE_CONNECTION_ID`).
const MESSAGES: u32 = 1;
/// The connection for messages from 5.0 on (`VMBUS_MESSAGE_CONNECTION_ID_4`).
const MESSAGES_4: u32 = 4;
/// Added to a channel's number to get its connection.
const CHANNEL_CONNECTIONS: u32 = 0x1_0000;

const STATUS_SUCCESS: u32 = 0;
/// The status of a failed open, GPADL or modification.
pub const STATUS_UNSUCCESSFUL: u32 = 0x8000_ffff;
const STATUS_CONNECTION_REFUSED: u32 = 0xc000_0236;

/// How many GPADLs a channel may have.
const GPADLS: usize = 256;

/// The processor of a channel that wants no interrupts.
const NO_PROCESSOR: u32 = u32::MAX;

/// A version as messages have it.
const fn word((major, minor): Version) -> u32 {
    ((major as u32) << 16) | minor as u32
}

/// Whether guest and host are talking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Connection {
    /// Not (yet, or any more).
    Disconnected,
    /// They have agreed on a version.
    Connected {
        /// The version.
        version: Version,
        /// The processor that gets the host's messages.
        target_vp: u32,
        /// The guest has asked for the offers.
        offered: bool,
    },
}

/// What a snapshot holds of the bus: the connection, and for each device the number under which it is offered, and
/// whether it is plugged in.
#[derive(Clone)]
pub struct State {
    connection: Connection,
    relids: Vec<Option<u32>>,
    present: Vec<bool>,
}

/// The bus.
pub struct Bus {
    link: Link,
    max_version: Version,
    connection: Connection,
    channels: Vec<Channel>,
    /// So many messages that close this device's channel are refused before the next is taken.
    refused_closes: (Service, u32),
}

impl Bus {
    /// A bus that speaks up to `max_version` and has these services' devices. It numbers and offers them by class and
    /// instance, so that they have the same numbers whenever a guest asks.
    pub fn new(
        memory: Arc<GuestMemory>,
        hypervisor: Box<dyn Hypervisor>,
        max_version: Version,
        services: &[Service],
    ) -> Self {
        let mut services = services.to_vec();
        services.sort_by_key(|service| (service.class(), service.instance()));
        Self {
            link: Link {
                memory,
                hypervisor,
                transcript: Transcript::new(),
            },
            max_version,
            connection: Connection::Disconnected,
            channels: services.into_iter().map(Channel::new).collect(),
            refused_closes: (Service::Kvp, 0),
        }
    }

    /// Replaces the hypervisor by that of a new machine, which begins with a reset.
    pub fn set_hypervisor(&mut self, hypervisor: Box<dyn Hypervisor>) {
        self.link.hypervisor = hypervisor;
        self.reset();
    }

    /// The record.
    pub fn transcript(&self) -> &Transcript {
        &self.link.transcript
    }

    /// Puts a remark into the record.
    pub fn note(&mut self, text: String) {
        self.link.record(Speaker::Note, "vmbus", text, &[]);
    }

    /// Whether guest and host are talking.
    pub fn connection(&self) -> Connection {
        self.connection
    }

    /// The guest's reference time in 100 ns units.
    pub fn reference_time(&self) -> u64 {
        self.link.hypervisor.reference_time()
    }

    /// The channel of `service`, if the bus has such a device.
    pub fn channel(&self, service: Service) -> Option<&Channel> {
        self.channels
            .iter()
            .find(|channel| channel.service == service)
    }

    /// Changes a device, and lets it act on the change.
    pub fn with_device<R>(
        &mut self,
        service: Service,
        change: impl FnOnce(&mut Device, bool) -> R,
    ) -> Option<R> {
        let channel = self
            .channels
            .iter_mut()
            .find(|channel| channel.service == service)?;
        let open = channel.open().is_some();
        let result = change(&mut channel.device, open);
        channel.pump(&mut self.link);
        Some(result)
    }

    /// Uses an open channel directly; `None` if it is not open.
    pub fn with_open<R>(
        &mut self,
        service: Service,
        act: impl FnOnce(&mut OpenChannel, &mut Link) -> R,
    ) -> Option<R> {
        let channel = self
            .channels
            .iter_mut()
            .find(|channel| channel.service == service)?;
        let open = channel.offered.as_mut()?.open.as_mut()?;
        Some(act(open, &mut self.link))
    }

    /// Offers the device of `service` as this instance, from its next offer on.
    pub fn set_instance(&mut self, service: Service, instance: Guid) {
        if let Some(channel) = self
            .channels
            .iter_mut()
            .find(|channel| channel.service == service)
        {
            channel.instance = instance;
        }
    }

    /// Plugs in a second device of the class of `service`, as no host has one. All else here that names the service is
    /// about the first. It is gone after [`Bus::rescind_second`] and the guest's release.
    pub fn offer_second(&mut self, service: Service, instance: Guid) {
        let mut channel = Channel::new(service);
        channel.instance = instance;
        channel.is_second = true;
        channel.present = false;
        if let Some(first) = self.channel(service) {
            if first.device.mode() == device::Mode::Script {
                channel.device.script();
            }
        }
        self.channels.push(channel);
        self.plug_in(self.channels.len() - 1);
    }

    /// Has the second device be the first from now on, and that one the second; an error if there is none.
    pub fn swap_second(&mut self, service: Service) -> Result<(), String> {
        let first = self
            .channels
            .iter()
            .position(|channel| channel.service == service && !channel.is_second);
        let (Some(first), Some(second)) = (first, self.second(service)) else {
            return Err(format!("there is no second {service}"));
        };
        self.channels.swap(first, second);
        self.channels[first].is_second = false;
        self.channels[second].is_second = true;
        self.drop_seconds();
        Ok(())
    }

    /// Unplugs the second device; an error if there is none.
    pub fn rescind_second(&mut self, service: Service) -> Result<(), String> {
        let index = self
            .second(service)
            .filter(|&index| self.channels[index].present)
            .ok_or_else(|| format!("there is no second {service}"))?;
        self.unplug(index);
        self.drop_seconds();
        Ok(())
    }

    /// How often the second device was opened; `None` where there is none.
    pub fn second_opens(&self, service: Service) -> Option<u64> {
        let index = self.second(service)?;
        Some(self.channels[index].opens)
    }

    fn second(&self, service: Service) -> Option<usize> {
        let is_it = |channel: &Channel| channel.is_second && channel.service == service;
        self.channels.iter().position(is_it)
    }

    /// Forgets second devices that are unplugged and released.
    fn drop_seconds(&mut self) {
        self.channels
            .retain(|channel| !channel.is_second || channel.present || channel.offered.is_some());
    }

    /// How many messages are yet to be refused, see [`Bus::refuse_closes`].
    pub fn refused_closes(&self) -> u32 {
        self.refused_closes.1
    }

    /// Answers the next `count` open requests of `service` with `status`.
    pub fn fail_opens(&mut self, service: Service, count: u32, status: u32) {
        if let Some(channel) = self
            .channels
            .iter_mut()
            .find(|channel| channel.service == service)
        {
            channel.fail_opens = (count, status);
        }
    }

    /// Has the guest's next `count` messages that close the channel of `service` find no room with the host
    /// (HV_STATUS_INSUFFICIENT_BUFFERS), after which a guest tries again. All others find it.
    pub fn refuse_closes(&mut self, service: Service, count: u32) {
        self.refused_closes = (service, count);
    }

    /// Whether there is no room for the message.
    fn refuses(&mut self, message: &FromGuest) -> bool {
        let (service, count) = self.refused_closes;
        let relid = self.channel(service).and_then(Channel::relid);
        match message {
            FromGuest::CloseChannel { relid: closed } if relid == Some(*closed) && count > 0 => {
                self.refused_closes.1 -= 1;
                true
            }
            _ => false,
        }
    }

    /// Makes the device of `service` as new and plugs it in, as the only one of its class; an open channel starts over
    /// with a negotiation.
    pub fn renew(&mut self, service: Service) {
        if let Some(index) = self.second(service) {
            if self.channels[index].present {
                self.unplug(index);
            }
            self.drop_seconds();
        }
        let Some(channel) = self
            .channels
            .iter_mut()
            .find(|channel| channel.service == service)
        else {
            return;
        };
        let negotiates = *channel.device.state() == device::State::Negotiating;
        channel.device = Device::new(service);
        channel.instance = service.instance();
        channel.fail_opens = (0, 0);
        channel.opens = 0;
        channel.left = 0;
        if channel.open().is_some() {
            channel.device.opened();
            if negotiates {
                // The reply is on its way; another request would have a surplus one.
                channel.device.take_output();
            }
            channel.pump(&mut self.link);
        }
        if !channel.present {
            let _ = self.reoffer(service);
        }
    }

    /// Forgets what the guest has sent on the service's channel and nobody took.
    pub fn forget_surplus(&mut self, service: Service) {
        let mut channels = self.channels.iter_mut();
        if let Some(channel) = channels.find(|channel| channel.service == service) {
            channel.forget_surplus();
        }
    }

    /// The machine was reset: nobody is connected, nothing is open.
    pub fn reset(&mut self) {
        self.disconnect();
        self.link.hypervisor.forget_messages();
        self.link
            .record(Speaker::Note, "vmbus", "reset".to_owned(), &[]);
    }

    fn disconnect(&mut self) {
        for channel in &mut self.channels {
            channel.close();
            channel.offered = None;
        }
        self.drop_seconds();
        self.connection = Connection::Disconnected;
    }

    /// What a snapshot needs; an error if a channel is in use, as rings and services are not part of it.
    pub fn state(&self) -> Result<State, String> {
        let in_use = |channel: &&Channel| {
            channel
                .offered
                .as_ref()
                .is_some_and(|offered| offered.open.is_some() || !offered.gpadls.is_empty())
        };
        if let Some(channel) = self.channels.iter().find(in_use) {
            return Err(format!("{} is in use", channel.service));
        }
        if self.has_unreleased() {
            return Err("a rescinded channel is in use".to_owned());
        }
        Ok(State {
            connection: self.connection,
            relids: self.channels.iter().map(Channel::relid).collect(),
            present: self
                .channels
                .iter()
                .map(|channel| channel.present)
                .collect(),
        })
    }

    /// Goes on from a snapshot with the hypervisor of a new machine. The devices stay as they are.
    pub fn set_state(&mut self, state: &State, hypervisor: Box<dyn Hypervisor>) {
        self.set_hypervisor(hypervisor);
        self.connection = state.connection;
        let saved = state.relids.iter().zip(&state.present);
        for (channel, (relid, present)) in self.channels.iter_mut().zip(saved) {
            channel.present = *present;
            channel.offered = relid.map(Offered::new);
        }
        self.note("goes on from a snapshot".to_owned());
    }

    /// When [`Bus::tick`] has something to do.
    pub fn due(&self) -> Option<Instant> {
        self.channels.iter().filter_map(Channel::due).min()
    }

    /// Does what is due.
    pub fn tick(&mut self) {
        let now = Instant::now();
        for channel in &mut self.channels {
            channel.tick(&mut self.link, now);
        }
    }

    /// HvSignalEvent from the guest.
    pub fn signal(&mut self, connection: u32, flag: u16) -> Status {
        let channel = self.channels.iter_mut().find(|channel| {
            channel.open().is_some()
                && channel.relid().map(|relid| relid + CHANNEL_CONNECTIONS) == Some(connection)
        });
        let Some(channel) = channel else {
            return Status::InvalidConnectionId;
        };
        if flag != 0 {
            return Status::InvalidParameter;
        }
        channel.pump(&mut self.link);
        Status::Success
    }

    /// HvPostMessage from the guest.
    pub fn post(&mut self, connection: u32, kind: u32, payload: &[u8]) -> Status {
        // A host that does not know version 5.0 has not got its connection either.
        if connection != MESSAGES && !(connection == MESSAGES_4 && self.max_version >= (5, 0)) {
            return Status::InvalidConnectionId;
        }
        let message = FromGuest::parse(payload);
        if message.as_ref().is_ok_and(|message| self.refuses(message)) {
            self.note("a message is refused: no buffers".to_owned());
            return Status::InsufficientBuffers;
        }
        if self.link.hypervisor.is_congested() {
            if !matches!(message, Ok(FromGuest::InitiateContact { .. })) {
                return Status::InsufficientBuffers;
            }
            // A crashed guest's successor does not have to take what that one has left; and no guest makes it more.
            self.link.hypervisor.forget_messages();
        }
        if kind != 1 {
            self.error(format!("message of type {kind} instead of 1"), payload);
            return Status::Success;
        }
        match message {
            Ok(message) => {
                let text = format!("{} {}", message::name(payload), self.details(&message));
                self.link
                    .record(Speaker::Guest, "vmbus", text.trim_end().to_owned(), payload);
                self.handle(connection, message);
            }
            Err(malformed) => self.error(malformed.to_string(), payload),
        }
        Status::Success
    }

    /// Puts a fault of the guest's into the record.
    pub(crate) fn error(&mut self, text: String, bytes: &[u8]) {
        self.link.record(Speaker::Error, "vmbus", text, bytes);
    }

    /// The service's name, for a channel's number.
    fn service_name(&self, relid: u32) -> &'static str {
        self.channels
            .iter()
            .find(|channel| channel.relid() == Some(relid))
            .map_or("(no such channel)", |channel| channel.service.name())
    }

    /// What the transcript says of a guest's message.
    fn details(&self, message: &FromGuest) -> String {
        match message {
            FromGuest::InitiateContact {
                version, target_vp, ..
            } => {
                format!(
                    "version {}.{} processor {target_vp}",
                    version >> 16,
                    version & 0xffff
                )
            }
            FromGuest::OpenChannel {
                relid, target_vp, ..
            } => {
                format!("{} processor {target_vp}", self.service_name(*relid))
            }
            FromGuest::ModifyChannel { relid, target_vp } => {
                format!("{} processor {target_vp}", self.service_name(*relid))
            }
            FromGuest::GpadlHeader {
                relid,
                range_length,
                ..
            } => {
                format!(
                    "{} {} pages",
                    self.service_name(*relid),
                    (range_length / 8).saturating_sub(1)
                )
            }
            FromGuest::CloseChannel { relid }
            | FromGuest::GpadlTeardown { relid, .. }
            | FromGuest::RelidReleased { relid } => self.service_name(*relid).to_owned(),
            FromGuest::TlConnect { service, .. } => service.to_string(),
            FromGuest::RequestOffers | FromGuest::GpadlBody { .. } | FromGuest::Unload => {
                String::new()
            }
        }
    }

    /// Sends a message to the processor that the guest named.
    fn send(&mut self, target_vp: u32, message: &ToGuest) {
        self.send_to(target_vp, VMBUS_SINT, message);
    }

    fn send_to(&mut self, target_vp: u32, sint: u32, message: &ToGuest) {
        let bytes = message.encode();
        let details = match message {
            ToGuest::Offer(offer) => self.service_name(offer.relid).to_owned(),
            ToGuest::Rescind { .. } => String::new(),
            ToGuest::OpenResult { relid, status, .. } => {
                format!("{} status {status:#x}", self.service_name(*relid))
            }
            ToGuest::GpadlCreated { relid, status, .. } => {
                format!("{} status {status:#x}", self.service_name(*relid))
            }
            ToGuest::ModifyChannelResponse { relid, status } => {
                format!("{} status {status:#x}", self.service_name(*relid))
            }
            ToGuest::VersionResponse {
                supported, failed, ..
            } => match (supported, failed) {
                (false, _) => "no".to_owned(),
                (true, false) => "yes".to_owned(),
                (true, true) => "failed".to_owned(),
            },
            _ => String::new(),
        };
        let text = format!("{} {details}", message::name(&bytes));
        self.link
            .record(Speaker::Host, "vmbus", text.trim_end().to_owned(), &bytes);
        self.link.hypervisor.post_message(target_vp, sint, &bytes);
    }

    fn handle(&mut self, connection: u32, message: FromGuest) {
        if let FromGuest::InitiateContact {
            version,
            target_vp,
            interrupt_page_or_target,
            parent_monitor,
            child_monitor,
        } = message
        {
            let one_monitor_page = (parent_monitor == 0) != (child_monitor == 0);
            // The fourth connection is for guests that say which SINT and VTL they are about, others mean the usual.
            let [sint, vtl, ..] = interrupt_page_or_target.to_le_bytes();
            let chosen = connection == MESSAGES_4;
            let sint = match chosen && version >= word((5, 0)) {
                true => u32::from(sint),
                false => VMBUS_SINT,
            };
            // Another VTL is another host's business.
            if chosen && version >= word((5, 1)) && vtl != 0 {
                return self.error(format!("contact for VTL {vtl}, where no one is"), &[]);
            }
            if sint != VMBUS_SINT {
                self.error(format!("contact for SINT {sint}, where no one is"), &[]);
                let unsupported = ToGuest::VersionResponse {
                    supported: false,
                    failed: false,
                    connection_or_version: 0,
                    features: None,
                };
                return self.send_to(target_vp, sint, &unsupported);
            }
            return self.initiate_contact(version, target_vp, one_monitor_page);
        }
        let Connection::Connected {
            version,
            target_vp,
            offered,
        } = self.connection
        else {
            return self.error("message without a connection".to_owned(), &[]);
        };
        let needs = match message {
            FromGuest::TlConnect { .. } => (4, 0),
            FromGuest::ModifyChannel { .. } => (4, 1),
            _ => (0, 0),
        };
        if version < needs {
            let (major, minor) = needs;
            return self.error(format!("message of version {major}.{minor}"), &[]);
        }
        match message {
            FromGuest::InitiateContact { .. } => unreachable!("handled above"),
            FromGuest::RequestOffers => {
                if offered {
                    return self.error("offers requested twice".to_owned(), &[]);
                }
                self.connection = Connection::Connected {
                    version,
                    target_vp,
                    offered: true,
                };
                for index in 0..self.channels.len() {
                    if self.channels[index].present {
                        self.offer(index, target_vp);
                    }
                }
                self.send(target_vp, &ToGuest::AllOffersDelivered);
            }
            FromGuest::Unload => {
                self.disconnect();
                self.send(target_vp, &ToGuest::UnloadResponse);
            }
            FromGuest::GpadlHeader {
                relid,
                gpadl,
                range_length,
                range_count,
                words,
            } => {
                let new = Gpadl::new(range_length, range_count, &words);
                self.gpadl_header(target_vp, relid, gpadl, new);
            }
            FromGuest::GpadlBody { gpadl, words, .. } => self.gpadl_body(target_vp, gpadl, &words),
            FromGuest::GpadlTeardown { relid, gpadl } => {
                self.gpadl_teardown(target_vp, relid, gpadl)
            }
            FromGuest::OpenChannel {
                relid,
                open_id,
                gpadl,
                target_vp: vp,
                downstream_page,
            } => {
                self.open_channel(target_vp, relid, open_id, gpadl, vp, downstream_page);
            }
            FromGuest::CloseChannel { relid } => self.close_channel(target_vp, relid),
            FromGuest::RelidReleased { relid } => self.release(target_vp, relid),
            FromGuest::ModifyChannel {
                relid,
                target_vp: vp,
            } => {
                let valid = self.is_target(vp);
                let open = self
                    .by_relid(relid)
                    .and_then(|channel| channel.offered.as_mut()?.open.as_mut());
                let status = match open {
                    Some(open) if valid => {
                        open.set_target_vp(vp);
                        STATUS_SUCCESS
                    }
                    _ => STATUS_UNSUCCESSFUL,
                };
                if status != STATUS_SUCCESS {
                    self.error("channel cannot be modified".to_owned(), &[]);
                }
                if version >= (5, 3) {
                    self.send(target_vp, &ToGuest::ModifyChannelResponse { relid, status });
                }
            }
            FromGuest::TlConnect { endpoint, service } => {
                // Older guests have to wait for an offer that never comes.
                if version >= (4, 1) {
                    let status = STATUS_CONNECTION_REFUSED;
                    self.send(
                        target_vp,
                        &ToGuest::TlConnectResult {
                            endpoint,
                            service,
                            status,
                        },
                    );
                }
            }
        }
    }

    fn by_relid(&mut self, relid: u32) -> Option<&mut Channel> {
        self.channels
            .iter_mut()
            .find(|channel| channel.relid() == Some(relid))
    }

    /// Whether interrupts can be sent to this processor, or to none.
    fn is_target(&self, vp: u32) -> bool {
        vp < self.link.hypervisor.processors() || vp == NO_PROCESSOR
    }

    fn initiate_contact(&mut self, requested: u32, target_vp: u32, one_monitor_page: bool) {
        if self.connection != Connection::Disconnected {
            // A guest that crashed or was booted by kexec begins anew without a word.
            self.note("contact while connected: everything is closed".to_owned());
            self.disconnect();
            self.link.hypervisor.forget_messages();
        }
        let version = ((requested >> 16) as u16, requested as u16);
        let supported = VERSIONS.contains(&version) && version <= self.max_version;
        // Before 3.0 everything goes to processor 0.
        let target_vp = if version >= (3, 0) { target_vp } else { 0 };
        let no_processor = target_vp >= self.link.hypervisor.processors();
        let failed = supported && (no_processor || one_monitor_page);
        if failed {
            let text = "contact with one monitor page, or for a processor that is not there";
            self.error(text.to_owned(), &[]);
        }
        if supported && !failed {
            self.connection = Connection::Connected {
                version,
                target_vp,
                offered: false,
            };
        }
        let connection_or_version = match supported {
            false => 0,
            // Any further message may come by this connection or by that of the contact.
            true if version >= (5, 0) => MESSAGES,
            true => requested,
        };
        let features = (supported && version >= (6, 0)).then_some(0);
        self.send(
            if no_processor { 0 } else { target_vp },
            &ToGuest::VersionResponse {
                supported,
                failed,
                connection_or_version,
                features,
            },
        );
    }

    /// Offers a device under the number that it still has, or the lowest free one.
    fn offer(&mut self, index: usize, target_vp: u32) {
        let is_free = |relid: &u32| {
            !self
                .channels
                .iter()
                .any(|channel| channel.relid() == Some(*relid))
        };
        let relid = self.channels[index].relid();
        let relid = relid.or_else(|| (1..).find(is_free)).unwrap_or(1);
        let channel = &mut self.channels[index];
        channel.offered = Some(Offered::new(relid));
        let offer = Offer {
            class: channel.service.class(),
            instance: channel.instance,
            relid,
            connection_id: relid + CHANNEL_CONNECTIONS,
        };
        self.send(target_vp, &ToGuest::Offer(offer));
    }

    /// Unplugs a device: rescinds its offer. An error if it is not plugged in.
    pub fn rescind(&mut self, service: Service) -> Result<(), String> {
        let index = self
            .channels
            .iter()
            .position(|channel| channel.service == service && !channel.is_second)
            .filter(|&index| self.channels[index].present)
            .ok_or_else(|| format!("{service} is not on the bus"))?;
        self.unplug(index);
        Ok(())
    }

    fn unplug(&mut self, index: usize) {
        let connection = self.connection;
        let channel = &mut self.channels[index];
        let service = channel.service;
        channel.present = false;
        channel.close();
        let Some(offered) = channel
            .offered
            .as_mut()
            .filter(|offered| !offered.rescinded)
        else {
            return;
        };
        offered.rescinded = true;
        let (relid, torn_down) = (offered.relid, offered.take_torn_down());
        self.note(format!("{service} is unplugged"));
        if let Connection::Connected { target_vp, .. } = connection {
            self.send_torn_down(target_vp, &torn_down);
            self.send(target_vp, &ToGuest::Rescind { relid });
        }
    }

    /// Plugs a device in again: offers it, once the guest has released what was rescinded. An error if it is plugged
    /// in.
    pub fn reoffer(&mut self, service: Service) -> Result<(), String> {
        let index = self
            .channels
            .iter()
            .position(|channel| channel.service == service && !channel.is_second)
            .filter(|&index| !self.channels[index].present)
            .ok_or_else(|| format!("{service} is on the bus already, or never was"))?;
        self.plug_in(index);
        Ok(())
    }

    fn plug_in(&mut self, index: usize) {
        self.channels[index].present = true;
        let waits = self.channels[index].offered.is_some();
        if let (
            Connection::Connected {
                target_vp,
                offered: true,
                ..
            },
            false,
        ) = (self.connection, waits)
        {
            self.offer(index, target_vp);
        }
    }

    /// Whether the guest has yet to release a rescinded channel.
    pub fn has_unreleased(&self) -> bool {
        self.channels.iter().any(Channel::is_rescinded)
    }

    /// The guest gives up a channel's number, and its GPADLs with it.
    fn release(&mut self, target_vp: u32, relid: u32) {
        let index = self
            .channels
            .iter()
            .position(|channel| channel.relid() == Some(relid));
        let Some(index) = index else {
            return self.error("release of a channel that is not offered".to_owned(), &[]);
        };
        let channel = &mut self.channels[index];
        if channel.open().is_some() {
            return self.error("release of an open channel".to_owned(), &[]);
        }
        let service = channel.service;
        match (channel.is_rescinded(), channel.present) {
            // It has been plugged in again meanwhile, and keeps its number.
            (true, true) => self.offer(index, target_vp),
            (true, false) => {
                channel.offered = None;
                self.drop_seconds();
            }
            // A guest may give up what it could have used. It is offered again when the guest next asks for offers.
            (false, _) => {
                channel.offered = None;
                self.note(format!(
                    "{service} is released, though it was not rescinded"
                ));
            }
        }
    }

    fn send_torn_down(&mut self, target_vp: u32, handles: &[u32]) {
        for &gpadl in handles {
            self.send(target_vp, &ToGuest::GpadlTorndown { gpadl });
        }
    }

    fn gpadl_header(&mut self, target_vp: u32, relid: u32, handle: u32, gpadl: Gpadl) {
        let channel = self.by_relid(relid);
        let Some(offered) = channel.and_then(|channel| channel.offered.as_mut()) else {
            self.error("GPADL for a channel that is not offered".to_owned(), &[]);
            return self.gpadl_created(target_vp, relid, handle, STATUS_UNSUCCESSFUL);
        };
        let taken = offered.gpadls.contains_key(&handle);
        if taken || offered.gpadls.len() >= GPADLS {
            let text = match taken {
                true => "GPADL with the handle of another",
                false => "GPADL beyond what a channel may have",
            };
            self.error(text.to_owned(), &[]);
            return self.gpadl_created(target_vp, relid, handle, STATUS_UNSUCCESSFUL);
        }
        let complete = gpadl.is_complete();
        offered.gpadls.insert(handle, gpadl);
        if complete {
            self.gpadl_complete(target_vp, relid, handle);
        }
    }

    /// Answers a GPADL that has been received in full.
    fn gpadl_complete(&mut self, target_vp: u32, relid: u32, handle: u32) {
        let channel = self.by_relid(relid);
        let Some(offered) = channel.and_then(|channel| channel.offered.as_mut()) else {
            return;
        };
        let valid = offered.gpadls.get(&handle).is_some_and(Gpadl::is_valid);
        let rescinded = offered.rescinded;
        if valid && !rescinded {
            return self.gpadl_created(target_vp, relid, handle, STATUS_SUCCESS);
        }
        offered.gpadls.remove(&handle);
        if !rescinded {
            self.error("GPADL of impossible ranges".to_owned(), &[]);
        }
        self.gpadl_created(target_vp, relid, handle, STATUS_UNSUCCESSFUL);
    }

    fn gpadl_created(&mut self, target_vp: u32, relid: u32, gpadl: u32, status: u32) {
        let created = ToGuest::GpadlCreated {
            relid,
            gpadl,
            status,
        };
        self.send(target_vp, &created);
    }

    fn gpadl_body(&mut self, target_vp: u32, handle: u32, words: &[u64]) {
        // A body does not say whose it is: it belongs to the GPADL of that handle that waits for one.
        let found = self
            .channels
            .iter_mut()
            .filter_map(|channel| channel.offered.as_mut())
            .find_map(|offered| {
                let gpadl = offered.gpadls.get_mut(&handle)?;
                if gpadl.is_complete() {
                    return None;
                }
                gpadl.extend(words);
                Some((offered.relid, gpadl.is_complete()))
            });
        match found {
            Some((relid, true)) => self.gpadl_complete(target_vp, relid, handle),
            Some((_, false)) => {}
            None => self.error("GPADL body without a header".to_owned(), &[]),
        }
    }

    fn gpadl_teardown(&mut self, target_vp: u32, relid: u32, handle: u32) {
        let channel = self.by_relid(relid);
        let Some(offered) = channel.and_then(|channel| channel.offered.as_mut()) else {
            return self.error("teardown for a channel that is not offered".to_owned(), &[]);
        };
        let open = offered.open.as_ref();
        let in_use = open.is_some_and(|open| open.gpadl() == handle);
        match offered.gpadls.get_mut(&handle) {
            Some(gpadl) if gpadl.is_complete() && !gpadl.tearing_down => {
                gpadl.tearing_down = true;
                if in_use {
                    let text = "teardown of an open channel's GPADL: waits for the close";
                    return self.error(text.to_owned(), &[]);
                }
                offered.gpadls.remove(&handle);
                self.send_torn_down(target_vp, &[handle]);
            }
            _ => self.error(
                "teardown of a GPADL that cannot be torn down".to_owned(),
                &[],
            ),
        }
    }

    fn close_channel(&mut self, target_vp: u32, relid: u32) {
        let channel = self.by_relid(relid);
        match channel {
            Some(channel) if channel.open().is_some() => {
                channel.close();
                let offered = channel.offered.as_mut();
                let torn_down = offered.map(Offered::take_torn_down).unwrap_or_default();
                self.send_torn_down(target_vp, &torn_down);
            }
            // Closing a rescinded channel changes nothing: the host has closed it already.
            Some(channel) if channel.is_rescinded() => {}
            _ => self.error("close of a channel that is not open".to_owned(), &[]),
        }
    }

    fn open_channel(
        &mut self,
        target_vp: u32,
        relid: u32,
        open_id: u32,
        gpadl: u32,
        vp: u32,
        downstream: u32,
    ) {
        let is_target = self.is_target(vp);
        let memory = self.link.memory.clone();
        let Some(channel) = self.by_relid(relid) else {
            return self.error("open of an unknown channel".to_owned(), &[]);
        };
        // The rescind is on its way, and the guest waits for no result after it.
        if channel.is_rescinded() {
            return;
        }
        if channel.open().is_some() {
            return self.error("open of an open channel".to_owned(), &[]);
        }
        let service = channel.service;
        let Some(offered) = channel.offered.as_mut() else {
            return;
        };
        let rings = offered
            .gpadls
            .get(&gpadl)
            .filter(|gpadl| !gpadl.tearing_down)
            .and_then(Gpadl::pages)
            .and_then(|pages| {
                let (up, down) = pages.split_at_checked(downstream as usize)?;
                let up = Ring::new(memory.clone(), up)?;
                let down = Ring::new(memory, down)?;
                up.begin_reading().and(down.begin_writing()).ok()?;
                Some((up, down))
            });
        let mut status = STATUS_UNSUCCESSFUL;
        if channel.fail_opens.0 > 0 {
            channel.fail_opens.0 -= 1;
            status = channel.fail_opens.1;
        } else if let (Some((to_host, to_guest)), true) = (rings, is_target) {
            status = STATUS_SUCCESS;
            offered.open = Some(OpenChannel::new(
                service, relid, vp, gpadl, to_host, to_guest,
            ));
            channel.opens += 1;
            channel.device.opened();
        } else {
            self.error("open with impossible rings or processor".to_owned(), &[]);
        }
        // The device starts talking before the result reaches the guest (observed).
        if let Some(index) = self
            .channels
            .iter()
            .position(|channel| channel.relid() == Some(relid))
        {
            self.channels[index].pump(&mut self.link);
        }
        self.send(
            target_vp,
            &ToGuest::OpenResult {
                relid,
                open_id,
                status,
            },
        );
    }
}
