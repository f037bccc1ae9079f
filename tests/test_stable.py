"""Stable decay, whose v̄ is one number of all tensors of an optimizer: the laws of AdamS, and which tensors count, and how."""

import itertools

import pytest
import torch
from runs import assert_close
from torch.nn import Parameter
from training import BACKENDS, all_params, bits, noise, one_process, refused

import weightdecay as wd

LR, LAMBDA = 0.05, 0.4
SHAPES = ((5, 3), (7,), (), (2, 3, 2))
backends = pytest.mark.parametrize("backend", BACKENDS)


def params_of(dtype=torch.float64, shapes=SHAPES):
    return [Parameter(noise(shape, dtype, place)) for place, shape in enumerate(shapes)]


def stable(params, *, backend="eager", lam=LAMBDA, direction="adam", **options):
    given = {"direction": direction, "decay": "stable", "weight_decay": lam, **options}
    return wd.Optimizer(params, LR, backend=backend, **given)


def train(optimizer, steps=20, scale=1.0, missing=()):
    """Step with gradients that depend on the step alone; (step, place) pairs in `missing` have none."""
    for t in range(steps):
        for place, param in enumerate(all_params(optimizer)):
            grad = scale * 10.0 ** (place - 1) * noise(param.shape, param.dtype, 100 * t + place)
            param.grad = None if (t, place) in missing else grad
        optimizer.step()
    return [param.detach() for param in all_params(optimizer)]


def reference(params, steps=20, betas=(0.9, 0.999), eps=1e-8, missing=()):
    """Train as the authors' code does: first the moments of every tensor and their mean, then every weight."""
    w = [param.detach().double().clone() for param in params]
    m, v, counts = [0 * each for each in w], [0 * each for each in w], [0] * len(w)
    for t in range(steps):
        moving = [place for place in range(len(w)) if (t, place) not in missing]
        hats = {}
        for place in moving:
            g = 10.0 ** (place - 1) * noise(w[place].shape, torch.float64, 100 * t + place)
            counts[place] += 1
            m[place] = betas[0] * m[place] + (1 - betas[0]) * g
            v[place] = betas[1] * v[place] + (1 - betas[1]) * g * g
            hats[place] = v[place] / (1 - betas[1] ** counts[place])
        every = torch.cat([hats[place].flatten() for place in moving])
        for place in moving:
            u = m[place] / (1 - betas[0] ** counts[place]) / (hats[place].sqrt() + eps)
            w[place] = w[place] * (1 - LR * LAMBDA / every.mean().sqrt()) - LR * u
    return w


def assert_same(found, expected, tolerance=1e-12):
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other, tolerance=tolerance)


@backends
def test_the_mean_is_of_every_tensor_and_every_group(backend):
    """Tensors of all sizes, in two groups of which one does not decay: its v̂ counts all the same."""
    params = params_of()
    groups = [{"params": params[:2]}, {"params": params[2:], "lr": 0.1, "decay": "none", "weight_decay": 0.0}]
    found = train(stable(groups, backend=backend))
    expected = reference(params_of())
    assert_same(found[:2], expected[:2])
    alone = train(stable(params_of()[:2], backend=backend))
    assert (found[0] - alone[0]).abs().max() > 1e-3


@backends
def test_a_tensor_without_a_gradient_does_not_count_while_it_has_none(backend):
    missing = {(0, 1), (3, 0), (4, 0), (5, 2), (7, 3), (8, 3)}
    assert_same(train(stable(params_of(), backend=backend), missing=missing), reference(params_of(), missing=missing))


def test_the_backends_agree_on_tensors_of_all_kinds():
    """One mean of what kernels and torch's operations step, in float64: some lie with gaps, one no kernel can take."""

    def build(backend):
        params = [
            Parameter(noise((4, 6), torch.float32, 1)),
            Parameter(noise((4, 6), torch.float64, 2).repeat_interleave(2, -1)[..., ::2]),
            Parameter(noise((9,), torch.bfloat16, 3)),
            Parameter(noise((5,), torch.complex64, 4)),
            Parameter(noise((5000,), torch.float32, 5)),
        ]
        return stable(params, backend=backend, rounding="nearest")

    kernels, operations = build("auto"), build("eager")
    for one, other in zip(train(kernels, 5), train(operations, 5), strict=True):
        difference = (one - other).abs().double().max() / other.abs().double().max()
        assert difference <= {torch.float64: 1e-12, torch.bfloat16: 2**-8}.get(one.dtype, 1e-6)


@backends
def test_groups_and_their_order_change_no_bit(backend):
    """The sums of the tensors are added up in the order of their size."""
    together = train(stable(params_of(), backend=backend))
    for order in itertools.islice(itertools.permutations(range(4)), 1, 24, 5):
        params = params_of()
        optimizer = stable([{"params": [params[place]]} for place in order], backend=backend)
        for t in range(20):
            for place, param in enumerate(params):
                param.grad = 10.0 ** (place - 1) * noise(param.shape, param.dtype, 100 * t + place)
            optimizer.step()
        assert bits([param.detach() for param in params]) == bits(together)


# The laws of the paper ------------------------------------------------------------------------------------------------------


@backends
def test_a_loss_that_is_scaled_scales_the_decay_down(backend):
    """By 1/c, where decoupled decay does not know the scale: with ε = 0, λ·c and a loss of c are λ and the loss."""
    plain = train(stable(params_of(), backend=backend, eps=0.0))
    scaled = train(stable(params_of(), backend=backend, eps=0.0, lam=64 * LAMBDA), scale=64.0)
    assert_same(scaled, plain)
    assert (train(stable(params_of(), backend=backend, eps=0.0), scale=64.0)[0] - plain[0]).abs().max() > 1e-3


def test_of_one_weight_it_divides_the_decay_as_adam_divides_the_step():
    """w ← w − η(m̂ + λw)/√v̂."""
    param = Parameter(torch.tensor([2.0], dtype=torch.float64))
    optimizer = stable([param], eps=0.0)
    w, m, v = 2.0, 0.0, 0.0
    for t, g in enumerate((0.5, -3.0, 1.5, 0.25), start=1):
        param.grad = torch.tensor([g], dtype=torch.float64)
        optimizer.step()
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        w = w - LR * (m / (1 - 0.9**t) + LAMBDA * w) / (v / (1 - 0.999**t)) ** 0.5
        assert param.item() == pytest.approx(w, rel=1e-12)


def test_where_every_weight_has_one_v_hat_it_is_decoupled_decay():
    """With λ/√v̂, and √v̂ = 3 throughout as every gradient is ±3."""
    signs = [noise(shape, torch.float64, 9).sign() for shape in SHAPES]
    ours, adamw = stable(params_of()), wd.AdamW(params_of(), LR, weight_decay=LAMBDA / 3, backend="eager")
    for optimizer in (ours, adamw):
        for _ in range(5):
            for param, sign in zip(all_params(optimizer), signs, strict=True):
                param.grad = 3 * sign
            optimizer.step()
    assert_same([param.detach() for param in all_params(ours)], [param.detach() for param in all_params(adamw)])


def test_sgds_is_decoupled_decay_in_another_unit():
    """Without a gradient w_k = w_0 Π(1 − ηλ(1 − dampening)/(1 − μ)): SGDS of the same paper needs no rule of its own."""
    mu, dampening = 0.9, 0.25
    param = Parameter(torch.tensor([2.0], dtype=torch.float64))
    optimizer = wd.SGDW(
        [param], LR, momentum=mu, dampening=dampening, weight_decay=LAMBDA * (1 - dampening) / (1 - mu), backend="eager"
    )
    for _ in range(3):
        param.grad = torch.zeros_like(param)
        optimizer.step()
    assert param.item() == pytest.approx(2 * (1 - LR * LAMBDA * 0.75 / 0.1) ** 3, rel=1e-14)


@backends
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_without_any_gradient_nothing_decays_and_nothing_is_nan(backend, dtype):
    params = params_of(dtype)
    before = bits([param.detach() for param in params])
    optimizer = stable(params, backend=backend)
    for _ in range(2):
        for param in params:
            param.grad = torch.zeros_like(param)
        optimizer.step()
    assert bits([param.detach() for param in params]) == before
    assert all(param.isfinite().all() for param in train(optimizer, 3))


# What counts, and who is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["sgd", "lion", "adagrad", "muon"])
def test_a_direction_without_a_v_hat_is_refused(direction):
    with refused(ValueError, "stable", "mean_v_hat", direction, "no v_hat", "adam"):
        stable([Parameter(torch.ones(2, 2))], direction=direction)
    optimizer = stable(params_of())
    with refused(ValueError, "stable", direction, unchanged=optimizer):
        optimizer.add_param_group({"params": [Parameter(torch.ones(2, 2))], "direction": direction})
    with refused(ValueError, "stable", direction):
        wd.derive(direction, decay="stable")


@pytest.mark.parametrize("direction", ["amsgrad", "nadam"])
def test_a_direction_with_a_v_hat_is_taken(direction):
    kernels, operations = (train(stable(params_of(), backend=backend, direction=direction)) for backend in BACKENDS)
    assert_same(kernels, operations)
    assert (kernels[0] - train(stable(params_of(), direction=direction, lam=0.0))[0]).abs().max() > 1e-3


@pytest.mark.parametrize("penalty", ["group_norm", "norm"])
def test_a_penalty_that_measures_the_tensor_enters_v_hat(penalty):
    """The kernels find its number before v̂ is added up."""
    options = {"penalty": penalty, "penalty_weight": 50.0}
    kernels, operations = (train(stable(params_of(), backend=backend, **options)) for backend in BACKENDS)
    assert_same(kernels, operations)


@backends
def test_a_group_whose_direction_has_no_v_hat_does_not_count(backend):
    params = params_of()
    groups = [{"params": params[:3]}, {"params": params[3:], "direction": "sgd", "decay": "none", "weight_decay": 0.0}]
    assert bits(train(stable(groups, backend=backend))[:3]) == bits(train(stable(params_of()[:3], backend=backend)))


@backends
def test_the_decay_of_a_penalised_gradient_knows_the_penalty(backend):
    """v̂ is that of what the direction sees; maximize and the scale of a GradScaler are in it, too."""
    one = train(stable(params_of(), backend=backend, penalty="l2", penalty_weight=0.5))
    other = stable(params_of(), backend=backend)
    for t in range(20):
        for place, param in enumerate(all_params(other)):
            param.grad = 10.0 ** (place - 1) * noise(param.shape, param.dtype, 100 * t + place) + 0.5 * param.detach()
        other.step()
    assert_same(one, [param.detach() for param in all_params(other)])
    scaled = stable(params_of(), backend=backend)
    scaled.grad_scale, scaled.found_inf = torch.tensor(16.0), torch.tensor(0.0)
    assert_same(train(scaled, scale=16.0), train(stable(params_of(), backend=backend)))
    upwards = train(stable(params_of(), backend=backend, maximize=True), scale=-1.0)
    assert bits(upwards) == bits(train(stable(params_of(), backend=backend)))


def test_a_run_resumes_to_the_bit():
    whole = stable(params_of(), backend="cpu")
    train(whole, 4)
    half = stable([Parameter(param.detach().clone()) for param in all_params(whole)], backend="cpu")
    half.load_state_dict(whole.state_dict())
    assert bits(train(half, 3)) == bits(train(whole, 3))


def test_the_decomposition_knows_the_mean():
    optimizer = stable(params_of())
    train(optimizer, 2)
    for place, param in enumerate(optimizer.param_groups[0]["params"]):
        param.grad = noise(param.shape, param.dtype, 50 + place)
    splits = wd.decompose(optimizer)
    foreseen = [each.g * param.detach() - LR * each.h for param, each in splits.items()]
    optimizer.step()
    assert_same([param.detach() for param in splits], foreseen)


@pytest.mark.filterwarnings("ignore:.torch.jit.:DeprecationWarning")  # torch's own, on import
def test_of_a_distributed_tensor_the_whole_counts():
    from torch.distributed.tensor import Shard, distribute_tensor

    plain = train(stable(params_of(shapes=((4, 3), (6,)))), 3)
    with one_process() as mesh:
        params = params_of(shapes=((4, 3), (6,)))
        params[0] = Parameter(distribute_tensor(params[0].detach(), mesh, [Shard(0)]))
        optimizer = stable(params)
        for t in range(3):
            for place, param in enumerate(params):
                grad = 10.0 ** (place - 1) * noise(param.shape, param.dtype, 100 * t + place)
                param.grad = distribute_tensor(grad, mesh, [Shard(0)]) if place == 0 else grad
            optimizer.step()
        assert_same([params[0].detach().full_tensor(), params[1].detach()], plain)
