#!/usr/bin/env bash
# Pre-train at width 2048, at most 4 nodes of 8 GPUs: sbatch slurm/pretrain_w2048.sh [section.key=value ...]
#SBATCH --job-name=w2048
#SBATCH --nodes=1-4
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

pretrain --config configs/w2048.yaml "$@"
