// SPDX-License-Identifier: GPL-2.0

//! Character devices with `poll()`, which `kernel::miscdevice` lacks. Unregistering a device does
//! not wait for its open files: each open file shares the ownership of the device.
//!
//! C header: [`include/linux/miscdevice.h`](srctree/include/linux/miscdevice.h)

use crate::{
    bindings,
    linux::{
        devres::{
            Managed,
            Registered, //
        },
        module::this_module, //
    },
};
use core::marker::PhantomData;
use kernel::{
    container_of,
    device::{
        self,
        Bound, //
    },
    error::to_result,
    fs::File,
    prelude::*,
    sync::{
        poll::{
            PollCondVar,
            PollTable, //
        },
        Arc,
        ArcBorrow, //
    },
    types::{
        ForeignOwnable,
        Opaque, //
    },
    uaccess::{
        UserSlice,
        UserSliceReader,
        UserSliceWriter, //
    },
};

/// The events that `poll()` reports.
#[derive(Clone, Copy)]
pub struct Ready(u32);

impl Ready {
    /// No event.
    pub const NO: Self = Self(0);
    /// There is data to read.
    pub const READ: Self = Self(bindings::POLLIN | bindings::POLLRDNORM);
    /// The device is gone.
    pub const GONE: Self = Self(bindings::POLLERR | bindings::POLLHUP);
}

/// Whether a call may wait.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Wait until the call can proceed, or a signal arrives.
    Interruptible,
    /// Do not wait: the file was opened with `O_NONBLOCK`.
    No,
}

/// A character device. All methods are called in process context and may sleep.
pub trait Device: Send + Sync + 'static {
    /// Returns the path of the device node, relative to `/dev`.
    fn name(&self) -> &'static CStr;

    /// Called when the device is opened. If this returns an error, opening fails.
    fn open(&self) -> Result;

    /// Called when the last reference to the opened file is dropped.
    fn release(&self);

    /// Reads one message. Returns its size in bytes.
    fn read(&self, to: &mut UserSliceWriter, wait: Wait) -> Result<usize>;

    /// Writes one message, which must be consumed completely.
    fn write(&self, from: &mut UserSliceReader) -> Result;

    /// Registers with `poll` for changes, then returns the current events.
    fn poll(&self, poll: &Poll<'_>) -> Ready;

    /// Called when the registration ends. Open files stay open, and [`Device::open`] may still be
    /// called until the device node is removed. From now on, all calls except [`Device::release`]
    /// must fail.
    fn revoke(&self);
}

/// A call of `poll()`.
///
/// # Invariants
///
/// `file` is valid for `'a`.
pub struct Poll<'a> {
    file: *mut bindings::file,
    table: PollTable<'a>,
}

impl Poll<'_> {
    /// Wakes the caller of `poll()` when `changed` is notified.
    pub fn register_wait(&self, changed: &PollCondVar) {
        // SAFETY:
        // - By the type invariant, the file is valid.
        // - A `File` must not be shared with an `fdget_pos()` that did not lock the file's
        //   position. `fdget_pos()` never locks the position of a character device. But only this
        //   function and `poll_wait()` use the reference, and neither accesses the position.
        let file = unsafe { File::from_raw_file(self.file) };
        self.table.register_wait(file, changed);
    }
}

/// A registered device. Dropping this unregisters the device. If this was leaked, unbinding the
/// device passed to [`Registration::new`] unregisters it.
pub struct Registration(#[expect(dead_code)] Managed);

impl Registration {
    /// Registers `device`. From now on, `device` can be opened. `dev` only limits the lifetime:
    /// `device` has no parent device, as in the C drivers.
    ///
    /// Fails with `ENOMEM`, `EBUSY` if no minor number is free, or `EEXIST` if a device of that
    /// name exists. In the latter case, sysfs logs a call trace.
    pub fn new<T: Device>(dev: &device::Device<Bound>, device: Arc<T>) -> Result<Self> {
        let inner = KBox::pin_init(Inner::new(device), GFP_KERNEL)?;
        Ok(Self(Managed::new(dev, inner)?))
    }
}

#[pin_data(PinnedDrop)]
struct Inner<T: Device> {
    #[pin]
    misc: Opaque<bindings::miscdevice>,
    device: Arc<T>,
}

// SAFETY: `misc_deregister()` may be called from any thread, and `Arc<T>` is `Send`.
unsafe impl<T: Device> Send for Inner<T> {}

// SAFETY: `misc` is not accessed through a shared reference, and `Arc<T>` is `Sync`.
unsafe impl<T: Device> Sync for Inner<T> {}

impl<T: Device> Registered for Inner<T> {}

impl<T: Device> Inner<T> {
    fn new(device: Arc<T>) -> impl PinInit<Self, Error> {
        let name = device.name();
        try_pin_init!(Self {
            // First: the device may be opened before `misc_register()` returns.
            device,
            misc <- Opaque::try_ffi_init(move |slot: *mut bindings::miscdevice| {
                // SAFETY: `slot` is valid for writes.
                unsafe { slot.write(Self::misc(name)) };

                // SAFETY: `slot` is pinned until `drop()` deregisters the device.
                to_result(unsafe { bindings::misc_register(slot) })
            }),
        })
    }

    fn misc(name: &'static CStr) -> bindings::miscdevice {
        let mut misc: bindings::miscdevice = pin_init::zeroed();
        misc.minor = bindings::MISC_DYNAMIC_MINOR as c_int;
        misc.name = name.as_char_ptr();
        misc.fops = &FileOperations::<T>::TABLE;
        misc
    }
}

#[pinned_drop]
impl<T: Device> PinnedDrop for Inner<T> {
    fn drop(self: Pin<&mut Self>) {
        self.device.revoke();
        // SAFETY: `misc` was registered in `new()`.
        unsafe { bindings::misc_deregister(self.misc.get()) };
    }
}

struct FileOperations<T>(PhantomData<T>);

impl<T: Device> FileOperations<T> {
    const TABLE: bindings::file_operations = bindings::file_operations {
        // The module cannot be unloaded while a file is open.
        owner: this_module().as_ptr(),
        open: Some(Self::open),
        release: Some(Self::release),
        read: Some(Self::read),
        write: Some(Self::write),
        poll: Some(Self::poll),
        ..pin_init::zeroed()
    };

    /// Returns the device of a file.
    ///
    /// # Safety
    ///
    /// `file` must be open: [`Self::open`] has succeeded, and [`Self::release`] has not returned.
    unsafe fn device<'a>(file: *mut bindings::file) -> ArcBorrow<'a, T> {
        // SAFETY: The file is open.
        let data = unsafe { (*file).private_data };

        // SAFETY: `open()` has stored an `Arc<T>` in the private data. `release()` takes it back.
        unsafe { Arc::<T>::borrow(data) }
    }

    extern "C" fn open(_: *mut bindings::inode, file: *mut bindings::file) -> c_int {
        // SAFETY: `misc_open()` has stored the `struct miscdevice` in the private data.
        let misc = unsafe { (*file).private_data }.cast::<Opaque<bindings::miscdevice>>();

        // SAFETY: `misc` is a field of an `Inner<T>`.
        #[allow(clippy::multiple_unsafe_ops_per_block, reason = "a macro")]
        let inner = unsafe { container_of!(misc, Inner<T>, misc) };

        // SAFETY: That `Inner<T>` is valid: `misc_open()` holds the lock that `misc_deregister()`
        // takes.
        let inner = unsafe { &*inner };

        // Do not call `stream_open()`: it disables `pread()` and `pwrite()`, which hv_fcopy_daemon
        // uses.
        let device = inner.device.clone();
        if let Err(error) = device.open() {
            return error.to_errno();
        }

        // SAFETY: The file's open call can access the private data.
        unsafe { (*file).private_data = device.into_foreign() };
        0
    }

    extern "C" fn release(_: *mut bindings::inode, file: *mut bindings::file) -> c_int {
        // SAFETY: The file is open until this returns.
        let data = unsafe { (*file).private_data };

        // SAFETY: `open()` has stored an `Arc<T>` in the private data. Nothing uses the file after
        // this.
        let device = unsafe { Arc::<T>::from_foreign(data) };
        device.release();
        0
    }

    extern "C" fn read(
        file: *mut bindings::file,
        to: *mut c_char,
        len: usize,
        _: *mut bindings::loff_t,
    ) -> isize {
        // SAFETY: The file is open.
        let device = unsafe { Self::device(file) };

        // SAFETY: The file is open.
        let wait = match unsafe { (*file).f_flags } & bindings::O_NONBLOCK {
            0 => Wait::Interruptible,
            _ => Wait::No,
        };
        let mut to = UserSlice::new(UserPtr::from_ptr(to.cast()), len).writer();
        match device.read(&mut to, wait) {
            // CAST: No message is longer than `isize::MAX`.
            Ok(len) => len as isize,
            Err(error) => error.to_errno() as isize,
        }
    }

    extern "C" fn write(
        file: *mut bindings::file,
        from: *const c_char,
        len: usize,
        _: *mut bindings::loff_t,
    ) -> isize {
        // SAFETY: The file is open.
        let device = unsafe { Self::device(file) };
        let mut from = UserSlice::new(UserPtr::from_ptr(from.cast_mut().cast()), len).reader();
        match device.write(&mut from) {
            // CAST: The whole message was read, so it is not longer than `isize::MAX`.
            Ok(()) => len as isize,
            Err(error) => error.to_errno() as isize,
        }
    }

    extern "C" fn poll(
        file: *mut bindings::file,
        table: *mut bindings::poll_table_struct,
    ) -> bindings::__poll_t {
        // SAFETY: The file is open.
        let device = unsafe { Self::device(file) };

        // SAFETY: `table` is null or valid during this call.
        let table = unsafe { PollTable::from_raw(table) };

        // INVARIANT: The file is valid during this call.
        device.poll(&Poll { file, table }).0
    }
}
