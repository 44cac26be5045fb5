// SPDX-License-Identifier: GPL-2.0

//! A scenario: its entry in a table, and the context of its function.

use std::ops::Deref;

use host::guest::Error;
use host::guest::Guest;
use host::guest::Module;
use host::guest::Result;
use host::images;
use host::machine::Config;
use host::service::Service;

/// The prefix of an error that means "skipped". The reason follows.
const SKIP: &str = "SKIP ";

/// The environment variable that raises all repetitions if it is 1.
const SLOW: &str = "HV_SLOW";

/// How a machine differs from that of most scenarios.
pub struct Machine {
    /// Scenarios whose machines have the same name share a machine.
    pub name: &'static str,
    /// Changes the usual configuration.
    pub change: fn(&mut Config),
}

impl Machine {
    /// VMBus 5.0, no hibernation (S4), and a device for the sample driver. Each is for some scenario.
    pub const OTHER: Self = Self {
        name: "other",
        change: |config| {
            config.vmbus_max = (5, 0);
            config.s4 = false;
            config.services.push(Service::Echo);
        },
    };

    /// Two processors: one can be busy while the other works, and channels can move between them. Also a device for a
    /// driver other than hv_utils.
    pub const TWO_PROCESSORS: Self = Self {
        name: "two processors",
        change: |config| {
            config.vcpus = 2;
            config.vmbus_max = (6, 0);
            config.services.push(Service::Echo);
        },
    };

    /// Four processors.
    pub const FOUR_PROCESSORS: Self = Self {
        name: "four processors",
        change: |config| config.vcpus = 4,
    };

    /// The programs of `make check-more`.
    pub const MORE: Self = Self {
        name: "more",
        change: |config| config.initrds.push(images::more("amd64")),
    };
}

/// A scenario: one line of a table.
pub struct Scenario {
    name: &'static str,
    run: fn(&Context<'_>) -> Result<()>,
    scripted: &'static [Service],
    expected_log: &'static [&'static str],
    machine: Option<Machine>,
    unloaded: bool,
    ends_guest: bool,
    rust_only: bool,
    by_chance: bool,
    daemons: bool,
    runs: Runs,
}

/// Where `make check` runs a scenario. `make check-debug` runs all but those with [`Runs::More`] and [`Runs::Apart`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Runs {
    /// On the stock kernel, with one processor and the newest VMBus version.
    Once,
    /// As [`Runs::Once`], and with two processors and an old VMBus version. For scenarios in which channels are opened,
    /// closed or rescinded.
    Versions,
    /// Only with two processors. For races.
    Race,
    /// As [`Runs::Versions`], and on each other kernel.
    Everywhere,
    /// In emulated time, which skips idle time (`--time emulated`). For scenarios that wait for minutes.
    Waits,
    /// On the debug kernel. For faults that the stock kernel does not notice.
    DebugKernel,
    /// In `make check-more`, or if the whole name is given. For scenarios for which `make check` has no time.
    More,
    /// Only if the whole name is given. For scenarios that take long, or need images that `make check` does not build.
    Apart,
}

impl Runs {
    /// The flag and its meaning. [`Runs::Once`] has none.
    fn flag(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::Once => None,
            Self::Versions => Some((
                "versions",
                "Runs also with two processors and an old VMBus version: channels are opened, closed or rescinded.",
            )),
            Self::Race => Some(("race", "Runs only with two processors: a race.")),
            Self::Everywhere => Some((
                "everywhere",
                "Runs also with two processors and an old VMBus version, and on each other kernel.",
            )),
            Self::Waits => Some((
                "waits",
                "Runs in emulated time, which skips idle time: the scenario waits for minutes.",
            )),
            Self::DebugKernel => Some((
                "debug_kernel",
                "Runs on the debug kernel: the stock kernel does not notice the fault.",
            )),
            Self::More => Some((
                "more",
                "Runs in make check-more, or if the whole name is given: make check has no time for the scenario.",
            )),
            Self::Apart => Some((
                "apart",
                "Runs only if the whole name is given: takes long, or needs images that make check does not build.",
            )),
        }
    }
}

impl Scenario {
    /// A scenario for both modules that runs [once](Runs::Once).
    pub const fn new(name: &'static str, run: fn(&Context<'_>) -> Result<()>) -> Self {
        Self {
            name,
            run,
            scripted: &[],
            expected_log: &[],
            machine: None,
            unloaded: false,
            ends_guest: false,
            rust_only: false,
            by_chance: false,
            daemons: false,
            runs: Runs::Once,
        }
    }

    /// See [`Runs::Versions`].
    pub const fn versions(self) -> Self {
        self.runs(Runs::Versions)
    }

    /// See [`Runs::Race`].
    pub const fn race(self) -> Self {
        self.runs(Runs::Race)
    }

    /// See [`Runs::Everywhere`].
    pub const fn everywhere(self) -> Self {
        self.runs(Runs::Everywhere)
    }

    /// See [`Runs::Waits`].
    pub const fn waits(self) -> Self {
        self.runs(Runs::Waits)
    }

    /// See [`Runs::DebugKernel`].
    pub const fn debug_kernel(self) -> Self {
        self.runs(Runs::DebugKernel)
    }

    /// See [`Runs::More`].
    pub const fn more(self) -> Self {
        self.runs(Runs::More)
    }

    /// See [`Runs::Apart`].
    pub const fn apart(self) -> Self {
        self.runs(Runs::Apart)
    }

    const fn runs(mut self, runs: Runs) -> Self {
        assert!(matches!(self.runs, Runs::Once), "a scenario has one place");
        self.runs = runs;
        self
    }

    /// The scenario is about the services that have daemons. The scenario acts for these services (see
    /// [`Scenario::scripted`]), and may start the distribution's daemons. The runner kills them afterwards.
    pub const fn daemons(mut self) -> Self {
        self.daemons = true;
        self
    }

    /// The emulated host does nothing for these services: the scenario does. This holds before the module is inserted.
    pub const fn scripted(mut self, services: &'static [Service]) -> Self {
        self.scripted = services;
        self
    }

    /// Expects warnings and errors in the kernel's log that contain one of these texts.
    pub const fn expects_log(mut self, texts: &'static [&'static str]) -> Self {
        self.expected_log = texts;
        self
    }

    /// Runs on this machine instead of the shared one. Costs a boot.
    pub const fn machine(mut self, machine: Machine) -> Self {
        self.machine = Some(machine);
        self
    }

    /// The scenario inserts the module itself: see [`Context::load`].
    pub const fn unloaded(mut self) -> Self {
        self.unloaded = true;
        self
    }

    /// The guest is off or broken afterwards. The next scenario restores the snapshot of the boot, in two seconds.
    pub const fn ends_guest(mut self) -> Self {
        self.ends_guest = true;
        self
    }

    /// C lacks this feature, or does not survive the scenario.
    pub const fn rust_only(mut self) -> Self {
        self.rust_only = true;
        self
    }

    /// The messages depend on chance: the transcripts of the modules are not compared.
    pub const fn by_chance(mut self) -> Self {
        self.by_chance = true;
        self
    }

    /// The scenario's flags as in its table, and the meaning of each.
    pub fn flags(&self) -> Vec<(String, &'static str)> {
        // A new flag has to be added here: each field is named.
        let Self {
            name: _,
            run: _,
            scripted,
            expected_log,
            machine,
            unloaded,
            ends_guest,
            rust_only,
            by_chance,
            daemons,
            runs,
        } = self;
        let machine = machine.as_ref().map(|machine| machine.name);
        let scripted: Vec<&str> = scripted.iter().map(|service| service.name()).collect();
        let set = |is_set: bool, flag: &str| is_set.then(|| flag.to_owned());
        let flags = [
            (
                set(*daemons, "daemons"),
                "The scenario acts for the services that have daemons, and may start the distribution's daemons.",
            ),
            (
                set(!scripted.is_empty(), &format!("scripted({})", scripted.join(", "))),
                "The emulated host does nothing for these services: the scenario does.",
            ),
            (
                set(!expected_log.is_empty(), &format!("expects_log({expected_log:?})")),
                "Warnings and errors in the kernel's log may contain these texts.",
            ),
            (
                machine.map(|name| format!("machine({name:?})")),
                "Runs on this machine instead of the shared one. Costs a boot.",
            ),
            (
                set(*unloaded, "unloaded"),
                "The scenario inserts the module itself.",
            ),
            (
                set(*ends_guest, "ends_guest"),
                "The guest is off or broken afterwards: the next scenario restores the snapshot of the boot.",
            ),
            (
                set(*rust_only, "rust_only"),
                "Does not run with C: C lacks this feature, or does not survive the scenario.",
            ),
            (
                set(*by_chance, "by_chance"),
                "The messages depend on chance: the transcripts of the modules are not compared.",
            ),
        ];
        let place = runs
            .flag()
            .map(|(flag, meaning)| (flag.to_owned(), meaning));
        let flags = flags
            .into_iter()
            .filter_map(|(flag, meaning)| Some((flag?, meaning)));
        place.into_iter().chain(flags).collect()
    }

    /// The scenario's name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Calls the scenario's function.
    pub fn run(&self, context: &Context<'_>) -> Result<()> {
        (self.run)(context)
    }

    /// See [`Scenario::scripted`].
    pub fn scripted_services(&self) -> &'static [Service] {
        self.scripted
    }

    /// See [`Scenario::expects_log`].
    pub fn expected_log(&self) -> &'static [&'static str] {
        self.expected_log
    }

    /// See [`Scenario::machine`].
    pub fn other_machine(&self) -> Option<&Machine> {
        self.machine.as_ref()
    }

    /// See [`Scenario::unloaded`].
    pub fn starts_unloaded(&self) -> bool {
        self.unloaded
    }

    /// See [`Scenario::ends_guest`].
    pub fn is_last(&self) -> bool {
        self.ends_guest
    }

    /// Whether the scenario is for `module`.
    pub fn is_for(&self, module: Module) -> bool {
        module == Module::Rust || !self.rust_only
    }

    /// See [`Scenario::daemons`].
    pub fn needs_daemons(&self) -> bool {
        self.daemons
    }

    /// Where the scenario runs.
    pub fn place(&self) -> Runs {
        self.runs
    }

    /// See [`Scenario::by_chance`].
    pub fn is_by_chance(&self) -> bool {
        self.by_chance
    }
}

/// The context of a scenario's function: the guest, to which it dereferences, and the module under test.
pub struct Context<'a> {
    guest: &'a Guest,
    module: Module,
}

impl<'a> Context<'a> {
    /// Creates a context of a guest and the module under test.
    pub fn new(guest: &'a Guest, module: Module) -> Self {
        Self { guest, module }
    }

    /// The module under test.
    pub fn module(&self) -> Module {
        self.module
    }

    /// Inserts the module.
    pub fn load(&self) -> Result<()> {
        self.guest.insmod(self.module)
    }

    /// Inserts the module with parameters. Not for a built-in driver.
    pub fn load_with(&self, parameters: &str) -> Result<()> {
        self.guest.insmod_with(self.module, parameters)
    }

    /// Removes the module if it is inserted. Retries for 10 seconds: killed programs may still have a device open.
    pub fn unload(&self) -> Result<()> {
        if self.guest.config().built_in {
            return self.guest.rmmod();
        }
        self.guest
            .sh_ok(
                "i=0; until ! grep -q '^hv_utils ' /proc/modules || why=$(rmmod hv_utils 2>&1); do \
                 i=$((i + 1)); [ $i -lt 500 ] || { echo $why; exit 1; }; sleep 0.02; done",
            )
            .map(|_| ())
    }

    /// An error unless `holds` is true. `what` is the claim.
    pub fn check(&self, holds: bool, what: &str) -> Result<()> {
        match holds {
            true => Ok(()),
            false => Err(format!("not so: {what}").into()),
        }
    }

    /// An error unless `got` equals `expected`. `what` names the value.
    pub fn equal<T: PartialEq + std::fmt::Debug>(
        &self,
        what: &str,
        got: T,
        expected: T,
    ) -> Result<()> {
        match got == expected {
            true => Ok(()),
            false => Err(format!("{what}: {got:?} instead of {expected:?}").into()),
        }
    }

    /// An error unless the kernel's log has `text` since the scenario began.
    pub fn log_has(&self, text: &str) -> Result<()> {
        self.check(
            self.guest.kernel_log()?.contains(text),
            &format!("the kernel's log says {text:?}"),
        )
    }

    /// Whether `HV_SLOW=1` is set: the scenario is to try everything, however long it takes.
    pub fn is_slow(&self) -> bool {
        std::env::var_os(SLOW).is_some_and(|value| value == "1")
    }

    /// How often to repeat something: `often`, or `more` if `HV_SLOW=1` is set.
    pub fn often(&self, (often, more): (u64, u64)) -> u64 {
        if self.is_slow() {
            more
        } else {
            often
        }
    }

    /// Ends the scenario as skipped.
    pub fn skip(&self, reason: &str) -> Result<()> {
        Err(skip(reason))
    }
}

impl Deref for Context<'_> {
    type Target = Guest;

    fn deref(&self) -> &Guest {
        self.guest
    }
}

/// The error that skips a scenario.
pub fn skip(reason: &str) -> Error {
    Error(format!("{SKIP}{reason}"))
}

/// The reason for a skip, if the error is one.
pub fn skip_reason(error: &Error) -> Option<&str> {
    error.0.strip_prefix(SKIP)
}
