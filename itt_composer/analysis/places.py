"""Finds where an analysis reads and writes: a model's run folder, its shards, its result."""

from pathlib import Path

from itt_composer.basics.errors import UserError
from itt_composer.runs.folder import RunFolder


def result_file(model: str, name: str, output: Path | None) -> Path:
    """Return where the result of an analysis goes.

    Args:
        model: as the user named it.
        name: of the file in `analysis/` of a run folder.
        output: a JSON file; None takes the run folder's.

    Raises:
        UserError: `output` is not a JSON file, or is None for a model that is not a run folder.
    """
    if output is None:
        if model.startswith(("/", ".")) and not Path(model).exists():
            raise UserError(
                f"{model} does not exist; name a run folder, or another model and --output FILE"
            )
        if not RunFolder(model).is_run():
            why = "it has no recipe.yaml" if Path(model).exists() else "it does not exist"
            raise UserError(
                f"{model} is not a run folder ({why}); name one, or say with --output FILE where "
                "the result of another model goes"
            )
        return Path(model) / "analysis" / name
    if output.suffix != ".json" or output.is_dir():
        raise UserError(f"--output {output} is not a JSON file; name one, like {name}")
    return output


def shards_of(model: str, data: Path | None) -> Path:
    """Return the shards to take rows from: `data`, else those that a run's recipe names.

    Raises:
        UserError: neither exists.
    """
    if data is not None:
        return data
    run = RunFolder(model)
    if not run.is_run():
        raise UserError(f"{model} is not a run folder (it has no recipe.yaml): give --data SHARDS")
    shards = run.shards()
    if not shards.is_dir():
        raise UserError(
            f"{run.recipe_file} names the shards in {shards}, which does not exist: start from "
            "the folder that the run was trained in, or give --data SHARDS"
        )
    return shards
