"""Where an analysis reads and writes: the run folder of a model, its shards, its result."""

from pathlib import Path

from itt_composer.basics.errors import UserError
from itt_composer.runs.folder import RunFolder


def result_file(model: str, name: str, output: Path | None) -> Path:
    """Where the result of an analysis goes: `output`, else `analysis/<name>` of a run folder.

    Raises:
        UserError: `output` is no JSON file, or is not given for a model that is no run folder.
    """
    if output is None:
        if model.startswith(("/", ".")) and not Path(model).exists():
            raise UserError(f"{model} is not there; name a run folder, or a model with --output")
        if not RunFolder(model).is_run():
            why = "it has no recipe.yaml" if Path(model).exists() else "it is not there"
            raise UserError(
                f"{model} is no run folder ({why}); of another model, or one of the "
                "hub, say where the result goes with --output FILE"
            )
        return Path(model) / "analysis" / name
    if output.suffix != ".json" or output.is_dir():
        raise UserError(f"--output {output} is no JSON file; name one, like {name}")
    return output


def shards_of(model: str, data: Path | None) -> Path:
    """The shards to take rows from: `data`, else those that the recipe of a run folder names.

    Raises:
        UserError: neither is there.
    """
    if data is not None:
        return data
    run = RunFolder(model)
    if not run.is_run():
        raise UserError(f"{model} is no run folder (it has no recipe.yaml): give --data SHARDS")
    shards = run.shards()
    if not shards.is_dir():
        raise UserError(
            f"{run.recipe_file} names the shards in {shards}, which is not there: start from "
            "the folder that the run was trained in, or give --data SHARDS"
        )
    return shards
