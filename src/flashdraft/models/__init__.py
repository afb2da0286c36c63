"""Networks and nothing else: no sampling, no speculation. One file for each model_type."""
