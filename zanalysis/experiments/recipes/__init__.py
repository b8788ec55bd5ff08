"""The experiments of the two seeds, each one declarative table; the runner reads them."""

from zanalysis.errors import InputError, did_you_mean
from zanalysis.experiments.recipes import depth, low_rank, residual_networks, zero_weights
from zanalysis.experiments.recipes.schema import METRICS, SCALES, Protocol, Recipe, System

__all__ = ["METRICS", "RECIPES", "SCALES", "Protocol", "Recipe", "System", "find"]

_THEOREM_1 = Recipe(
    name="theorem-1",
    title="Theorem 1 and Figure 3: rank under the partial identity, Hadamard and random weights",
    source="ZerO (arXiv 2110.12661), section 2.3 and Figure 3; the authors' notebook",
    metric="verdict",
    picture="theorem",
    note="The same as `zanalysis verify theorem1`, which has more options.",
)

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        _THEOREM_1,
        *residual_networks.RECIPES,
        *depth.RECIPES,
        *low_rank.RECIPES,
        *zero_weights.RECIPES,
    )
}
"""Every experiment by name."""


def find(name: str) -> Recipe:
    """Return an experiment.

    Args:
        name: of the recipe.

    Returns:
        The recipe.

    Raises:
        InputError: if there is none; the nearest is named.

    Example:
        >>> find("table-3").metric
        'error'
    """
    if name not in RECIPES:
        raise InputError(f"unknown experiment {name!r}; {did_you_mean(name, RECIPES)}")
    return RECIPES[name]
