/* Making, moving, linking and removing names: by path, by descriptor, across borders and through `..`. */
#include "doors.h"
#include <sys/sysmacros.h>

static const char *parent(void)
{
	static char room[PATH_MAX];
	snprintf(room, sizeof room, "%s", root);
	char *slash = strrchr(room, '/');
	slash[slash == room] = 0;
	return room;
}

static void same(const char *a, const char *b)
{
	struct stat one, other;
	int r = stat(a, &one), s = stat(b, &other);
	if (r || s)
		say("%s and %s: %s", a, b, strerror(errno));
	else
		say("same: %d", one.st_dev == other.st_dev && one.st_ino == other.st_ino);
}

static void kind(const char *path)
{
	struct stat stat;
	if (lstat(path, &stat))
		say("%s: %s", path, strerror(errno));
	else
		say("%s: %o links %ld size %ld", path, stat.st_mode, (long)stat.st_nlink, S_ISDIR(stat.st_mode) || S_ISLNK(stat.st_mode) ? 0L : (long)stat.st_size);
}

static void family(void)
{
	int top = open(root, O_RDONLY | O_DIRECTORY), elsewhere = open(outside, O_RDONLY | O_DIRECTORY);
	DO(mkdir(at("/d"), 0750));
	DO(mkdir(at("/d"), 0750));
	DO(mkdir(root, 0750));
	DO(mkdirat(top, "e", 0700));
	DO(mkdirat(top, at("/f/"), 0700));
	DO(mkdir(at("/none/x"), 0700));
	DO(mknod(at("/d/fifo"), S_IFIFO | 0600, 0));
	DO(mknodat(top, "d/fifo2", S_IFIFO | 0600, 0));
	DO(mkfifo(at("/d/fifo3"), 0640));
	DO(mkfifoat(top, "d/fifo4", 0640));
	DO(mkfifo(at("/d/fifo4"), 0640));
	kind(at("/d/fifo")), kind(at("/d/fifo2")), kind(at("/d/fifo3")), kind(at("/d/fifo4"));
	file(at("/d/one"), "one");
	TRY(creat(at("/d/two"), 0600));
	TRY(openat(top, "d/three", O_CREAT | O_EXCL | O_WRONLY, 0644));
	TRY(openat(top, "d/three", O_CREAT | O_EXCL | O_WRONLY, 0644));
	TRY(open(at("/d/none"), O_RDONLY));
	TRY(open(at("/d/one/x"), O_RDONLY));
	TRY(open(at("/d"), O_WRONLY));
	TRY(open(at("/d/one"), O_RDONLY | O_DIRECTORY));

	say("renames");
	DO(rename(at("/d/one"), at("/d/uno")));
	DO(renameat(top, "d/uno", top, "e/uno"));
#ifdef __GLIBC__
	DO(renameat2(top, "e/uno", AT_FDCWD, at("/d/three"), RENAME_NOREPLACE));
	DO(renameat2(top, "e/uno", AT_FDCWD, at("/d/three"), RENAME_EXCHANGE));
#endif
	say("%s", content(at("/d/three")));
	DO(rename(at("/d"), at("/d/three/x")));
	DO(rename(at("/d"), at("/d/inside")));
	DO(rename(at("/none"), at("/x")));
	DO(rename(at("/d/three"), at("/d/three")));
	kind(at("/d/three")), kind(at("/e/uno"));

	say("links");
	DO(link(at("/d/three"), at("/hard")));
	DO(linkat(top, "hard", top, "e/hard", 0));
	DO(link(at("/d/three"), at("/hard")));
	DO(link(at("/d"), at("/hard-dir")));
	DO(link(at("/none"), at("/x")));
	kind(at("/hard"));
	int nameless = TRY(open(at("/d"), O_TMPFILE | O_RDWR, 0644));
	if (nameless >= 0) {
		char name[64];
		write(nameless, "nameless", 8);
		snprintf(name, sizeof name, "/proc/self/fd/%d", nameless);
		DO(linkat(AT_FDCWD, name, AT_FDCWD, at("/named"), AT_SYMLINK_FOLLOW));
		say("%s", content(at("/named")));
		close(nameless);
	}

	say("two dots");
	same(at("/.."), parent()), same(at("/d/../.."), parent()), same(at("/./d/../e/../../"), parent());
	char room[PATH_MAX];
	snprintf(room, sizeof room, "%s/../%s/d/three", root, strrchr(root, '/') + 1);
	say("%s", content(room));
	snprintf(room, sizeof room, "%s/d/../../%s/../%s//d/./three", root, strrchr(root, '/') + 1, strrchr(root, '/') + 1);
	say("%s", content(room));
	TRY(chdir(at("/d")));
	same("../..", parent()), same("../../", parent()), same(".././../.", parent()), same("..", root);
	snprintf(room, sizeof room, "../../%s/d/three", strrchr(root, '/') + 1);
	say("%s", content(room));
	DO(mkdir("../e/made", 0755));
	TRY(openat(AT_FDCWD, "../e/made/file", O_CREAT | O_WRONLY, 0600));
	TRY(chdir("../.."));
	say("%d", !strcmp(getcwd(NULL, 0), parent()));
	snprintf(room, sizeof room, "%s/d/three", strrchr(root, '/') + 1);
	say("%s", content(room));
	snprintf(room, sizeof room, "./%s/../%s/d/three", strrchr(root, '/') + 1, strrchr(root, '/') + 1);
	say("%s", content(room));
	snprintf(room, sizeof room, "%s/e/by-relative", strrchr(root, '/') + 1);
	file(room, "r");
	kind(at("/e/by-relative"));
	int dir = open(at("/d"), O_RDONLY | O_DIRECTORY);
	struct stat up, real;
	DO(fstatat(dir, "../..", &up, 0));
	stat(parent(), &real);
	say("same: %d", up.st_ino == real.st_ino);
	TRY(openat(dir, "../e/by-descriptor", O_CREAT | O_WRONLY, 0600));
	TRY(openat(dir, "../../", O_RDONLY | O_DIRECTORY));
	/* A link to a deeper directory: two dots after it go to that directory's parent. */
	mkdir(at("/e/deep"), 0755), mkdir(at("/e/deep/er"), 0755), file(at("/e/deep/here"), "deep");
	symlink("e/deep/er", at("/jump"));
	say("%s", content(at("/jump/../here")));
	same(at("/jump/../.."), at("/e"));
	same(at("/jump/../../.."), root);
	TRY(chdir(at("/jump")));
	say("%s", content("../here"));
	TEXT(getcwd(NULL, 0));
	TRY(chdir("/"));
	snprintf(room, sizeof room, "/tmp/..%s/d/three", root);
	say("%s", content(room));
	snprintf(room, sizeof room, "//%s/d/three", root);
	say("%s", content(room));
	snprintf(room, sizeof room, "/./%s/./d//three", root);
	say("%s", content(room));

	say("borders");
	file(out("/f"), "outside");
	DO(rename(out("/none/f"), out("/f2")));
	DO(renameat(elsewhere, "f", elsewhere, "g"));
	DO(rename(out("/g"), out("/f")));
	TRY(openat(elsewhere, at("/d/three"), O_RDONLY));
	TRY(openat(top, out("/f"), O_RDONLY));

	say("removals");
	DO(unlink(at("/hard")));
	DO(unlink(at("/hard")));
	DO(unlink(at("/d")) == -1 ? -1 : 0);
	DO(rmdir(at("/d")));
	DO(unlinkat(top, "e/hard", 0));
	DO(unlinkat(top, "f", AT_REMOVEDIR));
	DO(unlinkat(top, "d/two", AT_REMOVEDIR));
	DO(remove(at("/d/two")));
	DO(remove(at("/e/made/file")));
	DO(remove(at("/e/made")));
	DO(remove(at("/e")));
	DO(rmdir(at("/e/deep/er/")));
	kind(at("/d/three"));
}
