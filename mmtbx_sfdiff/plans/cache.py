"""What is worked out of a tensor, kept as long as the tensor lives and is not changed."""

from __future__ import annotations

from torch.utils.weak import WeakIdKeyDictionary


class TensorCache:
    """Results by tensor and key."""

    def __init__(self):
        self._results = WeakIdKeyDictionary()

    def get(self, tensor, key, make):
        """``make()``, or what it gave for this tensor and key before.

        Parameters
        ----------
        tensor : torch.Tensor
            Its identity and version count, not its values.
        key : hashable
        make : callable
            Must not keep the tensor itself in its result, which would keep both for ever.
        """
        by_key = self._results.setdefault(tensor, {})
        version, result = by_key.get(key, (None, None))
        if version != tensor._version:
            result = make()
            by_key[key] = (tensor._version, result)
        return result
