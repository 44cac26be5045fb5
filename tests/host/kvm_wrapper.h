/* SPDX-License-Identifier: GPL-2.0 */
/* What bindgen turns into build/host/kvm_bindings.rs. */
#include <linux/kvm.h>
#include <linux/perf_event.h>
