#!/usr/bin/env bash
# What to run first on a machine with GPUs: checks and all owed figures as one JSON, in ten minutes after the set-up.
# launch/gpu_check.sh [--to gpu_check.json] [--minutes 10] [--only kernel tests step ranks]
source "$(dirname "$0")/environment.sh"
make_environment >&2
exec python -m upscale.bench.gpu_check "$@"
