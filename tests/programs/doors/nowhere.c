/* Pointers that lead nowhere: NULL and an error's number for one. The kernel answers EFAULT and the program goes on. By
 * number, because a libc may look at some of them itself. */
#include "doors.h"
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
	say("%s", content("f"));
	close(f), close(s);
	DO(chdir("/"));
}
