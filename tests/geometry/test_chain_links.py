"""Residues that follow one another in a sequence are bonded, also where a model has been pulled apart."""

import torch
from mmtbx_sfdiff.geometry import GeometryRestraints
from mmtbx_sfdiff.geometry.chain_links import joined
from mmtbx_sfdiff.geometry.placing import with_hydrogens

import gemmi
import numpy as np
import pytest

from tests.support.monomers import entry_structure, library_or_skip, shipped_structure


@pytest.fixture(scope="module")
def library():
    return library_or_skip()


def peptide():
    structure = shipped_structure()
    structure.remove_hydrogens()
    structure.remove_alternative_conformations()
    while len(structure.connections):  # disulfides: by residues' numbers, which a test changes
        structure.connections.pop(0)
    structure.setup_entities()
    return structure


def pulled(structure, number=10, distance=2.6, names=("C", "N")):
    """(the structure with the second atom of a residue's link that far away, the residues)"""
    copy = structure.clone()
    chain = copy[0][0]
    before, after = chain[number], chain[number + 1]
    first, second = (residue.find_atom(name, "*") for residue, name in zip((before, after), names, strict=True))
    a, b = np.array(first.pos.tolist()), np.array(second.pos.tolist())
    second.pos = gemmi.Position(*(a + (b - a) * distance / np.linalg.norm(b - a)))
    return copy, (before, after)


def counts(geometry):
    return {name: len(getattr(geometry.topology, name)) for name in ("bonds", "angles", "planes", "chirals")}


@pytest.mark.parametrize("distance", [pytest.param(2.6, marks=pytest.mark.slow), 3.4])
def test_a_stretched_link_is_restrained_and_said(distance, library):
    whole, (apart, residues) = peptide(), pulled(peptide(), distance=distance)
    known, found = (GeometryRestraints.from_gemmi(x, library) for x in (whole, apart))
    assert counts(found) == counts(known)
    assert not any("stretched" in m for m in known.messages)
    said = next(m for m in found.messages if "stretched" in m)
    assert f"{residues[0].seqid}-{residues[1].seqid} ({distance:.2f} Å)" in said and said.startswith(
        "1 links of a chain"
    )
    # The restraints are of the model as it is, and pull it together.
    sites = torch.tensor(found.topology.atoms.sites_cart)
    np.testing.assert_array_equal(sites.numpy(), [cra.atom.pos.tolist() for cra in apart[0].all()])
    x = sites.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([x], max_iter=300, line_search_fn="strong_wolfe")

    def energy():
        optimizer.zero_grad()
        value = found(x)
        value.backward()
        return value

    optimizer.step(energy)
    assert found.rms(x.detach())["bond"] < 0.01


@pytest.mark.parametrize("distance, number", [(3.6, None), (4.5, None), (2.6, 5)])
def test_a_gap_is_none(distance, number, library):
    """Further than 3.5 Å, or not next in the sequence: two ends, and nothing is said."""
    apart, (_, after) = pulled(peptide(), distance=distance)
    if number is not None:
        for residue in list(apart[0][0])[11:]:
            residue.seqid = gemmi.SeqId(residue.seqid.num + number, " ")
    found = GeometryRestraints.from_gemmi(apart, library)
    assert counts(found)["bonds"] == counts(GeometryRestraints.from_gemmi(peptide(), library))["bonds"] - 1
    assert not any("stretched" in m for m in found.messages)


def test_the_model_is_as_it_was_afterwards():
    apart, _ = pulled(peptide())
    before = [cra.atom.pos.tolist() for cra in apart[0].all()]
    with joined(apart[0]) as links:
        assert len(links) == 1 and before != [cra.atom.pos.tolist() for cra in apart[0].all()]
    assert before == [cra.atom.pos.tolist() for cra in apart[0].all()]
    with pytest.raises(KeyError), joined(apart[0]):
        raise KeyError
    assert before == [cra.atom.pos.tolist() for cra in apart[0].all()]


def test_hydrogens_of_a_stretched_link_are_those_of_a_chain(library):
    whole, (apart, (_, after)) = peptide(), pulled(peptide())
    (known, _), (found, _) = (with_hydrogens(x, library) for x in (whole, apart))
    names = [[cra.atom.name for cra in x[0].all()] for x in (known, found)]
    assert names[0] == names[1]
    residue = next(r for r in found[0][0] if r.seqid == after.seqid)
    nitrogen = residue.find_atom("N", "*")
    near = [h for h in residue if h.is_hydrogen() and h.pos.dist(nitrogen.pos) < 1.2]
    assert len(near) == (0 if residue.name == "PRO" else 1)
    heavy = [[cra.atom.pos.tolist() for cra in x[0].all() if not cra.atom.is_hydrogen()] for x in (apart, found)]
    assert heavy[0] == heavy[1]


def test_nucleic_acids_likewise(pdb_dir, library):
    structure = entry_structure(pdb_dir, "3nm9")[0]
    structure.setup_entities()
    index = next(i for i, c in enumerate(structure[0]) if c[0].name in ("DA", "DC", "DG", "DT"))
    alone = gemmi.Structure()
    alone.cell, alone.spacegroup_hm = structure.cell, structure.spacegroup_hm
    alone.add_model(gemmi.Model(1) if gemmi.__version__ >= "0.7" else gemmi.Model("1"))
    alone[0].add_chain(structure[0][index])
    alone.setup_entities()
    apart, _ = pulled(alone, number=2, distance=3.0, names=("O3'", "P"))
    known, found = (GeometryRestraints.from_gemmi(x, library) for x in (alone, apart))
    assert counts(found) == counts(known) and any("stretched" in m for m in found.messages)
