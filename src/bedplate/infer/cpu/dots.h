// Products of whole numbers: 16 outputs, four inputs each, of which a row's four activations are the same for all.
#pragma once
#include "simd.h"

#if defined(__AVX512VNNI__)
constexpr int BYTE_OFFSET = 128;  // int8 weights are stored unsigned, as vpdpbusd wants its first factor
#else
constexpr int BYTE_OFFSET = 0;
#endif

// Sixteen sums of four products of signed weights and activations each.
static inline void dot_bytes(Ints& sums, const uint8_t* weights, int32_t four) {
#if defined(__AVX512VNNI__)
    sums.part[0] = (IntPart)_mm512_dpbusd_epi32((__m512i)sums.part[0], _mm512_loadu_si512(weights), _mm512_set1_epi32(four));
#elif defined(__AVX512BW__)
    // maddubs wants one unsigned side: the weights' absolute values, their signs given to the activations; |w| <= 127 keeps pairs below 2^15.
    const __m512i w = _mm512_loadu_si512(weights), x = _mm512_set1_epi32(four);
    const __m512i turned = _mm512_mask_sub_epi8(x, _mm512_movepi8_mask(w), _mm512_setzero_si512(), x);
    sums.part[0] += (IntPart)_mm512_madd_epi16(_mm512_maddubs_epi16(_mm512_abs_epi8(w), turned), _mm512_set1_epi16(1));
#elif defined(__AVX2__)
    const __m256i x = _mm256_set1_epi32(four);
    for (int i = 0; i < PARTS; i++) {
        const __m256i w = _mm256_loadu_si256((const __m256i*)weights + i);
        sums.part[i] += (IntPart)_mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w)), _mm256_set1_epi16(1));
    }
#else
    int8_t x[4];
    memcpy(x, &four, 4);
    const int8_t* w = (const int8_t*)weights;
    for (int l = 0; l < LANES; l++)
        for (int i = 0; i < 4; i++) sums.part[l / WIDE][l % WIDE] += (int32_t)w[4 * l + i] * x[i];
#endif
}

// Weights of 0..15. A sum of up to eight fours of products; where only 16 bits are at hand it is two halves, whose largest is 8 x 2 x 15 x 127 < 2^15.
#if defined(__AVX512BW__)
typedef __m512i Bytes;
static inline Bytes load_bytes(const uint8_t* at) { return _mm512_loadu_si512(at); }
static inline Bytes low_nibbles(Bytes v) { return _mm512_and_si512(v, _mm512_set1_epi8(15)); }
static inline Bytes high_nibbles(Bytes v) { return _mm512_and_si512(_mm512_srli_epi16(v, 4), _mm512_set1_epi8(15)); }
typedef Ints Partial;
static inline void dot_nibbles(Partial& sums, Bytes weights, int32_t four) {
#if defined(__AVX512VNNI__)
    sums.part[0] = (IntPart)_mm512_dpbusd_epi32((__m512i)sums.part[0], weights, _mm512_set1_epi32(four));
#else
    sums.part[0] = (IntPart)_mm512_add_epi16((__m512i)sums.part[0], _mm512_maddubs_epi16(weights, _mm512_set1_epi32(four)));
#endif
}
#elif defined(__AVX2__)
struct Bytes { __m256i part[PARTS]; };
static inline Bytes load_bytes(const uint8_t* at) { return {{_mm256_loadu_si256((const __m256i*)at), _mm256_loadu_si256((const __m256i*)at + 1)}}; }
static inline Bytes low_nibbles(const Bytes& v) {
    const __m256i mask = _mm256_set1_epi8(15);
    return {{_mm256_and_si256(v.part[0], mask), _mm256_and_si256(v.part[1], mask)}};
}
static inline Bytes high_nibbles(const Bytes& v) {
    const __m256i mask = _mm256_set1_epi8(15);
    return {{_mm256_and_si256(_mm256_srli_epi16(v.part[0], 4), mask), _mm256_and_si256(_mm256_srli_epi16(v.part[1], 4), mask)}};
}
typedef Ints Partial;
static inline void dot_nibbles(Partial& sums, const Bytes& weights, int32_t four) {
    const __m256i x = _mm256_set1_epi32(four);
    for (int i = 0; i < PARTS; i++) sums.part[i] = (IntPart)_mm256_add_epi16((__m256i)sums.part[i], _mm256_maddubs_epi16(weights.part[i], x));
}
#else
struct Bytes { uint8_t at[4 * LANES]; };
static inline Bytes load_bytes(const uint8_t* at) { Bytes v; memcpy(&v, at, sizeof v); return v; }
static inline Bytes low_nibbles(const Bytes& v) { Bytes low; for (int i = 0; i < 4 * LANES; i++) low.at[i] = v.at[i] & 15; return low; }
static inline Bytes high_nibbles(const Bytes& v) { Bytes high; for (int i = 0; i < 4 * LANES; i++) high.at[i] = v.at[i] >> 4; return high; }
typedef Ints Partial;
static inline void dot_nibbles(Partial& sums, const Bytes& weights, int32_t four) {
    int8_t x[4];
    memcpy(x, &four, 4);
    for (int l = 0; l < LANES; l++)
        for (int i = 0; i < 4; i++) sums.part[l / WIDE][l % WIDE] += (int32_t)weights.at[4 * l + i] * x[i];
}
#endif

// The factors of 16 outputs, as `times` wants them.
static inline Ints load_factors(const uint8_t* at) {
#if defined(__AVX512BW__)
    const __m512i wide = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)at));
#if defined(__AVX512VNNI__)
    return {{(IntPart)wide}};
#else
    return {{(IntPart)_mm512_or_si512(wide, _mm512_slli_epi32(wide, 16))}};
#endif
#elif defined(__AVX2__)
    return ints([&](int i) {
        const IntPart wide = (IntPart)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)(at + i * WIDE)));
        return wide | wide << 16;
    });
#else
    Ints wide;
    for (int l = 0; l < LANES; l++) wide.part[l / WIDE][l % WIDE] = at[l];
    return wide;
#endif
}

static inline Ints times(const Partial& sums, const Ints& factors) {
    return ints([&](int i) -> IntPart {
#if defined(__AVX512BW__) && !defined(__AVX512VNNI__)
        return (IntPart)_mm512_madd_epi16((__m512i)sums.part[i], (__m512i)factors.part[i]);
#elif defined(__AVX2__) && !defined(__AVX512BW__)
        return (IntPart)_mm256_madd_epi16((__m256i)sums.part[i], (__m256i)factors.part[i]);
#else
        return sums.part[i] * factors.part[i];
#endif
    });
}

// Adds 16 sums of two products of 16 bits each.
static inline void dot_pairs(Ints& sums, const int16_t* pairs, int32_t two) {
#if defined(__AVX512VNNI__)
    sums.part[0] = (IntPart)_mm512_dpwssd_epi32((__m512i)sums.part[0], _mm512_loadu_si512(pairs), _mm512_set1_epi32(two));
#elif defined(__AVX512BW__)
    sums.part[0] += (IntPart)_mm512_madd_epi16(_mm512_loadu_si512(pairs), _mm512_set1_epi32(two));
#elif defined(__AVX2__)
    for (int i = 0; i < PARTS; i++) sums.part[i] += (IntPart)_mm256_madd_epi16(_mm256_loadu_si256((const __m256i*)pairs + i), _mm256_set1_epi32(two));
#else
    int16_t x[2];
    memcpy(x, &two, 4);
    for (int l = 0; l < LANES; l++) sums.part[l / WIDE][l % WIDE] += (int32_t)pairs[2 * l] * x[0] + (int32_t)pairs[2 * l + 1] * x[1];
#endif
}
