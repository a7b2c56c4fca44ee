#define _GNU_SOURCE
#include "page.h"

#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

enum { PAGE_SIZE_BYTES = 65536, TEXT = 64, TEXT_MAX = PAGE_SIZE_BYTES - TEXT, TRIES = 50 };
enum { MAGIC, SERIAL, EPOCH, KIND, DONE, CANCELLED, LENGTH, CHECKSUM, WORDS };
enum { SLOT_MAGIC, SLOT_PID, SLOT_STOPPED, SLOT_CHECKPOINTED, SLOT_WORDS };

static const char PAGE_MAGIC[8] = "favoid\0\2", RANK_MAGIC[8] = "faslot\0\2"; /* the last byte is the layout's version */

static const _Atomic uint64_t *page;
static _Atomic uint64_t *slot;
static char slot_path[PATH_MAX];
static pid_t slot_pid;

static const _Atomic uint64_t *map_page(const char *folder)
{
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/page", folder);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return NULL;
    void *map = lseek(file, 0, SEEK_END) == PAGE_SIZE_BYTES
                    ? mmap(NULL, PAGE_SIZE_BYTES, PROT_READ, MAP_SHARED, file, 0)
                    : MAP_FAILED;
    close(file);
    if (map == MAP_FAILED)
        return NULL;
    if (memcmp(map, PAGE_MAGIC, sizeof PAGE_MAGIC)) {
        munmap(map, PAGE_SIZE_BYTES);
        return NULL;
    }
    return map;
}

/* The slot is locked before it can be seen. Its file stays open: closing a descriptor of it would drop the lock. */
static _Atomic uint64_t *take_slot(const char *folder)
{
    uint32_t chance = 0;
    char hidden[PATH_MAX];
    slot_pid = getpid();
    if (getrandom(&chance, sizeof chance, GRND_NONBLOCK) != sizeof chance)
        return NULL;
    /* not the number alone: in containers ranks of one guest may have the same */
    snprintf(slot_path, sizeof slot_path, "%s/slots/%ld.%08x", folder, (long)slot_pid, chance);
    snprintf(hidden, sizeof hidden, "%s/slots/.%ld.%08x", folder, (long)slot_pid, chance);
    int file = open(hidden, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (file < 0)
        return NULL;
    uint64_t words[SLOT_WORDS] = {[SLOT_PID] = (uint64_t)slot_pid};
    memcpy(words, RANK_MAGIC, sizeof RANK_MAGIC);
    struct flock whole = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    void *map = MAP_FAILED;
    if (write(file, words, sizeof words) == sizeof words && fcntl(file, F_SETLK, &whole) == 0)
        map = mmap(NULL, sizeof words, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (map == MAP_FAILED || rename(hidden, slot_path)) {
        unlink(hidden);
        close(file);
        return NULL;
    }
    return map;
}

bool page_open(const char *folder)
{
    const _Atomic uint64_t *map = map_page(folder);
    if (!map)
        return false;
    slot = take_slot(folder);
    if (!slot) {
        munmap((void *)(uintptr_t)map, PAGE_SIZE_BYTES);
        return false;
    }
    page = map;
    return true;
}

uint64_t page_epoch(void)
{
    return atomic_load_explicit(&page[EPOCH], memory_order_acquire);
}

uint64_t page_done(void)
{
    return atomic_load_explicit(&page[DONE], memory_order_acquire);
}

uint64_t page_cancelled(void)
{
    return atomic_load_explicit(&page[CANCELLED], memory_order_acquire);
}

/* zlib's crc32, bit by bit: it is needed once a notice. */
static uint32_t crc32(uint32_t crc, const void *data, size_t length)
{
    crc = ~crc;
    for (const unsigned char *byte = data; length--; byte++) {
        crc ^= *byte;
        for (int bit = 0; bit < 8; bit++)
            crc = (crc >> 1) ^ (0xedb88320u & -(crc & 1));
    }
    return ~crc;
}

static bool read_once(struct posted *posted)
{
    uint64_t words[WORDS];
    for (int word = 0; word < WORDS; word++)
        words[word] = atomic_load(&page[word]);
    if (words[LENGTH] > TEXT_MAX || !(posted->text = malloc(words[LENGTH] + 1)))
        return false;
    memcpy(posted->text, (const char *)page + TEXT, words[LENGTH]);
    posted->text[words[LENGTH]] = 0;
    uint32_t sum = crc32(0, &words[SERIAL], (CHECKSUM - SERIAL) * sizeof words[0]);
    if (crc32(sum, posted->text, words[LENGTH]) != words[CHECKSUM]) {
        free(posted->text);
        return false;
    }
    posted->epoch = words[EPOCH];
    posted->kind = words[KIND];
    posted->done = words[DONE];
    posted->cancelled = words[CANCELLED];
    return true;
}

bool page_read(struct posted *posted)
{
    for (int tries = 0; tries < TRIES; tries++) {
        if (read_once(posted))
            return true;
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
    posted->text = NULL;
    return false;
}

/* Of several threads that are stopped, each at a barrier of its own, the last to run again clears the word. */
static pthread_mutex_t stopping = PTHREAD_MUTEX_INITIALIZER;
static int stopped;

void slot_stop(uint64_t epoch)
{
    pthread_mutex_lock(&stopping);
    stopped++;
    atomic_store(&slot[SLOT_STOPPED], epoch);
    pthread_mutex_unlock(&stopping);
}

void slot_resume(void)
{
    pthread_mutex_lock(&stopping);
    if (--stopped == 0)
        atomic_store(&slot[SLOT_STOPPED], 0);
    pthread_mutex_unlock(&stopping);
}

void slot_checkpointed(uint64_t epoch)
{
    atomic_store(&slot[SLOT_CHECKPOINTED], epoch);
}

void slot_deregister(void)
{
    if (slot && getpid() == slot_pid) /* not in a child of the rank's process */
        unlink(slot_path);
}
