"""Whether numbers can be computed with: finite, and of a size at which they still mean something.

Called inside every opaque operation that takes atoms, before any work, so that ``torch.compile`` and ``vmap`` meet it too.
A good call costs two passes over each parameter.  :func:`naming` adds an atom's label where the caller knows it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch

import numpy as np

#: Largest size of each parameter, and its unit.  Positions beyond are rounded by more than a thousandth of an Å in single
#: precision many times over; no table, no data set comes near the others.
LIMITS: dict[str, tuple[float, str]] = {
    "sites_cart": (1e6, "Å"),
    "u_iso": (1e6, "Å^2"),
    "u_star": (1e6, ""),
    "occupancies": (1e6, ""),
    "fp": (1e6, ""),
    "fdp": (1e6, ""),
    "radii": (1e3, "Å"),
}


class BadAtom(ValueError):
    """A parameter of an atom that nothing can be computed with.

    Attributes
    ----------
    atom, model : int
        Numbers from 0; the model within the batch.
    """

    def __init__(self, what: str, why: str, atom: int, model: int, n_models: int, label: str = "") -> None:
        self.parts = what, why, atom, model, n_models
        self.atom, self.model = atom, model
        label = f" ({label.strip()})" if label.strip() else ""
        where = f" in model {model} of the batch" if n_models > 1 else ""
        super().__init__(f"{what} of atom {atom}{label}{where} {why}")

    def named(self, label: str) -> BadAtom:
        """The same error with the atom's label."""
        return type(self)(*self.parts, label=label)

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        return type(self), self.parts


def check_numbers(parameters: Mapping[str, torch.Tensor]) -> None:
    """Raise :class:`BadAtom` for the first atom with a number that is not finite, or too large.

    Parameters
    ----------
    parameters : mapping of str to torch.Tensor
        (n_models, n_atoms, ...) by names of :data:`LIMITS`.  Other tensors, and expanded ones, cost no more.

    Raises
    ------
    BadAtom
        The first model's first bad atom, by the first of its parameters that is bad.
    """
    bad = [name for name, value in parameters.items() if value.numel() and not _within(value, LIMITS[name][0])]
    if not bad:
        return
    found = []
    for name in bad:
        limit, _ = LIMITS[name]
        value = parameters[name].detach()
        wrong = ~(value.abs() <= limit)
        model, atom = wrong.flatten(2).any(-1).nonzero()[0].tolist() if value.ndim > 2 else wrong.nonzero()[0].tolist()
        found.append((model, atom, list(parameters).index(name), name))
    model, atom, _, name = min(found)
    raise _error(name, parameters[name], atom, model)


def _error(name: str, value: torch.Tensor, atom: int, model: int) -> BadAtom:
    limit, unit = LIMITS[name]
    numbers = [float(x) for x in value.detach()[model, atom].reshape(-1)]
    text = ", ".join(f"{x:g}" for x in numbers)
    text = text if len(numbers) == 1 else f"({text})"
    size = f"{limit:g} {unit}".strip()
    return BadAtom(
        name, f"is {text}: it must be finite and at most {size} in size; correct it, or leave the atom out.",
        atom, model, len(value),
    )  # fmt: skip


def _within(value: torch.Tensor, limit: float) -> bool:
    """Whether all are; of numbers that an expanded tensor repeats, once."""
    value = value.detach()
    for dim, (size, stride) in enumerate(zip(value.shape, value.stride())):
        if stride == 0 and size > 1:
            value = value.narrow(dim, 0, 1)
    if value.device.type == "cpu":
        array = value.numpy()
        if value.is_contiguous():
            # One pass: a sum of squares within the limit's bounds them all.  It is NaN where one of them is, and a
            # comparison with NaN is false.
            flat = array.reshape(-1)
            # Not dot: from ten thousand numbers on OpenBLAS wakes threads of its own for it, which takes milliseconds.
            if bool(np.einsum("i,i", flat, flat) <= limit * limit):
                return True
        return bool(array.max() <= limit) and bool(array.min() >= -limit)
    low, high = torch.aminmax(value)
    return bool((low >= -limit) & (high <= limit))


def check_same(name: str, tensors: Mapping[str, torch.Tensor], dtypes: Sequence[torch.dtype]) -> None:
    """Raise TypeError or ValueError unless tensors agree in dtype, one of ``dtypes``, and in device.

    Parameters
    ----------
    name : str
        Of what they are, for the message.
    tensors : mapping of str to torch.Tensor
    dtypes : sequence of torch.dtype
    """
    (first, one), *others = tensors.items()
    if one.dtype not in dtypes:
        raise TypeError(f"{first} of {name} is {one.dtype}: convert it to {' or '.join(map(str, dtypes))}.")
    for other, value in others:
        if value.dtype != one.dtype:
            raise TypeError(f"{first} and {other} of {name} are {one.dtype} and {value.dtype}: give them one dtype.")
        if value.device != one.device:
            raise ValueError(f"{first} and {other} of {name} are on {one.device} and {value.device}: move them to one.")


@contextlib.contextmanager
def naming(labels: Callable[[], Sequence[str]]) -> Iterator[None]:
    """Add the label of the atom to a :class:`BadAtom` that is raised in this block.

    Parameters
    ----------
    labels : callable
        Gives the labels of all atoms; called only when there is an error.
    """
    try:
        yield
    except BadAtom as error:
        known = labels()
        raise error.named(known[error.atom] if error.atom < len(known) else "") from None
