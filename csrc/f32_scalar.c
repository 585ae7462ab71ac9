#define REAL_BITS 32
#define LANES 1
#define TILE_VECS 2
#define ISA "scalar"
#define TABLE rnnfast_f32_scalar
#include "engine.h"
