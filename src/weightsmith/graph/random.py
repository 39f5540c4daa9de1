"""Counter-based randomness: element i of a stream is a function of (key, i) and of nothing else.

So a random mask is the same for any tile size, thread count, device and order of work. The
generator is a keyed 32-bit mixing function (three multiply-xorshift rounds, each a bijection), the
second word of the key entering between the first and the second round:

    x = lo(i) + key0;                        x ^= x >> 17; x *= 0xED5AD4BB; x ^= x >> 11
    x += key1 + hi(i) * 0x9E3779B9;          x *= 0xAC4C1B51; x ^= x >> 15; x *= 0x31848BAB; x ^= x >> 14
    uniform = (x >> 8) * 2^-24

with all arithmetic modulo 2^32. It is made for masks, not for cryptography.
"""

from __future__ import annotations

import hashlib


def stream_key(seed: int, model: str, tensor: str) -> tuple[int, int]:
    """The two 32-bit words that select the stream of one tensor of one model under one seed."""
    text = "\0".join(("weightsmith random stream 1", str(int(seed)), model, tensor))
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")
