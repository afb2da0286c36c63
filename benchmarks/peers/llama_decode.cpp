// llama.cpp's own speed, one token a step, by its C interface: llama_decode MODEL.gguf THREADS TOKENS
//
// One thread is timed by the process's own time, several by the clock, as cpu_paths.py does.
// Compiled beside a build of llama.cpp with shared libraries. Of which instructions its matrices run with decides the
// libggml-cpu.so that is found first, for example one that was configured with -DGGML_NATIVE=OFF -DGGML_AVX2=ON:
//   g++ -O2 -std=c++17 -I$SOURCE/include -I$SOURCE/ggml/include llama_decode.cpp -L$BUILD/bin -lllama -lggml -lggml-base
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <vector>

#include "llama.h"

int main(int, char** argv) {
    const int threads = atoi(argv[2]), num_tokens = atoi(argv[3]);
    llama_log_set([](ggml_log_level, const char*, void*) {}, nullptr);
    ggml_backend_load_all();
    llama_model* model = llama_model_load_from_file(argv[1], llama_model_default_params());
    if (!model) return 1;
    llama_context_params params = llama_context_default_params();
    params.n_ctx = 512;
    params.n_threads = params.n_threads_batch = threads;
    llama_context* context = llama_init_from_model(model, params);
    const int vocab_size = llama_vocab_n_tokens(llama_model_get_vocab(model));
    std::vector<llama_token> prompt(64, 400);
    llama_decode(context, llama_batch_get_one(prompt.data(), prompt.size()));
    llama_token token = 500;
    const auto started = std::chrono::steady_clock::now();
    const clock_t own = clock();
    for (int i = 0; i < num_tokens; ++i) {
        llama_decode(context, llama_batch_get_one(&token, 1));
        const float* logits = llama_get_logits_ith(context, -1);
        token = std::max_element(logits, logits + vocab_size) - logits;
    }
    const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - started;
    const double seconds = threads == 1 ? double(clock() - own) / CLOCKS_PER_SEC : passed.count();
    printf("%s\ntokens/s %.2f\n", llama_print_system_info(), num_tokens / seconds);
}
