"""Write a run's weights into the package as float16, with the run's provenance, whose paths are cut to file names.

python tools/embed_weights.py runs/hourglass/weights.safetensors   # writes the package's assets/hourglass.safetensors
"""

import json
import sys
from pathlib import Path
from typing import Any

from handtailor_jax.errors import InputError
from handtailor_jax.hand_module.weights import EMBEDDED, load_weights, provenance, save_weights

TARGET = Path(__file__).resolve().parents[1] / "handtailor_jax" / "assets" / EMBEDDED
LICENCE = "Apache-2.0; trained in part on photographs under open licences, see hourglass.NOTICE.txt"


def without_paths(value: Any) -> Any:
    """Return a JSON value with every path cut to its last part."""
    if isinstance(value, dict):
        return {name: without_paths(each) for name, each in value.items()}
    return Path(value).name if isinstance(value, str) and "/" in value else value


def main() -> None:
    """Read, clean and write the weights."""
    source = Path(sys.argv[1])
    facts = provenance(source)
    facts["training"] = json.dumps(without_paths(json.loads(facts["training"])))
    facts["licence"] = LICENCE
    save_weights(TARGET, load_weights(source), facts, dtype="float16")
    print(f"written to {TARGET.name}: {TARGET.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit((__doc__ or "").strip())
    try:
        main()
    except InputError as error:
        sys.exit(f"embed_weights: error: {error}")
