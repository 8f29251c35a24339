/* What the files of the program `calls` share: where to work, and what an operation is. */
#ifndef CALLS_H
#define CALLS_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define PAGE 4096
/* Pages of the file `data`. */
#define PAGES 1024
/* Most calls in one go of an operation that uses up a name with each. */
#define NAMES 256
/* Files in the directory `few`. */
#define FEW 8

/* One operation, which is timed; what comes before and after is not. */
struct operation {
    const char *name;
    void (*prepare)(long count);
    void (*call)(long i);
    void (*tidy)(long count);
};

/* Each file's operations, ended by one without a name. */
extern const struct operation opens[], names[], attributes[], data_calls[], others[];

/* The directory to work in, and paths in it. */
extern char dir[PAGE], data_path[2 * PAGE], missing_path[2 * PAGE], few_path[2 * PAGE], link_path[2 * PAGE];
extern char program_path[2 * PAGE], library_path[2 * PAGE];
extern char fresh[NAMES][2 * PAGE], moved[NAMES][2 * PAGE];
/* The file `data`, open for both; the same read-only; a second file; the directory. */
extern int data, data_read, other, dir_fd;
extern char buffer[16 * PAGE];

/* Ends the program where something failed. */
void check(int good, const char *what);

/* Makes an empty file. */
void make(const char *path);

/* Untimed steps that several operations need: for each fresh name. */
void make_fresh(long count);
void unlink_fresh(long count);
void unlink_moved(long count);

#endif
