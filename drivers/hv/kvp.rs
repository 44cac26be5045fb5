// SPDX-License-Identifier: GPL-2.0

//! Data exchange (KVP): the host reads and writes key-value pairs and IP settings of the guest,
//! which `hv_kvp_daemon` keeps.

use crate::{
    icmsg::{
        addresses::{
            self,
            Layout,
            Omitted, //
        },
        kvp::{
            self,
            Operation,
            Refusal,
            DAEMON_LEN, //
        },
    },
    parameters::kvp_protocol,
    prelude::*, //
};

/// Constants of the KVP service.
static INFO: daemon::Info = daemon::Info {
    session: session::Info {
        name: "KVP",
        kind: Kind::KVP,
        frameworks: &[Version::new(3, 0), Version::new(1, 0)],
        versions: &[
            Version::new(5, 0),
            Version::new(4, 0),
            Version::new(3, 0),
            Version::new(1, 0),
        ],
        newest: Some(&kvp_protocol),
    },
    ring: RING,
    // The host sets keys and IP settings right after the negotiation, once. It waits.
    waits_for_daemon: true,
    unique: Unique::new(),
    protocol: Protocol {
        device: c"vmbus/hv_kvp",
        answer_len: DAEMON_LEN,
        message_len: DAEMON_LEN,
        register: kvp::registration,
        confirm: |registration, message| Some(kvp::confirm(registration, message)),
        connected: |_| {},
    },
};

/// Binds the service to its device.
pub(crate) fn bind<'bound>(dev: &'bound Device<'_>) -> Result<BoundService<'bound>> {
    let service = Kvp {
        layout: Layout::Text,
        until: Deadline::after(ANSWER_TIMEOUT),
        is_asked_again: false,
        told: Ok(Omitted::default()),
        limit: KBox::pin_init(RateLimit::new(c"hv_utils"), GFP_KERNEL)?,
    };
    BoundService::open_with_daemon(dev, &INFO, KBox::new(service, GFP_KERNEL)?, None)
}

/// The KVP service.
struct Kvp {
    /// How the request that is worked on has addresses.
    layout: Layout,
    /// Until when that request waits for a daemon.
    until: Deadline,
    /// The daemon has gone over that request: the next one is asked, once.
    is_asked_again: bool,
    /// What the last GET_IP_INFO told the host. Hosts poll: the log has a line if this changes.
    told: Result<Omitted, addresses::Error>,
    /// Of what host and daemon can have logged.
    limit: Pin<KBox<RateLimit>>,
}

impl Kvp {
    /// Asks the daemon about the request in `body`, or waits for a daemon.
    fn ask_daemon(&self, body: &[u8], daemon: Option<Registration>, message: &mut [u8]) -> Next {
        let Some(message) = message.first_chunk_mut() else {
            return Next::Answer(Status::FAIL);
        };
        let Some(daemon) = daemon else {
            return Next::Wait { until: self.until };
        };
        match kvp::to_daemon(self.layout, body, daemon, message) {
            Ok(()) => Next::Ask {
                len: DAEMON_LEN,
                timeout: ANSWER_TIMEOUT,
                late: Late::Dropped,
            },
            Err(refusal) => {
                if let Some(why) = refusal.why {
                    self.log_failure(body, refusal.status, why);
                }
                Next::Answer(refusal.status)
            }
        }
    }

    /// Logs what the status does not say of the request in `body`.
    fn log_failure(&self, body: &[u8], Status(status): Status, why: addresses::Error) {
        if self.limit.as_ref().allows() {
            pr_warn!(
                "KVP: {}: {} fails, status {:#x}\n",
                format_args!("{why}"),
                Operation::parse(body).map_or("it", Operation::name),
                status
            );
        }
    }

    /// Logs what the guest's addresses lack, or why the host gets none, unless the last ones were so too.
    fn log_addresses(&mut self, body: &[u8], told: Result<Omitted, addresses::Error>) {
        if told == self.told {
            return;
        }
        self.told = told;
        match told {
            Err(why) => self.log_failure(body, Status::FAIL, why),
            Ok(omitted) if omitted != Omitted::default() && self.limit.as_ref().allows() => {
                pr_warn!("KVP: GET_IP_INFO: {}\n", format_args!("{omitted}"));
            }
            Ok(_) => {}
        }
    }
}

impl DaemonService for Kvp {
    fn ask(
        &mut self,
        version: Version,
        body: &mut [u8],
        daemon: Option<Registration>,
        message: &mut [u8],
    ) -> Next {
        self.layout = Layout::of(version);
        self.until = Deadline::after(ANSWER_TIMEOUT);
        self.is_asked_again = false;
        self.ask_daemon(body, daemon, message)
    }

    fn resume(
        &mut self,
        body: &mut [u8],
        daemon: Option<Registration>,
        message: &mut [u8],
    ) -> Next {
        self.ask_daemon(body, daemon, message)
    }

    fn answered(&mut self, body: &mut [u8], daemon: Registration, answer: &[u8]) -> Next {
        let result = match answer.first_chunk() {
            Some(answer) => kvp::from_daemon(self.layout, daemon, answer, body),
            None => Err(Status::FAIL.into()),
        };
        let (status, told) = match result {
            Ok(omitted) => (Status::OK, omitted.map(Ok)),
            Err(Refusal { status, why }) => (status, why.map(Err)),
        };
        if let Some(told) = told {
            self.log_addresses(body, told);
        }
        Next::Answer(match status {
            // The last daemon has deleted it.
            Status::NO_MORE_ITEMS if self.is_asked_again && kvp::is_delete(body) => Status::OK,
            status => status,
        })
    }

    fn unanswered(&mut self, _: &mut [u8], _: Lost, reason: Reason) -> Next {
        // The last daemon may have done it: repeating is harmless.
        if reason != Reason::Gone || self.is_asked_again {
            return Next::Answer(Status::FAIL);
        }
        self.is_asked_again = true;
        Next::Wait { until: self.until }
    }
}
