"""An export gives what torch gives, or is refused and leaves nothing behind."""

import hashlib
import json
import shutil
import stat
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import MARKED, SENTENCES, TYPES
from transformers import pipeline

from runne_coner import export
from runne_coner.cli import main
from runne_coner.configuration import CoNERConfig, ModelError
from runne_coner.export import ExportError, export_onnx
from runne_coner.modeling import CoNERForTokenClassification
from runne_coner.onnx_model import SCORER_FILE, OnnxModel
from runne_coner.pipeline import load_pipeline
from runne_coner.preprocessing import load_tokenizer

onnx = pytest.importorskip("onnx")
TEXTS = [*SENTENCES, *(text for text, _ in MARKED), " ".join(SENTENCES)]


@pytest.fixture(scope="module", autouse=True)
def graphs_made_once(tmp_path_factory):
    """Each graph takes torch seconds to make: the second of the same network, weights and options is a copy of the first."""
    made, genuine = tmp_path_factory.mktemp("graphs"), torch.onnx.export

    def export_once(model, inputs, path, **options):
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        digest = hashlib.sha256(f"{path.name} {model} {options} {sorted(tensors)}".encode())
        for name in sorted(tensors):
            digest.update(tensors[name].detach().numpy().tobytes())
        folder = made / digest.hexdigest()
        if not folder.exists():
            unfinished = tmp_path_factory.mktemp("graph")
            genuine(model, inputs, unfinished / path.name, **options)
            unfinished.rename(folder)
        shutil.copytree(folder, path.parent, dirs_exist_ok=True)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.onnx, "export", export_once)
        yield


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """Makes the folder of a model with an encoder and random heads, which are sure of what they tag."""

    def make(encoder: str, **more) -> str:
        shape = {"levels": 2, "max_length": 48, "max_sentences": 0, "stride": 8, "score_temperature": 3.0, **more}
        shape["type_offsets"] = {TYPES[1]: 1.5}
        config = CoNERConfig(entity_types=TYPES, **shape)
        torch.manual_seed(1)
        model = CoNERForTokenClassification.from_encoder(encoder, config)
        torch.nn.init.normal_(model.classifier.weight, std=2.0)
        if model.span_scorer is not None:
            torch.nn.init.normal_(model.span_scorer.output.weight)
            torch.nn.init.constant_(model.span_scorer.output.bias, 5.0)
        folder = str(tmp_path_factory.mktemp("model"))
        model.save_pretrained(folder)
        load_tokenizer(encoder).save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="module")
def model_folder(folder_of, wordpiece_encoder) -> str:
    return folder_of(wordpiece_encoder)


@pytest.fixture(scope="module")
def exported(model_folder, tmp_path_factory):
    """Folder of a float32 export, and its report."""
    folder = tmp_path_factory.mktemp("export") / "onnx"
    return folder, export_onnx(model_folder, folder, sample_texts=TEXTS)


@pytest.fixture(scope="module")
def exported_int8(model_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "onnx"
    return folder, export_onnx(model_folder, folder, int8=True, tolerance=0.2, sample_texts=TEXTS)


def logits_of(model, **inputs) -> np.ndarray:
    with torch.inference_mode():
        return model(**inputs).logits.numpy()


# -- faithful -----------------------------------------------------------------------------------------------------------


def test_every_kind_of_encoder_gives_torch_logits_at_every_shape(any_encoder, folder_of, tmp_path):
    source = folder_of(any_encoder)
    report = export_onnx(source, tmp_path / "onnx", sample_texts=TEXTS)
    assert report.max_logit_difference < 1e-3 and report.entity_agreement == 1.0
    reference = CoNERForTokenClassification.from_pretrained(source, dtype=torch.float32).eval()
    model = OnnxModel.from_pretrained(tmp_path / "onnx")
    random = torch.Generator().manual_seed(3)
    for batch in (1, 2, 5, 32):
        for tokens in (1, 2, 3, 7, 48, 128):
            ids = torch.randint(5, reference.config.encoder.vocab_size, (batch, tokens), generator=random)
            mask = torch.ones_like(ids)
            for row in range(batch):
                mask[row, max(1, tokens - 3 * row) :] = 0
            inputs = {"input_ids": ids, "attention_mask": mask}
            given, wanted = logits_of(model, **inputs), logits_of(reference, **inputs)
            real = mask.bool().numpy()
            np.testing.assert_allclose(given[real], wanted[real], atol=1e-3, err_msg=f"batch {batch}, tokens {tokens}")


def test_what_lies_in_the_padding_does_not_matter(exported):
    model = OnnxModel.from_pretrained(exported[0])
    ids = torch.randint(5, 150, (2, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[:, 7:] = 0
    other = ids.clone()
    other[:, 7:] = 9
    first, second = (logits_of(model, input_ids=x, attention_mask=mask)[:, :7] for x in (ids, other))
    np.testing.assert_allclose(first, second, atol=1e-5)
    alone = logits_of(model, input_ids=ids[:1, :7], attention_mask=mask[:1, :7])
    np.testing.assert_allclose(first[:1], alone, atol=1e-4)


def test_the_pipeline_finds_the_same_entities(model_folder, exported):
    by_torch = load_pipeline(model_folder, device="cpu")(TEXTS, batch_size=4)
    recognize = load_pipeline(str(exported[0]), backend="onnx")
    assert sum(map(len, by_torch)) > 20
    for options in ({"batch_size": 1}, {"batch_size": 4}, {"batch_size": 32}):
        for given, wanted in zip(recognize(TEXTS, **options), by_torch, strict=True):
            key = ["entity_type", "start", "end", "text", "level"]
            assert [[e[k] for k in key] for e in given] == [[e[k] for k in key] for e in wanted]
            assert [e["score"] for e in given] == pytest.approx([e["score"] for e in wanted], abs=1e-3)
    assert {e["entity_type"] for e in recognize(TEXTS[0], entity_types=["CITY"])} <= {"CITY"}
    assert recognize("") == [] and "OnnxModel" in repr(recognize)
    # The export has the model's temperature, and its scores depend on it.
    recognize.model.config.score_temperature = 1.0
    sharper = [entity["score"] for entities in recognize(TEXTS) for entity in entities]
    assert np.mean(sharper) > 0.05 + np.mean([entity["score"] for entities in by_torch for entity in entities])


@pytest.mark.parametrize("int8", [False, True])
def test_the_scorer_of_spans_goes_with_the_export(folder_of, wordpiece_encoder, tmp_path, int8):
    source, folder = folder_of(wordpiece_encoder, candidate_paths=2), tmp_path / "onnx"
    tolerance = 0.2 if int8 else None
    report = export_onnx(source, folder, int8=int8, tolerance=tolerance, sample_texts=TEXTS)
    assert report.entities > 20 and report.entity_agreement >= (0.8 if int8 else 1.0)
    assert (folder / SCORER_FILE).stat().st_size < 100_000  # what the graph holds is not there again
    assert len({stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}) == 1
    answers = load_pipeline(str(folder))(TEXTS)
    if not int8:
        joined = " ".join(TEXTS)
        answered = [*answers, load_pipeline(str(folder))(joined, context=1)]
        by_torch = load_pipeline(source)
        for given, wanted in zip(answered, [*by_torch(TEXTS), by_torch(joined, context=1)], strict=True):
            assert [entity["score"] for entity in given] == pytest.approx([entity["score"] for entity in wanted], abs=1e-3)
            assert [entity | {"score": 0} for entity in given] == [entity | {"score": 0} for entity in wanted]
    # Saved again it is whole; without the file it is refused.
    load_pipeline(str(folder)).save_pretrained(tmp_path / "again")
    assert load_pipeline(str(tmp_path / "again"))(TEXTS) == answers
    (folder / SCORER_FILE).unlink()
    with pytest.raises(ModelError, match=rf"{SCORER_FILE}: is missing or damaged.*runne-coner export"):
        load_pipeline(str(folder))


def test_the_backend_is_chosen_by_what_the_folder_holds(model_folder, exported, tmp_path):
    assert isinstance(load_pipeline(str(exported[0])).model, OnnxModel)
    assert isinstance(load_pipeline(model_folder).model, CoNERForTokenClassification)
    both = tmp_path / "both"
    shutil.copytree(model_folder, both)
    shutil.copy(exported[0] / "model.onnx", both)
    assert isinstance(load_pipeline(str(both)).model, CoNERForTokenClassification)
    assert isinstance(load_pipeline(str(both), backend="onnx").model, OnnxModel)


def test_training_does_not_go_on_from_an_export(exported):
    with pytest.raises(ModelError, match="an export holds no encoder for torch; give the folder of the model it was made from"):
        CoNERForTokenClassification.from_encoder(str(exported[0]), CoNERConfig(entity_types=TYPES))


def test_a_pipeline_can_be_built_by_transformers_and_saved_again(exported, tmp_path):
    folder = str(exported[0])
    recognize = pipeline("nested-ner", model=OnnxModel.from_pretrained(folder), tokenizer=folder, device="cpu")
    recognize.save_pretrained(tmp_path)
    again = load_pipeline(str(tmp_path), backend="onnx")
    assert again(TEXTS) == recognize(TEXTS)


def test_int8_agrees_and_is_smaller(exported, exported_int8):
    _, full = exported
    folder, report = exported_int8
    assert (report.file, report.int8) == ("model_int8.onnx", True)
    assert report.entities > 20 and report.entity_agreement > 0.8 and report.tag_agreement > 0.8
    assert 0 < report.max_logit_difference
    assert json.loads((folder / "export.json").read_text())["check"]["entity_agreement"] == report.entity_agreement
    kinds = {node.op_type for node in onnx.load(folder / report.file).graph.node}
    assert {"MatMulInteger", "DynamicQuantizeLinear"} <= kinds
    assert load_pipeline(str(folder), backend="onnx")(TEXTS)
    assert full.max_logit_difference < report.max_logit_difference


def test_int8_survives_tokens_with_huge_values():
    # With one scale for the batch, the second token would be rounded to nothing.
    layer = torch.nn.Linear(16, 8)
    inputs = torch.randn(1, 3, 16) * torch.tensor([1000.0, 0.01, 0.0])[:, None]
    wanted = layer(inputs)
    layer.__class__ = export._TokenScaledLinear
    # Two ways to sum float32 products differ by rounding, which grows with what is summed.
    summed = inputs.abs() @ layer.weight.abs().T + layer.bias.abs()
    assert ((layer(inputs) - wanted).abs() <= 4 * torch.finfo(torch.float32).eps * summed).all()


def test_byte_embeddings_are_off_by_half_a_step_at_most():
    layer = torch.nn.Embedding(50, 12)
    ids = torch.arange(50)
    steps = layer.weight.abs().amax(1, keepdim=True) / 127
    assert ((export._ByteEmbedding(layer)(ids) - layer(ids)).abs() <= steps / 2 + 1e-6).all()


def test_large_embeddings_become_bytes(model_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "LEAST_WORDS", 100)
    report = export_onnx(model_folder, tmp_path / "onnx", int8=True, tolerance=0.3, sample_texts=TEXTS)
    words = len(load_tokenizer(model_folder))
    stored = [w for w in onnx.load(tmp_path / "onnx" / report.file).graph.initializer if list(w.dims) == [words, 32]]
    assert [w.data_type for w in stored] == [onnx.TensorProto.INT8]


def test_weights_beyond_two_gigabytes_lie_beside_the_model(model_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "LARGEST_FILE", 1000)
    for int8 in (False, True):
        folder = tmp_path / f"onnx{int8}"
        report = export_onnx(model_folder, folder, int8=int8, tolerance=0.2, sample_texts=TEXTS)
        assert (folder / f"{report.file}.data").is_file()
        assert report.bytes == sum(file.stat().st_size for file in folder.glob("model*"))
        assert load_pipeline(str(folder), backend="onnx")(TEXTS[0]) is not None


def test_nothing_of_this_machine_is_written(model_folder, exported, exported_int8):
    for folder, _ in (exported, exported_int8):
        assert {f.name for f in folder.iterdir()} == set(json.loads((folder / "export.json").read_text())["files"])
        for file in folder.iterdir():
            content = file.read_bytes()
            for path in (model_folder, str(folder), sys.prefix, export.__file__, torch.__file__, "site-packages"):
                assert path.encode() not in content, f"{file.name} holds {path}"


# -- refused ------------------------------------------------------------------------------------------------------------


def damage(path, factor):
    graph = onnx.load(path)
    for weight in graph.graph.initializer:
        if weight.data_type == onnx.TensorProto.FLOAT and len(weight.dims) == 2:
            values = onnx.numpy_helper.to_array(weight) * np.float32(factor)
            weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(graph, path)


@pytest.mark.parametrize("factor", [0.9, 0.0, float("nan")])
def test_a_damaged_export_is_refused_and_leaves_nothing(model_folder, exported, tmp_path, monkeypatch, factor):
    def write_damaged(model, batch, path, int8):
        shutil.copy(exported[0] / "model.onnx", path)
        damage(path, factor)

    monkeypatch.setattr(export, "_write_graph", write_damaged)
    with pytest.raises(ExportError, match="not faithful.* largest difference of a logit is .* allowed"):
        export_onnx(model_folder, tmp_path / "onnx", sample_texts=TEXTS)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_int8_export_is_refused_and_the_older_one_stays(model_folder, exported, tmp_path, monkeypatch):
    folder = tmp_path / "onnx"
    shutil.copytree(exported[0], folder)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}

    def lose_weights(full, path, large):
        graph = onnx.load(full)
        onnx.save(graph, path)
        damage(path, 0.2)

    monkeypatch.setattr(export, "_quantize", lose_weights)
    with pytest.raises(ExportError, match="share of entities that disagree"):
        export_onnx(model_folder, folder, int8=True, sample_texts=TEXTS)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert list(tmp_path.iterdir()) == [folder]


def test_an_export_that_breaks_in_the_middle_leaves_nothing(model_folder, tmp_path, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(export, "_strip", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export_onnx(model_folder, tmp_path / "onnx", sample_texts=TEXTS)
    assert list(tmp_path.iterdir()) == []


def test_an_export_that_is_no_onnx_model_is_named(model_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "_write_graph", lambda model, batch, path, int8: path.write_bytes(b"not an ONNX file"))
    with pytest.raises(ExportError, match="does not run: .*model.onnx"):
        export_onnx(model_folder, tmp_path / "onnx", sample_texts=TEXTS)
    assert list(tmp_path.iterdir()) == []


def test_int8_is_not_judged_on_texts_without_entities(model_folder, tmp_path):
    with pytest.raises(ExportError, match="at least 20 are needed"):
        export_onnx(model_folder, tmp_path / "onnx", int8=True, sample_texts=["."])
    with pytest.raises(ExportError, match="no words"):
        export_onnx(model_folder, tmp_path / "onnx", sample_texts=["", " \n"])
    assert list(tmp_path.iterdir()) == []


def test_only_an_older_export_is_replaced(model_folder, exported, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "_write_graph", lambda model, batch, path, int8: shutil.copy(exported[0] / "model.onnx", path))
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("years of work", encoding="utf-8")
    with pytest.raises(ExportError, match="holds something else .thesis.txt.; give a new or empty folder"):
        export_onnx(model_folder, foreign, sample_texts=TEXTS)
    with pytest.raises(ExportError, match="holds something else"):
        export_onnx(model_folder, model_folder, sample_texts=TEXTS)
    with pytest.raises(ExportError, match="is a file"):
        export_onnx(model_folder, foreign / "thesis.txt", sample_texts=TEXTS)
    older = tmp_path / "older"
    shutil.copytree(exported[0], older)
    (older / "notes.txt").write_text("beside it", encoding="utf-8")
    with pytest.raises(ExportError, match="notes.txt"):
        export_onnx(model_folder, older, sample_texts=TEXTS)
    (older / "notes.txt").unlink()
    export_onnx(model_folder, older, sample_texts=TEXTS)
    (tmp_path / "empty").mkdir()
    export_onnx(model_folder, tmp_path / "empty", sample_texts=TEXTS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "foreign", "older"]


def test_wrong_models_and_options_of_the_onnx_backend(model_folder, exported, tmp_path):
    folder = str(exported[0])
    with pytest.raises(ModelError, match="no model.onnx or model_int8.onnx; write it with: runne-coner export"):
        load_pipeline(model_folder, backend="onnx")
    with pytest.raises(ModelError, match="load it with backend='onnx'"):
        load_pipeline(folder, backend="torch")
    with pytest.raises(ModelError, match="backend must be torch or onnx, not 'tensorflow'"):
        load_pipeline(folder, backend="tensorflow")
    with pytest.raises(ModelError, match="runs on the CPU, not on cuda"):
        load_pipeline(folder, backend="onnx", device="cuda:0")
    with pytest.raises(ModelError, match="precision of its export"):
        load_pipeline(folder, backend="onnx", dtype=torch.bfloat16)
    with pytest.raises(ModelError, match="runs on the CPU"):
        OnnxModel.from_pretrained(folder).to("cuda")
    with pytest.raises(ModelError, match="backend='onnx'"):
        export_onnx(folder, tmp_path / "again", sample_texts=TEXTS)
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    (broken / "model.onnx").write_bytes((broken / "model.onnx").read_bytes()[:1000])
    with pytest.raises(ModelError, match="model.onnx: cannot be read as an ONNX model"):
        load_pipeline(str(broken), backend="onnx")


@pytest.mark.parametrize("options", [{}, {"backend": "onnx"}, {"device": "cpu"}])
def test_transformers_own_pipeline_loads_an_export(exported, options):
    recognize = pipeline("nested-ner", model=str(exported[0]), **options)
    assert isinstance(recognize.model, OnnxModel)
    assert recognize(TEXTS) == load_pipeline(str(exported[0]))(TEXTS)


def test_transformers_own_pipeline_chooses_among_both_models_of_a_folder(model_folder, exported, tmp_path):
    both = tmp_path / "both"
    shutil.copytree(model_folder, both)
    shutil.copy(exported[0] / "model.onnx", both)
    kinds = [isinstance(pipeline("nested-ner", model=str(both), backend=name).model, OnnxModel) for name in ("onnx", "torch")]
    assert kinds == [True, False]
    with pytest.raises(ModelError, match="load it with backend='onnx'"):
        pipeline("nested-ner", model=str(exported[0]), backend="torch")
    with pytest.raises(ModelError, match="runs on the CPU, not on cuda"):
        pipeline("nested-ner", model=str(both), backend="onnx", device="cuda:0")


def test_missing_packages_are_named(model_folder, exported, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ModelError, match=r"onnxruntime is not installed.*pip install \"runne-coner\[onnx\]\""):
        load_pipeline(str(exported[0]), backend="onnx")
    for name in ("onnx", "onnxscript", "onnxruntime"):
        with monkeypatch.context() as missing:
            missing.setitem(sys.modules, name, None)
            with pytest.raises(ExportError, match=rf"{name} is not installed.*pip install \"runne-coner\[onnx\]\""):
                export_onnx(model_folder, tmp_path / "onnx", sample_texts=TEXTS)
        monkeypatch.setitem(sys.modules, "onnxruntime", pytest.importorskip)  # anything but None: it is there again
    assert list(tmp_path.iterdir()) == []


# -- the command --------------------------------------------------------------------------------------------------------


@pytest.fixture
def texts_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    path.write_text("\n".join(TEXTS), encoding="utf-8")
    return str(path)


def test_the_command_exports_and_predicts(model_folder, texts_file, tmp_path, capsys):
    main(["export", "--model", model_folder, "--to", "onnx", str(tmp_path / "onnx"), "--texts", texts_file])
    assert "entities agree 100.00%" in capsys.readouterr().out
    for name, folder in (("torch", model_folder), ("onnx", str(tmp_path / "onnx"))):
        main(["predict", "--model", folder, "--input", texts_file, "--output", str(tmp_path / f"{name}.jsonl")])
    assert (tmp_path / "torch.jsonl").read_text() == (tmp_path / "onnx.jsonl").read_text() != ""


def test_the_command_without_a_model_exports_what_the_folder_holds(model_folder, texts_file, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    main(["export", "--to", "onnx", str(folder), "--int8", "--tolerance", "0.3", "--texts", texts_file])
    assert (folder / "onnx" / "model_int8.onnx").is_file()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--to", "onnx"], "--to"),
        (["--model", "MODEL", "--to", "torchscript", "OUT"], "the format must be onnx"),
        (["--to", "onnx", "OUT"], "no model to export; say which one with --model"),
        (["--model", "OUT/none", "--to", "onnx", "OUT"], "no such folder"),
        (["--model", "MODEL", "--to", "onnx", "MODEL"], "holds something else"),
        (["--model", "MODEL", "--to", "onnx", "OUT", "--tolerance", "-1", "--texts", "TEXTS"], "not faithful"),
        (["--model", "MODEL", "--to", "onnx", "OUT", "--texts", "OUT/none.txt"], "none.txt"),
    ],
)
def test_the_command_refuses_in_one_line(arguments, message, model_folder, texts_file, tmp_path, capsys):
    places = {"MODEL": model_folder, "OUT": str(tmp_path / "out"), "TEXTS": texts_file}
    for name, path in places.items():
        arguments = [path + argument.removeprefix(name) if argument.startswith(name) else argument for argument in arguments]
    with pytest.raises(SystemExit) as stop:
        main(["export", *arguments])
    errors = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2 and message in errors[-1] and errors[-1].startswith("error: ")
    assert list(tmp_path.iterdir()) == []


def test_onnx_is_imported_only_when_it_is_used(quiet_environment):
    code = "import sys, runne_coner.cli; print([name for name in sys.modules if name.startswith('onnx')])"
    done = subprocess.run([sys.executable, "-c", code], env=quiet_environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
