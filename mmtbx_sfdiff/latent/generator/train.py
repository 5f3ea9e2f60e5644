"""Training of flows: maximum likelihood of frames, then likelihood and energy together.

The loss for each latent variable is w_ml · mean(-log p(frame)) + w_kl · mean(u(x) - log \\|dx/dz\\|) + w_star
· (mean(z*²) - 1)², where x = decode(z) of random z, u is the energy in kT with its logarithm from `e_high` on
(:func:`~.energy.log_clip`), and z* the latent vector of the starting model, which the last term makes a
typical one. The second term is the Kullback-Leibler divergence of the flow from the Boltzmann distribution,
up to a constant.

Frames of the end of the trajectory are kept for validation, in blocks of time: neighbouring frames are nearly
the same, and a random choice of frames would hide that a flow has learnt them by heart.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ...files.writing import write_atomically
from .energy import log_clip
from .flows import normal_log_density
from .transform import superpose
from .units import GAS_CONSTANT


@dataclass(frozen=True)
class TrainingSettings:
    """How a flow is trained.

    Attributes
    ----------
    steps, batch_size : int
    learning_rate : float
        Of Adam.
    w_ml, w_kl, w_star : float
        Weights of likelihood, energy and starting model; without `w_kl`, no energies are computed.
    n_samples : int
        For the energy, in each step.
    e_high : (float, float)
        Where energies become logarithms, kT above the median energy of the frames: in the first and in the
        last step, geometrically in between.
    e_max : float
        Where they become constant, kT above the same.
    temperature : float
        K.
    validation : float
        Fraction of the frames, the last in time.
    evaluate_every : int
        Steps between validations and checkpoints.
    patience : int
        Validations without improvement after which training by likelihood alone stops; the best flow is kept.
    max_norm : float
        Gradients are shortened to this.
    seed : int

    Examples
    --------
    >>> settings = TrainingSettings(steps=200, w_kl=1.0, w_ml=0.2)
    >>> settings.e_high
    (100000.0, 1000.0)
    """

    steps: int = 1000
    batch_size: int = 128
    learning_rate: float = 1e-3
    w_ml: float = 1.0
    w_kl: float = 0.0
    w_star: float = 0.0
    n_samples: int = 12
    e_high: tuple[float, float] = (1e5, 1e3)
    e_max: float = 1e10
    temperature: float = 300.0
    validation: float = 0.2
    evaluate_every: int = 50
    patience: int = 10
    max_norm: float = 10.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in (
            "steps",
            "batch_size",
            "n_samples",
            "evaluate_every",
            "patience",
            "learning_rate",
            "temperature",
            "max_norm",
        ):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}.")
        if not 0 < self.validation < 1:
            raise ValueError(f"validation must be between 0 and 1, not {self.validation}.")
        if min(self.w_ml, self.w_kl, self.w_star) < 0 or self.w_ml + self.w_kl + self.w_star == 0:
            raise ValueError("weights must not be negative, nor all zero.")
        if not 0 < self.e_high[1] <= self.e_high[0] <= self.e_max:
            raise ValueError("e_high must go down from its first to its last value, both below e_max.")


def frame_features(transform: Any, frames: torch.Tensor) -> torch.Tensor:
    """Features of frames of a trajectory.

    Parameters
    ----------
    transform : MixedTransform
    frames : torch.Tensor
        (n, n_ff, 3), Å, anywhere.

    Returns
    -------
    torch.Tensor
        (n, n_features), of the dtype of the transform.

    Examples
    --------
    >>> frame_features(transform, frames).shape
    torch.Size([80, 48])
    """
    with torch.no_grad():
        placed, _ = superpose(frames.to(transform.reference), transform.reference, transform.cart_index)
        features: torch.Tensor = transform.to_features(placed)[0]
    return features


def split_in_time(x: torch.Tensor, validation: float = 0.2) -> tuple[torch.Tensor, torch.Tensor]:
    """The first and the last part of a trajectory.

    Parameters
    ----------
    x : torch.Tensor
        (n, ...), in the order of time.
    validation : float
        Fraction of the last part; a tenth of it, before it, is in neither.

    Returns
    -------
    training, validation : torch.Tensor
    """
    n_last = max(1, round(len(x) * validation))
    gap = n_last // 10
    if len(x) - n_last - gap < 2:
        raise ValueError(f"{len(x)} frames are too few to keep a part for validation.")
    return x[: len(x) - n_last - gap], x[len(x) - n_last :]


def train(
    generator: Any,
    frames: torch.Tensor,
    settings: TrainingSettings,
    energy: Any = None,
    start: torch.Tensor | None = None,
    checkpoint: Any = None,
    progress: Callable[..., None] | None = None,
) -> list[dict[str, Any]]:
    """Train a generator's flow, or go on with it.

    Parameters
    ----------
    generator : BoltzmannGenerator
        Its flow is changed in place, in its own dtype and on its device.
    frames : torch.Tensor
        (n, n_ff, 3), Å, in the order of time.
    settings : TrainingSettings
    energy : callable, optional
        Sites (..., n_ff, 3) to kJ/mol; needed where `w_kl` is not 0.
    start : torch.Tensor, optional
        (n_ff, 3), Å, needed where `w_star` is not 0.
    checkpoint : str or pathlib.Path, optional
        File from which an interrupted training goes on, with the same result as if it had not been
        interrupted.
    progress : callable, optional
        Called with each row of the history.

    Returns
    -------
    list of dict
        ``step``, ``loss``, ``nll`` and ``nll_validation`` for each latent variable, ``median_energy`` of the
        last samples in kJ/mol above the frames' median, ``e_high``, ``skipped_steps`` and ``lost_samples``
        that were not finite.

    Raises
    ------
    ValueError
        When something is missing, or the checkpoint belongs to another training.

    Examples
    --------
    >>> from mmtbx_sfdiff.latent import BoltzmannGenerator, LinearFlow, RealNVP
    >>> flow = RealNVP(LinearFlow.from_samples(x, 0.3, transform.kinds), n_blocks=1, hidden=8)
    >>> history = train(BoltzmannGenerator(transform, flow), frames, TrainingSettings(steps=4, batch_size=8, evaluate_every=2))
    >>> [row["step"] for row in history]
    [2, 4]
    """
    if settings.w_kl and energy is None:
        raise ValueError("w_kl needs an energy.")
    if settings.w_star and start is None:
        raise ValueError("w_star needs the starting model's sites.")
    parameters = [p for p in generator.flow.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError("this flow has nothing to train: a LinearFlow is fitted by from_samples.")
    training, held_out = split_in_time(frame_features(generator.transform, frames), settings.validation)
    x_start = None if start is None else frame_features(generator.transform, start[None])
    k_t = GAS_CONSTANT * settings.temperature
    base = 0.0
    if settings.w_kl:
        some = frames[:: max(1, len(frames) // 32)].to(training)
        found = energy(some)
        if not torch.isfinite(found).any():
            raise ValueError("no frame has a finite energy: is this the force field of these atoms?")
        base = found[torch.isfinite(found)].median().item() / k_t
    run = _Run(generator.flow, parameters, settings, training)
    path = None if checkpoint is None else Path(checkpoint)
    if path is not None and path.exists():
        run.restore(path)
    while run.step < settings.steps and not run.stopped:
        row = _step(generator, run, settings, training, x_start, energy, base, k_t)
        if run.step % settings.evaluate_every == 0 or run.step == settings.steps:
            row["nll_validation"] = _held_out(generator.flow, held_out)
            run.evaluated(row)
            if path is not None:
                run.save(path)
            if progress is not None:
                progress(row)
    run.finish()
    return run.history


def _step(
    generator: Any,
    run: _Run,
    settings: TrainingSettings,
    training: torch.Tensor,
    x_start: torch.Tensor | None,
    energy: Any,
    base: Any,
    k_t: float,
) -> dict[str, Any]:
    flow, n = generator.flow, generator.n_latent
    fraction = run.step / max(settings.steps - 1, 1)
    e_high = settings.e_high[0] * (settings.e_high[1] / settings.e_high[0]) ** fraction
    loss, row = 0.0, {"step": run.step + 1, "e_high": e_high}
    if settings.w_ml:
        chosen = torch.randint(len(training), (settings.batch_size,), generator=run.random)
        nll = _nll(flow, training[chosen.to(training.device)]).mean() / n
        loss, row["nll"] = loss + settings.w_ml * nll, nll.item()
    if settings.w_kl:
        z = torch.randn(settings.n_samples, n, generator=run.random, dtype=training.dtype).to(training.device)
        sites, log_det = generator.decode(z)
        u = energy(sites) / k_t - base
        fine = torch.isfinite(u) & torch.isfinite(log_det)
        run.lost += int((~fine).sum())
        if fine.any():
            kl = (log_clip(u[fine], e_high, settings.e_max) - log_det[fine]).mean() / n
            loss, row["kl"] = loss + settings.w_kl * kl, kl.item()
            row["median_energy"] = (u[fine].median() * k_t).item()
    if settings.w_star:
        z_start, _ = flow.encode(x_start)
        star = (z_start.square().mean() - 1).square()
        loss, row["star"] = loss + settings.w_star * star, star.item()
    run.update(loss)
    row["loss"] = loss.item() if torch.is_tensor(loss) else loss
    row["skipped_steps"], row["lost_samples"] = run.skipped, run.lost
    return row


def _nll(flow: Any, x: torch.Tensor) -> torch.Tensor:
    z, log_det = flow.encode(x)
    nll: torch.Tensor = -(normal_log_density(z) + log_det)
    return nll


def _held_out(flow: Any, x: torch.Tensor) -> float:
    with torch.no_grad():
        return _nll(flow, x).mean().item() / x.shape[-1]


class _Run:
    """What changes during a training, and its file."""

    def __init__(self, flow: Any, parameters: Any, settings: TrainingSettings, training: torch.Tensor) -> None:
        self.flow, self.parameters, self.settings = flow, parameters, settings
        self.optimizer = torch.optim.Adam(parameters, lr=settings.learning_rate)
        self.random = torch.Generator().manual_seed(settings.seed)
        self.step, self.skipped, self.lost, self.stopped = 0, 0, 0, False
        self.history: list[dict[str, Any]] = []
        self.best, self.since = math.inf, 0
        self.best_state: dict[str, Any] | None = None
        content = training.cpu().numpy().tobytes() + b"".join(p.detach().cpu().numpy().tobytes() for p in parameters)
        self.identity = json.dumps([asdict(settings), hashlib.sha256(content).hexdigest()])

    def update(self, loss: Any) -> None:
        self.step += 1
        self.optimizer.zero_grad(set_to_none=True)
        if not torch.is_tensor(loss) or not torch.isfinite(loss):
            self.skipped += 1
            return
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.max_norm)
        if torch.isfinite(norm):
            self.optimizer.step()
        else:
            self.skipped += 1

    def evaluated(self, row: dict[str, Any]) -> None:
        self.history.append(row)
        if self.settings.w_kl:
            return  # the energy decides; likelihood is watched only
        if row["nll_validation"] < self.best:
            self.best, self.since = row["nll_validation"], 0
            self.best_state = copy.deepcopy(self.flow.state_dict())
        else:
            self.since += 1
            self.stopped = self.since >= self.settings.patience

    def finish(self) -> None:
        if self.best_state is not None:
            self.flow.load_state_dict(self.best_state)

    def save(self, path: Path) -> None:
        content = {
            "identity": self.identity,
            "flow": dict(self.flow.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "random": self.random.get_state(),
            "best_state": None if self.best_state is None else dict(self.best_state),
            "numbers": [self.step, self.skipped, self.lost, int(self.stopped), self.since],
            "best": self.best,
            "history": json.dumps(self.history),
        }
        buffer = io.BytesIO()
        torch.save(content, buffer)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, buffer.getvalue())

    def restore(self, path: Path) -> None:
        try:
            content = torch.load(path, weights_only=True)
            identity = content["identity"]
        except Exception as error:  # torch raises many kinds
            raise ValueError(f"{path} is no checkpoint that can be read: delete it ({error}).") from error
        if identity != self.identity:
            raise ValueError(
                f"{path} belongs to a training with other settings, frames or first weights: use another "
                "file, or delete it."
            )
        self.flow.load_state_dict(content["flow"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.random.set_state(content["random"])
        self.step, self.skipped, self.lost, stopped, self.since = content["numbers"]
        self.stopped, self.best, self.best_state = bool(stopped), content["best"], content["best_state"]
        self.history = json.loads(content["history"])
