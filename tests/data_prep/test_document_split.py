"""The split into train and validation: stable forever, by the text alone."""

import random

import pytest

from data_prep.document_split import document_fraction, split_of


@pytest.mark.parametrize(
    ("text", "fraction"),
    [
        ("", 0.8931675160897388),
        ("Hello", 0.23578704145177343),
        ("héllo 日本語 😀\n", 0.24364482629439355),
    ],
)
def test_fractions_never_change(text, fraction):
    # A change would move documents between the splits of shards that already exist.
    assert document_fraction(text) == fraction


def test_fractions_are_uniform():
    fractions = [document_fraction(str(number)) for number in range(20_000)]
    assert all(0 <= fraction < 1 for fraction in fractions)
    for share in (0.01, 0.05, 0.5):
        assert sum(f < share for f in fractions) / 20_000 == pytest.approx(share, rel=0.1)


def test_split_does_not_depend_on_order_or_repetition():
    texts = [f"document {number}" for number in range(500)]
    first = {text: split_of(text, 0.3) for text in texts}
    shuffled = texts * 2
    random.Random(0).shuffle(shuffled)
    assert all(split_of(text, 0.3) == first[text] for text in shuffled)
    assert set(first.values()) == {"train", "validation"}


def test_a_larger_share_keeps_the_validation_documents():
    texts = [f"document {number}" for number in range(500)]
    small = {text for text in texts if split_of(text, 0.05) == "validation"}
    large = {text for text in texts if split_of(text, 0.2) == "validation"}
    assert small < large


def test_shares_of_nothing_and_everything():
    assert split_of("any", 0.0) == "train"
    assert split_of("any", 1.0) == "validation"
