"""The model beside transformers' LLaMA, and what a thinking layer does and does not compute."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from itt_composer.models import IttConfig, IttForCausalLM
from itt_composer.models.flops import dense_parameters, thinking_parameters
from itt_composer.models.layer import IttDecoderLayer, Router
from itt_composer.models.llama import DenseLayer
from itt_composer.models.modeling import _padding_in
from itt_composer.models.routing import select_top_k, select_where
from itt_composer.models.step_attention import keys_for, mask_among

GEOMETRY = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
KINDS = {
    "dense": {"thinking": "dense"},
    "loop": {"thinking": "loop", "thinking_steps": 3},
    "itt": {"thinking": "itt", "thinking_steps": 4, "select_ratios": [0.7, 0.5, 0.3]},
}
# Table 5 of the paper: hidden size, MLP, KV heads, parameters.
TABLE_5 = {
    "162M": (1024, 2560, 32, 162_022_400),
    "230M": (1536, 2560, 16, 249_325_056),
    "466M": (2048, 4096, 32, 466_651_136),
}


def build(seed: int = 0, **settings) -> IttForCausalLM:
    torch.manual_seed(seed)
    return IttForCausalLM(IttConfig(**{**GEOMETRY, **settings})).eval()


def logits_of(model) -> torch.Tensor:
    """Logits of fixed tokens; the mask of ones lets every model take the same attention kernel."""
    return model(input_ids=tokens(), attention_mask=torch.ones_like(tokens())).logits


def tokens(batch: int = 2, seq_len: int = 20, seed: int = 1) -> torch.Tensor:
    return torch.randint(
        0, GEOMETRY["vocab_size"], (batch, seq_len), generator=torch.Generator().manual_seed(seed)
    )


def test_what_a_model_that_thinks_cannot_give_is_refused():
    model = build(**KINDS["itt"], attn_implementation="eager")
    with pytest.raises(ValueError, match=r"^output_attentions: a thinking layer attends once"):
        model(tokens(), output_attentions=True)
    dense = build(**KINDS["dense"], attn_implementation="eager")
    assert len(dense(tokens(), output_attentions=True).attentions) == 4
    model.config._attn_implementation = "flash_attention_2"
    positions = torch.arange(20).remainder(12).unsqueeze(0)
    with pytest.raises(ValueError, match=r"^packed documents .* would see each other"):
        model(tokens(batch=1), position_ids=positions)


def test_a_model_of_another_vocabulary_has_the_same_loss_in_chunks():
    model = build(**KINDS["itt"])
    model.resize_token_embeddings(70)
    whole = model(tokens(), labels=tokens()).loss
    chunked = model(tokens(), labels=tokens(), loss_chunk_tokens=7).loss
    torch.testing.assert_close(chunked, whole)


@pytest.mark.parametrize("with_mask", [True, False])
@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
def test_dense_equals_llama_bit_for_bit(attn_implementation, with_mask):
    ours = build(thinking="dense", attn_implementation=attn_implementation)
    llama = LlamaForCausalLM(LlamaConfig(**GEOMETRY, attn_implementation=attn_implementation))
    llama.load_state_dict(ours.state_dict(), strict=True)
    input_ids = tokens()
    inputs = {"input_ids": input_ids, "labels": input_ids}
    if with_mask:
        inputs["attention_mask"] = torch.ones_like(input_ids)
    outputs = [model(**inputs) for model in (ours, llama.eval())]
    assert torch.equal(outputs[0].logits, outputs[1].logits)
    for output in outputs:
        output.loss.backward()
    for (name, ours_p), llama_p in zip(ours.named_parameters(), llama.parameters(), strict=True):
        assert torch.equal(ours_p.grad, llama_p.grad), name


def test_loop_equals_a_hand_rolled_loop():
    loop = build(**KINDS["loop"])
    llama = LlamaForCausalLM(LlamaConfig(**GEOMETRY)).eval()
    llama.load_state_dict(loop.state_dict(), strict=True)
    input_ids = tokens()
    states = llama.model.embed_tokens(input_ids)
    positions = llama.model.rotary_emb(states, torch.arange(input_ids.shape[1])[None])
    for index, layer in enumerate(llama.model.layers):
        for _ in range(3 if index in (1, 3) else 1):
            states = layer(states, attention_mask=None, position_embeddings=positions)
    expected = llama.lm_head(llama.model.norm(states))
    logits = loop(input_ids=input_ids, attention_mask=torch.ones_like(input_ids)).logits
    assert torch.equal(logits, expected)


def test_itt_without_its_three_terms_is_a_loop():
    loop = build(thinking="loop", thinking_steps=4)
    bare = build(
        thinking_steps=4, residual_thinking=False, adaptive_routing=False, step_encoding=False
    )
    bare.load_state_dict(loop.state_dict(), strict=True)
    assert torch.equal(logits_of(bare), logits_of(loop))


def test_no_thinking_step_leaves_the_dense_model():
    itt = build(**KINDS["itt"])
    dense = build(thinking="dense")
    dense.load_state_dict(itt.state_dict(), strict=False)
    itt.set_select_ratios([0, 0, 0])
    assert torch.equal(logits_of(itt), logits_of(dense))


@pytest.mark.parametrize("label", TABLE_5)
def test_dense_parameters_equal_table_5_and_thinking_adds_little(label):
    hidden_size, intermediate_size, kv_heads, expected = TABLE_5[label]
    geometry = {
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "num_key_value_heads": kv_heads,
        "num_hidden_layers": 8,
        "num_attention_heads": 32,
        "vocab_size": 32000,
    }
    for thinking in ("dense", "itt"):
        config = IttConfig(thinking=thinking, **geometry)
        with torch.device("meta"):
            model = IttForCausalLM(config)
        count = sum(parameter.numel() for parameter in model.parameters())
        assert dense_parameters(config) == expected
        assert count == expected + thinking_parameters(config)
        assert thinking_parameters(config) < 0.0005 * expected


def test_one_seed_gives_every_kind_the_same_llama_weights():
    models = [build(seed=3, **settings).state_dict() for settings in KINDS.values()]
    for name, weight in models[0].items():
        assert all(torch.equal(weight, model[name]) for model in models[1:]), name


def test_further_steps_start_with_the_encoding_that_is_asked_for():
    for layer in build(**KINDS["itt"], step_encoding_init=0.1).thinking_layers:
        assert torch.equal(layer.step_encoding[0], torch.ones(layer.hidden_size))
        assert torch.equal(layer.step_encoding[1:], torch.full((3, layer.hidden_size), 0.1))


def test_a_new_model_starts_with_neutral_encodings_and_small_routers():
    for layer in build(hidden_size=256, **KINDS["itt"]).thinking_layers:
        assert torch.equal(layer.step_encoding, torch.ones(4, 256))
        for router in layer.routers:
            assert 0.01 < router.weight.std() < 0.03


@pytest.mark.parametrize("kind", KINDS)
def test_save_and_load_round_trip_with_elastic_state(kind, tmp_path):
    model = build(**KINDS[kind])
    if kind == "itt":
        model.set_select_ratios([0.9, 0.0, 0.1])
        model.set_router_temperature(1.7)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    assert not list(tmp_path.glob("*.py"))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is IttForCausalLM
    assert type(AutoConfig.from_pretrained(tmp_path)) is IttConfig
    assert loaded.config.select_ratios == model.config.select_ratios
    assert torch.equal(logits_of(loaded), logits_of(model))


def test_a_llama_folder_loads_with_fresh_thinking_parameters(tmp_path):
    llama = LlamaForCausalLM(LlamaConfig(**GEOMETRY))
    llama.save_pretrained(tmp_path)
    config = IttConfig(**GEOMETRY, **KINDS["itt"])
    model = IttForCausalLM.from_pretrained(tmp_path, config=config).eval()
    for layer in model.thinking_layers:
        assert torch.equal(layer.step_encoding, torch.ones_like(layer.step_encoding))
        assert layer.router_temperature == 1
        assert all(0.005 < router.weight.std() < 0.05 for router in layer.routers)
    model.set_select_ratios([0, 0, 0])
    assert torch.equal(logits_of(model), logits_of(llama.eval()))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (KINDS["dense"], [20]),
        (KINDS["loop"], [20, 20, 20]),
        (KINDS["itt"], [20, 14, 10, 6]),
        ({"select_ratios": [1.0, 0.0, 0.5]}, [20, 20, 10]),
    ],
)
def test_a_step_computes_only_the_selected_tokens(settings, expected):
    model = build(**settings)
    computed = []
    model.model.layers[1].mlp.register_forward_hook(
        lambda module, inputs, output: computed.append(tuple(output.shape))
    )
    model(tokens())
    assert computed == [(2, count, GEOMETRY["hidden_size"]) for count in expected]


def test_skipped_tokens_keep_their_state_and_selected_ones_change():
    model = build(thinking_steps=2, select_ratios=[0.5])
    layer = model.model.layers[1]
    states = torch.randn(2, 20, GEOMETRY["hidden_size"])
    positions = model.model.rotary_emb(states, torch.arange(20)[None])
    once = DenseLayer.forward(layer, states, position_embeddings=positions)
    changed = (layer(states, position_embeddings=positions) != once).any(dim=-1)
    assert changed.sum(dim=-1).tolist() == [10, 10]
    scores = layer.routers[0](once)
    assert torch.equal(changed, scores >= scores.topk(10).values[:, -1:])


def test_padding_is_selected_last_and_never_attended_to():
    model = build(thinking_steps=2, select_ratios=[0.5])
    for layer in model.thinking_layers:  # routers that would love the padding
        layer.routers[0].weight.data.normal_()
    rows = tokens(batch=1, seq_len=12)
    mask = torch.ones_like(rows)
    mask[:, 6:] = 0  # as many real tokens as the step selects
    logits = [
        model(input_ids=rows.where(mask == 1, padding), attention_mask=mask).logits[:, :6]
        for padding in (torch.tensor(0), torch.tensor(7))
    ]
    assert torch.equal(logits[0], logits[1])


def test_a_mask_of_tokens_as_flash_takes_it_says_what_a_mask_of_pairs_says():
    seq_len = 12
    places = torch.arange(seq_len)
    is_token_BS = torch.stack([places >= 5, places >= 0, places < 7])
    flash_BS = is_token_BS.long()
    is_pair_B1SS = (places[:, None] >= places) & is_token_BS[:, None, None]
    additive_B1SS = torch.zeros(is_pair_B1SS.shape).masked_fill(~is_pair_B1SS, float("-inf"))
    generator = torch.Generator().manual_seed(0)
    scores_BS = torch.rand(is_token_BS.shape, generator=generator)
    for selection in (select_where(scores_BS < 0.5), select_top_k(scores_BS, 6)):
        indices_BK, is_selected_BK = selection
        keys = keys_for(selection, 0, None)
        is_key_BK = mask_among(selection, flash_BS, 0, keys, True).bool()
        is_real_BK = is_token_BS.gather(1, indices_BK)
        if is_selected_BK is not None:
            assert not is_selected_BK.all()
            is_real_BK = is_real_BK & is_selected_BK
        assert torch.equal(is_key_BK, is_real_BK)
        causal_BKK = (indices_BK[:, :, None] >= indices_BK[:, None]) & is_key_BK[:, None]
        of_pairs_B1KK = mask_among(selection, is_pair_B1SS, 0, keys, False)
        of_numbers_B1KK = mask_among(selection, additive_B1SS, 0, keys, False) == 0
        for mask_B1KK in (of_pairs_B1KK, of_numbers_B1KK):
            assert torch.equal(mask_B1KK[:, 0][is_real_BK], causal_BKK[is_real_BK])
    for length in (seq_len, 3):  # the whole rows, and what follows a cache
        for mask in (flash_BS, is_pair_B1SS[:, :, -length:], additive_B1SS[:, :, -length:]):
            assert torch.equal(_padding_in(mask, length), ~is_token_BS[:, -length:])
    assert _padding_in(None, seq_len) is None
    with pytest.raises(
        TypeError, match="thinking layers do not take a str as attention mask: choose"
    ):
        mask_among(selection, "a mask", 0, keys, False)


def test_eager_and_sdpa_attention_agree_with_padding():
    mask = torch.ones(2, 20, dtype=torch.long)
    mask[1, 13:] = 0
    sdpa, eager = (build(attn_implementation=name, **KINDS["itt"]) for name in ("sdpa", "eager"))
    outputs = [model(input_ids=tokens(), attention_mask=mask).logits for model in (sdpa, eager)]
    torch.testing.assert_close(outputs[0][mask == 1], outputs[1][mask == 1], rtol=0, atol=1e-5)


def test_routers_score_in_float32_under_autocast():
    router = Router(32)
    router.weight.data.normal_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert router(torch.randn(2, 5, 32)).dtype == torch.float32
    assert router.to(torch.bfloat16)(torch.randn(2, 5, 32, dtype=torch.bfloat16)).dtype == (
        torch.float32
    )


@pytest.mark.parametrize("kind", KINDS)
def test_training_in_bfloat16_autocast_gives_every_parameter_a_gradient(kind):
    model = build(**KINDS[kind]).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(input_ids=tokens(), labels=tokens()).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_checkpointing_changes_no_gradient(kind):
    gradients, passes = [], []
    for checkpointing in (False, True):
        model, calls = build(**KINDS[kind]).train(), []
        for layer in model.model.layers:
            layer.mlp.register_forward_pre_hook(lambda module, _, calls=calls: calls.append(module))
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(input_ids=tokens(), labels=tokens(), use_cache=False).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
        passes.append(len(calls))
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))
    assert passes[1] == 2 * passes[0]  # every layer is computed again


@pytest.mark.parametrize("kind", KINDS)
def test_generate_continues_greedily_what_a_forward_pass_predicts(kind):
    model = build(**KINDS[kind])
    prompt = tokens(batch=1, seq_len=6)
    generated = model.generate(prompt, max_new_tokens=4, use_cache=False, pad_token_id=0)
    for length in range(6, generated.shape[1]):
        prefix = generated[:, :length]
        predicted = model(prefix, attention_mask=torch.ones_like(prefix)).logits[0, -1].argmax()
        assert predicted == generated[0, length]


def test_elastic_ratios_are_checked():
    model = build(**KINDS["itt"])
    with pytest.raises(ValueError, match="select_ratios has 2 values"):
        model.set_select_ratios([0.5, 0.5])
    with pytest.raises(ValueError, match=r"select_ratios must lie in 0\.\.1, not 1.5"):
        model.set_select_ratios([0.5, 0.5, 1.5])
    with pytest.raises(ValueError, match="without a router"):
        build(adaptive_routing=False).set_select_ratios([0.5, 1, 1])
    with pytest.raises(ValueError, match="temperature must be a positive number"):
        model.set_router_temperature(0)
    assert model.config.select_ratios == [0.7, 0.5, 0.3]


def test_attributes_set_to_nonsense_after_construction_are_refused_by_the_model():
    config = IttConfig(**GEOMETRY)
    config.router_norm = "softmax"
    with pytest.raises(ValueError, match="router_norm"):
        IttForCausalLM(config)


def test_only_thinking_layers_differ_from_llama():
    layers = build(thinking_layers=[0, 2]).model.layers
    assert [type(layer) is IttDecoderLayer for layer in layers] == [True, False, True, False]
