// Preloaded by faults.py: counts the calls that change files below some folders, and kills its process at one.
//
// A call to be killed at is not carried out, but for a write, of which the first half is.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static char root[PATH_MAX];
static pid_t owner;
static long target;
static int record = -1;
static atomic_long count;

// Count the calls of this process below a folder, record each on a line of a file, end at the n-th (0: never).
void faults_arm(const char *folder, int descriptor, long n) {
  snprintf(root, sizeof root, "%s", folder);
  record = descriptor;
  target = n;
  owner = getpid();
}

// Whether this is the call to end at.
static int counted(const char *call, const char *path) {
  int held = errno, ends = 0;
  if (owner && owner == getpid() && !strncmp(path, root, strlen(root))) {
    ends = atomic_fetch_add(&count, 1) + 1 == target;
    dprintf(record, "%s %s\n", call, path + strlen(root));
  }
  errno = held;
  return ends;
}

static void end(void) { kill(getpid(), SIGKILL); }

// A training step, or whatever else the caller counts.
void faults_event(const char *call) {
  if (counted(call, root)) end();
}

static void of_path(const char *call, int folder, const char *path) {
  char whole[PATH_MAX * 2] = "", link[64];
  if (!owner) return;
  if (path[0] != '/') {
    snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
    ssize_t length = readlink(folder == AT_FDCWD ? "/proc/self/cwd" : link, whole, PATH_MAX);
    if (length < 0) return;
    whole[length] = '/';
    whole[length + 1] = 0;
  }
  strncat(whole, path, PATH_MAX - 1);
  if (counted(call, whole)) end();
}

static int of_file(const char *call, int file) {
  char path[PATH_MAX] = "", link[64];
  if (!owner || file == record) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  ssize_t length = readlink(link, path, sizeof path - 1);
  return length > 0 && counted(call, path);
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

#define OPEN(name)                                   \
  int name(const char *path, int flags, ...) {       \
    va_list rest;                                    \
    va_start(rest, flags);                           \
    mode_t mode = va_arg(rest, mode_t);              \
    va_end(rest);                                    \
    if (flags & (O_CREAT | O_TRUNC)) of_path("open", AT_FDCWD, path); \
    return NEXT(name)(path, flags, mode);            \
  }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                      \
  int name(int folder, const char *path, int flags, ...) { \
    va_list rest;                                         \
    va_start(rest, flags);                                \
    mode_t mode = va_arg(rest, mode_t);                   \
    va_end(rest);                                         \
    if (flags & (O_CREAT | O_TRUNC)) of_path("open", folder, path); \
    return NEXT(name)(folder, path, flags, mode);         \
  }
OPENAT(openat)
OPENAT(openat64)

ssize_t write(int file, const void *bytes, size_t size) {
  if (of_file("write", file)) {
    NEXT(write)(file, bytes, size / 2);
    end();
  }
  return NEXT(write)(file, bytes, size);
}

ssize_t writev(int file, const struct iovec *parts, int number) {
  if (of_file("write", file)) {
    NEXT(writev)(file, parts, number / 2);
    end();
  }
  return NEXT(writev)(file, parts, number);
}

#define SENDFILE(name, offset)                                    \
  ssize_t name(int file, int from, offset *start, size_t size) { \
    if (of_file("write", file)) end();                           \
    return NEXT(name)(file, from, start, size);                  \
  }
SENDFILE(sendfile, off_t)
SENDFILE(sendfile64, off64_t)

#define OF_FILE(name, call, parameters, arguments) \
  int name parameters {                            \
    if (of_file(call, file)) end();                \
    return NEXT(name) arguments;                   \
  }
OF_FILE(fsync, "fsync", (int file), (file))
OF_FILE(fdatasync, "fsync", (int file), (file))
OF_FILE(ftruncate, "truncate", (int file, off_t size), (file, size))
OF_FILE(ftruncate64, "truncate", (int file, off64_t size), (file, size))

#define OF_PATH(name, call, folder, path, parameters, arguments) \
  int name parameters {                                          \
    of_path(call, folder, path);                                 \
    return NEXT(name) arguments;                                 \
  }
OF_PATH(rename, "rename", AT_FDCWD, to, (const char *from, const char *to), (from, to))
OF_PATH(renameat, "rename", b, to, (int a, const char *from, int b, const char *to), (a, from, b, to))
OF_PATH(unlink, "unlink", AT_FDCWD, path, (const char *path), (path))
OF_PATH(unlinkat, "unlink", folder, path, (int folder, const char *path, int flags), (folder, path, flags))
OF_PATH(mkdir, "mkdir", AT_FDCWD, path, (const char *path, mode_t mode), (path, mode))
OF_PATH(mkdirat, "mkdir", folder, path, (int folder, const char *path, mode_t mode), (folder, path, mode))
OF_PATH(rmdir, "rmdir", AT_FDCWD, path, (const char *path), (path))
OF_PATH(chmod, "chmod", AT_FDCWD, path, (const char *path, mode_t mode), (path, mode))
