#define REAL_BITS 32
#define LANES 8
#define TILE_VECS 2
#define ISA "avx2"
#define TABLE rnnfast_f32_avx2
#include "engine.h"
