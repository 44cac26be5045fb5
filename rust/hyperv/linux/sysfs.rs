// SPDX-License-Identifier: GPL-2.0

//! Attributes that a driver gives its devices: files in sysfs that are read, and written, as text.
//!
//! The driver core creates them after `probe()`, and removes them before it drops the driver's data. The
//! removal waits for each function of an attribute that runs. So such a function has the data of a device
//! that is bound.
//!
//! # Examples
//!
//! A driver of some bus, whose devices have a directory `my_driver` with two files. An attribute is a line
//! in the table, and a function. `Attribute` and `AttributeGroup` are the bus's names for [`Attribute`] and
//! [`Group`].
//!
//! ```ignore
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
//! impl Driver for MyDriver {
//!     const ATTRIBUTES: AttributeGroup<Self> = AttributeGroup {
//!         name: c"my_driver",
//!         attributes: &[
//!             Attribute::<Self>::read_only(c"packets", packets),
//!             Attribute::<Self>::read_write(c"level", level, set_level),
//!         ],
//!     };
//!     // ...
//! }
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

/// The text of an attribute, to be written with `write!()`.
pub struct Text<'a> {
    page: &'a mut [u8; PAGE_SIZE],
    len: usize,
}

impl Text<'_> {
    /// Adds to the text; `write!()` calls this.
    ///
    /// Fails with `EFBIG` if the text gets longer than `PAGE_SIZE` - 2 bytes: a reader gets one page.
    pub fn write_fmt(&mut self, text: fmt::Arguments<'_>) -> Result {
        fmt::Write::write_fmt(self, text).map_err(|_| EFBIG)
    }

    /// Ends the line. Returns the number of bytes.
    fn end(self) -> usize {
        // `write_str()` leaves room for this, and for the NUL that sysfs expects behind a text.
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

/// Writes the value of an attribute, without a newline behind it. A reader gets an error as `errno`.
pub type Show<T> =
    for<'bound> fn(Pin<&<T as DriverLayout>::DriverData<'bound>>, &mut Text<'_>) -> Result;

/// Sets an attribute to a text, without a newline behind it. A writer gets an error as `errno`.
pub type Store<T> = for<'bound> fn(Pin<&<T as DriverLayout>::DriverData<'bound>>, &str) -> Result;

/// Returns whether a device has an attribute. Called several times in each binding: the answer must not
/// change. Called with the device's lock held: must not take it.
pub type IsVisible<T> = for<'bound> fn(Pin<&<T as DriverLayout>::DriverData<'bound>>) -> bool;

/// An attribute of the devices of the driver `T`.
///
/// Its functions are called in process context, any number of them at a time, and may sleep. They must not
/// take the device's lock: an unbinding holds it and waits for them.
#[repr(C)]
pub struct Attribute<T: DriverLayout + 'static> {
    /// First: C has a pointer to this.
    raw: bindings::device_attribute,
    show: Show<T>,
    store: Option<Store<T>>,
    is_visible: Option<IsVisible<T>>,
}

impl<T: HasAttributes> Attribute<T> {
    /// An attribute that all may read.
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

    /// An attribute that all may read, and the superuser may write.
    ///
    /// `store` gets what a program writes at once, of at most a page. Other bytes than UTF-8 are refused
    /// (`EINVAL`).
    pub const fn read_write(name: &'static CStr, show: Show<T>, store: Store<T>) -> Self {
        let mut this = Self::read_only(name, show);
        this.raw.attr.mode = 0o644;
        this.raw.__bindgen_anon_2.store = Some(Self::store_callback);
        this.store = Some(store);
        this
    }

    /// The same for those devices only for which `is_visible` is true when they are bound.
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
        // SAFETY: `T`'s `probe()` has returned, since the device has attributes of `T`. It stays bound:
        // the driver core removes them first, and that waits for this.
        let data = unsafe { data::<T>(dev) };

        // SAFETY: The attribute is the first field of a `Self`, see `Table::LIST`.
        let this = unsafe { &*attribute.cast_const().cast::<Self>() };

        // SAFETY: sysfs passes a page of zeroes that is the caller's alone.
        let page = unsafe { &mut *page.cast::<[u8; PAGE_SIZE]>() };

        from_result(|| {
            let mut text = Text { page, len: 0 };
            (this.show)(data, &mut text)?;
            // CAST: It fits into a page.
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

        // SAFETY: sysfs passes a copy of what was written, of that length.
        let text = unsafe { core::slice::from_raw_parts(text.cast::<u8>(), len) };

        from_result(|| {
            let text = core::str::from_utf8(text).map_err(|_| EINVAL)?;
            let store = this.store.ok_or(EIO)?;
            store(data, text.strip_suffix('\n').unwrap_or(text))?;
            // CAST: It fits into a page.
            Ok(len as isize)
        })
    }
}

/// A directory of attributes, in the directory of each device that has one of them.
pub struct Group<T: DriverLayout + 'static> {
    /// The name of the directory. The device must not have a file of this name.
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

/// A driver, of whichever bus, whose devices have attributes.
///
/// # Safety
///
/// - `Self::DriverData` must be `Sync`.
/// - `probe()` must set the data with `Device::set_drvdata()`. Until the device is unbound, nothing but
///   the driver core may take the data back.
pub unsafe trait HasAttributes: DriverLayout + Sized + 'static {
    /// The attributes.
    const ATTRIBUTES: Group<Self>;
}

/// The value for `dev_groups` in `T`'s `struct device_driver`; no other driver must have it. NULL if the
/// driver has no attributes.
pub(crate) const fn dev_groups<T: HasAttributes>() -> *const *const bindings::attribute_group {
    match T::ATTRIBUTES.attributes.is_empty() {
        true => null(),
        false => Table::<T>::GROUPS.as_ptr(),
    }
}

/// A driver's attributes as C wants them.
struct Table<T>(PhantomData<T>);

impl<T: HasAttributes> Table<T> {
    /// The attributes, and a NULL behind them.
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
            // The attribute is the first field of the first field.
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

    /// The one group, and a NULL behind it.
    const GROUPS: &'static [*const bindings::attribute_group; 2] = &[Self::GROUP, null()];

    /// Returns the mode of the attribute at `index`, 0 if the device does not have it. If it has none of
    /// them, it does not have the directory either.
    extern "C" fn is_visible_callback(
        kobject: *mut bindings::kobject,
        _: *mut bindings::attribute,
        index: c_int,
    ) -> bindings::umode_t {
        // SAFETY: The driver core passes the field of a device.
        #[expect(clippy::multiple_unsafe_ops_per_block, reason = "a macro")]
        let dev = unsafe { container_of!(kobject, bindings::device, kobj) };

        // SAFETY: The driver core creates the attributes after `T`'s `probe()`, with the device's lock held.
        let data = unsafe { data::<T>(dev) };
        let attributes = T::ATTRIBUTES.attributes;

        // CAST: It is an index of the list.
        match attributes.get(index as usize) {
            Some(attribute) if attribute.is_visible(data) => attribute.raw.attr.mode,
            _ if attributes.iter().any(|other| other.is_visible(data)) => 0,
            // CAST: It fits, see its definition.
            _ => bindings::SYSFS_GROUP_INVISIBLE as bindings::umode_t,
        }
    }
}

/// Returns the driver's data of a device.
///
/// # Safety
///
/// `dev` must be bound to the driver `T` for `'a`, and `T`'s `probe()` must have returned.
unsafe fn data<'a, T: HasAttributes>(dev: *mut bindings::device) -> Pin<&'a T::DriverData<'a>> {
    // CAST: `Device` is a transparent wrapper of `struct device`.
    // SAFETY: Guaranteed by the safety requirements of this function.
    let dev = unsafe { &*dev.cast::<Device<BoundInternal>>() };

    // SAFETY: By those of `HasAttributes`, the data was set, and stays until the device is unbound.
    unsafe { dev.drvdata_borrow::<T::DriverData<'a>>() }
}
