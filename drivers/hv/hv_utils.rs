// SPDX-License-Identifier: GPL-2.0

//! Hyper-V guest integration services.

#![forbid(unsafe_code)]

mod daemon;
mod fcopy;
mod heartbeat;
mod icmsg;
mod kvp;
mod service;
mod shutdown;
mod timesync;
mod transport;
mod vss;

use daemon::DaemonService;
use fcopy::Fcopy;
use heartbeat::Heartbeat;
use hyperv::{
    channel::{
        Channel,
        RingSize,
        Waker, //
    },
    vmbus::{
        self,
        DeviceId,
        Guid, //
    },
};
use kernel::{
    device::{
        Bound,
        Core, //
    },
    driver,
    module::this_module,
    prelude::*,
    sync::Arc,
    InPlaceModule, //
};
use kvp::Kvp;
use service::{
    Service,
    Session, //
};
use shutdown::Shutdown;
use timesync::TimeSync;
use transport::Transport;
use vss::Vss;

/// The ring, each way, of a service whose messages are short.
const RING: RingSize = RingSize::with_data(3 * 4096);

/// The services.
#[derive(Clone, Copy)]
enum Class {
    Fcopy,
    Heartbeat,
    Kvp,
    Shutdown,
    TimeSync,
    Vss,
}

hyperv::vmbus_device_table!(
    ID_TABLE,
    <HvUtils as vmbus::Driver>::IdInfo,
    [
        (
            DeviceId::from_class(Guid::new(0x0e0b6031_5213_4934_818b_38d90ced39db)),
            Class::Shutdown
        ),
        (
            DeviceId::from_class(Guid::new(0x9527e630_d0ae_497b_adce_e80ab0175caf)),
            Class::TimeSync
        ),
        (
            DeviceId::from_class(Guid::new(0x57164f39_9115_4e78_ab55_382f3bd5422d)),
            Class::Heartbeat
        ),
        (
            DeviceId::from_class(Guid::new(0xa9a0f4e7_5a45_4d96_b827_8a841e8c03e6)),
            Class::Kvp
        ),
        (
            DeviceId::from_class(Guid::new(0x35fa2e29_ea23_4236_96ae_3a6ebacba440)),
            Class::Vss
        ),
        (
            DeviceId::from_class(Guid::new(0x34d14be3_dee4_41c8_9ae7_6b174977c192)),
            Class::Fcopy
        ),
    ]
);

hyperv::module_param_bool!(
    timesync_implicit,
    false,
    "If set treat SAMPLE as SYNC when clock is behind"
);

hyperv::module_param_bool!(
    fcopy_chardev,
    true,
    "If not set leave file copy to uio_hv_generic and its daemon"
);

/// A service that is bound to its device.
enum BoundService {
    Fcopy(BoundDaemon<Fcopy>),
    Heartbeat(BoundChannel<Session<Heartbeat>>),
    Kvp(BoundDaemon<Kvp>),
    Shutdown(BoundChannel<Session<Shutdown>>),
    TimeSync(BoundChannel<Session<TimeSync>>),
    Vss(BoundDaemon<Vss>),
}

type BoundChannel<H> = Pin<KBox<Channel<H>>>;

/// A service that a daemon does the work of. The device goes first: then no answer comes any more.
struct BoundDaemon<S: DaemonService> {
    _device: transport::Device<S>,
    channel: BoundChannel<daemon::Session<S>>,
}

fn open<S: Service>(dev: &vmbus::Device<Bound>, service: S) -> Result<BoundChannel<Session<S>>> {
    KBox::pin_init(
        Channel::open(dev, RING, RING, Session::new(service)),
        GFP_KERNEL,
    )
}

fn open_daemon<S: DaemonService>(dev: &vmbus::Device<Bound>, service: S) -> Result<BoundDaemon<S>> {
    let transport = Arc::pin_init(Transport::new(Waker::from(&**dev)), GFP_KERNEL)?;
    let session = daemon::Session::new(service, transport.clone())?;
    let channel = KBox::pin_init(Channel::open(dev, S::RING, S::RING, session), GFP_KERNEL)?;
    Ok(BoundDaemon {
        // A daemon finds a channel that is open.
        _device: transport::Device::new(transport)?,
        channel,
    })
}

struct HvUtils;

impl vmbus::Driver for HvUtils {
    type IdInfo = Class;
    type Data<'bound> = BoundService;
    const ID_TABLE: vmbus::IdTable<Self::IdInfo> = &ID_TABLE;

    fn probe<'bound>(
        dev: &'bound vmbus::Device<Core<'_>>,
        class: &'bound Self::IdInfo,
    ) -> impl PinInit<Self::Data<'bound>, Error> + 'bound {
        Ok::<_, Error>(match class {
            Class::Fcopy if !fcopy_chardev.get() => return Err(ENODEV),
            Class::Fcopy => BoundService::Fcopy(open_daemon(dev, Fcopy::new())?),
            Class::Heartbeat => BoundService::Heartbeat(open(dev, Heartbeat)?),
            Class::Kvp => BoundService::Kvp(open_daemon(dev, Kvp)?),
            Class::Shutdown => BoundService::Shutdown(open(dev, Shutdown::new(dev)?)?),
            Class::TimeSync => {
                BoundService::TimeSync(open(dev, TimeSync::new(this_module::<Module>())?)?)
            }
            Class::Vss => BoundService::Vss(open_daemon(dev, Vss::new()?)?),
        })
    }

    fn suspend<'bound>(
        _: &'bound vmbus::Device<Core<'_>>,
        this: Pin<&'bound Self::Data<'bound>>,
    ) -> Result {
        match &*this {
            BoundService::Fcopy(daemon) => daemon.channel.as_ref().suspend(),
            BoundService::Heartbeat(channel) => channel.as_ref().suspend(),
            BoundService::Kvp(daemon) => daemon.channel.as_ref().suspend(),
            BoundService::Shutdown(channel) => channel.as_ref().suspend(),
            BoundService::TimeSync(channel) => channel.as_ref().suspend(),
            BoundService::Vss(daemon) => daemon.channel.as_ref().suspend(),
        }
        Ok(())
    }

    fn resume<'bound>(
        _: &'bound vmbus::Device<Core<'_>>,
        this: Pin<&'bound Self::Data<'bound>>,
    ) -> Result {
        match &*this {
            BoundService::Fcopy(daemon) => daemon.channel.as_ref().resume(),
            BoundService::Heartbeat(channel) => channel.as_ref().resume(),
            BoundService::Kvp(daemon) => daemon.channel.as_ref().resume(),
            BoundService::Shutdown(channel) => channel.as_ref().resume(),
            BoundService::TimeSync(channel) => channel.as_ref().resume(),
            BoundService::Vss(daemon) => daemon.channel.as_ref().resume(),
        }
    }
}

#[pin_data]
struct Module {
    #[pin]
    _driver: driver::Registration<vmbus::Adapter<HvUtils>>,
}

impl InPlaceModule for Module {
    fn init(module: &'static ThisModule) -> impl PinInit<Self, Error> {
        pr_info!("Registering HyperV Utility Driver\n");
        try_pin_init!(Self {
            _driver <- driver::Registration::new(c"hv_utils", module),
        })
    }
}

module! {
    type: Module,
    name: "hv_utils",
    authors: ["The hv_utils authors"],
    description: "Hyper-V Utilities",
    license: "GPL",
}
