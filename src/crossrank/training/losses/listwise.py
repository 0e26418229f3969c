"""List losses that sentence-transformers' cross-encoders lack, in the form its trainer calls losses.

Each takes `(queries, lists of documents)` and, per query, a tensor of labels, and gives the mean over the
queries. The arithmetic is in `of_scores`, over a padded matrix of scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from crossrank.errors import InputError

__all__ = ["ListLoss", "ListwiseDistillation", "ListwiseSoftmax", "LocalizedContrastive", "Poly1"]


class ListLoss(nn.Module):
    """Scores each pair of query and document, and leaves the rest to `of_scores`.

    Args:
        model: a cross-encoder of sentence-transformers with one output.

    Raises:
        InputError: a model with several outputs.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        if model.num_labels != 1:
            raise InputError(f"{type(self).__name__} is for a model with one score, not {model.num_labels}")
        self.model = model

    def forward(
        self,
        inputs: Sequence[Sequence[Any]],
        labels: Sequence[Tensor],
        prompt: str | None = None,
        task: str | None = None,
    ) -> Tensor:
        """Return the mean loss of the queries.

        Args:
            inputs: queries, and of each query its documents.
            labels: of each query, (documents,) or (documents, columns).
            prompt: for `model.preprocess`.
            task: for `model.preprocess`.
        """
        queries, documents = inputs
        pairs = [(query, text) for query, texts in zip(queries, documents, strict=True) for text in texts]
        features = self.model.preprocess(pairs, prompt=prompt, task=task)
        device = self.model.device
        features = {
            name: value.to(device) if isinstance(value, Tensor) else value for name, value in features.items()
        }
        flat = self.model(features)["scores"].view(-1).float()
        sizes = [len(texts) for texts in documents]
        scores = nn.utils.rnn.pad_sequence(flat.split(sizes), batch_first=True)
        targets = nn.utils.rnn.pad_sequence([each.float() for each in labels], batch_first=True).to(device)
        positions = torch.arange(scores.shape[1], device=device)
        mask = positions[None, :] < torch.tensor(sizes, device=device)[:, None]
        return self.of_scores(scores, targets, mask).mean()

    def of_scores(self, scores: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        """Return the loss of each query, (queries,).

        Args:
            scores: (queries, documents) float32, padded.
            labels: (queries, documents) or (queries, documents, columns), padded.
            mask: (queries, documents), true where there is a document.
        """
        raise NotImplementedError


class ListwiseSoftmax(ListLoss):
    """Cross-entropy of the softmax over a list with its labels, scaled to sum to 1.

    Source: Zhuang et al. 2022, RankT5, arXiv:2210.10634, section 4.3. One positive alone gives the loss of
    a contrastive step over its list.
    """

    def of_scores(self, scores: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        """See `ListLoss.of_scores`."""
        targets = _distribution(labels, mask)
        return -(targets * _log_softmax(scores, mask)).sum(1)


class Poly1(ListLoss):
    """Listwise softmax and the first term of its expansion as a polynomial: + epsilon · (1 - p).

    p is the probability that the softmax gives to what is relevant.

    Source: Leng et al. 2022, arXiv:2204.12511, equation 6; RankT5 trains with it, too.

    Args:
        model: see `ListLoss`.
        epsilon: weight of the term.
    """

    def __init__(self, model: Any, epsilon: float = 1.0) -> None:
        super().__init__(model)
        self.epsilon = epsilon

    def of_scores(self, scores: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        """See `ListLoss.of_scores`."""
        targets = _distribution(labels, mask)
        log_probabilities = _log_softmax(scores, mask)
        probability = (targets * log_probabilities.exp()).sum(1)
        return -(targets * log_probabilities).sum(1) + self.epsilon * (1 - probability)


class LocalizedContrastive(ListLoss):
    """Softmax of each positive among the negatives of its list alone, averaged over the positives.

    Source: Gao et al. 2021, LCE, arXiv:2101.08751, equation 2. With one positive a list it is
    `ListwiseSoftmax`; with several, the others of them do not compete.
    """

    def of_scores(self, scores: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        """See `ListLoss.of_scores`."""
        positive = mask & (labels > 0)
        negatives = scores.masked_fill(~(mask & ~positive), -torch.inf)
        # logsumexp of the negatives and one positive at a time; the gradient of exp(-inf) is 0
        rest = torch.logsumexp(negatives, dim=1, keepdim=True)
        losses = torch.logaddexp(scores, rest) - scores
        count = positive.sum(1).clamp(min=1)
        return losses.masked_fill(~positive, 0.0).sum(1) / count


class ListwiseDistillation(ListLoss):
    """Kullback-Leibler divergence of the student's softmax over a list from the teacher's.

    Labels have two columns: the teacher's score and the judged label.

    Args:
        model: see `ListLoss`.
        teacher_temperature: the teacher's scores are divided by it.
        student_temperature: the student's scores are; the divergence is multiplied by its square, as in
            Hinton et al. 2015, arXiv:1503.02531, so that gradients keep their size.
        label_weight: weight of `ListwiseSoftmax` on the labels, added to the divergence.
    """

    def __init__(
        self,
        model: Any,
        teacher_temperature: float = 1.0,
        student_temperature: float = 1.0,
        label_weight: float = 0.0,
    ) -> None:
        super().__init__(model)
        self.teacher_temperature = teacher_temperature
        self.student_temperature = student_temperature
        self.label_weight = label_weight

    def of_scores(self, scores: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        """See `ListLoss.of_scores`."""
        teacher = _log_softmax(labels[..., 0] / self.teacher_temperature, mask)
        student = _log_softmax(scores / self.student_temperature, mask)
        divergence = (teacher.exp() * (teacher - student)).masked_fill(~mask, 0.0).sum(1)
        loss = divergence * self.student_temperature**2
        if self.label_weight:
            targets = _distribution(labels[..., 1], mask)
            loss = loss - self.label_weight * (targets * _log_softmax(scores, mask)).sum(1)
        return loss


def _log_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Return log-probabilities over the documents of each query; 0 where there is none."""
    logits = scores.masked_fill(~mask, -torch.inf)
    return functional.log_softmax(logits, dim=1).masked_fill(~mask, 0.0)


def _distribution(labels: Tensor, mask: Tensor) -> Tensor:
    """Return labels scaled to sum to 1 a query; all 0 for a query without a positive one."""
    gains = labels.clamp(min=0.0).masked_fill(~mask, 0.0)
    return gains / gains.sum(1, keepdim=True).clamp(min=1e-12)
