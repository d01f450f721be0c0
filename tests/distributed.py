"""Training steps of both stages in each process of a group; `test_gathering.py` runs it alone and under `torchrun`.

    python tests/distributed.py SETTINGS.json FOLDER

For each case of the settings it leaves the gradients of the first step, the loss, and the metrics of an evaluation.
"""

import json
import sys
import weakref
from pathlib import Path

import torch
from datasets import load_from_disk
from safetensors.torch import save_file
from transformers import TrainerCallback

from runne_coner.configuration import CoNERConfig
from runne_coner.contrastive import ContrastiveTrainer
from runne_coner.modeling import CoNERForTokenClassification, EntityEncoder
from runne_coner.preprocessing import load_tokenizer
from runne_coner.span_trainer import SpanTrainer
from runne_coner.trainers import NestedNerTrainer
from runne_coner.training_args import ContrastiveTrainingArguments, NestedNerTrainingArguments


class Gradients(TrainerCallback):
    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if state.global_step == 0:
            self.found = {name: value.grad.detach().clone() for name, value in model.named_parameters()}


def run(case: dict, common: dict, folder: Path) -> SpanTrainer:
    tokenizer = load_tokenizer(common["encoder"])
    keeper = Gradients()
    if case["stage"] == 1:
        kind, settings = ContrastiveTrainer, ContrastiveTrainingArguments
        model = EntityEncoder.from_encoder(common["encoder"], CoNERConfig(**case["network"]))
    else:
        kind, settings = NestedNerTrainer, NestedNerTrainingArguments
        torch.manual_seed(0)
        model = CoNERForTokenClassification.from_encoder(common["encoder"], CoNERConfig(**case["network"]))
    trainer = kind(
        model,
        settings(str(folder), report_to="none", disable_tqdm=True, **common["args"], **case["args"]),
        train_dataset=load_from_disk(case["view"]).with_format("numpy"),
        eval_dataset=load_from_disk(case["evaluation"]).with_format("numpy"),
        processing_class=tokenizer,
        callbacks=[keeper],
    )
    trainer.train()
    metrics = trainer.evaluate()
    if trainer.is_world_process_zero():
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        save_file({**keeper.found, "losses": torch.tensor(losses)}, folder / f"{case['name']}.safetensors")
        (folder / f"{case['name']}.json").write_text(json.dumps(metrics), encoding="utf-8")
    return trainer


def main(settings_file: str, folder: str) -> None:
    torch.set_num_threads(1)
    settings = json.loads(Path(settings_file).read_text(encoding="utf-8"))
    for case in settings["cases"]:
        trainer = run(case, settings, Path(folder))
    wrapped = weakref.ref(trainer.model_wrapped)
    trainer.leave_processes()
    # Nothing may keep what DDP wrapped around the network: it would end the process group later, and might hang in it.
    assert wrapped() in (None, trainer.model)


if __name__ == "__main__":
    main(*sys.argv[1:])
