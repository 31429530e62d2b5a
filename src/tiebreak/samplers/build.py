"""From a recipe's sampler to the part that draws; torch and openai are imported only for the one that needs them."""

from __future__ import annotations

from tiebreak import recipe
from tiebreak.samplers import Sampler


def build_sampler(section: recipe.Sampler, whole: recipe.Recipe) -> Sampler:
    """Return the sampler that a section of the recipe describes."""
    if isinstance(section, recipe.LocalSampler):
        from tiebreak.samplers.local import Local

        return Local(section.label, section.model or whole.model, section, whole.seed)
    from tiebreak.samplers.api import Api

    return Api(section, whole.seed)
