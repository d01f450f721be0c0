"""CoNERConfig: everything inference needs to know besides the weights and the tokenizer."""

import math

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig
from transformers.utils import TRANSFORMERS_DYNAMIC_MODULE_NAME

from .tagging import LEVEL_ORDERS, TAGS, head_names

SPAN_POOLINGS = ("mean", "max", "first_last", "masked_matrix")
FORMAT_VERSION = 1
"""Version of what a saved model means; raised when an older package would read a newer model wrongly."""


class TrainingError(ValueError):
    """A training that diverged, or a checkpoint that cannot be gone on with; the message says what to change."""


class ModelError(Exception):
    """A folder or Hub id that is no usable CoNER model; the message says what is missing or wrong.

    Neither a ValueError nor an OSError: `transformers.pipeline` takes those for a reason to try other classes, and buries
    the message under all their tracebacks.
    """


class CoNERConfig(PreTrainedConfig):
    """Configuration of `EntityEncoder` (stage 1) and `CoNERForTokenClassification` (stage 2).

    Parameters that describe the network:
        encoder: configuration of the encoder, a `PreTrainedConfig` or its dictionary (with `model_type`).
        entity_types: the types that the heads tag, in order; empty for stage 1.
        few_shot_types: the subset scored apart (few-shot macro F1); affects scores only.
        levels: nesting levels per type, 1 is the paper; `entity_types x levels` heads.
        level_order: which of nested entities of a type the heads of level 1 have learned, one of `tagging.LEVEL_ORDERS`.
            Training goes on best in the same order; a scorer leaves out those beyond `levels`, counted from this side.
        head_dropout: dropout before the heads.
        candidate_paths: paths of each head whose spans the scorer decides on (see `decoding`); 0 is no scorer.
        span_pooling: how stage 1 makes an embedding of a span: the `mean` or `max` of its sub-words, its `first_last`
            ones side by side, or the paper's `masked_matrix` (see `modeling.pool_spans`).
        projection_size: width of the head behind which stage 1 compares spans, and which stage 2 throws away; 0 is none.

    Parameters that describe how text is cut (see `preprocessing`):
        max_length: sub-words of a window, special tokens included.
        max_sentences: sentences of a window at most; 0 means as many as fit.
        stride: sub-words that neighbouring pieces of a sentence longer than a window share.

    Parameters of decoding:
        transition_priors: `(5, 5, 5)` nested list of probabilities (case, previous tag, tag); None is Figure 2 of the paper.
        type_offsets: what is added, after training, to the logits of B, I, L and U of the heads of a type, and to the
            scorer's log-odds of its spans, `{TYPE: number}`; types that are not there have 0. Above 0 more mentions of a type
            are found, and more of them wrongly.
        score_temperature, score_bias: what logits (with a scorer, the log-odds of spans) are divided by for the scores of
            spans, positive, and what is then added to the log-odds of a score; they change no span (see `calibration`).

    The defaults are the plain network of the paper; the recipes set others. `format_version` is `FORMAT_VERSION`; a model saved
    by a package with another one is refused.

    Raises:
        ModelError: `format_version` is not the one that this package reads.
        ValueError: a type is given twice, a few-shot type is unknown, or a number is out of range.
    """

    model_type = "coner"

    encoder: PreTrainedConfig | dict | None = None
    entity_types: list[str] | None = None
    few_shot_types: list[str] | None = None
    levels: int = 1
    level_order: str = "outermost"
    head_dropout: float = 0.1
    candidate_paths: int = 0
    span_pooling: str = "mean"
    projection_size: int = 0
    max_length: int = 128
    max_sentences: int = 1
    stride: int = 32
    transition_priors: list | None = None
    type_offsets: dict | None = None
    score_temperature: float = 1.0
    score_bias: float = 0.0
    format_version: int = FORMAT_VERSION

    def __post_init__(self, **kwargs):
        if self.format_version != FORMAT_VERSION:
            raise ModelError(
                f"config.json: format_version {self.format_version!r} is unknown; this version of runne-coner reads"
                f" {FORMAT_VERSION}. Install the version that the model was saved with, or a newer one"
            )
        if isinstance(self.encoder, dict):
            if (kind := self.encoder.get("model_type")) not in CONFIG_MAPPING:
                raise ValueError(f"encoder: model_type {kind!r} is unknown to the installed version of transformers")
            self.encoder = AutoConfig.for_model(**self.encoder)
        elif self.encoder is not None and not isinstance(self.encoder, PreTrainedConfig):
            raise ValueError(f"encoder must be a configuration with its model_type, got {self.encoder!r}")
        for setting in ("entity_types", "few_shot_types"):
            names = getattr(self, setting) or []
            if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
                raise ValueError(f"{setting} must be a list of names, got {names!r}")
            setattr(self, setting, list(names))
        self.type_offsets = {} if self.type_offsets is None else self.type_offsets
        self._check()
        kwargs.pop("num_labels", None)
        # A repository names its own copy of the pipeline. Whoever has the package does not need it, and transformers would
        # ask for `trust_remote_code`; so only the copy of this class that comes with it keeps the name.
        if not __name__.startswith(TRANSFORMERS_DYNAMIC_MODULE_NAME):
            kwargs.pop("custom_pipelines", None)
        if self.id2label is None:
            self.id2label = dict(enumerate(TAGS))
            self.label2id = {tag: index for index, tag in enumerate(TAGS)}
        super().__post_init__(**kwargs)
        # Attention implementations and the like are chosen for the encoder.
        if self.encoder is not None and self._attn_implementation is not None:
            self.encoder._attn_implementation = self._attn_implementation

    def _check(self) -> None:
        doubled = {name for name in self.entity_types if self.entity_types.count(name) > 1}
        if doubled:
            raise ValueError(f"entity_types holds {sorted(doubled)} twice; give every type once")
        unknown = [name for name in self.few_shot_types if self.entity_types and name not in self.entity_types]
        if unknown:
            raise ValueError(f"few_shot_types {unknown} are not among entity_types {self.entity_types}")
        for name, least, meaning in (
            ("levels", 1, "at least 1"),
            ("projection_size", 0, "0 (no projection head) or more"),
            ("candidate_paths", 0, "0 (no scorer of spans) or more"),
            ("max_length", 1, "at least 1"),
            ("max_sentences", 0, "0 (no limit) or more"),
            ("stride", 0, "at least 0"),
        ):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise ValueError(f"{name} must be {meaning}, a whole number, got {value!r}")
        if clash := sorted(set(self.entity_types) & set(self.heads[len(self.entity_types) :])):
            raise ValueError(f"entity_types {clash}: heads of level 2 and more are called so; rename them, or take levels 1")
        if self.level_order not in LEVEL_ORDERS:
            raise ValueError(f"level_order must be one of {LEVEL_ORDERS}, got {self.level_order!r}")
        if self.span_pooling not in SPAN_POOLINGS:
            raise ValueError(f"span_pooling must be one of {SPAN_POOLINGS}, got {self.span_pooling!r}")
        if self.projection_size and self.span_pooling == "masked_matrix":
            raise ValueError("span_pooling masked_matrix has no fixed width to project: choose another, or projection_size 0")
        if self.stride >= self.max_length:
            raise ValueError(f"stride must be less than max_length, got {self.stride} of {self.max_length}")
        if type(self.head_dropout) not in (int, float) or not 0.0 <= self.head_dropout <= 1.0:
            raise ValueError(f"head_dropout must lie in [0, 1], got {self.head_dropout!r}")
        if not isinstance(self.type_offsets, dict):
            raise ValueError(f"type_offsets must be {{TYPE: number}}, got {self.type_offsets!r}")
        for name, offset in self.type_offsets.items():
            if self.entity_types and name not in self.entity_types:
                raise ValueError(f"type_offsets: {name!r} is not among entity_types {self.entity_types}")
            if type(offset) not in (int, float) or not math.isfinite(offset):
                raise ValueError(f"type_offsets: expected a finite number for {name}, got {offset!r}")
        if type(self.score_temperature) not in (int, float) or not 0.0 < self.score_temperature < float("inf"):
            raise ValueError(f"score_temperature must be a finite number above 0, got {self.score_temperature!r}")
        if type(self.score_bias) not in (int, float) or not math.isfinite(self.score_bias):
            raise ValueError(f"score_bias must be a finite number, got {self.score_bias!r}")

    @property
    def heads(self) -> list[str]:
        """Names of the heads in order: `TYPE`, `TYPE@2`, ... (see `tagging`)."""
        return head_names(self.entity_types, self.levels)

    def head_offsets(self) -> list[list[float]]:
        """What `type_offsets` adds to the logits of each head: (heads, 5), 0 for O."""
        offsets = [self.type_offsets.get(name, 0.0) for name in self.entity_types] * self.levels
        return [[0.0 if tag == "O" else offset for tag in TAGS] for offset in offsets]

    @property
    def hidden_size(self) -> int:
        """Width of the encoder's output."""
        return self.encoder.hidden_size


# Saved models carry a copy of this file, for those who have not installed the package.
CoNERConfig.register_for_auto_class()
