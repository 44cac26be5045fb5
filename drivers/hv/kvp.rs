// SPDX-License-Identifier: GPL-2.0

//! Data exchange (KVP): the host reads and writes key-value pairs and IP settings of the guest.
//! `hv_kvp_daemon` stores them.

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
use core::fmt;

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
    // The host sends keys and IP settings once, as soon as the negotiation is answered. So answer
    // the negotiation when there is a daemon.
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
        told: Ok(Omitted::NOTHING),
        limit: KBox::pin_init(RateLimit::new(c"hv_utils"), GFP_KERNEL)?,
    };
    BoundService::open_with_daemon(dev, &INFO, KBox::new(service, GFP_KERNEL)?, None)
}

/// The KVP service.
struct Kvp {
    /// Layout of IP settings in the current request.
    layout: Layout,
    /// Time until which the current request waits for a daemon.
    until: Deadline,
    /// The daemon has gone before it answered the current request. The next daemon is asked, once.
    is_asked_again: bool,
    /// The last logged result of GET_IP_INFO. Hosts poll, so only a changed result is logged.
    told: Result<Omitted, addresses::Error>,
    /// Limits the lines that the host or the daemon can cause.
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
                match refusal.why {
                    Some(why) => self.fail(body, refusal.status, &why),
                    None => self.fail(body, refusal.status, &session::MALFORMED),
                };
                Next::Answer(refusal.status)
            }
        }
    }

    /// Logs why the request in `body` fails. Returns false if the limit suppressed the line.
    fn fail(&self, body: &[u8], status: Status, why: &dyn fmt::Display) -> bool {
        // `NO_MORE_ITEMS`, for example at the end of an enumeration, is not a failure.
        if !status.is_failure() {
            return true;
        }
        let request = Operation::parse(body).map_or("the request", Operation::name);
        session::log_failure(self.limit.as_ref(), "KVP", why, request, status)
    }

    /// Logs why GET_IP_INFO failed, or which information the answer lacks, if this result differs
    /// from the last logged result. If the limit suppresses the line, the next GET_IP_INFO tries
    /// again.
    fn log_addresses(&mut self, body: &[u8], told: Result<Omitted, addresses::Error>) {
        if told == self.told {
            return;
        }
        let is_logged = match told {
            Err(why) => self.fail(body, Status::FAIL, &why),
            Ok(Omitted::NOTHING) => true,
            Ok(omitted) => {
                let is_allowed = self.limit.as_ref().allows();
                if is_allowed {
                    pr_notice!("KVP: GET_IP_INFO: {}\n", format_args!("{omitted}"));
                }
                is_allowed
            }
        };
        if is_logged {
            self.told = told;
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
            Err(Refusal { status, why }) => {
                if why.is_none() {
                    self.fail(body, status, &"the daemon failed");
                }
                (status, why.map(Err))
            }
        };
        if let Some(told) = told {
            self.log_addresses(body, told);
        }
        Next::Answer(match status {
            // The previous daemon has deleted the key.
            Status::NO_MORE_ITEMS if self.is_asked_again && kvp::is_delete(body) => Status::OK,
            status => status,
        })
    }

    fn unanswered(&mut self, body: &mut [u8], _: Lost, reason: Reason) -> Next {
        // The daemon may have handled the request before it has gone. Repeating the request is
        // harmless.
        if reason != Reason::Gone || self.is_asked_again {
            self.fail(body, Status::FAIL, &reason.name());
            return Next::Answer(Status::FAIL);
        }
        self.is_asked_again = true;
        Next::Wait { until: self.until }
    }

    fn overdue(&mut self, body: &mut [u8]) -> Status {
        self.fail(body, Status::FAIL, &"no daemon that can be asked");
        Status::FAIL
    }
}
