#!/usr/bin/env bash
# tokenizers 0.23.3 does not take the ids of added_tokens from tokenizer.json: where they leave a gap after the
# vocabulary, each added token gets the next free id, and the ids in the file are forgotten. Models have such gaps, for
# their embeddings have more rows than the tokenizer has tokens, and the mask token of a block drafter is often one of
# those spare rows, given by its id. The token encodes to an id that another row stands for, and the id from the file
# decodes to nothing. An engineer would guess that an id in the file is the token's id, or that loading raises. Nothing
# is raised or logged; save() then writes the new ids. An id is kept where the token stands in model.vocab too. The same
# happens in transformers, which loads by it. For us: flashdraft refuses a tokenizer.json whose ids would be moved.
#
# Seen (tokenizers 0.23.3, Python 3.11); a vocabulary of 10 tokens, ids 0 to 9, <|end|> with id 10, and <|mask|>:
#   with id 11                  loaded as 11  encodes to [11]  the file's id is '<|mask|>'
#   with id 20                  loaded as 11  encodes to [11]  the file's id is None
#   with id 20, in model.vocab  loaded as 20  encodes to [20]  the file's id is '<|mask|>'
# Exits 0 while that is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -qq --no-deps tokenizers==0.23.3
cat >"$folder/probe.py" <<'PROBE'
import json

from tokenizers import Tokenizer, models

end, mask = "<|end|>", "<|mask|>"
tokenizer = Tokenizer(models.WordLevel({text: i for i, text in enumerate("abcdefghij")}, unk_token="a"))
tokenizer.add_special_tokens([end, mask])
found = {}
for wanted, in_vocabulary in ((11, False), (20, False), (20, True)):
    file = json.loads(tokenizer.to_str())
    file["added_tokens"][1]["id"] = wanted  # as a model's author writes it who gave the token a spare row
    if in_vocabulary:
        file["model"]["vocab"][mask] = wanted
    loaded = Tokenizer.from_str(json.dumps(file))
    given, ids, name = loaded.token_to_id(mask), loaded.encode(mask).ids, loaded.id_to_token(wanted)
    said = f"with id {wanted}" + ", in model.vocab" * in_vocabulary
    print(f"{said:26}  loaded as {given}  encodes to {ids}  the file's id is {name!r}")
    assert json.loads(loaded.to_str())["added_tokens"][1]["id"] == given, "the file's id is saved"
    found[wanted, in_vocabulary] = (given, ids, name)
assert found[11, False] == (11, [11], mask), "ids without a gap are not kept"
assert found[20, True] == (20, [20], mask), "ids of the vocabulary are not kept"
assert found[20, False] == (11, [11], None), "ids with a gap are treated otherwise now"
PROBE
"$folder/venv/bin/python" "$folder/probe.py"
