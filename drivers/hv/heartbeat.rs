// SPDX-License-Identifier: GPL-2.0

//! Heartbeat: the host asks every two seconds whether the guest is alive.

use crate::{
    icmsg::heartbeat::{
        self,
        ApplicationState, //
    },
    prelude::*, //
};
use hyperv::linux::rwonce::RwOnce;

/// Constants of the heartbeat service.
static INFO: session::Info = session::Info {
    name: "Heartbeat",
    kind: Kind::HEARTBEAT,
    frameworks: &[Version::new(3, 0), Version::new(1, 0)],
    versions: &[Version::new(3, 0), Version::new(1, 0)],
    newest: None,
};

/// Binds the service to its device.
pub(crate) fn bind<'bound>(dev: &'bound Device<'_>) -> Result<BoundService<'bound>> {
    let health = Arc::new(Health(RwOnce::new(0)), GFP_KERNEL)?;
    let bound = BoundService::open(dev, RING, Heartbeat(health.clone()), None)?;
    Ok(BoundService {
        health: Some(health),
        ..bound
    })
}

/// The state of the guest's applications. The kernel does not know this state: user space sets it.
pub(crate) struct Health(RwOnce<u32>);

impl Health {
    /// Returns the state that was set last, [`ApplicationState::Unknown`] if none was set.
    pub(crate) fn get(&self) -> ApplicationState {
        ApplicationState::from_number(self.0.read())
    }

    /// Sets the state. The answer to the next heartbeat reports the state to the host.
    pub(crate) fn set(&self, state: ApplicationState) {
        self.0.write(state as u32);
    }
}

/// The heartbeat service.
struct Heartbeat(Arc<Health>);

impl Service for Heartbeat {
    const CONTEXT: Context = Context::Interrupt;

    type Action = Infallible;
    type Later = Infallible;

    fn info(&self) -> &'static session::Info {
        &INFO
    }

    fn answer(&mut self, version: Version, body: &mut [u8]) -> Answer<Infallible> {
        let status = match heartbeat::answer(version, body, self.0.get()) {
            Some(()) => Status::OK,
            None => Status::FAIL,
        };
        Answer::Now(status, None)
    }
}
