// Products of a few rows with a packed matrix. Every sum runs over the inputs in one order, whatever else is in the batch, so an answer does
// not depend on its neighbours to the last bit.
#pragma once
#include "bytes.h"
#include "nibbles.h"
#include "packed.h"
#include "pool.h"
#include "simd.h"

#include <algorithm>

#if defined(__AVX512F__)
constexpr int PANELS = 2, FLOAT_ROWS = 12, BYTE_ROWS = 6, NIBBLE_ROWS = 6;
#else
constexpr int PANELS = 1, FLOAT_ROWS = 6, BYTE_ROWS = 4, NIBBLE_ROWS = 4;
#endif

constexpr int TASKS_A_THREAD = 6;

// The low-rank changes of one matrix by one adapter: y = gain * (W x + B A x). Outputs in panels of 16, as the matrix itself.
struct LowRank {
    const void* a;        // panels of 16 ranks: [ranks/16][inputs][16]
    const void* b;        // [start[p] ...][16]: for each panel, its ranks
    const int32_t* start; // of each panel's part of b, in rows of 16
    const int32_t* from;  // first rank that a panel looks at
    const int32_t* count; // how many
    const float* gain;    // of each output, or null
    int32_t ranks;        // a multiple of 16; 0: no change
    int32_t exact;        // a and b are of float, not of BFloat
};

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

template <int M, int P> static void float_rows(const Matrix& w, const Rows& in, int row, int first, float* out, int out_stride) {
    const float* panel[P];
    for (int p = 0; p < P; p++) panel[p] = (const float*)w.data + (size_t)(first + p) * w.inputs * LANES;
    Floats sums[M][P];
    float_block<M, P, float>(in.x + (size_t)row * w.inputs, w.inputs, panel, w.inputs, sums);
    for (int p = 0; p < P; p++)
        for (int m = 0; m < M; m++) store(out + (size_t)(row + m) * out_stride + (first + p) * LANES, sums[m][p]);
}

// Calls the block of as many rows as are left.
template <int P, int M, int KIND> static void rows_left(int left, const Matrix& w, const Rows& in, int row, int first, float* out, int out_stride) {
    if constexpr (M > 0) {
        if (left < M) return rows_left<P, M - 1, KIND>(left, w, in, row, first, out, out_stride);
        if constexpr (KIND == INT8) row ? byte_rows<M, P, false>(w, in, row, first, out, out_stride) : byte_rows<M, P, true>(w, in, row, first, out, out_stride);
        else if constexpr (KIND == INT4) row ? nibble_rows<M, P, false>(w, in, row, first, out, out_stride) : nibble_rows<M, P, true>(w, in, row, first, out, out_stride);
        else float_rows<M, P>(w, in, row, first, out, out_stride);
    }
}

template <int P, int M, int KIND> static void all_rows(const Matrix& w, const Rows& in, int n, int first, float* out, int out_stride) {
    for (int row = 0; row < n; row += M) rows_left<P, M, KIND>(n - row, w, in, row, first, out, out_stride);
}

template <int P> static void panel_rows(const Matrix& w, const Rows& in, int n, int first, float* out, int out_stride) {
    if (w.kind == INT8) all_rows<P, BYTE_ROWS, INT8>(w, in, n, first, out, out_stride);
    else if (w.kind == INT4) all_rows<P, NIBBLE_ROWS, INT4>(w, in, n, first, out, out_stride);
    else all_rows<P, FLOAT_ROWS, FLOAT32>(w, in, n, first, out, out_stride);
}

// A stretch of rows that one adapter changes.
struct Segment {
    int32_t start, end;
    const LowRank* change;  // of this matrix
    float* low;             // A x: [end - start][ranks]
};

template <class T> static inline void add_low_rank(const Segment& s, int panel, float* out, int out_stride) {
    const LowRank& c = *s.change;
    const int count = c.ranks ? c.count[panel] : 0;
    if (!c.ranks) return;
    const T* b = (const T*)c.b + (size_t)c.start[panel] * LANES;
    for (int r = 0; r < count; r += 2) __builtin_prefetch(b + (size_t)(count + r) * LANES, 0, 2);  // the next panel's
    for (int row = s.start; row < s.end; row++) {
        float* y = out + (size_t)row * out_stride + panel * LANES;
        const float* low = s.low + (size_t)(row - s.start) * c.ranks + c.from[panel];
        Floats value = load(y), parts[3] = {};  // four sums: one would wait for itself
        int r = 0;
        for (; r + 4 <= count; r += 4) {
            value += load(b + r * LANES) * low[r];
            for (int i = 0; i < 3; i++) parts[i] += load(b + (r + 1 + i) * LANES) * low[r + 1 + i];
        }
        for (; r < count; r++) value += load(b + r * LANES) * low[r];
        value += (parts[0] + parts[1]) + parts[2];
        if (c.gain) value = value * load(c.gain + panel * LANES);
        store(y, value);
    }
}

// Sixteen ranks of A x for M rows; four sums each.
template <int M, class T> static inline void low_block(const float* x, int inputs, const T* panel, float* low, int stride) {
    Floats sums[M][4];
    for (int m = 0; m < M; m++)
        for (int i = 0; i < 4; i++) sums[m][i] = Floats{};
    int at = 0;
    for (; at + 4 <= inputs; at += 4) {
        __builtin_prefetch(panel + (size_t)at * LANES + 1024, 0, 2);
        __builtin_prefetch(panel + (size_t)at * LANES + 1056, 0, 2);
        for (int i = 0; i < 4; i++) {
            Floats a = load(panel + (size_t)(at + i) * LANES);
            for (int m = 0; m < M; m++) sums[m][i] += a * x[(size_t)m * inputs + at + i];
        }
    }
    for (; at < inputs; at++)
        for (int m = 0; m < M; m++) sums[m][0] += load(panel + (size_t)at * LANES) * x[(size_t)m * inputs + at];
    for (int m = 0; m < M; m++) store(low + (size_t)m * stride, (sums[m][0] + sums[m][1]) + (sums[m][2] + sums[m][3]));
}

// Sixteen ranks of A x for the rows of a segment. Few rows at a time share a pass over A.
template <class T> static inline void low_panel(const Rows& in, int inputs, const Segment& s, int number) {
    constexpr int ROWS = 4;
    const int ranks = s.change->ranks;
    const T* panel = (const T*)s.change->a + (size_t)number * inputs * LANES;
    int row = s.start;
    float* low = s.low + number * LANES;
    for (; row + ROWS <= s.end; row += ROWS, low += (size_t)ROWS * ranks) low_block<ROWS>(in.x + (size_t)row * inputs, inputs, panel, low, ranks);
    for (; row < s.end; row++, low += ranks) low_block<1>(in.x + (size_t)row * inputs, inputs, panel, low, ranks);
}

// A x of every segment.
static inline void low_rank(Pool& pool, const Rows& in, int inputs, const Segment* segments, int count) {
    int tasks = 0;
    for (int s = 0; s < count; s++) tasks += segments[s].change->ranks / LANES;
    pool.run(tasks, [&](int task, int) {
        int s = 0;
        while (task >= segments[s].change->ranks / LANES) task -= segments[s++].change->ranks / LANES;
        if (segments[s].change->exact) low_panel<float>(in, inputs, segments[s], task);
        else low_panel<BFloat>(in, inputs, segments[s], task);
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
            for (int p = first; p < first + here; p++)
                if (segments[s].change->exact) add_low_rank<float>(segments[s], p, out, out_stride);
                else add_low_rank<BFloat>(segments[s], p, out, out_stride);
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
