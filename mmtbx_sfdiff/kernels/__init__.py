"""How equation 4 and the masks are computed, never what: arrays in, arrays out; nothing here imports a room above."""

from .compilation import compile

__all__ = ["compile"]
