"""A small part of the fuzz study."""

import pytest

from validation.studies import fuzz


@pytest.mark.parametrize("kind", ["model", "data"])
def test_mutated_files_are_read_or_refused_in_a_sentence(tmp_path, kind):
    faults, outcomes = fuzz.fuzz(kind, 60, 7, tmp_path)
    assert faults == [] and {"read", "said", "refused"} <= set(outcomes)
    again = fuzz.fuzz(kind, 10, 7, tmp_path)[1]
    assert again == outcomes[:10]
