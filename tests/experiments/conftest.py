"""What the tests of whole runs share."""

import pytest

from jax_mtlser.evaluation import figures

DRAWN = {"test_other_conditions", "test_paper_configs"}


@pytest.fixture(scope="module", autouse=True)
def figures_drawn_where_they_are_looked_at(request):
    """Drawing a report takes as long as training and judging what it reports; modules that do not look at it go without."""
    if request.module.__name__ in DRAWN:
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "save", lambda figure, stem: '<svg xmlns="http://www.w3.org/2000/svg"></svg>')
        yield
