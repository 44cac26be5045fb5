// SPDX-License-Identifier: GPL-2.0

//! Thawing of file systems that user space has frozen, without the help of user space.
//!
//! Create a [`Record`] before asking user space to freeze. The record pins the superblocks that
//! user space may freeze: it takes an active reference (`s_active`) to each, which keeps the
//! superblock valid after an unmount. To thaw these superblocks, the record does not look up paths,
//! load modules or allocate memory, as each of these may wait for a frozen file system.
//!
//! The record finds superblocks by their file system types, because `iterate_supers_type()` is
//! exported and `iterate_supers()` is not. The record uses the types in `/proc/filesystems` that
//! need a block device, except `fuseblk`, and holds a reference to the module of each type. The
//! record leaves out other types: an iteration over their superblocks may wait for a server, and
//! hv_vss_daemon does not freeze them.
//!
//! The record does not use the paths in `/proc/mounts`. A path lookup may wait for a server or an
//! automounter. Such a lookup also misses file systems that are mounted over, or were unmounted
//! while frozen.
//!
//! One race can load a module: if the module of a type is removed after the record has read
//! `/proc/filesystems`, `get_fs_type()` loads this module again. At that time, nothing is frozen
//! for the record's owner.
//!
//! `iterate_supers_type()` holds `s_umount` shared during its callback, and `thaw_super()` takes
//! `s_umount` exclusively. So the callback only pins the superblock. An iteration may also
//! wait, because `s_umount` is held exclusively by a freeze while it syncs, by a mount until it has
//! finished, and by an unmount while it writes. So the record thaws all pinned superblocks before
//! it iterates again.
//!
//! Dropping the last active reference unmounts the file system, which may write and wait. So a work
//! item drops the pins.
//!
//! C headers: [`include/linux/fs/super.h`](srctree/include/linux/fs/super.h),
//! [`include/linux/fs/super_types.h`](srctree/include/linux/fs/super_types.h)

use crate::{
    bindings,
    compat::{
        new_spinlock_irq,
        SpinLockIrq, //
    },
    linux::workqueue::{
        Detached,
        Memory,
        Run, //
    },
};
use core::{
    fmt,
    marker::PhantomData,
    ptr::NonNull, //
};
use kernel::{
    error::{
        from_err_ptr,
        to_result, //
    },
    prelude::*,
    sync::Arc,
    types::ScopeGuard, //
};

/// Number of entries for superblocks that appear after [`Record::new`] has counted them.
const SPARE: usize = 32;

/// The superblocks that user space freezes for the owner of the record.
///
/// May be dropped in any context while a driver of the module is registered, otherwise in process
/// context only.
pub struct Record {
    types: KVec<FileSystemType>,
    /// Must not grow, as allocating memory may wait for frozen file systems.
    entries: KVec<Entry>,
    /// Drops the pins.
    release: Arc<Release>,
    work: Arc<Detached>,
}

/// A superblock that user space can freeze.
struct Entry {
    /// The device number, which identifies the superblock.
    device: bindings::dev_t,
    /// `None` after the superblock was unpinned.
    super_block: Option<SuperBlock>,
    role: Role,
}

/// The role of a superblock in a freeze.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    /// User space froze the superblock before the owner asked user space to freeze.
    Earlier,
    /// User space may freeze the superblock.
    Candidate,
    /// User space has frozen the superblock. Thaw it while at least this many freezes by user space
    /// remain. Freezes nest, and other owners may have frozen the superblock, too.
    Frozen(c_int),
}

impl Record {
    /// Records which superblocks are frozen, and pins those that user space can freeze. May sleep
    /// until running freezes, mounts and unmounts have finished.
    ///
    /// Fails with `ENOMEM`, or if `/proc/filesystems` cannot be opened or read.
    pub fn new() -> Result<Self> {
        let types = FileSystemType::all()?;
        let mut mounted = 0;
        for file_systems in &types {
            file_systems.for_each(&mut |_| mounted += 1);
        }
        let release = Arc::pin_init(
            Release::new(KVec::with_capacity(mounted + SPARE, GFP_KERNEL)?),
            GFP_KERNEL,
        )?;
        let run = KBox::new(release.clone(), GFP_KERNEL)?;
        let mut record = Self {
            types,
            entries: KVec::with_capacity(mounted + SPARE, GFP_KERNEL)?,
            release,
            work: Detached::new(run, Memory::Waits)?,
        };
        record.collect(&|_| true);
        record.begin();
        Ok(record)
    }

    /// To be called before user space is asked to freeze. Superblocks that are frozen now will not
    /// be thawed. May be called in any context.
    pub fn begin(&mut self) {
        for entry in &mut self.entries {
            entry.role = match entry.user_freezes() {
                0 => Role::Candidate,
                _ => Role::Earlier,
            };
        }
    }

    /// To be called when user space has frozen all file systems. Unpins superblocks that are not
    /// frozen. May be called in any context.
    pub fn complete(&mut self) {
        for entry in &mut self.entries {
            if entry.role == Role::Candidate && entry.user_freezes() > 0 {
                entry.role = Role::Frozen(1);
            }
        }
        self.release(&|entry| entry.role == Role::Candidate);
    }

    /// Returns whether all frozen superblocks are still frozen. Does not notice a superblock that
    /// was thawed and frozen again. May be called in any context.
    pub fn is_intact(&self) -> bool {
        self.entries
            .iter()
            .filter(|entry| entry.role != Role::Candidate)
            .filter_map(|entry| entry.super_block.as_ref())
            .all(SuperBlock::is_frozen)
    }

    /// To be called before user space is asked to thaw. From now on, user space is expected to undo
    /// one freeze of each superblock. May be called in any context.
    pub fn begin_thaw(&mut self) {
        for entry in &mut self.entries {
            if let Role::Frozen(_) = entry.role {
                entry.role = Role::Frozen(entry.user_freezes().max(1));
            }
        }
    }

    /// To be called when user space has failed to thaw all file systems. Superblocks that are still
    /// frozen need to be thawed. May be called in any context.
    pub fn thaw_failed(&mut self) {
        for entry in &mut self.entries {
            if let Role::Frozen(_) = entry.role {
                entry.role = Role::Frozen(1);
            }
        }
    }

    /// Returns whether no superblock needs to be thawed. May be called in any context.
    pub fn is_thawed(&self) -> bool {
        !self.entries.iter().any(Entry::is_left)
    }

    /// Calls `visit` for each superblock that user space has frozen since [`Record::begin`] and has
    /// not thawed. May be called in any context.
    pub fn for_each_frozen(&self, visit: &mut dyn FnMut(&SuperBlock)) {
        for entry in &self.entries {
            if let (true, Some(super_block)) = (entry.is_left(), &entry.super_block) {
                visit(super_block);
            }
        }
    }

    /// Calls `visit` for each superblock that was frozen at [`Record::complete`] and no longer
    /// needs to be thawed. May be called in any context.
    pub fn for_each_thawed(&self, visit: &mut dyn FnMut(&SuperBlock)) {
        for entry in &self.entries {
            if let (Role::Frozen(_), false, Some(super_block)) =
                (entry.role, entry.is_left(), &entry.super_block)
            {
                visit(super_block);
            }
        }
    }

    /// Thaws the superblocks that user space has frozen since [`Record::begin`], including those
    /// that were mounted later. Calls `done` for each superblock that was thawed or failed to thaw.
    /// May sleep as [`Record::new`] does.
    ///
    /// After [`Record::complete`], does not thaw a superblock that was not frozen at that time.
    pub fn thaw(&mut self, done: &mut dyn FnMut(&SuperBlock, Result)) {
        let mut tried = 0;
        loop {
            // Freezes nest. Undo one freeze of each superblock.
            for entry in &self.entries[tried..] {
                if let (true, Some(super_block)) = (entry.is_left(), &entry.super_block) {
                    super_block.thaw_with(done);
                }
            }
            tried = self.entries.len();
            self.collect(&|locked| locked.user_freezes() > 0);
            if self.entries.len() == tried {
                break;
            }
        }
    }

    /// To be called while user space is still freezing. Unpins superblocks that are not frozen.
    /// [`Record::thaw`] finds them again. May be called in any context.
    pub fn unpin(&mut self) {
        self.release(&|entry| entry.role != Role::Earlier && entry.user_freezes() == 0);
        self.entries.retain(|entry| entry.super_block.is_some());
    }

    /// Adds the wanted superblocks that are not recorded yet, until the entries are full.
    fn collect(&mut self, is_wanted: &dyn Fn(&Locked<'_>) -> bool) {
        let Self { types, entries, .. } = self;
        // Keep the sum of entries and pins within the capacity of `release.pins`.
        let room = entries.capacity() - self.release.pins.lock().len();
        for file_systems in types {
            file_systems.for_each(&mut |locked| {
                let device = locked.device();
                if entries.len() >= room
                    || !locked.can_be_frozen()
                    || !is_wanted(&locked)
                    || entries.iter().any(|entry| entry.device == device)
                {
                    return;
                }
                if let Some(super_block) = locked.pin() {
                    // The entries are not full, so this cannot fail. A pin must not be dropped
                    // here.
                    core::mem::forget(entries.push_within_capacity(Entry {
                        device,
                        super_block: Some(super_block),
                        role: Role::Candidate,
                    }));
                }
            });
        }
    }

    /// Unpins the superblocks of entries.
    fn release(&mut self, is_over: &dyn Fn(&Entry) -> bool) {
        {
            let mut pins = self.release.pins.lock();
            for entry in &mut self.entries {
                if !is_over(entry) {
                    continue;
                }
                if let Some(super_block) = entry.super_block.take() {
                    // `collect()` has left room for all pins.
                    core::mem::forget(pins.push_within_capacity(super_block));
                }
            }
            if pins.is_empty() {
                return;
            }
        }
        if !Detached::schedule(&self.work) {
            // No driver is registered, so this is process context.
            self.release.run();
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        self.release(&|_| true);
    }
}

impl Entry {
    /// See [`SuperBlock::user_freezes`].
    fn user_freezes(&self) -> c_int {
        self.super_block
            .as_ref()
            .map_or(0, SuperBlock::user_freezes)
    }

    /// Returns whether the superblock needs to be thawed.
    fn is_left(&self) -> bool {
        match self.role {
            Role::Earlier => false,
            Role::Candidate => self.user_freezes() > 0,
            Role::Frozen(freezes) => self.user_freezes() >= freezes,
        }
    }
}

/// Drops pins in process context.
#[pin_data]
struct Release {
    #[pin]
    pins: SpinLockIrq<KVec<SuperBlock>>,
}

impl Release {
    /// `pins` must be empty, with the capacity for all pins.
    fn new(pins: KVec<SuperBlock>) -> impl PinInit<Self> {
        pin_init!(Self {
            pins <- new_spinlock_irq!(pins, "Release::pins"),
        })
    }
}

impl Run for Release {
    fn run(&self) {
        loop {
            let pin = self.pins.lock().pop();
            if pin.is_none() {
                break;
            }
        }
    }
}

/// A type of file systems on block devices, with a reference to its module.
///
/// # Invariants
///
/// The pointer is to a registered type. This owns a reference to the type's module.
struct FileSystemType(NonNull<bindings::file_system_type>);

// SAFETY: Module references are not tied to a thread. Types may be used from any thread.
unsafe impl Send for FileSystemType {}

impl FileSystemType {
    /// Returns all registered types.
    fn all() -> Result<KVec<Self>> {
        let mut text = read(c"/proc/filesystems")?;
        let mut types = KVec::new();
        for name in disk_types(&mut text) {
            // SAFETY: `name` is a C string.
            let raw = unsafe { bindings::get_fs_type(name.as_char_ptr()) };
            if let Some(raw) = NonNull::new(raw) {
                // INVARIANT: `get_fs_type()` takes a reference to the module of the type. The type
                // is registered while its module is loaded.
                types.push(Self(raw), GFP_KERNEL)?;
            }
        }
        Ok(types)
    }

    /// Calls `visit` for each mounted superblock of this type. `visit` must not take `s_umount`.
    fn for_each(&self, mut visit: &mut dyn FnMut(Locked<'_>)) {
        // SAFETY:
        // - By the type invariant, the type is valid.
        // - `visit_callback()` is called during this call only, with a pointer to `visit`.
        unsafe {
            bindings::iterate_supers_type(
                self.0.as_ptr(),
                Some(visit_callback),
                (&raw mut visit).cast(),
            )
        };
    }
}

impl Drop for FileSystemType {
    fn drop(&mut self) {
        // SAFETY: By the type invariant, the type is valid.
        let module = unsafe { (*self.0.as_ptr()).owner };

        // SAFETY: By the type invariant, this owns a reference. A built-in type has no module,
        // which `module_put()` accepts.
        unsafe { bindings::module_put(module) };
    }
}

extern "C" fn visit_callback(sb: *mut bindings::super_block, visit: *mut c_void) {
    // SAFETY: `for_each()` passes a pointer to `visit`, and waits for this function.
    let visit = unsafe { &mut *visit.cast::<&mut dyn FnMut(Locked<'_>)>() };
    if let Some(sb) = NonNull::new(sb) {
        // INVARIANT: `iterate_supers_type()` has checked that the superblock is born and not dying.
        // It holds `s_umount` until this function returns.
        visit(Locked(sb, PhantomData));
    }
}

/// A live superblock, with `s_umount` held shared.
///
/// # Invariants
///
/// During `'a`, the superblock is valid and the lock is held.
struct Locked<'a>(NonNull<bindings::super_block>, PhantomData<&'a ()>);

impl Locked<'_> {
    /// Returns whether user space can freeze the superblock, by the same check as `FIFREEZE`.
    fn can_be_frozen(&self) -> bool {
        // SAFETY: By the type invariant, the superblock is valid. The superblock is born, so `s_op`
        // is set.
        let operations = unsafe { (*self.0.as_ptr()).s_op };

        // SAFETY: As above.
        let operations = unsafe { &*operations };
        operations.freeze_fs.is_some() || operations.freeze_super.is_some()
    }

    /// Returns how many times user space has frozen the superblock without thawing it; 0 if the
    /// superblock is not completely frozen.
    fn user_freezes(&self) -> c_int {
        // SAFETY: By the type invariant, the superblock is valid.
        unsafe { user_freezes(self.0) }
    }

    /// Returns the device number, which is unique among superblocks.
    fn device(&self) -> bindings::dev_t {
        // SAFETY: By the type invariant, the superblock is valid. The superblock is born, so
        // `s_dev` is set.
        unsafe { (*self.0.as_ptr()).s_dev }
    }

    /// Takes an active reference. Returns `None` if the last active reference has just been
    /// dropped.
    fn pin(&self) -> Option<SuperBlock> {
        // SAFETY: By the type invariant, the superblock is valid.
        let is_active = unsafe { bindings::rust_helper_super_get_active(self.0.as_ptr()) };

        // INVARIANT: The helper has taken an active reference.
        is_active.then_some(SuperBlock(self.0))
    }
}

/// A pinned superblock. It stays valid after an unmount.
///
/// A frozen superblock has an active reference of its own. If someone else thaws and unmounts the
/// superblock, the device remains in use until this is dropped.
///
/// # Invariants
///
/// The superblock is valid. This owns an active reference to it.
pub struct SuperBlock(NonNull<bindings::super_block>);

// SAFETY: Active references are not tied to a thread. Superblocks may be used from any thread.
unsafe impl Send for SuperBlock {}

impl SuperBlock {
    /// Returns the name of the superblock's device. May be called in any context.
    pub fn name(&self) -> Name {
        // SAFETY: By the type invariant, the superblock is valid.
        let id = unsafe { &raw const (*self.0.as_ptr()).s_id };

        // SAFETY: `id` is valid for reads. If the name changes concurrently, this may read parts of
        // both names.
        Name(unsafe { id.read_volatile() })
    }

    /// Returns whether the superblock is completely frozen. May be called in any context.
    fn is_frozen(&self) -> bool {
        // SAFETY: By the type invariant, the superblock is valid.
        unsafe { is_frozen(self.0) }
    }

    /// Returns how many times user space has frozen the superblock without thawing it; 0 if the
    /// superblock is not completely frozen. May be called in any context.
    fn user_freezes(&self) -> c_int {
        // SAFETY: By the type invariant, the superblock is valid.
        unsafe { user_freezes(self.0) }
    }

    /// Undoes one freeze by user space, as `FITHAW` does. Calls `done` if the superblock was thawed
    /// or failed to thaw. Does nothing if user space has not frozen the superblock.
    fn thaw_with(&self, done: &mut dyn FnMut(&Self, Result)) {
        if self.user_freezes() == 0 {
            return;
        }
        match self.thaw() {
            // Someone else has thawed the superblock first.
            Err(EINVAL) if self.user_freezes() == 0 => {}
            result => done(self, result),
        }
    }

    fn thaw(&self) -> Result {
        let sb = self.0.as_ptr();
        let who = bindings::freeze_holder_FREEZE_HOLDER_USERSPACE;

        // SAFETY: By the type invariant, the superblock is valid. The superblock is born, so `s_op`
        // is set.
        let operations = unsafe { (*sb).s_op };

        // SAFETY: As above.
        let thaw_super = unsafe { (*operations).thaw_super };

        to_result(match thaw_super {
            // SAFETY: By the type invariant, the superblock is active, and `s_umount` is not held.
            Some(thaw_super) => unsafe { thaw_super(sb, who, core::ptr::null()) },
            // SAFETY: As above.
            None => unsafe { bindings::thaw_super(sb, who, core::ptr::null()) },
        })
    }
}

/// The name of a superblock's device. `Display` shows bytes that are not printable ASCII as
/// escapes.
#[derive(Clone, Copy)]
pub struct Name([u8; Name::LEN]);

impl Name {
    /// Size of `s_id` in bytes, including the NUL.
    const LEN: usize = 32;

    /// Returns the name without the NUL.
    pub fn as_bytes(&self) -> &[u8] {
        let Self(id) = self;
        let len = id.iter().position(|&c| c == 0).unwrap_or(id.len());
        &id[..len]
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.as_bytes().escape_ascii())
    }
}

impl fmt::Display for SuperBlock {
    /// Writes the name of the device and the type of the file system.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sb = self.0.as_ptr();

        // SAFETY: `s_type` is set before the superblock is born, and never changes. The module of
        // the type stays loaded while the superblock is active.
        let file_systems = unsafe { (*sb).s_type };

        // SAFETY: As above.
        let name = unsafe { (*file_systems).name };

        // SAFETY: A type's name is a C string that lives as long as the type.
        let name = unsafe { CStr::from_char_ptr(name) };
        write!(f, "{} ({})", self.name(), name.to_bytes().escape_ascii())
    }
}

impl Drop for SuperBlock {
    fn drop(&mut self) {
        // SAFETY: By the type invariant, this owns an active reference.
        unsafe { bindings::deactivate_super(self.0.as_ptr()) };
    }
}

/// Returns whether a superblock is completely frozen. May be called in any context.
///
/// # Safety
///
/// The superblock must be valid.
unsafe fn is_frozen(sb: NonNull<bindings::super_block>) -> bool {
    // SAFETY: Guaranteed by the safety requirements of this function.
    let frozen = unsafe { &raw const (*sb.as_ptr()).s_writers.frozen };

    // SAFETY: `frozen` is valid for reads. This is a `READ_ONCE()`.
    let frozen = unsafe { frozen.read_volatile() };
    u32::from(frozen) == bindings::SB_FREEZE_COMPLETE
}

/// Returns how many times user space has frozen a superblock without thawing it; 0 if the
/// superblock is not completely frozen. May be called in any context.
///
/// # Safety
///
/// The superblock must be valid.
unsafe fn user_freezes(sb: NonNull<bindings::super_block>) -> c_int {
    // SAFETY: Guaranteed by the safety requirements of this function.
    if !unsafe { is_frozen(sb) } {
        return 0;
    }

    // SAFETY: As above.
    let count = unsafe { &raw const (*sb.as_ptr()).s_writers.freeze_ucount };

    // SAFETY: `count` is valid for reads. This is a `READ_ONCE()`.
    unsafe { count.read_volatile() }
}

/// Reads a file of `/proc`. Looks the path up from the root of the init process, as kernel threads
/// may have an empty root.
fn read(path: &CStr) -> Result<KVec<u8>> {
    // SAFETY: `path` is a C string.
    let file = from_err_ptr(unsafe { bindings::rust_helper_filp_open_init(path.as_char_ptr()) })?;
    let file = ScopeGuard::new_with_data(file, |file| {
        // SAFETY: The file was opened above. Nothing else uses this reference.
        unsafe { bindings::fput(file) };
    });
    let mut text = KVec::from_elem(0, 4096, GFP_KERNEL)?;
    let mut len = 0;
    let mut position = 0;
    loop {
        let room = &mut text[len..];
        // SAFETY: The file is open for reading, and `room` is valid for writes.
        let got = unsafe {
            bindings::kernel_read(
                *file,
                room.as_mut_ptr().cast(),
                room.len(),
                &raw mut position,
            )
        };
        match usize::try_from(got) {
            Ok(0) => break,
            Ok(got) => len += got,
            // CAST: Error numbers are small.
            Err(_) => return Err(Error::from_errno(got as c_int)),
        }
        if len == text.len() {
            text.resize(2 * len, 0, GFP_KERNEL)?;
        }
    }
    text.truncate(len);
    Ok(text)
}

/// Returns the names of the types in `/proc/filesystems` that need a block device. Each line
/// consists of `nodev` or nothing, a tab, and a name. Leaves out `fuseblk`: its unmount holds
/// `s_umount` while it waits for the file system's server.
fn disk_types(text: &mut [u8]) -> impl Iterator<Item = &CStr> {
    text.split_inclusive_mut(|&c| c == b'\n')
        .filter_map(|line| {
            *line.last_mut()? = 0;
            CStr::from_bytes_with_nul(line.strip_prefix(b"\t")?).ok()
        })
        .filter(|name| name.to_bytes() != b"fuseblk")
}
