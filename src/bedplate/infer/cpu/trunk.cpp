// The trunk's layers over the positions of one engine step, in one call: as few stops between threads as the data's way allows.
// Python (runner.py) owns all memory; the structs here and their twins there must agree, which `sizes` lets it check.
#include "attention.h"
#include "matrix.h"

#include <algorithm>

struct Layer {
    const float *norm, *feed_norm, *query_norm, *key_norm;  // the last two: null without
    Matrix qkv, output, gate_up, down;
    void *keys, *values;
    int32_t window, turned;  // window 0: everything; turned 0: no rotation
};

struct Trunk {
    const Layer* layer;
    const float* norm;
    Heads heads;
    int32_t layers, width, inner, half_cache;
    float epsilon;
};

// What a layer's four matrices are changed by, for one adapter.
struct Change {
    LowRank qkv, output, gate_up, down;
};

struct Step {
    float* x;                  // [n width]: embedded positions; then states after the last norm
    const int32_t* sequence;   // [n] whose pages
    const int32_t* position;   // [n]
    const int32_t* until;      // [n] the last position it sees; its own, where nothing ahead is known
    const int32_t* slot;       // [n] where its key and value go: page x 16 + place
    const float *cosine, *sine;  // [n width/2 of a head]
    const int32_t* table;      // [sequences pages]
    const int32_t *start, *end;        // [segments] rows
    const Change* const* change;       // [segments] -> [layers]
    float* collected;          // [n width] or null: gets the mean of the normalised streams after layers collect_from..
    int32_t n, pages, segments, collect_from;
};

// Workplaces for up to so many positions; made once.
struct Scratch {
    float *x, *qkv, *attended, *gate_up, *low, *scores, *scale;
    int8_t* bytes;
    int32_t* total;
    int32_t scores_per_thread;
    int64_t low_room;
};

constexpr int ROWS_A_TASK = 4;

template <class Task> static void rows(Pool& pool, int n, const Task& task) {
    pool.run((n + ROWS_A_TASK - 1) / ROWS_A_TASK, [&](int part, int) {
        for (int row = part * ROWS_A_TASK; row < n && row < (part + 1) * ROWS_A_TASK; row++) task(row);
    });
}

static inline void rms_norm(const float* x, const float* weight, int width, float epsilon, float* out) {
    Floats squares = {};
    float left = 0;
    int i = 0;
    for (; i + LANES <= width; i += LANES) squares += load(x + i) * load(x + i);
    for (int l = i; l < width; l++) left += x[l] * x[l];
    const float scale = 1.0f / std::sqrt((sum(squares) + left) / width + epsilon);
    for (i = 0; i + LANES <= width; i += LANES) store(out + i, load(x + i) * scale * load(weight + i));
    for (; i < width; i++) out[i] = x[i] * scale * weight[i];
}

static inline void round_row(const Matrix& w, const Rows& in, int row) {
    if (w.kind == FLOAT32) return;
    const size_t groups = w.inputs / w.group;
    quantise_row(in.x + (size_t)row * w.inputs, w.inputs, w.group, (Kind)w.kind, in.bytes + (size_t)row * w.inputs, in.scale + row * groups, in.total + row * groups);
}

static inline void turn(float* head, int width, const float* cosine, const float* sine) {
    for (int i = 0; i < width / 2; i++) {
        const float a = head[i], b = head[i + width / 2];
        head[i] = a * cosine[i] - b * sine[i];
        head[i + width / 2] = b * cosine[i] + a * sine[i];
    }
}

// Positions' queries made ready, their keys and values written into the pages.
template <class T> static void place(Pool& pool, const Trunk& t, const Layer& layer, const Step& s, float* qkv, int stride) {
    const Heads& h = t.heads;
    const float scale = 1.0f / std::sqrt((float)h.width);
    rows(pool, s.n, [&](int row) {
        float *queries = qkv + (size_t)row * stride, *keys = queries + h.heads * h.width, *values = keys + h.key_heads * h.width;
        const float *cosine = s.cosine + (size_t)row * h.width / 2, *sine = s.sine + (size_t)row * h.width / 2;
        for (int i = 0; i < h.heads + h.key_heads; i++) {
            float* head = queries + i * h.width;
            const float* weight = i < h.heads ? layer.query_norm : layer.key_norm;
            if (weight) rms_norm(head, weight, h.width, t.epsilon, head);
            if (layer.turned) turn(head, h.width, cosine, sine);
            if (i < h.heads)
                for (int e = 0; e < h.width; e++) head[e] *= scale;
        }
        remember(h, (T*)layer.keys, (T*)layer.values, s.slot[row], keys, values);
    });
}

template <class T> static void attention(Pool& pool, const Trunk& t, const Layer& layer, const Step& s, const float* qkv, int stride, const Scratch& w, float* out) {
    const Heads& h = t.heads;
    pool.run(s.n * h.key_heads, [&](int task, int thread) {
        // Late positions see most; taken first, they leave no thread alone at the end.
        const int row = s.n - 1 - task / h.key_heads, key_head = task % h.key_heads;
        const int from = layer.window ? std::max(0, s.position[row] + 1 - layer.window) : 0;
        attend_head<T>(h, qkv + (size_t)row * stride, (const T*)layer.keys, (const T*)layer.values, key_head, s.table + (size_t)s.sequence[row] * s.pages, from,
                       s.until[row], w.scores + (size_t)thread * w.scores_per_thread, out + (size_t)row * h.heads * h.width);
    });
}

static void gate(const float* gate_up, int inner, float* out) {
    int i = 0;
    for (; i + LANES <= inner; i += LANES) {
        Floats g = load(gate_up + i);
        store(out + i, g / (1.0f + exponential(-g)) * load(gate_up + inner + i));
    }
    for (; i < inner; i++) out[i] = gate_up[i] / (1.0f + std::exp(-gate_up[i])) * gate_up[inner + i];
}

static void collect(const Trunk& t, const Step& s, const float* x, int row) {
    float mean = 0, square = 0;
    for (int i = 0; i < t.width; i++) mean += x[i];
    mean /= t.width;
    for (int i = 0; i < t.width; i++) square += (x[i] - mean) * (x[i] - mean);
    const float scale = 1.0f / (std::sqrt(square / t.width + 1e-5f) * (t.layers - s.collect_from));
    for (int i = 0; i < t.width; i++) s.collected[(size_t)row * t.width + i] += (x[i] - mean) * scale;
}

template <LowRank Change::*WHICH> static int segments(const Step& s, int layer, const Scratch& w, Segment* out) {
    float* low = w.low;
    for (int i = 0; i < s.segments; i++) {
        out[i] = {s.start[i], s.end[i], &(s.change[i][layer].*WHICH), low};
        low += (size_t)(s.end[i] - s.start[i]) * out[i].change->ranks;
    }
    return s.segments;
}

extern "C" {

Pool* pool_open(int threads) { return new Pool(threads); }
void pool_close(Pool* pool) { delete pool; }

void sizes(int32_t* out) {
    const int32_t all[] = {sizeof(Matrix), sizeof(LowRank), sizeof(Layer), sizeof(Trunk), sizeof(Change), sizeof(Step), sizeof(Scratch), PAGE, BYTE_OFFSET};
    std::copy(all, all + 9, out);
}

void pack_float(const float* weight, int outputs, int inputs, float* out) {
    for (int p = 0; p < panels_of(outputs); p++)
        for (int i = 0; i < inputs; i++)
            for (int l = 0; l < LANES; l++) *out++ = p * LANES + l < outputs ? weight[(size_t)(p * LANES + l) * inputs + i] : 0.0f;
}

void pack_bfloat(const float* weight, int outputs, int inputs, BFloat* out) {
    for (int p = 0; p < panels_of(outputs); p++)
        for (int i = 0; i < inputs; i++)
            for (int l = 0; l < LANES; l++) *out++ = to_bfloat(p * LANES + l < outputs ? weight[(size_t)(p * LANES + l) * inputs + i] : 0.0f);
}

void pack_bytes(Pool* pool, const float* weight, int outputs, int inputs, uint8_t* out, float* scale) {
    pool->run(panels_of(outputs), [&](int panel, int) {
        for (int o = panel * LANES; o < std::min(outputs, (panel + 1) * LANES); o++) pack_byte_row(weight + (size_t)o * inputs, o, inputs, out, scale);
    });
}

// Nibbles and factors are zero before.
void pack_nibbles(Pool* pool, const float* weight, int outputs, int inputs, int group, uint8_t* out, uint8_t* factors, float* scale) {
    pool->run(panels_of(outputs), [&](int panel, int) {
        for (int o = panel * LANES; o < std::min(outputs, (panel + 1) * LANES); o++)
            pack_nibble_row(weight + (size_t)o * inputs, o, inputs, group, out, factors, scale);
    });
}

void trunk_run(Pool* pool, const Trunk* trunk, const Step* step, const Scratch* scratch) {
    const Trunk& t = *trunk;
    const Step& s = *step;
    const Scratch& w = *scratch;
    const Rows in = {w.x, w.bytes, w.scale, w.total};
    const Heads& h = t.heads;
    const int qkv_stride = stride_of((h.heads + 2 * h.key_heads) * h.width), gate_stride = stride_of(2 * t.inner), width_stride = stride_of(t.width);
    std::vector<Segment> parts(s.segments);
    for (int number = 0; number < t.layers; number++) {
        const Layer& layer = t.layer[number];
        rows(*pool, s.n, [&](int row) {
            rms_norm(s.x + (size_t)row * t.width, layer.norm, t.width, t.epsilon, w.x + (size_t)row * t.width);
            round_row(layer.qkv, in, row);
        });
        int changed = segments<&Change::qkv>(s, number, w, parts.data());
        multiply(*pool, layer.qkv, in, s.n, w.qkv, qkv_stride, nullptr, parts.data(), changed);
        if (t.half_cache) {
            place<Half>(*pool, t, layer, s, w.qkv, qkv_stride);
            attention<Half>(*pool, t, layer, s, w.qkv, qkv_stride, w, w.x);
        } else {
            place<float>(*pool, t, layer, s, w.qkv, qkv_stride);
            attention<float>(*pool, t, layer, s, w.qkv, qkv_stride, w, w.x);
        }
        if (layer.output.kind != FLOAT32) rows(*pool, s.n, [&](int row) { round_row(layer.output, in, row); });
        changed = segments<&Change::output>(s, number, w, parts.data());
        multiply(*pool, layer.output, in, s.n, w.attended, width_stride, s.x, parts.data(), changed);
        rows(*pool, s.n, [&](int row) {
            rms_norm(s.x + (size_t)row * t.width, layer.feed_norm, t.width, t.epsilon, w.x + (size_t)row * t.width);
            round_row(layer.gate_up, in, row);
        });
        changed = segments<&Change::gate_up>(s, number, w, parts.data());
        multiply(*pool, layer.gate_up, in, s.n, w.gate_up, gate_stride, nullptr, parts.data(), changed);
        rows(*pool, s.n, [&](int row) {
            gate(w.gate_up + (size_t)row * gate_stride, t.inner, w.x + (size_t)row * t.inner);
            round_row(layer.down, in, row);
        });
        changed = segments<&Change::down>(s, number, w, parts.data());
        multiply(*pool, layer.down, in, s.n, w.attended, width_stride, s.x, parts.data(), changed);
        if (s.collected && number >= s.collect_from)
            rows(*pool, s.n, [&](int row) { collect(t, s, s.x + (size_t)row * t.width, row); });
    }
    rows(*pool, s.n, [&](int row) {
        float* x = s.x + (size_t)row * t.width;
        rms_norm(x, t.norm, t.width, t.epsilon, x);
    });
}

// out [n stride_of(outputs)] = head of states [n width].
void head_run(Pool* pool, const Matrix* head, const float* states, int n, float* out, const Scratch* scratch) {
    const Rows in = {(float*)states, scratch->bytes, scratch->scale, scratch->total};
    if (head->kind != FLOAT32) rows(*pool, n, [&](int row) { round_row(*head, in, row); });
    multiply(*pool, *head, in, n, out, stride_of(head->outputs), nullptr, nullptr, 0);
}

// The first of the largest of each row.
void largest_of(Pool* pool, const float* logits, int n, int outputs, int stride, int32_t* out) {
    pool->run(n, [&](int row, int) {
        const float* x = logits + (size_t)row * stride;
        Floats top = all(-INFINITY);
        int i = 0;
        for (; i + LANES <= outputs; i += LANES) top = greater(top, load(x + i));
        float most = largest(top);
        for (int l = i; l < outputs; l++) most = std::max(most, x[l]);
        int at = 0;
        while (at < outputs - 1 && !(x[at] == most)) at++;
        out[row] = at;
    });
}
}
