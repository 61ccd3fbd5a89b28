#!/usr/bin/env bash
# Other people's clients and documents that tests want and the development environment cannot hold, below .clients/.
#   kserve    its v2 client, in an environment of its own: it pins protobuf and pandas below what we have
#   mlserver  only for the Open Inference Protocol's OpenAPI document that it ships: unpacked, not installed
set -euo pipefail
cd "$(dirname "$0")/../../.."
python=${PYTHON:-python3}
kserve=kserve==0.21.0 mlserver=mlserver==1.7.1
pip=(--quiet --disable-pip-version-check)

done_already() { [ "$(cat ".clients/$1/installed" 2>/dev/null)" = "$2" ]; }

fetch_kserve() {
    "$python" -m venv .clients/kserve && .clients/kserve/bin/pip install "${pip[@]}" "$kserve"
}

fetch_mlserver() {
    local pip_of=.venv/bin/python
    [ -x $pip_of ] || pip_of=$python
    $pip_of -m pip install "${pip[@]}" --no-deps --ignore-requires-python --target .clients/mlserver "$mlserver"
}

for name in kserve mlserver; do
    if done_already $name "${!name}"; then
        echo "client $name: there"
        continue
    fi
    echo "client $name: fetching"
    rm -rf ".clients/$name"
    mkdir -p .clients
    if "fetch_$name"; then
        echo "${!name}" >".clients/$name/installed"
    else
        rm -rf ".clients/$name"
        echo "SKIPPED client $name: its packages could not be had" >&2
    fi
done
