// SPDX-License-Identifier: GPL-2.0

//! A VMBus driver that leaks its registrations with `mem::forget()`, which safe code may call.
//!
//! Unbinding the device must end the registrations nevertheless. Otherwise a callback could run code
//! of a removed module. The scenario `leaked_registrations` checks this.

#![forbid(unsafe_code)]

use core::mem::forget;
use hyperv::{
    channel::{
        Channel,
        Handled,
        Handler,
        Packet,
        RingSize, //
    },
    linux::{
        miscdevice::{
            self,
            Poll,
            Ready,
            Wait, //
        },
        time::Deadline,
        workqueue::Run, //
    },
    ptp::{
        self,
        Unreadable, //
    },
    vmbus::{
        self,
        DeviceId,
        Guid, //
    },
};
use kernel::{
    device::Core,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc, //
    },
    time::Delta,
    uaccess::{
        UserSliceReader,
        UserSliceWriter, //
    },
};

const RING: RingSize = RingSize::with_data(12 * 1024);

/// Delay of the channel's job. It is long enough for the job to be pending when the device is unbound.
/// The scenario has the same constant.
const DELAY: Delta = Delta::from_secs(2);

hyperv::vmbus_device_table!(
    ID_TABLE,
    <Leak as vmbus::Driver>::IdInfo,
    [(
        DeviceId::from_class(Guid::new(0x7a0e3c4b_5d29_4f0e_9c1e_2f6d8a41b3c7)),
        ()
    ),]
);

/// Sends every packet back, and schedules the job.
struct Echo;

impl Handler for Echo {
    fn receive(&mut self, packet: Packet<'_>) -> Handled {
        let sender = packet.sender();
        let (handled, _has_left) = packet.reply();
        sender.defer_until(Deadline::after(DELAY));
        handled
    }
}

struct Job;

impl Run for Job {
    fn run(&self) {
        pr_info!("the job runs\n");
    }
}

/// A character device. Each read returns one byte, and fails once the device is revoked.
struct Device {
    is_revoked: Atomic<bool>,
}

impl miscdevice::Device for Device {
    fn name(&self) -> &'static CStr {
        c"vmbus_leak"
    }

    fn open(&self) -> Result {
        Ok(())
    }

    fn release(&self) {}

    fn read(&self, to: &mut UserSliceWriter, _: Wait) -> Result<usize> {
        match self.is_revoked.load(Relaxed) {
            true => Err(ENODEV),
            false => to.write_slice(b"x").map(|()| 1),
        }
    }

    fn write(&self, _: &mut UserSliceReader) -> Result {
        Err(EINVAL)
    }

    fn poll(&self, _: &Poll<'_>) -> Ready {
        Ready::READ
    }

    fn revoke(&self) {
        self.is_revoked.store(true, Relaxed);
    }
}

/// A clock that shows the reference time.
struct Clock;

impl ptp::Clock for Clock {
    fn at(&self, reference: u64) -> Result<i64, Unreadable> {
        i64::try_from(reference).map_err(|_| Unreadable::Stale)
    }
}

struct Leak;

#[vtable]
impl vmbus::Driver for Leak {
    type IdInfo = ();
    type Data<'bound> = ();
    const ID_TABLE: vmbus::IdTable<Self::IdInfo> = &ID_TABLE;

    fn probe<'bound>(
        dev: &'bound vmbus::Device<Core<'_>>,
        (): &'bound Self::IdInfo,
    ) -> impl PinInit<Self::Data<'bound>, Error> + 'bound {
        let device = Device {
            is_revoked: Atomic::new(false),
        };
        let device = Arc::new(device, GFP_KERNEL)?;
        let echo = KBox::new(Echo, GFP_KERNEL)?;
        let job = KBox::new(Job, GFP_KERNEL)?;
        forget(ptp::Registration::new(dev.as_ref(), c"vmbus_leak", Clock)?);
        forget(Channel::open(dev, RING, echo, Some(job))?);
        forget(miscdevice::Registration::new(dev.as_ref(), device)?);
        Ok(())
    }
}

hyperv::module_vmbus_driver! {
    type: Leak,
    name: "vmbus_leak",
    authors: ["The hv_utils authors"],
    description: "VMBus driver that leaks its registrations",
    license: "GPL",
}
