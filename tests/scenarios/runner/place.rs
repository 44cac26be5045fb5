// SPDX-License-Identifier: GPL-2.0

//! The configuration of a result, and the result's files.

use std::path::Path;
use std::path::PathBuf;

use host::guest::Module;
use host::images::build_folder;
use host::service::Version;

/// The configuration of a result: the module, and the properties of a boot.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) module: Module,
    pub(super) vcpus: u32,
    pub(super) vmbus: Version,
}

impl Place {
    /// The configuration, for the result's line.
    pub(super) fn label(&self) -> String {
        let (major, minor) = self.vmbus;
        format!(
            "[{}, {} vcpu, vmbus {major}.{minor}]",
            self.module.name(),
            self.vcpus
        )
    }

    /// The file of a scenario's result, without suffix.
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

/// Appends `.suffix` to the file's name. `Path::with_extension()` would not do: the name has dots.
pub(super) fn with_suffix(file: &Path, suffix: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    name.into()
}

/// The path relative to the project, for the reader.
pub(super) fn shown(path: &Path) -> String {
    let build = build_folder();
    let below = path.strip_prefix(&build).unwrap_or(path);
    format!("build/{}", below.display())
}
