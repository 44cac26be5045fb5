// SPDX-License-Identifier: GPL-2.0

//! Driver-specific device attributes: text files in sysfs.
//!
//! The driver core adds the attributes after `probe()`, and removes them before it drops the
//! driver's data. The removal waits for running attribute functions. So these functions can always
//! use the data of a bound device.
//!
//! # Examples
//!
//! Each device of this driver has a directory `my_driver` with two files. An attribute consists of
//! an entry in the table and a function. `Attribute` and `AttributeGroup` are the bus's aliases of
//! [`Attribute`] and [`Group`].
//!
//! ```no_run
//! # use hyperv::{
//! #     linux::sysfs::Text,
//! #     vmbus::{Attribute, AttributeGroup, Device, DeviceId, Driver, Guid, IdTable},
//! # };
//! # use kernel::{
//! #     device::Core,
//! #     prelude::*,
//! #     sync::atomic::{Atomic, Relaxed},
//! # };
//! # struct MyDriver;
//! # hyperv::vmbus_device_table!(ID_TABLE, (), [(DeviceId::from_class(Guid::new(1)), ())]);
//! struct Data {
//!     packets: Atomic<u64>,
//!     level: Atomic<u32>,
//! }
//!
//! fn packets(this: Pin<&Data>, text: &mut Text<'_>) -> Result {
//!     write!(text, "{}", this.packets.load(Relaxed))
//! }
//!
//! fn level(this: Pin<&Data>, text: &mut Text<'_>) -> Result {
//!     write!(text, "{}", this.level.load(Relaxed))
//! }
//!
//! fn set_level(this: Pin<&Data>, text: &str) -> Result {
//!     this.level.store(text.parse().map_err(|_| EINVAL)?, Relaxed);
//!     Ok(())
//! }
//!
//! # #[vtable]
//! impl Driver for MyDriver {
//!     const ATTRIBUTES: AttributeGroup<Self> = AttributeGroup {
//!         name: c"my_driver",
//!         attributes: &[
//!             Attribute::<Self>::read_only(c"packets", packets),
//!             Attribute::<Self>::read_write(c"level", level, set_level),
//!         ],
//!     };
//!     // ...
//! #     type IdInfo = ();
//! #     type Data<'bound> = Data;
//! #     const ID_TABLE: IdTable<()> = &ID_TABLE;
//! #     fn probe<'bound>(
//! #         _: &'bound Device<Core<'_>>,
//! #         _: &'bound (),
//! #     ) -> impl PinInit<Data, Error> + 'bound {
//! #         Ok(Data {
//! #             packets: Atomic::new(0),
//! #             level: Atomic::new(0),
//! #         })
//! #     }
//! }
//! # hyperv::module_vmbus_driver! { type: MyDriver, name: "my_driver", license: "GPL", }
//! # fn main() {}
//! ```
//!
//! C headers: [`include/linux/sysfs.h`](srctree/include/linux/sysfs.h),
//! [`include/linux/device.h`](srctree/include/linux/device.h)

use crate::{
    bindings,
    compat::BoundInternal, //
};
use core::{
    marker::PhantomData,
    ptr::{
        from_ref,
        null, //
    },
};
use kernel::{
    container_of,
    device::Device,
    driver::DriverLayout,
    error::from_result,
    fmt,
    page::PAGE_SIZE,
    prelude::*,
    str::as_char_ptr_in_const_context, //
};

/// The text of an attribute. Use `write!()` to write it.
pub struct Text<'a> {
    page: &'a mut [u8; PAGE_SIZE],
    len: usize,
}

impl Text<'_> {
    /// Appends to the text. `write!()` calls this.
    ///
    /// Fails with `EFBIG` if the text gets longer than `PAGE_SIZE` - 2 bytes: sysfs passes one
    /// page.
    pub fn write_fmt(&mut self, text: fmt::Arguments<'_>) -> Result {
        fmt::Write::write_fmt(self, text).map_err(|_| EFBIG)
    }

    /// Ends the line. Returns the length of the text in bytes.
    fn end(self) -> usize {
        // `write_str()` leaves room for the newline, and for the NUL that sysfs expects after the
        // text.
        self.page[self.len] = b'\n';
        self.len + 1
    }
}

impl fmt::Write for Text<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = self.len + text.len();
        let room = self.page[..PAGE_SIZE - 2].get_mut(self.len..end);
        room.ok_or(fmt::Error)?.copy_from_slice(text.as_bytes());
        self.len = end;
        Ok(())
    }
}

/// Writes the value of an attribute, without a trailing newline. An error makes the `read()` fail.
pub type Show<T> =
    for<'bound> fn(Pin<&<T as DriverLayout>::DriverData<'bound>>, &mut Text<'_>) -> Result;

/// Sets an attribute from a text without a trailing newline. An error makes the `write()` fail.
pub type Store<T> = for<'bound> fn(Pin<&<T as DriverLayout>::DriverData<'bound>>, &str) -> Result;

/// Returns whether a device has an attribute. Called several times for each binding: the result
/// must not change. Called with the device's lock held: must not take this lock.
pub type IsVisible<T> = for<'bound> fn(Pin<&<T as DriverLayout>::DriverData<'bound>>) -> bool;

/// An attribute of the devices of the driver `T`.
///
/// The functions are called in process context and may sleep. They may run concurrently. They must
/// not take the device's lock: unbinding holds this lock and waits for them.
#[repr(C)]
pub struct Attribute<T: DriverLayout + 'static> {
    /// First, because C code has a pointer to this field.
    raw: bindings::device_attribute,
    show: Show<T>,
    store: Option<Store<T>>,
    is_visible: Option<IsVisible<T>>,
}

impl<T: HasAttributes> Attribute<T> {
    /// Creates an attribute that all users may read.
    pub const fn read_only(name: &'static CStr, show: Show<T>) -> Self {
        let mut raw: bindings::device_attribute = pin_init::zeroed();
        raw.attr.name = as_char_ptr_in_const_context(name);
        raw.attr.mode = 0o444;
        raw.__bindgen_anon_1.show = Some(Self::show_callback);
        Self {
            raw,
            show,
            store: None,
            is_visible: None,
        }
    }

    /// Creates an attribute that all users may read, and root may write.
    ///
    /// `store` gets the text of one `write()`, at most a page. Text that is not UTF-8 is rejected
    /// (`EINVAL`).
    pub const fn read_write(name: &'static CStr, show: Show<T>, store: Store<T>) -> Self {
        let mut this = Self::read_only(name, show);
        this.raw.attr.mode = 0o644;
        this.raw.__bindgen_anon_2.store = Some(Self::store_callback);
        this.store = Some(store);
        this
    }

    /// Denies access to all users but root.
    pub const fn root_only(mut self) -> Self {
        self.raw.attr.mode &= 0o700;
        self
    }

    /// Restricts the attribute to devices for which `is_visible` returns true at binding.
    pub const fn visible_if(mut self, is_visible: IsVisible<T>) -> Self {
        self.is_visible = Some(is_visible);
        self
    }

    fn is_visible(&self, data: Pin<&T::DriverData<'_>>) -> bool {
        self.is_visible.is_none_or(|is_visible| is_visible(data))
    }

    extern "C" fn show_callback(
        dev: *mut bindings::device,
        attribute: *mut bindings::device_attribute,
        page: *mut c_char,
    ) -> isize {
        // SAFETY: The device has attributes of `T`, so `T`'s `probe()` has returned. The device
        // stays bound: before the driver core unbinds it, it removes the attributes, and the
        // removal waits for this function.
        let data = unsafe { data::<T>(dev) };

        // SAFETY: `attribute` is the first field of a `Self`, see `Table::LIST`.
        let this = unsafe { &*attribute.cast_const().cast::<Self>() };

        // SAFETY: sysfs passes a zeroed page that only this function uses.
        let page = unsafe { &mut *page.cast::<[u8; PAGE_SIZE]>() };

        from_result(|| {
            let mut text = Text { page, len: 0 };
            (this.show)(data, &mut text)?;
            // CAST: The length is at most a page.
            Ok(text.end() as isize)
        })
    }

    extern "C" fn store_callback(
        dev: *mut bindings::device,
        attribute: *mut bindings::device_attribute,
        text: *const c_char,
        len: usize,
    ) -> isize {
        // SAFETY: As in `show_callback()`.
        let data = unsafe { data::<T>(dev) };

        // SAFETY: As in `show_callback()`.
        let this = unsafe { &*attribute.cast_const().cast::<Self>() };

        // SAFETY: sysfs passes a copy of the written text, of length `len`.
        let text = unsafe { core::slice::from_raw_parts(text.cast::<u8>(), len) };

        from_result(|| {
            let text = core::str::from_utf8(text).map_err(|_| EINVAL)?;
            let store = this.store.ok_or(EIO)?;
            store(data, text.strip_suffix('\n').unwrap_or(text))?;
            // CAST: The length is at most a page.
            Ok(len as isize)
        })
    }
}

/// A directory of attributes. Devices without any of the attributes do not have the directory.
pub struct Group<T: DriverLayout + 'static> {
    /// The name of the directory. The device must not have another file of this name.
    pub name: &'static CStr,
    /// The attributes, at most 31.
    pub attributes: &'static [Attribute<T>],
}

impl<T: DriverLayout> Group<T> {
    /// No attributes, and no directory.
    pub const NONE: Self = Self {
        name: c"",
        attributes: &[],
    };
}

/// A driver, of any bus, whose devices have attributes.
///
/// # Safety
///
/// - `Self::DriverData` must be `Sync`.
/// - `probe()` must set the data with `Device::set_drvdata()`. Until the device is unbound, only
///   the driver core may take the data back.
pub unsafe trait HasAttributes: DriverLayout + Sized + 'static {
    /// The attributes of each device.
    const ATTRIBUTES: Group<Self>;
}

/// Returns `dev_groups` for `T`'s `struct device_driver`. No other driver may use the result. NULL
/// if the driver has no attributes.
pub(crate) const fn dev_groups<T: HasAttributes>() -> *const *const bindings::attribute_group {
    match T::ATTRIBUTES.attributes.is_empty() {
        true => null(),
        false => Table::<T>::GROUPS.as_ptr(),
    }
}

/// The attributes of a driver as C structures.
struct Table<T>(PhantomData<T>);

impl<T: HasAttributes> Table<T> {
    /// The attributes, NULL-terminated.
    const LIST: &'static [*const bindings::attribute; 32] = &{
        let attributes = T::ATTRIBUTES.attributes;
        let mut list = [null(); 32];
        assert!(attributes.len() < list.len(), "too many attributes");
        assert!(
            attributes.is_empty() || !T::ATTRIBUTES.name.is_empty(),
            "attributes without a directory"
        );
        let mut i = 0;
        while i < attributes.len() {
            // `struct attribute` is the first field of `struct device_attribute`, the first field
            // of `Attribute`.
            list[i] = from_ref(&attributes[i]).cast();
            i += 1;
        }
        list
    };

    const GROUP: &'static bindings::attribute_group = &{
        let mut group: bindings::attribute_group = pin_init::zeroed();
        group.name = as_char_ptr_in_const_context(T::ATTRIBUTES.name);
        group.__bindgen_anon_1.is_visible = Some(Self::is_visible_callback);
        group.__bindgen_anon_2.attrs_const = Self::LIST.as_ptr();
        group
    };

    /// The group, NULL-terminated.
    const GROUPS: &'static [*const bindings::attribute_group; 2] = &[Self::GROUP, null()];

    /// Returns the mode of the attribute at `index`, 0 if the device does not have this attribute.
    /// If the device has no attribute of the group, it does not have the directory either.
    extern "C" fn is_visible_callback(
        kobject: *mut bindings::kobject,
        _: *mut bindings::attribute,
        index: c_int,
    ) -> bindings::umode_t {
        // SAFETY: The driver core passes the kobject of a device.
        #[allow(clippy::multiple_unsafe_ops_per_block, reason = "a macro")]
        let dev = unsafe { container_of!(kobject, bindings::device, kobj) };

        // SAFETY: The driver core adds the attributes after `T`'s `probe()`, with the device's lock
        // held.
        let data = unsafe { data::<T>(dev) };
        let attributes = T::ATTRIBUTES.attributes;

        // CAST: `index` is an index of the list, so it is not negative.
        match attributes.get(index as usize) {
            Some(attribute) if attribute.is_visible(data) => attribute.raw.attr.mode,
            _ if attributes.iter().any(|other| other.is_visible(data)) => 0,
            // CAST: The constant is a mode.
            _ => bindings::SYSFS_GROUP_INVISIBLE as bindings::umode_t,
        }
    }
}

/// Returns the driver data of a device.
///
/// # Safety
///
/// `dev` must be bound to the driver `T` for `'a`, and `T`'s `probe()` must have returned.
unsafe fn data<'a, T: HasAttributes>(dev: *mut bindings::device) -> Pin<&'a T::DriverData<'a>> {
    // CAST: `Device` is a transparent wrapper of `struct device`.
    // SAFETY: Guaranteed by the safety requirements of this function.
    let dev = unsafe { &*dev.cast::<Device<BoundInternal>>() };

    // SAFETY: By the safety requirements of `HasAttributes`, the data was set, and stays until the
    // device is unbound.
    unsafe { dev.drvdata_borrow::<T::DriverData<'a>>() }
}
