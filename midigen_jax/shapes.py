"""The dimension legend of the whole package, and the array types that use it.

B   lanes of a batch           L   layers
S   segments of a step         D   width of the model
T   tokens of a segment        H   heads
Q   tokens that are read now   Dh  width of a head
W   slots of an XL window      V   size of the vocabulary
M   slots of a kNN ring        k   neighbours that a search gives
"""

from jaxtyping import Array, Bool, Float, Int, Integer

__all__ = ["Array", "Bool", "Float", "Int", "Integer"]
