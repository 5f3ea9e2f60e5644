"""The probe-shrink mask, accurate between grid points and differentiable.

Hard definition (Jiang & Brünger, 1994; ``softness=0``): the centre of a probe cannot enter the spheres of radius
R_j = r_j + r_probe around the atoms and their images; what is closer than r_shrink to a place where it can be is
solvent.  On a coarse grid this rounds the surface, and it jumps when a pocket opens: a ball of radius r_shrink appears
at once, so that its gradient says nothing about finite steps.

Soft definition (default).  With the step S(t) = 0, t^2 (3 - 2 t), 1 for t below, between and above 0 and 1:

    E(y)    = prod_j [1 - c_j (1 - S(phi_j(y) / w + 1/2))]               a probe's centre may be at y
    phi_j(y) = (|y - x_j|^2 - R_j^2) / (2 R_j)                           distance to a sphere, to first order
    V(x)    = integral E(y) B(|x - y|) dy,   B(d) = S((r_shrink - d) / b + 1/2)
    mask(x) = [1 - exp(-V(x) / v)] / [1 - exp(-V_free / v)]

V is the volume accessible to a probe within r_shrink of x.  If probes were placed at random, 1/v of them in a unit of
volume, 1 - exp(-V/v) is the probability that one of them reaches x: what the hard mask, found with a grid of probes of
one point in the volume v, is on average over all origins of that grid.  Hence softness, a length: w = softness,
v = (3/4 softness)^3, b = 3/8 softness; the default 0.8 Å has v = (0.6 Å)^3, mmtbx's grid, without that grid's noise.
V_free is V where there are no atoms.  Everything is smooth, and a pocket fills as it opens.

c_j is 1 for an atom that counts in full.  mmtbx counts all atoms of positive occupancy in full; here c_j falls smoothly
to 0 below an occupancy of ``full_occupancy``, so that an atom that fades away does not jump out of the mask.  Alternative
conformations count each by itself: the solvent keeps clear of all of them.

The integral is a sum over a grid ``fine`` times finer than the mask's, at most about 0.3 Å; E is smooth on that scale.
"""

from __future__ import annotations

import dataclasses
import math

import torch

import numpy as np

from ..kernels.engines import Engine
from ..kernels.engines import engine as engine_of
from ..kernels.jobs import MaskJob
from ..kernels.threads import over, own_threads
from ..plans.cache import TensorCache
from ..plans.cell import mask_grid
from ..plans.miller import miller_plan
from .mask_atoms import mask_atoms
from .transform import checked_indices, scattered

R_PROBE = 1.1
R_SHRINK = 0.9
SOFTNESS = 0.8
FULL_OCCUPANCY = 0.1
#: v^(1/3) and b, in units of the softness.
VOLUME_RATIO = 0.75
EDGE_RATIO = 0.375
#: Steps of the fine grid, Å, soft and hard.
FINE_STEP = 0.31
HARD_STEP = 0.151
#: Distances from the spheres, Å, that the hard mask tells apart; see :mod:`~mmtbx_sfdiff.kernels.cpu.hard_mask`.
_TOP = 0.3
_PRECISION = {"single": torch.float32, "double": torch.float64}
_TRANSFORMS = TensorCache()


def probe_shrink(
    atoms,
    crystal,
    n_real,
    r_probe=None,
    r_shrink=None,
    softness=None,
    radii=None,
    include_hydrogens=False,
    include_zero_occupancy=False,
    full_occupancy=FULL_OCCUPANCY,
    memory=256 * 2**20,
    engine=None,
    precision="single",
):
    """The differentiable probe-shrink mask on a grid.

    Parameters
    ----------
    atoms : Atoms
    crystal : Crystal
    n_real : tuple of int
        Numbers of grid points along a, b, c; the grid must carry the symmetry, see :meth:`Crystal.grid`.
    r_probe, r_shrink : float or torch.Tensor
        Å.
    softness : float or torch.Tensor
        Å; 0 is the hard definition.
    radii : torch.Tensor, optional
        (..., n_atoms) van der Waals radii, Å; by default cctbx's, by element.
    include_hydrogens, include_zero_occupancy : bool
        An atom of zero occupancy that is included counts in full.
    full_occupancy : float
        Occupancy from which on an atom counts in full; 0: all positive ones, as in mmtbx.
    memory : int
        Bound in bytes on working storage beyond a few numbers a grid point.
    engine : {"cpu", "triton", "torch"}, optional
        Kernels compiled by numba, or for a GPU by Triton (the soft mask), or PyTorch alone (any device); by default
        what the device and the installation allow.
    precision : {"single", "double"}
        Of E and V in the compiled kernels, which the mask repeats to some 1e-6; "double" is for tests.

    Returns
    -------
    torch.Tensor
        (..., n1, n2, n3), 0 to 1 in the atoms' dtype.  Differentiable once in sites, occupancies, ``radii``, ``r_probe``,
        ``r_shrink`` and ``softness``.

    Raises
    ------
    ValueError
        A negative radius or softness; an unknown engine, or the compiled one where it cannot run.
    """
    prepared = _prepare(
        atoms,
        r_probe,
        r_shrink,
        softness,
        radii,
        include_hydrogens,
        include_zero_occupancy,
        full_occupancy,
        engine,
        precision,
    )
    lengths = prepared.r_shrink, prepared.softness
    soft = float(lengths[1].detach()) > 0
    if soft and prepared.engine.batched:
        masks = _soft_together(prepared, crystal, n_real, precision, memory)
        return masks.to(atoms.dtype).reshape(*prepared.batch, *n_real)
    one_mask = _soft if soft else _hard
    masks = [
        one_mask(
            *model,
            *lengths,
            crystal,
            n_real,
            atoms.dtype,
            memory,
            prepared.engine,
            precision,
            memory // len(prepared.sites),
        )
        for model in prepared.models
    ]
    return (torch.stack(masks) if len(masks) != 1 else masks[0]).reshape(*prepared.batch, *n_real)


def probe_shrink_structure_factors(
    atoms,
    crystal,
    n_real,
    miller_indices,
    d_min,
    memory=256 * 2**20,
    precision="single",
    engine=None,
    r_probe=None,
    r_shrink=None,
    softness=None,
    radii=None,
    include_hydrogens=False,
    include_zero_occupancy=False,
    full_occupancy=FULL_OCCUPANCY,
):
    """Structure factors of the soft mask without the map of the whole cell, or None where that cannot be had.

    Parameters
    ----------
    miller_indices, d_min
        See :func:`~.transform.mask_structure_factors`.
    atoms, crystal, n_real, **options
        As of :func:`probe_shrink`.

    Returns
    -------
    torch.Tensor or None
        (..., n) complex in the atoms' precision.  Differentiable in sites, occupancies, ``radii`` and ``r_probe``; None
        where a gradient in ``r_shrink`` or ``softness`` is wanted, for the hard mask, or without the compiled kernels.
    """
    prepared = _prepare(
        atoms,
        r_probe,
        r_shrink,
        softness,
        radii,
        include_hydrogens,
        include_zero_occupancy,
        full_occupancy,
        engine,
        precision,
    )
    lengths = prepared.r_shrink, prepared.softness
    if prepared.engine.name != "cpu" or any(x.requires_grad for x in lengths) or not float(lengths[1]) > 0:
        return None
    indices, kept, n = checked_indices(miller_indices, crystal, n_real, d_min, atoms.device)
    dtype = torch.complex64 if atoms.dtype == torch.float32 else torch.complex128
    found = []
    for model in prepared.models:
        job = _soft_job(
            *lengths, crystal, n_real, atoms.dtype, memory, prepared.engine, precision, memory // len(prepared.sites)
        )
        soft = _Soft(prepared.engine, job, _ball(*lengths))
        # Kept while the tensor of indices lives and is not changed.
        transform = _TRANSFORMS.get(
            indices,
            (job.grid, job.dtype),
            lambda job=job: prepared.engine.unit_transform(job, miller_plan(crystal, indices)),
        )
        found.append(_StructureFactors.apply(*model, *map(float, lengths), soft, transform, kept, n, dtype))
    return (torch.stack(found) if len(found) != 1 else found[0]).reshape(*prepared.batch, n)


@dataclasses.dataclass(frozen=True)
class _Prepared:
    """What a mask is made of: the atoms of n_models models (n_models, n_atoms, ...), radii with the probe's, and the lengths."""

    sites: torch.Tensor
    radii: torch.Tensor
    cover: torch.Tensor
    taking_part: torch.Tensor
    batch: tuple
    r_shrink: torch.Tensor
    softness: torch.Tensor
    engine: Engine

    @property
    def models(self):
        """(sites, radii, cover) of the atoms that take part in each model."""
        return [
            values if bool(part.all()) else [value[part] for value in values]
            for *values, part in zip(self.sites, self.radii, self.cover, self.taking_part)
        ]


def _prepare(
    atoms,
    r_probe,
    r_shrink,
    softness,
    radii,
    include_hydrogens,
    include_zero_occupancy,
    full_occupancy,
    engine,
    precision,
):
    given = {"r_probe": (r_probe, R_PROBE), "r_shrink": (r_shrink, R_SHRINK), "softness": (softness, SOFTNESS)}
    lengths = {}
    for name, (value, default) in given.items():
        value = torch.as_tensor(default if value is None else value, dtype=torch.float64, device=atoms.device)
        if value.ndim or not float(value.detach()) >= 0:
            raise ValueError(f"{name} must be one number that is not negative, not {value.tolist()}.")
        lengths[name] = value
    engine = engine_of(atoms.device, engine)
    if precision not in ("single", "double"):
        raise ValueError(f"precision must be 'single' or 'double', not {precision!r}.")
    rows, radii, taking_part = mask_atoms(atoms, radii, include_hydrogens, include_zero_occupancy)
    sites = _Fractional.apply(atoms.sites_cart, atoms)
    sites = sites if len(rows) == atoms.n_atoms else sites.index_select(-2, rows)
    occupancies = atoms.occupancies.index_select(-1, rows).to(torch.float64)
    cover = torch.ones_like(occupancies)
    if full_occupancy > 0:
        t = (occupancies / full_occupancy).clamp(0, 1)
        cover = t * t * (3 - 2 * t)
    if include_zero_occupancy:
        cover = torch.where(occupancies.detach() > 0, cover, torch.ones_like(cover))
    batch = torch.broadcast_shapes(sites.shape[:-2], radii.shape[:-1], taking_part.shape[:-1])
    n_models = math.prod(batch)
    sites = sites.expand(*batch, len(rows), 3).reshape(n_models, len(rows), 3)
    radii, cover, taking_part = (
        values.expand(*batch, len(rows)).reshape(n_models, len(rows)) for values in (radii, cover, taking_part)
    )
    return _Prepared(
        sites, radii + lengths["r_probe"], cover, taking_part, batch, lengths["r_shrink"], lengths["softness"], engine
    )


def probe_shrink_defaults():
    """Default (r_probe, r_shrink, softness), Å."""
    return R_PROBE, R_SHRINK, SOFTNESS


def fineness(crystal, n_real, step):
    """How many times finer a grid has to be to have steps of about ``step`` Å."""
    edges = crystal.orthogonalization.norm(dim=0).cpu() / torch.tensor(n_real)
    return max(1, math.ceil(float(edges.max()) / step - 1e-6))


class Ball:
    """B(d) and its derivatives by r_shrink and b."""

    def __init__(self, radius, edge):
        self.radius, self.edge = radius, edge
        self.reach = radius + edge / 2

    def _t(self, d):
        return np.clip((self.radius - d) / self.edge + 0.5, 0, 1)

    def value(self, d):
        t = self._t(d)
        return t * t * (3 - 2 * t)

    def by_radius(self, d):
        t = self._t(d)
        return 6 * t * (1 - t) / self.edge

    def by_edge(self, d):
        t = self._t(d)
        return -6 * t * (1 - t) * (t - 0.5) / self.edge


def _ball(r_shrink, softness):
    return Ball(float(r_shrink.detach()), EDGE_RATIO * float(softness.detach()))


class _Soft:
    """An engine's soft mask, and the ball that it sums over."""

    def __init__(self, engine, job, kernel):
        self.of, self.kernel = engine.soft_mask(job), kernel

    def weights(self, function):
        return self.of.weights(function)


def _soft_job(r_shrink, softness, crystal, n_real, dtype, memory, engine, precision, kept):
    reach, fine = _ball(r_shrink, softness).reach, fineness(crystal, n_real, FINE_STEP)
    dtype = dtype if engine.name == "torch" else _PRECISION[precision]
    return MaskJob(mask_grid(crystal, n_real), fine, reach, dtype, memory, kept, device=crystal.device)


def _soft(sites, radii, cover, r_shrink, softness, crystal, n_real, dtype, memory, engine, precision, kept):
    job = _soft_job(r_shrink, softness, crystal, n_real, dtype, memory, engine, precision, kept)
    soft = _Soft(engine, job, _ball(r_shrink, softness))
    return _ToCell.apply(_from_volume(sites, radii, cover, r_shrink, softness, soft).to(dtype), soft.of)


def _soft_together(prepared, crystal, n_real, precision, memory):
    """Masks of a batch (n_models, ...) by kernels that many models share."""
    lengths, engine = (prepared.r_shrink, prepared.softness), prepared.engine
    job = _soft_job(*lengths, crystal, n_real, None, memory, engine, precision, memory)
    points = math.prod(n_real) * job.fine**3
    size = max(1, min(memory // (points * job.dtype.itemsize), engine.largest // points))
    masks = []
    for first in range(0, len(prepared.sites), size):
        models = slice(first, first + size)
        part = prepared.taking_part[models]
        part_job = dataclasses.replace(job, models=part.nonzero()[:, 0], n_models=len(part))
        soft = _Soft(engine, part_job, _ball(*lengths))
        chosen = (values[models][part] for values in (prepared.sites, prepared.radii, prepared.cover))
        masks.append(_ToCell.apply(_from_volume(*chosen, *lengths, soft), soft.of))
    return torch.cat(masks)


def _from_volume(sites, radii, cover, r_shrink, softness, engine):
    """The soft mask where the engine gives V, in double precision."""
    edge, volume = EDGE_RATIO * softness, (VOLUME_RATIO * softness) ** 3
    volumes = _Volume.apply(sites, radii, cover, r_shrink, edge, softness, engine).to(torch.float64)
    free = _Free.apply(r_shrink, edge, engine)
    return torch.expm1(-volumes / volume) / torch.expm1(-free / volume)


class _Fractional(torch.autograd.Function):
    """Fractional sites, without waking torch's threads for a product of matrices."""

    @staticmethod
    def forward(ctx, sites_cart, atoms):
        ctx.dtype, ctx.matrix = sites_cart.dtype, atoms.crystal.fractionalization
        with own_threads(sites_cart.device):
            return atoms.sites_frac.detach()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        with own_threads(gradient.device):
            return (gradient @ ctx.matrix).to(ctx.dtype), None


class _StructureFactors(torch.autograd.Function):
    """F of the mask, with the representatives' values only; (n,) with zeros where reflections are not among ``kept``."""

    @staticmethod
    def forward(ctx, sites, radii, cover, r_shrink, softness, engine, transform, kept, n, dtype):
        ctx.save_for_backward(sites, radii, cover)
        ctx.engine, ctx.transform, ctx.softness = engine, transform, softness
        with own_threads(sites.device):
            weights = engine.weights(engine.kernel.value)
            ctx.exponents = engine.of.forward(sites, radii, cover, softness, [weights], any(ctx.needs_input_grad))[0]
            volume = (VOLUME_RATIO * softness) ** 3
            ctx.most = -math.expm1(-float(weights.sum(dtype=torch.float64)) / volume)
            mask = torch.empty_like(ctx.exponents)

            def part(first, after):
                torch.div(ctx.exponents[first:after], -volume, out=ctx.exponents[first:after])
                torch.expm1(ctx.exponents[first:after], out=mask[first:after]).div_(-ctx.most)

            over(len(mask), part)
            ctx.kept, f = kept, torch.from_numpy(transform.forward(mask.numpy())).to(dtype)
            return scattered(f, kept, n)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        engine, volume = ctx.engine, (VOLUME_RATIO * ctx.softness) ** 3
        with own_threads(gradient.device):
            gradient = gradient if ctx.kept is None else gradient[ctx.kept]
            by_volume = torch.from_numpy(ctx.transform.backward(gradient.resolve_conj().numpy()))

            def part(first, after):
                by_volume[first:after] *= ctx.exponents[first:after].exp().div_(volume * ctx.most)

            over(len(by_volume), part)
            sites_only = not any(ctx.needs_input_grad[1:3])
            found = engine.of.backward(
                by_volume, *ctx.saved_tensors, ctx.softness, engine.weights(engine.kernel.value), sites_only
            )
        return *found[:3], *[None] * 7


class _Volume(torch.autograd.Function):
    """V at one grid point of each orbit."""

    @staticmethod
    def forward(ctx, sites, radii, cover, r_shrink, edge, width, engine):
        ctx.save_for_backward(sites, radii, cover, width)
        ctx.engine = engine
        weights = [engine.weights(engine.kernel.value)]
        keep = any((*ctx.needs_input_grad[:3], ctx.needs_input_grad[5]))
        with own_threads(sites.device):
            return engine.of.forward(sites, radii, cover, float(width), weights, keep)[0]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        sites, radii, cover, width = ctx.saved_tensors
        engine, kernel = ctx.engine, ctx.engine.kernel
        by_ball, found = [None, None], [None, None, None, None]
        with own_threads(sites.device):
            if any(ctx.needs_input_grad[3:5]):
                changes = engine.of.forward(
                    sites,
                    radii,
                    cover,
                    float(width),
                    [engine.weights(kernel.by_radius), engine.weights(kernel.by_edge)],
                )
                by_ball = [(gradient.to(torch.float64) * change).sum() for change in changes]
            if any((*ctx.needs_input_grad[:3], ctx.needs_input_grad[5])):
                found = engine.of.backward(gradient, sites, radii, cover, float(width), engine.weights(kernel.value))
        return *found[:3], *by_ball, found[3], None


class _Free(torch.autograd.Function):
    """V where there are no atoms."""

    @staticmethod
    def forward(ctx, r_shrink, edge, engine):
        ctx.engine = engine
        return r_shrink.new_tensor(float(engine.weights(engine.kernel.value).sum(dtype=torch.float64)))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        engine = ctx.engine
        return *(
            gradient * float(engine.weights(f).sum(dtype=torch.float64))
            for f in (engine.kernel.by_radius, engine.kernel.by_edge)
        ), None


class _ToCell(torch.autograd.Function):
    """Values of the orbits on the whole cell."""

    @staticmethod
    def forward(ctx, values, engine):
        ctx.engine = engine
        with own_threads(values.device):
            return engine.to_cell(values)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        with own_threads(gradient.device):
            return ctx.engine.from_cell(gradient), None


def _hard(sites, radii, cover, r_shrink, softness, crystal, n_real, dtype, memory, engine, precision, kept):
    fine = fineness(crystal, n_real, HARD_STEP)
    step = 1.2 * (crystal.volume / math.prod(n_real)) ** (1 / 3)
    low = -float(r_shrink.detach()) - step / 2
    job = MaskJob(mask_grid(crystal, n_real), fine, _TOP - low, dtype, memory, device=crystal.device)
    hard = engine.hard_mask(job)
    t = ((_Psi.apply(sites, radii, low, hard) + r_shrink.to(dtype)) / step + 0.5).clamp(0, 1)
    return _ToCell.apply(t * t * (3 - 2 * t), hard)


class _Psi(torch.autograd.Function):
    """psi of the hard mask at one grid point of each orbit."""

    @staticmethod
    def forward(ctx, sites, radii, low, engine):
        with own_threads(sites.device):
            psi, ctx.source = engine.psi(sites, radii, low, _TOP)
        ctx.save_for_backward(sites, radii)
        ctx.engine = engine
        return psi

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        with own_threads(gradient.device):
            return *ctx.engine.pull_back(gradient, ctx.source, *ctx.saved_tensors, _TOP), None, None
