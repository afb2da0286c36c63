"""Several prompts at once, offline, and what drafting was worth.

python examples/offline.py [MODEL DRAFTER]
"""

import sys

from flashdraft import LLM, SamplingParams

llm = LLM(*sys.argv[1:3])  # without arguments: the embedded pair
prompts = ["The capital of France is", "2 + 2 =", "Once upon a time"]
for prompt, output in zip(
    prompts, llm.generate(prompts, SamplingParams(temperature=0, max_tokens=24)), strict=True
):
    print(repr(prompt), "->", repr(output.outputs[0].text))
print(f"acceptance length {llm.metrics.acceptance_length:.2f}")
