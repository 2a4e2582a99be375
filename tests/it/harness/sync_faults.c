/* Preloaded into a process: syncs fail while the file that SYNC_FAILS_WHILE names is
 * there, and what a file grew by since its last sync reads as zeros from then on, as
 * from a disk that could not keep it. Files of one disk, which are new at the start.
 * While the file that SYNC_HANGS_WHILE names is there, they do not end. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#define MOST_FILES 64

static struct synced {
    ino_t file;
    off_t bytes;
} all_synced[MOST_FILES];

static pthread_mutex_t one_at_a_time = PTHREAD_MUTEX_INITIALIZER;

static struct synced *find(ino_t file)
{
    for (int at = 0; at < MOST_FILES; at++) {
        if (all_synced[at].file == 0) {
            all_synced[at].file = file;
        }
        if (all_synced[at].file == file) {
            return &all_synced[at];
        }
    }
    abort();
}

static int fail(int file, off_t kept, off_t bytes)
{
    if (kept < bytes && (ftruncate(file, kept) != 0 || ftruncate(file, bytes) != 0)) {
        abort();
    }
    errno = EIO;
    return -1;
}

static int sync_or_fail(const char *name, int file)
{
    struct stat is;
    if (fstat(file, &is) != 0) {
        return -1;
    }
    off_t bytes = S_ISREG(is.st_mode) ? is.st_size : 0;
    struct synced *synced = find(is.st_ino);
    const char *flag = getenv("SYNC_FAILS_WHILE");
    if (flag != NULL && access(flag, F_OK) == 0) {
        return fail(file, synced->bytes, bytes);
    }
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    int result = real(file);
    if (result == 0) {
        synced->bytes = bytes;
    }
    return result;
}

static void hang(void)
{
    const char *flag = getenv("SYNC_HANGS_WHILE");
    while (flag != NULL && access(flag, F_OK) == 0) {
        usleep(1000);
    }
}

static int alone(const char *name, int file)
{
    hang();
    pthread_mutex_lock(&one_at_a_time);
    int result = sync_or_fail(name, file);
    pthread_mutex_unlock(&one_at_a_time);
    return result;
}

int fsync(int file)
{
    return alone("fsync", file);
}

int fdatasync(int file)
{
    return alone("fdatasync", file);
}
