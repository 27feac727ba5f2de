// Products of a few rows with a packed matrix. Every sum runs over the inputs in one order, whatever else is in the batch, so an answer does
// not depend on its neighbours to the last bit.
//
// Packed: panels of 16 outputs; a panel holds, input by input (int8: four inputs at once), the weights of its 16 outputs side by side.
// int8: one scale an output; activations are rounded row by row in groups of inputs with a scale each, which keeps outliers to their group.
#pragma once
#include "pool.h"
#include "simd.h"

#include <algorithm>

#if defined(__AVX512F__)
constexpr int PANELS = 2, FLOAT_ROWS = 12, BYTE_ROWS = 6;
#else
constexpr int PANELS = 1, FLOAT_ROWS = 6, BYTE_ROWS = 4;
#endif

constexpr int TASKS_A_THREAD = 6;

enum Kind : int32_t { FLOAT32 = 0, INT8 = 1 };

struct Matrix {
    const void* data;
    const float* scale;  // int8: of each output
    const float* bias;   // or null
    int32_t kind, outputs, inputs, group;
};

// The low-rank changes of one matrix by one adapter: y = gain * (W x + B A x). Outputs in panels of 16, as the matrix itself.
struct LowRank {
    const BFloat* a;      // panels of 16 ranks: [ranks/16][inputs][16]
    const BFloat* b;      // [start[p] ...][16]: for each panel, its ranks
    const int32_t* start; // of each panel's part of b, in rows of 16
    const int32_t* from;  // first rank that a panel looks at
    const int32_t* count; // how many
    const float* gain;    // of each output, or null
    int32_t ranks;        // a multiple of 16; 0: no change
};

// Activations of a step, as they are and rounded.
struct Rows {
    float* x;         // [n inputs]
    int8_t* bytes;    // [n inputs]
    float* scale;     // [n groups]
    int32_t* offset;  // [n groups]: what the unsigned weights add too much, negative
};

static inline int panels_of(int outputs) { return (outputs + LANES - 1) / LANES; }
// From one row of results to the next. Not a multiple of a page of memory: rows would push each other out of the cache.
static inline int stride_of(int outputs) { return panels_of(outputs) * LANES + LANES; }

static inline void quantise_row(const float* x, int inputs, int group, int8_t* bytes, float* scale, int32_t* offset) {
    for (int g = 0; g * group < inputs; g++) {
        const float* from = x + g * group;
        int8_t* to = bytes + g * group;
        float most = 0;
        int i = 0;
        Floats top = {};
        for (; i + LANES <= group; i += LANES) top = greater(top, absolute(load(from + i)));
        most = largest(top);
        for (; i < group; i++) most = std::fabs(from[i]) > most ? std::fabs(from[i]) : most;
        float inverse = most > 0 ? 127.0f / most : 0.0f;
        int32_t total = 0;
        Ints totals = {};
        for (i = 0; i + LANES <= group; i += LANES) {
            Ints whole = nearest(load(from + i) * inverse);
#if defined(__AVX512F__)
            _mm_storeu_si128((__m128i*)(to + i), _mm512_cvtepi32_epi8((__m512i)whole));
#else
            for (int l = 0; l < LANES; l++) to[i + l] = (int8_t)whole[l];
#endif
            totals += whole;
        }
        for (int l = 0; l < LANES; l++) total += totals[l];
        for (; i < group; i++) {
            to[i] = (int8_t)std::lrintf(from[i] * inverse);
            total += to[i];
        }
        scale[g] = most / 127.0f;
        offset[g] = -128 * total;
    }
}

// M rows times PANELS_HERE panels of float or bfloat weights.
template <int M, int P, class W> static inline void float_block(const float* x, int stride, const W* const* panel, int inputs, Floats (&sums)[M][P]) {
    for (int m = 0; m < M; m++)
        for (int p = 0; p < P; p++) sums[m][p] = Floats{};
    for (int i = 0; i < inputs; i++) {
        Floats w[P];
        for (int p = 0; p < P; p++) w[p] = load(panel[p] + i * LANES);
#pragma GCC unroll 12
        for (int m = 0; m < M; m++) {
            Floats value = all(x[m * stride + i]);
            for (int p = 0; p < P; p++) sums[m][p] += value * w[p];
        }
    }
}

// Sixteen sums of four products of signed weights and activations each.
static inline Ints dot_bytes(Ints sums, const uint8_t* weights, int32_t four) {
#if defined(__AVX512VNNI__)
    return (Ints)_mm512_dpbusd_epi32((__m512i)sums, _mm512_loadu_si512(weights), _mm512_set1_epi32(four));
#elif defined(__AVX2__)
    // maddubs wants one unsigned side: the weights' absolute values, their signs given to the activations; |w| <= 127 keeps pairs below 2^15.
    union { Ints all; __m256i half[2]; } both;
    both.all = sums;
    __m256i x = _mm256_set1_epi32(four), ones = _mm256_set1_epi16(1);
    for (int h = 0; h < 2; h++) {
        __m256i w = _mm256_loadu_si256((const __m256i*)(weights + 32 * h));
        __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
        both.half[h] = _mm256_add_epi32(both.half[h], _mm256_madd_epi16(pairs, ones));
    }
    return both.all;
#else
    int8_t x[4];
    memcpy(x, &four, 4);
    const int8_t* w = (const int8_t*)weights;
    for (int l = 0; l < LANES; l++)
        for (int i = 0; i < 4; i++) sums[l] += (int32_t)w[4 * l + i] * x[i];
    return sums;
#endif
}

#if defined(__AVX512VNNI__)
constexpr int BYTE_OFFSET = 128;  // weights are stored unsigned, as vpdpbusd wants its first factor
#else
constexpr int BYTE_OFFSET = 0;
#endif

// AHEAD asks for the panels that come next while these are used: the processor's own guess ends where a panel does.
template <int M, int P, bool AHEAD>
static inline void byte_block(const int8_t* x, int stride, const float* scale, const int32_t* offset, int groups, int group, const uint8_t* const* panel,
                              Floats (&sums)[M][P]) {
    for (int m = 0; m < M; m++)
        for (int p = 0; p < P; p++) sums[m][p] = Floats{};
    for (int g = 0; g < groups; g++) {
        Ints whole[M][P];
#pragma GCC unroll 6
        for (int m = 0; m < M; m++)
            for (int p = 0; p < P; p++) whole[m][p] = BYTE_OFFSET ? all_ints(offset[m * groups + g]) : Ints{};
        for (int i = g * group; i < (g + 1) * group; i += 4) {
            if (AHEAD)
                for (int p = 0; p < P; p++) __builtin_prefetch(panel[p] + (size_t)(i + P * groups * group) * LANES, 0, 2);
#pragma GCC unroll 6
            for (int m = 0; m < M; m++) {
                int32_t four;
                memcpy(&four, x + m * stride + i, 4);
                for (int p = 0; p < P; p++) whole[m][p] = dot_bytes(whole[m][p], panel[p] + i * LANES, four);
            }
        }
#pragma GCC unroll 6
        for (int m = 0; m < M; m++)
            for (int p = 0; p < P; p++) sums[m][p] += to_floats(whole[m][p]) * scale[m * groups + g];
    }
}

template <int M, int P, bool AHEAD> static void byte_rows(const Matrix& w, const Rows& in, int row, int first, float* out, int out_stride) {
    const int groups = w.inputs / w.group;
    const uint8_t* panel[P];
    for (int p = 0; p < P; p++) panel[p] = (const uint8_t*)w.data + (size_t)(first + p) * w.inputs * LANES;
    Floats sums[M][P];
    byte_block<M, P, AHEAD>(in.bytes + (size_t)row * w.inputs, w.inputs, in.scale + (size_t)row * groups, in.offset + (size_t)row * groups, groups, w.group, panel, sums);
    for (int p = 0; p < P; p++) {
        Floats scale = load(w.scale + (first + p) * LANES);
        for (int m = 0; m < M; m++) store(out + (size_t)(row + m) * out_stride + (first + p) * LANES, sums[m][p] * scale);
    }
}

template <int M, int P> static void float_rows(const Matrix& w, const Rows& in, int row, int first, float* out, int out_stride) {
    const float* panel[P];
    for (int p = 0; p < P; p++) panel[p] = (const float*)w.data + (size_t)(first + p) * w.inputs * LANES;
    Floats sums[M][P];
    float_block<M, P, float>(in.x + (size_t)row * w.inputs, w.inputs, panel, w.inputs, sums);
    for (int p = 0; p < P; p++)
        for (int m = 0; m < M; m++) store(out + (size_t)(row + m) * out_stride + (first + p) * LANES, sums[m][p]);
}

// Calls the block of as many rows as are left.
template <int P, int M, bool BYTES> static void rows_left(int left, const Matrix& w, const Rows& in, int row, int first, float* out, int out_stride) {
    if constexpr (M > 0) {
        if (left < M) return rows_left<P, M - 1, BYTES>(left, w, in, row, first, out, out_stride);
        if constexpr (BYTES) row ? byte_rows<M, P, false>(w, in, row, first, out, out_stride) : byte_rows<M, P, true>(w, in, row, first, out, out_stride);
        else float_rows<M, P>(w, in, row, first, out, out_stride);
    }
}

template <int P> static void panel_rows(const Matrix& w, const Rows& in, int n, int first, float* out, int out_stride) {
    if (w.kind == INT8)
        for (int row = 0; row < n; row += BYTE_ROWS) rows_left<P, BYTE_ROWS, true>(n - row, w, in, row, first, out, out_stride);
    else
        for (int row = 0; row < n; row += FLOAT_ROWS) rows_left<P, FLOAT_ROWS, false>(n - row, w, in, row, first, out, out_stride);
}

// A stretch of rows that one adapter changes.
struct Segment {
    int32_t start, end;
    const LowRank* change;  // of this matrix
    float* low;             // A x: [end - start][ranks]
};

static inline void add_low_rank(const Segment& s, int panel, float* out, int out_stride) {
    const LowRank& c = *s.change;
    if (!c.ranks) return;
    for (int row = s.start; row < s.end; row++) {
        float* y = out + (size_t)row * out_stride + panel * LANES;
        const float* low = s.low + (size_t)(row - s.start) * c.ranks + c.from[panel];
        const BFloat* b = c.b + (size_t)c.start[panel] * LANES;
        Floats value = load(y);
        for (int r = 0; r < c.count[panel]; r++) value += load(b + r * LANES) * low[r];
        if (c.gain) value = value * load(c.gain + panel * LANES);
        store(y, value);
    }
}

// A x of every segment. Few rows at a time share a pass over A.
static inline void low_rank(Pool& pool, const Rows& in, int inputs, const Segment* segments, int count) {
    constexpr int ROWS = 4;
    int tasks = 0;
    for (int s = 0; s < count; s++) tasks += segments[s].change->ranks / LANES;
    pool.run(tasks, [&](int task, int) {
        int s = 0;
        while (task >= segments[s].change->ranks / LANES) task -= segments[s++].change->ranks / LANES;
        const LowRank& c = *segments[s].change;
        const BFloat* panel[1] = {c.a + (size_t)task * inputs * LANES};
        for (int row = segments[s].start; row < segments[s].end; row += ROWS) {
            const float* x = in.x + (size_t)row * inputs;
            float* low = segments[s].low + (size_t)(row - segments[s].start) * c.ranks + task * LANES;
            if (row + ROWS <= segments[s].end) {
                Floats sums[ROWS][1];
                float_block<ROWS, 1, BFloat>(x, inputs, panel, inputs, sums);
                for (int m = 0; m < ROWS; m++) store(low + (size_t)m * c.ranks, sums[m][0]);
            } else
                for (int m = 0; row + m < segments[s].end; m++) {
                    Floats sums[1][1];
                    float_block<1, 1, BFloat>(x + (size_t)m * inputs, inputs, panel, inputs, sums);
                    store(low + (size_t)m * c.ranks, sums[0][0]);
                }
        }
    });
}

// out = W x (+ changes) (+ bias); with `stream`, that is added to it and `out` is only a workplace. out_stride is stride_of(outputs).
static inline void multiply(Pool& pool, const Matrix& w, const Rows& in, int n, float* out, int out_stride, float* stream, const Segment* segments, int count) {
    const int panels = panels_of(w.outputs);
    if (count) low_rank(pool, in, w.inputs, segments, count);
    const auto block = [&](int first, int here) {
        if (here == PANELS) panel_rows<PANELS>(w, in, n, first, out, out_stride);
        else panel_rows<1>(w, in, n, first, out, out_stride);
        for (int s = 0; s < count; s++)
            for (int p = first; p < first + here; p++) add_low_rank(segments[s], p, out, out_stride);
        if (!w.bias && !stream) return;
        for (int p = first; p < first + here; p++) {
            Floats bias = w.bias ? load(w.bias + p * LANES) : Floats{};
            for (int row = 0; row < n; row++) {
                float* y = out + (size_t)row * out_stride + p * LANES;
                Floats value = load(y) + bias;
                if (!stream) { store(y, value); continue; }
                float* x = stream + (size_t)row * w.outputs + p * LANES;
                if ((p + 1) * LANES <= w.outputs) store(x, load(x) + value);
                else for (int l = 0; p * LANES + l < w.outputs; l++) x[l] += value[l];
            }
        }
    };
    // Neighbouring panels go to one thread, which asks for them ahead of time; several tasks a thread, so that none waits long for the other.
    const int blocks = (panels + PANELS - 1) / PANELS, tasks = std::min(blocks, TASKS_A_THREAD * pool.threads());
    pool.run(tasks, [&](int task, int) {
        const int end = blocks * (task + 1) / tasks;
        for (int b = blocks * task / tasks; b < end; b++) block(b * PANELS, std::min(PANELS, panels - b * PANELS));
    });
}
