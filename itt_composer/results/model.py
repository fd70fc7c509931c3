"""What results say of the model that was measured."""

from itt_composer.results.base import ResultPart

# A list where layers differ in it, as in some architectures of the hub.
Size = int | list[int] | None


class MeasuredModel(ResultPart):
    """A model's identity, geometry and way of thinking, as `EvaluatedModel.description` has them.

    Further thinking settings are kept undeclared; `given()` has them all. A model that is not a
    LLaMA has neither geometry nor thinking settings.

    Attributes:
        path: as the user named it.
        name: short, for tables.
        model_type: of its configuration: "itt", "llama", "gpt2", …
        parameters: how many there are.
        trained_batches: of a run, after how many its weights were taken.
        experiment_sha256: equal for runs of other seeds; None where no run folder has it.
        dtype: of the weights, like "float32".
        thinking: "dense", "loop" or "itt".
        thinking_steps: the first pass included.
        select_ratios: ρ_t as the model was saved with them, fractions in 0..1.
        router_selection: "top_k", "top_p" or "threshold"; None without a router.
        sha256: of weights, configuration and tokenizer; task suites have it.
        weights_sha256: of the weights alone.
    """

    path: str
    name: str
    model_type: str
    parameters: int
    trained_batches: int | None = None
    experiment_sha256: str | None = None
    dtype: str = "float32"
    hidden_size: Size = None
    intermediate_size: Size = None
    num_hidden_layers: Size = None
    num_attention_heads: Size = None
    num_key_value_heads: Size = None
    vocab_size: Size = None
    thinking: str | None = None
    thinking_steps: int | None = None
    thinking_layers: list[int] | None = None
    select_ratios: list[float] | None = None
    router_selection: str | None = None
    sha256: str | None = None
    weights_sha256: str | None = None
