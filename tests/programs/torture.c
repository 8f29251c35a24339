/*
 * Reads and writes of all kinds at the same time, each byte of which can be judged: never zeros, never an old version, never
 * another file's.
 *
 *   torture make MODEL DIR               makes the files and the model of them
 *   torture read MODEL DIR SEED SECONDS  reads in all ways; prints how often, and how often that failed with EIO
 *   torture write MODEL DIR SEED SECONDS WRITER WRITERS   changes those files that are this writer's
 *   torture verify MODEL DIR             reads everything, which must be as the model says; EIO is an error, too
 *
 * Every 16 bytes of a file say whose they are, where, and of which version. The model is a file outside of DIR that all processes
 * map: for each block the oldest and the newest version that may be seen. A writer raises the newest before it writes and the oldest
 * after; a reader notes the oldest before it opens and the newest after it has read. Files are never grown but by writing, so that
 * zeros are never right, but for what Linux itself does: a read that is under way while a file is cut may find zeros behind the new
 * end, on any disk (truncate clears the rest of the page; a pipe, or a copy inside the kernel, still has the page).
 *
 * What happens to file N is N mod 4:  0 nothing;  1 it is written in place;  2 it is replaced by a rename, and moved about;  3 it is
 * cut and grown, which is why it is not mapped (a page beyond the end would be SIGBUS).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define FILES 24
#define BLOCK 65536
#define BLOCKS 96
#define SIZE_MAX_OF_FILE ((long)BLOCK * BLOCKS)
#define CUTS 16
#define RECORD ((long)sizeof(struct record))
/* Nothing was read, for a reason that says nothing. */
#define MISSED (-2)

struct record {
    uint32_t mark, version;
    uint64_t offset;
};

struct block {
    _Atomic uint32_t low, high;
};

struct file {
    /* Odd while the size changes. */
    _Atomic uint32_t flux;
    _Atomic uint64_t size;
    /* Where it was cut lately; that of flux N stands at N / 2. */
    _Atomic uint64_t cuts[CUTS];
    struct block blocks[BLOCKS];
};

struct model {
    struct file files[FILES];
};

static struct model *model;
static const char *dir;
static uint64_t state;
static char buffer[SIZE_MAX_OF_FILE + 8192];
static uint32_t oldest[BLOCKS];
static long reads, failures;
/* The file's flux before it was opened. */
static uint32_t flux_before;
/* When, by the clock of the agent's log. */
static double opened_at;

static void die(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "torture: ");
    vfprintf(stderr, format, arguments);
    fprintf(stderr, "\n");
    _exit(1);
}

static uint64_t dice(uint64_t below)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (state >> 11) % below;
}

static double clock_at(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static double now(void) { return clock_at(CLOCK_MONOTONIC); }

static uint32_t mark_of(int file) { return 0x5a17c000u + (uint32_t)file; }

/* Some of a few bytes, some of several pieces, some too large to arrive whole. */
static long size_of(int file)
{
    static const long sizes[] = {30000, 150000, 1000000, 5000000};
    return (sizes[file / 4 % 4] + file * 1000) / RECORD * RECORD;
}

static const char *path_of(int file, int where)
{
    static char paths[2][4200];
    snprintf(paths[where & 1], sizeof paths[0], "%s/%s/%d", dir, where ? "b" : "a", file);
    return paths[where & 1];
}

static void fill(char *at, int file, long offset, long length, uint32_t version)
{
    for (long done = 0; done < length; done += RECORD) {
        struct record record = {mark_of(file), version, (uint64_t)(offset + done)};
        memcpy(at + done, &record, sizeof record);
    }
}

/* Whatever stood in the way of a call: a backend that is away is no error here. */
static int spared(const char *what, int file)
{
    if (errno != EIO)
        die("%s of file %d: %s", what, file, strerror(errno));
    failures++;
    return 0;
}

/* --- Readers --- */

static void note_oldest(int file)
{
    for (int i = 0; i < BLOCKS; i++)
        oldest[i] = atomic_load(&model->files[file].blocks[i].low);
    flux_before = atomic_load(&model->files[file].flux);
    opened_at = clock_at(CLOCK_REALTIME);
}

/* What stands there a moment later, by the same descriptor and by a new one: is it lost, or was it only not here yet? */
static const char *again(int fd, int file, long at)
{
    static char said[200];
    struct record record[2] = {{0, 0, 0}, {0, 0, 0}};
    struct stat about[2] = {0};
    usleep(500000);
    for (int i = 0; i < 2; i++) {
        int other = i == 0 ? fd : open(path_of(file, 0), O_RDONLY);
        if (other < 0)
            other = open(path_of(file, 1), O_RDONLY);
        if (fstat(other, &about[i]) != 0 || pread(other, &record[i], sizeof record[i], at) < 0)
            record[i].mark = 0xdead;
    }
    snprintf(said, sizeof said,
             "later by the same descriptor mark %x version %u inode %ld links %ld, by a new one %x %u inode %ld",
             record[0].mark, record[0].version,
             (long)about[0].st_ino, (long)about[0].st_nlink, record[1].mark, record[1].version, (long)about[1].st_ino);
    return said;
}

/* The first byte of a file that may be zero since the reader began. */
static uint64_t lowest_cut(int file)
{
    struct file *of = &model->files[file];
    uint32_t first = flux_before / 2, end = (atomic_load(&of->flux) + 1) / 2;
    uint64_t lowest = end - first >= CUTS ? 0 : UINT64_MAX;
    for (uint32_t n = first; lowest && n < end; n++) {
        uint64_t cut = atomic_load(&of->cuts[n % CUTS]);
        lowest = cut < lowest ? cut : lowest;
    }
    return lowest;
}

/* Judges `length` bytes that were read at `offset`. */
static void judge(const char *how, int fd, int file, const char *bytes, long offset, long length)
{
    double judged_at = clock_at(CLOCK_REALTIME);
    long first = (offset + RECORD - 1) / RECORD * RECORD;
    for (long at = first; at + RECORD <= offset + length; at += RECORD) {
        struct record record;
        memcpy(&record, bytes + (at - offset), sizeof record);
        uint32_t low = oldest[at / BLOCK], high = atomic_load(&model->files[file].blocks[at / BLOCK].high);
        if (record.mark == mark_of(file) && record.offset == (uint64_t)at && record.version >= low && record.version <= high)
            continue;
        static const struct record zeros;
        long all = 0;
        while (at + all + RECORD <= offset + length && memcmp(bytes + (at + all - offset), &zeros, sizeof zeros) == 0)
            all += RECORD;
        if (all && (uint64_t)at >= lowest_cut(file))
            continue;
        const char *later = again(fd, file, at);
        die("%s by %d of file %d at %ld: %s (mark %x, offset %llu, version %u; it may be %u to %u; %ld bytes of zeros; read %ld at "
            "%ld; flux %u to %u, size %llu; opened at %.3f, judged at %.3f; %s)",
            how, (int)getpid(), file, at, all ? "ZEROS" : "wrong", record.mark, (unsigned long long)record.offset, record.version,
            low, high, all, length, offset, flux_before, atomic_load(&model->files[file].flux),
            (unsigned long long)atomic_load(&model->files[file].size), opened_at, judged_at, later);
    }
}

/* The file's name may change at any time. */
static int open_file(int file, int flags)
{
    for (int tries = 0; tries < 1000; tries++) {
        int fd = open(path_of(file, tries & 1), flags);
        if (fd >= 0)
            return fd;
        if (errno != ENOENT)
            return spared("open", file) - 1;
    }
    die("file %d is nowhere", file);
    return -1;
}

static long by_pread(int fd, int file, long offset, long length)
{
    (void)file;
    return pread(fd, buffer, length, offset);
}

static long by_read(int fd, int file, long offset, long length)
{
    (void)file;
    if (lseek(fd, offset, SEEK_SET) != offset)
        return -1;
    long done = 0, got = 1;
    while (done < length && (got = read(fd, buffer + done, length - done < 50000 ? length - done : 50000)) > 0)
        done += got;
    return done > 0 ? done : got;
}

static long by_mmap(int fd, int file, long offset, long length)
{
    struct stat about;
    if (file % 4 == 3)
        return by_pread(fd, file, offset, length);
    if (fstat(fd, &about) != 0)
        return -1;
    if (offset + length > about.st_size)
        length = about.st_size - offset;
    if (length <= 0)
        return 0;
    int flags = dice(2) ? MAP_SHARED : MAP_PRIVATE;
    char *at = mmap(NULL, offset + length, PROT_READ, flags | (dice(4) ? 0 : MAP_POPULATE), fd, 0);
    if (at == MAP_FAILED)
        return -1;
    memcpy(buffer, at + offset, length);
    if (munmap(at, offset + length) != 0)
        die("munmap");
    return length;
}

static long by_stdio(int fd, int file, long offset, long length)
{
    (void)fd;
    FILE *stream = NULL;
    for (int tries = 0; !stream && tries < 1000; tries++)
        if (!(stream = fopen(path_of(file, tries & 1), "r")) && errno != ENOENT)
            return -1;
    if (!stream)
        die("file %d is nowhere for fopen", file);
    long got = -1;
    if (fseek(stream, offset, SEEK_SET) == 0) {
        got = (long)fread(buffer, 1, length, stream);
        if (got == 0 && ferror(stream))
            got = -1;
    }
    int error = errno;
    fclose(stream);
    errno = error;
    return got;
}

/* Through a pipe, by a call that moves bytes in the kernel. */
static long by_pipe(int fd, long offset, long length, int splices)
{
    int ends[2];
    if (pipe(ends) != 0)
        die("pipe");
    if (length > 60000)
        length = 60000;
    off_t from = offset;
    long moved = splices ? splice(fd, &from, ends[1], NULL, length, 0) : sendfile(ends[1], fd, &from, length);
    int error = errno;
    long got = moved;
    if (moved > 0) {
        got = 0;
        for (long more; got < moved && (more = read(ends[0], buffer + got, moved - got)) > 0;)
            got += more;
    }
    close(ends[0]);
    close(ends[1]);
    errno = error;
    return got;
}

static long by_sendfile(int fd, int file, long offset, long length)
{
    (void)file;
    return by_pipe(fd, offset, length, 0);
}

static long by_splice(int fd, int file, long offset, long length)
{
    (void)file;
    return by_pipe(fd, offset, length, 1);
}

static long by_copy(int fd, int file, long offset, long length)
{
    (void)file;
    const char *tmp = getenv("TMPDIR");
    char name[4200];
    snprintf(name, sizeof name, "%s/torture-XXXXXX", tmp ? tmp : "/tmp");
    int to = mkstemp(name);
    if (to < 0)
        die("mkstemp %s", name);
    unlink(name);
    off_t from = offset;
    long got = copy_file_range(fd, &from, to, NULL, length, 0);
    int error = errno;
    if (got > 0 && pread(to, buffer, got, 0) != got)
        die("reading a copy");
    close(to);
    errno = error;
    /* Another filesystem. */
    return got < 0 && (error == EXDEV || error == EOPNOTSUPP) ? by_pread(fd, file, offset, length) : got;
}

static long by_direct(int fd, int file, long offset, long length)
{
    (void)fd;
    int direct = open_file(file, O_RDONLY | O_DIRECT);
    if (direct < 0)
        return -1;
    static char room[(1 << 20) + 4096];
    char *aligned = (char *)(((uintptr_t)room + 4095) & ~(uintptr_t)4095);
    long begin = offset / 4096 * 4096, all = (offset + length - begin + 4095) / 4096 * 4096;
    long got = pread(direct, aligned, all > 1 << 20 ? 1 << 20 : all, begin);
    int error = errno;
    close(direct);
    errno = error;
    if (got < 0)
        return error == EINVAL ? by_pread(fd, file, offset, length) : -1;
    got -= offset - begin;
    if (got > length)
        got = length;
    if (got > 0)
        memcpy(buffer, aligned + (offset - begin), got);
    return got > 0 ? got : 0;
}

/* By another program, whose name for the file may be an old one; that it cannot read is its own business. */
static long by_program(int file, const char *format, long offset, long length)
{
    char command[9000];
    for (int where = 0; where < 2; where++) {
        snprintf(command, sizeof command, format, path_of(file, where), offset, length);
        FILE *stream = popen(command, "r");
        if (!stream)
            die("popen");
        long got = (long)fread(buffer, 1, length, stream);
        if (pclose(stream) == 0 && got > 0)
            return got;
    }
    return MISSED;
}

static long by_dd(int fd, int file, long offset, long length)
{
    (void)fd;
    return by_program(file, "dd if=%s iflag=skip_bytes,count_bytes skip=%ld count=%ld bs=20000 status=none 2>/dev/null", offset,
                      length);
}

static long by_python(int fd, int file, long offset, long length)
{
    (void)fd;
    return by_program(file,
                      "python3 -c 'import sys; f = open(sys.argv[1], \"rb\"); f.seek(int(sys.argv[2])); "
                      "sys.stdout.buffer.write(f.read(int(sys.argv[3])))' %s %ld %ld 2>/dev/null",
                      offset, length);
}

/* No reading, but what is said of the file: it has no holes. */
static long by_seek(int fd, int file, long offset, long length)
{
    (void)length;
    struct stat about;
    if (file % 4 != 0)
        return by_pread(fd, file, offset, length);
    if (fstat(fd, &about) != 0)
        return -1;
    long hole = lseek(fd, offset, SEEK_HOLE);
    if (hole < 0)
        return -1;
    if (hole != about.st_size || about.st_size != size_of(file))
        die("file %d of %ld bytes has %ld of them, and a hole at %ld", file, size_of(file), (long)about.st_size, hole);
    if (about.st_blocks * 512 < about.st_size / 2)
        die("file %d of %ld bytes seems to take %ld blocks", file, size_of(file), (long)about.st_blocks);
    return 0;
}

static const struct way {
    const char *name;
    long (*read)(int fd, int file, long offset, long length);
    /* Of a hundred. */
    int share;
} ways[] = {
    {"pread", by_pread, 25}, {"read", by_read, 15},     {"mmap", by_mmap, 12},   {"stdio", by_stdio, 12},
    {"sendfile", by_sendfile, 8}, {"splice", by_splice, 6}, {"copy_file_range", by_copy, 7}, {"O_DIRECT", by_direct, 5},
    {"seek", by_seek, 6},    {"dd", by_dd, 3},          {"python", by_python, 1},
};

static void read_once(void)
{
    int file = (int)dice(FILES), roll = (int)dice(100);
    const struct way *way = ways;
    while (roll >= way->share)
        roll -= (way++)->share;
    struct file *of = &model->files[file];
    uint32_t flux = atomic_load(&of->flux);
    long size = (long)atomic_load(&of->size);
    long offset = dice(3) ? (long)dice(size + 1) : 0;
    long length = 1 + (long)dice(dice(4) ? 40000 : 1000000);
    note_oldest(file);
    int fd = open_file(file, O_RDONLY);
    if (fd < 0)
        return;
    long got = way->read(fd, file, offset, length);
    if (got == MISSED) {
        reads--;
    } else if (got < 0) {
        spared(way->name, file);
    } else if (way->read != by_seek) {
        judge(way->name, fd, file, buffer, offset, got);
        /* All of these read something where there is something. */
        int settled = !(flux & 1) && atomic_load(&of->flux) == flux;
        if (settled && got == 0 && offset < size)
            die("%s of file %d, %ld bytes at %ld: nothing, but it has %ld", way->name, file, length, offset, size);
    }
    reads++;
    close(fd);
}

/* --- Writers --- */

/* Raises the newest version of the blocks of a range; the new one. */
static uint32_t begin_version(int file, long offset, long length)
{
    uint32_t version = 0;
    for (int i = 0; i < BLOCKS; i++) {
        uint32_t high = atomic_load(&model->files[file].blocks[i].high);
        version = high > version ? high : version;
    }
    version++;
    for (long i = offset / BLOCK; i < BLOCKS && i * BLOCK < offset + length; i++)
        atomic_store(&model->files[file].blocks[i].high, version);
    return version;
}

/* All of the blocks is of this version now. */
static void end_version(int file, long offset, long length, uint32_t version)
{
    for (long i = offset / BLOCK; i < BLOCKS && i * BLOCK < offset + length; i++)
        atomic_store(&model->files[file].blocks[i].low, version);
}

/* Writes all of it, in pieces; 0 where that failed. */
static int put(int fd, int file, long offset, long length, uint32_t version)
{
    fill(buffer, file, offset, length, version);
    for (long done = 0; done < length;) {
        long piece = 1 + (long)dice(100000);
        long put = pwrite(fd, buffer + done, piece < length - done ? piece : length - done, offset + done);
        if (put < 0)
            return spared("pwrite", file);
        done += put;
    }
    return 1;
}

static int put_mapped(int fd, int file, long offset, long length, uint32_t version)
{
    char *at = mmap(NULL, offset + length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED)
        return spared("mmap to write", file);
    fill(at + offset, file, offset, length, version);
    if (munmap(at, offset + length) != 0)
        die("munmap");
    return 1;
}

static int put_stdio(int fd, int file, long offset, long length, uint32_t version)
{
    FILE *stream = fdopen(dup(fd), "r+");
    if (!stream)
        die("fdopen of file %d: %s", file, strerror(errno));
    fill(buffer, file, offset, length, version);
    int good = fseek(stream, offset, SEEK_SET) == 0 && (long)fwrite(buffer, 1, length, stream) == length;
    good &= fflush(stream) == 0;
    int error = errno;
    fclose(stream);
    errno = error;
    return good ? 1 : spared("fwrite", file);
}

/* Some whole blocks, in place. */
static void write_in_place(int file)
{
    long size = size_of(file), blocks = (size + BLOCK - 1) / BLOCK;
    long offset = (long)dice(blocks) * BLOCK, length = (1 + (long)dice(8)) * BLOCK;
    if (offset + length > size)
        length = size - offset;
    int fd = open_file(file, O_RDWR);
    if (fd < 0)
        return;
    uint32_t version = begin_version(file, offset, length);
    int (*const kinds[])(int, int, long, long, uint32_t) = {put, put, put_mapped, put_stdio};
    if (kinds[dice(4)](fd, file, offset, length, version))
        end_version(file, offset, length, version);
    if (dice(20) == 0 && fsync(fd) != 0)
        spared("fsync", file);
    close(fd);
}

/* Another file in its place, perhaps under its other name. */
static void replace(int file)
{
    char fresh[4200], from[4200];
    long size = size_of(file);
    snprintf(fresh, sizeof fresh, "%s/fresh-%d", dir, file);
    int where = access(path_of(file, 0), F_OK) == 0 ? 0 : 1;
    snprintf(from, sizeof from, "%s", path_of(file, where));
    if (dice(2)) {
        if (rename(from, path_of(file, !where)) != 0)
            spared("rename", file);
        return;
    }
    int fd = open(fresh, O_CREAT | O_TRUNC | O_WRONLY, 0644);
    if (fd < 0) {
        spared("open of a fresh file", file);
        return;
    }
    uint32_t version = begin_version(file, 0, size);
    if (put(fd, file, 0, size, version) && (rename(fresh, from) == 0 || spared("rename", file)))
        end_version(file, 0, size, version);
    close(fd);
}

/* Cut somewhere, and grown by writing to its end, now and then from nothing. */
static void resize(int file)
{
    struct file *of = &model->files[file];
    long size = (long)atomic_load(&of->size), keep = (long)dice(size / RECORD + 1) * RECORD;
    int anew = dice(5) == 0;
    int fd = open_file(file, O_RDWR);
    if (fd < 0)
        return;
    if (anew)
        keep = 0;
    atomic_store(&of->cuts[atomic_load(&of->flux) / 2 % CUTS], (uint64_t)keep);
    atomic_fetch_add(&of->flux, 1);
    int cut;
    if (anew && dice(2)) {
        int again = open_file(file, O_WRONLY | O_TRUNC);
        cut = again >= 0;
        if (cut)
            close(again);
    } else {
        cut = ftruncate(fd, keep) == 0 || spared("ftruncate", file);
    }
    if (cut) {
        atomic_store(&of->size, keep);
        long more = size_of(file) - keep;
        more = dice(2) || more <= 0 ? more : (long)dice(more / RECORD + 1) * RECORD;
        uint32_t version = begin_version(file, keep, more);
        /* How far a write came that failed is asked. */
        struct stat about;
        int whole = put(fd, file, keep, more, version);
        if (fstat(fd, &about) != 0)
            die("fstat of file %d: %s", file, strerror(errno));
        if (whole && about.st_size != keep + more)
            die("file %d has %ld bytes after %ld were written at %ld", file, (long)about.st_size, more, keep);
        if (about.st_size % RECORD && ftruncate(fd, about.st_size / RECORD * RECORD) != 0)
            spared("ftruncate", file);
        atomic_store(&of->size, about.st_size / RECORD * RECORD);
        /* The block that it was cut in has both. */
        if (whole && more > 0)
            end_version(file, (keep + BLOCK - 1) / BLOCK * BLOCK, keep + more - (keep + BLOCK - 1) / BLOCK * BLOCK, version);
    }
    atomic_fetch_add(&of->flux, 1);
    close(fd);
}

static void write_once(int writer, int writers)
{
    int file = (int)dice(FILES);
    if (file % 4 == 0 || file / 4 % writers != writer)
        return;
    if (file % 4 == 1)
        write_in_place(file);
    else if (file % 4 == 2)
        replace(file);
    else
        resize(file);
    reads++;
    usleep((useconds_t)dice(20000));
}

/* --- All --- */

static void make(void)
{
    for (int where = 0; where < 2; where++) {
        char folder[4200];
        snprintf(folder, sizeof folder, "%s/%s", dir, where ? "b" : "a");
        if (mkdir(folder, 0755) != 0)
            die("%s: %s", folder, strerror(errno));
    }
    for (int file = 0; file < FILES; file++) {
        long size = size_of(file);
        int fd = open(path_of(file, file / 4 % 2), O_CREAT | O_EXCL | O_RDWR, 0644);
        uint32_t version = begin_version(file, 0, size);
        if (fd < 0 || size > SIZE_MAX_OF_FILE || !put(fd, file, 0, size, version) || close(fd) != 0)
            die("file %d: %s", file, strerror(errno));
        end_version(file, 0, size, version);
        atomic_store(&model->files[file].size, size);
    }
}

static void verify(void)
{
    for (int file = 0; file < FILES; file++) {
        long size = (long)atomic_load(&model->files[file].size);
        note_oldest(file);
        int fd = open_file(file, O_RDONLY);
        long got = fd < 0 ? -1 : by_read(fd, file, 0, sizeof buffer);
        if (got != size)
            die("file %d has %ld bytes, not %ld (%s)", file, got, size, strerror(errno));
        judge("verify", fd, file, buffer, 0, got);
        reads++;
        close(fd);
    }
}

int main(int argc, char **argv)
{
    if (argc < 4)
        die("usage: torture make|read|write|verify MODEL DIR [SEED SECONDS [WRITER WRITERS]]");
    const char *what = argv[1];
    int fd = open(argv[2], O_CREAT | O_RDWR, 0644);
    if (fd < 0 || ftruncate(fd, sizeof *model) != 0)
        die("%s: %s", argv[2], strerror(errno));
    model = mmap(NULL, sizeof *model, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (model == MAP_FAILED)
        die("mmap of the model");
    close(fd);
    dir = argv[3];
    state = 0x9e3779b97f4a7c15u ^ (argc > 4 ? strtoull(argv[4], NULL, 10) * 0x2545f4914f6cdd1du : 1);
    double end = now() + (argc > 5 ? atof(argv[5]) : 0);
    if (strcmp(what, "make") == 0)
        make();
    else if (strcmp(what, "verify") == 0)
        verify();
    else if (strcmp(what, "read") == 0 && argc == 6)
        do
            read_once();
        while (now() < end);
    else if (strcmp(what, "write") == 0 && argc == 8)
        do
            write_once(atoi(argv[6]), atoi(argv[7]));
        while (now() < end);
    else
        die("no such work");
    printf("%ld %ld\n", reads, failures);
    return 0;
}
