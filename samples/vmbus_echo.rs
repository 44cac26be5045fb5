// SPDX-License-Identifier: GPL-2.0

//! Rust VMBus driver sample: sends every packet back.
//!
//! A host that wants to see it at work offers a device of the class below; the tests' host does.

#![forbid(unsafe_code)]

use hyperv::{
    channel::{
        Channel,
        Context,
        Handled,
        Handler,
        Packet,
        RingSize, //
    },
    vmbus::{
        self,
        DeviceId,
        Guid, //
    },
};
use kernel::{
    device::Core,
    prelude::*, //
};

hyperv::vmbus_device_table!(
    ID_TABLE,
    <EchoDriver as vmbus::Driver>::IdInfo,
    [(
        DeviceId::from_class(Guid::new(0x7a0e3c4b_5d29_4f0e_9c1e_2f6d8a41b3c7)),
        ()
    ),]
);

/// Sees the packets of one channel. What a driver has to remember about a channel goes in here.
struct Echo;

impl Handler for Echo {
    // It takes no locks, so it may be called right in the host's interrupt.
    fn context(&self) -> Context {
        Context::Interrupt
    }

    fn receive(&mut self, packet: Packet<'_>) -> Handled {
        // A packet has to go one way or another: without this line the function does not compile.
        let (handled, _has_left) = packet.reply();
        handled
    }
}

struct EchoDriver;

#[vtable]
impl vmbus::Driver for EchoDriver {
    type IdInfo = ();
    type Data<'bound> = Channel<'bound>;
    const ID_TABLE: vmbus::IdTable<Self::IdInfo> = &ID_TABLE;

    fn probe<'bound>(
        dev: &'bound vmbus::Device<Core<'_>>,
        (): &'bound Self::IdInfo,
    ) -> impl PinInit<Self::Data<'bound>, Error> + 'bound {
        const RING: RingSize = RingSize::with_data(12 * 1024);
        dev_info!(dev.as_ref(), "Rust VMBus driver sample probed\n");

        Channel::open(dev, RING, KBox::new(Echo, GFP_KERNEL)?, None)
    }

    fn suspend<'bound>(
        dev: &'bound vmbus::Device<Core<'_>>,
        this: Pin<&'bound Self::Data<'bound>>,
    ) -> Result {
        this.suspend(dev)
    }

    fn resume<'bound>(
        dev: &'bound vmbus::Device<Core<'_>>,
        this: Pin<&'bound Self::Data<'bound>>,
    ) -> Result {
        this.resume(dev)
    }
}

hyperv::module_vmbus_driver! {
    type: EchoDriver,
    name: "vmbus_echo",
    authors: ["The hv_utils authors"],
    description: "Rust VMBus driver sample",
    license: "GPL",
}
