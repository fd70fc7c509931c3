"""Where a conversion goes: a folder of this machine, or an object store."""

import re
from pathlib import Path
from typing import TypeAlias

from data_prep.local_output import LocalOutput
from data_prep.remote_output import RemoteOutput
from itt_composer.basics.errors import UserError

Output: TypeAlias = LocalOutput | RemoteOutput
URL = re.compile(r"([a-z][a-z0-9-]*)://.+")
SCHEMES = ("s3", "gs", "oci", "azure", "azure-dl")


def open_output(out: str, work_dir: Path | None) -> Output:
    """Choose the output that a path or URL names.

    Raises:
        UserError: the URL's kind is not known, or `work_dir` is given for a path.
    """
    match = URL.fullmatch(out)
    if match is None:
        if work_dir is not None:
            raise UserError("--work-dir is for an --out in an object store: leave it out")
        return LocalOutput(Path(out))
    if match[1] not in SCHEMES:
        raise UserError(f"--out {out}: give a folder, or a URL of {', '.join(SCHEMES)}")
    return RemoteOutput(out.rstrip("/"), work_dir)
