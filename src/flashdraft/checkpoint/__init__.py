"""Files: weights, configs and tokenizers, in and out. Knows the formats; runs no model."""
