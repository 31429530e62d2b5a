"""Preference trees: what a batch holds, where its pairs point, and who sees whom."""

import doctest
from itertools import groupby

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tiebreak.training import trees

ids = st.lists(st.integers(1, 9), min_size=1, max_size=6)
pairs_of_few_prompts = st.lists(
    st.fixed_dictionaries({
        "prompt_ids": st.sampled_from([[1], [1, 2], [1, 2, 3, 4, 5], [9, 9]]),
        "chosen_ids": st.sampled_from([[1], [2, 3], [2, 3, 4], [1, 1, 1, 1]]),
        "rejected_ids": ids,
    }),
    max_size=12,
)  # fmt: skip
forests = st.lists(
    st.builds(
        lambda prompt, completions: trees.Tree(tuple(prompt), tuple(map(tuple, completions))),
        ids,
        st.lists(ids, min_size=1, max_size=4, unique_by=tuple),
    ),
    min_size=1,
    max_size=6,
)


def test_examples_in_the_docstrings() -> None:
    result = doctest.testmod(trees)
    assert result.attempted >= 5
    assert result.failed == 0


@given(pairs_of_few_prompts)
def test_a_pair_points_at_its_own_completions(pairs: list[trees.PairIds]) -> None:
    grown, chosen, rejected = trees.grow(pairs)
    flat = [(tree.prompt, completion) for tree in grown for completion in tree.completions]
    for pair, won, lost in zip(pairs, chosen, rejected, strict=True):
        assert flat[won] == (tuple(pair["prompt_ids"]), tuple(pair["chosen_ids"]))
        assert flat[lost] == (tuple(pair["prompt_ids"]), tuple(pair["rejected_ids"]))
    assert len(flat) == len(set(flat)), "a completion stands once under its prompt"
    assert len({tree.prompt for tree in grown}) == len(grown), "a prompt has one tree"
    assert set(chosen) | set(rejected) == set(range(len(flat))), "nothing that no pair asked for"


@given(forests, st.integers(1, 40))
def test_rows_hold_every_token_once(forest: list[trees.Tree], row_tokens: int) -> None:
    rows = trees.pack(forest, row_tokens)
    assert sum(len(row["input_ids"]) for row in rows) == sum(tree.tokens for tree in forest)
    for row in rows:
        assert len(row["input_ids"]) <= row_tokens or len(set(row["tree"].tolist())) == 1
    # Read back, branch by branch, each completion stands under its owner, with its own prompt and positions before it.
    flat = [(tree.prompt, completion) for tree in forest for completion in tree.completions]
    seen = {}
    for row in rows:
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


@given(forests, st.integers(1, 40))
def test_every_label_is_predicted_by_the_token_before_it(forest: list[trees.Tree], row_tokens: int) -> None:
    for row in trees.pack(forest, row_tokens):
        place = row["keep"][row["source"]]
        labels = torch.nonzero(row["branch"])[:, 0]  # completion tokens, in the order of the row
        assert row["input_ids"][labels].tolist() == row["labels"].tolist()
        assert (row["tree"][place] == row["tree"][labels]).all()
        assert (row["position_ids"][place] == row["position_ids"][labels] - 1).all()
        assert ((row["branch"][place] == 0) | (row["branch"][place] == row["branch"][labels])).all()
        assert len(row["keep"]) == len(set(row["keep"].tolist())), "no place's logits are computed twice"


def test_the_first_row_with_room_takes_a_tree() -> None:
    forest = [trees.Tree((1,) * 6, ((2,),)), trees.Tree((1,) * 7, ((3,),)), trees.Tree((1,), ((4,),))]
    rows = trees.pack(forest, 10)
    assert [sorted(set(row["owner"].tolist())) for row in rows] == [[0, 2], [1]]


def test_mask() -> None:
    """A token sees its prompt and its own branch, backwards; not another branch, not another tree."""
    (row,) = trees.pack([trees.Tree((7, 8), ((1, 2), (3,))), trees.Tree((7,), ((4,),))])
    mask = trees.tree_mask(row["tree"], row["branch"])
    assert mask.shape == (1, 1, 7, 7)
    assert mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0],  # 7
        [1, 1, 0, 0, 0, 0, 0],  # 8
        [1, 1, 1, 0, 0, 0, 0],  # 1
        [1, 1, 1, 1, 0, 0, 0],  # 2
        [1, 1, 0, 0, 1, 0, 0],  # 3 does not see 1, 2
        [0, 0, 0, 0, 0, 1, 0],  # the other tree's 7
        [0, 0, 0, 0, 0, 1, 1],  # 4
    ]
    plain = torch.ones(7, 7, dtype=torch.bool).tril()
    assert not torch.equal(mask[0, 0], plain), "a causal mask alone would let branches see one another"


def test_pad() -> None:
    padded = trees.pad([trees.Tree((7, 8), ((1, 2), (3,))), trees.Tree((9,), ((4,),))], pad_id=0)
    assert padded["input_ids"].tolist() == [[7, 8, 1, 2], [7, 8, 3, 0], [9, 4, 0, 0]]
    assert padded["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]]
    assert padded["completion_mask"].int().tolist() == [[0, 0, 1, 1], [0, 0, 1, 0], [0, 1, 0, 0]]


@pytest.mark.parametrize("pad_id", [0, 4])
def test_padding_is_never_a_completion(pad_id: int) -> None:
    padded = trees.pad([trees.Tree((7,), ((4,), (4, 4, 4)))], pad_id)
    assert padded["completion_mask"].sum().item() == 4
    assert (padded["completion_mask"] <= padded["attention_mask"].bool()).all()
