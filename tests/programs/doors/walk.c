/* ftw, nftw, fts, glob, wordexp, scandir, opendir: results carry the app's paths. */
#include "doors.h"
#include <fts.h>
#include <ftw.h>
#include <glob.h>
#include <wordexp.h>
#include <pthread.h>

static const char *const kinds[] = {"F", "D", "DNR", "NS", "SL", "DP", "SLN", "?"};
static int kind_of(int kind)
{
	return kind == FTW_F ? 0 : kind == FTW_D ? 1 : kind == FTW_DNR ? 2 : kind == FTW_NS ? 3 : kind == FTW_SL ? 4
	       : kind == FTW_DP ? 5 : kind == FTW_SLN ? 6 : 7;
}

static int with_cwd;

static int each(const char *path, const struct stat *stat, int kind, struct FTW *ftw)
{
	char cwd[PATH_MAX] = "";
	if (with_cwd) {
		getcwd(cwd, sizeof cwd);
		/* A name without its directory must be found, and told where it changes. */
		if (kind == FTW_F && strcmp(path + ftw->base, "touched"))
			chmod(path + ftw->base, 0600);
		if (kind == FTW_F && access(path + ftw->base, F_OK))
			later("%s is not here", path + ftw->base);
	}
	long size = kind == FTW_F ? (long)stat->st_size : 0;
	if (kind == FTW_SL) {
		/* A link is as long as its target. */
		char target[PATH_MAX];
		size = readlink(with_cwd && path[0] != '/' ? path + ftw->base : path, target, sizeof target) - stat->st_size;
	}
	int readable = access(path[0] == '/' ? path : ".", F_OK);
	later("%s [%s] level %d base %s size %ld %d in %s", path, kinds[kind_of(kind)], ftw->level, path + ftw->base, size,
	      readable, cwd);
	return 0;
}

static int each_old(const char *path, const struct stat *stat, int kind)
{
	later("%s [%s] size %ld", path, kinds[kind_of(kind)], kind == FTW_F ? (long)stat->st_size : 0L);
	return 0;
}

static int stop_at(const char *path, const struct stat *stat, int kind, struct FTW *ftw)
{
	(void)stat, (void)kind, (void)ftw;
	return strstr(path, "stop") ? 42 : 0;
}

static int nested_each(const char *path, const struct stat *stat, int kind, struct FTW *ftw)
{
	(void)stat;
	if (kind == FTW_D && ftw->level == 1) {
		char below[PATH_MAX];
		snprintf(below, sizeof below, "%s", path);
		int found = nftw(below, each, 8, FTW_PHYS);
		later("inside %s: %d", path, found);
	}
	later("outer %s", path);
	return 0;
}

static void *in_a_thread(void *unused)
{
	(void)unused;
	char *path = at("/a");
	for (int i = 0; i < 50; i++)
		if (nftw(path, stop_at, 4, FTW_PHYS) != 0)
			return "stopped";
	return "went through";
}

static void ftws(void)
{
	static const struct {
		const char *rest;
		int flags;
		const char *name;
	} walks[] = {
		{"", FTW_PHYS, "physical"},
		{"/", FTW_PHYS, "with a slash"},
		{"/a/", FTW_PHYS, "below with a slash"},
		{"/./a//b", FTW_PHYS | FTW_DEPTH, "odd, depth first"},
		{"", 0, "logical"},
		{"/c", FTW_PHYS | FTW_CHDIR, "chdir"},
		{"/a", FTW_PHYS | FTW_CHDIR | FTW_DEPTH, "chdir, depth first"},
		{"/a/../a/b", FTW_PHYS | FTW_MOUNT, "with two dots"},
		{"/a/file", FTW_PHYS, "a file"},
		{"/a/link", FTW_PHYS, "a link"},
		{"/nothing", FTW_PHYS, "nothing"},
	};
	for (unsigned i = 0; i < sizeof walks / sizeof *walks; i++) {
		with_cwd = walks[i].flags & FTW_CHDIR;
		errno = 0;
		char *from = at(walks[i].rest);
		int result = nftw(from, each, 3, walks[i].flags);
		say("nftw %s: %d %s", walks[i].name, result, result < 0 ? strerror(errno) : "");
		sorted();
		TEXT(getcwd(NULL, 0));
	}
	with_cwd = 0;
	DO(ftw(at("/a"), each_old, 5));
	sorted();
	DO(nftw(at(""), stop_at, 5, FTW_PHYS));
	DO(nftw(at(""), nested_each, 5, FTW_PHYS));
	sorted();
	TRY(chdir(at("/a")));
	DO(nftw(".", each, 5, FTW_PHYS));
	sorted();
	DO(nftw("../c", each, 5, FTW_PHYS));
	sorted();
	TRY(chdir("/"));
	DO(nftw(out(""), each, 5, FTW_PHYS));
	sorted();
	pthread_t threads[4];
	for (int i = 0; i < 4; i++)
		pthread_create(&threads[i], NULL, in_a_thread, NULL);
	for (int i = 0; i < 4; i++) {
		void *said;
		pthread_join(threads[i], &said);
		say("thread %s", (char *)said);
	}
}

static int by_name(const FTSENT **a, const FTSENT **b)
{
	return strcmp((*a)->fts_name, (*b)->fts_name);
}

static void fts_of(const char *title, char **roots, int options)
{
	say("fts %s", title);
	FTS *walk = fts_open(roots, options, by_name);
	if (!walk) {
		say("  cannot open: %s", strerror(errno));
		return;
	}
	FTSENT *node, *child;
	for (child = fts_children(walk, 0); child; child = child->fts_link)
		say("  root %s (%zd)", child->fts_name, (ssize_t)(strlen(child->fts_name) - child->fts_namelen));
	while ((node = fts_read(walk))) {
		long size = node->fts_info == FTS_F ? (long)node->fts_statp->st_size : 0;
		if (node->fts_info == FTS_SL) {
			char target[PATH_MAX];
			size = readlink(node->fts_accpath, target, sizeof target) - node->fts_statp->st_size;
		}
		say("  %s (%zd) name %s (%zd) acc %s info %d level %d size %ld errno %d", node->fts_path,
		    (ssize_t)(strlen(node->fts_path) - node->fts_pathlen), node->fts_name,
		    (ssize_t)(strlen(node->fts_name) - node->fts_namelen), node->fts_accpath, node->fts_info, node->fts_level,
		    size, node->fts_info == FTS_NS || node->fts_info == FTS_DNR ? node->fts_errno : 0);
		if (node->fts_info == FTS_F)
			say("    open: %s", content(node->fts_accpath));
		if (node->fts_info == FTS_F && !(options & FTS_NOCHDIR) && !node->fts_number)
			TRY(chmod(node->fts_accpath, 0640));
		if (node->fts_info == FTS_D && !strcmp(node->fts_name, "b"))
			for (child = fts_children(walk, 0); child; child = child->fts_link)
				say("    child %s of %d", child->fts_name, child->fts_level);
		if (node->fts_info == FTS_D && !strcmp(node->fts_name, "skip"))
			fts_set(walk, node, FTS_SKIP);
		if (node->fts_info == FTS_SL && !strcmp(node->fts_name, "dirlink"))
			fts_set(walk, node, FTS_FOLLOW);
		if (node->fts_info == FTS_F && !strcmp(node->fts_name, "file") && !node->fts_number++)
			fts_set(walk, node, FTS_AGAIN);
	}
	say("  end: %s", strerror(errno));
	DO(fts_close(walk));
	TEXT(getcwd(NULL, 0));
}

static void ftses(void)
{
	char *one[] = {at(""), NULL}, *slash[] = {at("/"), NULL};
	char *many[24];
	for (int i = 0; i < 20; i++)
		many[i] = strdup(at(i % 2 ? "/a/file" : "/c"));
	many[20] = out("");
	many[21] = at("/nothing");
	many[22] = at("/a/b");
	many[23] = NULL;
	fts_of("physical", one, FTS_PHYSICAL);
	fts_of("physical, with a slash", slash, FTS_PHYSICAL);
	fts_of("physical, no chdir", one, FTS_PHYSICAL | FTS_NOCHDIR);
	fts_of("logical", one, FTS_LOGICAL);
	fts_of("logical, no chdir, dots", one, FTS_LOGICAL | FTS_NOCHDIR | FTS_SEEDOT);
	fts_of("many roots", many, FTS_PHYSICAL | FTS_NOCHDIR);
	TRY(chdir(at("")));
	char *relative[] = {"a", "c", NULL};
	fts_of("relative", relative, FTS_PHYSICAL);
	TRY(chdir("/"));
	char *none[] = {"", NULL};
	fts_of("an empty root", none, FTS_PHYSICAL);
}

static int complain(const char *path, int error)
{
#ifdef __GLIBC__
	later("error %s %s", path, strerror(error));
#else
	/* musl's glob knows the tree's path only: docs/semantics.md. */
	later("error %s %s", path[0] ? strrchr(path, '/') : "", strerror(error));
#endif
	return 0;
}

static void glob_of(const char *pattern, int flags)
{
	glob_t found = {.gl_offs = 2};
	int result = glob(pattern, flags, complain, &found);
	say("glob %s %#x: %d", pattern, flags, result);
	if (!result)
		for (size_t i = 0; i < found.gl_pathc; i++)
			later("%s", found.gl_pathv[i + (flags & GLOB_DOOFFS ? 2 : 0)]);
	sorted();
	if (!result)
		globfree(&found);
}

static void globs(void)
{
	glob_of(at("/*"), 0);
	glob_of(at("/*"), GLOB_MARK | GLOB_DOOFFS);
	glob_of(at("/a/*/*"), 0);
	glob_of(at("/?/f*"), GLOB_NOSORT);
	glob_of(at("/[ac]"), GLOB_MARK);
	glob_of(at("/nothing*"), 0);
	glob_of(at("/nothing*"), GLOB_NOCHECK);
	glob_of(at("/a/file"), 0);
	glob_of(at("/dangling"), 0);
	glob_of(at("/a/../*/fi*"), GLOB_NOCHECK);
	glob_of(at("//a/./b/*"), 0);
	glob_of(at(""), 0);
	glob_of(at("/"), 0);
#ifdef GLOB_BRACE
	glob_of(at("/{a,c}/f*"), GLOB_BRACE);
	char both[PATH_MAX];
	snprintf(both, sizeof both, "{%s,%s}/*", at("/a"), out(""));
	glob_of(both, GLOB_BRACE);
	glob_of(at("/a"), GLOB_ONLYDIR);
	glob_of(at("/nothing"), GLOB_NOMAGIC);
	setenv("HOME", at("/a"), 1);
	glob_of("~/*", GLOB_TILDE);
	glob_of("~", GLOB_TILDE);
#endif
	glob_t both_found = {0};
	DO(glob(at("/a/*"), 0, NULL, &both_found));
	DO(glob(at("/c/*"), GLOB_APPEND, NULL, &both_found));
	DO(glob(out("/*"), GLOB_APPEND, NULL, &both_found));
	for (size_t i = 0; i < both_found.gl_pathc; i++)
		say("  %s", both_found.gl_pathv[i]);
	globfree(&both_found);
	TRY(chdir(at("/a")));
	glob_of("*", 0);
	glob_of("../c/*", 0);
	TRY(chdir("/"));
}

static void words_of(const char *text, int flags)
{
	wordexp_t found;
	int result = wordexp(text, &found, flags);
	say("wordexp %s: %d", text, result);
	if (!result) {
		for (size_t i = 0; i < found.we_wordc; i++)
			say("  %s", found.we_wordv[i]);
		wordfree(&found);
	}
}

static void words(void)
{
	char text[3 * PATH_MAX];
	words_of(at("/a/*"), 0);
	snprintf(text, sizeof text, "'%s' \"%s\" %s", at("/a/*"), at("/c/*"), at("/c/*"));
	words_of(text, 0);
	setenv("HERE", at("/a"), 1);
	words_of("$HERE/file", 0);
	words_of("${HERE}/fi*", 0);
	words_of("\"$HERE/fi*\"", 0);
	setenv("HOME", at(""), 1);
	words_of("~/a ~/c/*", 0);
	words_of(at("/nothing*"), 0);
	words_of("$(echo a b)", WRDE_NOCMD);
	snprintf(text, sizeof text, "$(ls %s)", at("/c"));
	words_of(text, 0);
	words_of("one (", 0);
}

static int no_dots(const struct dirent *entry)
{
	return entry->d_name[0] != '.';
}

static void lists(void)
{
	struct dirent **list;
	int n = DO(scandir(at("/a"), &list, no_dots, alphasort));
	for (int i = 0; i < n; i++)
		say("  %s", list[i]->d_name);
	DO(scandir(at("/nothing"), &list, NULL, NULL));
	DIR *dir = opendir(at(""));
	for (struct dirent *entry; dir && (entry = readdir(dir));)
		later("%s %d", entry->d_name, entry->d_type);
	sorted();
	rewinddir(dir);
	struct stat by_fd, by_name;
	fstat(dirfd(dir), &by_fd), stat(at(""), &by_name);
	say("same directory: %d", by_fd.st_ino == by_name.st_ino && by_fd.st_dev == by_name.st_dev);
	closedir(dir);
	int fd = open(at("/c"), O_RDONLY | O_DIRECTORY);
	dir = fdopendir(fd);
	for (struct dirent *entry; dir && (entry = readdir(dir));)
		later("%s %d", entry->d_name, entry->d_type);
	sorted();
	closedir(dir);
	TRY(opendir(at("/a/file")) ? 0 : -1);
}

static void family(void)
{
	mkdir(at("/a"), 0755), mkdir(at("/a/b"), 0755), mkdir(at("/a/b/deep"), 0755), mkdir(at("/c"), 0755);
	mkdir(at("/c/skip"), 0755), mkdir(at("/zstop"), 0755);
	file(at("/a/file"), "text"), file(at("/a/b/other"), "more"), file(at("/c/first"), "1"), file(at("/c/second"), "2");
	file(at("/c/skip/unseen"), "x"), file(at("/a/b/deep/end"), "end");
	symlink("file", at("/a/link"));
	symlink(at("/c/first"), at("/a/absolute"));
	symlink("nowhere", at("/dangling"));
	symlink("../c", at("/a/dirlink"));
	file(out("/beside"), "b");
	ftws();
	ftses();
	globs();
	words();
	lists();
}
