"""Pure functions on tensors: the reference first, then the dispatch to a faster form."""
