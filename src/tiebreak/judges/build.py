"""From a recipe's judge to the part that decides."""

from __future__ import annotations

from tiebreak import recipe
from tiebreak.judges import Comparer, Rater
from tiebreak.run import Run


def build_judge(section: recipe.Judge, run: Run) -> Comparer | Rater:
    """Return the judge that a section of the recipe describes."""
    if isinstance(section, recipe.RulesJudge):
        from tiebreak.judges.rules import Rules

        return Rules(section)
    from tiebreak.judges.llm import Llm, read_criteria

    return Llm(section, read_criteria(run, section), run.recipe.seed)
