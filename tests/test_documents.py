"""What the documents show is run: every block of Python, the task of docs/your-own-task.md, and every formula typed by hand.

A formula in docs/ has a label, `$$ … $$ (label)`, and a table of formulas stands below `<!-- checked: label -->`. Here each
label has a function that computes both sides, one of them with the rules or the optimizers.
"""

import importlib.util
import json
import math
import re
import shlex
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from click.testing import CliRunner
from runs import assert_close
from sklearn import linear_model, neural_network
from torch.nn import Parameter

import weightdecay as wd
from weightdecay.cli import main

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(str(path.relative_to(ROOT)) for path in DOCS.rglob("*.md"))
WRITTEN = [page for page in PAGES if not page.startswith("docs/rules/")]  # the others are printed from the rules


def blocks(document, language):
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / document).read_text(encoding="utf-8"), re.DOTALL)


def without_code(text):
    return re.sub(r"```(?!\{).*?```", "", text, flags=re.DOTALL)


def assert_prints_what_it_shows(document, capsys, but=()):
    """Run the blocks of Python in order, with shared names; a ```text block right below one is what it prints."""
    names = {"__name__": "page"}
    text = (ROOT / document).read_text(encoding="utf-8")
    for fence in re.finditer(r"^```python\n(.*?)^```\n(?:\s*^```text\n(.*?)^```)?", text, re.DOTALL | re.MULTILINE):
        code, shown = fence.groups()
        if code not in but:
            exec(compile(code, document, "exec"), names)
            assert capsys.readouterr().out == (shown or "")


def test_the_readmes_lines_print_what_it_shows(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "src/weightdecay/update_rules/decays/decoupled.py").read_text(encoding="utf-8")
    assert page in blocks("README.md", "python")
    assert_prints_what_it_shows("README.md", capsys, but=[page])


def test_the_decay_of_contributing_works_as_typed(tmp_path, own_registry):
    (page,) = blocks("CONTRIBUTING.md", "python")
    assert len(page.splitlines()) < 25
    path = tmp_path / "divided.py"
    path.write_text(page, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("divided", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    w = torch.nn.Parameter(torch.tensor([1.0]))
    optimizer = wd.Optimizer([w], 0.5, direction="sgd", decay="divided", weight_decay=2.0)
    w.grad = torch.tensor([0.5])
    optimizer.step()
    assert w.item() == module.divided(1.0, 0.5, eta=0.5, lam=2.0) == 0.375


TRAIN = """
import torch
from torch import nn


def make_model():
    return nn.Linear(8, 8)


def make():
    model = make_model()
    return model, torch.optim.AdamW(model.parameters(), lr=1e-3)


setup = make
"""


def commands():
    """Return every command line that a document shows, but sweeps and those with a place to fill in."""
    found = {}
    for document in ("README.md", "CONTRIBUTING.md", *WRITTEN):
        text = (ROOT / document).read_text(encoding="utf-8")
        typed = [
            *re.findall(r"`(weightdecay [^\s`]+ [^`\n]+)`", text),
            *re.findall(r"^(weightdecay [^`\n]*)$", text, re.MULTILINE),
        ]
        found.update(dict.fromkeys(line for line in typed if not re.search(r" sweep |…|[A-Z]{4}", line)))
    return list(found)


@pytest.mark.parametrize("command", commands())
def test_every_command_works_as_typed(command, tmp_path, monkeypatch):
    """In the folder of a user's train.py."""
    (tmp_path / "train.py").write_text(TRAIN, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    done = CliRunner().invoke(main, shlex.split(command)[1:])
    sys.modules.pop("train", None)
    assert done.exit_code == 0, done.output
    assert done.stdout


def test_the_documents_show_commands():
    assert len(commands()) >= 8


@pytest.mark.slow
def test_the_task_of_the_docs_sweeps_as_typed(tmp_path):
    (module,) = blocks("docs/your-own-task.md", "python")
    (command,) = blocks("docs/your-own-task.md", "console")
    (tmp_path / "my_task.py").write_text(module, encoding="utf-8")
    program, *arguments = shlex.split(command)
    assert program == "weightdecay"
    subprocess.run([sys.executable, "-m", "weightdecay", *arguments], cwd=tmp_path, check=True, capture_output=True)
    rows = [json.loads(line) for line in (tmp_path / "runs/cancer/results.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 3 * 5 * 5 * 3
    assert max(row["test_accuracy"] for row in rows) > 0.9
    assert (tmp_path / "runs/cancer/index.html").is_file()


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", *WRITTEN])
def test_every_link_into_the_repository_leads_somewhere(document):
    text = without_code((ROOT / document).read_text(encoding="utf-8"))
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", text) + re.findall(r'(?:src|srcset)="([^"]+)"', text)
    pages = [f"{target}.md" for target in re.findall(r"\{doc\}`(?:[^`<]*<)?([^`>]+)>?`", text)]
    for target in [*targets, *pages]:
        if not target.startswith("http"):
            assert ((ROOT / document).parent / target).exists(), target


def test_the_readme_is_for_people():
    """A formula that is worked out in full may take megabytes, which no page shows."""
    assert max(map(len, (ROOT / "README.md").read_text(encoding="utf-8").splitlines())) < 2000


def test_make_names_every_command_of_the_documents():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for document in ("README.md", "CONTRIBUTING.md"):
        assert set(re.findall(r"^make (\w+)", (ROOT / document).read_text(encoding="utf-8"), re.MULTILINE)) <= targets


# The pages of docs/ -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [page for page in WRITTEN if blocks(page, "python")])
def test_the_python_of_a_page_prints_what_it_shows(page, capsys, tmp_path, monkeypatch, own_registry):
    monkeypatch.chdir(tmp_path)
    assert_prints_what_it_shows(page, capsys)


def test_every_public_name_is_in_the_reference():
    reference = (DOCS / "reference.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"^\.\. auto\w+:: (\w+)(?:\(\))?$", reference, re.MULTILINE))
    assert shown >= set(wd.__all__)


def test_the_text_on_a_new_decay_stands_in_contributing_alone():
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for heading in re.findall(
        r':(?:start-after|end-before): "(.*)"', (DOCS / "a-decay-in-ten-minutes.md").read_text(encoding="utf-8")
    ):
        assert contributing.count(f"\n{heading}\n") == 1


QUOTED = {
    "AdamW: with the lr held fixed": "+6.2 ± 1.2",
    "Adam: with the lr held fixed": "+3.3 ± 0.4",
    "SGD: with the lr held fixed": "+2.1 ± 0.7",
    "SGDW: with the lr held fixed": "+2.2 ± 1.0",
    "Adam (coupled) and AdamW": "+0.5 ± 0.5",
    "SGD (coupled) and SGDW": "+0.1 ± 0.4",
    "SGDW: the best λ moves": "−0.58 ± 0.10",
    "AdamW: the best λ moves": "−0.61 ± 0.16",
    "Adam: the best λ moves": "−0.6 ± 0.4",
}
"""The figures of docs/not-l2.md, in order, after the beginning of the sentence of the verdict that has them."""


def test_the_figures_of_the_sweep_are_those_of_its_verdict():
    page = (DOCS / "not-l2.md").read_text(encoding="utf-8")
    assert re.findall(r"[+−]\d[\d.]* ± \d[\d.]*", page) == list(QUOTED.values())
    verdict = json.loads((DOCS / "digits/verdict.json").read_text(encoding="utf-8"))
    for start, figure in QUOTED.items():
        (sentence,) = (sentence for sentence in verdict if sentence.startswith(start))
        assert figure in sentence


# The formulas of docs/ --------------------------------------------------------------------------------------------------

PRINTED = re.compile(r"<!-- (derive: [^>]*|propositions) -->.*?<!-- /(derive|propositions) -->", re.DOTALL)
"""What stands between such marks is printed from the rules."""
LABEL = re.compile(r"^\$\$ \(([\w-]+)\)$|<!-- checked: ([\w-]+) -->", re.MULTILINE)
CHECKS = {}

ETA, LAM = 0.1, 0.3
W = torch.tensor([1.5, -0.25, 3.0, -2.0], dtype=torch.float64)
U = torch.tensor([0.5, 1.0, -0.75, -2.0], dtype=torch.float64)
N, FEATURES = 60, 4
X = torch.randn(N, FEATURES, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * torch.tensor([2, 1, 0.5, 0.25])
X = X - X.mean(0)
Y = X @ W + torch.sin(torch.arange(N, dtype=torch.float64)) + 10
CURVATURES = torch.linalg.eigvalsh(X.T @ X / N)


def typed(page):
    """Return a page without its code and without what was printed into it."""
    return PRINTED.sub("", without_code((ROOT / page).read_text(encoding="utf-8")))


def checks(label):
    def register(check):
        CHECKS[label] = check
        return check

    return register


def rule(kind, name):
    """Return a rule as typed, which computes with floats, and with tensors as long as it uses no words."""
    return wd.rules().of(kind)[name].function


def pull_of(penalty, w, **numbers):
    return torch.tensor([rule("penalty", penalty)(x, **numbers) for x in w.tolist()], dtype=torch.float64)


def loss(w, b=0.0):
    """Return half the mean squared error of a linear regression."""
    return (X @ w + b - Y).square().mean() / 2


def slope(function, w):
    """Return the gradient of a function at w."""
    at = w.clone().requires_grad_()
    return torch.autograd.grad(function(at), at)[0]


def walked(optimizer, gradients):
    """Return the weight before the first and after each step."""
    (param,) = optimizer.param_groups[0]["params"]
    seen = [param.detach().clone()]
    for gradient in gradients:
        param.grad = gradient.clone()
        optimizer.step()
        seen.append(param.detach().clone())
    return seen


def test_every_formula_has_a_check_and_every_check_a_formula():
    labels = [found or checked for page in WRITTEN for found, checked in LABEL.findall(typed(page))]
    assert sorted(labels) == sorted(CHECKS)


@pytest.mark.parametrize("page", WRITTEN)
def test_no_formula_is_typed_without_a_label(page):
    text = typed(page)
    assert len(re.findall(r"^\$\$", text, re.MULTILINE)) == 2 * len(re.findall(r"^\$\$ \(", text, re.MULTILINE))
    assert "{math}" not in text
    assert r"\begin{" not in text
    inline = re.findall(
        r"(?<!\$)\$([^$]+)\$(?!\$)", re.sub(r"^\$\$$.*?^\$\$ \(.*?\)$", "", text, flags=re.DOTALL | re.MULTILINE)
    )
    assert not [tex for tex in inline if "=" in tex]


def test_katex_parses_every_formula_and_refuses_what_is_none():
    for module in ("py_mini_racer", "sphinx", "sphinxcontrib.katex"):
        pytest.importorskip(module, reason="needs the extra docs")
    spec = importlib.util.spec_from_file_location("katex", DOCS / "_ext/katex.py")
    katex = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(katex)
    texts = [without_code((ROOT / page).read_text(encoding="utf-8")) for page in PAGES]
    displayed = [tex for text in texts for tex in re.findall(r"^\$\$$(.*?)^\$\$", text, re.DOTALL | re.MULTILINE)]
    assert len(displayed) >= 10
    parts = {"msub": 2, "msup": 2, "munder": 2, "mover": 2, "mfrac": 2, "msubsup": 3, "munderover": 3}
    for tex in displayed:
        for element in ElementTree.fromstring(katex.mathml(tex, display=True)).iter():
            assert len(element) == parts.get(element.tag.removeprefix(katex.MATHML), len(element)), tex
    with pytest.raises(katex.TexError, match="frac"):
        katex.mathml(r"\frac{1")


@pytest.mark.parametrize(
    "label", [*re.findall(r'^@checks\("(.*)"\)', Path(__file__).read_text(encoding="utf-8"), re.MULTILINE)]
)
def test_the_formula_holds(label):
    CHECKS[label]()


@checks("step")
@checks("shape")
def every_decay_multiplies_the_weight_and_subtracts_the_step():
    for name, numbers in [("none", {}), ("decoupled", {"lam": LAM}), ("independent", {"lam": LAM, "eta_max": 0.2})]:
        decay = rule("decay", name)
        g = decay(1.0, 0.0, eta=ETA, **numbers)
        effect = None if name == "none" else abs(1 - g)
        assert_close(decay(W, U, eta=ETA, **numbers), g * W - ETA * U, tolerance=1e-14, effect=effect)


@checks("penalised-loss")
def the_norm_is_what_its_penalty_descends():
    for n in (1.0, 2.0, 3.0):
        param = Parameter(W.clone())
        optimizer = wd.Optimizer([param], lr=1.0, direction="sgd", penalty="norm", penalty_weight=LAM, n=n)
        before, after = walked(optimizer, [torch.zeros_like(W)])
        force = slope(lambda w, n=n: LAM * w.abs().pow(n).sum().pow(1 / n), W)
        assert_close(before - after, force, tolerance=1e-12, effect=LAM)


@checks("norm-and-square")
def the_square_shrinks_a_weight_and_the_norm_moves_it():
    l2, norm = rule("penalty", "l2"), rule("penalty", "norm")
    for a in (0.2, 0.5, 2.0):
        w = a / (1 + LAM)
        assert abs(w - a + l2(w, lam=LAM)) < 1e-15
        w = max(a - LAM, 0)
        if w > 0:
            assert abs(w - a + norm(w, lam=LAM, norm_n_w=w)) < 1e-15
        else:  # a minimum where the loss pulls less than the penalty does, on either side
            assert a < LAM == norm(1e-9, lam=LAM, norm_n_w=1e-9) == -norm(-1e-9, lam=LAM, norm_n_w=1e-9)


@checks("ridge-as-decay")
def a_step_of_gradient_descent_with_l2_is_a_decay():
    (_, after) = walked(wd.SGD([Parameter(W.clone())], lr=ETA, weight_decay=LAM), [U])
    assert_close(after, W - ETA * (U + LAM * W), tolerance=1e-15, effect=ETA * LAM)
    assert_close(after, (1 - ETA * LAM) * W - ETA * U, tolerance=1e-15, effect=ETA * LAM)


@checks("condition-number")
def l2_adds_to_every_curvature():
    penalised = torch.autograd.functional.jacobian(lambda w: X.T @ (X @ w - Y) / N + rule("penalty", "l2")(w, lam=LAM), W)
    smallest, *_, largest = torch.linalg.eigvalsh(penalised)
    expected = (CURVATURES[-1] + LAM) / (CURVATURES[0] + LAM)
    assert_close(largest / smallest, expected, tolerance=1e-12, effect=CURVATURES[-1] / CURVATURES[0] - expected)


@checks("bias-decayed")
def a_bias_that_decays_ends_below_the_mean():
    b = Y.mean() / (1 + LAM)
    assert_close(slope(lambda b: loss(W, b), b), -rule("penalty", "l2")(b, lam=LAM), tolerance=1e-12, effect=LAM)


@checks("bayes")
def a_penalty_is_a_prior():
    sigma, tau, b = torch.tensor([0.7, 1.3, 0.4], dtype=torch.float64)
    priors = {
        "l2": (torch.distributions.Normal(0 * tau, tau), sigma**2 / (N * tau**2)),
        "l1": (torch.distributions.Laplace(0 * b, b), sigma**2 / (N * b)),
    }
    for penalty, (prior, lam) in priors.items():

        def surprise(w, prior=prior):
            return -torch.distributions.Normal(X @ w, sigma).log_prob(Y).sum() - prior.log_prob(w).sum()

        pull = pull_of(penalty, W, lam=lam)
        expected = N / sigma**2 * (slope(loss, W) + pull)
        assert_close(slope(surprise, W), expected, tolerance=1e-12, effect=N / sigma**2 * pull.abs().max())


@checks("shrinkage")
def ridge_keeps_a_share_of_each_coefficient():
    h, axes = torch.linalg.eigh(X.T @ X / N)
    y = Y - Y.mean()
    share = h / (h + LAM)
    ridge = axes @ (share * (axes.T @ torch.linalg.lstsq(X, y).solution))
    pull = rule("penalty", "l2")(ridge, lam=LAM)
    assert_close(X.T @ (y - X @ ridge) / N, pull, tolerance=1e-12, effect=pull.abs().max())
    predict = torch.autograd.functional.jacobian(lambda y: X @ axes @ (share / h * (axes.T @ (X.T @ y))) / N, y)
    assert_close(predict.trace(), share.sum(), tolerance=1e-12, effect=FEATURES - share.sum())


@checks("conventions")
def what_a_weight_keeps_in_a_step():
    peak = 4 * ETA
    kept = {
        "decoupled": (wd.AdamW([Parameter(W.clone())], lr=ETA, weight_decay=LAM), 1 - ETA * LAM),
        "independent": (
            wd.Optimizer([Parameter(W.clone())], ETA, direction="adam", decay="independent", weight_decay=LAM, lr_max=peak),
            1 - ETA / peak * LAM,
        ),
        "coupled": (wd.SGD([Parameter(W.clone())], lr=ETA, weight_decay=LAM), 1 - ETA * LAM),
    }
    for optimizer, share in kept.values():
        before, after = walked(optimizer, [torch.zeros_like(W)])
        assert_close(after, share * before, tolerance=1e-14, effect=1 - share)


@checks("torch-to-paper")
def the_papers_lambda_is_torchs_at_the_peak():
    ends = []
    for decay, lam in [("decoupled", LAM), ("independent", ETA * LAM)]:
        optimizer = wd.Optimizer([Parameter(W.clone())], ETA, direction="adam", decay=decay, weight_decay=lam)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 50)
        for step in range(50):
            (*_, end) = walked(optimizer, [U * math.cos(step)])
            scheduler.step()
        ends.append(end)
    assert_close(ends[1], ends[0], tolerance=1e-13, effect=ETA * LAM)


@checks("momentum-decay")
def l2_with_momentum_keeps_the_larger_root():
    mu, share = 0.9, 1e-6
    half = (1 + mu - share) / 2
    z = half + math.sqrt(half**2 - mu)
    walk = walked(wd.SGD([Parameter(W.clone())], lr=ETA, momentum=mu, weight_decay=share / ETA), [torch.zeros_like(W)] * 400)
    assert_close(walk[-1] / walk[-2], torch.full_like(W, z), tolerance=1e-12, effect=share)
    assert_close(1 - z, share / (1 - mu), tolerance=1e-3, effect=share / (1 - mu) - share)

    swings = []
    for share in (0.99, 1.01):
        share *= (1 - math.sqrt(mu)) ** 2
        optimizer = wd.SGD([Parameter(W.clone())], lr=ETA, momentum=mu, weight_decay=share / ETA)
        swings.append(bool((torch.stack(walked(optimizer, [torch.zeros_like(W)] * 2000)) * W < 0).any()))
    assert swings == [False, True]


@checks("half-life")
def half_of_a_weight_is_left_after_the_half_life():
    decoupled = rule("decay", "decoupled")
    share = 1 - 2 ** (-1 / 100)
    assert math.log(2) / -math.log(1 - share) == pytest.approx(100, rel=1e-12)
    w = 1.0
    for _ in range(100):
        w = decoupled(w, 0.0, eta=ETA, lam=share / ETA)
    assert w == pytest.approx(0.5, rel=1e-12)
    w, tau = 1.0, 10_000
    for _ in range(tau):
        w = decoupled(w, 0.0, eta=ETA, lam=1 / tau / ETA)
    assert w == pytest.approx(math.exp(-1), rel=1e-4)


@checks("moving-average")
def decoupled_decay_averages_the_steps():
    share = ETA * LAM
    expected = (1 - share) * W + share * (-U / LAM)
    assert_close(rule("decay", "decoupled")(W, U, eta=ETA, lam=LAM), expected, tolerance=1e-14, effect=share)


@checks("scikit-learn")
def scikit_learns_estimators_stop_where_our_gradient_is_zero():
    alpha, labels = 0.2, Y.gt(Y.mean()).double()
    network = neural_network.MLPRegressor(
        hidden_layer_sizes=(), alpha=100 * alpha, solver="lbfgs", tol=1e-9, max_iter=10_000, random_state=0
    )
    for estimator, target, penalty, lam in [
        (linear_model.Ridge(alpha=alpha, solver="cholesky"), Y, "l2", alpha / N),
        (linear_model.Lasso(alpha=alpha, tol=1e-12), Y, "l1", alpha),
        (linear_model.ElasticNet(alpha=alpha, l1_ratio=0.3, tol=1e-12), Y, "elastic_net", alpha),
        (linear_model.LogisticRegression(C=1 / alpha, tol=1e-12, max_iter=1000), labels, "l2", alpha / N),
        (network, Y, "l2", 100 * alpha / N),
    ]:
        estimator.fit(X.numpy(), target.numpy())
        if estimator is network:
            w, b = (torch.tensor(found[0]).flatten() for found in (estimator.coefs_, estimator.intercepts_))
        else:
            w, b = torch.tensor(estimator.coef_).flatten(), torch.tensor(estimator.intercept_)
        output = X @ w + b
        residual = (output.sigmoid() if target is labels else output) - target
        pull = pull_of(penalty, w, lam=lam, **({"l1_ratio": 0.3} if penalty == "elastic_net" else {}))
        active = w != 0
        assert active.any()
        assert_close(-(X.T @ residual / N)[active], pull[active], tolerance=2e-4, effect=pull.abs().max())
        assert abs(residual.mean()) < 1e-4  # the intercept is not penalised


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_scikit_learns_networks_divide_alpha_by_the_batch_size():
    """docs/conventions.md: the same batch four times over is four batches, and not one of four times the size."""
    alpha = 20.0
    network = neural_network.MLPRegressor(
        hidden_layer_sizes=(), alpha=alpha, solver="sgd", batch_size=N, shuffle=False, learning_rate_init=0.05, max_iter=3000,
        tol=0.0, n_iter_no_change=3000, random_state=0,
    )  # fmt: skip
    network.fit(X.repeat(4, 1).numpy(), Y.repeat(4).numpy())
    w, b = (torch.tensor(found[0]).flatten() for found in (network.coefs_, network.intercepts_))
    gradient = X.T @ (X @ w + b - Y) / N
    assert_close(-gradient, pull_of("l2", w, lam=alpha / N), tolerance=1e-3, effect=0.75 * alpha / N * w.abs().max())


def test_the_bits_of_a_format_say_which_decay_it_loses():
    """docs/low-precision.md: 2⁻⁹ for bfloat16, 2.4e-4 for float16, 3e-8 for float32."""
    for dtype, bits, figure in [(torch.bfloat16, 8, 2**-9), (torch.float16, 11, 2.4e-4), (torch.float32, 24, 3e-8)]:
        w = torch.arange(2 ** (bits - 1), 2**bits, max(1, 2 ** (bits - 12))).double() * 2.0 ** (1 - bits)
        last = w.to(dtype)[-1:]
        assert (w * (1 - 2.0 ** -(bits + 1))).to(dtype).equal(w.to(dtype))
        assert not (last.double() * (1 - 1.1 * 2.0 ** -(bits + 1))).to(dtype).equal(last)
        assert figure == pytest.approx(2.0 ** -(bits + 1), rel=0.03)
