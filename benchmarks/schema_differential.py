"""Does a grammar let through what its JSON schema forbids? Random schemas and values, judged by ``jsonschema``.

    nice python benchmarks/schema_differential.py --out benchmarks/results/schema_differential.json

Schemas and values are those of ``tests/test_json_schema.py``, which runs a few of them. Also told: what it takes to
make a schema ready, in milliseconds of CPU time, of those that are followed and of those that are refused. Fails when
anything was let through.
"""

import argparse
import json
import sys
from functools import cache
from pathlib import Path
from time import thread_time
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import test_json_schema as differential
from flashdraft.bench.latency import percentile
from flashdraft.provenance import collect_provenance


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=77)
    parser.add_argument("--schemas", type=int, default=2000)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    seconds: dict[str, list[float]] = {"followed": [], "refused": []}
    begin: Any = differential.begin.__wrapped__

    @cache
    def timed(text: str) -> Any:
        start, kind = thread_time(), "refused"
        try:
            state = begin(text)
            kind = "followed"
        finally:
            seconds[kind].append(thread_time() - start)
        return state

    differential.begin = timed
    wrong, num_followed, num_accepted = differential.count_wrong(args.seed, args.schemas)
    figures = {
        "seed": args.seed,
        "schemas": args.schemas,
        "values_each": differential.NUM_VALUES,
        "followed": num_followed,
        "accepted_values": num_accepted,
        "accepted_invalid": len(wrong),
        "compile_ms": {
            kind: {f"p{p}": round(1000 * percentile(told, p), 2) for p in (50, 90, 99, 100)}
            for kind, told in seconds.items()
        },
    }
    print(json.dumps(figures, indent=1))
    for schema, text in wrong[:20]:
        print(json.dumps(schema), "lets through", text)
    if args.out and not wrong:
        args.out.write_text(json.dumps(figures | {"provenance": collect_provenance()}, indent=1) + "\n")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
