"""A sharded checkpoint as Composer writes it with FSDP2: for two real ranks over gloo.

    fork_server.run("two_ranks.py", RECIPE, KEY=VALUE…, ranks=2)

Trains two batches and leaves, beside the checkpoint, `full.pt`: the weights that torch gathers.
"""

import sys
from pathlib import Path

import torch
from composer import Trainer
from composer.utils import dist
from composer.utils.parallelism import FSDP2Config
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from itt_composer.data.streams import build_dataloader
from itt_composer.models.building import build_model
from itt_composer.models.composer_model import ComposerItt
from itt_composer.recipe.schema import Recipe, load_recipe
from itt_composer.training.training_run import TrainingRun


def train(recipe: Recipe, model: ComposerItt) -> None:
    run = TrainingRun(recipe)
    dist.initialize_dist("cpu")
    trainer = Trainer(
        model=model,
        train_dataloader=build_dataloader(recipe.data, "train", recipe.train.global_batch_size),
        optimizers=recipe.optimizer.build(model.parameters())[0],
        run_name=recipe.run_name,
        device="cpu",
        max_duration="2ba",
        save_folder=str(run.checkpoints),
        progress_bar=False,
        parallelism_config={"fsdp": FSDP2Config()},
    )
    trainer.fit()
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights = get_model_state_dict(trainer.state.model, options=options)
    if dist.get_global_rank() == 0:
        torch.save(weights, run.path / "full.pt")
        run.write_recipe()
    trainer.close()


if __name__ == "__main__":
    recipe = load_recipe(Path(sys.argv[1]), sys.argv[2:])
    train(recipe, ComposerItt(build_model(recipe)))
