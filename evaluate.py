"""Evaluate a hand module and the tailor: python evaluate.py table1 --predictions simulated --out runs/evaluation.

Print this project's numbers beside the paper's, and write them as markdown, CSV, JSON and images to a folder.
"""

from collections.abc import Sequence

import tyro

from handtailor_jax.commands import command, parsed
from handtailor_jax.evaluation.paper.reproduce import EvaluationConfig, evaluate


@command("evaluate.py")
def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and evaluate."""
    positional = (tyro.conf.PositionalRequiredArgs,)
    with parsed(EvaluationConfig, "evaluate.py", arguments, description=__doc__, config=positional) as config:
        findings = evaluate(config)
    if findings.tables or findings.claims:
        print(findings.markdown())
    print(f"written to {config.out}")


if __name__ == "__main__":
    main()
