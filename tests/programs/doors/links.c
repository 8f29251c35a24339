/* Symbolic links: relative, absolute, in and out, loops, `..` after them; and calls that do not follow. */
#include "doors.h"

static void target(const char *path)
{
	char room[PATH_MAX];
	struct stat stat;
	memset(room, '#', sizeof room);
	ssize_t n = readlink(path, room, sizeof room - 1);
	if (n < 0) {
		say("readlink %s: %s", path, strerror(errno));
		return;
	}
	room[n] = 0;
	lstat(path, &stat);
	say("readlink %s: %s (size differs by %ld)", path, room, (long)(stat.st_size - n));
#ifdef __GLIBC__
	struct statx more;
	if (!statx(AT_FDCWD, path, AT_SYMLINK_NOFOLLOW, STATX_ALL, &more))
		say("  statx differs by %ld", (long)(more.stx_size - n));
#endif
	if (!fstatat(AT_FDCWD, path, &stat, AT_SYMLINK_NOFOLLOW))
		say("  fstatat differs by %ld", (long)(stat.st_size - n));
	char *found = realpath(path, NULL);
	say("  realpath: %s", found ? found : strerror(errno));
	free(found);
}

static void family(void)
{
	char room[PATH_MAX], few[4];
	int top = open(root, O_RDONLY | O_DIRECTORY);
	mkdir(at("/d"), 0755), mkdir(at("/d/sub"), 0755);
	file(at("/d/f"), "inside"), file(out("/f"), "outside");
	say("made");
	DO(symlink("d/f", at("/relative")));
	DO(symlink(at("/d/f"), at("/absolute")));
	DO(symlink(at(""), at("/d/to-root")));
	DO(symlink(at("/"), at("/d/to-root-slash")));
	DO(symlink(out("/f"), at("/d/leaves")));
	DO(symlink(at("/d/f"), out("/enters")));
	DO(symlink(at("/d"), out("/enters-dir")));
	DO(symlinkat("../d/sub", top, "d/up"));
	DO(symlinkat(at("/d/sub"), top, "d/down"));
	DO(symlink("self", at("/self")));
	DO(symlink(at("/b"), at("/a")));
	DO(symlink(at("/a"), at("/b")));
	DO(symlink("nowhere", at("/dangling")));
	DO(symlink(at("/none"), at("/dangling-absolute")));
	DO(symlink(at("/d/f"), at("/absolute")));
	DO(symlink("x", at("/none/x")));
	DO(symlink("", at("/empty")));
	DO(symlink("d/f/", at("/slash")));
	snprintf(room, sizeof room, "%s-not", root);
	DO(symlink(room, at("/other-prefix")));
	say("read");
	const char *all[] = {"/relative", "/absolute", "/d/to-root", "/d/to-root-slash", "/d/leaves", "/d/up", "/d/down", "/self", "/a", "/dangling",
			     "/dangling-absolute", "/slash", "/other-prefix", "/d/to-root/d/to-root/absolute", "/d", "/none"};
	for (unsigned i = 0; i < sizeof all / sizeof *all; i++)
		target(at(all[i]));
	target(out("/enters")), target(out("/enters-dir")), target(out("/enters-dir/to-root"));
	DO(readlink(at("/absolute"), few, sizeof few));
	DO(readlink(at("/absolute"), few, 0));
	DO(readlinkat(top, "d/leaves", few, 2));
	say("followed");
	say("%s", content(at("/relative"))), say("%s", content(at("/absolute"))), say("%s", content(at("/d/leaves")));
	say("%s", content(out("/enters"))), say("%s", content(out("/enters-dir/f"))), say("%s", content(at("/d/to-root/d/f")));
	say("%s", content(at("/self"))), say("%s", content(at("/a"))), say("%s", content(at("/dangling"))), say("%s", content(at("/slash")));
	say("%s", content(at("/d/up/../f"))), say("%s", content(at("/d/down/../../relative"))), say("%s", content(at("/d/to-root/../none")));
	say("%s", content(out("/enters-dir/../absolute")));
	file(at("/absolute"), "written through"), say("%s", content(at("/d/f")));
	file(out("/enters"), "written from outside"), say("%s", content(at("/d/f")));
	file(at("/dangling"), "made through"), say("%s", content(at("/nowhere")));
	file(at("/dangling-absolute"), "made too"), say("%s", content(at("/none")));
	file(out("/enters-dir/new"), "made from outside"), say("%s", content(at("/d/new")));
	DO(mkdir(out("/enters-dir/dir"), 0755));
	DO(rename(out("/enters-dir/new"), out("/enters-dir/renamed")));
	DO(rename(out("/enters-dir/renamed"), at("/d/again")));
	DO(unlink(out("/enters-dir/again")));
	DO(link(out("/enters-dir/f"), at("/hard")));
	say("not followed");
	struct stat stat;
	TRY(open(at("/absolute"), O_RDONLY | O_NOFOLLOW));
	TRY(open(out("/enters"), O_RDONLY | O_NOFOLLOW));
	TRY(open(at("/self"), O_RDONLY));
	int fd = TRY(open(at("/absolute"), O_PATH | O_NOFOLLOW));
	DO(readlinkat(fd, "", few, sizeof few));
	DO(fstatat(fd, "", &stat, AT_EMPTY_PATH));
	say("a link: %d", S_ISLNK(stat.st_mode));
	DO(fchownat(top, "absolute", getuid(), getgid(), AT_SYMLINK_NOFOLLOW));
	DO(lchown(at("/absolute"), getuid(), getgid()));
	DO(faccessat(top, "dangling-absolute", F_OK, 0));
	DO(access(at("/self"), F_OK));
	DO(rename(at("/absolute"), at("/d/absolute")));
	target(at("/d/absolute"));
	DO(link(at("/d/absolute"), at("/hard-link-to-link")));
	target(at("/hard-link-to-link"));
	DO(linkat(AT_FDCWD, at("/d/absolute"), AT_FDCWD, at("/hard-to-file"), AT_SYMLINK_FOLLOW));
	say("%s", content(at("/hard-to-file")));
	DO(unlink(at("/d/absolute")));
	say("%s", content(at("/d/f")));
	DO(unlink(out("/enters")));
	DO(rmdir(at("/d/up/../dir")));
	say("chdir");
	TRY(chdir(at("/d/down")));
	TEXT(getcwd(NULL, 0));
	say("%s", content("../../relative"));
	TRY(chdir(out("/enters-dir")));
	TEXT(getcwd(NULL, 0));
	file("here", "made here"), say("%s", content(at("/d/here")));
	TRY(chdir(at("/d/to-root")));
	TEXT(getcwd(NULL, 0));
	TRY(chdir("/"));
}
