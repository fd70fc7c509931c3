"""How several ranks share the work of one model, by the recipe's `train.sharding`.

FSDP2 goes through Composer: every decoder layer and both embeddings are units, whose weights are
gathered when the unit is called and freed after it. A thinking layer is called once per forward
pass, whatever its number of steps, so that it is gathered once.
"""

import copy
import warnings
from typing import Any

import torch
from composer.utils import dist
from composer.utils.parallelism import FSDP2Config
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method

from itt_composer.models import IttForCausalLM
from itt_composer.models.composer_model import unwrap
from itt_composer.models.llama import DenseLayer
from itt_composer.models.versions import without_initial_values
from itt_composer.recipe.schema import TrainRecipe
from itt_composer.training.torch_versions import set_timeout, sum_for_mean


def parallelism(settings: TrainRecipe) -> dict[str, Any] | None:
    """Return Composer's `parallelism_config`; None where every rank holds the whole model.

    Weights are gathered and gradients summed in float32 ("FULL"), so that in mixed precision, too,
    sharding changes no number: autocast has matrix products in bfloat16, as without sharding. Were
    weights gathered in bfloat16, FSDP2 would round the states between layers as well, and what
    later layers add is small beside states that thinking has made large.

    Args:
        settings: the recipe's.
    """
    ranks, ranks_per_node = dist.get_world_size(), dist.get_local_world_size()
    if ranks == 1 or settings.sharding in ("ddp", "none"):
        return None

    class HybridConfig(FSDP2Config):
        """Shards within a node, with a replica per node."""

        data_parallel_shard_degree = ranks_per_node
        data_parallel_replicate_degree = ranks // ranks_per_node

    is_hybrid = settings.sharding == "hybrid" and ranks > ranks_per_node
    warnings.filterwarnings("ignore", "TypedStorage is deprecated")  # torch's own, at each save
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "FSDP2 Config/APIs are experimental")
        config = HybridConfig if is_hybrid else FSDP2Config
        return {"fsdp": config(mixed_precision="FULL")}


def name_units(model: "IttForCausalLM") -> None:
    """Tell Composer which modules are gathered on their own; before the trainer is built.

    Embeddings that share their weight belong to the rest of the model, which is one unit.
    """

    embeddings = [model.model.embed_tokens, model.lm_head]
    if model.config.tie_word_embeddings:
        embeddings = []

    def is_unit(module: "nn.Module") -> bool | dict[str, Any]:
        if module is model.lm_head and embeddings:
            return {"reshard_after_forward": False}  # the last of a pass is the next one's first
        return isinstance(module, DenseLayer) or any(module is each for each in embeddings)

    model.fsdp_wrap_fn = is_unit  # type: ignore[assignment]


def extend_timeouts(mesh: "DeviceMesh | None", seconds: float) -> None:
    """Have the groups of a mesh, one per dimension, wait as long as all ranks do.

    torch makes these with NCCL's ten minutes.
    """

    for group in mesh.get_all_groups() if mesh is not None else []:
        set_timeout(group, seconds)


def finish_sharding(model: "IttForCausalLM", device: str) -> None:
    """Have gradients averaged, and each embedding gathered where it is used and nowhere else.

    Args:
        model: after the sharding, or not sharded at all.
        device: "cpu" or "gpu".
    """
    if device == "cpu":
        sum_for_mean(model)
    embedding = model.model.embed_tokens
    if isinstance(embedding, FSDPModule):
        embedding.set_unshard_in_backward(False)  # its gradient takes no weights
    register_fsdp_forward_method(model.lm_head, "next_token_loss")


def whole_model(module: "nn.Module") -> "IttForCausalLM | None":
    """Return the model with all of its weights on rank 0; None on the others, which must ask, too.

    Args:
        module: what Composer's state holds.
    """
    model = unwrap(module)
    if not isinstance(model, FSDPModule):
        return model if dist.get_global_rank() == 0 else None
    # One tensor at a time, moved to rank 0's memory and dropped by the others.
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights = get_model_state_dict(model, options=options)
    if dist.get_global_rank() != 0:
        return None
    with torch.device("meta"):
        whole = IttForCausalLM(copy.deepcopy(model.config))
    whole.load_state_dict(weights, assign=True)
    whole.tie_weights()
    return whole


def whole_model_everywhere(module: "nn.Module") -> "IttForCausalLM":
    """Return the model with all of its weights on every rank: itself, or a copy if it is sharded.

    Args:
        module: what Composer's state holds.
    """
    model = unwrap(module)
    if not isinstance(model, FSDPModule):
        return model
    weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    device = next(iter(weights.values())).device
    with torch.device(device), without_initial_values():
        whole = IttForCausalLM(copy.deepcopy(model.config))
    whole.load_state_dict(weights, assign=True)
    whole.tie_weights()
    return whole
