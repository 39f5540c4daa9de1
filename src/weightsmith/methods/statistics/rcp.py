"""RCP-Merging: domain knowledge where it does not cost the reasoning model its weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from weightsmith.errors import RecipeError
from weightsmith.graph import Site, Statistic, Value, add_all, where
from weightsmith.methods.parts.curvature import squares
from weightsmith.methods.parts.registry import Base, method, shared
from weightsmith.methods.parts.task_vectors import task_vectors


@method(
    "rcp",
    title="RCP-Merging (reasoning capability as prior)",
    paper="RCP-Merging, AAAI 2026, github.com/ZeroNLP/RCP-Merging",
    base=Base.REQUIRED,
    experts=(2, None),
    statistics=("gradients", "fisher"),
    cost="O(N m n S) for S samples per domain",
    presets={"fisher": {"prior": "fisher"}},
)
@dataclass(frozen=True, slots=True)
class Rcp:
    """The reasoning model (the first expert) plus those elements of domain task vectors that a vote lets in.

        F = E (g_R theta_R)^2;   S_s = g_s theta_D for every sample s of the domain
        votes = sum_s (+1 if S_s + penalty F (theta_R - theta_D)^2 <= 0, else -1)
        theta = theta_R + sum_D [votes_D > 0] (theta_D - theta_0)

    S_s is the loss change to first order if the element were removed, F the reasoning model's dependence on it:
    an element is taken if for most samples the domain needs it more than reasoning would miss it. Gradients are read
    from statistics files: of single samples for every domain expert (kind gradients), and gradients or a diagonal
    Fisher for the reasoning model. F of the authors' code is (g theta)^2; the classical g^2 is `prior: fisher`. A tie
    lets nothing in. Task vectors are added whole, without scale. Tensors without statistics: the reasoning model's
    (without_statistics: reasoning), or with every domain's task vector (add). Raises RecipeError for a domain expert
    without gradients. All tensors of one shape; the penalty of 1000 is that of the authors' script.
    """

    penalty: float = shared(1000.0, low=0.0, doc="factor of the reasoning model's prior")
    prior: str = shared(
        "weighted",
        choices=("weighted", "fisher"),
        doc="what the prior is made of: (gradient x weight)^2, or gradient^2",
    )
    without_statistics: str = shared(
        "reasoning",
        choices=("reasoning", "add"),
        doc="tensors without statistics: the reasoning model's, or with all task vectors added",
    )

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        """Let the samples of each domain vote on its task vector."""
        base, deltas = task_vectors(base, experts)
        reasoning, *domains = experts
        if not site.statistics:
            if self.without_statistics == "reasoning":
                return reasoning
            return reasoning + add_all(deltas[1:])
        fisher = squares(site.statistics[0])
        prior = fisher * reasoning * reasoning if self.prior == "weighted" else fisher
        taken = []
        for position, domain in enumerate(domains, start=1):
            gap = reasoning - domain
            samples = _sensitivities(site.statistics[position], domain, site, position)
            threshold = prior * (gap * gap) * self.penalty
            votes = add_all([where(s + threshold <= 0.0, 1.0, -1.0) for s in samples])
            taken.append(where(votes > 0.0, deltas[position], 0.0))
        return reasoning + add_all(taken)


def _sensitivities(statistic: Statistic, domain: Value, site: Site, expert: int) -> list[Value]:
    """gradient x weight of every sample."""
    if statistic.kind != "gradients":
        label = site.labels[expert] if expert < len(site.labels) else f"expert {expert}"
        raise RecipeError(
            f"rcp needs gradients of single samples of the domain model {label!r}, whose signs are counted, "
            f"but its statistics are of kind {statistic.kind}; collect gradients."
        )
    return [gradient * domain for gradient in statistic.values]
