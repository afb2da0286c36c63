"""Requests of a domain that the shipped drafter has not seen: a dictionary that answers in JSON, by an example.

The terms are two-word nouns of Open English WordNet. The target answers greedily; lines as `serve --log-requests`
writes them. (Without the example the embedded target does not write JSON.)

    python recipes/tune/make_requests.py --prompts chat-concepts.jsonl.gz --out requests.jsonl
"""

import argparse
import json
import random
import re
from pathlib import Path

from flashdraft import LLM, SamplingParams
from flashdraft.data.prompts import read_prompts
from flashdraft.data.request_log import RequestLog

EXAMPLE = {
    "term": "lap dog",
    "category": "animal",
    "definition": "A small dog that is kept as a companion and likes to sit on a lap.",
    "synonyms": ["toy dog", "companion dog"],
    "related_terms": ["breed", "puppy", "pet"],
    "example_sentence": "Her lap dog slept through the whole journey.",
    "audience": "general",
}
OPENING = [
    {"role": "system", "content": "You are a dictionary service. Reply with a JSON object."},
    {"role": "user", "content": "Term: lap dog"},
    {"role": "assistant", "content": json.dumps(EXAMPLE, indent=2)},
]
TERM = re.compile(
    r"(?:definition of|paragraph about|lesson on|Explain|Describe) ([a-z]+ [a-z]+)(?:,| in| with| and|\.)"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--max-tokens", type=int, default=160)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    asked = read_prompts(args.prompts)
    texts = [said["content"] for one in asked for said in one.messages if said["role"] == "user"]
    terms = sorted({found for text in texts for found in TERM.findall(text)})
    chosen = random.Random(args.seed).sample(terms, args.count)
    chats = [[*OPENING, {"role": "user", "content": f"Term: {term}"}] for term in chosen]
    llm, log = LLM(), RequestLog(args.out)
    params = SamplingParams(max_tokens=args.max_tokens, temperature=0)
    for chat, output in zip(chats, llm.chat(chats, params), strict=True):
        answer = output.outputs[0]
        log.write(chat, output.prompt_token_ids, answer.token_ids, answer.finish_reason, 0.0)


if __name__ == "__main__":
    main()
