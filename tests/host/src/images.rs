// SPDX-License-Identifier: GPL-2.0

//! Paths of kernels and initramfs images in the project's `build` folder.

use std::path::PathBuf;

/// The project's `build` folder: `HV_BUILD`, else two levels above this program.
pub fn build_folder() -> PathBuf {
    if let Some(path) = std::env::var_os("HV_BUILD") {
        return path.into();
    }
    let program = std::env::current_exe().unwrap_or_default();
    let build = program.parent().and_then(|folder| folder.parent());
    build.map(Into::into).unwrap_or_default()
}

/// A flavour's kernel: `vmlinux` if the folder has it, as it boots faster, else `vmlinuz`.
pub fn kernel(flavour: &str) -> PathBuf {
    let folder = build_folder().join("kernel").join(flavour);
    let unpacked = folder.join("vmlinux");
    match unpacked.exists() {
        true => unpacked,
        false => folder.join("vmlinuz"),
    }
}

/// The initramfs archive with the distribution's daemons.
pub fn daemons(flavour: &str) -> PathBuf {
    let guest = build_folder().join("guest");
    guest.join(format!("daemons-{flavour}.cpio"))
}

/// The initramfs archive with programs for the scenarios of `make check-more`.
pub fn more(flavour: &str) -> PathBuf {
    let guest = build_folder().join("guest");
    guest.join(format!("more-{flavour}.cpio"))
}

/// The folder with Debian's ssh, its libraries, the client's key and the guest's public key. `None` unless `initrds` has
/// an archive of a guest with systemd.
pub fn ssh_folder(initrds: &[PathBuf]) -> Option<PathBuf> {
    initrds.iter().find_map(|archive| {
        let flavour = archive.file_stem()?.to_str()?.strip_prefix("systemd-")?;
        Some(archive.with_file_name(format!("ssh-{flavour}")))
    })
}

/// A flavour's initramfs archives: the guest's, and that of this project's module if it was built.
pub fn initrds(flavour: &str) -> Vec<PathBuf> {
    let guest = build_folder().join("guest");
    let module = guest.join(format!("rust-{flavour}.cpio"));
    let mut archives = vec![guest.join(format!("inner-{flavour}.cpio"))];
    archives.extend(module.exists().then_some(module));
    archives
}
