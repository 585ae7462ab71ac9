/* Zoneout, outside the cells: h is that of the step before in some units, and what the cell computes in the others; c likewise.
 *
 *   forward    h = kept ? h_before : h_new                          without masks: h = rate h_before + (1 - rate) h_new
 *   backward   dh_new = kept ? 0 : dh, dh_before += kept ? dh : 0                  dh_new = (1 - rate) dh, dh_before += rate dh
 *
 * Forward mixes after the last stage of a step. Backward splits dh and dc before the first stage in reverse, and after the last one adds the
 * shares that the cell leaves in dh_new and dc_new. The cell itself sees only what it computes: an LSTM's h_new is o tanh(c_new).
 *
 * Layout: masks are bits (rnnfast.h), in rows of bytes that end at whole elements, so that a view can find them.
 * Aliasing: y and c overlap neither h_new and c_new nor h_before; c may be c_before.
 * Error: none with masks, and two roundings without. Cost: about 4 loads and stores per unit and step in each pass.
 * Source: D. Krueger et al., "Zoneout: regularizing RNNs by randomly preserving hidden activations", 2016.
 */
#pragma once

#include "schedule.h"

/* Lanes whose bits are set; j is a multiple of LANES. */
INLINE ivec lanes_of_bits(const uint8_t *bits, ptrdiff_t j)
{
    BITS some = bits[j / 8];
#if LANES > 8
    some |= (BITS)bits[j / 8 + 1] << 8;
#endif
    some >>= j % 8;
#if LANES == 1
    return some & 1;
#else
    static const BITS powers[16] = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768};
    ivec of_lanes;
    memcpy(&of_lanes, powers, sizeof of_lanes);
    return (ivec)(((some - (ivec){0}) & of_lanes) != 0);
#endif
}

/* The bits of a row at a step: of h, or of c. */
COMPACT const uint8_t *kept_units(const direction *d, ptrdiff_t t, ptrdiff_t n, int of_c)
{
    if (!d->zoneout_masks.at) return NULL;
    return (const uint8_t *)row_at(&d->zoneout_masks, t, n) + (of_c ? RNNFAST_ZONEOUT_BYTES(d->s.P) : 0);
}

SEPARATE void mix_row(REAL *to, const REAL *before, const REAL *computed, const uint8_t *kept, REAL rate, range units)
{
    FOR_UNITS (j, lanes, units) {
        vec a = get(before + j, lanes), b = get(computed + j, lanes);
        put(to + j, kept ? select(lanes_of_bits(kept, j), a, b) : muladd(broadcast(rate), a - b, b), lanes);
    }
}

/* Leaves in d the share of the state before. */
SEPARATE void split_row(REAL *d, REAL *d_new, const uint8_t *kept, REAL rate, range units)
{
    FOR_UNITS (j, lanes, units) {
        vec whole = get(d + j, lanes), zero = broadcast(0), share = whole * broadcast(rate), others = whole - share;
        if (kept) {
            ivec mask = lanes_of_bits(kept, j);
            share = select(mask, whole, zero);
            others = select(mask, zero, whole);
        }
        put(d + j, share, lanes);
        put(d_new + j, others, lanes);
    }
}

/* After the stages of a step: h and c of some rows. */
COMPACT void zone_out(const direction *d, ptrdiff_t t, range rows, const share *own, const worker *w)
{
    const range units = columns_of(d->s.H, own->k, own->n), of_P = columns_of(d->s.P, own->k, own->n);
    for (ptrdiff_t r = rows.begin; r < rows.end && !should_stop(w->poller, MOVE_WORK * d->s.H_row); r++) {
        mix_row(row_at(&d->y, t, r), before(&d->y, &d->h0, t, r), row_at(&d->h_new, t, r), kept_units(d, t, r, 0), d->zoneout[0], of_P);
        if (!d->s.has_c) continue;
        mix_row(row_at(&d->c, t, r), before(&d->c, &d->c0, t, r), row_at(&d->c_new, t, r), kept_units(d, t, r, 1), d->zoneout[1], units);
    }
    if (own->n > 1 && !d->s.elementwise) barrier(w);
}

/* Before the stages of a step in reverse. */
COMPACT void split_gradients(const direction *d, ptrdiff_t t, range rows, range units, range of_P, poller *w)
{
    for (ptrdiff_t r = rows.begin; r < rows.end && !should_stop(w, MOVE_WORK * d->s.H_row); r++) {
        split_row(row_at(&d->dh, 0, r), row_at(&d->dh_new, 0, r), kept_units(d, t, r, 0), d->zoneout[0], of_P);
        if (d->s.has_c) split_row(row_at(&d->dc, 0, r), row_at(&d->dc_new, 0, r), kept_units(d, t, r, 1), d->zoneout[1], units);
    }
}

SEPARATE void add_row(REAL *to, const REAL *from, range units)
{
    FOR_UNITS (j, lanes, units) put(to + j, get(to + j, lanes) + get(from + j, lanes), lanes);
}

/* After the last pointwise part of a step in reverse. */
COMPACT void join_gradients(const direction *d, range rows, range units, poller *w)
{
    for (ptrdiff_t r = rows.begin; r < rows.end && !should_stop(w, MOVE_WORK * d->s.H_row); r++) {
        if (d->s.cell->stage[0].keeps_dh) add_row(row_at(&d->dh, 0, r), row_at(&d->dh_new, 0, r), units);
        if (d->s.has_c) add_row(row_at(&d->dc, 0, r), row_at(&d->dc_new, 0, r), units);
    }
}
