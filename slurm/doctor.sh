#!/usr/bin/env bash
# Check the nodes of an allocation before a long run: sbatch --nodes=N slurm/doctor.sh [--config FILE] [section.key=value ...]
#SBATCH --job-name=doctor
#SBATCH --nodes=1
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --gres=gpu:8
#SBATCH --time=00:20:00
#SBATCH --no-kill
#SBATCH --output=%x-%j.log
set -euo pipefail
UPSCALE_CLONE=${UPSCALE_CLONE:-${SLURM_SUBMIT_DIR:?submit this script with sbatch}}
until [ -f "$UPSCALE_CLONE/slurm/common.sh" ] || [ "$UPSCALE_CLONE" = / ]; do UPSCALE_CLONE=$(dirname "$UPSCALE_CLONE"); done
# shellcheck source=common.sh
source "$UPSCALE_CLONE/slurm/common.sh"

allocation
mapfile -t nodes < <(answering)
silent=$(comm -23 <(printf '%s\n' "${all_nodes[@]}" | sort) <(printf '%s\n' "${nodes[@]}" | sort) | paste -sd,)
[ ${#nodes[@]} -gt 0 ] || fail 1 "no node answers, or all fail NODE_CHECK=${NODE_CHECK:-true}"

attempt=0 code=0 ranks=$((${#nodes[@]} * ranks_per_node)) # free_port reads the first
WORLD_SIZE=$ranks MASTER_ADDR=${nodes[0]} MASTER_PORT=$(free_port) \
    srun --overlap --mem=0 --kill-on-bad-exit=0 --wait=60 --input=none \
    --nodes=${#nodes[@]} --nodelist="$(IFS=,; echo "${nodes[*]}")" --ntasks=$ranks --ntasks-per-node="$ranks_per_node" \
    --cpus-per-task=$((SLURM_CPUS_ON_NODE > ranks_per_node ? SLURM_CPUS_ON_NODE / ranks_per_node : 1)) \
    "${SRUN_OPTIONS[@]}" "${CONTAINER[@]}" upscale doctor --to "doctor-$SLURM_JOB_ID.json" "$@" || code=$?

[ -z "$silent" ] || fail 1 "$silent: no answer, or NODE_CHECK=${NODE_CHECK:-true} failed there; leave it out \
(sbatch --exclude=$silent) and tell the site"
exit $code
