"""Starts of the study beside servalcat."""

import gemmi

from tests.support.monomers import shipped_structure
from validation.studies.refinement_peers import cut_to_alanine


def test_side_chains_are_cut_to_alanine_and_nothing_else_goes():
    structure = shipped_structure()
    structure.remove_hydrogens()
    before = {(str(r.seqid), r.name): [(a.name, a.altloc, a.pos.tolist()) for a in r] for c in structure[0] for r in c}
    cut = structure.clone()
    cut_to_alanine(cut)
    kept = {"N", "CA", "C", "O", "OXT", "CB"}
    after = {str(r.seqid): r for c in cut[0] for r in c}
    assert len(after) == len(before)
    n = 0
    for (number, name), atoms in before.items():
        residue = after[number]
        if gemmi.find_tabulated_residue(name).is_amino_acid() and name not in ("GLY", "PRO"):
            assert residue.name == "ALA"
            atoms = [atom for atom in atoms if atom[0] in kept]
            n += 1
        else:
            assert residue.name == name
        assert [(a.name, a.altloc, a.pos.tolist()) for a in residue] == atoms
    assert n > 20 and not len(cut.connections)
