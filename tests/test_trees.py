"""Preference trees: what a batch holds, where its pairs point, and who sees whom."""

import doctest
from itertools import groupby

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tiebreak.training import trees

ids = st.lists(st.integers(1, 9), min_size=1, max_size=6).map(tuple)
examples_of_few_prompts = st.lists(
    st.builds(
        trees.Example,
        st.integers(0, 99),
        st.sampled_from([(1,), (1, 2), (1, 2, 3, 4, 5), (9, 9)]),
        st.tuples(st.sampled_from([(1,), (2, 3), (2, 3, 4), (1, 1, 1, 1)]), ids),
    ),
    max_size=12,
)
forests = st.lists(
    st.builds(
        lambda prompt, completions: trees.Tree(prompt, tuple(completions)),
        ids,
        st.lists(ids, min_size=1, max_size=4, unique=True),
    ),
    min_size=1,
    max_size=6,
)


def test_examples_in_the_docstrings() -> None:
    result = doctest.testmod(trees)
    assert result.attempted >= 5
    assert result.failed == 0


@given(examples_of_few_prompts)
def test_an_example_points_at_its_own_completions(examples: list[trees.Example]) -> None:
    grown, places = trees.grow(examples)
    flat = [(tree.prompt, completion) for tree in grown for completion in tree.completions]
    for example, own in zip(examples, places, strict=True):
        assert [flat[place] for place in own] == [(example.prompt, completion) for completion in example.completions]
    assert len(flat) == len(set(flat)), "a completion stands once under its prompt"
    assert len({tree.prompt for tree in grown}) == len(grown), "a prompt has one tree"
    assert {place for own in places for place in own} == set(range(len(flat))), "nothing that no example asked for"


@given(st.lists(st.integers(1, 30), max_size=20), st.integers(1, 40))
def test_rows_hold_everything_once_and_no_more_than_they_may(sizes: list[int], row_tokens: int) -> None:
    rows = trees.pack(sizes, row_tokens)
    assert sorted(at for row in rows for at in row) == list(range(len(sizes)))
    for row in rows:
        assert sum(sizes[at] for at in row) <= row_tokens or len(row) == 1
    assert trees.pack(sizes, float("inf")) == ([list(range(len(sizes)))] if sizes else [])


@given(forests)
def test_a_row_holds_every_token_once(forest: list[trees.Tree]) -> None:
    row = trees.lay(forest)
    assert len(row["input_ids"]) == sum(tree.tokens for tree in forest)
    # Read back, branch by branch, each completion stands under its owner, with its own prompt and positions before it.
    flat = [(tree.prompt, completion) for tree in forest for completion in tree.completions]
    seen = {}
    columns = zip(*(row[name].tolist() for name in ("tree", "branch", "input_ids", "position_ids")), strict=True)
    owners = (owner for owner, _ in groupby(row["owner"].tolist()))
    prompt: tuple[int, ...] = ()
    for (_, branch), group in groupby(columns, key=lambda column: column[:2]):
        tokens = list(group)
        found, positions = tuple(token[2] for token in tokens), [token[3] for token in tokens]
        if branch == 0:
            prompt = found
            assert positions == list(range(len(prompt)))
        else:
            seen[next(owners)] = (prompt, found)
            assert positions == list(range(len(prompt), len(prompt) + len(found))), "positions restart at the prompt's end"
    assert next(owners, None) is None
    assert seen == dict(enumerate(flat))


@given(forests)
def test_every_label_is_predicted_by_the_token_before_it(forest: list[trees.Tree]) -> None:
    row = trees.lay(forest)
    place = row["keep"][row["source"]]
    labels = torch.nonzero(row["branch"])[:, 0]  # completion tokens, in the order of the row
    assert row["input_ids"][labels].tolist() == row["labels"].tolist()
    assert (row["tree"][place] == row["tree"][labels]).all()
    assert (row["position_ids"][place] == row["position_ids"][labels] - 1).all()
    assert ((row["branch"][place] == 0) | (row["branch"][place] == row["branch"][labels])).all()
    assert len(row["keep"]) == len(set(row["keep"].tolist())), "no place's logits are computed twice"


def test_pad() -> None:
    padded = trees.pad([trees.Tree((7, 8), ((1, 2), (3,))), trees.Tree((9,), ((4,),))], pad_id=0)
    assert padded["input_ids"].tolist() == [[7, 8, 1, 2], [7, 8, 3, 0], [9, 4, 0, 0]]
    assert padded["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]]
    assert padded["completion_mask"].int().tolist() == [[0, 0, 1, 1], [0, 0, 1, 0], [0, 1, 0, 0]]
    assert padded["owner"].tolist() == [0, 0, 1, 2]


@pytest.mark.parametrize("pad_id", [0, 4])
def test_padding_is_never_a_completion(pad_id: int) -> None:
    padded = trees.pad([trees.Tree((7,), ((4,), (4, 4, 4)))], pad_id)
    assert padded["completion_mask"].sum().item() == 4
    assert (padded["completion_mask"] <= padded["attention_mask"].bool()).all()
