// SPDX-License-Identifier: GPL-2.0

//! Programs of this machine, such as ssh, reach a port of the guest through a Unix socket.

use std::io;
use std::io::Read;
use std::io::Write;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::Weak;
use std::thread::JoinHandle;
use std::time::Duration;

use super::Connection;
use super::Guest;
use super::Result;
use crate::images::build_folder;
use crate::images::ssh_folder;
use crate::machine::Shared;

/// The port of sshd.
pub const SSH_PORT: u32 = 22;

/// The option that makes this program copy its standard input and output to and from a Unix socket. The path follows.
pub const OPTION: &str = "--relay";

/// The maximum duration of a session.
const LONG: Duration = Duration::from_secs(365 * 86400);

/// The number of relays that this program has created.
static RELAYS: AtomicU32 = AtomicU32::new(0);

/// A Unix socket of this machine. Each connection to the socket becomes a connection to a port of the guest. Dropping the
/// relay ends all of them.
pub struct Relay {
    path: PathBuf,
    /// See [`ssh_folder`].
    ssh: Option<PathBuf>,
    is_over: Arc<AtomicBool>,
    connections: Arc<Mutex<Vec<Weak<Connection>>>>,
    thread: Option<JoinHandle<()>>,
}

impl Guest {
    /// Creates a Unix socket that leads to this port of the guest.
    pub fn relay(&self, port: u32) -> Result<Relay> {
        let number = RELAYS.fetch_add(1, Ordering::Relaxed);
        let name = format!("hv-relay.{}.{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path)?;
        let mut relay = Relay {
            path,
            ssh: ssh_folder(&self.config().initrds),
            is_over: Arc::default(),
            connections: Arc::default(),
            thread: None,
        };
        let (is_over, connections) = (relay.is_over.clone(), relay.connections.clone());
        let shared = self.machine.shared().clone();
        relay.thread = Some(std::thread::spawn(move || {
            for stream in listener.incoming().map_while(io::Result::ok) {
                if is_over.load(Ordering::SeqCst) {
                    break;
                }
                if let Ok(connection) = carry(&shared, port, stream) {
                    let mut all = connections.lock().unwrap_or_else(PoisonError::into_inner);
                    all.retain(|it: &Weak<Connection>| it.strong_count() > 0);
                    all.push(connection);
                }
            }
        }));
        Ok(relay)
    }
}

impl Relay {
    /// The path of the Unix socket.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The command that logs in to the guest through the relay, with the key of the guest's systemd image. Fails for
    /// guests with another image.
    pub fn ssh(&self, user: &str) -> Result<Command> {
        let folder = self
            .ssh
            .as_ref()
            .ok_or("the guest has no sshd that we have a key for")?;
        let library = folder.join("lib");
        let mut command = Command::new(library.join("ld-linux-x86-64.so.2"));
        let proxy = format!(
            "ProxyCommand='{}' {OPTION} '{}'",
            build_folder().join("host/host").display(),
            self.path.display()
        );
        let known = format!(
            "UserKnownHostsFile={}",
            folder.join("known_hosts").display()
        );
        command.arg("--library-path").arg(library);
        command.arg(folder.join("ssh")).args(["-F", "none", "-i"]);
        command.arg(folder.join("key")).args(["-o", &proxy]);
        for option in [
            known.as_str(),
            "GlobalKnownHostsFile=/dev/null",
            "StrictHostKeyChecking=yes",
            "UpdateHostKeys=no",
            "IdentitiesOnly=yes",
            "BatchMode=yes",
            "LogLevel=ERROR",
        ] {
            command.args(["-o", option]);
        }
        command.arg(format!("{user}@guest"));
        Ok(command)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        // It waits for the next one.
        let is_woken = UnixStream::connect(&self.path).is_ok();
        if let Some(thread) = self.thread.take().filter(|_| is_woken) {
            let _ = thread.join();
        }
        let all = self.connections.lock();
        for connection in all.unwrap_or_else(PoisonError::into_inner).iter() {
            if let Some(connection) = connection.upgrade() {
                connection.hang_up();
            }
        }
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Connects to the guest, and copies bytes in both directions until both have ended, or one side is gone.
fn carry(shared: &Arc<Shared>, port: u32, stream: UnixStream) -> Result<Weak<Connection>> {
    let connection = Arc::new(Connection::begin(shared, port)?);
    let weak = Arc::downgrade(&connection);
    std::thread::spawn(move || {
        let opened = connection.wait_connected();
        if opened.is_err() {
            return over_if_failed(&connection, &stream, opened);
        }
        std::thread::scope(|scope| {
            let up = scope
                .spawn(|| over_if_failed(&connection, &stream, to_guest(&connection, &stream)));
            over_if_failed(&connection, &stream, to_host(&connection, &stream));
            let _ = up.join();
        });
    });
    Ok(weak)
}

/// Ends the other direction if one has failed.
fn over_if_failed(connection: &Connection, stream: &UnixStream, result: Result<()>) {
    if result.is_err() {
        connection.hang_up();
        let _ = stream.shutdown(Shutdown::Both);
    }
}

fn to_guest(connection: &Connection, mut stream: &UnixStream) -> Result<()> {
    let mut bytes = [0; 1 << 14];
    loop {
        match stream.read(&mut bytes)? {
            0 => return connection.finish_within(LONG),
            length => connection.write_within(&bytes[..length], LONG)?,
        }
    }
}

fn to_host(connection: &Connection, mut stream: &UnixStream) -> Result<()> {
    loop {
        let bytes = connection.read_within(LONG)?;
        if bytes.is_empty() {
            return Ok(stream.shutdown(Shutdown::Write)?);
        }
        stream.write_all(&bytes)?;
    }
}

/// Copies this program's standard input to a Unix socket, and the socket's bytes to standard output.
pub fn pipe(path: &Path) -> io::Result<()> {
    let from = UnixStream::connect(path)?;
    let to = from.try_clone()?;
    // Unbuffered: a session waits for each of its bytes.
    let [input, output] = [
        io::stdin().as_fd().try_clone_to_owned()?,
        io::stdout().as_fd().try_clone_to_owned()?,
    ]
    .map(std::fs::File::from);
    std::thread::spawn(move || {
        let _ = copy(input, &to);
        let _ = to.shutdown(Shutdown::Write);
    });
    copy(from, output)
}

/// Copies bytes as they arrive. `io::copy()` would use a system call that waits for more bytes.
fn copy(mut from: impl Read, mut to: impl Write) -> io::Result<()> {
    let mut bytes = [0; 1 << 14];
    loop {
        match from.read(&mut bytes)? {
            0 => return Ok(()),
            length => to.write_all(&bytes[..length])?,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ssh_is_given_all_that_it_needs() {
        let relay = Relay {
            path: "/tmp/x".into(),
            ssh: ssh_folder(&["/a/rust-b.cpio".into(), "/a/systemd-b.cpio".into()]),
            is_over: Arc::default(),
            connections: Arc::default(),
            thread: None,
        };
        let command = relay.ssh("root").unwrap();
        assert_eq!(command.get_program(), "/a/ssh-b/lib/ld-linux-x86-64.so.2");
        let words: Vec<_> = command
            .get_args()
            .map(|word| word.to_string_lossy())
            .collect();
        assert!(words.iter().any(|word| word.ends_with("--relay '/tmp/x'")));
        assert_eq!(words.last().unwrap(), "root@guest");
    }
}
