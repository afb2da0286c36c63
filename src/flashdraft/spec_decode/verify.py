"""The lossless rule: keep the longest prefix of the draft that the target itself would have chosen."""


def verify(draft_token_ids: list[int], target_token_ids: list[int]) -> tuple[int, int]:
    """Compare a draft with the target's own choices.

    ``target_token_ids[i]`` is the target's token for the place of ``draft_token_ids[i]``, given everything before
    it in the block; one more token follows for the place after the draft. Returns ``num_accepted`` and the token
    after the accepted prefix: recovered at the first mismatch, a bonus when all were accepted.
    """
    assert len(target_token_ids) == len(draft_token_ids) + 1
    num_accepted = 0
    for drafted, wanted in zip(draft_token_ids, target_token_ids, strict=False):
        if drafted != wanted:
            break
        num_accepted += 1
    return num_accepted, target_token_ids[num_accepted]
