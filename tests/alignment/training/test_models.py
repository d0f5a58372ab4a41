"""What is saved of a training."""

from __future__ import annotations

import pytest
import torch

from alignment.errors import BadInput
from alignment.training.models import require_finite


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_training_that_diverged_is_no_checkpoint(value: float) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    require_finite(model)
    with torch.no_grad():
        model[1].weight[0, 1] = value
    with pytest.raises(BadInput, match=r"diverged: 1\.weight .* lower the learning rate"):
        require_finite(model)
