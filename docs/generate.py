"""Write what the documents say of the rules from the rules: their pages, the README's table, the derivations in the prose.

    python docs/generate.py            write the pages and fill the marked places
    python docs/generate.py --check    write nothing, and fail where a file is not what it would be
    python docs/generate.py --pictures draw the pages' pictures, which are not kept in the repository

A marked place is `<!-- derive: adam l2 -->` … `<!-- /derive -->`, `<!-- rules -->` … `<!-- /rules -->` or
`<!-- laws: torch -->` … `<!-- /laws -->`, which is made from docs/data/identify.json.
"""

import contextlib
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import sympy as sp

import weightdecay as wd
from weightdecay.analysis import symbolic
from weightdecay.analysis.closed_form import tidy
from weightdecay.analysis.derivation import Derivation, in_lines
from weightdecay.analysis.notation import Notation
from weightdecay.analysis.symbolic import Line
from weightdecay.backends.gpu.codegen import Signature, source
from weightdecay.optim import hyperparameters
from weightdecay.optim.presets import PRESETS
from weightdecay.update_rules.equation import Equation
from weightdecay.update_rules.rule import Rule, as_typed

DOCS = Path(__file__).parent
PAGES = DOCS / "rules"
FOLDERS = {
    kind: f"update_rules/{folder}"
    for kind, folder in (("penalty", "penalties"), ("direction", "directions"), ("decay", "decays"))
}
BESIDE = {"l2": "penalty", "decoupled": "decay"}
"""What a direction's page shows it with."""
LONG = 60
"""A formula with more operations than this does not fit into a cell of a table."""
SHOWN = ("sgd", "adam", "lion")
"""What a penalty's or a decay's page shows it with: u that adds up, that divides and that is a sign."""


def ours() -> list[Rule]:
    """Return the rules of this package."""
    return [rule for rule in wd.rules().values() if rule.function.__module__.startswith("weightdecay.")]


def aligned(notation: Notation, lines: Any) -> str:
    """Return lines as a displayed formula."""
    return f"$$\n{in_lines(notation, lines)}\n$$"


def inline(notation: Notation, x: sp.Expr) -> str:
    """Return an expression as a formula within a line or a table."""
    return f"${notation.tex(notation.arranged(x))}$".replace("|", r"\vert ")


# A rule's page --------------------------------------------------------------------------------------------------------------


def page(rule: Rule) -> str:
    """Return the page of a rule."""
    parts = [f"# {rule.name} ({rule.kind})", rule.summary, f"Source: {rule.source}."]
    if not rule.whole:
        notation = Notation()
        parts += ["## The rule", aligned(notation, symbolic.formula(rule, notation))]
    parts += ["As it stands in the package, and runs:", f"```python\n{inspect.getsource(rule.function).rstrip()}\n```"]
    if rule.defaults:
        parts.append("\n".join(numbers(rule)))
    if rule.state:
        kept = ", ".join(f"`{name}` (`{key}` in `state_dict`)" for name, key in rule.state.items())
        parts.append(f"It remembers, for every weight, {kept}.")
    parts += ["## What it does to a weight", f"![{caption(rule)}]({rule.kind}_{rule.name}.svg)", caption(rule)]
    parts += ["## In the shape of every step", *splits(rule), "## Use", use(rule)]
    return "\n\n".join(parts) + "\n"


def numbers(rule: Rule) -> Iterator[str]:
    """Yield the table of a rule's hyper-parameters."""
    yield "| number | users write | default | allowed |"
    yield "| --- | --- | --- | --- |"
    for name, value in rule.defaults.items():
        user = re.sub(r"^beta(\d)$", lambda found: f"betas[{int(found[1]) - 1}]", hyperparameters.user_name(name))
        yield f"| `{name}` | `{user}` | {as_typed(value)} | {rule.domain.get(name, 'any')} |"


def splits(rule: Rule) -> Iterator[str]:
    """Yield the rule's g and h with the rules that show what it does."""
    if rule.kind == "direction":
        found = {f"`{name}` {kind}": wd.derive(rule.name, **{kind: name}) for name, kind in BESIDE.items()}
    else:
        found = {f"`{name}`": wd.derive(name, **{rule.kind: rule.name}) for name in SHOWN if fits(rule, name)}
    yield "Every step is $w_t = g\\,w_{t-1} - \\eta\\,h$, with"
    rows = [f"| {'with' if rule.kind == 'direction' else 'direction'} | $g$ | $h$ |", "| --- | --- | --- |"]
    rows += [f"| {name} | {inline(d.notation, d.g)} | {inline(d.notation, d.h)} |" for name, d in found.items()]
    yield "\n".join(rows)
    for title, derivations in by_notes(found):
        yield f"{title}: {' '.join(derivations)}"
    yield from long_run(found)


def fits(rule: Rule, direction: str) -> bool:
    """Return whether a direction makes all that a penalty or decay asks for."""
    try:
        Equation.of(direction, **{rule.kind: rule.name})
    except ValueError:
        return False
    return True


def plainest(rule: Rule) -> str:
    """Return the direction that a penalty or decay is shown with."""
    return "sgd" if fits(rule, "sgd") else "adam"


def by_notes(found: dict[str, Derivation]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the notes that combinations have, once for all that have the same."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, derivation in found.items():
        groups.setdefault(derivation.notes, []).append(name)
    for notes, names in groups.items():
        if notes:
            yield ", ".join(names), notes


def long_run(found: dict[str, Derivation]) -> Iterator[str]:
    """Yield closed forms, half-lives and fixed points, where there are any."""
    rows: list[str] = []
    beside: dict[str, list[str]] = {}
    for name, derivation in found.items():
        rest, notation = derivation.at_rest, derivation.notation
        cells = [
            "" if rest is None else inline(notation, rest.lines[-1].right),
            "" if rest is None or rest.half_life is None else inline(notation, rest.half_life),
            "" if derivation.fixed_point is None else inline(notation, derivation.fixed_point),
        ]
        if any(cells):
            rows.append(f"| {name} | {' | '.join(cells)} |")
        if rest is not None and rest.condition:
            beside.setdefault(rest.condition, []).append(name)
        if rest is not None and len(rest.lines) > 1:
            made = [Line(line.left, notation.arranged(line.right)) for line in rest.lines[:-1]]
            beside.setdefault(f"Here\n\n{aligned(notation, made)}", []).append(name)
    if rows:
        yield (
            "Where there is a formula: the weight after $k$ steps without a gradient, the number of steps in which it halves, "
            "and the weight at which λ balances a constant gradient."
        )
        yield "\n".join(["| | $w_k$ | half-life | balance |", "| --- | --- | --- | --- |", *rows])
    for sentence, names in beside.items():
        yield f"{', '.join(names)}: {sentence}"


def use(rule: Rule) -> str:
    """Return how a user asks for the rule, having tried it."""
    import torch

    lam = "penalty_weight" if rule.kind == "penalty" else "weight_decay"
    keywords = {"direction": "adam", "decay": "decoupled", rule.kind: rule.name}
    if rule.kind != "direction":
        keywords.pop("decay" if rule.kind == "penalty" else "penalty", None)
    given = ", ".join(f'{key}="{name}"' for key, name in keywords.items())
    decays = rule.kind == "direction" or "lam" in rule.numbers
    asked = f"wd.Optimizer(params, lr=1e-3, {given}{f', {lam}=0.1' if decays else ''})"
    w = torch.nn.Parameter(torch.ones(2, 2))
    w.grad = torch.ones(2, 2)
    eval(asked, {"wd": wd, "params": [w]}).step()
    presets = [name for name in PRESETS if rule.name in preset_rules(name)]
    also = f" It is in {', '.join(f'`wd.{name}`' for name in presets)}." if presets else ""
    return f"```python\n{asked}\n```{chr(10) * 2 + also.strip() if also else ''}"


def preset_rules(name: str) -> set[str]:
    """Return the names of the rules that a preset is made of."""
    import torch

    preset: Any = PRESETS[name]  # each has a signature of its own
    optimizer = preset([torch.nn.Parameter(torch.zeros(1, 1))], lr=0.1)
    equation = optimizer.equation(optimizer.param_groups[0])
    return {each.name for each in equation.rules if each.name != "none"}


# The pictures ---------------------------------------------------------------------------------------------------------------

STEPS, ETA, LAMBDA = 60, 0.1, 0.3


def caption(rule: Rule) -> str:
    """Return what the picture of a rule shows."""
    if rule.kind == "penalty":
        return f"Weights without a gradient under plain SGD with this penalty, lr {ETA}, λ {LAMBDA}."
    if rule.kind == "decay":
        pulls = {"sgd": "plain SGD pulls", "adam": "Adam pulls"}[plainest(rule)]
        return f"Weights that {pulls} towards 1, from several starts, with this decay (lr {ETA}, λ {LAMBDA})."
    return f"A weight that the loss ½(w − 1)² pulls towards 1: alone, with L2 and with decoupled decay (lr {ETA}, λ {LAMBDA})."


def trajectories(rule: Rule) -> dict[str, list[list[float]]]:
    """Return the weights that the picture shows, from real steps, by the name of the line."""
    starts = [-1.5, -0.5, 0.5, 1.5]
    if rule.kind == "penalty":
        return {rule.name: walk(starts, 0.0, direction="sgd", penalty=rule.name, penalty_weight=LAMBDA)}
    if rule.kind == "decay":
        return {
            "no decay": walk(starts, 1.0, direction=plainest(rule)),
            rule.name: walk(
                starts, 1.0, direction=plainest(rule), decay=rule.name, weight_decay=LAMBDA if "lam" in rule.numbers else 0
            ),
        }
    return {
        "alone": walk([2.0], 1.0, direction=rule.name),
        "l2": walk([2.0], 1.0, direction=rule.name, penalty="l2", penalty_weight=LAMBDA),
        "decoupled": walk([2.0], 1.0, direction=rule.name, decay="decoupled", weight_decay=LAMBDA),
    }


def walk(starts: list[float], pull: float, **rules: Any) -> list[list[float]]:
    """Train each start on ½·pull·(w − 1)² and return the weights after each step."""
    import torch

    w = torch.nn.Parameter(torch.tensor([starts], dtype=torch.float64))
    optimizer = wd.Optimizer([w], lr=ETA, backend="eager", **rules)
    seen = [starts]
    for _ in range(STEPS):
        w.grad = pull * (w.detach() - 1)
        optimizer.step()
        seen.append(w[0].tolist())
    return seen


def draw(rule: Rule) -> str:
    """Return the picture of a rule as an SVG."""
    from weightdecay.display.figure import BLUE, GREY, RED, Canvas, Margins, picture

    # A colour says the same in every picture: blue is a penalty, red a decay, grey the step without either.
    colours = {"alone": GREY, "no decay": GREY, "l2": BLUE, "decoupled": RED, rule.name: RED if rule.kind == "decay" else BLUE}

    def drawn() -> Canvas:
        canvas = Canvas(1, 5.0, 2.4, Margins(0.75, 0.2, 0.2, 0.5, 0.0), 0)
        (panel,) = canvas.panels
        lines = trajectories(rule)
        panel.axhline(0, color=GREY, linewidth=0.6)
        for name, seen in lines.items():
            for place in range(len(seen[0])):
                panel.plot([row[place] for row in seen], color=colours[name], label=name if place == 0 else None, linewidth=1.5)
        panel.spines[["top", "right"]].set_visible(False)
        panel.set_xlabel("step")
        panel.set_ylabel("w")
        panel.set_xlim(0, STEPS)
        if len(lines) > 1:
            panel.legend(loc="best")
        return canvas

    return picture(rule.name, drawn, caption(rule)).svg


def run_page(name: str) -> None:
    """Run the Python of a page in the folder of its pictures, which it draws."""
    text = (DOCS / f"{name}.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    with contextlib.chdir(DOCS / name):
        for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
            exec(compile(code, f"{name}.md", "exec"), names)


def draw_schedules() -> str:
    """Return the picture of docs/schedules.md: what a step takes under the schedules, while the learning rate falls."""
    from weightdecay.display.figure import BLUE, GREEN, GREY, PURPLE, RED, Canvas, Margins, picture
    from weightdecay.optim import schedules

    steps = 1000
    share = schedules.share_of_peak(steps, "cosine")
    rates = [share(step) for step in range(steps)]
    shown: dict[str, dict[str, int]] = {
        "constant_timescale": {},
        "constant": {},
        "follow_lr": {},
        "linear": {"steps": steps},
        "inverse_time": {"steps": 100},
    }
    colours = [RED, GREY, BLUE, GREEN, PURPLE]

    def drawn() -> Canvas:
        canvas = Canvas(1, 5.0, 2.8, Margins(0.75, 0.2, 0.2, 0.5, 0.0), 0)
        (panel,) = canvas.panels
        for (name, numbers), colour in zip(shown.items(), colours, strict=True):
            schedule = {"name": name, "warmup": 0, "final": 0.0, **numbers}
            shares = [rate * schedules.share(schedule, step=t, lr=rate, peak=1.0) for t, rate in enumerate(rates)]
            panel.plot(shares, color=colour, label=name, linewidth=1.5)
        panel.spines[["top", "right"]].set_visible(False)
        panel.set_xlabel("step")
        panel.set_ylabel("shrink")
        panel.set_xlim(0, steps)
        panel.set_ylim(0, 1.05)
        panel.legend(loc="upper right", bbox_to_anchor=(1, 0.95), fontsize=7)
        return canvas

    return picture("schedules", drawn, "What a step takes of a weight under the schedules, while the lr falls in a cosine.").svg


# The marked places ----------------------------------------------------------------------------------------------------------


def derive_block(arguments: str) -> str:
    """Return a derivation: its lines, g and h, and what the split leaves out."""
    direction, *names = arguments.split()
    beside = {next(kind for kind in ("penalty", "decay") if (kind, name) in wd.rules()): name for name in names}
    derivation = wd.derive(direction, **beside)
    return "\n\n".join(
        line if kind == "text" else aligned(derivation.notation, line) for kind, line in derivation_parts(derivation)
    )


def derivation_parts(derivation: Derivation) -> Iterator[tuple[str, Any]]:
    """Yield the sections of a derivation as text and formulas."""
    for heading, lines, sentence in derivation.sections():
        yield "text", f"*{heading}*"
        yield "lines", lines
        if sentence:
            yield "text", sentence


def rules_block(_: str) -> str:
    """Return the README's table of rules and backends: what each backend does with each rule when it is tried."""
    rows = ["| rule | what it does | formula | eager | cpu | gpu | symbolic |", "| --- | --- | --- | --- | --- | --- | --- |"]
    for rule in ours():
        notation = Notation()
        lines = () if rule.whole else symbolic.formula(rule, notation, in_one_line=True)
        result = [line for line in lines if rule.kind != "direction" or line.left == notation.new("u")]
        last = result[-1] if result else None
        if last is not None and sp.count_ops(last.right) > LONG:
            last = symbolic.formula(rule, notation)[-1]  # with the names that its page explains
        shown = "" if last is None else f"${notation.tex(last.left)} = {notation.tex(last.right)}$".replace("|", r"\vert ")
        summary = rule.summary.replace("|", r"\|")
        link = f"[`{rule.name}`](src/weightdecay/{FOLDERS[rule.kind]}/{rule.name}.py) {rule.kind}"
        backends = " | ".join([steps(rule, "eager"), steps(rule, "cpu"), written(rule), "no" if rule.whole else "yes"])
        rows.append(f"| {link} | {summary} | {shown} | {backends} |")
    return "\n".join(rows)


def with_the_plainest(rule: Rule) -> dict[str, Any]:
    """Return what makes an optimizer of a rule, with as little else as it goes with."""
    return {"direction": rule.name} if rule.kind == "direction" else {"direction": plainest(rule), rule.kind: rule.name}


def steps(rule: Rule, backend: str) -> str:
    """Return whether a backend steps with a rule, by doing it."""
    import torch

    w = torch.nn.Parameter(torch.ones(2, 2))
    w.grad = torch.ones(2, 2)
    rules = with_the_plainest(rule)
    try:
        wd.Optimizer([w], lr=0.1, backend=backend, **rules).step()
    except (RuntimeError, ValueError):
        return "no"
    return "after u" if rule.whole and backend == "cpu" else "yes"


def written(rule: Rule) -> str:
    """Return what the gpu backend does with a rule, by letting it write its kernels; that needs no GPU."""
    import torch

    rules = with_the_plainest(rule)
    optimizer = wd.Optimizer([torch.nn.Parameter(torch.ones(2, 2))], lr=0.1, **rules)
    equation, kept, _ = optimizer.way(optimizer.param_groups[0])
    if rule.whole:
        equation = equation.halves()[1]
        kept = tuple(each for each in kept if each in equation.decay.keeps)
    moments = tuple(torch.float32 for each in kept if each.per_element)
    types: dict[str, Any] = {"weight": torch.float32, "grad": torch.float32, "moments": moments, "how": "nearest"}
    where: dict[str, Any] = {"device": torch.device("cuda"), "counted": False}
    source(Signature(equation=equation, kept=kept, shares=equation.decay.shared, **types, **where))
    return "after u" if rule.whole else "yes"


def propositions_block(_: str) -> str:
    """Return Loshchilov & Hutter's propositions as they come out of the rules, with s the scale of a fixed preconditioner."""
    plain, decayed = wd.derive("sgd", "l2", momentum=0), wd.derive("sgd", decay="independent", momentum=0)
    adam = wd.derive("adam", "l2")
    lam, eta, peak, gradient = (decayed.symbols[name] for name in ("lambda", "eta", "eta_max", "∇L"))
    s, wanted = sp.Symbol("s"), sp.Symbol("lambda'")
    target = decayed.step.subs(peak, eta)
    first = sp.simplify(plain.step.subs(lam, lam / eta) - target)
    scaled = plain.step.xreplace({lam: lam * s / eta, eta: eta / s})
    third = sp.simplify(scaled - target.subs(gradient, gradient / s))
    (needed,) = sp.solve(sp.Eq(adam.g.subs(lam, wanted), decayed.g.subs(peak, eta)), wanted)
    made = {symbol.name for symbol in needed.free_symbols}
    if first != 0 or third != 0 or "v_hat_t" not in made:
        raise SystemExit("the propositions do not come out of the rules")
    notation = adam.notation
    shown = notation.tex(notation.arranged(tidy(sp.factor(needed))))
    return (
        f"Computed from the rules: plain SGD with L2 and $\\lambda' = \\lambda/\\eta$, minus plain SGD with the paper's decay: "
        f"${notation.tex(first)}$. The λ' with which L2 in Adam would shrink a weight as that decay does:\n\n"
        f"$$\n\\begin{{aligned}}\n\\lambda' &= {shown}\n\\end{{aligned}}\n$$\n\n"
        "which is another one for every weight. Plain SGD whose gradient and penalty are divided by a fixed s, with "
        f"$\\lambda' = \\lambda s/\\eta$, minus the same with the paper's decay: ${notation.tex(third)}$."
    )


def laws_block(package: str) -> str:
    """Return what `bench/identify_peers.py` found of a package: a row per law, and what is odd."""
    found = json.loads((DOCS / "data/identify.json").read_text(encoding="utf-8"))["packages"][package]
    groups: dict[tuple[str, str], list[str]] = {}
    shares: dict[tuple[str, str], list[float]] = {}
    odd, errors = [], dict[str, list[str]]()
    for name, law in found["laws"].items():
        if "error" in law:
            reason = re.split(r"float32: |does not run: ", law["error"])[-1].replace(f"{name}.", "")
            errors.setdefault(plain(reason), []).append(f"`{name}`")
            continue
        key = law_in_words(law), "" if law["kind"] == "none" else law["strength"] or "not told"
        groups.setdefault(key, []).append(f"`{name}`")
        shares.setdefault(key, []).extend([] if law["bfloat16_share"] is None else [law["bfloat16_share"]])
        odd += [f"* `{name}`, {trial}: {plain(text)}" for trial, text in law["remarks"].items()]
        if key[1] == "not told" or (law["kind"] == "none" and law["dtype"]):
            odd.append(f"* {plain(law['text'])}")
    rows = ["| the decay is | of size | in bfloat16 it keeps | optimizers |", "| --- | --- | --- | --- |"]
    for key, names in sorted(groups.items(), key=lambda item: -len(item[1])):
        percent = [f"{share:.0%}" for share in sorted(shares[key])]
        kept = " to ".join(dict.fromkeys([percent[0], percent[-1]])) if percent else ""
        rows.append(f"| {key[0]} | {key[1]} | {kept} | {', '.join(names)} |")
    if errors:
        reasons = [f"{', '.join(names)} ({reason})" for reason, names in errors.items()]
        odd.append(f"* Not run: {'; '.join(reasons)}.")
    return "\n".join([f"`{found['module']}`, version {found['version']}:", "", *rows, *([""] if odd else []), *odd])


def law_in_words(law: dict[str, Any]) -> str:
    """Return the kind of a law, with its rule where that is another word."""
    rule = law["rule"]
    named = f"{law['kind']} (`{rule}`)" if rule not in (None, "l2", law["kind"]) else law["kind"]
    return f"{named}, on the new weight" if law["weight"] == "new" and law["kind"] == "decoupled" else named


def plain(text: str) -> str:
    """Return text that Markdown and MyST take as it is."""
    return re.sub(r"([|<>_*{}\[\]$])", r"\\\1", text)


BLOCKS: dict[str, Callable[[str], str]] = {
    "derive": derive_block,
    "rules": rules_block,
    "propositions": propositions_block,
    "laws": laws_block,
}


def filled(text: str) -> str:
    """Return a document with its marked places filled."""

    def block(found: re.Match[str]) -> str:
        opening, name, arguments = found[1], found[2], found[3] or ""
        return f"{opening}\n\n{BLOCKS[name](arguments.strip())}\n\n<!-- /{name} -->"

    return re.sub(rf"(<!-- ({'|'.join(BLOCKS)})(?:: ([^>]*?))? -->).*?<!-- /\2 -->", block, text, flags=re.DOTALL)


def contents() -> dict[Path, str]:
    """Return what every generated file and every file with marked places holds."""
    found = {PAGES / f"{rule.kind}_{rule.name}.md": page(rule) for rule in ours()}
    for path in [DOCS.parent / "README.md", *sorted(DOCS.glob("*.md"))]:
        found[path] = filled(path.read_text(encoding="utf-8"))
    return found


def main(arguments: list[str]) -> int:
    """Do what the command line asks for, and return the exit code."""
    if arguments not in ([], ["--check"], ["--pictures"]):
        sys.stderr.write(f"{__doc__}\n")
        return 2
    if arguments == ["--pictures"]:
        for rule in ours():
            (PAGES / f"{rule.kind}_{rule.name}.svg").write_text(draw(rule), encoding="utf-8")
        (DOCS / "schedules.svg").write_text(draw_schedules(), encoding="utf-8")
        run_page("meter")
        return 0
    expected = contents()
    stale = [path for path, text in expected.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    left = [path for path in PAGES.glob("*_*.md") if path not in expected]
    if arguments == ["--check"]:
        for path in (*stale, *left):
            sys.stderr.write(f"{path.relative_to(DOCS.parent)} is stale: run python docs/generate.py\n")
        return bool(stale or left)
    for path in stale:
        path.write_text(expected[path], encoding="utf-8")
    for path in left:
        path.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
