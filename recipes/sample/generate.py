#!/usr/bin/env python
"""Write the bundled sample: Russian news-like documents with nested entities, the same for the same seed.

The sentences and words are in `lexicon.py`, which also explains its notation. Only the standard library is used.
"""

import argparse
import json
import os
import random
import re
from pathlib import Path

import lexicon

DEFAULT_OUTPUT = Path(__file__).resolve().parents[2] / "runne_coner" / "data" / "sample"
DEFAULT_SEED = 2022
MONTHS = "января февраля марта апреля мая июня июля августа сентября октября ноября декабря".split()
IN_MONTHS = "январе феврале марте апреле мае июне июле августе сентябре октябре ноябре декабре".split()
ADJECTIVE = {"adj": "", "adj_gen": "ого"}

SLOT = re.compile(r"\{([^{}]*)\}")
STEM = re.compile(r"([\w-]+)~(\w+)")
OPENING = re.compile(r"\[([A-Z_]+) ")
# The brackets of entities that may stand between a preposition and its word.
GAP = r"((?:\[[A-Z_]+ |«)*)"


# A person with what goes before the name.
ROLE = re.compile(r"(?:\{\w+:(\w+)\} )+\{([A-DFM]\d?):\1\}")


def nests_same_type(item):
    types = OPENING.findall(item)
    return len(types) > len(set(types))


def decline(raw, case):
    index = lexicon.CASES.index(case)

    def form(match):
        stem, code = match.groups()
        if code == "x":
            return lexicon.IRREGULAR[stem].split()[index]
        return stem + lexicon.ENDINGS[code].split(",")[index]

    return STEM.sub(form, raw)


def euphony(marked):
    """Prepositions take a vowel before some clusters, whatever brackets stand between."""
    marked = re.sub(rf"\b([Вв]) {GAP}(?=Ф[^аеиоуяю]|В[^аеёиоуыюя]|вт)", r"\1о \2", marked)
    marked = re.sub(rf"\b([Сс]) {GAP}(?=[СсЗзШш][^аеёиоуыэюяь ])", r"\1о \2", marked)
    return re.sub(rf"\b([Оо]) {GAP}(?=[АаОоУуИиЭэ])", r"\1б \2", marked)


def parse(marked):
    """`[TYPE text]` -> the text and its spans (start, end, type), ends exclusive, outer spans first."""
    text, spans, opened, position = "", [], [], 0
    while position < len(marked):
        opening = OPENING.match(marked, position)
        if opening:
            opened.append((len(text), len(spans)))
            spans.append(opening[1])
            position = opening.end()
            continue
        if marked[position] == "]":
            start, index = opened.pop()
            spans[index] = (start, len(text), spans[index])
        else:
            text += marked[position]
        position += 1
    if opened or "~" in text or "{" in text:
        raise ValueError(f"broken markup: {marked}")
    return text, spans


class Scene:
    """What one document talks about: every slot keeps its value, so that people and places recur."""

    def __init__(self, rng, held_out):
        self.rng = rng
        self.held_out = held_out
        self.values = {}
        self.used = set()
        self.mentioned = set()
        self.year = rng.randint(2009, 2023)
        self.month = rng.randrange(12)

    def choose(self, items, names):
        """An item this scene has not used; the last quarter of a list of names is for held-out documents only."""
        if names and not self.held_out:
            items = items[: len(items) * 3 // 4]
        fresh = [item for item in items if item not in self.used]
        # Items that nest a type in itself count twice, so that they are not too rare to be learnt.
        fresh += [item for item in fresh if nests_same_type(item)]
        choice = self.rng.choice(fresh or items)
        self.used.add(choice)
        return choice

    def value(self, name):
        if name in lexicon.FLEETING:
            return self.fill(self.rng.choice(lexicon.POOLS[name]))
        if name not in self.values:
            self.values[name] = self.make(name)
        return self.values[name]

    def make(self, name):
        base = name.rstrip("0123456789")
        if base == "F":
            row = self.row(name.replace("F", "country"))
            return {"first": self.rng.choice(row[3].split()), "last": self.choose(row[4].split(), False), "gender": "m"}
        if base in {"A", "B", "C", "D", "M"}:
            return self.make_person("m" if base == "M" else self.rng.choice("mf"))
        return self.fill(self.choose(lexicon.POOLS[base], base in lexicon.OPEN))

    def make_person(self, gender):
        stem = self.choose(lexicon.SURNAMES, True)
        first = self.choose(lexicon.MALE if gender == "m" else lexicon.FEMALE, False)
        code = {"m": "aM", "f": "af"} if stem.endswith("ск") else {"m": "ov", "f": "ova"}
        plural = stem + ("их" if stem.endswith("ск") else "ых")
        return {"first": first, "last": f"{stem}~{code[gender]}", "gender": gender, "plural": plural}

    def row(self, name):
        """The table row behind `city2`, `region2`, `country3` or `capital`."""
        base = name.rstrip("0123456789")
        kind = "city" if base in {"city", "region"} else "country"
        key = kind + name[len(base) :]
        if key + "#row" not in self.values:
            table = lexicon.CITIES if kind == "city" else lexicon.COUNTRIES
            self.values[key + "#row"] = self.choose(table, True).split("|")
        return self.values[key + "#row"]

    def place(self, name, form):
        base = name.rstrip("0123456789")
        row = self.row(name)
        if form == "lang":
            return row[6]
        if form.lower() in ADJECTIVE:
            stem = row[1].capitalize() if form[0] == "A" else row[1]
            return stem + ADJECTIVE[form.lower()]
        if form == "many":
            return row[5]
        column, label = {
            "city": (0, "CITY"),
            "region": (2, "STATE_OR_PROVINCE"),
            "country": (0, "COUNTRY"),
            "capital": (2, "CITY"),
        }[base]
        return f"[{label} {row[column]}]"

    def lookup(self, name, case):
        """The raw (undeclined) value of a slot."""
        base = name.rstrip("0123456789")
        if base in {"city", "region", "country", "capital"}:
            return self.place(name, case)
        if name.startswith(("age_", "years_")):
            return self.age(*name.split("_"))
        if len(base) == 1 and base.upper() in "ABCDFM":
            person = self.value(name.upper())
            if case == "plural":
                return person["plural"]
            known = name.upper() in self.mentioned
            self.mentioned.add(name.upper())
            if known and (base.islower() or self.rng.random() < 0.7):
                return f"[PERSON {person['last']}]"
            return f"[PERSON {person['first']} {person['last']}]"
        return self.value(name)

    def age(self, kind, name):
        """`age_A`: 35-летний, `years_A`: (в возрасте) 35 лет."""
        person = self.value(name)
        # M is the slot for sportsmen.
        age = person.setdefault("age", self.rng.randint(*((21, 34) if name[0] == "M" else (23, 69))))
        if kind == "years":
            return f"[AGE {age} {'года' if age % 10 == 1 else 'лет'}]"
        return f"[AGE {age}-летн~{'sM' if person['gender'] == 'm' else 'sf'}]"

    def resolve(self, slot):
        if slot.startswith("="):
            return self.rng.choice(slot[1:].split("|"))
        if "?" in slot:
            name, forms = slot.split("?")
            return forms.split("|")[self.value(name)["gender"] == "f"]
        if slot.startswith(("num ", "int ")):
            return self.number(*slot.split(" ", 2))
        if hasattr(self, "make_" + slot):
            return getattr(self, "make_" + slot)()
        name, _, case = slot.partition(":")
        raw = self.lookup(name, case)
        return decline(raw, case) if case in lexicon.CASES else raw

    def follow(self, template):
        """A later sentence: whoever has been mentioned needs no introduction."""

        def shorten(match):
            return f"{{{match[2]}:{match[1]}}}" if match[2] in self.mentioned else match[0]

        return ROLE.sub(shorten, template)

    def fill(self, template):
        return SLOT.sub(lambda match: self.resolve(match[1]), template)

    def number(self, kind, limits, forms=None):
        low, high = map(int, limits.split("-"))
        if kind == "int":
            return str(self.rng.randint(low, high))
        # With three forms of the noun any number but 1, 21, ... (the verb would have to agree); without them only
        # numbers that take the genitive plural, the form written in the template.
        allowed = [
            n
            for n in range(low, high + 1)
            if n % 100 in range(10, 20) or n % 10 in ((0, *range(5, 10)) if not forms else range(2, 10))
        ]
        n = self.rng.choice(allowed)
        noun = ""
        if forms:
            one, few, many = forms.split("|")
            noun = " " + (few if n % 10 in (2, 3, 4) and n % 100 not in (12, 13, 14) else many)
        return f"[NUMBER {n}]{noun}"

    def make_date(self):
        return f"[DATE {self.rng.randint(1, 28)} {MONTHS[self.month]} {self.year} года]"

    def make_day(self):
        return f"[DATE {self.rng.randint(1, 28)} {MONTHS[(self.month + 1) % 12]}]"

    def make_month(self):
        return f"[DATE в {self.rng.choice(IN_MONTHS)} {self.year + 1} года]"

    def make_year(self):
        return f"[DATE в {self.year - self.rng.randint(2, 15)} году]"

    def make_lastyear(self):
        return f"[DATE в {self.year - 1} году]"

    def make_int_year(self):
        return str(self.year - self.rng.randint(2, 15))

    def make_clock(self):
        hour = self.rng.randint(7, 22)
        time = f"{hour}:{self.rng.choice(['00', '10', '15', '20', '30', '45'])}"
        part = "утром" if hour < 12 else "днём" if hour < 18 else "вечером"
        return self.rng.choice([f"[TIME в {time}]", f"[TIME около {time}]", f"[TIME {part}]", f"[TIME {part} в {time}]"])

    def make_percent(self):
        whole = self.rng.choice([5, 6, 7, 8, 9, *range(10, 20), 20, 25, 26, 28, 30, 35, 37, 40])
        forms = [f"{whole} процентов", f"{whole}%", f"{whole},{self.rng.randint(1, 9)} процента"]
        return f"[PERCENT {self.rng.choice(forms)}]"

    def make_money(self):
        unit = self.rng.choice(["млн", "млн", "млрд"])
        amount = self.rng.choice([str(self.rng.randint(2, 95)), f"{self.rng.randint(1, 9)},{self.rng.randint(1, 9)}"])
        currency = self.rng.choice(["рублей", "рублей", "долларов", "евро"])
        return f"[MONEY {amount} {unit} {currency}]"

    def make_sum(self):
        """A smaller amount, such as a prize or a price."""
        unit = self.rng.choice(["тыс.", "тысяч"])
        return f"[MONEY {self.rng.randrange(50, 950, 10)} {unit} {self.rng.choice(['рублей', 'долларов', 'евро'])}]"


def sentence(scene, template, end):
    text, spans = parse(euphony(decline(scene.fill(template), "nom")))
    return text[0].upper() + text[1:] + end, spans


def pick(rng, theme, held_out):
    """Templates of one document: maybe a headline, the first sentence and two or three more.

    A quarter of the combinations of a first sentence with a later one never occurs in training.
    """
    lead = rng.randrange(len(theme["leads"]))
    order = rng.sample(range(len(theme["bodies"])), len(theme["bodies"]))
    if not held_out:
        order.sort(key=lambda body: (lead + body) % 4 == 0)
    count = rng.choice([2, 3, 3])
    head = rng.choice(theme["heads"]) if rng.random() < 0.4 else None
    return head, [theme["leads"][lead], *(theme["bodies"][body] for body in order[:count])]


def document(rng, theme, held_out):
    """Text, RuNNE entities and the sentences."""
    scene = Scene(rng, held_out)
    head, templates = pick(rng, lexicon.THEMES[theme], held_out)
    parts = []
    for template in templates:
        parts.append(sentence(scene, scene.follow(template), "."))
    # The first sentence introduces people and places, so that the headline only repeats them.
    gaps = [" "] * (len(parts) - 1)
    if rng.random() < 0.3:
        gaps[rng.randrange(len(gaps))] = "\n\n"
    if head:
        scene.mentioned.clear()
        parts.insert(0, sentence(scene, head, ""))
        gaps.insert(0, rng.choice(["\n", "\n\n"]))
    text, entities = "", set()
    for (part, spans), gap in zip(parts, [*gaps, ""], strict=True):
        entities |= {(len(text) + start, len(text) + end - 1, label) for start, end, label in spans}
        text += part + gap
    ners = sorted(entities, key=lambda entity: (entity[0], -entity[1], entity[2]))
    return text, [list(entity) for entity in ners], [part for part, _ in parts]


def corpus(seed):
    """The training and the held-out documents, which share no sentence."""
    rng = random.Random(seed)
    seen, files, number = set(), [], 0
    for held_out in (False, True):
        themes = [theme for theme, counts in lexicon.PLAN.items() for _ in range(counts[held_out])]
        rng.shuffle(themes)
        documents = []
        for theme in themes:
            text, ners, sentences = document(rng, theme, held_out)
            while held_out and seen.intersection(sentences):
                text, ners, sentences = document(rng, theme, held_out)
            if not held_out:
                seen.update(sentences)
            documents.append({"id": number, "sentences": text, "ners": ners})
            number += 1
        files.append(documents)
    return files


def write(path, lines):
    """Never leaves half a file behind."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text("".join(line + "\n" for line in lines), encoding="utf-8", newline="\n")
    temporary.replace(path)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, metavar="DIR", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=DEFAULT_SEED, help="default: %(default)s")
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    files = corpus(options.seed)
    for name, documents in zip(("train.jsonl", "test.jsonl"), files, strict=True):
        lines = [json.dumps(document, ensure_ascii=False) for document in documents]
        write(options.output / name, lines)
        print(f"{options.output / name}: {len(lines)} documents")
    write(options.output / "ners.txt", sorted({ner[2] for documents in files for doc in documents for ner in doc["ners"]}))


if __name__ == "__main__":
    main()
