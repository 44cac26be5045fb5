// SPDX-License-Identifier: GPL-2.0

//! `host`: boots one guest, offers it the integration services, and lets it run until it powers off.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use std::time::Instant;

use host::guest::Guest;
use host::guest::Module;
use host::images;
use host::machine::Config;
use host::machine::Exit;
use host::machine::MAX_VCPUS;
use host::nested;
use host::service::Service;

const USAGE: &str = "\
usage: host [OPTION]... [COMMAND]...
Boots a guest and runs each COMMAND (a shell line) in it, then has it power off.
  --kernel FILE      bzImage or vmlinux (build/kernel/amd64/vmlinux, vmlinuz)
  --initrd FILE      cpio archive, may be repeated (build/guest/{inner,rust}-amd64.cpio)
  --append TEXT      more of the kernel's command line
  --vcpus N          processors, 1 to 32 (1)
  --memory MIB       memory (384)
  --vmbus X.Y        newest VMBus version (6.0)
  --services A,B     services (heartbeat,shutdown,timesync)
  --no-s4            no hibernation
  --module rust|c    inserts this module first
  --run SECONDS      lets the guest run so long after the last command (0)
  --transcript FILE  where the transcript goes (build/results/host.transcript)
  --restore N        takes a snapshot after the boot and runs the commands N times more, each time from it (0)
  --quiet            does not print the console
";

struct Options {
    config: Config,
    commands: Vec<String>,
    module: Option<Module>,
    run: u64,
    restore: u64,
    transcript: PathBuf,
    quiet: bool,
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
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || {
            arguments
                .next()
                .ok_or_else(|| format!("{argument} wants a value"))
        };
        let number = |text: String| {
            text.parse::<u64>()
                .map_err(|error| format!("{text}: {error}"))
        };
        match argument.as_str() {
            "--kernel" => options.config.kernel = value()?.into(),
            "--initrd" => options.config.initrds.push(value()?.into()),
            "--append" => options.config.command_line = value()?,
            "--vcpus" => {
                let count = number(value()?)?;
                let count = u32::try_from(count)
                    .ok()
                    .filter(|count| *count <= MAX_VCPUS);
                let count = count.filter(|count| *count > 0);
                options.config.vcpus =
                    count.ok_or_else(|| format!("there may be 1 to {MAX_VCPUS} processors"))?;
            }
            "--memory" => options.config.memory = number(value()?)?,
            "--vmbus" => {
                let text = value()?;
                let parts = text
                    .split_once('.')
                    .and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
                options.config.vmbus_max = parts.ok_or_else(|| format!("{text} is no version"))?;
            }
            "--services" => {
                options.config.services = value()?
                    .split(',')
                    .map(str::parse::<Service>)
                    .collect::<Result<_, _>>()?;
            }
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
    if options.config.kernel.as_os_str().is_empty() {
        options.config.kernel = images::kernel("amd64");
    }
    if options.config.initrds.is_empty() {
        options.config.initrds = images::initrds("amd64");
    }
    Ok(options)
}

/// What the command line asks of a guest just booted.
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

fn main() -> ExitCode {
    let options = match options() {
        Ok(options) => options,
        Err(error) => {
            eprintln!("host: {error}");
            return ExitCode::from(2);
        }
    };
    nested::ensure_synic();
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("host: {error}");
            ExitCode::FAILURE
        }
    }
}
