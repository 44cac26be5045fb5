// SPDX-License-Identifier: GPL-2.0
/*
 * Compatibility between kernel versions, the C part of rust/hyperv/compat.rs.
 * rust/Kbuild defines HYPERV_BEFORE_7_3 for this file only.
 */

#include <linux/fs.h>
#include <linux/fs_struct.h>
#include <linux/sched/task.h>
#include <linux/spinlock.h>

#include "helpers.h"

#ifndef HYPERV_BEFORE_7_3

struct file *rust_helper_filp_open_init(const char *path)
{
	struct file *file;

	scoped_with_init_fs()
		file = filp_open(path, O_RDONLY, 0);
	return file;
}

#else

/* Before 7.3, the init process shares its root with init_task and the kernel threads. */
struct file *rust_helper_filp_open_init(const char *path)
{
	struct file *file;
	struct path root;

	task_lock(&init_task);
	get_fs_root(init_task.fs, &root);
	task_unlock(&init_task);
	file = file_open_root(&root, path, O_RDONLY, 0);
	path_put(&root);
	return file;
}

unsigned long rust_helper_spin_lock_irqsave(spinlock_t *lock)
{
	unsigned long flags;

	spin_lock_irqsave(lock, flags);
	return flags;
}

bool rust_helper_spin_trylock_irqsave(spinlock_t *lock, unsigned long *flags)
{
	return spin_trylock_irqsave(lock, *flags);
}

void rust_helper_spin_unlock_irqrestore(spinlock_t *lock, unsigned long flags)
{
	spin_unlock_irqrestore(lock, flags);
}

#endif
