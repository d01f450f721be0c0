"""Stage 2: training of the nested named-entity recognizer (Bondarenko 2022, sections 3.2-3.3).

    accelerate launch recipes/stage2.py                                        # the bundled sample, after stage 1
    accelerate launch recipes/stage2.py --config recipes/runne/e5-small-ru/stage2.yaml --dataset FOLDER
    accelerate launch recipes/stage2.py --model_name_or_path e5-small-ru       # standard NER: without stage 1
    accelerate launch recipes/stage2.py --help                                 # all settings

It leaves a model in `output_dir` that `AutoModelForTokenClassification` and `runne-coner predict` load.
"""

import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoConfig, PreTrainedTokenizerBase, set_seed

from runne_coner.arguments import (
    CardArguments,
    Corpus,
    DataArguments,
    EncoderArguments,
    UsageError,
    check_best_metric,
    check_idle_settings,
    checkpoint_to_resume,
    load_corpus,
    parse_settings,
    warn_of_unlearnable_types,
)
from runne_coner.calibration import calibrate
from runne_coner.cli import exit_on_input_error, report_lost_entities
from runne_coner.collators import BilouCollator
from runne_coner.configuration import CoNERConfig
from runne_coner.corpora import read_dictionary
from runne_coner.documents import from_row
from runne_coner.encoders import resolve_encoder
from runne_coner.entity_swap import SwapSettings, swapped_documents
from runne_coner.initialization import at_label_names, start_at_centroids, take_heads, type_centroids, words_of_types
from runne_coner.metrics import make_compute_metrics, metric_names
from runne_coner.model_card import record_facts, stage_facts
from runne_coner.modeling import CoNERForTokenClassification
from runne_coner.pipeline import load_pipeline
from runne_coner.preprocessing import bilou_view, count_tags, load_tokenizer, lost_entities
from runne_coner.sampling import mention_counts
from runne_coner.tagging import LEVEL_ORDERS, type_rarity
from runne_coner.trainers import NestedNerTrainer
from runne_coner.training_args import NestedNerTrainingArguments
from runne_coner.viterbi import count_view_transitions, counted_priors

HEAD_INITS = ("random", "centroids", "label_names")
DEFAULT_CONFIG = Path(__file__).parent / "sample" / "e5-small-ru" / "stage2.yaml"


@dataclass
class Stage2Arguments(EncoderArguments):
    """Which encoder is fine-tuned, and the heads on it."""

    levels: int = field(default=2, metadata={"help": "Nesting levels per entity type; 1 is the paper."})
    level_order: str = field(
        default="innermost",
        metadata={
            "help": "Which of nested entities of one type are tagged by level 1: the 'innermost' or the 'outermost' ones."
        },
    )
    head_dropout: float = field(default=0.3, metadata={"help": "Dropout before the heads."})
    candidate_paths: int = field(
        default=2,
        metadata={
            "help": "Paths of each head whose spans are candidates, on which a scorer of whole spans decides; 0 = no scorer:"
            " the spans of the best paths are the result."
        },
    )
    transitions: str = field(
        default="uniform",
        metadata={"help": "Priors of the Viterbi chains: 'uniform' (the paper) or 'counted' on the training set."},
    )

    logit_adjustment: float = field(
        default=1.5,
        metadata={
            "help": "Strength of the favour to rare types in decoding: a type with n mentions in training, fewer than a tenth"
            " of the mean type's, has tau * log(0.1 * mean / n) added to the logits of its mentions; 0 = off."
        },
    )

    calibrate_scores: bool = field(
        default=True,
        metadata={"help": "Fit the scores on the evaluation documents at the end (score_temperature, score_bias)."},
    )

    head_init: str = field(
        default="random",
        metadata={
            "help": "Directions in which the heads start, with biases at the tag frequencies of the training set: 'random',"
            " 'centroids' of the types in the encoder's space, or 'label_names': those of their names there."
        },
    )

    label_words: dict | str | None = field(
        default=None,
        metadata={"help": "Words for types, for head_init label_names: {TYPE: words} as JSON, or a JSON or YAML file of it."},
    )

    def __post_init__(self):
        if self.head_init not in HEAD_INITS:
            raise ValueError(f"head_init must be one of {HEAD_INITS}, got {self.head_init!r}")
        if self.label_words is not None and self.head_init != "label_names":
            raise ValueError("label_words are for head_init label_names; give that as well, or leave them out")
        if self.levels < 1:
            raise ValueError(f"levels must be at least 1, got {self.levels}")
        if self.candidate_paths < 0:
            raise ValueError(f"candidate_paths must be 0 (no scorer of spans) or more, got {self.candidate_paths}")
        if self.level_order not in LEVEL_ORDERS:
            raise ValueError(f"level_order must be one of {LEVEL_ORDERS}, got {self.level_order!r}")
        if not 0.0 <= self.head_dropout < 1.0:
            raise ValueError(f"head_dropout must lie in [0, 1), got {self.head_dropout}")
        if not 0.0 <= self.logit_adjustment < math.inf:
            raise ValueError(f"logit_adjustment must be 0 (off) or a positive number, got {self.logit_adjustment}")
        if self.transitions not in ("uniform", "counted"):
            raise ValueError(f"transitions must be 'uniform' or 'counted', got {self.transitions!r}")


def calibrate_saved_model(trainer: NestedNerTrainer, documents: Dataset) -> dict[str, float]:
    """Fit temperature and bias of the scores of the model in `output_dir`, write them into its config.json; metrics of them."""
    arguments = trainer.args
    recognizer = load_pipeline(arguments.output_dir, device=arguments.device)
    with trainer.compute_loss_context_manager():  # in the precision, and so at the cost, of the evaluation
        gold, batch_size = [from_row(row) for row in documents], arguments.per_device_eval_batch_size
        found = calibrate(recognizer, gold, batch_size, progress=not arguments.disable_tqdm)
    trainer.model.config.score_temperature, trainer.model.config.score_bias = found.score_temperature, found.score_bias
    trainer.model.config.save_pretrained(arguments.output_dir)
    return {f"eval_{name}": value for name, value in asdict(found).items()}


def given_words(entity_types: list[str], setting: dict | str | None) -> list[str]:
    """The words for each type that `label_words` gives, or its name."""
    given, where = read_dictionary(setting, "label_words")
    if not isinstance(given, Mapping):
        raise UsageError(f"{where}: expected {{TYPE: words}}, got {given!r}")
    return words_of_types(entity_types, given)


def start_model(
    config: CoNERConfig,
    encoder: str,
    train: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    network: Stage2Arguments,
    training: NestedNerTrainingArguments,
) -> CoNERForTokenClassification:
    """The network on its encoder; heads start as the settings say, or as in the encoder folder if stage 2 left it."""
    model = CoNERForTokenClassification.from_encoder(encoder, config, **network.hub_options())
    new = range(len(config.heads))
    if isinstance(AutoConfig.from_pretrained(encoder, **network.hub_options()), CoNERConfig):
        saved = CoNERForTokenClassification.from_pretrained(encoder, dtype=torch.float32, **network.hub_options())
        kept = take_heads(model, saved)
        new = [head for head in new if head not in kept]
        left_out = [name for name in saved.config.heads if name not in config.heads]
        for what, names in (
            ("kept", [config.heads[head] for head in kept]),
            ("new", [config.heads[head] for head in new]),
            ("left out", left_out),
        ):
            print(f"heads {what} ({len(names)}): {', '.join(names) or 'none'}")
        had, has = (each.span_scorer is not None for each in (saved, model))
        if had or has:
            print(f"scorer of spans: {'kept' if had and has else 'new' if has else 'left out'}")
        if network.head_init != "random" and not new:
            print(f"head_init {network.head_init} changes nothing, as no head is new")
        # With one level it is always the outermost entities that are tagged.
        before, now = ("outermost" if each.levels == 1 else each.level_order for each in (saved.config, config))
        if kept and before != now:
            print(
                f"the heads kept have learned the {before} of nested entities of a type as level 1, and now learn the {now}"
                " (levels, level_order); they can, but start from the other meaning"
            )
    model.set_head_bias(count_tags(train), heads=list(new))
    if network.head_init != "random" and len(new):
        model.to(training.device)
        collator, size = BilouCollator(tokenizer), training.per_device_eval_batch_size
        centroids = type_centroids(model, train, len(config.entity_types), collator, size)
        if network.head_init == "label_names":
            centroids = at_label_names(centroids, model, tokenizer, given_words(config.entity_types, network.label_words))
        start_at_centroids(model, centroids, heads=new)
    return model


@dataclass
class Views:
    """What stage 2 reads: `corpus` as BILOU views `train` and `evaluation`; `metrics` names what an evaluation gives.

    `swapped` are the copies of training windows that `swap_share` asks for.
    """

    corpus: Corpus
    encoder: str
    tokenizer: PreTrainedTokenizerBase
    train: Dataset
    evaluation: Dataset
    metrics: list[str]
    swapped: Dataset | None


def load_views(data: DataArguments, network: Stage2Arguments, training: NestedNerTrainingArguments) -> Views:
    """Documents and encoder, as the settings say.

    Raises:
        UsageError, documents.CorpusError: a setting or a corpus is wrong.
    """
    corpus = load_corpus(data, training.seed)
    warn_of_unlearnable_types(corpus)
    encoder = resolve_encoder(network.model_name_or_path, network.encoder_cache)
    tokenizer = load_tokenizer(encoder, **network.hub_options())
    types = corpus.entity_types
    losses = ["loss", "ce_loss", "dice_loss", *(["scorer_loss"] if network.candidate_paths else [])]
    scores = [] if training.prediction_loss_only else metric_names(corpus.evaluation, types, corpus.few_shot_types)
    metrics = [*losses, *scores]
    check_best_metric(training.metric_for_best_model, metrics)
    if network.label_words is not None:
        given_words(types, network.label_words)  # what is wrong with them is said now, not after minutes of other work

    def view_of(split: Dataset, at_inference: bool = False) -> Dataset:
        return bilou_view(split, tokenizer, types, network.levels, data.windows, not at_inference, network.level_order)

    train = view_of(corpus.train)
    report_lost_entities(train, corpus.train, "training")
    evaluation = view_of(corpus.evaluation, at_inference=True)
    report_lost_entities(evaluation, corpus.evaluation, "evaluation")
    for view, role in ((train, "training"), (evaluation, "evaluation")):
        if len(view) == 0:
            raise UsageError(f"the {role} documents hold no word, so there is nothing to read; give documents with text")
    swapped = None
    if training.swap_share:
        swaps = SwapSettings(training.swap_share, training.swap_probability, training.swap_agreement)
        copies = swapped_documents(corpus.train, train, len(types), swaps, training.seed)
        swapped = view_of(copies)
        report_lost_entities(swapped, copies, "swapped")
    # Windows of one length side by side need no padding.
    return Views(corpus, encoder, tokenizer, train, evaluation.sort("length"), metrics, swapped)


def favours_of_types(views: Views, strength: float) -> dict[str, float]:
    """What decoding adds to the logits of mentions of rare types, for `CoNERConfig.type_offsets`."""
    types = views.corpus.entity_types
    offsets = strength * type_rarity(mention_counts(views.train, len(types)).sum(axis=0))
    return {name: offset for name, offset in zip(types, offsets.tolist(), strict=True) if offset}


def make_model(
    views: Views, data: DataArguments, network: Stage2Arguments, training: NestedNerTrainingArguments
) -> CoNERForTokenClassification:
    """The network that the settings describe, before training."""
    counted = network.transitions == "counted"
    config = CoNERConfig(
        entity_types=views.corpus.entity_types,
        few_shot_types=views.corpus.few_shot_types,
        levels=network.levels,
        level_order=network.level_order,
        head_dropout=network.head_dropout,
        candidate_paths=network.candidate_paths,
        max_length=data.max_length,
        max_sentences=data.max_sentences,
        stride=data.stride,
        type_offsets=favours_of_types(views, network.logit_adjustment),
        transition_priors=counted_priors(count_view_transitions(views.train)).tolist() if counted else None,
    )
    return start_model(config, views.encoder, views.train, views.tokenizer, network, training)


def make_trainer(views: Views, training: NestedNerTrainingArguments, *, model=None, model_init=None) -> NestedNerTrainer:
    """The Trainer of a network, or of those that `model_init` makes (see `Trainer`)."""
    corpus = views.corpus
    return NestedNerTrainer(
        model,
        training,
        model_init=model_init,
        train_dataset=views.train,
        swapped_windows=views.swapped,
        eval_dataset=views.evaluation,
        data_collator=BilouCollator(views.tokenizer),
        processing_class=views.tokenizer,
        compute_metrics=make_compute_metrics(views.evaluation, corpus.evaluation, corpus.entity_types, corpus.few_shot_types),
    )


def main(argv: list[str]) -> None:
    data, network, training, card = parse_settings(
        argv, [DataArguments, Stage2Arguments, NestedNerTrainingArguments, CardArguments], DEFAULT_CONFIG, __doc__
    )
    check_idle_settings([network, training])
    set_seed(training.seed)
    training.use_cpu_threads()
    checkpoint = checkpoint_to_resume(training.resume_from_checkpoint, training.output_dir)

    # -- Data -----------------------------------------------------------------------------------------------------------
    with training.main_process_first(desc="loading the documents"):
        views = load_views(data, network, training)
    corpus = views.corpus

    # -- Training -------------------------------------------------------------------------------------------------------
    trainer = make_trainer(views, training, model=make_model(views, data, network, training))
    result = trainer.train(resume_from_checkpoint=checkpoint)

    # -- Results --------------------------------------------------------------------------------------------------------
    trainer.save_model()
    trainer.save_state()
    trainer.save_metrics("train", result.metrics)
    metrics = trainer.evaluate()
    if network.calibrate_scores and trainer.is_world_process_zero():
        metrics |= calibrate_saved_model(trainer, corpus.evaluation)
    trainer.log_metrics("eval", metrics)
    trainer.save_metrics("eval", metrics)
    if trainer.is_world_process_zero():
        facts = stage_facts(
            corpus,
            data,
            network,
            training,
            card,
            lost=lost_entities(views.train),
            windows=len(views.train),
            seconds=result.metrics["train_runtime"],
            metrics=metrics,
            resumed=checkpoint is not None,
        )
        record_facts(training.output_dir, "stage2", facts, views.encoder)
    trainer.create_model_card()
    if training.push_to_hub:
        address = trainer.push_to_hub()
        if address is not None:
            print(f"pushed to {address}")
    if trainer.is_world_process_zero():
        print(f"stage 2 left its model in {training.output_dir}")
    # A process that ends while another still talks to it, or with its process group alive, may be aborted in its last moment.
    trainer.leave_processes()


if __name__ == "__main__":
    with exit_on_input_error():
        main(sys.argv[1:])
