"""Structure factors by an engine that takes atoms as they are given, and does not let the host look at them.

On a GPU that is the whole of a call: a few launches, for which nothing is waited.  What has to be known of the atoms before is
said by the plan (:mod:`.standing`), or is found once as long as a tensor does not change (whether there is an f'').
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from ..form_factors import FormFactors
from ..kernels import checks, deferred, engines, opaque
from ..kernels.atom_jobs import AtomsJob
from ..kernels.engines import AtomsEngine
from ..kernels.jobs import FFTUnsuitable
from ..plans import Plan
from ..plans.cache import TensorCache
from .request import crystal_and_plan
from .scatterers import PARAMETERS, Gradients
from .setting import LEAST_ACCURACY, storage
from .standing import Standing, standing

_VALUES = TensorCache(64)
# At most so many numbers of an atom stand in one table, which kernels count by 32 bits.
_NUMBERS = 100
#: Methods that such an engine carries out.
METHODS = ("fft", "auto")


@dataclasses.dataclass(frozen=True, eq=False)
class GivenAtoms:
    """What an operation is given, and the engine for it.

    ``parameters`` (n_models, n_atoms, ...) as in :data:`~.scatterers.PARAMETERS`; the rest as in
    :class:`~mmtbx_sfdiff.kernels.jobs.AtomsJob`.
    """

    engine: AtomsEngine
    parameters: tuple[torch.Tensor, ...]
    residual: torch.Tensor
    shared: tuple[torch.Tensor, ...]
    plan: Plan
    form_factors: FormFactors
    accuracy: float
    memory: int

    @property
    def shape(self) -> tuple[int, int]:
        n_models, n_atoms = self.parameters[1].shape
        return n_models, n_atoms

    @property
    def dispersion(self) -> bool:
        """Whether any f'' is not zero; looked at once as long as the tensor does not change."""
        fdp = self.parameters[PARAMETERS.index("fdp")]
        own = fdp if fdp._base is None else fdp._base
        return _VALUES.get(own, "any", lambda: bool((own != 0).any()))

    def standing(self, wanted: tuple[bool, ...] | None = None) -> Standing:
        """The setting for F, or for the gradients that are wanted."""
        n_atoms, engine = self.shape[1], self.engine
        return standing(self.plan, self.form_factors, self.accuracy, self.memory, n_atoms, engine.slack, wanted)

    def jobs(self, made: Standing) -> list[tuple[slice, AtomsJob]]:
        """As many models at a time as memory allows."""
        n_models, n_atoms = self.shape
        use_u_iso, use_u_aniso, site_weights, type_index = self.shared
        crystal = self.plan.crystal
        frame = self.plan.part(
            "frame", lambda: torch.cat([crystal.fractionalization.flatten(), crystal.orthogonalization.flatten()])
        )
        limits = tuple(checks.LIMITS[name][0] for name in PARAMETERS)
        setting, dispersion = made.setting, self.dispersion
        of_memory = self.memory // storage(setting.grid.dims, setting.dtype)
        size = max(1, int(min(of_memory, self.engine.largest // max(setting.grid.n_points, _NUMBERS * n_atoms))))
        found = []
        for first in range(0, n_models, size):
            part = slice(first, first + size)
            job = AtomsJob(
                setting=setting,
                bounds=made.bounds,
                parameters=tuple(x[part] for x in self.parameters),
                residual=self.residual[part],
                use_u_iso=use_u_iso,
                use_u_aniso=use_u_aniso,
                site_weights=site_weights,
                type_index=type_index,
                frame=frame,
                limits=limits,
                dispersion=dispersion,
            )
            found.append((part, job))
        return found

    def values(self) -> torch.Tensor:
        """F, (n_models, n) complex, by FFT."""
        dtype = torch.complex64 if self.parameters[0].dtype == torch.float32 else torch.complex128
        found = [self.engine.structure_factors_of_atoms(job, dtype) for _, job in self.jobs(self.standing())]
        self._said()
        return found[0] if len(found) == 1 else torch.cat(found)

    def gradients(self, grad: torch.Tensor, wanted: tuple[bool, ...]) -> Gradients:
        """Gradients in the parameters, each where it is wanted, from dT/dF (n_models, n)."""
        jobs = self.jobs(self.standing(wanted))
        parts = [self.engine.gradients_of_atoms(grad[part], job, wanted) for part, job in jobs]
        self._said()
        if len(parts) == 1:
            return list(parts[0])
        return [None if x[0] is None else torch.cat([y for y in x if y is not None]) for x in zip(*parts)]

    def _said(self) -> None:
        """Say what was wrong: at once where nobody has to wait for it, else what has arrived by now."""
        device = self.residual.device
        if deferred.is_deferred(device):
            checks.look(device)
        else:
            checks.raise_pending(device)


def given_atoms(
    parameters: Sequence[torch.Tensor],
    shared: Sequence[torch.Tensor],
    crystal: int,
    form_factors: int,
    place: int,
    method: str,
    accuracy: float,
    memory: int,
) -> GivenAtoms | None:
    """The arguments of an operation, where an engine takes them as they are; else None.

    Raises
    ------
    ValueError
        Atoms of another crystal than the plan's; what was wrong in an earlier call, and has arrived by now.
    FFTUnsuitable
        An accuracy that the FFT cannot meet, if it was asked for by name.
    """
    *parameters, residual = parameters
    *shared, indices = shared
    engine = engines.of_atoms(engines.engine(residual.device)) if method in METHODS else None
    if engine is None:
        return None
    checks.check_same("the atoms", dict(zip(PARAMETERS, parameters)), (torch.float32, torch.float64))
    _, plan = crystal_and_plan(crystal, place, indices, residual.device)
    nothing = 0 in (*parameters[1].shape, len(plan))
    if nothing or accuracy < LEAST_ACCURACY or plan.part("only origin", lambda: _only_origin(plan)):
        return None
    checks.look(residual.device)
    found = GivenAtoms(
        engine, tuple(parameters), residual, tuple(shared), plan, opaque.held(form_factors), accuracy, memory
    )
    if method == "auto":
        # F and its gradients are by one method.
        try:
            found.standing()
            found.standing((True,) * len(PARAMETERS))
        except FFTUnsuitable:
            return None
    return found


def _only_origin(plan: Plan) -> bool:
    return not bool((plan.miller_indices != 0).any())
