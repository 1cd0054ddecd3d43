#!/usr/bin/env bash
# Train on this machine under supervision: launch/local.sh [--ranks N] [--max-restarts N] --config FILE [key.sub=value ...]
# A rank that dies or hangs costs a restart of all of them from the newest valid checkpoint.
source "$(dirname "$0")/environment.sh"
make_environment >&2
exec python -m upscale.launch.supervisor "$@"
