// SPDX-License-Identifier: GPL-2.0

//! A service that is bound to its device, and how it comes to be.

use crate::{
    daemon::{
        self,
        DaemonService,
        WithDaemon, //
    },
    freeze::Freezer,
    heartbeat::Health,
    session::{
        Facts,
        Service,
        Session, //
    },
    timesync::HostClock,
    transport::{
        LateListener,
        Transport, //
    },
    unique::Claim, //
};
use hyperv::{
    channel::{
        Channel,
        Job,
        RingSize,
        Waker, //
    },
    linux::{
        miscdevice,
        suspend::HibernationNotifier, //
    },
    ptp,
    vmbus, //
};
use kernel::{
    device::Core,
    prelude::*,
    sync::Arc, //
};

/// A device on whose channel a driver may open a service.
pub(crate) type Device<'core> = vmbus::Device<Core<'core>>;

/// The ring, each way, of a service whose messages are short.
pub(crate) const RING: RingSize = RingSize::with_data(3 * 4096);

/// A service that is bound to its device.
///
/// Fields are dropped in order: the hibernation notifier; the character device, after which no answer comes;
/// the channel and its job; the PTP clock; the claim, after which another device may have the service.
pub(crate) struct BoundService<'bound> {
    pub(crate) _hibernation: Option<HibernationNotifier>,
    pub(crate) _chardev: Option<miscdevice::Registration>,
    pub(crate) channel: Channel<'bound>,
    pub(crate) _ptp: Option<ptp::Registration>,
    pub(crate) _claim: Option<Claim>,
    pub(crate) facts: Arc<Facts>,
    /// `Some` for the services that a daemon does the work of.
    pub(crate) work: Option<Arc<daemon::Facts>>,
    /// What was frozen for a backup, of VSS.
    pub(crate) freezer: Option<Arc<Freezer>>,
    /// `Some` for heartbeat.
    pub(crate) health: Option<Arc<Health>>,
    /// The host's clock, of time synchronisation.
    pub(crate) host_clock: Option<Arc<HostClock>>,
}

impl<'bound> BoundService<'bound> {
    /// Opens the device's channel for `service`, with rings of this size.
    pub(crate) fn open<S: Service>(
        dev: &'bound Device<'_>,
        ring: RingSize,
        service: S,
        job: Job,
    ) -> Result<Self> {
        let facts = Arc::new(Facts::new(), GFP_KERNEL)?;
        let session = KBox::new(Session::new(service, facts.clone()), GFP_KERNEL)?;
        Ok(Self {
            _hibernation: None,
            _chardev: None,
            channel: Channel::open(dev, ring, session, job)?,
            _ptp: None,
            _claim: None,
            facts,
            work: None,
            freezer: None,
            health: None,
            host_clock: None,
        })
    }

    /// Claims the service that `info` is of, opens its channel and creates its daemon's device.
    pub(crate) fn open_with_daemon(
        dev: &'bound Device<'_>,
        info: &'static daemon::Info,
        service: KBox<dyn DaemonService>,
        listener: Option<Arc<dyn LateListener>>,
    ) -> Result<Self> {
        let claim = info.unique.claim(dev)?;
        let transport = Transport::new(&info.protocol, Waker::from(&***dev), listener)?;
        let transport = Arc::pin_init(transport, GFP_KERNEL)?;
        let work = Arc::new(daemon::Facts::new(), GFP_KERNEL)?;
        let (service, job) = WithDaemon::new(info, service, transport.clone(), work.clone())?;
        let bound = Self::open(dev, info.ring, service, job)?;
        Ok(Self {
            // A daemon finds a channel that is open.
            _chardev: Some(miscdevice::Registration::new(dev.as_ref(), transport)?),
            _claim: Some(claim),
            work: Some(work),
            ..bound
        })
    }
}
