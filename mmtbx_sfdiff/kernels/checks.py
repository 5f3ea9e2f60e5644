"""Whether numbers can be computed with: finite, and of a size at which they still mean something.

Called inside every opaque operation that takes atoms, before any work, so that ``torch.compile`` and ``vmap`` meet it too.
A good call costs two passes over each parameter.  :func:`naming` adds an atom's label where the caller knows it.

On a GPU :func:`note_numbers` does not wait for the answer: see :mod:`.deferred`.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import torch

import numpy as np

from . import deferred
from .sums import squares

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
#: Parts of a number, and 1 where they are of single precision.
_KINDS = {torch.float32: (1, 1), torch.float64: (1, 0), torch.complex64: (2, 1), torch.complex128: (2, 0)}
# Tensors that are looked at together.
_MOST = 16


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
    total = square_sum(parameters.values())
    if total is not None and total <= min(LIMITS[name][0] for name in parameters) ** 2:
        return
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


def shows(device: torch.device) -> bool:
    """Whether numbers there are looked at outside opaque operations: not under compilation, nor where one would wait."""
    return not (torch.compiler.is_compiling() or device.type == "meta" or deferred.is_deferred(device))


def seen(condition: torch.Tensor) -> bool | None:
    """Whether a condition holds; None where nobody can look, or waits to: under compilation, in ``vmap``, on a GPU."""
    if not shows(condition.device):
        return None
    try:
        return bool(condition)
    except RuntimeError:  # of a tensor of vmap
        return None


def check_where_seen(name: str, value: torch.Tensor) -> None:
    """:func:`check_numbers` of a parameter (..., n_atoms, 3) outside every opaque operation: where values can be looked at."""
    if not shows(value.device):
        return
    limit, _ = LIMITS[name]
    value = value.detach()
    if value.numel() and seen((value.abs() <= limit).all()) is False:
        check_numbers({name: value.reshape(-1, *value.shape[-2:])})


def _error(name: str, value: torch.Tensor, atom: int, model: int) -> BadAtom:
    return _bad_atom(name, value.detach()[model, atom].reshape(-1).tolist(), atom, model, len(value))


def _bad_atom(name: str, numbers: Sequence[float], atom: int, model: int, n_models: int) -> BadAtom:
    limit, unit = LIMITS[name]
    text = ", ".join(f"{x:g}" for x in numbers)
    text = text if len(numbers) == 1 else f"({text})"
    size = f"{limit:g} {unit}".strip()
    return BadAtom(
        name, f"is {text}: it must be finite and at most {size} in size; correct it, or leave the atom out.",
        atom, model, n_models,
    )  # fmt: skip


def note_numbers(parameters: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
    """:func:`check_numbers`, but on a GPU nobody waits for the answer.

    Returns
    -------
    torch.Tensor or None
        None where there was time to look, and all is good.  Else (n_models,) bool, on the device: which models are bad.  Go on
        with :func:`harmless` parameters, and make the results of these models NaN.

    Raises
    ------
    BadAtom
        As :func:`check_numbers`; on a GPU for an earlier call, of which the answer has arrived.
    """
    device = next(iter(parameters.values())).device
    if not deferred.is_deferred(device):
        check_numbers(parameters)
        return None
    look(device)
    return deferred.first_bad(parameters, {name: LIMITS[name][0] for name in parameters})


def harmless(parameters: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
    """The same with zeros for all numbers of an atom of which one is bad, and 1 for its ``u_iso``: of no occupancy, it counts for nothing."""
    wrong = None
    for name, value in parameters.items():
        own = ~(value.abs() <= LIMITS[name][0])
        own = own.flatten(2).any(-1) if own.ndim > 2 else own
        wrong = own if wrong is None else wrong | own
    assert wrong is not None
    return [
        torch.where(wrong.reshape(*wrong.shape, *[1] * (value.ndim - 2)), 1.0 if name == "u_iso" else 0.0, value)
        for name, value in parameters.items()
    ]


def look(device: torch.device) -> None:
    """Raise for an earlier call on a GPU whose answer has arrived; never wait."""
    deferred.look(device, _error_of)


def raise_pending(device: torch.device | None = None) -> None:
    """Wait for a GPU (for all by default), and raise for the first thing that was wrong there since this was last asked.

    Raises
    ------
    BadAtom
        A number that nothing can be computed with.
    ValueError
        Results that are not finite for another reason.
    """
    deferred.raise_pending(device, _error_of)


def bad_radius(value: float, limit: float, atom: int, model: int, n_models: int) -> BadAtom:
    """A van der Waals radius that no mask can be made with."""
    why = f"is {value:g} Å: it must not be negative, and be at most {limit:g} Å."
    if value != value:
        why = "is not known: give radii, or that atom another scattering type, or leave it out of the mask."
    return BadAtom("radii (van der Waals radius)", why, atom, model, n_models)


def _error_of(found: deferred.Finding) -> ValueError:
    if found.name == "radii":
        return bad_radius(found.values[0], found.limit, found.atom, found.model, found.n_models)
    if found.values:
        return _bad_atom(found.name, found.values, found.atom, found.model, found.n_models)
    where = f" of model {found.model} of the batch" if found.n_models > 1 else ""
    if found.name == "mask":
        return ValueError(f"The mask{where} is not finite at every grid point: it must be.")
    return ValueError(
        f"The {found.name}{where} are not finite: displacement parameters of its atoms are not positive definite, or leave "
        "the range that the grid was made for; correct them, or use method='direct'."
    )


class _Table(threading.local):
    """What :func:`squares` reads, of each thread."""

    def __init__(self) -> None:
        self.rows = np.empty(3 * _MOST, dtype=np.int64)


_table = _Table()


def square_sum(values: Collection[torch.Tensor]) -> float | None:
    """The sum of squares of tensors on the CPU whose numbers, real or complex, lie one after the other; None for others.

    It is NaN where one of them is, and where it is at most the square of a limit all are within that.  One pass, by one thread.
    """
    rows, n = _table.rows, 0
    if 3 * len(values) > len(rows):
        return None
    for value in values:
        kind = _KINDS.get(value.dtype)
        if kind is None or not value.is_cpu or not value.is_contiguous():
            return None
        rows[n], rows[n + 1], rows[n + 2] = value.data_ptr(), kind[0] * value.numel(), kind[1]
        n += 3
    found: float = squares(rows, n // 3)
    return found


def _within(value: torch.Tensor, limit: float) -> bool:
    """Whether all are; of numbers that an expanded tensor repeats, once."""
    value = value.detach()
    for dim, (size, stride) in enumerate(zip(value.shape, value.stride())):
        if stride == 0 and size > 1:
            value = value.narrow(dim, 0, 1)
    if value.device.type == "cpu":
        array = value.numpy()
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
    if one.dtype in dtypes and all(value.dtype == one.dtype and value.device == one.device for _, value in others):
        return
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
