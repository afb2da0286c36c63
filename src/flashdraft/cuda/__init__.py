"""How targets and drafters run on a GPU: fused layers over pages and states, recorded as CUDA graphs."""
