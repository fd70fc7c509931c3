#!/usr/bin/env bash
# A folder whose config says `tie_word_embeddings: true` and whose file holds an output embedding of its own, other than
# the input's: transformers 4.57 drops the stored one and ties, transformers 5.24 keeps it and does not tie. So one folder
# is two models, with other logits. Neither raises, and the loading report of both has no missing and no unexpected key.
#
# Such folders come from tuning a tied model with its head untied, or from a wrong flag.
# Seen with torch 2.7.0 and transformers 4.57.6 and 5.24.0. Our commands refuse the folder under both
# (models/loading.py: "it has besides lm_head.weight").
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
use() { # use VERSION OF TRANSFORMERS
    "$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.7.0 'numpy<3' "transformers==$1"
}
cat >"$folder/look.py" <<'PYTHON'
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

place = Path(sys.argv[1]) / "model"
sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
if not place.exists():
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=32, tie_word_embeddings=True, **sizes)).save_pretrained(place)
    weights = load_file(place / "model.safetensors")
    weights["lm_head.weight"] = 2 * weights["model.embed_tokens.weight"]
    save_file(weights, place / "model.safetensors", {"format": "pt"})
model, report = LlamaForCausalLM.from_pretrained(place, output_loading_info=True)
assert not report["missing_keys"] and not report["unexpected_keys"]
is_tied = model.lm_head.weight is model.model.embed_tokens.weight
print("tied" if is_tied else "not tied", round(model(torch.arange(8)[None]).logits.abs().sum().item(), 3))
PYTHON
use 4.57.6
old=$("$folder/venv/bin/python" "$folder/look.py" "$folder" 2>/dev/null)
use 5.24.0
new=$("$folder/venv/bin/python" "$folder/look.py" "$folder" 2>/dev/null)
echo "4.57.6: $old"
echo "5.24.0: $new"
[[ $old == "tied "* && $new == "not tied "* && ${old#tied } != "${new#not tied }" ]] || {
    echo "this has changed" >&2
    exit 1
}
