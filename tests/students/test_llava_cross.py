"""Cross-Mamba in a LLaVA's student: what its pictures read of a text, and the class that it is saved as."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import fresh_process
import pytest
import torch
from asked import Asked
from llavas import ALONE, MARK, batch, crossed, llava, loud, made_by, make, moved, relative, seen, together
from small_llava import llava_folder
from torch.utils.flop_counter import FlopCounterMode

from transmamba import UserError, load_student, load_teacher, save_student
from transmamba.layers.cross_mamba import CrossMambaConfig, cross_mamba
from transmamba.students.hybrid_lm.own.cross_transmamba import CrossMamba, prompt_of
from transmamba.students.llava.model import LlavaStudent

MODES = ("state", "prefix", "reported")
# where it stands, and in which tower
PLACES: dict[str, dict[str, Any]] = {
    "before the connector, kept": dict(every=None),
    "every layer, kept": dict(every=1),
    "every second layer, vim": dict(every=2, image={"kind": "vim"}),
    "every layer, ssd_vit": dict(every=1, image={"kind": "ssd_vit"}),
}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("mode", MODES)
def test_at_the_start_it_is_bit_for_bit_the_model_without_it(mode: str, place: dict[str, Any]) -> None:
    student = crossed(mode, **place)
    inputs = together()
    made = made_by(student, inputs)
    student.cross = None
    assert torch.equal(made, made_by(student, inputs))


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("mode", MODES)
def test_the_prompt_alone_is_read(mode: str, place: dict[str, Any]) -> None:
    """Other answers, other padding, none of it: every visual feature is as it was; another question's are
    not."""
    student, inputs = moved(crossed(mode, **place)), together()
    features = seen(student, inputs)
    prompt, text = inputs["prompt_mask"], inputs["text"]
    answers = torch.where(prompt | (text == MARK), text, (text + 11) % MARK)
    assert (answers != text).any(dim=1).all()
    assert torch.equal(seen(student, {**inputs, "text": answers}), features)
    assert torch.equal(seen(student, together(left=False)), features)
    assert torch.equal(seen(student, {**inputs, "prompt_mask": prompt | (text == MARK)}), features)
    asked = torch.where(prompt, (text + 11) % MARK, text)
    changed = (seen(student, {**inputs, "text": asked}) - features).abs().amax(dim=(1, 2))
    assert (changed > 1e-3).all()


def test_a_row_s_pictures_read_its_own_prompt() -> None:
    student, inputs = moved(crossed()), together()
    text = inputs["text"].clone()
    text[2] = torch.where(inputs["prompt_mask"][2], (text[2] + 11) % MARK, text[2])
    changed = (seen(student, {**inputs, "text": text}) != seen(student, inputs)).flatten(1).any(dim=1)
    assert changed.tolist() == [False, True, True]


def test_a_batch_s_prompts_are_cut_out_once() -> None:
    """By a student of two modules and by its class, which ask the device no oftener than of one."""
    inputs, found = together(), []
    for every in (2, 1):
        student = moved(crossed(every=every))
        assert student.cross is not None and len(student.cross.modules_at) == 2 // every
        for model in (student, student.stock()):
            more = {} if model is student else {"prompt_mask": inputs["prompt_mask"]}
            with Asked() as asked:
                made_by(model, inputs, **more)
            counts = asked.counts["sort"], asked.counts["_local_scalar_dense"], asked.counts["item"]
            found.append(counts)
    assert found[0] == found[2] and found[1] == found[3] and found[0][0] == found[1][0] == 1


def test_a_batch_that_does_not_say_its_prompt_is_refused() -> None:
    inputs = together()
    del inputs["prompt_mask"]
    with pytest.raises(UserError, match="no prompt_mask that says which words it is"):
        crossed().run(inputs)
    blind = {name: inputs[name][1:2] for name in ("text", "text_mask")}
    assert crossed().run(blind).logits is not None, "nothing reads it without pictures"


@pytest.mark.parametrize("mode", MODES)
def test_its_cost_is_linear_in_words_and_in_tokens(mode: str) -> None:
    module = cross_mamba(16, 8, CrossMambaConfig(mode=mode, num_heads=2, state_size=4))  # type: ignore[arg-type]
    plain = CrossMamba(16, 8, dict(vars(module.config)))

    def cost(tokens: int, words: int) -> int:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            mask = torch.ones(1, words, dtype=torch.bool)
            plain(torch.randn(1, tokens, 16), *prompt_of(torch.randn(1, words, 8), mask))
        return counter.get_total_flops()

    base, more = 256, 512  # whole chunks
    least = cost(base, base)
    assert cost(more, more) == pytest.approx(2 * least, rel=0.05)
    assert cost(more, base) - least == pytest.approx(cost(more + base, base) - cost(more, base), rel=0.05)


@pytest.mark.parametrize(("mode", "taps"), [*itertools.product(MODES, (1, 4)), ("film", 1), ("attention", 1)])
def test_the_plain_class_is_the_layer(mode: str, taps: int) -> None:
    """Prompts of five words, two and none, in texts of nine."""
    config = CrossMambaConfig(mode=mode, num_heads=2, state_size=4, width=12, conv_kernel=taps)  # type: ignore[arg-type]
    torch.manual_seed(0)
    layer = cross_mamba(16, 8, config)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    plain = CrossMamba(16, 8, dict(vars(config)))
    plain.load_state_dict(layer.state_dict(), strict=True)
    mask = torch.zeros(3, 9, dtype=torch.bool)
    mask[0, [0, 3, 4, 6, 8]] = mask[1, 2:4] = True
    vision, words = torch.randn(3, 7, 16), torch.randn(3, 9, 8)
    with torch.no_grad():
        made = plain(vision, *prompt_of(words, mask))
    assert relative(made, layer(vision, words, mask).detach()) < 1e-5


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("mode", MODES)
def test_the_class_of_its_own_holds_its_tensors(mode: str, place: dict[str, Any]) -> None:
    student, inputs = moved(crossed(mode, **place)), together()
    stock, mask = student.stock(), inputs["text_mask"]
    made = made_by(student, inputs)
    assert relative(made_by(stock, inputs, prompt_mask=inputs["prompt_mask"])[mask], made[mask]) < 1e-5
    # labels say it too: what stands before the first that is asked
    labels = torch.where(mask & ~inputs["prompt_mask"] & (inputs["text"] != MARK), inputs["text"], -100)
    assert relative(made_by(stock, inputs, labels=labels)[mask], made[mask]) < 1e-5
    with pytest.raises(ValueError, match="write prompt_mask"):
        made_by(stock, inputs)


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_it_writes_alike_with_and_without_cache_and_other_rows(place: dict[str, Any]) -> None:
    """Without a cache all is read again with each word, which no picture may see."""
    student, inputs = loud(moved(crossed("state", **place))), together()
    stock, length = student.stock(), inputs["text"].shape[1]
    stock.generation_config.eos_token_id = None
    given = dict(
        input_ids=inputs["text"], attention_mask=inputs["text_mask"].long(), pixel_values=inputs["image"]
    )
    options: Any = dict(max_new_tokens=8, do_sample=False, pad_token_id=0)
    written = stock.generate(**given, **options)
    assert torch.equal(written, stock.generate(**given, **options, use_cache=False))
    alone = inputs["text"][2][inputs["text_mask"][2]][None]
    row = stock.generate(input_ids=alone, pixel_values=inputs["image"][1:], **options)
    assert torch.equal(row[:, -8:], written[2:, -8:])
    part = stock.generate(**given, **options, prompt_mask=inputs["prompt_mask"])
    prompt = {**inputs, "prompt_mask": inputs["text_mask"] & (inputs["text"] != MARK)}
    student.language_model.config.eos_token_id = student.config.text_config.eos_token_id = None
    assert torch.equal(student.generate(prompt, 8), written[:, length:])
    assert torch.equal(student.generate(inputs, 8), part[:, length:])
    assert not torch.equal(part, written), "two words less are another prompt"


def test_a_process_without_us_loads_it_with_its_own_code(tmp_path: Path) -> None:
    teacher = load_teacher(llava_folder(tmp_path / "teacher"))
    student, folder = moved(llava(teacher, cross={"num_heads": 2})), tmp_path / "student"
    save_student(student, folder)
    mark = student.config.image_token_id
    text = torch.tensor([[5, *[mark] * 4, 9, 11, 13]])
    image = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    prompt = torch.tensor([[1, 0, 0, 0, 0, 1, 1, 0]]).bool()
    torch.save(dict(input_ids=text, pixel_values=image, prompt_mask=prompt), tmp_path / "given.pt")
    done = fresh_process.run(ALONE, tmp_path / "given.pt", folder)
    assert done.returncode == 0, done.stderr[-2000:]
    wanted = made_by(student, {"text": text, "image": image, "prompt_mask": prompt})
    assert relative(torch.load(folder / "logits.pt"), wanted) < 1e-5
    again = load_student(folder)
    assert (
        isinstance(again, LlavaStudent)
        and again.reads == student.reads
        and again.beside.processor is not None
    )
    assert torch.equal(made_by(again, {"text": text, "image": image, "prompt_mask": prompt}), wanted)


def test_it_is_trained_by_what_is_answered() -> None:
    from transmamba import adapt_teacher
    from transmamba.distillation.distiller import Distiller

    student = crossed().train()
    distiller = Distiller(student, adapt_teacher(make()), ["cross_entropy"])
    loss, _ = distiller.loss(batch(together(left=False)))
    loss.backward()
    assert student.cross is not None
    assert all(bool(module.scale.grad) for module in student.cross.modules_at)  # type: ignore[arg-type]
