"""What a path of the C++ layers makes of `auto`: plain decoding and `auto` in turn, in one thread's own time.

    FLASHDRAFT_CPU_PATH=avx2 OMP_NUM_THREADS=1 python benchmarks/cpu_paths.py --prompts 100 --max-tokens 64

The embedded pair answers the package's sample prompts greedily, one at a time. The thread's own time, for the
engine's measurements of its steps too, leaves a busy machine's other work out. What several threads wait for memory it
cannot show.
"""

import argparse
from itertools import islice
from time import thread_time

import torch

from flashdraft.data.prompt_files import SAMPLE, read_rows
from flashdraft.engine import engine as engine_file
from flashdraft.engine import step_timing
from flashdraft.engine.engine import Engine
from flashdraft.llm import LLM
from flashdraft.native.library import build_name
from flashdraft.sampling_params import SamplingParams


def answer(engine: Engine, token_ids: list[int], params: SamplingParams) -> tuple[list[int], float]:
    """Tokens and seconds."""
    started = thread_time()
    engine.add_request("one", token_ids, params)
    tokens = [token for output in engine.run() for token in output.token_ids]
    return tokens, thread_time() - started


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--max-tokens", type=int, default=64)
    args = parser.parse_args()
    torch.set_num_threads(1)
    step_timing.perf_counter = engine_file.perf_counter = thread_time  # type: ignore[attr-defined]
    llm = LLM("embedded")
    plain = Engine(llm.target, None, llm.engine_config, llm.eos_token_ids, llm.tokenizer)
    engines, seconds, num_tokens, num_same = (plain, llm.engine), [0.0, 0.0], 0, 0
    params = SamplingParams(temperature=0.0, max_tokens=args.max_tokens)
    for idx, row in enumerate(islice(read_rows(SAMPLE), args.prompts + 1)):
        assert isinstance(row.values, dict)
        token_ids = llm.chat_token_ids([{"role": "user", "content": row.values["prompt"]}])
        answers = [answer(engine, token_ids, params) for engine in engines]
        if idx == 0:
            continue  # first calls pay for memory, and `auto` measures its steps
        seconds = [total + one[1] for total, one in zip(seconds, answers, strict=True)]
        num_same += answers[0][0] == answers[1][0]
        num_tokens += len(answers[0][0])
    rates = [num_tokens / one for one in seconds]
    print(f"{build_name()}: plain {rates[0]:.1f} tokens/s, auto {rates[1]:.1f}, {rates[1] / rates[0]:.2f}x;")
    print(f"the same tokens in {num_same} of {args.prompts} answers")


if __name__ == "__main__":
    main()
