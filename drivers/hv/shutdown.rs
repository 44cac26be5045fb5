// SPDX-License-Identifier: GPL-2.0

//! Shutdown: the host asks the guest to power off, restart or hibernate.

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

/// Constants of the shutdown service.
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
    /// Limits the lines that the host can cause.
    limit: Pin<KBox<RateLimit>>,
    /// Whether the virtual machine supports hibernation.
    can_hibernate: bool,
}

impl Service for Shutdown {
    // Each request is logged with a text from the host, and consoles are slow.
    const CONTEXT: Context = Context::Softirq;

    type Action = Operation;
    type Later = Infallible;

    // `answer()` logs the request with its status.
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

/// Tells user space that the host asks for hibernation. Whether and how to hibernate is up to user
/// space.
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

/// Logs a request and the status of its answer. The text from the host comes last.
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
