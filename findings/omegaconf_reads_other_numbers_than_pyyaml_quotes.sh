#!/usr/bin/env bash
# PyYAML writes the text 12e03 without quotes, and OmegaConf reads it as the number 12000.0.
#
# `yaml.safe_dump` quotes text that PyYAML's own YAML 1.1 would take for something else: 1:30, 1.5e+3, 0x10. There an
# exponent needs a point and a sign. OmegaConf loads with further numbers (12e03, 1e5, 1.5e3, 1e-5), so that
# a name, a digest or a tag of that form changes its type on the way through a file. `OmegaConf.save` quotes it.
# Seen with PyYAML 6.0.3 and OmegaConf 2.3.1. We dump with OmegaConf's numbers as resolvers (itt_composer/settings.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pyyaml==6.0.3 omegaconf==2.3.1
"$folder/venv/bin/python" - "$folder/run.yaml" <<'PYTHON'
import sys

import yaml
from omegaconf import OmegaConf

found = {}
for text in ("1:30", "1.5e+3", "0x10", "12e03", "1e5", "1.5e3", "1e-5"):
    with open(sys.argv[1], "w") as file:
        yaml.safe_dump({"name": text}, file)
    read = OmegaConf.load(sys.argv[1]).name
    OmegaConf.save(OmegaConf.create({"name": text}), sys.argv[1])
    found[text] = (read == text, OmegaConf.load(sys.argv[1]).name == text)
    print(f"{text!r}: written by PyYAML it is read as {read!r}")
changed = [text for text, (is_kept, _) in found.items() if not is_kept]
assert changed == ["12e03", "1e5", "1.5e3", "1e-5"], changed
assert all(is_kept for _, is_kept in found.values()), found
print("as described: four texts became numbers, none when OmegaConf itself had written them")
PYTHON
