// SPDX-License-Identifier: GPL-2.0

//! Character devices with `poll()`, which `kernel::miscdevice` lacks. Their removal never waits for
//! open files: an open file shares ownership of the device with its registration.
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

/// What a file is ready for, as `poll()` reports it.
#[derive(Clone, Copy)]
pub struct Ready(u32);

impl Ready {
    /// Nothing yet.
    pub const NO: Self = Self(0);
    /// There is something to read.
    pub const READ: Self = Self(bindings::POLLIN | bindings::POLLRDNORM);
    /// The device is gone.
    pub const GONE: Self = Self(bindings::POLLERR | bindings::POLLHUP);
}

/// How a call may wait.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Until there's something to do, or a signal.
    Interruptible,
    /// Not at all: the file was opened with `O_NONBLOCK`.
    No,
}

/// A character device. All methods are called in process context and may sleep.
pub trait Device: Send + Sync + 'static {
    /// The path below `/dev`.
    fn name(&self) -> &'static CStr;

    /// Called when the device is opened; an error refuses that.
    fn open(&self) -> Result;

    /// Called when what [`Device::open`] opened is closed for good.
    fn release(&self);

    /// Reads one message; returns its size in bytes.
    fn read(&self, to: &mut UserSliceWriter, wait: Wait) -> Result<usize>;

    /// Writes one message, the whole of it.
    fn write(&self, from: &mut UserSliceReader) -> Result;

    /// Returns what the file is ready for, having registered with `poll` for changes of that.
    fn poll(&self, poll: &Poll<'_>) -> Ready;

    /// Called when the registration ends. Open files stay open, and [`Device::open`] may still be
    /// called until the device node is gone. From now on, refuse all calls but [`Device::release`].
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
        // - A `File` must not be shared with an `fdget_pos()` that did not lock the file's position,
        //   as that of a character device never does. The reference does not leave this function,
        //   which passes it to `poll_wait()`: that accesses no position.
        let file = unsafe { File::from_raw_file(self.file) };
        self.table.register_wait(file, changed);
    }
}

/// A device that is registered, until this is dropped or, if this is leaked, until the device that it
/// was registered for is unbound.
pub struct Registration(#[expect(dead_code)] Managed);

impl Registration {
    /// Registers `device`: it can be opened from now on. `dev` only bounds the lifetime: the device
    /// has no parent in sysfs, as with the drivers in C.
    ///
    /// Fails with `ENOMEM`, `EBUSY` if there are no more minor numbers, or `EEXIST`, with a call trace
    /// of sysfs in the log, if there is a device of that name.
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
            // First: the device may be opened before its registration returns.
            device,
            misc <- Opaque::try_ffi_init(move |slot: *mut bindings::miscdevice| {
                // SAFETY: `slot` is valid for writes.
                unsafe { slot.write(Self::misc(name)) };

                // SAFETY: `slot` stays where it is until it is deregistered in `drop()`.
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
        // The module can't be unloaded while a file is open.
        owner: this_module().as_ptr(),
        open: Some(Self::open),
        release: Some(Self::release),
        read: Some(Self::read),
        write: Some(Self::write),
        poll: Some(Self::poll),
        ..pin_init::zeroed()
    };

    /// The device of a file.
    ///
    /// # Safety
    ///
    /// `file` must be open, from [`Self::open`] to [`Self::release`].
    unsafe fn device<'a>(file: *mut bindings::file) -> ArcBorrow<'a, T> {
        // SAFETY: The file is open.
        let data = unsafe { (*file).private_data };

        // SAFETY: `open()` has put an `Arc<T>` there, which `release()` takes away.
        unsafe { Arc::<T>::borrow(data) }
    }

    extern "C" fn open(_: *mut bindings::inode, file: *mut bindings::file) -> c_int {
        // SAFETY: `misc_open()` has put the `struct miscdevice` there.
        let misc = unsafe { (*file).private_data }.cast::<Opaque<bindings::miscdevice>>();

        // SAFETY: It is a field of an `Inner<T>`.
        #[expect(clippy::multiple_unsafe_ops_per_block, reason = "a macro")]
        let inner = unsafe { container_of!(misc, Inner<T>, misc) };

        // SAFETY: That `Inner<T>` is valid: `misc_open()` holds the lock that `misc_deregister()`
        // takes.
        let inner = unsafe { &*inner };

        // No `stream_open()`: there is no position here, but daemons read and write at one.
        let device = inner.device.clone();
        if let Err(error) = device.open() {
            return error.to_errno();
        }

        // SAFETY: The open call of a file can access the private data.
        unsafe { (*file).private_data = device.into_foreign() };
        0
    }

    extern "C" fn release(_: *mut bindings::inode, file: *mut bindings::file) -> c_int {
        // SAFETY: The file is open until this returns.
        let data = unsafe { (*file).private_data };

        // SAFETY: `open()` has put an `Arc<T>` there, and nothing uses the file after this.
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
            // CAST: No message is that long.
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
            // CAST: The message was taken as a whole, so it isn't that long.
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

        // SAFETY: `table` is null or valid in this call.
        let table = unsafe { PollTable::from_raw(table) };

        // INVARIANT: The file is valid in this call.
        device.poll(&Poll { file, table }).0
    }
}
