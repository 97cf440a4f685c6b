/* A preloaded library in which one file operation fails, or the process dies just before it: armed by fault_arm().
   It counts opens for writing, writes, fsyncs, renames, truncations and new folders below one folder. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum mode { OFF, COUNT, ONCE, FROM_THEN_ON, SHORT, KILL };

static enum mode mode = OFF;
static long at, seen;
static int error_number, cut;
static char below[4096];

/* Fails or kills at the operation `number` (from 1) below `folder`. */
void fault_arm(const char *folder, int how, long number, int error) {
    if (!realpath(folder, below)) below[0] = 0;
    mode = (enum mode)how, at = number, error_number = error, seen = 0, cut = 0;
}

long fault_seen(void) { return seen; }

static int concerns(const char *path) {
    size_t n = strlen(below);
    return mode != OFF && n && !strncmp(path, below, n) && (path[n] == '/' || !path[n]);
}

static int concerns_path(const char *path) {
    char whole[8192];
    if (mode == OFF) return 0;
    if (path[0] == '/') return concerns(path);
    if (!getcwd(whole, 4096)) return 0;
    strcat(whole, "/");
    strncat(whole, path, 4000);
    return concerns(whole);
}

static int concerns_fd(int fd) {
    char link[64], target[4096];
    if (mode == OFF) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, target, sizeof target - 1);
    if (n <= 0) return 0;
    target[n] = 0;
    return concerns(target);
}

/* Whether this operation fails; with KILL it does not return. */
static int fails(void) {
    seen++;
    int now = mode == FROM_THEN_ON ? seen >= at : seen == at;
    if (mode == COUNT || !now) return 0;
    if (mode == KILL) kill(getpid(), SIGKILL);
    errno = error_number;
    return 1;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int open_with(int (*real)(const char *, int, ...), const char *path, int flags, mode_t access) {
    if (flags & (O_WRONLY | O_RDWR | O_CREAT) && concerns_path(path) && fails()) return -1;
    return real(path, flags, access);
}

int open(const char *path, int flags, ...) {
    va_list list;
    va_start(list, flags);
    mode_t access = va_arg(list, mode_t);
    va_end(list);
    return open_with(REAL(open), path, flags, access);
}

int open64(const char *path, int flags, ...) {
    va_list list;
    va_start(list, flags);
    mode_t access = va_arg(list, mode_t);
    va_end(list);
    return open_with(REAL(open64), path, flags, access);
}

ssize_t write(int fd, const void *buffer, size_t size) {
    if (concerns_fd(fd)) {
        if (cut) { /* the rest of a short write */
            errno = error_number;
            return -1;
        }
        if (mode == SHORT && seen + 1 == at && size > 1) {
            seen++, cut = 1;
            return REAL(write)(fd, buffer, size / 2);
        }
        if (fails()) return -1;
    }
    return REAL(write)(fd, buffer, size);
}

int fsync(int fd) { return concerns_fd(fd) && fails() ? -1 : REAL(fsync)(fd); }
int fdatasync(int fd) { return concerns_fd(fd) && fails() ? -1 : REAL(fdatasync)(fd); }
int rename(const char *from, const char *to) { return concerns_path(to) && fails() ? -1 : REAL(rename)(from, to); }
int mkdir(const char *path, mode_t access) { return concerns_path(path) && fails() ? -1 : REAL(mkdir)(path, access); }
int ftruncate(int fd, off_t size) { return concerns_fd(fd) && fails() ? -1 : REAL(ftruncate)(fd, size); }
int ftruncate64(int fd, off64_t size) { return concerns_fd(fd) && fails() ? -1 : REAL(ftruncate64)(fd, size); }
