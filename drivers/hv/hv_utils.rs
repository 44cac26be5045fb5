// SPDX-License-Identifier: GPL-2.0

//! Hyper-V guest integration services.

#![forbid(unsafe_code)]

mod daemon;
mod exchange;
mod fcopy;
mod freeze;
mod heartbeat;
mod icmsg;
mod kvp;
mod session;
mod shutdown;
mod timesync;
mod transport;
mod unique;
mod vss;

use daemon::{
    DaemonService,
    Info,
    WithDaemon, //
};
use fcopy::Fcopy;
use freeze::Freezer;
use heartbeat::Heartbeat;
use hyperv::{
    channel::{
        Channel,
        Handler,
        Job,
        RingSize,
        Waker, //
    },
    linux::{
        miscdevice,
        suspend::{
            Hibernation,
            HibernationNotifier, //
        },
    },
    ptp,
    vmbus::{
        self,
        DeviceId,
        Guid, //
    },
};
use kernel::{
    device::Core,
    driver,
    module::this_module,
    prelude::*,
    sync::Arc,
    InPlaceModule, //
};
use kvp::Kvp;
use session::{
    Service,
    Session, //
};
use shutdown::Shutdown;
use timesync::TimeSync;
use transport::{
    LateListener,
    Transport, //
};
use unique::{
    Claim,
    Unique, //
};
use vss::Vss;

/// The ring, each way, of a service whose messages are short.
const RING: RingSize = RingSize::with_data(3 * 4096);

/// Binds a service to its device.
struct Open(for<'bound> fn(&'bound vmbus::Device<Core<'_>>) -> Result<BoundService<'bound>>);

// The services, by the class of their devices.
hyperv::vmbus_device_table!(
    ID_TABLE,
    Open,
    [
        (
            DeviceId::from_class(Guid::new(0x0e0b6031_5213_4934_818b_38d90ced39db)),
            Open(open_shutdown)
        ),
        (
            DeviceId::from_class(Guid::new(0x9527e630_d0ae_497b_adce_e80ab0175caf)),
            Open(open_timesync)
        ),
        (
            DeviceId::from_class(Guid::new(0x57164f39_9115_4e78_ab55_382f3bd5422d)),
            Open(open_heartbeat)
        ),
        (
            DeviceId::from_class(Guid::new(0xa9a0f4e7_5a45_4d96_b827_8a841e8c03e6)),
            Open(open_kvp)
        ),
        (
            DeviceId::from_class(Guid::new(0x35fa2e29_ea23_4236_96ae_3a6ebacba440)),
            Open(open_vss)
        ),
    ]
);

hyperv::vmbus_device_table!(
    FCOPY_ID_TABLE,
    Open,
    [(
        DeviceId::from_class(Guid::new(0x34d14be3_dee4_41c8_9ae7_6b174977c192)),
        Open(open_fcopy)
    )]
);

hyperv::module_param_bool!(
    timesync_implicit,
    0o644,
    false,
    "If set treat SAMPLE as SYNC when clock is behind"
);

hyperv::module_param_bool!(
    fcopy_chardev,
    0o444,
    !cfg!(CONFIG_UIO_HV_GENERIC),
    "If set serve file copy by /dev/vmbus/hv_fcopy, else leave it to uio_hv_generic"
);

hyperv::module_param_uint!(
    vss_freeze_limit,
    0o644,
    900,
    86400,
    "Seconds for which file systems stay frozen for a backup at the most (0: for ever)"
);

/// A service that is bound to its device.
///
/// Fields are dropped in order. First what looks out for hibernations. Then the daemon's device: no
/// answer comes any more. Then the channel and its job. Then the PTP clock. Last the claim.
struct BoundService<'bound> {
    _hibernation: Option<HibernationNotifier>,
    _device: Option<miscdevice::Registration>,
    channel: Channel<'bound>,
    _ptp: Option<ptp::Registration>,
    _claim: Option<Claim>,
}

/// Opens the channel for a service that answers at once.
fn open<'bound, S: Service>(
    dev: &'bound vmbus::Device<Core<'_>>,
    service: S,
    job: Job,
) -> Result<BoundService<'bound>> {
    open_session(dev, KBox::new(Session::new(service), GFP_KERNEL)?, job)
}

/// The part of `open()` that does not depend on the service: compiled once.
fn open_session<'bound>(
    dev: &'bound vmbus::Device<Core<'_>>,
    session: KBox<dyn Handler>,
    job: Job,
) -> Result<BoundService<'bound>> {
    Ok(BoundService {
        _hibernation: None,
        _device: None,
        channel: Channel::open(dev, RING, session, job)?,
        _ptp: None,
        _claim: None,
    })
}

/// Claims the time service and opens its channel and PTP clock.
fn open_timesync<'bound>(dev: &'bound vmbus::Device<Core<'_>>) -> Result<BoundService<'bound>> {
    static UNIQUE: Unique = Unique::new();
    let claim = UNIQUE.claim(dev)?;
    let (service, job) = TimeSync::new()?;
    let ptp = service.register_ptp(dev.as_ref(), this_module::<Module>());
    let bound = open(dev, service, job)?;
    Ok(BoundService {
        _ptp: ptp,
        _claim: Some(claim),
        ..bound
    })
}

/// Claims the service, opens its channel and creates the daemon's device.
fn open_daemon<'bound>(
    dev: &'bound vmbus::Device<Core<'_>>,
    info: &'static Info,
    service: KBox<dyn DaemonService>,
    listener: Option<Arc<dyn LateListener>>,
) -> Result<BoundService<'bound>> {
    let claim = info.unique.claim(dev)?;
    let transport = Transport::new(&info.protocol, Waker::from(&***dev), listener)?;
    let transport = Arc::pin_init(transport, GFP_KERNEL)?;
    let (service, job) = WithDaemon::new(info, service, transport.clone())?;
    let session = KBox::new(Session::new(service), GFP_KERNEL)?;
    let channel = Channel::open(dev, info.ring, session, job)?;
    Ok(BoundService {
        _hibernation: None,
        // A daemon finds a channel that is open.
        _device: Some(miscdevice::Registration::new(dev.as_ref(), transport)?),
        channel,
        _ptp: None,
        _claim: Some(claim),
    })
}

/// Opens the backup service, which thaws before the guest hibernates.
fn open_vss<'bound>(dev: &'bound vmbus::Device<Core<'_>>) -> Result<BoundService<'bound>> {
    let freezer = Freezer::new(Waker::from(&***dev))?;
    let service = KBox::new(Vss::new(freezer.clone())?, GFP_KERNEL)?;
    let bound = open_daemon(dev, &vss::INFO, service, Some(freezer.clone()))?;
    let hibernation: Arc<dyn Hibernation> = freezer;
    Ok(BoundService {
        _hibernation: Some(HibernationNotifier::new(dev.as_ref(), hibernation)?),
        ..bound
    })
}

fn open_heartbeat<'bound>(dev: &'bound vmbus::Device<Core<'_>>) -> Result<BoundService<'bound>> {
    open(dev, Heartbeat, None)
}

fn open_shutdown<'bound>(dev: &'bound vmbus::Device<Core<'_>>) -> Result<BoundService<'bound>> {
    let (service, job) = Shutdown::new(dev)?;
    open(dev, service, job)
}

fn open_kvp<'bound>(dev: &'bound vmbus::Device<Core<'_>>) -> Result<BoundService<'bound>> {
    open_daemon(dev, &kvp::INFO, KBox::new(Kvp::new(), GFP_KERNEL)?, None)
}

fn open_fcopy<'bound>(dev: &'bound vmbus::Device<Core<'_>>) -> Result<BoundService<'bound>> {
    open_daemon(
        dev,
        &fcopy::INFO,
        KBox::new(Fcopy::new(), GFP_KERNEL)?,
        None,
    )
}

/// The driver of file copy, or that of all other services.
///
/// `uio_hv_generic` matches file copy's device, too, and the driver that is registered first gets it. So
/// file copy has a driver of its own, which is registered only where its daemon is wanted.
struct HvUtils<const IS_FCOPY: bool>;

#[vtable]
impl<const IS_FCOPY: bool> vmbus::Driver for HvUtils<IS_FCOPY> {
    type IdInfo = Open;
    type Data<'bound> = BoundService<'bound>;
    const ID_TABLE: vmbus::IdTable<Self::IdInfo> = match IS_FCOPY {
        true => &FCOPY_ID_TABLE,
        false => &ID_TABLE,
    };

    fn probe<'bound>(
        dev: &'bound vmbus::Device<Core<'_>>,
        Open(open): &'bound Self::IdInfo,
    ) -> impl PinInit<Self::Data<'bound>, Error> + 'bound {
        open(dev)
    }

    fn suspend<'bound>(
        dev: &'bound vmbus::Device<Core<'_>>,
        this: Pin<&Self::Data<'bound>>,
    ) -> Result {
        this.channel.suspend(dev)
    }

    fn resume<'bound>(
        dev: &'bound vmbus::Device<Core<'_>>,
        this: Pin<&Self::Data<'bound>>,
    ) -> Result {
        this.channel.resume(dev)
    }
}

/// A driver that is registered.
type Registration<const IS_FCOPY: bool> = driver::Registration<vmbus::Adapter<HvUtils<IS_FCOPY>>>;

#[pin_data]
struct Module {
    _farewell: Farewell,
    #[pin]
    _driver: Registration<false>,
    _fcopy_driver: Option<Pin<KBox<Registration<true>>>>,
}

impl InPlaceModule for Module {
    fn init(module: &'static ThisModule) -> impl PinInit<Self, Error> {
        pr_info!("Registering HyperV Utility Driver\n");
        try_pin_init!(Self {
            _farewell: Farewell,
            _driver <- Registration::new(c"hv_utils", module),
            _fcopy_driver: match fcopy_chardev.get() {
                true => Some(KBox::pin_init(
                    Registration::new(c"hv_utils_fcopy", module),
                    GFP_KERNEL,
                )?),
                false => None,
            },
        })
    }
}

/// Says that the module goes.
struct Farewell;

impl Drop for Farewell {
    fn drop(&mut self) {
        pr_info!("De-Registered HyperV Utility Driver\n");
    }
}

module! {
    type: Module,
    name: "hv_utils",
    authors: ["The hv_utils authors"],
    description: "Hyper-V Utilities",
    license: "GPL",
}
