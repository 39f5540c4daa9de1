"""Which method for which question: every method in one line, under what brings people to it, the first to try first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from weightsmith.methods import modifiers, registry


@dataclass(frozen=True, slots=True)
class Question:
    """What somebody wants to merge, and the methods that answer it, each with a line on what it does."""

    title: str
    answers: Mapping[str, str]


QUESTIONS = (
    Question(
        "Two models",
        {
            "slerp": "along the arc from the base (t = 0) to one expert (t = 1)",
            "nuslerp": "along the arc between two experts, or their changes",
            "wise_ft": "along the line from the base to one fine-tune",
            "expo": "beyond one fine-tune, away from the weaker base",
            "nearswap": "every weight towards the expert, by at most t",
            "arcee_fusion": "the expert's weights where they stand out, else the base's",
            "cosine_a": "the expert's columns where they are unlike the base's",
            "cosine_b": "the same, by columns and by tensors",
        },
    ),
    Question(
        "An average of models, without a base",
        {
            "linear": "weighted average",
            "soup": "plain mean, without parameters",
            "karcher": "mean direction on the sphere, times the mean length",
            "multislerp": "mean direction times mean length, without iterations",
            "geometric_median": "robust centre, which one bad model moves little",
            "trimmed_mean": "mean without the k smallest and largest values",
        },
    ),
    Question(
        "Checkpoints of one training run",
        {
            "lawa": "mean of the k latest",
            "ema": "exponential moving average",
            "wma": "later ones weigh more, linearly",
        },
    ),
    Question(
        "Several fine-tunes of one base",
        {
            "task_arithmetic": "the base plus weighted task vectors",
            "model_stock": "from the base towards their mean, as far as they agree",
            "task_karcher": "mean direction of the task vectors, from the base",
            "widen": "fine-tunes whose changes differ much in size",
            "train_difference": "one fine-tune trained on what another one learned",
        },
    ),
    Question(
        "Experts disagree: keep what matters of each, settle conflicts",
        {
            "ties": "trim small changes, elect signs, average what agrees",
            "dare_ties": "drop changes at random, rescale, then ties",
            "dare_linear": "drop changes at random, rescale, add",
            "della": "drop small changes more often, rescale, then ties",
            "della_linear": "drop small changes more often, rescale, add",
            "breadcrumbs": "leave out the smallest and the largest changes, add",
            "breadcrumbs_ties": "the same, then elect signs",
            "sce": "what differs most among experts, weighed by energy",
            "pcb": "changes weighed by competition within and between tasks",
            "consensus": "what at least k of the experts use",
            "localize_and_stitch": "transplant the region that each expert changed most",
            "ram": "sum of unique changes, mean of shared ones",
            "ramplus_tl": "the same, unique changes amplified",
            "cabs": "a share of each block of each change, no place twice",
            "tatr_zero_shot": "leave out elements that several experts changed much",
        },
    ),
    Question(
        "Many experts: separate the directions of their changes (whole matrices, slower)",
        {
            "tsv_m": "leading singular directions, made orthogonal",
            "iso_c": "sum with all singular values made equal",
            "iso_cts": "the same, with directions of single tasks",
            "resm": "tsv_m with weights and ranks for each matrix",
            "dc_merge": "evened-out directions, elected in one orthogonal cover",
            "ace": "least squares with covariances that the changes show",
            "svc": "sum without counting shared directions several times",
            "doge": "one shift outside of the subspace that all share",
            "wudi": "least interference with what every expert's inputs span",
            "optmerge": "wudi on denoised leading directions",
            "iwudi": "wudi with a smooth filter, as if stopped early",
            "aswudi": "wudi within as many directions as the spectrum suggests",
            "swudi": "the filter of iwudi, on leading directions alone",
            "subspace_boosting": "weak directions of a merge raised; also in `then:`",
            "truncate": "average of task vectors of low rank",
            "cart": "the average, and what each has beyond it in low rank",
            "twin": "task arithmetic, and what each has beyond it in low rank",
            "resmerge": "reinforcement learning: all but the strongest directions",
            "orthomerge": "rotations of the base, averaged, and a share of the rest",
            "lore": "low-rank changes around a base that is estimated, too",
        },
    ),
    Question(
        "Layers",
        {
            "lines": "shallow layers near the base, deep ones far",
            "layer_importance": "weights anew in every layer, by what changed there",
            "layer_swapping": "middle layers of the task's model, outer of the language's",
            "passthrough": "layers as they are, for stacking `slices:`",
        },
    ),
    Question(
        "A merged model made ready to be stored (`then:`)",
        {"clamp": "no number beyond what float16 holds"},
    ),
    Question(
        "One expert after another (continual merging)",
        {
            "opcm": "each change without what is there, goes on from a folder",
            "magmax": "the change of largest magnitude at each weight",
        },
    ),
    Question(
        "One model for each task, stored as one (`bundle:`)",
        {
            "emr": "elected vector, and a mask and a scale for each task",
            "tall_masks": "sum of task vectors, and a mask for each task",
            "tsv_c": "one task, reduced to its leading directions",
        },
    ),
    Question(
        "Statistics of the experts are needed (`statistics:`)",
        {
            "fisher": "average weighed by Fisher information",
            "regmean": "least squares on Gram matrices of the layers' inputs",
            "ota": "average weighed by Adam's second moments",
            "tatr": "task vectors without what others' losses depend on",
            "sens": "weights anew in every layer, by what the losses depend on",
            "aim": "a merge kept near the base where that is most active",
            "rcp": "domain experts added to a reasoning model",
            "repair": "one merged model, its units with their parents' statistics",
            "metrics_weighted": "average weighed by one number each, such as a loss",
        },
    ),
    Question(
        "Adapters (LoRA); `adapter combine` takes any method, and has more of its own",
        {"knots": "task vectors in one common singular basis"},
    ),
)
MODIFIERS = Question(
    "Modifiers (`modify:`), which change the experts before any method",
    {
        "sparsify": "keep a share of each task vector",
        "wanda": "the same, by how much of the activations passes there",
        "mask": "task vectors times masks that were found, or are to be",
        "trust_region": "task vectors without what others' losses depend on",
        "clip": "shorten task vectors that are too long",
        "scale_by_depth": "less change in shallow layers, as `lines` has it",
        "coordinate_median": "the median in the place of every expert",
        "trimmed": "the mean in the place of the k most extreme values",
        "winsorize": "pull the k most extreme values to the next",
    },
)
_OTHERS = "Others"


def questions() -> Sequence[Question]:
    """All questions, then the modifiers; methods of other packages stand among others, with their titles."""
    return (*QUESTIONS, *_others(QUESTIONS), MODIFIERS)


def _others(known: Sequence[Question]) -> list[Question]:
    told = {name for question in known for name in question.answers}
    others = {n: registry.get(n).title for n in registry.names() if n not in told}
    return [Question(_OTHERS, others)] if others else []


def question_of(name: str) -> str:
    """The question under which a method or modifier stands."""
    if name in modifiers.names():
        return MODIFIERS.title
    found = (question.title for question in QUESTIONS if name in question.answers)
    return next(found, _OTHERS)
