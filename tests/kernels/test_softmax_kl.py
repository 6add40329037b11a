"""The divergence of two softmaxes against torch.distributions in float64, and against differences."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, kl_divergence
from transmamba_kernels import softmax_kl


def logits(rows: int, words: int, seed: int = 0, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    made, wanted = (scale * torch.randn(rows, words, generator=generator, dtype=torch.float64) for _ in "ab")
    return made, wanted + 5


def truth(made: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    return kl_divergence(Categorical(logits=wanted / temperature), Categorical(logits=made / temperature))


@pytest.mark.parametrize("path", ["cpu", "reference"])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_it_is_that_of_torch_s_distributions(path, temperature, monkeypatch):
    monkeypatch.setenv("TRANSMAMBA_KERNELS", path)
    made, wanted = logits(5, 37)
    torch.testing.assert_close(
        softmax_kl(made, wanted, temperature), truth(made, wanted, temperature), rtol=1e-12, atol=1e-12
    )
    assert softmax_kl(made.bfloat16(), wanted.bfloat16()).dtype == torch.float32


def test_its_gradient_is_that_of_differences():
    made, wanted = logits(3, 11)
    torch.autograd.gradcheck(lambda x: softmax_kl(x, wanted, 1.5), made.requires_grad_())


def test_a_word_that_the_teacher_never_says_adds_nothing():
    made, wanted = logits(2, 9)
    wanted[:, 4], made[1, 4] = -torch.inf, -torch.inf
    kept = [i for i in range(9) if i != 4]
    found = softmax_kl(made.requires_grad_(), wanted)
    assert softmax_kl(made, wanted)[0] > truth(made[:, kept], wanted[:, kept], 1.0)[0]  # the student says it
    torch.testing.assert_close(found[1], truth(made[:, kept], wanted[:, kept], 1.0)[1])
    found.sum().backward()
    assert made.grad.isfinite().all()


def test_what_the_student_alone_never_says_is_infinitely_far():
    made, wanted = logits(2, 9)
    made[0, 3] = -torch.inf
    assert softmax_kl(made, wanted).isinf().tolist() == [True, False]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"teacher": torch.zeros(2, 4)}, "expected"),
        ({"student": torch.zeros(2, 3, dtype=torch.int64)}, "dtype"),
        ({"teacher": torch.zeros(2, 3, requires_grad=True)}, "detach"),
        ({"temperature": 0.0}, "temperature: 0.0"),
        ({"temperature": float("nan")}, "temperature"),
        ({"student": torch.zeros(6)}, "(N, V)"),
    ],
)
def test_what_does_not_fit_is_refused(change, word):
    arguments = {"student": torch.zeros(2, 3), "teacher": torch.zeros(2, 3)} | change
    with pytest.raises(ValueError, match=word.replace("(", r"\(").replace(")", r"\)")):
        softmax_kl(**arguments)


def test_no_rows_give_no_divergences():
    assert softmax_kl(torch.zeros(0, 7), torch.zeros(0, 7)).shape == (0,)
