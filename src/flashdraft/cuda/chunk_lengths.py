"""Which chunks of prompts are recorded. Longer ones run longer than their launches take."""

# Tokens that chunks are padded to between what mixes them: recorded_chunk.py.
CHUNK_LENGTHS = 64, 128, 256, 384, 512
MOST_DELTA_TOKENS = 2048  # in gated delta layers: prefill_delta.py
# Of context that a drafter stores in one recording; a prompt's many are not worth one.
MOST_STORED_TOKENS = 512
