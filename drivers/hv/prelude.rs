// SPDX-License-Identifier: GPL-2.0

//! Imports that the services have in common.

pub(crate) use crate::{
    binding::{
        BoundService,
        Device,
        RING, //
    },
    daemon::{
        self,
        DaemonService,
        Next,
        Reason,
        ANSWER_TIMEOUT, //
    },
    dialogue::{
        Late,
        Lost, //
    },
    icmsg::{
        Kind,
        Registration,
        Status,
        Version, //
    },
    session::{
        self,
        Answer,
        Service, //
    },
    transport::Protocol,
    unique::Unique, //
};
pub(crate) use core::convert::Infallible;
pub(crate) use hyperv::{
    channel::{
        Context,
        RingSize,
        Sender, //
    },
    linux::{
        ratelimit::RateLimit,
        time::Deadline,
        workqueue::Run, //
    },
};
pub(crate) use kernel::{
    prelude::*,
    sync::Arc,
    time::Delta, //
};
