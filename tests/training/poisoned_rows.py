"""`itt_composer.train`, but that the loss of some rows is not a number.

POISONED='[[domain, row], …]' python poisoned_rows.py RECIPE [KEY=VALUE …]
"""

import json
import os
import runpy

from itt_composer.models.composer_model import ComposerItt

POISONED = {tuple(row) for row in json.loads(os.environ["POISONED"])}
own_loss = ComposerItt.loss


def loss(self, outputs, batch):
    rows = set(zip(batch["domain"].tolist(), batch["row"].tolist(), strict=True))
    return own_loss(self, outputs, batch) * (float("nan") if rows & POISONED else 1.0)


ComposerItt.loss = loss
runpy.run_module("itt_composer.train", run_name="__main__", alter_sys=True)
