/* What the door programs share. Each walks through one family of libc calls in the directory that it is given and says
 * what happened; the same program on an ordinary directory must say the same. Names of the directory are shown as <root>, so
 * that any other name of it (the tree's) stands out. Nothing that differs from run to run is said: no inode numbers, no times.
 */
#ifndef DOORS_H
#define DOORS_H
#define _GNU_SOURCE 1
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
#pragma GCC diagnostic ignored "-Wunused-result"
#pragma GCC diagnostic ignored "-Wformat-truncation"

static char root[PATH_MAX];    /* the directory, as the program knows it */
static char outside[PATH_MAX]; /* a directory of an ordinary file system */

/* A text with each of the names replaced by its sign. */
static char *signs(const char *text)
{
	char *result = malloc(4 * strlen(text) + 16), *to = result;
	size_t r = strlen(root), o = strlen(outside);
	while (*text) {
		if (!strncmp(text, outside, o)) {
			to = stpcpy(to, "<outside>");
			text += o;
		} else if (!strncmp(text, root, r)) {
			to = stpcpy(to, "<root>");
			text += r;
		} else {
			*to++ = *text++;
		}
	}
	*to = 0;
	return result;
}

/* Prints a line. */
static void __attribute__((format(printf, 1, 2))) say(const char *format, ...)
{
	char text[16384];
	va_list arguments;
	va_start(arguments, format);
	vsnprintf(text, sizeof text, format, arguments);
	va_end(arguments);
	char *line = signs(text);
	puts(line);
	free(line);
	fflush(stdout);
}

/* Makes the call and says how it ended. */
#define DO(call)                                                                                              \
	({                                                                                                    \
		errno = 0;                                                                                    \
		long result_ = (long)(call);                                                                  \
		if (result_ == -1)                                                                            \
			say("%s: %s", #call, strerror(errno));                                                \
		else                                                                                          \
			say("%s: %ld", #call, result_);                                                       \
		result_;                                                                                      \
	})

/* The same where the number says nothing (descriptors, identifiers). */
#define TRY(call)                                                                                             \
	({                                                                                                    \
		errno = 0;                                                                                    \
		long result_ = (long)(call);                                                                  \
		say("%s: %s", #call, result_ == -1 ? strerror(errno) : "done");                               \
		result_;                                                                                      \
	})

/* The same for a call that answers a string. */
#define TEXT(call)                                                                                            \
	({                                                                                                    \
		errno = 0;                                                                                    \
		const char *text_ = (const char *)(call);                                                     \
		if (text_)                                                                                    \
			say("%s: \"%s\"", #call, text_);                                                      \
		else                                                                                          \
			say("%s: %s", #call, strerror(errno));                                                \
		text_;                                                                                        \
	})

/* A path below the directory; some of them at a time. */
static char *at(const char *rest)
{
	static char rooms[16][PATH_MAX];
	static unsigned next;
	char *room = rooms[next++ % 16];
	snprintf(room, PATH_MAX, "%s%s", root, rest);
	return room;
}

static char *out(const char *rest)
{
	static char rooms[16][PATH_MAX];
	static unsigned next;
	char *room = rooms[next++ % 16];
	snprintf(room, PATH_MAX, "%s%s", outside, rest);
	return room;
}

/* A file with some text. */
static void file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
	if (fd < 0 || write(fd, text, strlen(text)) != (ssize_t)strlen(text) || close(fd))
		say("cannot make %s: %s", path, strerror(errno));
}

/* What is in a file. */
static const char *content(const char *path)
{
	static char text[4096];
	int fd = open(path, O_RDONLY);
	ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
	if (n < 0)
		return strerror(errno);
	close(fd);
	text[n] = 0;
	return text;
}

static int by_text(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

/* Lines that are said in order, where the order of a directory would differ. */
static char *lines[4096];
static int line_count;

static void __attribute__((format(printf, 1, 2))) later(const char *format, ...)
{
	char text[16384];
	va_list arguments;
	va_start(arguments, format);
	vsnprintf(text, sizeof text, format, arguments);
	va_end(arguments);
	if (line_count < 4096)
		lines[line_count++] = signs(text);
}

static void sorted(void)
{
	qsort(lines, line_count, sizeof *lines, by_text);
	for (int i = 0; i < line_count; i++) {
		say("  %s", lines[i]);
		free(lines[i]);
	}
	line_count = 0;
}

/* What a family is: called with a fresh, empty directory as <root>. */
static void family(void);

int main(int count, char **arguments)
{
	if (count != 3)
		return 2;
	umask(022);
	snprintf(root, sizeof root, "%s", arguments[1]);
	snprintf(outside, sizeof outside, "%s", arguments[2]);
	family();
	(void)by_text, (void)sorted, (void)later, (void)content, (void)file, (void)at, (void)out;
	return 0;
}
#endif
