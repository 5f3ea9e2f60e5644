"""What a refinement's report counts: shells of resolution, displacement parameters, residues in the map, backbone torsions."""

from __future__ import annotations

from typing import Any

import torch

import iotbx.pdb
import numpy as np
from libtbx.utils import Sorry

from ..numerics.residual import r_factor, scale
from ..real_space.fourier import fourier_map
from ..real_space.targets import residue_correlation
from ..reflections import resolution_shells

_SHELLS = 10
_PER_SHELL = 50  # reflections in use, at least
_BINS = 24  # of the histogram of B
_WATERS = "common_water"
_POLYMERS = ("common_amino_acid", "modified_amino_acid", "common_rna_dna", "modified_rna_dna", "d_amino_acid")


def shells(fmodel: Any) -> list[dict[str, Any]]:
    """R, correlation of amplitudes and completeness by shell of resolution, low resolution first.

    Parameters
    ----------
    fmodel : FModel
        With scales.

    Returns
    -------
    list of dict
        ``d_max, d_min, n, n_work, n_free, completeness, r_all, r_work, r_free, cc_work, cc_free``; of the reflections in use;
        what cannot be known is None.
    """
    reflections, scales = fmodel.reflections, fmodel.scales
    with torch.no_grad():
        model = fmodel.f_model().abs()
    f_obs = reflections.f_obs / scales.f_obs_scale
    used, work = scales.selection, reflections.work
    model = model * scale(f_obs[used & work], model[used & work])  # one scale for all shells
    d, every = reflections.d_spacings, _complete(reflections)
    result: list[dict[str, Any]] = []
    number = max(1, min(_SHELLS, int(used.sum()) // _PER_SHELL))
    for d_max, d_min, chosen in resolution_shells(d, number):
        chosen = chosen[used[chosen]]
        parts = {"work": chosen[work[chosen]], "free": chosen[~work[chosen]]}
        inside = (every >= d_min * (1 - 1e-9)) & (every < d_max if result else every <= d_max * (1 + 1e-9))
        n_possible = int(inside.sum())
        shell = {
            "d_max": float(d_max),
            "d_min": float(d_min),
            "n": len(chosen),
            "n_work": len(parts["work"]),
            "n_free": len(parts["free"]) if fmodel.has_free else None,
            "completeness": min(1.0, len(chosen) / n_possible) if n_possible else None,
            "r_all": _r(f_obs, model, chosen),
        }
        for name, rows in parts.items():
            shell[f"r_{name}"] = _r(f_obs, model, rows)
            shell[f"cc_{name}"] = _cc(f_obs, model, rows)
        result.append(shell)
    return result


def overall(fmodel: Any) -> dict[str, Any]:
    """The same of all reflections in use: counts, completeness, R of all."""
    reflections, scales = fmodel.reflections, fmodel.scales
    with torch.no_grad():
        model = fmodel.f_model().abs()
    used, work = scales.selection, reflections.work
    d = reflections.d_spacings[used]
    every = _complete(reflections)
    n_possible = int(((every >= float(d.min()) * (1 - 1e-9)) & (every <= float(d.max()) * (1 + 1e-9))).sum())
    return {
        "d_max": float(d.max()),
        "d_min": float(d.min()),
        "n_reflections": int(used.sum()),
        "n_work": int((used & work).sum()),
        "n_free": int((used & ~work).sum()) if fmodel.has_free else None,
        "completeness": min(1.0, int(used.sum()) / n_possible) if n_possible else None,
        "r_all": _r(reflections.f_obs / scales.f_obs_scale, model, used.nonzero()[:, 0], None),
    }


def residues(fmodel: Any, hierarchy: Any, radius: float = 1.5) -> list[dict[str, Any]]:
    """Correlation of the model's density with 2mFo-DFc around each residue, and its mean B; in the order of the model.

    Both maps are of the reflections in use. All conformers of a residue are one.

    Parameters
    ----------
    fmodel : FModel
        With scales.
    hierarchy : iotbx.pdb.hierarchy.root
        Of the atoms of ``fmodel``, in their order.
    radius : float
        Å; grid points within it of any atom of the residue count.
    """
    reflections, scales, atoms = fmodel.reflections, fmodel.scales, fmodel.atoms
    used = scales.selection
    crystal, indices = reflections.crystal, reflections.miller_indices[used]
    with torch.no_grad():
        k = scales.k_total[used]
        model = fmodel.f_model(twinned=False)[used] / torch.where(k != 0, k, 1.0)
        grid = crystal.grid(float(reflections.d_spacings[used].min()) / 3)
        maps = [fourier_map(crystal, indices, f, grid) for f in (fmodel.map_coefficients()["2mFo-DFc"], model)]
        groups, labels = _residues(hierarchy)
        found = residue_correlation(maps[1], maps[0], atoms, groups.to(atoms.device), radius).cpu()
    b = (atoms.b_iso if not atoms.batch_shape else atoms.b_iso[0]).detach().cpu()
    n = torch.bincount(groups, minlength=len(labels)).clamp(min=1)
    mean = torch.zeros(len(labels), dtype=b.dtype).index_add(0, groups, b) / n
    return [label | {"cc": float(cc), "b": float(value)} for label, cc, value in zip(labels, found, mean, strict=True)]


def _residues(hierarchy: Any) -> tuple[torch.Tensor, list[dict[str, Any]]]:
    atoms = hierarchy.atoms()
    atoms.reset_i_seq()
    groups = torch.full((len(atoms),), -1, dtype=torch.int64)
    labels: list[dict[str, Any]] = []
    several = len(hierarchy.models()) > 1
    for model in hierarchy.models():
        for chain in model.chains():
            for group in chain.residue_groups():
                for atom in group.atoms():
                    groups[atom.i_seq] = len(labels)
                name = group.unique_resnames()[0].strip()
                prefix = f"{model.id.strip()}/" if several else ""
                labels.append(
                    {"residue": f"{prefix}{chain.id.strip()} {name} {group.resid().strip()}", "kind": _kind(name)}
                )
    return groups, labels


def _kind(name: str) -> str:
    found = iotbx.pdb.common_residue_names_get_class(name)
    return "water" if found == _WATERS else "polymer" if found in _POLYMERS else "other"


def displacements(atoms: Any, hierarchy: Any) -> dict[str, Any]:
    """A histogram of the isotropic equivalents of the displacement parameters, by kind of residue, and means (Å^2).

    Hydrogens are left out: they follow their parents.
    """
    b = atoms.b_iso.detach().cpu().numpy().astype(float).reshape(-1)
    kinds = np.array([_kind(atom.parent().resname.strip()) for atom in hierarchy.atoms()])
    heavy = ~np.array([atom.element_is_hydrogen() for atom in hierarchy.atoms()], dtype=bool)
    if not heavy.any():
        heavy[:] = True
    top = float(np.percentile(b[heavy], 99.5)) if heavy.any() else 1.0
    edges = np.linspace(min(0.0, float(b[heavy].min())), max(top, 1.0), _BINS + 1)
    counts, means = {}, {}
    for kind in ("polymer", "other", "water"):
        values = b[heavy & (kinds == kind)]
        if len(values):
            counts[kind] = np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0].tolist()
            means[kind] = float(values.mean())
    return {
        "edges": edges.tolist(),
        "counts": counts,
        "means": means,
        "mean": float(b[heavy].mean()),
        "smallest": float(b[heavy].min()),
        "largest": float(b[heavy].max()),
        "median": float(np.median(b[heavy])),
    }


def ramachandran(hierarchy: Any) -> dict[str, Any] | None:
    """Counts of backbone torsions by mmtbx's validation, and the outliers; None where its tables are missing or there is no protein."""
    from mmtbx.validation.ramalyze import ramalyze  # loads tables and most of mmtbx

    try:
        found = ramalyze(hierarchy)
    except (Sorry, RuntimeError, OSError, AssertionError, AttributeError):
        return None
    if not found.n_total:
        return None
    return {
        "favored": int(found.n_favored),
        "allowed": int(found.n_allowed),
        "outliers": int(found.n_outliers),
        "total": int(found.n_total),
        "outlier_residues": [
            f"{one.chain_id.strip()} {one.resname.strip()} {one.resid.strip()}"
            for one in found.results
            if one.is_outlier()
        ],
    }


def restraint_types(geometry: Any, sites_cart: torch.Tensor) -> list[tuple[str, int | None, float, str]]:
    """(name, number, root mean square deviation, unit) of bonds and angles; nothing where no library is known."""
    if geometry is None:
        return []
    rms = geometry.rms(sites_cart.detach().to(torch.float64))
    counts = {}
    if hasattr(geometry, "deviations"):
        counts = {name: int(geometry.deviations(sites_cart.detach().double(), name).shape[-1]) for name in rms}
    units = {"bond": "ANGSTROMS", "angle": "DEGREES"}
    return [(name, counts.get(name), value, units[name]) for name, value in rms.items() if value == value]


def _complete(reflections: Any) -> torch.Tensor:
    """Resolution of every reflection that there could be to the data's limit; of anomalous data both mates."""
    crystal = reflections.crystal
    return crystal.d_spacings(crystal.build_miller_indices(reflections.d_min * (1 - 1e-9), reflections.anomalous))  # type: ignore[no-any-return]


def _r(f_obs: torch.Tensor, model: torch.Tensor, rows: torch.Tensor, k: float | None = 1.0) -> float | None:
    if not len(rows) or not float(f_obs[rows].sum()) > 0:
        return None
    return float(r_factor(f_obs[rows], model[rows], k))


def _cc(f_obs: torch.Tensor, model: torch.Tensor, rows: torch.Tensor) -> float | None:
    if len(rows) < 3:
        return None
    a, b = (x[rows].double() - x[rows].double().mean() for x in (f_obs, model))
    size = float((a.square().sum() * b.square().sum()).sqrt())
    return float((a * b).sum()) / size if size > 0 else None
