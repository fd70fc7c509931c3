"""Says in a sentence which part of the project is not installed, where a command needs it."""

REPOSITORY = ("data_prep", "eval")
# The packages that our code imports, by the extra of pyproject.toml that brings them.
EXTRAS = {
    "data": ("streaming", "sentencepiece", "gigatoken", "awkward", "pyarrow", "filelock"),
    "train": ("composer", "wandb"),
    "eval": ("lm_eval", "datasets", "accelerate"),
    "report": ("altair", "vl_convert", "jinja2", "markupsafe"),
    "serve": ("starlette", "uvicorn"),
    "spark": ("pyspark",),
}


def what_to_install(error: ModuleNotFoundError) -> str | None:
    """Return a sentence on a missing package; None where no extra brings it.

    Args:
        error: of the import.
    """
    package = (error.name or "").split(".")[0]
    if package in REPOSITORY:
        return (
            f"this command is a part of the repository ({package}/), not of the installed package: "
            "clone it and run `pip install -e '.[dev]'` or `make setup` there"
        )
    for extra, packages in EXTRAS.items():
        if package in packages:
            return (
                f"this command needs the package {package}, which is not installed: "
                f"run `pip install 'itt-composer[{extra}]'`"
            )
    return None
