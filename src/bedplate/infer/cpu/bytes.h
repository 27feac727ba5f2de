// Products with weights of 8 bits: one scale an output.
#pragma once
#include "dots.h"
#include "packed.h"

// AHEAD asks for the panels that come next while these are used: the processor's own guess ends where a panel does.
template <int M, int P, bool AHEAD> static void byte_rows(const Matrix& w, const Rows& in, int row, int first, float* out, int out_stride) {
    const int group = w.group, groups = w.inputs / group, inputs = w.inputs;
    const int8_t* x = in.bytes + (size_t)row * inputs;
    const float* scale = in.scale + (size_t)row * groups;
    const int32_t* offset = in.total + (size_t)row * groups;
    const uint8_t* panel[P];
    for (int p = 0; p < P; p++) panel[p] = (const uint8_t*)w.data + (size_t)(first + p) * inputs * LANES;
    Floats sums[M][P];
    for (int m = 0; m < M; m++)
        for (int p = 0; p < P; p++) sums[m][p] = Floats{};
    for (int g = 0; g < groups; g++) {
        Ints whole[M][P];
#pragma GCC unroll 6
        for (int m = 0; m < M; m++)
            for (int p = 0; p < P; p++) whole[m][p] = BYTE_OFFSET ? all_ints(offset[m * groups + g]) : Ints{};
        for (int i = g * group; i < (g + 1) * group; i += 4) {
            if (AHEAD)
                for (int p = 0; p < P; p++) __builtin_prefetch(panel[p] + (size_t)(i + P * inputs) * LANES, 0, 2);
#pragma GCC unroll 6
            for (int m = 0; m < M; m++) {
                int32_t four;
                memcpy(&four, x + (size_t)m * inputs + i, 4);
                for (int p = 0; p < P; p++) dot_bytes(whole[m][p], panel[p] + i * LANES, four);
            }
        }
#pragma GCC unroll 6
        for (int m = 0; m < M; m++)
            for (int p = 0; p < P; p++) sums[m][p] += to_floats(whole[m][p]) * scale[m * groups + g];
    }
    for (int p = 0; p < P; p++) {
        const Floats each = load(w.scale + (first + p) * LANES);
        for (int m = 0; m < M; m++) store(out + (size_t)(row + m) * out_stride + (first + p) * LANES, sums[m][p] * each);
    }
}

static void pack_byte_row(const float* weight, int output, int inputs, uint8_t* out, float* scale) {
    uint8_t* panel = out + (size_t)(output / LANES) * inputs * LANES + output % LANES * 4;
    float most = 0;
    for (int i = 0; i < inputs; i++) most = std::max(most, std::fabs(weight[i]));
    scale[output] = most / 127.0f;
    const float inverse = most > 0 ? 127.0f / most : 0.0f;
    for (int i = 0; i < inputs; i++) panel[(size_t)(i / 4) * 4 * LANES + i % 4] = (uint8_t)((int)std::lrintf(weight[i] * inverse) + BYTE_OFFSET);
}
