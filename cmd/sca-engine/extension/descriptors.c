// SPDX-License-Identifier: Apache-2.0
#define _GNU_SOURCE
#include "descriptors.h"

#include <dirent.h>
#include <fcntl.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef SYS_close_range
#define SYS_close_range 436
#endif
#define CLOSE_AND_UNSHARE (1U << 1) /* CLOSE_RANGE_UNSHARE, linux/close_range.h */

static void close_all(void)
{
	DIR *open_ones = opendir("/proc/thread-self/fd");
	struct dirent *entry;

	if (!open_ones)
		return;
	while ((entry = readdir(open_ones))) {
		char *end;
		long fd = strtol(entry->d_name, &end, 10);

		if (*end == 0 && fd != dirfd(open_ones))
			close(fd);
	}
	closedir(open_ones);
}

void sca_descriptors_part(void)
{
	int fd;

	/* Linux 5.9, which copies nothing. Docker's profile allows it and forbids unshare(). */
	if (syscall(SYS_close_range, 0U, ~0U, CLOSE_AND_UNSHARE) < 0) {
		if (unshare(CLONE_FILES) < 0)
			return;
		close_all();
	}
	for (fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
		open("/dev/null", O_RDWR);
}
