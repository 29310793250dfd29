"""A map of states: where a compressor puts the memories of documents, beside the documents themselves."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from itertools import islice

import mlx.core as mx
import numpy as np

from clara.core.collate import frame_document, pad_documents
from clara.core.compress import compress
from clara.core.figures import Figure, Series, points
from clara.core.projection import nearness, principal_plane
from clara.io.corpus.passages import read_passages
from clara.io.errors import ClaraError
from clara.io.evaluation.labels import decimals
from clara.io.records import source_names
from clara.io.report.document import Block, Picture, Section
from clara.io.tokens import encode_batch
from clara.shell.memories import BATCH, MULTIPLE
from clara.shell.setup import Session

SEED = 0
NOTE = "Each document has one point of each kind."


def first_texts(data: str, count: int) -> list[str]:
    """Return the first distinct documents of a data set. Raises ClaraError where two or more cannot be read."""
    try:
        passages = (passage for name in source_names(data) for passage in read_passages(name))
        texts = [passage.text for passage in islice(passages, count)]
    except ClaraError as error:
        raise ClaraError(f"{error}; --map-data FILE names other documents for the map") from error
    if len(texts) < 2:
        raise ClaraError(f"{data}: {len(texts)} of its documents taken; a map wants two or more")
    return texts


def mean_states(session: Session, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return (float32[n, D], float32[n, D]): the mean memory state and the mean document state of each text."""
    limit = session.config.memory.doc_max_tokens
    framed = [frame_document(t, session.base.layout, limit) for t in encode_batch(session.tokenizer, list(texts))]
    memory, documents = [], []
    for begin in range(0, len(framed), BATCH):
        part = framed[begin : begin + BATCH]
        batch = pad_documents(part, session.base.layout, len(part), MULTIPLE)
        done = compress(session.base, session.config, session.params, batch)
        mx.eval(done.memory_mean, done.document_mean)
        memory.append(np.array(done.memory_mean))
        documents.append(np.array(done.document_mean))
    return np.concatenate(memory), np.concatenate(documents)


def map_section(title: str, name: str, memory: np.ndarray, documents: np.ndarray) -> Section:
    """Return the section of a compressor's states; name: what its figures' files begin with.

    memory, documents: float[n, D], row by row of the same documents. t-SNE is left out without scikit-learn.
    """
    rows = np.concatenate([memory, documents])
    plane = principal_plane(rows)
    labels = [f"component {i} ({share:.0%} of the variance)" for i, share in enumerate(plane.explained, 1)]
    blocks: list[Block] = [
        nearness_text(memory, documents),
        Picture(f"{name}-pca", cloud("Principal components", labels, plane.places, NOTE)),
    ]
    if can_embed():
        perplexity = min(30.0, (len(rows) - 1) / 3)
        note = f"{NOTE} Perplexity {perplexity:.0f}, seed {SEED}; distances between far groups mean little."
        places = embedded(rows, perplexity)
        blocks.append(Picture(f"{name}-tsne", cloud("t-SNE", ["first axis", "second axis"], places, note)))
    return Section(title, tuple(blocks))


def nearness_text(memory: np.ndarray, documents: np.ndarray) -> str:
    """Return in words how near memories are to their documents."""
    own, other = nearness(memory, documents)
    apart = float(((memory.astype(np.float64) - documents) ** 2).mean())
    return (
        f"Mean final hidden states of {len(memory):,} documents: over their memory tokens, and over their own. The "
        f"cosine of a memory state to its own document's state is {decimals(own)} in the mean, to another document's "
        f"{decimals(other)}; the mean squared difference to its own (the alignment loss) is {apart:.3g}."
    )


def cloud(title: str, labels: Sequence[str], places: np.ndarray, note: str) -> Figure:
    """Return places: float[2n, 2], first of memories and then of documents, as a figure."""
    half = len(places) // 2
    named = {"memory": places[:half], "document": places[half:]}
    series = (Series(key, points(map(tuple, each.tolist())), i) for i, (key, each) in enumerate(named.items()))
    return Figure("dots", title, labels[0], labels[1], tuple(series), note)


def can_embed() -> bool:
    """Return whether scikit-learn is installed."""
    return importlib.util.find_spec("sklearn") is not None


def embedded(rows: np.ndarray, perplexity: float) -> np.ndarray:
    """Return float[n, 2]: the t-SNE of rows: float[n, D], begun from their principal components."""
    from sklearn.manifold import TSNE

    found: np.ndarray = TSNE(2, perplexity=perplexity, init="pca", random_state=SEED).fit_transform(rows)
    return found
