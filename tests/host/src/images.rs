// SPDX-License-Identifier: GPL-2.0

//! Where kernels and initramfs images are: in the project's `build` folder, made by its own targets.

use std::path::PathBuf;

/// The project's `build` folder: `HV_BUILD`, or two levels above this program.
pub fn build_folder() -> PathBuf {
    if let Some(path) = std::env::var_os("HV_BUILD") {
        return path.into();
    }
    let program = std::env::current_exe().unwrap_or_default();
    let build = program.parent().and_then(|folder| folder.parent());
    build.map(Into::into).unwrap_or_default()
}

/// The kernel of a flavour: unpacked if it lies there so, which boots faster, else as packaged.
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

/// The initramfs archives for a flavour: the guest's, and the one with this project's module if it was built.
pub fn initrds(flavour: &str) -> Vec<PathBuf> {
    let guest = build_folder().join("guest");
    let module = guest.join(format!("rust-{flavour}.cpio"));
    let mut archives = vec![guest.join(format!("inner-{flavour}.cpio"))];
    archives.extend(module.exists().then_some(module));
    archives
}
