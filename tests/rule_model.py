"""A CoNER model that tags by a lexicon: a BERT without layers whose heads are solved for, so that its answers are known."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from runne_coner.configuration import CoNERConfig
from runne_coner.modeling import CoNERForTokenClassification
from runne_coner.tagging import NUM_TAGS, TAGS, head_names

TYPES = ["CITY", "ORGANIZATION", "PERSON", "PROFESSION"]
LEVELS = 2
# sub-word -> head -> tag: "мэр Казани" is a PROFESSION that holds a CITY, "департамент мэрии Ижевска" an ORGANIZATION in an
# ORGANIZATION, "Ольга Калинина" a PERSON of three sub-words.
LEXICON = {
    "мэр": {"PROFESSION": "B"},
    "казани": {"PROFESSION": "L", "CITY": "U"},
    "ольга": {"PERSON": "B"},
    "кали": {"PERSON": "I"},
    "##нина": {"PERSON": "L"},
    "директор": {"PROFESSION": "U"},
    "департамент": {"ORGANIZATION": "B"},
    "мэрии": {"ORGANIZATION": "I", "ORGANIZATION@2": "B"},
    "ижевска": {"ORGANIZATION": "L", "ORGANIZATION@2": "L", "CITY": "U"},
}
PLAIN = ["и", "в", "сообщил", ".", ",", "-", "стал", "😀", "a", "\r"]


def build_rule_model(folder: Path, max_length: int = 16, stride: int = 4) -> Path:
    """Write the model and its tokenizer; words outside the lexicon are O, whatever they are."""
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *LEXICON, *PLAIN]
    core = Tokenizer(models.WordPiece({word: index for index, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    # Zero-width characters vanish and accents are composed, as with real tokenizers.
    core.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace("\u200b", ""), normalizers.Replace("\ufeff", ""), normalizers.Lowercase()]
    )
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=64,
    )
    size = 64
    network = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=size,
        num_hidden_layers=0,
        num_attention_heads=4,
        intermediate_size=8,
        max_position_embeddings=64,
    )
    config = CoNERConfig(
        encoder=BertModel(network).config, entity_types=TYPES, levels=LEVELS, max_length=max_length, stride=stride
    )
    model = CoNERForTokenClassification(config).eval()
    _solve_heads(model, vocabulary)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@torch.no_grad()
def _solve_heads(model: CoNERForTokenClassification, vocabulary: list[str]) -> None:
    embeddings = model.encoder.embeddings
    embeddings.position_embeddings.weight.zero_()
    embeddings.token_type_embeddings.weight.zero_()
    embeddings.word_embeddings.weight.copy_(torch.randn(len(vocabulary), model.config.hidden_size))
    hidden = model.encoder(torch.arange(len(vocabulary))[None]).last_hidden_state[0]
    heads = head_names(TYPES, LEVELS)
    wanted = torch.zeros(len(vocabulary), len(heads), NUM_TAGS)
    wanted[..., 0] = 8.0
    for word, tags in LEXICON.items():
        for head, tag in tags.items():
            row = wanted[vocabulary.index(word), heads.index(head)]
            # A part of a mention that stands alone is O rather than a mention of its own.
            row[0] = 0.0 if tag == "U" else 6.0
            row[TAGS.index(tag)] = 8.0
    solution = torch.linalg.lstsq(hidden.double(), wanted.flatten(1).double(), driver="gelsd").solution
    model.classifier.weight.copy_(solution.T.float())
    model.classifier.bias.zero_()
