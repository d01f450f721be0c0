"""What an export gains and costs: speed, size, memory and F1 of the pipeline, every figure from the same run.

    python benchmarks/export.py --model DIR [--documents FILE_OR_FOLDER] [--characters N] [--repeats N] [--threads N]

The model is exported (float32 and int8), then the pipeline recognizes the same documents with torch in float32 and bfloat16
and with ONNX Runtime in float32 and int8. Each of the four lives in a process of its own, which holds nothing else; they take
turns, one running while the others wait, and the ratio to torch float32 is the median over the rounds, so a machine that
slows down slows them all. The table gives
    characters/s   of the whole pipeline, from text to entities, batches of --batch-size windows, and the ratio
    size           of the weights on disk
    peak memory    of the process, and how much of it is above what importing the package takes
    F1             micro and macro over the types of the model, if the documents are annotated, and the change in points
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from runne_coner.documents import Document, Entity, read_documents

SAMPLE = Path(__file__).resolve().parents[1] / "runne_coner" / "data" / "sample" / "test.jsonl"
BACKENDS = {
    "torch float32": {"backend": "torch", "dtype": "float32"},
    "torch bfloat16": {"backend": "torch", "dtype": "bfloat16"},
    "onnx float32": {"backend": "onnx"},
    "onnx int8": {"backend": "onnx"},
}


def selected_documents(path: str, characters: int) -> list[Document]:
    """The first documents, with so many characters together."""
    documents, size = [], 0
    for document in read_documents(path):
        documents.append(document)
        size += len(document.text)
        if size >= characters:
            break
    return documents


def memory(field: str) -> float:
    """MB of this process: `VmHWM` (peak) or `VmRSS` (now). Of `ru_maxrss` a process inherits its parent's."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024 / 1e6


def work(settings: dict) -> None:
    """The process of one backend: answers `run` with the seconds taken, `end` with entities and memory."""
    import torch

    from runne_coner.pipeline import load_pipeline

    torch.set_num_threads(settings["threads"])
    texts = [document.text for document in selected_documents(settings["documents"], settings["characters"])]
    imported = memory("VmRSS")
    recognize = load_pipeline(settings["model"], device="cpu", **settings["options"])
    found = []
    for line in sys.stdin:
        if line.strip() == "end":
            spans = [[(e["start"], e["end"], e["entity_type"]) for e in entities] for entities in found]
            types = recognize.model.config.entity_types, recognize.model.config.few_shot_types
            print(json.dumps({"peak": memory("VmHWM"), "imported": imported, "spans": spans, "types": types}), flush=True)
            return
        clock = time.process_time if settings["cpu_time"] else time.perf_counter
        start = clock()
        found = recognize(texts, batch_size=settings["batch_size"])
        print(json.dumps(clock() - start), flush=True)


class Worker:
    """A process of `work`, driven from here."""

    def __init__(self, model: str, options: dict, arguments: argparse.Namespace):
        settings = {"model": model, "options": options}
        settings |= {
            name: getattr(arguments, name) for name in ("documents", "characters", "threads", "batch_size", "cpu_time")
        }
        command = [sys.executable, __file__, "--work", json.dumps(settings)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, question: str):
        self.process.stdin.write(question + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"the process of a backend ended with exit code {self.process.wait()}")
        return json.loads(answer)


def f1_scores(documents: list[Document], spans: list, types: list[list[str]]) -> tuple[float, float]:
    """Micro and macro F1 in points; the macro score leaves out the few-shot types, as the official one does."""
    from runne_coner.metrics import score_documents

    answers = [
        Document(document.id, document.text, tuple(Entity(*span) for span in found))
        for document, found in zip(documents, spans, strict=True)
    ]
    known = list(dict.fromkeys([*types[0], *(entity.type for document in documents for entity in document.entities)]))
    scores = score_documents(documents, answers, known, types[1])
    return 100 * scores["micro"]["f1"], 100 * scores["macro"]["f1"]


def measure(arguments: argparse.Namespace, folders: dict[str, str], sizes: dict[str, int]) -> None:
    """Run the backends in turns and print the table."""
    documents = selected_documents(arguments.documents, arguments.characters)
    characters = sum(len(document.text) for document in documents)
    annotated = any(document.entities for document in documents)
    print(
        f"{len(documents)} documents, {characters} characters, {arguments.threads} threads, batches of {arguments.batch_size},"
        f" {arguments.repeats} rounds{', processor time' * arguments.cpu_time}\n"
    )
    workers = {name: Worker(folders[name], options, arguments) for name, options in BACKENDS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    for warm in range(arguments.repeats + 1):
        for name, worker in workers.items():
            taken = worker.ask("run")
            if warm:
                seconds[name].append(taken)
    ended = {name: worker.ask("end") for name, worker in workers.items()}
    scores = {name: f1_scores(documents, end["spans"], end["types"]) for name, end in ended.items()} if annotated else {}
    print("backend         characters/s  ratio   size MB  peak MB  over import" + "  micro F1         macro F1" * annotated)
    base = "torch float32"
    for name, end in ended.items():
        ratio = statistics.median(a / b for a, b in zip(seconds[base], seconds[name], strict=True))
        row = f"{name:<16}{characters / statistics.median(seconds[name]):>12.0f}{ratio:>7.2f}{sizes[name] / 1e6:>10.1f}"
        row += f"{end['peak']:>9.0f}{end['peak'] - end['imported']:>13.0f}"
        for mine, other in zip(scores.get(name, ()), scores.get(base, ()), strict=True):
            row += f"{mine:>10.2f} ({mine - other:+.2f})"
        print(row)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of a model that stage 2 trained")
    parser.add_argument("--documents", default=str(SAMPLE))
    parser.add_argument("--characters", type=int, default=10**9, help="characters of text to use (default: all)")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=None, help="default: as many as torch takes")
    parser.add_argument("--cpu-time", action="store_true", help="processor time of one thread, for a machine that is busy")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        return work(json.loads(arguments.work))
    if not arguments.model:
        parser.error("--model is needed")
    if arguments.cpu_time and arguments.threads != 1:
        parser.error("--cpu-time needs --threads 1: with more, it is the time of all threads together")

    import torch

    from runne_coner.export import export_onnx

    arguments.threads = arguments.threads or torch.get_num_threads()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as scratch:
        folders = dict.fromkeys(BACKENDS, arguments.model)
        sizes = dict.fromkeys(BACKENDS, sum(file.stat().st_size for file in Path(arguments.model).glob("model*.safetensors")))
        for name, int8 in (("onnx float32", False), ("onnx int8", True)):
            folders[name] = f"{scratch}/int8" if int8 else f"{scratch}/float32"
            report = export_onnx(arguments.model, folders[name], int8=int8)
            sizes[name] = report.bytes
            print(f"{name}: {report}")
        measure(arguments, folders, sizes)


if __name__ == "__main__":
    main()
