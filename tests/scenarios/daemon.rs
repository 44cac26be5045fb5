// SPDX-License-Identifier: GPL-2.0

//! The distribution's daemons in the guest. Common code of the scenarios for KVP, VSS and file copy.

use std::time::Duration;
use std::time::Instant;

use host::guest::ChannelHandle;
use host::guest::Guest;
use host::guest::Module;
use host::guest::Result;
use host::guest::TIMEOUT;
use host::ic::frame::Message;
use host::service::Service;

use crate::scenario::Context;

/// The services that have daemons.
pub const SERVICES: [Service; 3] = [Service::Kvp, Service::Vss, Service::FCopy];

/// `hv_kvp_daemon`
pub const KVP: Daemon = Daemon {
    program: "hv_kvp_daemon",
    registered: "KVP LIC Version",
};
/// `hv_vss_daemon`
pub const VSS: Daemon = Daemon {
    program: "hv_vss_daemon",
    registered: "VSS: kernel module version",
};
/// `hv_fcopy_daemon`
pub const FCOPY: Daemon = Daemon {
    program: "hv_fcopy_daemon",
    registered: "HV_FCOPY: kernel module version",
};

/// `hv_fcopy_uio_daemon`. Its only module is `uio_hv_generic`.
pub const FCOPY_UIO: Daemon = Daemon {
    program: "hv_fcopy_uio_daemon",
    registered: "HV_UIO_FCOPY: starting",
};

/// The file with the daemons' log messages.
const LOG: &str = "/tmp/daemons.log";

/// Time limit for things that should happen at once, in a guest with two layers of emulation.
pub const PROMPT: Duration = Duration::from_secs(5);

/// How long to wait for a packet that should not come.
pub const QUIET: Duration = Duration::from_millis(200);

/// A daemon of the distribution.
#[derive(Clone, Copy)]
pub struct Daemon {
    program: &'static str,
    /// The daemon logs this text once it is registered.
    registered: &'static str,
}

impl Daemon {
    /// The daemon of a service.
    pub fn of(service: Service) -> Self {
        match service {
            Service::Vss => VSS,
            Service::FCopy => FCOPY,
            _ => KVP,
        }
    }

    /// Starts the daemon. Does not wait for its registration.
    pub fn launch(self, t: &Guest) -> Result<()> {
        t.sh_ok(&format!(": >{LOG}; {}", self.program)).map(|_| ())
    }

    /// Starts the daemon, and waits until it is registered.
    pub fn start(self, t: &Guest) -> Result<()> {
        self.launch(t)?;
        let registered = self.registered;
        wait_for(t, &format!("grep -q '{registered}' {LOG}"))
    }

    fn signal(self, t: &Guest, signal: &str) -> Result<()> {
        t.sh_ok(&format!("killall -{signal} {}", self.program))
            .map(|_| ())
    }

    /// Stops the daemon with a signal: it looks hung.
    pub fn stop(self, t: &Guest) -> Result<()> {
        self.signal(t, "STOP")
    }

    /// Continues a stopped daemon.
    pub fn resume(self, t: &Guest) -> Result<()> {
        self.signal(t, "CONT")
    }

    /// Kills the daemon, and waits until it has exited.
    pub fn kill(self, t: &Guest) -> Result<()> {
        self.signal(t, "KILL")?;
        self.wait_gone(t)
    }

    /// Kills and restarts the daemon `times` times in the background, after various pauses of up to 40 ms. Creates
    /// `/tmp/over` at the end.
    pub fn restart_often(self, t: &Guest, times: u64) -> Result<()> {
        let program = self.program;
        t.sh_ok(&format!(
            "rm -f /tmp/over; setsid sh -c 'i=0; while [ $i -lt {times} ]; do i=$((i + 1)); \
             usleep $((i * 7919 % 40000)); killall -KILL {program}; \
             while pidof {program}; do :; done; {program}; done; : >/tmp/over' >/dev/null 2>&1 &"
        ))
        .map(|_| ())
    }

    /// Lets one of the kernel's allocations on behalf of the daemon fail: number `number` from now on.
    pub fn fail_allocation(self, t: &Guest, number: u32) -> Result<()> {
        let program = self.program;
        t.sh_ok(&format!("echo {number} >/proc/$(pidof {program})/fail-nth"))
            .map(|_| ())
    }

    /// Number of allocations until one fails, or 0 once one has failed.
    pub fn allocations_to_fail(self, t: &Guest) -> Result<u32> {
        let left = t.sh_ok(&format!("cat /proc/$(pidof {})/fail-nth", self.program))?;
        left.parse()
            .map_err(|error| format!("fail-nth {left:?}: {error}").into())
    }

    /// Waits until the daemon has exited.
    pub fn wait_gone(self, t: &Guest) -> Result<()> {
        wait_for(t, &format!("! pidof {} >/dev/null", self.program))
    }
}

/// A shell script of the scenario that acts as a daemon. Its standard input is the device.
#[must_use]
pub struct ShellDaemon;

impl ShellDaemon {
    /// Starts a daemon on a device of `/dev/vmbus`. It registers with the message `hello`, a format of `printf`, and
    /// then runs `script`, which must not contain single quotes.
    pub fn start(t: &Guest, device: &str, hello: &str, script: &str) -> Result<Self> {
        t.sh_ok(&format!(
            "rm -f /tmp/shell-daemon; setsid sh -c 'printf \"{hello}\" >&0 && echo $$ >/tmp/shell-daemon; {script}' \
             <>/dev/vmbus/{device} >/dev/null 2>&1 &"
        ))?;
        wait_for(t, "[ -s /tmp/shell-daemon ]")?;
        Ok(Self)
    }

    /// Starts a daemon, which registers as the distribution's daemon of the service does, and then runs `script`.
    /// `/tmp/success` has an answer that the script can write.
    pub fn registered(t: &Guest, service: Service, script: &str) -> Result<Self> {
        let (device, hello, size) = match service {
            Service::Kvp => ("hv_kvp", 100, 7432),
            Service::Vss => ("hv_vss", 129, 12),
            Service::FCopy => ("hv_fcopy", 1, 4),
            _ => return Err(format!("{service} has no daemon").into()),
        };
        t.sh_ok(&format!(
            "rm -f /tmp/registered /tmp/read; head -c {size} /dev/zero >/tmp/success; \
             {{ printf '\\{hello:03o}'; head -c {} /dev/zero; }} >/tmp/hello",
            size - 1
        ))?;
        let daemon = Self::start(
            t,
            device,
            "",
            &format!(
                "{} && dd bs=8192 count=1 && : >/tmp/registered; {script}",
                Self::write("/tmp/hello")
            ),
        )?;
        wait_for(t, "[ -e /tmp/registered ]")?;
        Ok(daemon)
    }

    /// A command for a script: writes a file to the device, as one message.
    pub fn write(file: &str) -> String {
        format!("dd if={file} bs=8192 count=1 >&0")
    }

    /// A script that reads nothing.
    pub const READS_NOTHING: &'static str = "exec sleep 1000";

    /// A script that reads a question, creates `/tmp/read`, and does not answer.
    pub const ANSWERS_NOTHING: &'static str = "dd bs=8192 count=1 && : >/tmp/read; exec sleep 1000";

    /// A script that answers each question with the content of a file.
    pub fn answers(file: &str) -> String {
        format!("while dd bs=8192 count=1; do {}; done", Self::write(file))
    }

    /// Kills the process group of the daemon, if it still exists, and waits until it is gone.
    pub fn kill(self, t: &Guest) -> Result<()> {
        t.sh("kill -KILL -$(cat /tmp/shell-daemon) 2>/dev/null")?;
        wait_for(t, "! kill -0 -$(cat /tmp/shell-daemon) 2>/dev/null")
    }
}

/// Waits until a command succeeds in the guest.
pub fn wait_for(t: &Guest, command: &str) -> Result<()> {
    let seconds = TIMEOUT.as_secs();
    let output = t.sh_within(
        &format!(
            "read now rest </proc/uptime; start=${{now%.*}} pause=0.02; \
             until {command}; do \
                 sleep $pause; read now rest </proc/uptime; past=$((${{now%.*}} - start)); \
                 [ $past -le {seconds} ] || exit; [ $past -le 5 ] || pause=1; \
             done"
        ),
        // The loop ends by itself unless `command` hangs.
        TIMEOUT + PROMPT,
    )?;
    match output.status {
        0 => Ok(()),
        _ => Err(format!("waited {TIMEOUT:?} in vain until `{command}` in the guest").into()),
    }
}

/// Waits until the kernel's log has `text`, which is of this module. Does not wait with C: its texts are others.
pub fn wait_said(t: &Context<'_>, text: &str) -> Result<()> {
    match t.module() {
        Module::Rust => wait_for(t, &format!("dmesg | grep -q '{text}'")),
        Module::C => Ok(()),
    }
}

/// Prepares the guest for a scenario: removes the pools and log messages, and inserts the kernel modules that the
/// daemons need. One command line does all: each further one would take longer than its commands. The network interface
/// gets no link-local address: this would be random, and appear some time after the interface is up.
pub fn prepare(t: &Guest) -> Result<()> {
    t.sh_ok(&format!(
        "if ! pidof syslogd >/dev/null; then \
             while read -r name rest; do \
                 case $name in uio*) ;; *) insmod /modules/daemons/$name $rest || exit ;; esac; \
             done </modules/daemons/order; \
             echo 1 >/proc/sys/net/ipv6/conf/dummy0/disable_ipv6 && syslogd -O {LOG} || exit; \
         fi; \
         rm -rf /var/lib/hyperv; mkdir -p /var/lib/hyperv; : >{LOG}"
    ))
    .map(|_| ())
}

/// Kills all daemons after a scenario.
pub fn end(t: &Guest) -> Result<()> {
    let programs = [KVP, VSS, FCOPY, FCOPY_UIO].map(|daemon| daemon.program);
    let programs = programs.join(" ");
    t.sh(&format!("killall -KILL {programs} 2>/dev/null"))?;
    wait_for(t, &format!("! pidof {programs} >/dev/null"))
}

/// The last log messages of the daemons, for an error's text.
pub fn said(t: &Guest) -> String {
    match t.sh(&format!("tail -n 12 {LOG}")) {
        Ok(output) if !output.text.is_empty() => {
            let lines = output.text.replace('\n', "\n    ");
            format!("\nthe daemons say:\n    {lines}")
        }
        _ => String::new(),
    }
}

/// A service's channel. Its methods expect exactly one reply to each request.
#[derive(Clone, Copy)]
pub struct Talk<'a> {
    t: &'a Context<'a>,
    /// The channel.
    pub channel: ChannelHandle<'a>,
}

impl<'a> Talk<'a> {
    /// Uses the channel of `service`. Does not negotiate.
    pub fn with(t: &'a Context<'_>, service: Service) -> Self {
        Self {
            t,
            channel: t.channel(service),
        }
    }

    /// Starts the daemon and negotiates.
    pub fn begin(t: &'a Context<'_>, service: Service, daemon: Daemon) -> Result<Self> {
        daemon.start(t)?;
        let talk = Self::with(t, service);
        talk.channel.negotiate_all()?;
        Ok(talk)
    }

    /// Sends a request, and returns the reply.
    pub fn ask(self, body: Vec<u8>) -> Result<Message> {
        self.channel.transact(&self.channel.request(body)?)
    }

    /// Sends a request. Fails unless the reply has `status`.
    pub fn expect(self, what: &str, body: Vec<u8>, status: u32) -> Result<Message> {
        let reply = self.ask(body)?;
        match reply.status == status {
            true => Ok(reply),
            false => {
                Err(format!("{what}: status {:#x} instead of {status:#x}", reply.status).into())
            }
        }
    }

    /// Sends a request whose reply must not come yet. Returns the request.
    pub fn pend(self, body: Vec<u8>) -> Result<Message> {
        let request = self.channel.request(body)?;
        self.channel.send(&request)?;
        self.channel.expect_silence(QUIET)?;
        Ok(request)
    }

    /// Receives the reply to `request`, which must come at once and have `status`.
    pub fn promptly(self, what: &str, request: &Message, status: u32) -> Result<Message> {
        self.within(what, request, status, PROMPT)
    }

    /// Receives the reply to `request`, which must come within `limit` and have `status`.
    pub fn within(
        self,
        what: &str,
        request: &Message,
        status: u32,
        limit: Duration,
    ) -> Result<Message> {
        let reply = self
            .channel
            .receive_within(limit)
            .map_err(|error| format!("{what}: {error}"))?;
        self.t.equal(
            &format!("{what}: transaction of the reply"),
            (reply.kind, reply.transaction_id),
            (request.kind, request.transaction_id),
        )?;
        match reply.status == status {
            true => Ok(reply),
            false => {
                Err(format!("{what}: status {:#x} instead of {status:#x}", reply.status).into())
            }
        }
    }

    /// Fails if there is a further reply.
    pub fn finish(self) -> Result<()> {
        self.channel.expect_silence(QUIET)
    }
}

/// The sysfs folder of the driver of a service.
pub fn driver(service: Service) -> &'static str {
    match service {
        Service::FCopy => "/sys/bus/vmbus/drivers/hv_utils_fcopy",
        _ => "/sys/bus/vmbus/drivers/hv_utils",
    }
}

/// Writes to the driver's `bind` or `unbind`. Returns how long this took.
pub fn rebind(t: &Guest, file: &str, service: Service) -> Result<Duration> {
    let id = service.instance();
    let start = Instant::now();
    t.sh_ok(&format!("echo {id} >{}/{file}", driver(service)))?;
    Ok(start.elapsed())
}
