// SPDX-License-Identifier: GPL-2.0

//! File systems that user space has frozen, and how to thaw them without user space.
//!
//! A [`Record`] is made before user space is asked to freeze, and pins what user space may freeze. The
//! record thaws without looking up a path, loading a module or allocating memory, each of which may wait
//! for a frozen file system.
//!
//! Superblocks are found by their types: `iterate_supers()` is not exported, `iterate_supers_type()` is.
//! The types are those in `/proc/filesystems` that need a block device. The types of all mounted file
//! systems on block devices are among them, but for `fuseblk`. The record holds a reference to each type's module. Other
//! types are left out: an iteration over them may wait for a server, and hv_vss_daemon does not freeze
//! them.
//!
//! The paths in `/proc/mounts` are not used. A path lookup may wait for a server or an automounter, and
//! misses file systems that are mounted over, or that were unmounted while frozen. One race is left: if
//! the module of a type is removed between the reading of `/proc/filesystems` and `get_fs_type()`, the
//! latter loads the module again. Nothing is frozen for the record's owner then.
//!
//! `iterate_supers_type()` holds `s_umount` shared around its callback, and `thaw_super()` takes it
//! exclusively. So the callback only pins, by an active reference. A freeze in progress holds `s_umount`
//! exclusively while it syncs, a mount until it is done, and an unmount while it writes. So no iteration
//! happens between a freeze and the thaw of all that is known.
//!
//! The last active reference unmounts, which may write and wait. So pins are dropped by work of their
//! own.
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

/// Number of superblocks that may appear after [`Record::new`] has counted them.
const SPARE: usize = 32;

/// What user space freezes for the record's owner.
///
/// May be dropped in any context while a driver of the module is registered, else in process context.
pub struct Record {
    types: KVec<FileSystemType>,
    /// Never grows: memory may wait for frozen file systems.
    entries: KVec<Entry>,
    /// Drops the pins.
    release: Arc<Release>,
    work: Arc<Detached>,
}

/// A superblock that user space can freeze.
struct Entry {
    /// The number of its device, by which it is found again.
    device: bindings::dev_t,
    /// `None` once the superblock takes no part any more.
    super_block: Option<SuperBlock>,
    role: Role,
}

/// How a superblock takes part in a freeze.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    /// User space had frozen it before it was asked to.
    Earlier,
    /// User space may freeze it.
    Candidate,
    /// User space has frozen it. Thaw it while at least this many freezes by user space remain. Freezes
    /// nest: others than the owner's may be among them.
    Frozen(c_int),
}

impl Record {
    /// Records what is frozen, and pins what can be. May sleep, for as long as a freeze, a mount or an
    /// unmount in progress takes.
    ///
    /// Fails with `ENOMEM`, or as opening and reading `/proc/filesystems` does.
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

    /// User space is about to be asked: what it has frozen by now is left alone. May be called in any
    /// context.
    pub fn begin(&mut self) {
        for entry in &mut self.entries {
            entry.role = match entry.user_freezes() {
                0 => Role::Candidate,
                _ => Role::Earlier,
            };
        }
    }

    /// User space has frozen all. Superblocks that are not frozen lose their pins. May be called in any
    /// context.
    pub fn complete(&mut self) {
        for entry in &mut self.entries {
            if entry.role == Role::Candidate && entry.user_freezes() > 0 {
                entry.role = Role::Frozen(1);
            }
        }
        self.release(&|entry| entry.role == Role::Candidate);
    }

    /// Returns whether all that was frozen still is. A superblock that was thawed and frozen again in
    /// between is not noticed. May be called in any context.
    pub fn is_intact(&self) -> bool {
        self.entries
            .iter()
            .filter(|entry| entry.role != Role::Candidate)
            .filter_map(|entry| entry.super_block.as_ref())
            .all(SuperBlock::is_frozen)
    }

    /// User space is about to be asked to thaw: it undoes one freeze of each superblock from now on. May be
    /// called in any context.
    pub fn begin_thaw(&mut self) {
        for entry in &mut self.entries {
            if let Role::Frozen(_) = entry.role {
                entry.role = Role::Frozen(entry.user_freezes().max(1));
            }
        }
    }

    /// User space has not thawed all: what is still frozen needs to be thawed. May be called in any
    /// context.
    pub fn thaw_failed(&mut self) {
        for entry in &mut self.entries {
            if let Role::Frozen(_) = entry.role {
                entry.role = Role::Frozen(1);
            }
        }
    }

    /// Returns whether nothing is left to thaw. May be called in any context.
    pub fn is_thawed(&self) -> bool {
        !self.entries.iter().any(Entry::is_left)
    }

    /// Thaws what user space has frozen since [`Record::begin`], what was mounted meanwhile included.
    /// Calls `done` for each superblock that was thawed, or could not be. May sleep as [`Record::new`]
    /// does.
    ///
    /// Once [`Record::complete`] was called, a superblock that was not frozen then is left alone.
    pub fn thaw(&mut self, done: &mut dyn FnMut(&SuperBlock, Result)) {
        let mut tried = 0;
        loop {
            // Freezes nest: each superblock is thawed once.
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

    /// User space still freezes: unpin what is not frozen. [`Record::thaw`] finds it again. May be called in
    /// any context.
    pub fn unpin(&mut self) {
        self.release(&|entry| entry.role != Role::Earlier && entry.user_freezes() == 0);
        self.entries.retain(|entry| entry.super_block.is_some());
    }

    /// Adds the superblocks that are wanted and not recorded yet, as many as there is room for.
    fn collect(&mut self, is_wanted: &dyn Fn(&Locked<'_>) -> bool) {
        let Self { types, entries, .. } = self;
        // All pins fit into what drops them.
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
                    // There is room: this does not fail. A pin must not be dropped here.
                    core::mem::forget(entries.push_within_capacity(Entry {
                        device,
                        super_block: Some(super_block),
                        role: Role::Candidate,
                    }));
                }
            });
        }
    }

    /// Drops the pins of entries.
    fn release(&mut self, is_over: &dyn Fn(&Entry) -> bool) {
        {
            let mut pins = self.release.pins.lock();
            for entry in &mut self.entries {
                if !is_over(entry) {
                    continue;
                }
                if let Some(super_block) = entry.super_block.take() {
                    // There is room, as `collect()` sees to.
                    core::mem::forget(pins.push_within_capacity(super_block));
                }
            }
            if pins.is_empty() {
                return;
            }
        }
        if !Detached::schedule(&self.work) {
            // The module goes, so this is process context.
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

    /// Returns whether it needs to be thawed.
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
    /// `pins` is empty, and has room for all.
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
/// The pointer is to a registered type, and this owns a reference to its module.
struct FileSystemType(NonNull<bindings::file_system_type>);

// SAFETY: References to modules are not tied to a thread, and types may be used from any.
unsafe impl Send for FileSystemType {}

impl FileSystemType {
    /// All that are registered.
    fn all() -> Result<KVec<Self>> {
        let mut text = read(c"/proc/filesystems")?;
        let mut types = KVec::new();
        for name in disk_types(&mut text) {
            // SAFETY: `name` is a C string.
            let raw = unsafe { bindings::get_fs_type(name.as_char_ptr()) };
            if let Some(raw) = NonNull::new(raw) {
                // INVARIANT: `get_fs_type()` gets a reference to the module of the type, which is
                // registered while its module is there.
                types.push(Self(raw), GFP_KERNEL)?;
            }
        }
        Ok(types)
    }

    /// Calls `visit` for each superblock of this type that is mounted. It must not take `s_umount`.
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

        // SAFETY: By the type invariant, this owns a reference. A type that is built in has no module,
        // which `module_put()` expects.
        unsafe { bindings::module_put(module) };
    }
}

extern "C" fn visit_callback(sb: *mut bindings::super_block, visit: *mut c_void) {
    // SAFETY: `for_each()` passes a pointer to this, and waits for this call.
    let visit = unsafe { &mut *visit.cast::<&mut dyn FnMut(Locked<'_>)>() };
    if let Some(sb) = NonNull::new(sb) {
        // INVARIANT: `iterate_supers_type()` has seen `SB_BORN` and not `SB_DYING`, and holds the lock
        // until this returns.
        visit(Locked(sb, PhantomData));
    }
}

/// A superblock that lives, with `s_umount` held shared.
///
/// # Invariants
///
/// The superblock is valid, and the lock held, for `'a`.
struct Locked<'a>(NonNull<bindings::super_block>, PhantomData<&'a ()>);

impl Locked<'_> {
    /// Returns whether user space can freeze it, as `FIFREEZE` does.
    fn can_be_frozen(&self) -> bool {
        // SAFETY: By the type invariant, the superblock is valid. It was born: its operations are set.
        let operations = unsafe { (*self.0.as_ptr()).s_op };

        // SAFETY: As above.
        let operations = unsafe { &*operations };
        operations.freeze_fs.is_some() || operations.freeze_super.is_some()
    }

    /// Number of freezes by user space that are not undone, if the superblock is wholly frozen.
    fn user_freezes(&self) -> c_int {
        // SAFETY: By the type invariant, the superblock is valid.
        unsafe { user_freezes(self.0) }
    }

    /// The number of its device, which no other superblock has.
    fn device(&self) -> bindings::dev_t {
        // SAFETY: By the type invariant, the superblock is valid. It was born: the field is set.
        unsafe { (*self.0.as_ptr()).s_dev }
    }

    /// Keeps the superblock. `None` if its last user has just gone.
    fn pin(&self) -> Option<SuperBlock> {
        // SAFETY: By the type invariant, the superblock is valid.
        let is_active = unsafe { bindings::rust_helper_super_get_active(self.0.as_ptr()) };

        // INVARIANT: The helper got an active reference.
        is_active.then_some(SuperBlock(self.0))
    }
}

/// A superblock that stays, unmounted or not.
///
/// Its freezers hold an active reference, too. If somebody else thaws and unmounts it, its device stays
/// in use until this is dropped.
///
/// # Invariants
///
/// The superblock is valid, and this owns an active reference to it.
pub struct SuperBlock(NonNull<bindings::super_block>);

// SAFETY: Active references are not tied to a thread, and superblocks may be used from any.
unsafe impl Send for SuperBlock {}

impl SuperBlock {
    /// May be called in any context.
    fn is_frozen(&self) -> bool {
        // SAFETY: By the type invariant, the superblock is valid.
        unsafe { is_frozen(self.0) }
    }

    /// Number of freezes by user space that are not undone, if the superblock is wholly frozen. May be
    /// called in any context.
    fn user_freezes(&self) -> c_int {
        // SAFETY: By the type invariant, the superblock is valid.
        unsafe { user_freezes(self.0) }
    }

    /// Undoes one freeze by user space, as `FITHAW` does. Calls `done` if the superblock was thawed, or
    /// could not be. Does nothing if user space has not frozen it.
    fn thaw_with(&self, done: &mut dyn FnMut(&Self, Result)) {
        if self.user_freezes() == 0 {
            return;
        }
        match self.thaw() {
            // Somebody was faster.
            Err(EINVAL) if self.user_freezes() == 0 => {}
            result => done(self, result),
        }
    }

    fn thaw(&self) -> Result {
        let sb = self.0.as_ptr();
        let who = bindings::freeze_holder_FREEZE_HOLDER_USERSPACE;

        // SAFETY: By the type invariant, the superblock is valid. It was born: its operations are set.
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

impl fmt::Display for SuperBlock {
    /// The name of its device, and its type.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sb = self.0.as_ptr();

        // SAFETY: By the type invariant, the superblock is valid.
        let id = unsafe { &raw const (*sb).s_id };

        // SAFETY: It is valid for reads. A concurrent change may print a mix.
        let id = unsafe { id.read_volatile() };
        let len = id.iter().position(|&c| c == 0).unwrap_or(id.len());

        // SAFETY: The type is set before the superblock is born, never changes, and its module stays
        // while the superblock is active.
        let file_systems = unsafe { (*sb).s_type };

        // SAFETY: As above.
        let name = unsafe { (*file_systems).name };

        // SAFETY: A type's name is a C string that lives as long as the type.
        let name = unsafe { CStr::from_char_ptr(name) };
        let (id, name) = (&id[..len], name.to_bytes());
        write!(f, "{} ({})", id.escape_ascii(), name.escape_ascii())
    }
}

impl Drop for SuperBlock {
    fn drop(&mut self) {
        // SAFETY: By the type invariant, this owns an active reference.
        unsafe { bindings::deactivate_super(self.0.as_ptr()) };
    }
}

/// Returns whether a superblock is wholly frozen. May be called in any context.
///
/// # Safety
///
/// The superblock must be valid.
unsafe fn is_frozen(sb: NonNull<bindings::super_block>) -> bool {
    // SAFETY: Guaranteed by the safety requirements of this function.
    let frozen = unsafe { &raw const (*sb.as_ptr()).s_writers.frozen };

    // SAFETY: It is valid for reads: a `READ_ONCE()`.
    let frozen = unsafe { frozen.read_volatile() };
    u32::from(frozen) == bindings::SB_FREEZE_COMPLETE
}

/// Number of freezes of a superblock by user space that are not undone; 0 if the superblock is not wholly
/// frozen. May be called in any context.
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

    // SAFETY: It is valid for reads: a `READ_ONCE()`.
    unsafe { count.read_volatile() }
}

/// Reads a file of `/proc`, as the first process of user space sees it: kernel threads see no files.
fn read(path: &CStr) -> Result<KVec<u8>> {
    // SAFETY: `path` is a C string.
    let file = from_err_ptr(unsafe { bindings::rust_helper_filp_open_init(path.as_char_ptr()) })?;
    let file = ScopeGuard::new_with_data(file, |file| {
        // SAFETY: It was opened above, and nobody else has it.
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

/// The names in `/proc/filesystems` of the types that need a block device: each line is `nodev`, or
/// nothing, and a name behind a tab. `fuseblk` is left out: an unmount holds `s_umount` while it waits
/// for its server.
fn disk_types(text: &mut [u8]) -> impl Iterator<Item = &CStr> {
    text.split_inclusive_mut(|&c| c == b'\n')
        .filter_map(|line| {
            *line.last_mut()? = 0;
            CStr::from_bytes_with_nul(line.strip_prefix(b"\t")?).ok()
        })
        .filter(|name| name.to_bytes() != b"fuseblk")
}
