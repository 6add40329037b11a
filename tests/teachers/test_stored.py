"""A stored teacher: the same training without running it; whole, stale and torn stores."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import harness
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from transmamba.core.batch import Batch
from transmamba.core.output import Output
from transmamba.core.task import Steps
from transmamba.data.stream import load
from transmamba.distillation.distiller import Distiller
from transmamba.errors import UserError
from transmamba.losses.affinity import Affinity
from transmamba.losses.embedding_cosine import EmbeddingCosine
from transmamba.runs.build import assemble, make_accelerator
from transmamba.runs.folder import sole
from transmamba.runs.pipeline import Pipeline
from transmamba.runs.recipe import Recipe
from transmamba.teachers.fingerprint import fingerprint
from transmamba.teachers.of_module import OfModule
from transmamba.teachers.store_files import Contents, Store
from transmamba.teachers.stored import Stored, StoredBatches, StoredTeacher, rows_of
from transmamba.teachers.teacher import Teacher
from transmamba.views.view import View

ITEMS, VIEWS = 37, 3  # of the tiny recipe; its 13 steps of 8 are three epochs
LOGITS = [dict(name="distill", losses=["cross_entropy", "kl"], steps=13, lr=3e-3)]


def live(folder: Path, **changes: Any) -> Recipe:
    return harness.tiny_recipe(folder, **{"stages": LOGITS, **changes})


def stored(folder: Path, teacher: dict[str, Any] | None = None, **changes: Any) -> Recipe:
    """The same by way of folder/store, in shards of 16 rows, with the recipe's seed for its changes."""
    part = dict(name="timm_vit", model=str(folder / "teacher"))
    own = dict(name="stored", teacher=part, folder=str(folder / "store"), views=VIEWS, seed=3, shard_rows=16)
    changes = {"output_dir": str(folder / "run_stored"), **changes}
    return live(folder, teacher={**own, **(teacher or {})}, **changes)


def opened(recipe: Recipe) -> Pipeline:
    full = replace(recipe, trainer=replace(recipe.trainer, precision="no"))  # a process has one precision
    return Pipeline(assemble(recipe, make_accelerator(full), quiet=True))


def write(recipe: Recipe) -> None:
    opened(recipe)


def store_of(pipeline: Pipeline) -> Store:
    teacher = pipeline.parts.teacher
    assert isinstance(teacher, StoredTeacher) and teacher.store is not None
    return teacher.store


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a teacher and its store."""
    folder = tmp_path_factory.mktemp("written")
    write(stored(folder))
    return folder


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    """The same, to be spoilt."""
    shutil.copytree(written, tmp_path / "copy")
    return tmp_path / "copy"


def trained(recipe: Recipe) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    harness.run_quietly(recipe)
    run = Path(recipe.output_dir)
    return harness.metrics_rows(run), load_file(run / "student/model.safetensors")


# --- the same training ---


def test_a_run_logs_the_same_losses_to_the_last_bit(written: Path, tmp_path: Path) -> None:
    ours, mine = trained(stored(written, output_dir=str(tmp_path / "stored")))
    theirs, other = trained(live(written, output_dir=str(tmp_path / "live")))
    assert any("loss/kl" in row for row in ours)
    assert ours == theirs
    assert all(torch.equal(mine[name], other[name]) for name in other)


def test_an_interrupted_run_goes_on_as_the_live_one(written: Path, tmp_path: Path) -> None:
    recipe = stored(written, output_dir=str(tmp_path / "stored"))
    harness.finish(harness.start(harness.signalled, recipe, signal.SIGTERM, 7))
    assert not (tmp_path / "stored/results.json").exists()
    ours, _ = trained(recipe)
    theirs, _ = trained(live(written, output_dir=str(tmp_path / "live")))
    assert [row for row in ours if "loss" in row] == [row for row in theirs if "loss" in row]


def test_the_teacher_is_not_run_in_training(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = opened(stored(written, output_dir=str(tmp_path / "run")))
    teacher = pipeline.parts.teacher
    assert isinstance(teacher, StoredTeacher)
    assert teacher.to("meta").view.tensor.device.type == "cpu", "it goes where it is run"
    real: dict[str, Any] = {"run": View.run, "walk": View.walk}
    calls: list[str] = []
    for way in real:

        def counted(self: View, *arguments: Any, way: str = way) -> Any:
            calls.append(way)
            return real[way](self, *arguments)

        monkeypatch.setattr(View, way, counted)
    batch = next(pipeline.batches(0, 1, 0))
    teacher(batch.inputs)
    assert calls == ["run"] and teacher._running is not None, "the count works"
    (tmp_path / "run").mkdir()
    pipeline.train(tmp_path / "run", quiet=True)
    assert calls == ["run", "walk"], "once through for subcloning, never in training"
    assert teacher._running is None, "no copy of it stays on the device"


def test_hidden_tokens_serve_losses_on_features(tmp_path: Path) -> None:
    stages = [dict(name="distill", losses=["kl", "feature", "bidirectional"], steps=6, lr=3e-3)]
    more = dict(stages=stages, init=None)
    theirs, other = trained(live(tmp_path, **more))
    ours, mine = trained(stored(tmp_path, dict(hidden=dict(image=[0, 1, 2, 3])), **more))
    assert ours == theirs and any("loss/feature" in row for row in ours)
    assert all(torch.equal(mine[name], other[name]) for name in other)


def test_a_folded_teacher_s_rows_are_those_of_the_unfolded(written: Path, tmp_path: Path) -> None:
    student = dict(name="ssd_vit", model="ssd_vit_micro_patch2_8", kwargs=harness.TEACHER)
    more = dict(student=student, init=dict(layers="all", importance="uniform", fold=True))
    ours, _ = trained(stored(written, output_dir=str(tmp_path / "stored"), **more))
    theirs, _ = trained(live(written, output_dir=str(tmp_path / "live"), **more))
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.pop("stage_name", "") == other.pop("stage_name", "")
        assert mine == pytest.approx(other, rel=1e-3, abs=1e-4)


def test_half_precision_is_near_and_half_as_large(written: Path, tmp_path: Path) -> None:
    shutil.copytree(written / "teacher", tmp_path / "teacher")
    half = store_of(opened(stored(tmp_path, dict(dtype="float16"))))
    whole = store_of(opened(stored(written)))
    assert half.contents.bytes * 2 == whole.contents.bytes
    everything = np.arange(ITEMS, dtype=np.int64)
    one, two = (each.read(0 * everything, everything)["logits"] for each in (half, whole))
    assert one.dtype == torch.float16 and not torch.equal(one.float(), two)
    torch.testing.assert_close(one.float(), two, rtol=2**-11, atol=2**-24)


# --- rows and views ---


def test_rows_are_the_teacher_s_outputs_of_the_very_batches(written: Path) -> None:
    """Any order, both ends, a view of another epoch; by data workers too."""
    pipeline = opened(stored(written))
    teacher, task, store = pipeline.parts.teacher, pipeline.parts.task, store_of(pipeline)
    assert isinstance(teacher, StoredTeacher)
    batches = StoredBatches(task.train_source(3), store)
    pairs = np.array([[0, 36], [4, 0], [2, 17], [1, 36], [0, 5]])
    for batch in (batches.batch(pairs), next(load(_Slow(batches), [pairs], 5, workers=1))):
        found = teacher.answer(batch).logits
        assert found is not None
        real = harness.tiny_vit()
        torch.testing.assert_close(found(), real(batch.inputs["image"]), rtol=1e-5, atol=1e-5)
    plain = task.train_source(3).batch(np.array([[0, 36], [1, 0], [2, 17], [1, 36], [0, 5]]))
    assert torch.equal(batch.inputs["image"], plain.inputs["image"])
    assert torch.equal(batch.index, plain.index)


class _Slow:
    """Too slow for the process itself, so that workers make the batches."""

    def __init__(self, source: StoredBatches) -> None:
        self.source, self.batch = source, source.batch

    def quick(self, count: int) -> bool:
        return False


def test_views_repeat_and_differ(written: Path) -> None:
    """Epoch e is changed as epoch e modulo views, in an order of its own."""
    pipeline = opened(stored(written, trainer__global_batch=ITEMS, trainer__micro_batch=ITEMS))
    epochs = [_sorted(batch) for batch in pipeline.batches(0, 2 * VIEWS + 1, 0)]
    for e, batch in enumerate(epochs):
        for other in range(e):
            same = torch.equal(batch.inputs["image"], epochs[other].inputs["image"])
            assert same == ((e - other) % VIEWS == 0), (e, other)
            assert same == torch.equal(
                batch.targets["teacher/logits"], epochs[other].targets["teacher/logits"]
            )
    orders = [batch.index.tolist() for batch in pipeline.batches(0, VIEWS + 1, 0)]
    assert orders[0] != orders[VIEWS]


def _sorted(batch: Batch) -> Batch:
    order = batch.index.argsort()
    return batch.map(lambda tensor: tensor[order])


def test_the_task_s_own_stream_is_that_of_its_source(written: Path) -> None:
    from transmamba.data.stream import train_stream

    task = opened(live(written)).parts.task
    steps = Steps(micro_batch=4, accumulation=2, seed=3, start_step=4, num_steps=3)
    ours, theirs = train_stream(task.train_source(3), ITEMS, steps), task.train_batches(steps)
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.equal(mine.inputs["image"], other.inputs["image"])


# --- interrupted, torn, stale ---


def killed_in(recipe: Recipe, shard: int) -> None:
    """Writes, and is killed when a shard has half of its rows."""
    real = Store.write

    def watched(self: Store, number: int, chunks: Iterator[Any]) -> None:
        def some() -> Iterator[Any]:
            for count, chunk in enumerate(chunks):
                if number == shard and count == 2:
                    os.kill(os.getpid(), signal.SIGKILL)
                yield chunk

        real(self, number, some())

    Store.write = watched  # type: ignore[method-assign]
    write(recipe)


def test_a_killed_writing_goes_on_and_is_the_same(written: Path, tmp_path: Path) -> None:
    shutil.copytree(written / "teacher", tmp_path / "teacher")
    recipe = stored(tmp_path)
    for shard in (0, 4):
        process = harness.start(killed_in, recipe, shard)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        found = Store.open(tmp_path / "store")
        assert found is not None and found.missing() == list(range(shard, 7))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "store").glob("logits-0000[0-3].npy")}
    write(recipe)
    assert files(tmp_path / "store") == _moved(files(written / "store"), written, tmp_path)
    assert before and all(path.stat().st_mtime_ns == time for path, time in before.items())


def _moved(there: dict[str, bytes], old: Path, new: Path) -> dict[str, bytes]:
    """store.json names the teacher by its folder."""
    return {**there, "store.json": there["store.json"].replace(str(old).encode(), str(new).encode())}


def test_two_processes_write_what_one_does(written: Path, tmp_path: Path) -> None:
    shutil.copytree(written / "teacher", tmp_path / "teacher")
    harness.in_ranks(2, write, stored(tmp_path))
    assert files(tmp_path / "store") == _moved(files(written / "store"), written, tmp_path)


def write_late(recipe: Recipe) -> None:
    """Rank 1 comes to look at the store when rank 0 could long have begun it."""
    look = Store.open

    def late(folder: Path) -> Store | None:
        if os.environ.get("RANK") == "1":
            time.sleep(1.5)
        return look(folder)

    Store.open = late  # type: ignore[method-assign, assignment]
    write(recipe)


def test_a_late_process_sees_what_the_others_saw(written: Path, tmp_path: Path) -> None:
    """All look before one begins: else they would wait for each other in different places."""
    shutil.copytree(written / "teacher", tmp_path / "teacher")
    harness.in_ranks(2, write_late, stored(tmp_path))
    assert files(tmp_path / "store") == _moved(files(written / "store"), written, tmp_path)


def refused_at_the_door(recipe: Recipe) -> None:
    with pytest.raises(UserError, match=r"store '.*' is in use by another process"):
        write(recipe)


def test_two_runs_do_not_write_one_store(folder: Path) -> None:
    (folder / "store/shard-00002.json").unlink()
    with sole(folder / "store", "store"):
        harness.finish(harness.start(refused_at_the_door, stored(folder)))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


TORN: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "cut": ("logits-00002.npy", cut, "has 319 bytes, not 320; remove .*shard-00002.json to have"),
    "flipped": ("logits-00006.npy", flip, "checksum differs; remove .*shard-00006.json to have"),
    "gone": ("logits-00001.npy", Path.unlink, "is missing; remove .*shard-00001.json to have"),
    "manifest": ("shard-00003.json", cut, "shard-00003.json cannot be read"),
    "head": ("store.json", cut, "store.json cannot be read .*remove the folder"),
}


@pytest.mark.parametrize("kind", TORN)
def test_a_torn_store_is_refused(folder: Path, kind: str) -> None:
    name, spoil, message = TORN[kind]
    spoil(folder / "store" / name)
    with pytest.raises(UserError, match=message) as told:
        write(stored(folder))
    assert "\n" not in str(told.value)


def test_the_advice_for_a_torn_shard_mends_it(folder: Path) -> None:
    whole = files(folder / "store")
    flip(folder / "store/logits-00002.npy")
    (folder / "store/shard-00002.json").unlink()
    write(stored(folder))
    assert {**files(folder / "store"), "store.json": b""} == {**whole, "store.json": b""}


def retrained(folder: Path) -> Recipe:
    path = folder / "teacher/model.safetensors"
    state = load_file(path)
    state["blocks.1.mlp.fc2.bias"][0] += 1e-3
    save_file(state, path)
    return stored(folder)


def resized(folder: Path) -> Recipe:
    path = folder / "teacher/config.json"
    config = json.loads(path.read_text())
    config["pretrained_cfg"]["mean"] = [0.4, 0.4, 0.4]
    path.write_text(json.dumps(config))
    return stored(folder)


STALE: dict[str, tuple[Callable[[Path], Recipe], str]] = {
    "weights": (retrained, r"teacher: \w+ there, \w+ here"),
    "preprocessing": (resized, r"preprocessing.mean.0: 0.5 there, 0.4 here"),
    "augment": (lambda f: stored(f, task__augment=dict(hflip=True)), "augment.crop_padding: 1 there, 0 here"),
    "seed": (lambda f: stored(f, dict(seed=4)), "seed: 3 there, 4 here"),
    "views": (lambda f: stored(f, dict(views=2)), "views: 3 there, 2 here"),
    "dtype": (lambda f: stored(f, dict(dtype="float16")), "dtype: float32 there, float16 here"),
    "hidden": (lambda f: stored(f, dict(hidden=dict(image=[3]))), r"hidden.image: None there, \[3\] here"),
    "data": (lambda f: stored(f, task__data__seed=1), r"items: \w+ there, \w+ here"),
    "fewer": (lambda f: stored(f, task__fraction=0.5), r"num_items: 37 there, 18 here"),
    "half": (lambda f: stored(f, trainer__precision="bf16"), "precision: no there, bf16 here"),
}


@pytest.mark.parametrize("kind", STALE)
def test_a_stale_store_is_refused(folder: Path, kind: str) -> None:
    change, message = STALE[kind]
    with pytest.raises(UserError, match=f"is stale .*{message}.*another teacher.folder") as told:
        write(change(folder))
    assert "\n" not in str(told.value)


def test_what_changes_no_row_is_no_other_store(folder: Path) -> None:
    """Another place, size of batches and of shards, order, student."""
    moved = folder.parent / "moved"
    folder.rename(moved)
    before = files(moved / "store")
    write(stored(moved, dict(shard_rows=5), seed=8, trainer__micro_batch=2, trainer__eval_batch_size=3))
    assert files(moved / "store") == before


# --- refused ---


@pytest.mark.parametrize("key", ["mixup", "cutmix"])
def test_mixed_images_are_refused(folder: Path, key: str) -> None:
    with pytest.raises(UserError, match=r"mixes its batches .*write task.mixup=0 and task.cutmix=0"):
        write(stored(folder, **{f"task__{key}": 0.8}))


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ("mixer", "loss mixer reads what is inside the teacher's layers, which is not stored"),
        ("feature", r"loss feature reads .* image tokens after sublayers 1, 3, .*hidden=\{image: \[1, 3\]\}"),
    ],
)
def test_a_loss_on_what_is_not_stored_is_refused(folder: Path, loss: str, message: str) -> None:
    recipe = stored(folder, stages=[dict(name="one", losses=["kl", loss], steps=2, lr=1e-3)])
    with pytest.raises(UserError, match=message):
        harness.run_quietly(recipe)
    assert not (Path(recipe.output_dir) / "checkpoints").exists(), "before training"


def test_wrong_configurations_are_told(written: Path, tmp_path: Path) -> None:
    shutil.copytree(written / "teacher", tmp_path / "teacher")
    with pytest.raises(UserError, match=r"image has no sublayer 4; write numbers from 0 to 3"):
        write(stored(written, dict(hidden=dict(image=[4]))))
    with pytest.raises(UserError, match=r"the teacher has no 'imgae'; did you mean 'image'"):
        write(stored(written, dict(hidden=dict(imgae=[1]))))
    folding = dict(init=dict(layers="all", importance="uniform", fold=True))
    with pytest.raises(UserError, match=r"init\.fold changes the tokens that teacher\.hidden stores"):
        opened(stored(tmp_path, dict(hidden=dict(image=[3])), **folding))
    assert not (tmp_path / "store").exists()
    with pytest.raises(UserError, match=r"teacher\.views: 0; write at least 1"):
        stored(written, dict(views=0))
    with pytest.raises(UserError, match="teacher_placement is sharded"):
        build = stored(written).teacher.build()
        build.placed("sharded", "cpu")


def test_a_task_that_cannot_tell_items_apart_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transmamba.tasks.image_classification import ImageClassification

    monkeypatch.delattr(ImageClassification, "train_source")
    with pytest.raises(UserError, match="ImageClassification cannot tell its training items apart"):
        write(stored(folder))


def test_a_batch_without_rows_is_refused(written: Path) -> None:
    teacher = opened(stored(written)).parts.teacher
    with pytest.raises(UserError, match="this one has classes"):
        Distiller(harness.tiny_student(), teacher, ("kl",)).loss(harness.tiny_batch(2))


def test_numbers_that_do_not_fit_are_refused() -> None:
    batch = harness.tiny_batch(3)
    large = Output(embeddings={"image": torch.tensor([[1.0], [1e5], [1.0]])})
    assert rows_of(large, batch, "float32")["image"].tolist() == [[1.0], [1e5], [1.0]]
    with pytest.raises(
        UserError, match=r"image of item 1 is not finite in float16; write teacher.dtype=float32"
    ):
        rows_of(large, batch, "float16")
    with pytest.raises(UserError, match="neither logits nor embeddings"):
        rows_of(Output(), batch, "float32")
    with pytest.raises(UserError, match="image has 2 rows for 3 items"):
        rows_of(Output(embeddings={"image": torch.ones(2, 4)}), batch, "float32")


def test_a_full_disk_leaves_whole_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = Contents(
        identity={}, source="t", num_items=5, views=1, dtype="float32", arrays={"image": (2,)}, shard_rows=3
    )
    store = Store.create(tmp_path, contents)
    rows = np.arange(10, dtype=np.float32).reshape(5, 2)
    store.write(0, [{"image": rows[:2]}, {"image": rows[2:3]}])

    def full() -> Iterator[dict[str, Any]]:
        yield {"image": rows[3:4]}
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="no space left to write shard 1; those before it are whole"):
        store.write(1, full())
    assert store.missing() == [1] and not list(tmp_path.glob("*.partial"))
    store.write(1, [{"image": rows[3:]}])
    found = pickle.loads(pickle.dumps(store)).read(np.zeros(2, dtype=np.int64), np.array([4, 0]))
    assert found["image"].tolist() == rows[[4, 0]].tolist()
    with pytest.raises(UserError, match=r"takes [\d,.]+ GB, its disk has"):
        Store.create(tmp_path / "large", replace(contents, num_items=10**15))


# --- pairs of image and text ---

PAIRS = 12


class PairItems:
    """Pictures and texts that a pair's number determines. Storable."""

    def quick(self, count: int) -> bool:
        return True

    def identity(self) -> dict[str, Any]:
        return {}

    def batch(self, pairs: np.ndarray) -> Batch:
        draws = [torch.Generator().manual_seed(int(view * PAIRS + place)) for view, place in pairs]
        images = torch.stack([torch.randn(3, 16, 16, generator=draw) for draw in draws])
        text = torch.stack([torch.randint(1, 110, (9,), generator=draw) for draw in draws])
        text[:, -1] = 119
        counts = {"samples": len(pairs), "pairs": len(pairs)}
        return Batch({"image": images, "text": text}, {}, torch.from_numpy(pairs[:, 1]), counts)


class PairStudent(nn.Module):
    """Linear towers. A `Student` as far as losses over embeddings go."""

    def __init__(self, width: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image, self.text = nn.Linear(3 * 16 * 16, width), nn.Linear(9, width)
        self.scale = nn.Parameter(torch.tensor(3.0))
        self.towers: dict[str, Any] = {}

    def run(self, inputs: Any, captures: Any) -> Output:
        made = {"image": self.image(inputs["image"].flatten(1)), "text": self.text(inputs["text"] / 60)}
        return Output(
            embeddings={name: F.normalize(x, dim=-1) for name, x in made.items()},
            scalars={"scale": self.scale.exp()},
        )

    def plan(self, view: Any, select: Any) -> Iterator[Any]:
        return iter(())

    def groups(self) -> dict[str, Any]:
        return {}

    def units(self) -> list[nn.Module]:
        return []


def clip() -> nn.Module:
    open_clip = pytest.importorskip("open_clip")
    torch.manual_seed(1)
    text = dict(context_length=9, vocab_size=120, width=24, heads=3, layers=1)
    vision = dict(layers=1, width=32, head_width=8, patch_size=4, image_size=16)
    return open_clip.model.CLIP(embed_dim=24, vision_cfg=vision, text_cfg=text).eval()


def stored_clip(folder: Path, dtype: str) -> tuple[Teacher, StoredTeacher]:
    """A dual encoder, and the same stored by hand, one view in shards of 5."""
    from transmamba import adapt_teacher

    teacher = adapt_teacher(clip())
    items, every = PairItems(), np.stack([np.zeros(PAIRS, int), np.arange(PAIRS)], axis=1)
    made = rows_of(teacher(items.batch(every).inputs), items.batch(every), dtype)
    shapes = {name: row.shape[1:] for name, row in made.items()}
    assert shapes == {"image": (24,), "text": (24,)}
    contents = Contents(
        identity={}, source="t", num_items=PAIRS, views=1, dtype=dtype, arrays=shapes, shard_rows=5
    )
    store = Store.create(folder, contents)
    for shard in range(store.num_shards):
        store.write(shard, [{name: row[list(store.shard_of(shard))] for name, row in made.items()}])
    config = Stored(teacher=None, folder=str(folder), dtype=dtype)  # type: ignore[arg-type]
    return teacher, StoredTeacher(teacher, config).with_store(store)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_losses_over_embeddings_are_the_same(tmp_path: Path, dtype: str) -> None:
    """To the last bit in float32, the teacher's scale included; in float16 to its three digits."""
    teacher, kept = stored_clip(tmp_path / "store", dtype)
    assert kept.store is not None
    order = np.stack([np.full(PAIRS, 4), np.random.default_rng(0).permutation(PAIRS)], axis=1)
    batch = StoredBatches(PairItems(), kept.store).batch(order)
    plain = PairItems().batch(order % [1, PAIRS])
    assert torch.equal(batch.inputs["image"], plain.inputs["image"])
    found = []
    for each, taken in ((teacher, plain), (kept, batch)):
        student = PairStudent(24)
        distiller = Distiller(student, each, (Affinity(), EmbeddingCosine(), EmbeddingCosine(tower="image")))
        total, parts = distiller.loss(taken)
        total.backward()
        found.append((parts, [p.grad for p in student.parameters() if p.grad is not None]))
    (theirs, theirs_grad), (ours, ours_grad) = found
    if dtype == "float32":
        assert ours == theirs
        assert all(torch.equal(a, b) for a, b in zip(ours_grad, theirs_grad, strict=True))
    else:
        assert ours != theirs and ours == pytest.approx(theirs, rel=2e-3)


# --- fingerprints ---


def test_a_fingerprint_is_of_numbers_and_architecture() -> None:
    teacher = harness.tiny_teacher()
    mine = fingerprint(teacher.view)
    assert mine == fingerprint(harness.tiny_teacher().view)
    assert mine == fingerprint(teacher.placed("offloaded", "cpu").view)
    assert mine != fingerprint(teacher.fold().view)
    tower = teacher.view.towers["image"]
    first = tower.sublayers[0]
    other = replace(tower, sublayers=(replace(first, heads=1), *tower.sublayers[1:]))  # type: ignore[call-arg]
    assert mine != fingerprint(replace(teacher.view, towers={"image": other}))
    act = replace(tower.sublayers[1], act=F.relu)  # type: ignore[call-arg]
    other = replace(tower, sublayers=(first, act, *tower.sublayers[2:]))
    assert mine != fingerprint(replace(teacher.view, towers={"image": other}))


def fingerprint_to(path: Path) -> None:
    path.write_text(fingerprint(_described(clip()).view))


def _described(module: nn.Module) -> Teacher:
    from transmamba.teachers.open_clip import OpenClip

    assert issubclass(OpenClip, OfModule)
    return OpenClip.describe(module, source="clip")


def test_a_fingerprint_is_the_same_in_another_process(tmp_path: Path) -> None:
    harness.finish(harness.start(fingerprint_to, tmp_path / "there"))
    assert (tmp_path / "there").read_text() == fingerprint(_described(clip()).view)
