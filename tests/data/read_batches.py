"""A rank that reads batches, for `test_resume.py`.

    fork_server.run("read_batches.py", RECIPE, OUT, TASKS, ranks=2)

`TASKS` is a JSON list of `{"name", "split", "overrides", "epochs", "state", "stop"}`; the rows of
each task's batches, without those whose labels are not counted, go to `OUT/<name>.<rank>.json`, the
state after `stop` batches to `OUT/<name>.state.json`.
"""

import json
import sys
from pathlib import Path
from typing import Any

GLOBAL_BATCH_SIZE = 16


def read(recipe: str, task: dict[str, Any]) -> tuple[list, dict[str, Any]]:
    """Read this rank's batches as lists of rows, and the state that Composer would save last."""
    from composer.utils import dist

    from itt_composer.data.streams import build_dataloader
    from itt_composer.recipe.schema import load_recipe

    data = load_recipe(recipe, task.get("overrides", [])).data
    split = task.get("split", "train")
    loader: Any = build_dataloader(data, split, GLOBAL_BATCH_SIZE).dataloader
    in_epoch = 0
    if task.get("state"):
        loader.dataset.load_state_dict(task["state"])
        in_epoch = task["state"]["sample_in_epoch"] // GLOBAL_BATCH_SIZE
    batches: list = []
    for _ in range(task.get("epochs", 1)):
        for batch in loader:
            if split == "train":
                assert len(batch["input_ids"]) == GLOBAL_BATCH_SIZE // dist.get_world_size()
            is_counted_B = (batch["labels"] == batch["input_ids"]).all(dim=1)
            batches.append(batch["input_ids"][is_counted_B].tolist())
            in_epoch += 1
            if len(batches) == task.get("stop"):
                return batches, loader.dataset.state_dict(in_epoch * GLOBAL_BATCH_SIZE, True)
        in_epoch = 0
    return batches, {}


def main(recipe: str, out: str, tasks: str) -> None:
    from composer.utils import dist

    dist.initialize_dist("cpu")
    for task in json.loads(tasks):
        batches, state = read(recipe, task)
        file = Path(out) / f"{task['name']}.{dist.get_global_rank()}.json"
        file.write_text(json.dumps(batches))
        if dist.get_global_rank() == 0:
            file.with_name(f"{task['name']}.state.json").write_text(json.dumps(state))


if __name__ == "__main__":
    main(*sys.argv[1:])
