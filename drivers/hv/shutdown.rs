// SPDX-License-Identifier: GPL-2.0

//! Shutdown: the host has the guest power off, restart or hibernate.

use crate::{
    icmsg::shutdown::{
        Operation,
        Shutdown as Message, //
    },
    prelude::*, //
};
use hyperv::{
    linux::reboot,
    vmbus, //
};
use kernel::sync::aref::ARef;

static INFO: session::Info = session::Info {
    name: "Shutdown",
    kind: Kind::SHUTDOWN,
    frameworks: &[Version::new(3, 0), Version::new(1, 0)],
    versions: &[
        Version::new(3, 2),
        Version::new(3, 1),
        Version::new(3, 0),
        Version::new(1, 0),
    ],
    newest: None,
};

/// Binds the service to its device.
pub(crate) fn bind<'bound>(dev: &'bound Device<'_>) -> Result<BoundService<'bound>> {
    let service = Shutdown {
        limit: KBox::pin_init(RateLimit::new(c"hv_utils"), GFP_KERNEL)?,
        can_hibernate: vmbus::is_hibernation_supported(),
    };
    let event = HibernateEvent {
        device: (&***dev).into(),
        limit: KBox::pin_init(RateLimit::new(c"hv_utils"), GFP_KERNEL)?,
    };
    BoundService::open(dev, RING, service, Some(KBox::new(event, GFP_KERNEL)?))
}

/// The shutdown service.
struct Shutdown {
    /// Of requests in the log.
    limit: Pin<KBox<RateLimit>>,
    can_hibernate: bool,
}

impl Service for Shutdown {
    // A request is logged with a text of the host's: consoles may take long for that.
    const CONTEXT: Context = Context::Softirq;

    type Action = Operation;
    type Later = Infallible;

    // The line of the request has the status.
    const REFUSAL: Option<&'static str> = None;

    fn info(&self) -> &'static session::Info {
        &INFO
    }

    fn answer(&mut self, _: Version, body: &mut [u8]) -> Answer<Self::Action> {
        let message = Message::parse(body);
        let operation = message.as_ref().and_then(|message| message.operation);
        let status = match operation {
            Some(Operation::Hibernate) if !self.can_hibernate => Status::FAIL,
            Some(_) => Status::OK,
            None => Status::FAIL,
        };
        if self.limit.as_ref().allows() {
            log(message.as_ref(), status);
        }
        Answer::Now(status, operation)
    }

    fn act(&mut self, action: Self::Action, sender: &Sender<'_>) {
        match action {
            Operation::PowerOff => reboot::orderly_poweroff(),
            Operation::Restart => reboot::orderly_reboot(),
            Operation::Hibernate => sender.defer(),
        }
    }
}

/// Tells user space that the host wants the guest to hibernate; doing it is a matter of policy.
struct HibernateEvent {
    device: ARef<vmbus::Device>,
    limit: Pin<KBox<RateLimit>>,
}

impl Run for HibernateEvent {
    fn run(&self) {
        let result = self.device.uevent_change(c"EVENT=hibernate");
        if !self.limit.as_ref().allows() {
            return;
        }
        match result {
            Ok(()) => pr_info!("Sent hibernation uevent\n"),
            Err(error) => pr_err!("hibernation uevent not sent: {:?}\n", error),
        }
    }
}

/// Logs a request, and its status: the text is the host's, and last.
fn log(message: Option<&Message<'_>>, Status(status): Status) {
    let Some(message) = message else {
        pr_info!(
            "Shutdown request received - Invalid request, status {:#x}\n",
            status
        );
        return;
    };
    pr_info!(
        "{}, status {:#x}, forced {}, reason {:#x}, timeout {} s, text \"{}\"\n",
        match message.operation {
            Some(Operation::PowerOff) => "Shutdown request received - graceful shutdown initiated",
            Some(Operation::Restart) => "Restart request received - graceful restart initiated",
            Some(Operation::Hibernate) => "Hibernation request received",
            None => "Shutdown request received - Invalid request",
        },
        status,
        message.force,
        message.reason,
        message.timeout,
        format_args!("{}", message.text)
    );
}
