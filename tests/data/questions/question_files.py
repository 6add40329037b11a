"""The same small data set of questions in every published layout that a reader knows."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SPLITS = ("train", "test")


@dataclass(frozen=True)
class Asked:
    """question, answer: as a reader should give them; colour: of the picture's pixels"""

    question: str
    answer: str
    colour: int


def content(split: str, count: int = 4) -> list[Asked]:
    """Yes or no, so that every layout can say it."""
    first = 100 * SPLITS.index(split)
    return [
        Asked(f"is number {first + n} even?", ("yes", "no")[n % 2], (first + 10 * n) % 256)
        for n in range(count)
    ]


def draw(path: Path, colour: int, side: int = 5) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((side, side, 3), colour, dtype=np.uint8)).save(path)


def write(path: Path, found: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found))
    return path


def lines(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


Data = Mapping[str, list[Asked]]


def jsonl(place: Path, data: Data) -> dict[str, Any]:
    for split, asked in data.items():
        for n, each in enumerate(asked):
            draw(place / split / f"{n}.png", each.colour)
        rows = [
            {"image": f"{split}/{n}.png", "question": each.question, "answers": each.answer, "type": "parity"}
            for n, each in enumerate(asked)
        ]
        lines(place / f"{split}.jsonl", rows)
    return {split: str(place / f"{split}.jsonl") for split in data}


def vqav2(place: Path, data: Data) -> dict[str, Any]:
    """As visualqa.org spreads it: ten people, of whom three say something else."""
    for split, asked in data.items():
        subset = {"train": "train2014", "test": "val2014"}[split]
        questions, annotations = [], []
        for n, each in enumerate(asked):
            # PNG under a name of JPEG: Pillow looks at what is in there
            draw(place / f"{n}.png", each.colour)
            target = place / subset / f"COCO_{subset}_{n + 7:012d}.jpg"
            target.parent.mkdir(exist_ok=True)
            (place / f"{n}.png").rename(target)
            key = 10 * n + 3
            questions.append({"image_id": n + 7, "question": each.question, "question_id": key})
            said = [each.answer] * 7 + ["perhaps", "perhaps", "blue"]
            answers = [
                {"answer": text, "answer_confidence": "yes", "answer_id": k} for k, text in enumerate(said, 1)
            ]
            annotations.append(
                {
                    "question_type": "is",
                    "multiple_choice_answer": each.answer,
                    "answers": answers,
                    "image_id": n + 7,
                    "answer_type": "yes/no",
                    "question_id": key,
                }
            )
        head = {"info": {"version": "2.0"}, "data_type": "mscoco", "data_subtype": subset, "license": {}}
        name = f"v2_OpenEnded_mscoco_{subset}_questions.json"
        write(place / name, {**head, "task_type": "Open-Ended", "questions": questions})
        write(place / f"v2_mscoco_{subset}_annotations.json", {**head, "annotations": annotations[::-1]})
    return {"root": str(place)}


def gqa(place: Path, data: Data) -> dict[str, Any]:
    for split, asked in data.items():
        found = {}
        for n, each in enumerate(asked):
            name = f"{split}{n}"
            draw(place / "images" / f"{name}.png", each.colour)
            (place / "images" / f"{name}.png").rename(place / "images" / f"{name}.jpg")
            found[f"0{n}1"] = {
                "semantic": [{"operation": "exist", "dependencies": [], "argument": "?"}],
                "entailed": [],
                "equivalent": [f"0{n}1"],
                "question": each.question,
                "imageId": name,
                "isBalanced": True,
                "groups": {"global": None, "local": "x"},
                "answer": each.answer,
                "types": {"detailed": "exist", "semantic": "obj", "structural": "verify"},
                "fullAnswer": f"{each.answer}, it is.",
            }
        write(place / f"{'train' if split == 'train' else 'testdev'}_balanced_questions.json", found)
    return {"root": str(place)}


def scienceqa(place: Path, data: Data) -> dict[str, Any]:
    problems, splits = {}, {}
    for split, asked in data.items():
        splits[split] = []
        for each in asked:
            pid = str(len(problems) + 1)
            draw(place / "images" / split / pid / "image.png", each.colour)
            problems[pid] = {
                "question": each.question,
                "choices": ["no", "yes"],
                "answer": int(each.answer == "yes"),
                "hint": "",
                "image": "image.png",
                "task": "closed choice",
                "grade": "grade2",
                "subject": "natural science",
                "topic": "numbers",
                "lecture": "Numbers are even or odd.",
                "solution": f"Hence {each.answer}.",
                "split": split,
            }
            splits[split].append(pid)
    write(place / "problems.json", problems)
    write(place / "pid_splits.json", splits)
    return {"root": str(place)}


def llava(place: Path, data: Data, answer: str = "{}") -> dict[str, Any]:
    for split, asked in data.items():
        rows = []
        for n, each in enumerate(asked):
            draw(place / split / f"{n}.png", each.colour)
            turns = [
                {
                    "from": "human",
                    "value": f"<image>\n{each.question}" if n % 2 else f"{each.question}\n<image>",
                },
                {"from": "gpt", "value": answer.format(each.answer)},
            ]
            rows.append({"id": f"{n:012d}", "image": f"{split}/{n}.png", "conversations": turns})
        write(place / f"{split}.json", rows)
    return {split: str(place / f"{split}.json") for split in data}


def llava_cot(place: Path, data: Data) -> dict[str, Any]:
    stages = (
        "<SUMMARY> I look. </SUMMARY>\n\n<CAPTION> A number. </CAPTION>\n\n"
        "<REASONING> It is. </REASONING>\n\n<CONCLUSION> {} </CONCLUSION>"
    )
    options = llava(place, data, stages)
    for split, path in options.items():  # it is spread as lines
        options[split] = str(lines(place / f"{split}.jsonl", json.loads(Path(path).read_text())))
    return options


def easy_vqa(place: Path, data: Data) -> dict[str, Any]:
    for split, asked in data.items():
        for n, each in enumerate(asked):
            draw(place / split / "images" / f"{n}.png", each.colour)
        write(
            place / split / "questions.json",
            [[each.question, each.answer, n] for n, each in enumerate(asked)],
        )
    return {"path": str(place)}


def nlvr(place: Path, data: Data) -> dict[str, Any]:
    """Its answers are true and false."""
    options = {}
    for split, asked in data.items():
        rows = []
        for n, each in enumerate(asked):
            for k in range(6):
                draw(place / split / "images" / "3" / f"{split}-{n}-0-{k}.png", each.colour + k)
            label = {"yes": "true", "no": "false"}[each.answer]
            rows.append(
                {
                    "sentence": each.question,
                    "label": label,
                    "identifier": f"{n}-0",
                    "directory": "3",
                    "evals": {"r1": label},
                    "structured_rep": [[], [], []],
                }
            )
        options[split] = str(lines(place / split / f"{split}.json", rows))
    return options


def zipped(folder: Path, name: str) -> Path:
    """Of all that is in a folder, beside it."""
    path = folder.parent / name
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(folder).as_posix())
    return path


LAYOUTS: dict[str, Callable[[Path, Data], dict[str, Any]]] = {
    "easy_vqa": easy_vqa,
    "gqa": gqa,
    "jsonl": jsonl,
    "llava": llava,
    "llava_cot": llava_cot,
    "nlvr": nlvr,
    "scienceqa": scienceqa,
    "vqav2": vqav2,
}
