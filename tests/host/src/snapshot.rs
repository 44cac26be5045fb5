// SPDX-License-Identifier: GPL-2.0

//! A machine between two instructions. [`crate::machine::Machine::save`] takes a snapshot.
//! [`crate::machine::Machine::restore`] continues from a snapshot, any number of times.
//!
//! An emulated guest takes many seconds to boot, but one second to continue from a snapshot. The guest's clocks
//! continue where the snapshot stopped them. So the guest's wall clock lags by the snapshot's age. Inference: the same
//! happens after a restore on Hyper-V.

use crate::kvm::state::VcpuState;
use crate::kvm::state::VmState;
use crate::ports::Ports;
use crate::synic;
use crate::vmbus::bus;

/// A machine's state.
pub struct Snapshot {
    pub(crate) memory: Vec<(u64, Vec<u8>)>,
    pub(crate) processors: Vec<VcpuState>,
    pub(crate) vm: VmState,
    pub(crate) synic: synic::State,
    pub(crate) bus: bus::State,
    pub(crate) ports: Ports,
}

impl Snapshot {
    /// Bytes of guest memory in the snapshot.
    pub fn size(&self) -> usize {
        self.memory.iter().map(|(_, bytes)| bytes.len()).sum()
    }
}
