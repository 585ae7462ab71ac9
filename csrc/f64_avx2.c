#define REAL_BITS 64
#define LANES 4
#define TILE_VECS 2
#define ISA "avx2"
#define TABLE rnnfast_f64_avx2
#include "engine.h"
