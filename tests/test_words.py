"""One meaning for each word: on floats that of IEEE 754, on tensors that of the floats."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from runs import arguments, name

from weightdecay.backends import eager
from weightdecay.update_rules import ops

NUMPY = {
    "absolute": np.abs,
    "sign": np.sign,
    "sqrt": np.sqrt,
    "exp": np.exp,
    "log": np.log,
    "power": np.power,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "where": np.where,
    "debias": lambda beta, t: -np.expm1(t * np.log(beta)),
}
every_word = pytest.mark.parametrize("word", ops.WORDS)
every_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=name)


def assert_equal(word, got, expected, ulp):
    """Compare with NaN equal to NaN and 0 to −0, exactly but for the words that a library approximates (torch a root, too)."""
    loose = {"sqrt": 1, "exp": 4, "log": 4, "power": 4, "debias": 64}.get(word, 0) * ulp
    np.testing.assert_allclose(got, expected, rtol=loose, atol=0 if not loose else 4 * 5e-324, equal_nan=True)


@every_word
def test_on_floats_a_word_is_what_ieee_754_says(word):
    """Never an exception either, of which Python's own functions have many: `where` computes both of its sides."""
    function = getattr(ops, word)
    with np.errstate(all="ignore"):
        for values in arguments(word):
            assert_equal(word, float(function(*values)), NUMPY[word](*(np.float64(value) for value in values)), 2.0**-52)


@every_word
def test_a_word_has_a_sentence(word):
    assert getattr(ops, word).__doc__.startswith("Return ")


@every_dtype
def test_the_eager_backend_has_every_word_and_no_other(dtype):
    assert set(eager.vocabulary(dtype)) == set(ops.WORDS)


@every_dtype
@every_word
def test_on_tensors_a_word_is_what_it_is_on_floats(word, dtype):
    values = arguments(word, dtype)
    first, *rest = (list(column) for column in zip(*values, strict=True))
    first = torch.tensor(first, dtype=torch.bool if word == "where" else dtype)
    got = eager.vocabulary(dtype)[word](first, *(torch.tensor(column, dtype=dtype) for column in rest))
    expected = torch.tensor([getattr(ops, word)(*row) for row in values], dtype=torch.float64).to(dtype)
    assert got.dtype == dtype
    assert_equal(word, got.numpy(), expected.numpy(), torch.finfo(dtype).eps)


@every_dtype
@every_word
def test_on_numbers_a_word_of_the_eager_backend_stays_what_it_is(word, dtype):
    """A rule computes 1 − ηλ before it meets a tensor: in Python, in double precision."""
    for values in arguments(word)[::7]:
        got, expected = eager.vocabulary(dtype)[word](*values), getattr(ops, word)(*values)
        assert type(got) is type(expected)
        assert got == expected or (math.isnan(got) and math.isnan(expected))


@every_dtype
@every_word
def test_a_number_among_tensors_takes_their_dtype(word, dtype):
    """Whole numbers too, in every place: where(t > 1, 1, 2) is no int64, and no float64 among float32."""
    ordinary = {"where": (True, 2, 3.5), "debias": (0.5, 3)}.get(word, (2, 3)[: len(arguments(word)[0])])
    for tensors in itertools.product([False, True], repeat=len(ordinary)):
        if any(tensors):
            given = [
                torch.tensor([value], dtype=torch.bool if isinstance(value, bool) else dtype) if lift else value
                for value, lift in zip(ordinary, tensors, strict=True)
            ]
            got = eager.vocabulary(dtype)[word](*given)
            if isinstance(got, torch.Tensor):
                assert got.dtype == dtype
            assert float(got) == pytest.approx(getattr(ops, word)(*ordinary), rel=1e-6)


@given(x=st.floats(), y=st.floats())
def test_where_takes_one_side_whatever_the_other_is(x, y):
    read = eager.vocabulary(torch.float64)["where"]
    for condition, expected in ((True, x), (False, y)):
        got = read(torch.tensor(condition), x, y).item()
        assert got == expected or (math.isnan(got) and math.isnan(expected))


@pytest.mark.parametrize("kind", ["number", "tensor"])
@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9, 0.999, 0.99999])
def test_debias_keeps_its_digits_in_float32(beta, kind):
    """A capturable optimizer counts its steps in float32, where neither 1 − βᵗ nor the logarithm of float32(β) has them."""
    t = torch.tensor([1.0, 2, 3, 10, 100, 1e3, 1e4, 1e5, 1e6])
    if kind == "tensor":
        beta = torch.tensor(beta)
    exact = -torch.expm1(t.double() * math.log(beta)) if beta else torch.ones(9, dtype=torch.float64)
    got = eager.vocabulary(torch.float32)["debias"](beta, t)
    assert got.dtype == torch.float32
    assert ((got.double() - exact) / exact).abs().max() < 1e-6
