"""Fits labelled photographs and prints how well that went, as a markdown table.

python tools/measure_photos.py --photos DIR [--hint] [--sheet sheet.png] [--json figures.json]
"""

import sys

import tyro

from handtailor_jax.cli import keep_compiled_programs
from handtailor_jax.errors import InputError
from handtailor_jax.evaluation.photographs import PhotographBenchmark, run

if __name__ == "__main__":
    benchmark = tyro.cli(PhotographBenchmark, description=__doc__)
    keep_compiled_programs()
    try:
        print(run(benchmark))
    except InputError as error:
        print(f"measure_photos: error: {error}", file=sys.stderr)
        sys.exit(2)
