// SPDX-License-Identifier: GPL-2.0

//! `host`: boots one guest and offers the integration services. It lets the guest run until the guest powers off, or
//! connects the caller to the guest's console and the host's prompt.

use std::path::Path;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use std::time::Instant;

use host::guest::relay;
use host::guest::Guest;
use host::guest::Module;
use host::images;
use host::machine::Config;
use host::machine::Exit;
use host::machine::MAX_VCPUS;
use host::nested;
use host::prompt;
use host::service::Service;

const USAGE: &str = "\
usage: host [OPTION]... [COMMAND]...
Boots a guest, runs each COMMAND (a shell line) in it, and powers it off. Without COMMAND, --run and --restore you get
the guest's console. There ^] goes to the host's prompt. The command help lists the prompt's commands.
  --kernel FILE      bzImage or vmlinux (build/kernel/amd64/vmlinux, vmlinuz)
  --initrd FILE      cpio archive, repeatable (build/guest/{inner,rust}-amd64.cpio)
  --append TEXT      appended to the kernel's command line. At the prompt, with --kernel and --initrd but without
                     --module, the whole command line: then the guest needs no agent
  --flavour F        kernel and archives from build, if --kernel and --initrd are absent (amd64)
  --replay FILE      sends the host's side of a transcript, and reports different answers of the guest
  --commands FILE    commands for the prompt, instead of standard input
  --pmem FILE        persistent memory, the guest's /dev/pmem0. The file does not change
  --vcpus N          processors, 1 to 32 (1)
  --memory MIB       memory (384)
  --vmbus X.Y        newest VMBus version (6.0)
  --services A,B     services (heartbeat,shutdown,timesync; at the prompt: all)
  --no-s4            no hibernation
  --module rust|c    inserts this module first (at the prompt: rust)
  --run SECONDS      how long the guest runs after the last command (0)
  --transcript FILE  file for the transcript (build/results/host.transcript)
  --restore N        takes a snapshot after the boot. Runs the commands N more times, each time from the snapshot (0)
  --quiet            does not print the console
  --relay SOCKET     no guest: carries standard input and output to and from a Unix socket, as ssh's ProxyCommand
";

struct Options {
    config: Config,
    commands: Vec<String>,
    module: Option<Module>,
    run: u64,
    restore: u64,
    transcript: PathBuf,
    quiet: bool,
    flavour: String,
    host_commands: Option<PathBuf>,
    replay: Option<PathBuf>,
    services: Option<Vec<Service>>,
}

fn options() -> Result<Options, String> {
    let mut options = Options {
        config: Config::default(),
        commands: Vec::new(),
        module: None,
        run: 0,
        restore: 0,
        transcript: images::build_folder().join("results/host.transcript"),
        quiet: false,
        flavour: "amd64".to_owned(),
        host_commands: None,
        replay: None,
        services: None,
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || {
            arguments
                .next()
                .ok_or_else(|| format!("{argument} needs a value"))
        };
        let number = |text: String| {
            text.parse::<u64>()
                .map_err(|error| format!("{text}: {error}"))
        };
        match argument.as_str() {
            "--kernel" => options.config.kernel = value()?.into(),
            "--initrd" => options.config.initrds.push(value()?.into()),
            "--append" => options.config.command_line = value()?,
            "--pmem" => options.config.persistent = Some(value()?.into()),
            "--vcpus" => options.config.vcpus = processors(number(value()?)?)?,
            "--memory" => options.config.memory = number(value()?)?,
            "--vmbus" => {
                let text = value()?;
                let parts = text
                    .split_once('.')
                    .and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
                options.config.vmbus_max = parts.ok_or_else(|| format!("bad version {text}"))?;
            }
            "--services" => {
                let services = value()?;
                let services = services.split(',').map(str::parse::<Service>);
                options.services = Some(services.collect::<Result<_, _>>()?);
            }
            "--flavour" => options.flavour = value()?,
            "--replay" => options.replay = Some(value()?.into()),
            "--commands" => options.host_commands = Some(value()?.into()),
            "--no-s4" => options.config.s4 = false,
            "--module" => {
                options.module = Some(match value()?.as_str() {
                    "rust" => Module::Rust,
                    "c" => Module::C,
                    other => return Err(format!("there is no module {other:?}")),
                });
            }
            "--restore" => options.restore = number(value()?)?,
            "--run" => options.run = number(value()?)?,
            "--transcript" => options.transcript = value()?.into(),
            "--quiet" => options.quiet = true,
            "--help" => {
                print!("{USAGE}");
                std::process::exit(0);
            }
            other if other.starts_with("--") => {
                return Err(format!("unknown option {other}\n{USAGE}"))
            }
            _ => options.commands.push(argument),
        }
    }
    options.complete();
    Ok(options)
}

/// Checks a number of processors for a machine.
fn processors(count: u64) -> Result<u32, String> {
    let count = u32::try_from(count).ok();
    let count = count.filter(|count| (1..=MAX_VCPUS).contains(count));
    count.ok_or_else(|| format!("there may be 1 to {MAX_VCPUS} processors"))
}

impl Options {
    /// Whether the command line asks for the prompt.
    fn is_prompt(&self) -> bool {
        self.commands.is_empty() && self.run == 0 && self.restore == 0
    }

    /// Fills in defaults for absent options.
    fn complete(&mut self) {
        let flavour = self.flavour.clone();
        let is_prompt = self.is_prompt();
        let config = &mut self.config;
        let is_given = !config.kernel.as_os_str().is_empty() && !config.initrds.is_empty();
        config.foreign = is_prompt && is_given && self.module.is_none();
        if config.kernel.as_os_str().is_empty() {
            config.kernel = images::kernel(&flavour);
        }
        if config.initrds.is_empty() {
            config.initrds = images::initrds(&flavour);
            if is_prompt {
                config.initrds.push(images::daemons(&flavour));
            }
        }
        if is_prompt {
            config.services = Service::INTEGRATION.to_vec();
        }
        if is_prompt && flavour == "debug" {
            // The debug kernel's checkers (KASAN and others) need memory of their own.
            config.memory *= 2;
            config.command_line = format!("kunit.autorun=0 {}", config.command_line);
        }
        if let Some(services) = &self.services {
            config.services = services.clone();
        }
    }
}

/// Inserts the module in a booted guest and runs the commands.
fn work(guest: &Guest, options: &Options) -> Result<(), host::guest::Error> {
    if let Some(module) = options.module {
        guest.insmod(module)?;
    }
    for command in &options.commands {
        let output = guest.sh(command)?;
        println!("{}\n# status {}", output.text, output.status);
    }
    Ok(())
}

fn run(options: &Options) -> Result<(), host::guest::Error> {
    let mut guest = Guest::boot(&options.config)?;
    println!(
        "# booted in {:.1} s, VMBus {:?}",
        guest.boot_time().as_secs_f64(),
        guest.vmbus_version()
    );
    if options.restore > 0 {
        let start = Instant::now();
        let snapshot = guest.save()?;
        let (seconds, size) = (start.elapsed().as_secs_f64(), snapshot.size() >> 20);
        println!("# snapshot of {size} MiB taken in {seconds:.2} s");
        for _ in 0..options.restore {
            work(&guest, options)?;
            let start = Instant::now();
            guest.restore(&snapshot)?;
            println!("# restored in {:.2} s", start.elapsed().as_secs_f64());
        }
    }
    let result = (|| {
        work(&guest, options)?;
        std::thread::sleep(Duration::from_secs(options.run));
        guest.sh_start("poweroff -f")?;
        match guest.wait_exit(host::guest::TIMEOUT)? {
            Exit::PowerOff => Ok(()),
            exit => Err(format!("the guest ended with {exit:?}").into()),
        }
    })();
    for service in &options.config.services {
        let channel = guest.channel(*service);
        println!(
            "# {service}: {:?}, {:?}",
            channel.state()?,
            channel.statistics()?
        );
    }
    guest.save_transcript(&options.transcript, 0)?;
    if !options.quiet {
        print!("{}", guest.console());
    }
    result
}

/// What ssh runs to reach the guest.
fn relayed(path: &Path) -> ExitCode {
    match relay::pipe(path) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("host: {}: {error}", path.display());
            ExitCode::FAILURE
        }
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [relay::OPTION, path] = arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        return relayed(Path::new(path));
    }
    let options = match options() {
        Ok(options) => options,
        Err(error) => {
            eprintln!("host: {error}");
            return ExitCode::from(2);
        }
    };
    if options.is_prompt() {
        match options.host_commands.is_some() || options.replay.is_some() {
            true => nested::ensure_synic(),
            false => nested::ensure_synic_live(),
        }
        let status = prompt::run(&prompt::Options {
            config: options.config,
            module: options.module.unwrap_or(Module::Rust),
            commands: options.host_commands,
            replay: options.replay,
        });
        nested::tidy_up();
        return status;
    }
    nested::ensure_synic();
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("host: {error}");
            ExitCode::FAILURE
        }
    }
}
