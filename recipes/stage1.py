"""Stage 1: contrastive fine-tuning of an encoder on entity spans (Bondarenko 2022, section 3.1).

    accelerate launch recipes/stage1.py                                        # the bundled sample
    accelerate launch recipes/stage1.py --config recipes/runne/e5-small-ru/stage1.yaml --dataset FOLDER
    accelerate launch recipes/stage1.py --help                                 # all settings

It leaves a plain encoder with its tokenizer in `output_dir`, which recipes/stage2.py takes as `--model_name_or_path`.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from transformers import set_seed

from runne_coner.arguments import (
    CardArguments,
    DataArguments,
    EncoderArguments,
    check_best_metric,
    checkpoint_to_resume,
    load_corpus,
    parse_settings,
)
from runne_coner.cli import exit_on_input_error, report_lost_entities
from runne_coner.collators import EntityCollator, EntityPairCollator
from runne_coner.configuration import SPAN_POOLINGS, CoNERConfig
from runne_coner.encoders import resolve_encoder
from runne_coner.model_card import record_facts, stage_facts
from runne_coner.modeling import EntityEncoder
from runne_coner.pairs import entity_pair_view
from runne_coner.preprocessing import entity_view, load_tokenizer, lost_entities
from runne_coner.trainers import CONTRASTIVE_METRICS, ContrastiveTrainer
from runne_coner.training_args import ContrastiveTrainingArguments

DEFAULT_CONFIG = Path(__file__).parent / "sample" / "e5-small-ru" / "stage1.yaml"


@dataclass
class Stage1Arguments(EncoderArguments):
    """Which encoder is fine-tuned, and how its spans are compared."""

    span_pooling: str = field(
        default="mean",
        metadata={"help": "Embedding of a span: 'mean' of its sub-words, or the paper's 'masked_matrix'."},
    )
    num_pairs: int = field(default=100_000, metadata={"help": "Pairs drawn in advance in pair mode 'sampled'."})

    def __post_init__(self):
        if self.span_pooling not in SPAN_POOLINGS:
            raise ValueError(f"span_pooling must be one of {SPAN_POOLINGS}, got {self.span_pooling!r}")
        if self.num_pairs < 1:
            raise ValueError(f"num_pairs must be at least 1, got {self.num_pairs}")


def main(argv: list[str]) -> None:
    data, network, training, card = parse_settings(
        argv, [DataArguments, Stage1Arguments, ContrastiveTrainingArguments, CardArguments], DEFAULT_CONFIG, __doc__
    )
    set_seed(training.seed)
    training.use_cpu_threads()
    checkpoint = checkpoint_to_resume(training.resume_from_checkpoint, training.output_dir)
    check_best_metric(training.metric_for_best_model, CONTRASTIVE_METRICS)

    # -- Data -----------------------------------------------------------------------------------------------------------
    with training.main_process_first(desc="loading the documents"):
        corpus = load_corpus(data, training.seed)
        encoder = resolve_encoder(network.model_name_or_path, network.encoder_cache)
        tokenizer = load_tokenizer(encoder, **network.hub_options())
        train = entity_view(corpus.train, tokenizer, corpus.entity_types, data.windows)
        report_lost_entities(train, corpus.train, "training")
        lost, windows = lost_entities(train), len(train)
        evaluation = entity_view(corpus.evaluation, tokenizer, corpus.entity_types, data.windows)
        # Pairs are compared within evaluation batches: these should not be of one document each.
        evaluation = evaluation.shuffle(seed=training.seed)
        pair_collator = None
        if training.pair_mode == "sampled":
            num_types = len(corpus.entity_types)
            train = entity_pair_view(train, num_types, network.num_pairs, training.positive_weight, training.seed)
            pair_collator = EntityPairCollator(tokenizer)

    # -- Training -------------------------------------------------------------------------------------------------------
    config = CoNERConfig(
        span_pooling=network.span_pooling,
        max_length=data.max_length,
        max_sentences=data.max_sentences,
        stride=data.stride,
    )
    model = EntityEncoder.from_encoder(encoder, config, **network.hub_options())
    trainer = ContrastiveTrainer(
        model,
        training,
        train_dataset=train,
        eval_dataset=evaluation,
        data_collator=EntityCollator(tokenizer),
        pair_collator=pair_collator,
        processing_class=tokenizer,
    )
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
            corpus,
            data,
            network,
            training,
            card,
            lost=lost,
            windows=windows,
            seconds=result.metrics["train_runtime"],
            metrics=metrics,
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
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()


if __name__ == "__main__":
    with exit_on_input_error():
        main(sys.argv[1:])
