"""Decoder layers as one C++ call on CPUs with AVX-512 bf16 and VNNI; models/ is the reference and the fallback."""
