#define REAL_BITS 64
#define LANES 8
#define TILE_VECS 4
#define ISA "avx512"
#define TABLE rnnfast_f64_avx512
#include "engine.h"
