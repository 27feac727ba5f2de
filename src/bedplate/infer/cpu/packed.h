// Matrices as pack.py lays them out, and activations rounded for them.
//
// Panels of 16 outputs; a panel holds, input by input (int8 and int4: four inputs at once), the weights of its 16 outputs side by side.
// Activations are rounded row by row in groups of inputs with a scale each, which keeps outliers to their group.
#pragma once
#include "simd.h"

#include <algorithm>

enum Kind : int32_t { FLOAT32 = 0, INT8 = 1, INT4 = 2 };

struct Matrix {
    const void* data;
    const float* scale;    // of each output; not of float32
    const void* factors;   // int4 (nibbles.h)
    const float* bias;     // or null
    int32_t kind, outputs, inputs, group;
};

// Activations of a step, as they are and rounded.
struct Rows {
    float* x;         // [n inputs]
    int8_t* bytes;    // [n inputs]
    float* scale;     // [n groups]
    int32_t* total;   // [n groups]; int8: what the unsigned weights add too much, negative; int4: the sums of both halves, 16 bits each
};

static inline int panels_of(int outputs) { return (outputs + LANES - 1) / LANES; }
// From one row of results to the next. Not a multiple of a page of memory: rows would push each other out of the cache.
static inline int stride_of(int outputs) { return panels_of(outputs) * LANES + LANES; }

static inline int32_t sum_of(const int8_t* bytes, int count) {
    int32_t total = 0;
    for (int i = 0; i < count; i++) total += bytes[i];
    return total;
}

static inline void quantise_row(const float* x, int inputs, int group, Kind kind, int8_t* bytes, float* scale, int32_t* total) {
    for (int g = 0; g * group < inputs; g++) {
        const float* from = x + g * group;
        int8_t* to = bytes + g * group;
        int i = 0;
        Floats top = {};
        for (; i + LANES <= group; i += LANES) top = greater(top, absolute(load(from + i)));
        float most = largest(top);
        for (; i < group; i++) most = std::fabs(from[i]) > most ? std::fabs(from[i]) : most;
        float inverse = most > 0 ? 127.0f / most : 0.0f;
        for (i = 0; i + LANES <= group; i += LANES) store(to + i, nearest(load(from + i) * inverse));
        for (; i < group; i++) to[i] = (int8_t)std::lrintf(from[i] * inverse);
        scale[g] = most / 127.0f;
        if (kind == INT8) total[g] = -128 * sum_of(to, group);
        else total[g] = (int32_t)((uint32_t)sum_of(to, group / 2) & 0xffff) | sum_of(to + group / 2, group / 2) << 16;
    }
}

