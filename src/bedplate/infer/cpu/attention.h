// Attention of one position over pages of 16 keys. A page holds, for each key head, keys turned on their side [width][16], so that sixteen
// scores come of one broadcast, and values as they are [16][width], filled up to whole lanes.
#pragma once
#include "simd.h"

constexpr int PAGE = LANES;

struct Heads {
    int32_t heads, key_heads, width;

    int value_width() const { return (width + LANES - 1) / LANES * LANES; }
    size_t key_page() const { return (size_t)key_heads * width * PAGE; }
    size_t value_page() const { return (size_t)key_heads * value_width() * PAGE; }
};

template <class T> static inline void remember(const Heads& h, T* keys, T* values, int slot, const float* key, const float* value) {
    const size_t page = slot / PAGE, at = slot % PAGE;
    for (int k = 0; k < h.key_heads; k++) {
        T* page_keys = keys + page * h.key_page() + (size_t)k * h.width * PAGE;
        T* page_values = values + page * h.value_page() + ((size_t)k * PAGE + at) * h.value_width();
        for (int e = 0; e < h.width; e++) keep(page_keys + e * PAGE + at, key[k * h.width + e]);
        for (int e = 0; e < h.width; e++) keep(page_values + e, value[k * h.width + e]);
    }
}

// G queries that share one key head, over positions from..until. `scores` has room for G rows of the pages between them.
template <int G, class T>
static void attend(const Heads& h, const float* queries, const T* keys, const T* values, int key_head, const int32_t* table, int from, int until, float* scores,
                   float* out) {
    const int first = from / PAGE, last = until / PAGE, span = (last - first + 1) * PAGE, width = h.width;
    const int value_width = h.value_width();
    Floats most[G];
    for (int g = 0; g < G; g++) most[g] = all(-INFINITY);
    for (int p = first; p <= last; p++) {
        const T* k = keys + table[p] * h.key_page() + (size_t)key_head * width * PAGE;
        const char* next = (const char*)(keys + table[p < last ? p + 1 : p] * h.key_page() + (size_t)key_head * width * PAGE);
        const char* value = (const char*)(values + table[p] * h.value_page() + (size_t)key_head * PAGE * value_width);
        Floats dots[G], odd[G];  // two sums each: one would wait for itself
        for (int g = 0; g < G; g++) dots[g] = odd[g] = Floats{};
        for (int e = 0; e < width; e += 2) {
            Floats key = load(k + e * PAGE), other = load(k + (e + 1) * PAGE);
            __builtin_prefetch(next + e * PAGE * sizeof(T), 0, 2);
            __builtin_prefetch(value + e * PAGE * sizeof(T), 0, 2);
            for (int g = 0; g < G; g++) {
                dots[g] += key * queries[g * width + e];
                odd[g] += other * queries[g * width + e + 1];
            }
        }
        for (int g = 0; g < G; g++) dots[g] += odd[g];
        if (p == first || p == last)
            for (int g = 0; g < G; g++) dots[g] = only(dots[g], from - p * PAGE, until - p * PAGE);
        for (int g = 0; g < G; g++) {
            most[g] = greater(most[g], dots[g]);
            store(scores + g * span + (p - first) * PAGE, dots[g]);
        }
    }
    float share[G];
    for (int g = 0; g < G; g++) {
        const float top = largest(most[g]);
        Floats total = {};
        for (int i = 0; i < span; i += LANES) {
            const Floats one = weight(load(scores + g * span + i) - top);  // what was masked weighs exactly nothing
            total += one;
            store(scores + g * span + i, one);
        }
        share[g] = 1.0f / sum(total);
    }
    for (int e = 0; e < width; e += LANES) {
        Floats sums[G], odd[G];
        for (int g = 0; g < G; g++) sums[g] = odd[g] = Floats{};
        for (int p = first; p <= last; p++) {
            const T* v = values + table[p] * h.value_page() + (size_t)key_head * PAGE * value_width + e;
            const float* weight = scores + (p - first) * PAGE;
            for (int l = 0; l < PAGE; l += 2) {
                Floats value = load(v + l * value_width), other = load(v + (l + 1) * value_width);
                for (int g = 0; g < G; g++) {
                    sums[g] += value * weight[g * span + l];
                    odd[g] += other * weight[g * span + l + 1];
                }
            }
        }
        for (int g = 0; g < G; g++) {
            sums[g] = (sums[g] + odd[g]) * share[g];
            if (e + LANES <= width) store(out + g * width + e, sums[g]);
            else for (int l = 0; e + l < width; l++) out[g * width + e + l] = sums[g][l];
        }
    }
}

// All queries of one key head, a few at a time.
template <class T>
static void attend_head(const Heads& h, const float* queries, const T* keys, const T* values, int key_head, const int32_t* table, int from, int until,
                        float* scores, float* out) {
    const int group = h.heads / h.key_heads;
    queries += (size_t)key_head * group * h.width;
    out += (size_t)key_head * group * h.width;
    for (int g = 0; g < group;) {
        const int left = group - g;
        const float* q = queries + g * h.width;
        float* o = out + g * h.width;
        if (left >= 4) attend<4, T>(h, q, keys, values, key_head, table, from, until, scores, o), g += 4;
        else if (left == 3) attend<3, T>(h, q, keys, values, key_head, table, from, until, scores, o), g += 3;
        else if (left == 2) attend<2, T>(h, q, keys, values, key_head, table, from, until, scores, o), g += 2;
        else attend<1, T>(h, q, keys, values, key_head, table, from, until, scores, o), g += 1;
    }
}
