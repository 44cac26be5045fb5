// SPDX-License-Identifier: GPL-2.0

//! Compatibility between kernel versions: provides features of 7.3's kernel crate for 7.2, too.
//!
//! `rust/Kbuild` sets `hyperv_before_7_3` for this crate only, and only this file uses it. With
//! 7.3, this module only forwards to the kernel. Code that is the same for all versions does not
//! belong here.

#[cfg(not(hyperv_before_7_3))]
mod imp {
    use crate::{
        bindings,
        vmbus::{
            DeviceId,
            Driver, //
        },
    };
    use core::mem::offset_of;
    use kernel::device_id::RawDeviceIdIndex;

    pub(crate) use bindings::vmbus_sendpacket;
    pub(crate) use kernel::device::BoundInternal;
    pub use kernel::{
        new_spinlock_irq,
        sync::{
            poll::PollCondVarBox,
            SpinLockIrq, //
        }, //
    };

    // SAFETY: `DRIVER_DATA_OFFSET` is the offset to the `driver_data` field.
    unsafe impl RawDeviceIdIndex for DeviceId {
        const DRIVER_DATA_OFFSET: usize = offset_of!(bindings::hv_vmbus_device_id, driver_data);
    }

    /// Returns the driver's information about `id`, or `None` if `id` is not in the id table.
    ///
    /// # Safety
    ///
    /// `id` must be an entry of `T::ID_TABLE`, or have 0 as its `driver_data`.
    #[inline(always)]
    pub(crate) unsafe fn id_info<T: Driver>(id: &DeviceId) -> Option<&'static T::IdInfo> {
        // SAFETY: By the safety requirements, as the table is an `IdArray<DeviceId, T::IdInfo, _>`.
        unsafe { id.info_unchecked_opt() }
    }

    /// Creates a VMBus `IdTable` with its alias for modpost.
    #[macro_export]
    macro_rules! vmbus_device_table {
        ($($tt:tt)*) => {
            ::kernel::module_device_table!("vmbus", $crate::vmbus::DeviceId, $($tt)*);
        };
    }
}

#[cfg(hyperv_before_7_3)]
mod imp {
    use crate::{
        bindings,
        vmbus::{
            DeviceId,
            Driver, //
        },
    };
    use core::{
        mem::offset_of,
        ops::Deref,
        ptr, //
    };
    use kernel::{
        alloc::AllocError,
        device_id::RawDeviceIdIndex,
        prelude::*,
        sync::{
            lock::{
                Backend,
                Lock, //
            },
            poll::PollCondVar,
            LockClassKey, //
        },
    };

    pub use crate::new_spinlock_irq;

    /// A bound device, for abstractions only. 7.2 has only `CoreInternal`, which implies that the
    /// device's lock is held. Here, the lock may not be held: call only methods that 7.3's
    /// `BoundInternal` offers.
    pub(crate) type BoundInternal = kernel::device::CoreInternal<'static>;

    /// Sends a packet. Fails with `EIO` if the host has corrupted the indices of the outbound ring.
    ///
    /// Since 7.3, hv_vmbus checks the indices. In 7.2, hv_vmbus trusts the host: if the host
    /// corrupts the indices after the check below, hv_vmbus writes the packet beyond the ring.
    ///
    /// # Safety
    ///
    /// `channel` must be open, and `buffer` valid for reads of `len` bytes.
    pub(crate) unsafe fn vmbus_sendpacket(
        channel: *mut bindings::vmbus_channel,
        buffer: *mut c_void,
        len: u32,
        request: u64,
        kind: bindings::vmbus_packet_type,
        flags: u32,
    ) -> c_int {
        // SAFETY: By the safety requirements, the channel is open.
        if unsafe { bindings::rust_helper_vmbus_bytes_to_write(channel) } == u32::MAX {
            return EIO.to_errno();
        }

        // SAFETY: Guaranteed by the safety requirements of this function.
        unsafe { bindings::vmbus_sendpacket(channel, buffer, len, request, kind, flags) }
    }

    // SAFETY: `DRIVER_DATA_OFFSET` is the offset to the `driver_data` field, which `index()`
    // returns.
    unsafe impl RawDeviceIdIndex for DeviceId {
        const DRIVER_DATA_OFFSET: usize = offset_of!(bindings::hv_vmbus_device_id, driver_data);

        fn index(&self) -> usize {
            self.0.driver_data
        }
    }

    /// Returns the driver's information about `id`, or `None` if `id` is not in the id table.
    ///
    /// In 7.2, `driver_data` is an index. The index is 0 for the first entry of the table, and also
    /// for ids outside the table. So compare the addresses to find out whether `id` is an entry.
    ///
    /// # Safety
    ///
    /// `id` must be an entry of `T::ID_TABLE`, or have 0 as its `driver_data`.
    pub(crate) unsafe fn id_info<T: Driver>(id: &DeviceId) -> Option<&'static T::IdInfo> {
        let index = id.index();
        let entry = T::ID_TABLE.as_ptr().wrapping_add(index);
        ptr::eq(entry, &id.0).then(|| T::ID_TABLE.info(index))
    }

    /// Creates a VMBus `IdTable` with its alias for modpost.
    #[macro_export]
    macro_rules! vmbus_device_table {
        ($table:ident, $info_type:ty, [$(($id:expr, $info:expr $(,)?)),* $(,)?]) => {
            static $table: ::kernel::device_id::IdArray<
                $crate::vmbus::DeviceId,
                $info_type,
                { <[$crate::vmbus::DeviceId]>::len(&[$($id,)*]) },
            > = ::kernel::device_id::IdArray::new([$(($id, $info),)*]);

            // A module may have several tables.
            const _: () = {
                ::kernel::module_device_table!("vmbus", __VMBUS_MODULE_TABLE, $table);
            };
        };
    }

    /// A spinlock that disables interrupts while it is held. Drop the guards of several locks in
    /// reverse order: each guard restores the interrupt state that it has found.
    pub type SpinLockIrq<T> = Lock<T, SpinLockIrqBackend>;

    /// The [`Backend`] of a `spinlock_t` that is locked by `spin_lock_irqsave()`.
    pub struct SpinLockIrqBackend;

    // SAFETY: `spinlock_t` ensures mutual exclusion. The default `relock()` calls `lock()`.
    unsafe impl Backend for SpinLockIrqBackend {
        type State = bindings::spinlock_t;
        type GuardState = c_ulong;

        unsafe fn init(
            ptr: *mut Self::State,
            name: *const c_char,
            key: *mut bindings::lock_class_key,
        ) {
            // SAFETY: By the safety requirements, `ptr` is valid for writes. `name` and `key` stay
            // valid for reads.
            unsafe { bindings::__spin_lock_init(ptr, name, key) }
        }

        unsafe fn lock(ptr: *mut Self::State) -> Self::GuardState {
            // SAFETY: By the safety requirements, the lock was initialized.
            unsafe { bindings::rust_helper_spin_lock_irqsave(ptr) }
        }

        unsafe fn unlock(ptr: *mut Self::State, flags: &Self::GuardState) {
            // SAFETY: By the safety requirements, the lock was initialized, and the caller holds
            // it. `lock()` or `try_lock()` has returned `flags`.
            unsafe { bindings::rust_helper_spin_unlock_irqrestore(ptr, *flags) }
        }

        unsafe fn try_lock(ptr: *mut Self::State) -> Option<Self::GuardState> {
            let mut flags = 0;
            // SAFETY: By the safety requirements, the lock was initialized.
            unsafe { bindings::rust_helper_spin_trylock_irqsave(ptr, &mut flags) }.then_some(flags)
        }

        unsafe fn assert_is_held(ptr: *mut Self::State) {
            // SAFETY: By the safety requirements, the lock was initialized.
            unsafe { bindings::spin_assert_is_held(ptr) }
        }
    }

    /// Creates an initializer for a [`SpinLockIrq`].
    #[macro_export]
    macro_rules! new_spinlock_irq {
        ($inner:expr $(, $name:literal)? $(,)?) => {
            $crate::compat::SpinLockIrq::new(
                $inner,
                ::kernel::optional_name!($($name)?),
                ::kernel::static_lock_class!(),
            )
        };
    }

    /// A boxed [`PollCondVar`]. Must be dropped in process context: dropping waits for an RCU grace
    /// period.
    pub struct PollCondVarBox(Pin<KBox<PollCondVar>>);

    impl PollCondVarBox {
        /// Constructs a new boxed [`PollCondVar`].
        pub fn new(
            name: &'static CStr,
            key: Pin<&'static LockClassKey>,
        ) -> Result<Self, AllocError> {
            KBox::pin_init(PollCondVar::new(name, key), GFP_KERNEL)
                .map(Self)
                .map_err(|_| AllocError)
        }
    }

    impl Deref for PollCondVarBox {
        type Target = PollCondVar;

        fn deref(&self) -> &PollCondVar {
            &self.0
        }
    }
}

pub use imp::*;
