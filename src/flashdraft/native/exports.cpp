// What Python calls, by ctypes: native/library.py mirrors the structs. Compiled once a machine, without torch.

#include "decoder.h"
#include "selector.h"

namespace {

void read_rows(Forward& f, const uint16_t* from, const int64_t* token_ids) {
    f.each_row([&](int64_t row) {
        const int64_t at = token_ids ? token_ids[f.token(row)] : f.token(row);
        for (int64_t i = 0; i < f.d.hidden_size; i += LANES) {
            put(f.x + row * f.d.hidden_size + i, from_bf16(from + at * f.d.hidden_size + i));
        }
    });
}

Activations given(Forward& f, const Linear& w, const uint16_t* from) {
    return f.prepared(w, [&](int64_t row, int64_t i) { return from_bf16(from + row * w.k + i); });
}

// No layers, `rows` tokens: what a Linear alone needs of a Forward.
Batch only_rows(int64_t rows) { return {rows, 1, true, nullptr, nullptr, nullptr, nullptr, 0, nullptr, {}}; }

// Of a tile that begins at `column`: how many of its lanes are columns.
int64_t lanes_left(const Linear& w, int64_t column) { return std::min<int64_t>(w.n - column, LANES); }

// Of `hidden`, [rows][width][size], what was computed, each row from its token `first` on, end to end.
std::vector<uint16_t> computed(const Batch& batch, const uint16_t* hidden, int64_t size, int64_t first) {
    std::vector<uint16_t> found;
    for (int64_t row = 0; row < batch.num_rows; ++row) {
        const uint16_t* own = hidden + row * batch.width * size;
        found.insert(found.end(), own + first * size, own + batch.count(row) * size);
    }
    return found;
}

struct Best {
    static constexpr int64_t NOTHING = INT64_MAX;  // of a row without numbers
    float value = -INFINITY;
    int64_t column = NOTHING;
    // One that there is: it is looked up by whoever called.
    int64_t place() const { return column == NOTHING ? 0 : column; }
    bool operator<(const Best& other) const {
        return value != other.value ? value < other.value : column > other.column;
    }
};
}  // namespace

#pragma GCC visibility push(default)
extern "C" {

// Whether products of bfloat16 run on matrix units here.
bool matrix_units() { return has_matrix_units(); }

// How weights of bfloat16 are to be packed here: where this CPU multiplies numbers of 16 bits faster, as those.
int32_t bf16_kind() {
#ifdef INT16_ROWS
    return INT16;
#else
    return BF16;
#endif
}

// How weights are to be packed here whose products shall be fast, and that bear to be held in bytes.
int32_t byte_kind() {
#ifdef SMALL_BYTES
    return INT7;
#else
    return INT8;
#endif
}

// The whole stack: embeddings `input` to normed `hidden`, both [rows][hidden_size] bfloat16; the outputs of
// `feature_layers`, -1 for the final norm's, side by side to `features`. `token_ids`: null, or which row of `input` a
// token's embedding is.
void decoder_forward(const Decoder* decoder, const Batch* batch, const uint16_t* input, const int64_t* token_ids,
                     uint16_t* hidden, uint16_t* features, const int64_t* feature_layers, int64_t num_features,
                     int threads) {
    Forward f(*decoder, *batch);
    Team::run(threads, [&] { f.reserve(threads); }, [&] {
        const int64_t size = decoder->hidden_size;
        read_rows(f, input, token_ids);
        f.list_wanted();
        for (int64_t idx = 0; idx < decoder->num_layers; ++idx) {
            f.layer(idx);
            for (int64_t k = 0; k < num_features; ++k) {
                if (feature_layers[k] != idx) continue;
                f.each_row([&](int64_t row) {
                    uint16_t* to = features + (f.token(row) * num_features + k) * size;
                    const float* from = f.x + row * size;
                    for (int64_t i = 0; i < size; i += LANES) put(to + i, load(from + i));
                });
            }
        }
        f.each_row([&](int64_t row) {
            rms_norm(f.x + row * size, decoder->final_norm, size, decoder->eps, [&](int64_t i, const Floats& a, const Floats& b) {
                const int64_t token = f.token(row);
                auto both = [&](uint16_t* to) {
                    put(to + i, a);
                    put(to + i + LANES, b);
                };
                both(hidden + token * size);
                for (int64_t k = 0; k < num_features; ++k)
                    if (feature_layers[k] < 0) both(features + (token * num_features + k) * size);
            });
        });
    });
}

// A drafter's context: every layer's keys and values of norm(fuse(features)), features [rows][fuse.k] bfloat16.
void decoder_context(const Decoder* decoder, const Batch* batch, const Linear* fuse, const float* norm,
                     const uint16_t* features, int threads) {
    Forward f(*decoder, *batch);
    Team::run(threads, [&] { f.reserve(threads, fuse->k); }, [&] {
        const int64_t size = decoder->hidden_size;
        f.store(*fuse, given(f, *fuse, features), 0, f.x, size);
        f.each_row([&](int64_t row) {
            float* x = f.x + row * size;
            rms_norm(x, norm, size, decoder->eps, [&](int64_t i, const Floats& a, const Floats& b) {
                put(x + i, a);
                put(x + i + LANES, b);
            });
        });
        for (int64_t idx = 0; idx < decoder->num_layers; ++idx) f.keys_values(idx);
    });
}

// out[rows][n] float32 = input[rows][k] bfloat16 times the weights.
void linear(const Linear* w, const uint16_t* input, int64_t rows, float* out, int threads) {
    const Decoder none{};
    const Batch batch = only_rows(rows);
    Forward f(none, batch);
    Team::run(threads, [&] { f.reserve(threads, w->k); }, [&] {
        multiply(*w, given(f, *w, input), rows, 0, w->num_tiles(), [&](int64_t row, int64_t column, const Floats& v) {
            float* to = out + row * w->n + column;
            const int64_t count = lanes_left(*w, column);
            if (count == LANES) return put(to, v);
            float values[LANES];
            put(values, v);
            std::copy_n(values, count, to);
        });
    });
}

// best[rows]: the first largest column of what linear() would give, -1 where it is no finite number; nothing of it is
// kept.
void linear_argmax(const Linear* w, const uint16_t* input, int64_t rows, int64_t* best, int threads) {
    const Decoder none{};
    const Batch batch = only_rows(rows);
    Forward f(none, batch);
    std::vector<Best> found(threads * rows);
    Team::run(threads, [&] { f.reserve(threads, w->k); }, [&] {
        Best* own = &found[Team::thread() * rows];
        multiply(*w, given(f, *w, input), rows, 0, w->num_tiles(), [&](int64_t row, int64_t column, Floats v) {
            const int64_t count = lanes_left(*w, column);
            v = first_lanes(count, v, all(-INFINITY));
            const float largest = max_of(v);
            if (largest < own[row].value) return;
            const uint32_t lanes = at_least(v, largest) & ((1u << count) - 1);
            if (lanes) own[row] = std::max(own[row], Best{largest, column + __builtin_ctz(lanes)});
        });
    });
    for (int64_t row = 0; row < rows; ++row) {
        for (int t = 1; t < threads; ++t) found[row] = std::max(found[row], found[t * rows + row]);
        best[row] = std::isfinite(found[row].value) ? found[row].column : -1;
    }
}

// The `count` largest columns of what linear() would give, of equal ones the first, the largest first, to
// best[rows][count]; to log_probs[rows][count] the logarithms of their shares in a softmax over all columns.
void linear_likeliest(const Linear* w, const uint16_t* input, int64_t rows, int64_t count, int64_t* best,
                      float* log_probs, int threads) {
    const Decoder none{};
    const Batch batch = only_rows(rows);
    Forward f(none, batch);
    std::vector<Best> found(threads * rows * count);
    std::vector<float> sums(threads * rows * LANES);  // by lanes, of e^(value - largest so far)
    Team::run(threads, [&] { f.reserve(threads, w->k); }, [&] {
        Best* every = &found[Team::thread() * rows * count];
        float* own_sums = &sums[Team::thread() * rows * LANES];
        multiply(*w, given(f, *w, input), rows, 0, w->num_tiles(), [&](int64_t row, int64_t column, Floats v) {
            const int64_t lanes = lanes_left(*w, column);
            Best *own = every + row * count, *last = own + count - 1;
            const float before = own->value;
            uint32_t large = at_least(v, last->value) & ((1u << lanes) - 1);
            if (large) {
                float values[LANES];
                put(values, v);
                for (; large; large &= large - 1) {
                    const int lane = __builtin_ctz(large);
                    const Best one{values[lane], column + lane};
                    if (one < *last) continue;
                    Best* at = last;
                    for (; at > own && at[-1] < one; --at) *at = at[-1];
                    *at = one;
                }
            }
            float* sum = own_sums + row * LANES;
            Floats total = load(sum);
            if (own->value > before) total = total * all(std::exp(before - own->value));
            v = exp_of(v - all(own->value));
            put(sum, total + first_lanes(lanes, v, zeros()));
        });
    });
    std::vector<Best> most(threads * count);
    for (int64_t row = 0; row < rows; ++row) {
        for (int t = 0; t < threads; ++t) std::copy_n(&found[(t * rows + row) * count], count, &most[t * count]);
        std::partial_sort(most.begin(), most.begin() + count, most.end(), [](auto& a, auto& b) { return b < a; });
        float total = 0;
        for (int t = 0; t < threads; ++t) {
            const float* sum = &sums[(t * rows + row) * LANES];
            total += std::exp(found[(t * rows + row) * count].value - most[0].value) * sum_of(load(sum));
        }
        for (int64_t i = 0; i < count; ++i) {
            best[row * count + i] = most[i].place();
            log_probs[row * count + i] = most[i].value - most[0].value - std::log(total);
        }
    }
}

// decoder_forward, and of each token that it computed what linear_argmax says, to best[rows]. In one call, for whoever
// calls finds its own code gone from the caches behind each.
void decoder_greedy(const Decoder* decoder, const Batch* batch, const uint16_t* input, const int64_t* token_ids,
                    uint16_t* hidden, uint16_t* features, const int64_t* feature_layers, int64_t num_features,
                    const Linear* head, int64_t* best, int threads) {
    decoder_forward(decoder, batch, input, token_ids, hidden, features, feature_layers, num_features, threads);
    const std::vector<uint16_t> asked = computed(*batch, hidden, head->k, 0);
    std::vector<int64_t> found(asked.size() / head->k);
    linear_argmax(head, asked.data(), found.size(), found.data(), threads);
    auto next = found.begin();
    for (int64_t row = 0; row < batch->num_rows; next += batch->count(row++))
        std::copy_n(next, batch->count(row), best + row * batch->width);
}

// decoder_forward of a drafter's blocks, and of each token that it computed behind a row's first what linear_likeliest
// says, to best and log_probs [rows][width - 1][count]. In one call, likewise. `tokens`: null, or the token of each
// column. With a `selector`, else null, what rank_pairs says of these candidates, behind `anchors` [rows] in a row's first
// slot, to values and places [rows][width - 1][count][ranks].
void decoder_draft(const Decoder* decoder, const Batch* batch, const uint16_t* input, const Linear* head,
                   const int64_t* tokens, int64_t count, int64_t* best, float* log_probs, const Selector* selector,
                   const int64_t* anchors, int64_t ranks, float* values, int64_t* places, int threads) {
    const int64_t size = head->k, slots = batch->width - 1;
    std::vector<uint16_t> hidden(batch->num_rows * batch->width * size);
    decoder_forward(decoder, batch, input, nullptr, hidden.data(), nullptr, nullptr, 0, threads);
    const std::vector<uint16_t> asked = computed(*batch, hidden.data(), size, 1);
    const int64_t num_asked = asked.size() / size;
    std::vector<int64_t> found(num_asked * count);
    std::vector<float> sure(num_asked * count);
    linear_likeliest(head, asked.data(), num_asked, count, found.data(), sure.data(), threads);
    for (auto& column : found) column = tokens ? tokens[column] : column;
    for (int64_t row = 0, done = 0; row < batch->num_rows; ++row) {
        const int64_t own = (batch->count(row) - 1) * count, to = row * slots * count;
        std::copy_n(found.begin() + done, own, best + to);
        std::copy_n(sure.begin() + done, own, log_probs + to);
        done += own;
    }
    if (!selector) return;
    const Slots of = {batch->num_rows, slots, count, batch->width, anchors, best};
    std::vector<float> pairs(of.rows * slots * count * count);
    score_pairs(*selector, hidden.data() + size, of, pairs.data());
    rank_pairs(of, log_probs, pairs.data(), ranks, values, places);
}

void selector_pairs(const Selector* selector, const uint16_t* hidden, const int64_t* anchors, const int64_t* candidates,
                    int64_t rows, int64_t slots, int64_t count, float* pairs) {
    score_pairs(*selector, hidden, {rows, slots, count, slots, anchors, candidates}, pairs);
}
}
#pragma GCC visibility pop
