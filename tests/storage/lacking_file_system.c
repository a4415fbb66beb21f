/* A library before the C library (LD_PRELOAD) that shows a file system which lacks what the variable LACKING names:
 * link, renameat2, flock, direct (O_DIRECT), over (a rename over an existing file), reply (a link is made, but its reply says EEXIST). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int lacks(const char *what) {
    const char *list = getenv("LACKING");
    size_t n = strlen(what);
    for (const char *p = list; p && (p = strstr(p, what)); p += n)
        if ((p == list || p[-1] == ' ') && (p[n] == 0 || p[n] == ' ')) return 1;
    return 0;
}

static int refuse(int number) { errno = number; return -1; }

int linkat(int from, const char *old, int to, const char *new, int flags) {
    int (*real)(int, const char *, int, const char *, int) = dlsym(RTLD_NEXT, "linkat");
    if (lacks("link")) return refuse(EOPNOTSUPP);
    int made = real(from, old, to, new, flags);
    return lacks("reply") && made == 0 ? refuse(EEXIST) : made;
}

int link(const char *old, const char *new) { return linkat(AT_FDCWD, old, AT_FDCWD, new, 0); }

int renameat2(int from, const char *old, int to, const char *new, unsigned flags) {
    int (*real)(int, const char *, int, const char *, unsigned) = dlsym(RTLD_NEXT, "renameat2");
    return lacks("renameat2") ? refuse(EINVAL) : real(from, old, to, new, flags);
}

int rename(const char *old, const char *new) {
    int (*real)(const char *, const char *) = dlsym(RTLD_NEXT, "rename");
    return lacks("over") && access(new, F_OK) == 0 ? refuse(EBUSY) : real(old, new);
}

int flock(int descriptor, int how) {
    int (*real)(int, int) = dlsym(RTLD_NEXT, "flock");
    return lacks("flock") ? refuse(ENOLCK) : real(descriptor, how);
}

int fcntl64(int descriptor, int command, ...) {
    int (*real)(int, int, void *) = dlsym(RTLD_NEXT, "fcntl64");
    va_list rest;
    va_start(rest, command);
    void *argument = va_arg(rest, void *);
    va_end(rest);
    if (lacks("direct") && command == F_SETFL && ((long)argument & O_DIRECT)) return refuse(EINVAL);
    return real(descriptor, command, argument);
}

int fcntl(int descriptor, int command, ...) {
    va_list rest;
    va_start(rest, command);
    void *argument = va_arg(rest, void *);
    va_end(rest);
    return fcntl64(descriptor, command, argument);
}
