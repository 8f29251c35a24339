/* Paths that come back: the working directory, canonical names, links below /proc, temporary names. */
#include "doors.h"
#include <sys/wait.h>

static void link_of(const char *name)
{
	char room[PATH_MAX];
	ssize_t n = readlink(name, room, sizeof room - 1);
	if (n < 0)
		say("%s: %s", name, strerror(errno));
	else
		room[n] = 0, say("%s: %s", name, room);
}

static void fd_link(int fd)
{
	char name[64], other[64];
	snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
	snprintf(other, sizeof other, "/proc/%d/fd/%d", getpid(), fd);
	char room[PATH_MAX], same[PATH_MAX];
	ssize_t n = readlink(name, room, sizeof room - 1), m = readlink(other, same, sizeof same - 1);
	if (n < 0 || m != n || memcmp(room, same, n))
		say("links differ");
	room[n > 0 ? n : 0] = 0;
	char *hash = strstr(room, "#");
	if (hash)
		strcpy(hash, "#");
	say("descriptor: %s", room);
}

static void where(void)
{
	char room[PATH_MAX];
	TEXT(getcwd(NULL, 0));
	TEXT(getcwd(room, sizeof room));
	TEXT(getcwd(room, 3));
	TEXT(getcwd(room, 0));
	TEXT(getcwd(NULL, PATH_MAX));
#ifdef __GLIBC__
	TEXT(getwd(room));
#endif
	unsetenv("PWD");
	TEXT(get_current_dir_name());
	TEXT(realpath(".", NULL));
	link_of("/proc/self/cwd");
	link_of("/proc/thread-self/cwd");
	size_t length = strlen(getcwd(NULL, 0));
	say("exact: %d, one less: %d", getcwd(room, length + 1) != NULL, getcwd(room, length) != NULL);
}

static void temporary(char *(*make)(char *), const char *what)
{
	char name[PATH_MAX];
	snprintf(name, sizeof name, "%s/t-XXXXXX", root);
	char *made = make(name);
	struct stat stat;
	say("%s: %d, in place %d, of that length %d", what, made != NULL, made == name, !lstat(name, &stat) && strlen(name) == strlen(root) + 9);
	if (!lstat(name, &stat))
		say("  mode %o", stat.st_mode);
}

static void names(void)
{
	char name[PATH_MAX];
	struct stat stat;
	temporary(mkdtemp, "mkdtemp");
#define MADE(call)                                                                                            \
	do {                                                                                                  \
		int fd_ = call;                                                                               \
		fstat(fd_, &stat);                                                                            \
		size_t end_ = strcspn(name + strlen(root), ".");                                              \
		say("%s: %d mode %o flags %x fresh %d suffix %s, there %d", #call, fd_ >= 0, stat.st_mode,     \
		    fcntl(fd_, F_GETFL) & ~O_LARGEFILE, strstr(name, "XXXXXX") == NULL, name + strlen(root) + end_, access(name, F_OK)); \
		say("  %zd", write(fd_, "x", 1));                                                             \
	} while (0)
	snprintf(name, sizeof name, "%s/fXXXXXX", root);
	MADE(mkstemp(name));
	snprintf(name, sizeof name, "%s/fXXXXXX", root);
	MADE(mkostemp(name, O_APPEND));
	snprintf(name, sizeof name, "%s/fXXXXXX.c", root);
	MADE(mkstemps(name, 2));
	snprintf(name, sizeof name, "%s/fXXXXXX.cc", root);
	MADE(mkostemps(name, 3, O_SYNC));
	snprintf(name, sizeof name, "%s/fXXXXX", root);
	TRY(mkstemp(name));
	snprintf(name, sizeof name, "%s/none/fXXXXXX", root);
	TRY(mkstemp(name));
	snprintf(name, sizeof name, "%s/none/fXXXXXX", root);
	TRY(mkdtemp(name) ? 0 : -1);
	snprintf(name, sizeof name, "%s/mXXXXXX", root);
	char *free_name = mktemp(name);
	say("mktemp: %d, free %d", free_name == name, access(name, F_OK) && errno == ENOENT);
	unsetenv("TMPDIR");
	char *given = tempnam(root, "abcdefgh");
	say("tempnam: %d, beginning %d", given != NULL, given && !strncmp(given, at("/abcde"), strlen(root) + 6));
	say("  free: %d", given && access(given, F_OK));
	setenv("TMPDIR", root, 1);
	given = tempnam(NULL, "p");
	say("tempnam by TMPDIR: %s", given && !strncmp(given, root, strlen(root)) ? "inside" : given && !strncmp(given, "/tmp/", 5) ? "/tmp" : "elsewhere");
	given = tempnam(at("/none"), NULL);
	say("tempnam nowhere: %s", given && !strncmp(given, root, strlen(root)) ? "inside" : given && !strncmp(given, "/tmp/", 5) ? "/tmp" : "elsewhere");
	FILE *nameless = tmpfile();
	say("tmpfile: %d", nameless != NULL);
}

static void family(void)
{
	mkdir(at("/d"), 0755), mkdir(at("/d/e"), 0755), mkdir(at("/d/e/g"), 0755);
	file(at("/d/f"), "text");
	symlink("d/e", at("/to-e"));
	say("at the root");
	TRY(chdir(root)), where();
	say("below");
	TRY(chdir("d/e")), where();
	say("through a link");
	TRY(chdir(at("/to-e"))), where();
	say("by descriptor");
	int dir = open(at("/d"), O_RDONLY | O_DIRECTORY);
	TRY(fchdir(dir)), where(), fd_link(dir);
	say("canonical");
	const char *paths[] = {"", "/", "/d/../d/./e//", "/to-e/../f", "/to-e/g", "/none", "/none/x", "/d/f/x", "/d/f", "/d/f/"};
	for (unsigned i = 0; i < sizeof paths / sizeof *paths; i++) {
		char room[PATH_MAX] = "unchanged";
		TEXT(realpath(at(paths[i]), NULL));
		char *found = realpath(at(paths[i]), room);
		say("  %d %s", found == room, found ? room : "none");
#ifdef __GLIBC__
		TEXT(canonicalize_file_name(at(paths[i])));
#endif
	}
	TEXT(realpath("f", NULL));
	TEXT(realpath("", NULL));
	TEXT(realpath(NULL, NULL));
	TEXT(realpath("/proc/self/cwd/f", NULL));
	say("/proc");
	int file_fd = open("f", O_RDONLY);
	fd_link(file_fd), fd_link(open(root, O_PATH));
	int nameless = open(root, O_TMPFILE | O_RDWR, 0600);
	if (nameless >= 0)
		fd_link(nameless);
	link_of("/proc/self/root");
	char name[PATH_MAX];
	snprintf(name, sizeof name, "/proc/self/fd/%d/f", dir);
	say("%s", content(name));
	say("%s", content("/proc/self/cwd/f"));
	snprintf(name, sizeof name, "/proc/self/fd/%d/made-by-descriptor", dir);
	file(name, "1"), say("%s", content(at("/d/made-by-descriptor")));
	file("/proc/self/cwd/made-by-cwd", "2"), say("%s", content(at("/d/made-by-cwd")));
	DO(rename("/proc/self/cwd/made-by-cwd", "/proc/self/cwd/renamed-by-cwd"));
	say("%s", content(at("/d/renamed-by-cwd")));
	snprintf(name, sizeof name, "/proc/self/fd/%d", file_fd);
	DO(chmod(name, 0600));
	int again = TRY(open(name, O_WRONLY | O_TRUNC));
	DO(write(again, "emptied", 7));
	say("%s", content(at("/d/f")));
	DO(truncate(name, 3));
	say("%s", content(at("/d/f")));
	say("a renamed parent");
	TRY(chdir(at("/d/e/g")));
	int below = open(".", O_RDONLY | O_DIRECTORY);
	DO(rename(at("/d"), at("/moved")));
	where(), fd_link(below);
	file("still", "here"), say("%s", content(at("/moved/e/g/still")));
	TRY(openat(below, "by-descriptor", O_CREAT | O_WRONLY, 0600));
	DO(access(at("/moved/e/g/by-descriptor"), F_OK));
	DO(access("../../f", F_OK));
	say("a deleted one");
	mkdir(at("/gone"), 0755), chdir(at("/gone"));
	DO(rmdir(at("/gone")));
	TEXT(getcwd(NULL, 0));
	link_of("/proc/self/cwd");
	TRY(open("x", O_CREAT | O_WRONLY, 0600));
	TRY(open(".", O_RDONLY));
	DO(mkdir("x", 0700));
	DO(access("..", F_OK));
	TRY(chdir(".."));
	TRY(chdir(root)), where();
	say("a long one");
	char *component = malloc(201);
	memset(component, 'n', 200), component[200] = 0;
	for (int i = 0; i < 30; i++)
		if (mkdir(component, 0755) || chdir(component))
			say("at %d: %s", i, strerror(errno));
	char *long_name = getcwd(NULL, 0);
	say("long: %s", long_name ? (strncmp(long_name, root, strlen(root)) ? long_name : "begins well") : strerror(errno));
	say("length: %ld", long_name ? (long)(strlen(long_name) - strlen(root)) : -1L);
	file("deep", "deep"), say("%s", content("deep"));
	chdir(root);
	say("names");
	names();
}
