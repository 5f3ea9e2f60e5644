"""What the programs' parameters are called, and what is said of them."""

import collections
import importlib

import pytest

PROGRAMS = ("compare", "fmodel", "refine", "latent")


def test_a_word_with_one_caption_has_one_explanation_in_every_program():
    pytest.importorskip("libtbx")
    from libtbx import phil

    texts = collections.defaultdict(set)
    for name in PROGRAMS:
        program = importlib.import_module(f"mmtbx_sfdiff.programs.{name}").Program
        for found in phil.parse(program.master_phil_str).all_definitions():
            definition = found.object
            if not found.path.startswith("output."):  # which files are written is each program's own
                texts[definition.name, definition.short_caption].add(" ".join((definition.help or "").split()))
    assert len(texts) > 80
    assert {word: helps for word, helps in texts.items() if len(helps) > 1} == {}
