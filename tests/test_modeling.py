"""The networks and their config: saving, the Auto classes, several kinds of encoders, eq. 1-2."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForTokenClassification,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ModernBertConfig,
    MPNetConfig,
    RobertaConfig,
)

import runne_coner.modeling
from runne_coner.configuration import SPAN_POOLINGS, CoNERConfig, ModelError
from runne_coner.modeling import CoNERForTokenClassification, EntityEncoder, max_positions, pool_spans
from runne_coner.viterbi import uniform_priors

TYPES = ["PERSON", "CITY", "LAW"]
ENCODERS = {
    "bert": BertConfig(
        vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, pad_token_id=0
    ),
    "distilbert": DistilBertConfig(vocab_size=60, dim=32, n_layers=2, n_heads=4, hidden_dim=48, pad_token_id=0),
    "roberta": RobertaConfig(
        vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, pad_token_id=0
    ),
}
ENCODERS["roberta"].type_vocab_size = 1
SMALL = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}


@pytest.fixture(scope="module", params=ENCODERS)
def encoder_folder(request, tmp_path_factory):
    """A folder with a tiny random encoder of each kind."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("encoders") / request.param
    AutoModel.from_config(ENCODERS[request.param]).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("encoders") / "bert"
    AutoModel.from_config(ENCODERS["bert"]).save_pretrained(folder)
    return folder


def recognizer(folder, **options):
    torch.manual_seed(1)
    return CoNERForTokenClassification.from_encoder(str(folder), CoNERConfig(entity_types=TYPES, levels=2, **options))


def span_encoder(folder, **options):
    return EntityEncoder.from_encoder(str(folder), CoNERConfig(**options))


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(2)
    mask = torch.ones(3, 10, dtype=torch.long)
    mask[1, 7:] = 0
    ids = torch.randint(3, 60, (3, 10), generator=generator) * mask
    return {"input_ids": ids, "attention_mask": mask}


SPANS = torch.tensor([[0, 1, 2], [0, 1, 5], [2, 9, 10], [1, 0, 7], [2, 3, 6]])


# -- both networks over several kinds of encoders -----------------------------------------------------------------------


def test_logits_have_one_row_of_tags_for_each_head(encoder_folder, batch):
    model = recognizer(encoder_folder)
    with torch.no_grad():
        logits = model(**batch).logits
    assert logits.shape == (3, 10, 6, 5)
    assert model.config.heads == ["PERSON", "CITY", "LAW", "PERSON@2", "CITY@2", "LAW@2"]
    # Head by head, it is a linear layer over the encoder's output.
    with torch.no_grad():
        hidden = model.encoder(**batch).last_hidden_state
    for head in range(6):
        rows = slice(5 * head, 5 * head + 5)
        expected = hidden @ model.classifier.weight[rows].T + model.classifier.bias[rows]
        torch.testing.assert_close(logits[:, :, head], expected)


def test_padding_does_not_change_the_logits(encoder_folder, batch):
    model = recognizer(encoder_folder)
    with torch.no_grad():
        padded = model(**batch).logits[1, :7]
        alone = model(batch["input_ids"][1:2, :7], batch["attention_mask"][1:2, :7]).logits[0]
    torch.testing.assert_close(padded, alone, rtol=1e-4, atol=1e-5)


def test_the_pretrained_weights_are_used(encoder_folder, batch):
    pretrained = AutoModel.from_pretrained(encoder_folder)
    for model in (recognizer(encoder_folder), span_encoder(encoder_folder)):
        with torch.no_grad():
            expected = pretrained(**batch).last_hidden_state
            assert torch.equal(model.encoder(**batch).last_hidden_state, expected)
        assert not model.training and not model.encoder.training


def test_saving_and_loading_changes_no_bit(encoder_folder, batch, tmp_path):
    for model, load in (
        (recognizer(encoder_folder), CoNERForTokenClassification.from_pretrained),
        (recognizer(encoder_folder), AutoModelForTokenClassification.from_pretrained),
        (span_encoder(encoder_folder), EntityEncoder.from_pretrained),
    ):
        folder = tmp_path / f"{type(model).__name__}-{load.__self__.__name__}"
        model.save_pretrained(folder)
        loaded, report = load(folder, output_loading_info=True)
        assert type(loaded) is type(model)
        assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        state, loaded_state = model.state_dict(), loaded.state_dict()
        assert state.keys() == loaded_state.keys()
        assert all(torch.equal(state[name], loaded_state[name]) for name in state)
        with torch.no_grad():
            before, after = model(**batch), loaded(**batch)
        assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_saved_folder_names_no_path_of_this_machine(encoder_folder, tmp_path):
    for model in (recognizer(encoder_folder), span_encoder(encoder_folder)):
        folder = tmp_path / type(model).__name__
        model.save_pretrained(folder)
        text = (folder / "config.json").read_text(encoding="utf-8")
        assert str(encoder_folder) not in text and str(encoder_folder.parent) not in text
        assert not json.loads(text)["encoder"].get("_name_or_path")
        # The encoder alone, as stage 1 leaves it.
        model.encoder.save_pretrained(folder / "encoder")
        assert str(encoder_folder.parent) not in (folder / "encoder" / "config.json").read_text(encoding="utf-8")


def test_no_weight_is_idle(encoder_folder, batch):
    model = recognizer(encoder_folder)
    model(**batch).logits.square().sum().backward()
    spans = span_encoder(encoder_folder)
    spans(**batch, spans=SPANS).span_embeddings.cumsum(0).square().sum().backward()
    for network in (model, spans):
        assert not [name for name, parameter in network.named_parameters() if parameter.grad is None]
        assert not [name for name, _ in network.named_parameters() if "pooler" in name]
        moved = [name for name, parameter in network.named_parameters() if (parameter.grad != 0).any()]
        for part in ("word_embeddings", "layer.0.", "layer.1."):
            assert any(part in name for name in moved)


def test_stage_2_takes_the_encoder_that_stage_1_leaves(encoder_folder, batch, tmp_path):
    first = span_encoder(encoder_folder)
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.add_(0.01)
    first.encoder.save_pretrained(tmp_path / "stage1")
    second = recognizer(tmp_path / "stage1")
    with torch.no_grad():
        expected = first(**batch).last_hidden_state
        assert torch.equal(second.encoder(**batch).last_hidden_state, expected)
        assert torch.equal(AutoModel.from_pretrained(tmp_path / "stage1")(**batch).last_hidden_state, expected)


def test_the_bias_of_heads_is_their_log_frequencies(bert_folder):
    counts = np.array([[94, 1, 0, 1, 0]] * 6)
    model = recognizer(bert_folder)
    before = model.classifier.bias.detach().clone().unflatten(0, (6, 5))
    model.set_head_bias(counts, heads=[1, 4])
    bias = model.classifier.bias.detach().unflatten(0, (6, 5))
    for head in range(6):
        expected = torch.tensor([95, 2, 1, 2, 1]).div(101).log() if head in (1, 4) else before[head]
        torch.testing.assert_close(bias[head], expected)


def test_type_offsets_are_added_in_evaluation_alone(bert_folder, batch, tmp_path):
    plain, adjusted = recognizer(bert_folder), recognizer(bert_folder, type_offsets={TYPES[1]: 1.5})
    adjusted.load_state_dict(plain.state_dict())
    with torch.no_grad():
        expected = plain(**batch).logits.unflatten(2, (-1, len(TYPES)))
        expected[:, :, :, 1, 1:] += 1.5
        torch.testing.assert_close(adjusted(**batch).logits.unflatten(2, (-1, len(TYPES))), expected)
        for model in (plain, adjusted):
            model.train()
            torch.manual_seed(0)
            model.logits = model(**batch).logits
        assert torch.equal(plain.logits, adjusted.logits)
        adjusted.eval().save_pretrained(tmp_path)
        saved = CoNERForTokenClassification.from_pretrained(tmp_path)
        assert saved.config.type_offsets == {TYPES[1]: 1.5}
        torch.testing.assert_close(saved(**batch).logits.unflatten(2, (-1, len(TYPES))), expected)


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        ([1.0], "must be {TYPE: number}"),
        ({"OTHER": 1.0}, "'OTHER' is not among"),
        *(({TYPES[0]: value}, "finite") for value in ("1", True, math.nan)),
    ],
)
def test_type_offsets_are_numbers_of_known_types(offsets, message):
    with pytest.raises(ValueError, match=f"type_offsets.*{message}"):
        CoNERConfig(entity_types=TYPES, type_offsets=offsets)


# -- what one kind of encoder shows -------------------------------------------------------------------------------------


def test_token_types_reach_the_encoder(bert_folder, batch):
    model = recognizer(bert_folder)
    with torch.no_grad():
        plain = model(**batch).logits
        zeros = model(**batch, token_type_ids=torch.zeros_like(batch["input_ids"])).logits
        ones = model(**batch, token_type_ids=torch.ones_like(batch["input_ids"])).logits
    torch.testing.assert_close(plain, zeros)
    assert not torch.allclose(plain, ones)


def test_an_encoder_in_half_precision_is_trained_in_full(bert_folder, tmp_path):
    AutoModel.from_pretrained(bert_folder, dtype=torch.bfloat16).save_pretrained(tmp_path)
    for model in (recognizer(tmp_path), span_encoder(tmp_path)):
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_a_scorer_of_spans_is_there_where_it_is_asked_for(bert_folder, batch, tmp_path):
    plain, model = recognizer(bert_folder), recognizer(bert_folder, candidate_paths=2)
    assert plain.span_scorer is None and plain(**batch).span_features is None
    spans = torch.tensor([[0, 1, 3], [2, 4, 5]])
    with torch.no_grad():
        output = model(**batch, spans=spans)
    torch.testing.assert_close(output.span_logits, model.span_scorer(output.span_features, spans))
    assert output.span_logits.shape == (2, len(model.config.entity_types)) and model(**batch).span_logits is None
    model.save_pretrained(tmp_path)
    loaded = CoNERForTokenClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(loaded(**batch, spans=spans).span_logits, output.span_logits)


@pytest.mark.parametrize("paths", [-1, 1.5, True, None])
def test_candidate_paths_are_a_whole_number(paths):
    with pytest.raises(ValueError, match="candidate_paths"):
        CoNERConfig(entity_types=TYPES, candidate_paths=paths)


def test_dropout_before_the_heads_works_in_training_only(bert_folder, batch):
    model = recognizer(bert_folder, head_dropout=1.0)
    with torch.no_grad():
        assert not torch.equal(model(**batch).logits, model.classifier.bias.view(6, 5).expand(3, 10, 6, 5))
        model.train()
        assert torch.equal(model(**batch).logits, model.classifier.bias.view(6, 5).expand(3, 10, 6, 5))


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
def test_gradient_checkpointing_gives_the_same_gradients(bert_folder, batch):
    def gradients(checkpointing):
        model = recognizer(bert_folder)
        if checkpointing:
            model.gradient_checkpointing_enable()
        assert model.encoder.is_gradient_checkpointing == checkpointing
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        model.train()(**batch).logits.square().sum().backward()
        return [parameter.grad for parameter in model.parameters()]

    for plain, checkpointed in zip(gradients(False), gradients(True), strict=True):
        torch.testing.assert_close(plain, checkpointed)


def test_bf16_autocast_gives_unit_vectors_in_float32(bert_folder, batch):
    for pooling in ("mean", "masked_matrix"):
        model = span_encoder(bert_folder, span_pooling=pooling)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            embeddings = model(**batch, spans=SPANS).span_embeddings
        assert embeddings.dtype == torch.float32
        torch.testing.assert_close(embeddings.norm(dim=-1), torch.ones(len(SPANS)))


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_the_attention_implementation_is_that_of_the_encoder(bert_folder, batch, tmp_path, implementation):
    model = recognizer(bert_folder)
    model.save_pretrained(tmp_path)
    loaded = CoNERForTokenClassification.from_pretrained(tmp_path, attn_implementation=implementation)
    assert loaded.encoder.config._attn_implementation == implementation
    with torch.no_grad():
        torch.testing.assert_close(loaded(**batch).logits, model(**batch).logits, rtol=1e-4, atol=1e-5)


def test_heads_need_types(bert_folder):
    with pytest.raises(ValueError, match="entity_types"):
        CoNERForTokenClassification.from_encoder(str(bert_folder), CoNERConfig())


# -- what is not whole --------------------------------------------------------------------------------------------------


@pytest.fixture(params=["encoder", "model"])
def saved(request, bert_folder, tmp_path):
    """A copy of a plain encoder, and a model of stage 2, to be broken."""
    if request.param == "encoder":
        return shutil.copytree(bert_folder, tmp_path / "encoder")
    recognizer(bert_folder).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def edit(folder, **settings):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings), encoding="utf-8")


def refused(folder, message):
    """Both networks refuse to start from the folder, in one line that begins with its name."""
    for start in (recognizer, span_encoder):
        with pytest.raises(ModelError, match=message) as error:
            start(folder)
        assert str(error.value).startswith(f"{folder}: cannot be loaded") and "\n" not in str(error.value)


def test_a_folder_without_weights_is_refused(saved):
    (saved / "model.safetensors").unlink()
    refused(saved, r"no file named model\.safetensors.*; get the file again, or give another folder$")


@pytest.mark.parametrize("rest", [0, 7, 200, -100])
def test_weights_that_are_cut_off_are_refused(saved, rest):
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:rest])
    refused(saved, r"weights \(model\.safetensors\) are damaged")


def test_weights_of_another_width_are_refused(saved):
    config = json.loads((saved / "config.json").read_text())
    narrow = {"hidden_size": 16}
    edit(saved, **({"encoder": config["encoder"] | narrow} if "encoder" in config else narrow))
    refused(saved, r"weights \(model\.safetensors\) do not fit config\.json")


def test_an_encoder_with_more_layers_than_weights_is_refused(bert_folder, tmp_path):
    # transformers would draw the weights of the last layer at random, and say so in a report that nobody reads.
    folder = shutil.copytree(bert_folder, tmp_path / "encoder")
    edit(folder, num_hidden_layers=json.loads((folder / "config.json").read_text())["num_hidden_layers"] + 1)
    for start in (recognizer, span_encoder):
        with pytest.raises(
            ModelError, match=r"^[^\n]*lacks 16 weights of BertModel \(encoder\.layer\.\d[^\n]*\)[^\n]*$"
        ) as error:
            start(folder)
        assert str(error.value).startswith(f"{folder}: model.safetensors")


@pytest.mark.parametrize(
    "config, limit",
    [
        (BertConfig(**SMALL, max_position_embeddings=40), 40),
        # Positions are numbered from pad_token_id + 1 on.
        (RobertaConfig(**SMALL, max_position_embeddings=42, pad_token_id=1), 40),
        (RobertaConfig(**SMALL, max_position_embeddings=41, pad_token_id=0), 40),
        (MPNetConfig(**SMALL, max_position_embeddings=42), 40),
        (DistilBertConfig(vocab_size=60, dim=32, n_layers=1, n_heads=4, hidden_dim=48, max_position_embeddings=40), 40),
        (DebertaV2Config(**SMALL, max_position_embeddings=40, position_biased_input=True), 40),
        (DebertaV2Config(**SMALL, max_position_embeddings=40, position_biased_input=False, relative_attention=True), None),
        (ModernBertConfig(**SMALL, max_position_embeddings=40, pad_token_id=0, bos_token_id=1, eos_token_id=2), None),
    ],
    ids=lambda value: type(value).__name__.removesuffix("Config"),
)
def test_windows_longer_than_the_positions_of_an_encoder_are_refused(tmp_path, config, limit):
    """Checked against the encoders themselves: they read as many sub-words as `max_positions` says, and no more."""
    encoder = AutoModel.from_config(config).eval()
    assert max_positions(encoder) == limit
    encoder.save_pretrained(tmp_path)
    with torch.no_grad():
        encoder(torch.full((1, limit or 80), 5))
        if limit is not None:
            with pytest.raises((RuntimeError, IndexError)):
                encoder(torch.full((1, limit + 1), 5))
    model = recognizer(tmp_path, max_length=limit or 80, stride=8)
    if limit is not None:
        with pytest.raises(ModelError, match=f"max_length 41 is more than the {limit} sub-words"):
            recognizer(tmp_path, max_length=limit + 1, stride=8)
        model.config.max_length = limit + 1
        model.save_pretrained(tmp_path / "model")
        with pytest.raises(ModelError, match=f"{tmp_path / 'model'}: max_length 41 is more than the {limit} sub-words"):
            CoNERForTokenClassification.from_pretrained(tmp_path / "model")


def test_an_encoder_with_fewer_layers_than_weights_is_cut(bert_folder, tmp_path):
    folder = shutil.copytree(bert_folder, tmp_path / "encoder")
    edit(folder, num_hidden_layers=1)
    assert len(span_encoder(folder).encoder.encoder.layer) == 1


def test_pickled_weights_of_an_encoder_are_refused(wordpiece_encoder, tmp_path):
    encoder = AutoModel.from_pretrained(wordpiece_encoder)
    encoder.config.save_pretrained(tmp_path)
    torch.save(encoder.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot be loaded: .*model.safetensors"):
        EntityEncoder.from_encoder(str(tmp_path), CoNERConfig())


def test_pickled_weights_of_a_model_are_refused(bert_folder, tmp_path):
    model = recognizer(bert_folder)
    model.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    refused(tmp_path, r"no file named model\.safetensors")


@pytest.mark.parametrize("content", [b"{", b"[]", b"{}", b"", b"\xff"])
def test_a_broken_configuration_is_refused(saved, content):
    (saved / "config.json").write_bytes(content)
    refused(saved, r"config\.json")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": "unheard-of"}, "unheard-of"),
        ({"hidden_size": "32"}, "hidden_size"),
        ({"num_attention_heads": 5}, "attention heads"),
        ({"hidden_act": "unheard-of"}, "KeyError: 'unheard-of'"),
    ],
)
def test_an_encoder_that_cannot_be_made_is_refused(bert_folder, tmp_path, settings, message):
    folder = shutil.copytree(bert_folder, tmp_path / "encoder")
    edit(folder, **settings)
    refused(folder, f"config.json.*{message}")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"entity_types": ["LAW", "CITY", "LAW"]}, r"entity_types holds \['LAW'\] twice"),
        ({"entity_types": ["LAW", "LAW@2"], "levels": 2}, r"entity_types \['LAW@2'\]: heads of level 2 and more are called so"),
        ({"entity_types": []}, "entity_types is empty"),
        ({"levels": "2"}, "levels must be .*, got '2'"),
        ({"encoder": {"model_type": "unheard-of"}}, "model_type 'unheard-of' is unknown"),
        ({"encoder": None}, "KeyError"),
    ],
)
def test_a_saved_model_whose_settings_cannot_be_meant_is_refused(bert_folder, tmp_path, settings, message):
    recognizer(bert_folder).save_pretrained(tmp_path)
    edit(tmp_path, **settings)
    with pytest.raises(ModelError, match=f"^{tmp_path}: cannot be loaded, see its config.json: .*{message}"):
        recognizer(tmp_path)
    with pytest.raises(ModelError, match=f"^{tmp_path}: cannot be loaded, see its config.json: .*{message}"):
        CoNERForTokenClassification.from_pretrained(tmp_path)


def test_what_the_hub_says_is_passed_on(monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("We couldn't connect to the Hub.\nCheck your internet connection.")

    monkeypatch.setattr("runne_coner.modeling.AutoConfig.from_pretrained", fail)
    with pytest.raises(ModelError) as error:
        recognizer("owner/name")
    assert str(error.value) == "owner/name: cannot be loaded: We couldn't connect to the Hub. Check your internet connection"


def test_other_errors_keep_their_traceback(bert_folder, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("out of memory")

    monkeypatch.setattr("runne_coner.modeling.AutoModel.from_pretrained", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        recognizer(bert_folder)


# -- pooling (eq. 1-2) --------------------------------------------------------------------------------------------------


@pytest.fixture
def hidden():
    return torch.randn(3, 10, 8, generator=torch.Generator().manual_seed(3))


def test_mean_pooling_equals_a_loop(hidden):
    found = pool_spans(hidden, SPANS, "mean")
    for row, (window, first, end) in zip(found, SPANS.tolist(), strict=True):
        mean = hidden[window, first:end].double().mean(0)
        torch.testing.assert_close(row.double(), mean / mean.norm(), rtol=0, atol=1e-6)


def test_masked_matrix_is_eq_1_and_2(hidden):
    found = pool_spans(hidden, SPANS, "masked_matrix")
    assert found.shape == (5, 80)
    for row, (window, first, end) in zip(found, SPANS.tolist(), strict=True):
        mask = torch.zeros(10, 8, dtype=torch.float64)
        mask[first:end] = 1.0
        masked = hidden[window].double() * mask  # eq. 1
        normed = masked / masked.square().sum().sqrt()  # eq. 2
        torch.testing.assert_close(row.double(), normed.flatten(), rtol=0, atol=1e-6)


def test_max_and_first_last_pooling_equal_a_loop(hidden):
    greatest, ends = pool_spans(hidden, SPANS, "max"), pool_spans(hidden, SPANS, "first_last")
    assert ends.shape == (5, 16)
    for row, pair, (window, first, end) in zip(greatest, ends, SPANS.tolist(), strict=True):
        inside = hidden[window, first:end]
        torch.testing.assert_close(row, torch.nn.functional.normalize(inside.max(0).values, dim=0))
        torch.testing.assert_close(pair, torch.nn.functional.normalize(torch.cat([inside[0], inside[-1]]), dim=0))


def test_pooling_in_half_precision_is_in_float32(hidden):
    for pooling in SPAN_POOLINGS:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = pool_spans(hidden, SPANS, pooling)
        assert found.dtype == torch.float32 and torch.equal(found, pool_spans(hidden, SPANS, pooling))


@pytest.mark.parametrize("pooling", SPAN_POOLINGS)
def test_pooling_sees_its_span_and_nothing_else(hidden, pooling):
    hidden.requires_grad_()
    for index, (window, first, end) in enumerate(SPANS.tolist()):
        pooled = pool_spans(hidden, SPANS, pooling)[index]
        weights = torch.randn(len(pooled), generator=torch.Generator().manual_seed(index))
        (gradient,) = torch.autograd.grad((pooled * weights).sum(), hidden)
        touched = np.zeros((3, 10), dtype=bool)
        touched[window, first:end] = True
        if pooling == "max":  # each dimension is of one sub-word
            assert not (gradient != 0).any(-1).numpy()[~touched].any()
            assert ((gradient != 0).sum(dim=(0, 1)) == 1).all()
            continue
        if pooling == "first_last":
            touched[window, first + 1 : end - 1] = False
        assert np.array_equal((gradient != 0).any(-1).numpy(), touched)


@pytest.mark.parametrize("pooling", SPAN_POOLINGS)
def test_no_spans_give_no_embeddings(hidden, pooling):
    found = pool_spans(hidden.requires_grad_(), torch.zeros(0, 3, dtype=torch.long), pooling)
    assert len(found) == 0
    found.sum().backward()
    assert (hidden.grad == 0).all()


@pytest.mark.parametrize("pooling", ["mean", "first_last"])
def test_projection_head(pooling, encoder_folder, batch):
    """Embeddings are of its width and of length 1; the network of stage 2 has no such weights."""
    model = span_encoder(encoder_folder, span_pooling=pooling, projection_size=6)
    embeddings = model(**batch, spans=SPANS).span_embeddings
    assert embeddings.shape == (5, 6) and embeddings.dtype == torch.float32
    torch.testing.assert_close(embeddings.norm(dim=-1), torch.ones(5))
    embeddings.cumsum(0).square().sum().backward()
    assert all((value.grad != 0).any() for value in model.projection.parameters())
    plain = span_encoder(encoder_folder, span_pooling=pooling)
    assert {name.split(".")[0] for name, _ in plain.named_parameters()} == {"encoder"}


# -- the config ---------------------------------------------------------------------------------------------------------


def test_the_config_keeps_all_that_inference_needs(tmp_path):
    priors = uniform_priors().tolist()
    config = CoNERConfig(
        encoder=ENCODERS["roberta"],
        entity_types=TYPES,
        few_shot_types=["LAW"],
        levels=3,
        level_order="innermost",
        head_dropout=0.25,
        span_pooling="masked_matrix",
        max_length=96,
        max_sentences=4,
        stride=16,
        transition_priors=priors,
    )
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is CoNERConfig
    assert type(loaded.encoder) is RobertaConfig and loaded.hidden_size == 32
    assert (loaded.entity_types, loaded.few_shot_types, loaded.levels) == (TYPES, ["LAW"], 3)
    assert (loaded.level_order, CoNERConfig().level_order) == ("innermost", "outermost")
    assert (loaded.head_dropout, loaded.span_pooling) == (0.25, "masked_matrix")
    assert (loaded.max_length, loaded.max_sentences, loaded.stride) == (96, 4, 16)
    assert loaded.transition_priors == priors
    assert loaded.id2label == dict(enumerate("OBILU"))
    assert len(loaded.heads) == 9


def test_the_encoder_of_a_config_may_be_a_dictionary():
    config = CoNERConfig(encoder=ENCODERS["distilbert"].to_dict(), entity_types=TYPES)
    assert type(config.encoder) is DistilBertConfig and config.hidden_size == 32


def test_configs_do_not_share_their_lists():
    one, other = CoNERConfig(), CoNERConfig()
    one.entity_types.append("PERSON")
    assert other.entity_types == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"entity_types": ["LAW", "CITY", "LAW"]}, "LAW.*twice"),
        ({"entity_types": TYPES, "few_shot_types": ["PLANET"]}, "PLANET"),
        ({"entity_types": "LAW"}, "entity_types must be a list of names, got 'LAW'"),
        ({"entity_types": 5}, "entity_types.*5"),
        ({"entity_types": [["LAW"]]}, "entity_types.*LAW"),
        ({"few_shot_types": "LAW"}, "few_shot_types must be a list of names, got 'LAW'"),
        ({"encoder": "bert"}, "encoder must be a configuration.*'bert'"),
        ({"encoder": {}}, "encoder: model_type None is unknown"),
        ({"levels": 0}, "levels.*0"),
        ({"levels": "2"}, "levels must be at least 1, a whole number, got '2'"),
        ({"levels": 1.5}, "levels.*1.5"),
        ({"levels": True}, "levels.*True"),
        ({"max_length": "128"}, "max_length.*'128'"),
        ({"head_dropout": "0"}, "head_dropout.*'0'"),
        ({"head_dropout": 1.5}, "head_dropout.*1.5"),
        ({"level_order": "inner"}, "level_order.*'inner'"),
        ({"span_pooling": "last"}, "span_pooling.*'last'"),
        ({"projection_size": -1}, "projection_size.*-1"),
        ({"score_temperature": 0.0}, "score_temperature.*0.0"),
        ({"score_temperature": float("nan")}, "score_temperature.*nan"),
        ({"score_temperature": float("inf")}, "score_temperature.*inf"),
        ({"score_temperature": "2"}, "score_temperature.*'2'"),
        ({"score_temperature": True}, "score_temperature.*True"),
        ({"score_bias": float("inf")}, "score_bias.*inf"),
        ({"score_bias": "0"}, "score_bias.*'0'"),
        ({"projection_size": 8, "span_pooling": "masked_matrix"}, "masked_matrix"),
        ({"max_sentences": -1}, "max_sentences.*-1"),
        ({"max_length": 32, "stride": 32}, "stride.*32"),
        ({"stride": -1}, "stride.*-1"),
    ],
)
def test_configs_that_cannot_be_meant_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        CoNERConfig(**options)


def test_the_module_registers_its_classes():
    assert runne_coner.modeling is not None
    assert type(AutoConfig.for_model("coner")) is CoNERConfig
    config = CoNERConfig(encoder=ENCODERS["bert"], entity_types=TYPES)
    assert type(AutoModelForTokenClassification.from_config(config)) is CoNERForTokenClassification
