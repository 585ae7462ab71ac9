/* Properties of the processor that some kernels ask for. */
#pragma once

/* Whether the processor has dot products of four bytes in vectors of the given width: AVX512-VNNI for 512 bits, AVX-VNNI for 256. */
int rnnfast_has_quads(int bits);
