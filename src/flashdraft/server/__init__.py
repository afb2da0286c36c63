"""The OpenAI-compatible server: JSON in, typed requests, an engine behind one door, chunks out."""
