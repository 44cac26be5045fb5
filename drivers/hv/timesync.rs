// SPDX-License-Identifier: GPL-2.0

//! Time synchronisation: the host sends samples of its time. The guest steps its clock if the host
//! asks for it, and offers the host's clock to user space as the PTP clock `hyperv`.

use crate::{
    icmsg::timesync::{
        Quality,
        Sample,
        TimeSync as Message, //
    },
    parameters::timesync_implicit,
    prelude::*, //
};
use hyperv::{
    linux::{
        rwonce::RwOnce,
        time, //
    },
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

/// Constants of the time synchronisation service.
static INFO: session::Info = session::Info {
    name: "TimeSync",
    kind: Kind::TIMESYNC,
    frameworks: &[Version::new(3, 0), Version::new(1, 0)],
    versions: &[Version::new(4, 0), Version::new(3, 0), Version::new(1, 0)],
    newest: None,
};

/// Binds the service to its device.
pub(crate) fn bind<'bound>(dev: &'bound Device<'_>) -> Result<BoundService<'bound>> {
    static UNIQUE: Unique = Unique::new();
    let claim = UNIQUE.claim(dev)?;
    let host = Arc::new(HostClock::new(), GFP_KERNEL)?;
    let later = Later {
        host: host.clone(),
        limit: KBox::pin_init(RateLimit::new(c"hv_utils"), GFP_KERNEL)?,
    };
    // If the PTP clock cannot be registered, the service still steps the system clock.
    let ptp = ptp::Registration::new(dev.as_ref(), c"hyperv", host.clone())
        .inspect_err(|error| pr_err!("cannot register PTP clock: {:?}\n", error))
        .ok();
    let job = KBox::new(later, GFP_KERNEL)?;
    let bound = BoundService::open(dev, RING, TimeSync { host: host.clone() }, Some(job))?;
    Ok(BoundService {
        _ptp: ptp,
        _claim: Some(claim),
        host_clock: Some(host),
        ..bound
    })
}

/// With `timesync_implicit`, the system clock is stepped if it is this far behind the host's clock,
/// in nanoseconds.
const BEHIND: i64 = 5 * 1_000_000_000;

/// Minimum time between two log messages about samples that are ahead: an hour, in units of 100 ns.
const SILENCE: u64 = 3600 * 10_000_000;

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
        let Message {
            sample,
            sync,
            quality,
            ahead,
        } = action;
        self.host.set(sample, quality);

        let is_behind = || self.host.offset().is_ok_and(|offset| offset >= BEHIND);
        let steps = sync || (timesync_implicit.get() && is_behind());
        if steps {
            self.host.steps.store(true, Release);
        }
        let says = ahead != 0 && self.host.ahead.count(ahead, sample.reference);
        if steps || says {
            sender.defer();
        }
    }

    fn restarted(&mut self) -> Option<Infallible> {
        // The virtual machine may have been saved or hibernated. The reference time then has
        // stopped or begun anew, so the last sample may be wrong.
        self.host.forget();
        None
    }
}

/// The host's clock, according to the last sample.
///
/// There is no lock. `set()` writes the offset before the reference time, and readers load them in
/// reverse order. So a reader may combine a new offset with an older reference time, which is
/// harmless, but never an old offset with a newer reference time.
pub(crate) struct HostClock {
    /// See [`Sample::offset`].
    offset: Atomic<u64>,
    /// See [`Sample::reference`]. [`Self::NEVER`] if there is no sample.
    reference: Atomic<u64>,
    /// The leap indicator in the high bits, and the stratum in the low 8 bits. [`Self::UNKNOWN`] if
    /// the sample does not contain them.
    quality: RwOnce<u32>,
    /// Whether the system clock shall be stepped.
    steps: Atomic<bool>,
    ahead: Ahead,
}

impl HostClock {
    /// The reference time if there is no sample. The real reference time reaches this value 58,000
    /// years after the start of the virtual machine.
    const NEVER: u64 = u64::MAX;

    /// Stands for an unknown leap indicator and stratum.
    const UNKNOWN: u32 = u32::MAX;

    fn new() -> Self {
        Self {
            offset: Atomic::new(0),
            reference: Atomic::new(Self::NEVER),
            quality: RwOnce::new(Self::UNKNOWN),
            steps: Atomic::new(false),
            ahead: Ahead::new(),
        }
    }

    /// Stores a sample.
    fn set(&self, Sample { offset, reference }: Sample, quality: Option<Quality>) {
        let number = |Quality { leap, stratum }| u32::from(leap) << 8 | u32::from(stratum);
        self.quality.write(quality.map_or(Self::UNKNOWN, number));
        self.offset.store(offset, Relaxed);
        self.reference.store(reference, Release);
    }

    /// Forgets the last sample.
    fn forget(&self) {
        // A pending step would use the sample.
        self.steps.store(false, Relaxed);
        self.reference.store(Self::NEVER, Relaxed);
    }

    /// Returns the last sample.
    fn sample(&self) -> Option<Sample> {
        let reference = self.reference.load(Acquire);
        let offset = self.offset.load(Relaxed);
        (reference != Self::NEVER).then_some(Sample { offset, reference })
    }

    /// Returns the host's time minus the system's time, in nanoseconds.
    ///
    /// Fails as [`ptp::Clock::at`] does.
    pub(crate) fn offset(&self) -> Result<i64, Unreadable> {
        let host = self.at(timer::read_reference_counter())?;
        Ok(host.saturating_sub(time::wall_clock()))
    }

    /// Returns the age of the last sample, in units of 100 ns. Returns `None` without a sample, or
    /// if the reference time was set back.
    pub(crate) fn age(&self) -> Option<u64> {
        let sample = self.sample()?;
        sample.age(timer::read_reference_counter()).ok()
    }

    /// Returns the quality of the host's clock in the last sample. Returns `None` without a sample,
    /// or if the sample does not contain the quality.
    pub(crate) fn quality(&self) -> Option<Quality> {
        self.sample()?;
        match self.quality.read() {
            Self::UNKNOWN => None,
            // CAST: Both numbers have 8 bits.
            quality => Some(Quality {
                leap: (quality >> 8) as u8,
                stratum: quality as u8,
            }),
        }
    }

    /// Returns the number of samples, since the device was bound, whose reference time was more
    /// than 10 ms ahead.
    pub(crate) fn samples_ahead(&self) -> u64 {
        self.ahead.number.load(Relaxed)
    }
}

impl ptp::Clock for HostClock {
    /// Fails with [`Unreadable::NoData`] without a sample, or with [`Unreadable::Stale`] if the
    /// sample is too old.
    fn at(&self, reference: u64) -> Result<i64, Unreadable> {
        let sample = self.sample().ok_or(Unreadable::NoData)?;
        sample.at(reference).map_err(|_| Unreadable::Stale)
    }
}

/// Samples whose reference time was ahead of the guest's. Times are in units of 100 ns.
struct Ahead {
    /// The number of such samples.
    number: Atomic<u64>,
    /// How far the last such sample was ahead.
    last: Atomic<u64>,
    /// The number that was logged last; 0 if none was logged.
    said: Atomic<u64>,
    /// The reference time of the last log message.
    said_at: Atomic<u64>,
}

impl Ahead {
    const fn new() -> Self {
        Self {
            number: Atomic::new(0),
            last: Atomic::new(0),
            said: Atomic::new(0),
            said_at: Atomic::new(0),
        }
    }

    /// Counts a sample that was received at reference time `now`. Returns whether a log message is
    /// due.
    #[cold]
    fn count(&self, ahead: u64, now: u64) -> bool {
        self.last.store(ahead, Relaxed);
        self.number.fetch_add(1, Relaxed);
        self.is_due(now)
    }

    /// Returns whether enough time has passed since the last log message.
    fn is_due(&self, now: u64) -> bool {
        // If the reference time was set back, the difference is huge.
        self.said.load(Relaxed) == 0 || now.wrapping_sub(self.said_at.load(Relaxed)) >= SILENCE
    }

    /// Logs the number of samples that were ahead, if a log message is due.
    fn log(&self) {
        let number = self.number.load(Relaxed);
        let now = timer::read_reference_counter();
        if number == self.said.load(Relaxed) || !self.is_due(now) {
            return;
        }
        self.said.store(number, Relaxed);
        self.said_at.store(now, Relaxed);
        pr_warn!(
            "TimeSync: samples ahead of the reference time: {}, the last one by {} ms\n",
            number,
            self.last.load(Relaxed) / 10_000
        );
    }
}

/// The channel's job, for work that must not be done in the interrupt: logs, and steps the system
/// clock to the host's time.
struct Later {
    host: Arc<HostClock>,
    limit: Pin<KBox<RateLimit>>,
}

impl Run for Later {
    fn run(&self) {
        self.host.ahead.log();
        if !self.host.steps.xchg(false, Acquire) {
            return;
        }
        let host = self.host.at(timer::read_reference_counter());
        let result = host.map_err(Error::from).and_then(time::set_wall_clock);
        if let Err(error) = result {
            if self.limit.as_ref().allows() {
                pr_warn!("TimeSync: clock not set: {:?}\n", error);
            }
        }
    }
}
