"""A model that `runne-coner export` wrote, run by ONNX Runtime in the place of the torch model of the pipeline."""

import os
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig
from transformers.utils import cached_file

from .configuration import CoNERConfig, ModelError
from .span_scorer import CoNEROutput, SpanScorer

ONNX_FILES = ("model.onnx", "model_int8.onnx")
"""The names that an exported model may have, of which a folder holds one; weights above 2 GB lie in `<name>.data` beside it."""
SCORER_FILE = "span_scorer.safetensors"
"""Beside the ONNX file of a model with a scorer of spans: what decides on spans once the graph has given their features."""
INSTALL = 'run: pip install "runne-coner[onnx]"'


class OnnxError(ModelError):
    """A model that ONNX Runtime cannot run; the message says why."""


def holds_only_an_export(folder: str | os.PathLike) -> bool:
    """Whether a folder holds an exported model and no weights for torch."""
    folder = Path(folder)
    return any((folder / name).is_file() for name in ONNX_FILES) and not any(folder.glob("model*.safetensors"))


class OnnxModel(nn.Module):
    """What `NestedNerPipeline` asks of a model, on the CPU: `config`, `device` and a call that returns logits.

        recognize = pipeline("nested-ner", model=OnnxModel.from_pretrained(folder), tokenizer=folder, device="cpu")

    `load_pipeline(folder, backend="onnx")` is the same in short. As many threads are used as torch has been given.

    Args:
        path: the ONNX file.
        config: of the model that was exported.
    Raises:
        OnnxError: onnxruntime is not installed, or the file is missing or damaged.
    """

    def __init__(self, path: str | os.PathLike, config: CoNERConfig):
        super().__init__()
        self.path = Path(path)
        self.config = config
        self.session = _open_session(self.path)
        self.input_names = [given.name for given in self.session.get_inputs()]
        self.span_scorer = _load_scorer(self.path.with_name(SCORER_FILE), config) if config.candidate_paths else None

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike) -> "OnnxModel":
        """The model of a folder or Hub id that holds an export."""
        options = {"_raise_exceptions_for_missing_entries": False}
        for name in ONNX_FILES:
            if path := cached_file(folder, name, **options):
                for other in (f"{name}.data", SCORER_FILE):
                    cached_file(folder, other, **options)
                return cls(path, AutoConfig.from_pretrained(folder))
        raise OnnxError(
            f"{folder}: no {' or '.join(ONNX_FILES)}; write it with: runne-coner export --model MODEL --to onnx DIR"
        )

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> CoNEROutput:
        """`logits` `(batch, tokens, heads, 5)`, with a scorer `span_features`, as of `CoNERForTokenClassification`."""
        given = {
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids) if attention_mask is None else attention_mask,
            "token_type_ids": torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids,
        }
        outputs = self.session.run(None, {name: given[name].numpy() for name in self.input_names})
        return CoNEROutput(*map(torch.from_numpy, outputs))

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    def to(self, device) -> "OnnxModel":
        """Itself; it cannot leave the CPU (OnnxError)."""
        if torch.device(device).type != "cpu":
            raise OnnxError(
                f"{self.path}: an ONNX model runs on the CPU, not on {device}; give device='cpu', or the torch model"
            )
        return self

    # What `Pipeline` asks for its description.
    input_modalities = ("text",)

    def can_generate(self) -> bool:
        return False

    def save_pretrained(self, folder: str | os.PathLike, **kwargs) -> None:
        """Write the ONNX file and the configuration."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        for file in (self.path, self.path.with_name(f"{self.path.name}.data"), self.path.with_name(SCORER_FILE)):
            if file.is_file() and file.parent.resolve() != Path(folder).resolve():
                shutil.copyfile(file, Path(folder) / file.name)
        self.config.save_pretrained(folder)


def _load_scorer(path: Path, config: CoNERConfig) -> SpanScorer:
    scorer = SpanScorer(config.hidden_size, len(config.entity_types), dropout=0.0).eval()
    # The graph has the projection already.
    scorer.project = nn.Identity()
    try:
        scorer.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        message = " ".join(str(error).split())
        raise OnnxError(f"{path}: is missing or damaged ({message}); write it again with: runne-coner export") from error
    return scorer


def _open_session(path: Path):
    try:
        import onnxruntime
    except ImportError as error:
        raise OnnxError(f"onnxruntime is not installed, which backend='onnx' needs; {INSTALL}") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Threads that wait busily would take the cores from tokenisation and Viterbi between two runs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Every batch has a shape of its own: plans kept for each of them only take memory.
    options.enable_mem_pattern = False
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(
            str(path),
            options,
            providers=["CPUExecutionProvider"],
            # On CPUs the fused kernel of addition and normalisation is the slower one: it took 31% of an int8 run, its
            # parts take 9%.
            disabled_optimizers=["SkipLayerNormFusion"],
        )
    # The errors of onnxruntime have no common class of their own.
    except Exception as error:
        raise OnnxError(f"{path}: cannot be read as an ONNX model: {error}") from error
