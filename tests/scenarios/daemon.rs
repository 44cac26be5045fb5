// SPDX-License-Identifier: GPL-2.0

//! The distribution's daemons in the guest: what the scenarios of KVP, VSS and file copy have in common.

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

/// What the host offers to a guest with daemons.
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

/// `hv_fcopy_uio_daemon`, which needs no module but `uio_hv_generic`.
pub const FCOPY_UIO: Daemon = Daemon {
    program: "hv_fcopy_uio_daemon",
    registered: "HV_UIO_FCOPY: starting",
};

/// Where the daemons' log messages go.
const LOG: &str = "/tmp/daemons.log";

/// How long anything may take that should happen at once, in a guest that is emulated twice over.
pub const PROMPT: Duration = Duration::from_secs(5);

/// How long to look for a packet that should not come.
pub const QUIET: Duration = Duration::from_millis(200);

/// One of the daemons.
#[derive(Clone, Copy)]
pub struct Daemon {
    program: &'static str,
    /// What it logs once it is registered.
    registered: &'static str,
}

impl Daemon {
    /// The one that does a service's work.
    pub fn of(service: Service) -> Self {
        match service {
            Service::Vss => VSS,
            Service::FCopy => FCOPY,
            _ => KVP,
        }
    }

    /// Starts it, without waiting for its registration.
    pub fn launch(self, t: &Guest) -> Result<()> {
        t.sh_ok(&format!(": >{LOG}; {}", self.program)).map(|_| ())
    }

    /// Starts it and waits until it is registered.
    pub fn start(self, t: &Guest) -> Result<()> {
        self.launch(t)?;
        let registered = self.registered;
        wait_for(t, &format!("grep -q '{registered}' {LOG}"))
    }

    fn signal(self, t: &Guest, signal: &str) -> Result<()> {
        t.sh_ok(&format!("killall -{signal} {}", self.program))
            .map(|_| ())
    }

    /// Has it do nothing, as a daemon that hangs.
    pub fn stop(self, t: &Guest) -> Result<()> {
        self.signal(t, "STOP")
    }

    /// Has it go on.
    pub fn resume(self, t: &Guest) -> Result<()> {
        self.signal(t, "CONT")
    }

    /// Ends it by force; it is gone when this returns.
    pub fn kill(self, t: &Guest) -> Result<()> {
        self.signal(t, "KILL")?;
        self.wait_gone(t)
    }

    /// Has it killed and started again that often in the background, after pauses of any length up to 40 ms; then there
    /// is the file `/tmp/over`.
    pub fn restart_often(self, t: &Guest, times: u64) -> Result<()> {
        let program = self.program;
        t.sh_ok(&format!(
            "rm -f /tmp/over; setsid sh -c 'i=0; while [ $i -lt {times} ]; do i=$((i + 1)); \
             usleep $((i * 7919 % 40000)); killall -KILL {program}; \
             while pidof {program}; do :; done; {program}; done; : >/tmp/over' >/dev/null 2>&1 &"
        ))
        .map(|_| ())
    }

    /// Has its allocation of that number fail, in whatever the kernel does for it from now on.
    pub fn fail_allocation(self, t: &Guest, number: u32) -> Result<()> {
        let program = self.program;
        t.sh_ok(&format!("echo {number} >/proc/$(pidof {program})/fail-nth"))
            .map(|_| ())
    }

    /// How many allocations more it takes until one fails; 0 once one has.
    pub fn allocations_to_fail(self, t: &Guest) -> Result<u32> {
        let left = t.sh_ok(&format!("cat /proc/$(pidof {})/fail-nth", self.program))?;
        left.parse()
            .map_err(|error| format!("fail-nth {left:?}: {error}").into())
    }

    /// Waits until it has ended.
    pub fn wait_gone(self, t: &Guest) -> Result<()> {
        wait_for(t, &format!("! pidof {} >/dev/null", self.program))
    }
}

/// A daemon of the scenario's own, a script, instead of one of the distribution's. Its standard input is the device.
#[must_use]
pub struct ShellDaemon;

impl ShellDaemon {
    /// Starts it on a device of `/dev/vmbus`; it registers with the message `hello`, written as `printf` wants it, and
    /// goes on with the script, which cannot have single quotes.
    pub fn start(t: &Guest, device: &str, hello: &str, script: &str) -> Result<Self> {
        t.sh_ok(&format!(
            "rm -f /tmp/shell-daemon; setsid sh -c 'printf \"{hello}\" >&0 && echo $$ >/tmp/shell-daemon; {script}' \
             <>/dev/vmbus/{device} >/dev/null 2>&1 &"
        ))?;
        wait_for(t, "[ -s /tmp/shell-daemon ]")?;
        Ok(Self)
    }

    /// Starts one that has registered, as the distribution's daemon of the service does, and goes on with the script.
    /// `/tmp/success` is what it can answer with.
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

    /// For its script: writes a file to the device, as one message.
    pub fn write(file: &str) -> String {
        format!("dd if={file} bs=8192 count=1 >&0")
    }

    /// Its script: it reads nothing.
    pub const READS_NOTHING: &'static str = "exec sleep 1000";

    /// Its script: it reads a question, says so in `/tmp/read`, and does not answer.
    pub const ANSWERS_NOTHING: &'static str = "dd bs=8192 count=1 && : >/tmp/read; exec sleep 1000";

    /// Its script: it answers each question with what is in a file.
    pub fn answers(file: &str) -> String {
        format!("while dd bs=8192 count=1; do {}; done", Self::write(file))
    }

    /// Ends it by force, if it has not ended, with all programs that it has started, about to be started included; it
    /// is gone when this returns.
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
        // It ends by itself, but for a command that hangs.
        TIMEOUT + PROMPT,
    )?;
    match output.status {
        0 => Ok(()),
        _ => Err(format!("waited {TIMEOUT:?} in vain until `{command}` in the guest").into()),
    }
}

/// Waits until the kernel's log has this text of this module's. C says it in other words, or not at all: it is not asked.
pub fn wait_said(t: &Context<'_>, text: &str) -> Result<()> {
    match t.module() {
        Module::Rust => wait_for(t, &format!("dmesg | grep -q '{text}'")),
        Module::C => Ok(()),
    }
}

/// Before each scenario: no pools, no messages, the kernel modules that the daemons' work needs. A command line of its
/// own for each of these would take longer than what it does. The interface is without the link-local address: that
/// comes some time after the interface is up, and is random.
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

/// After each scenario: no daemon is left, whatever state it is in.
pub fn end(t: &Guest) -> Result<()> {
    let programs = [KVP, VSS, FCOPY, FCOPY_UIO].map(|daemon| daemon.program);
    let programs = programs.join(" ");
    t.sh(&format!("killall -KILL {programs} 2>/dev/null"))?;
    wait_for(t, &format!("! pidof {programs} >/dev/null"))
}

/// What the daemons have logged, to go with an error.
pub fn said(t: &Guest) -> String {
    match t.sh(&format!("tail -n 12 {LOG}")) {
        Ok(output) if !output.text.is_empty() => {
            let lines = output.text.replace('\n', "\n    ");
            format!("\nthe daemons say:\n    {lines}")
        }
        _ => String::new(),
    }
}

/// One service's channel, as the scenarios talk over it: exactly one reply to each request.
#[derive(Clone, Copy)]
pub struct Talk<'a> {
    t: &'a Context<'a>,
    /// The channel.
    pub channel: ChannelHandle<'a>,
}

impl<'a> Talk<'a> {
    /// With the service, before its negotiation.
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

    /// Sends a request and gives its reply.
    pub fn ask(self, body: Vec<u8>) -> Result<Message> {
        self.channel.transact(&self.channel.request(body)?)
    }

    /// Sends a request that is to be answered with `status`.
    pub fn expect(self, what: &str, body: Vec<u8>, status: u32) -> Result<Message> {
        let reply = self.ask(body)?;
        match reply.status == status {
            true => Ok(reply),
            false => {
                Err(format!("{what}: status {:#x} instead of {status:#x}", reply.status).into())
            }
        }
    }

    /// Sends a request whose reply does not come yet; gives the request.
    pub fn pend(self, body: Vec<u8>) -> Result<Message> {
        let request = self.channel.request(body)?;
        self.channel.send(&request)?;
        self.channel.expect_silence(QUIET)?;
        Ok(request)
    }

    /// Takes the reply to a request that was sent, which must come at once and with this status.
    pub fn promptly(self, what: &str, request: &Message, status: u32) -> Result<Message> {
        self.within(what, request, status, PROMPT)
    }

    /// Takes the reply to a request that was sent, which must come in time and with this status.
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

    /// No reply is surplus.
    pub fn finish(self) -> Result<()> {
        self.channel.expect_silence(QUIET)
    }
}

/// The folder of the driver that serves it.
pub fn driver(service: Service) -> &'static str {
    match service {
        Service::FCopy => "/sys/bus/vmbus/drivers/hv_utils_fcopy",
        _ => "/sys/bus/vmbus/drivers/hv_utils",
    }
}

/// Writes to the driver's `bind` or `unbind`; gives how long that took.
pub fn rebind(t: &Guest, file: &str, service: Service) -> Result<Duration> {
    let id = service.instance();
    let start = Instant::now();
    t.sh_ok(&format!("echo {id} >{}/{file}", driver(service)))?;
    Ok(start.elapsed())
}
