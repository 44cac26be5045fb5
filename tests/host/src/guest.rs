// SPDX-License-Identifier: GPL-2.0

//! A running guest, as scenarios use it: commands by its agent, and a handle for each
//! service's channel.
//!
//! Every wait has a time-out and fails with an error that names what it waited for; the time-outs only protect against
//! hangs, so they are generous (the guest may be emulated twice over).

use std::fmt;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;

use crate::guid::Guid;
use crate::ic::device::Device;
use crate::ic::device::State;
use crate::ic::device::Statistics;
use crate::ic::device::Versions;
use crate::ic::frame;
use crate::ic::frame::Message;
use crate::ic::frame::Rejection;
use crate::ic::kvp;
use crate::ic::Moment;
use crate::ic::E_NO_MORE_ITEMS;
use crate::ic::S_OK;
use crate::machine::Config;
use crate::machine::Exit;
use crate::machine::Machine;
use crate::mailbox;
use crate::ring::Indices;
use crate::ring::RingError;
use crate::ring::Word;
use crate::service::Service;
use crate::service::Version;
use crate::snapshot::Snapshot;
use crate::vmbus::bus::Bus;
use crate::vmbus::bus::Connection;
use crate::vmbus::packet::Packet;

/// How long anything may take before it counts as hanging.
pub const TIMEOUT: Duration = Duration::from_secs(60);
/// How long a guest may take to boot.
pub const BOOT_TIMEOUT: Duration = Duration::from_secs(180);

/// What the guest's agent sends as it starts.
const AGENT_READY: u8 = 2;
/// What it sends when a command line has run.
const AGENT_DONE: u8 = 1;

/// What went wrong, in one line (and perhaps what the console said).
#[derive(Debug, Clone)]
pub struct Error(pub String);

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

impl From<String> for Error {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl From<&str> for Error {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        Self(error.to_string())
    }
}

impl From<RingError> for Error {
    fn from(error: RingError) -> Self {
        Self(error.to_string())
    }
}

/// The result of everything here.
pub type Result<T> = std::result::Result<T, Error>;

/// What a command in the guest gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Its exit status.
    pub status: i32,
    /// What it printed, without the last line feed.
    pub text: String,
}

/// Which module answers for the services.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Module {
    /// The project's.
    Rust,
    /// The kernel's own.
    C,
}

impl Module {
    /// "rust" or "c".
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rust => "rust",
            Self::C => "c",
        }
    }

    /// The parameters with which it serves all that it can. The guest's kernel has `uio_hv_generic` for file copy, too.
    pub const fn parameters(self) -> &'static str {
        match self {
            Self::Rust => "fcopy_chardev=1",
            Self::C => "",
        }
    }
}

/// A guest that has booted up to its agent.
pub struct Guest {
    machine: Machine,
    boot_time: Duration,
    /// A command line runs, and has not ended: the agent takes no other.
    busy: AtomicBool,
}

impl Guest {
    /// Boots a machine and waits for the guest's agent.
    pub fn boot(config: &Config) -> Result<Self> {
        let mut guest = Self {
            machine: Machine::new(config.clone())?,
            boot_time: Duration::ZERO,
            busy: AtomicBool::new(false),
        };
        guest.restart()?;
        Ok(guest)
    }

    /// Switches the machine off and on and waits for the agent, as after [`Exit::Reset`].
    pub fn restart(&mut self) -> Result<()> {
        let start = Instant::now();
        self.busy.store(false, Ordering::Relaxed);
        self.machine.power_on()?;
        self.read_agent("the guest's agent", BOOT_TIMEOUT, |buffer| {
            let at = buffer.iter().position(|byte| *byte == AGENT_READY)?;
            buffer.drain(..=at);
            Some(())
        })?;
        self.boot_time = start.elapsed();
        Ok(())
    }

    /// Takes a snapshot of the machine, and goes on. An error if a channel is in use.
    pub fn save(&mut self) -> Result<Snapshot> {
        Ok(self.machine.save()?)
    }

    /// Goes on from a snapshot instead of booting, whatever became of the guest meanwhile. Its wall clock is set to the
    /// host's, as the agent of a real guest would do at once.
    pub fn restore(&mut self, snapshot: &Snapshot) -> Result<()> {
        self.machine.restore(snapshot)?;
        self.busy.store(false, Ordering::Relaxed);
        let now = self.moment().wall - crate::ic::UNIX_EPOCH_1601;
        self.sh_ok(&format!("date -s @{}", now / 10_000_000))
            .map(|_| ())
    }

    /// How long the last boot took, from power-on to the agent.
    pub fn boot_time(&self) -> Duration {
        self.boot_time
    }

    /// What the machine is made of.
    pub fn config(&self) -> &Config {
        self.machine.config()
    }

    fn read_agent<R>(
        &self,
        what: &str,
        timeout: Duration,
        mut take: impl FnMut(&mut Vec<u8>) -> Option<R>,
    ) -> Result<R> {
        let shared = self.machine.shared();
        let result = shared.wait_ports(timeout, |ports| match take(ports.agent()) {
            Some(result) => Some(Some(result)),
            None => shared.exit().map(|_| None),
        });
        match result {
            Some(Some(result)) => Ok(result),
            Some(None) => Err(self.error(&format!(
                "the machine stopped ({:?}) while waiting for {what}",
                shared.exit()
            ))),
            None => Err(self.error(&format!("waited {timeout:?} in vain for {what}"))),
        }
    }

    /// An error with the processors' whereabouts and the console's last lines.
    fn error(&self, text: &str) -> Error {
        let crash = self.machine.shared().crash();
        let crash = crash.map(|crash| format!("\n{crash}")).unwrap_or_default();
        let text = &format!("{text}{crash}\n{}", self.machine.describe_processors());
        let console = self.console();
        let lines: Vec<&str> = console.lines().collect();
        let tail = lines[lines.len().saturating_sub(15)..].join("\n    ");
        match tail.is_empty() {
            true => Error(text.to_owned()),
            false => Error(format!("{text}; the console's last lines:\n    {tail}")),
        }
    }

    /// Runs a shell command line in the guest.
    pub fn sh(&self, command: &str) -> Result<Output> {
        self.sh_within(command, TIMEOUT)
    }

    /// Runs a shell command line that may take long.
    pub fn sh_within(&self, command: &str, timeout: Duration) -> Result<Output> {
        self.sh_start(command)?;
        self.read_agent(&format!("`{command}` in the guest"), timeout, |buffer| {
            let at = buffer.iter().position(|byte| *byte == AGENT_DONE)?;
            buffer.drain(..=at);
            Some(())
        })?;
        self.busy.store(false, Ordering::Relaxed);
        let (status, output) = mailbox::take_answer(self.machine.shared().memory())?;
        let text = String::from_utf8_lossy(&output);
        Ok(Output {
            status,
            text: text.trim_end_matches('\n').to_owned(),
        })
    }

    /// Starts a command line without waiting for it; for commands that end the guest.
    pub fn sh_start(&self, command: &str) -> Result<()> {
        let shared = self.machine.shared();
        if self.busy.swap(true, Ordering::Relaxed) {
            return Err(format!("no `{command}` in the guest: another command hangs there").into());
        }
        mailbox::put_command(shared.memory(), command)?;
        shared.ports().send_to_agent(b"\n");
        self.machine.update_lines();
        Ok(())
    }

    /// Runs a command that must succeed; gives what it printed.
    pub fn sh_ok(&self, command: &str) -> Result<String> {
        let output = self.sh(command)?;
        match output.status {
            0 => Ok(output.text),
            status => {
                Err(format!("`{command}` in the guest: status {status}: {}", output.text).into())
            }
        }
    }

    /// The kernel's log, without time stamps' surroundings: as dmesg prints it.
    pub fn kernel_log(&self) -> Result<String> {
        self.sh_ok("dmesg")
    }

    /// Forgets the kernel's log, so that the next [`Guest::kernel_log`] is about what comes now.
    pub fn clear_kernel_log(&self) -> Result<()> {
        self.sh_ok("dmesg -c >/dev/null").map(|_| ())
    }

    /// Inserts a module from the initramfs, with parameters.
    pub fn insmod_with(&self, module: Module, parameters: &str) -> Result<()> {
        let path = format!("/modules/{}/hv_utils.ko", module.name());
        self.sh_ok(&format!("insmod {path} {parameters}"))
            .map(|_| ())
    }

    /// Inserts a module from the initramfs, with all of its services.
    pub fn insmod(&self, module: Module) -> Result<()> {
        self.insmod_with(module, module.parameters())
    }

    /// Removes the module.
    pub fn rmmod(&self) -> Result<()> {
        self.sh_ok("rmmod hv_utils").map(|_| ())
    }

    /// What came out of the console since the last power-on.
    pub fn console(&self) -> String {
        String::from_utf8_lossy(self.machine.shared().ports().console()).replace('\r', "")
    }

    /// How many bytes came out of it.
    pub fn console_length(&self) -> usize {
        self.machine.shared().ports().console().len()
    }

    /// Whether the console says this, behind its first `from` bytes.
    pub fn console_says(&self, text: &str, from: usize) -> bool {
        says(self.machine.shared().ports().console(), text, from)
    }

    /// Waits until the console says this, behind its first `from` bytes.
    pub fn wait_console(&self, text: &str, from: usize) -> Result<()> {
        let shared = self.machine.shared();
        let said = shared.wait_ports(TIMEOUT, |ports| match says(ports.console(), text, from) {
            true => Some(true),
            false => shared.exit().map(|_| false),
        });
        match said {
            Some(true) => Ok(()),
            _ => Err(self.error(&format!("waited in vain for {text:?} on the console"))),
        }
    }

    /// Waits for the end of the machine's run.
    pub fn wait_exit(&self, timeout: Duration) -> Result<Exit> {
        let exit = self.machine.shared().wait_exit(timeout);
        exit.ok_or_else(|| {
            self.error(&format!(
                "waited {timeout:?} in vain for the machine to stop"
            ))
        })
    }

    /// How the run ended, if it has.
    pub fn exit(&self) -> Option<Exit> {
        self.machine.shared().exit()
    }

    /// What the guest has told the hypervisor of its crash since the last boot, if it has.
    pub fn crash(&self) -> Option<String> {
        self.machine.shared().crash()
    }

    /// The channel of a service.
    pub fn channel(&self, service: Service) -> ChannelHandle<'_> {
        ChannelHandle {
            guest: self,
            service,
        }
    }

    /// Whether host and guest have agreed on a version, and on which.
    pub fn vmbus_version(&self) -> Option<Version> {
        match self.machine.shared().bus().connection() {
            Connection::Connected { version, .. } => Some(version),
            Connection::Disconnected => None,
        }
    }

    /// The guest's reference time in 100 ns units.
    pub fn reference_time(&self) -> u64 {
        self.machine.shared().bus().reference_time()
    }

    /// Host time and guest reference time, now.
    pub fn moment(&self) -> Moment {
        Moment::now(self.reference_time())
    }

    /// When the guest last had the host look at its clock by [`Ports`](crate::ports::Ports), and when the time before
    /// that: that one first.
    pub fn looks(&self) -> [SystemTime; 2] {
        self.machine.shared().ports().looks()
    }

    /// Looks at (or changes) the bus directly.
    pub fn with_bus<R>(&self, act: impl FnOnce(&mut Bus) -> R) -> R {
        let result = act(&mut self.machine.shared().bus());
        self.machine.shared().announce();
        result
    }

    /// Waits until something is so on the bus; `what` names it in the error.
    pub fn wait_bus<R>(&self, what: &str, done: impl FnMut(&mut Bus) -> Option<R>) -> Result<R> {
        self.wait_bus_within(what, TIMEOUT, done)
    }

    /// [`Guest::wait_bus`] with another time-out.
    pub fn wait_bus_within<R>(
        &self,
        what: &str,
        timeout: Duration,
        done: impl FnMut(&mut Bus) -> Option<R>,
    ) -> Result<R> {
        let result = self.machine.shared().wait_bus(timeout, done);
        result.ok_or_else(|| match self.exit() {
            Some(exit) => self.error(&format!(
                "the machine stopped ({exit:?}) while waiting for {what}"
            )),
            None => self.error(&format!("waited {timeout:?} in vain for {what}")),
        })
    }

    /// The transcript's length, to be passed to the following two.
    pub fn transcript_length(&self) -> usize {
        self.with_bus(|bus| bus.transcript().length())
    }

    /// Puts a remark into the transcript.
    pub fn note(&self, text: &str) {
        self.with_bus(|bus| bus.note(text.to_owned()));
    }

    /// The transcript from entry `from` on, without what differs between runs.
    pub fn normalised_transcript(&self, from: usize) -> String {
        self.with_bus(|bus| bus.transcript().normalised(from))
    }

    /// Writes the transcript from entry `from` on into a file.
    pub fn save_transcript(&self, path: &Path, from: usize) -> Result<()> {
        self.with_bus(|bus| bus.transcript().save(path, from))
            .map_err(Error::from)
    }

    /// Saves and restores the machine, as far as the services see it: each does what it does with a host, or what
    /// [`Device::set_restore`] says.
    pub fn save_restore(&self) {
        self.note("saved and restored");
        let now = Instant::now();
        for service in self.config().services.clone() {
            self.with_bus(|bus| bus.with_device(service, |device, _| device.restored(now)));
        }
    }

    /// Waits until so many more of the messages of [`ChannelHandle::refuse_closes`] have been refused.
    pub fn wait_refused(&self, more: u32) -> Result<()> {
        let before = self.with_bus(|bus| bus.refused_closes());
        self.wait_bus("messages of the guest's to refuse", |bus| {
            (bus.refused_closes() + more <= before).then_some(())
        })
    }

    /// Has the next processor that writes this byte to this port stay in that write, until [`Guest::let_go`].
    pub fn hold_at(&self, port: u16, byte: u8) {
        self.machine.shared().ports().hold_at(port, byte);
    }

    /// Waits until a processor is held.
    pub fn wait_held(&self) -> Result<()> {
        let shared = self.machine.shared();
        let held = shared.wait_ports(TIMEOUT, |ports| match ports.holds() {
            true => Some(true),
            false => shared.exit().map(|_| false),
        });
        match held {
            Some(true) => Ok(()),
            Some(false) => Err(self.error("the machine stopped before a processor was held")),
            None => Err(self.error("waited in vain for a processor to be held")),
        }
    }

    /// Has the processor that is held go on, and none be held.
    pub fn let_go(&self) {
        self.machine.shared().let_go();
    }
}

fn says(console: &[u8], text: &str, from: usize) -> bool {
    let mut texts = console.get(from..).unwrap_or_default().windows(text.len());
    texts.any(|it| it == text.as_bytes())
}

/// A service's channel, seen from the host.
///
/// It begins as Windows' (see [`crate::ic::device`]). After [`ChannelHandle::script`] nothing happens by itself: the
/// scenario sends and receives, until [`ChannelHandle::auto`].
#[derive(Clone, Copy)]
pub struct ChannelHandle<'a> {
    guest: &'a Guest,
    service: Service,
}

impl ChannelHandle<'_> {
    /// The service.
    pub fn service(&self) -> Service {
        self.service
    }

    fn device<R>(&self, act: impl FnOnce(&mut Device, bool) -> R) -> Result<R> {
        self.guest
            .with_bus(|bus| bus.with_device(self.service, act))
            .ok_or_else(|| format!("the machine has no {}", self.service).into())
    }

    fn wait<R>(&self, what: &str, mut done: impl FnMut(&Device, bool) -> Option<R>) -> Result<R> {
        let service = self.service;
        let what = format!("{service}: {what}");
        self.guest.wait_bus(&what, |bus| {
            let channel = bus.channel(service)?;
            done(channel.device(), channel.open().is_some())
        })
    }

    // The channel's life.

    /// Whether the guest has it open.
    pub fn is_open(&self) -> bool {
        self.guest.with_bus(|bus| {
            bus.channel(self.service)
                .is_some_and(|channel| channel.open().is_some())
        })
    }

    /// Waits until the guest has it open.
    pub fn wait_open(&self) -> Result<()> {
        self.wait("open channel", |_, open| open.then_some(()))
    }

    /// Waits until the guest has closed it.
    pub fn wait_closed(&self) -> Result<()> {
        self.wait("closed channel", |_, open| (!open).then_some(()))
    }

    /// Unplugs the device.
    pub fn rescind(&self) -> Result<()> {
        Ok(self.guest.with_bus(|bus| bus.rescind(self.service))?)
    }

    /// Plugs it in again.
    pub fn reoffer(&self) -> Result<()> {
        Ok(self.guest.with_bus(|bus| bus.reoffer(self.service))?)
    }

    /// Has it offered as another instance of its class from the next offer on, until [`ChannelHandle::reset`].
    pub fn set_instance(&self, instance: Guid) {
        self.guest
            .with_bus(|bus| bus.set_instance(self.service, instance));
    }

    /// Plugs in a second device of the class, as this instance. All else here is about the first.
    pub fn offer_second(&self, instance: Guid) {
        self.guest
            .with_bus(|bus| bus.offer_second(self.service, instance));
    }

    /// Unplugs the second device.
    pub fn rescind_second(&self) -> Result<()> {
        Ok(self
            .guest
            .with_bus(|bus| bus.rescind_second(self.service))?)
    }

    /// Has the second device be the first from now on: what all else here is about.
    pub fn swap_second(&self) -> Result<()> {
        Ok(self.guest.with_bus(|bus| bus.swap_second(self.service))?)
    }

    /// How often the second device was opened.
    pub fn second_opens(&self) -> Result<u64> {
        let opens = self.guest.with_bus(|bus| bus.second_opens(self.service));
        opens.ok_or_else(|| format!("there is no second {}", self.service).into())
    }

    /// Waits until the guest has released every rescinded channel.
    pub fn wait_released(&self) -> Result<()> {
        self.guest
            .wait_bus("release of the rescinded channel", |bus| {
                (!bus.has_unreleased()).then_some(())
            })
    }

    /// Has the host take none of the guest's next `count` messages that close the channel, for want of buffers.
    pub fn refuse_closes(&self, count: u32) {
        self.guest
            .with_bus(|bus| bus.refuse_closes(self.service, count));
    }

    /// Answers the next `count` open requests with an NTSTATUS.
    pub fn fail_opens(&self, count: u32, status: u32) {
        self.guest
            .with_bus(|bus| bus.fail_opens(self.service, count, status));
    }

    /// How often it was opened since the last [`ChannelHandle::reset`].
    pub fn opens(&self) -> Result<u64> {
        let opens = self
            .guest
            .with_bus(|bus| Some(bus.channel(self.service)?.opens()));
        opens.ok_or_else(|| format!("the machine has no {}", self.service).into())
    }

    /// Makes the device as new: acting as on Windows, with a host's settings and versions, plugged in, nothing counted.
    pub fn reset(&self) -> Result<()> {
        self.guest.with_bus(|bus| bus.renew(self.service));
        Ok(())
    }

    // By itself.

    /// What the device has done by itself.
    pub fn statistics(&self) -> Result<Statistics> {
        self.device(|device, _| device.statistics().clone())
    }

    /// What it is about.
    pub fn state(&self) -> Result<State> {
        self.device(|device, _| device.state().clone())
    }

    /// Waits until the service has negotiated (by itself); gives the versions.
    pub fn wait_negotiated(&self) -> Result<Versions> {
        self.wait("negotiation", |device, _| match device.state() {
            State::Dead(reason) => Some(Err(Error(format!("the negotiation failed: {reason}")))),
            _ => device.versions().map(Ok),
        })?
    }

    /// Waits until `count` requests in all have been answered.
    pub fn wait_replies(&self, count: u64) -> Result<Statistics> {
        self.wait(&format!("{count} replies"), |device, _| {
            match device.state() {
                State::Dead(reason) => Some(Err(Error(format!("the service died: {reason}")))),
                _ => {
                    (device.statistics().replies >= count).then(|| Ok(device.statistics().clone()))
                }
            }
        })?
    }

    /// Waits until `count` requests in all have been sent.
    pub fn wait_requests(&self, count: u64) -> Result<()> {
        self.wait(&format!("{count} requests"), |device, _| {
            (device.statistics().requests >= count).then_some(())
        })
    }

    /// Offers these versions in negotiations instead of a host's.
    pub fn offer_versions(&self, framework: &[Version], message: &[Version]) -> Result<()> {
        self.device(|device, _| device.set_offered(framework, message))
    }

    /// Changes the device's settings (interval, clock, ...).
    pub fn configure(&self, change: impl FnOnce(&mut Device)) -> Result<()> {
        self.device(|device, _| change(device))
    }

    /// Negotiates again on the open channel, as some services do after a restore.
    pub fn restore(&self) -> Result<()> {
        self.device(|device, _| device.renegotiate())
    }

    /// Has the service send a request, as the administrator's tools do (Stop-VM, Get-VM, ...), without waiting for the
    /// reply. It must have negotiated, and have none outstanding.
    pub fn start_request(&self, body: Vec<u8>) -> Result<()> {
        let moment = self.guest.moment();
        Ok(self.device(|device, _| device.request(body, &moment))??)
    }

    /// The reply to what [`ChannelHandle::start_request`] sent, waiting for it.
    pub fn wait_reply(&self) -> Result<Message> {
        let service = self.service;
        let what = format!("{service}: reply");
        self.guest.wait_bus(&what, |bus| {
            bus.with_device(service, |device, _| match device.take_reply() {
                Some(reply) => Some(Ok(reply)),
                None => match device.state() {
                    State::Waiting { .. } => None,
                    state => Some(Err(Error(format!("{service} has no reply: {state:?}")))),
                },
            })
            .flatten()
        })?
    }

    /// Has the service send a request, and gives its reply.
    pub fn ask(&self, body: Vec<u8>) -> Result<Message> {
        self.start_request(body)?;
        self.wait_reply()
    }

    /// What KVP's host reads from a pool: all its pairs, one by one, until the guest has no more.
    pub fn enumerate(&self, pool: u8) -> Result<Vec<(String, String)>> {
        let mut pairs = Vec::new();
        for index in 0..1000 {
            let reply = self.ask(kvp::enumerate(pool, index))?;
            match reply.status {
                S_OK => pairs.extend(kvp::pair(&reply.body)),
                E_NO_MORE_ITEMS => return Ok(pairs),
                status => return Err(format!("enumeration ends with {status:#x}").into()),
            }
        }
        Err("the enumeration does not end".into())
    }

    // Step by step.

    /// Takes the lead: from now on nothing happens by itself.
    pub fn script(&self) -> Result<()> {
        self.device(|device, _| device.script())
    }

    /// Gives it back: on an open channel the device negotiates and goes on as on Windows.
    pub fn auto(&self) -> Result<()> {
        self.device(|device, open| device.auto(open))
    }

    /// Sends a packet now, or when the guest makes room.
    pub fn send_packet(&self, packet: Packet) -> Result<()> {
        self.guest
            .with_bus(|bus| bus.with_open(self.service, |open, link| open.send(link, packet)))
            .ok_or_else(|| self.not_open())?
            .map_err(Error::from)
    }

    fn not_open(&self) -> Error {
        format!("{}: the channel is not open", self.service).into()
    }

    /// Sends a packet if there is room now; `Err(RingError::Full)` inside if not.
    pub fn try_send_packet(&self, packet: &Packet) -> Result<std::result::Result<(), RingError>> {
        self.guest
            .with_bus(|bus| bus.with_open(self.service, |open, link| open.try_send(link, packet)))
            .ok_or_else(|| self.not_open())
    }

    /// Sends packets, the first of which the guest hears of when all are there that have room.
    pub fn send_packets(&self, packets: Vec<Packet>) -> Result<()> {
        self.guest
            .with_bus(|bus| bus.with_open(self.service, |open, link| open.send_all(link, packets)))
            .ok_or_else(|| self.not_open())?
            .map_err(Error::from)
    }

    /// Writes any bytes, a multiple of 8 long, where a packet would be; gives whether there was room.
    pub fn send_raw(&self, bytes: &[u8]) -> Result<bool> {
        self.guest
            .with_bus(|bus| bus.with_open(self.service, |open, link| open.send_raw(link, bytes)))
            .map(|sent| sent.is_ok())
            .ok_or_else(|| self.not_open())
    }

    /// Sends any bytes as an in-band packet.
    pub fn send_bytes(&self, payload: &[u8]) -> Result<()> {
        self.send_packet(Packet::inband(payload.to_vec()))
    }

    /// Sends a message.
    pub fn send(&self, message: &Message) -> Result<()> {
        self.send_bytes(&message.encode())
    }

    /// Sends messages so that the guest finds all of them when it looks for the first.
    pub fn send_together(&self, messages: &[&Message]) -> Result<()> {
        let packets = messages
            .iter()
            .map(|message| Packet::inband(message.encode()))
            .collect();
        self.send_packets(packets)
    }

    /// Sends `count` packets as fast as the ring takes them; `make` gives each, numbered from 0.
    pub fn flood(&self, count: usize, mut make: impl FnMut(usize) -> Packet) -> Result<()> {
        for number in 0..count {
            self.send_packet(make(number))?;
        }
        Ok(())
    }

    /// How many packets wait for room in the ring.
    pub fn unsent(&self) -> Result<usize> {
        self.guest
            .with_bus(|bus| bus.with_open(self.service, |open, _| open.waiting()))
            .ok_or_else(|| self.not_open())
    }

    /// Takes the next packet that the guest sent, waiting for it.
    pub fn receive_packet(&self) -> Result<Packet> {
        self.receive_packet_within(TIMEOUT)
    }

    /// [`ChannelHandle::receive_packet`] with another time-out.
    pub fn receive_packet_within(&self, timeout: Duration) -> Result<Packet> {
        let service = self.service;
        self.guest.wait_bus_within(
            &format!("{service}: packet from the guest"),
            timeout,
            |bus| {
                let taken = bus.with_device(service, |device, _| match device.take_received() {
                    Some(packet) => Some(Ok(packet)),
                    None => match device.state() {
                        State::Dead(reason) => {
                            Some(Err(Error(format!("{service} is dead: {reason}"))))
                        }
                        _ => None,
                    },
                });
                taken.flatten()
            },
        )?
    }

    /// Takes the next message, waiting for it; an error if the packet is shorter than the headers.
    pub fn receive(&self) -> Result<Message> {
        self.receive_within(TIMEOUT)
    }

    /// [`ChannelHandle::receive`] with another time-out.
    pub fn receive_within(&self, timeout: Duration) -> Result<Message> {
        let packet = self.receive_packet_within(timeout)?;
        let short = || {
            Error(format!(
                "{}: packet of only {} bytes",
                self.service,
                packet.payload.len()
            ))
        };
        Message::parse(&packet.payload).ok_or_else(short)
    }

    /// Gives what a host accepts. What it does not ends the service.
    fn accept<R>(&self, what: std::result::Result<R, Rejection>) -> Result<R> {
        let rejection = match what {
            Ok(accepted) => return Ok(accepted),
            Err(rejection) => rejection,
        };
        self.device(|device, _| device.rejected(rejection.to_string()))?;
        Err(format!("{}: {rejection}", self.service).into())
    }

    /// Sends a request and takes the reply, which must be one that a host accepts, and of the request's type.
    pub fn transact(&self, request: &Message) -> Result<Message> {
        self.send(request)?;
        let packet = self.receive_packet()?;
        let reply = self.accept(frame::check_reply(&packet.payload, request.transaction_id))?;
        match reply.kind == request.kind {
            true => Ok(reply),
            false => Err(format!("{}: reply of message type {}", self.service, reply.kind).into()),
        }
    }

    fn offer(&self, framework: &[Version], message: &[Version]) -> Result<Message> {
        let id = self.device(|device, _| device.new_transaction_id())?;
        self.transact(&Message::negotiation(framework, message, id))
    }

    /// Negotiates with these offers, of which the guest knows none, and goes on as no host does.
    pub fn negotiate_in_vain(&self, framework: &[Version], message: &[Version]) -> Result<()> {
        let answer = frame::negotiated(&self.offer(framework, message)?);
        match answer {
            Err(Rejection::Counts(0, 0)) => Ok(()),
            other => Err(format!("{}: {other:?} instead of counts 0/0", self.service).into()),
        }
    }

    /// Negotiates with these offers; the versions that the guest chose.
    pub fn negotiate(&self, framework: &[Version], message: &[Version]) -> Result<Versions> {
        let answer = frame::negotiated(&self.offer(framework, message)?);
        let (framework, message) = self.accept(answer)?;
        let versions = Versions { framework, message };
        self.device(|device, _| device.set_versions(versions))?;
        Ok(versions)
    }

    /// Negotiates with the offers of a Windows host.
    pub fn negotiate_all(&self) -> Result<Versions> {
        self.negotiate(
            self.service.framework_versions(),
            self.service.message_versions(),
        )
    }

    /// A request of this service with the versions last negotiated, to be changed at will and sent.
    pub fn request(&self, body: Vec<u8>) -> Result<Message> {
        self.device(|device, _| {
            let versions = device.versions().unwrap_or(Versions {
                framework: (3, 0),
                message: (1, 0),
            });
            let id = device.new_transaction_id();
            Message::request(
                self.service.message_type(),
                versions.framework,
                versions.message,
                id,
                body,
            )
        })
    }

    /// Stops (or resumes) reading what the guest sends.
    pub fn set_reading(&self, reading: bool) -> Result<()> {
        self.device(|device, _| device.set_reading(reading))
    }

    /// An error if the guest has sent anything that was not taken: surplus replies. `pause` is how long to wait for one.
    pub fn expect_silence(&self, pause: Duration) -> Result<()> {
        std::thread::sleep(pause);
        let in_ring = self
            .guest
            .with_bus(|bus| bus.with_open(self.service, |open, _| open.to_host().used()))
            .ok_or_else(|| self.not_open())??;
        let received = self.device(|device, _| device.received_count())?;
        match (received, in_ring) {
            (0, 0) => Ok(()),
            _ => Err(format!(
                "{}: surplus from the guest: {received} packets, and {in_ring} bytes in the ring",
                self.service
            )
            .into()),
        }
    }

    /// An error if the guest has sent anything that nobody took before the channel was closed: a surplus reply, or one that
    /// a scenario did not look at.
    pub fn expect_nothing_left(&self) -> Result<()> {
        let service = self.service;
        let surplus = self
            .guest
            .with_bus(|bus| Some(bus.channel(service)?.surplus()));
        match surplus {
            None | Some((0, 0)) => Ok(()),
            Some((packets, bytes)) => Err(format!(
                "{service}: nobody took {packets} packets of the guest's, and {bytes} bytes that were in the ring when it \
                 was closed"
            )
            .into()),
        }
    }

    /// Forgets what the guest has sent so far and nobody took: for scenarios in which that is chance.
    pub fn forget_surplus(&self) {
        self.guest.with_bus(|bus| bus.forget_surplus(self.service));
    }

    /// Signals the guest without a reason.
    pub fn signal(&self) -> Result<()> {
        self.guest
            .with_bus(|bus| bus.with_open(self.service, |open, link| open.signal(link)))
            .ok_or_else(|| self.not_open())
    }

    /// The indices of the host-to-guest and the guest-to-host ring.
    pub fn indices(&self) -> Result<(Indices, Indices)> {
        let indices = self
            .guest
            .with_bus(|bus| {
                bus.with_open(self.service, |open, _| {
                    Ok((open.to_guest().indices()?, open.to_host().indices()?))
                })
            })
            .ok_or_else(|| self.not_open())?;
        indices.map_err(|error: RingError| error.into())
    }

    /// Waits until the guest has read all that is in the ring, and says so.
    pub fn wait_read(&self) -> Result<()> {
        let service = self.service;
        self.guest
            .wait_bus(&format!("{service}: empty ring"), |bus| {
                let used = bus.with_open(service, |open, _| open.to_guest().used());
                matches!(used, Some(Ok(0))).then_some(())
            })
    }

    /// Bytes of data in the host-to-guest ring.
    pub fn ring_size(&self) -> Result<u32> {
        self.guest
            .with_bus(|bus| bus.with_open(self.service, |open, _| open.to_guest().size()))
            .ok_or_else(|| self.not_open())
    }

    /// Writes a control word of the guest-to-host ring, or else of the other one, raw.
    pub fn set_control(&self, to_host: bool, word: Word, value: u32) -> Result<()> {
        self.guest
            .with_bus(|bus| {
                bus.with_open(self.service, |open, _| match to_host {
                    true => open.to_host().set_control(word, value),
                    false => open.to_guest().set_control(word, value),
                })
            })
            .ok_or_else(|| self.not_open())?
            .map_err(Error::from)
    }

    /// Writes the host-to-guest ring's write index raw.
    pub fn set_write_index(&self, value: u32) -> Result<()> {
        self.guest
            .with_bus(|bus| {
                bus.with_open(self.service, |open, _| {
                    open.to_guest().set_write_index(value)
                })
            })
            .ok_or_else(|| self.not_open())?
            .map_err(Error::from)
    }

    /// Writes the guest-to-host ring's read index raw.
    pub fn set_read_index(&self, value: u32) -> Result<()> {
        self.guest
            .with_bus(|bus| {
                bus.with_open(self.service, |open, _| open.to_host().set_read_index(value))
            })
            .ok_or_else(|| self.not_open())?
            .map_err(Error::from)
    }
}
