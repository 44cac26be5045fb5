// SPDX-License-Identifier: GPL-2.0

//! The module's parameters.

hyperv::module_param_bool!(
    timesync_implicit,
    0o644,
    false,
    "If set treat SAMPLE as SYNC when clock is behind"
);

hyperv::module_param_bool!(
    fcopy_chardev,
    0o444,
    !cfg!(CONFIG_UIO_HV_GENERIC),
    "If set serve file copy by /dev/vmbus/hv_fcopy, else leave it to uio_hv_generic"
);

hyperv::module_param_uint!(
    vss_freeze_limit,
    0o644,
    900,
    0..=86400,
    "Seconds for which file systems stay frozen for a backup at the most (0: for ever)"
);

hyperv::module_param_uint!(
    kvp_protocol,
    0o644,
    5,
    4..=5,
    "Newest KVP protocol to agree on with the host (4 or 5)"
);

hyperv::module_param_uint!(
    vss_protocol,
    0o644,
    5,
    5..=7,
    "Newest VSS protocol to agree on with the host (5, 6 or 7)"
);
