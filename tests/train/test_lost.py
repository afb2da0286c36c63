"""Where drafts are rejected, counted by hand on a row of a few tokens."""

import torch

from flashdraft.data.loader import PackedRows
from flashdraft.train.lost import Count, accepted_of, token_kinds, where_lost, with_replay
from flashdraft.train.simulate import walk
from tiny_pair import byte_tokenizer
from toys import toy_dflash, toy_target

# A prompt of 2 tokens, an answer of 7 (places 2 to 8), padding; anchors are all of it but its last token.
TOKENS = torch.tensor([[50, 51, 1, 2, 3, 4, 5, 6, 7, 0]])
ANCHORS = torch.tensor([[False] * 2 + [True] * 6 + [False] * 2])
ROWS = PackedRows(TOKENS, torch.zeros_like(TOKENS), ANCHORS)


def test_rounds_are_walked_and_what_they_look_at_is_counted() -> None:
    # From place 2: two accepted, the third (token 4) is not. From place 5: nothing accepted, token 5 is lost. From
    # place 6 both that are left are right, the last of them ends the answer.
    accepted = torch.tensor([[-1, -1, 2, 9, 9, 0, 2, 9, -1, -1]])
    found = where_lost(ROWS, [walk(ROWS, accepted)], 4, lambda token: "odd" if token % 2 else "even")
    assert found.by_slot == {"slot 1": Count(3, 1), "slot 2": Count(2, 0), "slot 3": Count(1, 1)}
    assert found.by_kind == {"even": Count(3, 1), "odd": Count(3, 1)}  # 2, 4, 6 and 3, 5, 7
    assert found.by_place == {"start": Count(6, 2)}
    assert found.by_slot["slot 1"].rate == 1 / 3


def test_the_last_round_counts_what_is_right_beyond_what_it_delivers() -> None:
    accepted = torch.tensor([[-1, -1, 3, 9, 9, 9, 2, 9, -1, -1]])
    found = where_lost(ROWS, [walk(ROWS, accepted)], 4, lambda _token: "any")
    assert found.by_kind == {"any": Count(5, 0)}


def test_replay_adds_the_anchors_that_get_less_than_the_mean() -> None:
    accepted = torch.tensor([[-1, -1, 2, 3, 3, 0, 2, 1, -1, -1]])  # 11 of 6 anchors: 0 and 1 are below
    rows = with_replay(ROWS, accepted)
    assert rows.token_ids.tolist() == TOKENS.tolist() * 2
    assert rows.is_anchor[0].tolist() == ANCHORS[0].tolist()
    assert rows.is_anchor[1].nonzero().flatten().tolist() == [5, 7]
    equal = with_replay(ROWS, torch.where(ANCHORS, 2, -1))
    assert len(equal) == 1


def test_a_look_that_ends_before_the_rows_do() -> None:
    two = PackedRows(*(torch.cat([part, part]) for part in (TOKENS, ROWS.doc_start, ANCHORS)))
    rows = with_replay(two, torch.tensor([[-1, -1, 2, 3, 3, 0, 2, 1, -1, -1]]))
    assert len(rows) == 3
    assert rows.is_anchor[2].nonzero().flatten().tolist() == [5, 7]
    target = toy_target()
    drafter = toy_dflash(target)
    whole = accepted_of(target, drafter, two)
    assert len(whole) == 2
    assert torch.equal(accepted_of(target, drafter, two, 0.0), whole[:1])


def test_tokens_have_kinds() -> None:
    tokenizer = byte_tokenizer()
    kind_of = token_kinds(tokenizer)
    told = [kind_of(tokenizer.encode(text)[0]) for text in ("a", "7", ";", " ")]
    assert told == ["word part", "number", "mark", "space"]
    assert kind_of(tokenizer.eos_token_id) == "end"
