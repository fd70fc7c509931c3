"""Sharded checkpoints of one release of torch and transformers are read by another."""

import copy

import pytest
import torch
from torch.distributed.checkpoint import FileSystemReader, load, save
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorProperties

from itt_composer.runs.checkpoints import reading
from itt_composer.training.torch_versions import OtherReleases

STATE = {
    "state": {
        "model": {"weight": torch.ones(3)},
        "schedulers": {"LambdaLR": {"last_epoch": 25}},
        "integrations": {"huggingface": {"config": {"hidden_size": 8}}},
    }
}


@pytest.fixture
def stored(tmp_path):
    save(STATE, checkpoint_id=tmp_path, no_dist=True)
    return tmp_path


def state_of_another_release(*extra):
    state = copy.deepcopy(STATE)
    state["state"]["model"]["weight"].zero_()
    state["state"]["schedulers"]["LambdaLR"]["last_epoch"] = 0
    for path in extra:
        node = state["state"]
        for step in path[:-1]:
            node = node[step]
        node[path[-1]] = torch.zeros(2)
    return state


def load_into(state, folder):
    load(state, storage_reader=FileSystemReader(folder), planner=OtherReleases(), no_dist=True)


def test_notes_that_a_checkpoint_lacks_keep_their_values(stored):
    state = state_of_another_release(
        ("schedulers", "LambdaLR", "is_new"), ("integrations", "huggingface", "config", "pad")
    )
    load_into(state, stored)
    assert torch.equal(state["state"]["model"]["weight"], torch.ones(3))
    assert state["state"]["schedulers"]["LambdaLR"]["last_epoch"] == 25
    assert torch.equal(state["state"]["schedulers"]["LambdaLR"]["is_new"], torch.zeros(2))


def test_a_weight_that_a_checkpoint_lacks_is_an_error(stored):
    with pytest.raises(CheckpointException, match=r"Missing key .*state\.model\.bias"):
        load_into(state_of_another_release(("model", "bias")), stored)


@pytest.mark.parametrize("newer", [(), (None,), ((3, 1),)])
def test_properties_of_a_tensor_are_read_with_and_without_strides(newer):
    assert reading.TensorProperties is TensorProperties
    state = TensorProperties(dtype=torch.bfloat16).__getstate__()[:5]
    properties = TensorProperties.__new__(TensorProperties)
    properties.__setstate__((*state, *newer))
    assert properties.dtype == torch.bfloat16
    assert properties.memory_format == torch.contiguous_format
