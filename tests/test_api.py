"""What users of Python call: convert, evaluate, distill, load_student, push_to_hub; a loop of their own."""

from __future__ import annotations

import base64
import http.server
import json
import pkgutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import tiny_clip
import torch
import torch.nn.functional as F
from harness import TEACHER, VIM, tiny_batch, tiny_recipe, tiny_student, tiny_vit

import transmamba
from transmamba.config.load import parse, save_yaml
from transmamba.config.registry import TASKS
from transmamba.core.tower import Student
from transmamba.tasks.image_classification import ImageClassificationConfig

NAME = "vim_micro_patch2_8"


def tiny_hugging_face() -> Any:
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    config = ViTConfig(
        image_size=8,
        patch_size=4,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=3,
    )
    return ViTForImageClassification(config).eval()


# --- convert ---


def test_public_names_are_not_hidden_by_modules() -> None:
    """Importing a submodule sets its name on the package, over a function of that name."""
    for module in pkgutil.iter_modules(transmamba.__path__):
        assert module.name not in transmamba.__all__
    assert all(hasattr(transmamba, name) for name in transmamba.__all__)


@pytest.mark.parametrize("make", [tiny_vit, tiny_hugging_face], ids=["timm", "transformers"])
def test_convert_a_model_you_hold(make: Any) -> None:
    model = make()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    student, report = transmamba.convert(model, student=NAME, **VIM)
    assert isinstance(student, Student) and not student.training
    assert 0 < report.covered < 1 and report.counts["sliced"] > 0
    assert report.total == sum(p.numel() for p in student.parameters())
    assert {drop.source for drop in report.dropped} >= {"norm.bias"}
    assert student(torch.randn(2, 3, 8, 8)).shape == (2, 3)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("make", [tiny_vit, tiny_hugging_face], ids=["timm", "transformers"])
def test_convert_to_the_teacher_s_own_shape(make: Any) -> None:
    student, report = transmamba.convert(make(), student="ssd_vit")
    assert report.counts["sliced"] == report.counts["permuted"] == 0
    assert student.embed_dim == 16 and len(student.blocks) == 2
    head = getattr(make(), "head", None) or make().classifier
    assert torch.equal(student.head.weight, head.weight)


def test_convert_without_a_name_gives_a_vim_of_the_teacher_s_shape() -> None:
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=24, patch_size=6, embed_dim=48, depth=3, num_heads=2, num_classes=5
    )
    student, report = transmamba.convert(model)
    assert (student.width, student.num_layers, student.layout.grid) == (48, 6, (4, 4))
    assert student(torch.zeros(1, 3, 24, 24)).shape == (1, 5)
    assert torch.equal(student.patch_embed.proj.weight, model.patch_embed.proj.weight)
    assert not report.unused


@pytest.mark.parametrize("options", [dict(class_token=False, global_pool="avg"), dict(global_pool="avg"), {}])
@pytest.mark.parametrize("name", ["vim", NAME])
def test_a_student_pools_as_its_teacher_does(name: str, options: dict[str, Any]) -> None:
    """So that the head which it takes over reads what it was made for."""
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", **{**TEACHER, **options, "fc_norm": False}).eval()
    init = transmamba.SubcloneConfig(fold=True, mimic=True, average=True)
    images = [torch.randn(32, 3, 8, 8)]
    student, _ = transmamba.convert(
        model, name, init=init, calibration=images, gate_bias=True, **({} if name == "vim" else VIM)
    )
    assert student.global_pool == options.get("global_pool", "token")
    assert getattr(student, "global_pool", None) == student.transmamba_args.get("global_pool", "token")


def test_a_head_on_the_mean_reads_the_student_s_mean() -> None:
    """Right after `convert` the student's answers follow the teacher's; from the class token they do not."""
    torch.manual_seed(0)
    options = dict(TEACHER, global_pool="avg", fc_norm=False, num_classes=10, embed_dim=48, num_heads=2)
    model = timm.create_model("vit_tiny_patch16_224", **options).eval()
    images = torch.randn(64, 3, 8, 8)
    init = transmamba.SubcloneConfig(fold=True, mimic=True, average=True)

    def alike(**kwargs: Any) -> float:
        student, _ = transmamba.convert(model, init=init, calibration=[images], gate_bias=True, **kwargs)
        with torch.no_grad():
            theirs, mine = (logits - logits.mean(0) for logits in (model(images), student(images)))
        return float(F.cosine_similarity(theirs.flatten(), mine.flatten(), dim=0))

    assert alike() > 0.8 > 0.5 > alike(global_pool="token")


def test_convert_clones_every_layer_unless_told_otherwise() -> None:
    """Half of a Vim is a recipe's default: here nothing would train the other half."""

    def layers(**config: Any) -> set[str]:
        init = transmamba.SubcloneConfig(importance="uniform", **config)
        _, report = transmamba.convert(tiny_vit(), student=NAME, init=init, **VIM)
        return {name.split(".")[1] for name in report.cloned if name.startswith("layers.")}

    assert layers() == {str(k) for k in range(VIM["depth"])} and layers(layers="half") < layers()


def test_convert_takes_options_calibration_and_classes() -> None:
    images = [tiny_batch(4).inputs["image"]]
    student, report = transmamba.convert(
        tiny_vit(), student=NAME, calibration=images, num_classes=7, gate_bias=True, **VIM
    )
    assert student.layers[0].mixer.gate_bias is not None
    assert student(images[0]).shape == (4, 7)
    assert next(row for row in report.rows if row.target == "head.weight").kind == "fresh"
    uniform, _ = transmamba.convert(tiny_vit(), student=NAME, num_classes=7, gate_bias=True, **VIM)
    assert not torch.equal(uniform.cls_token, student.cls_token), "importance decides which coordinates stay"


def test_a_student_carries_its_teacher_s_preprocessing() -> None:
    model = timm.create_model(
        "vit_tiny_patch16_224", num_classes=3, **TEACHER, pretrained_cfg_overlay={"mean": (0.1, 0.2, 0.3)}
    )
    student, _ = transmamba.convert(model, student=NAME, **VIM)
    assert timm.data.resolve_model_data_config(student)["mean"] == (0.1, 0.2, 0.3)


def test_convert_refuses_what_it_cannot_meet() -> None:
    with pytest.raises(transmamba.UserError, match="no teacher adapter for torch"):
        transmamba.convert(torch.nn.Linear(2, 2))
    with pytest.raises(transmamba.UserError, match="mean 'vim_micro_patch2_8'"):
        transmamba.convert(tiny_vit(), student="vim_micro_patch_8")
    with pytest.raises(transmamba.UserError, match="ssd_vit keeps the teacher's width 16"):
        transmamba.convert(tiny_vit(), student="ssd_vit", embed_dim=24)
    with pytest.raises(transmamba.UserError, match=r"init is dict; write a transmamba\.SubcloneConfig"):
        transmamba.convert(tiny_vit(), init={"fold": True})  # type: ignore[arg-type]
    with pytest.raises(transmamba.UserError, match="num_classes is 0; write a number of at least 1"):
        transmamba.convert(tiny_vit(), num_classes=0)
    with pytest.raises(transmamba.UserError, match="depth is 0"):
        transmamba.convert(tiny_vit(), depth=0)
    with pytest.raises(transmamba.UserError, match="gate_bias: the student is made already"):
        transmamba.convert(tiny_vit(), tiny_student(), gate_bias=True)
    oblong = timm.create_model("vit_tiny_patch16_224", **{**TEACHER, "patch_size": (4, 2)})
    with pytest.raises(transmamba.UserError, match="patches are 4 x 2 pixels"):
        transmamba.convert(oblong)
    assert transmamba.convert(oblong, patch_size=4)[0].layout.grid == (2, 2)


def test_a_model_that_is_no_vit_is_refused_before_it_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    make = timm.create_model

    def create(name: str, **kwargs: Any) -> Any:
        asked.append(name if kwargs.get("pretrained") else "")
        return make(name, **kwargs)

    monkeypatch.setattr(timm, "create_model", create)
    for name, why in (("resnet18", "ResNet"), ("vit_base_patch16_rpn_224", "ResPostBlock")):
        with pytest.raises(transmamba.UserError, match=why):
            transmamba.convert(name)
    assert not any(asked)


# --- a loop of one's own ---


def test_a_distiller_learns_in_a_loop_of_one_s_own() -> None:
    teacher = tiny_vit()
    student, _ = transmamba.convert(teacher, student=NAME, **VIM)
    distiller = transmamba.Distiller(student, teacher)
    optimizer = torch.optim.AdamW(distiller.parameters(), lr=3e-3)
    held = {id(parameter) for parameter in teacher.parameters()}
    assert not held & {id(parameter) for parameter in distiller.parameters()}
    losses = []
    for step in range(10):
        loss, parts = distiller.loss(tiny_batch(8, seed=step % 2), step)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
        assert set(parts) == {"cross_entropy", "kl", "bidirectional"}
    assert np.mean(losses[-2:]) < 0.9 * np.mean(losses[:2])
    assert all(parameter.grad is None for parameter in teacher.parameters())


# --- evaluate ---


@pytest.fixture
def task() -> ImageClassificationConfig:
    data = {"name": "synthetic", "num_train": 12, "num_test": 10, "num_classes": 3, "size": 8}
    return parse(TASKS["image_classification"], {"data": data}, "test")


def test_evaluate_is_what_a_plain_loop_computes(task: ImageClassificationConfig) -> None:
    teacher, student = tiny_vit(), tiny_student()
    student.train()
    results = transmamba.evaluate(student, task, teacher=teacher, batch_size=4)
    assert student.training, "the mode it came in"
    student.eval()

    source = task.data.build("test")
    pixels, labels = torch.from_numpy(source.array()), torch.from_numpy(source.labels)
    config = timm.data.resolve_model_data_config(teacher)
    mean, std = (torch.tensor(config[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        images = (pixels.permute(0, 3, 1, 2) / 255 - mean) / std
        theirs = teacher(images)
        own = timm.data.resolve_model_data_config(student)
        mean, std = (torch.tensor(own[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
        ours = student((pixels.permute(0, 3, 1, 2) / 255 - mean) / std)
    for name, logits in (("student", ours), ("teacher", theirs)):
        top1 = (logits.argmax(1) == labels).double().mean()
        assert results[name]["top1"] == pytest.approx(100 * top1.item())
        assert results[name]["nll"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
        assert results[name]["top5"] == 100.0
        assert results[name]["samples_per_second"] > 0 and results[name]["peak_memory_mb"] > 0
    assert results["student"]["params"] == sum(p.numel() for p in student.parameters())
    same = (ours.argmax(1) == theirs.argmax(1)).double().mean()
    assert results["agreement"] == pytest.approx({"agreement": 100 * same.item()})


def test_evaluate_in_half_precision_agrees_roughly(task: ImageClassificationConfig) -> None:
    student = tiny_student()
    full = transmamba.evaluate(student, task, device="cpu")["student"]
    half = transmamba.evaluate(student, task, device="cpu", precision="bf16")["student"]
    assert half["nll"] == pytest.approx(full["nll"], rel=0.05)


def test_a_teacher_or_model_of_other_classes_is_refused(task: ImageClassificationConfig) -> None:
    other = timm.create_model("vit_tiny_patch16_224", num_classes=5, **TEACHER)
    with pytest.raises(transmamba.UserError, match="teacher has 5 classes but the data has 3"):
        transmamba.evaluate(tiny_student(), task, teacher=other)
    hugging_face = tiny_hugging_face()
    hugging_face.config.num_labels = 5
    with pytest.raises(transmamba.UserError, match="model has 5 classes but the data has 3"):
        transmamba.evaluate(hugging_face, task)


def test_evaluate_takes_a_hugging_face_id(
    task: ImageClassificationConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[str] = []
    tiny_hugging_face().save_pretrained(tmp_path / "hub")

    def load(name: str, *_: Any) -> Any:
        asked.append(name)
        return tiny_hugging_face()

    monkeypatch.setattr("transmamba.ecosystems.hub.fetch", lambda repo, file, *_: tmp_path / "hub" / file)
    monkeypatch.setattr("transmamba.ecosystems.transformers.load_hugging_face", load)
    assert "top1" in transmamba.evaluate("somebody/vit", task)["student"]
    assert asked == ["somebody/vit"]
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(transmamba.UserError, match=r"config\.json: cannot be read as JSON"):
        transmamba.evaluate(tmp_path, task)


# --- runs and folders ---


def test_distill_takes_a_recipe_or_its_file(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, trainer__eval_every=0)
    save_yaml(recipe, tmp_path / "recipe.yaml")
    short = ["stages.0.steps=1", "stages.1.steps=1"]
    results = transmamba.distill(tmp_path / "recipe.yaml", *short, f"output_dir={tmp_path / 'run'}")
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == results

    for place in (tmp_path / "run", tmp_path / "run" / "student"):
        student = transmamba.load_student(place)
        assert isinstance(student, Student) and not student.training
    with pytest.raises(transmamba.UserError, match="no student there"):
        transmamba.load_student(tmp_path)


def test_a_saved_student_gives_the_same_logits(tmp_path: Path) -> None:
    student = tiny_student().eval()
    transmamba.save_student(student, tmp_path / "student")
    images = tiny_batch(2).inputs["image"]
    with torch.no_grad():
        expected = student(images)
        assert torch.equal(transmamba.load_student(tmp_path / "student")(images), expected)
        loaded = timm.create_model(f"local-dir:{tmp_path / 'student'}", pretrained=True).eval()
        assert torch.equal(loaded(images), expected)


# --- the Hub ---


class Hub(http.server.ThreadingHTTPServer):
    """A stand-in of the Hub's API: remembers the repository made and the files committed."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), HubRequest)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.token = "right"
        self.created: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.uploads: dict[str, bytes] = {}


class HubRequest(http.server.BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, status: int, body: Any) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        return content

    def do_PUT(self) -> None:
        self.server.uploads[self.path.rsplit("/", 1)[-1]] = self.body()
        self.answer(200, {})

    def do_GET(self) -> None:
        self.answer(404, {"error": f"not part of the stand-in: {self.path}"})

    def do_POST(self) -> None:
        body = self.body()
        if self.headers.get("Authorization") != f"Bearer {self.server.token}":
            self.answer(401, {"error": "Invalid credentials"})
        elif self.path.endswith("/api/repos/create"):
            self.server.created.append(json.loads(body))
            self.answer(200, {"url": f"{self.server.url}/me/model", "id": "me/model", "name": "me/model"})
        elif "/preupload/" in self.path:
            asked = json.loads(body)["files"]
            modes = {True: "lfs", False: "regular"}
            files = [
                {
                    "path": file["path"],
                    "uploadMode": modes[file["path"].endswith(".safetensors")],
                    "shouldIgnore": False,
                }
                for file in asked
            ]
            self.answer(200, {"files": files})
        elif self.path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**item, "actions": {"upload": {"href": f"{self.server.url}/upload/{item['oid']}"}}}
                for item in json.loads(body)["objects"]
            ]
            self.answer(200, {"transfer": "basic", "objects": objects})
        elif "/commit/" in self.path:
            self.commit([json.loads(line) for line in body.splitlines()])
        elif self.path.endswith("/api/validate-yaml"):
            self.answer(200, {"errors": [], "warnings": []})
        else:
            self.answer(404, {"error": f"not part of the stand-in: {self.path}"})

    def commit(self, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                self.server.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.server.files[value["path"]] = self.server.uploads[value["oid"]]
        url = f"{self.server.url}/me/model/commit/0123456789abcdef"
        self.answer(200, {"success": True, "commitOid": "0123456789abcdef", "commitUrl": url})


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    student, _ = transmamba.convert(tiny_vit(), student=NAME, **VIM)
    transmamba.save_student(student, tmp_path / "run" / "student")
    (tmp_path / "run" / "student" / "README.md").write_text("# a card\n")
    return tmp_path / "run"


def test_push_uploads_weights_config_and_card(hub: Hub, run_folder: Path) -> None:
    address = transmamba.push_to_hub(run_folder, "me/model", private=True, token="right")
    assert "me/model" in address
    assert hub.created[0]["name"] == "model" and hub.created[0]["organization"] == "me"
    folder = run_folder / "student"
    assert {"config.json", "model.safetensors", "README.md"} <= set(hub.files)
    for name, content in hub.files.items():
        assert content == (folder / name).read_bytes()


def test_push_takes_a_clip(hub: Hub, tmp_path: Path) -> None:
    """Whose weights are in open_clip_model.safetensors."""
    pytest.importorskip("open_clip")
    student, _ = transmamba.convert(tiny_clip.made(), "clip")
    transmamba.save_student(student, tmp_path / "run/student")
    transmamba.push_to_hub(tmp_path / "run", "me/model", token="right")
    assert {"open_clip_config.json", "open_clip_model.safetensors"} <= set(hub.files)


def test_push_says_in_one_line_why_the_hub_refused(hub: Hub, run_folder: Path) -> None:
    with pytest.raises(transmamba.UserError, match="'me/model' failed") as refused:
        transmamba.push_to_hub(run_folder, "me/model", token="wrong")
    assert "\n" not in str(refused.value) and "401" in str(refused.value)
    assert hub.files == {}


def test_push_says_in_one_line_that_nobody_answers(hub: Hub, run_folder: Path) -> None:
    hub.shutdown()
    hub.server_close()
    with pytest.raises(transmamba.UserError, match=r"failed: the Hugging Face Hub cannot be reached$"):
        transmamba.push_to_hub(run_folder, "me/model", token="right")


def test_push_needs_a_student_and_a_name(run_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(transmamba.UserError, match="no student there"):
        transmamba.push_to_hub(tmp_path, "me/model")
    with pytest.raises(transmamba.UserError, match="failed"):
        transmamba.push_to_hub(run_folder, "not a name")


def test_save_student_overwrites_nothing_unasked(tmp_path: Path) -> None:
    student = tiny_student()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/notes.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(transmamba.UserError, match="notes: "):
            transmamba.save_student(student, tmp_path / "notes", overwrite=overwrite)
    assert [path.name for path in (tmp_path / "notes").iterdir()] == ["notes.txt"]
    transmamba.save_student(student, tmp_path / "student")
    with pytest.raises(transmamba.UserError, match="is not empty"):
        transmamba.save_student(student, tmp_path / "student")
    transmamba.save_student(student, tmp_path / "student", overwrite=True)
