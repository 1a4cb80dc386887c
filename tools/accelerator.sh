#!/usr/bin/env bash
# Run everything that needs an accelerator, in about half an hour, and print one table.
#
#     tools/accelerator.sh [OUT]              (OUT: accelerator/)
#     REHEARSE=1 tools/accelerator.sh [OUT]   the same steps with small sizes, on a CPU
#
# Needs the package with its extras `train` and `bench`. A step that fails is a row of the table; the others go on.
set -uo pipefail
cd "$(dirname "$0")/.."
out=$(mkdir -p "${1:-accelerator}" && cd "${1:-accelerator}" && pwd)
export TF_CPP_MIN_LOG_LEVEL=2
# A step that ran out of time continues from its compiled programs when the script is run again.
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$out/compiled}" JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0

# A rehearsal uses small sizes. Every number of iterations and every batch size is another program to compile.
gpu=() official=() predict=() patience=1
tailor=(--rounds 20 --iterations 20 --damped-iterations 2 --batches 1 64 1024)
if [ "${REHEARSE:-}" ]; then
    gpu=(--batch 8 --rounds 1)
    official=(--batch 2 --rounds 1 --module.channels 32)
    tailor=(--problems 8 --rounds 2 --iterations 10 --damped-iterations 2 --batches 1 8)
    predict=(--rounds 1 --batches 1)
    patience=5
elif ! python -c "import jax, sys; sys.exit(jax.default_backend() == 'cpu')"; then
    echo "JAX finds no accelerator: install jax[cuda12] or jax[tpu], or set REHEARSE=1" >&2
    exit 2
fi

rows=()
step() { # name, seconds allowed, command
    local name=$1 limit=$2 begin=$SECONDS state=done
    shift 2
    echo "== $name"
    timeout "$((patience * limit))" "$@" >"$out/$name.log" 2>&1 || state="failed: $(tail -n 1 "$out/$name.log")"
    tail -n 3 "$out/$name.log"
    rows+=("| $name | $((SECONDS - begin)) | $state |")
}

# Rendering a pool of the configuration's size would take longer than ten minutes.
no_data=(--data.dataset None --data.dataset-folder None --data.pool 64 --data.cache "$out/cache")
no_data+=(--weights None --iknet-weights None)
step cpu 600 env JAX_PLATFORMS=cpu python benchmarks/devices.py "$out/cpu.npz"
step devices 600 python benchmarks/devices.py "$out/devices.npz" --reference "$out/cpu.npz"
step demo 300 handtailor demo --out "$out/demo"
step smoke 300 python train.py --config configs/smoke.py --out "$out/smoke"
step hourglass_gpu 400 python benchmarks/train.py --config configs/hourglass_gpu.py --iknet-weights None \
    --json "$out/hourglass_gpu.json" "${gpu[@]}"
step official_size 400 python benchmarks/train.py --config configs/paper_end_to_end.py "${no_data[@]}" --batch 64 \
    --rounds 3 --json "$out/official_size.json" "${official[@]}"
step tailor 300 python benchmarks/tailor.py --json "$out/tailor.json" "${tailor[@]}"
step predict 300 python benchmarks/predict.py --json "$out/predict.json" "${predict[@]}"
step export 120 handtailor export tailor "$out/tailor.jaxexport"
step exported_file 120 python - "$out/tailor.jaxexport" <<'PYTHON'
"""Run the exported tailor on the accelerator and on the CPU: both must agree."""
import json, sys
import jax, jax.export
import numpy as np

path = sys.argv[1]
program = jax.jit(jax.export.deserialize(bytearray(open(path, "rb").read())).call)
random = np.random.default_rng(0)
values = {"keypoints_2d": 128 + 40 * random.normal(size=(64, 21, 2)), "confidence": np.ones((64, 21))}
values |= {"pose": 0.2 * random.normal(size=(64, 16, 3)), "root_depth": np.full(64, 0.6)}
values |= {"betas": np.zeros((64, 10)), "bone": np.full(64, 0.09)}
values |= {"intrinsics": np.tile(np.array([[300.0, 0, 128], [0, 300, 128], [0, 0, 1]]), (64, 1, 1))}
names = [each["name"] for each in json.load(open(path + ".json"))["inputs"]]
inputs = [values[name].astype(np.float32) for name in names]
found = jax.device_get(program(*inputs))
with jax.default_device(jax.devices("cpu")[0]):
    expected = jax.device_get(program(*inputs))
difference = np.abs(found["vertices"] - expected["vertices"]).max()
print(f"{jax.devices()[0].device_kind}: largest difference to the CPU {1e3 * difference:.4f} mm")
sys.exit(not difference < 1e-3)
PYTHON

{
    python -c "import jax; print('device', jax.devices()[0].device_kind, '· jax', jax.__version__)"
    echo
    echo "| step | seconds | state |"
    echo "|---|---|---|"
    printf '%s\n' "${rows[@]}"
    for name in devices smoke hourglass_gpu official_size tailor predict exported_file; do
        echo
        echo "### $name"
        tail -n 40 "$out/$name.log"
    done
} >"$out/report.md"
sed -n '1,/^###/p' "$out/report.md" | sed '$d'
echo "written to $out/report.md"
