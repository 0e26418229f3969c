"""The losses that recipes name: what each is computed from, its options, how it is made.

Nothing here imports torch: `build` does when it is called. To add a loss, add a `Loss` to `LOSSES`; its
`family` says which kinds of students (see `crossrank.training.students`) it is for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from crossrank.errors import InputError
from crossrank.training.recipes import LossChoice
from crossrank.training.typed_fields import limited, read_fields

__all__ = ["LOSSES", "Family", "Loss", "check_caching", "loss_named", "options_of"]

Family: TypeAlias = str
"""What a student computes: "scorer" (a score for each pair), "encoder" (a vector for each text), "comparer"
(a score for two documents of a query), ..."""


@dataclass(frozen=True)
class NoOptions:
    """Of a loss that has none."""


@dataclass(frozen=True)
class PositiveWeight:
    """Options of bce.

    Attributes:
        positive_weight: what a positive counts for where a negative counts 1.
    """

    positive_weight: float = limited(1.0, least=0.0)


@dataclass(frozen=True)
class Smoothing:
    """Options of ce.

    Attributes:
        label_smoothing: share of the target that is spread over all classes.
    """

    label_smoothing: float = limited(0.0, least=0.0, most=1.0)


@dataclass(frozen=True)
class LambdaOptions:
    """Options of lambda.

    Attributes:
        weighting: of the pairs of documents.
        k: pairs count where one of the two is among the first k; None for all.
    """

    weighting: Literal["ndcg_loss2++", "ndcg_loss2", "lambda_rank", "none"] = "ndcg_loss2++"
    k: int | None = limited(None, least=1)


@dataclass(frozen=True)
class PolyOptions:
    """Options of poly1.

    Attributes:
        epsilon: weight of the first polynomial term.
    """

    epsilon: float = limited(1.0, least=-1.0)


@dataclass(frozen=True)
class DistillationOptions:
    """Options of kl for scorers.

    Attributes:
        teacher_temperature: what the teacher's scores are divided by: less than 1 for cosines.
        student_temperature: what the student's scores are divided by.
        label_weight: weight of listwise softmax on the labels beside the divergence; 0 leaves it out.
    """

    teacher_temperature: float = limited(1.0, least=1e-6)
    student_temperature: float = limited(1.0, least=1e-6)
    label_weight: float = limited(0.0, least=0.0)


@dataclass(frozen=True)
class Scale:
    """Options of mnr and cached_mnr.

    Attributes:
        scale: what cosines are multiplied by before the softmax.
    """

    scale: float = limited(20.0, least=0.0)


@dataclass(frozen=True)
class MarginScale:
    """Options of margin_mse for encoders.

    Attributes:
        scale: what cosines are multiplied by, so that their margins, 2 at most, can be those of a
            cross-encoder's logits; 1 for a teacher whose scores are cosines.
    """

    scale: float = limited(20.0, least=0.0)


@dataclass(frozen=True)
class CosineDistillation:
    """Options of kl for encoders.

    Attributes:
        teacher_temperature: what the teacher's scores are divided by.
        student_temperature: what the cosines are divided by.
    """

    teacher_temperature: float = limited(1.0, least=1e-6)
    student_temperature: float = limited(0.05, least=1e-6)


@dataclass(frozen=True)
class MaxSimScale:
    """Options of mnr and cached_mnr for late interaction.

    Attributes:
        scale: what MaxSim, a sum over the query's tokens, is multiplied by before the softmax.
    """

    scale: float = limited(1.0, least=0.0)


@dataclass(frozen=True)
class MaxSimDistillation:
    """Options of kl for late interaction.

    Attributes:
        teacher_temperature: what the teacher's scores are divided by: less than 1 for cosines.
        student_temperature: what the mean MaxSim, which is on the scale of cosines, is divided by.
    """

    teacher_temperature: float = limited(1.0, least=1e-6)
    student_temperature: float = limited(0.05, least=1e-6)


@dataclass(frozen=True)
class Loss:
    """A loss that a recipe can name.

    Attributes:
        name: in recipes.
        family: of the students it is for.
        form: what it is computed from: a name in `crossrank.training.forms.FORMS`.
        options: a dataclass of what may stand beside its name in a recipe.
        build: makes it; takes the model in training, the options, and the recipe's token budget.
        meaning: one line for messages and docs.
        no_duplicates: other rows of a step are negatives, so no two rows may share a text.
        has_mini_batches: it has mini-batches of its own, and is run as it is.
        caches_itself: these are gradient caching; without, all their graphs are kept.
        activation: what makes a probability of the outputs it trains, by its name in torch.nn; the model
            ends with it, whatever the base ended with. "" leaves what the base has.
    """

    name: str
    family: Family
    form: str
    options: type
    build: Callable[[Any, Any, int], Any]
    meaning: str
    no_duplicates: bool = False
    has_mini_batches: bool = False
    caches_itself: bool = False
    activation: str = ""


def _cross_encoder_losses() -> Any:
    from sentence_transformers.cross_encoder import losses

    return losses


def _encoder_losses() -> Any:
    from sentence_transformers.sentence_transformer import losses

    return losses


def _bce(model: Any, options: PositiveWeight, budget: int) -> Any:
    import torch

    weight = None if options.positive_weight == 1.0 else torch.tensor(options.positive_weight)
    return _cross_encoder_losses().BinaryCrossEntropyLoss(model, pos_weight=weight)


def _ce(model: Any, options: Smoothing, budget: int) -> Any:
    return _cross_encoder_losses().CrossEntropyLoss(model, label_smoothing=options.label_smoothing)


def _lambda(model: Any, options: LambdaOptions, budget: int) -> Any:
    losses = _cross_encoder_losses()
    scheme = {
        "ndcg_loss2++": losses.NDCGLoss2PPScheme,
        "ndcg_loss2": losses.NDCGLoss2Scheme,
        "lambda_rank": losses.LambdaRankScheme,
        "none": losses.NoWeightingScheme,
    }[options.weighting]
    return losses.LambdaLoss(model, weighting_scheme=scheme(), k=options.k)


def _own(name: str) -> Callable[[Any, Any, int], Any]:
    """Return what builds a loss of `crossrank.training.losses.listwise` from its options."""

    def build(model: Any, options: Any, budget: int) -> Any:
        from crossrank.training.losses import listwise

        return getattr(listwise, name)(model, **vars(options))

    return build


def _theirs(name: str) -> Callable[[Any, Any, int], Any]:
    """Return what builds a loss for scorers of sentence-transformers that has no options here."""

    def build(model: Any, options: NoOptions, budget: int) -> Any:
        return getattr(_cross_encoder_losses(), name)(model)

    return build


def _comparison(model: Any, options: NoOptions, budget: int) -> Any:
    from crossrank.training.losses.pairwise import ComparisonLoss

    return ComparisonLoss(model)


def _mnr(model: Any, options: Scale, budget: int) -> Any:
    return _encoder_losses().MultipleNegativesRankingLoss(model, scale=options.scale)


def _cached_mnr(model: Any, options: Scale, budget: int) -> Any:
    losses = _encoder_losses()
    return losses.CachedMultipleNegativesRankingLoss(model, scale=options.scale, mini_batch_num_tokens=budget)


def _encoder_margin(model: Any, options: MarginScale, budget: int) -> Any:
    from sentence_transformers.util import pairwise_cos_sim

    def similarity(one: Any, other: Any) -> Any:
        return options.scale * pairwise_cos_sim(one, other)

    return _encoder_losses().MarginMSELoss(model, similarity_fct=similarity)


def _encoder_kl(model: Any, options: CosineDistillation, budget: int) -> Any:
    from sentence_transformers.util import pairwise_cos_sim

    return _encoder_losses().DistillKLDivLoss(
        model,
        similarity_fct=pairwise_cos_sim,
        student_temperature=options.student_temperature,
        teacher_temperature=options.teacher_temperature,
    )


def _multi_vector_losses() -> Any:
    from sentence_transformers.multi_vector_encoder import losses

    return losses


def _maxsim_mnr(model: Any, options: MaxSimScale, budget: int) -> Any:
    return _multi_vector_losses().MultiVectorMultipleNegativesRankingLoss(
        model, scale=options.scale, mini_batch_size=_rows(model, budget)
    )


def _maxsim_cached_mnr(model: Any, options: MaxSimScale, budget: int) -> Any:
    return _multi_vector_losses().CachedMultiVectorMultipleNegativesRankingLoss(
        model, scale=options.scale, mini_batch_num_tokens=budget
    )


def _maxsim_margin(model: Any, options: NoOptions, budget: int) -> Any:
    return _multi_vector_losses().MultiVectorMarginMSELoss(model, mini_batch_size=_rows(model, budget))


def _maxsim_kl(model: Any, options: MaxSimDistillation, budget: int) -> Any:
    from sentence_transformers.multi_vector_encoder.scoring import mean_colbert_kd_scores

    return _multi_vector_losses().MultiVectorDistillKLDivLoss(
        model,
        similarity_fct=mean_colbert_kd_scores,
        student_temperature=options.student_temperature,
        teacher_temperature=options.teacher_temperature,
        mini_batch_size=_rows(model, budget),
    )


def _rows(model: Any, budget: int) -> int:
    """Return how many texts of the longest length fit the token budget."""
    return max(1, budget // int(model.max_seq_length))


def _scorer(name: str, form: str, options: type, build: Callable[[Any, Any, int], Any], meaning: str) -> Loss:
    return Loss(name, "scorer", form, options, build, meaning)


_SCORER_LOSSES = (
    Loss(
        *("bce", "scorer", "pairs", PositiveWeight, _bce, "binary cross-entropy of each pair"),
        activation="Sigmoid",
    ),
    _scorer("ce", "classes", Smoothing, _ce, "cross-entropy over the classes of each pair"),
    _scorer("mse", "scored_pairs", NoOptions, _theirs("MSELoss"), "squared error to the teacher's score"),
    _scorer(
        *("margin_mse", "scored_triplets", NoOptions, _theirs("MarginMSELoss")),
        "squared error to the teacher's margin (Hofstätter et al. 2020, arXiv:2010.02666)",
    ),
    _scorer(
        *("ranknet", "lists", NoOptions, _theirs("RankNetLoss")),
        "logistic loss of each two documents in the wrong order (Burges et al. 2005)",
    ),
    _scorer(
        *("lce", "lists", NoOptions, _own("LocalizedContrastive")),
        "softmax of a positive among the negatives (Gao et al. 2021, arXiv:2101.08751)",
    ),
    _scorer(
        *("listnet", "lists", NoOptions, _theirs("ListNetLoss")),
        "cross-entropy of top-one probabilities (Cao et al. 2007)",
    ),
    _scorer(
        *("listmle", "lists", NoOptions, _theirs("ListMLELoss")),
        "likelihood of the judged order (Xia et al. 2008)",
    ),
    _scorer(*("lambda", "lists", LambdaOptions, _lambda), "a bound on nDCG (LambdaLoss; Wang et al. 2018)"),
    _scorer(
        *("rankt5_softmax", "lists", NoOptions, _own("ListwiseSoftmax")),
        "softmax over the list, all positives in one (Zhuang et al. 2022, arXiv:2210.10634)",
    ),
    _scorer(
        *("poly1", "lists", PolyOptions, _own("Poly1")),
        "rankt5_softmax with the first term of a polynomial (Leng et al. 2022, arXiv:2204.12511)",
    ),
    _scorer(
        *("kl", "scored_lists", DistillationOptions, _own("ListwiseDistillation")),
        "divergence from the teacher's distribution over the list",
    ),
)
_ENCODER_LOSSES = (
    Loss(
        *("mnr", "encoder", "tuples", Scale, _mnr),
        "softmax of the positive among all documents of a step (Henderson et al. 2017, arXiv:1705.00652)",
        no_duplicates=True,
    ),
    Loss(
        *("cached_mnr", "encoder", "tuples", Scale, _cached_mnr),
        "mnr with gradient caching (Gao et al. 2021, arXiv:2101.06983)",
        no_duplicates=True,
        has_mini_batches=True,
        caches_itself=True,
    ),
    Loss(
        *("margin_mse", "encoder", "scored_tuples", MarginScale, _encoder_margin),
        "squared error of the scaled cosines' margin to the teacher's",
    ),
    Loss(
        *("kl", "encoder", "scored_tuples", CosineDistillation, _encoder_kl),
        "divergence from the teacher's distribution over a positive and its negatives",
    ),
)

_COMPARER_LOSSES = (
    Loss(
        *("duo", "comparer", "triplets", NoOptions, _comparison),
        "cross-entropy of which document is relevant, in both orders (Pradeep et al. 2021, arXiv:2101.05667)",
    ),
)

_MULTI_VECTOR_LOSSES = (
    Loss(
        *("mnr", "multi_vector", "tuples", MaxSimScale, _maxsim_mnr),
        "softmax of the positive's MaxSim among all documents of a step",
        no_duplicates=True,
        has_mini_batches=True,
    ),
    Loss(
        *("cached_mnr", "multi_vector", "tuples", MaxSimScale, _maxsim_cached_mnr),
        "mnr with gradient caching (Gao et al. 2021, arXiv:2101.06983)",
        no_duplicates=True,
        has_mini_batches=True,
        caches_itself=True,
    ),
    Loss(
        *("margin_mse", "multi_vector", "scored_tuples", NoOptions, _maxsim_margin),
        "squared error to the teacher's margin",
        has_mini_batches=True,
    ),
    Loss(
        *("kl", "multi_vector", "scored_tuples", MaxSimDistillation, _maxsim_kl),
        "divergence from the teacher's distribution over a positive and its negatives (ColBERTv2, Santhanam "
        "et al. 2022, arXiv:2112.01488)",
        has_mini_batches=True,
    ),
)

LOSSES: dict[tuple[Family, str], Loss] = {
    (loss.family, loss.name): loss
    for loss in _SCORER_LOSSES + _ENCODER_LOSSES + _COMPARER_LOSSES + _MULTI_VECTOR_LOSSES
}
"""Every loss by family and name."""


def loss_named(choice: LossChoice, family: Family) -> Loss:
    """Return the loss of a recipe.

    Raises:
        InputError: there is none of that name for the family.
    """
    found = LOSSES.get((family, choice.name))
    if found is None:
        names = ", ".join(name for of, name in LOSSES if of == family)
        raise InputError(
            f"loss.name: there is no loss {choice.name!r} for this kind of student; there are {names}"
        )
    return found


def options_of(choice: LossChoice, loss: Loss) -> Any:
    """Return the options of a loss, checked.

    Raises:
        InputError: an option that it has not, or of another type.
    """
    return read_fields(loss.options, choice.options, "loss")


def check_caching(gradient_cache: bool | str, loss: Loss) -> None:
    """Refuse gradient caching of a loss whose own mini-batches are run without it, and the other way round.

    Args:
        gradient_cache: of the recipe's schedule.
        loss: of the recipe.

    Raises:
        InputError: what is asked for would not be done.
    """
    if gradient_cache is False and loss.caches_itself:
        raise InputError(
            f"schedule.gradient_cache is false, and the loss {loss.name} always caches: leave it out, or "
            f"take {loss.name.removeprefix('cached_')}"
        )
    if gradient_cache is True and loss.has_mini_batches and not loss.caches_itself:
        cached = [each.name for each in LOSSES.values() if each.family == loss.family and each.caches_itself]
        raise InputError(
            f"schedule.gradient_cache is true, and for this kind of student the loss {loss.name} has "
            f"mini-batches of its own that are not cached: leave it out, or take {' or '.join(cached)}"
        )
