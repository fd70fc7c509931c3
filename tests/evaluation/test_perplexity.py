"""Perplexity: equal to a computation by hand, at the model's own and other ratios, on any ranks."""

import csv
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from damage import flip_a_bit
from safetensors.torch import load_file, save_file
from sentencepiece import SentencePieceProcessor
from streaming import LocalDataset
from transformers import LlamaConfig, LlamaForCausalLM

from eval.perplexity import measure_settings
from eval.suite import PerplexitySuite
from itt_composer.basics.errors import UserError
from itt_composer.models import IttConfig, IttForCausalLM
from itt_composer.models.calibration import calibrate
from itt_composer.results.base import read_result
from itt_composer.results.perplexity import PerplexityResults
from itt_composer.results.perplexity_report import tables, write_results

# Weights far from 0, so that a token's loss depends much on every layer and step.
LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 32,
    "initializer_range": 0.2,
}


@pytest.fixture(scope="module")
def itt(tmp_path_factory):
    """An ITT with random weights in a transformers folder."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("itt")
    config = IttConfig(**LLAMA, thinking_steps=4, select_ratios=[0.5, 0.5, 0.5])
    IttForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llama(itt, tmp_path_factory):
    """The ITT's own LLaMA weights as transformers' LLaMA: the model with every step removed."""
    folder = tmp_path_factory.mktemp("llama")
    model = LlamaForCausalLM(LlamaConfig(**LLAMA))
    weights = IttForCausalLM.from_pretrained(itt).state_dict()
    model.load_state_dict({name: weights[name] for name in model.state_dict()})
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def measure(shards):
    def measure(model, ratios=(None,), **options):
        suite = PerplexitySuite(
            model={"path": str(model)}, data=str(shards), select_ratios=list(ratios), **options
        )
        return measure_settings(suite, lambda done, total: None)

    return measure


def by_hand(model, shards):
    """Sum of negative log-likelihoods and tokens predicted, per domain, row after row."""
    sums = {}
    for domain in ("code", "prose"):
        dataset = LocalDataset(str(shards / "validation" / domain))
        losses: list[float] = []
        for index in range(dataset.num_samples):
            ids = dataset[index]["input_ids"].tolist()
            with torch.no_grad():
                scores = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].double()
            of_next = scores[range(len(ids) - 1), ids[1:]]
            losses += (scores[:-1].logsumexp(-1) - of_next).tolist()
        sums[domain] = (math.fsum(losses), len(losses))
    return sums


def test_perplexity_is_that_of_every_token_of_every_row(measure, itt, shards):
    sums = by_hand(IttForCausalLM.from_pretrained(itt).eval(), shards)
    rows = {domain: tokens // 31 for domain, (_, tokens) in sums.items()}
    batch_size = next(size for size in (7, 8, 9) if all(count % size for count in rows.values()))
    (setting,) = measure(itt, batch_size=batch_size).settings
    for domain, (loss_sum, tokens) in sums.items():
        measured = setting.domains[domain]
        assert measured.tokens == tokens
        assert measured.loss == pytest.approx(loss_sum / tokens, rel=1e-6)
        assert measured.perplexity == pytest.approx(math.exp(loss_sum / tokens), rel=1e-5)
    # Overall: every token counts the same, so the larger domain counts more.
    loss_sums, tokens = zip(*sums.values(), strict=True)
    assert setting.tokens == sum(tokens)
    assert setting.loss == pytest.approx(sum(loss_sums) / sum(tokens), rel=1e-6)
    assert tokens[0] != tokens[1]


@pytest.mark.parametrize("fits", [3, 0])
def test_a_batch_that_does_not_fit_the_memory_comes_in_parts(measure, itt, monkeypatch, fits):
    whole = measure(itt, batch_size=16).settings if fits else None
    forward = IttForCausalLM.forward

    def on_a_small_gpu(self, input_ids, **inputs):
        logits = forward(self, input_ids=input_ids, **inputs)
        if len(input_ids) > fits:  # after all steps have been counted
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        return logits

    monkeypatch.setattr(IttForCausalLM, "forward", on_a_small_gpu)
    if not fits:
        with pytest.raises(UserError, match="a single row does not fit into the memory"):
            measure(itt, batch_size=16)
        return
    (setting,) = measure(itt, batch_size=16).settings
    assert setting.loss == pytest.approx(whole[0].loss, rel=1e-6)
    assert setting.tokens == whole[0].tokens
    assert setting.realised_shares == whole[0].realised_shares


def test_progress_goes_up_to_every_row_of_every_setting(itt, shards):
    suite = PerplexitySuite(
        model={"path": str(itt)}, data=str(shards), select_ratios=[None, [1, 1, 1]]
    )
    reports = []
    results = measure_settings(suite, lambda done, total: reports.append((done, total)))
    rows = results.settings[0].tokens // 31
    assert reports[-1] == (2 * rows, 2 * rows)
    assert reports == sorted(reports)


def test_other_ratios_change_the_model_and_its_flops(measure, itt):
    ratios = [None, [1, 1, 1], [0.9, 0.5, 0], [0, 0, 0]]
    settings = measure(itt, ratios).settings
    assert [setting.select_ratios for setting in settings] == [[0.5, 0.5, 0.5], *ratios[1:]]
    for figure in ("loss", "paper_flops_per_token", "executed_flops_per_token"):
        assert len({getattr(setting, figure) for setting in settings}) == 4
    own, all_tokens, _, none = (setting.executed_flops_per_token for setting in settings)
    assert none < own < all_tokens


def test_flops_per_token_are_those_of_a_pass_over_a_row_by_both_accountings(measure, itt, tmp_path):
    dense = IttForCausalLM(IttConfig(**LLAMA, thinking="dense"))
    dense.save_pretrained(tmp_path)
    hidden, vocabulary, layers, row = 32, 512, 2, 32
    linear = 4 * hidden**2 + 3 * 48 * hidden  # weights of a layer
    weights = 2 * vocabulary * hidden + layers * (linear + 2 * hidden) + hidden
    by_paper = 2 * weights + 4 * layers * row * hidden

    def layer(tokens):
        return 2 * linear * tokens + 4 * tokens**2 * hidden

    rotary = hidden // 2 * row  # by half a head's dimensions, two products
    once = rotary + 2 * vocabulary * hidden * row + layers * layer(row)
    router = 2 * hidden * row
    steps = sum(router + layer(tokens) for tokens in (24, 16, 8))
    (of_dense,) = measure(tmp_path).settings
    (of_itt,) = measure(itt, [[0.75, 0.5, 0.25]]).settings
    assert of_dense.paper_flops_per_token == pytest.approx(by_paper)
    assert of_dense.executed_flops_per_token == pytest.approx(once / row)
    # One of two layers thinks.
    assert of_itt.paper_flops_per_token == pytest.approx(by_paper * (1 + 1.5 / 2))
    assert of_itt.executed_flops_per_token == pytest.approx((once + steps) / row)


def test_a_setting_equals_a_model_that_was_saved_with_it(measure, itt, tmp_path):
    model = IttForCausalLM.from_pretrained(itt)
    model.set_select_ratios([0.9, 0.3, 0.1])
    model.save_pretrained(tmp_path)
    (saved,) = measure(tmp_path).settings
    _, elastic = measure(itt, [None, [0.9, 0.3, 0.1]]).settings
    assert saved.loss == elastic.loss
    assert saved.domains == elastic.domains


def test_null_is_the_models_own_ratios_wherever_it_stands(measure, itt):
    first, _, last = measure(itt, [None, [0, 0, 0], None]).settings
    assert last.select_ratios == first.select_ratios == [0.5, 0.5, 0.5]
    assert last.loss == first.loss


def test_without_steps_an_itt_is_its_llama_which_is_measured_too(measure, itt, llama):
    (without_steps,) = measure(itt, [[0, 0, 0]]).settings
    results = measure(llama)
    (dense,) = results.settings
    assert dense.loss == pytest.approx(without_steps.loss, rel=1e-6)
    assert {domain: part.given() for domain, part in dense.domains.items()} == {
        domain: pytest.approx(figures.given(), rel=1e-5)
        for domain, figures in without_steps.domains.items()
    }
    assert dense.select_ratios == []
    assert results.model.parameters == sum(
        p.numel() for p in LlamaForCausalLM(LlamaConfig(**LLAMA)).parameters()
    )


@pytest.mark.parametrize("ratios", [[0.5], [], [1, 1, 1, 1]], ids=len)
def test_ratios_of_another_count_are_refused(measure, itt, ratios):
    with pytest.raises(UserError) as caught:
        measure(itt, [ratios])
    assert str(caught.value).startswith(
        f"model={itt} cannot think as the suite asks: "
        f"select_ratios={[float(ratio) for ratio in ratios]}: select_ratios has {len(ratios)} "
        f"value{'' if len(ratios) == 1 else 's'}, but thinking_steps=4 needs 3"
    )
    assert str(caught.value).endswith("on the command line, where [null] is the model's own")


def test_ratios_for_another_model_are_refused(measure, llama):
    with pytest.raises(UserError, match="needs an ITT model, not a LLaMA"):
        measure(llama, [[0.5, 0.5, 0.5]])


def test_a_vocabulary_smaller_than_the_tokenizers_is_refused(measure, tmp_path):
    LlamaForCausalLM(LlamaConfig(**LLAMA | {"vocab_size": 500})).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"tokenizer of 512 ids, but the model \S+ has 500"):
        measure(tmp_path)


def test_a_model_that_computes_nan_has_no_perplexity(measure, itt, tmp_path):
    model = IttForCausalLM.from_pretrained(itt)
    model.model.norm.weight.data[:] = 1e38
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"^the loss on rows .* of the domain code is nan") as e:
        measure(tmp_path)
    assert "too large to compute with: evaluate another checkpoint" in str(e.value)
    model.model.norm.weight.data[:] = math.nan
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"is of no use: model\.norm\.weight holds NaN"):
        measure(tmp_path)


def test_the_same_weights_and_rows_have_the_same_digests_wherever_they_lie(
    measure, itt, own_shards, shards, tmp_path
):
    model = IttForCausalLM.from_pretrained(itt)
    model.set_select_ratios([0.9, 0.3, 0.1])
    model.save_pretrained(tmp_path / "copy")
    results = measure(itt)
    again = measure_settings(
        PerplexitySuite(model={"path": str(tmp_path / "copy")}, data=str(own_shards)),
        lambda done, total: None,
    )
    assert again.model.weights_sha256 == results.model.weights_sha256
    assert again.text_sha256 == results.text_sha256
    assert measure(itt, split="train").text_sha256 != results.text_sha256
    model.model.norm.weight.data[0] += 1
    model.save_pretrained(tmp_path / "other")
    other = measure(tmp_path / "other")
    assert other.model.weights_sha256 != results.model.weights_sha256


def truncate(file):
    file.write_bytes(file.read_bytes()[:1000])


def drop_a_weight(file):
    weights = load_file(file)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, file, metadata={"format": "pt"})


def cut_a_weight(file):
    weights = load_file(file)
    weights["model.norm.weight"] = weights["model.norm.weight"][:-1].clone()
    save_file(weights, file, metadata={"format": "pt"})


@pytest.mark.parametrize("damage", [truncate, drop_a_weight, cut_a_weight, lambda f: f.unlink()])
def test_damaged_weights_are_refused_with_the_folders_name(measure, itt, tmp_path, damage):
    IttForCausalLM.from_pretrained(itt).save_pretrained(tmp_path)
    damage(tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=f"^{tmp_path} cannot be loaded: .+"):
        measure(tmp_path)


@pytest.mark.parametrize(
    "config", ["{", "{}", '{"model_type": "nonesuch"}', '{"model_type": "vit"}']
)
def test_a_folder_of_no_language_model_is_refused(measure, tmp_path, config):
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(UserError, match=f"^{tmp_path} cannot be loaded: .+"):
        measure(tmp_path)


@pytest.fixture(scope="module")
def calibrated(itt, tmp_path_factory):
    """The ITT with thresholds, still routing by top-k."""
    folder = tmp_path_factory.mktemp("calibrated")
    model = IttForCausalLM.from_pretrained(itt)
    ids = torch.randint(0, 512, (16, 32), generator=torch.Generator().manual_seed(0))
    calibrate(model, [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}])
    model.save_pretrained(folder)
    return folder


def test_every_rule_and_early_exit_is_measured_at_every_ratio(measure, calibrated):
    ratios, rules, exits = [[0.5, 0.5, 0.5], [1, 0, 0.3]], ["top_k", "threshold"], [0.0, 0.8]
    settings = measure(calibrated, ratios, router_selection=rules, early_exit=exits).settings
    names = ("select_ratios", "router_selection", "early_exit")
    assert [tuple(getattr(setting, name) for name in names) for setting in settings] == [
        (ratio, rule, epsilon) for ratio in ratios for rule in rules for epsilon in exits
    ]
    assert len({setting.loss for setting in settings}) == len(settings)
    top_k, early, causal, _ = settings[:4]
    assert top_k.realised_shares == [[0.5], [0.5], [0.5]]
    assert early.executed_flops_per_token < top_k.executed_flops_per_token
    assert all(
        a[0] <= b[0] for a, b in zip(early.realised_shares, top_k.realised_shares, strict=False)
    )
    assert all(0.2 < share < 0.8 for (share,) in causal.realised_shares)
    assert causal.paper_flops_per_token == top_k.paper_flops_per_token
    # Every token takes the first step, none the second.
    assert settings[4].realised_shares[:2] == [[1.0], []]


def test_thresholds_that_were_never_estimated_are_refused(measure, itt, llama):
    with pytest.raises(UserError, match=r"router_selection=threshold: .* run itt calibrate"):
        measure(itt, router_selection=["threshold"])
    with pytest.raises(UserError, match=r"early_exit=0\.5 needs an ITT model"):
        measure(llama, early_exit=[0.5])


def test_bits_per_byte_are_over_the_bytes_of_the_predicted_text(measure, itt, shards):
    (setting,) = measure(itt).settings
    processor = SentencePieceProcessor(model_file=str(shards / "tokenizer/tokenizer.model"))
    for domain, measured in setting.domains.items():
        rows = LocalDataset(str(shards / "validation" / domain))
        text_bytes = 0
        for index in range(rows.num_samples):
            ids = rows[index]["input_ids"].tolist()
            pieces = [processor.id_to_piece(number) for number in ids]
            for before, number, piece in zip(ids, ids[1:], pieces[1:], strict=False):
                text = piece.replace("▁", " ").encode()
                if piece.startswith("<0x"):
                    text = b"?"
                elif number in (processor.bos_id(), processor.eos_id()):
                    text = b""
                elif before == processor.bos_id():
                    text = text[1:]
                text_bytes += len(text)
        assert measured.bytes == text_bytes
        bits = measured.loss * measured.tokens / math.log(2)
        assert measured.bits_per_byte == pytest.approx(bits / text_bytes, rel=1e-12)
    assert setting.bytes == sum(part.bytes for part in setting.domains.values())


def test_the_model_is_described_as_it_came_whatever_was_measured(measure, calibrated):
    results = measure(calibrated, [[1, 0, 0.3]], router_selection=["threshold"])
    assert results.model.router_selection == "top_k"
    assert results.model.select_ratios == [0.5, 0.5, 0.5]


@pytest.fixture
def own_shards(shards, tmp_path):
    """A copy, to be damaged."""
    shutil.copytree(shards, tmp_path / "shards")
    return tmp_path / "shards"


def shard_of(folder, domain):
    return next((folder / "validation" / domain).rglob("*.mds*"))


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (lambda file: file.unlink(), "is missing"),
        (lambda file: file.write_bytes(file.read_bytes()[:-1]), "has .* bytes instead of"),
        (flip_a_bit, "does not match its SHA-256"),
    ],
    ids=["missing", "cut", "flipped"],
)
def test_damaged_shards_are_found_before_measuring(itt, own_shards, damage, what):
    damage(shard_of(own_shards, "prose"))
    suite = PerplexitySuite(model={"path": str(itt)}, data=str(own_shards))
    with pytest.raises(UserError, match=rf"validation/prose/\S+\.mds\S* {what}"):
        measure_settings(suite, lambda done, total: pytest.fail("it has measured"))


def test_hashes_are_compared_unless_the_suite_says_otherwise(measure, itt, own_shards):
    flip_a_bit(shard_of(own_shards, "prose"))
    options = {"data": str(own_shards), "validate_hash": False}
    suite = PerplexitySuite(model={"path": str(itt)}, **options)
    assert measure_settings(suite, lambda done, total: None).settings[0].tokens > 0


def test_the_pages_hold_what_the_json_does(measure, itt, tmp_path):
    results = measure(itt, [None, [1, 0, 0.3]])
    write_results(results, tmp_path / "elastic.json")
    assert json.loads((tmp_path / "elastic.json").read_text()) == results.content()
    assert read_result(tmp_path / "elastic.json", PerplexityResults, advice="") == results
    lines = list(csv.DictReader((tmp_path / "elastic.csv").open()))
    assert [(line["select_ratios"], line["domain"]) for line in lines] == [
        (ratios, domain)
        for ratios in ("50/50/50", "100/0/30")
        for domain in ("all", "code", "prose")
    ]
    assert float(lines[4]["loss"]) == results.settings[1].domains["code"].loss
    page = (tmp_path / "elastic.md").read_text()
    for setting in results.settings:
        assert f"| {setting.perplexity:.2f} | {setting.bits_per_byte:.4f} |" in page


def test_unknown_bytes_are_a_dash(measure, itt):
    results = measure(itt)
    for figures in (results.settings[0], *results.settings[0].domains.values()):
        figures.bits_per_byte = None
    assert tables(results)[0].rows[0][-1] == "–"


def figures_of(file):
    return json.loads(file.read_text())["settings"]


def test_two_ranks_measure_the_same_to_the_last_bit(fork_server, calibrated, shards, tmp_path):
    suite = tmp_path / "suite.yaml"
    suite.write_text(
        "batch_size: 7\nselect_ratios: [null, [1, 0, 0.3]]\nrouter_selection: [top_k, threshold]\n"
    )
    printed = []
    for ranks in (1, 2):
        output = tmp_path / f"{ranks}.json"
        places = (f"model={calibrated}", f"data={shards}", f"output={output}")
        result = fork_server.run("eval", suite, *places, ranks=ranks)
        assert result.returncode == 0, result.stderr
        printed.append(result.stdout.partition("results in")[0])
    assert printed[0] == printed[1]
    assert figures_of(tmp_path / "1.json") == figures_of(tmp_path / "2.json")


def test_ranks_report_a_mistake_once(fork_server, itt, own_shards):
    shard_of(own_shards, "prose").unlink()
    suite = Path(__file__).parents[2] / "eval/suites/perplexity.yaml"
    result = fork_server.run("eval", suite, f"model={itt}", f"data={own_shards}", ranks=2)
    assert result.returncode == 1
    assert result.stderr.count("is missing") == 1
    assert "Traceback" not in result.stderr
