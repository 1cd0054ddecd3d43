#!/usr/bin/env bash
# Fine-tune a run on wp and linux, and the same model from scratch; the array's members are 0 wp pretrained, 1 wp scratch,
# 2 linux pretrained, 3 linux scratch: sbatch slurm/finetune.sh RUN_DIRECTORY [STEP|newest] [section.key=value ...]
#SBATCH --job-name=finetune
#SBATCH --nodes=1
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --gres=gpu:8
#SBATCH --time=1-00:00:00
#SBATCH --signal=B:USR1@600
#SBATCH --requeue
#SBATCH --no-kill
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.log
#SBATCH --array=0-3
set -euo pipefail
UPSCALE_CLONE=${UPSCALE_CLONE:-${SLURM_SUBMIT_DIR:?submit this script with sbatch}}
until [ -f "$UPSCALE_CLONE/slurm/common.sh" ] || [ "$UPSCALE_CLONE" = / ]; do UPSCALE_CLONE=$(dirname "$UPSCALE_CLONE"); done
# shellcheck source=common.sh
source "$UPSCALE_CLONE/slurm/common.sh"

members=(wp/pretrained wp/scratch linux/pretrained linux/scratch)
run=${1:?give the directory of a pre-training run} step=${2:-newest}
shift $(($# > 1 ? 2 : 1))
finetune "$run" "$step" "${members[$SLURM_ARRAY_TASK_ID]}" "$@"
