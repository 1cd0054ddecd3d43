#!/usr/bin/env bash
# Measure the newest checkpoint of a run on every task and text: sbatch slurm/evaluate.sh RUN_DIRECTORY [--checkpoint STEP ...]
#SBATCH --job-name=evaluate
#SBATCH --nodes=1
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --gres=gpu:8
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --no-kill
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail
UPSCALE_CLONE=${UPSCALE_CLONE:-${SLURM_SUBMIT_DIR:?submit this script with sbatch}}
until [ -f "$UPSCALE_CLONE/slurm/common.sh" ] || [ "$UPSCALE_CLONE" = / ]; do UPSCALE_CLONE=$(dirname "$UPSCALE_CLONE"); done
# shellcheck source=common.sh
source "$UPSCALE_CLONE/slurm/common.sh"

run=${1:?give a run directory}
shift
allocation
launch "$run" upscale evaluate --run "$run" "$@"
