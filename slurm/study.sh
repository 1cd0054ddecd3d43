#!/usr/bin/env bash
# A study as a chain of jobs: pre-training, then evaluation, fine-tuning on wp and linux against scratch, and the report.
#   slurm/study.sh --config configs/w1024.yaml [--milestones INSTANCES] [--template SCRIPT] [--dry-run] [section.key=value ...]
# --milestones keeps a checkpoint every so many instances for ever and fine-tunes each as soon as it is there.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
    sed -n '2,4s/^# //p' slurm/study.sh >&2
    [ -z "${1:-}" ] || echo "error: $1" >&2
    exit 2
}

config='' milestones='' template='' dry_run='' overrides=()
while [ $# -gt 0 ]; do
    case $1 in
    --config | --milestones | --template)
        [ $# -gt 1 ] || usage "$1 needs a value"
        declare "${1#--}=$2"
        shift
        ;;
    --dry-run) dry_run=1 ;;
    --help | -h) usage ;;
    -*) usage "unknown option $1" ;;
    *=*) overrides+=("$1") ;;
    *) usage "'$1' is neither an option nor section.key=value" ;;
    esac
    shift
done
[ -n "$config" ] || usage "--config is missing"
template=${template:-slurm/pretrain_$(basename "$config" .yaml).sh}
[ -f "$template" ] || usage "no job script $template for $config; name one with --template, for its nodes and time"
[ -z "$milestones" ] || overrides+=("checkpoint.milestones=$milestones")

if [ -f slurm/site.env ]; then
    # shellcheck source=site.env.example
    source slurm/site.env
fi
if ! command -v upscale >/dev/null && [ -x .venv/bin/upscale ]; then
    PATH="$PWD/.venv/bin:$PATH"
fi
# Checks the config too, before anything is submitted.
run=$(python -m upscale.launch.slurm.questions directory --config "$config" "${overrides[@]}")

rows=() jobs=()
row() { rows+=("$(printf '%-18s %-16s %s' "$@")"); }

quoted() { # Words as a shell reads them
    local word plain='^[A-Za-z0-9_./:=,+$-]+$'
    for word; do
        [[ $word =~ $plain ]] || word=${word@Q}
        printf ' %s' "$word"
    done
}

submit() { # KIND WHEN sbatch's arguments...: submits, or prints the line; the job's id is left in $job
    local kind=$1 when=$2
    shift 2
    if [ -n "$dry_run" ]; then
        echo "${environment:+$environment }sbatch --parsable$(quoted "$@")"
        job=\$${kind//-/_}
    else
        job=$(env ${environment:+"$environment"} sbatch --parsable "$@")
        job=${job%%;*}
        printf '{"time": "%(%FT%T%z)T", "kind": "%s", "job": "%s", "command": "sbatch %s"}\n' \
            -1 "$kind" "$job" "${*//[\"\\]/}" >>"$run/slurm/jobs.jsonl"
    fi
    jobs+=("$job")
    row "$job" "$kind" "$when"
}

if [ -z "$dry_run" ]; then
    mkdir -p "$run/slurm"
    python -m upscale.launch.slurm.questions begin --config "$config" "${overrides[@]}" # the baselines need the model's shape at once
fi
environment=${milestones:+LAUNCH_FOLLOWUP=slurm/finetune.sh}
submit pretrain "at once" "$template" --config "$config" "${overrides[@]}"
pretrain=$job environment=''
after=(--dependency="afterok:$pretrain" --kill-on-invalid-dep=yes)
submit evaluate "after $pretrain has finished" "${after[@]}" slurm/evaluate.sh "$run"
evaluate=$job
if [ -n "$milestones" ]; then
    # The baselines do not depend on the pre-training: beginning with it, they stand ready for the first milestone.
    submit finetune-scratch "when $pretrain has begun" --dependency="after:$pretrain" --array=1,3 slurm/finetune.sh "$run"
    waiting=afterok:$evaluate:$job
    submit finetune "after $pretrain has finished" "${after[@]}" --array=0,2 slurm/finetune.sh "$run"
    row '(not yet)' finetune "at each milestone of $pretrain, every $milestones instances"
else
    submit finetune "after $pretrain has finished" "${after[@]}" slurm/finetune.sh "$run"
    waiting=afterok:$evaluate
fi
submit report "after all that stand above" --dependency="$waiting:$job" --kill-on-invalid-dep=yes --gres=none slurm/report.sh "$run"

printf '\n%-18s %-16s %s\n' job what when
printf '%s\n' "${rows[@]}"
if [ -n "$dry_run" ]; then
    printf '\nnothing was submitted (--dry-run); run directory: %s\n' "$run"
else
    printf '\nrun directory: %s (the jobs: %s)\nwatch: upscale status --run %s\nstop all: scancel %s\n' \
        "$run" "$run/slurm/jobs.jsonl" "$run" "${jobs[*]}"
fi
