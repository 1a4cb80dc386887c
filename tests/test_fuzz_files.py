"""Mutated files never crash, hang or fill the memory of the reader; see fuzz_files.py.

The default is a few hundred files of every kind. HANDTAILOR_FUZZ_FILES=20000 is the full count.
"""

import os

import pytest
from fuzz_files import KINDS, MEMORY, SECONDS, fuzz

FILES = int(os.environ.get("HANDTAILOR_FUZZ_FILES", "300"))


@pytest.mark.parametrize("kind", KINDS)
def test_mutated_files(kind):
    pytest.importorskip("scipy")
    result = fuzz(kind, FILES)
    print(result)
    assert result["files"] == FILES
    assert 0 < result["read"] < FILES, "some mutations are harmless, most are not"
    assert result["slowest_s"] < SECONDS
    assert result["growth_mib"] * 2**20 < MEMORY
