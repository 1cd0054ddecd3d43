#!/usr/bin/env bash
# Set up and run the tests. `--all` adds the slow ones; anything else goes to pytest, for example: launch/test.sh -k lanes
source "$(dirname "$0")/environment.sh"
make_environment

marks=(-m "not slow")
if [ "${1:-}" = "--all" ]; then
    marks=()
    shift
fi
if ! command -v chromium >/dev/null && ! command -v google-chrome >/dev/null; then
    echo "== no chromium or google-chrome found: the test that opens the report in a browser will be skipped"
fi
# Several files at a time (pytest-xdist), since most tests have one process, and one more where Slurm's tests run, which
# mostly wait. For each worker 2 GB of memory; -n 0 runs one test after the other. nproc would answer OMP_NUM_THREADS.
cores=$(env --unset=OMP_NUM_THREADS nproc)
workers=$((cores > 4 ? 4 : cores))
if [ "$(id -u)" = 0 ] && PATH=$PATH:/usr/sbin command -v slurmctld >/dev/null; then
    workers=$((workers + 1))
fi
# Threads that wait for each other on shared cores cost more than they bring at the sizes of the tests.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
echo "== running the tests"
exec python -m pytest -n "$workers" "${marks[@]}" "$@"
