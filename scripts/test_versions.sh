#!/usr/bin/env bash
# Runs the tests of the model under several releases of transformers and torch: make test-versions
#
# Each pair gets an environment in .versions/, with the project and its base requirements alone.
# Takes 10 minutes and, where uv's cache has neither torch, 6 GB to download.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$(pwd -P)

pairs=${PAIRS:-4.57.6:2.7.0 5.3.0:2.7.0 5.10.4:2.7.0 5.20.2:2.7.0 5.24.0:2.7.0 5.24.0:2.15.0}
tests=(tests/versions tests/models/test_{modeling,generation_cache,causality,against_reference}.py
    tests/models/test_{routing,thresholds,loss,loading,likelihoods,wrapping}.py)
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 PYTHONPATH=$root:$root/tests:$root/tests/versions
failed=0
for pair in $pairs; do
    transformers=${pair%:*} torch=${pair#*:} place=$root/.versions/$pair
    [ -d "$place" ] || "$root/.venv/bin/uv" venv --quiet --python "$root/.venv/bin/python" "$place"
    # From elsewhere: in this folder uv would replace the versions by those of pyproject.toml.
    (cd / && "$root/.venv/bin/uv" pip install --quiet --python "$place/bin/python" \
        "transformers==$transformers" "torch==$torch" "$root" accelerate peft pyarrow filelock \
        'pytest<10' pytest-xdist hypothesis)
    "$root/.venv/bin/uv" pip uninstall --quiet --python "$place/bin/python" itt-composer
    echo "transformers $transformers, torch $torch:"
    "$place/bin/python" -m pytest --noconftest -p no:cacheprovider -o addopts= -q --tb=short \
        -n auto --dist loadfile "${tests[@]}" | tail -n "${LINES_SHOWN:-1}" || failed=1
done
exit $failed
