// SPDX-License-Identifier: GPL-2.0

//! Says hello, with the kernel's own crates alone.

use kernel::prelude::*;

module! {
    type: Hello,
    name: "hello",
    authors: ["The hv_utils authors"],
    description: "Says hello",
    license: "GPL",
}

/// The module.
struct Hello {
    numbers: KVec<u32>,
}

impl kernel::Module for Hello {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        let mut numbers = KVec::new();
        numbers.push(72, GFP_KERNEL)?;
        pr_info!("hello\n");
        Ok(Self { numbers })
    }
}

impl Drop for Hello {
    fn drop(&mut self) {
        pr_info!("farewell, {:?}\n", self.numbers);
    }
}
