/* How a long call learns that it should stop.
 *
 * Only the calling thread asks the caller's rnnfast_poll; all threads see the answer in *stopped. A thread counts the multiply-adds
 * that it does, so asking costs nothing measurable. Once *stopped is set it stays set, and every loop of the call ends soon.
 */
#ifndef RNNFAST_POLL_H
#define RNNFAST_POLL_H

#include "rnnfast.h"
#include "threads.h"

enum { POLL_WORK = 1 << 24 }; /* multiply-adds between two questions: a few milliseconds at the slowest */

typedef struct {
    rnnfast_flag *stopped;
    const rnnfast_poll *poll; /* NULL on all threads but the caller's */
    ptrdiff_t left;           /* multiply-adds until the next question */
} poller;

/* Counts some multiply-adds; not 0 means that the call should stop. */
static int should_stop(poller *p, ptrdiff_t work)
{
    p->left -= work;
    if (p->left > 0) return 0;
    if (!*p->stopped && p->poll && p->poll->stop && p->poll->stop(p->poll->context)) *p->stopped = 1;
    p->left = *p->stopped ? 0 : POLL_WORK;
    return *p->stopped;
}

#endif
