/* Preloaded into a process: syncs fail while the file that SYNC_FAILS_WHILE names is
 * there, and what a file grew by since its last sync reads as zeros from then on, as
 * from a disk that could not keep it. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#define MOST_FILES 1024

static off_t synced_bytes[MOST_FILES];

static int fail(int file, off_t bytes)
{
    if (file >= 0 && file < MOST_FILES && synced_bytes[file] < bytes
        && ftruncate(file, synced_bytes[file]) == 0 && ftruncate(file, bytes) != 0) {
        abort();
    }
    errno = EIO;
    return -1;
}

static int sync_with(const char *name, int file)
{
    struct stat is;
    if (fstat(file, &is) != 0) {
        return -1;
    }
    const char *flag = getenv("SYNC_FAILS_WHILE");
    if (flag != NULL && access(flag, F_OK) == 0) {
        return fail(file, S_ISREG(is.st_mode) ? is.st_size : 0);
    }
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    int result = real(file);
    if (result == 0 && file >= 0 && file < MOST_FILES) {
        synced_bytes[file] = is.st_size;
    }
    return result;
}

int fsync(int file)
{
    return sync_with("fsync", file);
}

int fdatasync(int file)
{
    return sync_with("fdatasync", file);
}
