"""From prompts to packed on-policy token rows."""
