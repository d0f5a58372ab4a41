"""LD-DPO: DPO in which tokens behind the shorter side's length count less. Liu et al. 2024 (arXiv 2409.06411)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from alignment.methods.dpo import Dpo
from alignment.methods.method import PairLogps

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class LdDpo(Dpo):
    """DPO's −log σ(β · margin), of log-probs that the longer side's excess enters with weight α.

    log π̂(y|x) = Σ_{i ≤ l} log π(y_i|x, y_<i) + α · Σ_{i > l} log π(y_i|x, y_<i), l = min(|y_w|, |y_l|), of policy and
    reference alike. α = 1 is DPO; with α = 0 both sides count for the same number of tokens. Masked format tokens are
    no part of a length.
    """

    name = "ld_dpo"
    first_tokens = True
    healthy: ClassVar[Mapping[str, tuple[float, float]]] = {**Dpo.healthy, "ld_alpha": (0.1, 0.9)}

    ld_alpha: float = 0.5
    """α: weight of the tokens of the longer side that lie beyond the shorter side's length."""

    def loss(self, rows: PairLogps, constants: Any = None) -> torch.Tensor:
        """The loss of `Dpo` on desensitised log-probs, a row."""
        return super().loss(self._desensitised(rows))

    def rewards(self, rows: PairLogps) -> tuple[torch.Tensor, torch.Tensor]:
        """β times each log-ratio of the desensitised log-probs."""
        return super().rewards(self._desensitised(rows))

    def _desensitised(self, rows: PairLogps) -> PairLogps:
        def weighed(whole: torch.Tensor, first: torch.Tensor | None) -> torch.Tensor:
            assert first is not None, "the sums over the first tokens were not asked for"
            return first + self.ld_alpha * (whole - first)

        return replace(
            rows,
            policy_chosen=weighed(rows.policy_chosen, rows.policy_chosen_first),
            policy_rejected=weighed(rows.policy_rejected, rows.policy_rejected_first),
            ref_chosen=weighed(rows.ref_chosen, rows.ref_chosen_first),
            ref_rejected=weighed(rows.ref_rejected, rows.ref_rejected_first),
        )
