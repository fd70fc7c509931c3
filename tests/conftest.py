"""Small real material: text of the standard library, a tokenizer, shards, a recipe, trainers."""

import json
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest
from fork_server import ForkServer
from small_recipe import RECIPE

from data_prep.convert import convert
from data_prep.documents import Fields
from data_prep.options import Options
from data_prep.tokenizer_training import train_tokenizer
from itt_composer.recipe.schema import Recipe, load_recipe

pytest_plugins = ["object_store"]

# Streaming keeps files of shared memory open until the process ends, a dozen for each dataset.
OPEN_FILES = 65_536
SOFT_LIMIT, HARD_LIMIT = resource.getrlimit(resource.RLIMIT_NOFILE)
if min(OPEN_FILES, HARD_LIMIT) > SOFT_LIMIT:
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(OPEN_FILES, HARD_LIMIT), HARD_LIMIT))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Spark's tests first: it waits with `select`, which takes file numbers below 1,024 only."""
    items.sort(key=lambda item: "test_spark" not in item.path.name)


@pytest.fixture(scope="session")
def small_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts of two domains in `text`, and a `tokenizer` of 512 ids that was trained on them."""
    folder = tmp_path_factory.mktemp("small")
    texts = {
        "code": (Path(os.__file__).parent / "argparse.py").read_text(encoding="utf-8")[:30_000],
        "prose": "".join(topics[name] for name in sorted(topics))[:60_000],
    }
    for domain, text in texts.items():
        file = folder / "text" / domain / "all.jsonl"
        file.parent.mkdir(parents=True)
        documents = (text[start : start + 500] for start in range(0, len(text), 500))
        file.write_text("".join(json.dumps({"text": document}) + "\n" for document in documents))
    train_tokenizer(folder / "text", folder / "tokenizer", 512, 0.2, Fields())
    return folder


def convert_small(text: Path, name: str, **options: Any) -> Path:
    out, tokenizer = text / name, str(text / "tokenizer")
    convert(Options(text / "text", str(out), tokenizer, 32, validation_share=0.2, **options))
    return out


@pytest.fixture(scope="session")
def shards(small_text: Path) -> Path:
    """Rows of 32 tokens over 512 ids: the domain `code` and, twice its size, `prose`."""
    return convert_small(small_text, "shards")


@pytest.fixture(scope="session")
def many_shards(small_text: Path) -> dict[str, Path]:
    """The same rows in several parts and shards per stream: as they are, and compressed."""
    sizes = {"part_size": 20_000, "shard_size": 4_096, "workers": 1}
    return {
        "raw": convert_small(small_text, "many", **sizes),
        "zstd": convert_small(small_text, "many_zstd", compression="zstd", **sizes),
    }


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    """A recipe for a two-layer ITT, ten batches on the CPU; its shards are in `shards`."""
    file = tmp_path / "small.yaml"
    file.write_text(RECIPE)
    return file


@pytest.fixture
def small_recipe(tmp_path: Path, shards: Path, recipe_file: Path) -> Callable[..., Recipe]:
    """A two-layer ITT on `shards`, ten batches on the CPU; overrides may be given."""

    def load(*overrides: str) -> Recipe:
        places = [f"data.local={shards}", f"run_folder={tmp_path / 'run'}"]
        return load_recipe(recipe_file, [*places, *overrides])

    return load


@pytest.fixture(scope="session")
def fork_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    """Starts real ranks without the seconds that imports take."""
    server = ForkServer(tmp_path_factory.mktemp("forks"))
    yield server
    server.close()


@pytest.fixture
def make_trainer() -> Iterator[Callable]:
    """Build a recipe's trainer, with further callbacks, and a log of what it measures."""
    from composer.loggers import InMemoryLogger

    from itt_composer.models.building import build_model
    from itt_composer.training.train import build_trainer
    from itt_composer.training.training_run import TrainingRun

    trainers = []

    def build(recipe: Recipe, *callbacks):
        trainer = build_trainer(recipe, TrainingRun(recipe), build_model(recipe), "cpu")
        trainers.append(trainer)
        trainer.state.callbacks.extend(callbacks)
        log = InMemoryLogger()
        log.init(trainer.state, trainer.logger)
        trainer.logger.destinations = (*trainer.logger.destinations, log)
        return trainer, log

    yield build
    for trainer in trainers:
        trainer.close()
