"""The page's text and the PNG figures, without a browser."""

import io
import json
import math
import re
import shlex
import shutil

import pytest
import yaml
from PIL import Image
from report_runs import thinking, write_run
from rich.console import Console
from typer.testing import CliRunner

from itt_composer.basics.errors import UserError
from itt_composer.cli.report import app
from itt_composer.report.build import build
from itt_composer.report.costs import share_text
from itt_composer.report.figures import changed, pack, print_spec, prints_of
from itt_composer.report.labels import PLACES, placed
from itt_composer.report.page import render
from itt_composer.report.routing_map import laid_out
from itt_composer.report.theme import DENSE as DENSE_COLOUR
from itt_composer.report.thinking_figures import step_colour

RATIOS = "thinking.select_ratios=[0.5,0.5,0.5]"
VALIDATION = "metrics/eval/LanguageCrossEntropy"
DENSE = ("thinking.thinking=dense", "thinking.thinking_steps=null", "thinking.select_ratios=null")
EVIL = "</script><img src=x onerror=alert(1)>"


def test_a_dense_model_is_grey_in_every_figure_wherever_its_results_come_from(tmp_path):
    slow = (*DENSE, "optimizer.decoupled_adamw.lr=0.0001")
    runs = [write_run(tmp_path / "slow", *slow, loss=4.3), write_run(tmp_path / "dense", *DENSE)]
    runs.append(write_run(tmp_path / "itt", analysed=True))
    result = json.loads((runs[-1] / "perplexity.json").read_text())
    alone = {**result["settings"][0], "select_ratios": [], "router_selection": None}
    for number, file in enumerate((runs[1] / "perplexity.json", tmp_path / "other.json")):
        model = {**result["model"], "name": "other", "thinking": "dense"}
        model["weights_sha256"] = str(number)
        model = {key: value for key, value in model.items() if not key.startswith("thinking_")}
        file.write_text(json.dumps({**result, "model": model, "settings": [alone]}))
    figures = {one.name: one for one in build(runs, [tmp_path / "other.json"], "t").page.figures}

    def colours(figure):
        scale = figures[figure].spec["layer"][0]["encoding"]["color"]["scale"]
        return dict(zip(scale["domain"], scale["range"], strict=True))

    is_grey = {"slow": True, "dense": True, "itt": False, "other": True}
    for figure, names in (("curves", 3), ("equal_compute", 3), ("elastic", 3)):
        found = colours(figure)
        assert len(found) == names
        assert {name: found[name] == DENSE_COLOUR for name in found}.items() <= is_grey.items()
    dashes = figures["curves"].spec["layer"][1]["encoding"]["strokeDash"]["scale"]
    by_name = dict(zip(dashes["domain"], dashes["range"], strict=True))
    assert by_name["slow"] != by_name["dense"]


def test_names_beside_points_cover_neither_points_nor_names():
    crowded = {number: (number / 50, number / 9) for number in range(9)} | {9: (1.0, 9.0)}
    names = dict.fromkeys(crowded, "90/90/90")
    found = placed(names, [crowded])
    assert 1 < len(found) < 9
    alone = placed({0: "50/50/50"}, [{0: (1.0, 2.0)}])
    assert alone == {0: PLACES[0]}
    # The second point lies where the first place of the name would be.
    near = {0: (0.0, 0.0), 1: (0.0, 1.0), 2: (9.0, 20.0)}
    assert placed({0: "50/50/50"}, [near]) == {0: PLACES[1]}


def text_of(tokens, selected):
    step = {"layer": 1, "step": 1, "weights": None, "selected": selected}
    return {"name": "a text", "tokens": tokens, "steps": [step]}


def data_of(page: str) -> dict:
    (text,) = re.findall(r'<script id="data" type="application/json">(.*?)</script>', page)
    return json.loads(text)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return [
        write_run(folder / "dense", *DENSE, loss=4.1),
        write_run(folder / "itt", loss=4.0, analysed=True),
    ]


def test_no_text_of_a_run_becomes_part_of_the_page(tmp_path):
    folder = write_run(tmp_path / "run", analysed=True)
    recipe = folder / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("run_name: run", f"run_name: '{EVIL}'"))
    report = build([folder, write_run(tmp_path / "other", "seed=18")], [], f"<b>{EVIL}")
    report.write(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert EVIL not in page
    assert page.count("</script") == page.count("<script")
    assert "<b>" not in page.partition('<script id="data"')[0]
    curves = data_of(page)["figures"][0]
    assert EVIL in curves["data"]["training"]["columns"]["run"]["texts"]
    own = re.sub(r"<script>.*?</script>|http-equiv", "", page, flags=re.DOTALL)
    assert "http" not in own  # no address of anything


def test_every_figure_is_a_png_that_is_not_empty(runs, tmp_path):
    report = build(runs, [], "title")
    drawn = {"curves_loss_flops", "elastic_executed", "routing_map_1", "gradients"}
    kept = drawn | {"router_weights_1"}
    drawn.add("router_weights")
    for figure in [*report.page.figures, *report.printed]:
        figure.prints = [wanted for wanted in figure.prints if wanted.name in drawn]
    written = report.write_figures(tmp_path / "new" / "figures")
    assert {path.stem for path in written} == kept
    for path in written:
        with Image.open(io.BytesIO(path.read_bytes())) as image:
            assert image.format == "PNG"
            assert min(image.size) > 300
            assert len(image.convert("RGB").getcolors(1 << 24)) > 20  # something is drawn


def test_dense_runs_alone_have_no_section_of_routers(runs):
    report = build(runs[:1], [], "title")
    assert [figure.name for figure in report.page.figures] == ["curves"]
    assert report.page.maps == []
    assert [what for what, _ in report.page.missing] == ["Gradient nuclear norms of dense"]


def test_what_is_missing_is_reported_with_its_command(tmp_path):
    folder = write_run(tmp_path / "itt", "thinking.thinking_steps=4", RATIOS)
    other = write_run(tmp_path / "a b's" / "itt")
    commands = [command for _, command in build([other, folder], [], "title").page.missing]
    assert commands == [
        f"itt analyse tokens {folder}",
        f"itt analyse gradients {folder} --problems AQUA.jsonl",
        f"itt eval eval/suites/elastic.yaml model={folder} data=shards "
        f"output={folder}/perplexity.json",
    ]
    (_, _, (_, elastic)) = build([other], [], "title").page.missing
    words = shlex.split(elastic)
    assert f"model={other}" in words
    assert "select_ratios=[null,[0.9,0.9],[0.7,0.7],[0.5,0.5],[0.3,0.3],[0,0]]" in words


def test_a_dense_models_analysis_hides_nothing_that_is_missing(tmp_path):
    runs = [write_run(tmp_path / "dense", *DENSE), write_run(tmp_path / "itt")]
    (runs[0] / "analysis").mkdir()
    (runs[0] / "analysis" / "thinking.json").write_text(json.dumps(thinking([], 1)))
    missing = [command for _, command in build(runs, [], "title").page.missing]
    assert f"itt analyse tokens {runs[1]}" in missing


def test_an_analysis_of_another_model_is_not_drawn_and_other_settings_are_named(tmp_path):
    runs = [
        write_run(tmp_path / "small", "thinking.thinking_steps=2", "thinking.select_ratios=[1]")
    ]
    runs.append(write_run(tmp_path / "itt", analysed=True))
    shutil.copytree(runs[1] / "analysis", runs[0] / "analysis")
    report = build(runs, [], "title")
    (warning,) = report.page.warnings
    assert "analysis/thinking.json is of another model than small" in warning
    (figure,) = [one for one in report.page.figures if one.name == "router_weights"]
    (model,) = [control for control in figure.controls if control.label == "Model"]
    assert [one.label for one in model.options] == ["itt, at 50/50"]  # trained at 50/80
    (wanted,) = prints_of(figure)
    assert wanted.name == "router_weights_1"  # a second model takes no older file's name
    assert print_spec(figure, wanted)["title"] == "itt, at 50/50"


@pytest.mark.parametrize("setting", ["model.intermediate_size=24", "thinking.thinking_layers=[1]"])
def test_perplexities_of_another_model_are_not_drawn(tmp_path, setting):
    runs = [write_run(tmp_path / "other", setting), write_run(tmp_path / "itt", analysed=True)]
    assert build(runs[1:], [], "title").page.warnings == []
    shutil.copy(runs[1] / "perplexity.json", runs[0])
    report = build(runs, [], "title")
    (warning,) = report.page.warnings
    assert f"{runs[0] / 'perplexity.json'} is of another model than other" in warning
    elastic = next(figure for figure in report.page.figures if figure.name == "elastic")
    assert len({record["experiment"] for record in elastic.data["settings"]}) == 1


def test_histograms_stand_by_layer_and_step_whatever_model_comes_first(tmp_path):
    runs = [write_run(tmp_path / "itt", analysed=True)]
    four_steps = ("thinking.thinking_steps=4", RATIOS, "thinking.thinking_layers=[3]")
    runs.append(write_run(tmp_path / "four", *four_steps, analysed=True))
    figures = {figure.name: figure for figure in build(runs, [], "title").page.figures}
    panels = figures["router_weights"].spec["facet"]["sort"]
    places = [(1, 1), (1, 2), (3, 1), (3, 2), (3, 3)]
    assert panels == [f"layer {layer}, step {step}" for layer, step in places]


def test_a_damaged_analysis_is_a_warning(tmp_path):
    folder = write_run(tmp_path / "itt", analysed=True)
    (folder / "analysis" / "thinking.json").write_text('{"kind": "thinking", "format": 9}')
    (warning,) = build([folder], [], "title").page.warnings
    assert "thinking.json is of another version of this program; measure again: itt" in warning


@pytest.mark.parametrize(
    ("file", "changes", "what"),
    [
        ("analysis/thinking.json", {"steps": [{}]}, "steps.0.layer is missing"),
        ("analysis/thinking.json", {"steps": None}, "steps should be a valid list"),
        ("analysis/thinking.json", {"texts": [{"name": "a"}]}, "texts.0.tokens is missing"),
        (
            "analysis/thinking.json",
            {"texts": [text_of(["a", "b"], selected=[1])]},
            "texts.0.steps.0.selected has 1 values for 2 tokens",
        ),
        ("analysis/thinking.json", {"trained_batches": "x"}, "trained_batches should be a valid"),
        ("analysis/thinking.json", {"select_ratios": "abc"}, "select_ratios should be a valid"),
        ("analysis/gradients.json", {"easy": {}}, "easy.problems is missing"),
        ("analysis/gradients.json", {"layers": None}, "layers should be a valid list"),
        ("analysis/gradients.json", {"layers": [0]}, "easy.mean.q has 4 values for 1 layers"),
        ("perplexity.json", {"settings": [{"tokens": 1}]}, "settings.0.select_ratios is missing"),
        ("perplexity.json", {"settings": []}, "settings "),
        ("perplexity.json", {"model": None}, "model "),
        ("perplexity.json", {"suite": None}, "suite "),
        ("perplexity.json", {"model": {"path": "x"}}, "model.name is missing"),
    ],
)
def test_a_damaged_result_is_a_warning_that_names_file_and_key(tmp_path, file, changes, what):
    folder = write_run(tmp_path / "itt", analysed=True)
    changed_file(folder / file, **changes)
    page = build([folder], [], "title").page
    (warning,) = page.warnings
    assert warning.startswith(f"{folder / file} is damaged: {what}")
    assert "measure again: itt " in warning
    render(page)


@pytest.mark.parametrize(
    "drawing",
    ["thinking_figures.weights", "gradient_figure.gradient_figures", "elastic.figure"],
)
def test_an_error_of_our_own_while_drawing_is_not_blamed_on_the_results(
    tmp_path, monkeypatch, drawing
):
    def draw(*_):
        raise KeyError("a mistake in the code")

    monkeypatch.setattr(f"itt_composer.report.{drawing}", draw)
    with pytest.raises(KeyError, match="a mistake in the code"):
        build([write_run(tmp_path / "itt", analysed=True)], [], "title")


def test_what_a_diverged_run_leaves_is_drawn(tmp_path):
    folder = write_run(tmp_path / "itt")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines[10:]:
        for name, value in (("loss/train/total", math.nan), (VALIDATION, math.inf)):
            line[name] = value if name in line else None
    lines[9][VALIDATION] = 800.0
    del lines[5]["tokens"]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps(summary | {"validation_loss": math.nan}))
    page = build([folder, write_run(tmp_path / "other", "seed=5", loss=900)], [], "t").page
    curves = page.figures[0]
    assert {record["run"] for record in curves.data["training"]} == {"itt", "other"}
    assert [one["loss"] for one in curves.data["validation"] if one["run"] == "itt"] == [800.0]
    assert "itt has diverged: its validation loss at the end is nan" in page.warnings[0]
    render(page)
    alone = build([write_run(tmp_path / "new", batches=1, finished=False)], [], "t").page
    assert "1 run." in alone.figures[0].caption
    assert "still to come" in alone.figures[0].caption


def test_only_a_validation_of_the_last_batch_is_the_end_of_a_run(tmp_path):
    runs = [write_run(tmp_path / "dense", *DENSE), write_run(tmp_path / "twin", *DENSE, "seed=9")]
    runs += [write_run(tmp_path / name, loss=3.9) for name in ("itt", "cut", "diverged")]
    lines = (runs[3] / "metrics.jsonl").read_text().splitlines(keepends=True)
    (runs[3] / "metrics.jsonl").write_text("".join(lines[:31]))
    text = (runs[4] / "metrics.jsonl").read_text().replace(f'"{VALIDATION}": 3.9', '"x": 3.9')
    (runs[4] / "metrics.jsonl").write_text(text)
    lines = (runs[1] / "metrics.jsonl").read_text().splitlines(keepends=True)
    (runs[1] / "metrics.jsonl").write_text("".join(lines[:31]))
    page = build(runs, [], "t").page
    (figure,) = [figure for figure in page.figures if figure.name == "equal_compute"]
    assert [record["run"] for record in figure.data["ends"]] == ["dense", "itt"]
    assert [record["loss"] for record in figure.data["dense"]] == [4.0]
    ((_, target, own, *_),) = figure.table.rows
    assert (target, own) == ("4.0000", "3.9000")
    assert [warning.split(";")[0] for warning in page.warnings] == [
        f"{name} has no validation of its last batch, 40, in its log"
        for name in ("twin", "cut", "diverged")
    ]


def test_a_logarithm_has_no_place_below_nothing(tmp_path):
    folder = write_run(tmp_path / "itt", loss=0.02)
    text = (folder / "metrics.jsonl").read_text().replace("loss/train/total", "unheard")
    (folder / "metrics.jsonl").write_text(text)
    assert 0 < ends_of_axis([folder])["least"] < 0.02


def test_a_run_that_has_just_begun_leaves_the_axis_as_it_is(runs, tmp_path):
    begun = write_run(tmp_path / "new", "seed=9", batches=40, finished=False)
    lines = (begun / "metrics.jsonl").read_text().splitlines(keepends=True)
    (begun / "metrics.jsonl").write_text("".join(lines[:2]))
    assert ends_of_axis([*runs, begun]) == ends_of_axis(runs)


def test_rules_that_give_the_same_perplexity_are_drawn_as_one_point(tmp_path):
    run = write_run(tmp_path / "itt", analysed=True)
    result = json.loads((run / "perplexity.json").read_text())
    settings = result["settings"]
    changed_file(
        run / "perplexity.json",
        settings=[
            *settings[:5],
            *(
                one | {"perplexity": other["perplexity"]}
                for one, other in zip(settings[5:], settings[:5], strict=True)
            ),
        ],
    )
    (elastic,) = [one for one in build([run], [], "t").page.figures if one.name == "elastic"]
    assert "Of 4 of 4 settings the points of two rules lie on one another" in elastic.caption
    changed_file(run / "perplexity.json", settings=settings)
    (elastic,) = [one for one in build([run], [], "t").page.figures if one.name == "elastic"]
    assert "lie on one another" not in elastic.caption


def ends_of_axis(folders):
    params = build(folders, [], "t").page.figures[0].spec["params"]
    return {one["name"]: one["value"] for one in params if one["name"] in ("least", "greatest")}


def test_what_lies_under_other_lines_is_named_in_the_caption(tmp_path):
    runs = [
        write_run(tmp_path / "a", "run_name=same"),
        write_run(tmp_path / "b", "run_name=same", "optimizer.decoupled_adamw.lr=0.002"),
        write_run(tmp_path / "c", loss=3.9),
    ]
    captions = {figure.name: figure.caption for figure in build(runs, [], "t").page.figures}
    upper, lower = f"same ({runs[1]})", f"same ({runs[0]})"
    sentence = f"Where you see the line of {upper}, that of {lower} lies below it."
    assert captions["curves"].endswith(sentence)
    assert captions["training_thinking"].endswith(
        "the last of them is seen: here of the share of tokens that take the step."
    )
    captions = {figure.name: figure.caption for figure in build(runs[1:], [], "t").page.figures}
    assert "lies below it" not in captions["curves"]


def test_an_analysis_of_an_itt_that_took_no_step_is_reported(tmp_path):
    folder = write_run(tmp_path / "itt", analysed=True)
    file = folder / "analysis" / "thinking.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"steps": []}))
    (warning,) = build([folder], [], "t").page.warnings
    assert f"{file} is of ratios at which no step is taken" in warning


def test_results_from_before_the_end_of_training_are_reported(tmp_path):
    folder = write_run(tmp_path / "itt", analysed=True)
    assert build([folder], [], "t").page.warnings == []
    file = folder / "analysis" / "thinking.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"trained_batches": 20}))
    (warning,) = build([folder], [], "t").page.warnings
    assert f"{file} is of the weights after 20 batches of 40; measure again" in warning


def changed_file(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_steps_without_tokens_leave_the_overlap_of_those_behind_them(tmp_path):
    four = ("thinking.thinking_steps=4", RATIOS)
    folder = write_run(tmp_path / "itt", *four, analysed=True)
    file = folder / "analysis" / "thinking.json"
    steps = json.loads(file.read_text())["steps"]
    changed_file(file, steps=[step for step in steps if step["step"] != 2])
    (overlap,) = [one for one in build([folder], [], "t").page.figures if one.name == "overlap"]
    assert {(one["layer"], one["step"]) for one in overlap.data["overlap"]} == {(1, "3"), (3, "3")}
    assert {one["chance"] for one in overlap.data["overlap"]} == {0.5}


def test_a_weight_that_is_not_finite_is_none_in_the_map(tmp_path):
    folder = write_run(tmp_path / "itt", analysed=True)
    file = folder / "analysis" / "thinking.json"
    texts = json.loads(file.read_text())["texts"]
    texts[0]["steps"][0]["weights"][:2] = [math.nan, math.inf]
    changed_file(file, texts=texts)
    page = build([folder], [], "t").page
    assert page.maps[0]["texts"][0]["steps"][0]["weights"][:2] == [None, None]
    render(page)


def test_a_named_file_of_damaged_perplexities_ends_the_command(tmp_path):
    folder = write_run(tmp_path / "itt", analysed=True)
    changed_file(folder / "perplexity.json", settings=[])
    with pytest.raises(UserError, match=r"perplexity.json is damaged: settings .*; measure it"):
        build([write_run(tmp_path / "other")], [folder / "perplexity.json"], "t")


def test_a_file_of_perplexities_counts_once_and_has_a_name_of_its_own(tmp_path):
    run = write_run(tmp_path / "itt", analysed=True)
    own = run / "perplexity.json"
    for name in "abc":
        shutil.copy(own, tmp_path / f"{name}.json")
    for name in "ab":  # of runs with other seeds
        model = json.loads(own.read_text())["model"] | {"weights_sha256": name}
        changed_file(tmp_path / f"{name}.json", model=model)
    files = [tmp_path / "a.json", tmp_path / "b.json", run / ".." / "itt" / "perplexity.json"]
    page = build([run], [*files, tmp_path / "c.json"], "t").page
    (elastic,) = [figure for figure in page.figures if figure.name == "elastic"]
    names = ["itt", f"itt ({files[0]})", f"itt ({files[1]})"]
    assert list(dict.fromkeys(one["experiment"] for one in elastic.data["settings"])) == names
    assert len({one["key"] for one in elastic.data["settings"]}) == 3 * 5
    (model,) = [control for control in elastic.controls if control.label == "Model"]
    assert [option.label for option in model.options] == ["all", *names]
    assert model.options[2].changes == {"transform.1.filter": {"field": "number", "oneOf": [1]}}
    (warning,) = page.warnings
    assert warning == f"{tmp_path / 'c.json'} holds no measurement that is not drawn already"


def test_perplexities_that_no_figure_has_are_reported_with_their_values(tmp_path):
    run = write_run(tmp_path / "itt", analysed=True)
    content = json.loads((run / "perplexity.json").read_text())
    (run / "perplexity.json").unlink()
    content["text_sha256"] = "of other rows"
    files = []
    for number, setting in enumerate(content["settings"][:2]):
        model = {**content["model"], "name": f"m{number}", "weights_sha256": f"{number}"}
        changed = {
            **content,
            "model": model,
            "settings": [setting | {"perplexity": 20.25 + number}],
        }
        files.append(tmp_path / f"{number}.json")
        files[-1].write_text(json.dumps(changed))
    page = build([run], files, "t").page
    assert "elastic" not in [figure.name for figure in page.figures]
    warnings = [warning for warning in page.warnings if "are in no figure" in warning]
    assert [
        "m0" in warnings[0],
        "20.25 at" in warnings[0],
        "m1" in warnings[1],
        "21.25 at" in warnings[1],
    ] == ([True] * 4)


def test_a_finished_run_without_its_log_is_not_said_to_have_none_yet(tmp_path):
    run = write_run(tmp_path / "itt")
    (run / "metrics.jsonl").unlink()
    assert any("metrics.jsonl does not exist" in one for one in build([run], [], "t").page.warnings)


def test_a_log_outside_the_run_folder_is_named(tmp_path):
    run = write_run(tmp_path / "itt")
    (run / "metrics.jsonl").unlink()
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["loggers"] = {"json_lines": {"path": "elsewhere.jsonl"}}
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    told = build([run], [], "t").page.warnings
    assert any("loggers.json_lines.path=elsewhere.jsonl was written instead" in one for one in told)


def test_perplexities_of_other_text_are_warned_of(tmp_path):
    run = write_run(tmp_path / "itt", analysed=True)
    result = json.loads((run / "perplexity.json").read_text())
    result["suite"] |= {"split": "test", "data": "other"}
    result["settings"][0]["tokens"] = 90
    result["text_sha256"] = "of other rows"
    for name in "ab":
        result["model"]["weights_sha256"] = name
        (tmp_path / f"{name}.json").write_text(json.dumps(result))
    (warning,) = build([run], [tmp_path / "a.json", tmp_path / "b.json"], "t").page.warnings
    assert "a.json) on 90 tokens of other (test): their perplexities are of other text" in warning


def test_ratios_that_round_to_the_same_percent_are_two_settings(tmp_path):
    run = write_run(tmp_path / "itt", analysed=True)
    settings = json.loads((run / "perplexity.json").read_text())["settings"]
    near = {**settings[0], "select_ratios": [0.001] * 3}
    changed_file(run / "perplexity.json", settings=[*settings, near])
    (elastic,) = [one for one in build([run], [], "t").page.figures if one.name == "elastic"]
    assert len(elastic.data["settings"]) == len(settings) + 1


def test_gradients_of_a_model_from_elsewhere_stand_beside_those_of_runs(tmp_path):
    run = write_run(tmp_path / "itt", analysed=True)
    own, file = run / "analysis" / "gradients.json", tmp_path / "gpt2.json"
    shutil.copy(own, file)
    changed_file(file, layers=list(range(4)), thinking_layers=[])
    report = build([run], [], "t", [file, own])
    (figure,) = [one for one in report.page.figures if one.name == "gradients"]
    panels = dict.fromkeys(record["panel"] for record in figure.data["gradients"])
    assert list(panels)[::4] == ["q · itt", "q · gpt2"]
    assert len(panels) == 8
    with pytest.raises(
        UserError, match=r"--gradients .*perplexity.json is not a result of `itt analyse"
    ):
        build([run], [], "t", [run / "perplexity.json"])


def test_a_token_of_the_printed_map_has_the_room_that_its_letters_take():
    tokens = ["\u65e5\u672c", "e\u0301", "a" * 100, "", "b"]
    drawn = laid_out(tokens, [1, 2, 3, 4, 5])
    places = [tuple(one[name] for name in ("line", "start", "end", "steps")) for one in drawn]
    assert places == [(0, 0, 4, 1), (0, 4, 5, 2), (1, 0, 84, 3), (2, 0, 16, 3), (2, 16, 17, 5)]


def test_a_text_from_right_to_left_is_left_out_of_print_with_a_note(tmp_path):
    folder = write_run(tmp_path / "itt", analysed=True)
    file = folder / "analysis" / "thinking.json"
    texts = json.loads(file.read_text())["texts"]
    texts[0]["tokens"][0] = "\u05d0"
    changed_file(file, texts=texts)
    report = build([folder], [], "t")
    assert (len(report.printed), report.page.warnings) == (1, [])  # of the other text
    changed_file(file, texts=texts[:1])
    report = build([folder], [], "t")
    assert report.printed == []
    (warning,) = report.page.warnings
    assert "itt, at 50/50 has no routing map as PNG: its texts have letters that are" in warning


def test_a_model_has_its_colour_in_every_figure_and_its_name_in_every_picture(tmp_path):
    runs = [write_run(tmp_path / "dense", *DENSE), write_run(tmp_path / "itt", analysed=True)]
    runs.append(write_run(tmp_path / "again", "thinking.reweighting=symmetric", analysed=True))
    figures = {figure.name: figure for figure in build(runs, [], "t").page.figures}

    def colours(figure, layer):
        scale = figures[figure].spec["layer"][layer]["encoding"]["color"]["scale"]
        return dict(zip(scale["domain"], scale["range"], strict=True))

    in_curves, in_elastic = colours("curves", 1), colours("elastic", 0)
    assert in_elastic.items() <= in_curves.items()
    assert len(in_elastic) == 2
    assert [in_curves[name] == DENSE_COLOUR for name in ("dense", "itt", "again")] == [
        *(True, False, False)
    ]
    prints = prints_of(figures["router_weights"])
    assert [one.name for one in prints] == ["router_weights_1", "router_weights_2"]
    titles = [print_spec(figures["router_weights"], one)["title"] for one in prints]
    assert titles == ["itt, at 50/50", "again, at 50/50"]


def test_data_efficiency_stands_beside_the_dense_run(runs):
    figures = {figure.name: figure for figure in build(runs, [], "title").page.figures}
    ((label, target, own, tokens, flops, time),) = figures["equal_compute"].table.rows
    assert (label, target, own) == ("itt", "4.1000", "4.0000")
    assert tokens == time == "74 %"  # between the validations after 20 and 30 of 40 batches
    assert int(flops.split()[0]) > 74  # of dearer batches


def test_efficiency_is_against_the_dense_run_that_is_named(tmp_path):
    far, near, itt = (tmp_path / name / name[0] for name in ("l-far", "l-near", "itt"))
    write_run(far, *DENSE, "seed=5", "run_name=llama", loss=5.0)
    write_run(near, *DENSE, "run_name=llama", loss=4.1)
    write_run(itt, "run_name=itt", loss=4.0)
    table = efficiency_of([far, near, itt])
    assert [row[:4] for row in table.rows] == [["itt", "4.1000", "4.0000", "74 %"]]
    assert table.notes == []


def test_what_else_differs_from_the_dense_run_is_reported(tmp_path):
    runs = [write_run(tmp_path / "dense", *DENSE), write_run(tmp_path / "itt", "seed=5")]
    (note,) = efficiency_of(runs).notes
    assert note.startswith("itt beside dense: seed is 5 in itt, ")


def efficiency_of(runs):
    figures = {figure.name: figure for figure in build(runs, [], "title").page.figures}
    return figures["equal_compute"].table


def test_without_times_there_is_no_axis_of_them(tmp_path):
    runs = [write_run(tmp_path / "dense", *DENSE, loss=4.1), write_run(tmp_path / "itt")]
    for run in runs:
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        texts = [json.dumps({**line, "time/train": None}) + "\n" for line in lines]
        (run / "metrics.jsonl").write_text("".join(texts))
    figures = {figure.name: figure for figure in build(runs, [], "title").page.figures}
    for name in ("curves", "equal_compute"):
        (over,) = [control for control in figures[name].controls if control.name == "x"]
        assert {option.label for option in over.options} == {"tokens", "executed FLOPs"}
    assert [one.name for one in figures["equal_compute"].prints] == [
        "equal_compute_flops",
        "equal_compute_tokens",
    ]
    (row,) = efficiency_of(runs).rows
    assert row[-1] == "–"


@pytest.mark.parametrize(
    ("setting", "joins"),
    [("train.max_duration=80ba", True), ("model.num_hidden_layers=2", False)],
)
def test_a_line_joins_dense_models_of_one_size(tmp_path, setting, joins):
    runs = [write_run(tmp_path / "dense", *DENSE), write_run(tmp_path / "other", *DENSE, setting)]
    figures = {figure.name: figure for figure in build(runs, [], "title").page.figures}
    assert ("The dashed line joins" in figures["equal_compute"].caption) == joins
    assert ("strokeDash" in json.dumps(figures["equal_compute"].spec["layer"])) == joins


def test_a_run_that_went_on_with_another_recipe_is_reported(tmp_path):
    run = write_run(tmp_path / "itt")
    (run / "recipe_until_batch_20.yaml").write_text("")
    (warning,) = build([run], [], "t").page.warnings
    assert warning.startswith("itt had another recipe until batch 20; ")


def test_own_ratios_alone_are_no_sweep_and_a_model_without_router_has_none(tmp_path):
    folder = write_run(tmp_path / "itt", analysed=True)
    file = folder / "perplexity.json"
    result = json.loads(file.read_text())
    file.write_text(json.dumps({**result, "settings": result["settings"][:1]}))
    (command,) = [command for _, command in build([folder], [], "t").page.missing]
    assert "eval/suites/elastic.yaml" in command
    loop = write_run(tmp_path / "loop", "thinking.thinking=loop", "thinking.select_ratios=null")
    missing = [command for _, command in build([loop], [], "t").page.missing]
    assert not any("elastic.yaml" in command for command in missing)


def test_an_efficiency_reached_at_the_first_validation_is_a_bound(tmp_path):
    runs = [write_run(tmp_path / "dense", *DENSE, loss=8), write_run(tmp_path / "itt", loss=1)]
    figures = {figure.name: figure for figure in build(runs, [], "title").page.figures}
    ((_, _, _, tokens, flops, _),) = figures["equal_compute"].table.rows
    assert tokens == "≤ 25 %"
    assert flops.startswith("≤ ")


def test_a_terminal_of_80_columns_cuts_nothing_off(tmp_path):
    long_name = ("thinking.thinking_update=increment", "thinking.step_encoding_init=0.0")
    runs = [write_run(tmp_path / "itt"), write_run(tmp_path / "other", *long_name, loss=4.1)]
    text = io.StringIO()
    build(runs, [], "title").page.summary.brief().print(Console(width=80, file=text))
    assert "60.34" in text.getvalue()  # exp(4.1)
    assert (
        "On the page, too: training time; thinking_update; step_encoding_init.\n" in text.getvalue()
    )
    assert "…" not in text.getvalue()


def test_changes_reach_every_part_of_a_list_and_leave_the_rest():
    spec = {"layer": [{"x": {"field": "a"}}, {"y": 1}]}
    new = changed(spec, {"layer.*.x.field": "b", "layer.1.y": 2, "layer.5.z": 3, "no.where": 4})
    assert new == {"layer": [{"x": {"field": "b"}}, {"y": 2}]}
    assert spec["layer"][0]["x"]["field"] == "a"


def test_records_are_packed_by_column():
    records = [{"run": "a", "loss": 1.2345678}, {"run": "b", "loss": float("nan")}]
    assert pack(records) == {
        "count": 2,
        "columns": {
            "run": {"texts": ["a", "b"], "places": [0, 1]},
            "loss": {"values": [1.2346, None]},
        },
    }


def test_the_command_writes_the_page_and_the_table_and_reports_mistakes(runs, tmp_path):
    out, table = tmp_path / "deep" / "report.html", tmp_path / "table.md"
    words = [*map(str, runs), "--out", str(out), "--markdown", str(table)]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert "ITT×3" in result.output
    assert out.stat().st_size < 2e6
    assert "| itt | 54.60 | 55.15 | ITT×3 | 50/80 |" in table.read_text()
    assert list(out.parent.iterdir()) == [out]
    for wrong, sentence in (
        ([str(tmp_path)], "is not a run folder"),
        ([str(runs[0]), "--out", str(tmp_path)], "is a folder; name a file"),
        ([str(runs[0]), "--perplexity", str(tmp_path / "no.json")], "does not exist"),
    ):
        result = CliRunner().invoke(app, wrong)
        assert result.exit_code == 1
        assert sentence in result.output


def test_a_step_has_the_same_colour_whichever_others_there_are():
    every, one = (step_colour(steps).to_dict()["scale"] for steps in (["0", "1", "2"], ["2"]))
    assert dict(zip(every["domain"], every["range"], strict=True))["2"] == one["range"][0]


def test_a_share_of_fewer_seeds_than_there_are_says_so():
    assert share_text([0.84, 0.86], "", 2) == "85 %"
    assert share_text([0.84, None], "", 2) == share_text([0.84], "", 2) == "84 % (1 of 2)"
