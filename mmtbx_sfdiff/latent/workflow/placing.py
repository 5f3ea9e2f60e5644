"""A predicted model put into the crystal: superposed, chain by chain, on a model that is in its place
already."""

from __future__ import annotations

from typing import Any

_LEAST_MATCHES = 10
_LEAST_IDENTITY = 0.5


def place_on(predicted: Any, reference: Any, say: Any = None) -> Any:
    """Copies of a predicted model on the protein chains of a placed one.

    Parameters
    ----------
    predicted, reference : iotbx.pdb.hierarchy.root
        Neither is changed.
    say : callable, optional
        Takes a line for each chain.

    Returns
    -------
    iotbx.pdb.hierarchy.root
        For each protein chain of the reference, the best matching chain of the prediction with the
        reference's chain name, without the residues before the first and after the last that match.

    Raises
    ------
    ValueError
        When no chain matches in sequence.
    """
    import iotbx.pdb
    from cctbx.array_family import flex
    from scitbx.math import superpose

    result = iotbx.pdb.hierarchy.root()
    model = iotbx.pdb.hierarchy.model()
    result.append_model(model)
    sources = [_residues(chain) for chain in predicted.models()[0].chains()]
    sources = [source for source in sources if source]
    for chain in reference.models()[0].chains():
        target = _residues(chain)
        if len(target) < _LEAST_MATCHES:
            continue
        pairs: list[Any] = max((_matches(source, target) for source in sources), key=len, default=[])
        if len(pairs) < max(_LEAST_MATCHES, _LEAST_IDENTITY * len(target)):
            continue
        fixed = flex.vec3_double([t[1].xyz for _, t in pairs])
        moving = flex.vec3_double([s[1].xyz for s, _ in pairs])
        fit = superpose.least_squares_fit(fixed, moving)
        first, last = pairs[0][0][2], pairs[-1][0][2]
        copy = iotbx.pdb.hierarchy.chain(id=chain.id)
        for group in first.parent().residue_groups():
            if first.resseq_as_int() <= group.resseq_as_int() <= last.resseq_as_int():
                copy.append_residue_group(group.detached_copy())
        copy.atoms().set_xyz(fit.r.elems * copy.atoms().extract_xyz() + fit.t)
        model.append_chain(copy)
        if say is not None:
            rms = fixed.rms_difference(fit.other_sites_best_fit())
            say(
                f"Chain {chain.id}: {len(pairs)} of {len(target)} residues match, CA atoms within {rms:.2f} Å (root mean "
                "square)",
            )
    if not model.chains():
        raise ValueError(
            "No chain of the model to be placed has the sequence of a chain of superpose_on: check both files."
        )
    result.atoms().reset_i_seq()
    result.atoms().reset_serial()
    return result


def _residues(chain: Any) -> Any:
    """[(one-letter code, CA, residue group)] of the protein residues of a chain."""
    from iotbx.pdb.amino_acid_codes import one_letter_given_three_letter as codes

    found = []
    for group in chain.residue_groups():
        atoms = [a for a in group.atoms() if a.name == " CA " and a.parent().resname in codes]
        if atoms:
            found.append((codes[atoms[0].parent().resname], atoms[0], group))
    return found


def _matches(source: Any, target: Any) -> Any:
    from mmtbx.alignment import align

    sequences = ["".join(residue[0] for residue in chain) for chain in (source, target)]
    alignment = align(*sequences).extract_alignment()
    pairs = [
        (source[i], target[j])
        for i, j, match in zip(alignment.i_seqs_a, alignment.i_seqs_b, alignment.matches())
        if i is not None and j is not None and match == "|"
    ]
    return pairs
