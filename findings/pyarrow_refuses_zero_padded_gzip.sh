#!/usr/bin/env bash
# pyarrow fails at the end of a gzip file that is padded with zeros.
#
# Tapes, some object stores and block devices pad files with zeros. `gzip -t` accepts that (it says so with -v), and
# Python's gzip reads it in silence. pyarrow's decompressing stream raises "zlib inflate failed: unknown compression
# method" before it has given the last of the content, as it does for real damage, so that a reader that trusts the error
# throws away a sound file. Several gzip members one after another are read by all three.
# Seen with pyarrow 21.0.0 and 25.0.0. We read gzip with Python's own module (data_prep/documents.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
for version in 21.0.0 25.0.0; do
    "$folder/venv/bin/pip" install --quiet --disable-pip-version-check "pyarrow==$version"
    "$folder/venv/bin/python" - "$folder" "$version" <<'PYTHON'
import gzip
import subprocess
import sys
from pathlib import Path

import pyarrow

folder, version = Path(sys.argv[1]), sys.argv[2]
lines = b'{"text": "one"}\n' * 1000
member = gzip.compress(lines)
found = {}
for name, content in {"padded": member + bytes(512), "two members": member * 2}.items():
    file = folder / f"{name}.gz"
    file.write_bytes(content)
    subprocess.run(["gzip", "-t", file], check=False)
    expected = gzip.decompress(content)
    read, error = b"", ""
    with pyarrow.input_stream(str(file), compression="gzip") as stream:
        try:
            while chunk := stream.read(4096):
                read += chunk
        except OSError as failure:
            error = str(failure)
    found[name] = (read == expected, error)
    print(f"pyarrow {version}, {name}: whole content {read == expected}, error {error!r}")
assert found["two members"] == (True, ""), found
assert found["padded"][1], found
PYTHON
done
echo "as described: the padded file ends in an error"
