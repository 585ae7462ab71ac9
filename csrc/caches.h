/* Sizes that follow from the caches of the processor.
 *
 * Model: a step reads the weights panel by panel, and for each panel the rows of a chunk. What is used again soon should be in the
 * second-level cache: a panel, the rows that it multiplies, and the gates that the next pass over them reads. Of what is larger, only
 * the order of reading and prefetching can be chosen (gemm.h, schedule.h).
 *
 * The sizes are constants, because each lies on a plateau that reaches from half to double its value or further. Measured on a Zen 4
 * EPYC (L2 1 MB, L3 32 MB; AVX2 and AVX-512; LSTM and GRU, H = 32 to 1024): time relative to the present value, geometric mean of 12 to
 * 27 cases.
 *
 *     BLOCK_BYTES   32 KB 1.00, 64 KB 1.00, 128 KB 1.01, 512 KB 1.00, 1 MB 1.00
 *     FAR_BYTES     0 1.00, 256 KB 1.00, 1 MB 1.00, 4 MB 1.00, no prefetching 1.03 (H = 1024: 1.10)
 *     CHUNK_ROWS    32 1.02, 64 1.01, 256 1.00, 1024 1.00
 *     FAR_WEIGHTS   256 K 1.02, 1 M 1.00, 4 M 1.00, never 1.00 (two threads)
 *
 * Repeats of the same code differ by 3%. Sizes that were read from the machine would gain nothing.
 */
#pragma once

enum {
    BLOCK_BYTES = 1 << 18, /* gates of a block of steps */
    CHUNK_ROWS = 128,      /* rows of a batch that are processed together */
    FAR_BYTES = 1 << 19,   /* packed matrices from this size on may not be in the second-level cache */
    FAR_WEIGHTS = 2 << 20  /* from this many weights on, each thread should read only a part of them */
};
