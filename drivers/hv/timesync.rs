// SPDX-License-Identifier: GPL-2.0

//! Time synchronisation: the host tells its time; the guest steps its clock when asked to, and
//! offers the host's clock to its own time service as PTP clock `hyperv`.

use crate::{
    icmsg::timesync::{
        Sample,
        TimeSync as Message, //
    },
    parameters::timesync_implicit,
    prelude::*, //
};
use hyperv::{
    linux::time,
    ptp::{
        self,
        Clock,
        Unreadable, //
    },
    timer, //
};
use kernel::sync::atomic::{
    Acquire,
    Atomic,
    Relaxed,
    Release, //
};

static INFO: session::Info = session::Info {
    name: "TimeSync",
    kind: Kind::TIMESYNC,
    frameworks: &[Version::new(3, 0), Version::new(1, 0)],
    versions: &[Version::new(4, 0), Version::new(3, 0), Version::new(1, 0)],
};

/// Binds the service to its device.
pub(crate) fn bind<'bound>(dev: &'bound Device<'_>) -> Result<BoundService<'bound>> {
    static UNIQUE: Unique = Unique::new();
    let claim = UNIQUE.claim(dev)?;
    let host = Arc::new(HostClock::new(), GFP_KERNEL)?;
    let step = StepClock {
        host: host.clone(),
        limit: KBox::pin_init(RateLimit::new(c"hv_utils"), GFP_KERNEL)?,
    };
    // Without the PTP clock, the system's is stepped all the same.
    let ptp = ptp::Registration::new(dev.as_ref(), c"hyperv", host.clone())
        .inspect_err(|error| pr_err!("cannot register PTP clock: {:?}\n", error))
        .ok();
    let job = KBox::new(step, GFP_KERNEL)?;
    let bound = BoundService::open(dev, RING, TimeSync { host }, Some(job))?;
    Ok(BoundService {
        _ptp: ptp,
        _claim: Some(claim),
        ..bound
    })
}

/// How far the clock has to be behind the host's for `timesync_implicit`, in nanoseconds.
const BEHIND: i64 = 5 * 1_000_000_000;

/// The time synchronisation service.
struct TimeSync {
    host: Arc<HostClock>,
}

impl Service for TimeSync {
    const CONTEXT: Context = Context::Interrupt;

    type Action = Message;
    type Later = Infallible;

    fn info(&self) -> &'static session::Info {
        &INFO
    }

    fn answer(&mut self, version: Version, body: &mut [u8]) -> Answer<Self::Action> {
        match Message::parse(version, body, timer::read_reference_counter()) {
            Some(message) => Answer::Now(Status::OK, Some(message)),
            None => Answer::Now(Status::FAIL, None),
        }
    }

    fn act(&mut self, action: Self::Action, sender: &Sender<'_>) {
        let Message { sample, sync } = action;
        self.host.set(sample);

        let is_behind = || {
            let host = self.host.at(timer::read_reference_counter());
            host.is_ok_and(|host| host.saturating_sub(time::wall_clock()) >= BEHIND)
        };
        if sync || (timesync_implicit.get() && is_behind()) {
            sender.defer();
        }
    }

    fn restarted(&mut self) -> Option<Infallible> {
        // The reference time may have stood still meanwhile, and the sample with it.
        self.host.forget();
        None
    }
}

/// The host's clock, as far as its last sample tells.
///
/// There is no lock. `set()` writes the offset before the reference time, and readers load them in the
/// other order. So a reader may pair a new offset with an older reference time, which is harmless, and
/// never the reverse.
struct HostClock {
    offset: Atomic<u64>,
    reference: Atomic<u64>,
}

impl HostClock {
    /// The reference time of no sample: that is 58,000 years after the virtual machine's start.
    const NEVER: u64 = u64::MAX;

    fn new() -> Self {
        Self {
            offset: Atomic::new(0),
            reference: Atomic::new(Self::NEVER),
        }
    }

    fn set(&self, Sample { offset, reference }: Sample) {
        self.offset.store(offset, Relaxed);
        self.reference.store(reference, Release);
    }

    fn forget(&self) {
        self.reference.store(Self::NEVER, Relaxed);
    }

    fn sample(&self) -> Option<Sample> {
        let reference = self.reference.load(Acquire);
        let offset = self.offset.load(Relaxed);
        (reference != Self::NEVER).then_some(Sample { offset, reference })
    }
}

impl ptp::Clock for HostClock {
    /// Fails if the host has not told its time yet, or if that was too long ago.
    fn at(&self, reference: u64) -> Result<i64, Unreadable> {
        let sample = self.sample().ok_or(Unreadable::NoData)?;
        sample.at(reference).map_err(|_| Unreadable::Stale)
    }
}

/// Steps the guest's clock to the host's time.
struct StepClock {
    host: Arc<HostClock>,
    limit: Pin<KBox<RateLimit>>,
}

impl Run for StepClock {
    fn run(&self) {
        let host = self.host.at(timer::read_reference_counter());
        let result = host.map_err(Error::from).and_then(time::set_wall_clock);
        if let Err(error) = result {
            if self.limit.as_ref().allows() {
                pr_warn!("TimeSync: clock not set: {:?}\n", error);
            }
        }
    }
}
