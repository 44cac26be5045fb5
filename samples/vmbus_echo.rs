// SPDX-License-Identifier: GPL-2.0

//! Rust VMBus driver sample: sends every packet back.
//!
//! The driver binds to devices of the class in `ID_TABLE`. The emulated host of the tests offers
//! such a device.

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
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc, //
    }, //
};

hyperv::vmbus_device_table!(
    ID_TABLE,
    <EchoDriver as vmbus::Driver>::IdInfo,
    [(
        DeviceId::from_class(Guid::new(0x7a0e3c4b_5d29_4f0e_9c1e_2f6d8a41b3c7)),
        ()
    ),]
);

/// Handles the packets of one channel. Holds the state that the handler needs.
struct Echo {
    packets: Arc<Atomic<u64>>,
}

impl Handler for Echo {
    // The handler takes no locks, so the host's interrupt may call it.
    fn context(&self) -> Context {
        Context::Interrupt
    }

    fn receive(&mut self, packet: Packet<'_>) -> Handled {
        self.packets.fetch_add(1, Relaxed);
        // Only the methods of `Packet` return `Handled`, so the compiler rejects a handler that
        // forgets a packet.
        let (handled, _sent) = packet.reply();
        handled
    }
}

/// A bound device. Dropping this closes the channel.
struct EchoDevice<'bound> {
    channel: Channel<'bound>,
    packets: Arc<Atomic<u64>>,
}

/// Shows the number of packets received since the device was bound.
fn packets(this: Pin<&EchoDevice<'_>>, text: &mut Text<'_>) -> Result {
    write!(text, "{}", this.packets.load(Relaxed))
}

struct EchoDriver;

#[vtable]
impl vmbus::Driver for EchoDriver {
    type IdInfo = ();
    type Data<'bound> = EchoDevice<'bound>;
    const ID_TABLE: vmbus::IdTable<Self::IdInfo> = &ID_TABLE;

    // `/sys/bus/vmbus/devices/*/vmbus_echo/packets`
    const ATTRIBUTES: AttributeGroup<Self> = AttributeGroup {
        name: c"vmbus_echo",
        attributes: &[Attribute::<Self>::read_only(c"packets", packets)],
    };

    fn probe<'bound>(
        dev: &'bound vmbus::Device<Core<'_>>,
        (): &'bound Self::IdInfo,
    ) -> impl PinInit<Self::Data<'bound>, Error> + 'bound {
        const RING: RingSize = RingSize::with_data(12 * 1024);
        dev_info!(dev.as_ref(), "Rust VMBus driver sample probed\n");

        let packets = Arc::new(Atomic::new(0), GFP_KERNEL)?;
        let echo = Echo {
            packets: packets.clone(),
        };
        Ok(EchoDevice {
            channel: Channel::open(dev, RING, KBox::new(echo, GFP_KERNEL)?, None)?,
            packets,
        })
    }

    fn suspend<'bound>(
        dev: &'bound vmbus::Device<Core<'_>>,
        this: Pin<&Self::Data<'bound>>,
    ) -> Result {
        this.channel.suspend(dev)
    }

    fn resume<'bound>(
        dev: &'bound vmbus::Device<Core<'_>>,
        this: Pin<&Self::Data<'bound>>,
    ) -> Result {
        this.channel.resume(dev)
    }
}

hyperv::module_vmbus_driver! {
    type: EchoDriver,
    name: "vmbus_echo",
    authors: ["The hv_utils authors"],
    description: "Rust VMBus driver sample",
    license: "GPL",
}
