"""Two watched batches on real ranks over gloo.

    fork_server.run("watched_ranks.py", RECIPE, KEY=VALUE…, ranks=2)

Trains under DDP (one rank: alone) and then, on several ranks, sharded, each time with the same
weights. Prints the metrics as JSON, a line for each.
"""

import json
import sys
from pathlib import Path

import torch
from composer import Trainer
from composer.loggers import InMemoryLogger
from composer.utils import dist

from itt_composer.data.streams import build_dataloader
from itt_composer.models.building import model_of_recipe
from itt_composer.models.composer_model import ComposerItt
from itt_composer.recipe.schema import Recipe, load_recipe
from itt_composer.training.sharding import finish_sharding, name_units, parallelism


def watch(recipe: Recipe, is_sharded: bool) -> dict[str, list[float]]:
    torch.manual_seed(recipe.seed)
    own = model_of_recipe(recipe)
    name_units(own)
    model = ComposerItt(own)
    log = InMemoryLogger()
    trainer = Trainer(
        model=model,
        train_dataloader=build_dataloader(recipe.data, "train", recipe.train.global_batch_size),
        optimizers=recipe.optimizer.build(model.parameters())[0],
        algorithms=recipe.algorithms.build(),
        callbacks=recipe.callbacks.build(),
        loggers=log,
        seed=recipe.seed,
        device="cpu",
        max_duration="2ba",
        device_train_microbatch_size=recipe.train.microbatch_size,
        progress_bar=False,
        parallelism_config=parallelism(recipe.train) if is_sharded else None,
    )
    finish_sharding(own, "cpu")
    trainer.fit()
    trainer.close()
    names = ("thinking/", "gradient_norm/", "gradient_nuclear_norm/", "loss/")
    values = {name: log.data[name] for name in log.data if name.startswith(names)}
    return {name: [float(value) for _, value in pairs] for name, pairs in values.items()}


if __name__ == "__main__":
    recipe = load_recipe(Path(sys.argv[1]), sys.argv[2:])
    dist.initialize_dist("cpu")
    for is_sharded in range(dist.get_world_size()):
        metrics = watch(recipe, bool(is_sharded))
        if dist.get_global_rank() == 0:
            print(json.dumps(metrics))
