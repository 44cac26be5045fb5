// SPDX-License-Identifier: GPL-2.0

//! Heartbeat: every two seconds the host asks whether the guest is alive.

use crate::{
    binding::{
        BoundService,
        Device,
        RING, //
    },
    icmsg::{
        heartbeat::{
            self,
            ApplicationState, //
        },
        Kind,
        Status,
        Version, //
    },
    session::{
        Answer,
        Info,
        Service, //
    },
};
use core::convert::Infallible;
use hyperv::channel::Context;
use kernel::prelude::*;

static INFO: Info = Info {
    name: "Heartbeat",
    kind: Kind::HEARTBEAT,
    frameworks: &[Version::new(3, 0), Version::new(1, 0)],
    versions: &[Version::new(3, 0), Version::new(1, 0)],
};

/// Binds the service to its device.
pub(crate) fn open<'bound>(dev: &'bound Device<'_>) -> Result<BoundService<'bound>> {
    BoundService::open(dev, RING, Heartbeat, None)
}

/// The heartbeat service. A kernel that answers has its system up, so it reports it healthy.
pub(crate) struct Heartbeat;

impl Service for Heartbeat {
    const CONTEXT: Context = Context::Interrupt;

    type Action = Infallible;
    type Later = Infallible;

    fn info(&self) -> &'static Info {
        &INFO
    }

    fn answer(&mut self, version: Version, body: &mut [u8]) -> Answer<Infallible> {
        let status = match heartbeat::answer(version, body, ApplicationState::Healthy) {
            Some(()) => Status::OK,
            None => Status::FAIL,
        };
        Answer::Now(status, None)
    }
}
