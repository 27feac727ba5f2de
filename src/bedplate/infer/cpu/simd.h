// Sixteen numbers at a time. GCC's and Clang's vector types, so that the same code becomes AVX-512, AVX2 or NEON; what they cannot say
// stands behind #ifdef, with a plain twin.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

constexpr int LANES = 16;
typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef float FloatsLoose __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t IntsLoose __attribute__((vector_size(64), aligned(4), may_alias));

static inline Floats load(const float* at) { return *(const FloatsLoose*)at; }
static inline void store(float* at, Floats value) { *(FloatsLoose*)at = value; }
static inline Floats all(float value) { return Floats{} + value; }
static inline Ints all_ints(int32_t value) { return Ints{} + value; }
static inline Floats to_floats(Ints value) { return __builtin_convertvector(value, Floats); }

static inline float sum(Floats v) {
    float total = 0;
    for (int step = LANES / 2; step; step /= 2)
        for (int i = 0; i < step; i++) v[i] += v[i + step];
    total = v[0];
    return total;
}

static inline float largest(Floats v) {
    for (int step = LANES / 2; step; step /= 2)
        for (int i = 0; i < step; i++) v[i] = v[i] > v[i + step] ? v[i] : v[i + step];
    return v[0];
}

// To the nearest whole number, of two the even one: rounding must not hang on the processor.
static inline Ints nearest(Floats x) {
#if defined(__AVX512F__)
    return (Ints)_mm512_cvtps_epi32((__m512)x);
#elif defined(__x86_64__)
    union { Floats all; __m128 quarter[4]; } in;
    union { Ints all; __m128i quarter[4]; } out;
    in.all = x;
    for (int q = 0; q < 4; q++) out.quarter[q] = _mm_cvtps_epi32(in.quarter[q]);
    return out.all;
#else
    return __builtin_convertvector((x + 12582912.0f) - 12582912.0f, Ints);  // for |x| < 2^22
#endif
}

static inline Floats greater(Floats a, Floats b) { return a > b ? a : b; }
static inline Floats absolute(Floats a) { return greater(a, -a); }

// e^x to about 2 units in the last place: 2^(n + f) with a polynomial of 2^f. Source: the usual Cephes split; coefficients of a Taylor series.
static inline Floats exponential(Floats x) {
    x = greater(x, all(-87.0f));
    x = x < 88.0f ? x : all(88.0f);
    Floats scaled = x * 1.44269504088896341f;
    Ints whole = __builtin_convertvector(scaled + (scaled < 0.0f ? all(-0.5f) : all(0.5f)), Ints);
    Floats n = to_floats(whole);
    Floats f = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    Floats p = all(1.9875691500e-4f);
    p = p * f + 1.3981999507e-3f;
    p = p * f + 8.3334519073e-3f;
    p = p * f + 4.1665795894e-2f;
    p = p * f + 1.6666665459e-1f;
    p = p * f + 5.0000001201e-1f;
    p = p * f * f + f + 1.0f;
    Ints bits = (whole + 127) << 23;
    Floats power;
    memcpy(&power, &bits, sizeof power);
    return p * power;
}

// Half precision, for keys and values; bfloat16, for adapters.
typedef uint16_t Half;
struct BFloat { uint16_t bits; };

static inline float half_to_float(Half h) {
#if defined(__F16C__)
    return _cvtsh_ss(h);
#else
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = (h >> 10) & 31, mantissa = h & 1023, bits;
    if (exponent == 31) bits = sign | 0x7f800000 | mantissa << 13;
    else if (exponent) bits = sign | (exponent + 112) << 23 | mantissa << 13;
    else { float tiny = mantissa * 5.9604644775390625e-8f; memcpy(&bits, &tiny, 4); bits |= sign; }
    float value; memcpy(&value, &bits, 4); return value;
#endif
}

static inline Half float_to_half(float value) {
#if defined(__F16C__)
    return _cvtss_sh(value, 0);
#else
    uint32_t bits; memcpy(&bits, &value, 4);
    uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    if (magnitude >= 0x477ff000) return sign | (magnitude > 0x7f800000 ? 0x7e00 : 0x7c00);
    if (magnitude < 0x38800000) { float m; memcpy(&m, &magnitude, 4); return sign | (uint32_t)std::nearbyint(m * 16777216.0f); }
    uint32_t rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
    return sign | ((rounded >> 13) - (112 << 10));
#endif
}

static inline Floats load(const Half* at) {
#if defined(__AVX512F__)
    return (Floats)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)at));
#elif defined(__F16C__)
    union { Floats all; __m256 half[2]; } both;
    both.half[0] = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)at));
    both.half[1] = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(at + 8)));
    return both.all;
#else
    Floats value;
    for (int i = 0; i < LANES; i++) value[i] = half_to_float(at[i]);
    return value;
#endif
}

static inline Floats load(const BFloat* at) {
    typedef uint16_t Shorts __attribute__((vector_size(32), aligned(2), may_alias));
    Ints wide = __builtin_convertvector(*(const Shorts*)at, Ints) << 16;
    Floats value; memcpy(&value, &wide, sizeof value); return value;
}

static inline BFloat to_bfloat(float value) {
    uint32_t bits; memcpy(&bits, &value, 4);
    return BFloat{(uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

// What is kept is finite, whatever a request made of itself: a page's next owner reads all its lanes, and nothing times infinity is no number.
static inline float bounded(float value, float most) {
    value = value > -most ? value : -most;  // false of what is no number
    return value < most ? value : most;
}
static inline void keep(float* at, float value) { *at = bounded(value, 3.0e38f); }
static inline void keep(Half* at, float value) { *at = float_to_half(bounded(value, 65504.0f)); }
static inline float read(const float* at) { return *at; }
static inline float read(const Half* at) { return half_to_float(*at); }
