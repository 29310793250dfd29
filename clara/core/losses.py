"""The loss terms; each returns (sum, count) in float32, so that the one division can happen over any set of batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import mlx.core as mx

from clara.core.types import Term

Pair = tuple[mx.array, mx.array]


def next_token_loss(logits: mx.array, targets: mx.array, mask: mx.array) -> Term:
    """Return the cross-entropy in nats, summed over mask, and the number of kept positions.

    logits: float[..., V]; targets: int32[...]; mask: bool[...]. An all-false mask gives (0, 0).
    """
    logits = logits.astype(mx.float32)
    chosen = mx.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    nats = mx.logsumexp(logits, axis=-1) - chosen
    return mx.where(mask, nats, 0).sum(), mask.sum().astype(mx.float32)


@mx.custom_function
def nats_of(logits: mx.array, targets: mx.array) -> tuple[mx.array, mx.array]:
    """Return (nats, probabilities) of logits: float32[n, V] and targets: int32[n]; differentiable in logits.

    One exponential for each logit serves value and gradient: logsumexp = max(logits) − log(max(probabilities)).
    """
    probabilities = mx.softmax(logits, axis=-1)
    largest = logits.max(axis=-1) - mx.log(probabilities.max(axis=-1))
    return largest - mx.take_along_axis(logits, targets[:, None], axis=-1)[:, 0], probabilities


@nats_of.vjp
def nats_of_vjp(primals: Any, cotangents: Any, outputs: Any) -> Any:
    """Return the gradient of nats alone, cotangent · (probabilities − one-hot)."""
    (logits, targets), (cotangent, _), (_, probabilities) = primals, cotangents, outputs
    hit = mx.arange(logits.shape[-1])[None] == targets[:, None]
    return mx.where(hit, probabilities - 1, probabilities) * cotangent[:, None], mx.zeros_like(targets)


def chunked_next_token_loss(
    head: Callable[[mx.array], mx.array], hidden: mx.array, targets: mx.array, mask: mx.array, chunk: int
) -> Term:
    """Return `next_token_loss(head(hidden), targets, mask)` with logits of at most `chunk` positions at one time.

    hidden: float[B, A, D]; targets: int32[B, A]; mask: bool[B, A]; head: float[1, n, D] → float[1, n, V]. Only hidden
    is differentiated.
    """

    def part(rows: mx.array, targets: mx.array, mask: mx.array) -> mx.array:
        nats, _ = cast(Pair, nats_of(head(rows[None]).squeeze(0).astype(mx.float32), targets))
        return mx.where(mask, nats, 0).sum()

    return chunked_sum(part, hidden, [targets, mask], chunk), mask.sum().astype(mx.float32)


def chunked_divergence(
    head: Callable[[mx.array], mx.array], hidden: mx.array, teacher: mx.array, mask: mx.array, chunk: int
) -> Term:
    """Return KL(teacher ‖ student) of next-token distributions in nats, summed over mask, and the kept positions.

    hidden, teacher: float[B, A, D], the states of both before the same head; mask: bool[B, A]; head and chunk: as in
    `chunked_next_token_loss`. Only hidden is differentiated. arXiv 1503.02531, at temperature 1.
    """

    def part(rows: mx.array, taught: mx.array, mask: mx.array) -> mx.array:
        student, wanted = (log_softmax(head(each[None]).squeeze(0)) for each in (rows, taught))
        nats = (mx.exp(wanted) * (wanted - student)).sum(axis=-1)
        return mx.where(mask, nats, 0).sum()

    return chunked_sum(part, hidden, [teacher, mask], chunk), mask.sum().astype(mx.float32)


def log_softmax(logits: mx.array) -> mx.array:
    """Return float32[..., V]: the logarithms of probabilities, of logits: float[..., V]."""
    logits = logits.astype(mx.float32)
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def chunked_sum(part: Callable[..., mx.array], hidden: mx.array, beside: Sequence[mx.array], chunk: int) -> mx.array:
    """Return float32[]: the sum of part(rows, *others) over chunks of at most `chunk` positions, one after the other.

    hidden: float[B, A, D]; beside: further arrays [B, A, …]; part: (float[n, D], [n, …] …) → float32[]. Each chunk's
    gradient is taken with its value, so that logits are computed once and never kept. Only hidden is differentiated.
    """

    @mx.custom_function
    def summed(rows: mx.array) -> tuple[mx.array, mx.array]:
        total, grads = mx.zeros(()), list[mx.array]()
        for i in range(0, rows.shape[0], chunk):
            at = slice(i, i + chunk)
            own = mx.depends(rows[at], [total, *grads[-1:]])  # one chunk after the other
            value, grad = mx.value_and_grad(part)(own, *(each[at] for each in flat))
            total, grads = total + value, [*grads, grad]
        return total, mx.concatenate(grads)

    @summed.vjp
    def summed_vjp(primals: Any, cotangents: Any, outputs: Any) -> Any:
        return (cotangents[0] * outputs[1]).astype(outputs[1].dtype)

    flat = [each.reshape(-1, *each.shape[2:]) for each in beside]
    total, _ = cast(Pair, summed(hidden.reshape(-1, hidden.shape[-1])))
    return total


def alignment_loss(memory_mean: mx.array, document_mean: mx.array, mask: mx.array) -> Term:
    """Return the mean over D of the squared difference, summed over documents, and the number of documents.

    memory_mean, document_mean: float32[..., D]; mask: bool[...], False where there is no document.
    arXiv 2511.18659, equation 3.
    """
    squares = mx.square(memory_mean - document_mean).mean(axis=-1)
    return mx.where(mask, squares, 0).sum(), mask.sum().astype(mx.float32)


def contrastive_loss(scores: mx.array, positives: mx.array, mask: mx.array, temperature: float) -> Term:
    """Return −log Σ_positives exp(s/τ) / Σ_all exp(s/τ), summed over questions with a positive, and their number.

    scores: float[B, N]; positives, mask: bool[B, N], mask False on missing candidates; temperature: τ.
    arXiv 2511.18659, section 2.2.
    """
    logits = scores.astype(mx.float32) / temperature
    right = positives & mask
    known = right.any(axis=-1)
    nats = masked_logsumexp(logits, mask) - masked_logsumexp(logits, right)
    return mx.where(known, nats, 0).sum(), known.sum().astype(mx.float32)


def masked_logsumexp(logits: mx.array, mask: mx.array) -> mx.array:
    """Return float32[B]: log Σ exp(logits: float[B, N]) where mask: bool[B, N]; a large negative number of nothing."""
    return mx.logsumexp(mx.where(mask, logits, -1e30), axis=-1)
