"""Checks that nobody waits for: what a GPU finds wrong is written down there, and read when the host reads anyway.

To look at a number of a GPU the host waits until all that was asked of it is done.  So there a check is a few operations
among the others: they put what was wrong first into a row of numbers on the device, and the model's results become NaN.

* :func:`first_bad` writes the row, and says which models are bad, as a tensor.
* A copy of the row follows to the host by itself.  :func:`look`, at the beginning of the next call, raises if it has
  arrived and something was wrong; it does not wait.
* :func:`raise_pending` waits, and raises.  ``FModel.check()`` and what reads numbers anyway (scales, R factors) call it.

Each stream has a row of its own, which captured graphs write again at every replay.  :func:`everywhere` treats other devices
likewise, for tests.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator, Mapping

import torch

#: Numbers of a row: what kind, model, atom, number of models, and up to 16 values.
_HEAD, _ROW = 4, 20
# For tests: defer on other devices, and let nothing arrive there by itself.
_forced = _busy = False


@dataclasses.dataclass(frozen=True)
class Finding:
    """What was wrong first: a parameter of an atom, or (``values`` is empty) a model's results.

    Attributes
    ----------
    name : str
        Of the parameter, or of what was calculated.
    model, atom, n_models : int
    values : tuple of float
        Of the parameter.
    limit : float
        Of these.
    """

    name: str
    model: int
    atom: int
    n_models: int
    values: tuple[float, ...]
    limit: float = 0.0


class _Rows:
    """The row of one stream, its copy on the host, and the names of what may stand in it."""

    def __init__(self, device: torch.device) -> None:
        self.row = torch.zeros(_ROW, dtype=torch.float64, device=device)
        self.cuda = device.type == "cuda"
        self.host = torch.zeros(_ROW, dtype=torch.float64, device="cpu", pin_memory=self.cuda)
        self.event = torch.cuda.Event() if self.cuda else None

    def add(self, row: torch.Tensor) -> None:
        """Keep ``row`` unless there is one already."""
        self.row.copy_(torch.where(self.row[0] != 0, self.row, row))
        self.send()

    def send(self) -> None:
        """Let a copy follow to the host."""
        if self.event is None:
            self.host.copy_(self.row)
        elif not torch.cuda.is_current_stream_capturing():
            self.host.copy_(self.row, non_blocking=True)
            self.event.record()

    def arrived(self) -> bool:
        """Whether the copy shows something; without waiting."""
        if self.event is None:
            return not _busy and float(self.host[0]) != 0
        if torch.cuda.is_current_stream_capturing() or not self.event.query():
            return False
        return float(self.host[0]) != 0

    def take(self) -> Finding | None:
        """What the row shows, after waiting for it; it is empty then."""
        if self.event is not None:
            self.event.synchronize()
        found = self.row.tolist()
        if not found[0]:
            return None
        self.row.zero_()
        self.host.zero_()
        return _finding(found)


_lock = threading.RLock()
_rows: dict[tuple[str, int], _Rows] = {}
# Kinds of rows by number: names, widths and limits of the parameters, or the name of results, which have no width.
_kinds: list[tuple[tuple[str, int, float], ...]] = []


@contextlib.contextmanager
def everywhere(busy: bool = True) -> Iterator[None]:
    """Defer checks on every device in this block, as on a GPU; what is pending at its end is forgotten.

    Parameters
    ----------
    busy : bool
        As on a GPU that has not come so far yet: no finding arrives before somebody waits for it.
    """
    global _forced, _busy
    before = _forced, _busy
    _forced, _busy = True, busy
    try:
        yield
    finally:
        _forced, _busy = before
        with _lock:
            for key in [key for key in _rows if not key[0].startswith("cuda")]:
                del _rows[key]


def is_deferred(device: torch.device) -> bool:
    """Whether checks of tensors on this device are not waited for."""
    return _forced or device.type == "cuda"


def first_bad(parameters: Mapping[str, torch.Tensor], limits: Mapping[str, float]) -> torch.Tensor:
    """(n_models,) bool: which models have a number that is not finite or beyond its limit.  The first is written down.

    Parameters
    ----------
    parameters : mapping of str to torch.Tensor
        (n_models, n_atoms, ...)
    limits : mapping of str to float
        By the same names.
    """
    first = next(iter(parameters.values()))
    shape = first.shape[:2]
    if 0 in shape:
        return first.new_zeros(shape[0], dtype=torch.bool)
    columns = {name: value.detach().reshape(*shape, -1).to(torch.float64) for name, value in parameters.items()}
    kind = _kind(tuple((name, value.shape[-1], limits[name]) for name, value in columns.items()))
    table = torch.cat([value / limits[name] for name, value in columns.items()], -1)
    wrong = ~(table.abs() <= 1)
    # The first: by model, then by atom, then by parameter.
    place = wrong.flatten().to(torch.uint8).argmax()
    n_atoms, width = table.shape[1:]
    model, atom = place // (n_atoms * width), place // width % n_atoms
    values = torch.cat(list(columns.values()), -1).flatten(0, 1).index_select(0, (place // width)[None])[0]
    own = torch.stack([model, atom]).to(torch.float64)
    head = torch.cat([values.new_full((1,), kind), own, values.new_full((1,), shape[0])])
    _write(torch.where(wrong.any(), torch.nn.functional.pad(torch.cat([head, values]), (0, _ROW - _HEAD - width)), 0.0))
    return wrong.flatten(1).any(1)


def not_finite(name: str, values: torch.Tensor, seed: torch.Tensor | None = None) -> None:
    """Write down the first model of which results (n_models, ...) are not all finite, though what it was given was."""
    if not values.numel():
        return
    kind = _kind(((name, 0, 0.0),))
    wrong = ~_finite(values)
    if seed is not None:
        wrong = wrong & _finite(seed)
    head = wrong.new_zeros(_ROW, dtype=torch.float64)
    head[0], head[1], head[3] = kind, wrong.to(torch.uint8).argmax().to(torch.float64), len(values)
    _write(torch.where(wrong.any(), head, 0.0))


def _finite(values: torch.Tensor) -> torch.Tensor:
    real = torch.view_as_real(values) if values.is_complex() else values
    return torch.isfinite(real.flatten(1)).all(1)


def row(device: torch.device) -> torch.Tensor:
    """(20,) float64: the row itself, for kernels that check on their way; they write only where its first number is 0.

    It holds a kind of :func:`kinds`, model, atom, number of models, and the parameters of the atom one after another.
    """
    return _rows_of(device).row


def send(device: torch.device) -> None:
    """After a kernel was given :func:`row`: let a copy follow to the host."""
    _rows_of(device).send()


def kinds(parameters: Mapping[str, tuple[int, float]], results: str) -> tuple[int, int]:
    """Numbers for the row: of a bad number among parameters of these widths and limits, and of results that are none."""
    named = tuple((name, width, limit) for name, (width, limit) in parameters.items())
    return _kind(named), _kind(((results, 0, 0.0),))


def look(device: torch.device, error: Callable[[Finding], Exception]) -> None:
    """Raise for an earlier call on this device whose finding has arrived; never wait.

    Parameters
    ----------
    device : torch.device
    error : callable
        Makes the exception.
    """
    with _lock:
        arrived = [rows for key, rows in _rows.items() if key[0] == str(device) and rows.arrived()]
        found = arrived[0].take() if arrived else None
    if found is not None:
        raise error(found)


def raise_pending(device: torch.device | None, error: Callable[[Finding], Exception]) -> None:
    """Wait for a device, or all of them, and raise for what was wrong in any call since this was last asked."""
    found = None
    with _lock:
        for key, rows in _rows.items():
            if device is None or key[0] == str(device):
                found = rows.take() or found
    if found is not None:
        raise error(found)


def _write(row: torch.Tensor) -> None:
    _rows_of(row.device).add(row)


def _rows_of(device: torch.device) -> _Rows:
    """The row of this device and the present stream."""
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    with _lock:
        key = str(device), stream
        if key not in _rows:
            _rows[key] = _Rows(device)
        return _rows[key]


def _kind(names: tuple[tuple[str, int, float], ...]) -> int:
    with _lock:
        if names not in _kinds:
            _kinds.append(names)
        return _kinds.index(names) + 1


def _finding(row: list[float]) -> Finding:
    names = _kinds[int(row[0]) - 1]
    model, atom, n_models = (int(x) for x in row[1:_HEAD])
    first = _HEAD
    for name, width, limit in names:
        values = tuple(row[first : first + width])
        first += width
        # A limit below 0: from 0 to that size.
        good = all(abs(x) <= limit if limit >= 0 else 0 <= x <= -limit for x in values)
        if not good or not width:
            return Finding(name, model, atom, n_models, values, abs(limit))
    raise AssertionError("a row without a fault")
