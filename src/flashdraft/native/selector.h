// DFlash 2's candidate selector (models/dflash2.py): scores of a slot's candidates behind those of the slot before it.
#pragma once

#include <algorithm>
#include <vector>

#include "vectors.h"

struct Selector {
    const float *predecessors, *successors;  // [vocab_size][rank]
    const float* projection;                 // [hidden_size][rank]
    int64_t hidden_size, rank;               // rank in whole vectors
};

// The candidates of `rows` blocks' slots, and what they stand behind.
struct Slots {
    int64_t rows, slots, count;
    int64_t stride;             // of the hidden states from row to row, in slots
    const int64_t* anchors;     // [rows]
    const int64_t* candidates;  // [rows][slots][count]
};

// wanted[SLOTS][rank] = W h of inputs [SLOTS][hidden_size]. Sums run in one order: a slot's bits are its own.
template <int SLOTS>
void project_slots(const Selector& s, const float* inputs, float* wanted) {
    for (int64_t r = 0; r < s.rank; r += LANES) {
        Floats sums[SLOTS];
        unrolled<SLOTS>([&](auto slot) INLINED { sums[slot] = zeros(); });
        for (int64_t k = 0; k < s.hidden_size; ++k) {
            const Floats column = load(s.projection + k * s.rank + r);
            unrolled<SLOTS>([&](auto slot) INLINED {
                sums[slot] = fma(all(inputs[slot * s.hidden_size + k]), column, sums[slot]);
            });
        }
        unrolled<SLOTS>([&](auto slot) INLINED { put(wanted + slot * s.rank + r, sums[slot]); });
    }
}

// The rows of the codebooks lie far apart: all of them are asked for before the first is read.
inline void fetch_codes(const Selector& s, const Slots& of) {
    const auto fetch = [&](const float* row) {
        for (int64_t r = 0; r < s.rank; r += LANES) prefetch(row + r);
    };
    for (int64_t row = 0; row < of.rows; ++row) fetch(s.predecessors + of.anchors[row] * s.rank);
    for (int64_t i = 0; i < of.rows * of.slots * of.count; ++i) {
        fetch(s.successors + of.candidates[i] * s.rank);
        if (i / of.count % of.slots + 1 < of.slots) fetch(s.predecessors + of.candidates[i] * s.rank);
    }
}

// to[BEFORE][count] = weights [BEFORE][rank] times successors [rank][width].
template <int BEFORE>
void multiply_codes(const float* weights, const float* successors, int64_t rank, int64_t width, int64_t count, float* to) {
    for (int64_t c = 0; c < count; c += LANES) {
        Floats sums[BEFORE];
        unrolled<BEFORE>([&](auto b) INLINED { sums[b] = zeros(); });
        for (int64_t r = 0; r < rank; ++r) {
            const Floats codes = load(successors + r * width + c);
            unrolled<BEFORE>([&](auto b) INLINED { sums[b] = fma(all(weights[b * rank + r]), codes, sums[b]); });
        }
        unrolled<BEFORE>([&](auto b) INLINED {
            float lanes[LANES];
            put(lanes, sums[b]);
            std::copy_n(lanes, std::min<int64_t>(LANES, count - c), to + b * count + c);
        });
    }
}

// pairs [rows][slots][count][count] of `hidden` [rows][stride][hidden_size] bfloat16: <A[before] * W h, B[candidate]>,
// `before` a candidate of the slot before, in the first slot the row's anchor.
inline void score_pairs(const Selector& s, const uint16_t* hidden, const Slots& of, float* pairs) {
    constexpr int64_t together = 4;  // slots, and candidates before: what is read serves so many sums
    fetch_codes(s, of);
    const int64_t num_slots = of.rows * of.slots, count = of.count;
    std::vector<float> inputs(num_slots * s.hidden_size), wanted(num_slots * s.rank);
    for (int64_t row = 0; row < of.rows; ++row)
        for (int64_t i = 0, own = of.slots * s.hidden_size; i < own; i += LANES)
            put(&inputs[row * own + i], from_bf16(hidden + row * of.stride * s.hidden_size + i));
    for (int64_t slot = 0; slot < num_slots;) {
        const bool is_whole = slot + together <= num_slots;
        (is_whole ? project_slots<together> : project_slots<1>)(s, &inputs[slot * s.hidden_size], &wanted[slot * s.rank]);
        slot += is_whole ? together : 1;
    }
    const int64_t width = (count + LANES - 1) / LANES * LANES;
    std::vector<float> successors(s.rank * width), weights(count * s.rank);
    for (int64_t slot = 0; slot < num_slots; ++slot) {
        const int64_t *own = of.candidates + slot * count, *before = own - count;
        const bool is_first = slot % of.slots == 0;
        for (int64_t c = 0; c < count; ++c)
            for (int64_t r = 0; r < s.rank; ++r) successors[r * width + c] = s.successors[own[c] * s.rank + r];
        const int64_t num_before = is_first ? 1 : count;
        for (int64_t b = 0; b < num_before; ++b) {
            const float* predecessor = s.predecessors + (is_first ? of.anchors[slot / of.slots] : before[b]) * s.rank;
            for (int64_t r = 0; r < s.rank; r += LANES)
                put(&weights[b * s.rank + r], load(predecessor + r) * load(&wanted[slot * s.rank + r]));
        }
        float* to = pairs + slot * count * count;
        for (int64_t b = 0; b < num_before;) {
            const bool is_whole = b + together <= num_before;
            (is_whole ? multiply_codes<together> : multiply_codes<1>)(&weights[b * s.rank], successors.data(), s.rank, width,
                                                                      count, to + b * count);
            b += is_whole ? together : 1;
        }
        for (int64_t b = num_before; b < count; ++b) std::copy_n(to, count, to + b * count);
    }
}

// Of the candidates behind each one before, by the softmax of what they have by themselves, `log_probs`
// [rows][slots][count], and in pairs: the `ranks` likeliest, the first of equal ones first, to places
// [rows][slots][count][ranks], and their log-probabilities to `values`.
inline void rank_pairs(const Slots& of, const float* log_probs, const float* pairs, int64_t ranks, float* values,
                       int64_t* places) {
    const int64_t count = of.count, width = (count + LANES - 1) / LANES * LANES;
    std::vector<float> scores(width, -INFINITY);
    for (int64_t i = 0; i < of.rows * of.slots * count; ++i, values += ranks, places += ranks) {
        const float* own = log_probs + i / count * count;
        for (int64_t c = 0; c < count; ++c) scores[c] = own[c] + pairs[i * count + c];
        const float largest = *std::max_element(scores.begin(), scores.end());
        Floats shares = zeros();
        for (int64_t c = 0; c < width; c += LANES)
            shares = shares + first_lanes(count - c, exp_of(load(&scores[c]) - all(largest)), zeros());
        const float total = largest + std::log(sum_of(shares));
        int64_t found = 0;
        for (int64_t c = 0; c < count; ++c) {
            int64_t at = std::min(found, ranks - 1);
            if (found == ranks && scores[c] <= scores[places[at]]) continue;
            for (; at > 0 && scores[places[at - 1]] < scores[c]; --at) places[at] = places[at - 1];
            places[at] = c;
            found = std::min(found + 1, ranks);
        }
        for (int64_t rank = 0; rank < ranks; ++rank) values[rank] = scores[places[rank]] - total;
    }
}
