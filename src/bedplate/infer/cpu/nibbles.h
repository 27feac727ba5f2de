// Products with weights of 4 bits: weight = scale x (factor x nibble + base), with a scale an output and, of each half group of inputs (32 of 64),
// a factor of 8 bits and a base of 16. Factor and base are whole numbers, so the sums of a group are exact on every processor.
//
// A panel holds, for each group, two fours of inputs in a byte: the first in its lower bits. Its factors: for each group 16 of the first half,
// 16 of the second, and 16 pairs of bases.
#pragma once
#include "dots.h"
#include "packed.h"

#include <algorithm>
#include <vector>

constexpr int FACTOR_BYTES = 2 * LANES + 4 * LANES;  // of a group in a panel

template <int M, int P, bool AHEAD> static void nibble_rows(const Matrix& w, const Rows& in, int row, int first, float* out, int out_stride) {
    const int half = w.group / 2, groups = w.inputs / w.group, inputs = w.inputs;
    const int8_t* x = in.bytes + (size_t)row * inputs;
    const float* scale = in.scale + (size_t)row * groups;
    const int32_t* total = in.total + (size_t)row * groups;
    const size_t panel_bytes = (size_t)inputs * LANES / 2, panel_factors = (size_t)groups * FACTOR_BYTES;
    const uint8_t *panel[P], *factors[P];
    for (int p = 0; p < P; p++) {
        panel[p] = (const uint8_t*)w.data + (first + p) * panel_bytes;
        factors[p] = (const uint8_t*)w.factors + (first + p) * panel_factors;
    }
    Floats sums[M][P];
    for (int m = 0; m < M; m++)
        for (int p = 0; p < P; p++) sums[m][p] = Floats{};
    for (int g = 0; g < groups; g++) {
        for (int h = 0; h < 2; h++) {
            Partial whole[M][P];
#pragma GCC unroll 8
            for (int m = 0; m < M; m++)
                for (int p = 0; p < P; p++) whole[m][p] = Partial{};
            const int start = g * w.group + h * half;
            for (int i = start; i < start + half; i += 8) {
                Bytes both[P];
                for (int p = 0; p < P; p++) {
                    if (AHEAD) __builtin_prefetch(panel[p] + P * panel_bytes + i * LANES / 2, 0, 2);
                    both[p] = load_bytes(panel[p] + i * LANES / 2);
                }
                for (int n = 0; n < 2; n++) {
                    Bytes nibbles[P];
                    for (int p = 0; p < P; p++) nibbles[p] = n ? high_nibbles(both[p]) : low_nibbles(both[p]);
#pragma GCC unroll 8
                    for (int m = 0; m < M; m++) {
                        int32_t four;
                        memcpy(&four, x + (size_t)m * inputs + i + 4 * n, 4);
                        for (int p = 0; p < P; p++) dot_nibbles(whole[m][p], nibbles[p], four);
                    }
                }
            }
            for (int p = 0; p < P; p++) {
                const uint8_t* these = factors[p] + g * FACTOR_BYTES;
                if (AHEAD) __builtin_prefetch(these + P * panel_factors + h * 64, 0, 2);
                const Ints factor = load_factors(these + h * LANES);
#pragma GCC unroll 8
                for (int m = 0; m < M; m++) {
                    Ints each = times(whole[m][p], factor);
                    if (h) dot_pairs(each, (const int16_t*)(these + 2 * LANES), total[m * groups + g]);
                    sums[m][p] += to_floats(each) * scale[m * groups + g];
                }
            }
        }
    }
    for (int p = 0; p < P; p++) {
        const Floats each = load(w.scale + (first + p) * LANES);
        for (int m = 0; m < M; m++) store(out + (size_t)(row + m) * out_stride + (first + p) * LANES, sums[m][p] * each);
    }
}

// The line step x nibble + base nearest to numbers. Numbers that lie on a line of 16 steps or fewer are met exactly, wherever on it they lie; for
// others, lines from the least to the greatest and some that let the ends go, each bettered for its nibbles.
struct Line {
    double step, base;
};
constexpr int FEWEST_STEPS = 4, NARROWER = 5;

static inline Line line_of(const float* x, int count) {
    double low = x[0], high = x[0], found = INFINITY;
    for (int i = 1; i < count; i++) low = std::min(low, (double)x[i]), high = std::max(high, (double)x[i]);
    const double span = high - low, nothing = 1e-8 * count * span * span;
    Line best = {0, low};
    if (!(span > 0)) return best;
    const auto attempt = [&](Line line, bool better) {
        double n = 0, nn = 0, total = 0, both = 0, error = 0, nibble[64];
        for (int i = 0; i < count; i++) {
            nibble[i] = std::min(15.0, std::max(0.0, std::nearbyint((x[i] - line.base) / line.step)));
            n += nibble[i], nn += nibble[i] * nibble[i], total += x[i] - low, both += nibble[i] * (x[i] - low);
        }
        const double spread = count * nn - n * n;
        if (better && spread > 0) line.step = (count * both - n * total) / spread, line.base = low + (total - line.step * n) / count;
        for (int i = 0; i < count; i++) {
            const double off = line.step * nibble[i] + line.base - x[i];
            error += off * off;
        }
        if (error < found && line.step > 0) found = error, best = line;
    };
    for (int steps = 15; steps >= FEWEST_STEPS && !(found < nothing); steps--) attempt({span / steps, low}, false);
    for (int narrower = 0; narrower < NARROWER && !(found < nothing); narrower++) {
        const double inside = 0.025 * narrower * span;
        attempt({(span - 2 * inside) / 15, low + inside}, true);
    }
    return best;
}

static void pack_nibble_row(const float* weight, int output, int inputs, int group, uint8_t* out, uint8_t* factors, float* scale) {
    const int half = group / 2, halves = inputs / half, lane = output % LANES;
    uint8_t* panel = out + (size_t)(output / LANES) * inputs * LANES / 2;
    factors += (size_t)(output / LANES) * (inputs / group) * FACTOR_BYTES;
    std::vector<Line> lines(halves);
    double unit = 0;
    for (int k = 0; k < halves; k++) {
        lines[k] = line_of(weight + k * half, half);
        unit = std::max({unit, lines[k].step / 255, std::fabs(lines[k].base) / 32000});
    }
    scale[output] = (float)unit;
    for (int k = 0; k < halves; k++) {
        const float* x = weight + k * half;
        const int factor = unit > 0 ? (int)std::lrintf(lines[k].step / unit) : 0;
        const double step = factor * unit;
        // The base that leaves no error on average, for nibbles chosen with the line's own.
        double left = 0;
        int nibble[64];
        for (int i = 0; i < half; i++) {
            nibble[i] = step > 0 ? std::min(15, std::max(0, (int)std::lrintf((x[i] - lines[k].base) / lines[k].step))) : 0;
            left += x[i] - step * nibble[i];
        }
        const int base = unit > 0 ? (int)std::lrintf(left / half / unit) : 0;
        for (int i = 0; i < half; i++) {
            const int at = k * half + i;
            uint8_t& both = panel[(size_t)(at / 8) * 4 * LANES + lane * 4 + at % 4];
            both |= at % 8 < 4 ? nibble[i] : nibble[i] << 4;
        }
        uint8_t* these = factors + (size_t)(k / 2) * FACTOR_BYTES;
        these[k % 2 * LANES + lane] = (uint8_t)factor;
        const int16_t kept = (int16_t)std::min(32767, std::max(-32767, base));
        memcpy(these + 2 * LANES + (size_t)(2 * lane + k % 2) * 2, &kept, 2);
    }
}
