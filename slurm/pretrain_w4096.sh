#!/usr/bin/env bash
# Pre-train at width 4096, at most 8 nodes of 8 GPUs: sbatch slurm/pretrain_w4096.sh [section.key=value ...]
#SBATCH --job-name=w4096
#SBATCH --nodes=2-8
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --gres=gpu:8
#SBATCH --time=2-00:00:00
#SBATCH --signal=B:USR1@600
#SBATCH --requeue
#SBATCH --no-kill
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail
UPSCALE_CLONE=${UPSCALE_CLONE:-${SLURM_SUBMIT_DIR:?submit this script with sbatch}}
until [ -f "$UPSCALE_CLONE/slurm/common.sh" ] || [ "$UPSCALE_CLONE" = / ]; do UPSCALE_CLONE=$(dirname "$UPSCALE_CLONE"); done
# shellcheck source=common.sh
source "$UPSCALE_CLONE/slurm/common.sh"

LAUNCH_MIN_NODES=${LAUNCH_MIN_NODES:-2} # below, it would not fit into memory: requeue and wait
pretrain --config configs/w4096.yaml "$@"
