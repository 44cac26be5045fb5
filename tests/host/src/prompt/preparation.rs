// SPDX-License-Identifier: GPL-2.0

//! Prepares one of this project's guests for the prompt: a disk to freeze, an adapter with addresses, the module, the
//! daemons, and a shell at the console.

use crate::guest::Guest;
use crate::guest::Module;
use crate::guest::Result;
use crate::nested;

/// The adapter's MAC address.
pub(super) const MAC: &str = "00:15:5D:01:02:03";

/// Its id.
pub(super) const ADAPTER: &str = "{f8615163-df3e-46c5-913f-f2d2f965ed0e}";

/// Inserts the kernel's modules. Makes an ext4 at /mnt, the adapter dummy0 with the id of one of Hyper-V's, and the script
/// with which the daemon sets addresses.
const SURROUNDINGS: &str = r#"
while read -r name rest; do
    case $name in uio*) ;; *) insmod /modules/daemons/$name $rest || exit ;; esac
done </modules/daemons/order
syslogd -O /tmp/daemons.log
mkdir -p /var/lib/hyperv /mnt /tmp/net/dummy0/device
mkfs.ext4 -q -F /dev/ram0 4M && mount -t ext4 /dev/ram0 /mnt || exit
echo 1 >/proc/sys/net/ipv6/conf/dummy0/disable_ipv6
ip link set dummy0 address MAC up && ip addr add 10.0.0.2/24 dev dummy0 || exit
printf '#!/bin/sh\n. "$1"\nip addr flush dev $DEVICE\n[ -z "$IPADDR0" ] || ip addr add $IPADDR0/$NETMASK0 dev $DEVICE\n' \
    >/usr/libexec/hypervkvpd/hv_set_ifconfig
chmod +x /usr/libexec/hypervkvpd/hv_set_ifconfig
echo 'ADAPTER' >/tmp/net/dummy0/device/device_id
cat /sys/class/net/dummy0/address >/tmp/net/dummy0/address
mount --bind /tmp/net /sys/class/net"#;

/// The daemons for the module in Rust.
const DAEMONS: [&str; 3] = ["hv_kvp_daemon", "hv_vss_daemon", "hv_fcopy_daemon"];

/// The daemons for the module in C: file copy is served over UIO.
const DAEMONS_OF_C: [&str; 3] = ["hv_kvp_daemon", "hv_vss_daemon", "hv_fcopy_uio_daemon"];

/// Inserts UIO.
const UIO: &str = "insmod /modules/daemons/uio.ko && insmod /modules/daemons/uio_hv_generic.ko";

/// Starts a daemon again when it ends, as a service manager does: it ends when its device goes.
const KEEP: &str = "setsid sh -c 'while :; do DAEMON -n; sleep 1; done' >/dev/null 2>&1 &";

/// The daemons' messages once they are registered, or (over UIO) have begun.
const REGISTERED: [&str; 3] = [
    "KVP LIC Version",
    "VSS: kernel module version",
    "FCOPY: (kernel module version|starting)",
];

/// Waits for such a message, half a minute at most.
const WAIT: &str = "i=0; until grep -qE 'TEXT' /tmp/daemons.log; do \
    i=$((i + 1)); [ $i -lt 300 ] || exit; usleep 100000; done";

/// Starts the shell at the console, again when it ends, with the terminal's size. Twice setsid: the second runs in the
/// background, and unlike with `&`, SIGINT is not ignored there, so ^C works in the shell.
const SHELL: &str = "setsid setsid sh -c 'export PS1=\"guest:\\w# \" HOME=/root TERM=vt100; cd; \
    while :; do (stty SIZE; exec setsid -c sh -i) </dev/ttyS0 >/dev/ttyS0 2>&1; done' >/dev/null 2>&1";

/// Loads Hyper-V sockets, and starts a program that echoes at port 7 (RFC 862).
const SOCKETS: &str =
    "while read -r name rest; do insmod /modules/sockets/$name $rest || exit; done \
    </modules/sockets/order; vsock listen 7 1000000 cat";

/// Prints the end of the logs of kernel and daemons.
pub(super) const LOGS: &str = "dmesg | tail -n 5; tail -n 5 /tmp/daemons.log";

/// Prepares a guest that has just booted.
pub(super) fn prepare(guest: &Guest, module: Module) -> Result<()> {
    let surroundings = SURROUNDINGS.replace("MAC", MAC).replace("ADAPTER", ADAPTER);
    guest.sh_ok(&surroundings)?;
    guest.insmod(module)?;
    let daemons = match module {
        Module::Rust => DAEMONS,
        Module::C => {
            guest.sh_ok(UIO)?;
            DAEMONS_OF_C
        }
    };
    for daemon in daemons {
        guest.sh_ok(&KEEP.replace("DAEMON", daemon))?;
    }
    for text in REGISTERED {
        guest.sh_ok(&WAIT.replace("TEXT", text))?;
    }
    guest.sh_ok(SOCKETS)?;
    let size = nested::terminal_size().map_or(String::new(), |(rows, columns)| {
        format!("rows {rows} cols {columns}")
    });
    guest.sh_ok(&SHELL.replace("SIZE", &size)).map(|_| ())
}
