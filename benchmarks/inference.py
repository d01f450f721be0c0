"""How much of the time of recognition is the encoder's: one table, every figure from the same run.

    python benchmarks/inference.py --model DIR [--documents FILE_OR_FOLDER] [--characters N] [--repeats N] [--threads N]
        [--cpu-time]

For each data type (float32, bfloat16) and batch size (1, 32) it prints characters per second of (a) the bare encoder over the
pipeline's windows in the pipeline's batches, (b) the pipeline end to end, with and without span scores, and (c) the parts of
the pipeline with their share of its time; then the peak memory, and Viterbi against a plain loop over sentences and heads in
numpy. Encoder and pipeline take turns, and the minima over the repeats are compared: other programs only ever add to a time.
On a machine that is busy with other things `--cpu-time --threads 1` counts the processor's seconds instead of the clock's.
"""

import argparse
import resource
import time
from collections import defaultdict
from collections.abc import Callable

import numpy as np
import torch

from runne_coner.documents import read_documents
from runne_coner.nerel import SAMPLE
from runne_coner.pipeline import NestedNerPipeline, load_pipeline
from runne_coner.preprocessing import window_rows
from runne_coner.tagging import NUM_TAGS, B, I, O
from runne_coner.viterbi import BilouViterbiProcessor

seconds_now = time.perf_counter


def clock(function: Callable, *arguments) -> tuple[float, object]:
    start = seconds_now()
    result = function(*arguments)
    return seconds_now() - start, result


def windows_of(recognizer: NestedNerPipeline, texts: list[str]) -> list[dict]:
    """The windows of the texts in the order in which the pipeline batches them."""
    rows = window_rows(texts, recognizer.tokenizer, recognizer.windows)
    return sorted(rows, key=lambda row: -row["length"])


def encode(recognizer: NestedNerPipeline, batches: list[dict]) -> None:
    with torch.inference_mode():
        for batch in batches:
            recognizer.model.encoder(**{name: value for name, value in batch.items() if name != "subword_cases"})


def parts(recognizer: NestedNerPipeline, texts: list[str], batch_size: int) -> dict[str, float]:
    """Seconds of the pipeline's steps, done one after the other as the pipeline does them."""
    seconds: dict[str, float] = defaultdict(float)
    seconds["words and tokenisation"], rows = clock(windows_of, recognizer, texts)
    with torch.inference_mode():
        for start in range(0, len(rows), batch_size):
            taken, inputs = clock(recognizer.collator, rows[start : start + batch_size])
            seconds["padding"] += taken
            cases = inputs.pop("subword_cases")
            taken, hidden = clock(lambda inputs=inputs: recognizer.model.encoder(**inputs).last_hidden_state)
            seconds["encoder"] += taken
            taken, logits = clock(lambda hidden=hidden: recognizer.model.classifier(hidden).unflatten(-1, (-1, NUM_TAGS)))
            seconds["heads"] += taken
            features, scorer = None, recognizer.model.span_scorer
            if scorer is not None:
                taken, features = clock(scorer.features, hidden)
                seconds["heads"] += taken
            taken, (spans, scores) = clock(recognizer.decoder.decode, cases, logits, features, scorer)
            seconds["decoding"] += taken
            if len(spans):
                taken, _ = clock(scores.log_probabilities, 1.0)
                seconds["span scores"] += taken
    return seconds


def loop_viterbi(log_priors: np.ndarray, cases: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """The baseline: Viterbi in numpy for one sentence after the other, one head after the other."""
    tags = np.zeros(logits.shape[:3], dtype=np.int64)
    for window in range(logits.shape[0]):
        for head in range(logits.shape[2]):
            emissions = logits[window, :, head].astype(np.float64)
            emissions = emissions - np.log(np.exp(emissions - emissions.max(-1, keepdims=True)).sum(-1, keepdims=True))
            emissions -= logits[window, :, head].max(-1, keepdims=True)
            score = log_priors[cases[window, 0], O] + emissions[0]
            origins = []
            for t in range(1, len(emissions)):
                candidates = score[:, None] + log_priors[cases[window, t]]
                origins.append(candidates.argmax(axis=0))
                score = candidates.max(axis=0) + emissions[t]
            score[[B, I]] = -np.inf
            tag = int(score.argmax())
            for t in range(len(emissions) - 1, -1, -1):
                tags[window, t, head] = tag
                tag = int(origins[t - 1][tag]) if t else 0
    return tags


def compare_viterbi(recognizer: NestedNerPipeline, rows: list[dict], sentences: int) -> str:
    middle = max(len(rows) - sentences, 0) // 2
    inputs = recognizer.collator(rows[middle : middle + sentences])
    cases = inputs.pop("subword_cases")
    with torch.inference_mode():
        logits = recognizer.model(**inputs).logits.float()
    viterbi: BilouViterbiProcessor = recognizer.decoder.viterbi
    taken, slow = clock(loop_viterbi, viterbi.log_priors.numpy(), cases.numpy(), logits.numpy())
    fast_times = [clock(viterbi.decode, cases, logits)[0] for _ in range(50)]
    fast = viterbi.decode(cases, logits).numpy()
    if not (slow == fast).all():
        raise SystemExit("the two Viterbi decoders disagree")
    quick = min(fast_times)
    return (
        f"Viterbi, {len(cases)} sentences of {cases.shape[1]} sub-words, {logits.shape[2]} heads: loop"
        f" {1000 * taken / len(cases):.2f} ms a sentence, ours {1000 * quick / len(cases):.3f} ms:"
        f" {taken / quick:.0f} times faster"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--documents", default=str(SAMPLE / "test.jsonl"))
    parser.add_argument("--characters", type=int, default=100_000, help="characters of text to use at batch size 32")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cpu-time", action="store_true", help="processor time instead of the clock's, with --threads 1")
    arguments = parser.parse_args()
    if arguments.cpu_time:
        global seconds_now
        seconds_now = time.process_time
    torch.set_num_threads(arguments.threads)

    texts, size = [], 0
    for document in read_documents(arguments.documents):
        texts.append(document.text)
        size += len(document.text)
        if size >= arguments.characters:
            break
    print(f"{len(texts)} texts, {size} characters, {arguments.threads} threads")
    for dtype in (torch.float32, torch.bfloat16):
        recognizer = load_pipeline(arguments.model, device="cpu", dtype=dtype)
        for batch_size in (32, 1):
            report(recognizer, texts if batch_size > 1 else texts[: max(len(texts) // 8, 1)], batch_size, arguments.repeats)
        if dtype == torch.float32:
            for sentences in (32, 256):
                print(compare_viterbi(recognizer, windows_of(recognizer, texts), sentences))
        del recognizer
    print(f"peak memory of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


def report(recognizer: NestedNerPipeline, texts: list[str], batch_size: int, repeats: int) -> None:
    rows = windows_of(recognizer, texts)
    batches = [dict(recognizer.collator(rows[i : i + batch_size])) for i in range(0, len(rows), batch_size)]
    encode(recognizer, batches[:2])
    bare, whole = [], []
    for _ in range(repeats):
        bare.append(clock(encode, recognizer, batches)[0])
        whole.append(clock(lambda: recognizer(texts, batch_size=batch_size))[0])
    size = sum(len(text) for text in texts)
    encoder, total = min(bare), min(whole)
    heads = len(recognizer.model.config.heads)
    print(f"\n{str(recognizer.model.dtype)[6:]}, batch {batch_size}, {heads} heads, {len(rows)} windows")
    print(f"  (a) bare encoder     {size / encoder:9.0f} characters/s")
    print(f"  (b) pipeline         {size / total:9.0f} characters/s   {encoder / total:.3f} of (a)")
    runs = [parts(recognizer, texts, batch_size) for _ in range(repeats)]
    seconds = {name: min(run.get(name, 0.0) for run in runs) for name in runs[0]}
    for name, value in seconds.items():
        print(f"  (c) {name:<24}{1000 * value:9.1f} ms   {100 * value / sum(seconds.values()):5.2f} %")


if __name__ == "__main__":
    main()
