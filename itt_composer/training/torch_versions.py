"""Bridges what differs between the releases of torch that we train with, in the words of today's.

Once 2.7 is dropped, its branches go, and the public calls move to `sharding.py`.
"""

import functools
from datetime import timedelta
from typing import Any

from composer.utils import dist
from composer.utils.parallelism import FSDP2Config
from torch import nn
from torch.distributed import ProcessGroup, distributed_c10d
from torch.distributed.checkpoint import DefaultLoadPlanner, LoadPlan
from torch.distributed.fsdp import FSDPModule


def sum_for_mean(model: nn.Module) -> None:
    """Have FSDP2 sum gradients over the ranks and divide, instead of asking for an average.

    gloo, which carries them between CPUs, knows no average: up to torch 2.8 it gives a sum when it
    scatters, and in all versions an error when it reduces to all (hybrid).

    Args:
        model: after the sharding.
    """
    if not hasattr(FSDPModule, "set_force_sum_reduction_for_comms"):  # torch 2.7
        _sum_for_mean_in_2_7(dist.get_world_size())
        return
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_force_sum_reduction_for_comms(True)


@functools.cache
def _sum_for_mean_in_2_7(ranks: int) -> None:
    """Replace two of FSDP2's own functions; gloo has no events either, on which 2.7 relies."""
    from torch.distributed.fsdp._fully_shard import _fsdp_collectives, _fsdp_param_group

    reduce_on_gpu = _fsdp_param_group.foreach_reduce

    def divide_factors(*groups: Any) -> tuple[float, float]:
        return 1.0, float(ranks)  # before and after a sum

    def reduce(*settings: Any) -> tuple[Any, ...]:
        *results, event, partial_output = reduce_on_gpu(*settings)
        return (*results, event or "done", partial_output)

    vars(_fsdp_collectives)["_get_gradient_divide_factors"] = divide_factors
    vars(_fsdp_param_group)["foreach_reduce"] = reduce


# What releases of torch and transformers add to, and weights do not depend on: fields of
# schedulers, and the configuration, which a run takes from its recipe.
MAY_LACK = ("state.schedulers.", "state.integrations.")


class OtherReleases(DefaultLoadPlanner):
    """Reads a sharded checkpoint that lacks entries of `MAY_LACK`, which keep their new values.

    Anything else that is missing is an error, as it is in torch's own planner.
    """

    def create_local_plan(self) -> LoadPlan:
        assert self.metadata is not None
        stored = self.metadata.state_dict_metadata
        for name in list(self.state_dict):
            if name.startswith(MAY_LACK) and name not in stored:
                del self.state_dict[name]
        return super().create_local_plan()


class ShardedConfig(FSDP2Config):
    """FSDP2 that goes on from checkpoints of every torch that we run on."""

    @property
    def load_planner(self) -> DefaultLoadPlanner:
        return OtherReleases()


def set_timeout(group: ProcessGroup, seconds: float) -> None:
    """Have a group of ranks wait so long for each other."""
    name = "set_timeout" if hasattr(distributed_c10d, "set_timeout") else "_set_pg_timeout"
    getattr(distributed_c10d, name)(timedelta(seconds=seconds), group)
