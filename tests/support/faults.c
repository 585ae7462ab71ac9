/* A library for LD_PRELOAD that lets allocations and the creation of threads fail, for support/faults.py. glibc only.
 *
 * It counts the calls of malloc and its kin, mmap and pthread_create that are made during faults_call(), and lets one of
 * them fail, or all from one on. It also counts the blocks that are allocated and not yet freed. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

void *__libc_malloc(size_t size);
void *__libc_calloc(size_t count, size_t size);
void *__libc_realloc(void *block, size_t size);
void *__libc_memalign(size_t alignment, size_t size);
void __libc_free(void *block);

static _Thread_local int armed;
static size_t least, spared;
static long first, last, seen;
static atomic_long blocks;

/* Returns whether an allocation of this size is to fail. */
static int fails(size_t size)
{
    if (!armed || size < least || size == spared) return 0;
    seen++;
    return first <= seen && seen <= last;
}

static void *counted(void *block)
{
    if (block) blocks++;
    else errno = ENOMEM;
    return block;
}

void *malloc(size_t size)
{
    return counted(fails(size) ? NULL : __libc_malloc(size));
}

void *calloc(size_t count, size_t size)
{
    return counted(fails(count * size) ? NULL : __libc_calloc(count, size));
}

void *realloc(void *block, size_t size)
{
    if (!block) return malloc(size);
    if (fails(size)) {
        errno = ENOMEM;
        return NULL;
    }
    return __libc_realloc(block, size);
}

void *memalign(size_t alignment, size_t size)
{
    return counted(fails(size) ? NULL : __libc_memalign(alignment, size));
}

void *aligned_alloc(size_t alignment, size_t size)
{
    return memalign(alignment, size);
}

int posix_memalign(void **block, size_t alignment, size_t size)
{
    void *found = memalign(alignment, size);
    if (!found) return ENOMEM;
    *block = found;
    return 0;
}

void free(void *block)
{
    if (block) blocks--;
    __libc_free(block);
}

void *mmap(void *at, size_t size, int protection, int flags, int file, off_t offset)
{
    if (fails(size)) {
        errno = ENOMEM;
        return MAP_FAILED;
    }
    return (void *)syscall(SYS_mmap, at, size, protection, flags, file, offset);
}

void *mmap64(void *at, size_t size, int protection, int flags, int file, off_t offset)
{
    return mmap(at, size, protection, flags, file, offset);
}

static int threads_left = -1; /* to create; -1: any number */

int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *argument)
{
    static int (*create)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
    if (!create) create = (int (*)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *))dlsym(RTLD_NEXT, "pthread_create");
    if (!threads_left) return EAGAIN;
    if (threads_left > 0) threads_left--;
    return create(thread, attributes, start, argument);
}

/* Lets the creation of threads fail once `count` more are created; -1: never. */
void faults_threads(int count)
{
    threads_left = count;
}

/* Lets allocations of exactly this size succeed always. */
void faults_spare(size_t size)
{
    spared = size;
}

/* Calls call(argument); of the allocations of at least `size` bytes that it makes, those from number `from` to number `to`,
 * counted from 1, fail. */
void *faults_call(void *(*call)(void *), void *argument, long from, long to, size_t size)
{
    first = from, last = to, least = size, seen = 0;
    armed = 1;
    void *result = call(argument);
    armed = 0;
    return result;
}

/* Returns the number of allocations that the last faults_call() counted. */
long faults_seen(void)
{
    return seen;
}

/* Returns the number of blocks that are in use. */
long faults_blocks(void)
{
    return blocks;
}
