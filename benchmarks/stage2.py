"""What stage 2 adds to its encoder, and what length grouping saves.

    python benchmarks/stage2.py                                # the bundled sample; --dataset FOLDER for another corpus
    python benchmarks/stage2.py --steps 20 --threads 1 --bf16

Prints, for 29 and 87 heads, the time of a training step up to the optimiser (heads, loss, gradients, parts of the loss recorded
for the log) against forward and backward of the bare encoder on the same batches (goal: at most 8% more), and real tokens per
second of steps on length-grouped windows against windows padded to 128 (goal: at least 3 times). Both sides of the first ratio
are timed in turn, batch by batch, and each batch counts with the fastest of its repetitions. On a machine with other work,
`--cpu_time --threads 1` counts processor time.
"""

import argparse
import tempfile
import time
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import AutoModel
from transformers.trainer_pt_utils import LengthGroupedSampler

from runne_coner.collators import BilouCollator
from runne_coner.configuration import CoNERConfig
from runne_coner.encoders import resolve_encoder
from runne_coner.modeling import CoNERForTokenClassification
from runne_coner.nerel import NEREL_TYPES, load_documents
from runne_coner.preprocessing import bilou_view, load_tokenizer
from runne_coner.trainers import NestedNerTrainer
from runne_coner.training_args import NestedNerTrainingArguments

PADDED_LENGTH = 128
MOST_OVERHEAD, LEAST_GAIN = 0.08, 3.0


clock = time.perf_counter


def seconds(function: Callable[[], object]) -> float:
    start = clock()
    function()
    return clock() - start


def encoder_step(encoder, batch: dict[str, Tensor], bf16: bool) -> None:
    encoder.zero_grad(set_to_none=True)
    inputs = {name: value for name, value in batch.items() if name not in ("labels", "subword_cases")}
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        hidden = encoder(**inputs).last_hidden_state
    # A gradient for every output, as the heads would give it, at no cost to speak of.
    hidden.backward(torch.ones_like(hidden))


def trainer_step(trainer: NestedNerTrainer, batch: dict[str, Tensor]) -> None:
    trainer.model.zero_grad(set_to_none=True)
    trainer.training_step(trainer.model_wrapped, batch)


def make_trainer(encoder: str, levels: int, folder: str, options: argparse.Namespace) -> NestedNerTrainer:
    paths = options.candidate_paths
    config = CoNERConfig(entity_types=NEREL_TYPES, levels=levels, head_dropout=0.3, candidate_paths=paths)
    args = NestedNerTrainingArguments(folder, bf16=options.bf16, report_to="none", dice_weight=options.dice_weight)
    trainer = NestedNerTrainer(CoNERForTokenClassification.from_encoder(encoder, config), args)
    trainer.current_gradient_accumulation_steps = 1
    # As `train` would: with bf16 it is this that puts the forward pass under autocast.
    trainer.model_wrapped = trainer.accelerator.prepare_model(trainer.model)
    return trainer


def batches_of(view, collator, indices: list[int], size: int, padded: bool) -> list[dict[str, Tensor]]:
    if padded:
        collator = BilouCollator(collator.tokenizer, pad_to_multiple_of=PADDED_LENGTH)
    return [collator([view[i] for i in indices[start : start + size]]) for start in range(0, len(indices), size)]


def overhead(trainer, encoder, batches, options) -> float:
    """Share by which a step of the trainer takes longer than that of the bare encoder."""
    bare, whole = [float("inf")] * len(batches), [float("inf")] * len(batches)
    for _ in range(options.repeats):
        for index, batch in enumerate(batches):
            bare[index] = min(bare[index], seconds(lambda batch=batch: encoder_step(encoder, batch, trainer.args.bf16)))
            whole[index] = min(whole[index], seconds(lambda batch=batch: trainer_step(trainer, batch)))
    print(f"  encoder {1e3 * sum(bare) / len(bare):8.1f} ms   step {1e3 * sum(whole) / len(whole):8.1f} ms", end="")
    return sum(whole) / sum(bare) - 1.0


def tokens_per_second(trainer, batches: list[dict[str, Tensor]]) -> float:
    real = sum(int(batch["attention_mask"].sum()) for batch in batches)
    return real / sum(seconds(lambda batch=batch: trainer_step(trainer, batch)) for batch in batches)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="sample")
    parser.add_argument("--encoder", default="e5-small-ru")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=8, help="batches of each measurement")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="0 = torch's own choice")
    parser.add_argument("--dice_weight", type=float, default=0.0)
    parser.add_argument("--candidate_paths", type=int, default=2, help="0 = without the scorer of spans")
    parser.add_argument("--cpu_time", action="store_true", help="processor time instead of time")
    parser.add_argument("--bf16", action="store_true")
    options = parser.parse_args()
    if options.cpu_time:
        global clock
        clock = time.process_time
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    path = resolve_encoder(options.encoder)
    tokenizer = load_tokenizer(path)
    collator = BilouCollator(tokenizer)
    encoder = AutoModel.from_pretrained(path, dtype=torch.float32, add_pooling_layer=False).train()
    documents = load_documents(options.dataset, split="train")["train"]

    views = {levels: bilou_view(documents, tokenizer, NEREL_TYPES, levels) for levels in (1, 3)}
    lengths = views[1]["length"][:]
    order = list(LengthGroupedSampler(options.batch_size, lengths=list(lengths)))[: options.steps * options.batch_size]
    with tempfile.TemporaryDirectory() as folder:
        for levels, view in views.items():
            print(f"{len(NEREL_TYPES) * levels} heads:", end="")
            trainer = make_trainer(path, levels, folder, options)
            share = overhead(trainer, encoder, batches_of(view, collator, order, options.batch_size, False), options)
            print(f"   {100 * share:+.1f}% (at most {100 * MOST_OVERHEAD:+.0f}%)")
        trainer, speeds = make_trainer(path, 1, folder, options), {}
        drawn = torch.randperm(len(lengths))[: len(order)].tolist()
        for name, indices, padded in (("length-grouped", order, False), (f"padded to {PADDED_LENGTH}", drawn, True)):
            batches = batches_of(views[1], collator, indices, options.batch_size, padded)
            filled = sum(int(b["attention_mask"].sum()) for b in batches) / sum(b["attention_mask"].numel() for b in batches)
            speeds[name] = max(tokens_per_second(trainer, batches) for _ in range(options.repeats))
            print(f"{name}: {speeds[name]:,.0f} real tokens/s, {100 * filled:.0f}% of the tokens real")
        grouped, padded = speeds.values()
        print(f"length grouping: {grouped / padded:.2f} times as many real tokens/s (at least {LEAST_GAIN:.0f})")


if __name__ == "__main__":
    main()
