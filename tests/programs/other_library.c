// A library that is preloaded beside the shim, of the kind that replaces an allocator or the time: it stands in front of
// functions, some of which are hooked, and calls the next ones.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/time.h>
#include <sys/types.h>

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    int (*next)(struct timeval *, void *) = (int (*)(struct timeval *, void *))dlsym(RTLD_NEXT, "gettimeofday");
    int result = next(now, zone);
    now->tv_sec -= 1000;
    return result;
}

ssize_t write(int fd, const void *data, size_t length) {
    ssize_t (*next)(int, const void *, size_t) = (ssize_t (*)(int, const void *, size_t))dlsym(RTLD_NEXT, "write");
    return next(fd, data, length);
}

void *reallocarray(void *old, size_t count, size_t size) {
    void *(*next)(void *, size_t, size_t) = (void *(*)(void *, size_t, size_t))dlsym(RTLD_NEXT, "reallocarray");
    return next(old, count, size);
}
