// SPDX-License-Identifier: GPL-2.0

//! One scenario: its entry in a table, and what its function gets.

use std::ops::Deref;

use host::guest::Error;
use host::guest::Guest;
use host::guest::Module;
use host::guest::Result;
use host::machine::Config;
use host::service::Service;

/// What ended a scenario early without being a failure: it starts the reason.
const SKIP: &str = "SKIP ";

/// Set to 1 in the environment where all that is repeated is to be repeated more often.
const SLOW: &str = "HV_SLOW";

/// How a machine differs from that of most scenarios.
pub struct Machine {
    /// Its name: scenarios with the same share one.
    pub name: &'static str,
    /// Makes the difference.
    pub change: fn(&mut Config),
}

impl Machine {
    /// Differs in all that single scenarios need: VMBus 5.0, no hibernation (S4), and a device for the sample driver.
    pub const OTHER: Self = Self {
        name: "other",
        change: |config| {
            config.vmbus_max = (5, 0);
            config.s4 = false;
            config.services.push(Service::Echo);
        },
    };

    /// One processor can be kept busy while the other one works, and channels can move from one to the other. And a
    /// device for a driver that is not hv_utils.
    pub const TWO_PROCESSORS: Self = Self {
        name: "two processors",
        change: |config| {
            config.vcpus = 2;
            config.vmbus_max = (6, 0);
            config.services.push(Service::Echo);
        },
    };
}

/// A scenario, as one line of a table.
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

/// Where `make check` runs a scenario. `make check-debug` runs all but those that are [`Runs::Apart`] on its kernel.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Runs {
    /// On the kernel that most guests have, with one processor and the newest VMBus.
    Once,
    /// Also with two processors and an old VMBus: channels are opened, closed or rescinded.
    Versions,
    /// Only there: one processor shows less of what happens at the same time.
    Race,
    /// As [`Runs::Versions`], and on each other kernel.
    Everywhere,
    /// In emulated time, in which waiting takes none (`--time emulated`): it waits for minutes.
    Waits,
    /// On the kernel that looks for faults: no other can tell.
    DebugKernel,
    /// Nowhere, unless its name is given: it takes long, or needs what a target of its own makes.
    Apart,
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

    /// See [`Runs::Apart`].
    pub const fn apart(self) -> Self {
        self.runs(Runs::Apart)
    }

    const fn runs(mut self, runs: Runs) -> Self {
        assert!(matches!(self.runs, Runs::Once), "it runs in one place");
        self.runs = runs;
        self
    }

    /// It is about the services that a daemon does the work of: they do nothing by themselves (see
    /// [`Scenario::scripted`]), it starts with the distribution's daemons ready to be started, and leaves none.
    pub const fn daemons(mut self) -> Self {
        self.daemons = true;
        self
    }

    /// These services do nothing by themselves, from before the module is inserted.
    pub const fn scripted(mut self, services: &'static [Service]) -> Self {
        self.scripted = services;
        self
    }

    /// Warnings and errors in the kernel's log with one of these texts belong to the case.
    pub const fn expects_log(mut self, texts: &'static [&'static str]) -> Self {
        self.expected_log = texts;
        self
    }

    /// It is for this machine, not for the one that all others share. Costs a boot.
    pub const fn machine(mut self, machine: Machine) -> Self {
        self.machine = Some(machine);
        self
    }

    /// The module is not inserted yet; see [`Context::load`].
    pub const fn unloaded(mut self) -> Self {
        self.unloaded = true;
        self
    }

    /// The guest is off, or of no further use, afterwards: the next scenario goes on from the snapshot of the boot, which
    /// takes two seconds.
    pub const fn ends_guest(mut self) -> Self {
        self.ends_guest = true;
        self
    }

    /// C cannot do that, or does not survive it.
    pub const fn rust_only(mut self) -> Self {
        self.rust_only = true;
        self
    }

    /// What is said depends on chance: it is not compared between the modules.
    pub const fn by_chance(mut self) -> Self {
        self.by_chance = true;
        self
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Calls it.
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

    /// Whether it is for this module.
    pub fn is_for(&self, module: Module) -> bool {
        module == Module::Rust || !self.rust_only
    }

    /// See [`Scenario::daemons`].
    pub fn needs_daemons(&self) -> bool {
        self.daemons
    }

    /// Where it runs.
    pub fn place(&self) -> Runs {
        self.runs
    }

    /// See [`Scenario::by_chance`].
    pub fn is_by_chance(&self) -> bool {
        self.by_chance
    }
}

/// What a scenario's function gets: the guest (whose methods it has), and which module this is about.
pub struct Context<'a> {
    guest: &'a Guest,
    module: Module,
}

impl<'a> Context<'a> {
    /// A guest and the module under test.
    pub fn new(guest: &'a Guest, module: Module) -> Self {
        Self { guest, module }
    }

    /// Which module this is about.
    pub fn module(&self) -> Module {
        self.module
    }

    /// Inserts the module.
    pub fn load(&self) -> Result<()> {
        self.guest.insmod(self.module)
    }

    /// Inserts the module with parameters.
    pub fn load_with(&self, parameters: &str) -> Result<()> {
        self.guest.insmod_with(self.module, parameters)
    }

    /// Removes the module, if it is inserted; waits for programs that were told to end and still have a device open.
    pub fn unload(&self) -> Result<()> {
        self.guest
            .sh_ok(
                "i=0; until ! grep -q '^hv_utils ' /proc/modules || why=$(rmmod hv_utils 2>&1); do \
                 i=$((i + 1)); [ $i -lt 500 ] || { echo $why; exit 1; }; sleep 0.02; done",
            )
            .map(|_| ())
    }

    /// An error unless `holds`; `what` says what should have been so.
    pub fn check(&self, holds: bool, what: &str) -> Result<()> {
        match holds {
            true => Ok(()),
            false => Err(format!("not so: {what}").into()),
        }
    }

    /// An error unless the two are equal; `what` names them.
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

    /// An error unless the kernel's log (since the scenario began) has this text.
    pub fn log_has(&self, text: &str) -> Result<()> {
        self.check(
            self.guest.kernel_log()?.contains(text),
            &format!("the kernel's log says {text:?}"),
        )
    }

    /// Whether `HV_SLOW=1` is set: everything is to be tried, however long that takes.
    pub fn is_slow(&self) -> bool {
        std::env::var_os(SLOW).is_some_and(|value| value == "1")
    }

    /// How often to do something: the second number where `HV_SLOW=1` is set.
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

/// The error that means that a scenario is skipped.
pub fn skip(reason: &str) -> Error {
    Error(format!("{SKIP}{reason}"))
}

/// The reason for which a scenario was skipped, if that is what its error means.
pub fn skip_reason(error: &Error) -> Option<&str> {
    error.0.strip_prefix(SKIP)
}
