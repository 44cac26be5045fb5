// SPDX-License-Identifier: GPL-2.0

//! The commands of the prompt, and how they are written.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::words;
use crate::ic::kvp;
use crate::service::Service;

/// How long a backup holds a guest's file systems frozen where nobody says.
const HOLD: Duration = Duration::from_secs(2);

/// The longest that it may hold them: the time that the module gives a freeze.
const LONGEST_HOLD: Duration = Duration::from_secs(15 * 60);

/// How long a guest gets until a service of it is there, where nobody says.
const WAIT: Duration = Duration::from_secs(180);

/// How many requests a flood has at most.
const FLOOD: u32 = 10_000;

/// Bytes of a name or a folder of a copied file, in UTF-16 with its NUL.
const NAME: usize = 520;

/// A command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Machine and services, as tables.
    Status,
    /// Switches the machine on.
    Start,
    /// Has the guest shut down.
    Stop {
        /// Its applications are not asked.
        force: bool,
    },
    /// Has the guest restart.
    Restart,
    /// Has the guest hibernate.
    Hibernate,
    /// Lists the pairs of a pool.
    KvpList(u8),
    /// Reads the value of a key.
    KvpGet(u8, String),
    /// Sets a key to a value.
    KvpSet(u8, String, String),
    /// Deletes a key.
    KvpDelete(u8, String),
    /// Reads an adapter's addresses: of this MAC address.
    IpGet(Option<String>),
    /// Gives an adapter addresses.
    IpSet(IpSet),
    /// Freezes the guest's file systems for so long, as a backup does.
    Backup(Duration),
    /// Copies a file into the guest.
    Copy {
        /// The file.
        file: PathBuf,
        /// Where to, if not into `/tmp`. A folder where it ends in a slash.
        destination: Option<String>,
        /// Replaces a file that is there.
        overwrite: bool,
    },
    /// Connects to a port of the guest's, and sends a file.
    Connect(u32, Option<PathBuf>),
    /// Logs in by ssh.
    Ssh {
        /// As whom.
        user: String,
        /// What is to be done there, if it is not a session.
        line: Option<String>,
    },
    /// Moves the host's clock by so many seconds.
    Clock(i64),
    /// Has the host sleep for so long.
    Sleep(Duration),
    /// Saves the machine.
    Save,
    /// Goes on with the saved machine.
    Restore,
    /// Unplugs a service's device.
    Rescind(Service),
    /// Plugs it in again.
    Offer(Service),
    /// Waits until a service can be asked for something.
    Wait(Service, Duration),
    /// Waits until the console has said this.
    Expect(String),
    /// Sends so many requests at once.
    Flood(Service, u32),
    /// What host and guest have said: its end, or all of it into a file.
    Transcript(Option<PathBuf>),
    /// Goes to the guest's console.
    Console,
    /// Switches the machine off and ends.
    Quit,
    /// Lists the commands.
    Help,
}

/// What an adapter is to have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IpSet {
    /// Its id.
    pub adapter: Option<String>,
    /// Addresses and prefix lengths; none has it use DHCP.
    pub addresses: Vec<(IpAddr, u8)>,
    /// The gateways.
    pub gateways: Vec<IpAddr>,
    /// The name servers.
    pub name_servers: Vec<IpAddr>,
}

/// How each command is written, and what it does.
pub(super) const USAGES: &[(&str, &str)] = &[
    ("status", "the machine, its services and clocks"),
    ("start", "switches the machine on"),
    ("stop [-f]", "has the guest shut down; -f: without asking its applications"),
    ("restart", "has the guest restart"),
    ("hibernate", "has the guest hibernate"),
    ("kvp list [POOL]", "the pairs of a pool: external (if none is said), guest, auto, auto-external, auto-internal"),
    ("kvp get KEY [POOL]", "the value of a key"),
    ("kvp set KEY VALUE [POOL]", "sets a key to a value"),
    ("kvp delete KEY [POOL]", "deletes a key"),
    ("ip get [MAC]", "the addresses of an adapter"),
    ("ip set [{ID}] dhcp | ADDRESS/PREFIX... [via GATEWAY...] [dns SERVER...]", "gives an adapter addresses"),
    ("backup [TIME]", "asks, freezes the guest's file systems, holds them for a time (2s), thaws, completes"),
    ("copy FILE [DESTINATION] [--overwrite]", "copies a file into the guest, into /tmp/ if nothing is said"),
    ("connect PORT [FILE]", "connects to a port of the guest's, without a network, and sends a file: port 7 sends it back"),
    ("ssh [USER@] [COMMAND]", "the guest's sshd, without a network: carries out a command, or is a session (^] ends it)"),
    ("clock STEP", "moves the host's clock, such as +1h or -90s"),
    ("sleep TIME", "has the host sleep, such as 20m: the guest stands still, clocks go on"),
    ("save", "saves the machine: it stands still"),
    ("restore", "goes on with the saved machine"),
    ("rescind SERVICE", "unplugs a service's device"),
    ("offer SERVICE", "plugs it in again"),
    ("wait SERVICE [TIME]", "waits until a service can be asked for something (3m at most)"),
    ("expect TEXT", "waits until the guest's console has said this since the machine was switched on (1m at most)"),
    ("flood SERVICE N", "sends N requests at once, and waits for the answers"),
    ("transcript [FILE]", "the end of what host and guest have said, or all of it into a file"),
    ("console", "the guest's console (^] comes back)"),
    ("quit", "switches the machine off and ends"),
    ("help", "this list"),
];

impl Command {
    /// The command of a line, `None` if that says nothing. The error says what was expected.
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

/// What is expected of a command with this name, of one word or two.
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

/// How long a backup holds.
fn hold(word: &str) -> Result<Duration, String> {
    let time = words::time(word)?;
    match time <= LONGEST_HOLD {
        true => Ok(time),
        false => Err(format!("a time of at most 15m, not {word:?}")),
    }
}

/// The words behind `copy`.
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

/// The words behind `ssh`.
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

/// The words behind `ip set`.
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
    for word in words {
        match (*word, place) {
            ("via" | "dns", _) => place = *word,
            (_, "via") => set.gateways.push(words::address(word)?),
            (_, "dns") => set.name_servers.push(words::address(word)?),
            _ => set.addresses.push(words::subnet(word)?),
        }
    }
    let is_unfinished = matches!(words.last(), Some(&("via" | "dns")));
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
