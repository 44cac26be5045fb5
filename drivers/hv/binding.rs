// SPDX-License-Identifier: GPL-2.0

//! Binding a service to its device.

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

/// A device during probe, suspend or resume. Drivers may open and close its channel then.
pub(crate) type Device<'core> = vmbus::Device<Core<'core>>;

/// Size of each ring of a service whose messages are short.
pub(crate) const RING: RingSize = RingSize::with_data(3 * 4096);

/// A service that is bound to its device.
///
/// The order of the fields is the order in which they are dropped:
///
/// - the hibernation notifier;
/// - the character device: from now on, no daemon answers;
/// - the channel and its job;
/// - the PTP clock;
/// - the claim: from now on, another device can have the service.
pub(crate) struct BoundService<'bound> {
    /// `Some` for VSS.
    pub(crate) _hibernation: Option<HibernationNotifier>,
    /// `Some` for services with a daemon.
    pub(crate) _chardev: Option<miscdevice::Registration>,
    /// The channel, which owns the service and the job.
    pub(crate) channel: Channel<'bound>,
    /// `Some` for time synchronisation, unless the registration has failed.
    pub(crate) _ptp: Option<ptp::Registration>,
    /// `Some` for services that only one device can have.
    pub(crate) _claim: Option<Claim>,
    /// The facts about the session, for sysfs.
    pub(crate) facts: Arc<Facts>,
    /// The facts about the daemon, for sysfs. `Some` for services with a daemon.
    pub(crate) work: Option<Arc<daemon::Facts>>,
    /// `Some` for VSS.
    pub(crate) freezer: Option<Arc<Freezer>>,
    /// `Some` for heartbeat.
    pub(crate) health: Option<Arc<Health>>,
    /// `Some` for time synchronisation.
    pub(crate) host_clock: Option<Arc<HostClock>>,
}

impl<'bound> BoundService<'bound> {
    /// Opens the device's channel for `service`, with two rings of size `ring`. `job` is the
    /// channel's job.
    ///
    /// Fails as [`Channel::open`] does.
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

    /// Claims the service described by `info`, opens its channel, and registers the character
    /// device for its daemon. `listener` is told when the daemon is done with a question that was
    /// given up.
    ///
    /// Fails with `ENODEV` if another device has the service, or as [`Channel::open`] and
    /// [`miscdevice::Registration::new`] do.
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
            // Register the character device after opening the channel: a daemon may open it at
            // once.
            _chardev: Some(miscdevice::Registration::new(dev.as_ref(), transport)?),
            _claim: Some(claim),
            work: Some(work),
            ..bound
        })
    }
}
