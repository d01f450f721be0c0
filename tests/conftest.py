"""Shared fixtures: tiny random encoders made on the spot, one for each kind of sub-words, and a few nested documents."""

import os
from pathlib import Path

import pytest
import torch
from datasets import Dataset, disable_progress_bars
from hypothesis import HealthCheck, Phase, settings
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, RobertaConfig, RobertaModel, RobertaTokenizerFast

from runne_coner.documents import FEATURES

if "PYTEST_XDIST_WORKER" in os.environ and hasattr(os, "sched_setaffinity"):
    # A core for each test process and what it starts: trainings that share all cores would wait for each other.
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw")) % len(cores)]})
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    # The commands of the README take longest: they go first, and another process does the rest meanwhile.
    items.sort(key=lambda item: item.path.name != "test_readme.py")


settings.register_profile(
    "runne_coner",
    max_examples=60,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("runne_coner")
disable_progress_bars()

ROOT = Path(__file__).resolve().parents[1]
SENTENCES = (
    "Президент России Владимир Путин прибыл в Москву 12 июня.",
    "Министр иностранных дел Сергей Лавров встретился с послом Франции в Париже.",
    "Московский государственный университет имени Ломоносова открыл новый корпус.",
    "Компания «Газпром» заплатила 150 тысяч евро штрафа, сообщила газета «Ведомости».",
    "Ольга Петрова, директор школы № 5 города Перми, получила премию.",
    "Заключённому дали 5 лет колонии за кражу; суд Томска отклонил жалобу.",
)
HIDDEN = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def _letters() -> list[str]:
    return sorted({letter for sentence in SENTENCES for letter in sentence.lower() + sentence if not letter.isspace()})


def _wordpiece_vocabulary(special: list[str]) -> dict[str, int]:
    """190 pieces of the sentences. The trainer breaks ties by the ids of letters, so it gets those inside words in an order."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inside = [f"##{letter}" for letter in _letters() if not letter.isupper()]
    tokenizer.train_from_iterator(
        SENTENCES,
        trainers.WordPieceTrainer(
            vocab_size=190, special_tokens=special + inside, initial_alphabet=_letters(), show_progress=False
        ),
    )
    return tokenizer.get_vocab()


def _save(folder: Path, model, tokenizer) -> str:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(autouse=True)
def bf16_on_every_cpu(monkeypatch):
    """What is tested in bfloat16 is not to run in float32 on a CPU that is slow in it; the tensors here are small."""
    monkeypatch.setattr("runne_coner.training_args.cpu_is_fast_in_bf16", lambda: True)


@pytest.fixture(scope="session")
def wordpiece_encoder(tmp_path_factory) -> str:
    """Folder of a random BERT (32 wide, 2 layers, no dropout) with a WordPiece tokenizer; it knows token types."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(_wordpiece_vocabulary(special), unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    # Checkpoints of sentence encoders carry settings like these, which the views must not obey.
    tokenizer.enable_truncation(6)
    tokenizer.enable_padding(pad_id=0, pad_token="[PAD]", length=6)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        model_max_length=160,
    )
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(fast), max_position_embeddings=160, **HIDDEN, **NO_DROPOUT)
    return _save(tmp_path_factory.mktemp("wordpiece"), BertModel(config), fast)


@pytest.fixture(scope="session")
def bpe_encoder(tmp_path_factory) -> str:
    """Folder of a random RoBERTa with a byte-level BPE tokenizer: no token types, every character has sub-words."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator(
        SENTENCES,
        trainers.BpeTrainer(
            vocab_size=420,
            special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    folder = tmp_path_factory.mktemp("bpe")
    tokenizer.model.save(str(folder))
    fast = RobertaTokenizerFast.from_pretrained(folder, model_max_length=160)
    torch.manual_seed(0)
    config = RobertaConfig(vocab_size=len(fast), max_position_embeddings=164, pad_token_id=1, **HIDDEN, **NO_DROPOUT)
    return _save(folder, RobertaModel(config), fast)


@pytest.fixture(scope="session")
def unigram_encoder(tmp_path_factory) -> str:
    """Folder of a random XLM-R-like BERT with a Unigram tokenizer that marks word starts with U+2581."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(Regex("[\u200b\u00ad\ufeff\u0000-\u001f]"), "")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer.train_from_iterator(
        SENTENCES, trainers.UnigramTrainer(vocab_size=200, special_tokens=special, unk_token="<unk>", show_progress=False)
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        cls_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        mask_token="<mask>",
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=160,
    )
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(fast), max_position_embeddings=160, pad_token_id=1, **HIDDEN, **NO_DROPOUT)
    return _save(tmp_path_factory.mktemp("unigram"), BertModel(config), fast)


@pytest.fixture(scope="session", params=["wordpiece", "bpe", "unigram"])
def any_encoder(request) -> str:
    """Each of the three tiny encoders in turn."""
    return request.getfixturevalue(f"{request.param}_encoder")


TYPES = ["PERSON", "ORGANIZATION", "CITY", "PROFESSION", "DISEASE"]
MARKED = (
    # Nested in another type, three times in the same type, adjacent, and one span under two types.
    (
        "Министр иностранных дел Сергей Лавров прибыл в Париж. Его встретила Ольга Петрова.",
        (
            ("Министр иностранных дел", "PROFESSION"),
            ("иностранных дел", "ORGANIZATION"),
            ("Сергей Лавров", "PERSON"),
            ("Париж", "CITY"),
            ("Ольга Петрова", "PERSON"),
        ),
    ),
    (
        "Директор школы при заводе Перми уволен. Болезнь обошла Томск.",
        (
            ("Директор школы при заводе Перми", "PROFESSION"),
            ("школы при заводе Перми", "ORGANIZATION"),
            ("заводе Перми", "ORGANIZATION"),
            ("Перми", "ORGANIZATION"),
            ("Перми", "CITY"),
            ("Болезнь", "DISEASE"),
            ("Томск", "CITY"),
        ),
    ),
    (
        "Москва Томск Пермь обыграли «Спартак» Москва",
        (
            ("Москва", "CITY"),
            ("Томск", "CITY"),
            ("Пермь", "CITY"),
            ("Спартак", "ORGANIZATION"),
            ("«Спартак» Москва", "ORGANIZATION"),
        ),
    ),
    ("Здесь нет ни одного имени, и это верно.", ()),
    (
        "Писатель 😀 Иван Петров живёт в городе Париж, а Анна — в Томск!",
        (("Писатель", "PROFESSION"), ("Иван Петров", "PERSON"), ("Париж", "CITY"), ("Анна", "PERSON"), ("Томск", "CITY")),
    ),
)


def make_documents(marked=MARKED, copies: int = 1) -> Dataset:
    """Documents from texts and the first occurrence of each (surface, type) in them."""
    rows = []
    for number, (text, entities) in enumerate(tuple(marked) * copies):
        found = [{"start": text.index(s), "end": text.index(s) + len(s), "type": name} for s, name in entities]
        rows.append({"id": f"d{number}", "text": text, "entities": found})
    return Dataset.from_list(rows, features=FEATURES)


@pytest.fixture(scope="session")
def entity_types() -> list[str]:
    return list(TYPES)


@pytest.fixture(scope="session")
def documents() -> Dataset:
    """Five documents with entities nested in other types and in their own, adjacent ones, and one without any."""
    return make_documents()


@pytest.fixture
def quiet_environment(tmp_path) -> dict[str, str]:
    """Environment of a subprocess: offline, one thread, caches in a temporary folder."""
    return {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "HF_DATASETS_CACHE": str(tmp_path / "datasets"),
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
