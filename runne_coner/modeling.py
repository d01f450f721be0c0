"""The networks: `EntityEncoder` for stage 1 and `CoNERForTokenClassification` for stage 2 (Bondarenko 2022, section 3)."""

import contextlib
import inspect
import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    MODEL_MAPPING,
    AutoConfig,
    AutoModel,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import ModelOutput

from .configuration import CoNERConfig, ModelError
from .gradient_cache import embed_in_chunks
from .onnx_model import OnnxModel, holds_only_an_export
from .span_scorer import CoNEROutput, SpanScorer
from .tagging import NUM_TAGS, tag_log_frequencies


@contextlib.contextmanager
def _loading(name: str) -> Iterator[None]:
    """Turn what goes wrong while a model or encoder is loaded into a ModelError with its name and what was said."""
    try:
        yield
    except (ModelError, MemoryError):
        raise
    except SafetensorError as error:
        raise ModelError(
            f"{name}: cannot be loaded: the weights (model.safetensors) are damaged: {error}; get the file again"
        ) from error
    except RuntimeError as error:
        if "mismatch" not in str(error):
            raise
        # What the error itself says is advice to programmers.
        raise ModelError(
            f"{name}: cannot be loaded: the weights (model.safetensors) do not fit config.json, see the report above;"
            " give a folder in which both are of the same model"
        ) from error
    # A file is missing, the Hub cannot be reached or has no such model: transformers says which.
    except OSError as error:
        advice = "; get the file again, or give another folder" if os.path.isdir(str(name)) else ""
        raise ModelError(f"{name}: cannot be loaded: {_said(error)}{advice}") from error
    # What settings of config.json lead to, while it is read or the network is made, has no common class: ValueError, TypeError,
    # KeyError, and errors of huggingface_hub, which is not to be imported here, as the code goes with the model.
    except Exception as error:
        raise ModelError(f"{name}: cannot be loaded, see its config.json: {type(error).__name__}: {_said(error)}") from error


def _said(error: Exception) -> str:
    """The first paragraph of a message, in one line: transformers goes on with general advice."""
    return " ".join(str(error).split("\n\n")[0].split()).removesuffix(".")


class CoNERPreTrainedModel(PreTrainedModel):
    """What both networks share: the encoder, and starting from any pre-trained one."""

    config_class = CoNERConfig
    base_model_prefix = "encoder"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    # The losses are means over the batch; the Trainer itself divides by the gradient accumulation steps.
    accepts_loss_kwargs = False

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, output_loading_info: bool = False, **kwargs):
        """As `PreTrainedModel.from_pretrained`, of safetensors only; a model that is not whole is refused.

        Raises:
            ModelError: there is no such model, its configuration cannot be meant, or the weights are damaged, do not fit the
                configuration, some are missing (transformers would draw those at random), the network has no place for
                some (transformers would leave those out), or `max_length` is more than the encoder has positions for.
        """
        name = pretrained_model_name_or_path
        with _loading(name):
            model, found = super().from_pretrained(name, *args, output_loading_info=True, **{"use_safetensors": True, **kwargs})
        # A state dictionary or a configuration may be given in place of a folder; then nothing is expected of files.
        if missing := sorted(found["missing_keys"]):
            raise ModelError(
                f"{name}: model.safetensors lacks {len(missing)} weights of {cls.__name__} ({', '.join(missing[:3])});"
                " give a folder that stage 2 wrote, or get the file again"
            )
        if unknown := sorted(found["unexpected_keys"]):
            raise ModelError(
                f"{name}: model.safetensors holds {len(unknown)} weights for which {cls.__name__} has no place"
                f" ({', '.join(unknown[:3])}); install the version of runne_coner that the model was saved with"
            )
        _check_positions(name, model)
        return (model, found) if output_loading_info else model

    @classmethod
    def from_encoder(cls, name_or_path: str, config: CoNERConfig, **kwargs):
        """A network with a pre-trained encoder and new weights elsewhere.

        Args:
            name_or_path: Hub id or folder of any encoder that `AutoModel` loads, or of a model that stage 2 left, whose
                encoder is taken (for its heads see `initialization.take_heads`).
            config: its `encoder` is filled in from the checkpoint.
            kwargs: for `AutoModel.from_pretrained` (`revision`, `token`, ...).
        Returns:
            The network in float32, in evaluation mode.
        Raises:
            ModelError: as `pretrained_encoder`; or `config.max_length` is more than the encoder has positions for.
        """
        encoder = pretrained_encoder(name_or_path, **kwargs)
        # A folder of this machine means nothing to whoever gets the model.
        encoder.config._name_or_path = ""
        config.encoder = encoder.config
        model = cls(config)
        model.encoder = encoder
        _check_positions(name_or_path, model)
        return model.eval()

    def _encode(self, input_ids: Tensor, attention_mask: Tensor | None, token_type_ids: Tensor | None) -> Tensor:
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        # Some encoders (DistilBERT, ModernBERT, ...) know no token types.
        if token_type_ids is not None:
            inputs["token_type_ids"] = token_type_ids
        return self.encoder(**inputs).last_hidden_state


def pretrained_encoder(name_or_path: str, **kwargs) -> PreTrainedModel:
    """A pre-trained encoder, in float32.

    Args:
        name_or_path: Hub id or folder of any encoder that `AutoModel` loads, or of a model that stage 2 left.
        kwargs: for `AutoModel.from_pretrained` (`revision`, `token`, ...).
    Raises:
        ModelError: there is no such encoder, or a file of it is missing or broken; a model of stage 2 that is not whole, or
            only an export.
    """
    with _loading(name_or_path):
        found = AutoConfig.from_pretrained(name_or_path, **kwargs)
    # A file in half precision would otherwise be trained in half precision.
    if isinstance(found, CoNERConfig):
        saved = CoNERForTokenClassification.from_pretrained(name_or_path, dtype=torch.float32, **kwargs)
        if isinstance(saved, OnnxModel):
            raise ModelError(
                f"{name_or_path}: an export holds no encoder for torch; give the folder of the model it was made from"
            )
        return saved.encoder
    with _loading(name_or_path):
        # Of a Hub repository that has none, transformers looks for a conversion.
        kwargs = {"use_safetensors": True, "dtype": torch.float32, **_without_pooler(found), **kwargs}
        encoder, report = AutoModel.from_pretrained(name_or_path, output_loading_info=True, **kwargs)
    # A pooler that cannot be left out is often not saved, and neither stage reads it.
    if missing := sorted(name for name in report["missing_keys"] if not name.startswith("pooler.")):
        raise ModelError(
            f"{name_or_path}: model.safetensors lacks {len(missing)} weights of {type(encoder).__name__}"
            f" ({', '.join(missing[:3])}), which transformers would draw at random; give a folder in which the weights"
            " and config.json are of the same model"
        )
    return encoder


def max_positions(encoder: PreTrainedModel) -> int | None:
    """How many tokens an encoder can read at once; None where it has no table of absolute positions (T5, ModernBERT, ...).

    Encoders with relative or rotary positions may name `max_position_embeddings` in their configuration as well.
    """
    size = getattr(encoder.config, "max_position_embeddings", None)
    for name, layer in encoder.named_modules():
        owner, _, last = name.rpartition(".")
        if last == "position_embeddings" and isinstance(layer, nn.Embedding) and layer.num_embeddings == size:
            # RoBERTa and its kin number the positions from padding_idx + 1 on.
            padding = getattr(encoder.get_submodule(owner), "padding_idx", None)
            return size if padding is None else size - padding - 1
    return None


def _check_positions(name: str, model: "CoNERPreTrainedModel") -> None:
    limit = max_positions(model.encoder)
    if limit is not None and model.config.max_length > limit:
        raise ModelError(
            f"{name}: max_length {model.config.max_length} is more than the {limit} sub-words that the encoder has positions"
            f" for; give a max_length of at most {limit}"
        )


def _without_pooler(config: PreTrainedConfig) -> dict[str, bool]:
    """Option that leaves out the layer over the first token, which neither stage trains (DDP refuses idle weights)."""
    known = inspect.signature(MODEL_MAPPING[type(config)].__init__).parameters
    return {"add_pooling_layer": False} if "add_pooling_layer" in known else {}


def _new_encoder(config: CoNERConfig) -> PreTrainedModel:
    # In the data type that `from_pretrained(dtype=...)` is loading, whatever the encoder was once saved in.
    return AutoModel.from_config(config.encoder, dtype=torch.get_default_dtype(), **_without_pooler(config.encoder))


@dataclass
class EntityEncoderOutput(ModelOutput):
    """Output of `EntityEncoder`: `span_embeddings` (S, D), of unit length, and `last_hidden_state` (batch, tokens, hidden)."""

    span_embeddings: Tensor | None = None
    last_hidden_state: Tensor | None = None


class EntityEncoder(CoNERPreTrainedModel):
    """The Siamese network of stage 1: an encoder whose last hidden layer is pooled over spans (eq. 1-2).

    Both sub-networks of the paper share all weights, so one forward pass over a batch serves every pair within it.
    With `config.projection_size` the spans are compared behind a projection head of two layers (as in SimCLR), which only
    stage 1 knows: `ContrastiveTrainer.save_model` saves the encoder alone.
    """

    def __init__(self, config: CoNERConfig):
        super().__init__(config)
        self.encoder = _new_encoder(config)
        self.projection = None
        if config.projection_size:
            pooled = config.hidden_size * (2 if config.span_pooling == "first_last" else 1)
            self.projection = nn.Sequential(
                nn.Linear(pooled, config.hidden_size), nn.GELU(), nn.Linear(config.hidden_size, config.projection_size)
            )
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        spans: Tensor | None = None,
        chunk_size: int = 0,
    ) -> EntityEncoderOutput:
        """Embeddings of spans.

        Args:
            input_ids, attention_mask, token_type_ids: `(batch, tokens)`.
            spans: `(S, 3)` int64: window index in the batch, first token, end token (exclusive).
            chunk_size: windows encoded at a time, so that a batch of any size can be trained on (see `gradient_cache`);
                0 = all at once.
        Returns:
            `span_embeddings` `(S, D)` float32: D is `projection_size`, or that of `pool_spans` where it is 0; in chunks there
            is no `last_hidden_state`.
        """
        if chunk_size and spans is not None:
            windows = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
            return EntityEncoderOutput(span_embeddings=embed_in_chunks(self._embed, windows, spans, chunk_size))
        hidden = self._encode(input_ids, attention_mask, token_type_ids)
        embeddings = None if spans is None else self._pool(hidden, spans)
        return EntityEncoderOutput(span_embeddings=embeddings, last_hidden_state=hidden)

    def _pool(self, hidden: Tensor, spans: Tensor) -> Tensor:
        embeddings = pool_spans(hidden, spans, self.config.span_pooling)
        if self.projection is not None:
            embeddings = nn.functional.normalize(self.projection(embeddings).float(), dim=-1)
        return embeddings

    def _embed(self, spans: Tensor, **windows: Tensor | None) -> Tensor:
        # Not by a call of the module: accelerate wraps it in an autocast context, which cannot be entered again inside itself.
        return self._pool(self._encode(**windows), spans)


def pool_spans(hidden: Tensor, spans: Tensor, pooling: str = "mean") -> Tensor:
    """Unit-length embeddings of spans (Bondarenko 2022, eq. 1-2), all spans at once.

    `masked_matrix` is the literal reading: the matrix `F(S) o M`, zero outside the span, as one long vector; two spans are
    then compared token by token at equal positions of their windows. `mean` is its position-free form; `max` takes the
    greatest value of each dimension over the span; `first_last` puts the first and the last sub-word side by side.

    Args:
        hidden: `(batch, tokens, hidden)`.
        spans: `(S, 3)`: window, first token, end token (exclusive); none of them empty.
        pooling: one of `configuration.SPAN_POOLINGS`.
    Returns:
        `(S, hidden)` for `mean` and `max`, `(S, 2 * hidden)` for `first_last`, `(S, tokens * hidden)` for `masked_matrix`;
        float32, of length 1.
    """
    window, first, end = spans.unbind(-1)
    with torch.autocast(device_type=hidden.device.type, enabled=False):
        hidden = hidden.float()
        if pooling == "masked_matrix":
            position = torch.arange(hidden.shape[1], device=hidden.device)
            mask = (position >= first[:, None]) & (position < end[:, None])
            pooled = (hidden[window] * mask[..., None]).flatten(1)
        elif pooling == "first_last":
            pooled = torch.cat([hidden[window, first], hidden[window, end - 1]], dim=-1)
        else:
            # Every sub-word of every span is a row, and the rows of a span are reduced as one segment. The length is set
            # to 1 below, so the sum serves as the mean.
            span = torch.repeat_interleave(torch.arange(len(spans), device=hidden.device), end - first)
            offset = torch.arange(len(span), device=hidden.device) - ((end - first).cumsum(0) - (end - first))[span]
            rows = hidden[window[span], first[span] + offset]
            pooled = rows.new_zeros(len(spans), hidden.shape[-1])
            if pooling == "max":
                pooled = pooled.scatter_reduce(0, span[:, None].expand_as(rows), rows, "amax", include_self=False)
            else:
                pooled = pooled.index_add(0, span, rows)
        return nn.functional.normalize(pooled, dim=-1)


class CoNERForTokenClassification(CoNERPreTrainedModel):
    """Encoder with one BILOU head per entity type and nesting level, fused into one linear layer (section 3.2).

    With `config.candidate_paths` there is a `span_scorer` as well, which decides on what the heads propose (see `decoding`).
    """

    def __init__(self, config: CoNERConfig):
        super().__init__(config)
        if not config.entity_types:
            raise ValueError("CoNERConfig.entity_types is empty: name the entity types that the heads shall tag")
        self.encoder = _new_encoder(config)
        self.dropout = nn.Dropout(config.head_dropout)
        self.classifier = nn.Linear(config.hidden_size, len(config.heads) * NUM_TAGS)
        self.span_scorer = None
        if config.candidate_paths:
            self.span_scorer = SpanScorer(config.hidden_size, len(config.entity_types), config.head_dropout)
        self.post_init()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """As `CoNERPreTrainedModel.from_pretrained`; a folder that holds nothing but an export gives an `OnnxModel`.

        So the Auto class and the pipeline, which know of one class a model, load exports too.
        """
        if holds_only_an_export(pretrained_model_name_or_path):
            return OnnxModel.from_pretrained(pretrained_model_name_or_path)
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    @torch.no_grad()
    def set_head_bias(self, tag_counts: np.ndarray, heads: list[int] | None = None) -> None:
        """Start heads at the tag frequencies of the training set, instead of learning first that most tags are O.

        Args:
            tag_counts: `(heads, 5)` how often each head has each tag; 1 is added to each, so that no tag is ruled out.
            heads: indices of the heads to set, by default all.
        """
        chosen = slice(None) if heads is None else heads
        frequencies = torch.from_numpy(tag_log_frequencies(tag_counts))
        bias = self.classifier.bias.unflatten(0, (-1, NUM_TAGS))
        bias[chosen] = frequencies[chosen].to(bias)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        spans: Tensor | None = None,
    ) -> CoNEROutput:
        """Logits of all heads.

        Args:
            input_ids, attention_mask, token_type_ids: `(batch, tokens)`.
            spans: `(S, 3)` window, first token, end token (exclusive) for the scorer, where there is one.
        Returns:
            `logits` `(batch, tokens, heads, 5)`, heads ordered as `config.heads`, tags as `tagging.TAGS`; in evaluation mode
            those that are decoded, with `config.type_offsets` added (logit adjustment; Menon et al. 2021, eq. 9). With a
            scorer also `span_features` `(batch, tokens, 3 x span_scorer.SIZE)`, and where `spans` are given their
            `span_logits` `(S, types)`.
        """
        hidden = self._encode(input_ids, attention_mask, token_type_ids)
        logits = self.classifier(self.dropout(hidden)).unflatten(-1, (-1, NUM_TAGS))
        if not self.training and any(self.config.type_offsets.values()):
            logits = logits + logits.new_tensor(self.config.head_offsets())
        features = None if self.span_scorer is None else self.span_scorer.features(hidden)
        scored = features is not None and spans is not None
        return CoNEROutput(
            logits=logits, span_features=features, span_logits=self.span_scorer(features, spans) if scored else None
        )


# As `CoNERConfig`: the code goes with the model.
CoNERForTokenClassification.register_for_auto_class("AutoModelForTokenClassification")
