#!/usr/bin/env bash
# Gives each rival a virtual environment of its own below .rivals/; one that cannot be had is skipped by name.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
missing=()
for pins in bench/rivals/*.txt; do
    name=$(basename "$pins" .txt)
    venv=.rivals/$name
    if [ -e "$venv/installed" ] && cmp -s "$pins" "$venv/installed"; then
        echo "rival $name: installed"
        continue
    fi
    echo "rival $name: installing"
    rm -rf "$venv"
    mkdir -p .rivals
    if "$python" -m venv "$venv" && "$venv/bin/pip" install --quiet --disable-pip-version-check -r "$pins"; then
        cp "$pins" "$venv/installed"
    else
        rm -rf "$venv"
        missing+=("$name")
    fi
done
for name in ${missing[@]+"${missing[@]}"}; do
    echo "SKIPPED rival $name: its packages could not be installed" >&2
done
