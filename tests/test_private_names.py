"""What the project uses of libraries that they do not publish: listed, there, and as expected.

docs/versions.md says what each is for. A failure here names what a release has changed, before a
run meets it.
"""

import ast
import importlib
import inspect
import logging
import re
from pathlib import Path
from pkgutil import resolve_name

import pytest
import torch
from torch.distributed.fsdp import FSDPModule

REPOSITORY = Path(__file__).parents[1]
PAGE = (REPOSITORY / "docs/versions.md").read_text(encoding="utf-8")
HAS_SUMS = hasattr(FSDPModule, "set_force_sum_reduction_for_comms")

# Functions and methods, with the parameters by which we call, replace or override them.
FUNCTIONS = {
    "composer.models.huggingface:_is_registered_causal_lm": ["model"],
    "streaming.base.shared.prefix:_each_prefix_int": [],
    "streaming.base.shared.prefix:_pack_locals": ["dirnames", "prefix_int"],
    "streaming:StreamingDataset._get_work": ["self", "epoch", "sample_in_epoch"],
    "composer.callbacks:CheckpointSaver._save_checkpoint": ["self", "state", "logger"],
    "lm_eval.tasks._yaml_loader:load_yaml": ["path"],
    "lm_eval.models.huggingface:HFLM._model_generate": ["self", "context", "max_length", "stop"],
    "lm_eval.models.huggingface:HFLM._loglikelihood_tokens": ["self", "requests", "disable_tqdm"],
    "torch.nn:Module._apply": ["self", "fn", "recurse"],
    "transformers:PreTrainedModel._init_weights": ["self", "module"],
    "transformers:PreTrainedModel._from_config": ["config"],
}
if not HAS_SUMS:  # torch 2.7
    fsdp = "torch.distributed.fsdp._fully_shard"
    FUNCTIONS |= {
        f"{fsdp}._fsdp_collectives:_get_gradient_divide_factors": [
            "reduce_scatter_group",
            "all_reduce_group",
            "reduce_dtype",
            "device_type",
        ],
        f"{fsdp}._fsdp_param_group:foreach_reduce": ["fsdp_params", "unsharded_grads"],
        "torch.distributed.distributed_c10d:_set_pg_timeout": ["timeout", "group"],
    }
# Values in modules.
VALUES = (
    "torch.serialization:_get_layout",
    "torch.distributed.checkpoint.filesystem:_StorageInfo",
    "torch.distributed.checkpoint.metadata:_MEM_FORMAT_ENCODING",
    "torch:_dynamo",
    "transformers.models.auto.auto_factory:_BaseAutoModelClass._model_mapping",
    "torch._subclasses.fake_tensor:FakeTensorMode",
    "torch.distributed._tools.mem_tracker:MemTracker",
)
# Attributes that objects get; "words in the source" is the most that can be said before they do.
SET_IN = {
    "streaming:StreamingDataset": ["_shm_prefix_int", "_parallel_worker_world", "_event"],
    "composer:Trainer": ["_rng_state"],
    "composer.loggers:WandBLogger": ["_enabled"],
    "torch.utils.data:DataLoader": ["_iterator"],
    "torch.utils.data.dataloader:_MultiProcessingDataLoaderIter": ["_workers"],
    "concurrent.futures:ProcessPoolExecutor": ["_processes", "_executor_manager_thread"],
    "transformers:PretrainedConfig": ["_attn_implementation", "_name_or_path", "_auto_class"],
    "transformers.modeling_utils": ["_is_hf_initialized"],
}
OF_TORCHS_OBJECTS = {"_version": torch.zeros(1), "_buffers": torch.nn.Module()}
BARE = ("builtins", "typing", "abc")  # what other classes derive from
# Of Python itself and of named tuples, where the underscore keeps names apart.
OF_PYTHON = {"_exit", "_replace", "_asdict", "_fields"}
LOGGERS = {
    "huggingface_hub.utils._http": "huggingface_hub.utils",
    "lm_eval.tasks._index": "lm_eval.tasks",
}


def known() -> set[str]:
    names = {re.split(r"[:.]", name)[-1] for name in (*FUNCTIONS, *VALUES)}
    names |= {name for listed in SET_IN.values() for name in listed}
    names |= OF_TORCHS_OBJECTS.keys() | OF_PYTHON
    return (
        names
        | {"_get_gradient_divide_factors", "_set_pg_timeout", "_fsdp_collectives"}
        | {"_fsdp_param_group"}
    )


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and len(name) > 1


def used_in(file: Path) -> set[str]:
    """Private names that a file takes from what it has not defined itself."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    own, used = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            own.add(node.name)
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            own.add(node.id if isinstance(node, ast.Name) else node.attr)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            own.add(node.target.id)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and private(node.attr):
            is_own = node.attr in own and ast.unparse(node.value) in ("self", "cls", "other")
            used |= set() if is_own else {node.attr}
        elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith(
            ("itt_composer", "data_prep", "eval", "benchmarks", "__future__")
        ):
            used |= {alias.name for alias in node.names if private(alias.name)}
    return used - {name for name in own if name in used and name in OWN}


# Of our own classes, used through another name than `self`.
OWN = {"_check"}


def test_every_private_name_in_the_code_is_listed_here():
    folders = ("itt_composer", "data_prep", "eval", "benchmarks")
    files = [file for folder in folders for file in sorted((REPOSITORY / folder).rglob("*.py"))]
    unlisted = {
        f"{file.relative_to(REPOSITORY)}: {name}"
        for file in files
        for name in used_in(file) - known()
    }
    assert not unlisted, "list them in this file and in docs/versions.md, or use a public name"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_is_there_and_takes_what_we_give(name):
    message = f"{name} has changed; docs/versions.md says what needs it"
    try:
        function = resolve_name(name)
    except (ImportError, AttributeError):
        pytest.fail(message)
    taken = list(inspect.signature(function).parameters)
    assert taken[: len(FUNCTIONS[name])] == FUNCTIONS[name], message


@pytest.mark.parametrize("name", VALUES)
def test_a_value_is_there(name):
    try:
        resolve_name(name)
    except (ImportError, AttributeError):
        pytest.fail(f"{name} is gone; docs/versions.md says what needs it")


@pytest.mark.parametrize("place", SET_IN)
def test_an_object_has_the_attributes_that_we_use(place):
    found = resolve_name(place)
    parts = [
        each
        for each in getattr(found, "__mro__", [found])
        if getattr(each, "__module__", "") not in BARE
    ]
    files = {inspect.getsourcefile(each) for each in parts}
    source = "".join(Path(file).read_text(encoding="utf-8") for file in files if file)
    for name in SET_IN[place]:
        assert re.search(rf"\b{name}\b", source), (
            f"{place} has no {name} any more; docs/versions.md says what needs it"
        )


def test_torchs_objects_have_the_attributes_that_we_use():
    for name, owner in OF_TORCHS_OBJECTS.items():
        assert hasattr(owner, name), f"{type(owner)} has no {name} any more"


@pytest.mark.parametrize(("logger", "package"), LOGGERS.items())
def test_a_logger_that_we_silence_is_that_of_a_module(logger, package):
    module = importlib.import_module(logger)
    assert module.__name__ in logging.root.manager.loggerDict or hasattr(module, "logger"), (
        f"{logger} logs under another name, or {package} no longer has it"
    )


def test_the_page_on_versions_lists_every_private_name():
    missing = {name for name in known() - OF_PYTHON if f"`{name}`" not in PAGE}
    assert not missing, f"docs/versions.md does not say what needs {sorted(missing)}"
