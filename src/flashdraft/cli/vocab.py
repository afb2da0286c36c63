"""``flashdraft vocab``: a drafter that drafts among the tokens that its target says most."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flashdraft.cli.options import ModelOption
from flashdraft.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from flashdraft.data.on_policy import Document

_SHOWN = (4096, 8192, 12288, 16384, 24576, 32768, 49152, 65536)


def vocab(
    out: Annotated[Path, typer.Option("--out", help="The new folder.")],
    size: Annotated[int, typer.Option("--size", help="Tokens of the draft vocabulary, a multiple of 64.")],
    draft: Annotated[
        str, typer.Option("--draft", help="DFlash drafter: embedded, a folder, a GGUF file or a hub name.")
    ] = "embedded",
    target: ModelOption = "embedded",
    answers: Annotated[
        list[Path] | None,
        typer.Option("--answers", help="Folder of the target's answers (flashdraft train); repeatable."),
    ] = None,
    requests: Annotated[
        Path | None,
        typer.Option("--from", help="Logged requests, JSON lines (flashdraft serve --log-requests)."),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option("--prompts", help="JSON lines of prompts, a file or a folder; a token counts a tenth."),
    ] = None,
) -> None:
    """Give a drafter a draft vocabulary: it drafts among the tokens that its target says most, by their rows alone.

    A draft then costs less and accepts a little less; answers stay the target's. Counted are the target's answers, from
    some 100,000 tokens on, and, weighted less, prompts. What is printed tells, for several sizes, what share of the
    answers' tokens such a vocabulary holds, by answers that were kept out of the counts.

    \b
    Examples:
      flashdraft train --model T --prompts prompts/ --limit 2000 --temperature 0 --answers-only --out runs/counts
      flashdraft vocab --model T --draft D --answers runs/counts/answers --prompts prompts/ --size 16384 --out D-16k
      flashdraft vocab --from requests.jsonl --size 8192 --out for-my-requests
    """
    from flashdraft.checkpoint.draft_vocabulary import check_size, give_vocabulary
    from flashdraft.checkpoint.load import eos_token_ids, load_tokenizer, outline_target, target_rows
    from flashdraft.data.on_policy import read_documents
    from flashdraft.data.prompts import encode_prompts, read_prompts
    from flashdraft.data.request_log import read_requests
    from flashdraft.data.token_counts import count_tokens, rank_tokens

    if not answers and requests is None:
        raise UsageError(
            "there is nothing to count; give --answers or --from, folders or logs of the target's answers"
        )
    config, tokenizer, ends = outline_target(target).config, load_tokenizer(target), eos_token_ids(target)
    check_size(size, config.vocab_size)
    documents = [document for folder in answers or () for document in read_documents(folder)]
    if requests is not None:
        documents += read_requests(requests, tokenizer, ends).answered
    if not documents:
        raise UsageError(
            f"{requests} holds no answers; give the target's own by --answers (flashdraft train)"
        )
    asked = [document.prompt_token_ids for document in documents]
    if prompts is not None:
        asked += encode_prompts(tokenizer, read_prompts(prompts), {})
    of_prompts = count_tokens(asked, config.vocab_size)
    _show_coverage(documents, of_prompts, ends, size)
    of_answers = count_tokens((one.answer_token_ids for one in documents), config.vocab_size)
    give_vocabulary(draft, rank_tokens(of_answers, of_prompts, ends)[:size], out, config, target_rows(target))
    typer.echo(f"the drafter is in {out}")


def _show_coverage(documents: "list[Document]", of_prompts: "Tensor", ends: Sequence[int], size: int) -> None:
    """What vocabularies of several sizes, chosen by nine answers of ten, hold of the tenth's tokens."""
    from flashdraft.data.token_counts import count_tokens, coverage, divide, rank_tokens

    counted, kept_out = (
        count_tokens((one.answer_token_ids for one in part), len(of_prompts)) for part in divide(documents)
    )
    ranked = rank_tokens(counted, of_prompts, ends)
    typer.echo(
        f"{len(documents)} answers of {int((counted + kept_out).sum())} tokens, and {int(of_prompts.sum())} of prompts"
    )
    for shown in sorted({size, *(one for one in _SHOWN if one < len(of_prompts))}):
        typer.echo(f"{shown:>8} tokens: {coverage(kept_out, ranked[:shown]):7.2%} of what answers say")
