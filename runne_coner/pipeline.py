"""`pipeline("nested-ner", ...)`: text of any length to nested entities with scores."""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig, Pipeline, PreTrainedTokenizerBase, pipeline

from .collators import BilouCollator
from .configuration import CoNERConfig, ModelError
from .decoding import SpanDecoder, SpanScores
from .modeling import CoNERForTokenClassification
from .onnx_model import OnnxModel, holds_only_an_export
from .preprocessing import ViewError, load_tokenizer, window_rows
from .tagging import SPECIAL, nesting_levels
from .windows import WindowSettings

TASK = "nested-ner"
BUFFERED_CHARACTERS = 100_000
"""Texts of about so many characters are cut and sorted by length together: it saves padding, and still streams."""
_SURROGATE = re.compile(r"[\ud800-\udfff]")


class NestedNerPipeline(Pipeline):
    """Finds nested entities in texts of any length.

        recognize = pipeline("nested-ner", model="folder or Hub id")
        recognize("Мэр Казани Ильсур Метшин ...")

    Input: a text, a list of texts, or any iterable of texts (a generator, a `datasets` column or a `KeyDataset`), which is
    streamed.
    Output: for each text a list of entities `{"entity_type", "start", "end", "text", "score", "level"}`, sorted by start,
    then longest first. `start` and `end` are characters of the untouched text, so `text[start:end] == entity["text"]`.
    A text without words gives no entities.

    `score` is the probability that the whole span is right. Of a model with a scorer of spans (`config.candidate_paths`) it is
    the sigmoid of the log-odds by which the span was taken (`decoding.SpanDecoder`), divided by `config.score_temperature`;
    of one without, the share of the weight of all legal tag paths of the window that pass exactly over this span under its
    head (forward-backward over the chains of Figure 2), with the logits divided by the temperature. To the log-odds of either
    `config.score_bias` is added. Stage 2 fits both so that a score of 0.8 is right in about 80% of cases (see `calibration`);
    they change scores only, never which spans are decoded, so a span may be given with a score below 0.5.
    `level` is the nesting level among entities of the type (1 = outermost). A span that two levels of a type find is one
    entity, that of the better score; entities that cross without nesting are all given (`flat` keeps the longer one; a
    scorer keeps the better one of a type).

    A text is cut into windows of sentences as in training; pieces of a sentence longer than a window overlap, and an entity
    comes from the window whose core its first character lies in.

    Options of the construction (beside those of `transformers.pipeline`):
        backend: `torch`; `onnx` for what `runne-coner export` wrote, on the CPU; None is torch, unless the folder holds
            nothing but an export.

    Options, at construction or in the call:
        batch_size: windows in a forward pass, at least 1, default 32.
        threshold: leave out entities with a (calibrated) score below it, in [0, 1], default 0. One chosen for a model
            before its scores were calibrated has to be chosen anew.
        entity_types: decode only these types.
        context: read every window a second time together with so many windows before and after it, as far as `max_length`
            lets them fit, and decide by the mean of what the model says to both; a whole number, default 0. It takes
            about four times as long. Scores are calibrated without it.
        flat: keep only the outermost entities: from the longest on, those that overlap none kept before; of equal spans
            the one with the better score.

    Raises:
        ModelError: `backend` and the model, its `device` or its `dtype` do not go together, or there is no tokenizer.
    """

    _load_processor = False
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = True

    def __init__(
        self,
        model: CoNERForTokenClassification | OnnxModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        backend: str | None = None,
        **kwargs,
    ):
        if tokenizer is None:
            raise ModelError("the pipeline needs the model's tokenizer; give tokenizer=, or a folder that holds one")
        if tokenizer.pad_token_id is None:
            raise ModelError(
                f"{tokenizer.name_or_path}: the tokenizer has no pad_token (tokenizer_config.json); get the file again"
            )
        model = _of_backend(model, backend)
        if isinstance(model, OnnxModel):
            _check_onnx_options(model, kwargs.get("device"), kwargs.get("dtype"))
            kwargs["device"] = "cpu"
        super().__init__(model=model, tokenizer=tokenizer, **kwargs)
        _checked_batch_size(self._batch_size)
        config = self.model.config
        self.windows = WindowSettings(config.max_length, config.max_sentences, config.stride)
        try:
            self.decoder = SpanDecoder(config)
        except ValueError as error:
            raise ModelError(f"{config.name_or_path}: config.json, transition_priors: {error}") from error
        self.collator = BilouCollator(tokenizer)
        self.model.eval()

    def _sanitize_parameters(self, **options):
        known = {"threshold", "entity_types", "flat", "context"}
        unknown = sorted(set(options) - known)
        if unknown:
            raise TypeError(f"unknown options {unknown} of the nested-ner pipeline; known are {sorted(known | {'batch_size'})}")
        if "threshold" in options:
            _check_threshold(options["threshold"])
        if not isinstance(options.get("flat", False), bool):
            raise TypeError(f"flat must be true or false, got {options['flat']!r}")
        around = {}
        if "context" in options:
            around["context"] = _checked_context(options.pop("context"))
        heads = {}
        if "entity_types" in options:
            heads["heads"] = self._heads_of(options.pop("entity_types"))
        return around, heads, options

    def _heads_of(self, entity_types: Iterable[str] | None) -> list[int] | None:
        if entity_types is None:
            return None
        known = self.model.config.entity_types
        if not isinstance(entity_types, Iterable):
            raise TypeError(f"entity_types must be a list of types, got {entity_types!r}")
        wanted = [entity_types] if isinstance(entity_types, str) else list(entity_types)
        unknown = [name for name in wanted if name not in known]
        if unknown or not wanted:
            raise ValueError(f"entity_types {unknown or wanted}: the model tags {known}")
        return [head for head in range(len(self.model.config.heads)) if known[head % len(known)] in wanted]

    def __call__(self, inputs: str | Iterable[str], batch_size: int | None = None, **options):
        """See the class. A list gives a list, another iterable an iterator that reads it as it goes.

        Raises:
            TypeError: an input that is not text. TypeError, ValueError: an option is of a wrong type, or out of its range.
        """
        defaults = (self._preprocess_params, self._forward_params, self._postprocess_params)
        settings = [before | now for before, now in zip(defaults, self._sanitize_parameters(**options), strict=True)]
        batch_size = _checked_batch_size(batch_size) or self._batch_size or 32
        if isinstance(inputs, str):
            return next(self._stream([inputs], batch_size, *settings))
        if not isinstance(inputs, Iterable) and hasattr(inputs, "__getitem__") and hasattr(inputs, "__len__"):
            inputs = map(inputs.__getitem__, range(len(inputs)))
        # Of a mapping, the keys would be read.
        if isinstance(inputs, (bytes, Mapping)) or not isinstance(inputs, Iterable):
            raise TypeError(f"expected a text (str) or texts, got {type(inputs).__name__}")
        stream = self._stream(inputs, batch_size, *settings)
        return list(stream) if isinstance(inputs, (list, tuple)) else stream

    def _stream(
        self, texts: Iterable[str], batch_size: int, preprocess: dict, forward: dict, postprocess: dict
    ) -> Iterator[list[dict]]:
        for group in _groups(texts):
            rows = window_rows(group, self.tokenizer, self.windows, **preprocess)
            rows.sort(key=lambda row: row.get("in_context", row)["length"])
            found: list[list[dict]] = [[] for _ in group]
            # The longest windows come first: if a batch does not fit into memory, it is the first one.
            for start in range(len(rows) - 1, -1, -batch_size):
                batch = rows[max(start - batch_size + 1, 0) : start + 1]
                for row, entities in zip(batch, self.forward(batch, **forward), strict=True):
                    found[row["document"]].extend(entities)
            for text, entities in zip(group, found, strict=True):
                yield self.postprocess((text, entities), **postprocess)

    # The three steps that `Pipeline` asks for.

    def preprocess(self, text: str, context: int = 0) -> list[dict]:
        """Windows of a text: rows with `input_ids`, `subword_cases`, character offsets of words, and `core`."""
        return window_rows([text], self.tokenizer, self.windows, context=context)

    def forward(self, rows: list[dict], **options) -> list[list[dict]]:
        """As `_forward`, without gradients; it places the tensors itself, where `Pipeline` would walk through all rows."""
        with self.device_placement(), torch.inference_mode():
            return self._forward(rows, **options)

    def _forward(self, rows: list[dict], heads: list[int] | None = None) -> list[list[dict]]:
        """Entities of each of a batch of windows, without their text."""
        entities: list[list[dict]] = [[] for _ in rows]
        found, windows, scores = self.decode(rows, heads)
        config = self.model.config
        values = torch.sigmoid(scores.log_odds(config.score_temperature) + config.score_bias).tolist() if found else []
        for window, entity, score in zip(windows, found, values, strict=True):
            entities[window].append(entity | {"score": score})
        return entities

    def decode(self, rows: list[dict], heads: list[int] | None = None) -> tuple[list[dict], list[int], SpanScores]:
        """What the model finds in a batch of windows, and what its scores are made of.

        Args:
            rows: from `preprocess`. heads: those to decode, by default all.
        Returns:
            Entities without text and score, the window of each in `rows`, and the scores of just these.
        """
        cases, logits, features = self._read(rows)
        logits, features = self._also_in_context(rows, cases, logits, features)
        spans, scores = self.decoder.decode(cases, logits, features, self.model.span_scorer, heads)
        types = self.model.config.entity_types
        kept, entities = [], []
        for number, (window, head, first, end) in enumerate(spans.tolist()):
            row = rows[window]
            start = int(row["word_starts"][first])
            if row["core"][0] <= start < row["core"][1]:
                kept.append(number)
                entities.append(
                    {"entity_type": types[head % len(types)], "start": start, "end": int(row["word_ends"][end - 1])}
                )
        return entities, spans[kept, 0].tolist(), scores.take(torch.tensor(kept, dtype=torch.long, device=self.device))

    def _read(self, rows: list[dict]) -> tuple[Tensor, Tensor, Tensor | None]:
        """Cases of the sub-words, and what the model says to them: `(batch, tokens)` and arguments of `SpanDecoder.decode`."""
        inputs = {name: value.to(self.device) for name, value in self.collator(rows).items()}
        cases = inputs.pop("subword_cases")
        output = self.model(**inputs)
        return cases, output.logits, output.span_features

    def _also_in_context(self, rows: list[dict], cases: Tensor, logits: Tensor, features: Tensor | None):
        """The mean of what the model says to the windows alone, and to the same tokens among their neighbours."""
        chosen = [number for number, row in enumerate(rows) if "in_context" in row]
        if not chosen:
            return logits, features
        _, wide_logits, wide_features = self._read([rows[number]["in_context"] for number in chosen])
        shift = torch.tensor([rows[number]["shift"] for number in chosen], device=cases.device)
        # Own sub-words of the chosen windows: the window, the token in it, and where both stand in what was read again.
        again, token = torch.nonzero(cases[chosen] != SPECIAL, as_tuple=True)
        window, place = torch.tensor(chosen, device=cases.device)[again], token + shift[again]
        logits = logits.float().log_softmax(dim=-1)
        logits[window, token] = (logits[window, token] + wide_logits[again, place].float().log_softmax(dim=-1)) / 2
        if features is not None:
            features = features.clone()
            features[window, token] = (features[window, token] + wide_features[again, place]) / 2
        return logits, features

    def postprocess(self, found: tuple[str, list[dict]], threshold: float = 0.0, flat: bool = False) -> list[dict]:
        """Entities of one text in order, each span and type once (the better score)."""
        text, entities = found
        best: dict[tuple[int, int, str], dict] = {}
        for entity in sorted(entities, key=lambda e: e["score"]):
            if entity["score"] >= threshold:
                best[entity["start"], entity["end"], entity["entity_type"]] = entity
        kept = sorted(best.values(), key=lambda e: (e["start"], -e["end"], e["entity_type"]))
        if flat:
            kept = _outermost(kept)
        _add_levels(kept)
        order = ("entity_type", "start", "end", "text", "score", "level")
        return [{key: (e | {"text": text[e["start"] : e["end"]]})[key] for key in order} for e in kept]


def _of_backend(model: CoNERForTokenClassification | OnnxModel, backend: str | None) -> CoNERForTokenClassification | OnnxModel:
    """The model, or in its place the one that ONNX Runtime runs out of the same folder."""
    if backend not in (None, "torch", "onnx"):
        raise ModelError(f"backend must be torch or onnx, not {backend!r}")
    if backend == "torch" and isinstance(model, OnnxModel):
        raise ModelError(f"{model.path}: is no model for torch, and its folder holds none; load it with backend='onnx'")
    if backend == "onnx" and not isinstance(model, OnnxModel):
        return OnnxModel.from_pretrained(model.name_or_path)
    return model


def _check_onnx_options(model: OnnxModel, device, dtype) -> None:
    on_cpu = device in (None, -1) or (not isinstance(device, int) and torch.device(device).type == "cpu")
    if not on_cpu:
        raise ModelError(f"{model.path}: runs on the CPU, not on {device}; leave device= out, or use the torch model")
    if dtype not in (None, "auto", "float32", torch.float32):
        raise ModelError(f"{model.path}: an exported model has the precision of its export; leave dtype= out")


def _checked_batch_size(batch_size: int | None) -> int | None:
    if batch_size is not None and type(batch_size) is not int:
        raise TypeError(f"batch_size must be a whole number, got {batch_size!r}")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    return batch_size


def _checked_context(context: int) -> int:
    if type(context) is not int:
        raise TypeError(f"context must be a whole number of windows, got {context!r}")
    if context < 0:
        raise ValueError(f"context must be 0 or more windows, got {context}")
    return context


def _check_threshold(threshold: float) -> None:
    if isinstance(threshold, bool) or not isinstance(threshold, (int, float)):
        raise TypeError(f"threshold must be a number, got {threshold!r}")
    if not 0.0 <= threshold <= 1.0:
        raise ValueError(f"threshold must lie in [0, 1], got {threshold}")


def load_pipeline(model: str, backend: str | None = None, **options) -> NestedNerPipeline:
    """`pipeline("nested-ner", ...)` of a saved model, with errors that say what is wrong with the folder.

    Args:
        model: folder or Hub id.
        backend, options: of `transformers.pipeline` (`device`, `dtype`, ...) and of `NestedNerPipeline`.
    Raises:
        ModelError: no such folder, a file is missing or broken, or it holds another kind of model.
    """
    folder = Path(model)
    if folder.is_dir():
        for name, content in (("config.json", "configuration"), ("tokenizer.json", "tokenizer")):
            if not (folder / name).is_file():
                raise ModelError(f"{model}: no {name}: the folder holds no {content}; give a folder that stage 2 wrote")
        if backend != "onnx" and not holds_only_an_export(folder) and not list(folder.glob("model*.safetensors")):
            raise ModelError(f"{model}: no model.safetensors: the folder holds no weights; give a folder that stage 2 wrote")
    elif len(folder.parts) > 2 or folder.is_absolute():
        raise ModelError(f"{model}: there is no such folder, and it is no Hub id (owner/name)")
    source = {name: options[name] for name in ("revision", "token") if name in options}
    try:
        config = AutoConfig.from_pretrained(model, **source)
    except OSError as error:
        raise ModelError(f"{model}: cannot be loaded: {' '.join(str(error).split())}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(f"{model}: config.json is no configuration of a CoNER model: {error}") from error
    if not isinstance(config, CoNERConfig):
        raise ModelError(f"{model}: a {config.model_type!r} model, not a CoNER one; train it with recipes/stage2.py")
    if not config.entity_types:
        raise ModelError(f"{model}: config.json names no entity_types; give a folder that stage 2 wrote")
    try:
        if "tokenizer" not in options:
            options["tokenizer"] = load_tokenizer(model, **source)
        return pipeline(TASK, model=model, backend=backend, **options)
    except ViewError as error:
        raise ModelError(str(error)) from error
    except OSError as error:
        raise ModelError(f"{model}: cannot be loaded: {' '.join(str(error).split())}") from error


def _groups(texts: Iterable[str]) -> Iterator[list[str]]:
    """Runs of texts of about `BUFFERED_CHARACTERS` together, at least one text each."""
    group: list[str] = []
    size = 0
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"text {index} is no text (str) but {type(text).__name__}")
        if _SURROGATE.search(text):
            raise ValueError(
                f"text {index} is no valid Unicode: it holds half of a surrogate pair; replace it, or leave it out"
            )
        group.append(text)
        size += len(text)
        if size >= BUFFERED_CHARACTERS:
            yield group
            group, size = [], 0
    if group:
        yield group


def _add_levels(entities: list[dict]) -> None:
    """Note in each of the entities of a text, all different, the nesting level that it has among those of its type.

    It is not the level of the head that found it: that one may be counted from the inside, and its outer entity be missed.
    """
    of_type: dict[str, list[dict]] = {}
    for entity in entities:
        of_type.setdefault(entity["entity_type"], []).append(entity)
    for group in of_type.values():
        levels = nesting_levels([(entity["start"], entity["end"]) for entity in group])
        for entity, level in zip(group, levels, strict=True):
            entity["level"] = level


def _outermost(entities: list[dict]) -> list[dict]:
    kept: list[dict] = []
    for entity in sorted(entities, key=lambda e: (e["start"] - e["end"], -e["score"])):
        if all(entity["end"] <= other["start"] or other["end"] <= entity["start"] for other in kept):
            kept.append(entity)
    return sorted(kept, key=lambda e: e["start"])
