#!/usr/bin/env bash
# Make the environments of the rivals that benchmarks/screen.py compares with: .venv-nnsight and
# .venv-tl in the repository root. PYTHON names the interpreter (default python3, 3.11 or newer).
# Torch goes in first, pinned as in constraints.txt, so that no rival's own wish for torch brings
# another build. An environment that is there already is brought up to its constraints.
set -euo pipefail
cd "$(dirname "$0")/.."

make_environment() {
    local folder=$1 constraints=benchmarks/constraints-$2.txt package=$2
    "${PYTHON:-python3}" -m venv "$folder"
    # Git ignores the folder from inside, so it stays out whatever the root's list says.
    printf '*\n' > "$folder/.gitignore"
    "$folder/bin/pip" install --quiet --disable-pip-version-check -c constraints.txt torch
    "$folder/bin/pip" install --quiet --disable-pip-version-check -c constraints.txt \
        -c "$constraints" "$package" transformers safetensors
    "$folder/bin/python" -c \
        "from importlib.metadata import version as v; print('$folder:', '$package', v('$package'))"
}

make_environment .venv-nnsight nnsight
make_environment .venv-tl transformer-lens
