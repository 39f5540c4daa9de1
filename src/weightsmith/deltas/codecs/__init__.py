"""Codecs: how the change of one tensor against its base is stored in really packed bytes, and decoded tile by tile.

exact   same, lossless, refined, whole
lossy   sign, sign2, ternary, lloyd2, lloyd3, lloyd4, sparse, low_rank, banded
"""

from __future__ import annotations

from weightsmith.deltas.codecs.catalogue import LOSSY as LOSSY
from weightsmith.deltas.codecs.catalogue import choices as choices
from weightsmith.deltas.codecs.catalogue import decoded as decoded
from weightsmith.deltas.codecs.catalogue import encode as encode
from weightsmith.deltas.codecs.catalogue import in_memory as in_memory
from weightsmith.deltas.codecs.catalogue import measured_error as measured_error
from weightsmith.deltas.codecs.codec import CodecChoice as CodecChoice
from weightsmith.deltas.codecs.codec import Encoded as Encoded
from weightsmith.deltas.codecs.delta_codec import Delta as Delta
from weightsmith.deltas.codecs.refined import encode_exactly as encode_exactly
