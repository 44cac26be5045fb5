// SPDX-License-Identifier: GPL-2.0

//! A VMBus driver whose devices have all kinds of attributes. The scenario `attributes` tests them.

#![forbid(unsafe_code)]

use hyperv::{
    linux::sysfs::Text,
    vmbus::{
        self,
        Attribute,
        AttributeGroup,
        DeviceId,
        Guid, //
    },
};
use kernel::{
    device::Core,
    page::PAGE_SIZE,
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    },
    time::{
        delay::fsleep,
        Delta, //
    },
};

/// How long a read or a write of a slow attribute takes. The scenario has the same constant.
const DELAY: Delta = Delta::from_secs(1);

hyperv::vmbus_device_table!(
    ID_TABLE,
    <Driver as vmbus::Driver>::IdInfo,
    [(
        DeviceId::from_class(Guid::new(0x7a0e3c4b_5d29_4f0e_9c1e_2f6d8a41b3c7)),
        ()
    ),]
);

hyperv::module_param_bool!(
    bare,
    0o644,
    false,
    "Devices that are bound from now on have no attributes"
);

/// A bound device.
struct Device {
    is_bare: bool,
    level: Atomic<u32>,
}

impl Drop for Device {
    fn drop(&mut self) {
        // A read after the drop would return this value, which the scenario notices.
        self.level.store(u32::MAX, Relaxed);
    }
}

fn has_some(this: Pin<&Device>) -> bool {
    !this.is_bare
}

fn level(this: Pin<&Device>, text: &mut Text<'_>) -> Result {
    write!(text, "{}", this.level.load(Relaxed))
}

fn set_level(this: Pin<&Device>, text: &str) -> Result {
    let level = text.parse().map_err(|_| EINVAL)?;
    this.level.store(level, Relaxed);
    Ok(())
}

fn slow(this: Pin<&Device>, text: &mut Text<'_>) -> Result {
    fsleep(DELAY);
    level(this, text)
}

fn set_slowly(this: Pin<&Device>, text: &str) -> Result {
    fsleep(DELAY);
    set_level(this, text)
}

fn longest(_: Pin<&Device>, text: &mut Text<'_>) -> Result {
    for _ in 0..PAGE_SIZE - 2 {
        write!(text, "x")?;
    }
    Ok(())
}

fn too_long(this: Pin<&Device>, text: &mut Text<'_>) -> Result {
    longest(this, text)?;
    write!(text, "x")
}

fn fails(_: Pin<&Device>, text: &mut Text<'_>) -> Result {
    write!(text, "not to be seen")?;
    Err(EBUSY)
}

struct Driver;

#[vtable]
impl vmbus::Driver for Driver {
    type IdInfo = ();
    type Data<'bound> = Device;
    const ID_TABLE: vmbus::IdTable<Self::IdInfo> = &ID_TABLE;

    const ATTRIBUTES: AttributeGroup<Self> = AttributeGroup {
        name: c"vmbus_sysfs",
        attributes: &[
            Attribute::<Self>::read_only(c"hidden", level).visible_if(|_| false),
            Attribute::<Self>::read_only(c"longest", longest).visible_if(has_some),
            Attribute::<Self>::read_only(c"too_long", too_long).visible_if(has_some),
            Attribute::<Self>::read_only(c"fails", fails).visible_if(has_some),
            Attribute::<Self>::read_write(c"level", level, set_level).visible_if(has_some),
            Attribute::<Self>::read_write(c"slow", slow, set_slowly).visible_if(has_some),
        ],
    };

    fn probe<'bound>(
        _: &'bound vmbus::Device<Core<'_>>,
        (): &'bound Self::IdInfo,
    ) -> impl PinInit<Self::Data<'bound>, Error> + 'bound {
        Ok(Device {
            is_bare: bare.get(),
            level: Atomic::new(7),
        })
    }
}

hyperv::module_vmbus_driver! {
    type: Driver,
    name: "vmbus_sysfs",
    authors: ["The hv_utils authors"],
    description: "VMBus driver whose devices have attributes of all kinds",
    license: "GPL",
}
