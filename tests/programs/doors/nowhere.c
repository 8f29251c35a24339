/* Pointers that lead nowhere: NULL and an error's number for one. The kernel answers EFAULT and the program goes on. By
 * number, because a libc may look at some of them itself. */
#include "doors.h"
#include <stdint.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#define BOTH(name, ...)                                                                                       \
	do {                                                                                                  \
		for (int i = 0; i < 2; i++) {                                                                 \
			void *nowhere = i ? (void *)-1 : NULL;                                                \
			errno = 0;                                                                            \
			long result = syscall(SYS_##name, __VA_ARGS__);                                       \
			say("%s %s: %ld %s", #name, i ? "-1" : "NULL", result, strerror(errno));              \
		}                                                                                             \
	} while (0)

/* Of <linux/fs.h>, which musl's compiler does not find. */
enum { FIDEDUPERANGE = (int)0xc0189436, FICLONERANGE = 0x4020940d };
struct dedupe {
	uint64_t offset, length;
	uint16_t count, reserved[3];
	struct {
		int64_t fd;
		uint64_t offset, done;
		int32_t status;
		uint32_t reserved;
	} target;
};

/* Targets of FIDEDUPERANGE that the count promises and the memory does not hold. */
static void targets(int f)
{
	long page = sysconf(_SC_PAGESIZE);
	char *two = mmap(NULL, 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	munmap(two + page, page);
	struct dedupe *range = (void *)(two + page - sizeof *range);
	for (int count = 1; count < 0x10000; count = count == 1 ? 2 : count * 100) {
		range->length = 1, range->count = count, range->target.fd = f;
		errno = 0;
		long result = syscall(SYS_ioctl, f, FIDEDUPERANGE, range);
		say("FIDEDUPERANGE %d: %ld %s", count, result, strerror(errno));
	}
	say("FICLONERANGE: %ld %s", syscall(SYS_ioctl, f, FICLONERANGE, two + page - 8), strerror(errno));
	munmap(two, page);
}

static void family(void)
{
	char room[200];
	DO(chdir(root));
	file("f", "text");
	symlink("f", "link");
	int f = open("f", O_RDWR);
	BOTH(write, f, nowhere, 3L);
	BOTH(writev, f, nowhere, 1L);
	BOTH(pwritev, f, nowhere, 1L, 0L, 0L);
	BOTH(readlinkat, AT_FDCWD, "link", nowhere, 10L);
	BOTH(readlinkat, AT_FDCWD, nowhere, room, 10L);
	BOTH(getcwd, nowhere, 100L);
	say("%ld %s", syscall(SYS_getcwd, room, 0L), strerror(errno));
	BOTH(openat, AT_FDCWD, nowhere, O_RDWR, 0L);
	BOTH(openat, AT_FDCWD, nowhere, O_RDWR | O_CREAT, 0644L);
	BOTH(openat2, AT_FDCWD, "f", nowhere, 24L);
	BOTH(mkdirat, AT_FDCWD, nowhere, 0L);
	BOTH(unlinkat, AT_FDCWD, nowhere, 0L);
	BOTH(renameat2, AT_FDCWD, nowhere, AT_FDCWD, "g", 0L);
	BOTH(renameat2, AT_FDCWD, "f", AT_FDCWD, nowhere, 0L);
	BOTH(symlinkat, nowhere, AT_FDCWD, "g");
	BOTH(linkat, AT_FDCWD, "f", AT_FDCWD, nowhere, 0L);
	BOTH(truncate, nowhere, 0L);
	BOTH(fchmodat, AT_FDCWD, nowhere, 0L);
	BOTH(statfs, nowhere, room);
	BOTH(chdir, nowhere);
	BOTH(execve, nowhere, NULL, NULL);
	BOTH(execveat, f, "", nowhere, nowhere, (long)AT_EMPTY_PATH);
	int s = socket(AF_UNIX, SOCK_DGRAM, 0);
	BOTH(bind, s, nowhere, 20L);
	BOTH(connect, s, nowhere, 20L);
	BOTH(sendto, s, "x", 1L, 0L, nowhere, 20L);
	BOTH(sendmsg, s, nowhere, 0L);
	BOTH(recvmsg, s, nowhere, (long)MSG_DONTWAIT);
	BOTH(getsockname, s, nowhere, nowhere);
	BOTH(io_submit, 0L, 1L, nowhere);
	targets(f);
	say("%s", content("f"));
	close(f), close(s);
	DO(chdir("/"));
}
