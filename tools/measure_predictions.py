"""Predicts labelled photographs from boxes around their labels and prints how well that went, as a markdown table.

python tools/measure_predictions.py --photos DIR [--weights FILE] [--sheet sheet.png] [--json FILE]
"""

import sys

import tyro

from handtailor_jax.cli import keep_compiled_programs
from handtailor_jax.errors import InputError
from handtailor_jax.evaluation.predictions import PredictionBenchmark, run

if __name__ == "__main__":
    benchmark = tyro.cli(PredictionBenchmark, description=__doc__)
    keep_compiled_programs()
    try:
        print(run(benchmark))
    except InputError as error:
        print(f"measure_predictions: error: {error}", file=sys.stderr)
        sys.exit(2)
