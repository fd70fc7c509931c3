"""The page in a real browser, with the network off."""

import json
import math
import os
import re
import shutil

import pytest
from report_runs import write_run

from itt_composer.report.build import build

DENSE = ("thinking.thinking=dense", "thinking.thinking_steps=null", "thinking.select_ratios=null")
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
DESKTOP = {"viewport": {"width": 1200, "height": 900}}
PHONE = {"viewport": {"width": 375, "height": 750}, "has_touch": True, "is_mobile": True}
FIGURES = (
    *("curves", "equal_compute", "elastic", "training_thinking", "router_weights"),
    *("step_encodings", "token_classes", "overlap", "gradients"),
)


@pytest.fixture(scope="module")
def browser():
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        sentence = "no Chromium is installed: apt-get install chromium, and run these tests again"
        if os.environ.get("CI"):
            pytest.fail(sentence)
        pytest.skip(sentence)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A page with every figure; names are made to break it."""
    folder = tmp_path_factory.mktemp("report")
    runs = [
        write_run(folder / "dense-1", *DENSE, loss=4.1),
        write_run(folder / "dense-2", *DENSE, "train.max_duration=80ba", batches=80, loss=3.9),
        write_run(folder / "itt-1", loss=4.0, analysed=True),
        write_run(folder / "itt-2", "seed=18", loss=4.0, analysed=True),
        write_run(folder / "itt-3", "thinking.reweighting=symmetric", batches=9, finished=False),
    ]
    for run in runs[2:4]:
        recipe = run / "recipe.yaml"
        evil = f"{run.name}'\\\"</script><img src=x onerror=alert(1)>"
        text = recipe.read_text().replace(f"run_name: {run.name}", f'run_name: "{evil}"')
        recipe.write_text(text)
    path = folder / "report.html"
    build(runs, [], "Report").write(path)
    return path


@pytest.fixture
def open_page(browser, report):
    """Open the page; anything in the console and any request beside the file fail the test."""
    complaints = []
    contexts = []

    allowed = {report.as_uri()}

    def open_(path=report, **options):
        allowed.add(path.as_uri())
        context = browser.new_context(offline=True, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append("a dialog"))
        page.on("request", lambda request: complaints.extend(outside(request.url)))
        page.goto(path.as_uri())
        page.wait_for_selector("body[data-drawn]", timeout=60_000)
        return page

    def outside(url):
        return [] if url in allowed or url.startswith(("data:", "blob:")) else [url]

    yield open_
    for context in contexts:
        context.close()
    assert complaints == []


def marks(page, name):
    """The paths that a figure has drawn, in order."""
    return page.eval_on_selector_all(
        f"#{name} .chart svg path",
        "paths => paths.map(path => path.getAttribute('d')).filter(Boolean)",
    )


def choose(page, section, control, label):
    """Choose an option and wait until the figure is drawn anew."""
    page.evaluate(f"document.querySelector('#{section} svg')?.setAttribute('data-old', '')")
    page.select_option(f"#{section} select[name={control}]", label=label)
    page.wait_for_selector(f"#{section} svg:not([data-old])", timeout=20_000)


def axis_titles(page, section):
    return page.eval_on_selector_all(
        f"#{section} .role-axis-title text", "texts => texts.map(text => text.textContent)"
    )


def test_every_figure_is_drawn_and_controls_change_it(open_page):
    page = open_page(**DESKTOP)
    assert page.locator("section.figure").count() == len(FIGURES)
    for name in FIGURES:
        assert len(marks(page, name)) > 8, name
    assert page.locator(".failed").count() == 0

    tokens = marks(page, "curves")
    choose(page, "curves", "x", "executed FLOPs")
    assert any("executed training FLOPs" in title for title in axis_titles(page, "curves"))
    assert marks(page, "curves") != tokens
    choose(page, "curves", "y", "perplexity")
    assert "perplexity" in axis_titles(page, "curves")
    choose(page, "curves", "scale", "logarithmic")

    everything = len(marks(page, "training_thinking"))
    choose(page, "training_thinking", "layer", "3")
    assert len(marks(page, "training_thinking")) < everything
    choose(page, "training_thinking", "figure", "step encoding φ, mean")
    assert set(axis_titles(page, "training_thinking")) >= {"step encoding φ, mean"}

    labels = page.eval_on_selector_all(
        "#router_weights select option", "options => options.map(option => option.label)"
    )
    assert len(labels) == 2
    assert all("</script><img" in label for label in labels)
    choose(page, "router_weights", "run", labels[1])
    assert len(marks(page, "router_weights")) > 8


def test_runs_keep_their_names_and_perplexity_comes_second(open_page):
    page = open_page(**DESKTOP)
    rows = page.eval_on_selector_all(
        "#summary tr",
        "rows => rows.map(row => [...row.cells].map(cell => cell.textContent.trim()))",
    )
    assert rows[0][:4] == ["run", "validation perplexity", "by thresholds", "model"]
    assert rows[0][5:7] == ["length", "reweighting"]
    names = [row[0].splitlines()[0] for row in rows[1:]]
    assert names[0] == "dense-1"
    legend = page.locator("#curves .role-legend-label text").all_text_contents()
    assert set(legend) <= {name.strip() for name in names} | {"itt-3"}
    assert {"dense-1", "dense-2", "itt-3"} < set(legend)


def test_validation_only_gives_the_axis_to_validation(open_page):
    page = open_page(**DESKTOP)
    domain = "charts[0].view.view.scale('y').domain()"
    both = page.evaluate(domain)
    losses = page.evaluate("charts[0].records.validation.map(one => one.loss)")
    choose(page, "curves", "shown", "validation only")
    low, high = page.evaluate(domain)
    assert both[1] - both[0] > 1.5 * (high - low)
    assert low < min(losses) < max(losses) < high
    choose(page, "curves", "y", "perplexity")
    assert page.evaluate(domain) == pytest.approx([math.exp(low), math.exp(high)])
    choose(page, "curves", "shown", "training and validation")
    assert page.evaluate(domain) == pytest.approx([math.exp(end) for end in both])


def test_any_place_beside_a_curve_shows_the_nearest_point_of_it(open_page):
    page = open_page(**DESKTOP)
    chart = page.locator("#curves .chart svg.marks")
    for x in (251, 404, 557):
        chart.hover(position={"x": x, "y": 230}, force=True)
        tooltip = page.locator("#vg-tooltip-element.visible")
        tooltip.wait_for()
        text = tooltip.inner_text()
        assert "training loss, smoothed" in text
        assert re.search(r"run\s+(dense|itt)-\d", text)
        assert "undefined" not in text


def boxes(page, selector):
    return page.eval_on_selector_all(
        selector,
        "all => all.map(one => one.getBoundingClientRect()).filter(box => box.width)"
        ".map(box => [box.left, box.top, box.right, box.bottom])",
    )


@pytest.mark.parametrize("options", [DESKTOP, PHONE])
def test_names_of_settings_cover_no_point(open_page, tmp_path, options):
    build([write_run(tmp_path / "itt", analysed=True)], [], "t").write(tmp_path / "one.html")
    page = open_page(tmp_path / "one.html", **options)
    for shown in ("that think", "all, 0/0/0 too"):
        choose(page, "elastic", "settings", shown)
        points = boxes(page, "#elastic .mark-symbol.role-mark path")
        names = boxes(page, "#elastic .mark-text.role-mark text")
        assert len(names) > 2
        for number, (left, top, right, bottom) in enumerate(names):
            for other in [*points, *names[:number]]:
                is_apart = other[2] <= left or other[0] >= right
                assert is_apart or other[3] <= top or other[1] >= bottom


@pytest.mark.parametrize("options", [DESKTOP, PHONE])
def test_the_menu_of_a_low_chart_is_seen_whole(open_page, options):
    page = open_page(**options)
    page.locator("#overlap summary").click(force=True)
    page.locator("#overlap .vega-actions").wait_for()
    corners = page.evaluate(
        """() => {
            const menu = document.querySelector('#overlap .vega-actions');
            menu.scrollIntoView({block: 'center', behavior: 'instant'});
            const {left, top, right, bottom} = menu.getBoundingClientRect();
            return [[left, top], [right, top], [left, bottom], [right, bottom]].map(([x, y]) =>
                menu.contains(document.elementFromPoint(
                    x + (x === left ? 4 : -4), y + (y === top ? 4 : -4))));
        }"""
    )
    assert corners == [True] * 4


def test_the_elastic_figure_leaves_out_no_thinking_until_it_is_asked_for(open_page):
    page = open_page(**DESKTOP)
    points = page.locator("#elastic .mark-symbol.role-mark path")
    thinking = points.count()
    choose(page, "elastic", "settings", "all, 0/0/0 too")
    assert thinking > 0
    assert points.count() == thinking * 5 / 4  # one of five ratios


def test_of_more_models_than_colours_the_usual_ones_stand_out_at_first(open_page, tmp_path):
    runs = [write_run(tmp_path / "dense", *DENSE), write_run(tmp_path / "itt")]
    for number in range(6):
        rate = f"optimizer.decoupled_adamw.lr=0.0{number + 1}"
        runs.append(write_run(tmp_path / f"rate-{number}", rate))
    build(runs, [], "Many").write(tmp_path / "many.html")
    page = open_page(tmp_path / "many.html", **DESKTOP)
    points = "#equal_compute .mark-symbol.role-mark path"
    faint = "path => path.filter(one => Number(one.getAttribute('opacity') ?? 1) < 0.5).length"
    opacities = page.eval_on_selector_all(
        points, "path => path.map(one => Number(one.getAttribute('opacity') ?? 1))"
    )
    assert [opacity > 0.5 for opacity in opacities] == [True] * 2 + [False] * 6
    assert "At first the models of usual settings" in page.inner_text("#equal_compute .caption")
    seen = page.eval_on_selector_all(
        "#curves .mark-symbol.role-mark path",
        "path => path.filter(one => Number(one.getAttribute('opacity') ?? 1) > 0.5).length",
    )
    assert seen == 2 * 4  # of two models; no point of a training curve is shown yet
    legend = page.locator("#equal_compute .role-legend-label text", has_text="rate-2")
    legend.click(force=True)
    page.wait_for_function(
        f"document.querySelectorAll('{points}')[4].getAttribute('opacity') > 0.5"
    )
    choose(page, "equal_compute", "x", "tokens")  # what was clicked stays
    assert page.eval_on_selector_all(points, faint) == 7
    choose(page, "equal_compute", "models", "all")
    assert page.eval_on_selector_all(points, faint) == 0
    choose(page, "equal_compute", "models", "usual settings")
    assert page.eval_on_selector_all(points, faint) == 6
    page.locator("#equal_compute .chart svg.marks").dblclick(position={"x": 300, "y": 300})
    page.wait_for_function(
        f"[...document.querySelectorAll('{points}')].every("
        "one => (one.getAttribute('opacity') ?? 1) > 0.5)"
    )


def test_the_legend_highlights_and_the_chart_shows_its_points(open_page):
    page = open_page(**DESKTOP)
    legend = page.locator(
        "#equal_compute .role-legend-label text", has_text=re.compile("^dense-1$")
    )
    faint = "path => path.filter(one => Number(one.getAttribute('opacity') ?? 1) < 0.5).length"
    points = "#equal_compute .mark-symbol.role-mark path"
    assert page.eval_on_selector_all(points, faint) == 0
    legend.click(force=True)
    page.wait_for_function(
        f"[...document.querySelectorAll('{points}')].some(one => one.getAttribute('opacity') < 0.5)"
    )
    page.locator(points).first.hover(force=True)
    tooltip = page.locator("#vg-tooltip-element.visible")
    tooltip.wait_for()
    assert "validation loss" in tooltip.inner_text()


def test_a_chart_zooms_and_stays_zoomed_until_an_axis_changes(open_page):
    page = open_page(**DESKTOP)
    domains = "JSON.stringify(['x', 'y'].map(axis => charts[0].view.view.scale(axis).domain()))"
    whole = page.evaluate(domains)
    chart = page.locator("#curves .chart svg.marks")
    chart.hover(position={"x": 400, "y": 150})
    page.evaluate(
        "addEventListener('wheel', () => requestAnimationFrame(() =>"
        " requestAnimationFrame(() => { window.hasTurned = true; })), {once: true})"
    )
    page.mouse.wheel(0, -100)  # scrolls the page
    page.wait_for_function("window.hasTurned")
    assert page.evaluate(domains) == whole
    chart.hover(position={"x": 400, "y": 150})
    page.keyboard.down("Control")
    page.mouse.wheel(0, -100)
    page.keyboard.up("Control")
    page.wait_for_function(f"{domains} !== {json.dumps(whole)}")
    zoomed = page.evaluate(domains)
    choose(page, "curves", "shown", "validation only")
    assert page.evaluate(domains) == zoomed
    choose(page, "curves", "shown", "training and validation")
    choose(page, "curves", "x", "executed FLOPs")
    choose(page, "curves", "x", "tokens")
    assert page.evaluate(domains) == whole


def test_the_routing_map_shades_explains_and_moves(open_page):
    page = open_page(**DESKTOP)
    tokens = page.locator("#routing_map .token")
    assert tokens.count() == 72
    values = "tokens => tokens.map(token => Number(token.dataset.value))"
    data = json.loads(page.locator("#data").text_content())
    text = data["maps"][0]["texts"][0]
    steps = {(one["layer"], one["step"]): one for one in text["steps"]}
    all_steps = [
        sum(column) for column in zip(*(one["selected"] for one in steps.values()), strict=True)
    ]
    assert tokens.evaluate_all(values) == all_steps

    page.select_option("#routing_map select[name=layer]", label="3")
    page.select_option("#routing_map select[name=step]", label="2")
    chosen = steps[3, 2]
    taken = [w if s else 0 for w, s in zip(chosen["weights"], chosen["selected"], strict=True)]
    assert tokens.evaluate_all(values) == taken
    depths = tokens.evaluate_all("all => all.map(one => one.style.getPropertyValue('--depth'))")
    assert [float(depth) > 0 for depth in depths] == [bool(s) for s in chosen["selected"]]

    tokens.nth(1).hover()
    card = page.locator(".card")
    card.wait_for()
    assert "tower" in card.inner_text()
    assert f"{chosen['weights'][1]:.2f}" in card.inner_text()
    tokens.nth(1).click()
    page.keyboard.press("ArrowRight")
    assert "of" in page.evaluate("document.activeElement.textContent")
    assert "“ of”" in card.inner_text()
    assert "⏎" in tokens.nth(4).inner_text()
    assert tokens.nth(6).inner_text() == "</script>"

    page.select_option("#routing_map select[name=text]", label="<i>another</i>")
    assert tokens.evaluate_all(values) != taken
    page.select_option("#routing_map select[name=model]", index=1)
    assert page.locator("#routing_map select[name=text]").input_value() == "0"


def test_a_phone_in_the_dark_scrolls_downwards_only(open_page, report):
    page = open_page(**PHONE, color_scheme="dark")
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    for name in FIGURES:
        width = page.locator(f"#{name} svg").first.bounding_box()["width"]
        assert 200 < width <= 375, name
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 24, 29)"
    title = "#curves .role-axis-title text"
    old = page.locator(title).first.get_attribute("fill")
    page.emulate_media(color_scheme="light")
    page.wait_for_selector(f"{title}:not([fill='{old}'])")
    tokens = page.locator("#routing_map .token")
    tokens.nth(3).tap()
    box = page.locator(".card").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 375
