// Decoder layers of Llama's and Qwen3's kind: pre-norm, grouped-query attention with RoPE, SwiGLU. The residual
// stream is float32; what goes into a Linear is what its weights want. models/llama.py is the reference.
#pragma once

#include <algorithm>
#include <vector>

#include "attention.h"

struct Layer {
    Linear qkv, o, gate_up, down;
    // Of the convolutions around attention and MLP (models/dflash2.py), or without tiles: what makes their kernels.
    Linear attention_kernels, mlp_kernels;
    const float *input_norm, *post_norm;     // [hidden_size]
    const float *q_norm, *k_norm;            // [head_dim], or null
    const float *attention_base, *mlp_base;  // of the convolutions, [2][num_taps][hidden_size], or null
};

struct Decoder {
    const Layer* layers;
    const float* final_norm;
    const float *cos, *sin;  // [positions][head_dim / 2]
    int64_t num_layers, hidden_size, num_heads, num_kv_heads, head_dim, intermediate_size;
    int64_t num_taps, group_size, num_kernels;  // of convolutions; num_kernels in whole vectors, group_size too
    double eps;
};

// The tokens of one forward: `num_rows` sequences of `width` tokens each, or of those below its row's end.
struct Batch {
    int64_t num_rows, width;
    bool is_causal;            // a token sees its row up to itself, or all of it
    const int64_t* positions;  // [num_rows][width], for RoPE
    const int64_t* slots;      // [num_rows][width]: where in its row of `kv` a token's keys and values go
    const int64_t* ends;       // null, or [num_rows]: the slot behind a row's last token; the others are not computed
    const int64_t* paths;      // null, or of rows that are trees [num_rows][width][depth]: see Attention::Sight
    int64_t depth;
    const int64_t* windows;  // null, or for each layer: how many positions before its first token a row sees; 0: all
    KVStorage kv;

    // Tokens of a row that are computed.
    int64_t count(int64_t row) const { return ends ? ends[row] - slots[row * width] : width; }
};

// x / sqrt(mean(x^2) + eps) * weight, handed to write(column, first 16, second 16).
template <class Write>
void rms_norm(const float* x, const float* weight, int64_t size, double eps, const Write& write) {
    Floats squares = zeros();
    for (int64_t i = 0; i < size; i += LANES) {
        const Floats v = load(x + i);
        squares = fma(v, v, squares);
    }
    const Floats factor = all(1 / std::sqrt(sum_of(squares) / size + float(eps)));
    auto scaled = [&](int64_t i) { return load(x + i) * factor * load(weight + i); };
    for (int64_t i = 0; i < size; i += 2 * LANES) write(i, scaled(i), scaled(i + LANES));
}

// x * sigmoid(x), through e^-|x|.
INLINE Floats silu(const Floats& x) {
    const Floats e = exp_of(-abs(x));
    return where_negative(x, x * e, x) / (all(1) + e);
}

// Runs on all threads of the team at once, each taking its share of every phase. Buffers belong to the process:
// Team::run lets one forward run at a time.
class Forward {
   public:
    Forward(const Decoder& decoder, const Batch& batch)
        : d(decoder),
          b(batch),
          q_size(d.num_heads * d.head_dim),
          kv_size(d.num_kv_heads * d.head_dim),
          qkv_size(q_size + 2 * kv_size) {}

    // Before the team starts: which tokens are computed, and room for everything. `widest`: of a Linear's input
    // besides the layers' own.
    void reserve(int threads, int64_t widest = 0) {
        place_rows();
        if (b.kv.pages) place_pages();
        widest = std::max({widest, d.hidden_size, q_size, d.intermediate_size});
        // From a line of the cache on.
        auto room = [](auto& buffer, size_t size) {
            const size_t line = 64 / sizeof(buffer[0]);
            if (buffer.size() < size + line) buffer.resize(size + line);
            return buffer.data() + (line - reinterpret_cast<uintptr_t>(buffer.data()) / sizeof(buffer[0])) % line;
        };
        x = room(s.x, rows * d.hidden_size);
        wide = room(s.wide, rows * std::max(qkv_size, 2 * d.intermediate_size));
        attended = room(s.attended, rows * q_size);
        queries = room(s.queries, rows * q_size);
        mixed = room(s.mixed, d.num_taps ? rows * d.hidden_size : 0);
        kernels = room(s.kernels, d.num_taps ? rows * d.num_kernels : 0);
        operands = room(s.operands, (rows + UNIT_ROWS - 1) / UNIT_ROWS * UNIT_ROWS * widest);
        quantized = room(s.quantized, rows * widest);
        halves = room(s.halves, rows * widest);
        scale = room(s.scale, rows * widest / BLOCK);
        sum = room(s.sum, rows * widest / BLOCK);
        if (int(s.attention.size()) < threads) s.attention.resize(threads);
        if (int(s.lines.size()) < threads) s.lines.resize(threads);
    }

    // Every thread, before the first layer: which keys and values it will read of each, as far as there is time for them.
    void list_wanted() {
        std::vector<int32_t>& lines = s.lines[Team::thread()];
        lines.clear();
        const Layer& w = d.layers[0];
        int64_t most = 0;  // lines that are fetched by a layer's Linears
        for (const Linear* linear : {&w.qkv, &w.o, &w.gate_up, &w.down}) {
            const int64_t tiles = linear->num_tiles() / (linear->kind == BF16 ? 2 : 1);
            most += tiles * (num_passes(linear->kind, rows) - 1) * linear->k / 2 / Team::size();
        }
        if (b.windows || !most) return;
        constexpr int64_t size = 64 / sizeof(uint16_t);
        const int64_t count = d.num_kv_heads * d.head_dim / size, values = (b.kv.values - b.kv.keys) / size;
        // As attend() divides them.
        const int64_t share = (b.num_rows + Team::size() - 1) / Team::size(), first = share * Team::thread();
        for (int64_t sequence = first; sequence < std::min(first + share, b.num_rows); ++sequence)
            for (int64_t slot = 0; slot < b.slots[sequence * b.width]; ++slot) {
                if (int64_t(lines.size()) >= most) return;
                const int64_t line = places(sequence)(slot) / size;
                for (int64_t i = 0; i < 2 * count; ++i) lines.push_back(line + (i < count ? i : values + i - count));
            }
    }

    // From now on this thread's Linears fetch what it will read of layer `idx`, nothing where there is none.
    void want(int64_t idx) {
        const std::vector<int32_t>& lines = s.lines[Team::thread()];
        const auto* base = reinterpret_cast<const uint8_t*>(b.kv.keys + idx * b.kv.layer);
        Wanted::of_thread() = {base, lines.data(), lines.data() + (idx < d.num_layers ? lines.size() : 0)};
    }

    void layer(int64_t idx) {
        const Layer& w = d.layers[idx];
        Activations a = read(w.qkv, w.input_norm, w.attention_kernels, w.attention_base);
        store(w.qkv, a, 0, wide, qkv_size);
        each_row([&](int64_t row) { place(w, idx, row); });
        attend(idx);
        want(idx + 1);
        auto found = [&](int64_t row, int64_t i) { return load(attended + row * q_size + i); };
        add(w.o, found, w.attention_base);
        a = read(w.gate_up, w.post_norm, w.mlp_kernels, w.mlp_base);
        store(w.gate_up, a, 0, wide, 2 * d.intermediate_size);
        auto gated = [&](int64_t row, int64_t i) {
            const float* gate = wide + row * 2 * d.intermediate_size + i;
            return silu(load(gate)) * load(gate + d.intermediate_size);
        };
        add(w.down, gated, w.mlp_base);
    }

    // Layer `idx`'s keys and values of what is in x, taken as its normed input.
    void keys_values(int64_t idx) {
        const Layer& w = d.layers[idx];
        Activations a = prepared(w.qkv, [&](int64_t row, int64_t i) { return load(x + row * w.qkv.k + i); });
        store(w.qkv, a, q_size / LANES, wide, qkv_size);
        each_row([&](int64_t row) { place_keys_values(w, idx, row); });
    }

    // value(row, column): 16 columns of a Linear's input.
    template <class Value>
    Activations prepared(const Linear& w, const Value& value) {
        Activations a = activations(w);
        each_row([&](int64_t row) {
            for (int64_t i = 0; i < w.k; i += 2 * LANES) prepare(a, row, i, value(row, i), value(row, i + LANES));
        });
        return a;
    }

    // to[rows][width] = a * w, from tile `first` on.
    void store(const Linear& w, const Activations& a, int64_t first, float* to, int64_t width) {
        multiply(w, a, rows, first, w.num_tiles(), [&](int64_t row, int64_t column, const Floats& v) {
            put(to + row * width + column, v);
        });
    }

    template <class Task>
    void each_row(const Task& task) {
        Team::each(rows, 1, [&](int64_t from, int64_t to) {
            for (int64_t row = from; row < to; ++row) task(row);
        });
    }

    // The token of the batch, padding counted, that is number `row` of those that are computed.
    static int64_t token(int64_t row) { return s.tokens[row]; }

    const Decoder& d;
    const Batch& b;
    const int64_t q_size, kv_size, qkv_size;
    int64_t rows = 0;  // tokens that are computed
    float* x = nullptr;  // [rows][hidden_size]: the residual stream

   private:
    void place_rows() {
        s.tokens.clear();
        s.firsts.clear();
        for (int64_t sequence = 0; sequence < b.num_rows; ++sequence) {
            s.firsts.push_back(s.tokens.size());
            for (int64_t i = 0; i < b.count(sequence); ++i) s.tokens.push_back(sequence * b.width + i);
        }
        s.firsts.push_back(s.tokens.size());
        rows = s.tokens.size();
    }

    // Once a forward, so that nobody divides by the size of a page.
    void place_pages() {
        const int64_t size = b.kv.page_size, count = b.num_rows * b.kv.num_pages;
        s.places.resize(count * size);
        for (int64_t i = 0; i < count; ++i)
            for (int64_t k = 0; k < size; ++k) s.places[i * size + k] = (b.kv.pages[i] * size + k) * b.kv.token;
    }

    // Where in a layer's keys, and in its values, a sequence's slots lie.
    struct Places {
        const int64_t* table;  // null, or [slots]
        int64_t first, stride;
        int64_t operator()(int64_t slot) const { return table ? table[slot] : first + slot * stride; }
    };

    Places places(int64_t sequence) const {
        const int64_t* table = b.kv.pages ? &s.places[sequence * b.kv.num_pages * b.kv.page_size] : nullptr;
        return {table, sequence * b.kv.row, b.kv.token};
    }

    // How many positions of its row a token sees.
    int64_t end(int64_t sequence, int64_t token) const {
        if (b.is_causal) return b.positions[token] + 1;
        return b.slots[sequence * b.width] + b.count(sequence);
    }

    Activations activations(const Linear& w) const { return {w.k, w.kind, operands, quantized, halves, scale, sum}; }

    Activations normed(const Linear& w, const float* norm) {
        Activations a = activations(w);
        each_row([&](int64_t row) {
            rms_norm(x + row * w.k, norm, w.k, d.eps,
                     [&](int64_t i, const Floats& first, const Floats& second) { prepare(a, row, i, first, second); });
        });
        return a;
    }

    // What a sublayer reads: the normed x, mixed along the block where there is a convolution.
    Activations read(const Linear& w, const float* norm, const Linear& projection, const float* base) {
        if (!projection.tiles) return normed(w, norm);
        Activations a = activations(projection);
        each_row([&](int64_t row) {
            float* to = mixed + row * d.hidden_size;
            rms_norm(x + row * d.hidden_size, norm, d.hidden_size, d.eps,
                     [&](int64_t i, const Floats& first, const Floats& second) {
                         put(to + i, first);
                         put(to + i + LANES, second);
                         prepare(a, row, i, first, second);
                     });
        });
        store(projection, a, 0, kernels, d.num_kernels);
        return prepared(w, [&](int64_t row, int64_t i) { return convolved(mixed, row, i, base); });
    }

    // Sixteen columns of `from` [rows][hidden_size], mixed with those of the slots before it in its block.
    Floats convolved(const float* from, int64_t row, int64_t i, const float* base, int64_t side = 0) const {
        const int64_t size = d.hidden_size, taps = std::min(d.num_taps, token(row) % b.width + 1);
        const int64_t groups = size / d.group_size;
        const float* own = kernels + row * d.num_kernels + side * d.num_taps * groups + i / d.group_size;
        base += side * d.num_taps * size + i;
        Floats sum = zeros();
        for (int64_t tap = 0; tap < taps; ++tap) {
            const Floats kernel = load(base + tap * size) + all(own[tap * groups]);
            sum = fma(kernel, load(from + (row - tap) * size + i), sum);
        }
        return sum;
    }

    // x += a * w, mixed along the block where there is a convolution.
    template <class Value>
    void add(const Linear& w, const Value& value, const float* base) {
        Activations a = prepared(w, value);
        if (base) {
            float* said = mixed;  // of the input the kernels are left
            store(w, a, 0, said, d.hidden_size);
            each_row([&](int64_t row) {
                for (int64_t i = 0; i < d.hidden_size; i += LANES) {
                    float* to = x + row * d.hidden_size + i;
                    put(to, load(to) + convolved(said, row, i, base, 1));
                }
            });
            return;
        }
        multiply(w, a, rows, 0, w.num_tiles(), [&](int64_t row, int64_t column, const Floats& v) {
            float* to = x + row * d.hidden_size + column;
            put(to, load(to) + v);
        });
    }

    // One token's queries, keys and values, from `wide` to where attention reads them.
    void place(const Layer& w, int64_t idx, int64_t row) {
        for (int64_t h = 0; h < d.num_heads; ++h)
            rotate(wide + row * qkv_size + h * d.head_dim, w.q_norm, row, queries + row * q_size + h * d.head_dim);
        place_keys_values(w, idx, row);
    }

    void place_keys_values(const Layer& w, int64_t idx, int64_t row) {
        const int64_t place = idx * b.kv.layer + places(token(row) / b.width)(b.slots[token(row)]);
        for (int64_t h = 0; h < d.num_kv_heads; ++h) {
            const int64_t at = place + h * b.kv.head;
            float* from = wide + row * qkv_size + q_size + h * d.head_dim;
            rotate(from, w.k_norm, row, b.kv.keys + at);
            for (int64_t i = 0; i < d.head_dim; i += LANES) put(b.kv.values + at + i, load(from + kv_size + i));
        }
    }

    // RMSNorm of a head, if it has one, then RoPE: dim i goes with dim i + head_dim / 2.
    template <class To>
    void rotate(float* from, const float* norm, int64_t row, To* to) const {
        if (norm)
            rms_norm(from, norm, d.head_dim, d.eps, [&](int64_t i, const Floats& first, const Floats& second) {
                put(from + i, first);
                put(from + i + LANES, second);
            });
        const int64_t half = d.head_dim / 2, at = b.positions[token(row)] * half;
        for (int64_t i = 0; i < half; i += LANES) {
            const Floats cos = load(d.cos + at + i), sin = load(d.sin + at + i);
            const Floats one = load(from + i), two = load(from + half + i);
            put(to + i, fma(one, cos, -(two * sin)));
            put(to + half + i, fma(two, cos, one * sin));
        }
    }

    // A task: some tokens of a sequence, all query heads of one key and value head.
    void attend(int64_t idx) {
        const int64_t group = d.num_heads / d.num_kv_heads;
        const int64_t tokens = std::min(b.width, std::max<int64_t>(1, Attention::MAX_QUERIES / group));
        const int64_t chunks = (b.width + tokens - 1) / tokens, tasks = b.num_rows * d.num_kv_heads * chunks;
        const int64_t window = b.windows ? b.windows[idx] : 0;
        Team::each(tasks, 1, [&](int64_t task, int64_t) {
            const int64_t kv_head = task % d.num_kv_heads, sequence = task / d.num_kv_heads / chunks;
            // Attention counts positions from here: what lies before the window is not read.
            const int64_t start = window ? std::max<int64_t>(0, b.positions[sequence * b.width] - window) : 0;
            const int64_t first = s.firsts[sequence] + task / d.num_kv_heads % chunks * tokens;
            const int64_t last = std::min(first + tokens, s.firsts[sequence + 1]);
            if (first >= last) return;
            const Operand* asked[Attention::MAX_QUERIES];
            const int64_t* paths[Attention::MAX_QUERIES];
            int64_t ends[Attention::MAX_QUERIES], at[Attention::MAX_QUERIES];
            int count = 0;
            for (int64_t row = first; row < last; ++row)
                for (int64_t h = kv_head * group; h < (kv_head + 1) * group; ++h, ++count) {
                    at[count] = row * q_size + h * d.head_dim;
                    asked[count] = queries + at[count];
                    ends[count] = end(sequence, token(row)) - start;
                    paths[count] = b.paths + token(row) * b.depth;
                }
            const Attention::Sight sight = {ends, b.paths ? paths : nullptr, b.slots[sequence * b.width]};
            auto where = [start, at = places(sequence)](int64_t slot) { return at(start + slot); };
            const int64_t head = idx * b.kv.layer + kv_head * b.kv.head;
            s.attention[Team::thread()](asked, sight, count, b.kv.keys + head, b.kv.values + head, where,
                                        d.head_dim, [&](int query, int64_t dim, const Floats& v) {
                                            put(attended + at[query] + dim, v);
                                        });
        });
    }

    inline static struct {
        std::vector<float> x, wide, attended, mixed, kernels, scale, sum;
        std::vector<Operand> queries, operands;
        std::vector<Quantized> quantized;
        std::vector<int16_t> halves;
        std::vector<Attention> attention;
        std::vector<int64_t> tokens, firsts;  // of each row its token; of each sequence its first row, and the end
        std::vector<int64_t> places;          // of each sequence's slots in pages
        std::vector<std::vector<int32_t>> lines;  // of each thread: see list_wanted()
    } s;
    float *wide = nullptr, *attended = nullptr, *mixed = nullptr, *kernels = nullptr, *scale = nullptr, *sum = nullptr;
    Operand *queries = nullptr, *operands = nullptr;
    Quantized* quantized = nullptr;
    int16_t* halves = nullptr;
};
