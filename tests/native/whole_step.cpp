// A decoder of two layers with made-up weights, run by the C++ part: for machines that this one can only emulate.
// Prints the logits of 37 tokens, of each kind of weights; fails where they have other bits in another chunk.

#include <cstdio>

#include "exports.cpp"

namespace {

constexpr int64_t SIZE = 96, HEAD_DIM = 32, HEADS = 6, KV_HEADS = 2, INNER = 160, VOCAB = 90, TOKENS = 37, LAYERS = 2;
uint32_t state = 1;

uint32_t random_bits() {
    state ^= state << 13;
    state ^= state >> 17;
    return state ^= state << 5;
}

float random_float() { return float(random_bits() >> 8) / (1 << 23) - 1; }  // -1 to 1

std::vector<float> floats(int64_t count, float scale, float shift = 0) {
    std::vector<float> made(count);
    for (auto& one : made) one = shift + scale * random_float();
    return made;
}

uint16_t bfloat16(float x) {  // towards zero
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits >> 16;
}

std::vector<std::vector<uint8_t>> kept;

Linear made(int32_t kind, int64_t n, int64_t k) {
    Linear w{nullptr, n, k, kind};
    std::vector<uint8_t> tiles(w.num_tiles() * w.tile_bytes());
    if (kind == BF16) {
        for (size_t i = 0; i < tiles.size(); i += 2) {
            const uint16_t one = bfloat16(0.15f * random_float());
            std::memcpy(&tiles[i], &one, sizeof one);
        }
    } else {
        const size_t bytes = kind == INT8 ? 512 : 256;
        // Scales and minimums in float16: 2^-10 and -128 times that, or 2^-6 and -8 times that.
        const uint16_t scale = (kind == INT8 ? 5 : 9) << 10, minimum = 0x8000 | 12 << 10;
        for (size_t block = 0; block < tiles.size(); block += bytes + 64) {
            for (size_t i = 0; i < bytes; ++i) {
                const uint8_t byte = random_bits() >> 24;
                tiles[block + i] = kind == INT8 ? std::max<uint8_t>(byte, 1) : byte;
            }
            for (int lane = 0; lane < LANES; ++lane) {
                std::memcpy(&tiles[block + bytes + 2 * lane], &scale, 2);
                std::memcpy(&tiles[block + bytes + 32 + 2 * lane], &minimum, 2);
            }
        }
    }
    kept.push_back(std::move(tiles));
    w.tiles = kept.back().data();
    return w;
}

struct Model {
    std::vector<Layer> layers;
    std::vector<float> norm = floats(SIZE, 0.1f, 1), head_norm = floats(HEAD_DIM, 0.1f, 1), cos, sin;
    std::vector<uint16_t> embedding;
    Linear head;
    Decoder decoder;

    explicit Model(int32_t kind) {
        for (int64_t i = 0; i < LAYERS; ++i)
            layers.push_back({made(kind, (HEADS + 2 * KV_HEADS) * HEAD_DIM, SIZE), made(kind, SIZE, HEADS * HEAD_DIM),
                              made(kind, 2 * INNER, SIZE), made(kind, SIZE, INNER), {}, {}, norm.data(), norm.data(),
                              head_norm.data(), head_norm.data(), nullptr, nullptr});
        head = made(kind == BF16 ? BF16 : INT8, VOCAB, SIZE);
        for (float one : floats(TOKENS * SIZE, 1)) embedding.push_back(bfloat16(one));
        for (int64_t i = 0; i < TOKENS * HEAD_DIM / 2; ++i) {
            const double angle = (i / (HEAD_DIM / 2)) * std::pow(10000.0, -2.0 * (i % (HEAD_DIM / 2)) / HEAD_DIM);
            cos.push_back(std::cos(angle));
            sin.push_back(std::sin(angle));
        }
        decoder = {layers.data(), norm.data(), cos.data(), sin.data(), LAYERS, SIZE, HEADS, KV_HEADS,
                   HEAD_DIM,      INNER,       0,          0,          0,      1e-5};
    }

    // Logits of all tokens, run `chunk` at a time.
    std::vector<float> logits(int64_t chunk) const {
        const int64_t token = KV_HEADS * HEAD_DIM;
        std::vector<uint16_t> keys(LAYERS * TOKENS * token), values(keys.size()), hidden(TOKENS * SIZE);
        for (int64_t first = 0; first < TOKENS; first += chunk) {
            const int64_t width = std::min(chunk, TOKENS - first);
            std::vector<int64_t> positions(width);
            for (int64_t i = 0; i < width; ++i) positions[i] = first + i;
            const KVStorage kv{keys.data(), values.data(), TOKENS * token, TOKENS * token, token, HEAD_DIM, nullptr, 0, 0};
            const Batch batch{1, width, true, positions.data(), positions.data(), nullptr, nullptr, 0, nullptr, kv};
            decoder_forward(&decoder, &batch, embedding.data() + first * SIZE, nullptr, hidden.data() + first * SIZE,
                            nullptr, nullptr, 0, 2);
        }
        std::vector<float> found(TOKENS * VOCAB);
        linear(&head, hidden.data(), TOKENS, found.data(), 2);
        std::vector<int64_t> best(TOKENS);
        linear_argmax(&head, hidden.data(), TOKENS, best.data(), 2);
        for (int64_t i = 0; i < TOKENS; ++i) {
            const float* own = &found[i * VOCAB];
            if (best[i] != std::max_element(own, own + VOCAB) - own) std::exit(2);
        }
        return found;
    }
};
}  // namespace

int main() {
    for (int32_t kind : {BF16, INT8, INT4}) {
        const Model model(kind);
        const std::vector<float> one_by_one = model.logits(1);
        for (int64_t chunk : {2, 3, 5, 7, 16, 37})
            if (model.logits(chunk) != one_by_one) return 1;
        for (float one : one_by_one) std::printf("%.9g\n", one);
    }
}
