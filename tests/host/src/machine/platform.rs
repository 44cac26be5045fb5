// SPDX-License-Identifier: GPL-2.0

//! Implementations of the bus' hypervisor: for a running machine, and for a machine that is off.

use std::sync::Arc;
use std::sync::Mutex;

use super::shared::lock;
use crate::kvm;
use crate::synic::Hypervisor;
use crate::synic::Synic;

/// The hypervisor of a running machine: SynIC and clock.
pub(super) struct Platform {
    pub(super) synic: Arc<Mutex<Synic>>,
    pub(super) vm: Arc<kvm::Vm>,
    pub(super) processors: u32,
}

impl Hypervisor for Platform {
    fn post_message(&mut self, vp: u32, sint: u32, payload: &[u8]) {
        lock(&self.synic).post(vp, sint, payload);
    }

    fn is_congested(&self) -> bool {
        lock(&self.synic).is_congested()
    }

    fn signal_event(&mut self, vp: u32, flag: u32) {
        lock(&self.synic).signal(vp, flag);
    }

    fn processors(&self) -> u32 {
        self.processors
    }

    fn reference_time(&self) -> u64 {
        self.vm.clock().unwrap_or(0) / 100
    }

    fn forget_messages(&mut self) {
        lock(&self.synic).forget();
    }
}

/// The hypervisor of a machine that is off. It does nothing.
pub(super) struct Nobody;

impl Hypervisor for Nobody {
    fn post_message(&mut self, _vp: u32, _sint: u32, _payload: &[u8]) {}

    fn is_congested(&self) -> bool {
        false
    }

    fn signal_event(&mut self, _vp: u32, _flag: u32) {}

    fn processors(&self) -> u32 {
        0
    }

    fn reference_time(&self) -> u64 {
        0
    }

    fn forget_messages(&mut self) {}
}
