#!/usr/bin/env bash
# Set up and check style, types, shell scripts and spelling; runs nothing of the project. Every check runs, whichever fails.
source "$(dirname "$0")/environment.sh"
make_environment check

failed=()
check() {
    echo "== $*"
    "$@" || failed+=("$1 ${2:-}")
}
check ruff check .
check ruff format --check .
check mypy
check shellcheck --external-sources --source-path=SCRIPTDIR .ci/run launch/*.sh slurm/*.sh slurm/site.env.example
check codespell
if [ "${#failed[@]}" -gt 0 ]; then
    printf 'error: failed: %s\n' "${failed[@]}" >&2
    exit 1
fi
echo "== all checks passed"
