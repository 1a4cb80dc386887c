#!/bin/sh
# Rehearse the paper: its three training stages, then all tables and figures (docs/rehearsal.md).
#
#     tools/rehearse.sh RHD OUT
#
# RHD is a folder in the layout of RHD_published_v2. The network is the paper's made small enough for two CPU cores, and
# the stages are short; L_kpt2D is summed over the 21 keypoints (2100), as in BiHand, not averaged (100). For the paper's
# own size and schedule set SMALL, KEYPOINTS, POSES and LAST to "".
# A stage that was interrupted resumes from its last checkpoint, a stage that is complete is not repeated. Run it from the
# repository's root; the paths must not contain spaces.
set -eu
[ $# -eq 2 ] && [ -f train.py ] || { echo "usage, from the repository's root: tools/rehearse.sh RHD OUT" >&2; exit 2; }
case "$1$2" in *" "*) echo "rehearse.sh: the paths contain spaces: rename the folders" >&2; exit 2 ;; esac
rhd=$1 out=$2 python=${PYTHON:-python}
network="--module.image-size 64 --module.stem patches --module.channels 48 --module.depth 2 --module.stacks-2d 1
    --module.stacks-3d 1 --module.shape-channels 96 --module.shape-levels 2 --module.shape-blocks 1
    --module.shape-hidden 256 256 --module.ik-hidden 256 512 512 256"
small=${SMALL-$network --data.size 96 --data.test 100 --checkpoint-every 300}
keypoints=${KEYPOINTS---batch 16 --steps 2000 --optimizer.learning-rate 1e-3 --evaluate-every 500 --loss.paper-heatmap 2100}
poses=${POSES---batch 256 --steps 1200 --optimizer.learning-rate 1e-3 --evaluate-every 1200}
last=${LAST---batch 16 --steps 100 --optimizer.learning-rate 3e-4 --evaluate-every 100 --loss.paper-heatmap 2100}
data="--data.dataset-folder $rhd"

train() {
    stage=$1 run=$2
    shift 2
    [ ! -f "$out/$run/complete" ] || return 0
    [ ! -d "$out/$run" ] || set -- --resume "$@"
    $python train.py --config "configs/paper_$stage.py" --out "$out/$run" "$@"
    touch "$out/$run/complete"
}

train keypoints keypoints $data $small $keypoints
train iknet iknet $small $poses
start="--weights $out/keypoints/weights.safetensors --iknet-weights $out/iknet/weights.safetensors"
train end_to_end beta $data $small $last $start
train end_to_end depth $data $small $last $start --loss.paper-depth 1
train end_to_end silhouette $data $small $last $start --loss.paper-silhouette 1
weights() { echo "$out/$1/weights.safetensors"; }
$python evaluate.py all --dataset rhd --root "$rhd" --weights "$(weights beta)" --out "$out/evaluation" \
    --shape-weights "$(weights beta)" "$(weights depth)" "$(weights silhouette)"
