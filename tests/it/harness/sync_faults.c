/* Preloaded into a process. While the file named by SYNC_FAILS_WHILE exists, syncs fail, and
 * the bytes that a file has grown by since its last sync read as zeros from then on, as on a
 * disk that could not keep them. While the file named by SYNC_HANGS_WHILE exists, syncs hang.
 * Instead of the sync with the number SYNC_KILLS_AT, from 1, the process kills itself.
 * Files are identified by inode, and so must be on one disk and be new at the start. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAX_FILES 64

static struct synced {
    ino_t file;
    off_t bytes;
} all_synced[MAX_FILES];

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static struct synced *find(ino_t file)
{
    for (int i = 0; i < MAX_FILES; i++) {
        if (all_synced[i].file == 0) {
            all_synced[i].file = file;
        }
        if (all_synced[i].file == file) {
            return &all_synced[i];
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
    struct stat info;
    if (fstat(file, &info) != 0) {
        return -1;
    }
    off_t bytes = S_ISREG(info.st_mode) ? info.st_size : 0;
    struct synced *synced = find(info.st_ino);
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

static void kill_at(void)
{
    static atomic_int syncs;
    const char *at = getenv("SYNC_KILLS_AT");
    if (at != NULL && atomic_fetch_add(&syncs, 1) + 1 == atoi(at)) {
        kill(getpid(), SIGKILL);
    }
}

static int faulty_sync(const char *name, int file)
{
    hang();
    kill_at();
    pthread_mutex_lock(&lock);
    int result = sync_or_fail(name, file);
    pthread_mutex_unlock(&lock);
    return result;
}

int fsync(int file)
{
    return faulty_sync("fsync", file);
}

int fdatasync(int file)
{
    return faulty_sync("fdatasync", file);
}
