/* Preloaded into hadm-nbd by the chaos test: calls on the data disk fail while the control file's first byte says so.
 * HADM_SHIM_DISK names the disk, HADM_SHIM_CONTROL the control file. Only for disks on tmpfs, where the program
 * reads, writes and flushes by calls of the C library. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static const volatile unsigned char *control;
static struct stat disk;

__attribute__((constructor)) static void begin(void)
{
	const char *path = getenv("HADM_SHIM_CONTROL"), *name = getenv("HADM_SHIM_DISK");
	int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
	void *map = fd < 0 ? MAP_FAILED : mmap(NULL, 1, PROT_READ, MAP_SHARED, fd, 0);

	if (map != MAP_FAILED && name && stat(name, &disk) == 0)
		control = map;
}

/* Returns the error of a call of this kind on this file: 'w', 'r' or 'f'; 's' is a full disk. 0: none. The control byte
 * is read once: the fault may end at any moment, and a full disk must not end as a failed one. */
static int fault(int fd, char kind)
{
	const unsigned char now = control ? *control : '-';
	struct stat found;

	if (now != kind && !(now == 's' && kind == 'w'))
		return 0;
	if (fstat(fd, &found) || found.st_dev != disk.st_dev || found.st_ino != disk.st_ino)
		return 0;
	return now == 's' ? ENOSPC : EIO;
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define FAIL(fd, kind) do { int error = fault(fd, kind); if (error) { errno = error; return -1; } } while (0)

ssize_t pread64(int fd, void *to, size_t len, off64_t at) { FAIL(fd, 'r'); return NEXT(pread64)(fd, to, len, at); }
ssize_t pwrite64(int fd, const void *from, size_t len, off64_t at) { FAIL(fd, 'w'); return NEXT(pwrite64)(fd, from, len, at); }
int fallocate64(int fd, int mode, off64_t at, off64_t len) { FAIL(fd, 'w'); return NEXT(fallocate64)(fd, mode, at, len); }
int fdatasync(int fd) { FAIL(fd, 'f'); return NEXT(fdatasync)(fd); }
