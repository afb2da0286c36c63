"""Two answers streamed side by side in one event loop, without HTTP.

python examples/async_engine.py [MODEL DRAFTER]
"""

import asyncio
import sys

from flashdraft import LLM, SamplingParams
from flashdraft.engine.async_engine import AsyncEngine

QUESTIONS = ("Why is the sky blue?", "Name three rivers.")


async def answer(engine: AsyncEngine, llm: LLM, question: str) -> None:
    prompt = llm.chat_token_ids([{"role": "user", "content": question}])
    async for step in engine.generate(prompt, SamplingParams(temperature=0, max_tokens=32)):
        print(f"{question} +{len(step.token_ids)} tokens, {step.num_accepted} of them drafted: {step.text!r}")


async def main() -> None:
    llm = LLM(*sys.argv[1:3])
    engine = AsyncEngine(llm.engine)
    await engine.start()
    try:
        await asyncio.gather(*(answer(engine, llm, question) for question in QUESTIONS))
    finally:
        await engine.stop()


asyncio.run(main())
