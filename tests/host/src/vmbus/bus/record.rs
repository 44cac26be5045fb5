// SPDX-License-Identifier: GPL-2.0

//! The transcript's entries about the bus.

use super::Bus;
use crate::transcript::Speaker;
use crate::vmbus::message::FromGuest;
use crate::vmbus::message::OfferKind;
use crate::vmbus::message::ToGuest;

impl Bus {
    /// Adds a remark to the transcript.
    pub fn note(&mut self, text: String) {
        self.link.record(Speaker::Note, "vmbus", text, &[]);
    }

    /// Adds a fault of the guest to the transcript.
    pub(crate) fn error(&mut self, text: String, bytes: &[u8]) {
        self.link.record(Speaker::Error, "vmbus", text, bytes);
    }

    /// The transcript's text on a guest's message.
    pub(super) fn details_from_guest(&self, message: &FromGuest) -> String {
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

    /// The transcript's text on a message to the guest.
    pub(super) fn details_to_guest(&self, message: &ToGuest) -> String {
        match message {
            ToGuest::Offer(offer) => {
                let name = self.service_name(offer.relid);
                match offer.kind {
                    OfferKind::Device => name.to_owned(),
                    OfferKind::Socket {
                        is_for_accept: true,
                    } => {
                        format!("{name} to {}", offer.class)
                    }
                    OfferKind::Socket { .. } => format!("{name} from the guest to {}", offer.class),
                }
            }
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
        }
    }

    /// The name of the service whose channel has this number.
    fn service_name(&self, relid: u32) -> &'static str {
        self.channels
            .iter()
            .find(|channel| channel.relid() == Some(relid))
            .map_or("(no such channel)", |channel| channel.service.name())
    }
}
