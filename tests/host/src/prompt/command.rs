// SPDX-License-Identifier: GPL-2.0

//! The commands of the prompt, their syntax, and the list that `help` prints.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::words;
use crate::ic::kvp;
use crate::service::Service;

/// For how long a backup holds the file systems frozen if the command names no time.
const HOLD: Duration = Duration::from_secs(2);

/// The longest time that the module gives a freeze.
const LONGEST_HOLD: Duration = Duration::from_secs(15 * 60);

/// How long `wait` waits if the command names no time.
const WAIT: Duration = Duration::from_secs(180);

/// The most requests of a flood.
const FLOOD: u32 = 10_000;

/// Bytes of a copied file's name or folder, in UTF-16 with its NUL.
pub(super) const NAME: usize = 520;

/// A command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Prints machine and services as tables.
    Status,
    /// Switches the machine on.
    Start,
    /// Shuts the guest down.
    Stop {
        /// Without asking its applications.
        force: bool,
    },
    /// Restarts the guest.
    Restart,
    /// Asks the guest to hibernate.
    Hibernate,
    /// Lists the pairs of a pool.
    KvpList(u8),
    /// Prints the value of a key.
    KvpGet(u8, String),
    /// Sets a key to a value.
    KvpSet(u8, String, String),
    /// Deletes a key.
    KvpDelete(u8, String),
    /// Prints the addresses of the adapter with this MAC address.
    IpGet(Option<String>),
    /// Gives an adapter addresses.
    IpSet(IpSet),
    /// Freezes the guest's file systems for this time, as a backup does.
    Backup(Duration),
    /// Copies a file into the guest.
    Copy {
        /// The file.
        file: PathBuf,
        /// A folder, with a slash at its end, or a file in the guest; `/tmp/` if none.
        destination: Option<String>,
        /// Replaces a file that exists.
        overwrite: bool,
    },
    /// Connects to a port of the guest, and sends a file.
    Connect(u32, Option<PathBuf>),
    /// Logs in by ssh.
    Ssh {
        /// The user in the guest.
        user: String,
        /// The shell line to run; a session if none.
        line: Option<String>,
    },
    /// Moves the host's clock by this many seconds.
    Clock(i64),
    /// Puts the host to sleep for this time.
    Sleep(Duration),
    /// Saves the machine.
    Save,
    /// Resumes the saved machine.
    Restore,
    /// Unplugs a service's device.
    Rescind(Service),
    /// Plugs the device in again.
    Offer(Service),
    /// Waits until a service can take a request.
    Wait(Service, Duration),
    /// Waits until the console has printed this.
    Expect(String),
    /// Sends this many requests at once.
    Flood(Service, u32),
    /// Prints the end of the transcript, or writes all of it to a file.
    Transcript(Option<PathBuf>),
    /// Goes to the guest's console.
    Console,
    /// Switches the machine off and ends the session.
    Quit,
    /// Lists the commands.
    Help,
}

/// The new settings of an adapter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IpSet {
    /// The adapter's id.
    pub adapter: Option<String>,
    /// Addresses and prefix lengths; DHCP if there is none.
    pub addresses: Vec<(IpAddr, u8)>,
    /// The gateways.
    pub gateways: Vec<IpAddr>,
    /// The name servers.
    pub name_servers: Vec<IpAddr>,
}

/// Each command's syntax and meaning. Documentation/shell.rst has the same list.
pub(super) const USAGES: &[(&str, &str)] = &[
    ("status", "prints the machine, its services, the clocks"),
    ("start", "switches the machine on"),
    ("stop [-f]", "shuts the guest down; -f without asking it"),
    ("restart", "restarts the guest"),
    ("hibernate", "asks the guest to hibernate"),
    ("kvp list [POOL]", "lists the pairs of a pool"),
    ("kvp get KEY [POOL]", "prints the value of a key"),
    ("kvp set KEY VALUE [POOL]", "sets a key to a value"),
    ("kvp delete KEY [POOL]", "deletes a key"),
    ("ip get [MAC]", "prints the addresses of an adapter"),
    (
        "ip set [{ID}] dhcp | ADDRESS/PREFIX... [via GATEWAY...] [dns SERVER...]",
        "gives an adapter addresses",
    ),
    (
        "backup [TIME]",
        "freezes file systems for a time (2s), thaws",
    ),
    (
        "copy FILE [DESTINATION] [--overwrite]",
        "copies a file into the guest, to /tmp/",
    ),
    (
        "connect PORT [FILE]",
        "connects to a port, sends FILE; 7 echoes",
    ),
    (
        "ssh [USER@] [COMMAND]",
        "runs a command, or a session (^] ends it)",
    ),
    ("clock STEP", "moves the host's clock: +1h, -90s"),
    ("sleep TIME", "the host sleeps, and the guest stands still"),
    ("save", "saves the machine: the guest stands still"),
    ("restore", "resumes the saved machine"),
    ("rescind SERVICE", "unplugs a service's device"),
    ("offer SERVICE", "plugs the device in again"),
    (
        "wait SERVICE [TIME]",
        "waits (3m) until a service takes requests",
    ),
    (
        "expect TEXT",
        "waits (1m) until the console has printed this",
    ),
    (
        "flood SERVICE N",
        "sends N requests at once, awaits the answers",
    ),
    (
        "transcript [FILE]",
        "prints the last messages, or writes all",
    ),
    ("console", "goes to the guest's console; ^] comes back"),
    ("quit", "switches the machine off and ends"),
    ("help", "prints this list"),
];

/// What `help` prints behind the list.
pub(super) const NOTES: &[&str] = &[
    "SERVICE is heartbeat, shutdown, timesync, kvp, vss or fcopy.",
    "POOL is external (the default), guest, auto, auto-external or auto-internal.",
    "TIME is a number of seconds, or such as 90s, 20m, 1h, 2d.",
    "Quotes keep blanks together: kvp set Greeting 'good day'.",
];

impl Command {
    /// Parses a line; `None` if it is empty or a comment. The error says what was expected.
    pub fn parse(line: &str) -> Result<Option<Self>, String> {
        let words = words::split(line)?;
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        match words.as_slice() {
            [] => Ok(None),
            [name, rest @ ..] => Self::of_words(name, rest).map(Some),
        }
    }

    fn of_words(name: &str, rest: &[&str]) -> Result<Self, String> {
        let command = match (name, rest) {
            ("status", []) => Self::Status,
            ("start", []) => Self::Start,
            ("stop", []) => Self::Stop { force: false },
            ("stop", ["-f"]) => Self::Stop { force: true },
            ("restart", []) => Self::Restart,
            ("hibernate", []) => Self::Hibernate,
            ("kvp", [what, rest @ ..]) => return Self::kvp(what, rest),
            ("ip", ["get"]) => Self::IpGet(None),
            ("ip", ["get", mac]) => Self::IpGet(Some(words::mac(mac)?)),
            ("ip", ["set", rest @ ..]) => Self::IpSet(ip_set(rest)?),
            ("ip", ["get", ..]) => return Err(usage("ip get")),
            ("backup", []) => Self::Backup(HOLD),
            ("backup", [time]) => Self::Backup(hold(time)?),
            ("copy", rest) => return copy(rest),
            ("connect", [port, file @ ..]) if file.len() < 2 => {
                let file = file.first().map(PathBuf::from);
                Self::Connect(words::number(port, 1, words::LAST_PORT)?, file)
            }
            ("ssh", rest) => ssh(rest)?,
            ("clock", [step]) => Self::Clock(words::step(step)?),
            ("sleep", [time]) => Self::Sleep(words::time(time)?),
            ("save", []) => Self::Save,
            ("restore", []) => Self::Restore,
            ("rescind", [service]) => Self::Rescind(words::service(service)?),
            ("offer", [service]) => Self::Offer(words::service(service)?),
            ("flood", [service, count]) => {
                Self::Flood(words::service(service)?, words::number(count, 1, FLOOD)?)
            }
            ("wait", [service]) => Self::Wait(words::service(service)?, WAIT),
            ("wait", [service, time]) => Self::Wait(words::service(service)?, words::time(time)?),
            ("expect", [text]) if !text.is_empty() => Self::Expect((*text).to_owned()),
            ("transcript", []) => Self::Transcript(None),
            ("transcript", [file]) => Self::Transcript(Some(file.into())),
            ("console", []) => Self::Console,
            ("quit", []) => Self::Quit,
            ("help", []) => Self::Help,
            _ => return Err(usage(name)),
        };
        Ok(command)
    }

    fn kvp(what: &str, rest: &[&str]) -> Result<Self, String> {
        let needed = match what {
            "list" => 0,
            "get" | "delete" => 1,
            "set" => 2,
            _ => return Err(usage("kvp")),
        };
        let pool = match rest.get(needed..) {
            Some([]) => kvp::EXTERNAL,
            Some([pool]) => words::pool(pool)?,
            _ => return Err(usage(&format!("kvp {what}"))),
        };
        let key = || words::key(rest[0]);
        match what {
            "list" => Ok(Self::KvpList(pool)),
            "get" => Ok(Self::KvpGet(pool, key()?)),
            "delete" => Ok(Self::KvpDelete(pool, key()?)),
            _ => Ok(Self::KvpSet(pool, key()?, words::value(rest[1])?)),
        }
    }
}

/// The syntax of the commands that begin with these words.
fn usage(name: &str) -> String {
    let usages = USAGES.iter().map(|(usage, _)| *usage);
    let begins = |usage: &&str| {
        let rest = usage.strip_prefix(name);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
    };
    let matching: Vec<&str> = usages.filter(begins).collect();
    match matching.is_empty() {
        true => format!("a command (help lists them), not {name:?}"),
        false => matching.join(", or "),
    }
}

/// The time of a backup.
fn hold(word: &str) -> Result<Duration, String> {
    let time = words::time(word)?;
    match time <= LONGEST_HOLD {
        true => Ok(time),
        false => Err(format!("a time of at most 15m, not {word:?}")),
    }
}

/// Parses the words after `copy`.
fn copy(rest: &[&str]) -> Result<Command, String> {
    let overwrite = rest.contains(&"--overwrite");
    let names: Vec<&str> = rest
        .iter()
        .copied()
        .filter(|it| *it != "--overwrite")
        .collect();
    if let Some(option) = names.iter().find(|name| name.starts_with("--")) {
        return Err(format!("--overwrite, not {option:?}"));
    }
    let (file, destination) = match names.as_slice() {
        [file] => (*file, None),
        [file, destination] => (*file, Some(words::text("destination", destination, NAME)?)),
        _ => return Err(usage("copy")),
    };
    if let Some(relative) = destination.as_ref().filter(|it| !it.starts_with('/')) {
        return Err(format!(
            "a destination that begins with /, not {relative:?}"
        ));
    }
    Ok(Command::Copy {
        file: file.into(),
        destination,
        overwrite,
    })
}

/// Parses the words after `ssh`.
fn ssh(rest: &[&str]) -> Result<Command, String> {
    let user = rest.first().and_then(|word| word.strip_suffix('@'));
    if let Some(wrong) = user.filter(|it| it.is_empty() || it.starts_with('-')) {
        return Err(format!("a user's name, not {wrong:?}"));
    }
    let line = rest[usize::from(user.is_some())..].join(" ");
    Ok(Command::Ssh {
        user: user.unwrap_or("root").to_owned(),
        line: (!line.is_empty()).then_some(line),
    })
}

/// Parses the words after `ip set`.
fn ip_set(rest: &[&str]) -> Result<IpSet, String> {
    let mut set = IpSet::default();
    let mut words = rest;
    if let [first, others @ ..] = words {
        if first.starts_with('{') {
            set.adapter = Some(words::adapter(first)?);
            words = others;
        }
    }
    if words == ["dhcp"] {
        return Ok(set);
    }
    let mut place = "";
    let mut is_unfinished = false;
    for word in words {
        match (*word, place) {
            ("via" | "dns", _) if !is_unfinished => {
                place = *word;
                is_unfinished = true;
                continue;
            }
            (_, "via") => set.gateways.push(words::address(word)?),
            (_, "dns") => set.name_servers.push(words::address(word)?),
            _ => set.addresses.push(words::subnet(word)?),
        }
        is_unfinished = false;
    }
    match set.addresses.is_empty() || is_unfinished {
        true => Err(usage("ip set")),
        false => Ok(set),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Command {
        Command::parse(line).unwrap().unwrap()
    }

    fn expected(line: &str) -> String {
        Command::parse(line).unwrap_err()
    }

    #[test]
    fn nothing_is_no_command() {
        for line in ["", "  ", "# a comment"] {
            assert_eq!(Command::parse(line), Ok(None));
        }
    }

    #[test]
    fn each_usage_is_understood() {
        for (usage, _) in USAGES {
            let first = usage.split('|').next().unwrap();
            let line: Vec<&str> = first
                .split_whitespace()
                .filter(|word| !word.starts_with('['))
                .map(|word| match word {
                    "SERVICE" => "kvp",
                    "N" => "3",
                    "PORT" => "7",
                    "STEP" => "+1h",
                    "TIME" => "20m",
                    other => other,
                })
                .collect();
            let line = line.join(" ");
            assert!(matches!(Command::parse(&line), Ok(Some(_))), "{line}");
        }
    }

    /// A usage up to its first argument.
    fn name(usage: &str) -> String {
        let is_name = |word: &&str| word.chars().all(|letter| letter.is_ascii_lowercase());
        let words: Vec<&str> = usage.split(' ').take_while(is_name).collect();
        words.join(" ")
    }

    #[test]
    fn each_command_is_documented_and_tried() {
        let page = include_str!("../../../../Documentation/shell.rst");
        let every = include_str!("../../../shell/every.commands");
        // Needs a guest with sshd.
        let ssh = include_str!("../../../shell/ssh.commands");
        for (usage, meaning) in USAGES {
            let entry = format!("``{usage}``\n    {meaning}\n");
            assert!(
                page.contains(&entry),
                "no {entry} in Documentation/shell.rst"
            );
            let name = name(usage);
            // Nobody looks at a console when commands come from a file.
            let mut lines = every.lines().chain(ssh.lines());
            let is_tried = lines.any(|line| line.starts_with(&name));
            assert!(is_tried || name == "console", "no {name} in every.commands");
        }
    }

    #[test]
    fn commands_have_defaults() {
        assert_eq!(parsed("stop"), Command::Stop { force: false });
        assert_eq!(parsed("stop -f"), Command::Stop { force: true });
        assert_eq!(parsed("backup"), Command::Backup(HOLD));
        assert_eq!(parsed("kvp list"), Command::KvpList(kvp::EXTERNAL));
        assert_eq!(parsed("kvp list auto"), Command::KvpList(kvp::AUTO));
        assert_eq!(
            parsed("kvp set 'a key' '' guest"),
            Command::KvpSet(kvp::GUEST, "a key".to_owned(), String::new())
        );
        let ssh = |user: &str, line: Option<&str>| Command::Ssh {
            user: user.to_owned(),
            line: line.map(str::to_owned),
        };
        assert_eq!(parsed("ssh"), ssh("root", None));
        assert_eq!(parsed("ssh me@"), ssh("me", None));
        assert_eq!(parsed("ssh id -u"), ssh("root", Some("id -u")));
        assert_eq!(
            parsed("copy a --overwrite /x/"),
            Command::Copy {
                file: "a".into(),
                destination: Some("/x/".to_owned()),
                overwrite: true,
            }
        );
    }

    #[test]
    fn addresses_are_given() {
        let Command::IpSet(set) = parsed("ip set 10.0.0.2/24 fd00::2/64 via 10.0.0.1 dns 10.0.0.3")
        else {
            panic!("another command");
        };
        assert_eq!(
            (
                set.addresses.len(),
                set.gateways.len(),
                set.name_servers.len()
            ),
            (2, 1, 1)
        );
        assert_eq!(parsed("ip set dhcp"), Command::IpSet(IpSet::default()));
        for line in [
            "ip",
            "ip set",
            "ip set via 10.0.0.1",
            "ip sett",
            "ip set dhcp x",
            "ip set 10.0.0.2/24 via",
            "ip set 10.0.0.2/24 via dns 10.0.0.3",
        ] {
            assert!(!expected(line).is_empty(), "{line}");
        }
    }

    #[test]
    fn what_is_wrong_is_told_what_was_expected() {
        for (line, text) in [
            ("sttaus", "a command (help lists them), not \"sttaus\""),
            ("status now", "status"),
            ("stop -g", "stop [-f]"),
            ("kvp get", "kvp get KEY [POOL]"),
            ("kvp set key", "kvp set KEY VALUE [POOL]"),
            ("kvp set key value guest x", "kvp set KEY VALUE [POOL]"),
            ("kvp gett key", "kvp list [POOL], or kvp get KEY [POOL], or kvp set KEY VALUE [POOL], or kvp delete KEY [POOL]"),
            ("kvp get k 7", "a pool (external, guest, auto, auto-external, auto-internal, or 0 to 4), not \"7\""),
            ("rescind foo", "a service (heartbeat, shutdown, timesync, kvp, vss, fcopy), not \"foo\""),
            ("rescind echo", "a service (heartbeat, shutdown, timesync, kvp, vss, fcopy), not \"echo\""),
            ("flood kvp 0", "a number from 1 to 10000, not \"0\""),
            ("backup 16m", "a time of at most 15m, not \"16m\""),
            ("copy", "copy FILE [DESTINATION] [--overwrite]"),
            ("connect", "connect PORT [FILE]"),
            ("connect 7 a b", "connect PORT [FILE]"),
            ("connect 0", "a number from 1 to 4294967294, not \"0\""),
            ("ssh @ id", "a user's name, not \"\""),
            ("ssh -oX@ id", "a user's name, not \"-oX\""),
            ("copy a b", "a destination that begins with /, not \"b\""),
            ("copy a --force", "--overwrite, not \"--force\""),
            ("clock 1h", "a step of the clock, such as +1h or -90s, not \"1h\""),
            ("help me", "help"),
            ("kvp set 'a", "a closing '"),
        ] {
            assert_eq!(expected(line), text, "{line}");
        }
        let long = "x".repeat(1024);
        assert_eq!(
            expected(&format!("kvp set k {long}")),
            "a value of at most 1023 UTF-16 units, not 1024"
        );
    }
}
