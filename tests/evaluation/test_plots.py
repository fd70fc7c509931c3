"""The figure of an elastic sweep: every setting is in it, and no name covers another."""

import pytest
from matplotlib import pyplot

from eval.plots import (
    Box,
    Point,
    draw,
    has_points,
    papers_points,
    place_labels,
    plot_elastic,
    points,
    within_frame,
)
from itt_composer.paper import figures as paper


@pytest.fixture
def results():
    """Of the paper's settings by two rules, and the first of them once more."""
    ratios = [list(row.select_ratios) for row in paper.elastic()[:16]]
    settings = [
        {
            "select_ratios": setting,
            "router_selection": rule,
            "early_exit": 0.0,
            "perplexity": 50 - sum(setting) + 0.1 * (rule == "threshold"),
            "paper_flops_per_token": 4e6 * (1 + sum(setting)),
            "executed_flops_per_token": 3e6 * (1 + sum(setting)),
        }
        for setting in [*ratios, ratios[0], [0, 0, 0]]
        for rule in ("top_k", "threshold")
    ]
    return {"model": {"name": "small"}, "suite": {"split": "validation"}, "settings": settings}


def test_every_setting_is_a_point_of_its_rule_once(results):
    series = points(results, "executed")
    assert list(series) == ["top-k", "threshold"]
    for own in series.values():
        assert len(own) == 17
        assert own[0].label == "70/70/70"
        assert own[0].flops == pytest.approx(3 * 3.1)
    assert points(results, "paper")["top-k"][-1] == ("0/0/0", 4.0, 50.0, (0, 0, 0))


def test_ratios_that_round_to_the_same_percent_are_two_points(results):
    results["settings"][0]["select_ratios"] = [0.502, 0.5, 0.5]
    results["settings"][2]["select_ratios"] = [0.498, 0.5, 0.5]
    first, second = points(results, "executed")["top-k"][:2]
    assert first.label == second.label == "50/50/50"
    assert first.perplexity < second.perplexity or first.ratios > second.ratios


def test_early_exit_is_a_series_of_its_own(results):
    results["settings"][1]["early_exit"] = 0.3
    series = points(results, "paper")
    assert series["threshold, early exit at 0.3"][0].label == "70/70/70"


def test_models_without_flops_have_no_points(results):
    assert has_points(results)
    del results["settings"][0]["executed_flops_per_token"]
    assert not has_points(results)


def test_a_point_far_above_the_others_is_noted_instead_of_drawn():
    near = [Point(str(number), number, 10 + 0.1 * number) for number in range(9)]
    far = Point("far", 1, 30)
    assert within_frame({"rule": [*near, far]}) == ({"rule": near}, [far])
    assert within_frame({"rule": near}) == ({"rule": near}, [])
    assert within_frame({"rule": near, "other": [far]}) == ({"rule": near, "other": [far]}, [])


def test_names_cover_neither_each_other_nor_points(results):
    for series in (points(results, "paper"), {"": papers_points()}):
        figure, axes = pyplot.subplots(figsize=(5, 5), dpi=200)
        draw(axes, series, "title")
        figure.draw_without_rendering()
        place_labels(axes, list(series.values()))
        boxes = [Box(*text.get_window_extent().extents) for text in axes.texts]
        assert [text.get_text() for text in axes.texts] == [
            point.label for point in next(iter(series.values()))
        ]
        for number, box in enumerate(boxes):
            assert all(box.common_area(other) < 1 for other in boxes[:number])
            for own in series.values():
                for point in own:
                    x, y = axes.transData.transform(point[1:3])
                    assert not (box.left < x < box.right and box.low < y < box.high)
        pyplot.close(figure)


def test_the_figure_is_written_whole(results, tmp_path):
    path = tmp_path / "figures/elastic.png"
    plot_elastic(results, path)
    assert pyplot.imread(path).shape[:2] == (1000, 2500)
    assert list(path.parent.iterdir()) == [path]
    assert pyplot.get_fignums() == []
