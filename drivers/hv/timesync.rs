// SPDX-License-Identifier: GPL-2.0

//! Time synchronisation: the host tells its time; the guest steps its clock when asked to, and
//! offers the host's clock to its own time service as PTP clock `hyperv`.

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
    // Without the PTP clock, the system's is stepped all the same.
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

/// How far the clock has to be behind the host's for `timesync_implicit`, in nanoseconds.
const BEHIND: i64 = 5 * 1_000_000_000;

/// How long the log says nothing more of samples that are ahead: an hour, in units of 100 ns.
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
pub(crate) struct HostClock {
    offset: Atomic<u64>,
    reference: Atomic<u64>,
    /// Leap indicator, and the stratum in the low 8 bits; [`Self::UNKNOWN`] if the sample does not say.
    quality: RwOnce<u32>,
    /// The system's clock is to be stepped.
    steps: Atomic<bool>,
    ahead: Ahead,
}

impl HostClock {
    /// The reference time of no sample: that is 58,000 years after the virtual machine's start.
    const NEVER: u64 = u64::MAX;

    /// No leap indicator and no stratum.
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

    fn set(&self, Sample { offset, reference }: Sample, quality: Option<Quality>) {
        let number = |Quality { leap, stratum }| u32::from(leap) << 8 | u32::from(stratum);
        self.quality.write(quality.map_or(Self::UNKNOWN, number));
        self.offset.store(offset, Relaxed);
        self.reference.store(reference, Release);
    }

    fn forget(&self) {
        // The step was to go by the sample.
        self.steps.store(false, Relaxed);
        self.reference.store(Self::NEVER, Relaxed);
    }

    fn sample(&self) -> Option<Sample> {
        let reference = self.reference.load(Acquire);
        let offset = self.offset.load(Relaxed);
        (reference != Self::NEVER).then_some(Sample { offset, reference })
    }

    /// The host's time less the system's clock, in nanoseconds. Fails where [`ptp::Clock::at`] does.
    pub(crate) fn offset(&self) -> Result<i64, Unreadable> {
        let host = self.at(timer::read_reference_counter())?;
        Ok(host.saturating_sub(time::wall_clock()))
    }

    /// Age of the last sample, in units of 100 ns. `None` if there is no sample, or if the reference time
    /// was set back.
    pub(crate) fn age(&self) -> Option<u64> {
        let sample = self.sample()?;
        sample.age(timer::read_reference_counter()).ok()
    }

    /// What the last sample says of the host's clock.
    pub(crate) fn quality(&self) -> Option<Quality> {
        self.sample()?;
        match self.quality.read() {
            Self::UNKNOWN => None,
            // CAST: Eight bits each.
            quality => Some(Quality {
                leap: (quality >> 8) as u8,
                stratum: quality as u8,
            }),
        }
    }

    /// Number of samples since the device was bound whose reference time was more than 10 ms ahead.
    pub(crate) fn samples_ahead(&self) -> u64 {
        self.ahead.number.load(Relaxed)
    }
}

impl ptp::Clock for HostClock {
    /// Fails if the host has not told its time yet, or if that was too long ago.
    fn at(&self, reference: u64) -> Result<i64, Unreadable> {
        let sample = self.sample().ok_or(Unreadable::NoData)?;
        sample.at(reference).map_err(|_| Unreadable::Stale)
    }
}

/// The samples whose reference time was ahead of the guest's. Times are in units of 100 ns.
struct Ahead {
    number: Atomic<u64>,
    /// How far the last one was ahead.
    last: Atomic<u64>,
    /// Number of which the log has spoken; 0 before.
    said: Atomic<u64>,
    /// Reference time at which it did so last.
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

    /// Counts a sample that came at reference time `now`. Returns whether the log is to say so.
    #[cold]
    fn count(&self, ahead: u64, now: u64) -> bool {
        self.last.store(ahead, Relaxed);
        self.number.fetch_add(1, Relaxed);
        self.is_due(now)
    }

    fn is_due(&self, now: u64) -> bool {
        // A reference time that was set back is a long time, too.
        self.said.load(Relaxed) == 0 || now.wrapping_sub(self.said_at.load(Relaxed)) >= SILENCE
    }

    /// Says it in the log.
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

/// What is done outside the interrupt: it steps the guest's clock to the host's time, and logs.
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
