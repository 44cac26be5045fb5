// SPDX-License-Identifier: GPL-2.0

//! Hyper-V guest integration services.

#![forbid(unsafe_code)]

mod heartbeat;
mod icmsg;
mod service;
mod shutdown;
mod timesync;

use heartbeat::Heartbeat;
use hyperv::{
    channel::{
        Channel,
        RingSize, //
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
    InPlaceModule, //
};
use service::{
    Service,
    Session, //
};
use shutdown::Shutdown;
use timesync::TimeSync;

/// The ring, each way, of a service whose messages are short.
const RING: RingSize = RingSize::with_data(3 * 4096);

/// The services.
#[derive(Clone, Copy)]
enum Class {
    Heartbeat,
    Shutdown,
    TimeSync,
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
    ]
);

hyperv::module_param_bool!(
    timesync_implicit,
    false,
    "If set treat SAMPLE as SYNC when clock is behind"
);

/// A service that is bound to its device.
enum BoundService<'bound> {
    Heartbeat(BoundChannel<'bound, Heartbeat>),
    Shutdown(BoundChannel<'bound, Shutdown<'bound>>),
    TimeSync(BoundChannel<'bound, TimeSync>),
}

type BoundChannel<'bound, S> = Pin<KBox<Channel<'bound, Session<S>>>>;

fn open<'bound, S: Service + 'bound>(
    dev: &'bound vmbus::Device<Bound>,
    service: S,
) -> Result<BoundChannel<'bound, S>> {
    KBox::pin_init(
        Channel::open(dev, RING, RING, Session::new(service)),
        GFP_KERNEL,
    )
}

struct HvUtils;

impl vmbus::Driver for HvUtils {
    type IdInfo = Class;
    type Data<'bound> = BoundService<'bound>;
    const ID_TABLE: vmbus::IdTable<Self::IdInfo> = &ID_TABLE;

    fn probe<'bound>(
        dev: &'bound vmbus::Device<Core<'_>>,
        class: &'bound Self::IdInfo,
    ) -> impl PinInit<Self::Data<'bound>, Error> + 'bound {
        Ok::<_, Error>(match class {
            Class::Heartbeat => BoundService::Heartbeat(open(dev, Heartbeat)?),
            Class::Shutdown => BoundService::Shutdown(open(dev, Shutdown::new(dev)?)?),
            Class::TimeSync => {
                BoundService::TimeSync(open(dev, TimeSync::new(this_module::<Module>())?)?)
            }
        })
    }

    fn suspend<'bound>(
        _: &'bound vmbus::Device<Core<'_>>,
        this: Pin<&'bound Self::Data<'bound>>,
    ) -> Result {
        match &*this {
            BoundService::Heartbeat(channel) => channel.as_ref().suspend(),
            BoundService::Shutdown(channel) => channel.as_ref().suspend(),
            BoundService::TimeSync(channel) => channel.as_ref().suspend(),
        }
        Ok(())
    }

    fn resume<'bound>(
        _: &'bound vmbus::Device<Core<'_>>,
        this: Pin<&'bound Self::Data<'bound>>,
    ) -> Result {
        match &*this {
            BoundService::Heartbeat(channel) => channel.as_ref().resume(),
            BoundService::Shutdown(channel) => channel.as_ref().resume(),
            BoundService::TimeSync(channel) => channel.as_ref().resume(),
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
