"""Configuration as frozen structs: every option with its default, its bounds and its help text, once."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from msgspec import Meta, Struct

Stage = Literal["pretrain", "instruct", "retrieval", "end_to_end"]
"""The training stages, in the paper's order."""

STAGES: tuple[Stage, ...] = get_args(Stage)

Relevance = Literal["flattened", "late", "pooled"]
"""How a question scores a document, both compressed (see `relevance_scores`)."""

CHOOSING: tuple[Stage, ...] = ("retrieval", "end_to_end")
"""The stages in which a question chooses among candidate documents; the others read every document they are given."""


class Layout(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Ids of the special tokens, all beyond the base's table, and the frame around a document."""

    vocab_size: int
    """Rows of the base's embedding table (V)."""
    num_memory_tokens: int
    """Memory tokens of a document (M)."""
    prefix: tuple[int, ...] = ()
    """Ids before a document's text: `<ENC>` and, where the base has one, `<BOS>`."""
    suffix: tuple[int, ...] = ()
    """Ids after a document's text: `<EOS>`."""
    cuts_suffix: bool = False
    """Whether a document that is too long is cut after it was framed, and so loses its suffix, as in the original."""

    @property
    def enc_id(self) -> int:
        """The id of `<ENC>`, which opens a document."""
        return self.vocab_size

    @property
    def sep_id(self) -> int:
        """The id of `<SEP>`, which follows the memory slots of a document."""
        return self.vocab_size + 1

    @property
    def first_slot(self) -> int:
        """The id of memory slot 0; slot i of the flattened memories has id `first_slot + i`."""
        return self.vocab_size + 2


AnchorPooling = Literal["mean", "learned", "mapped"]
"""How anchors are pooled; each way has what the ones before it have, and more."""


class MemoryConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a document becomes memory."""

    doc_max_tokens: Annotated[int, Meta(ge=1, description="Longest document, in tokens; the rest is cut off.")] = 256
    compression_rate: Annotated[int, Meta(ge=1, description="Document tokens for each memory token.")] = 16
    anchored: Annotated[
        bool, Meta(description="Add to each memory vector the mean embedding of its part of the document.")
    ] = False
    anchor_gain: Annotated[float, Meta(gt=0, description="Start value of the trained gain of anchored memory.")] = 0.01
    cuts_suffix: Annotated[
        bool, Meta(description="Cut a document that is too long after framing it, as the original does.")
    ] = False
    anchor_pooling: Annotated[
        AnchorPooling,
        Meta(
            description="How embeddings enter an anchor: mean: all alike; learned: weighed by a trained softmax over "
            "the compressor's states, which starts as the mean; mapped: weighed as in learned, and each also through a "
            "trained map for its place in the part, so that order is kept; the memory state gets such a map too."
        ),
    ] = "mean"
    anchor_map_rank: Annotated[int, Meta(ge=1, description="Rank of these maps; unused by other poolings.")] = 64

    def __post_init__(self) -> None:
        if self.anchor_pooling != "mean" and not self.anchored:
            raise ValueError(
                f"anchor_pooling {self.anchor_pooling}: memory has no anchors to pool; wanted anchored, or mean"
            )
        if self.compression_rate > self.doc_max_tokens:
            raise ValueError(
                f"compression_rate {self.compression_rate} leaves no memory token of doc_max_tokens "
                f"{self.doc_max_tokens}: it must not be larger"
            )

    @property
    def num_memory_tokens(self) -> int:
        """M = doc_max_tokens // compression_rate."""
        return self.doc_max_tokens // self.compression_rate

    @property
    def anchor_places(self) -> int:
        """Tokens of the longest part of a document, each with a map of its own; 0 where anchors have no maps."""
        return -(-self.doc_max_tokens // self.num_memory_tokens) if self.anchor_pooling == "mapped" else 0


class LoraConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The low-rank adapters (arXiv 2106.09685) on all linear layers of the blocks."""

    rank: Annotated[int, Meta(ge=1, description="Rank of the adapters.")] = 16
    alpha: Annotated[float, Meta(gt=0, description="Adapter scale numerator: scale = alpha / rank.")] = 32.0
    dropout: Annotated[float, Meta(ge=0, lt=1, description="Dropout on the adapters' input while training.")] = 0.1

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return self.alpha / self.rank


class LossConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The weight of each loss term; a weight of zero costs nothing. `stage_loss` has the paper's for each stage."""

    next_token_weight: Annotated[float, Meta(ge=0, description="Weight of the next-token loss.")] = 1.0
    alignment_weight: Annotated[
        float,
        Meta(ge=0, description="Weight of the squared difference of mean memory and mean document state."),
    ] = 0.1
    contrastive_weight: Annotated[
        float, Meta(ge=0, description="Weight of the contrastive loss of positive among all candidates.")
    ] = 0.0
    distillation_weight: Annotated[
        float,
        Meta(
            ge=0,
            description="Weight of the Kullback-Leibler divergence of the answers' next-token distribution from that "
            "of a teacher that reads the documents as text, in `pretrain` and `instruct`.",
        ),
    ] = 0.0

    def __post_init__(self) -> None:
        if not any(self.weights.values()):
            raise ValueError("all loss weights are 0: nothing would be trained")

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each term by its name."""
        return {
            "next_token": self.next_token_weight,
            "alignment": self.alignment_weight,
            "contrastive": self.contrastive_weight,
            "distillation": self.distillation_weight,
        }


def stage_loss(stage: Stage) -> LossConfig:
    """Return the paper's weights of a stage: next-token with 0.1 alignment, contrastive alone, or next-token alone."""
    if stage == "retrieval":
        return LossConfig(next_token_weight=0.0, alignment_weight=0.0, contrastive_weight=1.0)
    return LossConfig(alignment_weight=0.0) if stage == "end_to_end" else LossConfig()


class RetrievalConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a question chooses among its candidates, in `retrieval` and `end_to_end`."""

    top_k: Annotated[int, Meta(ge=1, description="Documents that a question chooses among its candidates.")] = 5
    temperature: Annotated[
        float, Meta(gt=0, description="Softmax temperature of the straight-through top-k and of the contrastive loss.")
    ] = 0.02
    taken_share: Annotated[
        float,
        Meta(
            ge=0,
            lt=1,
            description="What a document that was chosen keeps of its softmax weight in later choices; "
            "0 masks it out, the original has 1e-8.",
        ),
    ] = 0.0
    train_compressor: Annotated[
        bool, Meta(description="Train the compressor on, so that documents are compressed anew in each step.")
    ] = False
    relevance: Annotated[
        Relevance,
        Meta(
            description="How a question scores a document: flattened: cosine of their whole memories; late: sum of "
            "the best matches of its memory vectors among the document's; pooled: cosine of their mean memories "
            "after a trained map, which starts by making memories vary alike in all directions (as it is where the "
            "compressor is trained too)."
        ),
    ] = "flattened"
    in_batch_negatives: Annotated[
        bool,
        Meta(
            description="Count the documents of the batch's other questions as further negatives in the contrastive "
            "loss; with train_compressor, where they are compressed anew, those of the same micro-batch alone."
        ),
    ] = False


class OptimizerConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """AdamW with clipping, linear warm-up and a cosine."""

    learning_rate: Annotated[float, Meta(gt=0, le=1, description="Peak learning rate.")] = 1e-4
    beta1: Annotated[float, Meta(ge=0, lt=1, description="Decay of the first moment.")] = 0.9
    beta2: Annotated[float, Meta(ge=0, lt=1, description="Decay of the second moment.")] = 0.95
    eps: Annotated[float, Meta(gt=0, description="Added to the root of the second moment.")] = 1e-8
    weight_decay: Annotated[float, Meta(ge=0, description="Decoupled weight decay.")] = 0.0
    clip_norm: Annotated[float, Meta(gt=0, description="Largest global norm of the gradient.")] = 1.0
    warmup_ratio: Annotated[float, Meta(ge=0, lt=1, description="Share of the steps that warm up.")] = 0.03
    final_ratio: Annotated[float, Meta(ge=0, le=1, description="Last learning rate as a share of the peak.")] = 0.1
    anchor_rate: Annotated[
        float,
        Meta(gt=0, description="Learning rate of the anchors' gain, query and maps, as a multiple of all others'."),
    ] = 1.0


class ComputeConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What trades time against memory, without changing a result but by rounding."""

    grad_checkpoint: Annotated[
        Literal["auto"] | Annotated[int, Meta(ge=0)],
        Meta(
            description="Recompute every n-th layer in the backward pass to save memory; 0 = none; auto: as few as let "
            "a step fit the device, by an estimate."
        ),
    ] = "auto"
    logits_chunk: Annotated[
        int, Meta(ge=1, description="Answer positions whose vocabulary logits exist at one time.")
    ] = 1024
    dequantize_rows: Annotated[
        int,
        Meta(ge=0, description="Positions from which a quantised layer is dequantised for a plain product; 0 = never."),
    ] = 1024
    shard: Annotated[
        bool,
        Meta(
            description="Cut the base's blocks over the processes of mlx.launch, which then all work on the same batch "
            "(tensor parallel), instead of giving each the whole base and a part of the batch: for bases larger than a "
            "device."
        ),
    ] = False

    @property
    def recomputed(self) -> int:
        """Every how many layers one is recomputed; 0 for none, and where auto was not resolved for a device."""
        return 0 if self.grad_checkpoint == "auto" else self.grad_checkpoint


class StepConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that the mathematics of a training step depends on."""

    stage: Stage = "pretrain"
    memory: MemoryConfig = MemoryConfig()
    lora: LoraConfig = LoraConfig()
    loss: LossConfig = LossConfig()
    retrieval: RetrievalConfig = RetrievalConfig()
    compute: ComputeConfig = ComputeConfig()

    def __post_init__(self) -> None:
        loss, stage = self.loss, self.stage
        if stage not in CHOOSING and loss.contrastive_weight:
            raise ValueError(f"contrastive_weight {loss.contrastive_weight}: stage {stage} has no candidates; wanted 0")
        if stage in CHOOSING and loss.distillation_weight:
            raise ValueError(
                f"distillation_weight {loss.distillation_weight}: stage {stage} has no teacher; wanted 0, and the "
                "weight for stage pretrain or instruct alone"
            )
        if stage == "retrieval" and loss.next_token_weight:
            raise ValueError(
                f"next_token_weight {loss.next_token_weight}: stage retrieval asks no generator; wanted 0, "
                "or stage end_to_end"
            )
        if loss.alignment_weight and not self.trains_compressor:
            raise ValueError(
                f"alignment_weight {loss.alignment_weight}: stage {stage} has a frozen compressor; wanted 0, "
                "or train_compressor"
            )

    @property
    def has_lens(self) -> bool:
        """Whether questions score documents through trained parameters: relevance_center and relevance_map."""
        return self.stage in CHOOSING and self.retrieval.relevance == "pooled"

    @property
    def trains_compressor(self) -> bool:
        """Whether the stage trains the compressor; where not, the memory of a document never changes."""
        return self.stage not in CHOOSING or self.retrieval.train_compressor
