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
    service::{
        Info,
        Service, //
    },
};
use hyperv::channel::{
    Context,
    Sender, //
};

/// The heartbeat service. A kernel that answers has its system up, so it reports it healthy.
pub(crate) struct Heartbeat;

impl Service for Heartbeat {
    const INFO: &'static Info = &Info {
        name: "Heartbeat",
        kind: Kind::HEARTBEAT,
        frameworks: &[Version::new(3, 0), Version::new(1, 0)],
        versions: &[Version::new(3, 0), Version::new(1, 0)],
        context: Context::Interrupt,
    };

    type Action = core::convert::Infallible;

    fn answer(&mut self, version: Version, body: &mut [u8]) -> (Status, Option<Self::Action>) {
        let status = match heartbeat::answer(version, body, ApplicationState::Healthy) {
            Some(()) => Status::OK,
            None => Status::FAIL,
        };
        (status, None)
    }

    fn act(&mut self, action: Self::Action, _: &Sender<'_>) {
        match action {}
    }
}
