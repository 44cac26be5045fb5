// SPDX-License-Identifier: GPL-2.0

//! Abstractions for the VMBus, the bus between a Hyper-V host and its guest.
//!
//! The host offers devices. Each device has a primary channel. The host rescinds a device to take
//! the device away: hv_vmbus then unbinds the driver.
//!
//! C header: [`include/linux/hyperv.h`](srctree/include/linux/hyperv.h)

use crate::{
    bindings,
    compat,
    linux::{
        sysfs::{
            self,
            HasAttributes, //
        },
        workqueue, //
    }, //
};
use core::{
    marker::PhantomData,
    mem::offset_of,
    ptr::NonNull, //
};
use kernel::{
    device,
    device_id::RawDeviceId,
    driver,
    error::{
        from_result,
        to_result,
        VTABLE_DEFAULT_ERROR, //
    },
    prelude::*,
    sync::aref::AlwaysRefCounted,
    types::Opaque,
    ThisModule, //
};

// `bindgen` could derive `Default` for all bindings, but would add unused code to every module.
impl Default for bindings::hv_driver {
    fn default() -> Self {
        // SAFETY: All fields are valid when zeroed: numbers, pointers and optional functions.
        unsafe { core::mem::zeroed() }
    }
}

/// An adapter for the registration of VMBus drivers.
pub struct Adapter<T: Driver>(T);

// SAFETY:
// - `bindings::hv_driver` is a C type declared as `repr(C)`.
// - `T::Data` is the type of the driver's device private data.
// - `struct hv_driver` embeds a `struct device_driver`.
// - `DEVICE_DRIVER_OFFSET` is the correct byte offset to the embedded `struct device_driver`.
unsafe impl<T: Driver> driver::DriverLayout for Adapter<T> {
    type DriverType = bindings::hv_driver;
    type DriverData<'bound> = T::Data<'bound>;
    const DEVICE_DRIVER_OFFSET: usize = offset_of!(Self::DriverType, driver);
}

// SAFETY:
// - `T::Data` is `Sync`.
// - `probe_callback()` sets the data with `Device::set_drvdata()`. Only `driver::Registration`
//   drops the data.
unsafe impl<T: Driver> HasAttributes for Adapter<T> {
    const ATTRIBUTES: AttributeGroup<T> = T::ATTRIBUTES;
}

// SAFETY: A call to `unregister` for a given instance of `DriverType` is guaranteed to be valid if
// a preceding call to `register` has been successful.
unsafe impl<T: Driver> driver::RegistrationOps for Adapter<T> {
    unsafe fn register(
        hdrv: &Opaque<Self::DriverType>,
        name: &'static CStr,
        module: &'static ThisModule,
    ) -> Result {
        // SAFETY: `hdrv` is valid, and nothing else refers to it before its registration.
        let fields = unsafe { &mut *hdrv.get() };
        fields.name = name.as_char_ptr();
        fields.id_table = T::ID_TABLE.as_ptr();
        fields.probe = Some(Self::probe_callback);
        if T::HAS_SUSPEND {
            fields.suspend = Some(Self::suspend_callback);
        }
        if T::HAS_RESUME {
            fields.resume = Some(Self::resume_callback);
        }
        fields.driver.dev_groups = sysfs::dev_groups::<Self>();
        fields.driver.probe_type = bindings::probe_type_PROBE_PREFER_ASYNCHRONOUS;

        workqueue::driver_registers(name)?;

        // SAFETY: `hdrv` is guaranteed to be a valid `DriverType`.
        to_result(unsafe {
            bindings::__vmbus_driver_register(hdrv.get(), module.as_ptr(), name.as_char_ptr())
        })
        .inspect_err(|_| workqueue::driver_unregistered())
    }

    unsafe fn unregister(hdrv: &Opaque<Self::DriverType>) {
        // SAFETY: `hdrv` is guaranteed to be a valid `DriverType`.
        unsafe { bindings::vmbus_driver_unregister(hdrv.get()) };
        workqueue::driver_unregistered();
    }
}

impl<T: Driver> Adapter<T> {
    extern "C" fn probe_callback(
        hdev: *mut bindings::hv_device,
        id: *const bindings::hv_vmbus_device_id,
    ) -> c_int {
        // SAFETY: The VMBus only ever calls the probe callback with a valid pointer to a
        // `struct hv_device`.
        //
        // INVARIANT: `hdev` is valid for the duration of `probe_callback()`.
        let hdev = unsafe { &*hdev.cast::<Device<device::CoreInternal<'_>>>() };

        from_result(|| {
            // SAFETY: `DeviceId` is a `#[repr(transparent)]` wrapper of `struct hv_vmbus_device_id`
            // and does not add additional invariants, so it's safe to transmute. `id` is null if
            // `driver_override` or the driver's dynamic ids have changed since the match. Otherwise
            // `id` is valid, except that hv_vmbus does not keep root from removing a dynamic id
            // (`remove_id`) in this moment. Drivers in C have the same race.
            let id = unsafe { id.cast::<DeviceId>().as_ref() }.ok_or(ENODEV)?;

            // SAFETY: `id` is an entry of `T::ID_TABLE`, which is of type `IdArray<_, T::IdInfo>`,
            // or comes from `new_id` or `driver_override`, which leave `driver_data` at 0.
            let info = unsafe { compat::id_info::<T>(id) };
            let data = T::probe(hdev, info.ok_or(ENODEV)?);

            hdev.as_ref().set_drvdata(data)?;
            Ok(0)
        })
    }

    /// Calls `f` with the device and its private data, if the device is still bound.
    ///
    /// hv_vmbus calls suspend and resume in the `noirq` phases, in which the PM core does not hold
    /// the device's lock. hv_vmbus handles rescinds until its own suspend, so the device may be
    /// unbound concurrently. Take the device's lock to wait for the unbind. This cannot deadlock:
    /// unbinding does not use a suspended device.
    ///
    /// # Safety
    ///
    /// `hdev` must be a valid pointer to a `struct hv_device` that is or was bound to this driver.
    /// No other driver may be bound to the device during the call.
    unsafe fn with_data(
        hdev: *mut bindings::hv_device,
        f: impl for<'bound> FnOnce(&'bound Device<device::Core<'_>>, Pin<&T::Data<'bound>>) -> Result,
    ) -> c_int {
        // SAFETY: Guaranteed by the safety requirements of this function.
        //
        // INVARIANT: `hdev` is valid for the duration of the call.
        let hdev = unsafe { &*hdev.cast::<Device<device::CoreInternal<'_>>>() };
        let dev = hdev.as_device();

        from_result(|| {
            // SAFETY: `dev` is valid for the duration of the call.
            unsafe { bindings::rust_helper_device_lock(dev) };

            // SAFETY: `dev` is valid. `driver` does not change while the device's lock is held.
            let is_bound = !unsafe { (*dev).driver }.is_null();
            let result = if is_bound {
                // SAFETY: The device is bound to this driver, and stays bound while its lock is
                // held. So `probe_callback()` has called `Device::set_drvdata()` with a
                // `Pin<KBox<T::Data<'_>>>`.
                let data = unsafe { hdev.as_ref().drvdata_borrow::<T::Data<'_>>() };
                f(hdev, data)
            } else {
                Ok(())
            };

            // SAFETY: `dev` is valid. This function has locked it.
            unsafe { bindings::rust_helper_device_unlock(dev) };
            result.map(|()| 0)
        })
    }

    extern "C" fn suspend_callback(hdev: *mut bindings::hv_device) -> c_int {
        // SAFETY: hv_vmbus calls this with a valid pointer to a `struct hv_device` after it has
        // seen this driver bound to the device. The PM core blocks probing from `dpm_prepare()` to
        // `dpm_complete()`, so no other driver is bound in between.
        unsafe { Self::with_data(hdev, |dev, data| T::suspend(dev, data)) }
    }

    extern "C" fn resume_callback(hdev: *mut bindings::hv_device) -> c_int {
        // SAFETY: As for `suspend_callback()`.
        unsafe { Self::with_data(hdev, |dev, data| T::resume(dev, data)) }
    }
}

/// A GUID, in its representation in memory.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Guid([u8; 16]);

impl Guid {
    /// Creates the GUID `aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee`. `value` is this text without the
    /// dashes, as a hexadecimal number.
    pub const fn new(value: u128) -> Self {
        let mut bytes = value.to_be_bytes();
        // The first three groups are stored as little-endian numbers of 4, 2 and 2 bytes.
        (bytes[0], bytes[3]) = (bytes[3], bytes[0]);
        (bytes[1], bytes[2]) = (bytes[2], bytes[1]);
        (bytes[4], bytes[5]) = (bytes[5], bytes[4]);
        (bytes[6], bytes[7]) = (bytes[7], bytes[6]);
        Self(bytes)
    }
}

/// Abstraction for the VMBus device ID structure, i.e. `struct hv_vmbus_device_id`.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct DeviceId(pub(crate) bindings::hv_vmbus_device_id);

impl DeviceId {
    /// Creates an id that matches all devices of a class.
    pub const fn from_class(class: Guid) -> Self {
        Self(bindings::hv_vmbus_device_id {
            guid: bindings::guid_t { b: class.0 },
            driver_data: 0,
        })
    }
}

// SAFETY: `DeviceId` is a `#[repr(transparent)]` wrapper of `struct hv_vmbus_device_id` and does
// not add additional invariants, so it's safe to transmute to `RawType`.
unsafe impl RawDeviceId for DeviceId {
    type RawType = bindings::hv_vmbus_device_id;
}

/// [`IdTable`](kernel::device_id::IdTable) type for VMBus.
pub type IdTable<T> = &'static dyn kernel::device_id::IdTable<DeviceId, T>;

/// Declares a kernel module that exposes a single VMBus driver.
///
/// # Examples
///
/// ```no_run
/// # use hyperv::{channel::Channel, vmbus};
/// # use kernel::{device::Core, prelude::*};
/// # struct MyDriver;
/// # hyperv::vmbus_device_table!(
/// #     ID_TABLE,
/// #     (),
/// #     [(vmbus::DeviceId::from_class(vmbus::Guid::new(1)), ())]
/// # );
/// # #[vtable]
/// # impl vmbus::Driver for MyDriver {
/// #     type IdInfo = ();
/// #     type Data<'bound> = ();
/// #     const ID_TABLE: vmbus::IdTable<()> = &ID_TABLE;
/// #     fn probe<'bound>(
/// #         _: &'bound vmbus::Device<Core<'_>>,
/// #         _: &'bound (),
/// #     ) -> impl PinInit<(), Error> + 'bound {
/// #         Ok(())
/// #     }
/// # }
/// hyperv::module_vmbus_driver! {
///     type: MyDriver,
///     name: "my_driver",
///     authors: ["Author name"],
///     description: "Description",
///     license: "GPL",
/// }
/// # fn main() {}
/// ```
#[macro_export]
macro_rules! module_vmbus_driver {
    ($($f:tt)*) => {
        ::kernel::module_driver!(<T>, $crate::vmbus::Adapter<T>, { $($f)* });
    };
}

/// An attribute of the devices of the VMBus driver `T`.
pub type Attribute<T> = sysfs::Attribute<Adapter<T>>;

/// The attributes of the devices of the VMBus driver `T`.
pub type AttributeGroup<T> = sysfs::Group<Adapter<T>>;

/// The VMBus driver trait.
///
/// `samples/vmbus_echo.rs` is a complete driver.
#[vtable]
pub trait Driver: Sized + 'static {
    /// The type holding information about each device id supported by the driver.
    type IdInfo: 'static;

    /// The type of the driver's device private data. It is dropped when the device is unbound.
    type Data<'bound>: Send + Sync + 'bound;

    /// The table of device ids supported by the driver.
    const ID_TABLE: IdTable<Self::IdInfo>;

    /// The attributes of each bound device in sysfs. The driver core adds them after `probe()`, and
    /// removes them before it drops the data. If it cannot add them, binding fails.
    const ATTRIBUTES: AttributeGroup<Self> = AttributeGroup::<Self>::NONE;

    /// Called when a device with an id in the table appears. Binding any other device, as `new_id`
    /// and `driver_override` allow, fails with `ENODEV` before this call.
    fn probe<'bound>(
        dev: &'bound Device<device::Core<'_>>,
        info: &'bound Self::IdInfo,
    ) -> impl PinInit<Self::Data<'bound>, Error> + 'bound;

    /// Called in the freeze and poweroff phases of hibernation, with user space frozen and the
    /// device's lock held. May sleep, but cannot do I/O: other devices are suspended already.
    ///
    /// Must close the channel: the host does not keep it. An error aborts the hibernation. Without
    /// this function, hv_vmbus fails with `EOPNOTSUPP`: the system cannot hibernate while a device
    /// is bound to the driver. Not called if the device was unbound before.
    fn suspend<'bound>(
        dev: &'bound Device<device::Core<'_>>,
        this: Pin<&Self::Data<'bound>>,
    ) -> Result {
        let _ = (dev, this);
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Called in the thaw and restore phases of hibernation, with the device's lock held: after the
    /// memory image was created, and after the system has resumed or failed to hibernate. Not
    /// called if `suspend` failed.
    ///
    /// The kernel logs an error and continues. Without this function, the error is `EOPNOTSUPP`.
    fn resume<'bound>(
        dev: &'bound Device<device::Core<'_>>,
        this: Pin<&Self::Data<'bound>>,
    ) -> Result {
        let _ = (dev, this);
        build_error!(VTABLE_DEFAULT_ERROR)
    }
}

/// A VMBus device.
///
/// # Invariants
///
/// A [`Device`] instance represents a valid `struct hv_device` created by the C portion of the
/// kernel.
#[repr(transparent)]
pub struct Device<Ctx: device::DeviceContext = device::Normal>(
    Opaque<bindings::hv_device>,
    PhantomData<Ctx>,
);

impl<Ctx: device::DeviceContext> Device<Ctx> {
    fn as_raw(&self) -> *mut bindings::hv_device {
        self.0.get()
    }

    fn as_device(&self) -> *mut bindings::device {
        // SAFETY: By the type invariant of `Self`, `self.as_raw()` is valid.
        unsafe { &raw mut (*self.as_raw()).device }
    }

    /// Sends a change uevent with one variable, `KEY=value`, to user space. May sleep.
    ///
    /// Fails as `kobject_uevent_env()` does, for example with `ENOMEM`.
    pub fn uevent_change(&self, variable: &'static CStr) -> Result {
        let mut environment = [variable.as_char_ptr().cast_mut(), core::ptr::null_mut()];

        // SAFETY: By the type invariant of `Self`, the device is valid.
        let kobject = unsafe { &raw mut (*self.as_device()).kobj };

        // SAFETY:
        // - The kobject of a valid device is valid.
        // - `environment` is a NULL-terminated array of valid C strings, and is only read.
        to_result(unsafe {
            bindings::kobject_uevent_env(
                kobject,
                bindings::kobject_action_KOBJ_CHANGE,
                environment.as_mut_ptr(),
            )
        })
    }
}

impl Device {
    /// Returns the device's primary channel. The channel lives as long as the device.
    pub(crate) fn channel(&self) -> NonNull<bindings::vmbus_channel> {
        // SAFETY: By the type invariant of `Self`, `self.as_raw()` is valid. hv_vmbus sets the
        // field before it registers the device, and never changes it.
        let channel = unsafe { (*self.as_raw()).channel };

        // SAFETY: hv_vmbus creates each device for a channel, so the pointer is not null. hv_vmbus
        // frees the channel of a registered device only in the device's release function.
        unsafe { NonNull::new_unchecked(channel) }
    }
}

// SAFETY: `vmbus::Device` is a transparent wrapper of `struct hv_device`.
// The offset is guaranteed to point to a valid device field inside `vmbus::Device`.
unsafe impl<Ctx: device::DeviceContext> device::AsBusDevice<Ctx> for Device<Ctx> {
    const OFFSET: usize = offset_of!(bindings::hv_device, device);
}

// SAFETY: `Device` is a transparent wrapper of a type that doesn't depend on `Device`'s generic
// argument.
kernel::impl_device_context_deref!(unsafe { Device });
kernel::impl_device_context_into_aref!(Device);

// SAFETY: Instances of `Device` are always reference-counted.
unsafe impl AlwaysRefCounted for Device {
    fn inc_ref(&self) {
        self.as_ref().inc_ref();
    }

    unsafe fn dec_ref(obj: NonNull<Self>) {
        // SAFETY: `obj` is valid by the safety requirements, and stays valid until the call below.
        let dev: &device::Device = unsafe { obj.as_ref() }.as_ref();

        // SAFETY: The safety requirements guarantee that the refcount is non-zero.
        unsafe { <device::Device as AlwaysRefCounted>::dec_ref(NonNull::from(dev)) };
    }
}

impl<Ctx: device::DeviceContext> AsRef<device::Device<Ctx>> for Device<Ctx> {
    fn as_ref(&self) -> &device::Device<Ctx> {
        // SAFETY: By the type invariant of `Self`, `self.as_device()` is a valid `struct device`.
        unsafe { device::Device::from_raw(self.as_device()) }
    }
}

// SAFETY: A `Device` is always reference-counted and can be released from any thread.
unsafe impl Send for Device {}

// SAFETY: `Device` can be shared among threads because all methods of `Device`
// (i.e. `Device<Normal>`) are thread safe.
unsafe impl Sync for Device {}

// SAFETY: Same as `Device<Normal>` -- the underlying `struct hv_device` is the same;
// `Bound` is a zero-sized type-state marker that does not affect thread safety.
unsafe impl Sync for Device<device::Bound> {}

/// Returns whether this virtual machine can hibernate, i.e. supports the ACPI sleep state S4. May
/// sleep.
pub fn is_hibernation_supported() -> bool {
    // SAFETY: Has no requirements.
    unsafe { bindings::hv_is_hibernation_supported() }
}

// Upstream only. Here, each module that contains this crate would register the suite.
#[cfg(not(MODULE))]
#[kernel::macros::kunit_tests(rust_vmbus)]
mod tests {
    use super::*;

    #[test]
    fn guid_is_stored_as_in_c() {
        // HV_SHUTDOWN_GUID.
        let guid = Guid::new(0x0e0b6031_5213_4934_818b_38d90ced39db);
        let bytes = [
            0x31, 0x60, 0x0b, 0x0e, 0x13, 0x52, 0x34, 0x49, 0x81, 0x8b, 0x38, 0xd9, 0x0c, 0xed,
            0x39, 0xdb,
        ];
        assert_eq!(guid.0, bytes);
    }
}
