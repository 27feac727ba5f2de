// Sixteen numbers at a time, in registers as wide as the processor's: one of AVX-512, two of AVX2, four of SSE or NEON. GCC's and Clang's vector
// types say most of it; what they cannot say stands behind #ifdef, with a plain twin.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

constexpr int LANES = 16;
#if defined(__AVX512F__)
constexpr int WIDE = 16;
#elif defined(__AVX2__)
constexpr int WIDE = 8;
#else
constexpr int WIDE = 4;
#endif
constexpr int PARTS = LANES / WIDE;

typedef float FloatPart __attribute__((vector_size(4 * WIDE)));
typedef int32_t IntPart __attribute__((vector_size(4 * WIDE)));
typedef float FloatsLoose __attribute__((vector_size(4 * WIDE), aligned(4), may_alias));

// A vector type of 64 bytes would do, but where registers are narrower it lives in memory: products took seven times as long (docs/journal.md).
struct Ints {
    IntPart part[PARTS];
};
struct Floats {
    FloatPart part[PARTS];
    float& operator[](int lane) { return ((float*)part)[lane]; }
    float operator[](int lane) const { return part[lane / WIDE][lane % WIDE]; }
};

template <class Make> static inline Floats floats(const Make& make) {
    Floats made;
    for (int i = 0; i < PARTS; i++) made.part[i] = make(i);
    return made;
}
template <class Make> static inline Ints ints(const Make& make) {
    Ints made;
    for (int i = 0; i < PARTS; i++) made.part[i] = make(i);
    return made;
}

static inline Floats operator+(const Floats& a, const Floats& b) { return floats([&](int i) { return a.part[i] + b.part[i]; }); }
static inline Floats operator-(const Floats& a, const Floats& b) { return floats([&](int i) { return a.part[i] - b.part[i]; }); }
static inline Floats operator*(const Floats& a, const Floats& b) { return floats([&](int i) { return a.part[i] * b.part[i]; }); }
static inline Floats operator/(const Floats& a, const Floats& b) { return floats([&](int i) { return a.part[i] / b.part[i]; }); }
static inline Floats operator+(const Floats& a, float b) { return floats([&](int i) { return a.part[i] + b; }); }
static inline Floats operator-(const Floats& a, float b) { return floats([&](int i) { return a.part[i] - b; }); }
static inline Floats operator*(const Floats& a, float b) { return floats([&](int i) { return a.part[i] * b; }); }
static inline Floats operator+(float a, const Floats& b) { return b + a; }
static inline Floats operator-(const Floats& a) { return floats([&](int i) { return -a.part[i]; }); }
static inline Floats& operator+=(Floats& a, const Floats& b) { return a = a + b; }
static inline Ints& operator+=(Ints& a, const Ints& b) {
    for (int i = 0; i < PARTS; i++) a.part[i] += b.part[i];
    return a;
}

static inline Floats load(const float* at) { return floats([&](int i) -> FloatPart { return *(const FloatsLoose*)(at + i * WIDE); }); }
static inline void store(float* at, const Floats& value) {
    for (int i = 0; i < PARTS; i++) *(FloatsLoose*)(at + i * WIDE) = value.part[i];
}
static inline Floats all(float value) { return floats([&](int) { return FloatPart{} + value; }); }
static inline Ints all_ints(int32_t value) { return ints([&](int) { return IntPart{} + value; }); }
static inline Floats to_floats(const Ints& value) { return floats([&](int i) { return __builtin_convertvector(value.part[i], FloatPart); }); }
static inline Floats greater(const Floats& a, const Floats& b) { return floats([&](int i) { return a.part[i] > b.part[i] ? a.part[i] : b.part[i]; }); }
static inline Floats absolute(const Floats& a) { return greater(a, -a); }

// Lanes first..last as they are, the others -infinity.
static inline Floats only(const Floats& value, int first, int last) {
    return floats([&](int i) {
        IntPart lane;
        for (int l = 0; l < WIDE; l++) lane[l] = i * WIDE + l;
        return lane >= first & lane <= last ? value.part[i] : FloatPart{} - INFINITY;
    });
}

// Halves are added until one number is left: the same order on every processor.
static inline float sum(const Floats& v) {
    FloatPart low = v.part[0];
    if constexpr (PARTS == 2) low = v.part[0] + v.part[1];
    if constexpr (PARTS == 4) low = (v.part[0] + v.part[2]) + (v.part[1] + v.part[3]);
    for (int step = WIDE / 2; step; step /= 2)
        for (int i = 0; i < step; i++) low[i] += low[i + step];
    return low[0];
}

static inline float largest(const Floats& v) {
    FloatPart most = v.part[0];
    for (int i = 1; i < PARTS; i++) most = most > v.part[i] ? most : v.part[i];
    for (int step = WIDE / 2; step; step /= 2)
        for (int i = 0; i < step; i++) most[i] = most[i] > most[i + step] ? most[i] : most[i + step];
    return most[0];
}

// To the nearest whole number, of two the even one: rounding must not hang on the processor.
static inline Ints nearest(const Floats& x) {
    return ints([&](int i) -> IntPart {
#if defined(__AVX512F__)
        return (IntPart)_mm512_cvtps_epi32((__m512)x.part[i]);
#elif defined(__AVX2__)
        return (IntPart)_mm256_cvtps_epi32((__m256)x.part[i]);
#elif defined(__x86_64__)
        return (IntPart)_mm_cvtps_epi32((__m128)x.part[i]);
#else
        return __builtin_convertvector((x.part[i] + 12582912.0f) - 12582912.0f, IntPart);  // for |x| < 2^22
#endif
    });
}

// Sixteen numbers of -128..127 as bytes.
static inline void store(int8_t* at, const Ints& value) {
#if defined(__AVX512F__)
    _mm_storeu_si128((__m128i*)at, _mm512_cvtepi32_epi8((__m512i)value.part[0]));
#elif defined(__AVX2__)
    __m256i pairs = _mm256_permute4x64_epi64(_mm256_packs_epi32((__m256i)value.part[0], (__m256i)value.part[1]), 0xd8);
    _mm_storeu_si128((__m128i*)at, _mm_packs_epi16(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1)));
#else
    for (int l = 0; l < LANES; l++) at[l] = (int8_t)value.part[l / WIDE][l % WIDE];
#endif
}

// e^x to about 2 units in the last place: 2^(n + f) with a polynomial of 2^f. Source: the usual Cephes split; coefficients of a Taylor series.
static inline Floats exponential(const Floats& value) {
    return floats([&](int i) -> FloatPart {
        FloatPart x = value.part[i];
        x = x > -87.0f ? x : FloatPart{} - 87.0f;
        x = x < 88.0f ? x : FloatPart{} + 88.0f;
        FloatPart scaled = x * 1.44269504088896341f;
        IntPart whole = __builtin_convertvector(scaled + (scaled < 0.0f ? FloatPart{} - 0.5f : FloatPart{} + 0.5f), IntPart);
        FloatPart n = __builtin_convertvector(whole, FloatPart);
        FloatPart f = (x - n * 0.693359375f) + n * 2.12194440e-4f;
        FloatPart p = FloatPart{} + 1.9875691500e-4f;
        p = p * f + 1.3981999507e-3f;
        p = p * f + 8.3334519073e-3f;
        p = p * f + 4.1665795894e-2f;
        p = p * f + 1.6666665459e-1f;
        p = p * f + 5.0000001201e-1f;
        p = p * f * f + f + 1.0f;
        return p * (FloatPart)((whole + 127) << 23);
    });
}

// e^x; nothing at all for what lies below -80, as what was masked does.
static inline Floats weight(const Floats& x) {
    Floats power = exponential(x);
    return floats([&](int i) { return x.part[i] < -80.0f ? FloatPart{} : power.part[i]; });
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
#if defined(__F16C__)
    return floats([&](int i) -> FloatPart {
#if defined(__AVX512F__)
        return (FloatPart)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)(at + i * WIDE)));
#elif defined(__AVX2__)
        return (FloatPart)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(at + i * WIDE)));
#else
        return (FloatPart)_mm_cvtph_ps(_mm_loadu_si64(at + i * WIDE));
#endif
    });
#else
    Floats value;
    for (int l = 0; l < LANES; l++) value.part[l / WIDE][l % WIDE] = half_to_float(at[l]);
    return value;
#endif
}

static inline Floats load(const BFloat* at) {
    typedef uint16_t Shorts __attribute__((vector_size(2 * WIDE), aligned(2), may_alias));
    return floats([&](int i) { return (FloatPart)(__builtin_convertvector(*(const Shorts*)(at + i * WIDE), IntPart) << 16); });
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
