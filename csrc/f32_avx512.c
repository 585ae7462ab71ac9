#define REAL_BITS 32
#define LANES 16
#define TILE_VECS 4
#define ISA "avx512"
#define TABLE rnnfast_f32_avx512
#include "engine.h"
