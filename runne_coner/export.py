"""A trained model as an ONNX file for serving on CPUs, compared with torch on sample texts before anybody can use it."""

import contextlib
import importlib.util
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from .documents import read_documents
from .files import check_writable, replacing_folder
from .nerel import SAMPLE
from .onnx_model import INSTALL, ONNX_FILES, SCORER_FILE, OnnxError, OnnxModel
from .pipeline import NestedNerPipeline, load_pipeline
from .preprocessing import window_rows
from .tagging import spans_from_tags

OPSET = 23
"""The first with one operator for attention, the fastest of those tried on CPUs; onnxruntime reads it from 1.23 on."""
LOGIT_TOLERANCE = 1e-3
"""The most by which a logit of a float32 export may differ from torch's; 2e-5 is usual."""
ENTITY_TOLERANCE = 0.03
"""The most of the entities on which an int8 export may disagree with torch; 0.01 is usual."""
SAMPLE_CHARACTERS = 20_000
LEAST_ENTITIES = 20
LEAST_WORDS = 1_000
LARGEST_FILE = 1_800_000_000
"""Bytes of weights above which they lie in a file beside the model: one ONNX file holds at most 2 GB."""
_REPORT = "export.json"


class ExportError(RuntimeError):
    """A model that could not be exported, or whose export is not faithful; nothing is left behind."""


@dataclass(frozen=True)
class ExportReport:
    """What was written and how it compares with torch on the sample texts.

    Attributes:
        file: name of the ONNX file.
        int8: whether the weights are 8-bit integers.
        bytes: its size, weights in a file beside it included.
        windows: windows compared, in batches with and without padding.
        max_logit_difference: over all tokens but padding, heads and tags; features of spans included.
        entities: entities that torch finds.
        entity_agreement: F1 of the export's entities (window, head, span) with torch's as the right ones.
        tag_agreement: of the tags that torch or the export set to something but O, the share on which both agree.
        tolerance: what the difference (float32) or `1 - entity_agreement` (int8) had to stay within.
    """

    file: str
    int8: bool
    bytes: int
    windows: int
    max_logit_difference: float
    entities: int
    entity_agreement: float
    tag_agreement: float
    tolerance: float

    def __str__(self) -> str:
        return (
            f"on {self.windows} windows with {self.entities} entities: largest difference of a logit "
            f"{self.max_logit_difference:.2g}, entities agree {self.entity_agreement:.2%}, tags {self.tag_agreement:.2%}"
        )


def export_onnx(
    model: str,
    folder: str | os.PathLike,
    int8: bool = False,
    tolerance: float | None = None,
    sample_texts: Sequence[str] | None = None,
) -> ExportReport:
    """Write encoder and heads as ONNX, any batch size and number of tokens, and compare the file's output with torch's.

    `int8` makes the weights of all linear layers 8-bit integers (a scale for each output), and the embeddings (a scale for
    each word); the inputs of linear layers are rounded to 8 bits while the model runs. The tokens of a batch would share one
    scale, and a few of them ([CLS], full stops) have values far beyond the others': so each token is first divided by its
    largest value, and the result multiplied by it. Weights take 7 of the 8 bits, as CPUs without VNNI (AVX2 only) would
    overflow otherwise.

    Args:
        model: folder or Hub id of a model that stage 2 trained.
        folder: where to write model.onnx or model_int8.onnx, the configuration, the tokenizer and export.json with the
            figures. It appears complete or not at all; an earlier export in it is replaced.
        tolerance: float32: the most by which a logit may differ; int8: the share of entities that may disagree.
            By default `LOGIT_TOLERANCE` and `ENTITY_TOLERANCE`.
        sample_texts: texts to compare on, by default of the bundled Russian sample. Texts of the model's domain are better.
    Returns:
        The figures of the comparison.
    Raises:
        ExportError: a package is missing, the folder holds something else, the texts say too little about an int8 model, or
            the export differs from torch by more than the tolerance.
        ModelError: `model` is no usable model.
    """
    _check_packages()
    target = Path(folder).expanduser().absolute()
    older = _older_export(target)
    recognizer = load_pipeline(model, backend="torch", device="cpu", dtype=torch.float32)
    batches, mixed = _sample_batches(recognizer, _sample_texts() if sample_texts is None else sample_texts)
    expected = [_outputs(recognizer.model, batch) for batch in batches + mixed]
    tolerance = (ENTITY_TOLERANCE if int8 else LOGIT_TOLERANCE) if tolerance is None else tolerance
    try:
        with replacing_folder(target, filled=older) as fresh:
            path = fresh / ONNX_FILES[int8]
            _write_graph(recognizer.model, mixed[0], path, int8)
            if recognizer.model.span_scorer is not None:
                deciding = recognizer.model.span_scorer.state_dict()
                kept = {name: value for name, value in deciding.items() if "project" not in name}
                # `save_file` would make a file that nobody else may read.
                (fresh / SCORER_FILE).write_bytes(save(kept))
            recognizer.model.config.save_pretrained(fresh)
            recognizer.tokenizer.save_pretrained(fresh)
            size = sum(file.stat().st_size for file in fresh.glob(f"{path.name}*"))
            exported = OnnxModel(path, recognizer.model.config)
            given = [_outputs(exported, batch) for batch in batches + mixed]
            report = ExportReport(
                file=path.name,
                int8=int8,
                bytes=size,
                windows=sum(len(batch["input_ids"]) for batch in batches),
                max_logit_difference=_max_difference(batches + mixed, given, expected),
                **_agreement(recognizer, batches, given, expected),
                tolerance=tolerance,
            )
            _check(report)
            _write_report(report, fresh)
    except OSError as error:
        raise ExportError(f"cannot write to {target}: {error}; give another folder") from error
    except OnnxError as error:
        raise ExportError(f"the export of {model} does not run: {error}") from error
    return report


def _check_packages() -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(name) is None:
            raise ExportError(f"{name} is not installed, which the export needs; {INSTALL}")


def _older_export(target: Path) -> bool:
    """Whether an earlier export is to be replaced; anything else in the way is an error, so no work is ever lost."""
    try:
        check_writable(target)
    except OSError as error:
        raise ExportError(f"cannot write to {target}: {error}; give another folder") from error
    if not target.exists():
        return False
    if not target.is_dir():
        raise ExportError(f"{target} is a file; give a folder")
    present = {entry.name for entry in target.iterdir()}
    if not present:
        return True
    try:
        written = set(json.loads((target / _REPORT).read_text(encoding="utf-8"))["files"])
    except (OSError, ValueError, KeyError, TypeError):
        written = set()
    if foreign := sorted(present - written):
        raise ExportError(f"{target} holds something else ({', '.join(foreign[:3])}); give a new or empty folder")
    return True


# ---------------------------------------------------------------------------------------------------------------------
# The graph


class _Tensors(nn.Module):
    """The model with positional inputs and bare tensors as outputs, as the exporter wants it."""

    def __init__(self, model: nn.Module, names: Sequence[str]):
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return self.model(**dict(zip(self.names, inputs, strict=True))).to_tuple()


class _TokenScaledLinear(nn.Linear):
    """A linear layer that computes the same from inputs whose largest value is 1 in every token."""

    def forward(self, inputs: Tensor) -> Tensor:
        largest = torch.maximum(inputs.amax(-1, keepdim=True), -inputs.amin(-1, keepdim=True)).clamp(min=1e-6)
        outputs = nn.functional.linear(inputs * largest.reciprocal(), self.weight) * largest
        return outputs if self.bias is None else outputs + self.bias


class _ByteEmbedding(nn.Module):
    """The embeddings of a layer, each rounded to 8 bits with a scale of its own."""

    def __init__(self, layer: nn.Embedding):
        super().__init__()
        scales = layer.weight.detach().abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / 127
        self.register_buffer("codes", (layer.weight.detach() / scales).round().to(torch.int8))
        self.register_buffer("scales", scales)

    def forward(self, ids: Tensor) -> Tensor:
        return self.codes[ids] * self.scales[ids]


def _make_int8_ready(model: nn.Module) -> None:
    """Change the layers that shall be 8-bit; those that compute something else under the name of a layer stay."""
    for name, layer in list(model.named_modules()):
        if type(layer) is nn.Linear:
            layer.__class__ = _TokenScaledLinear
        # Tables of positions and token types are small.
        elif type(layer) is nn.Embedding and layer.num_embeddings >= LEAST_WORDS:
            model.set_submodule(name, _ByteEmbedding(layer))


def _write_graph(model: nn.Module, batch: dict[str, Tensor], path: Path, int8: bool) -> None:
    """The ONNX file of a model, which is not the same afterwards if `int8`."""
    names = [name for name in batch if name != "subword_cases"]
    if int8:
        _make_int8_ready(model)
    large = sum(weight.nbytes for weight in [*model.parameters(), *model.buffers()]) > LARGEST_FILE
    axes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch, torch.no_grad(), _quiet():
        full = Path(scratch) / path.name if int8 else path
        torch.onnx.export(
            _Tensors(model, names).eval(),
            tuple(batch[name] for name in names),
            full,
            input_names=names,
            output_names=["logits"] if model.span_scorer is None else ["logits", "span_features"],
            opset_version=OPSET,
            # The older exporter traces, and loses the attention mask of transformers 5 without a word.
            dynamo=True,
            dynamic_shapes=(tuple(axes for _ in names),),
            external_data=large,
            verbose=False,
        )
        _strip(full)
        if int8:
            _quantize(full, path, large)


def _strip(path: Path) -> None:
    """Take out of a graph what the exporter notes for debugging: the stack of every operator, with this machine's paths."""
    import onnx

    graph = onnx.load(path, load_external_data=False)
    for noted in (graph, graph.graph, *graph.graph.node, *graph.graph.value_info, *graph.graph.input, *graph.graph.output):
        noted.ClearField("metadata_props")
        noted.ClearField("doc_string")
    # Shapes are known already; without this, quantization asks for a step that finds them.
    graph.metadata_props.add(key="onnx.quant.pre_process", value="onnxruntime.quant")
    onnx.save(graph, path)


def _quantize(full: Path, path: Path, large: bool) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        full,
        path,
        op_types_to_quantize=["MatMul", "Gemm"],
        weight_type=QuantType.QInt8,
        per_channel=True,
        reduce_range=True,
        use_external_data_format=large,
    )


@contextlib.contextmanager
def _quiet():
    """Without the exporter's warnings about itself and about packages that are not there."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


# ---------------------------------------------------------------------------------------------------------------------
# The comparison


def _sample_texts() -> list[str]:
    texts, size = [], 0
    for document in read_documents(SAMPLE / "test.jsonl"):
        texts.append(document.text)
        size += len(document.text)
        if size >= SAMPLE_CHARACTERS:
            break
    return texts


def _sample_batches(recognizer: NestedNerPipeline, texts: Sequence[str]) -> tuple[list[dict], list[dict]]:
    """Windows of the texts in batches: all of them as the pipeline sorts them; some in a batch with much padding, and alone."""
    rows = window_rows(list(texts), recognizer.tokenizer, recognizer.windows)
    if not rows:
        raise ExportError("the sample texts hold no words, so there is nothing to compare on; give other texts")
    rows.sort(key=lambda row: row["length"])
    batches = [rows[start : start + 32] for start in range(0, len(rows), 32)]
    shortest_and_longest = [row for pair in zip(rows[:8], rows[:-9:-1], strict=True) for row in pair]
    mixed = [shortest_and_longest, rows[:1], rows[-1:]]
    return tuple([recognizer.collator(group) for group in groups] for groups in (batches, mixed))


def _outputs(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """Logits, and the features of spans where there is a scorer."""
    with torch.inference_mode():
        return model(**{name: value for name, value in batch.items() if name != "subword_cases"}).to_tuple()


def _max_difference(batches: list[dict], given: list[tuple[Tensor, ...]], expected: list[tuple[Tensor, ...]]) -> float:
    real = [batch["attention_mask"].bool() for batch in batches]
    largest = [
        (x - y)[mask].abs().max()
        for ours, theirs, mask in zip(given, expected, real, strict=True)
        for x, y in zip(ours, theirs, strict=True)
    ]
    # Unlike Python's, this maximum does not pass over a NaN.
    return torch.stack(largest).max().item()


def _agreement(recognizer: NestedNerPipeline, batches: list[dict], given: list[tuple], expected: list[tuple]) -> dict:
    """`entities`, `entity_agreement` and `tag_agreement` of a report."""
    ours, theirs, common, set_tags, same_tags = 0, 0, 0, 0, 0
    # That of an export is the same.
    scorer = {"scorer": recognizer.model.span_scorer}
    # What follows the batches in `given` and `expected` are windows that stand in them already.
    for batch, *both in zip(batches, given, expected, strict=False):
        tags, torch_tags = (
            recognizer.decoder.tags(batch["subword_cases"], *map(torch.nan_to_num, outputs), **scorer) for outputs in both
        )
        set_tags += int(((tags > 0) | (torch_tags > 0)).sum())
        same_tags += int(((tags == torch_tags) & (tags > 0)).sum())
        spans, torch_spans = ({*map(tuple, spans_from_tags(x.numpy()).tolist())} for x in (tags, torch_tags))
        ours, theirs, common = ours + len(spans), theirs + len(torch_spans), common + len(spans & torch_spans)
    return {
        "entities": theirs,
        "entity_agreement": 2 * common / (ours + theirs) if ours + theirs else 1.0,
        "tag_agreement": same_tags / set_tags if set_tags else 1.0,
    }


def _check(report: ExportReport) -> None:
    if report.int8 and report.entities < LEAST_ENTITIES:
        raise ExportError(
            f"the model finds {report.entities} entities in the sample texts, at least {LEAST_ENTITIES} are needed to judge an"
            " int8 export; give texts of the model's domain (--texts)"
        )
    measured = 1 - report.entity_agreement if report.int8 else report.max_logit_difference
    if not measured <= report.tolerance:
        what = "the share of entities that disagree" if report.int8 else "the largest difference of a logit"
        raise ExportError(
            f"the export is not faithful to torch, nothing was written: {what} is {measured:.3g}, allowed are"
            f" {report.tolerance:.3g} ({report})"
        )


def _write_report(report: ExportReport, folder: Path) -> None:
    versions = {name: metadata.version(name) for name in ("runne-coner", "torch", "transformers", "onnx", "onnxruntime")}
    files = sorted([_REPORT, *(entry.name for entry in folder.iterdir())])
    content = {"check": asdict(report), "opset": OPSET, "versions": versions, "files": files}
    (folder / _REPORT).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
