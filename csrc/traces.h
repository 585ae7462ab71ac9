/* Sums of scaled arrays, by which online learning updates traces and gradients (rnnfast/online.py).
 *
 * Layout: source is [members][groups][units][width], contiguous; factors are [members][units]. Each element is multiplied by the factor of
 * its member and unit, and added to target: [members][groups][units][width], or, if is_summed, [groups][units][width], in the order of the
 * members. A stub (optimizers_f32.c, optimizers_f64.c) defines REAL_BITS, LANES and ADD_SCALED, and includes this file for the function.
 * Aliasing: arrays do not overlap. Error: each operation rounds once and none is fused. Cost: bound by memory.
 */
#pragma once

#include <stddef.h>

typedef struct {
    ptrdiff_t members, groups, units, width;
} rnnfast_trace_shape;

typedef void rnnfast_add_scaled(void *target, const void *factors, const void *source, const rnnfast_trace_shape *shape, int is_summed);

rnnfast_add_scaled rnnfast_add_scaled_f32, rnnfast_add_scaled_f64;

#if defined(ADD_SCALED)
#include "float_mode.h"
#include "simd.h"

void ADD_SCALED(void *target, const void *factors, const void *source, const rnnfast_trace_shape *shape, int is_summed)
{
    const float_mode caller = enter_float_mode();
    const ptrdiff_t units = shape->units, width = shape->width;
    const REAL *factor = factors, *restrict from = source;
    for (ptrdiff_t m = 0; m < shape->members; m++, factor += units) {
        REAL *restrict to = (REAL *)target + (is_summed ? 0 : m * shape->groups * units * width);
        for (ptrdiff_t g = 0; g < shape->groups; g++, from += units * width, to += units * width) {
            if (width == 1) {
                for (ptrdiff_t j = 0; j < units; j++) to[j] += factor[j] * from[j];
                continue;
            }
            for (ptrdiff_t j = 0; j < units; j++)
                for (ptrdiff_t k = 0; k < width; k++) to[j * width + k] += factor[j] * from[j * width + k];
        }
    }
    leave_float_mode(caller);
}
#endif
