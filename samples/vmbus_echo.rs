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

/// Sees the packets of one channel. What a driver has to remember about a channel goes in here.
struct Echo {
    packets: Arc<Atomic<u64>>,
}

impl Handler for Echo {
    // It takes no locks, so it may be called right in the host's interrupt.
    fn context(&self) -> Context {
        Context::Interrupt
    }

    fn receive(&mut self, packet: Packet<'_>) -> Handled {
        self.packets.fetch_add(1, Relaxed);
        // A packet has to go one way or another: without this line the function does not compile.
        let (handled, _has_left) = packet.reply();
        handled
    }
}

/// A device that is bound. Its channel ends when this is dropped.
struct EchoDevice<'bound> {
    channel: Channel<'bound>,
    packets: Arc<Atomic<u64>>,
}

/// Number of packets that have come in since the device was bound.
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
