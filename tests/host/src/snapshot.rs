// SPDX-License-Identifier: GPL-2.0

//! A machine between two instructions: what [`crate::machine::Machine::save`] takes and
//! [`crate::machine::Machine::restore`] goes on from, as often as wanted.
//!
//! A boot takes an emulated guest many seconds, going on from a snapshot one. The guest's clocks go on from where they
//! were, so that its wall clock is then as wrong as the snapshot is old, as after a real host's restore.

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
    /// Bytes of memory that it holds.
    pub fn size(&self) -> usize {
        self.memory.iter().map(|(_, bytes)| bytes.len()).sum()
    }
}
