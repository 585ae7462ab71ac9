/* The order in which the sequences of a ragged batch take their steps (rnnfast_order), from lengths, masks and resets.
 *
 * A row is a series of sequences, cut at its resets. A masked step is in no sequence; the sequence continues at the next step that is.
 * Cost: two visits of each step of each row, and about 40 bytes of result for each step. Nothing here depends on the element type.
 */
#include "rnnfast.h"

#include <string.h>

static int is_valid(const rnnfast_pattern *p, ptrdiff_t t, ptrdiff_t n)
{
    return !p->mask || p->mask[t * p->mask_step + n * p->mask_row];
}

static int is_reset(const rnnfast_pattern *p, ptrdiff_t t, ptrdiff_t n)
{
    return p->reset && p->reset[t * p->reset_step + n * p->reset_row];
}

static ptrdiff_t length_of(const rnnfast_pattern *p, ptrdiff_t n)
{
    return p->lengths ? p->lengths[n] : p->T;
}

/* The end of the sequence that begins at step t of row n, and the number of its steps. */
static ptrdiff_t end_of(const rnnfast_pattern *p, ptrdiff_t t, ptrdiff_t n, ptrdiff_t *steps)
{
    ptrdiff_t length = length_of(p, n);
    if (!p->mask && !p->reset) {
        *steps = length - t;
        return length;
    }
    *steps = 0;
    do {
        if (t < length) *steps += is_valid(p, t, n), t++;
    } while (t < length && !is_reset(p, t, n));
    return t;
}

ptrdiff_t rnnfast_count(const rnnfast_pattern *p, rnnfast_order *o)
{
    ptrdiff_t entries = 0, steps;
    memset(o, 0, sizeof *o);
    for (ptrdiff_t n = 0; n < p->N; n++) {
        ptrdiff_t t = 0;
        do {
            t = end_of(p, t, n, &steps);
            entries += steps;
            o->sequences++;
            if (steps > o->steps) o->steps = steps;
        } while (t < length_of(p, n));
    }
    o->masked_count = p->T * p->N - entries;
    return entries;
}

/* Enters steps t0 .. t1-1 of row n as sequence k: its positions in both directions, and its masked steps. The next masked step at time t
 * becomes masked[next[t]]. */
static void enter_sequence(const rnnfast_pattern *p, const rnnfast_order *o, ptrdiff_t t0, ptrdiff_t t1, ptrdiff_t n, ptrdiff_t steps,
                           ptrdiff_t k, ptrdiff_t *next)
{
    rnnfast_position *forward = (rnnfast_position *)o->positions[0], *reverse = (rnnfast_position *)o->positions[1];
    rnnfast_masked_step *masked = (rnnfast_masked_step *)o->masked;
    ptrdiff_t before = -1, after = -1, s = 0;
    for (ptrdiff_t t = t0; t < t1; t++) {
        rnnfast_position position = {t, n};
        if (is_valid(p, t, n)) {
            forward[o->begin[s] + k] = reverse[o->begin[steps - 1 - s] + k] = position;
            s++;
            before = t;
        } else {
            rnnfast_masked_step here = {position, before, -1};
            masked[next[t]++] = here;
        }
    }
    for (ptrdiff_t t = t1 - 1; p->mask && t >= t0; t--) {
        if (is_valid(p, t, n)) after = t;
        else masked[next[t] - 1].after = after;
    }
}

/* Masked steps are listed in order of time, as memory mostly is: writing them takes a fifth of the time. */
static void count_masked(const rnnfast_pattern *p, ptrdiff_t *next)
{
    ptrdiff_t count = 0;
    for (ptrdiff_t t = 0; t < p->T; t++) {
        next[t] = count;
        for (ptrdiff_t n = 0; n < p->N; n++) count += t >= length_of(p, n) || !is_valid(p, t, n);
    }
}

void rnnfast_arrange(const rnnfast_pattern *p, rnnfast_order *o, ptrdiff_t *sequences_of, ptrdiff_t *rows, ptrdiff_t *scratch)
{
    ptrdiff_t *begin = (ptrdiff_t *)o->begin, *edges = (ptrdiff_t *)o->edges, *longer = scratch, *steps_of = scratch + o->steps + 2;
    ptrdiff_t q = 0;
    memset(longer, 0, (size_t)(o->steps + 2) * sizeof *longer);
    for (ptrdiff_t n = 0; n < p->N; n++) {
        ptrdiff_t t = 0;
        rows[n] = q;
        do {
            t = end_of(p, t, n, &steps_of[q]);
            longer[steps_of[q++]]++;
        } while (t < length_of(p, n));
    }
    rows[p->N] = q;
    /* longer[s] goes from the number of sequences of s steps to that of longer ones, which is the first number of those of s steps. */
    for (ptrdiff_t s = o->steps, more = 0; s >= 0; s--) {
        ptrdiff_t same = longer[s];
        longer[s] = more;
        more += same;
    }
    begin[0] = 0;
    for (ptrdiff_t s = 0; s < o->steps; s++) begin[s + 1] = begin[s] + longer[s];
    o->blocks = 0;
    for (ptrdiff_t s = 0; s < o->steps; o->blocks++) {
        edges[o->blocks] = s;
        ptrdiff_t first = s++;
        while (s < o->steps && begin[s + 1] - begin[first] <= RNNFAST_SUM_ROWS) s++;
    }
    edges[o->blocks] = o->steps;
    for (ptrdiff_t i = 0; i < q; i++) sequences_of[i] = longer[steps_of[i]]++;

    ptrdiff_t *next = steps_of + q;
    count_masked(p, next);
    for (ptrdiff_t n = 0; n < p->N; n++) {
        ptrdiff_t t = 0, steps;
        for (ptrdiff_t i = rows[n]; i < rows[n + 1]; i++) {
            ptrdiff_t end = end_of(p, t, n, &steps);
            enter_sequence(p, o, t, end, n, steps, sequences_of[i], next);
            t = end;
        }
        for (; t < p->T; t++) {
            rnnfast_masked_step here = {{t, n}, -1, -1};
            ((rnnfast_masked_step *)o->masked)[next[t]++] = here;
        }
    }
}

void rnnfast_fill(const rnnfast_order *o, int from, void *array, size_t bytes, ptrdiff_t step, ptrdiff_t row)
{
    for (ptrdiff_t i = 0; i < o->masked_count; i++) {
        const rnnfast_masked_step *m = &o->masked[i];
        char *of_row = (char *)array + m->position.row * row, *to = of_row + m->position.step * step;
        ptrdiff_t source = from < 0 ? m->before : from > 0 ? m->after : -1;
        if (source < 0) memset(to, 0, bytes);
        else memcpy(to, of_row + source * step, bytes);
    }
}
