#!/usr/bin/env bash
# transformers 4.57 takes a LLaMA's config.json of transformers 5 and computes with another theta.
#
# Version 5 writes the rotary embedding as `rope_parameters`; `rope_theta` and `rope_scaling` are gone. 4.57 keeps the
# unknown key as an attribute, says nothing, and its own rope_theta is the default, 10,000. The weights fit, the
# model loads, and every logit beyond the first position is wrong. The other way round version 5 translates.
# Seen with transformers 5.24.0 writing and 4.57.6 reading; no torch is needed to see it. We translate
# the key or refuse the folder (itt_composer/llama_config.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
for version in 5.24.0 4.57.6; do
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/pip" install --quiet --disable-pip-version-check "transformers==$version"
done
"$folder/5.24.0/bin/python" - "$folder/model" <<'PYTHON'
import sys

from transformers import LlamaConfig

scaling = {"rope_type": "linear", "factor": 4.0, "rope_theta": 500000.0}
LlamaConfig(hidden_size=64, num_attention_heads=4, rope_parameters=scaling).save_pretrained(sys.argv[1])
PYTHON
"$folder/4.57.6/bin/python" -W error - "$folder/model" <<'PYTHON'
import json
import sys
from pathlib import Path

from transformers import AutoConfig

written = json.loads((Path(sys.argv[1]) / "config.json").read_bytes())
read = AutoConfig.from_pretrained(sys.argv[1])
print("written by 5.24.0:", written["rope_parameters"], "rope_theta" in written)
print("read by 4.57.6: rope_theta", read.rope_theta, "rope_scaling", read.rope_scaling)
assert written["rope_parameters"]["rope_theta"] == 500000.0
assert (read.rope_theta, read.rope_scaling) == (10000.0, None)
PYTHON
echo "as described: theta is 10,000 and the scaling is lost, without an error or a warning"
