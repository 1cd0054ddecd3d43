#!/usr/bin/env bash
# Curves and tables of a run and its fine-tunings as one page, in RUN_DIRECTORY/report: sbatch slurm/report.sh RUN_DIRECTORY
#SBATCH --job-name=report
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=2
#SBATCH --mem=8G
#SBATCH --time=01:00:00
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail
UPSCALE_CLONE=${UPSCALE_CLONE:-${SLURM_SUBMIT_DIR:?submit this script with sbatch}}
until [ -f "$UPSCALE_CLONE/slurm/common.sh" ] || [ "$UPSCALE_CLONE" = / ]; do UPSCALE_CLONE=$(dirname "$UPSCALE_CLONE"); done
# shellcheck source=common.sh
source "$UPSCALE_CLONE/slurm/common.sh"

run=${1:?give the directory of a pre-training run}
runs=()
for directory in "$run" "$run"-wp-* "$run"-linux-*; do
    [ ! -s "$directory/metrics.jsonl" ] || runs+=("$directory")
done
"${CONTAINER[@]}" upscale report "${runs[@]}" --to "$run/report"
