"""One training step of stage 1 in each process of a group; `test_gathering.py` runs it alone and under `torchrun`.

    python tests/distributed.py SETTINGS.json OUTPUT.safetensors

It leaves the gradients of the first step and the loss, and prints the metrics of an evaluation.
"""

import json
import sys

import torch
from datasets import load_from_disk
from safetensors.torch import save_file
from transformers import TrainerCallback

from runne_coner.collators import EntityCollator
from runne_coner.configuration import CoNERConfig
from runne_coner.contrastive import ContrastiveTrainer
from runne_coner.modeling import EntityEncoder
from runne_coner.preprocessing import load_tokenizer
from runne_coner.training_args import ContrastiveTrainingArguments


class Gradients(TrainerCallback):
    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if state.global_step == 0:
            self.found = {name: value.grad.detach().clone() for name, value in model.named_parameters()}


def main(settings_file: str, output: str) -> None:
    with open(settings_file, encoding="utf-8") as file:
        settings = json.load(file)
    torch.set_num_threads(1)
    tokenizer = load_tokenizer(settings["encoder"])
    view = load_from_disk(settings["view"]).with_format("numpy")
    keeper = Gradients()
    trainer = ContrastiveTrainer(
        EntityEncoder.from_encoder(settings["encoder"], CoNERConfig(span_pooling=settings["pooling"])),
        ContrastiveTrainingArguments(
            f"{output}.folder", report_to="none", disable_tqdm=True, save_strategy="no", max_grad_norm=0.0, **settings["args"]
        ),
        train_dataset=view,
        eval_dataset=load_from_disk(settings["evaluation"]).with_format("numpy"),
        data_collator=EntityCollator(tokenizer),
        processing_class=tokenizer,
        callbacks=[keeper],
    )
    metrics = trainer.evaluate()
    trainer.train()
    if trainer.is_world_process_zero():
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        save_file({**keeper.found, "losses": torch.tensor(losses)}, output)
        print(json.dumps(metrics))
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()


if __name__ == "__main__":
    main(*sys.argv[1:])
