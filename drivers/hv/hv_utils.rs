// SPDX-License-Identifier: GPL-2.0

//! Hyper-V guest integration services.

#![forbid(unsafe_code)]

mod attributes;
mod binding;
mod daemon;
mod dialogue;
mod fcopy;
mod freeze;
mod heartbeat;
mod icmsg;
mod kvp;
mod parameters;
mod prelude;
mod session;
mod shutdown;
mod timesync;
mod transport;
mod unique;
mod vss;

use binding::{
    BoundService,
    Device, //
};
use hyperv::vmbus::{
    self,
    Attribute,
    AttributeGroup,
    DeviceId,
    Guid, //
};
use kernel::{
    driver,
    prelude::*,
    InPlaceModule, //
};

/// The function that binds a service to its device.
struct Bind(for<'bound> fn(&'bound Device<'_>) -> Result<BoundService<'bound>>);

/// Returns the id that matches all devices of the class `guid`.
const fn class(guid: u128) -> DeviceId {
    DeviceId::from_class(Guid::new(guid))
}

// The services of the first driver, by the class of their devices.
hyperv::vmbus_device_table! {
    ID_TABLE,
    Bind,
    [
        (class(0x0e0b6031_5213_4934_818b_38d90ced39db), Bind(shutdown::bind)),
        (class(0x9527e630_d0ae_497b_adce_e80ab0175caf), Bind(timesync::bind)),
        (class(0x57164f39_9115_4e78_ab55_382f3bd5422d), Bind(heartbeat::bind)),
        (class(0xa9a0f4e7_5a45_4d96_b827_8a841e8c03e6), Bind(kvp::bind)),
        (class(0x35fa2e29_ea23_4236_96ae_3a6ebacba440), Bind(vss::bind)),
    ]
}

hyperv::vmbus_device_table! {
    FCOPY_ID_TABLE,
    Bind,
    [(class(0x34d14be3_dee4_41c8_9ae7_6b174977c192), Bind(fcopy::bind))]
}

/// The driver of file copy, or the driver of all other services.
///
/// `uio_hv_generic` also matches the device of file copy, and the driver that is registered first
/// gets the device. So file copy has a driver of its own, which is registered only if the
/// parameter `fcopy_chardev` is set.
struct HvUtils<const IS_FCOPY: bool>;

#[vtable]
impl<const IS_FCOPY: bool> vmbus::Driver for HvUtils<IS_FCOPY> {
    type IdInfo = Bind;
    type Data<'bound> = BoundService<'bound>;
    const ID_TABLE: vmbus::IdTable<Self::IdInfo> = match IS_FCOPY {
        true => &FCOPY_ID_TABLE,
        false => &ID_TABLE,
    };

    const ATTRIBUTES: AttributeGroup<Self> = AttributeGroup {
        name: c"hv_utils",
        attributes: &[
            Attribute::<Self>::read_only(c"version", attributes::version),
            Attribute::<Self>::read_only(c"requests", attributes::requests),
            Attribute::<Self>::read_only(c"replies", attributes::replies),
            Attribute::<Self>::read_only(c"refused", attributes::refused),
            Attribute::<Self>::read_only(c"ignored", attributes::ignored),
            Attribute::<Self>::read_only(c"late", attributes::late)
                .visible_if(attributes::has_daemon),
            Attribute::<Self>::read_only(c"daemon", attributes::daemon)
                .visible_if(attributes::has_daemon),
            Attribute::<Self>::read_only(c"daemon_age", attributes::daemon_age)
                .visible_if(attributes::has_daemon),
            Attribute::<Self>::read_only(c"state", attributes::state)
                .visible_if(attributes::has_daemon),
            Attribute::<Self>::read_only(c"state_age", attributes::state_age)
                .visible_if(attributes::has_daemon),
            Attribute::<Self>::read_only(c"frozen", attributes::frozen)
                .root_only()
                .visible_if(attributes::has_freezer),
            Attribute::<Self>::read_only(c"frozen_age", attributes::frozen_age)
                .visible_if(attributes::has_freezer),
            Attribute::<Self>::read_write(
                c"application_state",
                attributes::application_state,
                attributes::set_application_state,
            )
            .visible_if(attributes::is_heartbeat),
            Attribute::<Self>::read_only(c"leap", attributes::leap)
                .visible_if(attributes::has_host_clock),
            Attribute::<Self>::read_only(c"stratum", attributes::stratum)
                .visible_if(attributes::has_host_clock),
            Attribute::<Self>::read_only(c"offset", attributes::offset)
                .visible_if(attributes::has_host_clock),
            Attribute::<Self>::read_only(c"age", attributes::age)
                .visible_if(attributes::has_host_clock),
            Attribute::<Self>::read_only(c"samples_ahead", attributes::samples_ahead)
                .visible_if(attributes::has_host_clock),
        ],
    };

    fn probe<'bound>(
        dev: &'bound Device<'_>,
        Bind(bind): &'bound Self::IdInfo,
    ) -> impl PinInit<Self::Data<'bound>, Error> + 'bound {
        bind(dev)
    }

    fn suspend<'bound>(dev: &'bound Device<'_>, this: Pin<&Self::Data<'bound>>) -> Result {
        this.channel.suspend(dev)
    }

    fn resume<'bound>(dev: &'bound Device<'_>, this: Pin<&Self::Data<'bound>>) -> Result {
        this.channel.resume(dev)
    }
}

/// A registered driver.
type Registration<const IS_FCOPY: bool> = driver::Registration<vmbus::Adapter<HvUtils<IS_FCOPY>>>;

/// The module. Fields are dropped in order. As in the C driver, the module logs its removal before
/// it unregisters its drivers.
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
            _fcopy_driver: match parameters::fcopy_chardev.get() {
                true => Some(KBox::pin_init(
                    Registration::new(c"hv_utils_fcopy", module),
                    GFP_KERNEL,
                )?),
                false => None,
            },
        })
    }
}

/// Logs the removal of the module when it is dropped.
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
