#define REAL_BITS 32
#define LANES 4
#define TILE_VECS 2
#define ISA "base"
#define TABLE rnnfast_f32_base
#include "engine.h"
