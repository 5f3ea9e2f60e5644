"""What is compared, each from the same file and with the same number of evaluations, polished alike."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from mmtbx_sfdiff import Atoms, Crystal, FModel
from mmtbx_sfdiff.atom_arrays import EIGHT_PI_SQ
from mmtbx_sfdiff.latent.generator.elastic import ElasticNetwork
from mmtbx_sfdiff.latent.refinement.finish import finish, library_restraint, polishing_limits, resolution_limits
from mmtbx_sfdiff.latent.refinement.problem import Problem, problem_of_structure
from mmtbx_sfdiff.latent.refinement.rebuild import RebuildSettings, rebuild, taken_of
from mmtbx_sfdiff.latent.refinement.search import SearchSettings, search
from mmtbx_sfdiff.refinement.parameters import Parameters
from mmtbx_sfdiff.refinement.restraint import LibraryRestraint
from mmtbx_sfdiff.reflections import Reflections

import gemmi
import numpy as np

from validation.studies.latent_radius import generators
from validation.studies.latent_radius.starts import with_sites

MASK = {"method": "probe_shrink"}
PRIOR_RMS = 1.0  # Å, of the elastic network at temperature 1
SEARCH, REBUILD = SearchSettings(), RebuildSettings()
BUDGET = SEARCH.n_steps + REBUILD.evaluations
RIGID_STEPS, RIGID_D_MIN = 50, 6.0
STAGES, FIRST_D_MIN = 15, 6.0  # of the baselines' macro-cycles before polishing
POLISH_CYCLES, POLISH_STEPS, POLISH_FIRST, POLISH_STAGES = 10, 20, 3.5, 4
JELLY_SIGMA, JELLY_REACH = 0.02, 4.2  # Å; REFMAC's
SERVALCAT_JELLY, SERVALCAT_PLAIN = 60, 20  # cycles


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """A start and its data.

    Attributes
    ----------
    structure : gemmi.Structure
        The start.
    reflections : Reflections
    data : Path
        The same as MTZ: FP, SIGFP, FREE (0 is free).
    library : str, optional
        Of monomers.
    device : str
        Where methods compute but servalcat and those with dynamics.
    """

    structure: gemmi.Structure
    reflections: Reflections
    data: Path
    library: str | None = None
    device: str = "cpu"

    def fmodel(self, dtype: torch.dtype = torch.float64, accuracy: float = 1e-4) -> FModel:
        """Of the start."""
        crystal = Crystal.from_gemmi(self.structure)
        d_min = self.reflections.d_min
        atoms = Atoms.from_gemmi(self.structure, d_min=d_min, crystal=crystal, dtype=dtype)
        fmodel = FModel(atoms, self.reflections.to(dtype=dtype), mask=MASK, method="fft", accuracy=accuracy)
        return fmodel if self.device == "cpu" else fmodel.to(device=self.device)

    def restraint(self) -> LibraryRestraint:
        return library_restraint(self.structure, self.reflections.d_min, self.library, device=self.device)

    def chains(self) -> np.ndarray:
        """(n,) number of the chain of each atom."""
        names = [cra.chain.name for cra in self.structure[0].all()]
        return np.unique(names, return_inverse=True)[1].astype(np.int64)


class JellyBody(LibraryRestraint):
    """The library's restraints, and springs between near atoms at rest where each macro-cycle begins (Murshudov et al. 2011)."""

    def __init__(self, held: LibraryRestraint, chains: torch.Tensor) -> None:
        super().__init__(held.geometry, held.displacements, None, held.adp_weight, held.target, held.weight)
        self.chains = chains

    def update(self, atoms: Any) -> None:
        super().update(atoms)
        x = atoms.sites_cart.detach().to(torch.float64)
        distances = torch.cdist(x, x)
        same = self.chains[:, None] == self.chains[None]
        self.i, self.j = ((distances < JELLY_REACH) & same).triu(1).nonzero().T
        self.rest = distances[self.i, self.j]

    def energy(self, atoms: Any, sites: bool = True, adp: bool = True) -> torch.Tensor:
        total = super().energy(atoms, sites, adp)
        if sites:
            x = atoms.sites_cart.to(torch.float64)
            d = (x[self.i] - x[self.j]).norm(dim=-1)
            total = total + 0.5 * self.weight * ((d - self.rest) / JELLY_SIGMA).square().sum()
        return total


def polished(subject: Subject, fmodel: FModel, turn: bool = False, report: Any = None) -> tuple[FModel, dict]:
    """The end that all share; and facts: the evaluations that it took, the side chains that were turned."""
    limits = polishing_limits(subject.reflections.d_min, POLISH_FIRST, POLISH_STAGES, POLISH_CYCLES)
    result, history = finish(
        fmodel, subject.restraint(), limits, POLISH_STEPS, report, structure=subject.structure if turn else None
    )
    turned = [move for cycle in history.cycles for move in cycle.get("side_chains", ())]
    return result, {"polish_evaluations": len(history.steps), "side_chains_turned": len(turned)}


def as_it_is(subject: Subject, seed: int) -> tuple[FModel, dict]:
    """Polishing alone: for the deposited model, and to see what polishing does by itself."""
    return subject.fmodel(), {}


def _staged(subject: Subject, restraint: LibraryRestraint) -> tuple[FModel, dict]:
    steps = (BUDGET - RIGID_STEPS) // STAGES
    bodies = Parameters(bodies=subject.chains())
    fmodel, first = finish(subject.fmodel(), restraint, [RIGID_D_MIN], RIGID_STEPS, parameters=bodies)
    limits = resolution_limits(subject.reflections.d_min, FIRST_D_MIN, STAGES)
    fmodel, history = finish(fmodel, restraint, limits, steps)
    return fmodel, {"evaluations": len(first.steps) + len(history.steps)}


def rigid_refine(subject: Subject, seed: int) -> tuple[FModel, dict]:
    """Rigid bodies, then refinement with the library's restraints from 6 Å to the limit of the data."""
    return _staged(subject, subject.restraint())


def jelly_refine(subject: Subject, seed: int) -> tuple[FModel, dict]:
    """The same with jelly-body springs."""
    held = subject.restraint()
    return _staged(subject, JellyBody(held, torch.from_numpy(subject.chains()).to(subject.device)))


def problem_of(subject: Subject) -> Problem:
    """For a search: every atom of the start is one of the prior's."""
    return problem_of_structure(subject.structure, subject.fmodel(torch.float32, 1e-3))


def elastic_prior(subject: Subject) -> ElasticNetwork:
    """The elastic network of a start."""
    return ElasticNetwork.from_gemmi(subject.structure, rms=PRIOR_RMS).to(subject.device)


def latent_elastic(subject: Subject, seed: int) -> tuple[FModel, dict]:
    """The elastic network's torsions by likelihood gain, then what the density does not show built anew."""
    prior = elastic_prior(subject)
    best = search(problem_of(subject), prior, SEARCH, seed)[0]
    facts = {name: best.facts[name] for name in ("test_gain", "start", "screened", "z_norm")}
    facts |= {"temperature": SEARCH.starts[best.facts["start"]].temperature, "z": best.z.tolist()}
    facts |= {"n_latent": prior.n_latent, "sites_of_search": best.sites_cart.tolist()}
    return rebuilt(subject, best.model_in(subject.fmodel()), seed, SEARCH.n_steps, facts)


def rebuilt(subject: Subject, fmodel: FModel, seed: int, before: int, facts: dict) -> tuple[FModel, dict]:
    """What the density does not show built anew, after so many evaluations."""
    found, history = rebuild(fmodel, subject.structure, subject.restraint(), REBUILD, seed)
    return found, facts | {"evaluations": before + len(history.steps), "built": taken_of(history)}


def servalcat_jelly(subject: Subject, seed: int, folder: Path | None = None, program: str = "servalcat"):
    """servalcat with --jellybody, then without, as people use it; no hydrogens, as all others have none."""
    assert folder is not None
    folder.mkdir(parents=True, exist_ok=True)
    model = folder / "start.pdb"
    subject.structure.write_pdb(str(model))
    for name, words in (
        ("jelly", ["--jellybody", "--ncycle", SERVALCAT_JELLY]),
        ("plain", ["--ncycle", SERVALCAT_PLAIN]),
    ):
        command = [
            program,
            "refine_xtal_norefmac",
            "--model",
            model,
            "--hklin",
            subject.data,
            "--labin",
            "FP,SIGFP,FREE",
            "-s",
            "xray",
            "--hydrogen",
            "no",
            "--newligand_continue",
            "-o",
            name,
            *words,
        ]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        environment |= {"CLIBD_MON": str(subject.library) + "/"} if subject.library else {}
        with open(folder / f"{name}.log", "w") as log:
            subprocess.run(
                list(map(str, command)),
                cwd=folder,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=1800,
                check=True,
            )
        model = folder / f"{name}.pdb"
    found = gemmi.read_structure(str(model))
    places = {_label(cra): cra.atom for cra in found[0].all()}
    atoms = [places[_label(cra)] for cra in subject.structure[0].all()]
    sites = torch.tensor([atom.pos.tolist() for atom in atoms], dtype=torch.float64)
    moved = dataclasses.replace(subject, structure=with_sites(subject.structure, sites))
    fmodel = moved.fmodel()
    b = torch.tensor([atom.b_iso for atom in atoms], dtype=torch.float64)
    return fmodel.with_(atoms=fmodel.atoms.replace(u_iso=b / EIGHT_PI_SQ)), {}


def servalcat_rebuilt(subject: Subject, seed: int, **options: Any) -> tuple[FModel, dict]:
    """The same, then what the density does not show built anew: what that does without the latent search."""
    fmodel, facts = servalcat_jelly(subject, seed, **options)
    fmodel.update_scales()
    return rebuilt(subject, fmodel, seed, 0, facts)


def _label(cra: gemmi.CRA) -> tuple[str, str, str]:
    return cra.chain.name, str(cra.residue.seqid), cra.atom.name


def _latent_of(kind: str) -> Callable[..., tuple[FModel, dict]]:
    def method(subject: Subject, seed: int, folder: Path) -> tuple[FModel, dict]:
        fmodel, facts = generators.latent(subject, seed, folder, kind, SEARCH)
        return rebuilt(subject, fmodel, seed, SEARCH.n_steps, facts)

    return method


def _sites_of(kind: str) -> Callable[..., tuple[FModel, dict]]:
    def method(subject: Subject, seed: int, folder: Path) -> tuple[FModel, dict]:
        return generators.sites(subject, seed, folder, kind, BUDGET)

    return method


# Polished with side chains tried in other rotamers: those of the latent search, and a control, which tells what that alone does.
TURNED = ("latent_elastic", "servalcat_rebuilt", *(f"latent_{kind}" for kind in generators.KINDS))
# Those that need a folder for dynamics and flows, one for each start.
WITH_DYNAMICS = {f"latent_{kind}": _latent_of(kind) for kind in generators.KINDS}
WITH_DYNAMICS |= {kind: _sites_of(kind) for kind in ("sites_ff", "average_ff")}
METHODS: dict[str, Callable[..., tuple[FModel, dict]]] = {
    "latent_elastic": latent_elastic,
    "rigid_refine": rigid_refine,
    "jelly_refine": jelly_refine,
    "servalcat_jelly": servalcat_jelly,
    "servalcat_rebuilt": servalcat_rebuilt,
    "polish": as_it_is,
    **WITH_DYNAMICS,
}


def run(method: str, subject: Subject, seed: int, **options: Any) -> tuple[FModel, dict]:
    """A method and the polishing; facts with evaluations and seconds of both, and R factors before polishing."""
    begin = time.perf_counter(), time.process_time()
    fmodel, facts = METHODS[method](subject, seed, **options)
    fmodel.update_scales()
    r_before = fmodel.r_factors()
    before = fmodel.atoms.sites_cart.detach().cpu().clone()
    middle = time.perf_counter()
    result, ended = polished(subject, fmodel, turn=method in TURNED)
    facts |= {
        "r_before_polish": r_before,
        "seconds": {
            "method": middle - begin[0],
            "polish": time.perf_counter() - middle,
            "cpu": time.process_time() - begin[1],
        },
        **ended,
        "sites_before": before,
    }
    return result, facts
