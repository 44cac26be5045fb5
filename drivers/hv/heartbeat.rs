// SPDX-License-Identifier: GPL-2.0

//! Heartbeat: every two seconds the host asks whether the guest is alive.

use crate::{
    icmsg::{
        heartbeat::{
            self,
            ApplicationState, //
        },
        Kind,
        Status,
        Version, //
    },
    service::Service, //
};

/// The heartbeat service. A kernel that answers has its system up, so it reports it healthy.
pub(crate) struct Heartbeat;

impl Service for Heartbeat {
    const NAME: &'static str = "Heartbeat";
    const KIND: Kind = Kind::HEARTBEAT;
    const VERSIONS: &'static [Version] = &[Version::new(3, 0), Version::new(1, 0)];

    type Action = core::convert::Infallible;

    fn answer(&mut self, version: Version, body: &mut [u8]) -> (Status, Option<Self::Action>) {
        let status = match heartbeat::answer(version, body, ApplicationState::Healthy) {
            Some(()) => Status::OK,
            None => Status::FAIL,
        };
        (status, None)
    }

    fn act(&mut self, action: Self::Action) {
        match action {}
    }
}
