# shellcheck shell=bash
# Sourced by the launch scripts: makes .venv with what the project needs, and puts it on PATH. Safe to run again.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# With what the tests need, or with another optional group of pyproject.toml.
make_environment() {
    local group="${1:-test}" stamp wanted
    stamp=".venv/installed-$group"
    wanted=$(cat pyproject.toml launch/constraints.txt | cksum)
    if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
        echo "== setting up .venv (a few minutes and about 6 GB the first time)"
        if [ ! -x .venv/bin/python ]; then
            python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
                echo "error: $(python3 --version 2>&1) found, Python 3.10 or newer is needed" >&2
                exit 2
            }
            python3 -m venv .venv || {
                echo "error: python3 cannot make a virtual environment; on Debian and Ubuntu: apt-get install python3-venv" >&2
                exit 2
            }
        fi
        .venv/bin/python -m pip install -qq --upgrade pip
        .venv/bin/python -m pip install -qq --editable ".[$group]" --constraint launch/constraints.txt
        echo "$wanted" >"$stamp"
    else
        echo "== .venv is up to date"
    fi
    export PATH="$PWD/.venv/bin:$PATH"
}
