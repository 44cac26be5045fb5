// SPDX-License-Identifier: GPL-2.0

//! What a result is about, and the files that it is kept in.

use std::path::Path;
use std::path::PathBuf;

use host::guest::Module;
use host::images::build_folder;
use host::service::Version;

/// What the results are about: everything that one boot can serve, and the module.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) module: Module,
    pub(super) vcpus: u32,
    pub(super) vmbus: Version,
}

impl Place {
    /// What the result's line says of it.
    pub(super) fn label(&self) -> String {
        let (major, minor) = self.vmbus;
        format!(
            "[{}, {} vcpu, vmbus {major}.{minor}]",
            self.module.name(),
            self.vcpus
        )
    }

    /// The file of a scenario's result, without its suffix.
    pub(super) fn file(&self, scenario: &str, flavour: &str) -> PathBuf {
        let (major, minor) = self.vmbus;
        let name = format!(
            "{scenario}-{}-{flavour}-{}cpu-{major}.{minor}",
            self.module.name(),
            self.vcpus
        );
        build_folder().join("results").join(name)
    }
}

/// The file with `.suffix` added to its name (which has dots of its own).
pub(super) fn with_suffix(file: &Path, suffix: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    name.into()
}

/// The path below the project, which is what a reader has.
pub(super) fn shown(path: &Path) -> String {
    let build = build_folder();
    let below = path.strip_prefix(&build).unwrap_or(path);
    format!("build/{}", below.display())
}
