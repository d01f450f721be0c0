"""Stage 1: contrastive fine-tuning of an encoder on entity spans (Bondarenko 2022, section 3.1).

    accelerate launch recipes/stage1.py                                        # the bundled sample
    accelerate launch recipes/stage1.py --config recipes/runne/e5-small-ru/stage1.yaml --dataset FOLDER
    accelerate launch recipes/stage1.py --help                                 # all settings

It leaves a plain encoder with its tokenizer in `output_dir`, which recipes/stage2.py takes as `--model_name_or_path`.
"""

import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, set_seed

from runne_coner.arguments import (
    CardArguments,
    Corpus,
    DataArguments,
    EncoderArguments,
    UsageError,
    check_idle_settings,
    checkpoint_to_resume,
    load_corpora,
    parse_settings,
)
from runne_coner.cli import exit_on_input_error, report_lost_entities
from runne_coner.collators import EntityCollator, EntityPairCollator
from runne_coner.configuration import CoNERConfig
from runne_coner.contrastive import ContrastiveTrainer
from runne_coner.encoders import resolve_encoder
from runne_coner.model_card import record_facts, stage_facts
from runne_coner.modeling import EntityEncoder
from runne_coner.outside import OutsideSettings
from runne_coner.pair_weights import PairWeighting
from runne_coner.pairs import check_pairs, entity_pair_view
from runne_coner.preprocessing import entity_view, load_tokenizer, lost_entities
from runne_coner.training_args import ContrastiveTrainingArguments

DEFAULT_CONFIG = Path(__file__).parent / "sample" / "e5-small-ru" / "stage1.yaml"


@dataclass
class Stage1Arguments(EncoderArguments):
    """Which encoder is fine-tuned, and how its spans are compared."""

    span_pooling: str = field(
        default="mean",
        metadata={"help": "Embedding of a span: 'mean', 'max', 'first_last' of its sub-words, or the paper's 'masked_matrix'."},
    )
    projection_size: int = field(
        default=0, metadata={"help": "Width of a projection head that only stage 1 has; 0 compares the spans themselves."}
    )
    outside: str = field(
        default="class", metadata={"help": "What O is in stage 1: a 'class' of its own, only a 'negative', or 'none'."}
    )
    outside_per_window: int = field(default=0, metadata={"help": "O spans of a window at most, drawn; 0 takes every run."})
    outside_lengths: str = field(
        default="runs", metadata={"help": "O spans: whole 'runs' of O words, or pieces as long as 'entities' are."}
    )
    extra_datasets: list[str] | None = field(
        default=None, metadata={"help": "Further corpora to train on, each NAME or NAME@SPLIT; types of each are its own."}
    )
    type_mapping: dict | str | None = field(
        default=None,
        metadata={"help": "Types of corpora that are one type: {corpus: {type: name}}, as JSON or a YAML or JSON file."},
    )
    num_pairs: int = field(default=100_000, metadata={"help": "Pairs drawn in advance in pair mode 'sampled'."})

    def __post_init__(self):
        # The classes that the settings are for say what is wrong with them.
        CoNERConfig(span_pooling=self.span_pooling, projection_size=self.projection_size)
        self.outside_spans(seed=0)
        if self.num_pairs < 1:
            raise ValueError(f"num_pairs must be at least 1, got {self.num_pairs}")

    def outside_spans(self, seed: int) -> OutsideSettings:
        """How O enters."""
        return OutsideSettings(self.outside, self.outside_per_window, self.outside_lengths, seed)

    def check_against(self, training: ContrastiveTrainingArguments) -> None:
        """Refuse what the training's mode or loss cannot honour.

        Raises:
            arguments.UsageError: O spans shall be negatives only, or pairs across corpora be left out, where that cannot be.
        """
        if self.outside == "negative" and training.pair_mode == "sampled":
            raise UsageError("pair_mode sampled draws pairs of O spans as the paper does: outside must be class or none")
        if self.extra_datasets and training.pair_mode == "sampled":
            raise UsageError("pair_mode sampled draws pairs of one corpus: leave out extra_datasets, or take in_batch")
        if self.extra_datasets and training.loss == "n_pairs":
            raise UsageError("loss n_pairs compares all types with each other: leave out extra_datasets, or choose another")
        if self.outside == "negative" and training.loss == "n_pairs":
            raise UsageError("loss n_pairs compares types that have a positive pair: outside must be class or none")


@dataclass
class Views:
    """What stage 1 reads: `corpus` as entity views `train` (of pairs, in mode `sampled`) and `evaluation`.

    `lost` and `windows` are of the training documents before pairs were drawn; `negatives_only` is the type (O) whose spans
    are no positives of each other, if there is one.
    """

    corpus: Corpus
    encoder: str
    tokenizer: PreTrainedTokenizerBase
    train: Dataset
    evaluation: Dataset
    lost: dict[str, Counter]
    windows: int
    negatives_only: int | None


def load_views(data: DataArguments, network: Stage1Arguments, training: ContrastiveTrainingArguments) -> Views:
    """Documents and encoder, as the settings say.

    Raises:
        UsageError, documents.CorpusError: a setting or a corpus is wrong.
    """
    corpus = load_corpora(data, network.extra_datasets or [], network.type_mapping, training.seed)
    encoder = resolve_encoder(network.model_name_or_path, network.encoder_cache)
    tokenizer = load_tokenizer(encoder, **network.hub_options())
    num_types, outside = len(corpus.entity_types), network.outside_spans(training.seed)
    negatives_only = num_types if network.outside == "negative" else None
    train = entity_view(corpus.train, tokenizer, corpus.entity_types, data.windows, outside)
    report_lost_entities(train, corpus.train, "training")
    lost, windows = lost_entities(train), len(train)
    evaluation = entity_view(corpus.evaluation, tokenizer, corpus.entity_types, data.windows, outside)
    check_pairs(train, evaluation, training.loss, negatives_only)
    # The loss is that of the pairs within evaluation batches: these should not be of one document each.
    evaluation = evaluation.shuffle(seed=training.seed)
    if training.pair_mode == "sampled":
        train = entity_pair_view(train, num_types, network.num_pairs, training.positive_weight, training.seed)
    return Views(corpus, encoder, tokenizer, train, evaluation, lost, windows, negatives_only)


def make_model(views: Views, data: DataArguments, network: Stage1Arguments) -> EntityEncoder:
    """The network that the settings describe, before training."""
    config = CoNERConfig(
        span_pooling=network.span_pooling,
        projection_size=network.projection_size,
        max_length=data.max_length,
        max_sentences=data.max_sentences,
        stride=data.stride,
    )
    return EntityEncoder.from_encoder(views.encoder, config, **network.hub_options())


def make_trainer(views: Views, training: ContrastiveTrainingArguments, *, model=None, model_init=None) -> ContrastiveTrainer:
    """The Trainer of a network, or of those that `model_init` makes (see `Trainer`)."""
    corpus, sampled = views.corpus, training.pair_mode == "sampled"
    annotated = None if corpus.annotated is None else torch.from_numpy(corpus.annotated)
    return ContrastiveTrainer(
        model,
        training,
        model_init=model_init,
        train_dataset=views.train,
        eval_dataset=views.evaluation,
        data_collator=EntityCollator(views.tokenizer),
        pair_collator=EntityPairCollator(views.tokenizer) if sampled else None,
        entity_types=corpus.entity_types,
        pair_weighting=PairWeighting.of(training, negatives_only=views.negatives_only, annotated=annotated),
        processing_class=views.tokenizer,
    )


def main(argv: list[str]) -> None:
    data, network, training, card = parse_settings(
        argv, [DataArguments, Stage1Arguments, ContrastiveTrainingArguments, CardArguments], DEFAULT_CONFIG, __doc__
    )
    network.check_against(training)
    check_idle_settings([network, training])
    set_seed(training.seed)
    training.use_cpu_threads()
    checkpoint = checkpoint_to_resume(training.resume_from_checkpoint, training.output_dir)

    # -- Data -----------------------------------------------------------------------------------------------------------
    with training.main_process_first(desc="loading the documents"):
        views = load_views(data, network, training)

    # -- Training -------------------------------------------------------------------------------------------------------
    trainer = make_trainer(views, training, model=make_model(views, data, network))
    result = trainer.train(resume_from_checkpoint=checkpoint)

    # -- Results --------------------------------------------------------------------------------------------------------
    trainer.save_model()
    trainer.save_state()
    trainer.save_metrics("train", result.metrics)
    metrics = trainer.evaluate()
    trainer.log_metrics("eval", metrics)
    trainer.save_metrics("eval", metrics)
    if trainer.is_world_process_zero():
        facts = stage_facts(
            views.corpus,
            data,
            network,
            training,
            card,
            lost=views.lost,
            windows=views.windows,
            seconds=result.metrics["train_runtime"],
            metrics=metrics,
            resumed=checkpoint is not None,
        )
        record_facts(training.output_dir, "stage1", facts)
    trainer.create_model_card()
    if training.push_to_hub:
        address = trainer.push_to_hub()
        if address is not None:
            print(f"pushed to {address}")
    if trainer.is_world_process_zero():
        print(f"stage 1 left its encoder in {training.output_dir}")
    # A process that ends while another still talks to it, or with its process group alive, may be aborted in its last moment.
    trainer.leave_processes()


if __name__ == "__main__":
    with exit_on_input_error():
        main(sys.argv[1:])
