"""What an engine has to answer, in numbers: every job against ``kernels/reference``.

For an engine of one's own::

    from tests.kernels.conformance import CASES, conform
    for case in CASES:
        conform(engine, case)

As a program, ``python -m tests.kernels.conformance NAME``, it goes through all cases with an engine of this package; so the
Triton kernels are checked in the interpreter, which a process has from its start or not at all.  Numbers after the name choose
cases; ``L0`` to ``L13`` are the Bravais lattices.
"""

import dataclasses
import sys

import mmtbx_sfdiff as sfdiff
import torch
from mmtbx_sfdiff.kernels import engines
from mmtbx_sfdiff.kernels.jobs import DensityJob, DirectJob, MaskJob
from mmtbx_sfdiff.kernels.reference.gaussians import gaussians
from mmtbx_sfdiff.plans.cell import mask_grid
from mmtbx_sfdiff.structure_factors.scatterers import Scatterers, packed_metric
from mmtbx_sfdiff.structure_factors.setting import choose_setting

import numpy as np
from cctbx import crystal as cctbx_crystal
from cctbx import xray
from cctbx.array_family import flex

REFERENCE = engines.engine("cpu", "torch")
#: Relative errors by dtype: of rounding, in another order.
ROUNDING = {torch.float64: 1e-10, torch.float32: 2e-5}


@dataclasses.dataclass(frozen=True)
class Case:
    """A small crystal, and how its jobs are set up.

    Attributes
    ----------
    symbol : str
    cell : tuple of float
    dtype : torch.dtype
        Of grids and results.
    anisotropic, dispersion : bool
        Half of the atoms; f' and f'' for all, and their gradients.
    n_models : int
    """

    symbol: str = "P 1"
    cell: tuple = (9.0, 10.0, 11.0, 80.0, 95.0, 100.0)
    dtype: torch.dtype = torch.float64
    anisotropic: bool = False
    dispersion: bool = False
    n_models: int = 1

    def __str__(self):
        words = [self.symbol, "x".join(f"{x:g}" for x in self.cell[:3]), str(self.dtype).split(".")[1]]
        words += ["aniso"] * self.anisotropic + ["dispersion"] * self.dispersion + [f"{self.n_models} models"]
        return ", ".join(words)


ORTHOGONAL, HEXAGONAL, TINY = (9, 10, 12, 90, 90, 90), (9, 9, 11, 90, 90, 120), (4.0, 4.2, 4.4, 85, 95, 100)
CASES = [
    Case(symbol, cell, dtype, anisotropic, dispersion, n_models)
    for symbol, cell, dtype, anisotropic, dispersion, n_models in (
        ("P 1", Case.cell, torch.float64, False, False, 1),
        ("P 1", Case.cell, torch.float64, True, True, 2),
        ("P 1", Case.cell, torch.float32, True, False, 1),
        ("P 1", TINY, torch.float64, True, True, 1),
        ("P 21 21 21", ORTHOGONAL, torch.float64, False, False, 2),
        ("P 21 21 21", ORTHOGONAL, torch.float32, False, True, 1),
        ("P 21 21 21", ORTHOGONAL, torch.float64, True, False, 1),
        ("C 1 2 1", (11, 8, 10, 90, 105, 90), torch.float64, True, True, 1),
        ("P 31 2 1", HEXAGONAL, torch.float64, True, False, 2),
        ("R 3 :H", HEXAGONAL, torch.float32, False, False, 1),
    )
]

#: One crystal of each Bravais lattice, in which an atom is on the origin and others on the edges of tiles and of the cell.
LATTICES = [
    Case(symbol, cell, dtype, anisotropic, False, n_models)
    for symbol, cell, dtype, anisotropic, n_models in (
        ("P -1", (7.0, 8.0, 9.0, 80.0, 95.0, 100.0), torch.float64, True, 1),
        ("P 1 21 1", (7, 8, 9, 90, 105, 90), torch.float32, False, 2),
        ("C 1 2 1", (9, 7, 8, 90, 105, 90), torch.float64, False, 1),
        ("P 21 21 2", (7, 8, 9, 90, 90, 90), torch.float64, True, 1),
        ("C 2 2 21", (9, 8, 7, 90, 90, 90), torch.float32, True, 1),
        ("I 2 2 2", (8, 9, 7, 90, 90, 90), torch.float64, False, 2),
        ("F 2 2 2", (9, 8, 10, 90, 90, 90), torch.float64, False, 1),
        ("P 43 21 2", (8, 8, 9, 90, 90, 90), torch.float64, False, 1),
        ("I 41", (8, 8, 9, 90, 90, 90), torch.float32, False, 1),
        ("P 31 2 1", (8, 8, 9, 90, 90, 120), torch.float64, True, 1),
        ("R 3 :H", (9, 9, 8, 90, 90, 120), torch.float64, False, 1),
        ("P 2 3", (8, 8, 8, 90, 90, 90), torch.float64, False, 1),
        ("I 2 3", (9, 9, 9, 90, 90, 90), torch.float32, False, 1),
        ("F 2 3", (10, 10, 10, 90, 90, 90), torch.float64, False, 1),
    )
]


def atoms_of(case):
    """Six atoms: on the origin, on the far ends and edges of a cell, far outside it, and two anywhere."""
    symmetry = cctbx_crystal.symmetry(unit_cell=case.cell, space_group_symbol=case.symbol)
    last = 1 - 1e-9
    sites = [
        (0, 0, 0),
        (last, last, last),
        (0.5, last, 1.0),
        (-7.3, 3.21, 12.6),
        (0.123, 0.456, 0.789),
        (0.31, 0.27, 0.11),
    ]
    scatterers = [
        xray.scatterer(element, site=site, u=0.15 + 0.05 * i, occupancy=1 - 0.1 * i)
        for i, (element, site) in enumerate(zip("CNOSCN", sites))
    ]
    structure = xray.structure(crystal_symmetry=symmetry, scatterers=flex.xray_scatterer(scatterers))
    structure.scattering_type_registry(table="it1992")
    atoms = sfdiff.Atoms.from_cctbx(structure)
    n = atoms.n_atoms
    if case.anisotropic:
        axes = torch.randn(n, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 0.2
        u = axes @ axes.mT + 0.15 * torch.eye(3, dtype=torch.float64)
        basis = atoms.crystal.fractionalization
        u = basis @ u @ basis.T
        packed = torch.stack([u[:, i, j] for i, j in ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))], -1)
        use = torch.arange(n) % 2 == 0
        atoms = dataclasses.replace(
            atoms, u_star=torch.where(use[:, None], packed, 0.0), use_u_aniso=use, use_u_iso=torch.arange(n) % 4 != 0
        )
    if case.dispersion:
        atoms = atoms.replace(
            fp=torch.linspace(-2, 2, n).to(torch.float64), fdp=torch.linspace(0, 3, n).to(torch.float64)
        )
    return atoms


def _models(case, scatterers):
    """The same with n_models models: shifted a little, and of other displacements."""
    shift = torch.arange(case.n_models, dtype=torch.float64)[:, None]
    names = ("sites", "u_iso", "u_star", "weights", "fp", "fdp")
    many = {
        name: getattr(scatterers, name).expand(case.n_models, *getattr(scatterers, name).shape[1:]) for name in names
    }
    many["sites"] = many["sites"] + 0.137 * shift[..., None]
    many["u_iso"] = many["u_iso"] * (1 + 0.2 * shift)
    return dataclasses.replace(scatterers, **many)


def density_jobs(case, dispersion=False):
    """(job of all models, jobs of one model each): cut so late that where does not matter."""
    atoms = atoms_of(case)
    indices = atoms.crystal.build_miller_indices(2.5, anomalous=case.dispersion)
    s = _models(case, Scatterers.of(atoms))
    setting = choose_setting(s, sfdiff.plan(atoms.crystal, indices), 1e-3, 2**28)
    late = (np.full((2, 2), 30.0), 0.0, 1.0, 0.0, 1.0)
    complex_dtype = torch.complex64 if case.dtype == torch.float32 else torch.complex128
    setting = dataclasses.replace(
        setting,
        dtype=case.dtype,
        cuts=late,
        factor=setting.factor.to(case.dtype),
        phase=setting.phase.to(complex_dtype),
    )

    def job(part):
        constant = s.fdp if dispersion else s.fp
        own = (x[part] for x in (s.sites, s.u_iso, s.u_star, s.weights, constant))
        return DensityJob(setting, *own, s.use_u_aniso, s.type_index, dispersion, case.dispersion)

    flat = job(slice(None))
    found = gaussians(
        flat, *(x.flatten(0, 1) for x in (flat.u_iso, flat.u_star, flat.weights, flat.fp)), keep_zero=True
    )
    setting = dataclasses.replace(setting, box=tuple(8 * int(h // 4 + 3) for h in found.half.amax((0, 1)).tolist()))
    return job(slice(None)), [job(i) for i in range(case.n_models)]


def mask_job(case, n_models=1, n_atoms=6, hard=False):
    """A job for the soft mask, or for the hard one."""
    crystal = atoms_of(case).crystal
    grid = mask_grid(crystal, crystal.grid(0.9))
    models = torch.arange(n_models).repeat_interleave(n_atoms)
    return MaskJob(grid, 2, 1.1, case.dtype, 2**28, models=models, n_models=n_models)


def close(found, expected, dtype, what):
    """Assert that numbers agree to rounding."""
    assert found.shape == expected.shape, (what, found.shape, expected.shape)
    # Where nothing is left but rounding there is nothing to compare.
    size = max(float(torch.linalg.vector_norm(expected)), 1e-9 * expected.numel() ** 0.5)
    error = float(torch.linalg.vector_norm(found.to(expected.dtype) - expected)) / size
    assert error <= ROUNDING[dtype], (what, error)


def conform_density(engine, case):
    for dispersion in (False, True) if case.dispersion else (False,):
        together, one_by_one = density_jobs(case, dispersion)
        jobs = [together] if engine.batched else one_by_one

        def all_models(values):
            return values[0] if engine.batched else torch.stack(values)

        grid = torch.stack([REFERENCE.density(job) for job in one_by_one])
        close(all_models([engine.density(job) for job in jobs]), grid, case.dtype, "density")
        f = torch.stack([REFERENCE.structure_factors(job) for job in one_by_one])
        close(all_models([engine.structure_factors(job) for job in jobs]), f, case.dtype, "structure factors")
        generator = torch.Generator().manual_seed(2)
        seeds = {
            "density_gradients": torch.randn(f.shape, dtype=f.dtype, generator=generator),
            "density_pull_back": torch.randn(grid.shape, dtype=grid.dtype, generator=generator),
        }
        for name, seed in seeds.items():
            expected = [getattr(REFERENCE, name)(seed[i], job) for i, job in enumerate(one_by_one)]
            if engine.batched:
                found = getattr(engine, name)(seed, together)
            else:
                parts = [getattr(engine, name)(seed[i], job) for i, job in enumerate(one_by_one)]
                found = [torch.stack(x) for x in zip(*parts)]
            for i, which in enumerate(("sites", "u_iso", "u_star", "weights", "f'")):
                close(found[i], torch.stack([x[i] for x in expected]), case.dtype, f"{name} in {which}")


def conform_direct_sum(engine, case):
    atoms = atoms_of(case)
    s = _models(case, Scatterers.of(atoms))
    indices = atoms.crystal.build_miller_indices(2.5, anomalous=case.dispersion)
    plan = sfdiff.plan(atoms.crystal, indices).miller("separable")
    rows = torch.argsort(s.type_index, stable=True)
    counts = torch.bincount(s.type_index).tolist()
    table = s.form_factors(plan.d_star_sq)
    tensors = [s.u_star + s.u_iso[..., None] * packed_metric(s.crystal, s.u_iso)]
    if plan.separable:
        tensors.append(s.u_iso[..., None])
    for u in tensors:
        for memory in (2**28, 2**14):
            job, expected = (
                DirectJob(plan, s.sites[:, rows], u[:, rows].to(dtype), s.weights[:, rows].to(dtype), table.to(dtype),
                          counts, s.crystal.reciprocal_metric, memory)
                for dtype in (case.dtype, torch.float64)
            )  # fmt: skip
            e = REFERENCE.direct_sum(expected)
            close(engine.direct_sum(job), e, case.dtype, "direct sum")
            seed = torch.randn(e.shape, dtype=e.dtype, generator=torch.Generator().manual_seed(3))
            wanted = (True, True, True)
            for a, b in zip(
                engine.direct_sum_gradients(job, seed.to(engine.direct_sum(job).dtype), wanted),
                REFERENCE.direct_sum_gradients(expected, seed, wanted),
            ):
                close(a, b, case.dtype, "gradient of the direct sum")


def _mask_atoms(case):
    atoms = atoms_of(case)
    sites = _models(case, Scatterers.of(atoms)).sites
    radii = torch.tensor([2.1, 1.4, 0.0, 2.4, 1.9, 1.0], dtype=torch.float64)
    cover = torch.tensor([1.0, 0.5, 1.0, 1.0, 0.2, 0.9], dtype=torch.float64)
    return sites, radii, cover


def _ball(d):
    t = np.clip((0.9 - d) / 0.4 + 0.5, 0, 1)
    return t * t * (3 - 2 * t)


def conform_soft_mask(engine, case):
    sites, radii, cover = _mask_atoms(case)
    reference = REFERENCE.soft_mask(dataclasses.replace(mask_job(case), dtype=torch.float64))
    weights = reference.weights(_ball)
    cells, gradients = [], []
    for x in sites:
        v = reference.forward(x, radii, cover, 0.7, [weights, weights * 0.5])
        cells.append(reference.to_cell(v[0]))
    cells = torch.stack(cells)
    seed = torch.randn(cells.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    for x, g in zip(sites, seed):
        gradients.append(reference.backward(reference.from_cell(g), x, radii, cover, 0.7, weights))
    if engine.batched:
        groups = [(sites.flatten(0, 1), radii.repeat(len(sites)), cover.repeat(len(sites)), slice(None))]
    else:
        groups = [(x, radii, cover, slice(i, i + 1)) for i, x in enumerate(sites)]
    found_gradients = [[] for _ in range(4)]
    for x, r, c, part in groups:
        soft = engine.soft_mask(dataclasses.replace(mask_job(case, len(x) // 6), kept=2**28))
        weights = soft.weights(_ball)
        for keep in (True, False):
            field = torch.empty(soft.field_size, dtype=case.dtype) if keep and soft.field_size else None
            v = soft.forward(x, r, c, 0.7, [weights, weights * 0.5], field)
            close(soft.to_cell(v[0]).reshape(cells[part].shape), cells[part], case.dtype, "V")
            close(soft.to_cell(v[1]).reshape(cells[part].shape), cells[part] / 2, case.dtype, "V by other weights")
            g = seed[part] if engine.batched else seed[part][0]
            found = soft.backward(soft.from_cell(g.to(v[0].dtype)), x, r, c, 0.7, weights, field=field)
        sites_only = soft.backward(soft.from_cell(g.to(v[0].dtype)), x, r, c, 0.7, weights, sites_only=True)
        close(sites_only[0], found[0], case.dtype, "gradient of V by sites alone")
        for i in range(4):
            found_gradients[i].append(found[i])
    for i, name in enumerate(("sites", "radii", "cover")):
        expected = torch.cat([x[i] for x in gradients])
        close(torch.cat(found_gradients[i]), expected, case.dtype, f"gradient of V by {name}")
    close(sum(found_gradients[3]), sum(x[3] for x in gradients), case.dtype, "gradient of V by width")


def conform_hard_mask(engine, case):
    sites, radii, _ = _mask_atoms(case)
    for x in sites:
        low, top = -0.8, 0.3
        reference = REFERENCE.hard_mask(dataclasses.replace(mask_job(case), dtype=torch.float64))
        hard = engine.hard_mask(mask_job(case))
        expected, source = reference.psi(x, radii, low, top)
        found, found_source = hard.psi(x, radii, low, top)
        expected, found = reference.to_cell(expected).clamp(min=low), hard.to_cell(found).clamp(min=low)
        close(found, expected, case.dtype, "psi")
        seed = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
        # Where two places or two atoms decide alike either may be asked.
        if case.symbol == "P 1" and case.dtype == torch.float64:
            a = hard.pull_back(hard.from_cell(seed), found_source, x, radii, top)
            b = reference.pull_back(reference.from_cell(seed), source, x, radii, top)
            close(a[1], b[1], case.dtype, "gradient of psi by radii")
            close(a[0], b[0], case.dtype, "gradient of psi by sites")


def conform_unit_transform(engine, case):
    job = mask_job(case)
    atoms = atoms_of(case)
    indices = atoms.crystal.build_miller_indices(4.0, anomalous=True)
    transform = engine.unit_transform(job, sfdiff.plan(atoms.crystal, indices).miller("separable"))
    if transform is None:
        return
    sites, radii, cover = _mask_atoms(case)
    soft = engine.soft_mask(job)
    v = soft.forward(sites[0], radii, cover, 0.7, [soft.weights(_ball)])[0]
    close(
        torch.from_numpy(transform.forward(v.numpy())),
        sfdiff.mask_structure_factors(soft.to_cell(v).to(torch.float64), atoms.crystal, indices, d_min=None),
        case.dtype,
        "structure factors of a map of the unit",
    )
    # The transpose, by its definition.
    generator = torch.Generator().manual_seed(6)
    other = torch.randn(len(v), dtype=torch.float64, generator=generator).to(v.dtype)
    grad = torch.randn(len(indices), dtype=torch.complex128, generator=generator)
    f = torch.from_numpy(transform.forward(other.numpy()))
    back = torch.from_numpy(transform.backward(grad.numpy()))
    left = (f.to(grad.dtype) * grad.conj()).real.sum()
    right = (other.to(torch.float64) * back.to(torch.float64)).sum()
    scale = float(torch.linalg.vector_norm(f) * torch.linalg.vector_norm(grad))
    assert abs(float(left - right)) <= ROUNDING[case.dtype] * scale


CHECKS = (
    conform_density,
    conform_direct_sum,
    conform_soft_mask,
    conform_hard_mask,
    conform_unit_transform,
)


def conform(engine, case):
    """Assert that an engine answers every job of a case as the reference does."""
    for check in CHECKS:
        check(engine, case)


if __name__ == "__main__":
    torch.set_num_threads(1)
    tested = engines.engine("cpu", sys.argv[1])
    if tested.name == "triton":
        from tests.support.interpreter import small_tiles

        small_tiles()
    chosen = [(LATTICES if i[0] == "L" else CASES)[int(i.lstrip("L"))] for i in sys.argv[2:]] or CASES
    for one in chosen:
        # What the engine has kernels of its own for; the rest is torch's operations.
        for check in CHECKS if one in CASES else (conform_density, conform_soft_mask):
            check(tested, one)
        print(one, flush=True)
    print("conforms")
