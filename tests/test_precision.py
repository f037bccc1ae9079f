"""bfloat16 and float16: what reaches the weights, how it is rounded, and that float32 arithmetic is all that came before."""

import itertools
import math

import pytest
import torch
from torch.nn import Parameter
from training import COMBINATIONS, all_params, bits, copies, noise, parameters, set_gradients, train

import weightdecay as wd
from weightdecay.backends import counting, rounding

LOW = rounding.LOW_PRECISION
LAM = {"lr": 0.05, "weight_decay": 0.1}
combinations = pytest.mark.parametrize("rules", COMBINATIONS.values(), ids=COMBINATIONS)
low_precision = pytest.mark.parametrize("dtype", LOW, ids=["bfloat16", "float16"])


# What reaches the weights -----------------------------------------------------------------------------------------------


def share_that_arrives(build, dtype, *, lr=3e-4, lam=0.1, steps=1000):
    """Return how much of the decay of so many steps without a gradient is found in the weights: 1 is all, 0 none."""
    start = torch.linspace(1, 2, 2**12).to(dtype)
    param = Parameter(start.clone())
    optimizer = build([param], lr=lr, weight_decay=lam, eps=1e-6)  # 1e-8 is 0 in float16, and torch divides by it
    param.grad = torch.zeros_like(param)
    for _ in range(steps):
        optimizer.step()
    start, end = start.double(), param.detach().double()
    ideal = start * (1 - lr * lam) ** steps
    return ((start - end).sum() / (start - ideal).sum()).item()


def ours(how):
    return lambda params, **options: wd.AdamW(params, rounding=how, **options)


def theirs(**implementation):
    return lambda params, **options: torch.optim.AdamW(params, **options, **implementation)


@low_precision
def test_the_decay_that_torch_loses_arrives(dtype):
    """lr 3e-4, λ 0.1 and 1,000 steps should take 3 % off every weight; each step is less than half an ulp."""
    shares = {
        "weightdecay, auto": share_that_arrives(ours("auto"), dtype),
        "weightdecay, stochastic": share_that_arrives(ours("stochastic"), dtype),
        "weightdecay, compensated": share_that_arrives(ours("compensated"), dtype),
        "weightdecay, nearest": share_that_arrives(ours("nearest"), dtype),
        "torch, for-loop": share_that_arrives(theirs(foreach=False), dtype),
        "torch, foreach": share_that_arrives(theirs(foreach=True), dtype),
        "torch, fused": share_that_arrives(theirs(fused=True), dtype),
    }
    assert shares == {
        "weightdecay, auto": pytest.approx(1, abs=0.02),
        "weightdecay, stochastic": pytest.approx(1, abs=0.02),
        "weightdecay, compensated": pytest.approx(1, abs=0.02),
        "weightdecay, nearest": 0,
        "torch, for-loop": 0,
        "torch, foreach": 0,
        "torch, fused": 0,
    }


@low_precision
def test_auto_is_stochastic(dtype):
    auto, stochastic, nearest = (
        wd.AdamW(parameters(dtype).values(), **LAM, rounding=how) for how in ("auto", "stochastic", "nearest")
    )
    for optimizer in (auto, stochastic, nearest):
        train(optimizer, 5)
    assert bits(all_params(auto)) == bits(all_params(stochastic)) != bits(all_params(nearest))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64], ids=str)
@pytest.mark.parametrize("how", ["auto", "stochastic", "compensated"])
def test_wider_dtypes_are_rounded_to_nearest_whatever_is_said(how, dtype):
    optimizer, nearest = (wd.AdamW(parameters(dtype).values(), **LAM, rounding=each) for each in (how, "nearest"))
    for each in (optimizer, nearest):
        train(each, 5)
    assert bits(all_params(optimizer)) == bits(all_params(nearest))
    assert bits(list(optimizer.state.values())) == bits(list(nearest.state.values()))


# Computed in float32, rounded once --------------------------------------------------------------------------------------


def twins(dtype, rules, how):
    """Return an optimizer of low-precision parameters and one of the same values in float32."""
    params = parameters(dtype, {"weight": (16, 8), "scale": ()})
    wide = {name: Parameter(param.detach().float()) for name, param in params.items()}
    return wd.Optimizer(params.values(), **LAM, **rules, rounding=how), wd.Optimizer(wide.values(), **LAM, **rules)


def step_both(low, wide, t):
    """Give both the low-precision parameters' gradients, and step."""
    set_gradients(low, t)
    for narrow, param in zip(all_params(low), all_params(wide), strict=True):
        param.grad = narrow.grad.float()
    low.step()
    wide.step()


@low_precision
@combinations
def test_one_step_is_the_float32_step_rounded(rules, dtype):
    low, wide = twins(dtype, rules, "nearest")
    step_both(low, wide, 1)
    assert bits(all_params(low)) == bits([param.to(dtype) for param in all_params(wide)])
    assert bits(list(low.state.values())) == bits(list(wide.state.values()))


@low_precision
@combinations
def test_one_stochastic_step_ends_beside_the_float32_step(rules, dtype):
    low, wide = twins(dtype, rules, "stochastic")
    step_both(low, wide, 1)
    for rounded, param in zip(all_params(low), all_params(wide), strict=True):
        assert_neighbours(rounded.detach(), param.detach())
    assert bits(list(low.state.values())) == bits(list(wide.state.values()))


@combinations
def test_compensated_bfloat16_is_float32_bit_for_bit(rules):
    low, wide = twins(torch.bfloat16, rules, "compensated")
    for t in range(1, 201):
        step_both(low, wide, t)
        if t % 50 == 0:
            whole = [rounding.restored(param.detach(), low.state[param]["compensation"]) for param in all_params(low)]
            assert bits(whole) == bits(all_params(wide))
    started = parameters(torch.bfloat16, {"weight": (16, 8)})["weight"]
    assert (all_params(low)[0] - started).abs().max() > 0.1


# Rounding, value by value -----------------------------------------------------------------------------------------------


def patterns(dtype):
    """Return every value of a 16-bit dtype, NaNs and infinities too."""
    return torch.arange(2**16).to(torch.uint16).view(dtype)


def floats(count=200_000):
    """Return finite float32 of every magnitude: random bit patterns."""
    random = torch.randint(-(2**31), 2**31, (count,), generator=torch.Generator().manual_seed(0)).to(torch.int32)
    values = random.view(torch.float32)
    return values[values.isfinite()]


def within(dtype, values):
    """Return those of the values that lie between the dtype's smallest and largest number."""
    return values[values.abs() <= torch.finfo(dtype).max]


def neighbours(values, dtype):
    """Return the dtype's largest number not above, and its smallest not below, each value; in float64."""
    every = patterns(dtype).double()
    every = every[every.isfinite()].unique()
    wanted = values.double()
    above = torch.searchsorted(every, wanted)
    below = torch.searchsorted(every, wanted, right=True) - 1
    return every[below], every[above]


def assert_neighbours(rounded, values):
    below, above = neighbours(values.flatten(), rounded.dtype)
    found = rounded.flatten().double()
    assert ((found == below) | (found == above)).all()


EXTREMES = [0, 1, 0xFFFF, 0x10000, 0xFFFFFFFF]


def draws(values):
    """Return the extremes of 32 random bits, and a draw, for each value."""
    yield from (torch.full(values.shape, extreme) for extreme in EXTREMES)
    yield rounding.random_bits(values, (3, 4))


@low_precision
def test_stochastic_rounding_goes_to_one_of_the_two_neighbours(dtype):
    values = within(dtype, floats())
    for random in draws(values):
        assert_neighbours(rounding.stochastic(values, dtype, random), values)


@low_precision
def test_what_needs_no_rounding_is_not_rounded(dtype):
    """Every number of the dtype, both zeros and infinities included, whatever the bits: no step of size zero moves a weight."""
    values = patterns(dtype)
    values = values[~values.isnan()]
    for random in draws(values):
        assert bits(rounding.stochastic(values.float(), dtype, random)) == bits(values)
    nearest, lost = rounding.compensated(values.float(), dtype)
    assert bits(nearest) == bits(values)
    assert not lost.any()


@low_precision
def test_not_a_number_stays_so_whatever_its_bits(dtype):
    payloads = [0x7F800001, 0x7FC00000, 0x7FFF8000, 0x7FFFFFFF, -0x7FFFFF, -0x400000, -0x8000, -1]
    values = torch.tensor(payloads, dtype=torch.int32).view(torch.float32)
    assert values.isnan().all()
    for random in draws(values):
        assert rounding.stochastic(values, dtype, random).isnan().all()
    nearest, lost = rounding.compensated(values, dtype)
    assert nearest.isnan().all()
    assert rounding.restored(nearest, lost).isnan().all()


@low_precision
def test_beyond_the_largest_number_the_nearest_is_taken(dtype):
    largest = torch.finfo(dtype).max
    values = torch.tensor([1.0001, 1.0002, 1.01, 2.0, 1e6]).double() * largest
    values = torch.cat([values, -values]).float()
    for random in draws(values):
        assert bits(rounding.stochastic(values, dtype, random)) == bits(values.to(dtype))


MAGNITUDES = {
    torch.bfloat16: [1e-40, 2.0**-130 * 1.3, 1.2e-38, 1e-20, 1e-3, 0.3, 1.001, 1.9999, 300.1, 1e20, 3.38e38],
    torch.float16: [2.0**-26, 2.0**-24 * 1.3, 3.1e-6, 6.09e-5, 6.11e-5, 1e-3, 0.3, 1.0001, 1.9999, 300.1, 65490.0],
}
values_of_every_size = pytest.mark.parametrize(
    ("dtype", "value"),
    [pytest.param(d, sign * v, id=f"{str(d)[6:]}-{sign * v:.3g}") for d in LOW for v in MAGNITUDES[d] for sign in (1, -1)],
)


@values_of_every_size
def test_the_mean_over_all_random_bits_is_the_value(dtype, value):
    value = torch.tensor(value)
    below, above = neighbours(value[None], dtype)
    assert below < above  # or there would be nothing to round
    rounded = rounding.stochastic(value.expand(2**16), dtype, torch.arange(2**16))
    assert rounded.double().mean() == pytest.approx(value.item(), abs=(above - below).item() * 2**-16, rel=0)


@values_of_every_size
def test_the_mean_over_a_million_elements_is_the_value_within_its_standard_error(dtype, value):
    count = 10**6
    values = torch.full((count,), value)
    below, above = neighbours(values[:1], dtype)
    share = ((values[0].double() - below) / (above - below)).item()
    error = (above - below).item() * math.sqrt(share * (1 - share) / count)
    rounded = rounding.stochastic(values, dtype, rounding.random_bits(values, rounding.keys(seed=1, t=2, index=3)))
    assert abs(rounded.double().mean().item() - values[0].item()) <= 3 * error


def test_a_bfloat16_and_its_compensation_are_the_float32():
    values = within(torch.bfloat16, floats())
    assert bits(rounding.restored(*rounding.compensated(values, torch.bfloat16))) == bits(values)


def test_a_float16_and_its_compensation_are_the_float32_where_they_say_so():
    values = within(torch.float16, floats())
    exactly = values[values.abs() >= 2.0**-16]
    assert bits(rounding.restored(*rounding.compensated(exactly, torch.float16))) == bits(exactly)
    below = values[values.abs() < 2.0**-16]
    nearest, lost = rounding.compensated(below, torch.float16)
    assert ((rounding.restored(nearest, lost) - below).abs() <= (nearest.float() - below).abs()).all()


@low_precision
def test_a_compensated_weight_is_the_nearest_one(dtype):
    values = within(dtype, floats())
    nearest, _ = rounding.compensated(values, dtype)
    below, above = neighbours(values, dtype)
    distance = (nearest.double() - values.double()).abs()
    assert (distance <= torch.minimum(values.double() - below, above - values.double())).all()


# The random bits --------------------------------------------------------------------------------------------------------


def test_every_step_of_every_parameter_of_every_seed_has_its_own_key():
    counters = list(itertools.product(range(10), range(1, 100), range(50)))
    assert len({rounding.keys(*counter) for counter in counters}) == len(counters)
    large = [2**32, 2**53 + 1, 2**63 - 1]
    assert len({rounding.keys(seed, 1, 0) for seed in large}) == len(large)


def test_random_bits_are_even_and_unlike_their_neighbours():
    """Each of the 16 bits is set half of the time, and agrees half of the time with the next element's, key's and bit's."""
    like = torch.empty(2**16)
    drawn = [rounding.random_bits(like, rounding.keys(0, 1, index)) for index in (0, 1)]
    columns = [(draw[:, None] >> torch.arange(16)) & 1 for draw in drawn]
    first, second = columns
    agreements = {
        "even": first,
        "next element": first[1:] == first[:-1],
        "next parameter": first == second,
        "next bit": first[:, 1:] == first[:, :-1],
    }
    for name, found in agreements.items():
        assert (found.double().mean(0) - 0.5).abs().max() <= 5 * 0.5 / 2**8, name
    assert 0 <= drawn[0].min() <= drawn[0].max() < 2**16


def test_random_bits_follow_the_place_in_memory():
    shape = (2, 4, 3, 5)
    plain = rounding.random_bits(torch.empty(shape), (1, 2))
    last = rounding.random_bits(torch.empty(shape).to(memory_format=torch.channels_last), (1, 2))
    view = rounding.random_bits(torch.empty(2, 4, 3, 10)[..., ::2], (1, 2))
    assert torch.equal(last.permute(0, 2, 3, 1).flatten(), plain.flatten())
    assert torch.equal(view, plain)


@low_precision
def test_equal_seeds_give_equal_bits_and_others_do_not(dtype):
    def trained(seed):
        optimizer = wd.SGDW(parameters(dtype, {"weight": (64, 8)}).values(), **LAM, seed=seed)
        train(optimizer, 3)
        return bits(all_params(optimizer))

    assert trained(5) == trained(5)
    assert trained(5) != trained(6)


@low_precision
def test_equal_parameters_are_rounded_apart(dtype):
    params = [Parameter(noise((64, 8), dtype, 1)) for _ in range(3)]
    optimizer = wd.SGDW([{"params": params[:2]}, {"params": params[2:]}], **LAM)
    for param in params:
        param.grad = noise((64, 8), dtype, 2)
    optimizer.step()
    first, second, third = (bits(param) for param in params)
    assert first != second != third != first


@low_precision
def test_equal_steps_are_rounded_apart(dtype):
    param = Parameter(noise((64, 8), dtype, 1))
    start = param.detach().clone()
    optimizer = wd.SGDW([param], **LAM)
    param.grad = noise((64, 8), dtype, 2)
    ends = []
    for _ in range(3):
        with torch.no_grad():
            param.copy_(start)
        optimizer.step()
        ends.append(bits(param))
    assert ends[0] != ends[1] != ends[2] != ends[0]


@low_precision
def test_a_parameter_is_rounded_as_if_others_had_no_gradient(dtype):
    """The random bits follow a parameter's place in the optimizer, not in the list of those that step."""
    params = parameters(dtype, {"first": (64,), "second": (64,)})
    both, second = (wd.SGDW(copies(params).values(), **LAM) for _ in range(2))
    for t in range(1, 4):
        set_gradients(both, t)
        both.step()
        set_gradients(second, t)
        all_params(second)[0].grad = None
        second.step()
    assert bits(all_params(both)[1]) == bits(all_params(second)[1])


# Counts beyond 2²⁴, of which a float32 has no next one by 1 ---------------------------------------------------------------

WAYS = {
    "cpu": {"backend": "cpu"},
    "eager": {"backend": "eager"},
    "cpu-capturable": {"backend": "cpu", "capturable": True},
    "eager-capturable": {"backend": "eager", "capturable": True},
}


def stepped_from(count, steps, param, lr=1e-3, **way):
    """Return the counts of so many steps of decay alone, of which the first begins at a count."""
    optimizer = wd.SGDW([param], lr=lr, weight_decay=1.0, momentum=0.0, **way)
    param.grad = torch.zeros_like(param)
    state = optimizer.state[param] = {"step": torch.tensor(count)}
    found = []
    for _ in range(steps):
        optimizer.step()
        found.append(state["step"].item())
    return found


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_the_decay_arrives_at_any_count(way):
    """Each step takes a quarter of an ulp: with the same random bits at every step most weights would stay at 1."""
    param = Parameter(torch.ones(20_000, dtype=torch.bfloat16))
    stepped_from(2.0**24, 200, param, **way)
    assert param.double().mean().item() == pytest.approx((1 - 1e-3) ** 200, abs=8e-4)  # 5 standard errors


@pytest.mark.parametrize("count", [2.0**24 - 3, 2.0**25 - 6, 2.0**55, 1e30])
def test_every_step_counts_and_all_ways_draw_the_same_bits(count):
    before = torch.tensor(count).item()
    params = {name: Parameter(noise((64, 8), torch.bfloat16, 1)) for name in WAYS}
    found = {name: stepped_from(count, 6, params[name], **way) for name, way in WAYS.items()}
    assert len({tuple(counts) for counts in found.values()}) == 1
    assert all(torch.equal(param, params["cpu"]) for param in params.values())
    counts = [before, *found["cpu"]]
    assert len(set(counts)) == len(counts)
    assert all(count / 2 <= each <= 2 * count for each in counts)


def test_a_count_goes_up_by_one_and_then_to_the_next_float():
    """And after the last float below a power of two to the first one of that octave."""
    counts = [0.0, 1.0, 2.0**23, 2.0**24 - 2, 2.0**24 - 1, 2.0**24, 2.0**24 + 2, 2.0**25 - 2, 2.0**55]
    expected = [1.0, 2.0, 2.0**23 + 1, 2.0**24 - 1, 2.0**24, 2.0**24 + 2, 2.0**24 + 4, 2.0**24, 2.0**55 + 2.0**32]
    assert [counting.following_of_host(count) for count in counts] == expected
    assert counting.following(torch.tensor(counts)).tolist() == expected
    drawn = [counting.drawn_from_of_host(count) for count in counts]
    assert counting.drawn_from(torch.tensor(counts)).tolist() == drawn
    assert drawn[:5] == [0, 1, 2**23, 2**24 - 2, 2**24 - 1]
    assert len(set(drawn)) == len(drawn)
    assert max(drawn) < 2**32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_weight_that_someone_else_zeroed_stays_zero(dtype):
    """A pruning mask between the steps: the old remainder is not this weight's, and must not make it NaN."""
    param = torch.nn.Parameter(torch.randn(1000).to(dtype))
    mask = (torch.rand(1000) > 0.5).to(dtype)
    optimizer = wd.AdamW([param], lr=1e-3, weight_decay=0.1, rounding="compensated")
    for _ in range(5):
        param.grad = torch.randn_like(param)
        optimizer.step()
        with torch.no_grad():
            param.mul_(mask)
        assert param.isfinite().all()
    optimizer.param_groups[0]["lr"] = 0.0
    param.grad = torch.zeros_like(param)
    optimizer.step()
    assert (param[mask == 0] == 0).all()
