/* Bytes: written, read, copied, mapped, made durable. */
#include "calls.h"

#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/uio.h>

static void rewind_data(long count) { (void)count; check(lseek(data, 0, SEEK_SET) == 0, "lseek"); }

/* Calls of one size: at the descriptor's position, and at an offset. */
#define SIZE(size)                                                                                                    \
    static void write_##size(long i) { (void)i; check(write(data, buffer, size) == size, "write"); }                  \
    static void pwrite_##size(long i)                                                                                 \
    {                                                                                                                 \
        check(pwrite(data, buffer, size, i * size % (PAGES * PAGE - size)) == size, "pwrite");                        \
    }                                                                                                                 \
    static void writev_##size(long i)                                                                                 \
    {                                                                                                                 \
        struct iovec part = {buffer, size};                                                                           \
        (void)i;                                                                                                      \
        check(writev(data, &part, 1) == size, "writev");                                                              \
    }                                                                                                                 \
    static void pwritev2_##size(long i)                                                                               \
    {                                                                                                                 \
        struct iovec part = {buffer, size};                                                                           \
        check(pwritev2(data, &part, 1, i * size % (PAGES * PAGE - size), 0) == size, "pwritev2");                     \
    }
SIZE(1)
SIZE(4096)
SIZE(65536)

static int appended;

static void open_append(long count)
{
    (void)count;
    appended = open(fresh[0], O_CREAT | O_WRONLY | O_APPEND, 0644);
    check(appended >= 0, "open to append");
}

static void append(long i) { (void)i; check(write(appended, buffer, PAGE) == PAGE, "append"); }

static void close_append(long count)
{
    (void)count;
    check(close(appended) == 0 && unlink(fresh[0]) == 0, "close and unlink");
}

static void do_read(long i) { (void)i; check(read(data, buffer, PAGE) == PAGE, "read"); }

static void do_pread(long i)
{
    check(pread(data, buffer, PAGE, i % PAGES * PAGE) == PAGE, "pread");
}

static void do_lseek(long i) { check(lseek(data, i % PAGES, SEEK_SET) == i % PAGES, "lseek"); }

static void do_sendfile(long i)
{
    off_t from = i % PAGES * PAGE;
    check(lseek(other, 0, SEEK_SET) == 0 && sendfile(other, data_read, &from, PAGE) == PAGE, "sendfile");
}

static void do_splice(long i)
{
    static int ends[2];
    loff_t to = i % PAGES * PAGE;
    if (ends[1] == 0)
        check(pipe(ends) == 0, "pipe");
    check(write(ends[1], buffer, PAGE) == PAGE, "write to a pipe");
    check(splice(ends[0], NULL, other, &to, PAGE, 0) == PAGE, "splice");
}

static void do_copy(long i)
{
    loff_t from = i % PAGES * PAGE, to = from;
    check(copy_file_range(data_read, &from, other, &to, PAGE, 0) == PAGE, "copy_file_range");
}

static void do_fallocate(long i)
{
    check(fallocate(data, 0, i % PAGES * PAGE, PAGE) == 0, "fallocate");
}

static void map_unmap(int fd, int protection, int flags)
{
    void *at = mmap(NULL, PAGE, protection, flags, fd, 0);
    check(at != MAP_FAILED && munmap(at, PAGE) == 0, "mmap and munmap");
}

static void map_write(long i) { (void)i; map_unmap(data, PROT_READ | PROT_WRITE, MAP_SHARED); }
static void map_read(long i) { (void)i; map_unmap(data_read, PROT_READ, MAP_PRIVATE); }

static char *mapped;

static void map(long count)
{
    (void)count;
    mapped = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, data, 0);
    check(mapped != MAP_FAILED, "mmap");
}

static void unmap(long count) { (void)count; check(munmap(mapped, PAGE) == 0, "munmap"); }

static void do_msync(long i)
{
    mapped[0] = i;
    check(msync(mapped, PAGE, MS_SYNC) == 0, "msync");
}

static void do_msync_async(long i) { (void)i; check(msync(mapped, PAGE, MS_ASYNC) == 0, "msync"); }

static void do_fsync(long i)
{
    check(pwrite(data, buffer, PAGE, i % PAGES * PAGE) == PAGE && fsync(data) == 0, "pwrite and fsync");
}

static void fsync_clean(long i) { (void)i; check(fdatasync(data_read) == 0, "fdatasync"); }

const struct operation data_calls[] = {
    {"write-1", rewind_data, write_1, NULL},
    {"write-4096", rewind_data, write_4096, NULL},
    {"write-65536", rewind_data, write_65536, NULL},
    {"pwrite-1", NULL, pwrite_1, NULL},
    {"pwrite-4096", NULL, pwrite_4096, NULL},
    {"pwrite-65536", NULL, pwrite_65536, NULL},
    {"writev-1", rewind_data, writev_1, NULL},
    {"writev-4096", rewind_data, writev_4096, NULL},
    {"writev-65536", rewind_data, writev_65536, NULL},
    {"pwritev2-1", NULL, pwritev2_1, NULL},
    {"pwritev2-4096", NULL, pwritev2_4096, NULL},
    {"pwritev2-65536", NULL, pwritev2_65536, NULL},
    {"append", open_append, append, close_append},
    {"read", rewind_data, do_read, NULL},
    {"pread", NULL, do_pread, NULL},
    {"lseek", NULL, do_lseek, NULL},
    {"sendfile", NULL, do_sendfile, NULL},
    {"splice", NULL, do_splice, NULL},
    {"copy_file_range", NULL, do_copy, NULL},
    {"fallocate", NULL, do_fallocate, NULL},
    {"mmap-write", NULL, map_write, NULL},
    {"mmap-read", NULL, map_read, NULL},
    {"msync", map, do_msync, unmap},
    {"msync-async", map, do_msync_async, unmap},
    {"fsync", NULL, do_fsync, NULL},
    {"fsync-clean", NULL, fsync_clean, NULL},
    {0},
};
