"""Decoders of x-transformers in the sizes of ours."""

from typing import Any, Protocol

from _shared import need


class Sizes(Protocol):
    @property
    def width(self) -> int: ...
    @property
    def layers(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def ff_width(self) -> int: ...


def make_decoder(sizes: Sizes, vocabulary: int, window: int, layers: dict[str, Any], **settings: Any) -> Any:
    """A decoder for windows of so many tokens.

    Args:
        vocabulary: how many tokens there are.
        layers, settings: of its layers, and of the whole, beside its sizes.

    Raises:
        InputError: x-transformers is not installed.
    """
    library = need("x_transformers", "pip install x-transformers")
    return library.TransformerWrapper(
        num_tokens=vocabulary,
        max_seq_len=window,
        attn_layers=library.Decoder(
            dim=sizes.width,
            depth=sizes.layers,
            heads=sizes.heads,
            attn_dim_head=sizes.width // sizes.heads,
            ff_mult=sizes.ff_width / sizes.width,
            **layers,
        ),
        **settings,
    )
