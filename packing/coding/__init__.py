"""Entropy coders: integers in, bytes out, and back. They know nothing of layers' meaning, of files or of each other.

    encode_codes / decode_codes        context mixing over all layers at once: codes, kernel masks, kept rows
    encode_fields / decode_fields      adaptive order-0, field by field: symbols, the bits of floats

No stream says how many numbers it holds: the caller knows, and bounds what a file may claim. Every decoder takes time
proportional to that count at most, stops where damaged data run out, and raises ValueError unless the data are exactly
what the encoder makes of the result.

The compiled coder is used where it was built; the Python beside it is its specification and reads the same bits.
"""

from sparsign.packing.coding.coders import decode_codes, decode_fields, encode_codes, encode_fields

__all__ = [
    "decode_codes",
    "decode_fields",
    "encode_codes",
    "encode_fields",
]
