"""The model as Composer trains it."""

from typing import Any
from unittest import mock

from composer.metrics.nlp import LanguageCrossEntropy, LanguagePerplexity
from composer.models import HuggingFaceModel, huggingface
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from itt_composer.models.flops import executed_flops
from itt_composer.models.modeling import IttForCausalLM


class ComposerItt(HuggingFaceModel):
    """`IttForCausalLM` with next-token loss, evaluation perplexity and FLOPs for the monitors.

    Args:
        model: the model to train.
        loss_chunk_tokens: tokens whose logits exist at the same time in the training loss.
    """

    def __init__(self, model: IttForCausalLM, loss_chunk_tokens: int = 1024):
        # To answer this, Composer would import every model of transformers, and torch's compiler
        # with its pool of processes, in each rank.
        with mock.patch.object(huggingface, "_is_registered_causal_lm", return_value=True):
            super().__init__(
                model,
                use_logits=True,
                eval_metrics=[LanguageCrossEntropy(), LanguagePerplexity()],
                shift_labels=True,
            )
        self.loss_chunk_tokens = loss_chunk_tokens

    def forward(self, batch: dict[str, Any]) -> Any:
        """Run the model without a key/value cache, and in training without logits.

        Rows of training are whole, and their masks all ones: to find that out, transformers would
        wait for the GPU in every microbatch.
        """
        inputs = {**batch, "use_cache": False}
        if self.training:
            inputs |= {"attention_mask": None, "loss_chunk_tokens": self.loss_chunk_tokens}
        return super().forward(inputs)

    def flops_per_batch(self, batch: dict[str, Any]) -> int:
        """Count the executed FLOPs of forward and backward (twice the forward's)."""
        batch_size, seq_len = batch["input_ids"].shape
        return 3 * executed_flops(unwrap(self).config, batch_size, seq_len)


def unwrap(module: nn.Module) -> IttForCausalLM:
    """Return the transformers model inside what Composer's state holds.

    Args:
        module: a `ComposerItt`, possibly wrapped for data parallelism.
    """
    if isinstance(module, DistributedDataParallel):
        module = module.module
    model = module.model
    assert isinstance(model, IttForCausalLM), f"expected an IttForCausalLM, not {type(model)}"
    return model
