/* Attributes, times, sizes, extended attributes, handles, watches, and what else takes a path. */
#include "doors.h"
#include <mntent.h>
#include <sys/inotify.h>
#include <sys/ipc.h>
#include <sys/time.h>
#include <sys/xattr.h>
#include <utime.h>
#ifdef __GLIBC__
#include <dlfcn.h>
#include <link.h>
#include <utmp.h>
#endif

static void look(const char *path)
{
	struct stat stat;
	if (lstat(path, &stat))
		say("%s: %s", path, strerror(errno));
	else
		say("%s: mode %o size %ld links %ld mtime %ld.%09ld", path, stat.st_mode, S_ISREG(stat.st_mode) ? (long)stat.st_size : 0L,
		    S_ISREG(stat.st_mode) ? (long)stat.st_nlink : 0L, stat.st_mtim.tv_sec < 2000000000 && stat.st_mtim.tv_sec > 1000000000 ? 0L : (long)stat.st_mtim.tv_sec,
		    stat.st_mtim.tv_sec < 2000000000 && stat.st_mtim.tv_sec > 1000000000 ? 0L : (long)stat.st_mtim.tv_nsec);
}

static void modes(int top)
{
	DO(chmod(at("/f"), 0604)), look(at("/f"));
	DO(chmod(at("/link"), 0640)), look(at("/f"));
	DO(fchmodat(top, "f", 0600, 0)), look(at("/f"));
	DO(fchmodat(AT_FDCWD, at("/d"), 0711, 0)), look(at("/d"));
	TRY(fchmodat(top, "link", 0600, AT_SYMLINK_NOFOLLOW));
	int fd = open(at("/f"), O_RDWR);
	DO(fchmod(fd, 0644)), look(at("/f"));
	DO(chmod(at("/none"), 0600));
	DO(chown(at("/f"), -1, -1));
	DO(lchown(at("/link"), getuid(), -1));
	DO(fchown(fd, -1, getgid()));
	DO(fchownat(top, "f", getuid(), -1, 0));
	DO(fchownat(fd, "", -1, -1, AT_EMPTY_PATH));
	close(fd);
}

static void times(int top)
{
	struct timespec both[2] = {{3000000001, 111}, {3000000002, 222}}, touch[2] = {{0, UTIME_OMIT}, {3000000009, 9}};
	struct timeval old[2] = {{3000000003, 0}, {3000000004, 5}};
	struct utimbuf oldest = {3000000005, 3000000006};
	DO(utimensat(top, "f", both, 0)), look(at("/f"));
	DO(utimensat(AT_FDCWD, at("/link"), touch, AT_SYMLINK_NOFOLLOW)), look(at("/link")), look(at("/f"));
	DO(utimes(at("/f"), old)), look(at("/f"));
	DO(lutimes(at("/link"), old)), look(at("/link"));
	DO(utime(at("/f"), &oldest)), look(at("/f"));
	DO(futimesat(top, "f", old)), look(at("/f"));
	int fd = open(at("/f"), O_RDONLY);
	DO(futimens(fd, both)), look(at("/f"));
	DO(futimes(fd, old)), look(at("/f"));
	DO(utimes(at("/none"), NULL));
	close(fd);
}

static void sizes(void)
{
	DO(truncate(at("/f"), 3)), look(at("/f")), say("%s", content(at("/f")));
	DO(truncate(at("/link"), 5)), look(at("/f"));
	DO(truncate(out("/enters"), 2)), say("%s", content(at("/f")));
	DO(truncate(at("/d"), 1));
	DO(truncate(at("/none"), 1));
	int fd = open(at("/f"), O_RDWR);
	DO(ftruncate(fd, 10)), look(at("/f"));
	close(fd);
}

static void extended(void)
{
	char value[64] = "", list[256];
	int fd = open(at("/f"), O_RDWR);
	DO(setxattr(at("/f"), "user.one", "1", 1, XATTR_CREATE));
	DO(setxattr(at("/f"), "user.one", "1", 1, XATTR_CREATE));
	DO(lsetxattr(at("/f"), "user.two", "22", 2, 0));
	DO(fsetxattr(fd, "user.three", "333", 3, 0));
	DO(setxattr(at("/link"), "user.four", "4444", 4, 0));
	DO(lsetxattr(at("/link"), "user.no", "4", 1, 0));
	DO(setxattr(out("/enters"), "user.five", "5", 1, 0));
	DO(getxattr(at("/link"), "user.four", value, sizeof value));
	DO(lgetxattr(at("/f"), "user.three", value, sizeof value));
	DO(fgetxattr(fd, "user.one", value, sizeof value));
	DO(getxattr(at("/f"), "user.none", value, sizeof value));
	DO(getxattr(at("/f"), "user.four", value, 1));
	ssize_t n = DO(listxattr(at("/f"), list, sizeof list));
	DO(llistxattr(at("/f"), NULL, 0)), DO(flistxattr(fd, NULL, 0));
	for (ssize_t i = 0; i < n; i += strlen(list + i) + 1)
		if (!strncmp(list + i, "user.", 5))
			later("%s", list + i);
	sorted();
	DO(removexattr(at("/f"), "user.one"));
	DO(lremovexattr(at("/f"), "user.two"));
	DO(fremovexattr(fd, "user.three"));
	DO(removexattr(at("/none"), "user.three"));
	DO(listxattr(at("/f"), NULL, 0));
	close(fd);
}

static void questions(int top)
{
	struct stat a, b;
	DO(access(at("/f"), R_OK | W_OK)), DO(access(at("/none"), F_OK)), DO(faccessat(top, "f", R_OK, AT_EACCESS));
	DO(access(at("/f/x"), F_OK)), DO(access(at("/link"), F_OK));
#ifdef __GLIBC__
	DO(eaccess(at("/f"), R_OK)), DO(euidaccess(at("/d"), X_OK));
	struct statx more;
	DO(statx(top, "f", 0, STATX_BASIC_STATS, &more));
	say("size %ld", (long)more.stx_size);
	DO(statx(top, "", AT_EMPTY_PATH, STATX_BASIC_STATS, &more));
#endif
	DO(pathconf(at("/d"), _PC_NAME_MAX)), DO(pathconf(at("/f"), _PC_LINK_MAX)), DO(pathconf(at("/none"), _PC_NAME_MAX));
	stat(at("/f"), &a), fstatat(top, "link", &b, 0);
	say("same: %d", a.st_ino == b.st_ino);
	say("keys: %d %d", ftok(at("/f"), 1) == ftok(at("/link"), 1), ftok(at("/f"), 1) == -1);
	TRY(ftok(at("/none"), 1));
	struct {
		struct file_handle handle;
		unsigned char room[128];
	} handle = {.handle = {.handle_bytes = 128}};
	int mount;
	TRY(name_to_handle_at(top, "f", &handle.handle, &mount, 0));
	TRY(name_to_handle_at(AT_FDCWD, at("/none"), &handle.handle, &mount, 0));
	int fd = open_by_handle_at(top, &handle.handle, O_RDWR);
	if (fd >= 0)
		write(fd, "by handle", 9), close(fd);
	say("%s", fd >= 0 || errno == EPERM ? "as allowed" : strerror(errno));
	file(at("/f"), "text");
}

static void watches(void)
{
	char events[4096];
	int fd = inotify_init1(IN_NONBLOCK);
	TRY(inotify_add_watch(fd, at("/d"), IN_CREATE | IN_DELETE));
	TRY(inotify_add_watch(fd, at("/none"), IN_CREATE));
	file(at("/d/seen"), "x"), unlink(at("/d/seen"));
	ssize_t n = read(fd, events, sizeof events);
	for (char *event = events; n > 0 && event < events + n; event += sizeof(struct inotify_event) + ((struct inotify_event *)event)->len)
		say("event %x %s", ((struct inotify_event *)event)->mask, ((struct inotify_event *)event)->name);
	close(fd);
}

static void streams(void)
{
	struct mntent entry = {.mnt_fsname = "a", .mnt_dir = "b", .mnt_type = "c", .mnt_opts = "d"}, *read_back;
	FILE *table = setmntent(at("/table"), "w");
	say("setmntent: %d", table != NULL);
	if (table)
		addmntent(table, &entry), endmntent(table);
	table = setmntent(at("/table"), "a");
	if (table)
		addmntent(table, &entry), endmntent(table);
	table = setmntent(at("/table"), "r");
	while (table && (read_back = getmntent(table)))
		say("  %s on %s", read_back->mnt_fsname, read_back->mnt_dir);
	say("setmntent of nothing: %d", setmntent(at("/none"), "r") != NULL);
	/* Where a stream begins: by that programs know a new file from an old one. */
	const char *modes[] = {"r", "r+", "a", "a+", "ae", "ab+"};
	file(at("/begun"), "some text");
	for (size_t i = 0; i < sizeof modes / sizeof *modes; i++) {
		FILE *begun = fopen(at("/begun"), modes[i]);
		say("%s: begins at %ld, %ld", modes[i], ftell(begun), (long)lseek(fileno(begun), 0, SEEK_CUR));
		fclose(begun);
	}
	FILE *stream = fopen(at("/stream"), "w+");
	fputs("hello", stream);
	stream = freopen(at("/stream2"), "w", stream);
	fputs("again", stream), fclose(stream);
	say("%s %s", content(at("/stream")), content(at("/stream2")));
	TRY(fopen(at("/none/x"), "w") ? 0 : -1), TRY(fopen(at("/f"), "wx") ? 0 : -1);
#ifdef __GLIBC__
	struct utmp line = {.ut_type = USER_PROCESS, .ut_user = "somebody"};
	file(at("/wtmp"), "");
	updwtmp(at("/wtmp"), &line), updwtmp(at("/wtmp"), &line);
	look(at("/wtmp"));
	DO(utmpname(at("/utmp")));
	file(at("/utmp"), "");
	setutent(), say("pututline: %d", pututline(&line) != NULL), endutent();
	look(at("/utmp"));
#endif
}

#ifdef __GLIBC__
static char library[PATH_MAX];

static int find(struct dl_phdr_info *info, size_t size, void *unused)
{
	(void)size, (void)unused;
	const char *slash = strrchr(info->dlpi_name, '/');
	if (slash && !strncmp(slash, "/libc.so", 8))
		snprintf(library, sizeof library, "%.*s/libm.so.6", (int)(slash - info->dlpi_name), info->dlpi_name);
	return 0;
}

static void libraries(void)
{
	char block[65536];
	ssize_t n;
	dl_iterate_phdr(find, NULL);
	int from = open(library, O_RDONLY), to = open(at("/d/libcopy.so"), O_CREAT | O_WRONLY, 0755);
	while ((n = read(from, block, sizeof block)) > 0)
		write(to, block, n);
	close(from), close(to);
	void *copy = dlopen(at("/d/libcopy.so"), RTLD_NOW);
	say("dlopen: %d", copy != NULL && dlsym(copy, "cos") != NULL);
	copy = dlopen(at("/d/libcopy.so"), RTLD_NOW | RTLD_DEEPBIND);
	say("dlopen again: %d", copy != NULL);
	say("dlopen of nothing: %d", dlopen(at("/none.so"), RTLD_NOW) != NULL);
	say("dlopen of a name: %d", dlopen("libm.so.6", RTLD_LAZY) != NULL);
	say("dlopen of the program: %d", dlopen(NULL, RTLD_LAZY) != NULL);
	say("dlmopen: %d", dlmopen(LM_ID_BASE, at("/d/libcopy.so"), RTLD_NOW) != NULL);
	chdir(at("/d"));
	say("dlopen from here: %d", dlopen("./libcopy.so", RTLD_NOW) != NULL);
	chdir("/");
	unlink(at("/d/libcopy.so"));
}
#endif

static void family(void)
{
	mkdir(at("/d"), 0755), file(at("/f"), "some text"), symlink("f", at("/link")), symlink(at("/f"), out("/enters"));
	int top = open(root, O_RDONLY | O_DIRECTORY);
	modes(top), times(top), sizes(), extended(), questions(top), watches(), streams();
#ifdef __GLIBC__
	libraries();
#endif
}
